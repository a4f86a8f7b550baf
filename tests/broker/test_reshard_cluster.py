"""Resharding in a cluster: each leader closes what it leads, the last makes the transaction, whoever dies meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict

import pytest

from streamkit._core.batch import Batch
from streamkit.errors import StreamkitError
from streamkit.metadata import reshard
from streamkit.metadata.reshard import open_shards
from streamkit.model.limits import HASH_KEYS
from streamkit.producer.producer import AsyncProducer
from tests.broker.cluster_nodes import cluster, eventually
from tests.broker.test_reshard import hash_key


async def values_by_key(nodes, name="orders"):
    """Every key's values, shards read in the order of their ordinals, which is parents first."""
    found = defaultdict(list)
    async with nodes.client() as client:
        stream = await client.describe_stream(name)
        for shard in stream.shards:
            await nodes.led(shard.uuid)
            shard = next(s for s in (await client.describe_stream(name)).shards if s.uuid == shard.uuid)
            at = 0
            while (fetched := await client.fetch(shard, at, wait_ms=0)).next_sequence > at:
                for stored in fetched.batches:
                    batch = Batch(stored, None, at)
                    if not batch.is_control:
                        for record in batch:
                            assert shard.hash_start <= hash_key(record.key.encode()) < shard.hash_end
                            found[record.key].append(int(bytes(record.data)))
                at = fetched.next_sequence
    return stream, dict(found)


async def finally_open(nodes, count, name="orders"):
    """The stream once no plan is left and `count` shards are open and led."""

    async def done():
        return not await nodes.store.list("reshards/")

    await eventually(done)
    async with nodes.client() as client:
        stream = await client.describe_stream(name)
        assert len(open_shards(stream)) == count
        for shard in stream.shards:
            await nodes.led(shard.uuid)
        return stream


async def test_shards_of_different_leaders_are_scaled_as_one(tmp_path):
    async with cluster(tmp_path) as nodes, nodes.client() as client:
        before = await client.create_stream("orders", shards=6)
        leaders = {await nodes.led(shard.uuid) for shard in before.shards}
        assert len(leaders) > 1

        after = await client.scale_stream("orders", 4)

        now_open = open_shards(after)
        assert (now_open[0].hash_start, now_open[-1].hash_end) == (0, HASH_KEYS)
        assert [s.hash_start for s in now_open[1:]] == [s.hash_end for s in now_open[:-1]]
        assert after.map_version == before.map_version + 1
        for shard in (await finally_open(nodes, 4)).shards:
            assert len(nodes.copies(shard.uuid)) == 3
            await nodes.alike(shard.uuid)
        for node in nodes.nodes.values():              # every node has the same map
            known = node._catalog.streams["orders"]
            assert [(s.uuid, s.end) for s in known.shards] == [(s.uuid, s.end) for s in after.shards]


async def test_idempotent_producers_notice_nothing_of_reshardings_and_a_fail_over(tmp_path):
    async with cluster(tmp_path) as nodes, nodes.client("a") as client, nodes.client("c") as other:
        await client.create_stream("orders", shards=2)
        count, keys = 300, [f"k{n}" for n in range(6)]

        async def write():
            async with AsyncProducer("orders", client=other, delivery_timeout_ms=60_000) as producer:
                for number in range(count):
                    for key in keys:
                        await producer.put(b"%d" % number, key=key)
                    await asyncio.sleep(0.005)
                await producer.flush()

        async def reshape():
            for wanted in (5, 3, 1, 6):
                await asyncio.sleep(0.2)
                await client.scale_stream("orders", wanted)
            await nodes.stop("b")
            for wanted in (4, 2):
                await asyncio.sleep(0.2)
                await client.scale_stream("orders", wanted)

        await asyncio.gather(write(), reshape())

        _, found = await values_by_key(nodes)
        assert found == {key: list(range(count)) for key in keys}


@pytest.mark.parametrize("after_ms", [0, 3, 10, 30])
async def test_a_leader_that_goes_in_the_middle_leaves_the_rest_to_the_next(tmp_path, after_ms):
    async with cluster(tmp_path) as nodes, nodes.client("a") as client:
        stream = await client.create_stream("orders", shards=6)
        leaders = {await nodes.led(shard.uuid) for shard in stream.shards}
        victim = min(leaders - {"a"})
        asked = asyncio.ensure_future(client.scale_stream("orders", 4))
        await asyncio.sleep(after_ms / 1000)
        await nodes.stop(victim)

        assert len(open_shards(await asked)) == 4
        after = await finally_open(nodes, 4)

        assert after.map_version == 2
        await nodes.start(victim)
        for shard in after.shards:
            await nodes.alike(shard.uuid)


async def test_an_operation_is_followed_at_another_node_when_the_one_that_was_asked_goes(tmp_path):
    async with cluster(tmp_path) as nodes, nodes.client("a") as client:
        stream = await client.create_stream("orders", shards=3)
        for shard in stream.shards:
            await nodes.led(shard.uuid)
        operation = client.scale_stream("orders", 5)
        await operation.accepted()
        await nodes.stop("a")

        after = await operation.wait(60)

        assert len(open_shards(after)) == 5 and operation.status == "done"
        assert operation.id.startswith("orders/")


async def test_a_plan_whose_maker_died_at_once_is_carried_out_by_the_leaders(tmp_path):
    async with cluster(tmp_path) as nodes, nodes.client("a") as client:
        await client.create_stream("orders", shards=3)
        plan = await nodes.nodes["b"].reshards._records.begin("orders", lambda stream: reshard.scale(stream, 5))
        assert plan is not None
        await nodes.stop("b")

        await finally_open(nodes, 5)


async def test_the_plan_of_a_stream_that_is_gone_goes_with_the_copies_made_for_it(tmp_path):
    async with cluster(tmp_path) as nodes, nodes.client("a") as client:
        await client.create_stream("orders", shards=2)
        asked = asyncio.ensure_future(client.scale_stream("orders", 5))
        await asyncio.sleep(0.005)
        with contextlib.suppress(StreamkitError):
            await client.delete_stream("orders")
        with contextlib.suppress(StreamkitError):
            await asked

        async def nothing_left():
            plans = await nodes.store.list("reshards/")
            streams = [e for e in await nodes.store.list("streams/") if e.key == "streams/orders"]
            return not plans and not streams

        await eventually(nothing_left)
