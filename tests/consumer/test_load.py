"""Leases by load, in virtual time: real workers tell how busy they are, and the coordinator moves what is too much."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from streamkit._core.batch import Record
from streamkit.consumer.handler import Context
from streamkit.consumer.pace import Pace
from streamkit.producer.producer import AsyncProducer
from tests.consumer.bottle import Bottle, consumer

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def test_a_busy_worker_gives_a_lease_to_an_idle_one_once_and_nothing_is_lost():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s", shards=4)
        seen: list[int] = []

        def start(name: str) -> Any:
            made = consumer(name, assignment="load")

            @made.handler
            async def handle(record: Record[Any], ctx: Context) -> None:
                seen.append(record.value)
                await asyncio.sleep(0.9)

            bottle.start(name, made)
            return made

        feeding = asyncio.create_task(_feed(bottle, 1_500))
        first = start("w1")
        await bottle.until(lambda: len(first.shards) == 4)
        await asyncio.sleep(60)                            # how busy each is is known now
        second = start("w2")
        began_s = asyncio.get_running_loop().time()
        await bottle.until(lambda: len(second.shards) == 2, seconds=600)
        assert 230 < asyncio.get_running_loop().time() - began_s < 360, "five minutes after the first had got them"
        before = first.shards, second.shards
        await asyncio.sleep(600)

        assert (first.shards, second.shards) == before
        await feeding
        await bottle.until_done("app")
        assert sorted(seen) == list(range(len(seen))), "nothing lost, nothing twice"

    Bottle.play(story)


async def _feed(bottle: Bottle, seconds: int) -> None:
    # Four keys, one for each shard, a record each in two seconds: every shard keeps its handler busy for 45 %.
    stream = await bottle.client.stream("s")
    async with AsyncProducer("s", client=bottle.client) as producer:
        number = 0
        for _ in range(seconds // 2):
            for shard in stream.shards:
                await producer.put(number, key="k", explicit_hash_key=shard.hash_start)
                number += 1
            await asyncio.sleep(2)


def test_the_load_is_half_forgotten_after_half_a_minute_and_right_from_the_start():
    pace = Pace(0.0)
    now_s = 0.0

    def told(share: float, seconds: int) -> float:
        nonlocal now_s
        for _ in range(seconds // 3):
            now_s += 3.0
            pace.ran(1, 3.0 * share)
            last = pace.report(b"s", now_s, None, 0)
        assert last.observed_ms == int(now_s * 1000)
        return last.load

    assert told(0.8, 3) == pytest.approx(0.8)
    assert told(0.8, 300) == pytest.approx(0.8, abs=1e-6)
    assert told(0.0, 30) == pytest.approx(0.4, abs=0.01)
    assert told(0.0, 30) == pytest.approx(0.2, abs=0.01)


def test_a_call_under_way_counts_as_it_goes_on():
    pace = Pace(0.0)

    assert pace.report(b"s", 3.0, 1.5, 0).load == pytest.approx(0.5)
    assert pace.report(b"s", 6.0, 1.5, 0).load > 0.7
    pace.ran(1, 7.5)
    assert pace.report(b"s", 9.0, None, 0).load == pytest.approx(0.83, abs=0.02)
