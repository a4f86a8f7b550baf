"""What people and programs hand in as text or msgpack: taken, or refused with the error that is meant for it."""

from __future__ import annotations

import contextlib
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit._core.batch import Batch, RecordContext, seal
from streamkit.client.url import parse_url
from streamkit.config import KEYS, compose
from streamkit.errors import DecodeFailed, InvalidConfig, InvalidPosition
from streamkit.model.sequence import parse_sequence_number, sequence_number
from streamkit.protocol import messages as m

DIGITS = st.text("0123456789", max_size=70)
NUMBERS = st.builds(
    sequence_number, st.integers(-1, (1 << 63) - 2), ordinal=st.integers(0, (1 << 31) - 1),
    created_ms=st.integers(0, 1 << 45), arrived_ms=st.integers(0, 1 << 45),
)  # fmt: skip


@pytest.mark.fuzz
@given(text=st.text(max_size=80) | DIGITS | st.integers(2 << 184, (3 << 184) - 1).map(str))
def test_any_text_is_a_sequence_number_in_range_or_an_invalid_position(text: str) -> None:
    with contextlib.suppress(InvalidPosition):
        parsed = parse_sequence_number(text)
        assert -1 <= parsed.sequence < (1 << 63) - 1
        assert sequence_number(
            parsed.sequence, ordinal=parsed.ordinal, created_ms=parsed.created_s * 1000,
            arrived_ms=parsed.arrived_s * 1000,
        ) == str(int(text))


@pytest.mark.fuzz
@given(number=NUMBERS, at=st.integers(0, 55), digit=st.sampled_from("0123456789 x٣²"))
def test_a_changed_sequence_number_is_read_or_refused(number: str, at: int, digit: str) -> None:
    changed = number[:at] + digit + number[at + 1 :]
    with contextlib.suppress(InvalidPosition):
        assert -1 <= parse_sequence_number(changed).sequence < (1 << 63) - 1


def test_a_number_beyond_the_last_index_is_no_position() -> None:
    beyond = str(int(sequence_number(5, ordinal=1, created_ms=0, arrived_ms=0)) | 1 << 143)
    with pytest.raises(InvalidPosition):
        parse_sequence_number(beyond)


VALUES = st.one_of(
    st.integers(-(1 << 65), 1 << 65).map(str),
    st.sampled_from(("true", "nan", "inf", "-inf", "[]", "{}", '""', "1e400")),
    st.text(max_size=12).map(json.dumps), st.dates().map(str), st.text(max_size=12),
)  # fmt: skip
LINES = st.one_of(
    st.tuples(st.sampled_from(sorted(KEYS)) | st.text(max_size=12), VALUES).map(" = ".join),
    st.sampled_from(("[node]", "[streams]", "[listen]", "[listen.native]", "[[streams]]", "[x]", "[")),
    st.text(max_size=20),
)


@pytest.mark.fuzz
@given(lines=st.lists(LINES, max_size=6))
def test_any_configuration_file_is_taken_or_refused_with_its_place(lines: list[str]) -> None:
    try:
        compose("\n".join(lines), file="streamkit.toml")
    except InvalidConfig as error:
        assert "streamkit.toml" in str(error)
        assert error.try_


@pytest.mark.fuzz
@given(name=st.sampled_from(sorted(KEYS)), value=VALUES)
def test_any_value_in_the_environment_is_taken_in_its_range_or_refused(name: str, value: str) -> None:
    with contextlib.suppress(InvalidConfig):
        setting = compose(environment={KEYS[name].environment: value}).settings[name]
        key = setting.key
        assert isinstance(setting.value, key.kind)
        assert key.low is None or key.low <= setting.value <= key.high


@pytest.mark.fuzz
@given(url=st.text(max_size=60) | st.text("streamkit:/@[].0123456789-+tls", max_size=40).map("streamkit://".__add__))
def test_any_url_is_an_address_or_refused(url: str) -> None:
    with contextlib.suppress(InvalidConfig):
        assert parse_url(url)


WORDS = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.binary(max_size=20)
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=4) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=20,
)  # fmt: skip
TAGGED = st.tuples(st.integers(0, 52), st.lists(WORDS, max_size=8)).map(lambda pair: [pair[0], *pair[1]])


@pytest.mark.fuzz
@given(packed=(WORDS | TAGGED).map(msgspec.msgpack.encode) | st.binary(max_size=200))
def test_any_msgpack_is_a_message_that_reads_back_or_refused(packed: bytes) -> None:
    with contextlib.suppress(msgspec.MsgspecError):
        message = m.decode(packed)
        again = m.decode(m.encode(message))
        assert m.encode(again) == m.encode(message)


@pytest.mark.fuzz
@given(headers=(WORDS.map(msgspec.msgpack.encode) | st.binary(min_size=1, max_size=200)).filter(len))
def test_any_headers_of_a_record_are_text_to_bytes_or_fail_to_decode(headers: bytes) -> None:
    batch = Batch(seal([(b"k", b"v", headers, None, None)]), RecordContext("orders", "shardId-000000000000"))
    for record in batch:
        with contextlib.suppress(DecodeFailed):
            assert all(isinstance(name, str) and isinstance(value, bytes) for name, value in record.headers.items())
        assert (record.key, record.data) == ("k", b"v")
