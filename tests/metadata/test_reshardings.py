"""Plans in the store while others change the stream, or the plan, at the same time."""

import pytest

from streamkit.errors import StreamBusy
from streamkit.metadata.catalog import encode_stream
from streamkit.metadata.cluster_reshardings import ClusterReshardings
from streamkit.metadata.memory_store import MemoryStore
from streamkit.metadata.reshard import split
from streamkit.metadata.store import Swap
from streamkit.model.stream import StreamConfig, StreamStatus
from tests.metadata.conftest import settle
from tests.metadata.nodes import MetadataNode


class Resharded:
    """Two nodes that know of one plan: both parents' ends are still to come."""

    async def start(self, runtime):
        store = MemoryStore(runtime.clock)
        self.nodes = [await MetadataNode.start(store.handle(n), runtime, n, replicas=2) for n in "ab"]
        self.a, self.b = [ClusterReshardings(node.store, node.catalog, runtime) for node in self.nodes]
        self.catalog, self.other = (node.catalog for node in self.nodes)
        await settle()
        await self.a.open()
        await self.b.open()
        await self.catalog.create("orders", StreamConfig(shards=2))
        await self.catalog.set_status("orders", StreamStatus.ACTIVE)
        await settle()
        return self

    async def stop(self):
        for each in (self.a, self.b, *self.nodes):
            await (each.close() if isinstance(each, ClusterReshardings) else each.stop())


@pytest.fixture
async def two(runtime):
    started = await Resharded().start(runtime)
    yield started
    await started.stop()


def while_children_are_made(reshardings, work):
    """Once, `work` is done, and heard of, before the children's replica sets are."""
    make = reshardings.make_children

    async def delayed(entry):
        reshardings.make_children = make
        await work()
        await settle()
        await make(entry)

    reshardings.make_children = delayed


async def test_a_stream_that_is_changed_while_its_plan_is_carried_out_keeps_the_change(two):
    await two.a.begin("orders", lambda stream: split(stream, 0))
    await settle()

    async def delete():
        await two.other.set_status("orders", StreamStatus.DELETING)

    while_children_are_made(two.a, delete)
    with pytest.raises(StreamBusy):
        await two.a.note_ends("orders", {0: 10})
    assert two.catalog.stream("orders").status is StreamStatus.DELETING


async def test_two_nodes_that_carry_out_one_plan_carry_it_out_once(two):
    await two.a.begin("orders", lambda stream: split(stream, 0))
    await settle()

    async def finish():
        await two.b.note_ends("orders", {0: 10})

    while_children_are_made(two.a, finish)
    after = await two.a.note_ends("orders", {0: 10})
    assert after == two.catalog.stream("orders") == two.other.stream("orders")
    assert len(after.shards) == 4 and two.a.entries == {}


async def test_a_change_that_was_heard_of_while_a_dead_plan_went_is_kept_by_the_next_plan(two):
    await two.a.begin("orders", lambda stream: split(stream, 0))
    await settle()
    discard = two.a.discard_dead

    async def changed(name):
        # The plan's parents are no longer open, and the stream is another than it was when `begin` looked.
        stream = two.other.stream(name)
        longer = StreamConfig(shards=2, retention_hours=48)
        swap = Swap("streams/orders", two.other.revision(name), encode_stream(type(stream)(
            **{**{f: getattr(stream, f) for f in stream.__slots__}, "config": longer})))  # fmt: skip
        await two.other.commit((swap,), name)
        await two.b.abandon(name)
        await settle()
        return await discard(name)

    two.a.discard_dead = changed
    await two.a.begin("orders", lambda stream: split(stream, 1))
    assert two.catalog.stream("orders").config.retention_hours == 48


async def test_a_plan_that_is_carried_out_while_it_is_looked_at_keeps_its_children(two, monkeypatch):
    await two.a.begin("orders", lambda stream: split(stream, 0))
    await settle()
    store = two.nodes[0].store
    read = store.read

    async def late(key):
        monkeypatch.setattr(store, "read", read)
        await two.b.note_ends("orders", {0: 10})
        found = await read(key)
        await settle()
        return found

    monkeypatch.setattr(store, "read", late)
    assert await two.a.discard_dead("orders")
    shards = two.other.stream("orders").shards
    assert len(shards) == 4 and {shard.uuid for shard in shards} == set(two.nodes[1].sets.entries)


async def test_a_deletion_that_another_node_made_by_carrying_the_plan_out_removes_no_children(two, monkeypatch):
    """A deletion of a key counts as done whoever did it."""
    await two.a.begin("orders", lambda stream: split(stream, 0))
    await settle()
    entry = two.a.entries["orders"]
    await two.b.note_ends("orders", {0: 10})
    await settle()
    before = set(two.nodes[0].sets.entries)

    await two.a.remove_children(entry)
    assert set(two.nodes[0].sets.entries) == before and len(before) == 4


async def test_an_old_map_removes_no_children_either(two, monkeypatch):
    await two.a.begin("orders", lambda stream: split(stream, 0))
    await settle()
    entry, store = two.a.entries["orders"], two.nodes[0].store
    read = store.read
    old = await read("streams/orders")

    async def older(key):
        monkeypatch.setattr(store, "read", read)
        return old

    await two.b.note_ends("orders", {0: 10})
    await settle()
    monkeypatch.setattr(store, "read", older)
    await two.a.remove_children(entry)
    assert len(two.nodes[0].sets.entries) == 4


async def test_children_of_a_plan_that_came_to_nothing_are_removed(two):
    await two.a.begin("orders", lambda stream: split(stream, 0))
    await settle()
    entry = two.a.entries["orders"]
    await two.a.make_children(entry)
    await two.a.abandon("orders")
    assert len(two.nodes[0].sets.entries) == 4

    await two.a.remove_children(entry)
    assert {shard.uuid for shard in two.catalog.stream("orders").shards} == set(two.nodes[0].sets.entries)


async def test_a_read_that_is_older_than_the_plan_does_not_make_it_a_dead_one(two, monkeypatch):
    store = two.nodes[0].store
    before, at = await store.read("streams/orders")
    await two.b.begin("orders", lambda stream: split(stream, 0))
    await two.b.note_ends("orders", {0: 10})
    await settle()
    await two.b.begin("orders", lambda stream: split(stream, 2))
    await settle()
    entry = two.a.entries["orders"]
    read = store.read

    async def stale(key):
        return (before, at) if key == "streams/orders" else await read(key)

    monkeypatch.setattr(store, "read", stale)
    with pytest.raises(StreamBusy):
        await two.a.discard_dead("orders")
    assert two.a.entries["orders"] == entry


async def test_children_that_another_node_has_made_go_with_a_dead_plan_before_they_are_heard_of(two, monkeypatch):
    entry = await two.b.begin("orders", lambda stream: split(stream, 0))
    await two.b.make_children(entry)
    sets = two.nodes[0].sets
    for child in entry.children:
        sets.entries.pop(bytes.fromhex(child.uuid), None)
    await two.a.remove_children(entry)
    left = {key for key, *_ in await two.nodes[1].store.list("replicas/")}
    assert not left & {f"replicas/{child.uuid}" for child in entry.children}
