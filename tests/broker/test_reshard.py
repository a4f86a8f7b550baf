"""Splits, merges and scaling on a node: parents keep what they hold, children take over, crashes finish the plan."""

import asyncio

import pytest

from streamkit._core.batch import Batch, read_header, seal
from streamkit._core.hashing import hash_key as hash_bytes
from streamkit.client.routing import shard_for
from streamkit.errors import (
    DiskFull,
    InvalidRequest,
    LimitReached,
    ShardClosed,
    ShardNotFound,
    StreamBusy,
    StreamNotFound,
)
from streamkit.model.limits import HASH_KEYS
from streamkit.protocol import messages as m
from streamkit.protocol.closing import decode_closing
from streamkit.protocol.conversion import stream_from_wire
from tests.broker.conftest import batch_of


def hash_key(key):
    return int.from_bytes(hash_bytes(key), "big")


async def ask(client, message):
    return stream_from_wire((await client.call(message)).stream)


async def split(client, shard=0, at=None, name="orders"):
    return await ask(client, m.SplitShard(name, shard, None if at is None else at.to_bytes(17, "big")))


async def merge(client, *shards, name="orders"):
    return await ask(client, m.MergeShards(name, shards))


async def scale(client, shards, name="orders"):
    return await ask(client, m.ScaleStream(name, shards))


async def put(client, key, value, **options):
    """To whatever shard takes the key now."""
    stream = await client.describe_stream("orders")
    shard = shard_for(stream, hash_key(key))
    await client.put_batch(shard, one(key, value, **options))


def one(key, value, **options):
    return seal([(key, value, b"", None, None)], **options)


async def held(client, shard):
    """[(key, value)] of a shard, and its closing record when it has one."""
    found, closing, at = [], None, 0
    while True:
        fetched = await client.fetch(shard, at, wait_ms=0)
        if fetched.next_sequence == at:
            return found, closing
        for stored in fetched.batches:
            batch = Batch(stored, None, at)
            if not batch.is_control:
                found += [(record.key.encode(), bytes(record.data)) for record in batch]
            elif not read_header(stored).is_epoch_start:
                closing = decode_closing(bytes(batch[0].data))
        at = fetched.next_sequence


def open_ordinals(stream):
    return [shard.ordinal for shard in sorted(stream.shards, key=lambda s: s.hash_start) if shard.closed_ms is None]


