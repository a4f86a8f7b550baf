"""What is measured, the same for every system: works done with a Client, each of which checks its own answer.

    check     a few thousand records of many sizes go in and come out, the same, in order
    produce   records of 100 bytes, and then of 1 KiB, as fast as the client's batches go
    consume   all of the 100-byte records from the first on
    single    one record a request, many under way
    latency   one record a request at a fixed rate, whatever the answers do; timed from when each was due
"""

from __future__ import annotations

import asyncio
import random
import resource
import time
import zlib
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.paths.processes import check
from benchmarks.peers.servers import peak_mib, reset_peaks, total_cpu_seconds
from benchmarks.peers.system import Client

SEED = 20130101
SMALL_BYTES = 100
LARGE_BYTES = 1024
POOL_RECORDS = 20_000                  # different values; then they come again
CHECK_RECORDS = 3000
SINGLE_CHUNK_RECORDS = 100             # between two looks at the clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Each work ends at its count or its time, whichever comes first; the warm-up before it does the same work."""

    warm_seconds: float
    small_records: int
    large_records: int
    single_records: int
    seconds: float
    latency_seconds: float


FULL = Limits(warm_seconds=1.5, small_records=1_500_000, large_records=250_000, single_records=150_000, seconds=6,
              latency_seconds=5)  # fmt: skip
QUICK = Limits(warm_seconds=0.5, small_records=300_000, large_records=50_000, single_records=30_000, seconds=1.5,
               latency_seconds=1.5)  # fmt: skip
TINY = Limits(warm_seconds=0, small_records=500, large_records=100, single_records=100, seconds=1, latency_seconds=0.1)


def pool(size_bytes: int, count: int = POOL_RECORDS) -> list[bytes]:
    """Values that do not compress; the same in every process."""
    source = random.Random(SEED)
    return [source.randbytes(size_bytes) for _ in range(count)]


class Window:
    """From start() to stop(): wall time, CPU seconds of this process and of all servers, the servers' peak memory."""

    def __init__(self, pids: Sequence[int]) -> None:
        self.pids = pids

    def start(self) -> None:
        reset_peaks(self.pids)
        self._servers = total_cpu_seconds(self.pids)
        self._own = _own_cpu()
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    def stop(self, records: int, payload_bytes: int) -> dict[str, Any]:
        return {
            "records": records,
            "bytes": payload_bytes,
            "seconds": self.seconds,
            "client_cpu_seconds": _own_cpu() - self._own,
            "server_cpu_seconds": total_cpu_seconds(self.pids) - self._servers,
            "server_peak_mib": peak_mib(self.pids),
        }


