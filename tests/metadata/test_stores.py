"""Every store keeps the same promises: claims, and a random walk beside a dictionary."""

import asyncio
import tempfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from streamkit.errors import CorruptFile
from streamkit.metadata.etcd_store import EtcdStore
from streamkit.metadata.memory_store import MemoryStore
from streamkit.metadata.sqlite_store import SqliteStore
from streamkit.metadata.store import Change, Swap
from tests.metadata.conftest import expire, open_etcd, turned_runtime


async def test_a_key_that_is_missing_has_revision_zero(store):
    assert await store.read("a") == (None, 0)


async def test_a_swap_needs_the_revision_it_read(store):
    first = await store.compare_and_swap("a", 0, b"1")

    assert await store.compare_and_swap("a", 0, b"2") is None
    second = await store.compare_and_swap("a", first, b"2")
    assert second > first
    assert await store.read("a") == (b"2", second)


async def test_a_deleted_key_may_be_created_again_with_a_newer_revision(store):
    first = await store.compare_and_swap("a", 0, b"1")
    gone = await store.compare_and_swap("a", first, None)

    assert await store.read("a") == (None, 0)
    assert await store.compare_and_swap("a", 0, b"2") > gone


async def test_many_swaps_happen_together_or_not_at_all(store):
    revision = await store.compare_and_swap("a", 0, b"1")

    assert await store.compare_and_swap_many([Swap("b", 0, b"x"), Swap("a", revision + 9, b"y")]) is None
    assert await store.read("b") == (None, 0)
    both = await store.compare_and_swap_many([Swap("b", 0, b"x"), Swap("a", revision, b"y")])
    assert await store.read("a") == (b"y", both)
    assert await store.read("b") == (b"x", both)


async def test_a_list_is_in_key_order_and_ends_with_the_prefix(store):
    for key in ("s/b", "s/a", "t/a", "s/a2", "r"):
        await store.compare_and_swap(key, 0, key.encode())

    assert [entry.key for entry in await store.list("s/")] == ["s/a", "s/a2", "s/b"]
    assert len(await store.list("")) == 5


async def test_a_watch_sees_what_changes_after_it_began(store):
    await store.compare_and_swap("s/old", 0, b"")
    changes = store.watch("s/")
    first = await store.compare_and_swap("s/a", 0, b"1")
    await store.compare_and_swap("t/a", 0, b"1")
    gone = await store.compare_and_swap("s/a", first, None)

    seen = [await anext(changes)]
    if seen[0].value is not None:                # of quick changes, all may be seen, or only the last
        assert seen[0] == Change("s/a", b"1", first)
        seen.append(await anext(changes))
    assert seen[-1] == Change("s/a", None, gone)
    waiting = asyncio.ensure_future(anext(changes))
    await asyncio.sleep(0)
    last = await store.compare_and_swap("s/b", 0, b"2")
    assert await waiting == Change("s/b", b"2", last)
    await changes.aclose()


async def test_a_registration_goes_away_unless_it_is_renewed(store, runtime):
    registration = await store.register("nodes/a", b"here", ttl_ms=2000)
    assert await store.register("nodes/a", b"also", ttl_ms=2000) is None
    if not isinstance(store, EtcdStore):
        runtime.clock.ms += 1900
    assert await registration.renew()
    if not isinstance(store, EtcdStore):
        runtime.clock.ms += 1900
    assert (await store.read("nodes/a"))[0] == b"here"
    await expire(store, registration, runtime)
    assert await store.read("nodes/a") == (None, 0)
    assert await store.list("nodes/") == []
    assert not await registration.renew()
    assert not await registration.update(b"again")


async def test_a_registration_may_change_its_value_and_stays_one(store, runtime):
    registration = await store.register("nodes/a", b"here", ttl_ms=2000)
    before = (await store.read("nodes/a"))[1]
    assert await registration.update(b"there")
    value, revision = await store.read("nodes/a")
    assert (value, revision > before) == (b"there", True)
    assert await registration.renew()
    await expire(store, registration, runtime)
    assert await store.read("nodes/a") == (None, 0)


async def test_a_registration_that_somebody_deleted_is_lost(store):
    registration = await store.register("nodes/a", b"here", ttl_ms=2000)
    await store.compare_and_swap("nodes/a", (await store.read("nodes/a"))[1], None)

    assert not await registration.renew()
    assert not await registration.update(b"again")
    await registration.release()


