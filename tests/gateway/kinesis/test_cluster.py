"""Three nodes, a gateway on each: what one has done the others know, and a leader that goes away loses nothing."""

import asyncio
import contextlib

import pytest

from streamkit.errors import StreamNotFound
from tests.broker.cluster_nodes import cluster
from tests.gateway.kinesis.desk import HASH_KEYS, Refusal, desk_at, eventually, place
from tests.gateway.kinesis.test_streams import gone, refused, settled

AGAIN = {"ServiceUnavailable", "InternalFailure", "InternalFailureException"}


@contextlib.asynccontextmanager
async def desks(path, **settings):
    async with contextlib.AsyncExitStack() as stack:
        nodes = await stack.enter_async_context(cluster(path))
        yield nodes, {
            name: await stack.enter_async_context(desk_at(node, **settings)) for name, node in nodes.nodes.items()
        }


async def test_no_node_is_behind_another(tmp_path):
    # ResourceNotFound makes a reader believe that a shard is finished: it is only told of what is really gone.
    async with desks(tmp_path) as (_, desk):
        for number in range(8):
            name = f"s{number}"
            a, b, c = (desk["abc"[(number + i) % 3]] for i in range(3))
            await a("CreateStream", StreamName=name, ShardCount=1, Tags={"made": "by a"})
            await a.until_active(name)
            assert (await b("ListTagsForStream", StreamName=name))["Tags"] == [{"Key": "made", "Value": "by a"}]
            assert (await c("ListTagsForStream", StreamName=name))["Tags"] == [{"Key": "made", "Value": "by a"}]
            await b.put(b"x", name=name)
            await c.put(b"y", name=name)
            assert await a.values(name=name) == [b"x", b"y"]
            iterator = await b.iterator("LATEST", name=name)
            half = str(HASH_KEYS // 2)
            await b.reshard("SplitShard", name, ShardToSplit="shardId-000000000000", NewStartingHashKey=half)
            for each in (c, a):
                for child in (1, 2):
                    assert await each.values(shard=child, name=name) == []
            assert await finished(c, iterator)
            await c.put(b"z", name=name, hash_key=0)
            assert await a.values(shard=1, name=name) == [b"z"]
        await b("DeleteStream", StreamName="s0")
        for each in (a, b, c):
            await eventually(lambda each=each: gone(each, "s0"))


async def finished(desk, iterator):
    async def look():
        nonlocal iterator
        part = await desk.get(iterator)
        iterator = part.get("NextShardIterator")
        return part.get("ChildShards")

    return await eventually(look)


async def test_a_leader_that_goes_away_loses_nothing_that_was_acknowledged(tmp_path):
    async with desks(tmp_path) as (nodes, desk):
        await desk["a"].make("s", 2)
        shards = (await desk["a"].client.describe_stream("s")).shards
        leader = await nodes.led(shards[0].uuid)
        left = [each for name, each in desk.items() if name != leader]
        acknowledged, failures, over = [], set(), False

        async def put(through, number):
            while not over:
                value = b"%d-%d" % (number, len(acknowledged))
                try:
                    told = await through.as_caller(cbor=True)("PutRecords", StreamName="s", Records=[
                        {"Data": value, "PartitionKey": "k", "ExplicitHashKey": str(key)} for key in (0, HASH_KEYS - 1)
                    ])  # fmt: skip
                except Refusal as refusal:
                    failures.add(refusal.name)
                    continue
                failures.update(each["ErrorCode"] for each in told["Records"] if "ErrorCode" in each)
                acknowledged.extend((each["ShardId"], value) for each in told["Records"] if "SequenceNumber" in each)
                await asyncio.sleep(0.001)

        async def read(through):
            iterator = ""
            while not over:
                try:
                    iterator = iterator or await through.iterator()
                    iterator = (await through.get(iterator))["NextShardIterator"]
                except Refusal as refusal:
                    failures.add(refusal.name)
                await asyncio.sleep(0.01)

        async def stop():
            nonlocal over
            await enough(acknowledged, 40)
            await nodes.stop(leader)
            await enough(acknowledged, len(acknowledged) + 40)
            over = True

        await asyncio.gather(put(left[0], 1), put(left[1], 2), read(left[0]), read(left[1]), stop())

        assert failures <= AGAIN
        for shard in range(2):
            stored = await left[0].values(shard=shard)
            for shard_id, value in acknowledged:
                assert int(shard_id[-12:]) != shard or value in stored


async def enough(found, count):
    async def look():
        return len(found) >= count

    await eventually(look)


@pytest.mark.parametrize("at_once", [2, 3])
async def test_gateways_of_a_cluster_make_a_stream_once(tmp_path, at_once):
    async with desks(tmp_path) as (_, desk):
        for number in range(5):
            outcomes = await asyncio.gather(*(
                each("CreateStream", StreamName=f"s{number}", ShardCount=1) for each in list(desk.values())[:at_once]
            ), return_exceptions=True)
            assert sum(not isinstance(each, Exception) for each in outcomes) == 1
            assert {each.name for each in outcomes if each} == {"ResourceInUseException"}
            for each in desk.values():
                await each.until_active(f"s{number}")


@pytest.mark.parametrize("heard", [True, False])
async def test_a_node_that_has_not_heard_yet_is_asked_again(tmp_path, monkeypatch, heard):
    async with desks(tmp_path) as (_, desk):
        a, b = desk["a"], desk["b"]
        await a.make("s", Tags={"a": "b"})
        await settled(a)
        describe, times = b.client.stream, 0

        async def lagging(name, refresh=False):
            nonlocal times
            times += 1
            if not heard or times < 4:
                raise StreamNotFound("not yet", stream=name, near=None)
            return await describe(name, refresh)

        monkeypatch.setattr(b.client, "stream", lagging)
        if heard:
            assert (await b("DescribeStream", StreamName="s"))["StreamDescription"]["StreamStatus"] == "ACTIVE"
        else:
            await refused(b("DescribeStream", StreamName="s"), "ResourceNotFoundException")
        tags = (await a("ListTagsForStream", StreamName="s"))["Tags"]
        assert len(tags) == heard                          # what is gone for sure takes its tags along


async def test_a_shard_that_a_node_has_not_heard_of_is_waited_for(tmp_path, monkeypatch):
    async with desks(tmp_path) as (_, desk):
        a, b = desk["a"], desk["b"]
        await a.make("s")
        before = await b.client.describe_stream("s")
        await a.reshard("SplitShard", ShardToSplit="shardId-000000000000", NewStartingHashKey=str(HASH_KEYS // 2))
        iterator = await a.iterator(shard=2)
        describe, times = b.client.stream, 0

        async def lagging(name, refresh=False):
            nonlocal times
            times += 1
            return before if times % 5 else await describe(name, refresh)

        monkeypatch.setattr(b.client, "stream", lagging)
        assert (await b.get(iterator))["Records"] == []
        b.kinesis._directory.forget(place())
        assert await b.iterator(shard=1)
