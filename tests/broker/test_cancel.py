"""Cancelling a batch by its numbers, on real nodes: through restarts, other leaders, splits and merges."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from streamkit._core.batch import Batch
from streamkit.errors import Cancelled, ConnectionFailed, InvalidRequest, NotLeader, ShardClosed
from streamkit.model.fate import BatchName, Fate, PutToken
from streamkit.model.sequence import parse_sequence_number
from streamkit.protocol.closing import Closing, encode_closing
from streamkit.protocol.versions import VERSION_MAX
from tests.broker.cluster_nodes import Nodes, cluster
from tests.broker.conftest import batch_of


def name(given, sequence, records=1):
    return BatchName(given.producer_id, given.producer_epoch, sequence, records)


def sealed(given, sequence, *values, key=b"k"):
    return batch_of(*values, key=key, producer_id=given.producer_id, producer_epoch=given.producer_epoch,
                    producer_sequence=sequence)  # fmt: skip


async def values_of(client, shard):
    fetched = await client.fetch(shard, 0, wait_ms=0)
    return [bytes(r.data) for raw in fetched.batches if not Batch(raw).is_control for r in Batch(raw)]


async def put(client, shard, batch):
    """As a producer does it: while a leader is sought, again."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await client.put_batch(shard, batch)
            except (NotLeader, ConnectionFailed):
                await asyncio.sleep(0.02)
                await client.find_leader(shard, "orders")


async def test_a_late_packet_of_a_cancelled_batch_is_refused(start, connect):
    """Acceptance: producer 3. A packet of a cancelled batch that arrives late is refused."""
    node = await start()
    client = await connect(node)
    shard = (await client.create_stream("orders")).shards[0]
    given = await client.new_producer()
    await put(client, shard, sealed(given, 0, b"a"))

    settled = await client.cancel_batch(shard, name(given, 1, 2))
    with pytest.raises(Cancelled):
        await put(client, shard, sealed(given, 1, b"late", b"later"))
    await put(client, shard, sealed(given, 3, b"b"))

    assert settled.fate == "cancelled"
    assert await values_of(client, shard) == [b"a", b"b"]
    await node.stop(1)
    again = await start()
    client = await connect(again)
    shard = (await client.describe_stream("orders")).shards[0]
    with pytest.raises(Cancelled):
        await put(client, shard, sealed(given, 1, b"late", b"later"))
    assert (await client.cancel_batch(shard, name(given, 3))).fate == "stored"
    assert VERSION_MAX == 1                # a node that does not know the message ends the connection: see the sender


async def test_a_token_tells_every_fate_to_whoever_asks(start, connect):
    node = await start()
    client = await connect(node)
    shard = (await client.create_stream("orders")).shards[0]
    given = await client.new_producer()
    await put(client, shard, sealed(given, 0, b"a", b"b"))
    now_ms = client.runtime.clock.now_ms()

    def token(sequence, records, place=0, **other):
        made = PutToken(**{"stream": "orders", "shard": shard.uuid, "batch": name(given, sequence, records),
                           "sent_ms": now_ms, **other})
        return f"{made.text()}.{place}"

    other = await connect(node)
    stored = await other.resolve(token(0, 2, 1))
    assert stored.outcome == "stored"
    assert stored.shard == shard.id
    assert parse_sequence_number(stored.sequence_number).sequence == (await client.fetch(shard, 0)).next_sequence - 1
    assert (await other.resolve(token(9, 1))).outcome == "not_stored"      # what is missing before it was given up, too
    with pytest.raises(Cancelled):
        await put(client, shard, sealed(given, 2, b"c", b"c", b"c", b"c", b"c", b"c", b"c"))
    for asked in (token(0, 1, stream="gone"), token(0, 1, shard=bytes(16)), token(1, 1), token(0, 2, sent_ms=0)):
        assert (await other.resolve(asked)).outcome in ("forgotten", "stored")
    assert await other.resolve(token(0, 1, stream="gone")) == Fate("forgotten")
    stranger = await client.new_producer()
    assert (await other.resolve(token(5, 1, batch=name(stranger, 5)))).outcome == "forgotten"
    for wrong in ("", "p1", "p1.!!", "p1.", token(0, 2, 2), token(0, 2)[:-6], "p2." + token(0, 2)[3:]):
        with pytest.raises(InvalidRequest):
            await other.resolve(wrong)


async def test_what_was_cancelled_stays_so_under_another_leader_and_in_a_closed_shard(tmp_path: Path):
    async with cluster(tmp_path) as nodes, nodes.client() as client:
        await held_through(nodes, client)


async def test_a_shard_says_that_it_is_closed_once_that_is_for_good(tmp_path: Path):
    async with cluster(tmp_path) as nodes, nodes.client() as client:
        shard = (await client.create_stream("orders")).shards[0]
        leader = await nodes.led(shard.uuid)
        others = [name for name in nodes.nodes if name != leader]
        async with nodes.client(leader) as asking:
            await put(asking, shard, batch_of(b"a"))
            server = nodes.copies(shard.uuid)[leader].server
            for name in others:
                await nodes.stop(name)
            assert server is not None
            server.close_with(encode_closing(Closing("orders", 0, "00", ())), 1_700_000_000_000)

            with pytest.raises(NotLeader, match="not settled"):    # a leader without the closing batch may come yet
                await asking.put_batch(shard, batch_of(b"b"))
            await nodes.start(*others)
            await server.closed()
            with pytest.raises(ShardClosed):
                await asking.put_batch(shard, batch_of(b"b"))


async def held_through(nodes: Nodes, client) -> None:
    shard = (await client.create_stream("orders")).shards[0]
    given = await client.new_producer()
    await put(client, shard, sealed(given, 0, b"a"))
    assert (await client.cancel_batch(shard, name(given, 1))).fate == "cancelled"
    leader = await nodes.led(shard.uuid)
    await nodes.stop(leader)
    await nodes.led(shard.uuid)
    client = nodes.client()
    try:
        shard = (await client.describe_stream("orders")).shards[0]
        with pytest.raises(Cancelled):
            await put(client, shard, sealed(given, 1, b"late"))
        await put(client, shard, sealed(given, 2, b"b"))
        await client.split_shard("orders", 0)
        shard = (await client.describe_stream("orders")).shards[0]
        assert (await client.cancel_batch(shard, name(given, 2))).fate == "stored"
        assert (await client.cancel_batch(shard, name(given, 3))).fate == "cancelled"     # the parent never takes it
        with pytest.raises(Cancelled):
            await put(client, shard, sealed(given, 1, b"late"))
        with pytest.raises(ShardClosed):
            await put(client, shard, sealed(given, 3, b"late"))
        assert await values_of(client, shard) == [b"a", b"b"]
    finally:
        await client.close()
