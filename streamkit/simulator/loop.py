"""An asyncio event loop whose time is virtual and whose processes can be killed, paused and resumed.

Nothing here waits: when no callback is ready, the clock jumps to the next timer. Each callback costs one virtual
microsecond, so that a busy loop still sees time pass. Callbacks run in the order they were asked for.

Who runs is told by a context variable that tasks and callbacks inherit: `Process`. The callbacks of a process that is
gone are dropped without running any more of its code, as SIGKILL does; those of a stopped one wait until it continues.

    running ──stop──▶ stopped ──go on──▶ running        any ──kill──▶ gone
"""

from __future__ import annotations

import asyncio
import heapq
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar

T = TypeVar("T")

CALLBACK_SECONDS = 1e-6
_ENDINGS_MAX = 20                      # a coroutine may wait in one `finally` after another
_CANCELLED_MAX = 256                   # cancelled timers kept in the heap before it is swept


class Gone(BaseException):
    """Thrown through code of a process that ends in the middle of a call; nothing may catch it."""


class Process:
    """One operating system process: what a kill, a stop or a power loss acts on."""

    def __init__(self, name: str, machine: str = "") -> None:
        self.name = name
        self.machine = machine or name
        self.context = Context()                   # for callbacks that others ask for on its behalf
        self.context.run(PROCESS.set, self)
        self.gone = False
        self.stopped = False
        self.backlog: list[Handle] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.on_gone: list[Callable[[], None]] = []
        self._sweep_at = 64

    def adopt(self, task: asyncio.Task[Any]) -> None:
        self.tasks.append(task)
        if len(self.tasks) >= self._sweep_at:
            self.tasks = [task for task in self.tasks if not task.done()]
            self._sweep_at = 2 * len(self.tasks) + 64

    def kill(self) -> None:
        """Nothing of it runs again, not even clean-up; what it held (connections, locks) is let go by `on_gone`."""
        if self.gone:
            return
        self.gone = True
        self.backlog.clear()
        for release in self.on_gone:
            release()
        self.on_gone.clear()
        for task in self.tasks:
            task._log_destroy_pending = False      # type: ignore[attr-defined]

    def forget(self) -> None:
        """After the run. Kernels of a killed node hold files, and files their process: it must lead no further."""
        self.kill()
        for task in self.tasks:
            _end(task)
        self.tasks.clear()
        self.context = Context()


def _end(task: asyncio.Task[Any]) -> None:
    # Its frames hold batches and buffers until they are left. Left to the collector they would be left at any moment,
    # in the middle of another test; here, what clean-up code says without a loop is not heard.
    coroutine = task.get_coro()
    for _ in range(_ENDINGS_MAX):
        try:
            coroutine.close()
        except BaseException:                  # it waited once more in a `finally`, or failed there
            continue
        return


PROCESS: ContextVar[Process | None] = ContextVar("streamkit_simulated_process", default=None)


class Handle:
    """A callback that waits for its turn; for a timer also when."""

    __slots__ = ("_loop", "args", "callback", "context", "done", "seconds")

    def __init__(
        self,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        context: Context,
        seconds: float = 0.0,
        loop: SimulatedLoop | None = None,
    ) -> None:
        self.callback = callback
        self.args = args
        self.context = context
        self.done = False
        self.seconds = seconds
        self._loop = loop

    def cancel(self) -> None:
        if not self.done:
            self.done = True
            self.args = ()
            self.callback = _nothing
            if self._loop is not None:
                self._loop.timer_cancelled()

    def cancelled(self) -> bool:
        return self.done

    def when(self) -> float:
        return self.seconds


def _nothing() -> None:
    return


class Stuck(Exception):
    """Nothing is ready, no timer is set, and what was waited for has not happened."""


class OutOfTime(Exception):
    """The virtual time that the run was given is used up."""


