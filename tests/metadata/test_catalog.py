"""The catalog: streams appear with tiled shards, epochs rise at every start, producers are told apart."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit.errors import (
    CorruptFile,
    InvalidRequest,
    LimitReached,
    ProducerFenced,
    StoreUnavailable,
    StreamBusy,
    StreamExists,
    StreamNotFound,
)
from streamkit.metadata.catalog import Catalog, from_entry, to_entry
from streamkit.metadata.memory_store import MemoryStore
from streamkit.model.limits import HASH_KEYS
from streamkit.model.shard import Shard
from streamkit.model.stream import Durability, StreamConfig, StreamDescription, StreamStatus


@pytest.fixture
async def catalog(store, runtime):
    return await Catalog.open(store, runtime)


async def test_a_new_stream_has_shards_that_tile_the_hash_keys(catalog):
    stream = await catalog.create("orders", StreamConfig(shards=3))

    assert stream.status is StreamStatus.CREATING
    assert [shard.hash_start for shard in stream.shards[1:]] == [shard.hash_end for shard in stream.shards[:-1]]
    assert (stream.shards[0].hash_start, stream.shards[-1].hash_end) == (0, HASH_KEYS)
    assert len({shard.uuid for shard in stream.shards}) == 3


async def test_every_start_raises_every_epoch_in_one_transaction(catalog, store, runtime):
    for name in ("a", "b"):
        await catalog.create(name, StreamConfig(shards=2))
    again = await Catalog.open(store, runtime)

    assert {shard.epoch for stream in again.streams.values() for shard in stream.shards} == {2}
    assert len({entry.revision for entry in await store.list("streams/")}) == 1


async def test_the_older_of_two_catalogs_can_change_nothing(catalog, store, runtime):
    await catalog.create("orders", StreamConfig())
    await Catalog.open(store, runtime)

    with pytest.raises(StreamBusy):
        await catalog.set_status("orders", StreamStatus.ACTIVE)


async def test_a_name_is_taken_once(catalog):
    await catalog.create("orders", StreamConfig())
    with pytest.raises(StreamBusy):
        await catalog.create("orders", StreamConfig())
    await catalog.set_status("orders", StreamStatus.ACTIVE)
    with pytest.raises(StreamExists):
        await catalog.create("orders", StreamConfig())


async def test_a_deleted_stream_comes_back_with_other_shards(catalog):
    first = await catalog.create("orders", StreamConfig())
    await catalog.forget("orders")
    second = await catalog.create("orders", StreamConfig())

    assert first.shards[0].uuid != second.shards[0].uuid


async def test_an_unknown_stream_comes_with_a_near_name(catalog):
    await catalog.create("orders", StreamConfig())
    with pytest.raises(StreamNotFound, match='"ordrs" does not exist; did you mean "orders"') as caught:
        catalog.stream("ordrs")
    assert caught.value.facts == {"stream": "ordrs", "near": "orders"}
    with pytest.raises(StreamNotFound) as caught:
        catalog.stream("billing")
    assert caught.value.facts["near"] is None


@pytest.mark.parametrize("name", ["", "a/b", "__mine", "ä", "x" * 129])
async def test_bad_names_are_refused(catalog, name):
    with pytest.raises(InvalidRequest):
        await catalog.create(name, StreamConfig())


async def test_internal_streams_are_not_listed(catalog):
    await catalog.create("__applications", StreamConfig())
    await catalog.create("orders", StreamConfig())
    assert catalog.names() == ["orders"]


async def test_the_shard_limit_holds_over_all_streams(store, runtime):
    catalog = await Catalog.open(store, runtime, shards_max=5)
    await catalog.create("a", StreamConfig(shards=4))
    with pytest.raises(LimitReached):
        await catalog.create("b", StreamConfig(shards=2))


async def test_the_shard_limit_leaves_the_internal_stream_out(store, runtime):
    catalog = await Catalog.open(store, runtime, shards_max=5)
    await catalog.create("__applications", StreamConfig())
    await catalog.create("orders", StreamConfig(shards=5))
    with pytest.raises(LimitReached):
        await catalog.create("more", StreamConfig())


async def test_damaged_metadata_is_named(store, runtime):
    await store.compare_and_swap("streams/orders", 0, b'{"name": 1}')
    with pytest.raises(CorruptFile, match="streams/orders"):
        await Catalog.open(store, runtime)


async def test_anonymous_producers_get_ids_of_their_own(catalog, store, runtime):
    given = [await catalog.new_producer() for _ in range(3)]
    again = await Catalog.open(store, runtime)
    given.append(await again.new_producer())

    assert given == [(1, 0), (2, 0), (3, 0), (4, 0)]


async def test_a_named_producer_keeps_its_id_and_fences_its_elders(catalog):
    assert await catalog.new_producer("loader") == (1, 0)
    assert await catalog.new_producer("loader") == (1, 1)
    assert await catalog.new_producer("other") == (2, 0)


async def test_an_old_read_of_the_store_shuts_nobody_out(runtime):
    shared = MemoryStore(runtime.clock)
    handle = shared.handle("n1", runtime.random)
    catalog = await Catalog.open(handle, runtime)
    with pytest.raises(StoreUnavailable):
        await catalog.holds_name("loader", b"elder")
    await catalog.new_producer("loader", b"elder")
    runtime.clock.ms += 1_000
    await catalog.new_producer("loader", b"younger")
    draws = iter([0.5] * 3)                              # 500 ms ago the elder held it; then the answers are new
    runtime.random.uniform = lambda: next(draws, 0.0)
    handle.faults.stale_ms = 1_000

    assert await catalog.holds_name("loader", b"younger")
    assert not await catalog.holds_name("loader", b"elder")
    draws = iter([0.5] * 2)
    assert await catalog.renew_producer("loader", b"younger") == (1, 2)
    with pytest.raises(ProducerFenced):
        await catalog.renew_producer("loader", b"elder")


async def test_a_producer_whose_epochs_are_used_up_gets_a_new_id(catalog, store):
    await catalog.new_producer("loader")
    _, revision = await store.read("producers/loader")
    await store.compare_and_swap("producers/loader", revision, b'{"producer_id":1,"epoch":65535}')
    assert await catalog.new_producer("loader") == (2, 0)


SHARDS = st.builds(
    Shard, ordinal=st.integers(0, 9999), uuid=st.binary(min_size=16, max_size=16),
    hash_start=st.integers(0, HASH_KEYS - 1), hash_end=st.integers(1, HASH_KEYS), created_ms=st.integers(0, 2**42),
    closed_ms=st.none() | st.integers(0, 2**42), parents=st.tuples(st.integers(0, 9)),
    children=st.tuples(st.integers(0, 9)), epoch=st.integers(0, 2**32 - 1), leader=st.just(""), address=st.just(""),
)


@given(shards=st.lists(SHARDS, min_size=1, max_size=4), durability=st.sampled_from(Durability))
def test_an_entry_gives_back_the_stream(shards, durability):
    stream = StreamDescription(
        name="orders", status=StreamStatus.ACTIVE, created_ms=5, map_version=3, shards=tuple(shards),
        config=StreamConfig(
            shards=max(1, sum(shard.closed_ms is None for shard in shards)), durability=durability, retention_bytes=10
        ),
    )
    assert from_entry(to_entry(stream)) == stream


async def test_settings_change_and_shards_stay(catalog, store, runtime):
    made = await catalog.create("orders", StreamConfig(shards=3))
    with pytest.raises(StreamBusy):
        await catalog.alter("orders", lambda config: config)
    await catalog.set_status("orders", StreamStatus.ACTIVE)

    altered = await catalog.alter("orders", lambda config: replace(config, retention_hours=48))

    assert altered.config == StreamConfig(shards=3, retention_hours=48)
    assert (altered.shards, altered.map_version) == (made.shards, made.map_version)
    again = await Catalog.open(store, runtime)
    assert again.stream("orders").config == altered.config
    with pytest.raises(StreamNotFound):
        await catalog.alter("order", lambda config: config)


async def test_a_change_of_settings_is_made_over_what_another_changed(catalog, store, runtime):
    await catalog.create("orders", StreamConfig())
    await catalog.set_status("orders", StreamStatus.ACTIVE)
    other = await Catalog.open(store, runtime)
    await other.alter("orders", lambda config: replace(config, record_bytes_max=5))

    altered = await catalog.alter("orders", lambda config: replace(config, retention_hours=48))

    assert altered.config == StreamConfig(retention_hours=48, record_bytes_max=5)
    assert altered.shards[0].epoch == 2
    await other.look("orders")
    await other.set_status("orders", StreamStatus.DELETING)
    await other.forget("orders")
    with pytest.raises(StreamNotFound):
        await catalog.alter("orders", lambda config: replace(config, retention_hours=24))
