"""A broker in memory that obeys the producer table, for the rules of the sender.

It answers on the running loop after a turn, in the order of arrival, as one connection would. `faults` is asked
before each batch is looked at: it may return an error to answer instead, with or without storing the batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from streamkit._core.batch import Batch, check_batch
from streamkit.errors import ConnectionFailed, SequenceGap, StreamkitError, StreamNotFound, UnknownProducer
from streamkit.model.limits import PRODUCER_WINDOW
from streamkit.model.shard import Shard, even_ranges
from streamkit.model.stream import StreamConfig, StreamDescription, StreamStatus
from streamkit.protocol.frames import PutReceipt
from streamkit.protocol.messages import ProducerGiven
from streamkit.runtime.real import real_runtime

LOSE = "lose"                              # the request is lost
LOSE_ANSWER = "lose answer"                # it is stored, the answer is lost


@dataclass
class Known:
    last: int = -1
    window: list[tuple[int, int, int]] = field(default_factory=list)     # producer sequence, count, base sequence


class FakeBroker:
    def __init__(self, shards: int = 2, record_bytes_max: int = 1 << 20) -> None:
        self.runtime = real_runtime()
        self.description = StreamDescription(
            name="orders", status=StreamStatus.ACTIVE,
            config=StreamConfig(shards=shards, record_bytes_max=record_bytes_max),
            created_ms=1_700_000_000_000, map_version=1,
            shards=tuple(
                Shard(ordinal=i, uuid=bytes([i]) * 16, hash_start=low, hash_end=high, created_ms=1_700_000_000_000)
                for i, (low, high) in enumerate(even_ranges(shards))
            ),
        )  # fmt: skip
        self.logs: dict[bytes, list[tuple[str, bytes]]] = {shard.uuid: [] for shard in self.description.shards}
        self.batches: list[bytes] = []
        self.known: dict[tuple[int, int, bytes], Known] = {}
        self.faults: Callable[[int], Any] = lambda number: None
        self.number = 0
        self.producers = 0
        self.refreshes = 0
        self.held: list[Callable[[], None]] | None = None      # a list: answers wait in it
        self.closed = False
        self.in_flight_most = 0
        self._in_flight = 0

    async def stream(self, name: str, refresh: bool = False) -> StreamDescription:
        self.refreshes += refresh
        if name != self.description.name:
            raise StreamNotFound(f"no stream {name!r}", stream=name, near=None)
        return self.description

    async def new_producer(self, name: str = "") -> ProducerGiven:
        self.producers += 1
        return ProducerGiven(self.producers, 0)

    async def close(self) -> None:
        self.closed = True

    def put_batch(
        self, shard: Shard, batch: Any, on_done: Callable[[Any], None], timeout_ms: int | None = None
    ) -> None:
        self._in_flight += 1
        self.in_flight_most = max(self.in_flight_most, self._in_flight)
        answer = self._take(shard.uuid, bytes(batch))

        def reply() -> None:
            self._in_flight -= 1
            on_done(answer)

        if self.held is None:
            asyncio.get_running_loop().call_soon(reply)
        else:
            self.held.append(reply)

    def release(self) -> None:
        held, self.held = self.held or [], None
        for reply in held:
            reply()

    def _take(self, uuid: bytes, batch: bytes) -> Any:
        fault = self.faults(self.number)
        self.number += 1
        if isinstance(fault, StreamkitError):
            return fault
        if fault == LOSE:
            return ConnectionFailed("lost", address="fake", sent=True)
        try:
            answer = self._append(uuid, batch)
        except StreamkitError as error:
            answer = error
        if fault == LOSE_ANSWER:
            return ConnectionFailed("lost", address="fake", sent=True)
        return answer

    def _append(self, uuid: bytes, batch: bytes) -> PutReceipt:
        header = check_batch(batch)
        log = self.logs[uuid]
        base = len(log)
        if header.producer_id:
            known = self.known.setdefault((header.producer_id, header.producer_epoch, uuid), Known())
            first, count = header.producer_sequence, header.record_count
            for sequence, kept, stored in known.window:
                if (sequence, kept) == (first, count):
                    return PutReceipt(stored, 1_700_000_001_000, 1, 1)
            if first + count - 1 <= known.last:
                return PutReceipt(0, 1_700_000_001_000, 1, 2)
            if known.last < 0 and first:
                raise UnknownProducer("no state", producer_id=header.producer_id)
            if first != known.last + 1:
                raise SequenceGap("gap", producer_id=header.producer_id, expected=known.last + 1, got=first)
            known.last = first + count - 1
            known.window = [*known.window, (first, count, base)][-PRODUCER_WINDOW:]
        read = Batch(batch)
        log.extend(zip(read.keys(), read.values(), strict=True))
        self.batches.append(batch)
        return PutReceipt(base, 1_700_000_001_000, 1, 0)

    def stored(self) -> list[tuple[str, bytes]]:
        return [record for log in self.logs.values() for record in log]
