"""Nodes made of Peers alone: a leader with a real log, a follower that keeps bytes and judges them the simple way."""

from __future__ import annotations

import asyncio
import dataclasses
import struct
from collections.abc import Coroutine
from typing import Any

from streamkit.broker.feed import Feed
from streamkit.broker.peers import Peers, PeersConfig
from streamkit.errors import NotFound
from streamkit.model.stream import Durability
from streamkit.protocol.frames import Fetched, Section
from streamkit.protocol.peers import ACCEPTED, MISMATCH, STALE, UNKNOWN, Hear, Heard, PeerAnswer, PeerRequest
from streamkit.simulator.faults import Faults
from streamkit.simulator.loop import Process
from streamkit.simulator.network import NetworkFaults
from streamkit.simulator.world import World
from streamkit.storage import LogDirectory
from tests.oracles_storage import SMALL

CLUSTER = "c1"
_PLACE = struct.Struct("<4xIQI")


def walk(batches: bytes) -> list[tuple[int, int, int, bytes]]:
    """(base, end, epoch, batch) of each."""
    found, at = [], 0
    while at < len(batches):
        size, base, epoch = _PLACE.unpack_from(batches, at)
        count = int.from_bytes(batches[at + 56 : at + 60], "little")
        found.append((base, base + count, epoch, batches[at : at + size]))
        at += size
    return found


class Held:
    """A follower's copy: batches by the book, the obvious way."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int, int, bytes]] = []
        self.log_start = 0
        self.promised = 0
        self.high_watermark = 0
        self.incarnation = b"i" * 16

    @property
    def end(self) -> int:
        return self.batches[-1][1] if self.batches else self.log_start

    def epoch_at(self, sequence: int) -> int:
        return next((epoch for base, end, epoch, _ in self.batches if base <= sequence < end), 0)

    def bytes(self) -> bytes:
        return b"".join(batch for *_, batch in self.batches)

    def take(self, section: Section) -> tuple[int, int, int]:
        """(epoch, verdict, end)."""
        if section.epoch < self.promised:
            return self.promised, STALE, 0
        self.promised = section.epoch
        if section.start == section.log_start > self.end:
            self.batches, self.log_start = [], section.start     # too far behind: begin anew
        if self.end < section.start:
            return section.epoch, MISMATCH, self.end
        if section.start > self.log_start and self.epoch_at(section.start - 1) != section.previous_epoch:
            place = next(base for base, end, _, _ in self.batches if base < section.start <= end)
            return section.epoch, MISMATCH, place
        matched = section.start
        for base, end, epoch, batch in walk(bytes(section.batches)):
            if base < self.end and self.epoch_at(base) != epoch:
                self.batches = [held for held in self.batches if held[1] <= base]
            if base >= self.end:
                assert base == self.end, "contiguous"
                self.batches.append((base, end, epoch, batch))
            matched = end
        self.high_watermark = max(self.high_watermark, min(section.high_watermark, matched))
        return section.epoch, ACCEPTED, matched


class Node:
    """A PeerHandler with nothing behind it but `held` copies; `mute` shards are taken and never answered."""

    def __init__(self, name: str, runtime: Any, *, cluster: str = CLUSTER, disk: bytes = b"", **config: Any) -> None:
        self.name = name
        self.held: dict[bytes, Held] = {}
        self.mute: set[bytes] = set()
        self.refuse: int | None = None
        self.sections_seen: list[tuple[str, int, int, int]] = []     # (node, start, bytes, high watermark)
        self.frames = 0
        self.events: list[str] = []
        self.asked_of: list[PeerRequest] = []
        self.block: asyncio.Event | None = None
        self.readable: Any = None
        self.peers = Peers(
            node=name, cluster_id=cluster, disk_id=disk or name.encode().ljust(16, b"-"), runtime=runtime, handler=self,
            config=PeersConfig(**config),
        )  # fmt: skip

    def sections(self, node: str, sections: list[Section]) -> None:
        self.frames += 1
        for section in sections:
            self.sections_seen.append((node, section.start, len(section), section.high_watermark))
            if section.shard in self.mute:
                continue
            held = self.held.get(section.shard)
            if self.refuse is not None or held is None:
                verdict = UNKNOWN if self.refuse is None else self.refuse
                self.peers.acknowledge(node, section.shard, bytes(16), section.epoch, verdict, 0)
                continue
            epoch, verdict, end = held.take(section)
            self.peers.acknowledge(node, section.shard, held.incarnation, epoch, verdict, end, end)

    async def asked(self, node: str, message: PeerRequest) -> PeerAnswer:
        self.asked_of.append(message)
        if self.block is not None:
            await self.block.wait()
        if isinstance(message, Hear):
            return Heard(self.peers.heard_ms(message.node) or 0)
        raise NotFound(f"{type(message).__name__} is nothing this node knows")

    async def read_log(self, uuid: bytes, start: int, bytes_max: int) -> Fetched:
        log = self.readable
        if log is None:
            raise NotFound("no log here")
        batches = await log.read_cold(start, log.log_end, bytes_max)
        return Fetched([memoryview(batch) for batch in batches], 0, log.log_start, log.log_end, start)

    def link_up(self, node: str) -> None:
        self.events.append(f"up {node}")

    def link_down(self, node: str) -> None:
        self.events.append(f"down {node}")


class Leader:
    """Leads one epoch of a real log; the high watermark is what one follower acknowledged."""

    def __init__(self, log: Any, *, epoch: int = 1, durability: Durability = Durability.FSYNC) -> None:
        self.uuid = log.uuid
        self.epoch = epoch
        self.durability = durability
        self.log = log
        self.high_watermark = 0
        self.epoch_start: int | None = None
        self.feeds: list[Feed] = []
        self.answers: list[tuple[str, bytes, int, int, int]] = []
        self.broken: list[str] = []
        self.moved = asyncio.Event()

    def append(self, batch: bytes, now_ms: int = 1) -> int:
        appended = self.log.append(batch, now_ms=now_ms, epoch=self.epoch, durability="os")
        if self.epoch_start is None:
            self.epoch_start = appended.base_sequence
        for feed in self.feeds:
            feed.ready()
        return int(appended.end_sequence)

    def on_acknowledged(self, node: str, incarnation: bytes, epoch: int, verdict: int, end: int) -> None:
        self.answers.append((node, incarnation, epoch, verdict, end))
        if verdict == ACCEPTED and end > self.high_watermark:
            self.high_watermark = end
            for feed in self.feeds:
                feed.ready()
        self.moved.set()
        self.moved.clear()

    def on_feed_broken(self, node: str) -> None:
        self.broken.append(node)


async def until(done: Any, seconds: float = 20.0) -> None:
    """Wait for something that comes about on the loop; `seconds` is a bound, not a measurement."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + seconds
    while not done():
        assert loop.time() < end_s, "it did not come about"
        await asyncio.sleep(0.001)


