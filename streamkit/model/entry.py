"""Values turned into what travels: payloads, headers, times and explicit hash keys, checked where they are put."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from streamkit.errors import InvalidRequest, InvalidUse
from streamkit.model import limits
from streamkit.model.codec import AUTO, CONTENT_TYPE, JSON, Codec

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_encode_headers = msgspec.msgpack.Encoder().encode
Headers = Mapping[str, str | bytes]


def content_type_of(codec: Codec, stream_codec: str) -> bytes:
    """The header that names the codec, packed; empty where readers find out without it.

    JSON needs none, because a reader's "auto" reads JSON first, nor does the codec that the stream was made for.
    """
    if codec is JSON or codec is AUTO or codec.name == stream_codec:
        return b""
    return _encode_headers({CONTENT_TYPE: codec.name.encode()})


def pack_headers(headers: Headers, codec: Codec, stream_codec: str, own: Mapping[str, bytes] | None = None) -> bytes:
    """Headers as they travel: a msgpack map of text to bytes; own: the library's. Raises InvalidRequest."""
    packed: dict[str, bytes] = dict(own or {})
    if content_type_of(codec, stream_codec):
        packed[CONTENT_TYPE] = codec.name.encode()
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str | bytes):
            raise InvalidRequest(f"header {name!r} must be text or bytes under a text name",
                                 try_="encode the value first", field="headers")  # fmt: skip
        if own and name in own:
            raise InvalidRequest(f'header "{name}" is the library\'s own', try_="choose another name",
                                 field="headers")  # fmt: skip
        packed[name] = value.encode() if isinstance(value, str) else value
    return _encode_headers(packed) if packed else b""


def pack_raw_headers(headers: Mapping[str, bytes]) -> bytes:
    """Headers of a record as they travelled."""
    return _encode_headers(dict(headers)) if headers else b""


def payload_encoder(codec: Codec) -> Callable[[Any], bytes]:
    """value → payload. With "json", bytes and other buffers go as they are. Raises InvalidUse."""
    encode = AUTO.encode if codec is JSON else codec.encode

    def encode_value(value: Any) -> bytes:
        if type(value) is bytes and (codec is JSON or codec is AUTO):
            return value
        try:
            return encode(value)
        except (TypeError, ValueError, OverflowError) as cause:
            raise InvalidUse(
                f"{type(value).__name__} cannot be encoded as {codec.name}: {cause}",
                try_="put bytes, or pass a codec that knows the type",
                codec=codec.name,
            ) from cause

    return encode_value


def time_to_ms(time: datetime) -> int:
    """Unix milliseconds. Raises InvalidRequest for a time without a zone."""
    if time.tzinfo is None:
        raise InvalidRequest(f"{time.isoformat()} has no time zone", try_="use datetime.now(UTC) or add tzinfo",
                             field="time")  # fmt: skip
    return (time - EPOCH) // timedelta(milliseconds=1)


def hash_key_bytes(number: int) -> bytes:
    """The 16 bytes of an explicit hash key. Raises InvalidRequest."""
    if not 0 <= number < limits.HASH_KEYS:
        raise InvalidRequest(f"explicit_hash_key must be 0..2**128-1, got {number}", try_="take MD5(key) as a number",
                             field="explicit_hash_key")  # fmt: skip
    return number.to_bytes(16, "big")
