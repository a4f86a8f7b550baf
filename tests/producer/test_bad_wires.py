"""A producer whose every connection is cut, delayed and repeated, while leaders go and shards split and merge."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from streamkit._core.batch import Batch
from streamkit.client.client import AsyncClient
from streamkit.errors import Unavailable
from streamkit.model.shard import Shard
from streamkit.producer.producer import AsyncProducer
from tests.broker.cluster_nodes import Nodes, cluster
from tests.producer.bad_wires import BadWires

KEYS = 13


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    async with cluster(tmp_path) as started:
        yield started


async def fetch(client: AsyncClient, shard: Shard, start: int) -> Any:
    """From whoever leads the shard now."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await client.fetch(shard, start, wait_ms=0)
            except Unavailable:
                described = await client.stream("orders", refresh=True)
                shard = next(each for each in described.shards if each.uuid == shard.uuid)


async def put_through(nodes: Nodes, trouble: Callable[[AsyncClient], Awaitable[None]], seed: int) -> None:
    """Put while there is trouble; then each record is in the log once, in order, and where it belongs."""
    wires = BadWires(random.Random(seed))
    over = asyncio.Event()
    async with nodes.client() as client:
        stream = await client.create_stream("orders", shards=2)

        async def put() -> int:
            number = 0
            everywhere = ",".join(node.addresses.native for node in nodes.nodes.values())
            putting = AsyncClient(f"streamkit://{everywhere}", wires.wired())
            room = {"batch_bytes_max": 2_000, "buffer_bytes_max": 200_000}
            async with putting, AsyncProducer("orders", client=putting, **room) as producer:  # type: ignore[arg-type]
                while not over.is_set() or wires.cuts < 20 or wires.repeats < 10:
                    for _ in range(50):
                        await producer.put(b"%d" % number, key=f"k{number % KEYS}")
                        number += 1
                    await asyncio.sleep(0)
                await producer.flush()
                wires.calm = True
            return number

        task = asyncio.ensure_future(put())
        try:
            async with asyncio.timeout(150):
                await trouble(client)
                over.set()
                count = await task
        finally:
            task.cancel()
            await wires.close()

        stream = await client.describe_stream("orders")
        by_key: dict[str, list[int]] = {}
        for shard in stream.shards:        # in ordinal order: parents before their children
            start = 0
            while (fetched := await fetch(client, shard, start)).next_sequence > start:
                for raw in fetched.batches:
                    batch = Batch(raw, None, start)
                    for record in () if batch.is_control else batch:
                        by_key.setdefault(record.key, []).append(int(record.data))
                        digest = int.from_bytes(hashlib.md5(record.key.encode()).digest(), "big")
                        assert shard.hash_start <= digest < shard.hash_end
                start = fetched.next_sequence
    assert sum(map(len, by_key.values())) == count
    for key, values in by_key.items():
        assert values == list(range(int(key[1:]), count, KEYS))


async def test_each_record_is_stored_once_and_in_order_through_bad_wires_while_leaders_go(nodes: Nodes) -> None:
    """Acceptance: producer 1."""
    async def trouble(client: AsyncClient) -> None:
        for name in ("a", "b", "a"):       # the third is the one that the clients know from the beginning
            await nodes.stop(name)
            for shard in (await client.stream("orders")).shards:
                await nodes.led(shard.uuid)
            await nodes.start(name)

    await put_through(nodes, trouble, 1)


async def test_thirty_splits_and_merges_through_bad_wires_put_nothing_in_a_wrong_place(nodes: Nodes) -> None:
    """Acceptance: producer 2."""
    draw = random.Random(2)

    async def trouble(client: AsyncClient) -> None:
        for _ in range(30):
            shards = [shard for shard in (await client.describe_stream("orders")).shards if shard.closed_ms is None]
            shards.sort(key=lambda shard: shard.hash_start)
            if len(shards) < 2 or (len(shards) < 5 and draw.random() < 0.6):
                await client.split_shard("orders", draw.choice(shards).ordinal)
            else:
                at = draw.randrange(len(shards) - 1)
                await client.merge_shards("orders", shards[at].ordinal, shards[at + 1].ordinal)

    await put_through(nodes, trouble, 2)
