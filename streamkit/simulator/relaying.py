"""A second application, whose workers put what they read into another stream, in one transaction with the position.

Each record of the first stream comes to be two in the second, `a` and `b`, under different keys, so that a transaction
lies in several shards; the second stream is split and merged meanwhile. At the end each must be there once, in order.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

from streamkit._core.batch import Batch
from streamkit.consumer.checkpointer import HeldLease, Track
from streamkit.consumer.config import ConsumerConfig
from streamkit.consumer.failure import RetryPolicy
from streamkit.consumer.handler import Context, Outcome
from streamkit.consumer.member import Member
from streamkit.consumer.stage import Stages
from streamkit.consumer.transactional import TransactionDriver
from streamkit.errors import NotFound, StreamExists, StreamkitError, TimedOut, Unavailable
from streamkit.model.shard import Shard
from streamkit.model.stream import StreamConfig, StreamDescription
from streamkit.protocol import messages as m
from streamkit.runtime.interfaces import Runtime
from streamkit.simulator.checkers import checkpoints_never_fall, old_owners_are_fenced, one_owner_for_each_lease_epoch
from streamkit.simulator.loop import Process
from streamkit.simulator.oracle import History

RELAYED = "relayed"
APPLICATION = "relaying"
MEMBERSHIP_MS = 1_000
WAYS = (b"a", b"b")


class Copied:
    """What was found in the second stream. read: by whoever follows it while all goes on; final: at the end."""

    def __init__(self) -> None:
        self.read: dict[bytes, dict[int, bytes]] = {}
        self.final: dict[bytes, dict[int, bytes]] = {}
        self.parents: dict[bytes, tuple[bytes, ...]] = {}
        self.checkpoints: dict[bytes, int] = {}        # of the application, by shard of the first stream


class Relaying:
    """workload: whose stream is copied, and whose processes these are among."""

    def __init__(self, workload: Any, stream: str, seed: int) -> None:
        self.copied = Copied()
        self.history = History()           # of this application's leases
        self.processes: set[Process] = set()
        self._workload = workload
        self._stream = stream
        self._draw = random.Random(f"relaying {seed}")

    async def create(self) -> None:
        """With the nodes up and nothing wrong yet."""
        process, runtime = self._workload.world.new_process("relay-operator")
        shards = self._draw.choice((1, 2, 3))

        async def main() -> None:
            client = self._workload.client(process.name, runtime, self.history)
            while True:
                try:
                    await client.create_stream(RELAYED, StreamConfig(shards=shards))
                    break
                except StreamExists:
                    break
                except (Unavailable, TimedOut):
                    await asyncio.sleep(0.05)
            await client.close()

        await self._workload.world.start(process, main())

    def start(self) -> None:
        for _ in range(self._draw.choice((1, 2))):
            self.start_worker()
        self._workload.begin("relay-reader", self._follow_all)
        if self._draw.random() < 0.7:
            self._workload.begin("relay-admin", self._reshard)

    def start_worker(self) -> None:
        async def main(process: Process, runtime: Runtime) -> None:
            client = self._workload.client(process.name, runtime, self.history)
            config = ConsumerConfig(
                streams=(self._stream,), application=APPLICATION, start="trim_horizon", worker=process.name,
                codec="bytes", membership_ms=MEMBERSHIP_MS, checkpoint_interval_ms=200, batch_records_max=50,
                drain_seconds=1, retry=RetryPolicy(first_ms=10, last_ms=100), stall_seconds=0, transactional=True,
            )  # fmt: skip
            await self._until(lambda: client.stream(self._stream))
            handlers = asyncio.get_running_loop()
            seed = self._draw.getrandbits(64)

            def driver(track: Track, context: Context, stages: Stages) -> TransactionDriver:
                assert isinstance(track, HeldLease), "transactions have one lane"
                return TransactionDriver(Relay(context, random.Random(seed)), track, context, stages, None)

            member = Member(client, config, driver, lambda: Stages(runtime.executor, handlers), None)
            await member.run()

        process, task = self._workload.begin("relay", main)
        self.processes.add(process)
        self._workload.working[process] = task

    async def _until(self, ask: Any) -> Any:
        while True:
            try:
                return await ask()
            except NotFound:
                await asyncio.sleep(0.05)
            except StreamkitError:
                await asyncio.sleep(0.05)

    async def _reshard(self, process: Process, runtime: Runtime) -> None:
        client = self._workload.client(process.name, runtime, self.history)
        for _ in range(self._draw.choice((1, 2, 3))):
            await asyncio.sleep(self._draw.random() * self._workload.world.faults.busy_seconds)
            stream: StreamDescription = await self._until(lambda: client.stream(RELAYED, refresh=True))
            open_shards = sorted((s for s in stream.shards if s.closed_ms is None), key=lambda s: s.hash_start)
            try:
                if len(open_shards) > 1 and self._draw.random() < 0.4:
                    first = self._draw.randrange(len(open_shards) - 1)
                    await client.merge_shards(RELAYED, *(s.ordinal for s in open_shards[first : first + 2]))
                else:
                    await client.split_shard(RELAYED, self._draw.choice(open_shards).ordinal)
            except StreamkitError as error:
                self._workload.history.note(asyncio.get_running_loop().time(), f"copies not resharded: {error}")
        await client.close()

    # ---- reading ---------------------------------------------------------------------------------------------------

    async def _follow_all(self, process: Process, runtime: Runtime) -> None:
        client = self._workload.client(process.name, runtime, self.history)
        while True:
            stream = await self._until(lambda: client.stream(RELAYED, refresh=True))
            for shard in stream.shards:
                await self._read(client, shard, self.copied.read)
            await asyncio.sleep(0.1)

    async def _read(self, client: Any, shard: Shard, into: dict[bytes, dict[int, bytes]]) -> None:
        seen = into.setdefault(shard.uuid, {})
        at = max(seen, default=-1) + 1
        while True:
            try:
                fetched = await client.fetch(shard, at, wait_ms=0)
            except StreamkitError:
                await asyncio.sleep(0.05)
                stream = await self._until(lambda: client.stream(RELAYED, refresh=True))
                shard = next((found for found in stream.shards if found.uuid == shard.uuid), shard)
                continue
            for raw in fetched.batches:
                batch = Batch(raw, None, at)
                if not batch.is_control:
                    seen.update((record.sequence, bytes(record.data)) for record in batch)
            at = fetched.next_sequence
            if at >= fetched.high_watermark:
                return

    async def done(self, shards: tuple[Shard, ...]) -> None:
        """The application is at the end of every shard, and what it decided is in the second stream."""
        process, runtime = self._workload.world.new_process("relay-auditor")

        async def main() -> None:
            client = self._workload.client(process.name, runtime, self.history)
            while True:
                answer = await self._until(lambda: client.call(m.DescribeApplication(APPLICATION)))
                if len(answer.leases) == len(shards) and all(map(self._workload.is_done, answer.leases)):
                    break
                await asyncio.sleep(0.1)
            for lease in answer.leases:
                self.copied.checkpoints[shards[lease.ordinal].uuid] = lease.checkpoint
            expected = sum(map(len, self._workload.history.final.values())) * len(WAYS)
            for _ in range(400):               # what was decided last is on its way; more would be twice
                await self._read_final(client)
                if sum(map(len, self.copied.final.values())) >= expected:
                    break
                await asyncio.sleep(0.1)
            await asyncio.sleep(1)
            await self._read_final(client)
            await client.close()

        await self._workload.world.start(process, main())

    async def _read_final(self, client: Any) -> None:
        stream = await self._until(lambda: client.stream(RELAYED, refresh=True))
        uuids = {shard.ordinal: shard.uuid for shard in stream.shards}
        self.copied.final.clear()
        for shard in stream.shards:
            self.copied.parents[shard.uuid] = tuple(uuids[parent] for parent in shard.parents)
            await self._read(client, shard, self.copied.final)


class Relay:
    """The handler: takes a while, now and then fails."""

    whole = True
    is_async = True
    exact = False

    def __init__(self, context: Context, draw: random.Random) -> None:
        self._context = context
        context.takes_batches()
        self._draw = draw

    async def initialize(self) -> None:
        await asyncio.sleep(self._draw.random() * 0.01)

    async def work(self, batch: Batch[Any]) -> Outcome:
        await asyncio.sleep(self._draw.random() * self._draw.choice((0.0, 0.001, 0.02)))
        for record in batch:
            name = bytes(record.data).split(b" ")[0]
            for way in WAYS:
                self._context.put(RELAYED, way + b" " + name, key=f"{way.decode()}{record.key}")
        if self._draw.random() < 0.03:
            return Outcome(0, RuntimeError("the simulated handler fails, with everything put"))
        return Outcome(len(batch))

    async def run(self, batch: Batch[Any]) -> Outcome:
        raise AssertionError("the driver around it calls `work`")

    async def shard_ended(self) -> bool:
        return False

    async def passed_over(self, batch: Batch[Any]) -> None:
        raise AssertionError("the simulated policy passes over nothing")

    async def shutdown_requested(self) -> None:
        await asyncio.sleep(0)

    async def lease_lost(self) -> None:
        await asyncio.sleep(0)


def judge_relayed(relaying: Relaying, originals: dict[bytes, dict[int, bytes]]) -> Iterator[str]:
    """originals: the first stream, by shard and sequence. Each of them is there once for each way, and in order."""
    copied = relaying.copied
    for checker in (one_owner_for_each_lease_epoch, old_owners_are_fenced, checkpoints_never_fall):
        yield from checker(relaying.history)
    counts: dict[bytes, int] = {}
    for records in copied.final.values():
        for value in records.values():
            counts[value] = counts.get(value, 0) + 1
    order: dict[bytes, tuple[bytes, int]] = {}         # copy → where its original is
    for shard, originally in originals.items():
        for sequence, value in originally.items():
            for way in WAYS:
                copy = way + b" " + value.split(b" ")[0]
                order[copy] = (shard, sequence)
                count = counts.get(copy, 0)
                if count != 1 and sequence < copied.checkpoints.get(shard, 0):
                    yield f"copy {copy.decode(errors='replace')} is there {count} times"
    for copy in counts.keys() - order.keys():
        yield f"copy {copy.decode(errors='replace')} has no original"
    for shard, records in copied.read.items():
        for sequence, value in records.items():
            if copied.final.get(shard, {}).get(sequence) != value:
                yield f"copy {value.decode(errors='replace')} was read at {sequence}, and is there no more"
    yield from _in_order(copied, order)


def _in_order(copied: Copied, order: dict[bytes, tuple[bytes, int]]) -> Iterator[str]:
    last: dict[tuple[bytes, bytes, bytes], tuple[bytes, int]] = {}     # (shard of original, way, key) → the last one
    for shard, records in copied.final.items():        # parents before children
        for _, copy in sorted(records.items()):
            if copy not in order:
                continue
            origin, sequence = order[copy]
            way, name = copy.split(b" ")
            chain = (origin, way, name.split(b"/")[1])
            before = last.get(chain)
            if before is not None and before[1] > sequence:
                yield f"copy {copy.decode(errors='replace')} lies after a later one of its key"
            if before is not None and not _came_of(copied, shard, before[0]):
                yield f"copy {copy.decode(errors='replace')} is in no child of the shard before it"
            last[chain] = (shard, sequence)


def _came_of(copied: Copied, shard: bytes, elder: bytes) -> bool:
    return shard == elder or any(_came_of(copied, parent, elder) for parent in copied.parents.get(shard, ()))
