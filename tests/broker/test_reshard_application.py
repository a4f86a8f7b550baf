"""Applications through reshardings: each key's records are handled in the order they were put, parents before children.

Workers come, go and are killed, the node is killed, and shards are split and merged under producers that are not told.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import defaultdict

import pytest

from streamkit._core.batch import Record
from streamkit.consumer.handler import Context
from streamkit.errors import StreamkitError
from streamkit.producer.producer import AsyncProducer
from tests.consumer.bottle import Bottle, consumer

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


class Order:
    """What was handled of each key: values are numbers that grow; a repeat after a crash goes back, never ahead."""

    def __init__(self):
        self.seen = defaultdict(list)
        self.ahead = []

    def start(self, bottle, name, **options):
        made = consumer(name, **options)

        @made.handler
        async def handle(record: Record, ctx: Context):
            numbers = self.seen[record.key]
            if record.value > max(numbers, default=-1) + 1:
                self.ahead.append((record.key, record.value, max(numbers, default=-1)))
            numbers.append(record.value)

        bottle.start(name, made)
        return made

    def check(self, counts):
        assert self.ahead == []
        assert {key: max(numbers) + 1 for key, numbers in self.seen.items()} == counts


async def reshape(bottle, draw, times, pause=0.3):
    """As an operator would, and again where something else came in between."""
    done = 0
    while done < times:
        await asyncio.sleep(draw.random() * pause)
        try:
            now = [s for s in (await bottle.client.describe_stream("s")).shards if s.closed_ms is None]
            now.sort(key=lambda shard: shard.hash_start)
            kind = draw.choice(["split", "merge", "scale"])
            if kind == "split" and len(now) < 8:
                await bottle.client.split_shard("s", draw.choice(now).ordinal)
            elif kind == "merge" and len(now) > 1:
                at = draw.randrange(len(now) - 1)
                await bottle.client.merge_shards("s", now[at].ordinal, now[at + 1].ordinal)
            else:
                await bottle.client.scale_stream("s", draw.randint(1, 6))
            done += 1
        except StreamkitError:
            continue


async def finished(bottle, order, counts):
    with contextlib.suppress(TimeoutError):                # what is missing then is shown by the check
        async with asyncio.timeout(300):
            while {key: max(numbers, default=-1) + 1 for key, numbers in order.seen.items()} != counts:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    order.check(counts)


def test_an_application_finishes_parents_before_their_children():
    async def story(bottle):
        await bottle.client.create_stream("s", shards=2)
        for number in range(30):
            await bottle.put("s", [number], key="one")
        await bottle.client.split_shard("s", 0)
        await bottle.client.merge_shards("s", 1, 3)
        for number in range(30, 60):
            await bottle.put("s", [number], key="one")
        order = Order()
        order.start(bottle, "w1")
        await finished(bottle, order, {"one": 60})
        await bottle.until_done("app")
        states = {lease.ordinal: lease.state for lease in (await bottle.describe("app")).leases}
        assert states == {0: "complete", 1: "complete", 2: "owned", 3: "complete", 4: "owned"}

    Bottle.play(story)


def test_children_are_handed_out_at_once_when_their_parent_is_done():
    async def story(bottle):
        await bottle.client.create_stream("s")
        order = Order()
        order.start(bottle, "w1")
        await bottle.put("s", [0], key="one")
        await finished(bottle, order, {"one": 1})
        await bottle.client.scale_stream("s", 4)
        await bottle.put("s", [1], key="one")
        began_s = asyncio.get_running_loop().time()
        await finished(bottle, order, {"one": 2})
        assert asyncio.get_running_loop().time() - began_s < 3

    Bottle.play(story)


def test_what_begins_at_latest_does_not_wait_for_closed_shards():
    async def story(bottle):
        await bottle.client.create_stream("s")
        await bottle.put("s", [0], key="old")
        await bottle.client.scale_stream("s", 3)
        order = Order()
        made = order.start(bottle, "w1", start="latest")
        await bottle.until(lambda: len(made.shards) == 3)
        await bottle.put("s", [0, 1, 2], key="new")
        await finished(bottle, order, {"new": 3})

    Bottle.play(story)


@pytest.mark.parametrize("seed", range(6))
def test_order_of_keys_survives_reshardings_with_everything_being_killed(seed):
    async def story(bottle):
        draw = random.Random(seed)
        await bottle.client.create_stream("s", shards=2)
        order, counts = Order(), {}
        for number in range(3):
            order.start(bottle, f"w{number}")

        async def write(name):
            async with AsyncProducer("s", client=bottle.client, delivery_timeout_ms=120_000) as producer:
                for number in range(120):
                    for key in range(3):
                        await producer.put(number, key=f"{name}-{key}")
                    await asyncio.sleep(draw.random() * 0.02)
                await producer.flush()
                counts.update({f"{name}-{key}": 120 for key in range(3)})

        async def kill():
            for number in range(4):
                await asyncio.sleep(draw.random())
                if draw.random() < 0.5:
                    await bottle.restart_node()
                else:
                    bottle.kill(f"w{number % 3}")
                    order.start(bottle, f"w{number % 3}")

        await asyncio.gather(write("a"), write("b"), reshape(bottle, draw, 10), kill())
        await finished(bottle, order, counts)
        stream = await bottle.client.describe_stream("s")
        assert len(stream.shards) > 10
        await bottle.until_done("app")

    Bottle.play(story, seed=seed)
