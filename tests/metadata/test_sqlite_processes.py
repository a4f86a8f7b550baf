"""Several processes on one SQLite file: no change is lost, each hears of the others, registrations end with a boot."""

import asyncio
import sqlite3
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from streamkit.errors import StoreUnavailable
from streamkit.metadata import sqlite_store
from streamkit.metadata.sqlite_store import SqliteStore
from streamkit.metadata.store import Change, Listing
from tests.metadata.conftest import turned_runtime

ROOT = Path(__file__).parents[2]


async def test_three_processes_that_count_up_one_key_lose_no_change_and_hear_of_each_other(tmp_path):
    path = str(tmp_path / "cluster.sqlite")
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.metadata.sqlite_process", path, name, "20", cwd=ROOT,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )
        for name in "abc"
    ]
    outcomes = await asyncio.wait_for(asyncio.gather(*(process.communicate() for process in processes)), 60)

    assert [outcome[0].strip() for outcome in outcomes] == [b"60"] * 3, outcomes


async def test_processes_that_open_a_new_file_at_the_same_moment_all_get_it(tmp_path):
    """Four wait for one word, and open each of 30 new files together; one in twenty was told that it is locked."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.metadata.sqlite_openers", str(tmp_path), "4", "30", cwd=ROOT,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )
    said, complaint = await asyncio.wait_for(process.communicate(), 60)

    assert said.split() == [b"120"], complaint


async def two_stores(path, runtime):
    return [await SqliteStore.open(path, runtime, shared=True) for _ in range(2)]


async def test_another_processes_changes_and_expiries_are_heard(runtime, tmp_path):
    ours, theirs = await two_stores(str(tmp_path / "m.sqlite"), runtime)
    news = ours.follow("s/")
    assert await anext(news) == Listing((), 0)
    revision = await theirs.compare_and_swap("s/a", 0, b"1")
    assert await anext(news) == Change("s/a", b"1", revision)
    await theirs.register("s/r", b"", 1_000)
    assert (await anext(news)).key == "s/r"
    runtime.clock.ms += 1_001
    assert (await anext(news))[:2] == ("s/r", None)
    await news.aclose()
    await ours.close()
    await theirs.close()


async def test_deletions_that_were_forgotten_are_made_up_for_by_a_listing(runtime, tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite_store, "_DELETED_KEPT", 2)
    path = str(tmp_path / "m.sqlite")
    ours, theirs = await two_stores(path, runtime)
    gone = await theirs.compare_and_swap("s/gone", 0, b"")
    news = ours.follow("s/")
    await anext(news)
    await ours._tasks.close()                # as if this process were stopped for a while
    await theirs.compare_and_swap("s/gone", gone, None)
    for number in range(4):
        await theirs.compare_and_swap(f"s/{number}", 0, b"")
    await (await SqliteStore.open(path, runtime, shared=True)).close()
    ours._tasks = type(ours._tasks)("again")
    ours._tasks.start(ours._poll(), "poll")

    item = await anext(news)
    while not isinstance(item, Listing):
        item = await anext(news)
    assert "s/gone" not in {entry.key for entry in item.entries}
    await news.aclose()
    await ours.close()
    await theirs.close()


async def test_registrations_do_not_outlive_a_boot(tmp_path):
    class Booted:
        def __init__(self, disk, boot):
            self._disk, self._boot = disk, boot

        def boot_id(self):
            return self._boot

        def __getattr__(self, name):
            return getattr(self._disk, name)

    runtime, path = turned_runtime(), str(tmp_path / "m.sqlite")
    store = await SqliteStore.open(path, replace(runtime, disk=Booted(runtime.disk, "one")))
    await store.register("nodes/a", b"", 10**12)
    await store.compare_and_swap("stays", 0, b"")
    await store.close()

    for boot, there in (("one", True), ("two", False)):
        store = await SqliteStore.open(path, replace(runtime, disk=Booted(runtime.disk, boot)))
        assert ((await store.read("nodes/a"))[0] is not None) is there
        assert (await store.read("stays"))[0] == b""
        await store.close()


async def test_a_process_that_was_stopped_with_the_lock_costs_others_their_time_limit(runtime, tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite_store, "_BUSY_SHARED_SECONDS", 0.05)
    path = str(tmp_path / "m.sqlite")
    store = await SqliteStore.open(path, runtime, shared=True)
    stopped = sqlite3.connect(path, isolation_level=None)
    stopped.execute("BEGIN IMMEDIATE")

    with pytest.raises(StoreUnavailable) as caught:
        await store.compare_and_swap("a", 0, b"")
    assert caught.value.facts["outcome"] == "not_done"
    assert await store.read("a") == (None, 0)            # readers take no lock
    stopped.execute("ROLLBACK")
    assert await store.compare_and_swap("a", 0, b"")
    stopped.close()
    await store.close()
