"""A node starts, stops, keeps its data and says how it is."""

import asyncio
import json
import os
from dataclasses import replace

import pytest

from streamkit._core.batch import Batch
from streamkit.client.client import AsyncClient
from streamkit.config import compose
from streamkit.errors import (
    ConnectionFailed,
    CorruptFile,
    DataDirectoryLocked,
    DiskFailed,
    DiskFull,
    NodeDraining,
    StreamkitError,
    StreamNotFound,
    UnsafeListener,
)
from streamkit.model.stream import StreamConfig
from streamkit.node import Node, NodeOptions
from streamkit.runtime.real import real_runtime
from streamkit.runtime.real_disk import RealDisk
from tests.broker.conftest import SMALL, batch_of, config, connect, start

__all__ = ["connect", "start"]               # fixtures


async def put_some(client, count=10):
    shard = (await client.create_stream("orders")).shards[0]
    await asyncio.gather(*(client.put_batch(shard, batch_of(b"%d" % number)) for number in range(count)))
    return shard


async def values(client, shard):
    found, at = [], 0
    while True:
        fetched = await client.fetch(shard, at, wait_ms=0)
        if fetched.next_sequence == at:
            return found
        for stored in fetched.batches:
            batch = Batch(stored, None, at)
            found += [] if batch.is_control else [bytes(record.data) for record in batch]
        at = fetched.next_sequence


async def test_a_restart_keeps_streams_records_and_producers(start, connect):
    node = await start()
    client = await connect(node)
    shard = await put_some(client)
    given = await client.new_producer()
    repeated = batch_of(b"once", producer_id=given.producer_id)
    first = await client.put_batch(shard, repeated)
    await node.stop()

    client = await connect(await start())
    again = (await client.describe_stream("orders")).shards[0]
    assert again.uuid == shard.uuid
    assert again.epoch == shard.epoch + 1
    assert await values(client, again) == [b"%d" % number for number in range(10)] + [b"once"]
    repeat = await client.put_batch(again, repeated)
    assert (repeat.duplicate, repeat.base_sequence) == (1, first.base_sequence)
    assert (await client.put_batch(again, batch_of(b"new"))).base_sequence > first.base_sequence
    assert (await client.new_producer()).producer_id > given.producer_id


async def test_nobody_else_may_read_what_a_node_stores(start, connect, tmp_path):
    node = await start()
    await put_some(await connect(node))
    root = tmp_path / "data"

    assert root.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o077 for path in root.rglob("*") if path.stat().st_mode & 0o077} == {}


async def test_two_nodes_cannot_have_one_directory(start):
    await start()
    with pytest.raises(DataDirectoryLocked):
        await start()


async def test_a_failed_start_leaves_the_directory_free(start, tmp_path):
    node = await start()
    port = int(node.addresses.native.rpartition(":")[2])
    with pytest.raises(ConnectionFailed, match="cannot listen"):
        await start("other", listen__native__port=port)
    other = await start("other")
    assert other.describe().ready


async def test_listening_elsewhere_needs_to_be_accepted_by_name(start, tmp_path):
    with pytest.raises(UnsafeListener, match="without TLS and login"):
        await start(listen__host="0.0.0.0")
    assert not (tmp_path / "data").exists()
    node = await start(listen__host="0.0.0.0", listen__accept_insecure=True)
    assert [plan.name for plan in node.insecure] == ["native"]


async def test_a_unix_socket_serves_too(start, connect, tmp_path):
    client = await connect(await start(listen__host=f"unix:{tmp_path}/native.sock"))
    assert (await client.describe_node()).ready


async def test_missing_streams_are_made_on_first_use_only_where_asked_for(start, connect):
    client = await connect(await start("plain"))
    with pytest.raises(StreamNotFound):
        await client.describe_stream("orders")
    client = await connect(await start("dev", node__dev=True))
    made = await asyncio.gather(*(client.describe_stream("orders") for _ in range(5)))
    assert {len(stream.shards) for stream in made} == {1}


