"""Who may join a cluster: one process a name, on the newest copy of its own directory; and how it stays."""

import asyncio

import pytest

from streamkit.errors import DuplicateNode, StaleDirectory, StoreUnavailable, WrongCluster
from streamkit.metadata.members import Members, is_on_disk, new_incarnation
from streamkit.metadata.memory_store import MemoryStore
from tests.metadata.conftest import settle, turned_runtime
from tests.metadata.nodes import Directory, directory

TTL_MS = 300


@pytest.fixture
def shared(runtime):
    return MemoryStore(runtime.clock)


async def joined(store, runtime, disk, node="a", **identity):
    members = await Members.open(store, runtime, ttl_ms=TTL_MS)
    try:
        await members.join(disk.identity(node, **identity), address=f"{node}:1", peer_address=f"{node}:2")
    except BaseException:
        await members.close()
        raise
    return members


async def killed(members):
    """Without good-bye; its registration stays."""
    await members.close()


async def refused(error, store, runtime, disk, node="a", **identity):
    """It must not join, and nothing may have changed."""
    before, facts = await store.list(""), disk.facts and dict(vars(disk.facts))
    with pytest.raises(error) as caught:
        await joined(store, runtime, disk, node, **identity)
    assert await store.list("") == before
    assert (disk.facts and dict(vars(disk.facts))) == facts
    return caught.value


async def test_the_first_node_names_the_cluster_and_others_join_it(shared, runtime):
    a = await joined(shared, runtime, directory("a"), zone="east")
    b = await joined(shared, runtime, directory("b"), "b")
    await settle()

    assert a.cluster_id == b.cluster_id != ""
    assert sorted(a.nodes) == sorted(b.nodes) == ["a", "b"]
    assert b.peer_addresses() == {"a": "a:2", "b": "b:2"}
    assert b.members["a"].zone == "east"
    await a.leave()
    await settle()
    assert sorted(b.nodes) == ["b"]
    assert sorted(b.members) == ["a", "b"]
    await b.leave()


async def test_each_start_counts_here_and_in_the_store(shared, runtime):
    disk = directory("a")
    for starts in (1, 2, 3):
        members = await joined(shared, runtime, disk)
        assert (members.starts, disk.facts.starts, members.members["a"].starts) == (starts, starts, starts)
        await members.leave()


async def test_a_node_that_was_killed_starts_again_at_once(shared, runtime):
    disk = directory("a")
    await killed(await joined(shared, runtime, disk))
    again = await joined(shared, runtime, disk)

    assert again.starts == 2
    assert again.nodes["a"].starts == 2
    await again.leave()


@pytest.mark.parametrize("write", range(2))
async def test_a_start_that_was_cut_off_between_directory_and_store_is_taken_up(shared, runtime, write):
    disk = directory("a")
    for _ in range(2):
        for fail_at in (write, None):
            written = 0

            async def write_facts(*facts, fail_at=fail_at):
                nonlocal written
                if written == fail_at:
                    raise OSError("cut off")
                written += 1
                await Directory.write(disk, *facts)

            disk.write = write_facts
            if fail_at is not None:
                with pytest.raises(OSError, match="cut off"):
                    await joined(shared, runtime, disk)
            else:
                await (await joined(shared, runtime, disk)).leave()
    assert disk.facts.starts == disk.facts.next_starts == (await MembersOf.read(shared, runtime))["a"].starts


class MembersOf:
    @staticmethod
    async def read(store, runtime):
        members = await Members.open(store, runtime)
        await members.close()
        return members.members


async def test_a_directory_of_another_cluster_is_refused(shared, runtime):
    disk = directory("a")
    await (await joined(shared, runtime, disk)).leave()
    other = MemoryStore(runtime.clock)
    await (await joined(other, runtime, directory("z"), "z")).leave()

    error = await refused(WrongCluster, other, runtime, disk)
    assert error.facts["ours"] == disk.facts.cluster
    empty = MemoryStore(runtime.clock)
    assert "no cluster" in str(await refused(WrongCluster, empty, runtime, disk))


async def test_a_directory_of_another_node_is_refused(shared, runtime):
    disk = directory("a")
    await (await joined(shared, runtime, disk)).leave()
    assert "node a" in str(await refused(WrongCluster, shared, runtime, disk, "b"))


async def test_a_second_process_under_a_live_name_is_refused(shared, runtime):
    a = await joined(shared, runtime, directory("a"))
    error = await refused(DuplicateNode, shared, runtime, directory("other"), boot="elsewhere")
    assert error.facts["address"] == "a:1"
    assert a.replaced is None
    await a.leave()


async def test_a_restored_directory_is_refused(shared, runtime):
    disk = directory("a")
    await (await joined(shared, runtime, disk)).leave()
    backup = disk.copy()
    await (await joined(shared, runtime, disk)).leave()

    error = await refused(StaleDirectory, shared, runtime, backup)
    assert (error.facts["starts"], error.facts["known"]) == (1, 2)
    await (await joined(shared, runtime, disk)).leave()


