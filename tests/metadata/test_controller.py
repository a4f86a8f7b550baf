"""The controller: one acts, it writes targets and nothing else, and it rests when there is nothing to do."""

import asyncio

import pytest

from streamkit.errors import StoreUnavailable
from streamkit.metadata.cluster_catalog import CLAIMS
from streamkit.metadata.controller import Controller, ControllerConfig
from streamkit.metadata.members import DRAINING
from streamkit.metadata.memory_store import MemoryStore
from streamkit.model.stream import StreamConfig, StreamStatus
from tests.metadata.conftest import settle
from tests.metadata.nodes import MetadataNode

CONFIG = ControllerConfig(tick_ms=2, ttl_ms=60, dead_after_ms=5_000, unfinished_after_ms=3_000, leaders_ms=1_000)


class Controlled:
    """Three nodes on one store; `a` thinks when it is told to."""

    async def start(self, runtime, count=3, **options):
        self.runtime, self.store = runtime, MemoryStore(runtime.clock, **options)
        self.nodes = {}
        for name in "abcd"[:count]:
            await self.add(name)
        a = self.nodes["a"]
        self.controller = Controller(
            a.store, runtime, node="a", members=a.members, replica_sets=a.sets, catalog=a.catalog, replicas=3,
            config=CONFIG,
        )
        await settle()
        return self

    async def add(self, name):
        # A registration longer than any test: the clock is turned a lot, and nobody renews in time.
        self.nodes[name] = await MetadataNode.start(self.store.handle(name), self.runtime, name, ttl_ms=10**9)

    async def stream(self, shards, leader=None):
        stream = await self.nodes["a"].catalog.create("orders", StreamConfig(shards=shards))
        await self.nodes["a"].catalog.set_status("orders", StreamStatus.ACTIVE)
        sets = self.nodes["a"].sets
        for shard in stream.shards:
            entry = sets.entries[shard.uuid]
            led = entry.with_set(entry.replica_set.led_by(leader or entry.nodes[0]))
            await sets.swap(shard.uuid, entry.revision, led)
        await settle()
        return sets.entries

    async def carry_out(self):
        """What leaders do about targets, all at once."""
        sets = self.nodes["a"].sets
        for uuid, entry in list(sets.entries.items()):
            nodes = entry.target_members or entry.nodes
            leader = entry.target_leader or (entry.leader if entry.leader in nodes else nodes[0])
            if (nodes, leader) != (entry.nodes, entry.leader):
                kept = dict(entry.members)
                members = tuple((node, kept.get(node, "00" * 16)) for node in nodes)
                done = type(entry)(stream=entry.stream, epoch=entry.epoch + 1, leader=leader, members=members)
                await sets.swap(uuid, entry.revision, done)
        await settle()

    async def until_calm(self):
        steps = 0
        while True:
            await self.carry_out()
            self.runtime.clock.ms += 1_000
            written = await self.controller.step()
            await settle()
            if written == 0:
                return steps
            steps += 1
            assert steps < 100

    async def stop(self):
        for node in self.nodes.values():
            await node.stop()


@pytest.fixture
async def three(runtime):
    started = await Controlled().start(runtime)
    yield started
    await started.stop()


async def test_a_drained_node_loses_its_copies_a_few_at_a_time(three):
    entries = await three.stream(20)
    await three.add("d")
    await three.nodes["a"].members.set_state("b", DRAINING)
    await settle()
    await three.controller.step()

    assert sum(bool(entry.target_members) for entry in entries.values()) == CONFIG.moves_max
    assert not any(entry.target_leader == "b" for entry in entries.values())
    await three.until_calm()
    assert all("b" not in entry.nodes and len(entry.nodes) == 3 for entry in entries.values())


async def test_a_drained_node_without_a_stand_in_only_hands_over_its_leads(three):
    entries = await three.stream(9)
    await three.nodes["a"].members.set_state("b", DRAINING)
    await settle()
    await three.until_calm()

    assert all(len(entry.nodes) == 3 for entry in entries.values())
    assert not any(entry.leader == "b" for entry in entries.values())


async def test_a_node_that_is_away_for_long_is_replaced_and_one_that_comes_back_is_not(three):
    entries = await three.stream(4)
    await three.add("d")
    await settle()
    await three.until_calm()
    held = sum("c" in entry.nodes for entry in entries.values())
    await three.nodes["c"].members.leave()
    await settle()
    three.runtime.clock.ms += CONFIG.dead_after_ms - 1_000
    await three.controller.step()
    await three.controller.step()
    assert sum("c" in (entry.target_members or entry.nodes) for entry in entries.values()) == held

    three.runtime.clock.ms += CONFIG.dead_after_ms
    await three.until_calm()
    assert all("c" not in entry.nodes and len(entry.nodes) == 3 for entry in entries.values())


async def test_leads_are_evened_out_when_their_time_comes(three):
    entries = await three.stream(12, leader="a")
    assert await three.controller.step() > 0
    await three.carry_out()
    await three.until_calm()

    led = sorted(sum(entry.leader == node for entry in entries.values()) for node in "abc")
    assert led[-1] - led[0] <= 2
    assert await three.controller.step() == 0


async def test_a_lead_asked_of_a_node_that_left_is_asked_of_nobody(three):
    entries = await three.stream(1, leader="a")
    (uuid, entry), = entries.items()
    await three.nodes["a"].sets.swap(uuid, entry.revision, entry.with_targets(leader="c", members=()))
    await three.nodes["c"].members.leave()
    await settle()
    await three.controller.step()
    assert entries[uuid].target_leader == ""


