"""Slow, obvious twins for storage: a log as a list, and a machine with a simulated disk to crash it on."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import google_crc32c

from streamkit._core.journal import Journal
from streamkit.runtime.interfaces import Runtime
from streamkit.simulator.disk import DiskFaults, DiskOfProcess, SimulatedDisk
from streamkit.simulator.loop import Process, SimulatedLoop
from streamkit.storage import LogDirectory, StorageConfig, log_directory

SHARDS = [bytes([n]) * 16 for n in range(1, 5)]
SMALL = StorageConfig(
    segment_bytes=64 * 1024, journal_bytes=1 << 20, journal_step_bytes=64 * 1024, group_bytes_max=64 * 1024,
    bypass_bytes=16 * 1024, tail_bytes=32 * 1024, files_open_max=8, free_bytes_min=0, reserve_bytes=64 * 1024,
    checkpoint_ms=50, producers_max=4, batch_bytes_max=1 << 19,
)  # fmt: skip


def crc32c(data: bytes) -> int:
    return int(google_crc32c.value(data))


def seal(values: list[bytes], *, producer: tuple[int, int, int] = (0, 0, 0), hashes: tuple[int, int] = (5, 5)) -> bytes:
    """A sealed batch, field by field as the drawing says; producer: id, epoch, sequence."""
    ends, records = [], b""
    for value in values:
        records += struct.pack("<HHi", 1, 0, 0) + b"k" + value
        ends.append(len(records))
    body = b"".join(struct.pack("<I", end) for end in ends) + records
    rest = struct.pack(
        "<HHQQIIqiI16s16s", 0, producer[1], producer[0], producer[2], len(values), len(body), 0, 0, 0,
        hashes[0].to_bytes(16, "big"), hashes[1].to_bytes(16, "big"),
    ) + body  # fmt: skip
    batch_bytes = 36 + len(rest)
    head = b"SK\x01\x00" + struct.pack("<IQIIQ", batch_bytes, 0, 0, 0, 0) + struct.pack("<I", crc32c(rest))
    return head + rest


def body_of(batch: bytes | memoryview) -> bytes:
    """What the producer sealed: the part that no leader touches."""
    return bytes(batch[32:])


def base_of(batch: bytes | memoryview) -> int:
    return int.from_bytes(batch[8:16], "little")


def records_of(batch: bytes | memoryview) -> int:
    return int.from_bytes(batch[56:60], "little")


def is_control(batch: bytes | memoryview) -> bool:
    return bool(batch[3] & 1)


class SimulatedClock:
    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop

    def now_ms(self) -> int:
        return 1_700_000_000_000 + int(self._loop.time() * 1000)

    def monotonic_ms(self) -> int:
        return int(self._loop.time() * 1000)


class SeededRandom:
    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)

    def uniform(self) -> float:
        return self._draw.random()

    def bits(self, count: int) -> int:
        return self._draw.getrandbits(count)

    def uuid(self) -> bytes:
        return self._draw.randbytes(16)


class LoopExecutor:
    async def run(self, work: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(None, work, *args)


class Machine:
    """One machine: processes come and go, the disk stays."""

    def __init__(self, seed: int = 1, config: StorageConfig = SMALL, **faults: Any) -> None:
        self.disk = SimulatedDisk(seed, DiskFaults(**faults))
        self.config = config
        self.seed = seed

    def run(self, main: Callable[[Runtime], Coroutine[Any, Any, Any]], *, crash_at: int | None = None) -> bool:
        """`main` in a new process; True when it ended by itself, False when it crashed at that disk step."""
        loop = SimulatedLoop()
        loop.seconds_max = 3600.0
        process = Process("node")
        ended = asyncio.Future(loop=loop)

        def crash() -> None:
            process.kill()
            if not ended.done():
                ended.set_result(False)

        self.disk.crash = crash
        self.disk.crash_at = None if crash_at is None else self.disk.steps + crash_at
        journals: list[Journal] = []

        def make_journal(**options: Any) -> Journal:
            journals.append(Journal(**options))
            return journals[-1]

        runtime = Runtime(
            clock=SimulatedClock(loop), random=SeededRandom(self.seed), network=None,  # type: ignore[arg-type]
            disk=DiskOfProcess(self.disk, process), executor=LoopExecutor(),
        )  # fmt: skip

        async def outer() -> None:
            try:
                await main(runtime)
            except Exception as error:
                ended.set_exception(error)
            else:
                ended.set_result(True)

        loop.spawn(process, outer())
        try:
            with mock.patch.object(log_directory, "Journal", make_journal):
                answer = loop.run_until_complete(ended)
            assert not loop.unhandled, loop.unhandled
            return bool(answer)
        finally:
            process.forget()
            loop.close()
            for journal in journals:
                journal.abandon()                              # the collector does not see what a killed one holds
            self.disk.crash_at = None

    def lose_power(self) -> None:
        self.disk.lose_power()


@dataclass
class ModelLog:
    """A shard's log as a list of what was put, and how much of it was acknowledged at which level."""

    bodies: list[tuple[int, int, bytes]] = field(default_factory=list)     # base, end, body
    durable: int = 0
    written: int = 0

    def add(self, base: int, end: int, batch: bytes) -> None:
        self.bodies.append((base, end, body_of(batch)))


async def wait_for(directory: LogDirectory, done: Callable[[], bool]) -> None:
    """Until `done()`, looked at whenever the disk moved."""
    while not done():                              # noqa: ASYNC110 - virtual time
        await asyncio.sleep(0.001)


async def read_all(log: Any, bytes_max: int = 8192) -> list[bytes]:
    """Every batch from log_start on, by as many reads as it takes."""
    found: list[bytes] = []
    at = log.log_start
    while at < log.log_end:
        batches = await log.read_cold(at, log.log_end, bytes_max)
        assert batches, "a read below log_end gives something"
        for batch in batches:
            assert base_of(batch) == at, "batches follow each other without a gap"
            found.append(bytes(batch))
            at = base_of(batch) + records_of(batch)
    return found
