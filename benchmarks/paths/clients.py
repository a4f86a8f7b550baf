"""The loading side, a process of its own so that its CPU seconds are its own.

    python -m benchmarks.paths.clients ROLE '{"url": …, "server_pids": …, …}'

Each role warms up, measures, checks its answer and prints one JSON line; a failed check ends it with an error.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import resource
import sys
import time
from collections.abc import Callable, Coroutine
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import uvloop

from benchmarks.paths.processes import check, cpu_seconds
from streamkit import AsyncClient
from streamkit._core.batch import seal

if TYPE_CHECKING:
    from streamkit.model.shard import Shard
    from streamkit.protocol.frames import PutReceipt

KEY_BYTES = 8
VALUE_BYTES = 100
BATCH_BYTES = 64 * 1024
SEED = 20130101


class Window:
    """From start() to stop(): wall time, and CPU seconds of this process and of all that serve."""

    def __init__(self, server_pids: list[int]) -> None:
        self.server_pids = server_pids
        self.latencies_ms: list[float] = []

    def start(self) -> None:
        self.latencies_ms.clear()
        self._server = self._server_cpu()
        self._own = _own_cpu()
        self._started = time.perf_counter()

    def stop(self, records: int, payload_bytes: int, checked: str) -> dict[str, Any]:
        seconds = time.perf_counter() - self._started
        ordered = sorted(self.latencies_ms)
        levels = {"p50": 0.5, "p99": 0.99, "p999": 0.999}
        return {
            "records": records,
            "bytes": payload_bytes,
            "seconds": seconds,
            "client_cpu_seconds": _own_cpu() - self._own,
            "server_cpu_seconds": self._server_cpu() - self._server,
            "latencies_ms": {n: ordered[min(len(ordered) - 1, int(len(ordered) * q))] for n, q in levels.items()}
            if ordered
            else {},
            "checked": checked,
        }

    def _server_cpu(self) -> float:
        return sum(map(cpu_seconds, self.server_pids))


def _own_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def records(count: int, seed: int = SEED, value_bytes: int = VALUE_BYTES) -> list[tuple[bytes, bytes]]:
    """Keys of 8 bytes, values of 100 (or so many) that do not compress; the same for the same seed."""
    source = random.Random(seed)
    return [(b"%08d" % source.randrange(10**8), source.randbytes(value_bytes)) for _ in range(count)]


def sealed_batches(
    count: int, records_each: int, shards: tuple[Shard, ...], value_bytes: int = VALUE_BYTES
) -> list[list[bytes]]:
    """`count` batches a shard, of its own keys; without a producer id, so that putting one twice stores it twice.

    shards: some of a stream's; records of the others are left out.
    """
    now_ms = int(time.time() * 1000)
    batches: list[list[bytes]] = [[] for _ in shards]
    waiting: list[list[tuple[bytes, bytes, bytes, int, None]]] = [[] for _ in shards]
    seed = SEED
    while any(len(made) < count for made in batches):
        for key, value in records(count * records_each * len(shards), seed, value_bytes):
            hashed = int.from_bytes(hashlib.md5(key).digest(), "big")
            at = next((i for i, shard in enumerate(shards) if shard.hash_start <= hashed < shard.hash_end), None)
            if at is None:
                continue
            waiting[at].append((key, value, b"", now_ms, None))
            if len(waiting[at]) == records_each:
                batches[at].append(seal(waiting[at], codec=0))
                waiting[at].clear()
        seed += 1
    return [made[:count] for made in batches]


class Pipeline:
    """Keeps `window` requests under way over the stream's shards and notes when each was answered."""

    def __init__(self, client: AsyncClient, shards: tuple[Shard, ...], window: int, latencies_ms: list[float]) -> None:
        self.client, self.shards, self.latencies_ms = client, shards, latencies_ms
        self.room = asyncio.Semaphore(window)
        self.receipts: dict[bytes, list[int]] = {shard.uuid: [] for shard in shards}
        self.failures: list[BaseException] = []

    async def put(self, turn: int, batches: list[list[bytes]]) -> None:
        await self.room.acquire()
        round_number, at = divmod(turn, len(self.shards))
        shard, batch = self.shards[at], batches[at][round_number % len(batches[at])]
        started = time.perf_counter()

        def done(answer: PutReceipt | Exception) -> None:
            self.latencies_ms.append((time.perf_counter() - started) * 1000)
            self.room.release()
            if isinstance(answer, Exception):
                self.failures.append(answer)
            else:
                self.receipts[shard.uuid].append(answer.base_sequence)

        self.client.put_batch(shard, batch, done)

    async def drain(self, window: int) -> None:
        for _ in range(window):
            await self.room.acquire()
        for _ in range(window):
            self.room.release()


