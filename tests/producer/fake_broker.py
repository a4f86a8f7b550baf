"""A broker in memory that obeys the producer table, for the rules of the sender.

It answers on the running loop after a turn, in the order of arrival, as one connection would. `faults` is asked
before each batch is looked at: it may return an error to answer instead, with or without storing the batch. Leaders
move with `move`, shards change with `split` and `merge`; a description may be an old one, see `stale`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from streamkit._core.batch import Batch, check_batch
from streamkit.errors import (
    Cancelled,
    ConnectionFailed,
    NotLeader,
    SequenceGap,
    ShardClosed,
    StreamkitError,
    StreamNotFound,
    UnknownProducer,
    WrongShard,
)
from streamkit.model.fate import BatchName
from streamkit.model.limits import PRODUCER_WINDOW
from streamkit.model.shard import Shard, even_ranges
from streamkit.model.stream import StreamConfig, StreamDescription, StreamStatus
from streamkit.protocol.frames import PutReceipt
from streamkit.protocol.messages import BatchSettled, ProducerGiven, ProducerOpened
from streamkit.runtime.real import real_runtime

LOSE = "lose"                              # the request is lost
LOSE_ANSWER = "lose answer"                # it is stored, the answer is lost


@dataclass
class Known:
    last: int = -1
    window: list[tuple[int, int, int]] = field(default_factory=list)     # number, count, base sequence (-1: cancelled)


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
        self.cancel_faults: Callable[[int], Any] = lambda number: self.faults(number)
        self.cancelled: list[BatchName] = []
        self.number = 0
        self.producers = 0
        self.opened: list[tuple[str, bytes]] = []              # by whom, which shard
        self.refreshes = 0
        self.stale: StreamDescription | None = None            # what the next look at the stream finds instead
        self.names_leaders = True                              # a refusal says who leads
        self.routes: dict[bytes, str] = {}                     # as a client remembers refusals: uuid → address
        self.held: list[Callable[[], None]] | None = None      # a list: answers wait in it
        self.closed = False
        self.in_flight_most = 0
        self._in_flight = 0

    async def stream(self, name: str, refresh: bool = False) -> StreamDescription:
        self.refreshes += refresh
        if name != self.description.name:
            raise StreamNotFound(f"no stream {name!r}", stream=name, near=None)
        stale, self.stale = self.stale, None
        if refresh:
            self.routes.clear()
        return stale or self.description

    def shard(self, uuid: bytes) -> Shard:
        return next(shard for shard in self.description.shards if shard.uuid == uuid)

    def move(self, uuid: bytes, address: str) -> None:
        """Another leader, in the next epoch."""
        self._change([replace(s, address=address, leader=address, epoch=s.epoch + 1) if s.uuid == uuid else s
                      for s in self.description.shards])  # fmt: skip

    def split(self, uuid: bytes) -> None:
        parent = self.shard(uuid)
        middle = (parent.hash_start + parent.hash_end) // 2
        self._close([parent], [(parent.hash_start, middle), (middle, parent.hash_end)])

    def merge(self, low: bytes, high: bytes) -> None:
        first, second = self.shard(low), self.shard(high)
        assert first.hash_end == second.hash_start
        self._close([first, second], [(first.hash_start, second.hash_end)])

    def _close(self, parents: list[Shard], ranges: list[tuple[int, int]]) -> None:
        ordinal = len(self.description.shards)
        children = [
            Shard(ordinal=ordinal + i, uuid=bytes([ordinal + i]) * 16, hash_start=low, hash_end=high, created_ms=1,
                  parents=tuple(parent.ordinal for parent in parents), epoch=1)
            for i, (low, high) in enumerate(ranges)
        ]  # fmt: skip
        self.logs.update((child.uuid, []) for child in children)
        named = tuple(child.ordinal for child in children)
        self._change([
            replace(s, closed_ms=1, children=named, end=len(self.logs[s.uuid]) + 1) if s in parents else s
            for s in self.description.shards
        ] + children, reshaped=True)

    def _change(self, shards: list[Shard], reshaped: bool = False) -> None:
        self.description = replace(
            self.description, shards=tuple(shards), map_version=self.description.map_version + reshaped
        )

    async def new_producer(self, name: str = "", instance: bytes = b"", *, renew: bool = False) -> ProducerGiven:
        self.producers += 1
        return ProducerGiven(self.producers, 0)

    async def open_producer(
        self, shard: Shard, name: str, instance: bytes, given: ProducerGiven, *, timeout_ms: int | None = None
    ) -> ProducerOpened:
        self.opened.append((name, shard.uuid))
        return ProducerOpened(0, self.shard(shard.uuid).closed_ms is not None)

    async def close(self) -> None:
        self.closed = True

    async def cancel_batch(
        self, shard: Shard, batch: BatchName, *, age_ms: int = 0, timeout_ms: int | None = None
    ) -> BatchSettled:
        await asyncio.sleep(0)
        if (error := self._misrouted(shard)) is not None:
            raise error
        fault = self.cancel_faults(self.number)
        self.number += 1
        if isinstance(fault, StreamkitError):
            raise fault
        if fault == LOSE:
            raise ConnectionFailed("lost", address="fake", sent=True)
        settled = self._settled(shard.uuid, batch)
        if fault == LOSE_ANSWER:
            raise ConnectionFailed("lost", address="fake", sent=True)
        return settled

    def _settled(self, uuid: bytes, batch: BatchName) -> BatchSettled:
        known = self.known.setdefault((batch.producer_id, batch.producer_epoch, uuid), Known())
        first, count = batch.producer_sequence, batch.records
        for sequence, kept, stored in known.window:
            if (sequence, kept) == (first, count):
                return BatchSettled("cancelled" if stored < 0 else "stored", max(0, stored), 1_700_000_001_000, 1)
        if first + count - 1 <= known.last or (known.last < 0 and first):
            return BatchSettled("forgotten")
        if self.shard(uuid).closed_ms is None:
            if first != known.last + 1:
                raise SequenceGap("gap", producer_id=batch.producer_id, expected=known.last + 1, got=first)
            known.last = first + count - 1
            known.window = [*known.window, (first, count, -1)][-PRODUCER_WINDOW:]
            self.cancelled.append(batch)
        return BatchSettled("cancelled", 0, 0, 1)

    def put_batch(
        self, shard: Shard, batch: Any, on_done: Callable[[Any], None], timeout_ms: int | None = None
    ) -> None:
        self._in_flight += 1
        self.in_flight_most = max(self.in_flight_most, self._in_flight)
        answer = self._misrouted(shard) or self._take(shard.uuid, bytes(batch))

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

    def _misrouted(self, shard: Shard) -> StreamkitError | None:
        if all(each.uuid != shard.uuid for each in self.description.shards):
            return None
        leader = self.shard(shard.uuid)
        if self.routes.get(shard.uuid, shard.address) == leader.address:
            return None
        named = leader.address if self.names_leaders else ""
        if named:
            self.routes[shard.uuid] = named
        return NotLeader("led elsewhere", shard=shard.id, epoch=leader.epoch, leader=named, address=named)

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
        shard = self.shard(uuid)
        low, high = int.from_bytes(header.hash_low, "big"), int.from_bytes(header.hash_high, "big")
        if not shard.hash_start <= low <= high < shard.hash_end:
            raise WrongShard("keys of another shard", shard=shard.id, map_version=self.description.map_version)
        if header.producer_id:
            known = self.known.setdefault((header.producer_id, header.producer_epoch, uuid), Known())
            first, count = header.producer_sequence, header.record_count
            for sequence, kept, stored in known.window:
                if (sequence, kept) == (first, count):
                    if stored < 0:
                        raise Cancelled("cancelled", producer_id=header.producer_id)
                    return PutReceipt(stored, 1_700_000_001_000, 1, 1)
            if first + count - 1 <= known.last:
                return PutReceipt(0, 1_700_000_001_000, 1, 2)
            if shard.closed_ms is not None and (first == 0 or known.last >= 0):
                raise ShardClosed("closed", shard=shard.id, map_version=self.description.map_version)
            if known.last < 0 and first:
                raise UnknownProducer("no state", producer_id=header.producer_id)
            if first != known.last + 1:
                raise SequenceGap("gap", producer_id=header.producer_id, expected=known.last + 1, got=first)
            known.last = first + count - 1
            known.window = [*known.window, (first, count, base)][-PRODUCER_WINDOW:]
        elif shard.closed_ms is not None:
            raise ShardClosed("closed", shard=shard.id, map_version=self.description.map_version)
        read = Batch(batch)
        log.extend(zip(read.keys(), read.values(), strict=True))
        self.batches.append(batch)
        return PutReceipt(base, 1_700_000_001_000, 1, 0)

    def lineage(self) -> list[tuple[str, bytes]]:
        """Every record, parents before children: a key's records in the order in which they are to be read."""
        return [record for shard in self.description.shards for record in self.logs[shard.uuid]]

    def stored(self) -> list[tuple[str, bytes]]:
        return [record for log in self.logs.values() for record in log]
