"""Where user code runs: coroutines on the user's event loop, functions in threads; never on ours if it can be helped.

A stage is awaited from the worker's loop. When the wait is cancelled, a coroutine is cancelled too and waited for; a
thread cannot be, so it sees `Stopping` set and is waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from streamkit.runtime.interfaces import Executor
from streamkit.runtime.threads import Promise, wait_for_promise


class Stopping:
    """A flag that user code may look at or wait for, from a thread or a coroutine."""

    def __init__(self) -> None:
        self._set: Promise[None] = Promise()

    def is_set(self) -> bool:
        return self._set.done()

    def wait(self, timeout_s: float | None = None) -> bool:
        """From a thread: whether it was set in time."""
        return wait_for_promise(self._set, timeout_s)

    def set(self) -> None:
        if not self._set.done():
            self._set.set_result(None)


class Stage(Protocol):
    async def call(self, work: Callable[..., Any], *args: Any) -> Any:
        """The result of `work(*args)`; what it raises is raised here."""


class ThreadStage:
    """For plain functions."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    async def call(self, work: Callable[..., Any], *args: Any) -> Any:
        running = asyncio.ensure_future(self._executor.run(work, *args))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait([running])  # a thread cannot be cancelled; nothing may run beside it
            running.exception()
            raise


class LoopStage:
    """For coroutine functions, on `loop`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    async def call(self, work: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        if asyncio.get_running_loop() is self._loop:
            return await work(*args)
        ended: Promise[None] = Promise()

        async def run() -> Any:
            try:
                return await work(*args)
            finally:
                ended.set_result(None)

        running = asyncio.run_coroutine_threadsafe(run(), self._loop)
        try:
            return await asyncio.wrap_future(running)
        except asyncio.CancelledError:
            running.cancel()
            if not self._loop.is_closed():
                await asyncio.wait([asyncio.wrap_future(ended)], timeout=30)
            raise
