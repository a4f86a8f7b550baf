"""How long records wait in the producer: at rest, beside the bare round trip; and under load, beside linger_ms."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from benchmarks.paths.clients import VALUE_BYTES, Window
from streamkit import AsyncProducer
from streamkit._core.batch import seal
from streamkit.client.client import AsyncClient

LINGER_MS = 20


async def at_rest(options: dict[str, Any]) -> dict[str, Any]:
    """One record at a time through an idle producer, in turn with a sealed batch that goes to the wire at once."""
    window, bare = Window(options["server_pids"]), Window(options["server_pids"])
    count, value = options["records"], b"v" * VALUE_BYTES
    loop = asyncio.get_running_loop()
    async with AsyncClient(options["url"]) as client, AsyncProducer(options["stream"], client=client) as producer:
        shard = (await client.stream(options["stream"])).shards[0]
        batch = seal([(b"k", value, b"", None, None)])
        await producer.put_and_wait(value, key="k")
        window.start()
        bare.start()
        for _ in range(count):
            began = time.perf_counter()
            await producer.put_and_wait(value, key="k")
            window.latencies_ms.append((time.perf_counter() - began) * 1000)
            answered: asyncio.Future[Any] = loop.create_future()
            began = time.perf_counter()
            client.put_batch(shard, batch, answered.set_result)
            await answered
            bare.latencies_ms.append((time.perf_counter() - began) * 1000)
        result = window.stop(count, count * VALUE_BYTES, f"{count:,} acknowledged one by one")
        return {**result, "bare_ms": bare.stop(count, 0, "")["latencies_ms"]}


async def lingering(options: dict[str, Any]) -> dict[str, Any]:
    """puts at half of the full rate: what they wait from put to the wire is at most linger_ms and a round trip."""
    window = Window(options["server_pids"])
    count, value = options["records"], b"v" * VALUE_BYTES
    async with AsyncProducer(options["stream"], url=options["url"], codec="bytes", linger_ms=LINGER_MS) as producer:
        window.start()
        for number in range(count):
            await producer.put(value, key=str(number % 1000))
            if number % 200 == 0:
                await asyncio.sleep(0.001)
        await producer.flush()
        stats = producer.stats()
        result = window.stop(count, count * VALUE_BYTES, f"{count:,} acknowledged")
    queued, round_trips = stats["queue_seconds"], stats["request_seconds"]
    return {
        **result,
        "latencies_ms": {"p50": queued["p50"] * 1000, "p99": queued["p99"] * 1000, "p999": queued["p99.9"] * 1000},
        "round_trip_ms": round_trips["p99"] * 1000,
    }


ROLES: dict[str, Callable[[dict[str, Any]], Coroutine[Any, Any, dict[str, Any]]]] = {
    "at_rest": at_rest,
    "lingering": lingering,
}
