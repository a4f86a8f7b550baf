"""A memory store as one node reaches it: each fault does what it is named for, and to that node alone."""

import asyncio

import pytest

from streamkit.errors import StoreUnavailable
from streamkit.metadata.memory_store import MemoryStore
from streamkit.metadata.store import Change, Listing
from tests.metadata.conftest import settle


@pytest.fixture
def shared(runtime):
    return MemoryStore(runtime.clock)


@pytest.fixture
def handle(shared, runtime):
    made = shared.handle("a", runtime.random)
    made.faults.timeout_ms = 5
    return made


async def outcome(call):
    with pytest.raises(StoreUnavailable) as caught:
        await call
    return caught.value.facts["outcome"]


async def test_a_node_that_is_cut_off_changes_nothing_and_others_go_on(shared, handle):
    handle.faults.reachable = False
    assert await outcome(handle.compare_and_swap("a", 0, b"")) == "not_done"
    assert await outcome(handle.read("a")) == "not_done"
    assert await outcome(handle.list("")) == "not_done"
    assert await outcome(handle.register("a", b"", 1000)) == "not_done"
    assert await shared.handle("b").compare_and_swap("a", 0, b"1")
    handle.faults.reachable = True
    assert (await handle.read("a"))[0] == b"1"


async def test_answers_that_do_not_come_back_leave_the_change_made_and_its_outcome_unknown(shared, handle):
    handle.faults.answers = False
    assert await outcome(handle.compare_and_swap("a", 0, b"1")) == "unknown"
    assert (await shared.read("a"))[0] == b"1"


async def test_a_slow_change_is_made_after_its_caller_gave_up(shared, handle):
    handle.faults.delay_ms = (30, 30)
    assert await outcome(handle.compare_and_swap("a", 0, b"1")) == "unknown"
    assert await shared.read("a") == (None, 0)
    while (await shared.read("a"))[0] is None:           # noqa: ASYNC110 - it is on its way
        await asyncio.sleep(0.005)


@pytest.mark.parametrize(("draws", "made", "later"), [
    ([0.0, 0.9, 0.9], True, True), ([0.0, 0.9, 0.1], False, False), ([0.0, 0.1, 0.9], False, True)
])  # fmt: skip
async def test_a_lost_change_was_made_is_made_later_or_never(shared, handle, runtime, draws, made, later):
    drawn = iter(draws)
    runtime.random.uniform = lambda: next(drawn)
    handle.faults.lost_rate, handle.faults.timeout_ms = 0.5, 200
    assert await outcome(handle.compare_and_swap("a", 0, b"1")) == "unknown"
    assert ((await shared.read("a"))[0] is not None) is made
    while later and (await shared.read("a"))[0] is None:     # noqa: ASYNC110 - it is on its way
        await asyncio.sleep(0.005)
    assert ((await shared.read("a"))[0] is not None) is later


async def test_reads_may_be_old_and_changes_never_are(shared, handle, runtime):
    first = await shared.compare_and_swap("a", 0, b"1")
    runtime.clock.ms += 1_000
    second = await shared.compare_and_swap("a", first, b"2")
    await shared.compare_and_swap("b", 0, b"")
    handle.faults.stale_ms = 1_000                       # half of it, as the tests' randomness draws

    assert await handle.read("a") == (b"1", first)
    assert [entry.key for entry in await handle.list("")] == ["a"]
    assert await handle.compare_and_swap("a", first, b"3") is None
    assert await handle.compare_and_swap("a", second, b"3")


async def test_a_watch_that_was_cut_off_goes_on_where_it_was(shared, handle):
    news = handle.follow("")
    assert await anext(news) == Listing((), 0)
    handle.faults.reachable = False
    revision = await shared.compare_and_swap("a", 0, b"1")
    waiting = asyncio.ensure_future(anext(news))
    await settle()
    assert not waiting.done()
    handle.faults.reachable = True
    assert await waiting == Change("a", b"1", revision)
    await news.aclose()


async def test_sessions_expire_for_one_node_at_a_time(shared, handle):
    other = shared.handle("b")
    ours, theirs = await handle.register("a", b"", 10_000), await other.register("b", b"", 10_000)
    assert await ours.update(b"new")
    handle.expire_sessions()

    assert not await ours.renew()
    assert await theirs.renew()
    assert [entry.key for entry in await shared.list("")] == ["b"]