class SimulatedLoop(asyncio.AbstractEventLoop):
    """Owns virtual time. `unhandled` collects what tasks of living processes raised and nobody looked at."""

    def __init__(self) -> None:
        self._now = 0.0
        self._ready: deque[Handle] = deque()
        self._timers: list[tuple[float, int, Handle]] = []
        self._timer_count = 0
        self._cancelled = 0
        self._stopping = False
        self._running = False
        self._closed = False
        self.seconds_max = float("inf")
        self.callbacks = 0
        self.unhandled: list[str] = []
        self._outside = Process("outside")         # keeps the tasks that belong to no process

    # ---- time and callbacks ----------------------------------------------------------------------------------

    def time(self) -> float:
        return self._now

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Handle:  # type: ignore[override]
        handle = Handle(callback, args, copy_context() if context is None else context)
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon   # type: ignore[assignment]

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> Handle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> Handle:
        handle = Handle(callback, args, copy_context() if context is None else context, when, self)
        self._timer_count += 1
        heapq.heappush(self._timers, (when, self._timer_count, handle))
        return handle

    def timer_cancelled(self) -> None:
        self._cancelled += 1
        if self._cancelled > _CANCELLED_MAX and self._cancelled * 2 > len(self._timers):
            self._timers = [entry for entry in self._timers if not entry[2].done]
            heapq.heapify(self._timers)
            self._cancelled = 0

    # ---- running ---------------------------------------------------------------------------------------------

    def run_until_complete(self, future: Any) -> Any:
        task: asyncio.Future[Any] = asyncio.ensure_future(future, loop=self)
        task.add_done_callback(self._complete)
        self.run_forever()
        if not task.done():
            task.remove_done_callback(self._complete)
            raise Stuck("the loop was stopped before the future was done")
        return task.result()

    def _complete(self, _: asyncio.Future[Any]) -> None:
        self._stopping = True

    def run_forever(self) -> None:
        assert not self._running, "a loop runs once at a time"
        self._running = True
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=None, finalizer=_forget)
        asyncio._set_running_loop(self)
        try:
            self._run()
        finally:
            self._stopping = False
            self._running = False
            asyncio._set_running_loop(None)
            sys.set_asyncgen_hooks(*hooks)

    def _run(self) -> None:
        ready = self._ready
        popleft = ready.popleft
        process_of = PROCESS
        while not self._stopping:
            if not ready:
                self._turn_clock()
            for _ in range(len(ready)):
                handle = popleft()
                if handle.done:
                    continue
                process = handle.context.get(process_of)
                if process is not None and (process.gone or process.stopped):
                    if not process.gone:
                        process.backlog.append(handle)
                    continue
                self._now += CALLBACK_SECONDS
                self.callbacks += 1
                handle.done = True
                try:
                    handle.context.run(handle.callback, *handle.args)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except Gone:
                    continue
                except BaseException as error:
                    self.call_exception_handler({"message": f"in {handle.callback!r}", "exception": error})
            timers = self._timers
            while timers and timers[0][0] <= self._now:
                self._take_timer()

    def _take_timer(self) -> None:
        handle = heapq.heappop(self._timers)[2]
        if handle.done:
            self._cancelled -= 1
        else:
            handle._loop = None
            self._ready.append(handle)

    def _turn_clock(self) -> None:
        while self._timers and not self._ready:
            when = self._timers[0][0]
            if when > self.seconds_max and not self._timers[0][2].done:
                raise OutOfTime(f"not done after {self.seconds_max:.0f} virtual seconds")
            if not self._timers[0][2].done and when > self._now:
                self._now = when
            self._take_timer()
        if not self._ready:
            raise Stuck(f"nothing left to do at {self._now:.6f} s")

    def stop(self) -> None:
        self._stopping = True

    def is_running(self) -> bool:
        return self._running

    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Drops all that waits without running it."""
        assert not self._running
        self._closed = True
        self._outside.forget()
        self._ready.clear()
        self._timers.clear()

    # ---- processes -------------------------------------------------------------------------------------------

    def spawn(self, process: Process, main: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """`main` and all that it starts belong to `process`."""
        task: asyncio.Task[T] = process.context.run(self.create_task, main)
        return task

    def resume(self, process: Process) -> None:
        """Undo `process.stopped`: what came for it meanwhile happens now, in order."""
        process.stopped = False
        self._ready.extend(process.backlog)
        process.backlog = []

    # ---- what asyncio needs ----------------------------------------------------------------------------------

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, T], *, name: str | None = None, context: Context | None = None, **_: Any
    ) -> asyncio.Task[T]:
        task: asyncio.Task[T] = asyncio.Task(coro, loop=self, name=name, context=context)
        process = PROCESS.get() if context is None else context.get(PROCESS)
        (process or self._outside).adopt(task)
        return task

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """There are no threads: `func` runs on the loop, a virtual moment later."""
        done: asyncio.Future[T] = self.create_future()

        def work() -> None:
            try:
                result = func(*args)
            except Exception as error:
                if not done.done():
                    done.set_exception(error)
            else:
                if not done.done():
                    done.set_result(result)

        self.call_later(0.0001, work)
        return done

    async def shutdown_asyncgens(self) -> None:
        return

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        return

    def get_debug(self) -> bool:
        return False

    def set_debug(self, enabled: bool) -> None:
        return

    def get_exception_handler(self) -> None:
        return None

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not self._closed and not isinstance(error, Gone):
            self.unhandled.append(f"{context.get('message', '')}: {error!r}")

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)


def _forget(generator: AsyncGenerator[Any, Any]) -> None:
    # An unfinished async generator that nobody holds: its owner is gone, so is its clean-up.
    return
