"""Who uses the stream: producers, workers of one application, and a plain reader, as processes of their own.

They run the shipped client, producer and consumer. Every record says who put it and when, so that the oracle can tell
one from another; its padding makes batches large enough to be torn.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Coroutine
from functools import partial
from typing import Any
from zlib import crc32

from streamkit._core.batch import Batch
from streamkit.client.client import AsyncClient
from streamkit.client.config import ClientConfig
from streamkit.consumer.checkpointer import Track
from streamkit.consumer.config import ConsumerConfig
from streamkit.consumer.failure import RetryPolicy
from streamkit.consumer.handler import Outcome
from streamkit.consumer.member import Member
from streamkit.consumer.ordering import Ordering
from streamkit.consumer.stage import Stages
from streamkit.errors import (
    DataError,
    NotFound,
    ProducerError,
    PutFailed,
    StreamExists,
    StreamkitError,
    TimedOut,
    Unavailable,
)
from streamkit.model.sequence import parse_sequence_number
from streamkit.model.shard import Shard
from streamkit.model.stream import Durability, StreamConfig, StreamDescription
from streamkit.producer.producer import AsyncProducer
from streamkit.protocol import messages as m
from streamkit.runtime.interfaces import Runtime
from streamkit.simulator.loop import Process
from streamkit.simulator.oracle import PENDING, REFUSED, STORED, UNKNOWN, History, Put
from streamkit.simulator.world import World

STREAM = "orders"
APPLICATION = "billing"
MEMBERSHIP_MS = 1_000
DELIVERY_MS = 40_000
_ORDERINGS = (Ordering.SHARD, Ordering.SHARD, Ordering.by_key(3), Ordering.none(2))      # by the name of a worker
_COPIERS = 0.3                             # of the producers: they have a name and number what they put
SHORT_DELIVERY_MS = 700                    # so that batches end in doubt, and are cancelled, while others go on
CLIENT = ClientConfig(connect_timeout_ms=1_000, request_timeout_ms=2_000, reconnect_first_ms=20, reconnect_most_ms=200)


class RecordingClient(AsyncClient):
    """The shipped client; what matters to the oracle is written down as it is answered."""

    def __init__(self, name: str, address: str, runtime: Runtime, history: History) -> None:
        super().__init__(address, runtime, config=CLIENT)
        self.name = name
        self.history = history

    async def call(self, message: m.Message, *, timeout_ms: int | None = None) -> m.Message:
        asked, sent_seconds = self.history.tick(), asyncio.get_running_loop().time()
        answer = await super().call(message, timeout_ms=timeout_ms)
        if isinstance(answer, m.Membership):
            self.history.answered(self.name, sent_seconds)
            self.history.granted(self.name, answer.granted)
        elif isinstance(message, m.Checkpoint) and isinstance(answer, m.Checkpointed):
            self.history.checkpointed(self.name, asked, message, answer)
        return answer


class Workload:
    """Everybody who uses the stream in one run."""

    def __init__(self, world: World, history: History, addresses: list[str]) -> None:
        """addresses: of the nodes; everybody begins with one of them."""
        self.world = world
        self.history = history
        self.addresses = addresses
        self.draw = random.Random(world.draw.getrandbits(64))
        self.producing: dict[Process, asyncio.Task[None]] = {}
        self.working: dict[Process, asyncio.Task[None]] = {}
        self.copying: dict[Process, Copying] = {}
        self.shards: tuple[Shard, ...] = ()
        self._names = 0
        self._placed: list[tuple[Put, int]] = []       # where a put was stored: the shard's ordinal

    # ---- processes ------------------------------------------------------------------------------------------------

    def _start(self, kind: str, main: Any) -> tuple[Process, asyncio.Task[None]]:
        self._names += 1
        process, runtime = self.world.new_process(f"{kind}-{self._names}")
        work: Coroutine[Any, Any, None] = main(process, runtime)
        return process, self.world.start(process, work)

    def client(self, name: str, runtime: Runtime) -> RecordingClient:
        addresses = self.addresses
        address = addresses[0] if len(addresses) == 1 else self.draw.choice(addresses)
        return RecordingClient(name, address, runtime, self.history)

    def start_producer(self, records: int) -> None:
        if random.Random(f"{self.world.seed} copies {self._names}").random() < _COPIERS:
            self._start_copier(Copying(self, f"copier-{self._names}", records))
            return

        async def main(process: Process, runtime: Runtime) -> None:
            client = self.client(process.name, runtime)
            await self._produce(client, process.name, records)
            await client.close()

        process, task = self._start("producer", main)
        self.producing[process] = task

    def _start_copier(self, copying: Copying) -> None:
        async def main(process: Process, runtime: Runtime) -> None:
            client = self.client(process.name, runtime)
            await copying.run(client)
            await client.close()

        process, task = self._start("copier", main)
        self.producing[process] = task
        self.copying[process] = copying

    async def _produce(self, client: RecordingClient, name: str, records: int) -> None:
        """Puts in bursts; every outcome goes to the oracle as the producer learns it."""
        draw = random.Random(self.draw.getrandbits(64))
        await _find_stream(client)
        producer = AsyncProducer(
            STREAM, client=client, codec="bytes", linger_ms=draw.choice((0, 5, 20)),
            batch_bytes_max=draw.choice((1_000, 20_000)),
            delivery_timeout_ms=random.Random(f"{self.world.seed} {name}").choice((DELIVERY_MS, SHORT_DELIVERY_MS)),
        )  # fmt: skip
        pause_seconds = self.world.faults.busy_seconds / max(1, records)
        for number in range(records):
            key = f"k{draw.randrange(self.world.faults.keys)}"
            value, put = self.new_value(name, key, number)
            while True:
                try:
                    handle = await producer.put(value, key=key)
                    break
                except (Unavailable, TimedOut):
                    await asyncio.sleep(0.05)
            handle.add_done_callback(partial(self.settled, put))
            if draw.random() < 0.3:
                await asyncio.sleep(draw.random() * 6 * pause_seconds)
        with contextlib.suppress(PutFailed):       # each of them is known to the oracle
            await producer.close(2 * DELIVERY_MS / 1000)

    def settled(self, put: Put, handle: Any) -> None:
        error = handle.exception()
        if error is None:
            result = handle.result()
            put.outcome = STORED if result.sequence_number else UNKNOWN
            if result.sequence_number:
                parsed = parse_sequence_number(result.sequence_number)
                put.sequence = parsed.sequence
                self._placed.append((put, parsed.ordinal))
            return
        put.error = str(error)
        put.outcome = UNKNOWN if error.facts.get("sent") else REFUSED
        put.token = error.facts.get("token", "")

    # ---- workers --------------------------------------------------------------------------------------------------

    def start_worker(self) -> None:
        async def main(process: Process, runtime: Runtime) -> None:
            client = self.client(process.name, runtime)
            config = ConsumerConfig(
                streams=(STREAM,), application=APPLICATION, start="trim_horizon", worker=process.name, codec="bytes",
                membership_ms=MEMBERSHIP_MS, checkpoint_interval_ms=200, batch_records_max=50, drain_seconds=1,
                retry=RetryPolicy(first_ms=10, last_ms=100), stall_seconds=0,
                ordering=_ORDERINGS[crc32(process.name.encode()) % len(_ORDERINGS)],
            )  # fmt: skip
            await _find_stream(client)
            handlers = asyncio.get_running_loop()
            member = Member(
                client, config, lambda lease, *_: Processing(self, lease, process.name),
                lambda: Stages(runtime.executor, handlers), None,
            )  # fmt: skip
            await member.run()

        process, task = self._start("worker", main)
        self.working[process] = task

    def kill_worker(self, draw: random.Random) -> None:
        """Another process takes its place."""
        process = draw.choice(list(self.working))
        self.world.kill(process)
        del self.working[process]
        self.start_worker()

    def forget(self) -> None:
        """After the run. What a producer still had under way leads here, past what the collector sees: no further."""
        self.producing.clear()
        self.copying.clear()
        self.working.clear()

    # ---- what the nemesis may choose from ---------------------------------------------------------------------------

    def machines(self) -> list[str]:
        return [process.machine for process in (*self.producing, *self.working)]

    def producer_processes(self) -> list[Process]:
        return list(self.producing)

    def worker_processes(self) -> list[Process]:
        return list(self.working)

    def kill_producer(self, draw: random.Random) -> None:
        """Another takes its place, with an identity of its own; what it had under way nobody will know.

        One that copies has a name: the next goes on where it was.
        """
        process = draw.choice(list(self.producing))
        self.world.kill(process)
        del self.producing[process]
        if (copying := self.copying.pop(process, None)) is not None:
            copying.killed()
            self._start_copier(copying)
            return
        for put in self.history.puts.values():
            if put.producer == process.name and put.outcome == PENDING:
                put.outcome = UNKNOWN
        self.start_producer(self.world.faults.records // 4)

    def start(self) -> None:
        """Everybody begins."""
        faults = self.world.faults
        for _ in range(faults.producers):
            self.start_producer(faults.records // faults.producers)
        for _ in range(faults.workers):
            self.start_worker()
        self._start("reader", self._tail)

    # ---- the life of a run ------------------------------------------------------------------------------------------

    async def create_stream(self) -> None:
        """With the node up and nothing wrong yet."""
        process, runtime = self.world.new_process("operator")
        config = StreamConfig(shards=self.world.faults.shards, durability=Durability(self.world.faults.durability))

        async def main() -> StreamDescription:
            client = self.client("operator", runtime)
            while True:
                try:
                    stream = await client.create_stream(STREAM, config)
                    break
                except StreamExists:
                    stream = await client.stream(STREAM, refresh=True)
                    break
                except (Unavailable, TimedOut):
                    await asyncio.sleep(0.05)
            await client.close()
            return stream

        self.shards = (await self.world.start(process, main())).shards

    async def producers_done(self) -> None:
        """Every producer has ended by itself."""
        await asyncio.gather(*self.producing.values())

    async def workers_done(self) -> None:
        """The application's checkpoints have reached the end of every shard."""
        process, runtime = self.world.new_process("auditor")

        async def main() -> None:
            client = self.client(process.name, runtime)
            while True:
                self.history.final_seen = len(self.history.checkpoints)
                try:
                    answer = await client.call(m.DescribeApplication(APPLICATION))
                except StreamkitError:
                    await asyncio.sleep(0.1)
                    continue
                assert isinstance(answer, m.ApplicationDescribed)
                if len(answer.leases) > len(self.shards):
                    await self.read_all()          # a resharding that was asked for before has come to its end
                if len(answer.leases) == len(self.shards) and all(map(self._is_done, answer.leases)):
                    break
                await asyncio.sleep(0.1)
            for lease in answer.leases:
                self.history.final_checkpoints[self.shards[lease.ordinal].uuid] = lease.checkpoint
            await client.close()

        await self.world.start(process, main())

    def _is_done(self, lease: m.LeaseState) -> bool:
        """Who coordinates may know less of a shard that is led elsewhere than was read at the end."""
        if lease.state == "complete":
            return True                            # after the end of a closed shard stand marks of later leaders only
        read = self.history.marks.get(("final", self.shards[lease.ordinal].uuid))
        return lease.checkpoint >= max(lease.high_watermark, read.high_watermark if read is not None else 0)

    async def _tail(self, process: Process, runtime: Runtime) -> None:
        """Reads every shard from its beginning, for as long as the run lasts."""
        client = self.client(process.name, runtime)
        stream = await _find_stream(client)
        await asyncio.gather(*[self._follow(client, shard) for shard in stream.shards])

    async def _follow(self, client: RecordingClient, shard: Shard, *, until_end: bool = False) -> None:
        at, history = 0, self.history
        while True:
            try:
                fetched = await client.fetch(
                    shard, at, bytes_max=self.draw.choice((1, 10_000, 1 << 20)), wait_ms=0 if until_end else 200
                )
            except DataError as error:
                if self.world.faults.damages:
                    await asyncio.sleep(0.2)       # a copy is damaged: another has what it lacks
                    continue
                if not self.world.faults.rot:
                    history.wrong.append(f"{client.name} could not read: {type(error).__name__}: {error}")
                return
            except StreamkitError:
                await asyncio.sleep(0.05)
                shard = await self._again(client, shard)
                continue
            history.told(client.name, shard.uuid, fetched.log_start, fetched.high_watermark)
            at = history.fetched(client.name, shard.uuid, at, fetched.batches, fetched.high_watermark)
            if at != fetched.next_sequence:
                history.wrong.append(f"{client.name} was sent on to {fetched.next_sequence} from {at}")
                at = fetched.next_sequence
            if until_end and at >= fetched.high_watermark:
                return

    async def _again(self, client: RecordingClient, shard: Shard) -> Shard:
        """The same shard, wherever it is led now."""
        if len(self.addresses) > 1:
            with contextlib.suppress(StreamkitError):
                stream = await client.stream(STREAM, refresh=True)
                return next((found for found in stream.shards if found.uuid == shard.uuid), shard)
        return shard

    async def _resolve_all(self, client: RecordingClient) -> None:
        """Whoever was told that nobody knows asks, now that all is quiet; what is not stored then never will be."""
        for put in [put for put in self.history.puts.values() if put.outcome == UNKNOWN and put.token]:
            while True:
                try:
                    fate = await client.resolve(put.token)
                    break
                except StreamkitError:
                    await asyncio.sleep(0.05)
            put.token = ""
            if fate.outcome == "stored":
                put.outcome = STORED
                parsed = parse_sequence_number(fate.sequence_number)
                put.sequence = parsed.sequence
                self._placed.append((put, parsed.ordinal))
            elif fate.outcome == "not_stored":
                put.outcome = REFUSED

    async def read_all(self) -> None:
        """Every record of every shard, once all is quiet."""
        process, runtime = self.world.new_process("final")

        async def main() -> None:
            client = self.client("final", runtime)
            stream = await _find_stream(client)
            await self._resolve_all(client)
            placed = {ordinal for _, ordinal in self._placed}
            while not placed <= {shard.ordinal for shard in stream.shards}:
                await asyncio.sleep(0.05)      # the node that was asked has not heard of the newest shards yet
                with contextlib.suppress(StreamkitError):
                    stream = await client.stream(STREAM, refresh=True)
            uuids = {shard.ordinal: shard.uuid for shard in stream.shards}
            self.shards = stream.shards
            for shard in stream.shards:
                self.history.parents[shard.uuid] = tuple(uuids[parent] for parent in shard.parents)
                await self._follow(client, shard, until_end=True)
            for put, ordinal in self._placed:
                put.shard = uuids[ordinal]
            await client.close()

        await self.world.start(process, main())

    def new_value(self, producer: str, key: str, number: int) -> tuple[bytes, Put]:
        value = f"{producer}/{key}/{number} ".encode() + self.draw.randbytes(self.draw.choice((0, 30, 300, 3000)))
        return value, self.history.putting(value, producer, key, number)


