"""One lease's life: initialize, process batch after batch, shut down in order, or be lost.

    initializing ──▶ consuming ──drain, or end of the shard──▶ shutting down ──▶ released
         │               │                                          │
         └───────────────┴──────────── lease lost ──────────────────┴──▶ lease_lost, the last call

A batch advances the position only by records that were handled, or that the policy passed over (`lane`); with an
ordering other than the shard's, several lanes are at work (`lanes`). After three owners that died without progress, or
when the last one died while a record had attempts against it, records are delivered one by one in one lane, each marked
before it is handled ("probing"), until as many went well as could have been in flight. A shard that was split or merged
ends with a closing batch: the lease is complete when it is checkpointed there, and the children's leases wait for that.
Manual checkpoints complete it when they cover the last record, or when a processor's `shard_ended` returns.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from streamkit._core.batch import Batch, Record
from streamkit.consumer.aggregates import Place, from_place, unwrapped
from streamkit.consumer.ahead import pack, unpack
from streamkit.consumer.checkpointer import Checkpointer, HeldLease, Track
from streamkit.consumer.failure import Surrendered, reason_of
from streamkit.consumer.fetcher import held_bytes
from streamkit.consumer.handler import Context, Driver
from streamkit.consumer.lane import Lane
from streamkit.consumer.lanes import Lanes, LaneTrack
from streamkit.consumer.pace import Pace
from streamkit.consumer.surroundings import Ended, Source, Stopped, Surroundings
from streamkit.errors import LeaseLost
from streamkit.runtime.backoff import Backoff
from streamkit.runtime.tasks import wait_out
from streamkit.runtime.threads import firm_promise

log = logging.getLogger("streamkit.consumer")

LaneFor = Callable[[Track], tuple[Context, Driver]]

_INITIALIZE_TRIES = 5
_END_TRIES = 5
_PROBE_TAKEOVERS = 3
_END_KNOWN_S = 2.0                         # after it the coordinator knows of a split: what is released is complete
_CANCEL_BEFORE_S = 2.0                     # a handler is cancelled that long before its lease goes
_WINDOW_SHARE = 4                          # of the worker's prefetched bytes, what one shard's lanes may hold


class ShardConsumer:
    """`run` as a task; `drain` to end it in order, cancel it when the lease is lost."""

    def __init__(
        self, lease: HeldLease, context: Context, driver: Driver, source: Source, around: Surroundings,
        lane_for: LaneFor | None = None,
    ) -> None:
        """lane_for: a context and a driver for each lane, when the configuration asks for several."""
        self.lease = lease
        self.context = context
        self._driver = driver
        self._begun = False                            # initialize was called: lease_lost will be
        self._end_told = False                         # user code has finished with the shard itself
        self._source = source
        self._around = around
        self._config = around.config
        self._draining = asyncio.Event()
        self._working: asyncio.Task[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._halting = asyncio.Event()                # lanes begin nothing more
        lanes = around.config.ordering.lanes if around.config.ordering.within != "shard" else 1
        self.pace = Pace(asyncio.get_running_loop().time(), lanes)
        self._before = unpack(lease.grant.ahead, lease.grant.checkpoint)
        lease.ahead = self._ahead
        self._lane = self._new_lane(lease, context, driver)
        self._lanes: Lanes | None = None
        self._all = [self._lane]
        if around.config.ordering.within != "shard":
            assert lane_for is not None, "whoever configures lanes makes them"
            self._lanes = self._new_lanes(lane_for)
        grant = lease.grant
        suspect = grant.takeovers_without_progress >= _PROBE_TAKEOVERS
        if around.config.probes and (suspect or (grant.previous_owner_crashed and grant.attempts)):
            self._lane.probing = around.config.checkpoint_records
            log.warning("shard.probing application=%s stream=%s shard=%s takeovers=%d", self._config.application,
                        lease.stream, lease.shard.id, grant.takeovers_without_progress)

    def _new_lane(self, track: Track, context: Context, driver: Driver) -> Lane:
        alone = track is self.lease
        return Lane(
            track, self.lease, context, driver, self._around, draining=self._draining,
            halting=self._draining if alone else self._halting, on_pause=self._halt_lanes, pace=self.pace,
        )

    def _new_lanes(self, lane_for: LaneFor) -> Lanes:
        config = self._config
        tracks = [LaneTrack(self.lease) for _ in range(config.ordering.lanes)]
        lanes = [self._new_lane(track, *lane_for(track)) for track in tracks]
        self._all += lanes
        return Lanes(
            self.lease, lanes, by_key=config.ordering.within == "key", halting=self._halting,
            window_records=config.window_records, window_bytes=config.prefetch_bytes_max // _WINDOW_SHARE,
            statistics=self._around.statistics,
        )

    def _ahead(self, position: int) -> bytes:
        self._before = [marks for marks in self._before if marks.reach > position]
        return pack([self._lanes.marks(), *self._before] if self._lanes is not None else self._before, position)

    @property
    def first_unfinished(self) -> int:
        """Sequence of the record in hand, or of the first in the batch in hand."""
        return self.lease.reached[0]

    @property
    def busy_since_s(self) -> float | None:
        """Since when user code has been at its present call; the longest of all lanes."""
        return min((lane.busy_since_s for lane in self._all if lane.busy_since_s is not None), default=None)

    @property
    def failed(self) -> BaseException | None:
        """What ends the whole worker."""
        return next((lane.failed for lane in self._all if lane.failed is not None), None)

    @property
    def last_error(self) -> BaseException | None:
        """Of the last record or batch that failed."""
        return next((lane.last_error for lane in self._all if lane.last_error is not None), None)

    @property
    def last_alone(self) -> Record[Any] | None:
        """The last record that was tried by itself."""
        return next((lane.last_alone for lane in self._all if lane.last_alone is not None), None)

    async def settle(self) -> None:
        """Until what was taken is finished, in all lanes. Raises Ended when the lease goes before."""
        if self._lanes is not None:
            await self._lanes.settle()

    def _halt_lanes(self) -> None:
        if self._lanes is not None:
            self._lanes.halt()

    def drain(self, seconds: float) -> None:
        """Finish the record or batch in hand, then shut down; the lease goes after that many seconds."""
        if self._draining.is_set():
            return
        loop = asyncio.get_running_loop()
        checkpointer = self.context.checkpointer
        assert checkpointer is not None, "a shard consumer's context has a checkpointer"
        checkpointer.deadline_s = loop.time() + seconds
        self._draining.set()
        self.context.halt()
        self._halt_lanes()
        self._deadline = loop.call_later(max(0.0, seconds - _CANCEL_BEFORE_S), self._cancel_work)

    def _cancel_work(self) -> None:
        if self._working is not None and not self._working.done():
            log.warning("handler.cancelled stream=%s shard=%s", self.lease.stream, self.lease.shard.id)
            self._working.cancel()

    async def run(self) -> None:
        """Returns when the lease may be released. Cancelled: the lease is lost."""
        try:
            if await self._initialize():
                await self._work_until_drained()
                await self._shut_down()
        except LeaseLost:
            self.lease.lose()
        except asyncio.CancelledError:
            self.lease.lose()
            raise
        finally:
            if self._deadline is not None:
                self._deadline.cancel()
            self.context.halt()
            self._halt_lanes()
            self._around.statistics.poisoned = {
                entry for entry in self._around.statistics.poisoned if entry[0] != self.lease.shard.uuid
            }
            if self.context.transactions is not None:
                await self.context.transactions.end()
            if self._begun:
                await self._quietly(self._driver.lease_lost, "lease_lost")

    async def _quietly(self, call: Callable[[], Awaitable[None]], name: str) -> None:
        try:
            await call()
        except Exception as error:
            log.error("processor.%s_failed stream=%s shard=%s error=%s", name, self.lease.stream, self.lease.shard.id,
                      error, exc_info=error)

    async def _initialize(self) -> bool:
        # False: it failed again and again, or the lease is to be given up before it succeeded.
        backoff = Backoff(self._around.random, 500, 30_000)
        while not self._draining.is_set():
            try:
                self._begun = True
                start = self.lease.start
                if self.context.transactions is not None:
                    await self.context.transactions.take_over()
                await self._driver.initialize()
                if self.lease.start != start:
                    self._before = []
                    self._source.seek(self.lease.start[0])
                    if self.lease.start > start and not self.lease.attempts:
                        self._lane.probing = 0         # the owners that died came further than their checkpoints
                    self._around.nudge()
                return True
            except Exception as error:
                log.error("processor.initialize_failed stream=%s shard=%s try=%d error=%s", self.lease.stream,
                          self.lease.shard.id, backoff.tries + 1, error, exc_info=error)
            if backoff.tries + 1 >= _INITIALIZE_TRIES:
                break
            await self._around.wait(backoff.next_ms() / 1000, self._draining)
        return False

    async def _work_until_drained(self) -> None:
        self._working = asyncio.get_running_loop().create_task(self._consume())
        try:
            await asyncio.shield(self._working)
        except asyncio.CancelledError:
            if not self._draining.is_set() or not self._working.cancelled():
                self.context.halt()        # the lease is lost: cancelled from outside, where a thread would go on
                self._halt_lanes()
                self._working.cancel()
                await wait_out([self._working])        # nothing of it runs when the next owner begins
                raise
        except Ended:
            return

    async def _shut_down(self) -> None:
        if not self._end_told:
            await self._quietly(self._driver.shutdown_requested, "shutdown_requested")
        if self.context.transactions is not None:
            await self.context.transactions.finish()
        await self._around.flush(self.lease)
        if self.lease.has_ended and not self.lease.lost:
            await self._stored_or_drained(self.lease.passed[1])
            await self._around.wait(_END_KNOWN_S, self._draining)
        if self.lease.lost:
            raise self.lease.lease_lost()

    # ---- batches -------------------------------------------------------------------------------------------

    async def _consume(self) -> None:
        try:
            await self._take_batches()
        finally:
            if self._lanes is not None:
                await self._lanes.close()

    async def _take_batches(self) -> None:
        unwritten = 0
        records_end = self.lease.start
        while not self._draining.is_set():
            batch = self._source.next_nowait() or await self._next()
            if batch is None:
                break
            finished: Callable[[], None] = partial(self._source.finished, batch)
            end = (batch.end_sequence, 0)
            try:
                await self._wait_for_checkpoint()
                if not batch.is_control:
                    given = self._given(batch)
                    if len(given):
                        records_end = given[-1].end_place
                    unwritten += len(given)
                    if self._lanes is None:
                        await self._lane.work(given)
                    elif self._lane.probing:
                        await self._work_alone(given)
                    else:
                        await self._lanes.take(given, held_bytes(batch), finished)
                        finished = _nothing            # the lanes call it
                self._pass_by(end)
                self.lease.passed = (records_end, end)
            finally:
                finished()
            if batch.is_closing:
                if self._lanes is not None:
                    await self._lanes.settle()
                self.lease.has_ended = True
                await self._tell_end()
                return
            if unwritten >= self._config.checkpoint_records:
                unwritten = 0
                self._around.nudge()
        if self._lanes is not None:
            await self._lanes.rest()

    def _given(self, batch: Batch[Any]) -> Batch[Any]:
        """The batch's user records that `where` lets through, without those that are finished already."""
        given = unwrapped(batch, self.lease.shard, self._config.deaggregate)
        if given.place(0) < self.lease.start:
            given = from_place(given, self.lease.start)
        for marks in self._before:
            given = marks.left_of(given)
        where = self._around.where
        if where is None:
            return given
        before, count = where.undecided, len(given)
        given = where.matching(given)
        self._around.statistics.undecided += where.undecided - before
        self._around.statistics.filtered += count - len(given)
        return given

    def _pass_by(self, end: Place) -> None:
        if self._lanes is None:
            self.lease.finished = max(self.lease.finished, end)
        else:
            self._lanes.pass_by(end)

    async def _work_alone(self, batch: Batch[Any]) -> None:
        # Probing wants to know who kills the process: nobody else is at work then.
        assert self._lanes is not None, "without lanes there is one anyhow"
        await self._lanes.settle()
        self.lease.live, live = None, self.lease.live
        try:
            await self._lane.work(batch)
        finally:
            self._lanes.pass_by(self.lease.finished)
            self.lease.live = live

    async def _tell_end(self) -> None:
        # What user code leaves undone here holds up the shard's children: it is asked again, and never passed by.
        lease = self.lease
        records_end = lease.passed[0]
        backoff = Backoff(self._around.random, 500, 30_000)
        try:
            while not await self._end_settled(backoff):
                await self._lane.rest(backoff.next_ms() / 1000)
        except Ended:
            # The next owner asks again: until then nothing may complete the lease, not even a last checkpoint.
            lease.has_ended = False
            lease.finished = records_end
            lease.passed = (records_end, records_end)
            raise
        if self._end_told:
            lease.asked = max(lease.asked, records_end)

    async def _end_settled(self, backoff: Backoff) -> bool:
        try:
            self._end_told = await self._driver.shard_ended()
            return True
        except Surrendered:
            raise
        except Exception as error:
            if self.lease.lost:
                raise self.lease.lease_lost() from error
            log.warning("processor.shard_ended_failed application=%s stream=%s shard=%s try=%d error=%s",
                        self._config.application, self.lease.stream, self.lease.shard.id, backoff.tries + 1,
                        reason_of(error))
            self._lane.last_error = error
            self._around.statistics.failures += 1
            self._end_told = backoff.tries + 1 >= _END_TRIES and await self._end_exhausted(error)
            return self._end_told

    async def _end_exhausted(self, error: Exception) -> bool:
        """True: the shard is ended all the same; False: its processor is asked again."""
        policy = self._config.policy
        if policy == "skip":
            self._around.statistics.skipped += 1
            return True
        if policy == "stop":
            self._lane.failed = Stopped(
                f"the end of {self.lease.shard.id} of {self.lease.stream} could not be processed: {reason_of(error)}",
                try_="correct the cause and start again", stream=self.lease.stream, shard=self.lease.shard.id,
            )
            self._lane.failed.__cause__ = error
            raise Ended
        if policy == "pause":
            await self._lane.pause(f"the shard's end: {reason_of(error)}")
        log.error("shard.end_blocks application=%s stream=%s shard=%s error=%s", self._config.application,
                  self.lease.stream, self.lease.shard.id, reason_of(error), exc_info=error)
        return False

    async def _wait_for_checkpoint(self) -> None:
        # What is handled and not stored comes again after a crash: that is bounded even if nothing can be stored.
        lease = self.lease
        ahead = lease.position[0] - lease.stored[0]        # in stored records: an aggregate is one
        if ahead <= self._config.window_records or not self._around.late():
            return
        log.warning("shard.waits_for_checkpoint application=%s stream=%s shard=%s position=%d stored=%d",
                    self._config.application, lease.stream, lease.shard.id, lease.position[0], lease.stored[0])
        if not await self._stored_or_drained(lease.position):
            raise Ended

    async def _stored_or_drained(self, position: Place) -> bool:
        """Until a checkpoint at `position` is stored; False when the lease is given up first. Raises LeaseLost."""
        stored = firm_promise()
        self.lease.when_stored(position, stored)
        waiting = asyncio.wrap_future(stored)
        drained = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait([waiting, drained], return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                return False
            waiting.result()               # LeaseLost, if that is how the wait ended
            return True
        finally:
            drained.cancel()
            waiting.cancel()

    async def _next(self) -> Batch[Any] | None:
        # None: the shard is to be given up.
        coming = asyncio.ensure_future(self._source.next())
        drained = asyncio.ensure_future(self._draining.wait())
        began_s = asyncio.get_running_loop().time()
        try:
            await asyncio.wait([coming, drained], return_when=asyncio.FIRST_COMPLETED)
            self.pace.waited(asyncio.get_running_loop().time() - began_s)
            return None if self._draining.is_set() else await coming
        finally:
            coming.cancel()
            drained.cancel()


def make_checkpointer(
    lease: Track, context: Context, loop: asyncio.AbstractEventLoop, nudge: Callable[[], None]
) -> Checkpointer:
    """The checkpointer of a lease, known to its context."""
    context.checkpointer = Checkpointer(lease, loop, nudge, context.covered)
    return context.checkpointer


def _nothing() -> None:
    """Whoever was given the batch says that it is finished."""
