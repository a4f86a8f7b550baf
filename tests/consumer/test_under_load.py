"""Workers under load: shards that change all the time, a death before the first checkpoint, and memory."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from streamkit import Client, Producer
from streamkit.consumer.ordering import Ordering
from streamkit.producer.producer import AsyncProducer
from tests.consumer.bottle import Bottle, consumer
from tests.end_to_end.processes import broker

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
KEYS = 40


class Load:
    """(key, number) put in turn under each key, and what workers were given of them."""

    def __init__(self) -> None:
        self.put: dict[int, int] = defaultdict(int)
        self.seen: dict[int, list[int]] = defaultdict(list)
        self.enough = False

    async def run(self, bottle: Bottle) -> None:
        async with AsyncProducer("s", client=bottle.client) as producer:
            while not self.enough:
                for key in range(KEYS):
                    await producer.put([key, self.put[key]], key=f"key-{key}")
                    self.put[key] += 1
                await asyncio.sleep(0.1)

    def worker(self, name: str, ordering: Ordering) -> Any:
        made = consumer(name, ordering=ordering)

        @made.handler
        async def handle(value: list[int]) -> None:
            key, number = value
            self.seen[key].append(number)

        return made


@pytest.mark.parametrize("ordering", [Ordering.SHARD, Ordering.by_key(3)], ids=["shard", "lanes"])
def test_fifty_splits_and_merges_under_load_lose_nothing_and_keep_each_keys_order(ordering):
    """Acceptance: consumer 5."""
    drawn = random.Random(5)

    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s", shards=2)
        load = Load()
        for name in ("w1", "w2", "w3"):
            bottle.start(name, load.worker(name, ordering))
        loading = asyncio.get_running_loop().create_task(load.run(bottle))

        for number in range(50):
            described = await bottle.client.describe_stream("s")
            shards = sorted((shard for shard in described.shards if shard.closed_ms is None),
                            key=lambda shard: shard.hash_start)  # fmt: skip
            if len(shards) > 1 and (len(shards) > 6 or drawn.random() < 0.5):
                at = drawn.randrange(len(shards) - 1)
                await bottle.client.merge_shards("s", shards[at].ordinal, shards[at + 1].ordinal)
            else:
                await bottle.client.split_shard("s", drawn.choice(shards).ordinal)
            await asyncio.sleep(drawn.random())
            if number == 25:               # one worker dies in the middle of it
                bottle.kill("w2")
        load.enough = True
        await loading
        await bottle.until_done("app")

        assert sum(load.put.values()) > 5_000
        for key, count in load.put.items():
            first = list(dict.fromkeys(load.seen[key]))
            assert first == list(range(count)), "every record, and for the first time in order"
        leases = (await bottle.describe("app")).leases
        assert len(leases) > 50 and {lease.state for lease in leases} <= {"owned", "complete"}, "no lease is stuck"

    Bottle.play(story)


@pytest.mark.parametrize("dies", ["at once", "with a record in hand"])
def test_nothing_between_the_creation_of_an_application_and_its_first_checkpoint_is_lost_with_latest(dies):
    """Acceptance: consumer 6: latest is made a position once, when the application is."""

    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s", shards=2)
        await bottle.put("s", list(range(10)))
        seen: list[int] = []
        stuck = asyncio.Event()

        def worker(name: str) -> Any:
            made = consumer(name, start="latest")

            @made.handler
            async def handle(value: int) -> None:
                if name == "w1":
                    stuck.set()
                    await asyncio.sleep(10_000)
                seen.append(value)

            return made

        first = worker("w1")
        bottle.start("w1", first)
        await bottle.until(lambda: len(first.shards) == 2)
        if dies == "at once":
            bottle.kill("w1")
        await bottle.put("s", list(range(10, 20)))
        if dies != "at once":
            await stuck.wait()
            bottle.kill("w1")
        await asyncio.sleep(60)
        await bottle.put("s", list(range(20, 30)))
        bottle.start("w2", worker("w2"))
        await bottle.until_done("app")

        assert sorted(seen) == list(range(10, 30))

    Bottle.play(story)


_SLOW = """
import os, sys, threading, time
from streamkit import Consumer

def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

consumer = Consumer("s", application="app", start="trim_horizon", prefetch_bytes_max=32 << 20, url=sys.argv[1])
held = threading.Event()

@consumer.handler
def handle(value: bytes) -> None:
    held.wait()

before = resident_bytes()
consumer.start()
last, quiet = None, 0
deadline_s = time.monotonic() + 90
while quiet < 20 and time.monotonic() < deadline_s:    # nothing more is fetched
    time.sleep(0.1)
    now = len(consumer.shards), consumer._member.budget.used_bytes if consumer._member else 0
    quiet = quiet + 1 if now == last and now[0] == 200 else 0
    last = now
print(len(consumer.shards), resident_bytes() - before, consumer._member.budget.used_bytes, flush=True)
os._exit(0)
"""


def test_a_slow_worker_of_200_shards_grows_by_its_budget(tmp_path: Path) -> None:
    """Acceptance: consumer 11."""
    shards, budget_bytes = 200, 32 << 20
    with broker(tmp_path / "data") as served, Client(served.url) as client:
        client.create_stream("s", shards=shards, durability="os")
        value = random.Random(1).randbytes(16 * 1024)
        with Producer("s", url=served.url, batch_bytes_max=48 * 1024) as producer:  # a shard's least is little
            for number in range(shards * 25):          # 400 KiB a shard: 80 MB in all
                producer.put(value, key=f"key-{number}")
        process = subprocess.Popen(
            [sys.executable, "-c", _SLOW, served.url], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
        try:
            said, _ = process.communicate(timeout=120)
        finally:
            process.kill()
            process.wait()
    held, grown_bytes, used_bytes = map(int, said.split())
    print(f"{grown_bytes >> 10} KiB more for {used_bytes >> 10} KiB of batches in {held} shards")

    assert held == shards
    assert budget_bytes // 2 < used_bytes < budget_bytes + shards * 64 * 1024, "the budget, and each shard's least"
    assert grown_bytes < 1.2 * max(budget_bytes, used_bytes) + (20 << 20), "with modules, leases and stopped threads"

