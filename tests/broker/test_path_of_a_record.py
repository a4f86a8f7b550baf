"""Put, acknowledged when safe, fetched as stored: over a real socket, against a real node."""

import asyncio

import pytest

from streamkit._core.batch import Batch
from streamkit.errors import (
    CorruptBatch,
    InvalidPosition,
    ProducerFenced,
    RecordTooLarge,
    SequenceGap,
    ShardNotFound,
    StreamExists,
    StreamNotFound,
)
from streamkit.model.position import AfterSequence, AtSequence, AtTime
from streamkit.model.shard import Shard
from streamkit.model.stream import Durability, StreamConfig
from tests.broker.conftest import batch_of


async def fetch_values(client, shard, start=0, count=None):
    """Values from `start` on, up to what is readable now, or until there are `count`."""
    found = []
    while count is None or len(found) < count:
        fetched = await client.fetch(shard, start, wait_ms=5000 if count else 0)
        for stored in fetched.batches:
            batch = Batch(stored, None, start)
            if not batch.is_control:
                found += [bytes(record.data) for record in batch if record.sequence >= start]
        if fetched.next_sequence == start and count is None:
            return found
        start = fetched.next_sequence
    return found


@pytest.mark.parametrize("durability", Durability)
async def test_what_is_acknowledged_is_fetched_in_order(client, durability):
    stream = await client.create_stream("orders", StreamConfig(shards=2, durability=durability))
    shard = stream.shards[0]
    batches = [batch_of(b"%d" % number, b"%d again" % number, key=key_in(shard)) for number in range(50)]

    receipts = await asyncio.gather(*(client.put_batch(shard, batch) for batch in batches))

    assert [receipt.base_sequence for receipt in receipts] == [1 + 2 * number for number in range(50)]
    expected = [text for number in range(50) for text in (b"%d" % number, b"%d again" % number)]
    assert await fetch_values(client, shard) == expected


def key_in(shard):
    """A key that hashes into the shard."""
    from streamkit._core.hashing import hash_key

    return next(
        key for key in (b"%d" % number for number in range(10_000))
        if shard.hash_start <= int.from_bytes(hash_key(key), "big") < shard.hash_end
    )


async def test_a_fetch_waits_for_the_next_record(client):
    shard = (await client.create_stream("orders")).shards[0]
    waiting = asyncio.ensure_future(client.fetch(shard, 0, wait_ms=10_000))
    await client.describe_node()

    await client.put_batch(shard, batch_of(b"late"))

    assert len((await waiting).batches) == 2


async def test_a_fetch_that_waited_long_enough_is_answered_empty(client):
    shard = (await client.create_stream("orders")).shards[0]

    fetched = await client.fetch(shard, 0, wait_ms=10)
    assert (fetched.batches, fetched.next_sequence, fetched.high_watermark) == ([], 0, 0)


async def test_many_fetches_wait_at_once_and_all_are_woken(client):
    shard = (await client.create_stream("orders")).shards[0]
    waiting = [asyncio.ensure_future(client.fetch(shard, 0, wait_ms=10_000)) for _ in range(50)]
    await client.describe_node()
    await client.put_batch(shard, batch_of(b"x"))

    assert {(await one).next_sequence for one in waiting} == {2}


async def test_positions_resolve_against_the_log(client):
    shard = (await client.create_stream("orders")).shards[0]
    first = await client.put_batch(shard, batch_of(b"a", b"b"))
    last = await client.put_batch(shard, batch_of(b"c"))

    async def at(position):
        return (await client.resolve_position(shard, position)).sequence

    assert await at("trim_horizon") == 0
    assert await at("latest") == last.base_sequence + 1
    assert await at(AtSequence(first.base_sequence + 1)) == first.base_sequence + 1
    assert await at(AfterSequence(first.base_sequence)) == first.base_sequence + 1
    assert await at(AtTime(0)) == 0
    assert await at(AtTime(last.append_time_ms + 3_600_000)) == last.base_sequence + 1
    with pytest.raises(InvalidPosition, match="ends at 4"):
        await at(AtSequence(99))


async def test_a_repeated_batch_is_stored_once_and_acknowledged_alike(client):
    shard = (await client.create_stream("orders")).shards[0]
    given = await client.new_producer()
    batch = batch_of(b"once", producer_id=given.producer_id, producer_sequence=0)

    first = await client.put_batch(shard, batch)
    again = await client.put_batch(shard, batch)

    assert (again.base_sequence, again.duplicate, first.duplicate) == (first.base_sequence, 1, 0)
    assert await fetch_values(client, shard) == [b"once"]


