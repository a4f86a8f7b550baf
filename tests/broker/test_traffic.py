"""Where a shard's traffic parts into halves, and how much there is: read from its log."""

import asyncio
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit._core.batch import seal, stamped
from streamkit.broker import traffic
from streamkit.broker.traffic import (
    HALF_LIFE_MS,
    RECORDS_MIN,
    UNEVEN,
    WINDOW_MS,
    Traffic,
    Weight,
    _weigh,
    halved,
    put_rates,
    traffic_of,
)
from streamkit.client.client import AsyncClient
from streamkit.errors import InvalidRequest
from streamkit.metadata.reshard import split
from streamkit.model.limits import HASH_KEYS
from streamkit.protocol import connection
from streamkit.protocol import messages as m
from tests.broker.cluster_nodes import cluster

weights = st.dictionaries(
    st.integers(0, HASH_KEYS - 1), st.floats(0.001, 1e9).map(lambda size: Weight(size, "k")), min_size=1, max_size=40
)


def slow_best(weighed):
    """The smallest larger half of all borders between two keys."""
    keys, total = sorted(weighed), sum(weight.bytes for weight in weighed.values())
    sides = [sum(weighed[key].bytes for key in keys[:cut]) / total for cut in range(1, len(keys))]
    return min((max(side, 1 - side) for side in sides), default=1.0)


@given(weighed=weights)
def test_no_border_between_two_keys_parts_them_more_evenly(weighed):
    found = halved(weighed, RECORDS_MIN)
    best = slow_best(weighed)

    if found.at is None:
        assert best > UNEVEN - 1e-6 and found.key_share > 0.5
    else:
        total = sum(weight.bytes for weight in weighed.values())
        below = sum(weight.bytes for key, weight in weighed.items() if key < found.at) / total
        assert max(below, 1 - below) == pytest.approx(best)
        assert found.below == pytest.approx(below)
        assert min(weighed) < found.at <= max(weighed)


def test_too_few_records_say_nothing():
    assert halved({1: Weight(5.0, "a"), 9: Weight(5.0, "b")}, RECORDS_MIN - 1) == Traffic(None, RECORDS_MIN - 1)
    assert halved({}, 0) == Traffic(None, 0)


async def put(client, records):
    """In batches of 500, (key, value) each."""
    (shard,) = (await client.describe_stream("orders")).shards
    for at in range(0, len(records), 500):
        part = [(key.encode(), value, b"", None, None) for key, value in records[at : at + 500]]
        await client.put_batch(shard, seal(part))
    return shard


def hashed(key):
    return int.from_bytes(hashlib.md5(key.encode(), usedforsecurity=False).digest(), "big")


async def test_the_border_halves_the_bytes_of_what_was_put(node, client):
    await client.create_stream("orders", durability="os")
    keys = sorted((f"k{n}" for n in range(400)), key=hashed)
    records = [(key, b"x" * (100 if at < 300 else 900)) for at, key in enumerate(keys)] * 20
    shard = await put(client, records)

    found = await traffic_of(node._streams.shard(shard.uuid), node.runtime.clock.now_ms())

    border = keys[333]                                 # 300 · 100 + 33 · 900 ≈ 66 · 900
    assert abs(keys.index(border) - sum(hashed(key) < found.at for key in keys)) < 12
    assert 0.45 < found.below < 0.55 and found.key_share < 0.05
    assert split(await client.describe_stream("orders"), 0, found.at)


def test_what_came_lately_weighs_more():
    def batch(hash_key, append_time_ms):
        sealed = seal([(b"k", bytes(99), b"", None, hash_key.to_bytes(16, "big"))] * 50)
        return stamped(sealed, append_time_ms=append_time_ms, shard_uuid=bytes(16))

    weighed = {}
    now_ms = 10 * HALF_LIFE_MS
    looked_at = _weigh([batch(1, now_ms - 2 * HALF_LIFE_MS), batch(2, now_ms)], now_ms, 400.0, weighed)

    assert looked_at == 50, "every second one"
    assert weighed[2].bytes == pytest.approx(4 * weighed[1].bytes)
    assert weighed[2].bytes == pytest.approx(200 * (99 + 1 + 1))       # what it stands for: half of the 400


