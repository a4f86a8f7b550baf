"""Where user code runs, and what can be seen of it from outside."""

from __future__ import annotations

import asyncio
import threading

import pytest

from streamkit.consumer.failure import Aborted
from streamkit.consumer.stage import LoopStage, Stages
from streamkit.runtime.real import LoopThread, RealExecutor


async def test_the_stack_of_a_function_that_hangs_in_its_thread_can_be_shown():
    executor = RealExecutor(threads=1)
    stages = Stages(executor, asyncio.get_running_loop())
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    go_on = threading.Event()

    def hang() -> str:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait(30)
        return "done"

    running = asyncio.ensure_future(stages.threads.call(hang))
    await begun.wait()
    stack = stages.stack()
    go_on.set()

    assert await running == "done"
    assert "in hang" in stack
    assert stages.stack() == "", "nothing runs any more"
    executor.close()


async def test_a_function_that_raises_stop_iteration_has_failed():
    executor = RealExecutor(threads=1)
    try:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await asyncio.wait_for(Stages(executor, asyncio.get_running_loop()).threads.call(next, iter(())), 5)
    finally:
        executor.close()


async def test_a_coroutine_on_another_loop_that_is_cancelled_before_it_began_is_not_waited_for():
    thread = LoopThread("streamkit-handlers")
    blocked = threading.Event()
    ran: list[str] = []

    async def work() -> None:
        ran.append("work")

    try:
        thread.loop.call_soon_threadsafe(blocked.wait, 30)
        running = asyncio.ensure_future(LoopStage(thread.loop).call(work))
        await asyncio.sleep(0)             # asked for; the other loop is busy
        running.cancel()
        await asyncio.sleep(0)
        blocked.set()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(running, 5)
        assert ran == []
    finally:
        blocked.set()
        thread.stop()


async def test_a_coroutine_that_somebody_else_cancelled_is_told_from_one_that_the_worker_cancelled():
    thread = LoopThread("streamkit-handlers")

    async def awaits_what_is_cancelled() -> None:
        other = asyncio.ensure_future(asyncio.sleep(30))
        other.cancel()
        await other

    try:
        with pytest.raises(Aborted, match="CancelledError"):
            await LoopStage(thread.loop).call(awaits_what_is_cancelled)
    finally:
        thread.stop()
