"""Subscriptions on a real node: batches come as they are committed, as far as credit goes."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from streamkit._core.batch import Batch
from streamkit.client.client import AsyncClient
from streamkit.consumer.consumer import Consumer
from streamkit.errors import LeaseLost, NodeDraining, StreamkitError, Unavailable
from streamkit.model.shard import Shard
from streamkit.protocol import connection
from tests.broker.conftest import batch_of
from tests.consumer.bottle import Bottle, consumer

KIB = 1024


class Pushed:
    """What a subscription brought."""

    def __init__(self) -> None:
        self.values: list[bytes] = []
        self.sizes: list[int] = []
        self.errors: list[StreamkitError] = []
        self.next_sequence = 0

    def __call__(self, answer: Any) -> None:
        if isinstance(answer, StreamkitError):
            self.errors.append(answer)
            return
        assert answer.next_sequence >= self.next_sequence
        self.next_sequence = answer.next_sequence
        self.sizes.append(sum(map(len, answer.batches)))
        for batch in map(Batch, answer.batches):
            if not batch.is_control:
                self.values += batch.values()

    async def until(self, condition: Any, seconds: float = 10.0) -> None:
        async with asyncio.timeout(seconds):
            while not condition(self):     # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.005)


async def shard_of(client: AsyncClient) -> Shard:
    await client.create_stream("s", shards=1)
    return (await client.stream("s")).shards[0]


async def test_batches_come_as_they_are_committed_until_the_subscription_ends(node, client):
    shard = await shard_of(client)
    await client.put_batch(shard, batch_of(b"0", b"1"))
    pushed = Pushed()
    give = await client.subscribe(shard, 0, pushed, credit_bytes=1 << 20)
    assert give is not None
    for number in range(2, 10):
        await client.put_batch(shard, batch_of(b"%d" % number))
    await pushed.until(lambda it: len(it.values) == 10)
    give(0)
    await asyncio.sleep(0.02)
    await client.put_batch(shard, batch_of(b"10"))
    await asyncio.sleep(0.05)

    assert pushed.values == [b"%d" % number for number in range(10)]
    assert (pushed.errors, pushed.next_sequence) == ([], 11)


async def test_a_stalled_subscriber_costs_its_credit_and_one_batch(node, client):
    """Acceptance: the memory of a push subscriber that takes nothing is bounded."""
    shard = await shard_of(client)
    pushed = Pushed()
    give = await client.subscribe(shard, 0, pushed, credit_bytes=250 * KIB)
    assert give is not None
    for _ in range(40):
        await client.put_batch(shard, batch_of(b"v" * (100 * KIB), codec=0))
    await asyncio.sleep(0.1)
    first = sum(pushed.sizes)
    give(150 * KIB)
    await pushed.until(lambda it: sum(it.sizes) > first)
    await asyncio.sleep(0.05)

    assert 250 * KIB <= first < 360 * KIB
    assert 400 * KIB <= sum(pushed.sizes) < 510 * KIB
    give(64 << 20)
    await pushed.until(lambda it: len(it.values) == 40)


async def test_a_condition_goes_with_the_subscription(node, client):
    shard = await shard_of(client)
    pushed = Pushed()
    await client.subscribe(shard, 0, pushed, credit_bytes=1 << 20, where="data.n >= 7")
    for number in range(10):
        await client.put_batch(shard, batch_of(b'{"n": %d}' % number))
    await pushed.until(lambda it: it.next_sequence == 11)

    assert [msgspec.json.decode(value)["n"] for value in pushed.values] == [7, 8, 9]


async def test_a_lease_that_is_not_held_and_a_condition_that_is_none_end_the_subscription(node, client):
    shard = await shard_of(client)
    await consume(node, client, 1)
    stranger, confused = Pushed(), Pushed()
    await client.subscribe(shard, 0, stranger, credit_bytes=1 << 20, application="app", session=9, lease_epoch=3)
    await client.subscribe(shard, 0, confused, credit_bytes=1 << 20, where="totl > 3")
    await stranger.until(lambda it: it.errors)
    await confused.until(lambda it: it.errors)

    assert isinstance(stranger.errors[0], LeaseLost)
    assert confused.errors[0].code == "invalid_query"
    assert stranger.values == confused.values == []


async def test_a_node_that_stops_tells_its_subscribers(start, connect):
    node = await start()
    client = await connect(node)
    pushed = Pushed()
    shard = await shard_of(client)
    await client.subscribe(shard, 0, pushed, credit_bytes=1 << 20)
    await client.put_batch(shard, batch_of(b"0"))
    await pushed.until(lambda it: it.values)
    await node.stop(1)
    await pushed.until(lambda it: it.errors)

    assert isinstance(pushed.errors[0], NodeDraining | Unavailable)
    assert len(pushed.errors) == 1


async def consume(node, client, count: int) -> tuple[list[int], int]:
    """Values that a worker with fan_out handled, and how many requests to fetch the node saw meanwhile."""
    got: list[int] = []
    worker = Consumer("s", application="app", start="trim_horizon", fan_out=True, url=node.addresses.native)
    worker.handler(lambda value: got.append(value))
    shard = (await client.stream("s")).shards[0]
    before = node.counters.fetches
    worker.start()
    try:
        for number in range(count):
            await client.put_batch(shard, batch_of(b"%d" % number))
            await asyncio.sleep(0.001)
        async with asyncio.timeout(10):
            while len(got) < count:        # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.005)
    finally:
        await asyncio.to_thread(worker.stop)
    return got, node.counters.fetches - before


async def test_a_consumer_is_pushed_its_records_and_asks_once(node, client):
    await client.create_stream("s", shards=1)
    got, fetches = await consume(node, client, 200)

    assert got == list(range(200))
    assert fetches <= 2


async def test_a_broker_that_does_not_push_is_asked(start, connect, monkeypatch):
    """Acceptance: two versions on one wire."""
    monkeypatch.setattr(connection, "FEATURES", ())
    node = await start()
    client = await connect(node)
    await client.create_stream("s", shards=1)
    got, fetches = await consume(node, client, 50)

    assert got == list(range(50))
    assert fetches > 2


def test_a_subscription_goes_on_after_a_restart_and_after_a_worker_is_killed() -> None:
    """Acceptance: resumed after a reconnect; nothing is lost, and order is kept."""
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s", shards=2)
        seen: list[int] = []

        def handler(value: int) -> None:
            seen.append(value)

        def begin(name: str) -> None:
            made = consumer(name, fan_out=True)
            made.handler(handler)
            bottle.start(name, made)

        begin("w1")
        await bottle.put("s", list(range(20)))
        await bottle.until(lambda: len(set(seen)) == 20)
        await bottle.restart_node()
        await bottle.put("s", list(range(20, 40)))
        await bottle.until(lambda: len(set(seen)) == 40)
        bottle.kill("w1")
        begin("w2")
        await bottle.put("s", list(range(40, 60)), key="one")
        await bottle.until(lambda: len(set(seen)) == 60)
        await bottle.until_done("app")
        assert [value for value in seen if value >= 40] == list(range(40, 60))

    Bottle.play(story)
