"""Append and accept to durable, read and recover, on real files; each run checks its own answer.

STREAMKIT_BENCH_BYTES sets how much is appended (8 MiB: a smoke test; 1 GiB: what the README quotes).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from streamkit._core.batch import seal, stamped
from streamkit.runtime.real import new_event_loop, real_runtime
from streamkit.storage import LogDirectory, ShardLog, StorageConfig

TOTAL_BYTES = int(os.environ.get("STREAMKIT_BENCH_BYTES", 8 << 20))
WINDOW_BYTES = 32 << 20            # of batches under way, as the broker's backpressure keeps it
RECORDS = 560                      # of 100 bytes: a 64-KiB batch
CONFIG = StorageConfig(free_bytes_min=0, reserve_bytes=0)
BIG = seal([(b"k", bytes(range(100)), b"", 0, None)] * RECORDS, codec=0)
ONE = seal([(b"k", bytes(range(100)), b"", 0, None)], codec=0)


class Bench:
    """A directory with `shards` logs on a loop of its own, on the disk that TMPDIR names."""

    def __init__(self, shards: int) -> None:
        self.path = tempfile.mkdtemp(prefix="streamkit-bench-")
        self.loop = new_event_loop()
        self.uuids = [bytes([n]) * 16 for n in range(1, shards + 1)]
        self.directory = self.reopened()
        self.loop.run_until_complete(self.directory.create_shards(self.uuids))

    def reopened(self) -> LogDirectory:
        return self.loop.run_until_complete(
            LogDirectory.open(f"{self.path}/data", runtime=real_runtime(), config=CONFIG)
        )

    def close(self) -> None:
        self.loop.run_until_complete(self.directory.close())
        self.loop.close()
        shutil.rmtree(self.path)

    def logs(self) -> list[ShardLog]:
        return [self.directory.shards[uuid] for uuid in self.uuids]

    async def append(self, batch: bytes, count: int, durability: str) -> int:
        """`count` batches over all shards, until the last is as durable as asked; records that became so."""
        logs, directory, moved = self.logs(), self.directory, asyncio.Event()
        directory.on_durable.append(moved.set)
        before = sum(log.log_end for log in logs)
        for i in range(count):
            logs[i % len(logs)].append(batch, now_ms=i, epoch=1, durability=durability)
            if i % 64 == 63:
                await asyncio.sleep(0)
            while directory.pending_bytes > WINDOW_BYTES:
                moved.clear()
                await moved.wait()
        while any(reached(log, durability) < log.log_end for log in logs):
            moved.clear()
            if any(reached(log, durability) < log.log_end for log in logs):
                await moved.wait()
        directory.on_durable.remove(moved.set)
        return sum(log.log_end for log in logs) - before


def reached(log: ShardLog, durability: str) -> int:
    return log.durable_end if durability == "fsync" else log.written_end


@pytest.mark.parametrize("shards", [1, 4, 16])
@pytest.mark.parametrize("durability", ["fsync", "os"])
def bench_append_64KiB(benchmark: Any, durability: str, shards: int) -> None:
    bench = Bench(shards)
    count = TOTAL_BYTES // len(BIG)
    benchmark.extra_info["records"] = count * RECORDS
    try:
        bench.loop.run_until_complete(bench.append(BIG, shards, durability))     # warm: epoch starts, files
        got = benchmark.pedantic(
            lambda: bench.loop.run_until_complete(bench.append(BIG, count, durability)), rounds=3
        )
        assert got == count * RECORDS
    finally:
        bench.close()


@pytest.mark.parametrize("durability", ["fsync", "os"])
def bench_append_one_record(benchmark: Any, durability: str) -> None:
    bench = Bench(4)
    count = max(100, TOTAL_BYTES // 1024)
    benchmark.extra_info["records"] = count
    try:
        bench.loop.run_until_complete(bench.append(ONE, 4, durability))
        got = benchmark.pedantic(
            lambda: bench.loop.run_until_complete(bench.append(ONE, count, durability)), rounds=3
        )
        assert got == count
    finally:
        bench.close()


def leaders_runs(uuid: bytes, batch: bytes, records: int, count: int, rounds: int) -> list[list[bytes]]:
    """What a leader would send: `count` stored batches a round, in runs of about 64 KiB."""
    made, base = [], 0
    for number in range(rounds * count):
        made.append(stamped(batch, flags=3 if number == 0 else 0, base_sequence=base, epoch=1, append_time_ms=number,
                            shard_uuid=uuid))  # fmt: skip
        base += records
    step = max(1, (64 << 10) // len(batch))
    return [
        [b"".join(made[i : min(i + step, first + count)]) for i in range(first, first + count, step)]
        for first in range(0, rounds * count, count)
    ]


@pytest.mark.parametrize("durability", ["fsync", "os"])
@pytest.mark.parametrize("shape", ["64KiB", "one-record"])
def bench_accept(benchmark: Any, shape: str, durability: str) -> None:
    """A follower's append, in runs of 64 KiB; `accept_us` is the time on the loop for each batch, without the disk."""
    bench = Bench(1)
    batch, records = (BIG, RECORDS) if shape == "64KiB" else (ONE, 1)
    count = max(64, TOTAL_BYTES // (len(BIG) if shape == "64KiB" else 1024))
    rounds = iter(leaders_runs(bench.uuids[0], batch, records, count, 4))
    spent: list[float] = []

    async def follow() -> int:
        log, directory, moved = bench.logs()[0], bench.directory, asyncio.Event()
        directory.on_durable.append(moved.set)
        before = log.log_end
        for run in next(rounds):
            began = time.perf_counter()
            log.accept(run, epoch=1, durability=durability)
            spent.append(time.perf_counter() - began)
            while directory.pending_bytes > WINDOW_BYTES:
                moved.clear()
                await moved.wait()
            await asyncio.sleep(0)
        while reached(log, durability) < log.log_end:
            moved.clear()
            if reached(log, durability) < log.log_end:
                await moved.wait()
        directory.on_durable.remove(moved.set)
        return log.log_end - before

    try:
        assert bench.loop.run_until_complete(follow()) == count * records
        spent.clear()
        got = benchmark.pedantic(lambda: bench.loop.run_until_complete(follow()), rounds=3)
        assert got == count * records
        benchmark.extra_info["records"] = count * records
        benchmark.extra_info["accept_us"] = round(sum(spent) * 1e6 / (3 * count), 3)
    finally:
        bench.close()


@pytest.mark.parametrize("source", ["tail", "page-cache"])
def bench_read_64KiB(benchmark: Any, source: str) -> None:
    bench = Bench(1)
    count = TOTAL_BYTES // len(BIG)
    try:
        bench.loop.run_until_complete(bench.append(BIG, count, "os"))
        if source == "page-cache":
            bench.loop.run_until_complete(bench.directory.close())
            bench.directory = bench.reopened()
        log = bench.logs()[0]

        async def read_all() -> int:
            at = log.log_start
            while at < log.log_end:
                batches = log.read(at, log.log_end, 1 << 20)
                for batch in batches if batches is not None else await log.read_cold(at, log.log_end, 1 << 20):
                    at += int.from_bytes(batch[56:60], "little")
            return at

        assert benchmark(lambda: bench.loop.run_until_complete(read_all())) == count * RECORDS + 1
    finally:
        bench.close()


def bench_recover(benchmark: Any) -> None:
    """Open what a killed process left: its files are copied before it may close them in order."""
    bench = Bench(16)
    count = TOTAL_BYTES // len(BIG)
    bench.loop.run_until_complete(bench.append(BIG, count, "fsync"))
    ends = {log.uuid: log.log_end for log in bench.logs()}
    opened: list[LogDirectory] = []

    def left_behind() -> tuple[tuple[str], dict[str, Any]]:
        path = f"{bench.path}/copy-{len(opened)}"
        shutil.copytree(f"{bench.path}/data", path, ignore=shutil.ignore_patterns("*.new"))
        return (path,), {}

    def recover(path: str) -> LogDirectory:
        opened.append(
            bench.loop.run_until_complete(LogDirectory.open(path, runtime=real_runtime(), config=CONFIG))
        )
        return opened[-1]

    try:
        directory = benchmark.pedantic(recover, setup=left_behind, rounds=2)
        assert {uuid: log.log_end for uuid, log in directory.shards.items()} == ends
        assert Path(directory.path).exists() and not directory.was_clean
    finally:
        for directory in opened:
            bench.loop.run_until_complete(directory.close())
        bench.close()


def bench_open_shards(benchmark: Any) -> None:
    shards = 10_000 if TOTAL_BYTES >= 1 << 30 else 200
    bench = Bench(1)
    uuids = [n.to_bytes(16, "big") for n in range(1 << 20, (1 << 20) + shards)]
    bench.loop.run_until_complete(bench.directory.create_shards(uuids))

    def reopen() -> int:
        bench.directory = bench.reopened()
        return len(bench.directory.shards)

    def closed() -> None:
        bench.loop.run_until_complete(bench.directory.close())

    try:
        assert benchmark.pedantic(reopen, setup=closed, rounds=2) == shards + 1
    finally:
        bench.close()
