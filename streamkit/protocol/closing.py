"""What a shard's closing batch says: which plan closed it, and which shards take its keys.

JSON, the one record of a control batch flagged as closing. The stream's map says the same and more; this is what the
log alone tells, to whoever has no map.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from streamkit.errors import CorruptBatch


class ChildRange(NamedTuple):
    """uuid in hexadecimal; hash bounds, half-open, as decimal text."""

    uuid: str
    ordinal: int
    hash_start: str
    hash_end: str


class Closing(msgspec.Struct, frozen=True):
    """plan: its identity, in hexadecimal. children: those that take keys of this shard, in key order."""

    stream: str
    ordinal: int
    plan: str
    children: tuple[ChildRange, ...]
    format: int = 1


_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(Closing)


def encode_closing(closing: Closing) -> bytes:
    return _encode(closing)


def decode_closing(payload: bytes) -> Closing:
    """Raises CorruptBatch."""
    try:
        return _decoder.decode(payload)
    except (msgspec.MsgspecError, ValueError) as cause:
        raise CorruptBatch(
            f"a closing batch cannot be read: {cause}", try_="streamkit segment inspect shows it", reason="closing"
        ) from cause
