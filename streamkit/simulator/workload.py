"""Who uses the stream: producers, workers of one application, and a plain reader, as processes of their own.

They run the shipped client, producer and consumer: `producing.py` and `copying.py` say how they put, `handling.py` how
they process. Every record says who put it and when, so that the oracle can tell one from another; its padding makes
batches large enough to be torn.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Coroutine
from functools import partial
from typing import Any

from streamkit._core.batch import Batch
from streamkit.errors import DataError, StreamExists, StreamkitError, TimedOut, Unavailable
from streamkit.model.shard import Shard
from streamkit.model.stream import Durability, StreamConfig, StreamDescription
from streamkit.protocol import messages as m
from streamkit.runtime.interfaces import Runtime
from streamkit.simulator.copying import Copying
from streamkit.simulator.delivering import Delivering
from streamkit.simulator.handling import DEAD_LETTERS, draw_where, member
from streamkit.simulator.loop import Gone, Process
from streamkit.simulator.operating import Operating
from streamkit.simulator.oracle import PENDING, UNKNOWN, History
from streamkit.simulator.producing import Producing
from streamkit.simulator.recording import APPLICATION, STREAM, RecordingClient, find_stream
from streamkit.simulator.relaying import Relaying
from streamkit.simulator.summing import Summing
from streamkit.simulator.world import World

_COPIERS = 0.3                             # of the producers: they have a name and number what they put


class Workload:
    """Everybody who uses the stream in one run."""

    def __init__(self, world: World, history: History, addresses: list[str]) -> None:
        """addresses: of the nodes; everybody begins with one of them."""
        self.world = world
        self.history = history
        self.addresses = addresses
        self.draw = random.Random(world.draw.getrandbits(64))
        history.where = draw_where(world)
        self.producing: dict[Process, asyncio.Task[None]] = {}
        self.working: dict[Process, asyncio.Task[None]] = {}
        self.copying: dict[Process, Copying] = {}
        self.operating: asyncio.Task[None] | None = None
        self.shards: tuple[Shard, ...] = ()
        self.relaying = Relaying(self, STREAM, world.seed) if world.faults.relaying else None
        self.delivering = Delivering(self, STREAM, world.seed) if world.faults.delivering else None
        self._names = 0

    # ---- processes ------------------------------------------------------------------------------------------------

    def begin(self, kind: str, main: Any) -> tuple[Process, asyncio.Task[None]]:
        self._names += 1
        process, runtime = self.world.new_process(f"{kind}-{self._names}")
        work: Coroutine[Any, Any, None] = main(process, runtime)
        return process, self.world.start(process, work)

    def client(self, name: str, runtime: Runtime, history: History | None = None) -> RecordingClient:
        """history: where it is written down, when that is apart from the workers of the first application."""
        addresses = self.addresses
        address = addresses[0] if len(addresses) == 1 else self.draw.choice(addresses)
        return RecordingClient(name, address, runtime, history or self.history)

    def start_producer(self, records: int) -> None:
        if random.Random(f"{self.world.seed} copies {self._names}").random() < _COPIERS:
            self._start_copier(Copying(self.world, self.history, f"copier-{self._names}", records))
            return

        async def main(process: Process, runtime: Runtime) -> None:
            client = self.client(process.name, runtime)
            await Producing(self.world, self.history, self.draw, client, records).run()
            await client.close()

        process, task = self.begin("producer", main)
        self.producing[process] = task

    def _start_copier(self, copying: Copying) -> None:
        async def main(process: Process, runtime: Runtime) -> None:
            client = self.client(process.name, runtime)
            await copying.run(client)
            await client.close()

        process, task = self.begin("copier", main)
        self.producing[process] = task
        self.copying[process] = copying

    # ---- workers --------------------------------------------------------------------------------------------------

    def start_worker(self) -> None:
        async def main(process: Process, runtime: Runtime) -> None:
            client = self.client(process.name, runtime)
            await find_stream(client)
            die = partial(self._die, process)
            await member(client, self.world, self.history, self.draw, die, Summing).run()

        process, task = self.begin("worker", main)
        self.working[process] = task

    def _die(self, process: Process) -> None:
        """A worker ends itself, in the middle of a call; its service manager starts another."""
        self.world.kill(process)
        del self.working[process]
        self.start_worker()
        raise Gone

    def kill_worker(self, draw: random.Random) -> None:
        """Another process takes its place."""
        process = draw.choice(list(self.working))
        self.world.kill(process)
        del self.working[process]
        if self.relaying is not None and process in self.relaying.processes:
            self.relaying.start_worker()
        elif self.delivering is not None and process in self.delivering.processes:
            self.delivering.start_worker()
        else:
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
        self.begin("reader", self._tail)
        if "operate" in faults.features and faults.workers:
            _, self.operating = self.begin("administrator", self._operate)
        if self.relaying is not None:
            self.relaying.start()
        if self.delivering is not None:
            self.delivering.start()

    # ---- the life of a run ------------------------------------------------------------------------------------------

    async def create_stream(self) -> None:
        """With the node up and nothing wrong yet."""
        process, runtime = self.world.new_process("operator")
        config = StreamConfig(shards=self.world.faults.shards, durability=Durability(self.world.faults.durability))

        async def main() -> StreamDescription:
            client = self.client("operator", runtime)
            stream = await self._create(client, STREAM, config)
            if "poison" in self.world.faults.features:
                await self._create(client, DEAD_LETTERS, StreamConfig(shards=1, durability=config.durability))
            await client.close()
            return stream

        self.shards = (await self.world.start(process, main())).shards
        if self.relaying is not None:
            await self.relaying.create()

    async def _create(self, client: RecordingClient, name: str, config: StreamConfig) -> StreamDescription:
        while True:
            try:
                return await client.create_stream(name, config)
            except StreamExists:
                return await client.stream(name, refresh=True)
            except (Unavailable, TimedOut):
                await asyncio.sleep(0.05)

    async def _operate(self, process: Process, runtime: Runtime) -> None:
        client = self.client(process.name, runtime)
        await Operating(self.world.seed, self.history, self.world.faults.busy_seconds).run(client)
        await client.close()

    async def producers_done(self) -> None:
        """Every producer has ended by itself, and so has the operator."""
        await asyncio.gather(*self.producing.values())
        if self.operating is not None:
            await self.operating

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
                if len(answer.leases) == len(self.shards) and all(map(self.is_done, answer.leases)):
                    break
                await asyncio.sleep(0.1)
            if "poison" in self.world.faults.features:
                await self._read_dead_letters(client)
            for lease in answer.leases:
                self.history.final_checkpoints[self.shards[lease.ordinal].uuid] = lease.checkpoint
            await client.close()

        await self.world.start(process, main())

    def is_done(self, lease: m.LeaseState) -> bool:
        """Who coordinates may know less of a shard that is led elsewhere than was read at the end."""
        if lease.state == "complete":
            return True                            # after the end of a closed shard stand marks of later leaders only
        read = self.history.marks.get(("final", self.shards[lease.ordinal].uuid))
        return lease.checkpoint >= max(lease.high_watermark, read.high_watermark if read is not None else 0)

    async def _tail(self, process: Process, runtime: Runtime) -> None:
        """Reads every shard from its beginning, for as long as the run lasts."""
        client = self.client(process.name, runtime)
        stream = await find_stream(client)
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
        asked = [(put, put.token) for put in self.history.puts.values() if put.outcome == UNKNOWN and put.token]
        asked += [(put, token) for token, (put, _, _) in self.history.fates.items() if (put, token) not in asked]
        for put, token in asked:
            while True:
                try:
                    fate = await client.resolve(token)
                    break
                except StreamkitError:
                    await asyncio.sleep(0.05)
            put.token = ""
            self.history.resolved(put, token, fate.outcome, fate.sequence_number)

    async def _read_dead_letters(self, client: RecordingClient) -> None:
        stream = await find_stream(client, DEAD_LETTERS)
        for shard in stream.shards:
            at = 0
            while True:
                try:
                    fetched = await client.fetch(shard, at, bytes_max=1 << 20, wait_ms=0)
                except StreamkitError:
                    await asyncio.sleep(0.05)
                    stream = await find_stream(client, DEAD_LETTERS)
                    shard = next(found for found in stream.shards if found.uuid == shard.uuid)
                    continue
                for raw in fetched.batches:
                    if not Batch(raw).read_header().is_control:
                        for record in Batch(raw):
                            why = record.headers.get("dead-letter-error", b"").decode()
                            self.history.dead[bytes(record.data)] = why
                at = fetched.next_sequence
                if at >= fetched.high_watermark:
                    break

    async def read_all(self) -> None:
        """Every record of every shard, once all is quiet."""
        process, runtime = self.world.new_process("final")

        async def main() -> None:
            client = self.client("final", runtime)
            stream = await find_stream(client)
            await self._resolve_all(client)
            placed = {ordinal for _, ordinal in self.history.placed}
            while not placed <= {shard.ordinal for shard in stream.shards}:
                await asyncio.sleep(0.05)      # the node that was asked has not heard of the newest shards yet
                with contextlib.suppress(StreamkitError):
                    stream = await client.stream(STREAM, refresh=True)
            uuids = {shard.ordinal: shard.uuid for shard in stream.shards}
            self.shards = stream.shards
            for shard in stream.shards:
                self.history.ranges[shard.uuid] = shard.hash_start, shard.hash_end
                self.history.parents[shard.uuid] = tuple(uuids[parent] for parent in shard.parents)
                await self._follow(client, shard, until_end=True)
            for put, ordinal in self.history.placed:
                put.shard = uuids[ordinal]
            await client.close()

        await self.world.start(process, main())
