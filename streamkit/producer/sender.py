"""Takes sealed batches of one stream and sees each through to an outcome.

Lives on one event loop. Woken when the accumulator opened or filled a batch (at most once a turn of the loop), it
seals by the self-clocking rule: a full batch at once; an open one when nothing is in flight for its shard, or when
it has waited linger_ms. So an idle producer has the latency of a round trip, and a busy one fills batches while
earlier ones travel. Read `_pump` and `_answered` first; `lane.py` holds the rules for what goes wrong.

When a shard is refused as led elsewhere or closed, `_look` asks for the stream until every lane found its way:
quickly at first, because a new leader serves within a second, then ever more slowly. A map with new shards is adopted
in one step (`_adopt`): from then on records go to the children, which are not sent before their parents' are settled.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from streamkit._core.accumulator import Accumulator, Budget
from streamkit._core.apart import take_apart
from streamkit._core.framing import PutReceipt
from streamkit._core.hashing import ShardTable
from streamkit._core.outcome import ColumnsHandle, Delivery
from streamkit.errors import (
    Cancelled,
    KeyHalted,
    NotFound,
    ProducerFenced,
    StreamkitError,
    StreamNotFound,
    Throttled,
    UnknownProducer,
    WrongShard,
)
from streamkit.model.fate import BatchName
from streamkit.model.shard import Shard
from streamkit.model.stream import StreamDescription
from streamkit.producer.config import COMPRESSIONS, ProducerConfig
from streamkit.producer.entry import PutResult, result_maker
from streamkit.producer.figures import Figures
from streamkit.producer.halting import HaltedKeys, halted_by
from streamkit.producer.lane import Flight, Flush, Lane, Moved, answer_as_error
from streamkit.producer.naming import Asking, Name, Naming
from streamkit.producer.pace import Window, pause_ms
from streamkit.producer.verdict import Verdict, judge
from streamkit.producer.withdrawal import Withdrawals
from streamkit.protocol.messages import BatchSettled, ProducerGiven
from streamkit.runtime.backoff import Backoff
from streamkit.runtime.interfaces import Runtime
from streamkit.runtime.tasks import Tasks

_log = logging.getLogger("streamkit.producer")

NOBODY = ProducerGiven(0, 0)               # the identity of a producer that is not idempotent
_LOOK_FIRST_MS = 20                        # between two looks at the stream …
_LOOK_MOST_MS = ((3_000, 100), (10_000, 300))    # … at most so long until so long after the trouble began …
_LOOK_LAST_MS = 1_000                      # … and so long from then on
_FOLLOWS_MAX = 3                           # leaders named by others that are tried without a pause in between
_MOVE_BYTES = 1 << 20                      # taken apart in one turn of the loop
_SLOW_MS = 2_000                           # records without a key avoid a shard whose oldest batch waits longer …
_PLACE_FORGOTTEN = 2                       # of a receipt's `duplicate`: stored, nobody knows where
_SLOW_LOOK_MS = 100                        # … which is looked at so often
FAILURES_KEPT_MAX = 10_000                 # batches whose failure nobody looked at, kept for flush to raise


class Sending(Asking, Protocol):
    """What a Sender needs of client.AsyncClient."""

    runtime: Runtime

    def put_batch(
        self, shard: Shard, batch: Any, on_done: Callable[[Any], None], timeout_ms: int | None = None
    ) -> None: ...
    async def stream(self, name: str, refresh: bool = False) -> StreamDescription: ...
    async def cancel_batch(
        self, shard: Shard, batch: BatchName, *, age_ms: int = 0, timeout_ms: int | None = None
    ) -> BatchSettled: ...


@dataclass(slots=True)
class Owner:
    """What a Sender tells, on its event loop.

    settled: batches ended and their bytes were let go, so whoever waits for room tries again. filled: records came.
    on_error: an error, and how many records that nobody holds a handle of failed with it; None: nobody wants to know.
    """

    settled: Callable[[], object]
    filled: Callable[[], object] = lambda: None
    on_error: Callable[[StreamkitError, int], object] | None = None


class Sender:
    """The way of one stream's records from the accumulator to the broker."""

    def __init__(
        self,
        client: Sending,
        stream: StreamDescription,
        identity: ProducerGiven,
        config: ProducerConfig,
        budget: Budget,
        owner: Owner,
        name: Name | None = None,
    ) -> None:
        self.stream = stream
        self.halted: StreamkitError | None = None      # why nothing is sent any more
        self.config = config
        self.failures: list[Delivery | ColumnsHandle] = []
        self.failures_dropped = 0
        self._gone: StreamkitError | None = None       # what the last look for a missing stream ended with
        self._looking = False
        self._unheld: list[asyncio.Future[None]] = []  # of flushes that wait for the end of a change of shards
        self.batches_sent = self.batches_retried = self.records_stored = self.records_failed = self.duplicates = 0
        self.bytes_sent = 0
        self.figures = Figures()
        self._slow_looked_ms = 0
        self._client = client
        self._clock = client.runtime.clock
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._tasks = Tasks("producer")
        self._closed = False
        self._identity = identity
        self._halted_keys = HaltedKeys()
        self._withdrawals = Withdrawals(self)
        self._naming = Naming(client, name, config.request_timeout_ms)
        self._lanes = [self._lane(index, shard) for index, shard in enumerate(stream.shards)]
        for lane in self._lanes:
            lane.finished = lane.closed
            lane.opened = lane.finished or name is None
        # Without idempotence nothing restores the order of overtaken batches, so one travels at a time.
        self._in_flight_max = config.in_flight_max if config.idempotent else 1
        self.accumulator = Accumulator(
            self._ranges(),
            budget=budget,
            origins=self._origins(),
            wake=self._wake,
            home=self._loop,
            withdraw=self._withdrawals.ask,
            batch_bytes_max=config.batch_bytes_max,
            batch_records_max=config.batch_records_max,
            record_bytes_max=stream.config.record_bytes_max,
            codec=COMPRESSIONS.index(config.compression),
            map_version=stream.map_version,
            share_bytes=int(budget.limit * config.shard_share),
            seed=client.runtime.random.bits(64),
        )

    def outstanding(self) -> int:
        """Records accepted and not settled."""
        return self.accumulator.records - self.records_stored - self.records_failed

    def fullest(self) -> tuple[Lane, int] | None:
        """The lane that holds most of the buffer, and how many bytes. From any thread."""
        lanes = self._lanes
        found = max(((self.accumulator.held(lane.index), lane.index) for lane in lanes), default=(0, 0))
        return (lanes[found[1]], found[0]) if found[0] else None

    @property
    def identity(self) -> ProducerGiven:
        """The newest."""
        return self._identity

    def ends(self) -> dict[bytes, int]:
        """One past the last record of each shard, by its uuid, that this producer heard to be stored."""
        return {lane.shard.uuid: lane.stored_end for lane in self._lanes if lane.stored_end}

    def now_ms(self) -> int:
        return self._clock.monotonic_ms()

    def oldest_ms(self) -> int:
        """Age of the oldest batch without an outcome; 0 when there is none."""
        now_ms = self.now_ms()
        return max((lane.oldest_ms(now_ms) for lane in self._lanes), default=0)

    def lanes(self) -> tuple[Lane, ...]:
        """One for each shard, in the order of the accumulator."""
        return tuple(self._lanes)

    async def flush(self) -> None:
        """Everything accepted before the call has an outcome."""
        self._turn()
        while not self._closed and any(lane.held or lane.moving for lane in self._lanes):
            unheld: asyncio.Future[None] = self._loop.create_future()
            self._unheld.append(unheld)
            await unheld                   # what waits behind closed shards can not be told apart from later records
        for lane in self._lanes:
            self._take(lane, "flush")
        flush = self._flush_of_all()
        for lane in self._lanes:
            self._send(lane)
        if flush.left:
            await flush.done

    def _flush_of_all(self) -> Flush:
        flights = [flight for lane in self._lanes for flight in lane.window if not flight.given_up]
        flush = Flush(len(flights), self._loop.create_future())
        for flight in flights:
            flight.flushes.append(flush)
        return flush

    async def give_up(self, what_happened: str, timeout_s: float) -> None:
        """Nothing is accepted any more. What was not sent ends now, what is in doubt is cancelled; waits for that."""
        self.accumulator.close()
        now_ms = self._clock.monotonic_ms()
        for lane in self._lanes:
            self._take(lane, "close")
            lane.ending = what_happened
            for flight in lane.window:
                flight.deadline_ms = min(flight.deadline_ms, now_ms)
        flush = self._flush_of_all()
        for lane in self._lanes:
            if lane.retry_timer is not None:
                self._resume(lane)
            else:
                self._send(lane)
        if flush.left:
            await asyncio.wait([flush.done], timeout=timeout_s)

    def push(self) -> None:
        """What waits for company leaves now, where nothing has to go before it."""
        self._turn()
        for lane in self._lanes:
            if not (self._closed or lane.parents or lane.winding_up):
                self._take(lane, "flush")
                self._send(lane)

    async def close(self) -> None:
        """Whatever is left fails; late answers are ignored. Call flush first to lose nothing."""
        if not self._closed:
            self.end("the producer was closed")
            await self._tasks.close()

    def end(self, what_happened: str) -> None:
        """Nothing is accepted any more; whatever is left fails now."""
        self.accumulator.close()
        self._closed = True
        for lane in self._lanes:
            self._take(lane, "close")
            for timer in (lane.linger_timer, lane.retry_timer):
                if timer is not None and not self._loop.is_closed():
                    timer.cancel()
            lane.ending = what_happened
            for flight in list(lane.window):
                in_doubt = flight.in_doubt or flight.in_flight
                self._fail(lane, flight, lane.may_be_stored(flight, None) if in_doubt else lane.timed_out(flight, None))
        self._release_flushes()
        self._owner.settled()

    def keep_failure(self, outcome: Delivery | ColumnsHandle) -> None:
        """For flush to raise, unless somebody looks at it before."""
        if len(self.failures) >= FAILURES_KEPT_MAX:
            self.failures = [kept for kept in self.failures if kept.unseen()]
        if len(self.failures) < FAILURES_KEPT_MAX:
            self.failures.append(outcome)
        else:
            self.failures_dropped += outcome.unseen()

    # ---- from put to the wire ----------------------------------------------------------------------------

    def _wake(self) -> None:
        # From any thread, after put; the accumulator asks once until take_touched.
        if self._loop.is_closed():
            self.end("the event loop of the producer was closed")
        elif asyncio._get_running_loop() is self._loop:
            self._loop.call_soon(self._turn)
        else:
            self._loop.call_soon_threadsafe(self._turn)

    def _turn(self) -> None:
        if self._closed:
            return
        self._owner.filled()
        if self.accumulator.keyless:
            self._avoid_slow()
        for index in self.accumulator.take_touched():
            self._pump(self._lanes[index])

    def _avoid_slow(self) -> None:
        now_ms = self._clock.monotonic_ms()
        if now_ms - self._slow_looked_ms >= _SLOW_LOOK_MS:
            self._slow_looked_ms = now_ms
            for lane in self._lanes:
                since_ms = lane.window[0].deadline_ms - lane.delivery_timeout_ms if lane.window else now_ms
                self.accumulator.avoid(lane.index, now_ms - since_ms > _SLOW_MS)

    def _pump(self, lane: Lane) -> None:
        """Seal what is due and send what may travel."""
        if self._closed or (lane.held and self.halted is None):
            return
        if self.halted is not None:
            self._empty(lane)
            return
        if lane.winding_up:
            self._wind_up(lane)
            return
        if self._withdrawals:
            self._withdrawals.look(lane)
        room = len(lane.window) < self._in_flight_max
        self._take(lane, "" if not room else "linger" if lane.overdue else "" if lane.window else "idle")
        self._send(lane)
        if lane.window and not lane.overdue and lane.linger_timer is None and self.accumulator.waiting(lane.index):
            lane.linger_timer = self._loop.call_later(self.config.linger_ms / 1000, self._linger_over, lane)

    def _linger_over(self, lane: Lane) -> None:
        lane.linger_timer = None
        lane.overdue = self.accumulator.waiting(lane.index) > 0
        self._pump(lane)

    def _take(self, lane: Lane, reason: str, *, compress: bool = True) -> None:
        # Full batches, and the open one too when there is a `reason` for it.
        identity = lane.identity
        now_ms = self._clock.monotonic_ms()
        waiting = self.accumulator.waiting(lane.index)
        if not waiting:
            return
        now_s = self._loop.time()
        if lane.waiting_since_ms is None:
            lane.waiting_since_ms, lane.opened_s = now_ms, now_s
        while batch := self.accumulator.take(
            lane.index,
            close_open=bool(reason),
            producer_id=identity.producer_id,
            producer_epoch=identity.producer_epoch,
            sequence=lane.next_sequence,
            compress=compress,
        ):
            flight = lane.admit(batch, now_ms)
            flight.opened_s = flight.ended_s = lane.opened_s
            why = "full" if waiting == 2 or not reason else reason     # threads may fill it after we looked
            self.figures.batch(why, batch.count, batch.raw_bytes, len(batch))
            if self._halted_keys and (halted := self._halted_keys.why_not(batch)) is not None:
                lane.next_sequence = batch.sequence
                self._fail(lane, flight, halted)
            lane.opened_s = now_s
            waiting = self.accumulator.waiting(lane.index)
            if not waiting:
                lane.overdue = False
                lane.waiting_since_ms = None

    def _send(self, lane: Lane) -> None:
        if lane.stopped or self._closed or lane.held:
            return
        now_ms, now_s = self._clock.monotonic_ms(), self._loop.time()
        for flight in lane.window:
            if lane.in_flight >= self._in_flight_max:
                break
            if flight.cancel_until_ms is not None:
                if not lane.in_flight:
                    self._cancel(lane, flight, now_ms)
                break                      # what is behind it would be refused until its numbers are settled
            if flight.in_flight or (lane.winding_up and not flight.in_doubt):
                continue
            if now_ms >= flight.deadline_ms:
                lane.stopped = True        # too late to begin; it ends once what travels is answered
                break
            size = len(flight.batch)
            if not lane.pace.admits(lane.in_flight_bytes, size):
                break
            lane.sending()
            lane.leaves(flight, size, now_s)
            self.batches_sent += 1
            if flight.attempts > 1:
                self.batches_retried += 1
            else:
                self.figures.queue_us.record(_microseconds(now_s - flight.opened_s))
            payload = flight.batch.payload
            self.bytes_sent += size
            timeout_ms = min(self.config.request_timeout_ms, flight.deadline_ms - now_ms)
            self._client.put_batch(lane.shard, payload, partial(self._answered, lane, flight, size), timeout_ms)
        if lane.stopped and not lane.in_flight:
            self._recover(lane)

    # ---- answers -----------------------------------------------------------------------------------------

    def _answered(self, lane: Lane, flight: Flight, size: int, answer: Any) -> None:
        if flight.batch.settled:
            return                         # closed meanwhile
        now_s = self._loop.time()
        error = answer_as_error(answer)
        lane.returns(flight, size, now_s, error)
        self.figures.request_us.record(_microseconds(now_s - flight.sent_s))
        if error is None:
            lane.remove(flight)
            lane.went_well()
            if answer.duplicate != _PLACE_FORGOTTEN:
                lane.stored_end = max(lane.stored_end, answer.base_sequence + flight.batch.count)
            self.records_stored += flight.batch.count
            self.duplicates += flight.batch.count if answer.duplicate else 0
            self.figures.ack_us.record(_microseconds(now_s - flight.opened_s), flight.batch.count)
            flight.batch.stored(answer, flight.tries)
            self._settle(flight)
        else:
            self.figures.refused(error)
            lane.refused(flight, error)
        self._go_on(lane, flight, error)

    def _go_on(self, lane: Lane, flight: Flight, error: StreamkitError | None) -> None:
        if self.halted is not None:
            if error is not None:
                self._fail(lane, flight, self._why_halted(lane, flight))
        elif not lane.stopped:
            self._pump(lane)
        elif lane.in_flight == 0:
            self._recover(lane)

    def _cancel(self, lane: Lane, flight: Flight, now_ms: int) -> None:
        """Ask the shard what became of it, and that it never be stored if it is not."""
        assert flight.cancel_until_ms is not None, "it is being cancelled"
        left_ms = self.config.request_timeout_ms if flight.given_up else flight.cancel_until_ms - now_ms
        if left_ms <= 0:
            lane.stopped = True            # time to tell that nobody knows
            return
        lane.sending()
        flight.in_flight = True
        lane.in_flight += 1
        self._start(self._ask(lane, flight, min(left_ms, self.config.request_timeout_ms)), "cancel")

    async def _ask(self, lane: Lane, flight: Flight, timeout_ms: int) -> None:
        answer: BatchSettled | StreamkitError
        try:
            answer = await self._client.cancel_batch(
                lane.shard, lane.name_of(flight), age_ms=lane.age_ms(flight), timeout_ms=timeout_ms
            )
        except StreamkitError as error:
            answer = error
        if self._closed:
            return
        flight.in_flight = False
        lane.in_flight -= 1
        if isinstance(answer, StreamkitError):
            lane.refused(flight, answer)
        elif answer.fate == "forgotten":
            lane.refused(flight, UnknownProducer("the shard does not know any more", shard=lane.shard.id))
        else:
            lane.went_well()
            if answer.fate == "cancelled":
                self._fail(lane, flight, lane.not_stored(flight))
                lane.stopped = lane.stopped or bool(self._halted_keys)     # who comes behind it may end with it
            else:
                lane.remove(flight)
                if not flight.given_up:
                    self.records_stored += flight.batch.count
                    flight.batch.stored(PutReceipt(
                        answer.base_sequence, answer.append_time_ms, answer.epoch, 0, 0, answer.replicas, answer.synced
                    ), flight.tries)  # fmt: skip
                    self._settle(flight)
        self._go_on(lane, flight, answer_as_error(answer))

    def _recover(self, lane: Lane) -> None:
        """A stopped lane has nothing in flight: end what must end, then send the rest again after a pause."""
        if self.halted is not None:
            self._empty(lane)
            return
        errors = [flight.error for flight in lane.window if flight.error is not None]
        asked_ms = max((e.facts["retry_after_ms"] for e in errors if "retry_after_ms" in e.facts), default=None)
        plan = lane.plan(self._clock.monotonic_ms())
        for flight, error in plan.unknown:
            self._end(lane, flight, error)
        if self.config.on_failure == "halt_key" and (plan.fail or self._halted_keys):
            self._halted_keys.extend(lane, plan, self._clock.monotonic_ms())
        first = min((flight.batch.sequence for flight, _ in plan.fail), default=0)
        for flight, error in (*plan.fail, *plan.cancelled):
            self._fail(lane, flight, self._gone if self._gone and isinstance(error, NotFound) else error)
        if self.halted is not None:
            return                         # by one of these; the rest of every lane ends in a moment
        if plan.rename and self.config.idempotent:
            self._begin_to_rename(lane)
            return
        if plan.renumber and self.config.idempotent:
            lane.close_holes(first)
        if plan.follow and lane.follows < _FOLLOWS_MAX:
            lane.follows += 1              # the client knows the way already
            self._loop.call_soon(self._resume, lane)
            return
        if plan.ask or (plan.refresh and lane.moved_on):
            self._loop.call_soon(self._resume, lane)
            return
        settled = lane.closed and not any(flight.in_doubt for flight in lane.window)
        if not lane.window or settled:
            self._resume(lane)
            return
        if plan.refresh:
            self._start_looking()
        # Never past a deadline: the window is in the order of put, so the first that waits is the next to end.
        wait_ms = pause_ms(lane.backoff, asked_ms)
        due_ms = next((flight.due_ms for flight in lane.window if flight.due_ms is not None), None)
        if due_ms is not None:
            wait_ms = min(wait_ms, max(0, due_ms - self._clock.monotonic_ms() + 1))
        if any(isinstance(error, Throttled) for error in errors):
            self.figures.throttled_s += wait_ms / 1000
        lane.retry_timer = self._loop.call_later(wait_ms / 1000, self._resume, lane)

    def _resume(self, lane: Lane) -> None:
        if lane.retry_timer is not None:
            lane.retry_timer.cancel()      # this is it, or it comes too late
            lane.retry_timer = None
        lane.stopped = False
        if self._withdrawals:
            self._withdrawals.look(lane)
        self._send(lane)                   # ends what is late, then comes back here
        if not lane.stopped:
            self._pump(lane)

    def _begin_to_rename(self, lane: Lane) -> None:
        lane.renaming = True               # a second one would shut this one's identity out
        self._start(self._rename(lane), "rename")

    async def _rename(self, lane: Lane) -> None:
        """A new identity for this shard alone; others keep theirs. Never goes on under the old one: numbers that

        were used before would make the shard take new records for repeats.
        """
        backoff = self.backoff()
        while True:
            try:
                async with asyncio.timeout(self.config.request_timeout_ms / 1000):
                    identity, sequence = await self._naming.renew(lane)
                self._identity = identity if self._naming.name is not None else self._identity
                break
            except (StreamkitError, TimeoutError) as error:
                cause = error if isinstance(error, StreamkitError) else None
                _log.log(logging.DEBUG if backoff.tries else logging.WARNING,
                         "producer.rename_failed shard=%s error=%s", lane.shard.id, error)  # fmt: skip
            hopeless = cause if cause is not None and judge(cause) is Verdict.FAIL else None
            now_ms = self._clock.monotonic_ms()
            for flight in [flight for flight in lane.window if hopeless or now_ms >= flight.deadline_ms]:
                self._fail(lane, flight, hopeless or lane.timed_out(flight, cause))
            if isinstance(cause, ProducerFenced):
                lane.renaming = False
                self.halt(cause)
                return
            await asyncio.sleep(backoff.next_ms() / 1000)
        lane.renaming = False
        self.figures.identities += 1
        lane.rename(identity, sequence)
        self._resume(lane)

    # ---- named producers ---------------------------------------------------------------------------------

    async def open(self) -> None:
        """Shut elder instances of the producer's name out of every shard, before anything is put.

        Raises ProducerFenced, or what stood in the way until the delivery time-out.
        """
        await asyncio.gather(*[self._open(lane, patient=False) for lane in self._lanes if not lane.opened])
        while self.halted is None and any(lane.held or lane.told_closed > lane.closed for lane in self._lanes):
            unheld: asyncio.Future[None] = self._loop.create_future()
            self._unheld.append(unheld)
            await unheld                   # shards were split or merged meanwhile: until their children are open
        if self.halted is not None:
            raise self.halted

    async def _open(self, lane: Lane, *, patient: bool = True) -> None:
        """Open one shard, however long it takes; what waits for it meanwhile ends with the delivery time-out."""
        began_ms = self._clock.monotonic_ms()
        backoff = self.backoff()
        while True:
            try:
                await self._naming.open(lane)
                break
            except StreamkitError as error:
                if isinstance(error, ProducerFenced):
                    self.halt(error)
                    return
                cause = error
            if judge(cause) is Verdict.FAIL or self._clock.monotonic_ms() - began_ms >= self.config.delivery_timeout_ms:
                if not patient:
                    raise cause
                self._take(lane, "close")
                for flight in list(lane.window):
                    self._fail(lane, flight, lane.timed_out(flight, cause))
            with contextlib.suppress(StreamkitError):      # it may be led elsewhere by now
                self._adopt(await self._client.stream(self.stream.name, refresh=True))
            await asyncio.sleep(backoff.next_ms() / 1000)
        self._pump(lane)
        self._release_flushes()

    # ---- for withdrawals ---------------------------------------------------------------------------------

    def seal(self, lane: Lane) -> None:
        """All that waits in the accumulator for the shard."""
        self._take(lane, "cancel")

    def go_on(self, lane: Lane) -> None:
        """Batches of the lane were taken out, or are to be cancelled."""
        if self._closed or lane.stopped:
            return                         # it looks again when it begins anew
        self._send(lane)
        if not lane.stopped:
            self._pump(lane)

    def withdrew(self, count: int) -> None:
        """Records have ended: nobody wants them any more."""
        self.records_failed += count
        self.figures.failures["cancelled"] += count
        self._owner.settled()

    def halt(self, error: StreamkitError) -> None:
        """Nothing is sent any more: what is left fails, and whatever is put later.

        A refusal that says of one batch that it may be stored, with its token, is told to others without that.
        """
        if self.halted is None:
            self.halted = error.__cause__ if isinstance(error.__cause__, ProducerFenced) else error
            self._loop.call_soon(self._empty_all)

    def _hold_back(self, lane: Lane, flight: Flight, error: StreamkitError) -> None:
        # A batch failed: what is behind it must not be stored before somebody says so.
        if self.config.on_failure == "halt_key":
            if self.halted is None:
                self._halted_keys.add(flight.batch, error)
            return
        if flight.in_doubt:
            lane.tainted = True
        else:                              # nothing behind it can be stored under a higher number
            lane.next_sequence = min(lane.next_sequence, flight.batch.sequence)
        if not isinstance(error, ProducerFenced):
            self.halt(halted_by(error, None))

    def resume_key(self, key: str | None) -> None:
        """As Producer.resume_key. A producer that was fenced stays so."""
        self._halted_keys.resume(key)
        if key is not None or not isinstance(self.halted, KeyHalted):
            return
        self._empty_all()
        self.halted = None
        for lane in self._lanes:
            if lane.in_flight or lane.renaming:
                continue                   # what is on its way has the old numbers; who is back with it goes on
            if lane.tainted and self.config.idempotent:
                self._begin_to_rename(lane)
            else:
                self._resume(lane)

    def _empty_all(self) -> None:
        if self.halted is None:
            return                         # resumed in the same turn
        for lane in self._lanes:
            self._empty(lane)
        self._release_flushes()

    def _empty(self, lane: Lane) -> None:
        if self._closed:
            return
        lane.stopped = True
        for timer in (lane.linger_timer, lane.retry_timer):
            if timer is not None:
                timer.cancel()
        lane.linger_timer = lane.retry_timer = None
        self._take(lane, "close")
        for flight in list(lane.window):
            if not flight.in_flight:
                self._fail(lane, flight, self._why_halted(lane, flight))

    def _why_halted(self, lane: Lane, flight: Flight) -> StreamkitError:
        assert self.halted is not None, "a halt has a reason"
        return lane.may_be_stored(flight, self.halted) if flight.in_doubt else self.halted

    # ---- where the shards are ----------------------------------------------------------------------------

    def _start_looking(self) -> None:
        if not self._looking:
            self._looking = True
            self._start(self._look(), "look")

    async def _look(self) -> None:
        """Ask for the stream until every lane that was refused as lost has its shard again, or its children."""
        backoff = Backoff(self._client.runtime.random, _LOOK_FIRST_MS, _LOOK_MOST_MS[0][1])
        began_ms = self._clock.monotonic_ms()
        try:
            while True:
                try:
                    self._adopt(await self._client.stream(self.stream.name, refresh=True))
                except StreamkitError as error:
                    self._gone = error if isinstance(error, NotFound) else None
                    _log.log(logging.DEBUG if backoff.tries else logging.INFO,
                             "producer.refresh_failed stream=%s code=%s", self.stream.name, error.code)  # fmt: skip
                if self._closed or not any(lane.lost and lane.wants_look for lane in self._lanes):
                    return
                waited_ms = self._clock.monotonic_ms() - began_ms
                backoff.most_ms = next((most for until, most in _LOOK_MOST_MS if waited_ms < until), _LOOK_LAST_MS)
                await asyncio.sleep(backoff.next_ms() / 1000)
        finally:
            self._looking = False

    def _adopt(self, found: StreamDescription) -> None:
        """What a broker says of the stream: leaders that moved are tried at once, new shards take their keys over."""
        by_uuid = {shard.uuid: shard for shard in found.shards}
        self._gone = None if any(each.shard.uuid in by_uuid for each in self._lanes) else StreamNotFound(
            f'stream "{self.stream.name}" was deleted; one of the same name was made since',
            try_="make a new producer for it", stream=self.stream.name, near=None,
        )  # fmt: skip
        if self._gone is not None:
            return
        for lane in self._lanes:
            shard = by_uuid.get(lane.shard.uuid)
            lane.listed = shard is not None
            if shard is None:
                continue                   # retention removed it, or the answer is an old one
            lane.shard = shard
        if found.map_version > self.stream.map_version:
            self._change_map(found)
        for lane in self._lanes:           # one without a timer waits for its children, wherever the shard is led
            if lane.lost and lane.moved_on and lane.retry_timer is not None:
                lane.lost = False
                self._resume(lane)

    def _change_map(self, found: StreamDescription) -> None:
        known = {lane.shard.uuid for lane in self._lanes}
        self.stream = found
        fresh = [self._lane(len(self._lanes) + i, shard)
                 for i, shard in enumerate(shard for shard in found.shards if shard.uuid not in known)]  # fmt: skip
        closing = [lane for lane in self._lanes if lane.shard.closed_ms is not None and not lane.closed]
        closing += [lane for lane in fresh if lane.closed]
        self._lanes += fresh
        for lane in closing:
            lane.closed = True
            lane.lost = False
        by_ordinal = {lane.shard.ordinal: lane for lane in self._lanes}
        for lane in fresh:
            lane.opened = self._naming.name is None
            if not lane.opened:
                self._start(self._open(lane), "open")
            parents = [by_ordinal[ordinal] for ordinal in lane.shard.parents if ordinal in by_ordinal]
            lane.parents = [parent for parent in parents if parent.closed and not parent.finished]
        self.accumulator.replace_map(self._ranges(), origins=self._origins(), map_version=found.map_version)
        _log.info("producer.map_changed stream=%s map_version=%d shards=%d closed=%d", found.name, found.map_version,
                  len(found.shards), len(closing))  # fmt: skip
        for lane in closing:
            if lane.linger_timer is not None:
                lane.linger_timer.cancel()
                lane.linger_timer = None
            if lane.retry_timer is not None:
                self._resume(lane)         # it waited for this
            else:
                self._pump(lane)

    def _wind_up(self, lane: Lane) -> None:
        """A closed shard: ask again about what it may have stored; the rest goes to its children."""
        if lane.in_flight or lane.stopped or lane.moving or lane.finished:
            return
        lane.forget_given_up()
        if any(flight.in_doubt for flight in lane.window):
            self._send(lane)
        elif lane.closed:
            lane.moving = True
            self._start(self._move(lane), "move")
        else:                              # refused as closed, but who the children are is not known yet
            lane.lost = True
            self._start_looking()

    async def _move(self, lane: Lane) -> None:
        # Newest first, each in front of what is there already, so that in the end the oldest is the first.
        self._take(lane, "move", compress=False)
        children = [each for each in self._lanes if lane.shard.ordinal in each.shard.parents]
        targets = ShardTable(
            [(each.shard.hash_start, each.shard.hash_end) if each in children else None for each in self._lanes]
            if children else self._ranges()
        )  # fmt: skip
        moved_bytes = 0
        while lane.window and not self._closed:
            flight = lane.window[-1]
            if self._clock.monotonic_ms() >= flight.deadline_ms:
                self._fail(lane, flight, lane.timed_out(flight, None))
                continue
            try:
                shards = take_apart(self.accumulator, flight.batch, targets)
            except WrongShard as error:
                self._fail(lane, flight, error)
                continue
            lane.window.pop()
            moved = Moved(flight.deadline_ms - lane.delivery_timeout_ms, flight.flushes)
            for flush in flight.flushes:
                flush.left += len(shards) - 1
            for index in shards:
                self._lanes[index].moved.appendleft(moved)
            moved_bytes += flight.batch.charged
            if moved_bytes >= _MOVE_BYTES:
                moved_bytes = 0
                await asyncio.sleep(0)     # other shards go on meanwhile
        lane.moving = False
        lane.finished = True
        for child in self._lanes:
            if lane in child.parents:
                child.parents.remove(lane)
            if not child.finished:
                self._pump(child)
        self._release_flushes()

    def _release_flushes(self) -> None:
        waiting, self._unheld = self._unheld, []
        for flush in waiting:
            if not flush.done() and not self._loop.is_closed():
                flush.set_result(None)

    def _lane(self, index: int, shard: Shard) -> Lane:
        config = self.config
        window = Window(config.batch_bytes_max, config.batch_bytes_max * config.in_flight_max)
        return Lane(index, self.stream.name, shard, self._identity, self.backoff(), self._clock, config, window)

    def _ranges(self) -> list[tuple[int, int] | None]:
        return [
            None if lane.shard.closed_ms is not None else (lane.shard.hash_start, lane.shard.hash_end)
            for lane in self._lanes
        ]

    def _origins(self) -> list[Callable[[PutReceipt, int], PutResult]]:
        return [result_maker(self.stream.name, lane.shard) for lane in self._lanes]

    # ---- outcomes ----------------------------------------------------------------------------------------

    def _fail(self, lane: Lane, flight: Flight, error: StreamkitError) -> None:
        lane.remove(flight)
        if not flight.given_up:
            self._end(lane, flight, error)
        elif isinstance(error, ProducerFenced):        # only its numbers were still open, but it holds for all
            self.halt(error)

    def _end(self, lane: Lane, flight: Flight, error: StreamkitError) -> None:
        if not self._closed and self.config.on_failure != "continue" and not flight.withdrawn:
            self._hold_back(lane, flight, error)
        self.records_failed += flight.batch.count
        _log.warning(
            "batch.failed stream=%s shard=%s records=%d code=%s attempts=%d",
            self.stream.name, lane.shard.id, flight.batch.count, error.code, flight.attempts,
        )  # fmt: skip
        self.figures.failures[error.code] += flight.batch.count
        unheld = flight.batch.unheld() if self._owner.on_error is not None else 0
        for outcome in flight.batch.failed(error, flight.tries, told=unheld > 0):
            if not (flight.withdrawn and isinstance(error, Cancelled)):        # that is what they wanted
                self.keep_failure(outcome)
        if unheld and self._owner.on_error is not None:
            try:
                self._owner.on_error(error, unheld)
            except Exception:              # the caller's code; it must not stop the sender
                _log.exception("producer.on_error_failed")
        self._settle(flight)
        if isinstance(error, ProducerFenced):
            self.halt(error)

    def _settle(self, flight: Flight) -> None:
        for flush in flight.flushes:
            flush.one_settled()
        self._owner.settled()

    def backoff(self) -> Backoff:
        return Backoff(self._client.runtime.random, self.config.retry_first_ms, self.config.retry_most_ms)

    def _start(self, work: Awaitable[None], name: str) -> None:
        self._tasks.start(work, name)  # type: ignore[arg-type]


def _microseconds(seconds: float) -> int:
    return max(0, int(seconds * 1e6))