async def test_who_follows_lists_once_and_then_hears_every_key_that_changes(store, runtime):
    first = await store.compare_and_swap("s/a", 0, b"1")
    await store.compare_and_swap("t/a", 0, b"1")
    registration = await store.register("s/r", b"r", 2000)
    news = store.follow("s/")
    listing = await anext(news)
    assert [entry.key for entry in listing.entries] == ["s/a", "s/r"]
    assert listing.revision >= (await store.read("s/r"))[1]

    await store.compare_and_swap("t/b", 0, b"1")
    both = await store.compare_and_swap_many([Swap("s/b", 0, b"2"), Swap("s/a", first, None)])
    assert sorted([await anext(news), await anext(news)]) == [Change("s/a", None, both), Change("s/b", b"2", both)]
    await expire(store, registration, runtime)
    gone = await anext(news)
    assert (gone.key, gone.value, gone.revision > both) == ("s/r", None, True)
    await news.aclose()


async def test_changes_come_in_the_order_in_which_they_were_made(store):
    news = store.follow("s/")
    await anext(news)
    made = [await store.compare_and_swap(f"s/{key}", 0, b"") for key in "zyxabc"]
    assert [(await anext(news)).revision for _ in made] == made
    await news.aclose()


async def test_many_followers_of_one_store_hear_the_same(store):
    follows = [store.follow(prefix) for prefix in ("s/", "s/", "")]
    for news in follows:
        await anext(news)
    revision = await store.compare_and_swap("s/a", 0, b"1")
    assert [await anext(news) for news in follows] == [Change("s/a", b"1", revision)] * 3
    for news in follows:
        await news.aclose()


async def test_a_listing_may_be_long(store):
    keys = [f"s/{number:05}" for number in range(2_345)]
    step = min(store.operations_max, 500)
    for at in range(0, len(keys), step):
        await store.compare_and_swap_many([Swap(key, 0, b"v" * 50) for key in keys[at : at + step]])
    assert [entry.key for entry in await store.list("s/")] == keys


async def test_a_released_registration_leaves_room_for_another(store):
    first = await store.register("nodes/a", b"1", ttl_ms=2000)
    await first.release()
    second = await store.register("nodes/a", b"2", ttl_ms=2000)
    await first.release()

    assert second is not None
    assert (await store.read("nodes/a"))[0] == b"2"


async def test_sqlite_keeps_everything_over_a_restart(runtime, tmp_path):
    path = str(tmp_path / "m.sqlite")
    store = await SqliteStore.open(path, runtime)
    revision = await store.compare_and_swap("a", 0, b"1")
    await store.close()

    again = await SqliteStore.open(path, runtime)
    assert await again.read("a") == (b"1", revision)
    assert await again.compare_and_swap("b", 0, b"") == revision + 1
    await again.close()


async def test_two_sqlite_stores_on_one_file_see_each_other(runtime, tmp_path):
    path = str(tmp_path / "m.sqlite")
    one, two = await SqliteStore.open(path, runtime), await SqliteStore.open(path, runtime)
    revision = await one.compare_and_swap("a", 0, b"1")

    assert await two.compare_and_swap("a", 0, b"2") is None
    assert await two.read("a") == (b"1", revision)
    await one.close()
    await two.close()


@pytest.mark.parametrize("content", [b"not a database, but longer than a header of one hundred bytes" * 9])
async def test_a_foreign_file_is_refused(runtime, tmp_path, content):
    path = tmp_path / "m.sqlite"
    path.write_bytes(content)
    with pytest.raises(CorruptFile):
        await SqliteStore.open(str(path), runtime)


KEYS = st.sampled_from(["a", "a/b", "b", "ba", "c"])