class Bottle:
    """Nodes in a simulated world: time is virtual, and processes can be stopped and killed."""

    def __init__(self, seed: int = 1, **network: Any) -> None:
        faults = Faults.none()
        faults.network = NetworkFaults(**network)
        self.world = World(seed, faults)
        self.loop = self.world.loop
        self.loop.seconds_max = 3600.0
        self.nodes: dict[str, Node] = {}
        self.processes: dict[str, Process] = {}
        self.addresses: dict[str, str] = {}
        self.runtimes: dict[str, Any] = {}

    async def node(self, name: str, **given: Any) -> Node:
        """A new process with that node; the others are told of it."""
        process, runtime = self.world.new_process(name)
        self.processes[name], self.runtimes[name] = process, runtime

        async def main() -> Node:
            node = Node(name, runtime, **given)
            self.addresses[name] = await node.peers.listen(f"10.0.0.{len(self.addresses) + 1}:0")
            return node

        self.nodes[name] = node = await self.world.start(process, main())
        for other, running in self.processes.items():
            if not running.gone:
                running.context.run(self.nodes[other].peers.set_nodes, dict(self.addresses))
        return node

    async def log(self, name: str, *shards: bytes, **config: Any) -> LogDirectory:
        """A data directory in that node's process, with those shards."""

        async def main() -> LogDirectory:
            directory = await LogDirectory.open(
                "data", runtime=self.runtimes[name], config=dataclasses.replace(SMALL, **config)
            )
            await directory.create_shards(shards)
            return directory

        return await self.world.start(self.processes[name], main())

    def run(self, main: Coroutine[Any, Any, Any]) -> None:
        try:
            self.loop.run_until_complete(main)
            assert not self.loop.unhandled, self.loop.unhandled
        finally:
            self.world.close()