async def test_what_is_older_than_the_window_does_not_count(node, client):
    await client.create_stream("orders", durability="os")
    shard = await put(client, [(f"k{n}", b"old") for n in range(500)])
    served, now_ms = node._streams.shard(shard.uuid), node.runtime.clock.now_ms()

    assert (await traffic_of(served, now_ms + WINDOW_MS // 2)).at is not None
    assert await traffic_of(served, now_ms + WINDOW_MS + 60_000) == Traffic(None, 0)


async def test_one_key_cannot_be_split_and_is_named(node, client):
    await client.create_stream("orders", durability="os")
    shard = await put(client, [("customer-7", b"x" * 100)] * 900 + [(f"k{n}", b"x" * 10) for n in range(100)])

    found = await traffic_of(node._streams.shard(shard.uuid), node.runtime.clock.now_ms())

    assert found.at is None and found.key == "customer-7" and found.key_share > 0.9


async def test_a_long_log_is_sampled_and_not_read(node, client, monkeypatch):
    monkeypatch.setattr(traffic, "_PLACES", 8)
    await client.create_stream("orders", durability="os")
    keys = sorted((f"k{n}" for n in range(256)), key=hashed)
    shard = await put(client, [(key, bytes(200)) for key in keys] * 100)
    served = node._streams.shard(shard.uuid)
    read = []
    inner = type(served.log).read_cold
    monkeypatch.setattr(type(served.log), "read_cold", lambda *a: read.append(a[1]) or inner(*a))

    found = await traffic_of(served, node.runtime.clock.now_ms())

    assert len(read) == 8 and found.records <= 8 * 2 * 64
    assert 0.4 < sum(hashed(key) < found.at for key in keys) / len(keys) < 0.6


async def test_rates_are_of_the_last_minute(node, client):
    await client.create_stream("orders", durability="os")
    assert (await client.describe_stream("orders")).shards[0].put_bytes_rate == 0.0
    shard = await put(client, [(f"k{n}", bytes(1_000)) for n in range(5_000)])
    log = node._streams.shard(shard.uuid).log
    now_ms = node.runtime.clock.now_ms()

    records, size = put_rates(log, now_ms + 20_000)
    described = (await client.describe_stream("orders")).shards[0]

    assert records == pytest.approx(5_000 / 20, rel=0.2)
    assert size == pytest.approx(log.stored_bytes / 20, rel=0.2)
    assert described.put_records_rate > 0 and described.put_bytes_rate > 0
    await client.split_shard("orders", 0)
    closed = (await client.describe_stream("orders")).shards[0]
    assert closed.put_bytes_rate == 0.0, "nobody can put there any more"
    assert put_rates(log, now_ms + 70_000) == (0.0, 0.0)


async def test_after_a_restart_rates_are_guessed_from_times(start, connect):
    node = await start()
    client = await connect(node)
    await client.create_stream("orders", durability="os")
    shard = await put(client, [("k", bytes(500))] * 3_000)
    before = node._streams.shard(shard.uuid).log.appended_since(0)
    await node.stop(1)

    again = await start()
    log = again._streams.shard(shard.uuid).log

    assert log.appended_since(0) == before
    assert log.appended_since(log.last_append_ms + 1) == (0, 0)
    records, size = log.appended_since(log.last_append_ms)
    assert 0 <= records <= before[0] and 0 <= size <= before[1]


async def test_any_node_of_a_cluster_finds_where_to_split_and_how_far_that_is(tmp_path):
    async with cluster(tmp_path) as nodes, nodes.client("a") as client, nodes.client("c") as other:
        await client.create_stream("orders", shards=3)
        stream = await client.describe_stream("orders")
        for shard in stream.shards:
            await nodes.led(shard.uuid)
            batch = [(b"k%d" % n, bytes(50), b"", None, (shard.hash_start + n).to_bytes(16, "big")) for n in range(60)]
            await client.put_batch(shard, seal(batch))

        operations = [client.split_shard("orders", shard.id, at="traffic") for shard in stream.shards]
        await asyncio.gather(*(operation.accepted() for operation in operations))
        followed = [await other.operation(operation.id) for operation in operations]

        assert [operation.status for operation in operations] == ["done"] * 3
        assert all(operation.note.startswith("50% of the bytes") for operation in operations)
        after = followed[-1]
        starts = sorted(shard.hash_start for shard in after.shards if shard.closed_ms is None)
        assert starts[1::2] == [shard.hash_start + 30 for shard in stream.shards]


async def test_a_broker_that_cannot_tell_is_not_asked(node, client, monkeypatch):
    await client.create_stream("orders")
    monkeypatch.setattr(connection, "FEATURES", ("where",))
    async with AsyncClient(node.addresses.native) as old:
        with pytest.raises(InvalidRequest, match="earlier version"):
            await old.split_shard("orders", 0, at="traffic")
        assert await old.split_shard("orders", 0)
        assert m.DescribeTraffic.__name__ not in node.counters.messages
