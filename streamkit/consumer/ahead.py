"""What lanes finished beyond a shard's checkpoint: one mark a lane, since within a lane records keep their order.

A mark is a sequence: the lane's records below it are finished. Whoever takes the shard over leaves those out, whatever
its own lanes are; until its position is past all marks of the owner before, it stores those beside its own.
Source: docs/decisions/0080.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from streamkit._core.batch import Batch
from streamkit._core.lanes import unfinished

_OWNERS_MAX = 3                            # older ones are forgotten: what they alone finished comes again
_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True)
class Marks:
    """Of one owner's lanes, in their order."""

    by_key: bool
    sequences: tuple[int, ...]

    def left_of(self, batch: Batch[Any]) -> Batch[Any]:
        """The batch without what these lanes finished."""
        return unfinished(batch, list(self.sequences), self.by_key)


def pack(owners: Sequence[Marks], position: int) -> bytes:
    """Newest first; of those alone that are ahead of `position`. At most 4 KiB."""
    told = [
        (marks.by_key, [max(0, sequence - position) for sequence in marks.sequences])
        for marks in owners[:_OWNERS_MAX] if max(marks.sequences) > position
    ]
    while len(packed := msgspec.msgpack.encode(told)) > _BYTES_MAX:
        told.pop()
    return packed if told else b""


_decode = msgspec.msgpack.Decoder(list[tuple[bool, list[int]]]).decode


def unpack(packed: bytes, position: int) -> list[Marks]:
    """What `pack` made for that position. Nothing when it cannot be read: a newer worker's; records come again then."""
    try:
        told = _decode(packed) if packed else []
        return [Marks(by_key, tuple(position + step for step in steps)) for by_key, steps in told if steps]
    except msgspec.MsgspecError:
        return []
