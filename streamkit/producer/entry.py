"""What goes into a producer and what comes out: PutEntry, PutResult."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from streamkit._core.framing import PutReceipt
from streamkit.model.entry import EPOCH, Headers
from streamkit.model.sequence import sequence_number
from streamkit.model.shard import Shard


@dataclass(frozen=True, slots=True)
class PutEntry:
    """One record for put_many."""

    value: object
    key: str | None = None
    headers: Headers | None = None
    time: datetime | None = None
    explicit_hash_key: int | None = None
    app_seq: int | None = None
    channel: str = ""


class PutResult(NamedTuple):
    """Where a record is. duplicate: an earlier try had stored it already.

    sequence_number is empty when the shard no longer remembers where that try put it. epoch: of the leader that
    acknowledged it, which had it on `replicas` copies at least; synced: on their disks, not only with their kernels.
    """

    stream: str
    shard: str
    sequence_number: str
    arrived: datetime
    duplicate: bool
    epoch: int = 0
    replicas: int = 0
    synced: bool = False


def result_maker(stream: str, shard: Shard) -> Callable[[PutReceipt, int], PutResult]:
    """(receipt, index of the record in its batch) → PutResult, for the records of one shard."""

    def make(receipt: PutReceipt, index: int) -> PutResult:
        append_time_ms = receipt.append_time_ms
        number = "" if receipt.duplicate == 2 else sequence_number(
            receipt.base_sequence + index, ordinal=shard.ordinal, created_ms=shard.created_ms,
            arrived_ms=append_time_ms,
        )
        arrived = EPOCH + timedelta(milliseconds=append_time_ms)
        return PutResult(
            stream, shard.id, number, arrived, bool(receipt.duplicate), receipt.epoch, receipt.replicas, receipt.synced
        )

    return make
