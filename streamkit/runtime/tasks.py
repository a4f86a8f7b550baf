"""Tasks that somebody owns: kept alive, logged when they fail, ended together.

asyncio keeps only weak references to tasks and reports a failed one when it is collected, if ever. Every
background task of streamkit is started through a Tasks object, whose owner closes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

_log = logging.getLogger("streamkit.runtime")


async def wait_out(tasks: Iterable[asyncio.Future[Any]], seconds: float | None = None) -> None:
    """Until all have ended, though whoever waits is cancelled meanwhile, once or again; then it is cancelled.

    For clean-up that others rely on: what was cancelled before, and is waited for here, runs no more afterwards.
    seconds: give up after that long.
    """
    loop = asyncio.get_running_loop()
    left, until_s, cancelled = set(tasks), None if seconds is None else loop.time() + seconds, False
    while left:
        try:
            rest_s = None if until_s is None else until_s - loop.time()
            if rest_s is not None and rest_s <= 0:
                break
            _, left = await asyncio.wait(left, timeout=rest_s)
        except asyncio.CancelledError:
            cancelled = True
            left = {task for task in left if not task.done()}
    if cancelled:
        raise asyncio.CancelledError


class Tasks:
    """A set of running tasks.

    on_failure: called on the loop with each exception that ended a task (not with cancellation); it is logged
    in any case. `failure` keeps the first one.
    """

    def __init__(self, owner: str, on_failure: Callable[[BaseException], None] | None = None) -> None:
        self._owner = owner
        self._on_failure = on_failure
        self._running: set[asyncio.Task[Any]] = set()
        self._closed = False
        self.failure: BaseException | None = None

    def __len__(self) -> int:
        return len(self._running)

    def start(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        assert not self._closed, f"{self._owner} starts {name} after it was closed"
        task = asyncio.get_running_loop().create_task(work, name=f"{self._owner}.{name}")
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def close(self) -> None:
        """Cancel what runs and wait until it has ended. Safe to call twice, and from one of the tasks."""
        self._closed = True
        current = asyncio.current_task()
        others = [task for task in self._running if task is not current]
        for task in others:
            task.cancel()
        await wait_out(others)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if self.failure is None:
            self.failure = error
        _log.error("task.failed name=%s error=%s", task.get_name(), error, exc_info=error)
        if self._on_failure is not None:
            self._on_failure(error)
