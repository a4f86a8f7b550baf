"""What is measured with each library, and how an answer is checked.

    put             records of 100 bytes, one call each, a thousand keys, until all are acknowledged
    handle          JSON of about 200 bytes, decoded into a typed struct and given to a handler one by one
    handle-batches  the same with a handler that takes whole batches, where a library has that
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from benchmarks.libraries.library import KEYS, Library, Order
from benchmarks.paths.processes import check
from benchmarks.peers.works import SEED, SMALL_BYTES, Window

CHUNK_RECORDS = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Each work ends at its count or its time, whichever comes first."""

    records: int
    seconds: float
    warm_seconds: float


FULL = Limits(records=2_000_000, seconds=6, warm_seconds=1)
QUICK = Limits(records=400_000, seconds=2, warm_seconds=0.5)
TINY = Limits(records=2_000, seconds=1, warm_seconds=0)


def plain_values(count: int) -> list[bytes]:
    """Printable, for libraries that take text alone."""
    source = random.Random(SEED)
    return [source.randbytes(SMALL_BYTES // 2).hex().encode() for _ in range(count)]


def order_values(start: int, count: int) -> list[bytes]:
    encode = msgspec.json.Encoder().encode
    return [
        encode(Order(number, KEYS[number % len(KEYS)], number / 7, ["tea", "coffee", "sugar"], "leave it " * 10))
        for number in range(start, start + count)
    ]


class Works:
    def __init__(self, library: Library, pids: Sequence[int], limits: Limits) -> None:
        self.library, self.limits = library, limits
        self.window = Window(pids)
        self._orders = 0

    async def put(self) -> dict[str, Any]:
        values = plain_values(4 * CHUNK_RECORDS)
        await self.library.create("warm")
        await self.library.create("plain")
        await self._fill("warm", values, self.limits.warm_seconds)
        self.window.start()
        count = await self._fill("plain", values, self.limits.seconds)
        return {**self.window.stop(count, count * SMALL_BYTES), "checked": "each acknowledged"}

    async def _fill(self, log: str, values: list[bytes], seconds: float) -> int:
        count, until = 0, time.perf_counter() + seconds
        while count < self.limits.records and (not count or time.perf_counter() < until):
            at = count % len(values)
            some = values[at : at + min(CHUNK_RECORDS, self.limits.records - count)]
            await self.library.put(log, some)
            count += len(some)
        await self.library.flush()
        return count

    async def handle(self) -> dict[str, Any]:
        return await self._handle(batches=False)

    async def handle_batches(self) -> dict[str, Any]:
        check(self.library.batches, "the library hands out records one by one")
        return await self._handle(batches=True)

    async def _handle(self, *, batches: bool) -> dict[str, Any]:
        """From the first record that comes; joining a group before it is not timed."""
        await self._fill_orders()
        wanted, loop, done = self._orders, asyncio.get_running_loop(), asyncio.Event()
        count, total = 0, 0
        window = self.window

        def take(order: Order) -> None:
            nonlocal count, total
            if not count:
                window.start()
            count += 1
            total += order.id
            if count == wanted:
                loop.call_soon_threadsafe(done.set)

        running = asyncio.create_task(self.library.handle("orders", take, batches=batches))
        waiting = asyncio.create_task(done.wait())
        await asyncio.wait([running, waiting], timeout=60 + 10 * self.limits.seconds, return_when="FIRST_COMPLETED")
        result = window.stop(count, count * len(order_values(0, 1)[0])) if count else {}
        waiting.cancel()
        if running.done():
            await running
        running.cancel()
        await asyncio.wait([running])
        check(count == wanted, f"{count:,} records of {wanted:,} came")
        check(total == wanted * (wanted - 1) // 2, "what came is not what was put")
        return {**result, "checked": f"{count:,} records, the sum of their ids"}

    async def _fill_orders(self) -> None:
        """As many as can be put in the time of a work, for the libraries that put slowly."""
        if self._orders:
            return
        await self.library.create("orders")
        until = time.perf_counter() + self.limits.seconds
        while self._orders < self.limits.records and (not self._orders or time.perf_counter() < until):
            step = min(CHUNK_RECORDS, self.limits.records - self._orders)
            await self.library.put("orders", order_values(self._orders, step))
            self._orders += step
        await self.library.flush()


WORKS = {"put": Works.put, "handle": Works.handle, "handle-batches": Works.handle_batches}
