"""A load that notes every answer, and a checker of the notes: lost, twice, out of order, elsewhere than was said.

The producers are those of kill_broker; here their records are read back from whichever nodes lead now, and the
replicas' logs are compared when the nodes are down.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from streamkit.client.client import AsyncClient
from streamkit.errors import StreamkitError
from streamkit.model.stream import Durability
from streamkit.runtime.real import real_runtime
from streamkit.storage import LogDirectory
from tests.end_to_end.kill_broker import STREAM, Outcome, produce, read_shard
from tests.end_to_end.nodes import Nodes

PATIENCE_SECONDS = 60.0


@dataclass(slots=True)
class Load:
    """Producers at work. outcome: all that they were told."""

    nodes: Nodes
    outcome: Outcome
    stopping: asyncio.Event
    tasks: list[asyncio.Task[None]]
    shards: int

    @property
    def acknowledged(self) -> int:
        return len(self.outcome.acknowledged)

    async def goes_on(self, count: int = 10, within_seconds: float = PATIENCE_SECONDS) -> float:
        """Until every shard acknowledged that many more records; the seconds that took.

        Every one: those that other nodes lead go on in any case, and would hide the one that does not.
        """
        notes, began, first = self.outcome.acknowledged, time.monotonic(), self.outcome.put
        seen, counts = len(notes), dict.fromkeys(range(self.shards), 0)
        while min(counts.values()) < count:
            for task in self.tasks:
                if task.done():
                    task.result()
            assert time.monotonic() - began < within_seconds, (
                f"{counts} acknowledged by shard in {within_seconds} s, {self.outcome.put - first} put; failed: "
                f"{list(self.outcome.failed.items())[:3]}"
            )
            await asyncio.sleep(0.005)
            for shard, _ in itertools.islice(reversed(notes.values()), len(notes) - seen):
                counts[int(shard.removeprefix("shardId-"))] += 1
            seen = len(notes)
        return time.monotonic() - began

    async def longest_gap(self, seconds: float) -> float:
        """The longest time during the next seconds in which some shard acknowledged nothing."""
        notes, began = self.outcome.acknowledged, time.monotonic()
        last = {shard: began for shard, _ in notes.values()}
        longest, seen = 0.0, len(notes)
        while (now := time.monotonic()) < began + seconds:
            for shard, _ in itertools.islice(reversed(notes.values()), len(notes) - seen):
                last[shard] = now
            seen = len(notes)
            longest = max(longest, now - min(last.values()))
            await asyncio.sleep(0.005)
        return longest


@contextlib.asynccontextmanager
async def load(
    nodes: Nodes, *, producers: int = 2, shards: int = 4, durability: Durability = Durability.FSYNC
) -> AsyncIterator[Load]:
    """At the end: every record put has its answer, all are read back and checked. Raises AssertionError."""
    await create_stream(nodes, shards, durability)
    outcome, stopping = Outcome(), asyncio.Event()
    tasks = [asyncio.create_task(produce(f"p{n}", nodes.url, outcome, stopping)) for n in range(producers)]
    running = Load(nodes, outcome, stopping, tasks, shards)
    try:
        await running.goes_on()
        yield running
        stopping.set()
        await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE_SECONDS)
        await read_back(nodes, outcome)
    finally:
        stopping.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    wrong = outcome.wrong()
    assert wrong == [], "\n".join(wrong[:20])
    assert len(outcome.acknowledged) == outcome.put


async def create_stream(nodes: Nodes, shards: int, durability: Durability = Durability.FSYNC) -> None:
    """Nodes that have just started may still look for each other."""
    began = time.monotonic()
    while True:
        try:
            async with AsyncClient(nodes.url) as client:
                await client.create_stream(STREAM, shards=shards, durability=durability)
                return
        except StreamkitError:
            if time.monotonic() - began > PATIENCE_SECONDS:
                raise
            await asyncio.sleep(0.1)


async def read_back(nodes: Nodes, outcome: Outcome) -> None:
    """Every shard from its leader, asked again while there is none."""
    began = time.monotonic()
    while True:
        try:
            async with AsyncClient(nodes.url) as client:
                for shard in (await client.describe_stream(STREAM)).shards:
                    outcome.found[shard.id] = await read_shard(client, shard)
                return
        except StreamkitError:
            if time.monotonic() - began > PATIENCE_SECONDS:
                raise
            await asyncio.sleep(0.1)


async def leaders(nodes: Nodes, asked: str = "") -> dict[str, str]:
    """Shard id → the node that leads it, as `asked` says, or any node."""
    async with AsyncClient(asked or nodes.url) as client:
        return {shard.id: shard.leader for shard in (await client.describe_stream(STREAM)).shards}


async def some_leader(nodes: Nodes) -> str:
    """A node that leads a shard of the stream."""
    began = time.monotonic()
    while not (found := [leader for leader in (await leaders(nodes)).values() if leader in nodes.by_name]):
        assert time.monotonic() - began < PATIENCE_SECONDS, "no shard has a leader"
        await asyncio.sleep(0.05)
    return found[0]


async def copies_agree(folders: list[Path]) -> list[str]:
    """Where the copies of a shard differ in what all of them hold; the nodes are down. Empty: nowhere."""
    runtime = real_runtime()
    seen: dict[bytes, dict[str, tuple[int, int, int]]] = {}
    opened = [await LogDirectory.open(str(folder), runtime=runtime) for folder in folders]
    try:
        shared: dict[bytes, tuple[int, int]] = {}
        for directory in opened:
            for uuid, log in directory.shards.items():
                start, end = shared.get(uuid, (0, 1 << 62))
                shared[uuid] = max(start, log.log_start), min(end, log.log_end)
        for folder, directory in zip(folders, opened, strict=True):
            for uuid, log in directory.shards.items():
                start, end = shared[uuid]
                if start < end:
                    seen.setdefault(uuid, {})[folder.name] = await log.digest(start, end)
    finally:
        for directory in opened:
            await directory.close()
    return [f"{uuid.hex()}: {digests}" for uuid, digests in seen.items() if len(set(digests.values())) > 1]
