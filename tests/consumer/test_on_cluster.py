"""Workers on three real nodes: the coordinator and the leaders go elsewhere, shards are split, and the work goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from streamkit._core.batch import Batch, Record
from streamkit.consumer.checkpointer import Checkpointer
from streamkit.consumer.consumer import Consumer
from streamkit.consumer.processor import RecordProcessor
from streamkit.consumer.worker import Worker
from streamkit.producer.producer import AsyncProducer
from streamkit.runtime.real import LoopThread
from tests.broker.cluster_nodes import Nodes, cluster, eventually


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    async with cluster(tmp_path) as started:
        yield started


def url(nodes: Nodes) -> str:
    return "streamkit://" + ",".join(node.addresses.native for node in nodes.nodes.values())


async def put(nodes: Nodes, first: int, last: int) -> None:
    client = nodes.client()
    async with AsyncProducer("orders", client=client) as producer:
        for number in range(first, last):
            await producer.put(b"%d" % number, key=f"k{number % 5}")
    await client.close()


@pytest.mark.parametrize("fan_out", [False, True])
async def test_a_worker_survives_the_stop_of_every_node_in_turn_with_its_session(nodes: Nodes, fan_out: bool) -> None:
    client = nodes.client()
    await client.create_stream("orders", shards=3)
    seen: list[int] = []
    expelled: list[str] = []
    consumer = Consumer("orders", application="billing", start="trim_horizon", url=url(nodes),
                        checkpoint_interval_ms=100, fan_out=fan_out)  # fmt: skip

    @consumer.handler
    def note(record: Record[Any]) -> None:
        seen.append(int(record.data))

    thread = LoopThread("test-worker")
    consumer._loop_thread = thread
    consumer.start()
    try:
        count = 0
        for name in ("a", "b", "c"):
            await put(nodes, count, count + 50)
            count += 50
            await eventually(lambda count=count: len(set(seen)) == count)
            await nodes.stop(name)
            await put(nodes, count, count + 50)
            count += 50
            await eventually(lambda count=count: len(set(seen)) == count)
            await nodes.start(name)
        assert consumer._member is not None
        expelled = [] if consumer._member._keeper.session else ["expelled"]
    finally:
        await asyncio.to_thread(consumer.stop)
        thread.stop()
        await client.close()
    assert not expelled
    assert set(seen) == set(range(count))
    again = len(seen) - count
    assert again <= count, "what was checkpointed does not come again for every stop"


class Noting(RecordProcessor):
    """Checkpoints by hand, batch by batch."""

    seen: ClassVar[list[tuple[str, int]]] = []

    def process(self, batch: Batch[Any], checkpointer: Checkpointer) -> None:
        for record in batch:
            self.seen.append((record.key, int(record.data)))
        checkpointer.checkpoint().result(10)


@pytest.mark.parametrize("by_hand", [False, True])
async def test_children_are_worked_on_after_their_parents(nodes: Nodes, by_hand: bool) -> None:
    client = nodes.client()
    await client.create_stream("orders", shards=1)
    seen: ClassVar[list[tuple[str, int]]] = []
    worker: Any
    if by_hand:
        Noting.seen = seen
        worker = Worker("orders", application="billing", start="trim_horizon", processor=Noting, url=url(nodes))
    else:
        worker = Consumer("orders", application="billing", start="trim_horizon", url=url(nodes))

        @worker.handler
        def note(record: Record[Any]) -> None:
            seen.append((record.key, int(record.data)))

    thread = LoopThread("test-worker")
    worker._loop_thread = thread
    worker.start()
    try:
        await put(nodes, 0, 40)
        await client.split_shard("orders", 0)
        await put(nodes, 40, 80)
        await client.scale_stream("orders", 1)
        await put(nodes, 80, 120)
        await eventually(lambda: len(seen) >= 120)
    finally:
        await asyncio.to_thread(worker.stop)
        thread.stop()
        await client.close()
    assert len(seen) == 120
    for key in range(5):
        assert [value for name, value in seen if name == f"k{key}"] == list(range(key, 120, 5))


async def test_lag_is_known_in_time_for_shards_that_other_nodes_lead(nodes: Nodes) -> None:
    client = nodes.client()
    await client.create_stream("orders", shards=6)
    consumer = Consumer("orders", application="billing", start="trim_horizon", url=url(nodes))
    consumer.handler(lambda value: None)
    consumer._loop_thread = LoopThread("test-worker")
    consumer.start()
    await eventually(lambda: len(consumer.shards) == 6)
    await asyncio.to_thread(consumer.stop)
    await put(nodes, 0, 200)
    await asyncio.sleep(0.5)

    async def every_shard_is_late() -> bool:
        lag = await client.lag("billing")
        late = [shard for shard in lag.shards if shard.records > 1]
        return len(late) >= 3 and all(300 < shard.ms < 20_000 and shard.bytes > 0 for shard in late)

    async with asyncio.timeout(5):
        while not await every_shard_is_late():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.1)
    await client.close()