async def test_repeats_sent_together_are_stored_once(client):
    shard = (await client.create_stream("orders")).shards[0]
    given = await client.new_producer()
    batch = batch_of(b"once", producer_id=given.producer_id)
    receipts = await asyncio.gather(*(client.put_batch(shard, batch) for _ in range(20)))

    assert {receipt.base_sequence for receipt in receipts} == {1}
    assert await fetch_values(client, shard) == [b"once"]


async def test_a_missing_batch_of_a_producer_is_noticed(client):
    shard = (await client.create_stream("orders")).shards[0]
    given = await client.new_producer()
    await client.put_batch(shard, batch_of(b"0", producer_id=given.producer_id, producer_sequence=0))
    with pytest.raises(SequenceGap):
        await client.put_batch(shard, batch_of(b"9", producer_id=given.producer_id, producer_sequence=9))


async def test_the_elder_of_two_producers_of_a_name_is_fenced(client):
    shard = (await client.create_stream("orders")).shards[0]
    elder, newer = await client.new_producer("loader"), await client.new_producer("loader")

    def put(given, value):
        return client.put_batch(
            shard, batch_of(value, producer_id=given.producer_id, producer_epoch=given.producer_epoch)
        )

    await put(newer, b"new")
    with pytest.raises(ProducerFenced):
        await put(elder, b"old")


async def test_streams_are_created_listed_described_and_deleted(client):
    for name in ("b", "a", "c"):
        await client.create_stream(name, StreamConfig(shards=2))
    with pytest.raises(StreamExists):
        await client.create_stream("a")
    assert [stream.name for stream in await client.list_streams()] == ["a", "b", "c"]
    shard = (await client.describe_stream("b")).shards[0]
    waiting = asyncio.ensure_future(client.fetch(shard, 0, wait_ms=30_000))
    await client.describe_node()

    await client.delete_stream("b")

    with pytest.raises(ShardNotFound):
        await waiting
    with pytest.raises(ShardNotFound):
        await client.put_batch(shard, batch_of(b"x"))
    with pytest.raises(StreamNotFound):
        await client.describe_stream("b")
    assert [stream.name for stream in await client.list_streams()] == ["a", "c"]


async def test_an_unknown_stream_comes_with_a_near_name(client):
    await client.create_stream("orders")
    with pytest.raises(StreamNotFound, match="did you mean") as caught:
        await client.describe_stream("ordrs")
    assert caught.value.facts["near"] == "orders"


async def test_an_unknown_shard_is_refused_and_the_connection_lives_on(client):
    stranger = Shard(ordinal=0, uuid=b"?" * 16, hash_start=0, hash_end=1 << 128, created_ms=0)
    with pytest.raises(ShardNotFound):
        await client.put_batch(stranger, batch_of(b"x"))
    with pytest.raises(ShardNotFound):
        await client.fetch(stranger, 0)
    assert (await client.describe_node()).ready


async def test_a_batch_that_is_damaged_is_refused(client):
    shard = (await client.create_stream("orders")).shards[0]
    broken = bytearray(batch_of(b"x" * 50))
    broken[-1] ^= 1
    with pytest.raises(CorruptBatch):
        await client.put_batch(shard, bytes(broken))
    with pytest.raises(CorruptBatch):
        await client.put_batch(shard, b"SK not a batch")
    assert await fetch_values(client, shard) == []


async def test_a_record_above_the_stream_s_limit_is_refused(client):
    shard = (await client.create_stream("orders", StreamConfig(record_bytes_max=1000))).shards[0]
    await client.put_batch(shard, batch_of(*[b"y" * 900] * 10))
    with pytest.raises(RecordTooLarge) as caught:
        await client.put_batch(shard, batch_of(b"y", b"x" * 1001))
    assert caught.value.facts["limit_bytes"] == 1000


async def test_shards_tell_what_they_hold(client):
    shard = (await client.create_stream("orders")).shards[0]
    (empty,) = await client.describe_shards("orders")
    receipt = await client.put_batch(shard, batch_of(b"a", b"b"))
    (state,) = await client.describe_shards("orders")

    assert (empty.log_end, empty.first_append_ms) == (0, None)
    assert (state.log_end, state.high_watermark, state.records_appended) == (3, 3, 2)
    assert state.last_append_ms == receipt.append_time_ms
