"""A producer and a reader on three real nodes, through moves, stops, splits and merges: once, in order, no error."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from streamkit.client.client import AsyncClient
from streamkit.consumer.reader import AsyncReader
from streamkit.model.stream import Durability
from streamkit.producer.producer import AsyncProducer
from tests.broker.cluster_nodes import Nodes, cluster

KEYS = 7


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    async with cluster(tmp_path) as started:
        yield started


async def put_through(nodes: Nodes, trouble: Callable[[AsyncClient], Awaitable[None]]) -> dict[str, list[int]]:
    """Put and read while there is trouble; the values that were read, by key."""
    client = nodes.client()
    await client.create_stream("orders", shards=2)
    read: dict[str, list[int]] = {}
    count = 0
    over = asyncio.Event()

    async def put() -> int:
        number = 0
        async with AsyncProducer("orders", client=client) as producer:
            while not over.is_set():
                for _ in range(20):
                    await producer.put(b"%d" % number, key=f"k{number % KEYS}")
                    number += 1
                await producer.flush()
        return number

    async def follow() -> None:
        async for record in AsyncReader("orders", start="trim_horizon", client=client):
            read.setdefault(record.key, []).append(int(record.data))

    putting = asyncio.ensure_future(put())
    following = asyncio.ensure_future(follow())
    try:
        await trouble(client)
        over.set()
        count = await putting
        async with asyncio.timeout(30):
            while sum(map(len, read.values())) < count and not following.done():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    finally:
        following.cancel()
        putting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
        await client.close()
    assert sum(map(len, read.values())) == count
    return read


def assert_in_order(read: dict[str, list[int]]) -> None:
    for key, values in read.items():
        assert values == list(range(int(key[1:]), KEYS * len(values), KEYS)), key


@pytest.mark.parametrize(
    ("replicas", "durability", "held"),
    [(3, "fsync", (2, True)), (3, "os", (2, False)), (3, "leader", (1, False)), (1, "fsync", (1, True))],
)
async def test_a_result_says_on_how_many_copies_the_record_is_and_whether_it_was_synced(
    tmp_path: Path, replicas: int, durability: Durability, held: tuple[int, bool]
) -> None:
    names = "abc"[:replicas]
    async with cluster(tmp_path, *names, replicas=replicas) as nodes, nodes.client() as client:
        shard = (await client.create_stream("orders", durability=durability)).shards[0]
        async with AsyncProducer("orders", client=client) as producer:
            result = await (await producer.put(b"x", key="k"))
        leader = nodes.copies(shard.uuid)[await nodes.led(shard.uuid)]
        assert (result.replicas, result.synced) == held
        assert result.epoch == leader.epoch > 0


async def test_nodes_that_stop_one_after_the_other_cost_nothing_but_time(nodes: Nodes) -> None:
    async def trouble(client: AsyncClient) -> None:
        for name in ("a", "b", "c"):
            await nodes.stop(name)
            for shard in (await client.stream("orders")).shards:
                await nodes.led(shard.uuid)
            await nodes.start(name)
            for shard in (await client.stream("orders")).shards:
                await nodes.led(shard.uuid)

    assert_in_order(await put_through(nodes, trouble))


async def test_splits_and_merges_keep_the_order_of_every_key(nodes: Nodes) -> None:
    async def trouble(client: AsyncClient) -> None:
        await client.split_shard("orders", 0)
        await client.scale_stream("orders", 5)
        stream = await client.describe_stream("orders")
        low, high, *_ = sorted((s for s in stream.shards if s.closed_ms is None), key=lambda s: s.hash_start)
        await client.merge_shards("orders", low.ordinal, high.ordinal)
        await nodes.stop("a")
        await client.scale_stream("orders", 1)

    read = await put_through(nodes, trouble)
    assert_in_order(read)