async def sealed(options: dict[str, Any]) -> dict[str, Any]:
    """Whole sealed batches, as many under way as `window`: what the broker can take."""
    records_each, window_size, count = options["batch_records"], options["window"], options["batches"]
    value_bytes = options.get("value_bytes", VALUE_BYTES)
    window = Window(options["server_pids"])
    async with AsyncClient(options["url"]) as client:
        stream = await client.stream(options["stream"], refresh=True)
        batches = sealed_batches(min(count, 16 if records_each > 1 else 4096), records_each, stream.shards, value_bytes)
        before = {s.ordinal: s.high_watermark for s in await client.describe_shards(stream.name)}
        pipeline = Pipeline(client, stream.shards, window_size, window.latencies_ms)
        warm = max(len(stream.shards), count // 20)
        for turn in range(warm):
            await pipeline.put(turn, batches)
        await pipeline.drain(window_size)
        window.start()
        for turn in range(warm, warm + count):
            await pipeline.put(turn, batches)
        await pipeline.drain(window_size)
        total = count * records_each
        result = window.stop(total, total * (KEY_BYTES + value_bytes), "")
        check(not pipeline.failures, f"{len(pipeline.failures)} puts failed: {pipeline.failures[:1]}")
        states = {s.ordinal: s.high_watermark for s in await client.describe_shards(stream.name)}
    for shard in stream.shards:
        bases = pipeline.receipts[shard.uuid]
        steps = {b - a for a, b in pairwise(bases)}
        check(steps <= {records_each}, f"{shard.id}: receipts are not dense: steps {sorted(steps)[:5]}")
        # One epoch-start batch may stand between what was there before and the first put.
        grown = states[shard.ordinal] - before[shard.ordinal]
        check(grown - len(bases) * records_each in (0, 1), f"{shard.id}: grew by {grown} for {len(bases)} batches")
    return {**result, "checked": f"{(count + warm) * records_each:,} dense in {len(stream.shards)} shards"}


async def open_loop(options: dict[str, Any]) -> dict[str, Any]:
    """One record a request at a fixed rate, whatever the answers do: put → acknowledged, and put → seen by a reader.

    Latency counts from when a request was due, so that a stall is charged to every request that it delayed.
    """
    rate, count = options["rate"], options["records"]
    window = Window(options["server_pids"])
    seen_ms: list[float] = []
    async with AsyncClient(options["url"]) as client, AsyncClient(options["url"]) as reading:
        stream = await client.stream(options["stream"], refresh=True)
        shard = stream.shards[0]
        (batches,) = sealed_batches(min(count, 4096), 1, (shard,))
        start = (await client.resolve_position(shard, "latest")).sequence
        due_at: list[float] = []
        failures: list[BaseException] = []
        acknowledged = asyncio.Event()
        left = count

        async def read() -> None:
            position, found = start, 0
            while found < count:
                fetched = await reading.fetch(shard, position, wait_ms=1000)
                now = time.perf_counter()
                position = fetched.next_sequence
                arrived = len(fetched.batches)
                seen_ms.extend((now - due) * 1000 for due in due_at[found : found + arrived])
                found += arrived

        def answered(due: float, answer: PutReceipt | Exception) -> None:
            nonlocal left
            window.latencies_ms.append((time.perf_counter() - due) * 1000)
            left -= 1
            if isinstance(answer, Exception):
                failures.append(answer)
            if not left:
                acknowledged.set()

        await client.put_batch(shard, batches[0])      # warmed once, and the epoch-start batch is behind us
        start = (await client.resolve_position(shard, "latest")).sequence
        window.start()
        reader = asyncio.create_task(read())
        began = time.perf_counter()
        for i in range(count):
            due = began + i / rate
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            due_at.append(due)
            client.put_batch(shard, batches[i % len(batches)], lambda answer, due=due: answered(due, answer))
        await acknowledged.wait()
        await reader
        result = window.stop(count, count * (KEY_BYTES + VALUE_BYTES), "")
    check(not failures, f"{len(failures)} puts failed: {failures[:1]}")
    check(len(seen_ms) == count, f"{len(seen_ms)} of {count} were seen")
    seen = Window(options["server_pids"])
    seen.start()
    seen.latencies_ms = seen_ms
    end_to_end = seen.stop(count, 0, "")["latencies_ms"]
    return {**result, "end_to_end_ms": end_to_end, "checked": f"{count:,} acknowledged and seen, at the rate asked for"}


ASYNC_ROLES: dict[str, Callable[[dict[str, Any]], Coroutine[Any, Any, dict[str, Any]]]] = {
    "sealed": sealed,
    "open_loop": open_loop,
}


def main() -> None:
    role, options = sys.argv[1], json.loads(sys.argv[2])
    if role in ASYNC_ROLES:
        result = uvloop.run(ASYNC_ROLES[role](options))
    else:
        from benchmarks.paths import library, waiting

        if role in waiting.ROLES:
            print(json.dumps(uvloop.run(waiting.ROLES[role](options))))
            return
        result = library.ROLES[role](options)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