@pytest.mark.parametrize("status", [StreamStatus.CREATING, StreamStatus.DELETING])
async def test_a_stream_that_was_left_half_way_is_finished_after_a_while(three, status):
    await three.nodes["b"].catalog.create("orders", StreamConfig(shards=2))
    await three.nodes["b"].catalog.set_status("orders", status)
    await settle()
    catalog = three.nodes["a"].catalog
    await three.controller.step()
    assert catalog.streams["orders"].status is status

    three.runtime.clock.ms += CONFIG.unfinished_after_ms
    await three.controller.step()
    if status is StreamStatus.CREATING:
        assert catalog.stream("orders").status is StreamStatus.ACTIVE
    else:
        assert catalog.streams == {}
        assert await three.store.list("replicas/") == []


async def test_a_claim_whose_writer_died_is_removed_with_what_it_names(runtime):
    parts = await Controlled().start(runtime, operations_max=4)
    b = parts.nodes["b"]
    swap_many, made = b.store.compare_and_swap_many, []

    async def die(swaps):
        made.append(swaps)
        if len(made) > 3:
            raise StoreUnavailable("gone", store="", outcome="not_done")
        return await swap_many(swaps)

    b.store.compare_and_swap_many = die
    with pytest.raises(StoreUnavailable):
        await b.catalog.create("orders", StreamConfig(shards=20))
    assert await parts.store.list(CLAIMS)
    await parts.controller.step()
    assert await parts.store.list("replicas/")
    runtime.clock.ms += CONFIG.unfinished_after_ms
    await parts.controller.step()

    assert await parts.store.list("replicas/") == await parts.store.list(CLAIMS) == []
    await parts.stop()


async def test_one_node_acts_and_another_takes_over_when_it_goes(three):
    controllers = {}
    for name in "bc":
        node = three.nodes[name]
        controllers[name] = Controller(
            node.store, three.runtime, node=name, members=node.members, replica_sets=node.sets, catalog=node.catalog,
            replicas=3, config=CONFIG,
        )
        await controllers[name].open()
    while not all(each.acting for each in controllers.values()):
        three.runtime.clock.ms += 10
        await asyncio.sleep(0.002)
    first = controllers["b"].acting
    other = "c" if first == "b" else "b"
    assert controllers["c"].acting == first
    await controllers.pop(first).close()
    while controllers[other].acting != other:
        three.runtime.clock.ms += 10
        await asyncio.sleep(0.002)
    await controllers[other].close()


async def test_an_idle_cluster_is_not_thought_about(three):
    await three.stream(3)
    controller, steps = three.controller, 0
    step = controller.step

    async def counted():
        nonlocal steps
        steps += 1
        return await step()

    controller.step = counted
    await controller.open()
    while steps == 0:                        # noqa: ASYNC110 - until it acts
        await asyncio.sleep(0.002)
    for _ in range(150):                     # its time to even out leaders comes and goes
        three.runtime.clock.ms += 10
        await asyncio.sleep(0.002)
    before = steps
    for _ in range(50):
        three.runtime.clock.ms += 10
        await asyncio.sleep(0.002)
    assert steps == before
    await controller.close()


@pytest.mark.parametrize("members", [("a", "b", "x"), ("a", "b", "d")], ids=["unknown", "removed"])
async def test_a_target_with_a_node_that_is_no_member_is_withdrawn(three, members):
    entries = await three.stream(1, leader="a")
    (uuid, entry), = entries.items()
    if "d" in members:
        await three.add("d")
    await three.nodes["a"].sets.swap(uuid, entry.revision, entry.with_targets(leader="", members=members))
    if "d" in members:
        await three.nodes["d"].members.leave()
        await three.nodes["a"].members.remove("d")
    await settle()
    await three.controller.step()

    assert set(entries[uuid].target_members) == {"a", "b", "c"}    # as they are: the leader clears it away
    await three.until_calm()
    assert set(entries[uuid].nodes) == {"a", "b", "c"}


async def test_a_target_whose_node_died_is_given_up_when_there_is_no_other(three):
    entries = await three.stream(1, leader="a")
    (uuid, entry), = entries.items()
    await three.add("d")
    await three.nodes["a"].sets.swap(uuid, entry.revision, entry.with_targets(leader="", members=("a", "b", "d")))
    await three.nodes["d"].members.leave()
    await settle()
    await three.controller.step()
    three.runtime.clock.ms += CONFIG.dead_after_ms
    await three.controller.step()

    assert set(entries[uuid].target_members) == {"a", "b", "c"}


async def test_streams_that_others_finish_meanwhile_and_claims_that_cannot_be_read_stop_nothing(three):
    a = three.nodes["a"]
    for name in ("first", "second"):
        await a.catalog.create(name, StreamConfig(shards=1))
        await a.catalog.set_status(name, StreamStatus.DELETING)
    await a.store.compare_and_swap(CLAIMS + "odd", 0, b"{")
    await settle()
    await three.controller.step()
    three.runtime.clock.ms += CONFIG.unfinished_after_ms
    forget = a.catalog.forget

    async def both(name):
        for each in ("first", "second"):
            await forget(each)

    a.catalog.forget = both
    await three.controller.step()
    assert a.catalog.streams == {}
