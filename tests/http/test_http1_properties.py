"""However the bytes of HTTP/1.1 are cut, the same requests come out; garbage never raises and never stays."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from streamkit.http.exchange import Budget, HttpConfig
from streamkit.http.http1 import RequestReader
from tests.http.worlds import request

token = st.text("abcXYZ-09", min_size=1, max_size=8)
value = st.text("abc XYZ;,=/\"", max_size=20).map(str.strip)
body = st.binary(max_size=200)


def chunked(data, sizes):
    """`data` in chunks of these sizes, the rest in one."""
    out, at = b"", 0
    for size in sizes:
        if data[at : at + size]:
            out += b"%x;ext=1\r\n%b\r\n" % (len(data[at : at + size]), data[at : at + size])
        at += size
    if data[at:]:
        out += b"%X\r\n%b\r\n" % (len(data[at:]), data[at:])
    return out + b"0\r\nx-trailer: a\r\n\r\n"


@st.composite
def conversations(draw):
    """Bytes of some requests, and what is to come out."""
    sent, expected = b"", []
    for _ in range(draw(st.integers(1, 4))):
        fields = draw(st.dictionaries(token.map(lambda name: "x" + name.lower()), value, max_size=4))
        path, data = "/" + draw(token), draw(body)
        lines = [f"{name}: {text}" for name, text in fields.items()]
        if draw(st.booleans()):
            lines += ["Connection: upgrade", "Upgrade: h2c"]
        if draw(st.booleans()):
            lines.append("Transfer-Encoding: chunked")
            sent += request(path, *lines, method="POST") + chunked(data, draw(st.lists(st.integers(1, 50), max_size=4)))
        else:
            sent += request(path, *lines, method="POST", body=data)
        expected.append((path, fields, data))
    return sent, expected


def read(pieces, **config):
    reader = RequestReader(HttpConfig(**config), Budget(1 << 20))
    found = []
    for piece in pieces:
        while piece:
            piece = reader.feed(piece)
            while reader.complete:
                found.append(reader.complete.popleft().request)
    return reader, found


def cut(data, places):
    places = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(places)]


@given(conversation=conversations(), places=st.lists(st.integers(0, 5000), max_size=12))
def test_requests_are_the_same_however_the_bytes_are_cut(conversation, places):
    sent, expected = conversation
    reader, found = read(cut(sent, places))

    assert reader.refusal == 0
    assert not reader.partial
    assert [
        (asked.path, {name: text for name, text in asked.headers.items() if name.startswith("x")}, asked.body)
        for asked in found
    ] == expected


@given(conversation=conversations())
def test_requests_are_the_same_byte_by_byte(conversation):
    sent, expected = conversation
    reader, found = read([bytes([byte]) for byte in sent])

    assert reader.refusal == 0
    assert [(asked.path, asked.body) for asked in found] == [(path, data) for path, _, data in expected]


@given(
    conversation=conversations(), cap=st.integers(1, 3), places=st.lists(st.integers(0, 5000), max_size=4),
    more=st.integers(0, 2000),
)
def test_no_request_is_lost_at_the_cap(conversation, cap, places, more):
    sent, expected = conversation
    many = request("/many") * more
    reader, found = read(cut(many + sent, places), pipelined_max=cap)

    assert reader.refusal == 0
    assert [asked.path for asked in found] == ["/many"] * more + [path for path, _, _ in expected]


@given(conversation=conversations(), at=st.integers(0, 5000), edits=st.binary(min_size=1, max_size=8))
def test_a_damaged_request_is_refused_or_read_and_holds_nothing_back(conversation, at, edits):
    damaged = bytearray(conversation[0])
    at %= len(damaged)
    damaged[at : at + len(edits)] = edits
    bodies = Budget(1 << 20)
    reader = RequestReader(HttpConfig(head_bytes_max=1000), bodies)
    rest = reader.feed(bytes(damaged))

    assert rest == b""
    assert bodies.used == reader.held + sum(len(incoming.request.body) for incoming in reader.complete)
