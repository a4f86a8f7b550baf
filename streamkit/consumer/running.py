"""How a worker is run: blocking with signals, inside the caller's event loop, or in the background.

The worker itself runs on the client's background event loop; handlers run on the caller's (`async def`) or in threads
(`def`), so that neither a busy handler nor a blocked one keeps heartbeats from leaving.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from types import TracebackType
from typing import Any, Self

from streamkit.client.client import AsyncClient
from streamkit.client.lag import Lag
from streamkit.client.pool import Connector
from streamkit.consumer.checkpointer import Track
from streamkit.consumer.config import ConsumerConfig
from streamkit.consumer.handler import Context, Driver
from streamkit.consumer.member import Member
from streamkit.consumer.stage import Stages
from streamkit.consumer.surroundings import Statistics, Stopped
from streamkit.errors import ConnectionFailed, InvalidUse, TimedOut
from streamkit.model.codec import Decoding
from streamkit.runtime import environment
from streamkit.runtime.interfaces import Executor, Runtime
from streamkit.runtime.processes import ProcessGroup
from streamkit.runtime.real import LoopThread, RealExecutor
from streamkit.runtime.shutdown import StopSignal
from streamkit.runtime.threads import Promise, PromiseTimeout

log = logging.getLogger("streamkit.consumer")

_STOP_EXTRA_S = 15.0                       # for what a worker does after its drain time
_HANDLER_THREADS = 64                      # made as they are needed


def worker_name(given: str | None, instance: str | None = None) -> str:
    """Unique among the workers of an application, and telling where to look for it."""
    if given:
        return given
    if instance:
        return f"{instance}-{environment.token(4)}"
    return f"{environment.host_name()[:80]}-{environment.process_id()}-{environment.token(4)}"


class Running:
    """Base of Consumer and Worker: the life of one Member, and the client it works with."""

    def __init__(
        self, config: ConsumerConfig, url: str | Connector | None, runtime: Runtime | None,
        loop_thread: LoopThread | None,
    ) -> None:
        self.config = config
        self._url = url
        self._runtime = runtime
        self._loop_thread = loop_thread
        self._member: Member | None = None
        self._ending: Promise[None] | None = None
        self._stop_asked = False
        self._group: ProcessGroup | None = None
        self._handlers_thread: LoopThread | None = None

    def make_driver(self, lease: Track, context: Context, stages: Stages) -> Driver:
        """User code for one lease."""
        raise TypeError(f"{type(self).__name__} says what its user code is")

    def decoding(self) -> Decoding | None:
        """How values are made."""
        return None

    def check(self) -> None:
        """Raises InvalidUse when there is nothing to run yet."""

    # ---- running -------------------------------------------------------------------------------------------

    def member(self, client: AsyncClient, handlers: asyncio.AbstractEventLoop, executor: Executor) -> Member:
        """A worker on the running loop, for those who run it themselves."""
        self.check()
        return Member(client, self.config, self.make_driver, lambda: Stages(executor, handlers), self.decoding())

    def run(self) -> None:
        """Blocks until SIGINT, SIGTERM or `stop`: then finishes what is in hand, checkpoints, releases and leaves."""
        self.check()
        if self.config.processes == 1:
            asyncio.run(self._serve_until_signalled())
        else:
            self._run_processes()

    async def serve(self) -> None:
        """The same inside the caller's event loop, without signals; cancel it or call `stop` to end it in order."""
        self.check()
        ending = self._launch(asyncio.get_running_loop())
        try:
            await asyncio.shield(asyncio.wrap_future(ending))
        except asyncio.CancelledError:
            self._ask_to_stop()
            await asyncio.wait([asyncio.wrap_future(ending)])
            raise
        finally:
            self._forget()

    def start(self) -> None:
        """In the background; `stop` ends it, and raises what ended it before."""
        self.check()
        if self._ending is not None:
            raise InvalidUse("it is running already", try_="stop it first", worker=self.config.worker)
        if self._handlers_thread is None or not self._handlers_thread.alive:
            self._handlers_thread = LoopThread("streamkit-handlers")
        self._launch(self._handlers_thread.loop)

    def stop(self, timeout_s: float = 30.0) -> None:
        """Finish what is in hand, checkpoint, release, leave. Raises TimedOut, and what ended it before."""
        ending = self._ending
        self._ask_to_stop()
        if ending is None or self._handlers_thread is None:
            return                         # run() and serve() see the end themselves
        try:
            ending.result(timeout_s)
        except PromiseTimeout as cause:
            if ending.done():
                raise
            raise TimedOut(f"the worker did not end within {timeout_s} s", try_="wait longer", sent=True) from cause
        finally:
            if ending.done():
                self._forget()
                self._handlers_thread.stop()
                self._handlers_thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def connect_to(self, url: str | Connector | None, runtime: Runtime | None = None) -> None:
        """Another node than it was made for, as tests want it. Raises InvalidUse while it runs."""
        if self._ending is not None:
            raise InvalidUse("it is running already", try_="stop it first", worker=self.config.worker)
        self._url = url
        self._runtime = runtime

    def kill(self) -> None:
        """As if its process were gone: nothing more is handled, checkpointed or released. For tests.

        The call in hand ends first, since a thread cannot be killed; cut its connections, or the node hears of its end.
        """
        member = self._member
        thread = self._loop_thread or LoopThread.shared()
        if member is not None and self._ending is not None and thread.alive:
            thread.loop.call_soon_threadsafe(member.kill)

    @property
    def url(self) -> str | Connector | None:
        """Where it was told to connect; None: as clients find it by themselves."""
        return self._url

    @property
    def stopping(self) -> bool:
        """It was asked to end since it was started."""
        return self._stop_asked

    @property
    def running(self) -> bool:
        return self._ending is not None and not self._ending.done()

    @property
    def statistics(self) -> Statistics:
        """Counts since the worker started."""
        return self._member.statistics if self._member is not None else Statistics()

    @property
    def shards(self) -> tuple[str, ...]:
        """"stream/shard" of every lease held now."""
        return self._member.shards if self._member is not None else ()

    def lag(self) -> Lag:
        """How far the application is behind; needs no running worker. Raises ApplicationNotFound."""
        thread = self._loop_thread or LoopThread.shared()
        return thread.run(self._ask_lag())

    async def _ask_lag(self) -> Lag:
        async with AsyncClient(self._url, self._runtime) as client:
            return await client.lag(self.config.application)

    # ---- inside --------------------------------------------------------------------------------------------

    def _run_processes(self) -> None:
        if not (self._url is None or isinstance(self._url, str)) or self._loop_thread or self._runtime:
            raise InvalidUse("an embedded node lives in one process", try_="use processes=1, or streamkit serve")
        self._group = ProcessGroup(
            self.config.processes, self._run_one, stop_s=self.config.drain_seconds + _STOP_EXTRA_S
        )
        try:
            if failed := self._group.run():
                raise Stopped(
                    f"{failed} of {self.config.processes} processes of this worker failed; the log says why",
                    try_="look for process.failed and what stands before it", processes=failed,
                )
        finally:
            self._group = None

    def _run_one(self, index: int) -> None:
        self._group = None
        config = self.config
        self.config = dataclasses.replace(
            config, worker=f"{config.worker}-{index}", processes=1,
            instance=f"{config.instance}-{index}" if config.instance else None,
        )
        asyncio.run(self._serve_until_signalled())

    def _launch(self, handlers: asyncio.AbstractEventLoop) -> Promise[None]:
        if self._ending is not None:
            raise InvalidUse("it is running already", try_="stop it first", worker=self.config.worker)
        if self.config.processes > 1:
            raise InvalidUse("only run() makes processes", try_="use processes=1 here", processes=self.config.processes)
        self._stop_asked = False
        thread = self._loop_thread or LoopThread.shared()
        self._ending = asyncio.run_coroutine_threadsafe(self._live(handlers), thread.loop)
        return self._ending

    async def _live(self, handlers: asyncio.AbstractEventLoop) -> None:
        client = AsyncClient(self._url, self._runtime)
        executor = RealExecutor(threads=_HANDLER_THREADS)
        try:
            with contextlib.suppress(ConnectionFailed):
                await client.connect()     # if it fails the keeper goes on trying; a wrong protocol ends it here
            member = self.member(client, handlers, executor)
            self._member = member
            if self._stop_asked:
                member.stop()
            await member.run()
        finally:
            executor.close()
            await client.close()

    async def _serve_until_signalled(self) -> None:
        async with StopSignal() as signals:
            ending = asyncio.ensure_future(self.serve())
            asked = asyncio.ensure_future(signals.wait())
            try:
                await asyncio.wait([ending, asked], return_when=asyncio.FIRST_COMPLETED)
                if asked.done():
                    log.info("worker.stopping signal=%s", asked.result())
                self._ask_to_stop()
                await ending
            finally:
                asked.cancel()

    def _ask_to_stop(self) -> None:
        self._stop_asked = True
        if self._group is not None:
            self._group.stop()
        member = self._member
        thread = self._loop_thread or LoopThread.shared()
        if member is not None and self._ending is not None and thread.alive:
            thread.loop.call_soon_threadsafe(member.stop)

    def _forget(self) -> None:
        self._ending = None


def required(value: Any, name: str) -> Any:
    if value is None:
        raise InvalidUse(f"{name} is required", try_=f"pass {name}=…", argument=name)
    return value
