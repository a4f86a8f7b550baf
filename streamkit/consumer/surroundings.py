"""What a shard consumer needs of its worker, and what it counts for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from streamkit._core.batch import Batch
from streamkit.consumer.aggregates import Place
from streamkit.consumer.checkpointer import HeldLease
from streamkit.consumer.config import ConsumerConfig
from streamkit.consumer.failure import DeadRecord
from streamkit.errors import StreamkitError
from streamkit.expressions.condition import Condition
from streamkit.runtime.interfaces import Clock, Random


class Source(Protocol):
    """Where batches come from: a Fetcher, or the values of `feed`."""

    async def next(self) -> Batch[Any]: ...
    def next_nowait(self) -> Batch[Any] | None: ...
    def finished(self, batch: Batch[Any]) -> None: ...
    def seek(self, sequence: int) -> None:
        """Begin there instead; before anything was taken."""


class DeadLetterBox(Protocol):
    async def put(self, dead: DeadRecord) -> None: ...


@dataclass(slots=True)
class Statistics:
    """Of one worker, since it started."""

    records: int = 0
    failures: int = 0
    retries: int = 0
    dead_lettered: int = 0
    skipped: int = 0
    filtered: int = 0                      # records that `where` passed over
    unhandled: int = 0                     # records that no handler's condition held for, passed over
    undecided: int = 0                     # records for which a condition could not be decided: it does not hold
    window_blocked_seconds: float = 0.0    # lanes waited for the oldest record in hand before more was handed out
    poisoned: set[tuple[bytes, Place]] = field(default_factory=set)


class Stopped(StreamkitError):
    """The worker ended by itself.

    on_exhausted="stop": with the record's error as cause; facts: stream, shard, sequence_number. Or some of its
    processes failed; facts: processes (how many).
    """

    code = "stopped"


def _untold(lease: HeldLease, sequence: int) -> None:
    """Where user code runs in the caller's own thread, a debugger ends it."""


@dataclass(slots=True, kw_only=True)
class Surroundings:
    """What a shard consumer needs of its worker."""

    config: ConsumerConfig
    clock: Clock
    random: Random
    statistics: Statistics
    dead_letters: DeadLetterBox
    flush: Callable[[HeldLease], Awaitable[None]]
    nudge: Callable[[], None]
    pause: Callable[[HeldLease, str], Awaitable[None]]
    wait: Callable[[float, asyncio.Event], Awaitable[None]]    # seconds, ended early by the event
    alive: Callable[[], bool] = lambda: True                   # the worker's leases are still its own
    late: Callable[[], bool] = lambda: False                   # checkpoints do not get through
    where: Condition | None = None                             # which records are given out
    hung: Callable[[HeldLease, int], None] = _untold           # user code at that sequence that nothing else ends


class Ended(Exception):
    """The lease goes: unwind to the shutdown."""
