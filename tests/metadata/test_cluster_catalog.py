"""The catalog of a cluster: every node sees what every node does, and a stream is there whole or not at all."""

import asyncio
from dataclasses import replace

import pytest

from streamkit.errors import CannotPlace, StoreUnavailable, StreamBusy, StreamExists, StreamNotFound
from streamkit.metadata.cluster_catalog import CLAIMS, remove_claim
from streamkit.metadata.memory_store import MemoryStore
from streamkit.metadata.store import Swap
from streamkit.model.stream import StreamConfig, StreamStatus
from tests.metadata.conftest import settle
from tests.metadata.nodes import MetadataNode


@pytest.fixture
async def three(runtime):
    store = MemoryStore(runtime.clock)
    nodes = [await MetadataNode.start(store.handle(name), runtime, name) for name in ("a", "b", "c")]
    await settle()
    yield nodes
    for node in nodes:
        await node.stop()


async def test_a_stream_appears_on_every_node_with_its_copies_and_leaders(three):
    a, _, c = three
    stream = await a.catalog.create("orders", StreamConfig(shards=3))
    await a.catalog.set_status("orders", StreamStatus.ACTIVE)
    await settle()

    assert c.catalog.stream("orders").status is StreamStatus.ACTIVE
    sets = {shard.uuid: c.sets.entries[shard.uuid] for shard in stream.shards}
    assert all(sorted(entry.nodes) == ["a", "b", "c"] and entry.epoch == 0 for entry in sets.values())
    assert sorted(entry.nodes[0] for entry in sets.values()) == ["a", "b", "c"]
    for uuid, entry in sets.items():
        led = entry.with_set(entry.replica_set.led_by(entry.nodes[0]))
        assert (await a.sets.swap(uuid, entry.revision, led)).epoch == 1
    await settle()
    located = c.catalog.located(c.catalog.stream("orders"))
    assert sorted(shard.address for shard in located.shards) == ["a:1", "b:1", "c:1"]


async def test_a_deleted_stream_leaves_nothing_anywhere(three):
    a, b, _ = three
    await a.catalog.create("orders", StreamConfig(shards=4))
    await settle()
    await b.catalog.set_status("orders", StreamStatus.DELETING)
    await b.catalog.forget("orders")
    await settle()

    assert a.catalog.streams == {}
    assert a.sets.entries == {}
    assert await a.store.list("replicas/") == []


async def test_two_nodes_that_create_the_same_name_agree_on_one(three):
    a, b, c = three
    outcomes = await asyncio.gather(
        *(node.catalog.create("orders", StreamConfig()) for node in (a, b)), return_exceptions=True
    )
    await settle()

    assert sum(isinstance(outcome, StreamBusy) for outcome in outcomes) == 1
    assert len(c.sets.entries) == 1
    with pytest.raises((StreamBusy, StreamExists)):
        await c.catalog.create("orders", StreamConfig())


async def test_a_stream_that_cannot_be_placed_changes_nothing(runtime):
    store = MemoryStore(runtime.clock)
    node = await MetadataNode.start(store, runtime, "a")
    before = await store.list("")
    with pytest.raises(CannotPlace) as caught:
        await node.catalog.create("orders", StreamConfig())

    assert caught.value.facts == {"replicas": 3, "nodes": 1, "live": 1}
    assert await store.list("") == before
    await node.stop()


async def test_with_fewer_nodes_than_copies_a_cluster_that_was_told_so_goes_on(runtime):
    node = await MetadataNode.start(MemoryStore(runtime.clock), runtime, "a", accept_fewer=True)
    stream = await node.catalog.create("orders", StreamConfig())
    assert node.sets.entries[stream.shards[0].uuid].nodes == ("a",)
    await node.stop()


async def test_a_lost_answer_does_not_lose_or_double_a_stream(three):
    a, b, _ = three
    a.store.faults.answers = False
    creating = asyncio.ensure_future(a.catalog.create("orders", StreamConfig(shards=2)))
    await settle()
    a.store.faults.answers = True
    a.store.faults.timeout_ms = 20

    stream = await creating
    await settle()
    assert b.catalog.stream("orders").shards == stream.shards
    assert len(b.sets.entries) == 2


async def test_a_store_that_is_down_is_named_and_nobody_waits_to_read(three):
    a = three[0]
    await a.catalog.create("orders", StreamConfig())
    a.store.faults.reachable = False
    a.store.faults.timeout_ms = 1

    assert a.catalog.names() == ["orders"]
    with pytest.raises(StoreUnavailable) as caught:
        await a.catalog.create("more", StreamConfig())
    assert caught.value.facts["outcome"] == "not_done"


