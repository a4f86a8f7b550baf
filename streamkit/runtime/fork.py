"""What must happen when this process forks or ends, for objects that care while they live.

Objects register themselves and are held weakly: one that is collected needs nothing any more. Fork hooks run in the
forking thread: `before_fork` in the parent, then `after_fork(in_child)` in both.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from typing import Protocol

_log = logging.getLogger("streamkit.runtime")


class Forking(Protocol):
    def before_fork(self) -> None:
        """Bring shared state to rest: take locks. The fork follows at once."""

    def after_fork(self, in_child: bool) -> None:
        """Let locks go; in the child also forget what belongs to the parent."""


class Ending(Protocol):
    def at_exit(self) -> None:
        """The interpreter ends; threads still run. Must come back within seconds and raise nothing."""


_forking: weakref.WeakSet[Forking] = weakref.WeakSet()
_ending: weakref.WeakSet[Ending] = weakref.WeakSet()
_held: list[Forking] = []                  # between before and after: the objects whose locks are taken
_forks = threading.RLock()                 # held in between as well: threads that fork at once take turns


def watch_fork(member: Forking) -> None:
    _forking.add(member)


def parent_id() -> int:
    """The process that this one came from, or that adopted it."""
    return os.getppid()


def watch_exit(member: Ending) -> None:
    """`member.at_exit()` will be called. The first call must come after LoopThread.shared(): exit goes backwards."""
    if not _ending:
        atexit.unregister(_end)
        atexit.register(_end)
    _ending.add(member)


def forget(member: object) -> None:
    """Nothing need be called on it any more."""
    _forking.discard(member)               # type: ignore[arg-type]
    _ending.discard(member)                # type: ignore[arg-type]


def _end() -> None:
    for member in list(_ending):
        try:
            member.at_exit()
        except Exception:                  # warnings may be errors; the others still get their turn
            _log.exception("exit.failed")


def _before() -> None:
    _forks.acquire()
    _held[:] = list(_forking)
    for member in _held:
        member.before_fork()


def _after(in_child: bool) -> None:
    held = _held[::-1]
    _held.clear()
    for member in held:
        member.after_fork(in_child)
    if in_child:
        _ending.clear()
    _forks.release()


os.register_at_fork(before=_before, after_in_parent=lambda: _after(False), after_in_child=lambda: _after(True))
