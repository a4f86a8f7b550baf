"""Settings of a stream change while it is used: on every node, at once or soon, over fail-overs and restarts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from streamkit.client import Client
from streamkit.client.client import AsyncClient
from streamkit.errors import ConnectionFailed, InvalidRequest, NotLeader, RecordTooLarge, StreamBusy, StreamNotFound
from streamkit.model.shard import Shard
from streamkit.model.stream import StreamConfig, StreamDescription, StreamStatus
from streamkit.protocol import messages as m
from tests.broker.cluster_nodes import Nodes, cluster, eventually
from tests.broker.conftest import batch_of
from tests.broker.test_retention import HOUR_MS, fill, trimmed

SMALL, LARGE = b"s" * 500, b"l" * 5_000


async def test_what_is_not_named_stays(client: AsyncClient) -> None:
    made = await client.create_stream("orders", shards=3, retention_bytes=1 << 30, codec="json")

    hours = await client.alter_stream("orders", retention_hours=48)
    assert hours.config == StreamConfig(shards=3, retention_hours=48, retention_bytes=1 << 30, codec="json")
    unbounded = await client.alter_stream("orders", retention_bytes=None)
    assert unbounded.config == StreamConfig(shards=3, retention_hours=48, codec="json")
    large = await client.alter_stream("orders", retention_bytes=5, record_bytes_max=2 << 20)
    assert large.config == StreamConfig(
        shards=3, retention_hours=48, retention_bytes=5, record_bytes_max=2 << 20, codec="json"
    )
    assert (large.map_version, large.shards) == (made.map_version, made.shards)
    assert await client.stream("orders") == large == await client.describe_stream("orders")


async def test_the_largest_record_changes_for_the_next_put(client: AsyncClient) -> None:
    shard = (await client.create_stream("orders", record_bytes_max=1_000)).shards[0]
    with pytest.raises(RecordTooLarge):
        await client.put_batch(shard, batch_of(LARGE, codec=0))

    await client.alter_stream("orders", record_bytes_max=10_000)
    await client.put_batch(shard, batch_of(LARGE, codec=0))

    await client.alter_stream("orders", record_bytes_max=1_000)
    with pytest.raises(RecordTooLarge):
        await client.put_batch(shard, batch_of(LARGE, codec=0))
    await client.put_batch(shard, batch_of(SMALL, codec=0))


async def test_a_shorter_retention_removes_what_is_too_old_now(node: Any, client: AsyncClient) -> None:
    shard = await fill(client)
    await client.alter_stream("orders", retention_hours=72)
    now_ms = node.runtime.clock.now_ms() + 25 * HOUR_MS
    assert await trimmed(node, shard, now_ms) == 0

    await client.alter_stream("orders", retention_hours=24)
    assert await trimmed(node, shard, now_ms) == 1


async def test_settings_survive_a_restart(start: Any, connect: Any) -> None:
    node = await start()
    client = await connect(node)
    await client.create_stream("orders", record_bytes_max=1_000)
    await client.alter_stream("orders", retention_hours=30, retention_bytes=7, record_bytes_max=10_000)
    await node.stop(1)

    again = await connect(await start())
    found = await again.describe_stream("orders")
    assert found.config == StreamConfig(retention_hours=30, retention_bytes=7, record_bytes_max=10_000)
    await again.put_batch(found.shards[0], batch_of(LARGE, codec=0))


async def test_children_of_a_split_have_them_and_neither_change_undoes_the_other(client: AsyncClient) -> None:
    await client.create_stream("orders", shards=2, record_bytes_max=1_000)

    async def alter(hours: int) -> None:
        while True:
            try:
                await client.alter_stream("orders", retention_hours=hours, record_bytes_max=10_000)
                return
            except StreamBusy:
                await asyncio.sleep(0)

    async def scale() -> None:
        while True:
            try:
                await client.scale_stream("orders", 5)
                return
            except StreamBusy:
                await asyncio.sleep(0)

    await asyncio.gather(scale(), *(alter(hours) for hours in range(24, 54)))

    found = await client.describe_stream("orders")
    assert (found.config.shards, found.config.record_bytes_max) == (5, 10_000)
    for shard in found.shards:
        if shard.closed_ms is None:
            await client.put_batch(shard, batch_of(SMALL, codec=0, key=key_of(found, shard)))


def key_of(stream: StreamDescription, shard: Shard) -> bytes:
    """A key that goes to that shard."""
    import hashlib

    return next(
        key for key in (b"%d" % i for i in range(10_000))
        if shard.hash_start <= int.from_bytes(hashlib.md5(key).digest(), "big") < shard.hash_end
    )


@pytest.mark.parametrize("options", [
    {"retention_hours": 1}, {"retention_hours": 10_000}, {"retention_hours": 0}, {"retention_bytes": 0},
    {"retention_bytes": -1}, {"record_bytes_max": 0}, {"record_bytes_max": 11 << 20},
])  # fmt: skip
async def test_impossible_settings_change_nothing(client: AsyncClient, options: dict[str, Any]) -> None:
    made = await client.create_stream("orders")
    with pytest.raises(InvalidRequest):
        await client.alter_stream("orders", **options)
    if options != {"retention_bytes": 0}:              # on the wire: as it was
        with pytest.raises(InvalidRequest):
            await client.call(m.AlterStream("orders", **options))
    assert await client.describe_stream("orders") == made


async def test_streams_that_are_not_there_or_not_the_users_are_not_altered(node: Any, client: AsyncClient) -> None:
    await client.create_stream("orders")
    with pytest.raises(StreamNotFound) as raised:
        await client.alter_stream("order", retention_hours=48)
    assert raised.value.facts["near"] == "orders"
    with pytest.raises(InvalidRequest):
        await client.alter_stream("__applications", retention_hours=48)
    await node._catalog.set_status("orders", StreamStatus.DELETING)
    with pytest.raises(StreamNotFound):
        await client.alter_stream("orders", retention_hours=48)


async def test_the_sync_client_has_it_too(node: Any) -> None:
    def work() -> None:
        with Client(node.addresses.native) as client:
            client.create_stream("orders", retention_bytes=9)
            assert client.alter_stream("orders", retention_hours=48).config.retention_bytes == 9
            assert client.alter_stream("orders", retention_bytes=None).config.retention_bytes is None

    await asyncio.get_running_loop().run_in_executor(None, work)


async def put(client: AsyncClient, shard: Shard, value: bytes) -> None:
    """Until a leader takes it."""
    while True:
        try:
            await client.put_batch(shard, batch_of(value, codec=0))
            return
        except (NotLeader, ConnectionFailed):
            await client.find_leader(shard, "orders")
            await asyncio.sleep(0.01)


def agree(nodes: Nodes, config: StreamConfig) -> bool:
    return all(node._catalog.streams["orders"].config == config for node in nodes.nodes.values())


async def test_any_node_is_asked_every_node_knows_and_the_next_leader_too(tmp_path: Path) -> None:
    async with cluster(tmp_path) as nodes, nodes.client() as client:
        shard = (await client.create_stream("orders", record_bytes_max=1_000)).shards[0]
        leader = await nodes.led(shard.uuid)
        asked = next(name for name in nodes.nodes if name != leader)
        with pytest.raises(RecordTooLarge):
            await put(client, shard, LARGE)

        async with nodes.client(asked) as other:
            altered = await other.alter_stream("orders", retention_hours=48, record_bytes_max=10_000)
        await eventually(lambda: agree(nodes, altered.config))
        await put(client, shard, LARGE)

        await nodes.stop(leader)
        await nodes.led(shard.uuid)
        await put(client, shard, LARGE)
        async with nodes.client(nodes.leader(shard.uuid)) as other:
            await other.alter_stream("orders", record_bytes_max=1_000)
            with pytest.raises(RecordTooLarge):
                await put(other, shard, LARGE)
        await nodes.start(leader)
        await eventually(lambda: agree(nodes, StreamConfig(retention_hours=48, record_bytes_max=1_000)))


async def test_changes_through_several_nodes_at_once_are_all_made(tmp_path: Path) -> None:
    async with cluster(tmp_path) as nodes, nodes.client("a") as first, nodes.client("b") as second:
        await first.create_stream("orders", shards=2)
        for hours in range(24, 34):
            await asyncio.gather(
                first.alter_stream("orders", retention_hours=hours),
                second.alter_stream("orders", retention_bytes=hours),
                first.alter_stream("orders", record_bytes_max=hours),
            )
            # What b knows of it may be older than this.
            found = await second.alter_stream("orders")
            assert found.config == StreamConfig(
                shards=2, retention_hours=hours, retention_bytes=hours, record_bytes_max=hours
            )
