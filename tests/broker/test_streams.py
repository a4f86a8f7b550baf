"""Streams come and go while others use them: nothing is left half-made, nobody is answered with nonsense."""

import asyncio
import errno

import pytest

from streamkit.errors import DiskFull, InternalError, ShardNotFound, StreamBusy, StreamNotFound
from streamkit.model.stream import StreamConfig, StreamStatus
from streamkit.storage import ShardLog
from tests.broker.conftest import batch_of


async def test_a_stream_that_could_not_be_made_can_be_made_later(node, client, monkeypatch):
    disk = node.runtime.disk
    make_directory, calls = disk.make_directory, []

    def full(path):
        calls.append(path)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "no space")
        make_directory(path)

    monkeypatch.setattr(disk, "make_directory", full)
    with pytest.raises(DiskFull):
        await client.create_stream("orders", shards=4)
    with pytest.raises(StreamNotFound):
        await client.describe_stream("orders")
    assert disk.list(f"{node.data_dir}/shards") == [uuid.hex() for uuid in node._streams.shards]

    stream = await client.create_stream("orders", shards=1)
    await client.put_batch(stream.shards[0], batch_of(b"v"))


async def test_a_deletion_that_failed_is_finished_by_the_next_creation(node, client, monkeypatch):
    await client.create_stream("orders")
    remove = node.runtime.disk.remove_directory

    def fail(path):
        raise OSError(errno.EIO, "bad disk")

    monkeypatch.setattr(node.runtime.disk, "remove_directory", fail)
    with pytest.raises(Exception, match="disk failed"):
        await client.delete_stream("orders")
    with pytest.raises(StreamNotFound):
        await client.describe_stream("orders")
    monkeypatch.setattr(node.runtime.disk, "remove_directory", remove)

    stream = await client.create_stream("orders")
    await client.put_batch(stream.shards[0], batch_of(b"v"))


async def test_a_stream_that_is_being_made_is_described_when_it_is_there(start, connect):
    node = await start(streams__auto_create=True)
    client, other = await connect(node), await connect(node)

    found = await asyncio.gather(*(each.describe_stream("orders") for each in (client, other, client)))

    assert {stream.status for stream in found} == {StreamStatus.ACTIVE}
    assert len({stream.shards[0].uuid for stream in found}) == 1
    await other.put_batch(found[1].shards[0], batch_of(b"v"))


async def test_a_stream_half_made_holds_nothing_yet(node, client):
    await node._catalog.create("orders", StreamConfig())
    with pytest.raises(StreamBusy):
        await client.describe_shards("orders")


async def test_deletion_answers_everything_under_way(node, client, monkeypatch):
    shard = (await client.create_stream("orders")).shards[0]
    await client.put_batch(shard, batch_of(b"0"))
    let_go = asyncio.Event()
    read_cold = ShardLog.read_cold

    async def slow(log, *where):
        await let_go.wait()
        return await read_cold(log, *where)

    monkeypatch.setattr(ShardLog, "read_cold", slow)
    monkeypatch.setattr(ShardLog, "read", lambda *where: None)
    reading = asyncio.ensure_future(client.fetch(shard, 0))
    waiting = asyncio.ensure_future(client.fetch(shard, 1, wait_ms=30_000))
    puts = [client.put_batch(shard, batch_of(b"%d" % number)) for number in range(20)]
    await asyncio.sleep(0)
    await client.delete_stream("orders")
    let_go.set()

    await asyncio.wait([reading, waiting, *puts])
    assert isinstance(reading.exception(), ShardNotFound)
    assert isinstance(waiting.exception(), ShardNotFound)
    for put in puts:
        assert put.exception() is None or isinstance(put.exception(), ShardNotFound)


async def test_a_crowd_of_new_producers_is_served_without_races(node, client):
    given = await asyncio.gather(*(client.new_producer() for _ in range(50)))
    assert len({each.producer_id for each in given}) == 50


async def test_a_read_that_fails_unexpectedly_is_answered_at_once(node, client, monkeypatch, caplog):
    shard = (await client.create_stream("orders")).shards[0]
    await client.put_batch(shard, batch_of(b"0"))

    async def broken(log, *where):
        raise KeyError("defect")

    monkeypatch.setattr(ShardLog, "read_cold", broken)
    monkeypatch.setattr(ShardLog, "read", lambda *where: None)
    with pytest.raises(InternalError):
        await client.fetch(shard, 0)
    assert "fetch.failed" in caplog.text
