"""Iterators and page tokens, and the names that streams have behind the API."""

import base64
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit.gateway.errors import ApiError
from streamkit.gateway.kinesis.names import Place, native_name, parse_shard_id
from streamkit.gateway.kinesis.tokens import Tokens
from tests.gateway.kinesis.test_reads import Standing

NOW_MS = 1_800_000_000_000
ACCOUNTS, REGIONS = st.from_regex(r"[0-9]{12}", fullmatch=True), st.from_regex(r"[A-Za-z0-9_-]{0,64}", fullmatch=True)
NAMES = st.from_regex(r"[a-zA-Z0-9_.-]{1,128}", fullmatch=True)
PLACES = st.builds(Place, ACCOUNTS, REGIONS, NAMES)


def tokens(now_ms=NOW_MS, secret=b"s" * 32):
    return Tokens(secret, Standing(now_ms))


@given(place=PLACES, ordinal=st.integers(0, (1 << 31) - 1), uuid=st.binary(min_size=16, max_size=16),
       sequence=st.integers(0, (1 << 63) - 1))  # fmt: skip
def test_an_iterator_comes_back_as_it_went(place, ordinal, uuid, sequence):
    text = tokens().iterator(place, ordinal, uuid, sequence)

    found = tokens(NOW_MS + 300_000).read_iterator(text)
    assert (found.place, found.ordinal, found.shard, found.sequence) == (place, ordinal, uuid, sequence)
    assert len(text) <= 512


REST = st.lists(st.text(max_size=20) | st.integers(-(1 << 63), (1 << 63) - 1), max_size=3)


@given(place=PLACES, after=NAMES, more=REST)
def test_a_page_comes_back_as_it_went(place, after, more):
    text = tokens().page("ListShards", place, after, *more)

    found = tokens().read_page(text, "ListShards")
    assert (found.place, found.after, list(found.more)) == (place, after, more)
    with pytest.raises(ApiError, match="InvalidArgument"):
        tokens().read_page(text, "ListStreams")
    with pytest.raises(ApiError, match="InvalidArgument"):
        tokens().read_iterator(text)


@pytest.mark.parametrize("flip", [1, 128])
def test_every_flipped_byte_is_refused(flip):
    text = tokens().iterator(Place("0" * 12, "us-east-1", "s"), 3, b"u" * 16, 77)
    raw = base64.b64decode(text)
    for at in range(len(raw)):
        changed = raw[:at] + bytes((raw[at] ^ flip,)) + raw[at + 1 :]
        with pytest.raises(ApiError) as caught:
            tokens().read_iterator(base64.b64encode(changed).decode())
        assert caught.value.name == "InvalidArgumentException"
    for at in range(len(text)):
        for other in ("A", "B", "/", "=", "é"):
            if other != text[at]:
                with pytest.raises(ApiError) as caught:
                    tokens().read_iterator(text[:at] + other + text[at + 1 :])
                assert caught.value.name == "InvalidArgumentException"


def test_tokens_of_another_secret_or_age_are_refused():
    text = tokens().iterator(Place("0" * 12, "us-east-1", "s"), 3, b"u" * 16, 77)
    with pytest.raises(ApiError, match="InvalidArgument"):
        tokens(secret=b"t" * 32).read_iterator(text)
    for now_ms, ok in ((NOW_MS + 300_000, True), (NOW_MS + 300_001, False), (NOW_MS - 60_000, True)):
        if ok:
            assert tokens(now_ms).read_iterator(text).sequence == 77
        else:
            with pytest.raises(ApiError, match="ExpiredIterator"):
                tokens(now_ms).read_iterator(text)


@given(one=PLACES, other=PLACES)
def test_no_two_streams_have_one_name_behind_the_api(one, other):
    home = {"account": "0" * 12, "region": "us-east-1"}
    native = native_name(one, **home)
    assert re.fullmatch(r"[a-zA-Z0-9_.-]{1,128}", native)
    assert (native == native_name(other, **home)) == (one == other)


@pytest.mark.parametrize(("text", "ordinal"), [
    ("shardId-000000000003", 3), ("3", 3), ("shard-3", 3), ("a-b-0003", 3), ("shardId-2147483647", 2147483647),
    ("shardId-2147483648", None), ("shardId-", None), ("x", None), ("shardId-3x", None), ("9" * 41, None),
])  # fmt: skip
def test_loose_forms_of_a_shards_id(text, ordinal):
    assert parse_shard_id(text) == ordinal