async def test_a_split_closes_the_parent_and_its_children_take_its_keys(client):
    before = await client.create_stream("orders")
    await put(client, b"a", b"1")

    after = await split(client)
    await put(client, b"a", b"2")

    parent, left, right = after.shards
    assert after.map_version == before.map_version + 1
    assert (parent.closed_ms is None, parent.children, parent.end) == (False, (1, 2), 3)
    assert [(s.hash_start, s.hash_end, s.parents, s.closed_ms) for s in (left, right)] == [
        (0, HASH_KEYS // 2, (0,), None), (HASH_KEYS // 2, HASH_KEYS, (0,), None)
    ]
    values, closing = await held(client, parent)
    assert values == [(b"a", b"1")]
    assert (closing.stream, closing.ordinal, [child.ordinal for child in closing.children]) == ("orders", 0, [1, 2])
    child = shard_for(after, hash_key(b"a"))
    assert await held(client, child) == ([(b"a", b"2")], None)
    assert stream_of(await client.describe_stream("orders")) == stream_of(after)


def stream_of(stream):
    return stream.map_version, [(s.uuid, s.closed_ms, s.end, s.parents, s.children) for s in stream.shards]


async def test_a_put_that_the_parent_holds_is_known_again_and_any_other_is_refused(client):
    shard = (await client.create_stream("orders")).shards[0]
    producer = (await client.new_producer()).producer_id
    stored = one(b"a", b"1", producer_id=producer)
    first = await client.put_batch(shard, stored)
    await split(client)

    again = await client.put_batch(shard, stored)
    assert (again.base_sequence, again.duplicate) == (first.base_sequence, 1)
    for refused in (
        one(b"a", b"2"),
        one(b"a", b"2", producer_id=producer, producer_sequence=1),
        one(b"a", b"3", producer_id=producer, producer_sequence=2),        # behind one that was refused as well
        one(b"a", b"1", producer_id=producer + 1),
    ):
        with pytest.raises(ShardClosed) as caught:
            await client.put_batch(shard, refused)
        assert caught.value.facts["shard"] == shard.uuid.hex()
        assert "map_version" in caught.value.facts


async def test_splits_merges_and_scaling_keep_every_key_in_order(client, start, connect, node):
    await client.create_stream("orders", shards=2)
    keys = [b"key-%d" % n for n in range(20)]
    steps = [
        lambda c: split(c, 0), lambda c: merge(c, 1, 3), lambda c: scale(c, 5), lambda c: scale(c, 5),
        lambda c: split(c, 7, HASH_KEYS // 2 + 7), lambda c: scale(c, 1),
    ]  # fmt: skip
    count = 0
    for number, step in enumerate([*steps, None]):
        for key in keys:
            await put(client, key, b"%d" % count)
            count += 1
        if number == 3:
            await node.stop()
            node = await start()
            client = await connect(node)
        if step is not None:
            await step(client)

    await check_order(client, keys, count)


async def check_order(client, keys, count):
    """Shards read parents before children hold each key's values in the order of the puts."""
    stream = await client.describe_stream("orders")
    seen = {key: [] for key in keys}
    for shard in stream.shards:                            # ordinals grow along every line
        values, closing = await held(client, shard)
        assert (closing is None) == (shard.closed_ms is None)
        for key, value in values:
            assert shard.hash_start <= hash_key(key) < shard.hash_end
            seen[key].append(int(value))
    assert all(values == sorted(values) for values in seen.values())
    assert sorted(value for values in seen.values() for value in values) == list(range(count))


async def test_scaling_to_what_is_there_already_changes_nothing(client):
    before = await client.create_stream("orders", shards=3)

    assert stream_of(await scale(client, 3)) == stream_of(before)


async def test_bad_requests_are_refused_and_change_nothing(client, start, connect):
    await client.create_stream("orders", shards=3)
    now = await split(client)                              # open: 3, 4, 1, 2
    for request, error in [
        (split(client, 0), ShardClosed), (split(client, 9), ShardNotFound), (split(client, 1, 5), InvalidRequest),
        (split(client, name="other"), StreamNotFound), (split(client, name="__applications"), InvalidRequest),
        (split(client, name="*"), InvalidRequest), (merge(client, 3, 2), InvalidRequest),
        (merge(client, 1), InvalidRequest), (merge(client, 1, 0), ShardClosed), (merge(client, 1, 77), ShardNotFound),
        (scale(client, 0), InvalidRequest), (scale(client, 10_001), InvalidRequest),
        (client.call(m.SplitShard("orders", 1, bytes(40))), InvalidRequest),
        (scale(client, 10_000), LimitReached),
    ]:  # fmt: skip
        with pytest.raises(error) as caught:
            await request
        assert caught.value.try_
    assert stream_of(await client.describe_stream("orders")) == stream_of(now)


async def test_of_two_reshardings_at_once_one_is_told_to_come_back(client):
    await client.create_stream("orders", shards=2)

    outcomes = await asyncio.gather(
        split(client, 0), split(client, 1), scale(client, 7), return_exceptions=True
    )

    refused = [outcome for outcome in outcomes if isinstance(outcome, StreamBusy)]
    assert len(refused) == 2
    assert all(error.retryable for error in refused)
    await split(client, open_ordinals(await client.describe_stream("orders"))[0])


async def test_other_streams_are_resharded_at_the_same_time(client):
    names = [f"stream-{n}" for n in range(5)]
    for name in names:
        await client.create_stream(name)

    done = await asyncio.gather(*(scale(client, 4, name) for name in names))

    assert all(stream.config.shards == 4 for stream in done)


@pytest.mark.parametrize("durability", ["fsync", "os", "leader"])
async def test_every_level_of_durability_can_be_resharded_and_restarted(start, connect, durability):
    node = await start()
    client = await connect(node)
    await client.create_stream("orders", durability=durability)
    await put(client, b"a", b"0")
    after = await split(client)
    await put(client, b"a", b"1")
    await node.stop()

    client = await connect(await start())
    assert stream_of(await client.describe_stream("orders")) == stream_of(after)
    with pytest.raises(ShardClosed):
        await client.put_batch(after.shards[0], batch_of(b"late"))
    await check_order(client, [b"a"], 2)


async def test_a_stream_is_deleted_whole_with_all_of_its_generations(client, node):
    await client.create_stream("orders", shards=2)
    await scale(client, 4)
    await client.delete_stream("orders")

    assert len(node._directory.shards) == 1                # the coordinator's own
    again = await client.create_stream("orders")
    assert [shard.ordinal for shard in again.shards] == [0]


async def test_a_full_disk_leaves_the_shards_open(client, node):
    await client.create_stream("orders")
    before = stream_of(await client.describe_stream("orders"))
    create_shards = node._directory.create_shards

    async def full(uuids):
        raise DiskFull("no space left", try_="free space", free_bytes=0, floor_bytes=0, path="data")

    node._directory.create_shards = full
    with pytest.raises(DiskFull):
        await split(client)
    assert stream_of(await client.describe_stream("orders")) == before
    await put(client, b"a", b"0")
    node._directory.create_shards = create_shards
    await split(client)
    assert node.reshards._records.entries == {}


async def test_a_closed_shard_leaves_the_map_with_its_log_when_its_records_are_too_old(client, node):
    await client.create_stream("orders")
    await put(client, b"a", b"0")
    after = await split(client)
    day_ms = 168 * 3_600_000

    assert await node.reshards.forget_expired(after.shards[0].closed_ms + day_ms - 1_000) == 0
    assert await node.reshards.forget_expired(after.shards[0].closed_ms + day_ms + 60_000) == 1

    left = await client.describe_stream("orders")
    assert [(shard.ordinal, shard.parents) for shard in left.shards] == [(1, (0,)), (2, (0,))]
    assert left.map_version == after.map_version + 1
    assert after.shards[0].uuid not in node._directory.shards
    with pytest.raises(ShardNotFound):
        await client.fetch(after.shards[0], 0)


async def test_a_closed_shard_whose_closing_was_lost_is_closed_again_before_anybody_can_put(client, node):
    await client.create_stream("orders", durability="leader")
    await put(client, b"a", b"0")
    parent = (await split(client)).shards[0]
    served = node._streams.shards[parent.uuid]
    log = served.log
    await node._directory.truncate(log, parent.end - 1)    # as on a copy that never got it
    assert log.closing is None

    node.reshards.led(served)

    with pytest.raises(ShardClosed):
        await client.put_batch(parent, one(b"a", b"late"))
    assert (log.closing_end, (await held(client, parent))[0]) == (parent.end, [(b"a", b"0")])
    await node.reshards._records.correct_end("orders", 0, 77)          # had it lost records as well
    again = await client.describe_stream("orders")
    assert (again.shards[0].end, again.map_version) == (77, 3)