async def test_creations_and_deletions_that_were_cut_off_are_finished(start, connect):
    node = await start()
    client = await connect(node)
    await client.create_stream("gone", StreamConfig(shards=2))
    await node._catalog.create("begun", StreamConfig(shards=2))
    from streamkit.model.stream import StreamStatus

    await node._catalog.set_status("gone", StreamStatus.DELETING)
    await node.stop()

    client = await connect(await start())
    assert [stream.name for stream in await client.list_streams()] == ["begun"]
    shard = (await client.describe_stream("begun")).shards[0]
    assert (await client.describe_shards("begun"))[0].log_end == 0
    assert shard.epoch == 2


async def test_metadata_without_its_shards_stops_the_node(start, connect, tmp_path):
    node = await start()
    await put_some(await connect(node))
    await node.stop()
    (tmp_path / "data" / "metadata.sqlite").rename(tmp_path / "metadata.sqlite")
    other = await start("other")
    await other.stop()
    for path in (tmp_path / "other").glob("metadata.sqlite*"):
        path.unlink()
    (tmp_path / "metadata.sqlite").rename(tmp_path / "other" / "metadata.sqlite")
    with pytest.raises(CorruptFile, match="not in the data directory"):
        await start("other")


async def test_a_stop_answers_what_is_under_way_and_parts_politely(start, connect):
    node = await start()
    client = await connect(node)
    shard = await put_some(client)
    waiting = asyncio.ensure_future(client.fetch(shard, 99, wait_ms=30_000))
    puts = [asyncio.ensure_future(client.put_batch(shard, batch_of(b"%d" % n))) for n in range(100)]
    await client.describe_node()
    await node.stop(5)

    outcomes = await asyncio.gather(waiting, *puts, return_exceptions=True)
    failures = [one for one in outcomes if isinstance(one, BaseException)]
    assert all(isinstance(one, NodeDraining | ConnectionFailed) for one in failures)
    client = await connect(await start())
    again = (await client.describe_stream("orders")).shards[0]
    stored = await values(client, again)
    kept = {one.base_sequence for one in outcomes[1:] if not isinstance(one, BaseException)}
    assert len(stored) >= 10 + len(kept)


async def test_a_foreign_directory_is_refused(start, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.tex").write_text("mine")
    with pytest.raises(StreamkitError):
        await start()
    assert (tmp_path / "data" / "thesis.tex").read_text() == "mine"


async def test_no_permission_is_one_clear_error(start, tmp_path):
    if os.getuid() == 0:
        pytest.skip("root may do everything")
    (tmp_path / "data").mkdir(mode=0o500)
    with pytest.raises(StreamkitError):
        await start()


class Shrinking(RealDisk):
    """A disk whose free space the test decides."""

    free = 100 << 30

    def free_bytes(self, path):
        return self.free


async def test_a_full_disk_refuses_puts_serves_reads_and_recovers(tmp_path):
    disk = Shrinking()
    storage = replace(SMALL, free_bytes_min=1 << 30)
    node = Node(
        config(listen__health__enabled=True), replace(real_runtime(), disk=disk), data_dir=str(tmp_path / "data"),
        options=NodeOptions(storage=storage),
    )
    await node.start()
    async with AsyncClient(node.addresses.native) as client:
        shard = await put_some(client)
        disk.free = 5 << 20
        await node._directory._watch_space()

        with pytest.raises(DiskFull, match="5 MiB free"):
            await client.put_batch(shard, batch_of(b"refused"))
        with pytest.raises(DiskFull):
            await client.create_stream("more")
        assert len(await values(client, shard)) == 10
        status, body = await get(node.addresses.health, "/ready")
        assert (status, b"5 MiB free" in body) == (503, True)

        disk.free = 100 << 30
        await node._directory._watch_space()
        await client.put_batch(shard, batch_of(b"taken again"))
        assert (await get(node.addresses.health, "/ready"))[0] == 200
    await node.stop()


class Breaking(RealDisk):
    """A disk whose syncs can be made to fail; the flusher goes through files opened here."""

    broken = False

    def start_flusher(self, source, on_progress):
        return BreakableFlusher(self, source, on_progress)


class BreakableFlusher:
    """Carries out jobs on the loop, as the simulator does, and fails them when told to."""

    def __init__(self, disk, source, on_progress):
        self.disk, self.source, self.on_progress = disk, source, on_progress

    def wake(self):
        asyncio.get_running_loop().call_soon(self.flush)

    def flush(self):
        while (job := self.source.take()) is not None:
            if self.disk.broken:
                self.source.finish(OSError(5, "Input/output error"))
                self.on_progress()
                return
            for write in job:
                write.file.write(write.buffers, write.position)
                if write.sync:
                    write.file.sync()
            self.source.finish(None)
            self.on_progress()

    async def stop(self):
        if not self.disk.broken:
            self.flush()


async def test_a_failed_sync_acknowledges_nothing_more_and_says_so(tmp_path):
    disk = Breaking()
    runtime = replace(real_runtime(), disk=disk)
    node = Node(config(), runtime, data_dir=str(tmp_path / "data"), options=NodeOptions(storage=SMALL))
    await node.start()
    async with AsyncClient(node.addresses.native) as client:
        shard = await put_some(client)
        disk.broken = True
        with pytest.raises(DiskFailed):
            await client.put_batch(shard, batch_of(b"never safe"))
        with pytest.raises(DiskFailed):
            await client.put_batch(shard, batch_of(b"nor this"))

        assert len(await values(client, shard)) == 10
        described = await client.describe_node()
        assert not described.ready
        assert "read_only" in described.reasons[0]
    await node.stop(1)


async def get(address, path, host="127.0.0.1"):
    reader, writer = await asyncio.open_connection(*address.split(":"))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1]), body


