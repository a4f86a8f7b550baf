"""A shard's records in several lanes at once, each in order.

    batch ──deal──▶ lane 0: part, part …      position = the least that any lane with work has reached,
                    lane 1: part, …                      or the end of what was dealt out
                    …                         marks    = how far each lane is, for whoever takes the shard over

A record that fails is set aside with those of its key (`asides`); the lane goes on with the others. Batches are held
until all their parts are finished. When the oldest record in hand holds up the window, nothing more is
dealt out. Where one lane ends (the lease is paused, or lost, or the worker is to stop), all do.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from streamkit._core.batch import Batch
from streamkit._core.lanes import deal
from streamkit.consumer.aggregates import Place
from streamkit.consumer.ahead import ROWS_MAX, Marks
from streamkit.consumer.asides import Asides, Dealt
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
class _Queue:
    lane: Lane
    asides: Asides
    waiting: deque[tuple[Batch[Any], Dealt]]       # the first one is in hand
    news: asyncio.Event


class Lanes:
    """lanes: at least one, whose tracks are theirs alone. window_bytes: of batches that are not finished."""

    def __init__(
        self, lease: HeldLease, lanes: Sequence[Lane], *, by_key: bool, halting: asyncio.Event, window_records: int,
        window_bytes: int, statistics: Statistics,
    ) -> None:
        self._by_key = by_key
        self._queues = [self._new_queue(lane, lease) for lane in lanes]
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

    def _new_queue(self, lane: Lane, lease: HeldLease) -> _Queue:
        asides = Asides(
            lane, lambda: LaneTrack(lease), by_key=self._by_key, has_room=self._has_room, begin=self._begin,
            part_done=self._part_done,
        )
        lane.aside = asides
        return _Queue(lane, asides, deque(), asyncio.Event())

    def _has_room(self) -> bool:
        return sum(len(queue.asides) for queue in self._queues) < ROWS_MAX

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        self._running = [task for task in self._running if not task.done()]
        self._running.append(self._tasks.start(self._guarded(work), "aside"))

    def reached(self) -> Place:
        """Place of the first record that is not finished."""
        places = [queue.lane.track.reached for queue in self._queues if queue.waiting]
        for queue in self._queues:
            places += queue.asides.reached()
        return min(places, default=self._end)

    def marks(self) -> Marks:
        marks = tuple((queue.lane.track.reached if queue.waiting else self._end)[0] for queue in self._queues)
        rows = [row for queue, mark in zip(self._queues, marks, strict=True) for row in queue.asides.marks(mark)]
        return Marks(self._by_key, marks, tuple(rows))

    async def take(self, batch: Batch[Any], size_bytes: int, finished: Callable[[], None]) -> None:
        """Deal it out, as soon as the window lets it. finished: called when all of it is. Raises what ended a lane."""
        await self._wait_for_window()
        parts = deal(batch, len(self._queues), self._by_key)
        dealt = Dealt(len(parts) - parts.count(None), len(batch), size_bytes, finished)
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
        if not self._running:
            self._running = [self._tasks.start(self._guarded(self._run(queue)), "lane") for queue in self._queues]

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
        while running := [task for task in self._running if not task.done()]:
            await asyncio.wait(running)    # what is in hand may fail, and be set aside yet

    async def close(self) -> None:
        """Cancel what is still in hand."""
        await self._tasks.close()

    async def _run(self, queue: _Queue) -> None:
        lane = queue.lane
        while not self._halting.is_set():
            if not queue.waiting:
                queue.news.clear()
                await queue.news.wait()
                continue
            part, dealt = queue.waiting[0]
            queue.asides.dealt = dealt
            left = queue.asides.left_of(part)
            if left is not None:
                await lane.work(left)
            lane.track.finished = max(lane.track.finished, part.place(len(part)))
            queue.waiting.popleft()
            self._part_done(dealt)

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:
            if self._ended is None:
                self._ended = error
            self.halt()

    def _part_done(self, dealt: Dealt) -> None:
        dealt.parts -= 1
        self._moved.set()
        if not dealt.parts:
            self._done_with(dealt)

    def _done_with(self, dealt: Dealt) -> None:
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
