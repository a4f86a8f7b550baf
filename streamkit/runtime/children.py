"""Programs that one process runs, keeps running and ends: none of them outlives it.

    started ──first line on stdout──▶ ready ──ended, however──▶ begun anew after a wait that doubles while that goes on
       └── ended before it was ready once: what it was told is wrong, and `start` fails

Each child is a program of its own (not a fork) in a process group of its own, so that Ctrl-C reaches the parent alone.
Their stderr is the parent's. A child calls `end_with(parent)` first: then even a parent that is killed leaves none
behind. Linux only. Read `Children._keep`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from streamkit.errors import Unavailable
from streamkit.runtime.backoff import Backoff
from streamkit.runtime.real import RealRandom

log = logging.getLogger("streamkit.runtime")

_WAIT_FIRST_MS = 100.0
_WAIT_MOST_MS = 5_000.0
_LONG_ENOUGH_S = 10.0                      # a child that was ready for that long starts with a short wait again
_LINE_BYTES_MAX = 1 << 20
_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """The kernel kills this process when the thread of `parent` that started it is gone; at once when it is already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


@dataclass(slots=True)
class Child:
    """line: the first one that the running program wrote; b"" while it is not ready."""

    name: str
    backoff: Backoff
    process: asyncio.subprocess.Process | None = None
    line: bytes = b""
    line_before: bytes = b""               # of the life before this one
    lives: int = 0
    failures: int = 0                      # ends before it was ready, one after the other
    ready: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def process_id(self) -> int | None:
        return self.process.pid if self.process is not None else None


class Children:
    """await start(), then await stop() once; both in the main thread's event loop."""

    def __init__(
        self, names: Sequence[str], command: Callable[[Child], Sequence[str]], *,
        on_ready: Callable[[Child], None], stop_seconds: float,
    ) -> None:
        """command: what to run, asked for each life. on_ready: after each life's first line.

        stop_seconds: how long children may take to end after SIGTERM; then they are killed.
        """
        self._command = command
        self._on_ready = on_ready
        self._stop_seconds = stop_seconds
        self.children = [Child(name, Backoff(RealRandom(), _WAIT_FIRST_MS, _WAIT_MOST_MS)) for name in names]
        self._keeping: list[asyncio.Task[int]] = []
        self._stopping = asyncio.Event()

    async def start(self) -> None:
        """Until every child is ready. Raises Unavailable when one ended instead; then all others have ended, too."""
        self._keeping = [asyncio.ensure_future(self._keep(child)) for child in self.children]
        waiting = {asyncio.ensure_future(child.ready.wait()) for child in self.children}
        try:
            while waiting:
                done, _ = await asyncio.wait({*waiting, *self._keeping}, return_when=asyncio.FIRST_COMPLETED)
                waiting -= done
                for keeping in self._keeping:
                    if keeping.done():
                        keeping.result()
        except BaseException:
            await self.stop()
            raise
        finally:
            for one in waiting:
                one.cancel()

    async def stop(self) -> int:
        """All end: SIGTERM, and SIGKILL for those that take too long. Returns how many did not end well."""
        self._stopping.set()
        for child in self.children:
            self._signal(child, signal.SIGTERM)
        if self._keeping:
            _, late = await asyncio.wait(self._keeping, timeout=self._stop_seconds)
            if late:
                for child in self.children:
                    if child.process is not None:
                        log.error("child.killed name=%s pid=%d", child.name, child.process.pid)
                        self._signal(child, signal.SIGKILL)
                await asyncio.wait(late)
        failed = 0
        for keeping in self._keeping:
            failed += keeping.exception() is not None or keeping.result() != 0
        return failed

    async def _keep(self, child: Child) -> int:
        """One life after the other; the exit code of the last, when all are asked to end."""
        while True:
            code = await self._live(child)
            if self._stopping.is_set():
                return 0 if code == -signal.SIGTERM else code      # asked before it had begun to listen
            if not child.line and not child.line_before:
                raise Unavailable(
                    f"{child.name} ended with {_ending(code)} before it was ready",
                    try_="do what it says above", name=child.name, code=code,
                )
            child.failures = 0 if child.line else child.failures + 1
            wait_ms = child.backoff.next_ms()
            log.error("child.ended name=%s ending=%s next_ms=%d", child.name, _ending(code), wait_ms)
            child.line, child.line_before = b"", child.line or child.line_before
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_ms / 1000):
                    await self._stopping.wait()
            if self._stopping.is_set():
                return 0

    async def _live(self, child: Child) -> int:
        child.process = process = await asyncio.create_subprocess_exec(
            *self._command(child), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES_MAX, process_group=0,
        )  # fmt: skip
        child.lives += 1
        assert process.stdout is not None, "it was asked for"
        if self._stopping.is_set():
            self._signal(child, signal.SIGTERM)
        try:
            child.line = await process.stdout.readline()
            began_s = time.monotonic()
            if child.line:
                self._on_ready(child)
                child.ready.set()
            while await process.stdout.read(64 * 1024):        # nobody else takes what it may write later
                continue
            code = await process.wait()
        except BaseException:
            self._signal(child, signal.SIGKILL)
            raise
        child.process = None
        if time.monotonic() - began_s > _LONG_ENOUGH_S:
            child.backoff.reset()
        return code

    def _signal(self, child: Child, number: signal.Signals) -> None:
        if child.process is not None and child.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.process.send_signal(number)


def own_program() -> tuple[str, ...]:
    """How to run this command line once more."""
    return sys.executable, "-m", "streamkit.cli"


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