class Parts:
    """A store whose transactions take few operations; a reader looks after each of them."""

    async def start(self, runtime):
        self.store = MemoryStore(runtime.clock, operations_max=5)
        self.nodes = [await MetadataNode.start(self.store.handle(name), runtime, name) for name in ("a", "b", "c")]
        await settle()
        return self

    async def stop(self):
        for node in self.nodes:
            await node.stop()

    async def names(self):
        return {key.split("/")[0] for key, _, _ in await self.store.list("")} - {"cluster", "members", "nodes"}


@pytest.fixture
async def parts(runtime):
    started = await Parts().start(runtime)
    yield started
    await started.stop()


async def test_a_stream_of_many_shards_is_seen_whole_or_not_at_all(parts):
    a, b, _ = parts.nodes
    seen = []
    b.catalog.on_change.append(lambda name, stream: seen.append((stream and len(stream.shards), len(b.sets.entries))))
    await a.catalog.create("orders", StreamConfig(shards=23))
    await settle()

    assert seen == [(23, 23)]
    assert await parts.names() == {"streams", "replicas"}
    await b.catalog.set_status("orders", StreamStatus.DELETING)
    await b.catalog.forget("orders")
    assert await parts.names() == set()


@pytest.mark.parametrize("calls", range(1, 8))
async def test_a_creation_that_is_cut_off_anywhere_leaves_only_a_claim(parts, calls):
    a, b, _ = parts.nodes
    swap_many, made = a.store.compare_and_swap_many, 0

    async def cut_off(swaps):
        nonlocal made
        made += 1
        if made >= calls:
            raise StoreUnavailable("gone", store="", outcome="not_done")
        return await swap_many(swaps)

    a.store.compare_and_swap_many = cut_off
    with pytest.raises(StoreUnavailable):
        await a.catalog.create("orders", StreamConfig(shards=23))
    await settle()
    assert "streams" not in await parts.names()
    await remove_claim(b.store, "orders")

    assert await parts.names() == set()
    assert await b.catalog.create("orders", StreamConfig(shards=23))


async def test_a_writer_whose_claim_was_removed_can_do_nothing_more(parts):
    a, b, _ = parts.nodes
    swap_many, held = a.store.compare_and_swap_many, []

    async def hold(swaps):
        held.append(swaps)
        if len(held) == 4:
            await remove_claim(b.store, "orders")
        return await swap_many(swaps)

    a.store.compare_and_swap_many = hold
    with pytest.raises(StreamBusy):
        await a.catalog.create("orders", StreamConfig(shards=23))

    assert await parts.names() == set()
    for swaps in held:
        assert not any(isinstance(swap, Swap) and swap.key == CLAIMS for swap in swaps)
        if held.index(swaps) > 0:
            assert await parts.store.compare_and_swap_many(swaps) is None      # also when it arrives late


async def test_a_deletion_that_has_begun_elsewhere_is_not_taken_back(three):
    a, b, _ = three
    await a.catalog.create("orders", StreamConfig(shards=1))
    await settle()
    await b.catalog.set_status("orders", StreamStatus.DELETING)    # a has not heard of it
    with pytest.raises(StreamBusy):
        await a.catalog.set_status("orders", StreamStatus.ACTIVE)
    await settle()
    assert a.catalog.stream("orders").status is StreamStatus.DELETING


async def test_a_node_that_has_not_heard_of_a_stream_alters_it_all_the_same(three):
    a, b, _ = three
    await a.catalog.create("orders", StreamConfig())
    await a.catalog.set_status("orders", StreamStatus.ACTIVE)
    assert "orders" not in b.catalog.streams

    altered = await b.catalog.alter("orders", lambda config: replace(config, retention_hours=48))

    assert altered.config.retention_hours == 48


async def test_settings_changed_on_one_node_are_known_on_every_node(three):
    a, b, c = three
    await a.catalog.create("orders", StreamConfig(shards=3))
    await a.catalog.set_status("orders", StreamStatus.ACTIVE)
    await settle()
    heard = []
    c.catalog.on_change.append(lambda name, stream: heard.append((name, stream.config.retention_hours)))

    # b has not heard of a's change when it makes its own.
    await a.catalog.alter("orders", lambda config: replace(config, retention_hours=48))
    altered = await b.catalog.alter("orders", lambda config: replace(config, record_bytes_max=5))
    await settle()

    assert altered.config == StreamConfig(shards=3, retention_hours=48, record_bytes_max=5)
    assert all(node.catalog.stream("orders") == altered for node in three)
    assert heard[-1] == ("orders", 48)
    await b.catalog.set_status("orders", StreamStatus.DELETING)
    with pytest.raises(StreamNotFound):
        await b.catalog.alter("orders", lambda config: config)
    await b.catalog.forget("orders")
    with pytest.raises(StreamNotFound):
        await a.catalog.alter("orders", lambda config: config)
