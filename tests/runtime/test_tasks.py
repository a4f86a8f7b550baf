"""Waiting between tries, tasks with an owner, and the signals that stop a server."""

from __future__ import annotations

import asyncio
import logging
import os
import signal

import pytest

from streamkit.runtime.backoff import Backoff
from streamkit.runtime.shutdown import StopSignal
from streamkit.runtime.tasks import Tasks


class Loaded:
    """Random with a known outcome."""

    def __init__(self, value: float) -> None:
        self.value = value

    def uniform(self) -> float:
        return self.value

    def bits(self, count: int) -> int:
        return 0

    def uuid(self) -> bytes:
        return bytes(16)


def test_waits_double_up_to_a_bound_and_start_over_after_success() -> None:
    backoff = Backoff(Loaded(1.0), first_ms=50, most_ms=500)
    assert [backoff.next_ms() for _ in range(6)] == [50, 100, 200, 400, 500, 500]
    backoff.reset()
    assert backoff.next_ms() == 50


def test_jitter_takes_at_most_half() -> None:
    backoff = Backoff(Loaded(0.0), first_ms=50, most_ms=500)
    assert [backoff.next_ms() for _ in range(3)] == [25, 50, 100]


def test_ten_thousand_tries_do_not_overflow() -> None:
    backoff = Backoff(Loaded(1.0), tries=10_000)
    assert backoff.next_ms() == 5_000


async def test_a_failed_task_is_logged_and_told_to_its_owner(caplog: pytest.LogCaptureFixture) -> None:
    told: list[BaseException] = []
    tasks = Tasks("owner", told.append)

    async def fails() -> None:
        raise ValueError("why")

    with caplog.at_level(logging.ERROR, "streamkit.runtime"):
        task = tasks.start(fails(), "work")
        await asyncio.wait([task])
        await asyncio.sleep(0)
    assert told == [tasks.failure] and isinstance(tasks.failure, ValueError)
    assert "task.failed name=owner.work error=why" in caplog.text
    assert len(tasks) == 0


async def test_closing_cancels_and_waits_and_is_no_failure() -> None:
    tasks, ended = Tasks("owner"), []

    async def endless() -> None:
        try:
            await asyncio.sleep(3_600)
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    for i in range(3):
        tasks.start(endless(), f"work-{i}")
    await asyncio.sleep(0)
    await tasks.close()
    await tasks.close()
    assert ended == [True] * 3 and tasks.failure is None


async def test_a_task_may_close_its_own_group() -> None:
    tasks = Tasks("owner")
    await tasks.start(tasks.close(), "closer")
    assert tasks.failure is None


async def test_the_first_signal_asks() -> None:
    async with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert await stop.wait() == "SIGTERM"


async def test_a_stop_may_have_a_reason_of_our_own() -> None:
    async with StopSignal() as stop:
        stop.ask("disk_failed")
        stop.ask("later")
        assert await stop.wait() == "disk_failed"


def test_the_second_signal_insists() -> None:
    child = os.fork()
    if child == 0:
        async def stubborn() -> None:
            async with StopSignal() as stop:
                os.kill(os.getpid(), signal.SIGTERM)
                await stop.wait()
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(60)

        asyncio.set_event_loop_policy(None)
        asyncio.run(stubborn())
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