class Copying:
    """A list of records that a named producer puts by number: each is stored once, whatever happens meanwhile."""

    def __init__(self, workload: Workload, name: str, records: int) -> None:
        self._workload = workload
        self._name = name
        self._draw = random.Random(f"{workload.world.seed} {name}")
        keys = [f"k{self._draw.randrange(workload.world.faults.keys)}" for _ in range(records)]
        self._records = [
            (f"{name}/{key}/{number} ".encode() + self._draw.randbytes(self._draw.choice((0, 30, 300))), key)
            for number, key in enumerate(keys)
        ]
        self._puts: dict[int, Put] = {}

    def killed(self) -> None:
        for put in self._puts.values():
            if put.outcome == PENDING:
                put.outcome = UNKNOWN

    async def run(self, client: AsyncClient) -> None:
        """As one instance of the name; returns when all are stored."""
        await _find_stream(client)
        while True:
            producer = AsyncProducer(
                STREAM, client=client, name=self._name, codec="bytes", linger_ms=self._draw.choice((0, 5)),
                batch_bytes_max=self._draw.choice((1_000, 20_000)), on_failure="halt",
                delivery_timeout_ms=self._draw.choice((DELIVERY_MS, SHORT_DELIVERY_MS)),
            )  # fmt: skip
            try:
                await self._copy(producer)
                done = await producer.last_app_seq() == len(self._records) - 1
            except (Unavailable, TimedOut, ProducerError):
                done = False
            with contextlib.suppress(PutFailed):
                await producer.close(DELIVERY_MS / 1000)
            if done:
                self._workload.history.copied += [value for value, _ in self._records]
                return
            await asyncio.sleep(0.05)

    async def _copy(self, producer: AsyncProducer) -> None:
        pause_seconds = self._workload.world.faults.busy_seconds / max(1, len(self._records))
        last = await producer.last_app_seq()
        handles = []
        for number in range(0 if last is None else last + 1, len(self._records)):
            value, key = self._records[number]
            if number not in self._puts:
                self._puts[number] = self._workload.history.putting(value, self._name, key, number)
            put = self._puts[number]
            put.outcome, put.token = PENDING, ""
            try:
                handle = await producer.put(value, key=key, app_seq=number)
            except StreamkitError:
                put.outcome = UNKNOWN      # an elder instance may have stored it
                raise
            handle.add_done_callback(partial(self._workload.settled, put))
            handles.append(handle)
            if self._draw.random() < 0.3:
                await asyncio.sleep(self._draw.random() * 6 * pause_seconds)
        await asyncio.gather(*[_ended(handle) for handle in handles])


