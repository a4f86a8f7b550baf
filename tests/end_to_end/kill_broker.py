"""SIGKILL a broker again and again under load, then look whether it kept its word.

    python -m tests.end_to_end.kill_broker --times 100

Idempotent producers put numbered records all the while. At the end every record is read back: what was acknowledged
is there, where it was said to be; each key's records are in order; none is there twice.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from streamkit._core.batch import Batch
from streamkit.client.client import AsyncClient
from streamkit.errors import StreamkitError
from streamkit.model.sequence import parse_sequence_number
from streamkit.model.shard import Shard
from streamkit.producer.producer import AsyncProducer
from tests.end_to_end.processes import Broker

STREAM = "kill-broker"
SHARDS = 4
KEYS = 16
WAITING_MAX = 2_000


@dataclass(slots=True)
class Outcome:
    """acknowledged: value → (shard id, sequence), -1 when the broker no longer knew where."""

    kills: int = 0
    put: int = 0
    acknowledged: dict[bytes, tuple[str, int]] = field(default_factory=dict)
    failed: dict[bytes, str] = field(default_factory=dict)
    found: dict[str, list[bytes]] = field(default_factory=dict)
    ready_seconds: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def wrong(self) -> list[str]:
        """Every broken promise, in words."""
        places: dict[bytes, tuple[str, int]] = {}
        wrong = []
        last: dict[tuple[bytes, bytes], int] = {}
        for shard, values in self.found.items():
            for sequence, value in enumerate(values):
                if not value:
                    continue
                if value in places:
                    wrong.append(f"{value!r} is there twice: {places[value]} and {(shard, sequence)}")
                places[value] = (shard, sequence)
                producer, key, number = value.split()
                if last.get((producer, key), -1) > int(number):
                    wrong.append(f"{value!r} lies after number {last[producer, key]} of its key")
                last[producer, key] = int(number)
        for value, (shard, sequence) in self.acknowledged.items():
            if value not in places:
                wrong.append(f"acknowledged {value!r} is lost")
            elif sequence >= 0 and places[value] != (shard, sequence):
                wrong.append(f"acknowledged {value!r} is at {places[value]}, not at {(shard, sequence)}")
        return wrong + [f"{value!r} failed: {error}" for value, error in self.failed.items()]


async def produce(name: str, url: str, outcome: Outcome, stopping: asyncio.Event) -> None:
    """Puts until told to stop; returns when every put has its answer."""
    room = asyncio.Semaphore(WAITING_MAX)
    draw = random.Random(name)

    async def follow(value: bytes, handle: object) -> None:
        try:
            result = await handle  # type: ignore[misc]
        except StreamkitError as error:
            outcome.failed[value] = f"{type(error).__name__}: {error}"
        else:
            number = result.sequence_number
            outcome.acknowledged[value] = (result.shard, parse_sequence_number(number).sequence if number else -1)
        finally:
            room.release()

    following: set[asyncio.Task[None]] = set()
    async with AsyncProducer(STREAM, url=url, linger_ms=5) as producer:
        number = 0
        while not stopping.is_set():
            await room.acquire()
            key = f"k{draw.randrange(KEYS)}"
            value = f"{name} {key} {number}".encode()
            task = asyncio.ensure_future(follow(value, await producer.put(value, key=key)))
            following.add(task)
            task.add_done_callback(following.discard)
            number += 1
            outcome.put += 1
            if number % 50 == 0:
                await asyncio.sleep(0.01)
        await producer.flush()
        while following:
            await asyncio.wait(following)


async def read_shard(client: AsyncClient, shard: Shard) -> list[bytes]:
    """Every record by sequence; b"" where the log keeps a note of its own."""
    values: list[bytes] = []
    while True:
        fetched = await client.fetch(shard, len(values), wait_ms=0)
        for raw in fetched.batches:
            batch = Batch(raw, None, len(values))
            values += [b""] * len(batch) if batch.is_control else batch.values()
        assert len(values) == fetched.next_sequence, "sequences are dense"
        if len(values) >= fetched.high_watermark:
            return values


async def kill_again_and_again(served: Broker, times: int, outcome: Outcome, draw: random.Random) -> None:
    for _ in range(times):
        impatient = draw.random() < 0.2            # while it recovers
        await asyncio.sleep(draw.uniform(0.0, 0.3) if impatient else draw.uniform(0.2, 0.8))
        await asyncio.to_thread(served.kill)
        served.start()
        if not impatient:
            outcome.ready_seconds.append(await asyncio.to_thread(served.wait_ready))
    await asyncio.to_thread(served.wait_ready)
    outcome.kills = served.kills


async def run(times: int, data_dir: Path, *, producers: int = 3, seed: int = 1) -> Outcome:
    """The whole trial. The broker is gone when it returns."""
    began = time.monotonic()
    outcome = Outcome()
    served = Broker(data_dir)
    served.start()
    try:
        await asyncio.to_thread(served.wait_ready)
        async with AsyncClient(served.url) as client:
            await client.create_stream(STREAM, shards=SHARDS)
        stopping = asyncio.Event()
        load = [asyncio.create_task(produce(f"p{n}", served.url, outcome, stopping)) for n in range(producers)]
        try:
            await kill_again_and_again(served, times, outcome, random.Random(seed))
            await asyncio.sleep(0.3)
            stopping.set()
            await asyncio.wait_for(asyncio.gather(*load), 60)
        finally:
            for task in load:
                task.cancel()
            with contextlib.suppress(BaseException):
                await asyncio.gather(*load)
        async with AsyncClient(served.url) as client:
            for shard in (await client.describe_stream(STREAM)).shards:
                outcome.found[shard.id] = await read_shard(client, shard)
    finally:
        served.kill()
    outcome.seconds = time.monotonic() - began
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=100, help="how often to kill it (default 100)")
    parser.add_argument("--producers", type=int, default=3, help="producers at once (default 3)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments of the kills (default 1)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="streamkit-kill-") as folder:
        outcome = asyncio.run(
            run(arguments.times, Path(folder) / "data", producers=arguments.producers, seed=arguments.seed)
        )
    wrong = outcome.wrong()
    waits = sorted(outcome.ready_seconds) or [0.0]
    print(f"killed {outcome.kills} times in {outcome.seconds:.0f} s")
    print(f"put {outcome.put}, acknowledged {len(outcome.acknowledged)}, failed {len(outcome.failed)}")
    print(f"found {sum(sum(map(bool, values)) for values in outcome.found.values())} records")
    print(f"ready again after {waits[len(waits) // 2]:.2f} s (median), {waits[-1]:.2f} s (longest)")
    print("\n".join(wrong[:20]) or "none lost, none out of order for its key, none twice")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
