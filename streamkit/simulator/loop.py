"""An asyncio event loop whose time is virtual and whose processes can be killed, paused and resumed.

Nothing here waits: when no callback is ready, the clock jumps to the next timer. Each callback costs one virtual
microsecond, so that a busy loop still sees time pass. Callbacks run in the order they were asked for. That part is
compiled, in `_core/turns.pyx`: it runs some ten thousand callbacks a seed.

Who runs is told by a context variable that tasks and callbacks inherit: `Process`. The callbacks of a process that is
gone are dropped without running any more of its code, as SIGKILL does; those of a stopped one wait until it continues.

    running ──stop──▶ stopped ──go on──▶ running        any ──kill──▶ gone
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextvars import Context, ContextVar
from typing import Any, NoReturn, TypeVar

from streamkit._core.turns import Owner, Turns

T = TypeVar("T")

_ENDINGS_MAX = 20                      # a coroutine may wait in one `finally` after another


class Gone(BaseException):
    """Thrown through code of a process that ends in the middle of a call; nothing may catch it."""


class Process(Owner):
    """One operating system process: what a kill, a stop or a power loss acts on."""

    def __init__(self, name: str, machine: str = "") -> None:
        self.name = name
        self.machine = machine or name
        self.context = Context()                   # for callbacks that others ask for on its behalf
        self.context.run(PROCESS.set, self)
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


class Stuck(Exception):
    """Nothing is ready, no timer is set, and what was waited for has not happened."""


class OutOfTime(Exception):
    """The virtual time that the run was given is used up."""


class SimulatedLoop(Turns, asyncio.AbstractEventLoop):  # type: ignore[misc] # its handles only act like asyncio's
    """`unhandled` collects what tasks of living processes raised and nobody looked at."""

    def __init__(self) -> None:
        super().__init__(PROCESS)
        self._running = False
        self._closed = False
        self.unhandled: list[str] = []
        self._outside = Process("outside")         # keeps the tasks that belong to no process

    call_soon_threadsafe = Turns.call_soon         # type: ignore[assignment] # there is one thread

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
        self.stop()

    def run_forever(self) -> None:
        assert not self._running, "a loop runs once at a time"
        self._running = True
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=None, finalizer=_forget)
        asyncio._set_running_loop(self)
        try:
            self.run_turns()
        finally:
            self._running = False
            asyncio._set_running_loop(None)
            sys.set_asyncgen_hooks(*hooks)

    def out_of_time(self) -> NoReturn:
        raise OutOfTime(f"not done after {self.seconds_max:.0f} virtual seconds")

    def stuck(self) -> NoReturn:
        raise Stuck(f"nothing left to do at {self.time():.6f} s")

    def is_running(self) -> bool:
        return self._running

    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Drops all that waits without running it."""
        assert not self._running
        self._closed = True
        self._outside.forget()
        self.drop_all()

    # ---- processes -------------------------------------------------------------------------------------------

    def spawn(self, process: Process, main: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """`main` and all that it starts belong to `process`."""
        task: asyncio.Task[T] = process.context.run(self.create_task, main)
        return task

    # ---- what asyncio needs ----------------------------------------------------------------------------------

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
