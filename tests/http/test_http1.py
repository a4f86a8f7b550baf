"""Requests out of bytes, however they are cut; garbage is refused and never raises."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from streamkit.http.http1 import Answer, RequestReader

TWO = b"GET /live?x=1 HTTP/1.1\r\nHost: a\r\nX-B: c\r\n\r\nHEAD /ready HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


def reader(head_bytes_max=1024):
    return RequestReader(head_bytes_max=head_bytes_max)


@given(cuts=st.lists(st.integers(0, len(TWO)), max_size=8))
def test_requests_are_the_same_however_the_bytes_are_cut(cuts):
    whole = reader()
    places = [0, *sorted(cuts), len(TWO)]
    found = [
        request for start, end in pairwise(places) for request in whole.feed(TWO[start:end])
    ]

    assert [(request.method, request.path, request.keep_alive) for request in found] == [
        ("GET", "/live", True), ("HEAD", "/ready", False),
    ]
    assert found[0].headers == {"host": "a", "x-b": "c"}
    assert whole.refusal is None
    assert not whole.partial


@given(data=st.binary(max_size=300))
def test_garbage_is_refused_or_waited_for_and_never_raises(data):
    garbled = reader(head_bytes_max=200)
    garbled.feed(data)
    garbled.feed(data)


def test_a_head_above_the_limit_is_refused():
    large = reader(head_bytes_max=100)
    large.feed(b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 100)

    assert large.refusal.status == 431


def test_a_body_is_refused():
    posted = reader()
    posted.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")

    assert posted.refusal.status == 413


def test_an_answer_to_head_has_the_length_and_no_body():
    text = Answer(200, b"hello").to_bytes(keep_alive=True, head=True)

    assert b"content-length: 5\r\n" in text
    assert text.endswith(b"\r\n\r\n")
