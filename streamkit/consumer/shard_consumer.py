"""One lease's life: initialize, process batch after batch, shut down in order, or be lost.

    initializing ──▶ consuming ──drain, or end of the shard──▶ shutting down ──▶ released
         │               │                                          │
         └───────────────┴──────────── lease lost ──────────────────┴──▶ lease_lost, the last call

A batch advances the position only by records that were handled, or that the policy passed over. A batch that fails
as a whole is cut in halves until the failing record is alone. After three owners that died without progress, or when
the last one died while a record had attempts against it, records are delivered one by one, each marked in the
coordinator's log before it is handled ("probing"), until as many went well as could have been in flight. A shard that
was split or merged ends with a closing batch: the lease is complete when it is checkpointed there, and the children's
leases wait for that. Manual checkpoints complete it when they cover the last record, or when a processor's
`shard_ended` returns.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from streamkit._core.batch import Batch, Record
from streamkit.consumer.aggregates import Place, from_place, place_of, unwrapped
from streamkit.consumer.checkpointer import Checkpointer, HeldLease
from streamkit.consumer.config import ConsumerConfig
from streamkit.consumer.failure import (
    DeadRecord,
    PauseAsked,
    ProcessDied,
    RetryLater,
    Surrendered,
    is_permanent,
    reason_of,
)
from streamkit.consumer.handler import Context, Driver, Outcome
from streamkit.errors import LeaseLost, StreamkitError
from streamkit.expressions.condition import Condition
from streamkit.runtime.backoff import Backoff
from streamkit.runtime.interfaces import Clock, Random
from streamkit.runtime.threads import firm_promise

log = logging.getLogger("streamkit.consumer")

_INITIALIZE_TRIES = 5
_END_TRIES = 5
_PROBE_TAKEOVERS = 3
_END_KNOWN_S = 2.0                         # after it the coordinator knows of a split: what is released is complete
_CANCEL_BEFORE_S = 2.0                     # a handler is cancelled that long before its lease goes


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
    poisoned: set[tuple[bytes, Place]] = field(default_factory=set)


class Stopped(StreamkitError):
    """The worker ended by itself.

    on_exhausted="stop": with the record's error as cause; facts: stream, shard, sequence_number. Or some of its
    processes failed; facts: processes (how many).
    """

    code = "stopped"


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


class _Ended(Exception):
    """The lease goes: unwind to the shutdown."""


class ShardConsumer:
    """`run` as a task; `drain` to end it in order, cancel it when the lease is lost."""

    def __init__(
        self, lease: HeldLease, context: Context, driver: Driver, source: Source, around: Surroundings
    ) -> None:
        self.lease = lease
        self.context = context
        self.failed: BaseException | None = None       # what ends the whole worker
        self.last_error: BaseException | None = None   # of the last record or batch that failed
        self.last_alone: Record[Any] | None = None     # the last record that was tried by itself
        self.busy_since_s: float | None = None
        self._driver = driver
        self._begun = False                            # initialize was called: lease_lost will be
        self._end_told = False                         # user code has finished with the shard itself
        self._source = source
        self._around = around
        self._config = around.config
        self._draining = asyncio.Event()
        self._working: asyncio.Task[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._failed_first_ms: dict[Place, int] = {}
        grant = lease.grant
        self._probing = 0
        if grant.takeovers_without_progress >= _PROBE_TAKEOVERS or (grant.previous_owner_crashed and grant.attempts):
            self._probing = around.config.checkpoint_records
            log.warning("shard.probing application=%s stream=%s shard=%s takeovers=%d", self._config.application,
                        lease.stream, lease.shard.id, grant.takeovers_without_progress)

    @property
    def first_unfinished(self) -> int:
        """Sequence of the record in hand, or of the first in the batch in hand."""
        return (max(self.lease.finished, self.lease.live()) if self.lease.live is not None else self.lease.finished)[0]

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
            self._around.statistics.poisoned = {
                entry for entry in self._around.statistics.poisoned if entry[0] != self.lease.shard.uuid
            }
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
                await self._driver.initialize()
                if self.lease.start != start:
                    self._source.seek(self.lease.start[0])
                    if self.lease.start > start and not self.lease.attempts:
                        self._probing = 0      # the owners that died came further than their checkpoints
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
                self._working.cancel()     # the lease is lost: cancelled from outside
                await asyncio.wait([self._working])
                raise
        except _Ended:
            return

    async def _shut_down(self) -> None:
        if not self._end_told:
            await self._quietly(self._driver.shutdown_requested, "shutdown_requested")
        await self._around.flush(self.lease)
        if self.lease.ended is not None and not self.lease.lost:
            await self._stored_or_drained(self.lease.ended[1])
            await self._around.wait(_END_KNOWN_S, self._draining)
        if self.lease.lost:
            raise self.lease.lease_lost()

    # ---- batches -------------------------------------------------------------------------------------------

    async def _consume(self) -> None:
        unwritten = 0
        records_end = self.lease.start
        while not self._draining.is_set():
            batch = self._source.next_nowait() or await self._next()
            if batch is None:
                return
            try:
                await self._wait_for_checkpoint()
                idle = not batch.is_closing and self.lease.asked >= self.lease.finished
                if not batch.is_control:
                    given = unwrapped(batch, self.lease.shard, self._config.deaggregate)
                    if self.lease.finished == self.lease.start:
                        given = from_place(given, self.lease.start)
                    given = self._filtered(given)
                    await self._work(given)
                    unwritten += len(given)
                    if len(given):
                        records_end = (batch.end_sequence, 0)
                        idle = False
                self.lease.finished = max(self.lease.finished, (batch.end_sequence, 0))
                if idle and self._around.where is not None:
                    self.lease.asked = self.lease.finished     # nothing matched: what was asked for holds here, too
            finally:
                self._source.finished(batch)
            if batch.is_closing:
                self.lease.ended = (records_end, (batch.end_sequence, 0))
                await self._tell_end()
                return
            if unwritten >= self._config.checkpoint_records:
                unwritten = 0
                self._around.nudge()

    def _filtered(self, batch: Batch[Any]) -> Batch[Any]:
        """What `where` leaves of a batch."""
        where = self._around.where
        if where is None:
            return batch
        before = where.undecided
        given = where.matching(batch)
        self._around.statistics.undecided += where.undecided - before
        self._around.statistics.filtered += len(batch) - len(given)
        return given

    async def _tell_end(self) -> None:
        # What user code leaves undone here holds up the shard's children: it is asked again, and never passed by.
        lease = self.lease
        assert lease.ended is not None, "the closing batch came"
        records_end = lease.ended[0]
        backoff = Backoff(self._around.random, 500, 30_000)
        try:
            while not await self._end_settled(backoff):
                await self._rest(backoff.next_ms() / 1000)
        except _Ended:
            # The next owner asks again: until then nothing may complete the lease, not even a last checkpoint.
            lease.ended = None
            lease.finished = records_end
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
            self.last_error = error
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
            self.failed = Stopped(
                f"the end of {self.lease.shard.id} of {self.lease.stream} could not be processed: {reason_of(error)}",
                try_="correct the cause and start again", stream=self.lease.stream, shard=self.lease.shard.id,
            )
            self.failed.__cause__ = error
            raise _Ended
        if policy == "pause":
            await self._pause(f"the shard's end: {reason_of(error)}")
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
            raise _Ended

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
        try:
            await asyncio.wait([coming, drained], return_when=asyncio.FIRST_COMPLETED)
            return None if self._draining.is_set() else await coming
        finally:
            coming.cancel()
            drained.cancel()

    async def _work(self, batch: Batch[Any]) -> None:
        # Parts of the batch, as large as allowed and as small as the last failure demands.
        end = len(batch)
        largest = min(end, self._config.batch_records_max) if self._driver.whole else end
        at = 0
        size = largest
        while at < end:
            if self._draining.is_set():
                raise _Ended
            if self._probing:
                at += await self._probe(batch.part(at, at + 1))
                continue
            stop = min(at + size, end)
            part = batch if stop - at == end else batch.part(at, stop)
            outcome = await self._run(part)
            at += await self._settle(part, outcome, bisect=self._driver.whole and len(part) > 1 and not outcome.exact)
            if outcome.error is None:
                size = min(2 * size, largest)
            elif self._driver.whole and not outcome.failed and not outcome.exact:
                size = max(1, len(part) // 2)

    async def _run(self, part: Batch[Any]) -> Outcome:
        if self.lease.lost or not self._around.alive():
            raise self.lease.lease_lost()  # a process that was stopped: nothing more is handed out when it goes on
        self.busy_since_s = asyncio.get_running_loop().time()
        self.lease.live = None if self._driver.whole else self.context.in_hand
        try:
            outcome = await self._driver.run(part)
        finally:
            self.busy_since_s = None
            self.context.attempt_counted = False
            self.lease.live = None
        statistics = self._around.statistics
        statistics.records += outcome.done - outcome.unhandled
        statistics.unhandled += outcome.unhandled
        statistics.undecided += outcome.undecided
        if outcome.error is not None:
            self.last_error = outcome.error
        return outcome

    async def _settle(self, part: Batch[Any], outcome: Outcome, *, bisect: bool) -> int:
        """How many leading records of the part are finished now."""
        self._finish(part, outcome.done)
        if outcome.error is None:
            return outcome.done
        if outcome.failed:
            for index in outcome.failed:
                await self._alone(part.part(index, index + 1), outcome.error)
            self._around.statistics.records += len(part) - outcome.done - len(outcome.failed)
            self._finish(part, len(part))
            return len(part)
        if isinstance(outcome.error, RetryLater | PauseAsked):
            bisect = False
        if bisect:
            self._around.statistics.failures += 1
            return 0
        await self._alone(part.part(outcome.done, outcome.done + 1), outcome.error)
        return outcome.done + 1

    def _finish(self, part: Batch[Any], done: int) -> None:
        finished = part.place(done)
        lease = self.lease
        lease.finished = max(lease.finished, finished)
        if lease.attempts:
            for place in [place for place in lease.attempts if place < finished]:
                del lease.attempts[place]
                self._failed_first_ms.pop(place, None)
                self._around.statistics.poisoned.discard((lease.shard.uuid, place))

    # ---- one record that failed ----------------------------------------------------------------------------

    async def _alone(self, part: Batch[Any], error: BaseException) -> None:
        """One record that failed just now: try it again until it is handled, or the policy passes over it."""
        record = self.last_alone = part[0]
        counted = True
        while True:
            if isinstance(error, PauseAsked):
                await self._pause(str(error))
            if isinstance(error, RetryLater):
                await self._rest(float(error.facts["seconds"]))
            else:
                if counted:
                    self._count_failure(record)
                if await self._pass_over_or_wait(record, error):
                    await self._driver.passed_over(part)
                    self._finish(part, 1)
                    return
            self._around.statistics.retries += 1
            if self._probing:
                await self._mark(record)
            counted = not self._probing
            outcome = await self._run(part)
            if outcome.error is None:
                if outcome.done == 0:
                    raise _Ended           # halted before it began
                self._finish(part, 1)
                return
            error = outcome.error

    def _count_failure(self, record: Record[Any]) -> None:
        attempts = self.lease.attempts
        place = place_of(record)
        attempts[place] = attempts.get(place, 0) + 1
        self._failed_first_ms.setdefault(place, self._around.clock.now_ms())
        self._around.statistics.failures += 1

    async def _pass_over_or_wait(self, record: Record[Any], error: BaseException) -> bool:
        """True: the record is passed over; False: it was waited for, and is to be tried again."""
        config = self._config
        attempts = self.lease.attempts.get(place_of(record), 1)
        exhausted = is_permanent(error) or attempts >= config.retry.attempts_max
        if exhausted and await self._exhausted(record, error, attempts):
            return True
        wait_ms = config.retry.wait_ms(attempts, self._around.random.uniform())
        if exhausted:
            wait_ms = float(config.retry.last_ms)
        log.warning(
            "record.retrying application=%s stream=%s shard=%s sequence=%d attempt=%d error=%s next_ms=%d",
            config.application, record.stream, record.shard, record.sequence, attempts, reason_of(error), wait_ms,
        )
        self._around.nudge()               # attempts survive this worker
        await self._rest(wait_ms / 1000)
        return False

    async def _exhausted(self, record: Record[Any], error: BaseException, attempts: int) -> bool:
        policy = self._config.policy
        statistics = self._around.statistics
        reason = reason_of(error)
        if policy == "skip":
            statistics.skipped += 1
            log.error("record.skipped application=%s stream=%s shard=%s sequence=%d attempts=%d error=%s",
                      self._config.application, record.stream, record.shard, record.sequence, attempts, reason)
            return True
        if policy == "dead_letter":
            return await self._dead_letter(record, error, attempts)
        if policy == "pause":
            await self._pause(reason)
        if policy == "stop":
            self.failed = Stopped(
                f"record {record.sequence_number} of {record.stream}/{record.shard} failed {attempts} times: {reason}",
                try_="correct the handler or the record, then start the worker again",
                stream=record.stream, shard=record.shard, sequence_number=record.sequence_number,
            )
            self.failed.__cause__ = error
            raise _Ended
        statistics.poisoned.add((self.lease.shard.uuid, place_of(record)))
        log.error("record.blocks application=%s stream=%s shard=%s sequence=%d attempts=%d error=%s",
                  self._config.application, record.stream, record.shard, record.sequence, attempts, reason)
        return False

    async def _dead_letter(self, record: Record[Any], error: BaseException, attempts: int) -> bool:
        now_ms = self._around.clock.now_ms()
        dead = DeadRecord(
            record=record, error=error, attempts=attempts, application=self._config.application,
            worker=self._config.worker, failed_last_ms=now_ms,
            failed_first_ms=self._failed_first_ms.get(place_of(record), now_ms),
        )
        try:
            await self._around.dead_letters.put(dead)
        except StreamkitError as refusal:
            self._around.statistics.poisoned.add((self.lease.shard.uuid, place_of(record)))
            log.error("dead_letter.refused stream=%s error=%s", self._config.dead_letter, refusal)
            return False                   # it stays where it is, and is tried again: never lost
        self._around.statistics.dead_lettered += 1
        log.warning("record.dead_lettered application=%s stream=%s shard=%s sequence=%d attempts=%d error=%s",
                    self._config.application, record.stream, record.shard, record.sequence, attempts, reason_of(error))
        return True

    async def _pause(self, reason: str) -> None:
        # The lease stays ours and idle until it is resumed (then it is lost and granted anew) or drained.
        await self._around.flush(self.lease)
        await self._around.pause(self.lease, reason)
        await self._draining.wait()
        raise _Ended

    async def _rest(self, seconds: float) -> None:
        await self._around.wait(seconds, self._draining)
        if self._draining.is_set():
            raise _Ended

    # ---- probing -------------------------------------------------------------------------------------------

    async def _probe(self, part: Batch[Any]) -> int:
        """One record, with its attempt written down before it is handled: whoever kills the process is known."""
        record = part[0]
        died = self.lease.attempts.get(place_of(record), 0)
        if died >= self._config.retry.attempts_max:
            error = ProcessDied(f"workers died {died} times while they handled this record", attempts=died)
            while not await self._exhausted(record, error, died):
                await self._rest(self._config.retry.last_ms / 1000)
            await self._driver.passed_over(part)
            self._finish(part, 1)
            return 1
        await self._mark(record)
        outcome = await self._run(part)
        if outcome.error is None and not outcome.done:
            raise _Ended
        if outcome.error is not None:
            self._around.statistics.failures += 1
            self.lease.attempts[place_of(record)] -= 1     # _alone counts it again
            await self._alone(part, outcome.error)
        self._finish(part, 1)
        self._probing -= 1
        return 1

    async def _mark(self, record: Record[Any]) -> None:
        lease = self.lease
        place = place_of(record)
        lease.attempts[place] = lease.attempts.get(place, 0) + 1
        self.context.attempt_counted = True
        await self._around.flush(lease)
        if lease.lost:
            raise lease.lease_lost()


def make_checkpointer(
    lease: HeldLease, context: Context, loop: asyncio.AbstractEventLoop, nudge: Callable[[], None]
) -> Checkpointer:
    """The checkpointer of a lease, known to its context."""
    context.checkpointer = Checkpointer(lease, loop, nudge, context.covered)
    return context.checkpointer
