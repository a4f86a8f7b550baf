"""A shard's records in several lanes at once, each in order.

    batch ──deal──▶ lane 0: part, part …      position = the least that any lane with work has reached,
                    lane 1: part, …                      or the end of what was dealt out
                    …                         marks    = how far each lane is, for whoever takes the shard over

Batches are held until all their parts are finished. When the oldest record in hand holds up the window, nothing more is
dealt out. Where one lane ends (the lease is paused, or lost, or the worker is to stop), all do.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from streamkit._core.batch import Batch
from streamkit._core.lanes import deal
from streamkit.consumer.aggregates import Place
from streamkit.consumer.ahead import Marks
from streamkit.consumer.checkpointer import HeldLease, Track
from streamkit.consumer.lane import Lane
from streamkit.consumer.surroundings import Ended, Statistics
from streamkit.errors import LeaseLost
from streamkit.runtime.tasks import Tasks


class LaneTrack(Track):
    """One lane's place in a lease."""

    def __init__(self, lease: HeldLease) -> None:
        super().__init__(lease.grant, lease.shard, lease.attempts)
        self._lease = lease

    @property
    def lost(self) -> bool:
        return self._lease.lost

    def lease_lost(self) -> LeaseLost:
        return self._lease.lease_lost()


@dataclass(slots=True)
class _Dealt:
    """A batch of which some parts are not finished."""

    parts: int
    records: int
    size_bytes: int
    finished: Callable[[], None]


@dataclass(slots=True)
class _Queue:
    lane: Lane
    waiting: deque[tuple[Batch[Any], _Dealt]]      # the first one is in hand
    news: asyncio.Event


class Lanes:
    """lanes: at least one, whose tracks are theirs alone. window_bytes: of batches that are not finished."""

    def __init__(
        self, lease: HeldLease, lanes: Sequence[Lane], *, by_key: bool, halting: asyncio.Event, window_records: int,
        window_bytes: int, statistics: Statistics,
    ) -> None:
        self._by_key = by_key
        self._queues = [_Queue(lane, deque(), asyncio.Event()) for lane in lanes]
        self._halting = halting
        self._window_records = window_records
        self._window_bytes = window_bytes
        self._statistics = statistics
        self._end: Place = lease.start                 # of what was dealt out
        self._records = self._bytes = 0                # in batches that are not finished
        self._moved = asyncio.Event()
        self._ended: BaseException | None = None       # what ended the first lane that ended
        self._running: list[asyncio.Task[None]] = []
        self._tasks = Tasks(f"lanes of {lease.shard.id}")
        lease.live = self.reached

    def reached(self) -> Place:
        """Place of the first record that is not finished."""
        return min((queue.lane.track.reached for queue in self._queues if queue.waiting), default=self._end)

    def marks(self) -> Marks:
        return Marks(self._by_key, tuple(
            (queue.lane.track.reached if queue.waiting else self._end)[0] for queue in self._queues
        ))

    async def take(self, batch: Batch[Any], size_bytes: int, finished: Callable[[], None]) -> None:
        """Deal it out, as soon as the window lets it. finished: called when all of it is. Raises what ended a lane."""
        await self._wait_for_window()
        parts = deal(batch, len(self._queues), self._by_key)
        dealt = _Dealt(len(parts) - parts.count(None), len(batch), size_bytes, finished)
        for queue, part in zip(self._queues, parts, strict=True):
            if part is None:
                continue
            if not queue.waiting:
                queue.lane.track.finished = max(queue.lane.track.finished, part.place(0))
            queue.waiting.append((part, dealt))
            queue.news.set()
        self._records += len(batch)
        self._bytes += size_bytes
        self.pass_by(batch.place(len(batch)))
        if not dealt.parts:
            self._done_with(dealt)
        while len(self._running) < len(self._queues):
            self._running.append(self._tasks.start(self._run(self._queues[len(self._running)]), "lane"))

    def pass_by(self, end: Place) -> None:
        """Nothing up to there is for a lane."""
        self._end = max(self._end, end)

    async def settle(self) -> None:
        """Until everything that was dealt out is finished. Raises what ended a lane before."""
        await self._until(lambda: not self._records)

    def halt(self) -> None:
        """Finish the records in hand, begin no others."""
        self._halting.set()
        for queue in self._queues:
            queue.lane.halt()
            queue.news.set()
        self._moved.set()

    async def rest(self) -> None:
        """After `halt`: until no lane has anything in hand."""
        self.halt()
        if self._running:
            await asyncio.wait(self._running)

    async def close(self) -> None:
        """Cancel what is still in hand."""
        await self._tasks.close()

    async def _run(self, queue: _Queue) -> None:
        lane = queue.lane
        try:
            while not self._halting.is_set():
                if not queue.waiting:
                    queue.news.clear()
                    await queue.news.wait()
                    continue
                part, dealt = queue.waiting[0]
                await lane.work(part)
                lane.track.finished = max(lane.track.finished, part.place(len(part)))
                queue.waiting.popleft()
                dealt.parts -= 1
                if not dealt.parts:
                    self._done_with(dealt)
        except Exception as error:
            if self._ended is None:
                self._ended = error
            self.halt()

    def _done_with(self, dealt: _Dealt) -> None:
        self._records -= dealt.records
        self._bytes -= dealt.size_bytes
        dealt.finished()
        self._moved.set()

    def _window_is_open(self) -> bool:
        ahead = self._end[0] - self.reached()[0]
        return not self._records or (ahead < self._window_records and self._bytes < self._window_bytes)

    async def _wait_for_window(self) -> None:
        if self._window_is_open() and not self._halting.is_set():
            return
        began_s = asyncio.get_running_loop().time()
        try:
            await self._until(self._window_is_open)
        finally:
            self._statistics.window_blocked_seconds += asyncio.get_running_loop().time() - began_s

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds() or self._halting.is_set():
            if self._halting.is_set():
                await self.rest()
                raise self._ended or Ended
            self._moved.clear()
            await self._moved.wait()
