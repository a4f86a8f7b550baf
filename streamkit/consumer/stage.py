"""Where user code runs: coroutines on the user's event loop, functions in threads; never on ours if it can be helped.

A stage is awaited from the worker's loop. When the wait is cancelled, a coroutine is cancelled too and waited for; a
thread cannot be, so it sees `Stopping` set and is waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from streamkit.consumer.failure import Aborted
from streamkit.runtime.interfaces import Executor
from streamkit.runtime.tasks import wait_out
from streamkit.runtime.threads import (
    Promise,
    firm_promise,
    stack_of_task,
    stack_of_thread,
    thread_id,
    wait_for_promise,
)

_ENDINGS = (SystemExit, KeyboardInterrupt, asyncio.CancelledError)
_CANCEL_S = 30.0                           # how long a cancelled coroutine is waited for


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
    """One lease's: one call at a time."""

    async def call(self, work: Callable[..., Any], *args: Any) -> Any:
        """The result of `work(*args)`; what it raises is raised here."""

    def stack(self) -> str:
        """Where the call is now, as text for a log; "" when there is none."""


class ThreadStage:
    """For plain functions."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._thread = 0

    async def call(self, work: Callable[..., Any], *args: Any) -> Any:
        running = asyncio.ensure_future(self._executor.run(self._run, work, args))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            try:
                await wait_out([running])  # a thread cannot be cancelled; nothing may run beside it
            finally:
                running.exception()
            raise

    def stack(self) -> str:
        return stack_of_thread(self._thread) if self._thread else ""

    def _run(self, work: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        self._thread = thread_id()
        try:
            return work(*args)
        except _ENDINGS as cause:          # these would end the worker's loop, and be seen by nobody
            raise _aborted(cause) from cause
        except StopIteration as cause:     # asyncio takes it from no thread, and whoever waits would wait for ever
            raise RuntimeError("a function raised StopIteration") from cause
        finally:
            self._thread = 0


class LoopStage:
    """For coroutine functions, on `loop`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._task: asyncio.Task[Any] | None = None

    async def call(self, work: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        if asyncio.get_running_loop() is self._loop:
            return await self._run(work, args)
        begun: list[asyncio.Task[Any]] = []
        ended = firm_promise()

        def begin() -> None:
            begun.append(self._loop.create_task(self._run(work, args)))
            begun[0].add_done_callback(lambda task: _tell(task, ended))

        self._loop.call_soon_threadsafe(begin)
        waiting = asyncio.wrap_future(ended)
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(lambda: begun[0].cancel())     # after `begin`: calls keep their order
                await wait_out([waiting], _CANCEL_S)
            raise

    def stack(self) -> str:
        return stack_of_task(self._task) if self._task is not None else ""

    async def _run(self, work: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> Any:
        task = self._task = asyncio.current_task()
        try:
            return await work(*args)
        except _ENDINGS as cause:
            if isinstance(cause, asyncio.CancelledError) and task is not None and task.cancelling():
                raise                      # cancelled by us; otherwise something inside the handler was
            raise _aborted(cause) from cause
        finally:
            self._task = None


class Stages:
    """Both, for one lease."""

    def __init__(self, executor: Executor, loop: asyncio.AbstractEventLoop) -> None:
        self.threads = ThreadStage(executor)
        self.coroutines = LoopStage(loop)

    def stack(self) -> str:
        """Where user code is now."""
        return self.threads.stack() or self.coroutines.stack()


def _tell(task: asyncio.Task[Any], ended: Promise[Any]) -> None:
    if task.cancelled():
        ended.set_result(None)             # whoever cancelled it does not look at this
    elif (error := task.exception()) is not None:
        ended.set_exception(error)
    else:
        ended.set_result(task.result())


def _aborted(cause: BaseException) -> Aborted:
    return Aborted(f"{type(cause).__name__} in a handler", try_="raise an ordinary exception; stop() ends a worker")
