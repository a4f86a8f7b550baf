"""Memory stays bounded whatever clients do: slow readers, and puts faster than the disk."""

import asyncio
from dataclasses import replace

import pytest

from streamkit._core.batch import Batch
from streamkit.client.client import AsyncClient
from streamkit.model.stream import Durability, StreamConfig
from streamkit.node import Node, NodeOptions
from streamkit.protocol import messages as m
from streamkit.protocol.connection import Connection, Side
from streamkit.runtime.real import real_runtime
from streamkit.runtime.real_disk import RealDisk
from tests.broker.conftest import SMALL, batch_of, config

KIB = 1024
VALUE = b"v" * (100 * KIB)


class Mute(asyncio.Protocol):
    """A client that sends and, until told to, reads nothing."""

    def __init__(self):
        self.wire = Connection(Side.CLIENT, "mute")
        self.answers = []
        self.reading = False
        self.more = asyncio.Event()

    def connection_made(self, transport):
        self.transport = transport
        self.flush()

    def data_received(self, data):
        self.answers += self.wire.feed(data)
        self.more.set()

    def flush(self):
        self.transport.writelines(self.wire.take())

    async def has(self, count):
        while len(self.answers) < count:
            self.more.clear()
            await asyncio.wait_for(self.more.wait(), 10)


async def mute(node):
    loop = asyncio.get_running_loop()
    host, port = node.addresses.native.split(":")
    _, client = await loop.create_connection(Mute, host, int(port))
    while client.wire.peer == "":            # noqa: ASYNC110 - until the greeting came over the socket
        await asyncio.sleep(0.001)
    return client


async def fill(client, count=100):
    stream = await client.create_stream("orders", StreamConfig(durability=Durability.OS))
    shard = stream.shards[0]
    await asyncio.gather(*(client.put_batch(shard, batch_of(VALUE, codec=0)) for _ in range(count)))
    return shard


async def test_a_reader_that_takes_nothing_holds_a_bounded_amount(node, client):
    shard = await fill(client)
    slow = await mute(node)
    slow.transport.pause_reading()
    for number in range(1, 31):
        slow.wire.writer.fetch(number, shard.uuid, 0, 8 << 20, 0)
    slow.flush()
    (link,) = [link for link in node._server.links if link.wire.peer == "mute"] or [None]
    assert link is not None
    while not link.held:                     # noqa: ASYNC110 - until the requests came over the socket
        await asyncio.sleep(0.001)

    assert link.outgoing_bytes() <= (4 + 8 + 1) << 20
    shard_two = (await client.create_stream("others")).shards[0]
    assert (await client.put_batch(shard_two, batch_of(b"unharmed"))).base_sequence == 1

    slow.transport.resume_reading()
    await slow.has(30)
    assert {answer.next_sequence for answer in slow.answers} == {slow.answers[0].next_sequence}
    assert not link.held
    slow.transport.abort()


async def test_readers_that_take_nothing_do_not_stop_producers(start, connect):
    node = await start(storage__memory_bytes_max=8 << 20)
    client = await connect(node)
    shard = await fill(client, 60)
    slow = [await mute(node) for _ in range(8)]
    for one in slow:
        one.transport.pause_reading()
        one.wire.writer.fetch(1, shard.uuid, 0, 8 << 20, 0)
        one.wire.writer.fetch(2, shard.uuid, 0, 8 << 20, 0)
        one.flush()
    for _ in range(20):
        await client.put_batch(shard, batch_of(VALUE, codec=0))

    # Half of the budget, and what was promised before the last look.
    assert node._server.memory_bytes() < 30 << 20
    for one in slow:
        one.transport.resume_reading()
    for one in slow:
        await one.has(2)
        one.transport.abort()


async def test_puts_beyond_the_limit_wait_in_the_socket_and_all_are_answered(start, connect):
    node = await start(listen__native__unacknowledged_bytes_max=64 * KIB)
    client = await connect(node)
    shard = (await client.create_stream("orders")).shards[0]
    highest = 0

    def look():
        nonlocal highest
        highest = max(highest, *(link.unacknowledged_bytes for link in node._server.links))
        handle[0] = asyncio.get_running_loop().call_later(0.0005, look)

    handle = [asyncio.get_running_loop().call_soon(look)]
    receipts = await asyncio.gather(*(client.put_batch(shard, batch_of(b"w" * 8000, codec=0)) for _ in range(500)))
    handle[0].cancel()

    assert [receipt.base_sequence for receipt in receipts] == list(range(1, 501))
    assert highest <= 64 * KIB + 1024 * KIB          # one receive beyond the limit


async def test_many_requests_at_once_are_all_answered(node):
    eager = await mute(node)
    for number in range(1, 5001):
        eager.wire.send(m.DescribeNode(), number)
    eager.flush()
    await eager.has(5000)

    assert {answer.request_id for answer in eager.answers} == set(range(1, 5001))
    eager.transport.abort()


@pytest.mark.parametrize("cold", [False, True])
async def test_a_reader_far_behind_gets_everything(start, connect, cold):
    node = await start()
    client = await connect(node)
    shard = await fill(client, 80)
    if cold:
        await node.stop(1)
        node = await start()
        client = await connect(node)
        shard = (await client.describe_stream("orders")).shards[0]
    at, count = 0, 0
    while at < 81:
        fetched = await client.fetch(shard, at, bytes_max=300 * KIB, wait_ms=1000)
        count += sum(len(Batch(stored, None, 0)) for stored in fetched.batches if not Batch(stored).is_control)
        at = fetched.next_sequence

    assert count == 80


class Stuck(RealDisk):
    """A disk that writes nothing until it is let go."""

    def start_flusher(self, source, on_progress):
        self.flusher = StuckFlusher(source, on_progress)
        return self.flusher


class StuckFlusher:
    stuck = False

    def __init__(self, source, on_progress):
        self.source, self.on_progress = source, on_progress

    def wake(self):
        asyncio.get_running_loop().call_soon(self.flush)

    def flush(self):
        while not self.stuck and (job := self.source.take()) is not None:
            for write in job:
                write.file.write(write.buffers, write.position)
            self.source.finish(None)
            self.on_progress()

    async def stop(self):
        self.flush()


@pytest.mark.parametrize("durability", [Durability.LEADER, Durability.FSYNC])
async def test_a_disk_that_is_stuck_holds_a_bounded_amount(tmp_path, durability):
    disk = Stuck()
    node = Node(
        config(storage__memory_bytes_max=4 << 20), replace(real_runtime(), disk=disk),
        data_dir=str(tmp_path / "data"), options=NodeOptions(storage=SMALL),
    )
    await node.start()
    async with AsyncClient(node.addresses.native) as admin:
        shard = (await admin.create_stream("orders", StreamConfig(durability=durability))).shards[0]
        eager = await mute(node)
        disk.flusher.stuck = True
        for number in range(1, 201):
            eager.wire.writer.put(number, shard.uuid, 0, batch_of(VALUE, codec=0))
        eager.flush()
        while not node._server.paused:       # noqa: ASYNC110 - until enough came over the socket
            await asyncio.sleep(0.001)

        assert node._directory.pending_bytes < 4 << 20
        assert (await admin.describe_node()).ready
        disk.flusher.stuck = False
        disk.flusher.flush()
        await eager.has(200)
        while node._server.paused:           # noqa: ASYNC110 - it is looked at again every few milliseconds
            await asyncio.sleep(0.005)
        eager.transport.abort()
    await node.stop(1)
