"""What lanes finished beyond a shard's checkpoint: one mark a lane, since within a lane records keep their order.

A mark is a sequence: the lane's records below it are finished. A key that fell behind its lane because one of its
records failed, or that was behind and came further than it since, has a mark of its own, which counts instead. Whoever
takes the shard over leaves what is finished out, whatever its own lanes are; until its position is past all marks of
the owner before, it stores those beside its own.
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
ROWS_MAX = 128                             # keys with marks of their own: with 256 lanes they fit


@dataclass(frozen=True, slots=True)
class Marks:
    """Of one owner's lanes, in their order. rows: (row, sequence) of keys with a mark of their own."""

    by_key: bool
    sequences: tuple[int, ...]
    rows: tuple[tuple[int, int], ...] = ()

    @property
    def reach(self) -> int:
        """Nothing from there on is finished."""
        return max(*self.sequences, *(sequence for _, sequence in self.rows), 0)

    def left_of(self, batch: Batch[Any]) -> Batch[Any]:
        """The batch without what these lanes finished."""
        return unfinished(batch, list(self.sequences), self.by_key, dict(self.rows))


def pack(owners: Sequence[Marks], position: int) -> bytes:
    """Newest first; of those alone that are ahead of `position`. At most 4 KiB."""
    told = [_told(marks, position) for marks in owners[:_OWNERS_MAX] if marks.reach > position]
    while len(packed := msgspec.msgpack.encode(told)) > _BYTES_MAX:
        told.pop()
    return packed if told else b""


class _Told(msgspec.Struct, array_like=True):
    by_key: bool
    steps: list[int]
    rows: list[tuple[int, int]] = []


def _told(marks: Marks, position: int) -> tuple[Any, ...]:
    steps = [max(0, sequence - position) for sequence in marks.sequences]
    rows = [(row, max(0, sequence - position)) for row, sequence in marks.rows]
    return (marks.by_key, steps, rows) if rows else (marks.by_key, steps)      # as workers without rows read it


_decode = msgspec.msgpack.Decoder(list[_Told]).decode


def unpack(packed: bytes, position: int) -> list[Marks]:
    """What `pack` made for that position. Nothing when it cannot be read: a newer worker's; records come again then."""
    try:
        told = _decode(packed) if packed else []
        return [
            Marks(one.by_key, tuple(position + step for step in one.steps),
                  tuple((row, position + step) for row, step in one.rows))
            for one in told if one.steps and len(one.rows) <= ROWS_MAX
        ]
    except msgspec.MsgspecError:
        return []
