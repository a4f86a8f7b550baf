"""The client against a whole node on loopback: what the stand-in cannot show."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from streamkit._core.batch import Batch, seal
from streamkit.client.client import AsyncClient
from streamkit.client.config import ClientConfig
from streamkit.config import compose
from streamkit.errors import (
    ConnectionFailed,
    CorruptBatch,
    InvalidRequest,
    ShardNotFound,
    StreamExists,
    StreamNotFound,
    WrongShard,
)
from streamkit.model.position import LATEST, TRIM_HORIZON
from streamkit.model.shard import Shard
from streamkit.model.stream import Durability
from streamkit.node import Node
from streamkit.runtime.real import new_event_loop, real_runtime


@contextlib.asynccontextmanager
async def a_node(directory: Path, port: int = 0) -> AsyncIterator[Node]:
    flags = {"listen.native.port": port, "listen.health.enabled": False, "listen.http.enabled": False}
    node = Node(compose(flags=flags).config, real_runtime(), data_dir=str(directory))
    await node.start()
    try:
        yield node
    finally:
        await node.stop(1)


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[AsyncClient]:
    async with a_node(tmp_path / "data") as node, AsyncClient(node.addresses.native) as client:
        yield client


def one_record(value: bytes, key: bytes = b"k") -> bytes:
    return seal([(key, value, b"", None, None)])


async def test_what_was_acknowledged_is_read_back_in_order(client: AsyncClient) -> None:
    shard = (await client.create_stream("orders", durability="os")).shards[0]
    receipts = await asyncio.gather(*(client.put_batch(shard, one_record(b"%d" % i)) for i in range(500)))
    sequences = [receipt.base_sequence for receipt in receipts]
    assert sequences == list(range(sequences[0], sequences[0] + 500)), "each shard's batches keep their order"
    values: list[bytes] = []
    start = (await client.resolve_position(shard, TRIM_HORIZON)).sequence
    while len(values) < 500:
        fetched = await client.fetch(shard, start, bytes_max=16 * 1024)
        values += [value for raw in fetched.batches for batch in [Batch(raw)] if not batch.is_control
                   for value in batch.values()]  # fmt: skip
        start = fetched.next_sequence
    assert values == [b"%d" % i for i in range(500)]


async def test_a_large_record_makes_the_round_trip(client: AsyncClient) -> None:
    shard = (await client.create_stream("s", durability="os", record_bytes_max=8 << 20)).shards[0]
    value = bytes(range(256)) * 30_000
    receipt = await client.put_batch(shard, seal([(b"k", value, b"", None, None)], codec=0))
    fetched = await client.fetch(shard, receipt.base_sequence, bytes_max=1_000)
    assert [Batch(raw).values() for raw in fetched.batches] == [[value]]


async def test_a_long_poll_waits_for_the_next_put(client: AsyncClient) -> None:
    shard = (await client.create_stream("s")).shards[0]
    latest = (await client.resolve_position(shard, LATEST)).sequence
    waiting = asyncio.ensure_future(client.fetch(shard, latest, wait_ms=20_000))
    receipt = await client.put_batch(shard, one_record(b"news"))
    fetched = await waiting
    assert fetched.high_watermark == fetched.next_sequence == receipt.base_sequence + 1


async def test_refusals_come_back_typed(client: AsyncClient) -> None:
    stream = await client.create_stream("s", shards=2)
    with pytest.raises(StreamExists):
        await client.create_stream("s")
    with pytest.raises(StreamNotFound):
        await client.describe_stream("t")
    with pytest.raises(CorruptBatch):
        await client.put_batch(stream.shards[0], b"SK" + bytes(200))
    with pytest.raises((InvalidRequest, CorruptBatch)):
        await client.put_batch(stream.shards[0], b"")
    nowhere = Shard(ordinal=0, uuid=bytes(16), hash_start=0, hash_end=1, created_ms=0)
    with pytest.raises(ShardNotFound):
        await client.put_batch(nowhere, one_record(b"x"))
    with pytest.raises(ShardNotFound):
        await client.fetch(nowhere, 0)
    outcomes = await asyncio.gather(
        *(client.put_batch(shard, one_record(b"x")) for shard in stream.shards), return_exceptions=True
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["PutReceipt", WrongShard.__name__]


async def test_streams_and_their_settings_are_as_chosen(client: AsyncClient) -> None:
    await client.create_stream("s", shards=3, retention_hours=48, retention_bytes=1 << 30, durability=Durability.LEADER)
    stream = await client.describe_stream("s")
    assert (stream.config.shards, stream.config.retention_hours, stream.config.retention_bytes) == (3, 48, 1 << 30)
    assert stream.config.durability is Durability.LEADER
    assert [state.ordinal for state in await client.describe_shards("s")] == [0, 1, 2]
    assert [found.name for found in await client.list_streams()] == ["s"]
    first, second = await client.new_producer("p"), await client.new_producer("p")
    assert second.producer_id == first.producer_id and second.producer_epoch == first.producer_epoch + 1


async def test_a_node_that_restarts_is_found_again_with_everything_it_acknowledged(tmp_path: Path) -> None:
    async with a_node(tmp_path) as node:
        client = AsyncClient(node.addresses.native)
        shard = (await client.create_stream("s")).shards[0]
        receipt = await client.put_batch(shard, one_record(b"kept"))
    with pytest.raises(ConnectionFailed) as caught:
        await client.put_batch(shard, one_record(b"refused"))
    assert caught.value.facts["sent"] is False
    async with a_node(tmp_path, port=int(node.addresses.native.rpartition(":")[2])):
        while True:
            try:
                stream = await client.describe_stream("s")
                break
            except ConnectionFailed:
                await asyncio.sleep(0.01)
        fetched = await client.fetch(stream.shards[0], receipt.base_sequence)
        assert Batch(fetched.batches[0]).values() == [b"kept"]
        await client.close()


def test_a_fetch_may_wait_longer_than_a_silence_is_borne(tmp_path: Path) -> None:
    """On the loop that `serve` runs on, whose clock stands during a turn."""

    async def wait() -> float:
        loop = asyncio.get_running_loop()
        async with a_node(tmp_path / "data") as node, AsyncClient(
            node.connect, config=ClientConfig(silence_ms=250)
        ) as client:  # fmt: skip
            shard = (await client.create_stream("orders")).shards[0]
            began_s = loop.time()
            assert not (await client.fetch(shard, 1, wait_ms=2_500)).batches
            return loop.time() - began_s

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        assert runner.run(wait()) >= 2.4