async def _ended(handle: Any) -> None:
    with contextlib.suppress(StreamkitError):
        await handle


async def _find_stream(client: AsyncClient) -> StreamDescription:
    while True:
        try:
            return await client.stream(STREAM)
        except NotFound:
            raise
        except StreamkitError:
            await asyncio.sleep(0.05)


class Processing:
    """User code of one lease: takes a while, now and then fails, and tells the oracle what it was given."""

    whole = True

    def __init__(self, workload: Workload, lease: Track, worker: str) -> None:
        self._workload = workload
        self._lease = lease
        self._worker = worker
        self._draw = random.Random(workload.draw.getrandbits(64))
        self._end_fails = lease.lease_epoch % 3 == 0

    async def initialize(self) -> None:
        await asyncio.sleep(self._draw.random() * 0.01)

    async def run(self, batch: Batch[Any]) -> Outcome:
        self._workload.history.handed_out(self._worker, asyncio.get_running_loop().time(), MEMBERSHIP_MS / 1000)
        await asyncio.sleep(self._draw.random() * self._draw.choice((0.0, 0.001, 0.02)))
        if self._draw.random() < 0.02:
            return Outcome(0, RuntimeError("the simulated handler fails"))
        for record in batch:
            self._workload.history.processing(
                self._worker, self._lease.shard.uuid, record.sequence, bytes(record.data)
            )
        return Outcome(len(batch))

    async def shard_ended(self) -> bool:
        if self._end_fails:
            self._end_fails = False
            raise RuntimeError("the simulated handler fails at the shard's end")
        return self._lease.lease_epoch % 2 == 0

    async def passed_over(self, batch: Batch[Any]) -> None:
        raise AssertionError("the simulated policy passes over nothing")

    async def shutdown_requested(self) -> None:
        await asyncio.sleep(self._draw.random() * 0.01)

    async def lease_lost(self) -> None:
        await asyncio.sleep(0)
