"""The producer against real nodes: receipts tell the truth, also when the node goes away meanwhile."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from streamkit._core.batch import Batch, RecordContext
from streamkit.client.client import AsyncClient
from streamkit.config import compose
from streamkit.errors import RecordTooLarge, StreamNotFound, TimedOut
from streamkit.model.stream import StreamConfig
from streamkit.node import Node, NodeOptions
from streamkit.producer.producer import AsyncProducer
from streamkit.runtime.real import real_runtime
from streamkit.storage import StorageConfig

MIB = 1024 * 1024
SMALL = StorageConfig(
    segment_bytes=MIB, journal_bytes=4 * MIB, journal_step_bytes=MIB, group_bytes_max=2 * MIB, reserve_bytes=MIB,
    free_bytes_min=0,
)  # fmt: skip


async def started(where: Path) -> Node:
    flags = {
        "listen.native.port": 0, "listen.health.port": 0, "listen.health.enabled": False, "listen.http.enabled": False,
        "streams.auto_create": False,
    }  # fmt: skip
    node = Node(
        compose(flags=flags).config, real_runtime(), data_dir=str(where / "data"), options=NodeOptions(storage=SMALL)
    )
    await node.start()
    return node


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    made = await started(tmp_path)
    yield made
    await made.stop(1)


async def read_all(client: AsyncClient, stream: str) -> dict[str, tuple[str, bytes]]:
    """Every readable record: sequence number → (key, data)."""
    found = {}
    description = await client.describe_stream(stream)
    for shard in description.shards:
        context = RecordContext(stream, shard.id, shard.ordinal, shard.created_ms, uuid=shard.uuid)
        start = 0
        while (fetched := await client.fetch(shard, start, wait_ms=0)).next_sequence > start:
            for stored in fetched.batches:
                batch = Batch(stored, context, start)
                if not batch.is_control:
                    found |= {record.sequence_number: (record.key, record.data) for record in batch}
            start = fetched.next_sequence
    return found


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
async def test_a_receipt_says_where_the_record_is(node: Node, compression: Any) -> None:
    async with AsyncClient(node.addresses.native) as client:
        await client.create_stream("orders", StreamConfig(shards=3))
        async with AsyncProducer("orders", client=client, compression=compression, batch_bytes_max=4_000) as producer:
            handles = [await producer.put({"id": i}, key=f"k{i % 20}") for i in range(1_000)]
            results = [await handle for handle in handles]

        stored = await read_all(client, "orders")
        assert {result.sequence_number: (f"k{i % 20}", b'{"id":%d}' % i) for i, result in enumerate(results)} == stored
        assert not any(result.duplicate for result in results)


async def test_records_without_a_key_are_read_with_an_empty_one(node: Node) -> None:
    async with AsyncClient(node.addresses.native) as client:
        await client.create_stream("orders", StreamConfig(shards=3))
        async with AsyncProducer("orders", client=client, batch_bytes_max=4_000) as producer:
            handles = [await producer.put({"id": i}, key=None if i % 2 else f"k{i}") for i in range(1_000)]
            columns = await producer.put_columns(None, pyarrow.array([b"c"] * 100))
            results = [await handle for handle in handles]
            await columns

        stored = await read_all(client, "orders")
        assert len(stored) == 1_100
        for i, result in enumerate(results):
            assert stored[result.sequence_number] == ("" if i % 2 else f"k{i}", b'{"id":%d}' % i)
        assert len({result.shard for result in results[1::2]}) > 1


async def test_columns_are_stored_row_by_row(node: Node) -> None:
    async with AsyncClient(node.addresses.native) as client:
        stream = await client.create_stream("orders", StreamConfig(shards=2))
        async with AsyncProducer("orders", client=client, batch_bytes_max=10_000) as producer:
            values = [b"%05d" % i for i in range(3_000)]
            keys = [f"k{i % 9}" for i in range(3_000)]
            handle = await (await producer.put_columns(pyarrow.array(keys), pyarrow.array(values)))

        stored = await read_all(client, "orders")
        assert Counter(data for _, data in stored.values()) == Counter(values)
        for row in (0, 1_500, 2_999):
            fetched = await client.fetch(stream.shards[handle.shards[row]], handle.sequences[row], wait_ms=0)
            assert Batch(fetched.batches[0], None, handle.sequences[row])[0].data == values[row]


async def test_a_node_that_restarts_under_load_stores_each_record_once(tmp_path: Path) -> None:
    node = await started(tmp_path)

    async def reach(factory: Any) -> Any:
        return await current[0].connect(factory)

    current = [node]
    async with AsyncClient(reach) as client:
        await client.create_stream("orders", StreamConfig(shards=2))
        async with AsyncProducer("orders", client=client, batch_bytes_max=1_000, linger_ms=0) as producer:
            handles = []
            for i in range(2_000):
                handles.append(await producer.put(b"%d" % i, key=f"k{i % 7}"))
                if i % 100 == 0:
                    await asyncio.sleep(0)
                if i == 1_000:
                    await node.stop(0)
                    node = await started(tmp_path)
                    current[0] = node
            await producer.flush(60)
            assert len({(await handle).sequence_number for handle in handles}) == 2_000

        stored = await read_all(client, "orders")
    await node.stop(1)
    by_key: dict[str, list[int]] = {}
    for _, (key, data) in sorted(stored.items()):
        by_key.setdefault(key, []).append(int(data))
    assert sum(map(len, by_key.values())) == 2_000
    assert all(values == sorted(set(values)) for values in by_key.values())


async def test_refusals_are_typed(node: Node) -> None:
    async with AsyncClient(node.addresses.native) as client:
        await client.create_stream("small", StreamConfig(record_bytes_max=10))
        async with AsyncProducer("small", client=client) as producer:
            with pytest.raises(RecordTooLarge):
                await producer.put(b"v" * 11, key="k")
            with pytest.raises(StreamNotFound):
                await producer.put(b"v", key="k", stream="nonsense")


async def test_records_end_with_timed_out_when_the_node_stays_away(tmp_path: Path) -> None:
    node = await started(tmp_path)
    async with AsyncClient(node.addresses.native) as client:
        await client.create_stream("orders")
        producer = AsyncProducer("orders", client=client, delivery_timeout_ms=50)
        await producer.put_and_wait(b"0", key="k")
        await node.stop(0)
        handle = await producer.put(b"1", key="k")
        with pytest.raises(TimedOut):
            await handle
        producer_stats = producer.stats()
        await producer.close(0)
    assert producer_stats["records_failed"] == 1
    assert producer_stats["buffered_bytes"] == 0
