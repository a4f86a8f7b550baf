"""What a leader and a follower spend on each other: sections laid out and parsed, and the links of two nodes.

Links run in one process on loopback, so their figures are both ends together: batches/s = batches / mean.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import pytest

from streamkit._core.framing import FrameReader, FrameWriter, Section
from streamkit.broker.peers import Peers
from streamkit.model.stream import Durability
from streamkit.protocol.frames import Fetched
from streamkit.protocol.peers import ACCEPTED, PeerAnswer, PeerRequest
from streamkit.runtime.real import new_event_loop, real_runtime

SHARD = bytes(range(16))
ALL_KINDS = 0xFE
BATCHES = 20_000
SHAPES = {"1000x212B": (1000, 212, 20), "1x212B": (1, 212, 20_000), "16x64KiB": (16, 65_536, 20)}


def batch(base: int, size: int) -> bytes:
    """Looks like a stored batch of one record; what is inside does not matter here."""
    head = struct.pack("<2sBBIQI", b"SK", 1, 0, size, base, 1)
    return head + bytes(36) + (1).to_bytes(4, "little") + bytes(size - len(head) - 40)


def laid_out(batches: list[bytes], sections: int) -> list[Any]:
    writer = FrameWriter()
    writer.begin_replicate()
    for _ in range(sections):
        writer.section(SHARD, 1, 0, 0, 1, 0, 0, 99, 0, batches)
    assert writer.end_replicate() == sections
    return writer.take()


def parsed(stream: memoryview) -> int:
    reader = FrameReader(1 << 30, 1024 * 1024, ALL_KINDS)
    count = at = 0
    while at < len(stream):
        room = reader.get_buffer()
        size = min(len(room), 256 * 1024, len(stream) - at)
        room[:size] = stream[at : at + size]
        at += size
        count += len(reader.buffer_updated(size))
    return count


@pytest.mark.parametrize("shape", SHAPES)
def bench_lay_out_sections(benchmark: Any, shape: str) -> None:
    count, size, sections = SHAPES[shape]
    batches = [batch(number, size) for number in range(count)]
    benchmark.extra_info.update(batches=count * sections)
    parts = benchmark(laid_out, batches, sections)
    assert sum(map(len, parts)) == 20 + sections * (72 + count * size)


@pytest.mark.parametrize("shape", SHAPES)
def bench_parse_sections(benchmark: Any, shape: str) -> None:
    count, size, sections = SHAPES[shape]
    batches = [batch(number, size) for number in range(count)]
    frames = 20 if sections == 20 else 1
    stream = memoryview(b"".join(b"".join(laid_out(batches, sections // frames)) for _ in range(frames)))
    benchmark.extra_info.update(batches=count * sections)
    assert benchmark(parsed, stream) == sections


def bench_acknowledgements(benchmark: Any) -> None:
    answers = [(SHARD, SHARD, 1, ACCEPTED, number, number) for number in range(1000)]

    def there_and_back() -> int:
        writer = FrameWriter()
        writer.replicated(answers)
        return parsed(memoryview(b"".join(writer.take())))

    assert benchmark(there_and_back) == 1000


# ---- two nodes' links --------------------------------------------------------------------------------------


class MemoryLog:
    """As much of a log as a feed reads."""

    def __init__(self) -> None:
        self.batches: list[bytes] = []
        self.log_start = self.tail_start = self.stored_bytes = 0
        self.epochs = [(1, 0)]

    @property
    def log_end(self) -> int:
        return len(self.batches)

    def read(self, start: int, limit: int, bytes_max: int) -> list[bytes]:
        # Batches here have one size, and one record each.
        return self.batches[start : min(limit, start + max(1, bytes_max // len(self.batches[0])))]

    async def read_cold(self, start: int, limit: int, bytes_max: int) -> list[bytes]:
        return self.read(start, limit, bytes_max)


class Leader:
    uuid, epoch, durability, epoch_start = SHARD, 1, Durability.LEADER, 0

    def __init__(self) -> None:
        self.log = MemoryLog()
        self.high_watermark = 0
        self.done = asyncio.Event()
        self.wanted = 1 << 62

    def on_acknowledged(self, node: str, incarnation: bytes, epoch: int, verdict: int, end: int) -> None:
        self.high_watermark = max(end, self.high_watermark)
        if end >= self.wanted:
            self.done.set()

    async def reached(self, end: int) -> None:
        """Once that much is acknowledged."""
        self.wanted = end
        if self.high_watermark < end:
            self.done.clear()
            await self.done.wait()

    def on_feed_broken(self, node: str) -> None:
        raise AssertionError(node)


class Follower:
    """Takes what comes, looks at none of it, and says so at once."""

    def __init__(self, name: str) -> None:
        self.end = 0
        self.peers = Peers(node=name, cluster_id="c", disk_id=b"", runtime=real_runtime(), handler=self)

    def sections(self, node: str, sections: list[Section]) -> None:
        for section in sections:
            if len(section):
                size = int.from_bytes(section.batches[4:8], "little")
                self.end = section.start + len(section) // size
            self.peers.acknowledge(node, section.shard, SHARD, section.epoch, ACCEPTED, self.end)

    async def asked(self, node: str, message: PeerRequest) -> PeerAnswer:
        raise AssertionError(message)

    async def read_log(self, uuid: bytes, start: int, bytes_max: int) -> Fetched:
        raise AssertionError(uuid)

    def link_up(self, node: str) -> None: ...
    def link_down(self, node: str) -> None: ...


async def carried(size: int, count: int, a_turn: int) -> int:
    """`count` batches appended `a_turn` at a time, as fast as they are taken."""
    a, b = Follower("a"), Follower("b")
    addresses = {"a": await a.peers.listen("127.0.0.1:0"), "b": await b.peers.listen("127.0.0.1:0")}
    a.peers.set_nodes(addresses)
    b.peers.set_nodes(addresses)
    leader = Leader()
    feed = a.peers.feed(leader, "b")
    made = batch(0, size)
    batches = leader.log.batches
    for number in range(count):
        batches.append(made[:8] + number.to_bytes(8, "little") + made[16:])
        feed.ready()
        if number % a_turn == a_turn - 1:
            await asyncio.sleep(0)
            if number - leader.high_watermark > 64 * a_turn:
                await leader.reached(number - 32 * a_turn)
    await leader.reached(count)
    await a.peers.close()
    await b.peers.close()
    return b.end


def run_link(size: int, count: int, a_turn: int) -> int:
    loop = new_event_loop()
    try:
        return loop.run_until_complete(carried(size, count, a_turn))
    finally:
        loop.close()


@pytest.mark.parametrize("a_turn", [1, 20])
def bench_link_small_batches(benchmark: Any, a_turn: int) -> None:
    benchmark.extra_info.update(batches=BATCHES, bytes=BATCHES * 212)
    assert benchmark(run_link, 212, BATCHES, a_turn) == BATCHES


def bench_link_large_batches(benchmark: Any) -> None:
    benchmark.extra_info.update(batches=1000, bytes=1000 * 65_536)
    assert benchmark(run_link, 65_536, 1000, 4) == 1000
