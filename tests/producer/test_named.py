"""Named producers on real nodes: one instance at a time, elder ones shut out, across restarts, splits and forks."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from streamkit.client.client import AsyncClient
from streamkit.consumer.reader import AsyncReader
from streamkit.errors import InvalidConfig, ProducerFenced, ShardNotFound
from streamkit.model.stream import StreamConfig
from streamkit.node import Node
from streamkit.producer.naming import Name
from streamkit.producer.producer import AsyncProducer
from streamkit.protocol.messages import ProducerGiven
from tests.broker.cluster_nodes import cluster
from tests.producer.forking import CHILDREN, PUTS
from tests.producer.test_producer_on_node import node, read_all, started

__all__ = ["node"]


async def test_two_processes_with_one_name(node: Node) -> None:
    """Acceptance: producer 6. The elder gets ProducerFenced, and nothing of it lands afterwards."""
    async with AsyncClient(node.addresses.native) as client:
        await client.create_stream("orders", StreamConfig(shards=3))
        elder = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.producer.elder", node.addresses.native, "importer",
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert elder.stdout is not None
        assert (await elder.stdout.readline()).strip() == b"under way"
        async with AsyncProducer("orders", client=client, name="importer") as newer:
            await asyncio.gather(*[await newer.put(b"newer", key=f"k{i}") for i in range(20)])
        at_once = {data for _, data in (await read_all(client, "orders")).values()}
        said = (await elder.communicate())[0].split(b"\n")

        assert said[0].startswith(b"fenced ") and int(said[0].split()[1]) > 0
        assert said[1] == b"still fenced"
        stored = await read_all(client, "orders")
        assert {data for _, data in stored.values()} == at_once
        assert sum(data == b"newer" for _, data in stored.values()) == 20


async def test_a_name_is_remembered_by_a_node_that_restarts(tmp_path: Path) -> None:
    node = await started(tmp_path)
    async with AsyncClient(node.addresses.native) as client:
        await client.create_stream("orders", StreamConfig(shards=2))
        elder_name = Name("importer", b"elder")
        elder = await client.new_producer(*elder_name)
        async with AsyncProducer("orders", client=client, name="importer") as newer:
            await newer.put_and_wait(b"1", key="k")
    await node.stop(0)
    node = await started(tmp_path)
    async with AsyncClient(node.addresses.native) as client:
        stream = await client.describe_stream("orders")
        for shard in stream.shards:
            with pytest.raises(ProducerFenced):
                await client.open_producer(shard, *elder_name, elder)
        with pytest.raises(ProducerFenced):
            await client.new_producer(*elder_name, renew=True)
    await node.stop(1)


async def test_an_elder_is_shut_out_of_shards_that_came_of_a_split_later(node: Node) -> None:
    async with AsyncClient(node.addresses.native) as client:
        await client.create_stream("orders", StreamConfig(shards=1))
        elder = AsyncProducer("orders", client=client, name="importer")
        await elder.put_and_wait(b"elder", key="k")
        async with AsyncProducer("orders", client=client, name="importer") as newer:
            await newer.put_and_wait(b"newer", key="k")
            await client.split_shard("orders", 0)
            with pytest.raises(ProducerFenced):
                await elder.put_and_wait(b"late", key="k")
            for i in range(20):
                await newer.put_and_wait(b"after", key=f"k{i}")
        await elder.close()
        values = [data for _, data in (await read_all(client, "orders")).values()]
        assert sorted(values) == [b"after"] * 20 + [b"elder", b"newer"]


async def test_names_that_are_apart_do_not_meet(node: Node) -> None:
    async with AsyncClient(node.addresses.native) as client:
        await client.create_stream("orders")
        async with (
            AsyncProducer("orders", client=client, name="a") as first,
            AsyncProducer("orders", client=client, name="b") as second,
        ):
            for i in range(5):
                await first.put_and_wait(b"%d" % i, key="k")
                await second.put_and_wait(b"%d" % i, key="k")
        assert len(await read_all(client, "orders")) == 10


async def test_opening_twice_is_opening_once(node: Node) -> None:
    async with AsyncClient(node.addresses.native) as client:
        shard = (await client.create_stream("orders")).shards[0]
        name = Name("importer", os.urandom(16))
        given = await client.new_producer(*name)
        opened = [await client.open_producer(shard, *name, given) for _ in range(3)]
        assert [each.next for each in opened] == [1, 1, 1]
        again = await client.new_producer(*name, renew=True)
        assert (again.producer_id, again.producer_epoch) == (given.producer_id, given.producer_epoch + 1)
        with pytest.raises(ShardNotFound):
            await client.open_producer(replace(shard, uuid=bytes(16)), *name, given)
        with pytest.raises(ProducerFenced):
            await client.open_producer(shard, "importer", b"nobody", ProducerGiven(given.producer_id, 9))


def test_a_name_and_what_cannot_go_with_it() -> None:
    for settings in ({"name": ""}, {"name": "x" * 257}, {"name": "a\nb"}, {"name": "a", "idempotent": False}):
        with pytest.raises(InvalidConfig):
            AsyncProducer("orders", url="localhost:1", **settings)


async def test_children_of_a_fork_put_beside_a_parent_with_a_full_buffer(node: Node) -> None:
    """Acceptance: producer 9.

    No record twice, none lost, no deadlock; the parent's connection is sound afterwards.
    """
    rounds = int(os.environ.get("STREAMKIT_FORK_ROUNDS", "4"))       # 1000 for all of it
    async with AsyncClient(node.addresses.native) as client:
        await client.create_stream("orders", StreamConfig(shards=2))
        forking = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.producer.forking", node.addresses.native, str(rounds),
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(60 + rounds):
            said, _ = await forking.communicate()
        assert forking.returncode == 0
        values = [data for _, data in (await read_all(client, "orders")).values()]
    children = [b"child %d %d %d" % (r, n, i) for r in range(rounds) for n in range(CHILDREN) for i in range(PUTS)]
    assert sorted(values) == sorted([*children, *(b"parent %d" % i for i in range(int(said)))])


async def test_an_elder_stays_out_when_other_nodes_lead(tmp_path: Path) -> None:
    async with cluster(tmp_path) as nodes:
        client = nodes.client()
        shard = (await client.create_stream("orders", shards=1)).shards[0]
        elder = AsyncProducer("orders", client=client, name="importer")
        await elder.put_and_wait(b"elder", key="k")
        newer = AsyncProducer("orders", client=client, name="importer")
        await newer.put_and_wait(b"newer", key="k")
        await nodes.stop(nodes.leader(shard.uuid))
        await newer.put_and_wait(b"newer again", key="k")
        with pytest.raises(ProducerFenced):
            await elder.put_and_wait(b"late", key="k")
        await newer.close()
        await elder.close()
        reader = AsyncReader("orders", start="trim_horizon", until="latest", client=client)
        found = [bytes(record.data) async for record in reader]
        await client.close()
    assert found == [b"elder", b"newer", b"newer again"]