class StoreWalk(RuleBasedStateMachine):
    """Random calls on a store and on a dictionary of (value, revision, expiry)."""

    def __init__(self) -> None:
        super().__init__()
        self.runtime = turned_runtime()
        self.loop = asyncio.new_event_loop()
        self.store = self.loop.run_until_complete(self.make())
        self.model = {}
        self.registrations = []
        self.revision = 0

    async def make(self):
        return MemoryStore(self.runtime.clock)

    def run(self, awaitable):
        return self.loop.run_until_complete(awaitable)

    def expire(self):
        for key in sorted(self.model):
            if (expiry := self.model[key][2]) is not None and expiry <= self.runtime.clock.ms:
                del self.model[key]

    def current(self, key):
        return self.model.get(key, (None, 0, None))[:2]

    @rule(key=KEYS, value=st.none() | st.binary(max_size=4), stale=st.booleans())
    def swap(self, key, value, stale):
        self.expire()
        revision = self.current(key)[1] + (7 if stale else 0)
        found = self.run(self.store.compare_and_swap(key, revision, value))
        if stale:
            assert found is None
            return
        if value is None and revision == 0:
            assert found >= self.revision        # nothing was changed by it
        else:
            self.took(found)
        self.put(key, value, found, None)

    @rule(keys=st.sets(KEYS, min_size=2), stale=st.none() | KEYS)
    def swap_many(self, keys, stale):
        self.expire()
        swaps = [Swap(key, self.current(key)[1] + (1 if key == stale else 0), key.encode()) for key in sorted(keys)]
        found = self.run(self.store.compare_and_swap_many(swaps))
        if stale in keys:
            assert found is None
            return
        self.took(found)
        for swap in swaps:
            self.put(swap.key, swap.value, found, None)

    @rule(key=KEYS, ttl_ms=st.integers(1, 50))
    def register(self, key, ttl_ms):
        self.expire()
        registration = self.run(self.store.register(key, b"r", ttl_ms))
        assert (registration is None) == (key in self.model)
        if registration is not None:
            revision = self.run(self.store.read(key))[1]
            self.took(revision)
            self.put(key, b"r", revision, self.runtime.clock.ms + ttl_ms)
            self.registrations.append((registration, key, revision, ttl_ms))

    @rule(data=st.data(), release=st.booleans())
    def renew(self, data, release):
        if not self.registrations:
            return
        self.expire()
        registration, key, revision, ttl_ms = data.draw(st.sampled_from(self.registrations))
        ours = self.current(key)[1] == revision
        if release:
            self.run(registration.release())
            if ours:
                del self.model[key]
        else:
            assert self.run(registration.renew()) == ours
            if ours:
                self.put(key, b"r", revision, self.runtime.clock.ms + ttl_ms)

    @rule(ms=st.integers(1, 40))
    def time_passes(self, ms):
        self.runtime.clock.ms += ms

    def took(self, revision):
        assert revision is not None
        assert revision > self.revision
        self.revision = revision

    def put(self, key, value, revision, expiry):
        if value is None:
            self.model.pop(key, None)
        else:
            self.model[key] = (value, revision, expiry)

    @invariant()
    def agrees(self):
        self.expire()
        listed = [tuple(entry) for entry in self.run(self.store.list(""))]
        assert listed == [(key, *self.current(key)) for key in sorted(self.model)]
        assert [entry.key for entry in self.run(self.store.list("a"))] == sorted(k for k in self.model if k[0] == "a")

    def teardown(self):
        self.run(self.store.close())
        self.loop.close()


class SqliteWalk(StoreWalk):
    async def make(self):
        self.directory = tempfile.TemporaryDirectory()
        return await SqliteStore.open(f"{self.directory.name}/m.sqlite", self.runtime)

    def teardown(self):
        super().teardown()
        self.directory.cleanup()


class HandleWalk(StoreWalk):
    async def make(self):
        return MemoryStore(self.runtime.clock).handle("a", self.runtime.random)


TestMemoryWalk = StoreWalk.TestCase
TestMemoryWalk.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestHandleWalk = HandleWalk.TestCase
TestHandleWalk.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)
TestSqliteWalk = SqliteWalk.TestCase
TestSqliteWalk.settings = settings(max_examples=12, stateful_step_count=20, deadline=None)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(
    st.sampled_from(["set", "delete", "stale", "many", "register", "renew", "release"]), KEYS, KEYS
), max_size=25))  # fmt: skip
def test_etcd_agrees_with_a_store_in_memory(etcd, runtime, steps):
    """The memory store is walked beside a dictionary above; here it is the twin."""
    async def walk():
        ours, twin = await open_etcd(etcd, runtime), MemoryStore(runtime.clock)
        registrations = {}
        for step, key, other in steps:
            results = []
            for store in (ours, twin):
                revision = (await store.read(key))[1]
                match step:
                    case "set" | "delete":
                        value = None if step == "delete" else other.encode()
                        found = await store.compare_and_swap(key, revision, value) is not None
                    case "stale":
                        found = await store.compare_and_swap(key, revision + 1_000_000, b"x") is not None
                    case "many" if key != other:
                        swaps = [Swap(key, revision, b"m"), Swap(other, 0, b"n")]
                        found = await store.compare_and_swap_many(swaps) is not None
                    case "register":
                        registration = await store.register(key, b"r", 60_000)
                        found = registration is not None
                        if found:
                            registrations[store, key] = registration
                    case "renew" if (store, key) in registrations:
                        found = await registrations[store, key].renew()
                    case "release" if (store, key) in registrations:
                        found = await registrations[store, key].release()
                    case _:
                        found = None
                results.append((found, [entry[:2] for entry in await store.list("")]))
            assert results[0] == results[1]
        await ours.close()

    asyncio.run(walk())
