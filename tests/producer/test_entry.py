"""Values become payloads, headers and times become what travels, and nonsense is refused at put."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from streamkit.errors import InvalidRequest, InvalidUse
from streamkit.model.codec import find_codec
from streamkit.model.entry import (
    content_type_of,
    hash_key_bytes,
    pack_headers,
    payload_encoder,
    time_to_ms,
)


@pytest.mark.parametrize(
    ("codec", "value", "payload"),
    [
        ("json", {"a": 1}, b'{"a":1}'), ("json", "text", b'"text"'), ("json", b"raw", b"raw"),
        ("json", bytearray(b"raw"), b"raw"), ("text", "é", "é".encode()), ("msgpack", [1], b"\x91\x01"),
        ("bytes", memoryview(b"raw"), b"raw"),
    ],
)  # fmt: skip
def test_values_are_encoded_by_the_codec(codec: str, value: Any, payload: bytes) -> None:
    assert payload_encoder(find_codec(codec))(value) == payload


@pytest.mark.parametrize(("codec", "value"), [("json", object()), ("bytes", "text"), ("text", b"bytes")])
def test_values_that_the_codec_cannot_take_are_misuse(codec: str, value: Any) -> None:
    with pytest.raises(InvalidUse):
        payload_encoder(find_codec(codec))(value)


def test_the_codec_is_named_only_where_readers_need_it() -> None:
    assert content_type_of(find_codec("json"), "auto") == b""
    assert content_type_of(find_codec("msgpack"), "msgpack") == b""
    assert msgspec.msgpack.decode(content_type_of(find_codec("msgpack"), "auto")) == {"content-type": b"msgpack"}


def test_headers_are_text_to_bytes() -> None:
    packed = pack_headers({"a": "é", "b": b"\0"}, find_codec("text"), "auto")

    assert msgspec.msgpack.decode(packed) == {"content-type": b"text", "a": "é".encode(), "b": b"\0"}
    for wrong in ({"a": 1}, {1: "a"}):
        with pytest.raises(InvalidRequest):
            pack_headers(wrong, find_codec("json"), "auto")  # type: ignore[arg-type]


def test_times_need_a_zone() -> None:
    assert time_to_ms(datetime(2013, 1, 1, 5, 0, 0, 250_000, tzinfo=UTC)) == 1_357_016_400_250
    with pytest.raises(InvalidRequest):
        time_to_ms(datetime(2013, 1, 1))


def test_hash_keys_are_128_bits() -> None:
    assert hash_key_bytes(2**128 - 1) == b"\xff" * 16
    for wrong in (-1, 2**128):
        with pytest.raises(InvalidRequest):
            hash_key_bytes(wrong)
