"""Replica sets: what is written comes back, is seen everywhere, and a change is won by one."""

import asyncio

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit.errors import StoreUnavailable
from streamkit.metadata.memory_store import MemoryStore
from streamkit.metadata.replica_sets import ReplicaSetEntry, ReplicaSets, decode, encode
from streamkit.metadata.store import Swap
from streamkit.replication.replica_set import Member, ReplicaSet
from tests.metadata.conftest import settle

UUID = bytes(range(16))
MEMBERS = tuple(Member(node, node.encode() * 16) for node in "abc")
ENTRY = ReplicaSetEntry.of("orders", ReplicaSet(1, "a", MEMBERS))
MEMBER = st.builds(Member, st.sampled_from(["a", "b", "c", "d"]), st.binary(min_size=16, max_size=16))
SETS = st.builds(
    ReplicaSet, epoch=st.integers(0, 2**32 - 1), leader=st.sampled_from(["", "a", "b"]),
    members=st.lists(MEMBER, min_size=1, max_size=5).map(tuple), previous=st.lists(MEMBER, max_size=3).map(tuple),
    learners=st.lists(MEMBER, max_size=3).map(tuple),
)


@given(replicas=SETS, leader=st.sampled_from(["", "c"]), members=st.lists(st.sampled_from("abc")).map(tuple))
def test_an_entry_gives_back_the_replica_set(replicas, leader, members):
    entry = ReplicaSetEntry.of("orders", replicas, target_leader=leader, target_members=members)

    back = decode(encode(entry), 7)
    assert back == msgspec.structs.replace(entry, revision=7)
    assert back.replica_set == replicas
    assert encode(back) == encode(entry)


@pytest.fixture
async def two(runtime):
    store = MemoryStore(runtime.clock)
    sets = [await ReplicaSets.open(store.handle(name)) for name in ("a", "b")]
    yield sets
    for each in sets:
        await each.close()


async def test_a_change_is_seen_here_at_once_and_elsewhere_soon(two):
    ours, theirs = two
    heard = []
    ours.on_change.append(lambda uuid, entry: heard.append(("ours", entry and entry.epoch)))
    theirs.on_change.append(lambda uuid, entry: heard.append(("theirs", entry and entry.epoch)))
    first = await ours.swap(UUID, 0, ENTRY)
    assert ours.entries[UUID] == first
    await settle()
    await theirs.swap(UUID, first.revision, first.with_set(first.replica_set.led_by("b")))
    await settle()

    assert ours.entries == theirs.entries
    assert ours.entries[UUID].leader == "b"
    assert sorted(heard) == [("ours", 1), ("ours", 2), ("theirs", 1), ("theirs", 2)]


async def test_of_two_who_want_to_lead_one_wins_and_the_other_sees_it(two):
    ours, theirs = two
    first = await ours.swap(UUID, 0, ENTRY)
    await settle()
    won = await asyncio.gather(*(
        sets.swap(UUID, first.revision, first.with_set(first.replica_set.led_by(node)))
        for sets, node in zip(two, "ab", strict=True)
    ))  # fmt: skip

    assert sum(entry is not None for entry in won) == 1
    assert ours.entries[UUID] == theirs.entries[UUID] == next(entry for entry in won if entry)


@pytest.mark.parametrize("fate", ["done", "late", "never"])
async def test_a_lost_answer_is_asked_for_again(two, fate):
    ours = two[0]
    store, swap_many, calls = ours._store, ours._store.compare_and_swap_many, []

    async def lose_the_first(swaps):
        calls.append(swaps)
        if len(calls) > 1:
            if fate == "late" and len(calls) == 2:
                await swap_many(calls[0])
            return await swap_many(swaps)
        if fate == "done":
            await swap_many(swaps)
        raise StoreUnavailable("lost", store="", outcome="unknown")

    store.compare_and_swap_many = lose_the_first
    entry = await ours.swap(UUID, 0, ENTRY)

    assert entry.revision > 0
    assert ours.entries[UUID] == entry


async def test_somebody_elses_change_after_a_lost_answer_is_not_taken_for_ours(two):
    ours, theirs = two
    store = ours._store

    async def lose(swaps):
        if theirs.entries.get(UUID) is None:
            await theirs.swap(UUID, 0, ENTRY.with_set(ENTRY.replica_set.led_by("b")))
        raise StoreUnavailable("lost", store="", outcome="unknown")

    swap_many, store.compare_and_swap_many = store.compare_and_swap_many, lose
    asyncio.get_running_loop().call_later(0.05, setattr, store, "compare_and_swap_many", swap_many)

    assert await ours.swap(UUID, 0, ENTRY) is None
    await settle()
    assert ours.entries[UUID].leader == "b"


async def test_a_store_that_is_down_says_what_became_of_the_change(two):
    ours = two[0]
    ours._store.faults.timeout_ms = 1
    ours._store.faults.reachable = False
    with pytest.raises(StoreUnavailable) as caught:
        await ours.swap(UUID, 0, ENTRY)
    assert caught.value.facts["outcome"] == "not_done"
    ours._store.faults.reachable, ours._store.faults.answers = True, False
    with pytest.raises(StoreUnavailable) as caught:
        await ours.swap(UUID, 0, ENTRY)
    assert caught.value.facts["outcome"] == "unknown"
    ours._store.faults.answers = True
    while UUID not in ours.entries:          # noqa: ASYNC110 - the watch brings it
        await asyncio.sleep(0.01)


async def test_compacted_history_is_listed_again_and_nothing_is_missed(two):
    ours, theirs = two
    first = await ours.swap(UUID, 0, ENTRY)
    await settle()
    theirs._store.faults.reachable = False
    other = bytes(16)
    await ours.swap(other, 0, ENTRY)
    await ours._store.compare_and_swap("replicas/" + UUID.hex(), first.revision, None)
    ours._store._store.compact()
    theirs._store.faults.reachable = True
    while other not in theirs.entries:       # noqa: ASYNC110 - the watch brings it
        await asyncio.sleep(0.01)

    assert theirs.entries == ours.entries
    assert list(theirs.entries) == [other]


async def test_what_cannot_be_read_changes_nothing(two):
    ours, theirs = two
    entry = await ours.swap(UUID, 0, ENTRY)
    await settle()
    await ours._store.compare_and_swap("replicas/" + UUID.hex(), entry.revision, b"{broken")
    await ours._store.compare_and_swap("replicas/nothex", 0, b"{}")
    await settle()

    assert theirs.entries == {UUID: entry}


async def test_a_store_that_went_back_empties_nothing(two, runtime):
    ours = two[0]
    entry = await ours.swap(UUID, 0, ENTRY)
    await settle()
    from streamkit.metadata.store import Listing

    ours._view._replace(Listing((), entry.revision - 1))
    assert ours.entries == {UUID: entry}


async def test_many_are_made_and_removed_in_the_callers_transaction(two):
    ours, theirs = two
    uuids = [bytes([number]) * 16 for number in range(5)]
    swaps = ours.create_many(dict.fromkeys(uuids, ENTRY))
    revision = await ours._store.compare_and_swap_many((Swap("streams/orders", 0, b"{}"), *swaps))
    ours.wrote(swaps, revision)
    assert sorted(ours.entries) == uuids
    await settle()

    removals = theirs.delete_many([*uuids, b"unknown--------."])
    assert len(removals) == 5
    theirs.wrote(removals, await theirs._store.compare_and_swap_many(removals))
    await settle()
    assert ours.entries == theirs.entries == {}
