"""Records one after the other: each is handled, or passed over by the policy, before the next is.

A batch that fails as a whole is cut in halves until the failing record is alone. While "probing", records are delivered
one by one, each marked in the coordinator's log before it is handled. A shard that is handled in order has one lane.

With handler_timeout_seconds a call that takes too long is asked to end at the bound, and a coroutine is cancelled then
(`handler.in_time`). One that still runs at twice the bound cannot be ended: its attempt is written down and the process
ends itself. Nothing behind the record is handed out before, here or elsewhere; the next owner probes.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Callable
from typing import Any, Protocol

from streamkit._core.batch import Batch, Record
from streamkit.consumer.aggregates import Place, place_of
from streamkit.consumer.checkpointer import HeldLease, Track
from streamkit.consumer.failure import DeadRecord, PauseAsked, ProcessDied, RetryLater, is_permanent, reason_of
from streamkit.consumer.handler import Context, Driver, Outcome
from streamkit.consumer.pace import Pace
from streamkit.consumer.surroundings import DeadLetterBox, Ended, Stopped, Surroundings
from streamkit.errors import StreamkitError

log = logging.getLogger("streamkit.consumer")

_LOOKS = 4                                 # at a call, within its bound: it is seen to hang a quarter late at most


class Turn:
    """User code of a lane is called by one at a time: the lane itself, and keys that it set aside."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> None:
        self._context.want()               # whoever has the turn goes on after us
        try:
            await self._lock.acquire()
        finally:
            self._context.unwant()

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()


class Aside(Protocol):
    """Keys that wait for one of their records while their lane goes on."""

    def put(self, record: Batch[Any], error: BaseException) -> bool:
        """One record that failed just now; False: the lane itself is to try it again."""

    def left_of(self, batch: Batch[Any]) -> Batch[Any] | None:
        """Without the records that wait as well; None when nothing is left."""