async def test_of_a_directory_and_its_clone_one_goes_on(shared, runtime):
    disk = directory("a")
    await (await joined(shared, runtime, disk)).leave()
    clone = disk.copy()
    await (await joined(shared, runtime, clone)).leave()

    await refused(StaleDirectory, shared, runtime, disk)
    await refused(WrongCluster, shared, runtime, clone, "b")


async def test_a_clone_that_takes_over_on_the_same_host_stops_the_other(shared, runtime):
    disk = directory("a")
    first = await joined(shared, runtime, disk)
    ended = []
    first.on_replaced.append(ended.append)
    second = await joined(shared, runtime, disk.copy())
    await settle()

    assert isinstance(first.replaced, StaleDirectory)
    assert ended == [first.replaced]
    assert second.replaced is None
    await first.close()
    await second.leave()


async def test_a_replaced_disk_joins_under_the_old_name_with_other_incarnations(shared, runtime):
    await (await joined(shared, runtime, directory("a"))).leave()
    before = new_incarnation(directory("a").disk.hex(), runtime.random)
    members = await joined(shared, runtime, Directory(b"another disk----"))

    assert members.starts == 2
    assert not is_on_disk(before, members.members["a"].disk)
    assert is_on_disk(new_incarnation(members.members["a"].disk, runtime.random), members.members["a"].disk)
    await members.leave()


async def test_a_node_that_was_removed_is_refused_and_one_that_runs_is_told(shared, runtime):
    disk = directory("a")
    a, b = await joined(shared, runtime, disk), await joined(shared, runtime, directory("b"), "b")
    await b.remove("a")
    await settle()
    assert "removed" in str(a.replaced)
    await a.leave()
    assert "removed" in str(await refused(WrongCluster, shared, runtime, disk))
    await b.leave()


async def test_a_registration_that_was_lost_is_made_anew(shared, runtime):
    handle = shared.handle("a")
    a = await joined(handle, runtime, directory("a"))
    handle.expire_sessions()
    assert await shared.list("nodes/") == []
    news = shared.follow("nodes/")
    await anext(news)

    assert (await asyncio.wait_for(anext(news), 10)).key == "nodes/a"
    assert a.replaced is None
    await a.leave()


async def test_a_registration_whose_answer_was_lost_makes_room_for_a_new_one_at_once(shared, runtime):
    a = await joined(shared.handle("a"), runtime, directory("a"))
    a._registration = None                   # as when the store has it, and this process was not told
    await a._register_again()
    assert [entry.key for entry in await shared.list("nodes/")] == ["nodes/a"]
    assert a._registration is not None
    await a.leave()


async def test_a_store_that_comes_back_finds_the_node_registered_again(shared, runtime):
    handle = shared.handle("a")
    a = await joined(handle, runtime, directory("a"))
    handle.faults.reachable, handle.faults.timeout_ms = False, 1
    while not a.store_trouble:               # noqa: ASYNC110 - until it has been asked
        await asyncio.sleep(0.01)
    runtime.clock.ms += 3_600_000
    assert await shared.list("nodes/") == []
    assert "a" in a.nodes                    # what was known stays
    handle.faults.reachable = True
    news = shared.follow("nodes/")
    listing = await anext(news)
    change = listing.entries[0] if listing.entries else await asyncio.wait_for(anext(news), 10)

    assert change.key == "nodes/a"
    await a.leave()


async def test_a_store_that_was_emptied_does_not_stop_a_node(shared, runtime):
    handle = shared.handle("a")
    a = await joined(handle, runtime, directory("a"))
    for entry in await shared.list(""):
        if entry.key == "cluster/id" or entry.key.startswith("nodes/"):
            await shared.compare_and_swap(entry.key, entry.revision, None)
    while not a.store_trouble:               # noqa: ASYNC110 - until it has been asked
        await asyncio.sleep(0.01)

    assert "no longer holds cluster" in a.store_trouble
    assert a.replaced is None
    await a.close()


@pytest.mark.parametrize("seed", range(12))
async def test_joining_over_a_store_that_loses_answers_ends_whole(seed):
    runtime = turned_runtime()
    draws = iter([((seed * 7919 + i * 104729) % 1000) / 1000 for i in range(10_000)])
    runtime.random.uniform = lambda: next(draws)
    shared = MemoryStore(runtime.clock)
    disk, starts = directory("a"), 0
    for _ in range(4):
        handle = shared.handle("a", runtime.random)
        handle.faults.lost_rate, handle.faults.timeout_ms = 0.4, 1
        try:
            members = await joined(handle, runtime, disk)
        except StoreUnavailable:
            runtime.clock.ms += 3_600_000
            continue
        assert members.starts > starts
        starts = members.starts
        handle.faults.lost_rate = 0.0
        await members.leave()
        runtime.clock.ms += 3_600_000
    final = await joined(shared, runtime, disk)
    assert final.starts == disk.facts.starts > starts
    await final.leave()
