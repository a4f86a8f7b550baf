"""User records inside the KPL's aggregates: which of them a consumer is given, and how a place among them is told.

An aggregate is one stored record with one sequence. Its user records share it and are told apart by their sub-sequence,
so a place in a shard is a pair, and a checkpoint may lie inside an aggregate. See docs/decisions/0071.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from streamkit._core.batch import Batch, Record
from streamkit.errors import InvalidUse
from streamkit.model.shard import Shard

Deaggregate = bool | Literal["owned"]
Place = tuple[int, int]                    # sequence, and sub-sequence (0 outside an aggregate)

_SEQUENCE_BITS = 42                        # the rest of 63 bits is for sub-sequences: no record holds 2**21 others


def check_deaggregate(value: object) -> None:
    """Raises InvalidUse."""
    if not isinstance(value, bool) and value != "owned":
        raise InvalidUse(f'deaggregate must be True, False or "owned"; got {value!r}', try_="leave it out for True",
                         argument="deaggregate")


def unwrapped(batch: Batch[Any], shard: Shard, deaggregate: Deaggregate) -> Batch[Any]:
    """The batch as a consumer is given it.

    deaggregate: True hands out every user record of an aggregate; "owned" those whose hash key is the shard's, for
    streams written by the KPL alone, which sends the others again; False the aggregates as they are stored.
    """
    if deaggregate is False:
        return batch
    return batch.unwrap((shard.hash_start, shard.hash_end) if deaggregate == "owned" else None)


def place_of(record: Record[Any]) -> Place:
    return record.sequence, record.sub_sequence or 0


def from_place(batch: Batch[Any], place: Place) -> Batch[Any]:
    """Without the user records before `place` in the aggregate it lies in; records stored by themselves all stay."""
    done = 0
    while done < len(batch) and (record := batch[done]).sub_sequence is not None and place_of(record) < place:
        done += 1
    return batch.part(done, len(batch)) if done else batch


def attempts_to_wire(attempts: Mapping[Place, int]) -> dict[int, int]:
    """By sequence, as the coordinator keeps them; below zero for a later user record of an aggregate.

    Above 2**42 records in a shard there is no room for the sub-sequence: then the aggregate's first record is charged.
    """
    told = {}
    for (sequence, sub_sequence), count in attempts.items():
        if sub_sequence and not sequence >> _SEQUENCE_BITS:
            told[-(sub_sequence << _SEQUENCE_BITS | sequence)] = count
        else:
            told[sequence] = count
    return told


def attempts_from_wire(told: Mapping[int, int]) -> dict[Place, int]:
    mask = (1 << _SEQUENCE_BITS) - 1
    return {(key, 0) if key >= 0 else (-key & mask, -key >> _SEQUENCE_BITS): count for key, count in told.items()}
