"""Whoever asked may go away: the store's one connection is still used by one thread at a time."""

import asyncio
import concurrent.futures
import threading
from dataclasses import replace

import pytest

from streamkit.metadata.sqlite_store import SqliteStore
from tests.metadata.conftest import turned_runtime


class HeldExecutor:
    """Work runs on another thread, and only when the test lets it."""

    def __init__(self):
        self.pool = concurrent.futures.ThreadPoolExecutor(4)
        self.may_run = threading.Event()
        self.may_run.set()
        self.running = self.running_most = 0

    async def run(self, work, *args):
        def held():
            self.running += 1
            self.running_most = max(self.running_most, self.running)
            assert self.may_run.wait(10)
            try:
                return work(*args)
            finally:
                self.running -= 1

        return await asyncio.get_running_loop().run_in_executor(self.pool, held)


async def test_a_cancelled_change_ends_before_the_next_begins(tmp_path):
    executor = HeldExecutor()
    store = await SqliteStore.open(str(tmp_path / "m.sqlite"), replace(turned_runtime(), executor=executor))
    executor.may_run.clear()
    first = asyncio.ensure_future(store.compare_and_swap("a", 0, b"1"))
    while not executor.running:              # noqa: ASYNC110 - until the other thread has it
        await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    first.cancel()
    second = asyncio.ensure_future(store.compare_and_swap("b", 0, b"2"))
    for _ in range(10):
        await asyncio.sleep(0)
    executor.may_run.set()

    with pytest.raises(asyncio.CancelledError):
        await first
    assert await second is not None
    assert executor.running_most == 1
    assert (await store.read("a"))[0] == b"1"
    await store.close()
    executor.pool.shutdown()
