"""Several processes made by fork, which do the same work: signals reach them all, and none is left behind.

    work ──returns──▶ done          ──raises──▶ failed: the others are asked to stop
      └── killed by a signal ──▶ logged, and begun anew after a wait that doubles while that goes on

A child is in a process group of its own, so that Ctrl-C reaches the parent alone, which forwards it as SIGTERM. A child
whose parent is gone asks itself to stop. No thread of ours may run in the parent: a fork copies their locks, and nobody
who opens them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from streamkit.errors import InvalidUse
from streamkit.runtime.backoff import Backoff
from streamkit.runtime.real import RealRandom

log = logging.getLogger("streamkit.runtime")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LONG_ENOUGH_S = 60.0                      # a child that lived that long starts with a short wait again


@dataclass(slots=True)
class _Child:
    index: int
    backoff: Backoff
    process: Any = None                    # multiprocessing.Process; None: waits for `due_s`, or has ended for good
    began_s: float = 0.0
    due_s: float | None = None


class ProcessGroup:
    """`run` in the main thread, once. work: called in each child with its index, 0 … count - 1.

    stop_s: how long children get to end after they were asked; then they are killed.
    """

    def __init__(self, count: int, work: Callable[[int], None], *, stop_s: float) -> None:
        self._work = work
        self._stop_s = stop_s
        self._stop_by_s: float | None = None
        self._children = [_Child(index, Backoff(RealRandom(), 200, 30_000)) for index in range(count)]
        self._failed: list[int] = []
        self._wake_read, self._wake_write = -1, -1
        self._life_read, self._life_write = -1, -1     # only the parent keeps the second: its end is the others' too

    def run(self) -> int:
        """Until every child has ended. Returns how many failed; 0 when all was well. Raises InvalidUse."""
        if ours := [thread.name for thread in threading.enumerate() if thread.name.startswith("streamkit")]:
            raise InvalidUse(
                "processes can only be made before streamkit has started threads in this one",
                try_="make clients, producers and readers inside handlers", threads=ours,
            )
        with self._listening():
            try:
                for child in self._children:
                    self._start(child)
                while any(child.process is not None or child.due_s is not None for child in self._children):
                    self._turn()
            finally:
                self._kill()
        return len(self._failed)

    def stop(self) -> None:
        """Ask all children to end; from any thread, or a signal handler."""
        if self._wake_write >= 0:
            with contextlib.suppress(OSError):
                os.write(self._wake_write, bytes([signal.SIGTERM]))

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        # Python writes each signal's number to the pipe: waiting for children and for signals is one wait.
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._life_read, self._life_write = os.pipe()
        before_pipe = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        before = [signal.signal(number, _heard) for number in _SIGNALS]
        try:
            yield
        finally:
            for number, handler in zip(_SIGNALS, before, strict=True):
                signal.signal(number, handler)
            signal.set_wakeup_fd(before_pipe)
            for end in (self._wake_read, self._wake_write, self._life_read, self._life_write):
                os.close(end)
            self._wake_read, self._wake_write = -1, -1

    def _start(self, child: _Child) -> None:
        import multiprocessing  # only those who ask for processes load it

        context = multiprocessing.get_context("fork")
        child.due_s = None
        child.began_s = time.monotonic()
        child.process = context.Process(target=self._in_child, args=(child.index,), name=f"worker-{child.index}")
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)    # none may come before the child takes its own
        try:
            child.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _in_child(self, index: int) -> None:
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        for end in (self._wake_read, self._wake_write, self._life_write):
            os.close(end)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        threading.Thread(target=_end_with_parent, args=(self._life_read,), name="streamkit-parent", daemon=True).start()
        self._work(index)

    def _turn(self) -> None:
        from multiprocessing import connection

        now_s = time.monotonic()
        waits_s = [child.due_s - now_s for child in self._children if child.due_s is not None]
        if self._stop_by_s is not None:
            waits_s.append(self._stop_by_s - now_s)
        running = {child.process.sentinel: child for child in self._children if child.process is not None}
        ready = connection.wait([self._wake_read, *running], max(0.0, min(waits_s)) if waits_s else None)
        for one in ready:
            if one == self._wake_read:
                for number in os.read(self._wake_read, 64):
                    if number in _SIGNALS:
                        self._ask(signal.Signals(number).name)
            else:
                self._ended(running[one])
        now_s = time.monotonic()
        for child in self._children:
            if child.due_s is not None and child.due_s <= now_s:
                self._start(child)
        if self._stop_by_s is not None and self._stop_by_s <= now_s:
            self._kill()

    def _ask(self, why: str) -> None:
        log.info("processes.stopping reason=%s", why)
        if self._stop_by_s is None:
            self._stop_by_s = time.monotonic() + self._stop_s
        for child in self._children:
            child.due_s = None
            if child.process is not None:
                child.process.terminate()  # a second time insists, as for a single process

    def _ended(self, child: _Child) -> None:
        child.process.join()
        code = child.process.exitcode
        process_id = child.process.pid
        child.process.close()
        child.process = None
        if code == 0 or (code == -signal.SIGTERM and self._stop_by_s is not None):
            return                         # the second: it was asked before it had begun
        if code > 0 or self._stop_by_s is not None:
            log.error("process.failed index=%d pid=%d code=%d", child.index, process_id, code)
            self._failed.append(child.index)
            if self._stop_by_s is None:
                self._ask(f"process {child.index} failed")
            return
        if time.monotonic() - child.began_s > _LONG_ENOUGH_S:
            child.backoff.reset()
        wait_ms = child.backoff.next_ms()
        child.due_s = time.monotonic() + wait_ms / 1000
        log.error("process.died index=%d pid=%d signal=%s next_ms=%d", child.index, process_id,
                  signal.Signals(-code).name, wait_ms)

    def _kill(self) -> None:
        for child in self._children:
            child.due_s = None
            if child.process is not None:
                log.error("process.killed index=%d pid=%d", child.index, child.process.pid)
                child.process.kill()
                child.process.join()
                child.process.close()
                child.process = None
                self._failed.append(child.index)


def _heard(number: int, frame: FrameType | None) -> None:
    """The pipe has it; without a handler the signal would end the process."""


def _end_with_parent(life: int) -> None:
    os.read(life, 1)                       # nobody ever writes: it returns when the parent's end is closed
    os.kill(os.getpid(), signal.SIGTERM)
