"""The measurements: leases shared out after a join and a leave, hand-overs, and one coordinator with many clients.

Each answers with rows for one table, and checks what it claims: `CheckFailed` instead of a figure.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.fleets.worker import APPLICATION, STREAM
from benchmarks.paths.processes import ROOT, Node, check, cpu_seconds, node
from streamkit import AsyncClient, AsyncProducer, Consumer
from streamkit._core.batch import seal
from streamkit._core.hashing import hash_key
from streamkit.client.config import ClientConfig
from streamkit.client.routing import shard_for
from streamkit.consumer.config import ConsumerConfig
from streamkit.consumer.lease_keeper import LeaseKeeper, Listeners
from streamkit.consumer.member import Member, join_message
from streamkit.model.stream import StreamConfig
from streamkit.protocol import messages as m
from streamkit.runtime.real import RealExecutor

BALANCE_SECONDS_MAX = 120.0
PUT_EVERY_SECONDS = 10.0               # each producer
CHECKPOINT_EVERY_SECONDS = 1.0         # each worker
CONNECT_AT_ONCE = 50


@dataclass(frozen=True, slots=True)
class Sizes:
    """shards and workers that are shared out; hand-overs of each kind; (producers, workers) of the large fleets."""

    shards: int
    workers: int
    rounds: int
    membership_ms: int
    fleets: tuple[tuple[int, int], ...]
    seconds: float


FULL = Sizes(1_000, 20, 3, 10_000, ((1_000, 100), (5_000, 500), (10_000, 1_000)), 20.0)
TINY = Sizes(12, 3, 1, 1_000, ((4, 2), (8, 4)), 1.0)
Row = dict[str, Any]
# Thousands of clients share one loop and few processors: what is late here is late on this side.
_PATIENT = ClientConfig(connect_timeout_ms=60_000, silence_ms=30_000, request_timeout_ms=60_000)


async def _until(condition: Callable[[], Any], what: str, seconds: float = BALANCE_SECONDS_MAX) -> float:
    began = time.perf_counter()
    while not condition():
        check(time.perf_counter() - began < seconds, f"{what} within {seconds} s")
        await asyncio.sleep(0.01)
    return time.perf_counter() - began


async def _leases(client: AsyncClient) -> dict[tuple[str, int], tuple[str, int]]:
    answer = await client.call(m.DescribeApplication(APPLICATION))
    assert isinstance(answer, m.ApplicationDescribed)
    return {(lease.stream, lease.ordinal): (lease.owner, lease.lease_epoch) for lease in answer.leases}


# ---- a join and a leave ----------------------------------------------------------------------------------


class _Fleet:
    """Workers of this process, each with a connection of its own."""

    def __init__(self, url: str) -> None:
        self.members: dict[str, Member] = {}
        self._url = url
        self._executor = RealExecutor(threads=4)
        self._running: dict[str, tuple[asyncio.Task[None], AsyncClient]] = {}

    def join(self, name: str) -> None:
        consumer = Consumer(STREAM, application=APPLICATION, start="trim_horizon", codec="bytes", worker=name)
        consumer.handler(_nothing)
        client = AsyncClient(self._url)
        member = consumer.member(client, asyncio.get_running_loop(), self._executor)
        self.members[name] = member
        self._running[name] = asyncio.create_task(member.run()), client

    async def leave(self, name: str) -> None:
        self.members.pop(name).stop()
        await self.ended(name)

    async def ended(self, name: str) -> None:
        task, client = self._running.pop(name)
        await task
        await client.close()

    def counts(self) -> list[int]:
        return sorted(len(member.shards) for member in self.members.values())

    def is_balanced(self, shards: int) -> bool:
        counts = self.counts()
        return sum(counts) == shards and counts[-1] - counts[0] <= 1

    async def close(self) -> None:
        for member in self.members.values():
            member.stop()
        for name in list(self._running):
            await self.ended(name)
        self._executor.close()


async def _nothing(data: bytes) -> None:
    """Nothing is put: what is measured are the leases."""


def balance(sizes: Sizes) -> list[Row]:
    """All workers start; one more joins; one leaves."""
    with node() as running:
        return asyncio.run(_balance(running, sizes))


async def _balance(running: Node, sizes: Sizes) -> list[Row]:
    rows = []
    async with AsyncClient(running.url) as client:
        await client.create_stream(STREAM, StreamConfig(shards=sizes.shards))
        fleet = _Fleet(running.url)
        try:
            for number in range(sizes.workers):
                fleet.join(f"w{number}")
            seconds = await _until(lambda: fleet.is_balanced(sizes.shards), "a fleet that starts is balanced")
            epochs = [epoch for _, epoch in (await _leases(client)).values()]      # the first to come is given all
            rows.append({"event": "all start", "seconds": seconds, "moved": sum(epochs), "most": max(epochs)})
            for event in ("one joins", "one leaves"):
                before = await _leases(client)
                if event == "one joins":
                    fleet.join("late")
                    ending = None
                else:
                    ending = asyncio.create_task(fleet.leave("w0"))
                await asyncio.sleep(0)
                seconds = await _until(lambda: fleet.is_balanced(sizes.shards), f"balanced after {event}")
                if ending is not None:
                    await ending
                moves = [after[1] - before[shard][1] for shard, after in (await _leases(client)).items()]
                check(max(moves) <= 1, f"no shard moves twice when {event}")
                rows.append({"event": event, "seconds": seconds, "moved": sum(moves), "most": max(moves)})
        finally:
            await fleet.close()
    return rows


# ---- hand-overs ------------------------------------------------------------------------------------------


def hand_over(sizes: Sizes) -> list[Row]:
    """A worker of two processes is told to stop, killed, or stopped without a word; records come all the time."""
    return [
        {"event": said, "limit": limit, **_worst(
            [asyncio.run(_hand_over(number, sizes.membership_ms)) for _ in range(sizes.rounds)])}
        for said, number, limit in (
            ("told to stop (SIGTERM)", signal.SIGTERM, 1.0),
            ("killed (SIGKILL)", signal.SIGKILL, sizes.membership_ms / 1000 + 1),
            ("silent (SIGSTOP)", signal.SIGSTOP, sizes.membership_ms / 1000 + 1),
        )
    ]


def _worst(rounds: list[Row]) -> Row:
    return {"seconds": max(each["seconds"] for each in rounds), "twice": max(each["twice"] for each in rounds),
            "records": sum(each["records"] for each in rounds), "rounds": len(rounds)}


async def _hand_over(number: signal.Signals, membership_ms: int) -> Row:
    with node() as running:
        notes = running.directory / "notes"
        async with AsyncClient(running.url) as client, _feeding(client) as put, \
                _worker(running.url, "old", notes, membership_ms) as old:
            await _until(lambda: len(_lines(notes)) > 100, "the first worker works")
            async with _worker(running.url, "new", notes, membership_ms):
                await _until(lambda: len({shard for name, shard, *_ in _lines(notes) if name == "new"}) == 4,
                             "both work")
                theirs = {shard for name, shard, *_ in _lines(notes)[-100:] if name == "old"}
                at = time.monotonic()
                old.send_signal(number)
                await _until(lambda: {shard for name, shard, _, when in _lines(notes) if name == "new" and when > at}
                             >= theirs, "the other takes over")
                put.stop.set()
                await _until(lambda: len({line[1:3] for line in _lines(notes)}) == put.records, "all are handled")
                lines = _lines(notes)
    first = {}
    for name, shard, _, when in lines:
        if name == "new" and when > at:
            first.setdefault(shard, when)
    handled = [line[1:3] for line in lines]
    twice = len(handled) - len(set(handled))
    check(number != signal.SIGTERM or twice == 0, "an orderly stop repeats nothing")
    return {"seconds": max(first[shard] - at for shard in theirs), "twice": twice, "records": len(set(handled))}


def _lines(path: Path) -> list[tuple[str, str, int, float]]:
    if not path.exists():
        return []
    found = [line.split() for line in path.read_text().splitlines()]
    return [(name, shard, int(sequence), float(when)) for name, shard, sequence, when in found]


class _Feeding:
    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.records = 0


@contextlib.asynccontextmanager
async def _feeding(client: AsyncClient) -> AsyncIterator[_Feeding]:
    await client.create_stream(STREAM, StreamConfig(shards=8))
    feeding = _Feeding()

    async def feed() -> None:
        async with AsyncProducer(STREAM, client=client, codec="bytes", linger_ms=1) as producer:
            while not feeding.stop.is_set():
                for _ in range(16):
                    await producer.put(b"x", key=f"k{feeding.records}")
                    feeding.records += 1
                await asyncio.sleep(0.02)

    task = asyncio.create_task(feed())
    try:
        yield feeding
    finally:
        feeding.stop.set()
        await task


@contextlib.asynccontextmanager
async def _worker(url: str, name: str, notes: Path, membership_ms: int) -> AsyncIterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(  # noqa: ASYNC220  it starts while others go on
        [sys.executable, "-m", "benchmarks.fleets.worker", url, name, str(notes), str(membership_ms)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


# ---- one coordinator, many clients -----------------------------------------------------------------------


def scale(sizes: Sizes) -> Iterator[Row]:
    """Fleets of growing size, each on a node of its own: what the node uses while they do nothing but their routine."""
    for producers, workers in sizes.fleets:
        yield _scale(producers, workers, sizes)


def _scale(producers: int, workers: int, sizes: Sizes) -> Row:
    with node(LISTEN__NATIVE__CONNECTIONS_MAX="20000") as running:
        return asyncio.run(_live(running, producers, workers, sizes))


async def _live(running: Node, producers: int, workers: int, sizes: Sizes) -> Row:
    async with AsyncClient(running.url, config=_PATIENT) as client:
        await client.create_stream(STREAM, StreamConfig(shards=workers))
        idle_mib = running.memory_mib("VmRSS")
        crowd = _Crowd(running.url, client)
        try:
            await crowd.start(producers, workers)
            await asyncio.sleep(sizes.seconds / 3)         # what connecting left to be done is over
            settled = await _leases(client)
            crowd.lost = crowd.fenced = 0          # while all connect, this process is late itself
            before, cpu, began = crowd.requests, cpu_seconds(running.pid), time.perf_counter()
            await asyncio.sleep(sizes.seconds)
            seconds = time.perf_counter() - began
            used, requests = cpu_seconds(running.pid) - cpu, crowd.requests - before
            memory_mib = running.memory_mib("VmRSS")
            check(not crowd.lost, f"no worker loses a lease; {crowd.lost} did")
            check(crowd.fenced == 0, "every checkpoint is stored")
            check(not crowd.ended, f"everybody goes on; not so {crowd.ended[:1]}")
            after = await _leases(client)
            moved = [shard for shard, lease in settled.items() if after[shard] != lease]
        finally:
            await crowd.close()
    return {"producers": producers, "workers": workers, "cpu": used / seconds, "requests": requests / seconds,
            "cpu_us": 1e6 * used / max(1, requests), "memory_mib": memory_mib, "idle_mib": idle_mib,
            "joins": crowd.join_seconds, "moved": len(moved)}


class _Crowd:
    """Producers that put a record now and then; workers that show themselves and checkpoint. A connection each."""

    def __init__(self, url: str, client: AsyncClient) -> None:
        self.requests = 0
        self.lost = 0
        self.fenced = 0
        self.join_seconds = 0.0
        self._url = url
        self._client = client
        self._clients: list[AsyncClient] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = False

    async def start(self, producers: int, workers: int) -> None:
        gate = asyncio.Semaphore(CONNECT_AT_ONCE)
        await asyncio.gather(*(self._producer(number, producers, gate) for number in range(producers)))
        began = time.perf_counter()
        keepers = await asyncio.gather(*(self._worker(number, gate) for number in range(workers)))
        await _until(lambda: all(keeper.session and keeper._owned for keeper in keepers), "every worker has its shard")
        self.join_seconds = time.perf_counter() - began

    async def _connected(self, gate: asyncio.Semaphore) -> AsyncClient:
        client = AsyncClient(self._url, config=_PATIENT)
        async with gate:
            await client.connect()
        self._clients.append(client)
        return client

    async def _producer(self, number: int, producers: int, gate: asyncio.Semaphore) -> None:
        client = await self._connected(gate)
        key = b"%d" % number
        shard = shard_for(await self._client.stream(STREAM), int.from_bytes(hash_key(key), "big"))
        batch = seal([(key, b"x" * 100, b"", None, None)])

        async def run() -> None:
            await asyncio.sleep(PUT_EVERY_SECONDS * number / producers)
            while True:
                await client.put_batch(shard, batch)
                self.requests += 1
                await asyncio.sleep(PUT_EVERY_SECONDS)

        self._tasks.append(asyncio.create_task(run()))

    async def _worker(self, number: int, gate: asyncio.Semaphore) -> LeaseKeeper:
        client = await self._connected(gate)
        config = ConsumerConfig(streams=(STREAM,), application=APPLICATION, start="trim_horizon",
                                worker=f"w{number:05}", leases_max=1)
        numbers: dict[bytes, int] = {}

        def lost(shard: bytes) -> None:
            self.lost += not self._closing

        keeper = LeaseKeeper(client, join_message(config), Listeners(lambda grant: None, lost, lost))

        async def checkpoint() -> None:
            await keeper.joined.wait()
            while True:
                await asyncio.sleep(CHECKPOINT_EVERY_SECONDS)
                for shard, lease_epoch in list(keeper._owned.items()):
                    numbers[shard] = numbers.get(shard, 0) + 1
                    item = m.CheckpointItem(shard, lease_epoch, numbers[shard], 0)
                    answer = await client.call(m.Checkpoint(APPLICATION, config.worker, (item,)))
                    assert isinstance(answer, m.Checkpointed)
                    self.fenced += answer.results != ("ok",)
                    self.requests += 1

        self._tasks += [asyncio.create_task(keeper.run()), asyncio.create_task(checkpoint())]
        return keeper

    @property
    def ended(self) -> list[BaseException | None]:
        """Why some ended by themselves."""
        return [task.exception() for task in self._tasks if task.done()]

    async def close(self) -> None:
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(client.close() for client in self._clients))


WORKS: dict[str, Callable[[Sizes], Iterable[Row]]] = {"balance": balance, "hand-over": hand_over, "scale": scale}
