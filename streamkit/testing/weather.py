"""A user's consumer in rough weather: its workers are killed, frozen and joined by others while shards split and merge.

    report = chaos(consumer, [{"id": n} for n in range(200)], seed=7)
    assert report.ok, report
    assert store.totals() == expected      # what the handler did twice shows here, and report.again says which

The consumer's own handler runs in the simulator's world: real code, virtual time, and one seed says everything that
happens, so that a failure comes again with its seed. A handler that waits for real things (a socket, a thread, the
result of a checkpoint) has no place there; what it calls directly, a database in a file for instance, has.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from streamkit._core.batch import Record
from streamkit.client.client import AsyncClient
from streamkit.client.config import ClientConfig
from streamkit.consumer.checkpointer import Track
from streamkit.consumer.consumer import Consumer
from streamkit.consumer.handler import Context, Driver, FunctionDriver, Handler
from streamkit.consumer.member import Member
from streamkit.consumer.reader import AsyncReader
from streamkit.consumer.stage import Stages
from streamkit.errors import InvalidUse, StreamkitError, Unavailable
from streamkit.model.codec import find_codec
from streamkit.producer.producer import AsyncProducer
from streamkit.protocol.messages import ApplicationDescribed, DescribeApplication
from streamkit.runtime.interfaces import Runtime
from streamkit.simulator.cluster import ADDRESS, Cluster
from streamkit.simulator.faults import Faults
from streamkit.simulator.loop import Process
from streamkit.simulator.oracle import History
from streamkit.simulator.world import World
from streamkit.testing.report import ChaosReport

ACTS = ("kill_worker", "freeze_worker", "join_worker", "leave_worker", "kill_node", "split", "merge")
_HEADER = "streamkit-test-number"
_CLIENT = ClientConfig(connect_timeout_ms=1_000, request_timeout_ms=4_000, reconnect_first_ms=20, reconnect_most_ms=200)
_MEMBERSHIP_MS = 3_000
_QUIET_SECONDS = 0.05


def chaos(
    consumer: Consumer, values: Iterable[Any], *, seed: int, key: Callable[[Any], str] | None = None, shards: int = 2,
    workers: int = 2, acts: Sequence[str] = ACTS, act_count: int = 12, seconds_max: float = 900.0,
) -> ChaosReport:
    """Run the consumer's handler on `values` while `act_count` of `acts` happen, then let everything settle.

    key: of a value (default: eight keys in turn). kill_worker: SIGKILL, possibly between two records. freeze_worker:
    stopped for longer than its leases last, so others take them; then it goes on. leave_worker: an orderly stop.
    seconds_max: virtual seconds for all to be handled. The consumer itself is not started. Raises InvalidUse.
    """
    if unknown := set(acts) - set(ACTS):
        raise InvalidUse(f"{sorted(unknown)[0]!r} is no act", try_=f"choose among {', '.join(ACTS)}")
    with _quiet_collection():
        run = _Chaos(consumer, list(values), seed, key, acts)
        try:
            run.world.loop.seconds_max = 2 * seconds_max + 60.0 * act_count
            report: ChaosReport = run.world.loop.run_until_complete(run.play(shards, workers, act_count, seconds_max))
            return report
        finally:
            run.cluster.forget()
            run.world.close()
            del run
            gc.collect()


@contextlib.contextmanager
def _quiet_collection() -> Iterator[None]:
    # Coroutines of killed processes are thrown away inside; what they would have said is not heard.
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
        sys.unraisablehook = hook


class _Killed(BaseException):
    """Leaves a handler's process between two records."""


class _Worker:
    def __init__(self, name: str, process: Process, member: Member | None = None) -> None:
        self.name = name
        self.process = process
        self.member = member
        self.dies_after: int | None = None     # calls of the handler until it is killed
        self.left = False

    @property
    def lives(self) -> bool:
        return not (self.left or self.process.gone or self.process.stopped)