class Lane:
    """track: what it moves on; `lease` itself when there are no other lanes. probing: so many records are to go well.

    draining: the lease is to be given up. halting: nothing more is to be begun; the same, or set when another lane
    came to an end. on_pause: called when a handler or the policy paused the lease. aside: where records that failed
    wait while the lane goes on; None: it waits for them.
    """

    def __init__(
        self, track: Track, lease: HeldLease, context: Context, driver: Driver, around: Surroundings, *,
        draining: asyncio.Event, halting: asyncio.Event, on_pause: Callable[[], None],
        pace: Pace,
    ) -> None:
        self.track = track
        self.lease = lease
        self.failed: BaseException | None = None       # what ends the whole worker
        self.last_error: BaseException | None = None   # of the last record or batch that failed
        self.last_alone: Record[Any] | None = None     # the last record that was tried by itself
        self.busy_since_s: float | None = None
        self.probing = 0
        self._context = context
        self._driver = driver
        self._together: Callable[[Batch[Any]], int] | None = getattr(driver, "together", None)
        self._around = around
        self._dead_letters: DeadLetterBox = getattr(driver, "dead_letters", None) or around.dead_letters
        self._config = around.config
        self._draining = draining
        self._halting = halting
        self._on_pause = on_pause
        self._pace = pace
        self._timeout_s = around.config.handler_timeout_seconds
        self._failed_first_ms: dict[Place, int] = {}
        self._set_aside = False            # the last outcome had a record that waits aside
        self._turn = Turn(context)
        self._told = self                  # who tells of errors
        self.aside: Aside | None = None

    def beside(self, track: Track) -> Lane:
        """The same user code, by turns, on another track: a failed record is tried again until it is finished."""
        made = copy.copy(self)
        made.track = track
        made.aside = None
        made._failed_first_ms = {}
        return made

    def halt(self) -> None:
        """Stop after the record or batch in hand; whoever waits for a retry gives up."""
        self._context.halt()

    async def work(self, batch: Batch[Any]) -> None:
        """Until all of the batch is finished. Raises Ended when the lease goes first, and LeaseLost."""
        # Parts of the batch, as large as allowed and as small as the last failure demands.
        end = len(batch)
        cut = self._driver.whole and self._together is None
        largest = min(end, self._config.batch_records_max) if cut else end
        at = 0
        size = largest
        while at < end:
            if self._halting.is_set():
                raise Ended
            if self.probing:
                count = 1 if self._together is None else self._together(batch.part(at, end))
                at += await self._probe(batch.part(at, at + count))
                continue
            stop = min(at + size, end)
            part = batch if stop - at == end else batch.part(at, stop)
            outcome = await self._run(part)
            self._set_aside = False
            at += await self._settle(part, outcome, bisect=self._driver.whole and len(part) > 1 and not outcome.exact)
            if self._set_aside:
                left = self._left_of(batch, at)
                if left is None:
                    return
                batch, at, end = left, 0, len(left)
            if outcome.error is None:
                size = min(2 * size, largest)
            elif self._driver.whole and not outcome.failed and not outcome.exact:
                size = max(1, len(part) // 2)

    def _left_of(self, batch: Batch[Any], at: int) -> Batch[Any] | None:
        assert self.aside is not None, "something was set aside"
        return self.aside.left_of(batch.part(at, len(batch))) if at < len(batch) else None

    async def _run(self, part: Batch[Any]) -> Outcome:
        async with self._turn:
            self._context.follow(self.track)
            return await self._run_now(part)

    async def _run_now(self, part: Batch[Any]) -> Outcome:
        if self.track.lost or not self._around.alive():
            raise self.track.lease_lost()  # a process that was stopped: nothing more is handed out when it goes on
        began_s = self._told.busy_since_s = asyncio.get_running_loop().time()
        self.track.live = None if self._driver.whole else self._context.in_hand
        self._pace.begins(part)
        watch = asyncio.get_running_loop().create_task(self._watch(part)) if self._timeout_s else None
        try:
            outcome = await self._driver.run(part)
        finally:
            if watch is not None:
                watch.cancel()
            self._told.busy_since_s = None
            self._context.attempt_counted = False
            self.track.live = None
        self._pace.ran(outcome.done, asyncio.get_running_loop().time() - began_s)
        statistics = self._around.statistics
        statistics.records += outcome.done - outcome.unhandled
        statistics.unhandled += outcome.unhandled
        statistics.undecided += outcome.undecided
        if outcome.error is not None:
            self._told.last_error = outcome.error
        return outcome

    async def _watch(self, part: Batch[Any]) -> None:
        # Looks are counted, not seconds: a process that was stopped meanwhile gives its calls the rest of their time.
        context = self._context
        seen: tuple[int, int] | None = None
        unchanged = 0
        while unchanged < 2 * _LOOKS:
            await asyncio.sleep(self._timeout_s / _LOOKS)
            call = context.call_in_hand
            unchanged = unchanged + 1 if call is not None and call == seen else 0
            seen = call
            if unchanged == _LOOKS:
                log.warning("handler.late application=%s stream=%s shard=%s sequence=%d", self._config.application,
                            self.track.stream, self.track.shard.id, context.in_hand()[0])
                context.ask_to_return()
        place = context.in_hand()
        if not context.attempt_counted:
            self.lease.attempts[place] = self.lease.attempts.get(place, 0) + 1
        self._around.hung(self.lease, place[0])

    async def _settle(self, part: Batch[Any], outcome: Outcome, *, bisect: bool) -> int:
        """How many leading records of the part are finished now."""
        self._finish(part, outcome.done)
        if outcome.error is None:
            return outcome.done
        if outcome.failed:
            for index in outcome.failed:
                await self._failed(part.part(index, index + 1), outcome.error)
            self._around.statistics.records += len(part) - outcome.done - len(outcome.failed)
            self._finish(part, len(part))
            return len(part)
        if isinstance(outcome.error, RetryLater | PauseAsked):
            bisect = False
        if bisect:
            self._around.statistics.failures += 1
            return 0
        end = outcome.done + outcome.together
        await self._failed(part.part(outcome.done, end), outcome.error)
        return end

    async def _failed(self, record: Batch[Any], error: BaseException) -> None:
        if self.aside is not None and self.aside.put(record, error):
            self._set_aside = True
        else:
            await self.alone(record, error)

    def _finish(self, part: Batch[Any], done: int) -> None:
        finished = part.place(done)
        track = self.track
        track.finished = max(track.finished, finished)
        if track.attempts:
            for place in [place for place in track.attempts if place < finished and self._knows(place)]:
                del track.attempts[place]
                self._failed_first_ms.pop(place, None)
                self._around.statistics.poisoned.discard((track.shard.uuid, place))

    def _knows(self, place: Place) -> bool:
        # Lanes share one table of attempts: others' records may still be in hand.
        return self.track is self.lease or place in self._failed_first_ms

    # ---- one record that failed ----------------------------------------------------------------------------

    async def alone(self, part: Batch[Any], error: BaseException) -> None:
        """One record that failed just now: try it again until it is handled, or the policy passes over it.

        Several, where they are handled as one: attempts are counted against the first.
        """
        record = self._told.last_alone = part[0]
        counted = True
        while True:
            if isinstance(error, PauseAsked):
                await self.pause(str(error))
            if isinstance(error, RetryLater):
                await self.rest(float(error.facts["seconds"]))
            else:
                if counted:
                    self._count_failure(record)
                if await self._pass_over_or_wait(part, error):
                    await self._driver.passed_over(part)
                    self._finish(part, len(part))
                    return
            self._around.statistics.retries += 1
            if self.probing:
                await self._mark(record)
            counted = not self.probing
            outcome = await self._run(part)
            if outcome.error is None:
                if outcome.done == 0:
                    raise Ended           # halted before it began
                self._finish(part, len(part))
                return
            error = outcome.error

    def _count_failure(self, record: Record[Any]) -> None:
        attempts = self.track.attempts
        place = place_of(record)
        attempts[place] = attempts.get(place, 0) + 1
        self._failed_first_ms.setdefault(place, self._around.clock.now_ms())
        self._around.statistics.failures += 1

    async def _pass_over_or_wait(self, part: Batch[Any], error: BaseException) -> bool:
        """True: the record is passed over; False: it was waited for, and is to be tried again."""
        config = self._config
        record = part[0]
        attempts = self.track.attempts.get(place_of(record), 1)
        exhausted = is_permanent(error) or attempts >= config.retry.attempts_max
        if exhausted and await self._all_exhausted(part, error, attempts):
            return True
        wait_ms = config.retry.wait_ms(attempts, self._around.random.uniform())
        if exhausted:
            wait_ms = float(config.retry.last_ms)
        log.warning(
            "record.retrying application=%s stream=%s shard=%s sequence=%d attempt=%d error=%s next_ms=%d",
            config.application, record.stream, record.shard, record.sequence, attempts, reason_of(error), wait_ms,
        )
        self._around.nudge()               # attempts survive this worker
        await self.rest(wait_ms / 1000)
        return False

    async def _all_exhausted(self, part: Batch[Any], error: BaseException, attempts: int) -> bool:
        for record in part:
            if not await self._exhausted(record, error, attempts):
                return False
        return True

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
            await self.pause(reason)
        if policy == "stop":
            self._told.failed = Stopped(
                f"record {record.sequence_number} of {record.stream}/{record.shard} failed {attempts} times: {reason}",
                try_="correct the handler or the record, then start the worker again",
                stream=record.stream, shard=record.shard, sequence_number=record.sequence_number,
            )
            self._told.failed.__cause__ = error
            raise Ended
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
            await self._dead_letters.put(dead)
        except StreamkitError as refusal:
            self._around.statistics.poisoned.add((self.lease.shard.uuid, place_of(record)))
            log.error("dead_letter.refused stream=%s error=%s", self._config.dead_letter, refusal)
            return False                   # it stays where it is, and is tried again: never lost
        self._around.statistics.dead_lettered += 1
        log.warning("record.dead_lettered application=%s stream=%s shard=%s sequence=%d attempts=%d error=%s",
                    self._config.application, record.stream, record.shard, record.sequence, attempts, reason_of(error))
        return True

    async def pause(self, reason: str) -> None:
        """The lease stays ours and idle until it is resumed (then it is lost and granted anew) or drained: Ended."""
        await self._around.flush(self.lease)
        await self._around.pause(self.lease, reason)
        self._on_pause()
        await self._draining.wait()
        raise Ended

    async def rest(self, seconds: float) -> None:
        """Raises Ended when the lease is to be given up meanwhile."""
        await self._around.wait(seconds, self._halting)
        if self._halting.is_set():
            raise Ended

    # ---- probing -------------------------------------------------------------------------------------------

    async def _probe(self, part: Batch[Any]) -> int:
        """One record, with its attempt written down before it is handled: whoever kills the process is known."""
        record = part[0]
        died = self.track.attempts.get(place_of(record), 0)
        if died >= self._config.retry.attempts_max:
            error = ProcessDied(f"workers died {died} times while they handled this record", attempts=died)
            while not await self._all_exhausted(part, error, died):
                await self.rest(self._config.retry.last_ms / 1000)
            await self._driver.passed_over(part)
            self._finish(part, len(part))
            return len(part)
        await self._mark(record)
        outcome = await self._run(part)
        if outcome.error is None and not outcome.done:
            raise Ended
        if outcome.error is not None:
            self._around.statistics.failures += 1
            self.track.attempts[place_of(record)] -= 1     # `alone` counts it again
            await self.alone(part, outcome.error)
        self._finish(part, len(part))
        self.probing -= 1
        return len(part)

    async def _mark(self, record: Record[Any]) -> None:
        lease = self.lease
        place = place_of(record)
        lease.attempts[place] = lease.attempts.get(place, 0) + 1
        self._context.attempt_counted = True
        await self._around.flush(lease)
        if lease.lost:
            raise lease.lease_lost()
