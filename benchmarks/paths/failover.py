"""What a producer notices when the leader of its shard is killed, and when it is moved; what idle shards cost.

A producer puts one record after the other at a fixed rate, without waiting. What counts is acknowledgements: in the
time between are noticing, electing, adopting the log, and the client's way to the new leader.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import pairwise

import uvloop

from benchmarks.paths.processes import Cluster, check, cluster, cpu_seconds
from benchmarks.paths.report import Result
from streamkit import AsyncClient, AsyncProducer, AsyncReader, PutResult
from streamkit.protocol import messages as m

STREAM = "orders"
RATE = 500                             # records a second
AFTER_SECONDS = 3.0                    # how long acknowledgements are watched after the event
MOVE_SECONDS_MAX = 30.0
SETTLE_SECONDS_MAX = 60.0
STREAM_SHARDS_MAX = 500                # a stream is one value in the store, which bounds those
IDLE_SECONDS_MAX = 60.0                # until checkpoints and journal files that follow the creation are behind them


@dataclass(slots=True)
class Watched:
    """When each record of a run, by its number, was due and acknowledged."""

    due_at: list[float] = field(default_factory=list)
    acknowledged_at: dict[int, float] = field(default_factory=dict)
    failures: list[BaseException] = field(default_factory=list)

    def first_after(self, moment: float) -> float:
        """Seconds from `moment` to the first acknowledgement of a record that was put after it."""
        return min(at for i, at in self.acknowledged_at.items() if self.due_at[i] >= moment) - moment

    def longest_wait(self, start: float, end: float) -> float:
        """Of the records acknowledged from start to end, from when each was due."""
        return max(at - self.due_at[i] for i, at in self.acknowledged_at.items() if start <= at < end)


class Load:
    """Puts numbered records until stopped."""

    def __init__(self, client: AsyncClient) -> None:
        self.watched = Watched()
        self._producer = AsyncProducer(STREAM, client=client, codec="bytes", compression="none")
        self._stopped = asyncio.Event()
        self._waiting: set[asyncio.Task[None]] = set()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        began = time.perf_counter()
        number = 0
        while not self._stopped.is_set():
            due = began + number / RATE
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            self.watched.due_at.append(due)
            # Taken in order; acknowledged whenever that is.
            handle = await self._producer.put(b"%012d" % number, key="key")
            task = asyncio.create_task(self._acknowledged(number, handle))
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)
            number += 1

    async def _acknowledged(self, number: int, handle: Awaitable[PutResult]) -> None:
        try:
            await handle
        except Exception as failure:
            self.watched.failures.append(failure)
        else:
            self.watched.acknowledged_at[number] = time.perf_counter()

    async def stop(self) -> None:
        self._stopped.set()
        await self._task
        await asyncio.gather(*self._waiting)
        await self._producer.close()


async def leader_of(client: AsyncClient) -> str:
    """Of the only shard; waits until there is one."""
    deadline = time.perf_counter() + SETTLE_SECONDS_MAX
    while time.perf_counter() < deadline:
        shard = (await client.stream(STREAM, refresh=True)).shards[0]
        if shard.leader:
            return shard.leader
        await asyncio.sleep(0.01)
    raise TimeoutError("the shard has no leader")


async def settled(client: AsyncClient) -> None:
    """Until every node answers and no shard lacks a copy or a leader."""
    deadline = time.perf_counter() + SETTLE_SECONDS_MAX
    while time.perf_counter() < deadline:
        found = await client.call(m.DescribeCluster(10))
        assert isinstance(found, m.ClusterDescribed)
        if all(node.live and node.answers and not node.uncertain for node in found.nodes) and not found.trouble_counts:
            return
        await asyncio.sleep(0.1)
    raise TimeoutError(f"the cluster does not settle: {found.trouble_counts} {found.troubles[:2]}")


async def exactly_what_was_acknowledged(client: AsyncClient, watched: Watched) -> str:
    """Reads everything. Each acknowledged record must be there, each record at most once, all in order."""
    found = []
    async for batch in AsyncReader(STREAM, start="trim_horizon", until="latest", client=client).batches():
        found += map(int, batch.values())
    again = [number for number, times in Counter(found).items() if times > 1]
    check(not again, f"{len(again)} records came twice: {again[:5]}")
    back = [(a, b) for a, b in pairwise(found) if b < a]
    check(not back, f"records came out of order {len(back)} times: {back[:5]}")
    lost = set(watched.acknowledged_at) - set(found)
    check(not lost, f"{len(lost)} acknowledged records are lost: {sorted(lost)[:5]}")
    return f"{len(watched.acknowledged_at):,} acknowledged records are there, once and in order"


Event = Callable[[AsyncClient, str], Awaitable[float]]       # leader → when it happened


async def _repeat(running: Cluster, level: str, times: int, event: Event) -> tuple[Watched, str, list[float]]:
    """The event again and again under one load: what was seen, what was checked, when each happened."""
    moments = []
    async with AsyncClient(running.url) as client:
        await client.create_stream(STREAM, shards=1, durability=level)
        await settled(client)
        load = Load(client)
        await asyncio.sleep(1)
        for _ in range(times):
            leader = await leader_of(client)
            moments.append(await event(client, leader))
            await asyncio.sleep(AFTER_SECONDS)
            await settled(client)
        await load.stop()
        check(not load.watched.failures, f"{len(load.watched.failures)} puts failed: {load.watched.failures[:1]}")
        checked = await exactly_what_was_acknowledged(client, load.watched)
    return load.watched, checked, moments


def kills(times: int, level: str) -> list[Result]:
    """kill -9 of the leader, `times` times, to the first acknowledgement of a record that was put afterwards."""
    with cluster() as running:

        async def kill(client: AsyncClient, leader: str) -> float:
            moment = time.perf_counter()
            running.kill_node(leader)
            await asyncio.to_thread(running.await_node, leader)
            return moment

        watched, checked, moments = uvloop.run(_repeat(running, level, times, kill))
        seconds = sorted(watched.first_after(moment) for moment in moments)
        name = "leader killed, to the next acknowledged put"
        return [_result(name, f"kill -9 {times} times", seconds, level, checked)]


def moves(times: int, level: str) -> list[Result]:
    """`cluster move --to`: the longest that any record waited."""
    with cluster() as running:
        names = sorted(running.node_pids)

        async def move(client: AsyncClient, leader: str) -> float:
            target = names[(names.index(leader) + 1) % len(names)]
            moment = time.perf_counter()
            await client.call(m.MoveShard(STREAM, 0, target))
            while await leader_of(client) != target:
                check(time.perf_counter() - moment < MOVE_SECONDS_MAX, f"{target} does not lead")
                await asyncio.sleep(0.005)
            return moment

        watched, checked, moments = uvloop.run(_repeat(running, level, times, move))
        ends = [*moments[1:], float("inf")]
        seconds = sorted(watched.longest_wait(*span) for span in zip(moments, ends, strict=True))
        return [_result("leader moved, longest wait of a put", f"{times} moves", seconds, level, checked)]


def _result(name: str, what: str, seconds: list[float], level: str, checked: str) -> Result:
    middle = seconds[len(seconds) // 2]
    return Result(
        name=name, shape=f"{what}, {RATE} records/s, 3 copies", replicas=3, durability=level, checked=checked,
        figure=f"{middle * 1000:.0f} ms median, {seconds[-1] * 1000:.0f} ms worst",
        facts={"seconds": seconds},
    )  # fmt: skip


def idle(shards: int, seconds: float) -> list[Result]:
    """CPU of all processes with many shards that nobody uses."""
    with cluster(STREAMS__SHARDS_MAX=str(shards + 10)) as running:

        async def create() -> None:
            async with AsyncClient(running.url) as client:
                for at in range(0, shards, STREAM_SHARDS_MAX):
                    await client.create_stream(f"{STREAM}-{at}", shards=min(STREAM_SHARDS_MAX, shards - at))
                await settled(client)
                await asyncio.sleep(min(2 * seconds, IDLE_SECONDS_MAX))

        uvloop.run(create())
        before, began = sum(map(cpu_seconds, running.pids)), time.perf_counter()
        time.sleep(seconds)
        used = sum(map(cpu_seconds, running.pids)) - before
        share = used / (time.perf_counter() - began)
        return [
            Result(
                name="idle shards", shape=f"{shards:,} with 3 copies, {seconds:.0f} s", replicas=3, durability="fsync",
                figure=f"{share:.2%} of a core", server_memory_mib=running.memory_mib("VmRSS"),
                checked="every shard has its copies and a leader", facts={"cpu_share": share},
            )
        ]  # fmt: skip
