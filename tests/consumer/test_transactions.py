"""Handlers that put into other streams in one transaction with the position: once, whatever fails."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from streamkit._core.batch import Batch
from streamkit.consumer.failure import RetryPolicy
from streamkit.consumer.handler import Context
from streamkit.errors import InvalidUse
from tests.consumer.bottle import Bottle, consumer

QUICK = RetryPolicy(attempts_max=3, first_ms=10, last_ms=50)


async def values(bottle: Bottle, stream: str = "out") -> list[bytes]:
    found: list[bytes] = []
    for shard in (await bottle.client.stream(stream, refresh=True)).shards:
        at = 0
        while True:
            fetched = await bottle.client.fetch(shard, at, wait_ms=0)
            for raw in fetched.batches:
                batch = Batch(raw, None, at)
                if not batch.is_control:
                    found += [bytes(record.data) for record in batch]
            at = fetched.next_sequence
            if at >= fetched.high_watermark:
                break
    return found


def copier(name: str = "w1", **options: Any) -> Any:
    running = consumer(name, transactional=True, retry=QUICK, codec="json", **options)

    @running.handler
    async def copy(value: int, ctx: Context) -> None:
        ctx.put("out", value, key=f"k{value}")

    return running


def test_outputs_are_stored_once_and_the_position_with_them() -> None:
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.client.create_stream("out", shards=3)
        await bottle.put("s", list(range(40)))
        bottle.start("w1", copier())
        await bottle.until_done("app")
        await asyncio.sleep(3)

        assert sorted(map(int, await values(bottle))) == list(range(40))

    Bottle.play(story)


@pytest.mark.parametrize("seed", range(6))
def test_a_worker_killed_at_any_moment_leaves_each_output_once(seed: int) -> None:
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s", shards=2)
        await bottle.client.create_stream("out", shards=3)
        await bottle.put("s", list(range(60)))
        for number in range(8):
            bottle.start(f"w{number}", copier(f"w{number}", membership_ms=1_000))
            await asyncio.sleep(0.01 + 0.003 * number + 0.001 * seed)
            bottle.kill(f"w{number}")
        bottle.start("last", copier("last"))
        await bottle.until_done("app")
        bottle.kill("last")
        await asyncio.sleep(12)            # what the last one left is carried out by the node

        assert sorted(map(int, await values(bottle))) == list(range(60))

    Bottle.play(story, seed=seed)


def test_a_put_without_transactions_is_told() -> None:
    with pytest.raises(InvalidUse):
        consumer("w", transactional=True, checkpoint="manual")
