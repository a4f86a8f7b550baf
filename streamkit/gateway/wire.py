"""The formats of requests and replies: JSON 1.0 and 1.1, CBOR 1.1, and CBOR as smithy's RPC v2 has it.

A format turns a body into plain values and typed values into a body; it knows no constraints (`validation`) and no
headers (`app`). Blobs are base64 in JSON and bytes in CBOR. Timestamps inside are integer milliseconds; on the wire

    JSON            seconds, with up to three decimals
    CBOR 1.1        milliseconds, tag 1: not what the tag means elsewhere, but what every client of this format reads
    RPC v2 CBOR     seconds, tag 1

The form that the oldest clients post is in `query.py`.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

import cbor2
import msgspec

from streamkit.gateway.errors import ApiError, serialization
from streamkit.gateway.shapes import List, Map, Shape, Structure, Timestamp

DEPTH_MAX = 128                # containers in containers; what the deepest model needs is a quarter of it
EXACT_MS_MAX = 10**15          # below it a double of seconds prints with the three decimals that went in


class Format(Protocol):
    """text: blobs are base64. seconds: the unit of timestamps in requests. cbor: of the replies, for operations that
    write their own."""

    content_type: str
    cbor: bool
    text: bool
    seconds: bool

    def decode(self, body: bytes, shape: Structure) -> Any:
        """Plain values, not checked against the shape. Raises ApiError (SerializationException)."""

    def encode(self, operation: str, shape: Structure, value: dict[str, Any] | None, request_id: str) -> bytes:
        """value: as the shape says, without members that have no value; None for an operation without output."""

    def encode_error(self, error: ApiError, request_id: str) -> bytes: ...


class Json:
    cbor = False
    text = True
    seconds = True

    def __init__(self, content_type: str) -> None:
        self.content_type = content_type

    def decode(self, body: bytes, shape: Structure) -> Any:
        try:
            return msgspec.json.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise serialization() from None

    def encode(self, operation: str, shape: Structure, value: dict[str, Any] | None, request_id: str) -> bytes:
        if value is None:
            return b""
        return msgspec.json.encode(with_times(shape, value, json_seconds))

    def encode_error(self, error: ApiError, request_id: str) -> bytes:
        return msgspec.json.encode(error_members(error))


class Cbor:
    cbor = True
    text = False

    def __init__(self, content_type: str, *, seconds: bool = False) -> None:
        self.content_type = content_type
        self.seconds = seconds

    def decode(self, body: bytes, shape: Structure) -> Any:
        return decode_cbor(body)

    def encode(self, operation: str, shape: Structure, value: dict[str, Any] | None, request_id: str) -> bytes:
        if value is None:
            return b"\xa0" if self.seconds else b""        # RPC v2 wants a map even when nothing is in it
        tag = tag_seconds if self.seconds else tag_milliseconds
        return cbor2.dumps(with_times(shape, value, tag))

    def encode_error(self, error: ApiError, request_id: str) -> bytes:
        return cbor2.dumps(error_members(error))


JSON = Json("application/x-amz-json-1.1")
JSON_1_0 = Json("application/x-amz-json-1.0")
CBOR = Cbor("application/x-amz-cbor-1.1")
RPC_CBOR = Cbor("application/cbor", seconds=True)


def error_members(error: ApiError) -> dict[str, Any]:
    members = {"__type": error.name}
    if error.message is not None:
        members["Message" if error.name == "SerializationException" else "message"] = error.message
    if error.members:
        members.update(error.members)
    return members


# -- timestamps ------------------------------------------------------------------------------------------------------


def json_seconds(ms: int) -> int | float | msgspec.Raw:
    """Exactly the milliseconds that went in, whatever their size."""
    if not ms % 1000:
        return ms // 1000
    if abs(ms) < EXACT_MS_MAX:
        return ms / 1000
    return msgspec.Raw(f"{'-' if ms < 0 else ''}{abs(ms) // 1000}.{abs(ms) % 1000:03d}".encode())


def tag_milliseconds(ms: int) -> cbor2.CBORTag:
    return cbor2.CBORTag(1, ms)


def tag_seconds(ms: int) -> cbor2.CBORTag:
    return cbor2.CBORTag(1, ms / 1000)


def with_times(shape: Shape, value: Any, write: Callable[[int], Any]) -> Any:
    """The value with its timestamps written for the wire; what holds none is handed through as it is."""
    if isinstance(shape, Timestamp):
        return write(value)
    if not holds_time(shape):
        return value
    if isinstance(shape, Structure):
        return {name: with_times(shape.members[name].shape, item, write) for name, item in value.items()}
    if isinstance(shape, List):
        return [with_times(shape.element, item, write) for item in value]
    assert isinstance(shape, Map)
    return {key: with_times(shape.value, item, write) for key, item in value.items()}


@lru_cache(4096)
def holds_time(shape: Shape) -> bool:
    """Whether a timestamp may stand anywhere in it."""
    seen: set[Shape] = set()
    waiting: list[Shape] = [shape]
    while waiting:
        found = waiting.pop()
        if found in seen:
            continue
        seen.add(found)
        if isinstance(found, Timestamp):
            return True
        if isinstance(found, Structure):
            waiting += [member.shape for member in found.members.values()]
        elif isinstance(found, List):
            waiting.append(found.element)
        elif isinstance(found, Map):
            waiting.append(found.value)
    return False


# -- CBOR ------------------------------------------------------------------------------------------------------------


def _refuse(value: object, immutable: bool) -> Any:
    raise ValueError("a tag that no client sends")


def _unwrap(value: Any, immutable: bool) -> Any:
    return value


# cbor2 gives many tags a meaning: shared and cyclic references, regular expressions, big decimals, addresses. None of
# them has one here, so that a body holds numbers, text, bytes, lists and maps and nothing that is larger than it looks.
TAGS = dict.fromkeys([*range(320), 1004, 43000, 55799], _refuse) | {1: _unwrap}


def decode_cbor(body: bytes) -> Any:
    """One item and nothing behind it. Raises ApiError (SerializationException)."""
    decoder = cbor2.CBORDecoder(
        io.BytesIO(body), semantic_decoders=TAGS, tag_hook=_refuse, max_depth=DEPTH_MAX, strict_hashable_types=True
    )
    try:
        value = decoder.decode()
    except (cbor2.CBORError, RecursionError):
        raise serialization() from None
    try:
        decoder.read(1)
    except cbor2.CBORDecodeEOF:
        return value
    raise serialization()