class _Chaos:
    """One run."""

    def __init__(
        self, consumer: Consumer, values: list[Any], seed: int, key: Callable[[Any], str] | None, acts: Sequence[str]
    ) -> None:
        faults = Faults.none()
        faults.small_journal = False
        self.world = World(seed, faults)
        self.draw = self.world.draw
        self.cluster = Cluster(self.world, History())
        self.seed = seed
        self.values = values
        self.keys = [key(value) if key is not None else f"k{number % 8}" for number, value in enumerate(values)]
        self.acts = tuple(acts)
        self.handler = consumer.decorated
        self.config = dataclasses.replace(
            consumer.config, membership_ms=_MEMBERSHIP_MS, drain_seconds=2, stall_seconds=0, processes=1,
            checkpoint_interval_ms=min(200, consumer.config.checkpoint_interval_ms),
        )
        self.stream = self.config.streams[0]
        self.client: AsyncClient
        self.workers: list[_Worker] = []
        self.born = 0
        self.calls: list[int] = []             # index of the value of each call that returned
        self.first: list[int] = []             # indexes in the order of the first call
        self.seen: set[int] = set()
        self.dead: set[int] = set()
        self.happened: list[tuple[float, str]] = []

    def note(self, what: str) -> None:
        self.happened.append((round(self.world.loop.time(), 3), what))

    async def play(self, shards: int, workers: int, act_count: int, seconds_max: float) -> ChaosReport:
        self.cluster.start()
        await self.cluster.ready.wait()
        supervising = asyncio.ensure_future(self.cluster.supervise())
        _, runtime = self.world.new_process("operator")
        self.client = AsyncClient(ADDRESS, runtime, config=_CLIENT)
        await self.client.create_stream(self.stream, shards=shards)
        if self.config.dead_letter:
            await self.client.create_stream(self.config.dead_letter, shards=1)
        for _ in range(workers):
            self.start_worker()
        putting = asyncio.ensure_future(self._put_all())
        for _ in range(act_count):
            await asyncio.sleep(self.draw.random() * 2.0)
            await self._act(self.draw.choice(self.acts) if self.acts else "")
        await putting
        stuck = await self._settle(workers, seconds_max)
        if self.config.dead_letter:
            await self._collect_dead(self.config.dead_letter)
        supervising.cancel()
        return self._report(stuck)

    async def _put_all(self) -> None:
        producer = AsyncProducer(self.stream, client=self.client, codec=find_codec(self.config.codec), linger_ms=1)
        for number, (key, value) in enumerate(zip(self.keys, self.values, strict=True)):
            while True:
                try:
                    await producer.put(value, key=key, headers={_HEADER: b"%d" % number})
                    break
                except Unavailable:        # the node is down, and room is scarce
                    await asyncio.sleep(0.1)
            if self.draw.random() < 0.2:
                await asyncio.sleep(self.draw.random() * 0.2)
        await producer.close()

    # ---- what happens --------------------------------------------------------------------------------------

    async def _act(self, act: str) -> None:
        living = [worker for worker in self.workers if worker.lives]
        worker = self.draw.choice(living) if living else None
        if act == "kill_worker" and worker is not None:
            worker.dies_after = self.draw.randrange(4)
            self.note(f"kill {worker.name} within {worker.dies_after} records")
            self.world.loop.call_later(self.draw.random(), self.kill, worker)
        elif act == "freeze_worker" and worker is not None:
            seconds = _MEMBERSHIP_MS / 1000 * (1 + 2 * self.draw.random())
            self.note(f"freeze {worker.name} for {seconds:.1f} s")
            self.world.stop(worker.process)
            self.world.loop.call_later(seconds, self.world.resume, worker.process)
        elif act == "leave_worker" and worker is not None and worker.member is not None:
            self.note(f"{worker.name} leaves")
            worker.member.stop()
        elif act == "kill_node":
            self.note("kill the node")
            self.world.kill(self.cluster.process)
        elif act in ("split", "merge"):
            with contextlib.suppress(StreamkitError, TimeoutError):
                await self._reshard(act)
        if act == "join_worker" or len(living) < 2:
            self.start_worker()

    async def _reshard(self, act: str) -> None:
        description = await self.client.stream(self.stream)
        number = len([shard for shard in description.shards if shard.end is None])
        target = number + 1 if act == "split" or number < 2 else number - 1
        self.note(f"{act}: {number} to {target} shards")
        async with asyncio.timeout(20):
            await self.client.scale_stream(self.stream, target)

    def kill(self, worker: _Worker) -> None:
        if not worker.process.gone:
            self.note(f"{worker.name} is gone")
            self.world.kill(worker.process)

    def start_worker(self) -> None:
        self.born += 1
        name = f"worker-{self.born}"
        process, runtime = self.world.new_process(name)
        worker = _Worker(name, process)
        self.workers.append(worker)
        self.note(f"{name} joins")
        self.world.start(process, self._run(worker, runtime))

    async def _run(self, worker: _Worker, runtime: Runtime) -> None:
        client = AsyncClient(ADDRESS, runtime, config=_CLIENT)
        loop = asyncio.get_running_loop()

        def make_driver(lease: Track, context: Context, stages: Stages) -> Driver:
            handler = dataclasses.replace(self.handler, function=self._watched(worker, context))
            handler = handler.bounded(config.handler_timeout_seconds)
            return FunctionDriver(handler, context, stages.coroutines if handler.is_async else stages.threads)

        config = dataclasses.replace(self.config, worker=worker.name)
        member = worker.member = Member(
            client, config, make_driver, lambda: Stages(runtime.executor, loop), self.handler.decoding
        )
        try:
            with contextlib.suppress(StreamkitError):
                await member.run()
        finally:
            worker.left = True
            await client.close()

    # ---- what the handler does -----------------------------------------------------------------------------

    def _watched(self, worker: _Worker, context: Context) -> Callable[..., Any]:
        function = self.handler.function

        def begun() -> list[int]:
            if worker.dies_after is not None:
                if worker.dies_after <= 0:
                    self.kill(worker)
                    raise _Killed
                worker.dies_after -= 1
            numbers = [_number(record) for record in _in_hand(context, self.handler)]
            self.first += [number for number in numbers if number not in self.seen]
            self.seen.update(numbers)
            return numbers

        def called(*args: Any) -> Any:
            numbers = begun()
            result = function(*args)
            self.calls += numbers
            return result

        async def awaited(*args: Any) -> Any:
            numbers = begun()
            result = await function(*args)
            self.calls += numbers
            return result

        return awaited if inspect.iscoroutinefunction(function) or self.handler.is_async else called

    # ---- the end -------------------------------------------------------------------------------------------

    async def _settle(self, workers: int, seconds_max: float) -> str:
        self.note("everything settles")
        for worker in self.workers:
            worker.dies_after = None
        began_s = self.world.loop.time()
        described: ApplicationDescribed | None = None
        while self.world.loop.time() - began_s < seconds_max:
            for _ in range(workers - len([one for one in self.workers if one.lives])):
                self.start_worker()
            described = await self._described()
            if described is not None and not any(lease.lag_records for lease in described.leases):
                return ""
            await asyncio.sleep(_QUIET_SECONDS)
        behind = [f"shard {lease.ordinal} by {lease.lag_records} records ({lease.state})"
                  for lease in (described.leases if described is not None else ()) if lease.lag_records]
        return f"after {seconds_max:g} virtual seconds it is behind on {', '.join(behind) or 'everything'}"

    async def _described(self) -> ApplicationDescribed | None:
        try:
            answer = await self.client.call(DescribeApplication(self.config.application))
        except StreamkitError:
            return None                    # nobody has joined yet, or the node starts just now
        assert isinstance(answer, ApplicationDescribed), "the only answer"
        return answer

    async def _collect_dead(self, stream: str) -> None:
        async for record in AsyncReader(stream, start="trim_horizon", until="latest", client=self.client):
            self.dead.add(_number(record))

    def _failures(self) -> int:
        return sum(worker.member.statistics.failures for worker in self.workers if worker.member is not None)

    def _report(self, stuck: str) -> ChaosReport:
        times = Counter(self.calls)
        missing = tuple(
            number for number in range(len(self.values)) if number not in times and number not in self.dead
        )
        places = {number: place for place, number in enumerate(self.first)}
        last: dict[str, int] = {}
        disordered = []
        for number, key in enumerate(self.keys):
            if number in places:
                if key in last and places[last[key]] > places[number]:
                    disordered.append((last[key], number))
                last[key] = number
        return ChaosReport(
            seed=self.seed, values=tuple(self.values), handled=len(self.calls),
            again={number: count for number, count in sorted(times.items()) if count > 1},
            lost=missing, disordered=tuple(disordered),
            dead_letters=tuple(sorted(self.dead)), failures=self._failures(),
            happened=tuple(self.happened), stuck=stuck,
        )


def _in_hand(context: Context, handler: Handler) -> Iterable[Record[Any]]:
    assert context.batch is not None, "the handler runs"
    return context.batch if handler.takes == "batch" else (context.record,)


def _number(record: Record[Any]) -> int:
    return int(record.headers[_HEADER])
