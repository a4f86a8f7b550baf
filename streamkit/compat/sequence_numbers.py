"""What a KCL application says of a position, as a place in a shard: decimal sequence number and sub-sequence number."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

from streamkit._core.batch import Batch, Record
from streamkit.errors import InvalidPosition
from streamkit.model.sequence import parse_sequence_number

TRIM_HORIZON = "TRIM_HORIZON"
Place = tuple[int, int]


def ordinal_of(shard: str) -> int:
    """Of "shardId-000000000007"."""
    return int(shard.rpartition("-")[2])


def position_of(number: object, sub_number: object, shard: str, batch: Batch[Any] | None) -> Record[Any] | Place:
    """The record of `batch` that is meant, or (sequence, sub-sequence) of one that was delivered earlier.

    Without a sub-sequence number the first user record of an aggregate is meant, as in the KCL. Raises InvalidPosition.
    """
    parsed = parse_sequence_number(str(number))
    sub = 0 if sub_number is None else sub_number
    if parsed.ordinal != ordinal_of(shard) or parsed.sequence < 0 or not isinstance(sub, int) or sub < 0:
        raise InvalidPosition(
            f"sequence number {number}, sub-sequence number {sub_number}, is no record of {shard}",
            try_="checkpoint a record that was handed to this processor", position=str(number)[:80],
        )
    if batch is None or not len(batch) or not batch[0].sequence <= parsed.sequence <= batch[len(batch) - 1].sequence:
        return parsed.sequence, sub
    index = bisect_left(range(len(batch)), (parsed.sequence, sub), key=lambda i: _place(batch[i]))
    if index < len(batch) and _place(batch[index]) == (parsed.sequence, sub):
        return batch[index]
    if batch[0].sequence == parsed.sequence and (parsed.sequence, sub) < _place(batch[0]):
        return parsed.sequence, sub            # the part of the aggregate that was delivered before
    raise InvalidPosition(
        f"there is no record {sub} in the aggregate {number}", try_="checkpoint a record that was handed over",
        position=str(number)[:80],
    )


def _place(record: Record[Any]) -> Place:
    return record.sequence, record.sub_sequence or 0
