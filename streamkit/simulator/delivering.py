"""A delivery of the stream into a store that knows chunks again: everything acknowledged is there, once.

The store is outside of the world: it outlives every process, and answers late, not at all, or with an error, also after
it took what it was given. It keeps the first of what comes under one id, as a conditional create does.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from streamkit.delivery.buffer import Buffer
from streamkit.delivery.chunk import Chunk, Place
from streamkit.delivery.delivery import Delivery
from streamkit.errors import StreamkitError
from streamkit.model.shard import Shard
from streamkit.protocol import messages as m
from streamkit.runtime.interfaces import Runtime
from streamkit.simulator.checkers import checkpoints_never_fall, old_owners_are_fenced, one_owner_for_each_lease_epoch
from streamkit.simulator.loop import Process
from streamkit.simulator.oracle import History

APPLICATION = "delivering"
MEMBERSHIP_MS = 1_000


@dataclass(frozen=True, slots=True)
class Kept:
    """A chunk as the store has it."""

    shard: bytes
    start: Place
    end: Place
    records: tuple[tuple[int, bytes], ...]             # sequence and payload


class Store:
    """chunks by id; wrong: what a store would not notice and we do."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.chunks: dict[str, Kept] = {}
        self.wrong: list[str] = []
        self.troubled = True               # until everything is to come to rest

    async def write(self, chunk: Chunk) -> None:
        """Takes a while; may fail before it is done, and after."""
        draw = self.draw
        await asyncio.sleep(draw.choice((0.0, 0.002, 0.05, 0.5 if self.troubled else 0.0)) * draw.random())
        if self.troubled and draw.random() < 0.15:
            raise ConnectionError("the simulated store refused")
        records = tuple((record.sequence, bytes(record.data)) for record in chunk.records)
        kept = Kept(chunk.shard_uuid, chunk.start, chunk.end, records)
        if self.chunks.setdefault(chunk.id, kept) != kept:
            self.wrong.append(f"chunk {chunk.id} came with other records than before")
        await asyncio.sleep(draw.choice((0.0, 0.002, 0.3 if self.troubled else 0.0)) * draw.random())
        if self.troubled and draw.random() < 0.1:
            raise ConnectionError("the simulated store's answer was lost")


class StoreSink:
    """One worker's connection to it."""

    takes: Literal["values"] = "values"

    def __init__(self, store: Store) -> None:
        self._store = store

    async def open(self) -> None:
        if self._store.troubled and self._store.draw.random() < 0.1:
            raise ConnectionError("the simulated store cannot be opened")

    async def write(self, chunk: Chunk) -> None:
        await self._store.write(chunk)

    async def close(self) -> None:
        await asyncio.sleep(0)


class Delivering:
    """workload: whose stream is delivered, and whose processes these are among."""

    def __init__(self, workload: Any, stream: str, seed: int) -> None:
        self.history = History()           # of this application's leases
        self.processes: set[Process] = set()
        self.checkpoints: dict[bytes, int] = {}        # at the end, by shard
        self._workload = workload
        self._stream = stream
        self._draw = random.Random(f"delivering {seed}")
        self.store = Store(self._draw)

    def start(self) -> None:
        for _ in range(self._draw.choice((1, 2))):
            self.start_worker()

    def start_worker(self) -> None:
        """Each life has a buffer of its own: where ranges end is different every time."""
        buffer = Buffer(bytes_max=self._draw.choice((50, 500, 100_000)), seconds_max=self._draw.choice((0, 0.1, 0.8)),
                        records_max=self._draw.choice((1, 7, 1_000)))  # fmt: skip

        async def main(process: Process, runtime: Runtime) -> None:
            client = self._workload.client(process.name, runtime, self.history)
            delivery = Delivery(
                APPLICATION, source=self._stream, sink=StoreSink(self.store), buffer=buffer, codec="bytes",
                worker=process.name, membership_ms=MEMBERSHIP_MS, drain_seconds=1, runtime=runtime,
            )  # fmt: skip
            await self._until_found(client)
            await delivery.member(client, asyncio.get_running_loop(), runtime.executor).run()

        process, task = self._workload.begin("delivery", main)
        self.processes.add(process)
        self._workload.working[process] = task

    async def done(self, shards: tuple[Shard, ...]) -> None:
        """The delivery is at the end of every shard."""
        self.store.troubled = False
        process, runtime = self._workload.world.new_process("delivery-auditor")

        async def main() -> None:
            client = self._workload.client(process.name, runtime, self.history)
            while True:
                try:
                    answer = await client.call(m.DescribeApplication(APPLICATION))
                except StreamkitError:
                    await asyncio.sleep(0.05)
                    continue
                if len(answer.leases) == len(shards) and all(map(self._workload.is_done, answer.leases)):
                    break
                await asyncio.sleep(0.1)
            for lease in answer.leases:
                self.checkpoints[shards[lease.ordinal].uuid] = lease.checkpoint
            await client.close()

        await self._workload.world.start(process, main())

    async def _until_found(self, client: Any) -> None:
        while True:
            try:
                await client.stream(self._stream)
                return
            except StreamkitError:
                await asyncio.sleep(0.05)


def judge_delivered(delivering: Delivering, originals: dict[bytes, dict[int, bytes]]) -> Iterator[str]:
    """originals: the stream at the end, by shard and sequence. Each record is in the store once, as it is there."""
    for checker in (one_owner_for_each_lease_epoch, old_owners_are_fenced, checkpoints_never_fall):
        yield from checker(delivering.history)
    yield from delivering.store.wrong
    found: dict[tuple[bytes, int], int] = {}
    for kept in delivering.store.chunks.values():
        sequences = [sequence for sequence, _ in kept.records]
        if sequences != sorted(sequences):
            yield f"a chunk of {kept.start}..{kept.end} holds records out of order"
        for sequence, payload in kept.records:
            found[kept.shard, sequence] = found.get((kept.shard, sequence), 0) + 1
            if originals.get(kept.shard, {}).get(sequence) != payload:
                yield f"delivered record {sequence} of shard {kept.shard.hex()} is not what the stream holds"
    for shard, records in originals.items():
        for sequence in records:
            count = found.get((shard, sequence), 0)
            if count != 1 and sequence < delivering.checkpoints.get(shard, 0):
                yield f"record {sequence} of shard {shard.hex()} was delivered {count} times"