async def test_health_and_metrics_are_served(start, connect):
    node = await start(listen__health__enabled=True)
    client = await connect(node)
    await put_some(client)
    with pytest.raises(StreamNotFound):
        await client.describe_stream("nothing")
    address = node.addresses.health

    assert await get(address, "/live") == (200, b"live\n")
    assert json.loads((await get(address, "/ready"))[1]) == {"ready": True, "reasons": []}
    assert json.loads((await get(address, "/health"))[1])["streams"] == 1
    metrics = (await get(address, "/metrics"))[1].decode()
    assert 'streamkit_put_records_total{shard="shardId-000000000000",stream="orders"} 10.0' in metrics
    assert 'streamkit_native_requests_total{code="stream_not_found",operation="DescribeStream"} 1.0' in metrics
    assert 'streamkit_put_seconds_count{stream="orders"} 10.0' in metrics
    assert "streamkit_ready 1.0" in metrics
    assert (await get(address, "/metrics", host="evil.example"))[0] == 421
    assert (await get(address, "/elsewhere"))[0] == 404


@pytest.mark.parametrize(("sent", "status"), [
    ("HEAD /live HTTP/1.1\r\n", 200), ("DELETE /live HTTP/1.1\r\n", 405), ("POST /live HTTP/1.1\r\n", 405),
    ("GET /live HTTP/1.1\r\nContent-Length: 1\r\n", 413), ("PRI * HTTP/2.0\r\n", 400),
])  # fmt: skip
async def test_the_health_pages_take_no_more_than_they_need(start, sent, status):
    node = await start(listen__health__enabled=True)
    reader, writer = await asyncio.open_connection(*node.addresses.health.split(":"))
    writer.write(f"{sent}Host: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()

    assert int(answer.split()[1]) == status
    if status in (200, 405):
        assert b"\r\ncache-control: no-store\r\nx-content-type-options: nosniff\r\n" in answer
    assert answer.endswith(b"only GET and HEAD\n" if status == 405 else b"\r\n\r\n")


async def test_stopping_twice_at_once_waits_for_the_one_stop(start):
    node = await start()
    first = asyncio.ensure_future(node.stop())
    await asyncio.sleep(0)
    await node.stop()

    assert node.reasons() == ("node.draining",)
    again = await start()                    # the directory is free
    assert first.done()
    await again.stop()


async def test_a_node_that_stops_is_not_ready(start):
    node = await start()
    await node.stop()

    assert node.reasons() == ("node.draining",)


async def test_clients_in_the_same_process_need_no_port(tmp_path):
    node = Node(
        config(), real_runtime(), data_dir=str(tmp_path / "data"), options=NodeOptions(listen=False, storage=SMALL)
    )
    await node.start()
    async with AsyncClient(node.connect) as client:
        shard = await put_some(client)
        assert len(await values(client, shard)) == 10
    await node.stop()
    assert node.addresses.native == ""
    assert compose().config.listen.native.port == 7440