def _own_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Works:
    """The works of one Client, in the order of WORKS: consume reads what produce left."""

    def __init__(self, client: Client, pids: Sequence[int], limits: Limits, latency_rate: float) -> None:
        self.client, self.limits, self.latency_rate = client, limits, latency_rate
        self.window = Window(pids)
        self.produced = self.warmed = 0              # records in the logs "small" and "warm-small"

    async def check(self) -> dict[str, Any]:
        source = random.Random(SEED)
        values = [source.randbytes(source.choice((1, 10, SMALL_BYTES, LARGE_BYTES))) for _ in range(CHECK_RECORDS)]
        await self.client.create("check")
        self.window.start()
        await self.client.produce("check", values)
        await self.client.flush()
        found: list[bytes] = []
        async for some in self.client.consume("check"):
            found += some
            if len(found) >= len(values):
                break
        result = self.window.stop(len(values), sum(map(len, values)))
        check(len(found) == len(values), f"{len(found)} of {len(values)} records came back")
        check(sorted(found) == sorted(values), "what came back is not what was put")
        return {**result, "in_order": found == values, "checked": f"{len(values):,} records came back the same"}

    async def produce_small(self) -> dict[str, Any]:
        result = await self._load("small", SMALL_BYTES, self.limits.small_records, self.client.produce)
        self.produced, self.warmed = result["records"], result["warmed"]
        return result

    async def produce_large(self) -> dict[str, Any]:
        return await self._load("large", LARGE_BYTES, self.limits.large_records, self.client.produce)

    async def single(self) -> dict[str, Any]:
        return await self._load("single", SMALL_BYTES, self.limits.single_records, self.client.single)

    async def _load(
        self, log: str, size_bytes: int, records_max: int,
        put: Callable[[str, Sequence[bytes]], Coroutine[Any, Any, None]],
    ) -> dict[str, Any]:  # fmt: skip
        values = pool(size_bytes)
        step = self.client.chunk_records if put != self.client.single else SINGLE_CHUNK_RECORDS
        warm = f"warm-{log}"
        await self.client.create(warm)
        await self.client.create(log)
        began = time.perf_counter()
        warmed = 0
        while not warmed or time.perf_counter() - began < self.limits.warm_seconds:
            await put(warm, values[:step])
            warmed += step
        await self.client.flush()
        count = 0
        self.window.start()
        while count < records_max and self.window.seconds < self.limits.seconds:
            at = count % len(values)
            some = values[at : at + min(step, records_max - count)]
            await put(log, some)
            count += len(some)
        await self.client.flush()
        result = self.window.stop(count, count * size_bytes)
        return {**result, "warmed": warmed, "checked": "each acknowledged"}

    async def consume(self) -> dict[str, Any]:
        """The count and the sum of all checksums must be those of what was put."""
        values = pool(SMALL_BYTES)
        check(self.produced > 0, "nothing was produced before")
        await self._warm_consumer()
        found: list[list[bytes]] = []
        count = 0
        self.window.start()
        async for some in self.client.consume("small"):
            found.append(some)
            count += len(some)
            if count >= self.produced or self.window.seconds > 2 * self.limits.seconds:
                break
        result = self.window.stop(count, sum(len(value) for some in found for value in some))
        sums = {value: zlib.crc32(value) for value in values}
        came = sum(sums[value] for some in found for value in some)
        if count < self.produced:
            return {**result, "checked": f"{count:,} of {self.produced:,} in the time allowed, all known values"}
        rounds, rest = divmod(self.produced, len(values))
        put = rounds * sum(sums.values()) + sum(sums[value] for value in values[:rest])
        check(count == self.produced, f"{count} records came, {self.produced} were put")
        check(came == put, "the checksums of what came are not those of what was put")
        return {**result, "checked": f"{count:,} records with their checksums"}

    async def _warm_consumer(self) -> None:
        began, came = time.perf_counter(), 0
        async for some in self.client.consume("warm-small"):
            came += len(some)
            if came >= self.warmed or time.perf_counter() - began > self.limits.warm_seconds:
                break

    async def latency(self) -> dict[str, Any]:
        rate = self.latency_rate
        count = max(1, int(rate * self.limits.latency_seconds))
        values = pool(SMALL_BYTES)
        latencies_ms: list[float] = []
        failures: list[BaseException] = []
        finished = asyncio.Event()

        def send(value: bytes, due: float) -> None:
            def acknowledged(error: BaseException | None) -> None:
                latencies_ms.append((time.perf_counter() - due) * 1000)
                if error is not None:
                    failures.append(error)
                if len(latencies_ms) == warm + count:
                    finished.set()

            self.client.send("latency", value, acknowledged)

        await self.client.create("latency")
        warm = max(1, int(rate * self.limits.warm_seconds))
        began = time.perf_counter()
        for i in range(warm + count):
            if i == warm:
                self.window.start()
            due = began + i / rate
            while (wait := due - time.perf_counter()) > 0:
                await self.client.pause(wait)
            send(values[i % len(values)], due)
        while not finished.is_set():
            await self.client.pause(0.01)
            check(self.window.seconds < 60 + 10 * self.limits.latency_seconds, "acknowledgements do not come")
        result = self.window.stop(count, count * SMALL_BYTES)
        check(not failures, f"{len(failures)} puts failed: {failures[:1]}")
        ordered = sorted(latencies_ms[warm:])
        quantiles = {"p50": 0.5, "p99": 0.99, "max": 1.0}
        found = {name: ordered[min(count - 1, int(count * q))] for name, q in quantiles.items()}
        return {**result, "latencies_ms": found, "rate": rate, "checked": f"{count:,} acknowledged, at {rate:,.0f}/s"}


WORKS = {
    "check": Works.check,
    "produce": Works.produce_small,
    "consume": Works.consume,
    "produce-1k": Works.produce_large,
    "single": Works.single,
    "latency": Works.latency,
}
