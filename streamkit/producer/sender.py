"""Takes sealed batches of one stream and sees each through to an outcome.

Lives on one event loop. Woken when the accumulator opened or filled a batch (at most once a turn of the loop), it
seals by the self-clocking rule: a full batch at once; an open one when nothing is in flight for its shard, or when
it has waited linger_ms. So an idle producer has the latency of a round trip, and a busy one fills batches while
earlier ones travel. Read `_pump` and `_answered` first; `lane.py` holds the rules for what goes wrong.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol

from streamkit._core.accumulator import Accumulator, Budget
from streamkit._core.histogram import Histogram
from streamkit._core.outcome import ColumnsHandle, Delivery
from streamkit.errors import Closed, NotFound, StreamkitError, StreamNotFound
from streamkit.model.shard import Shard
from streamkit.model.stream import StreamDescription
from streamkit.producer.config import COMPRESSIONS, ProducerConfig
from streamkit.producer.entry import result_maker
from streamkit.producer.lane import Flight, Flush, Lane, answer_as_error
from streamkit.producer.verdict import Verdict, judge
from streamkit.protocol.messages import ProducerGiven
from streamkit.runtime.backoff import Backoff
from streamkit.runtime.interfaces import Runtime
from streamkit.runtime.tasks import Tasks

_log = logging.getLogger("streamkit.producer")

NOBODY = ProducerGiven(0, 0)               # the identity of a producer that is not idempotent
FAILURES_KEPT_MAX = 10_000                 # batches whose failure nobody looked at, kept for flush to raise


class Sending(Protocol):
    """What a Sender needs of client.AsyncClient."""

    runtime: Runtime

    def put_batch(
        self, shard: Shard, batch: Any, on_done: Callable[[Any], None], timeout_ms: int | None = None
    ) -> None: ...
    async def stream(self, name: str, refresh: bool = False) -> StreamDescription: ...
    async def new_producer(self, name: str = "") -> ProducerGiven: ...


class Sender:
    """The way of one stream's records from the accumulator to the broker.

    settled: called after batches ended and their bytes were let go; whoever waits for room tries again.
    """

    def __init__(
        self,
        client: Sending,
        stream: StreamDescription,
        identity: ProducerGiven,
        config: ProducerConfig,
        budget: Budget,
        settled: Callable[[], None],
    ) -> None:
        self.stream = stream
        self.config = config
        self.failures: list[Delivery | ColumnsHandle] = []
        self.failures_dropped = 0
        self._gone: StreamkitError | None = None       # what the last look for a missing stream ended with
        self._refreshing = False
        self.batches_sent = self.batches_retried = self.records_stored = self.records_failed = self.duplicates = 0
        self.bytes_sent = 0
        self.batch_records = Histogram()
        self._client = client
        self._clock = client.runtime.clock
        self._settled = settled
        self._loop = asyncio.get_running_loop()
        self._tasks = Tasks("producer")
        self._closed = False
        self._lanes = [
            Lane(index, shard, identity, self._backoff(), config.delivery_timeout_ms)
            for index, shard in enumerate(stream.shards)
        ]
        # Without idempotence nothing restores the order of overtaken batches, so one travels at a time.
        self._in_flight_max = config.in_flight_max if config.idempotent else 1
        self.accumulator = Accumulator(
            [None if s.closed_ms is not None else (s.hash_start, s.hash_end) for s in stream.shards],
            budget=budget,
            origins=[result_maker(stream.name, shard) for shard in stream.shards],
            wake=self._wake,
            home=self._loop,
            batch_bytes_max=config.batch_bytes_max,
            batch_records_max=config.batch_records_max,
            record_bytes_max=stream.config.record_bytes_max,
            codec=COMPRESSIONS.index(config.compression),
            map_version=stream.map_version,
        )

    def outstanding(self) -> int:
        """Records accepted and not settled."""
        return self.accumulator.records - self.records_stored - self.records_failed

    async def flush(self) -> None:
        """Everything accepted before the call has an outcome."""
        self._turn()
        for lane in self._lanes:
            self._take(lane, close_open=True)
        flights = [flight for lane in self._lanes for flight in lane.window]
        if not flights:
            return
        flush = Flush(len(flights), self._loop.create_future())
        for flight in flights:
            flight.flushes.append(flush)
        for lane in self._lanes:
            self._send(lane)
        await flush.done

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
            self._take(lane, close_open=True)
            for timer in (lane.linger_timer, lane.retry_timer):
                if timer is not None and not self._loop.is_closed():
                    timer.cancel()
            for flight in list(lane.window):
                in_doubt = flight.in_doubt or flight.in_flight
                self._fail(lane, flight, Closed(
                    f"{what_happened} before {lane.shard.id} acknowledged the record",
                    try_="it may be stored" if in_doubt else "put it again; it was not stored",
                    what="producer", sent=in_doubt,
                ))  # fmt: skip
        self._settled()

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
        for index in self.accumulator.take_touched():
            self._pump(self._lanes[index])

    def _pump(self, lane: Lane) -> None:
        """Seal what is due and send what may travel."""
        if self._closed:
            return
        room = len(lane.window) < self._in_flight_max
        self._take(lane, close_open=room and (not lane.window or lane.overdue))
        self._send(lane)
        if lane.window and not lane.overdue and lane.linger_timer is None and self.accumulator.waiting(lane.index):
            lane.linger_timer = self._loop.call_later(self.config.linger_ms / 1000, self._linger_over, lane)

    def _linger_over(self, lane: Lane) -> None:
        lane.linger_timer = None
        lane.overdue = self.accumulator.waiting(lane.index) > 0
        self._pump(lane)

    def _take(self, lane: Lane, *, close_open: bool) -> None:
        identity = lane.identity
        now_ms = self._clock.monotonic_ms()
        if lane.waiting_since_ms is None and self.accumulator.waiting(lane.index):
            lane.waiting_since_ms = now_ms
        while batch := self.accumulator.take(
            lane.index,
            close_open=close_open,
            producer_id=identity.producer_id,
            producer_epoch=identity.producer_epoch,
            sequence=lane.next_sequence,
        ):
            lane.admit(batch, now_ms)
            self.batch_records.record(batch.count)
            if not self.accumulator.waiting(lane.index):
                lane.overdue = False
                lane.waiting_since_ms = None

    def _send(self, lane: Lane) -> None:
        if lane.stopped or self._closed:
            return
        now_ms = self._clock.monotonic_ms()
        for flight in lane.window:
            if lane.in_flight >= self._in_flight_max:
                break
            if flight.in_flight:
                continue
            if now_ms >= flight.deadline_ms:
                lane.stopped = True        # too late to begin; it ends once what travels is answered
                break
            flight.in_flight = True
            flight.attempts += 1
            lane.in_flight += 1
            self.batches_sent += 1
            self.batches_retried += flight.attempts > 1
            payload = flight.batch.payload
            self.bytes_sent += len(payload)
            timeout_ms = min(self.config.request_timeout_ms, flight.deadline_ms - now_ms)
            self._client.put_batch(lane.shard, payload, partial(self._answered, lane, flight), timeout_ms)
        if lane.stopped and not lane.in_flight:
            self._recover(lane)

    # ---- answers -----------------------------------------------------------------------------------------

    def _answered(self, lane: Lane, flight: Flight, answer: Any) -> None:
        if flight.batch.settled:
            return                         # closed meanwhile
        flight.in_flight = False
        lane.in_flight -= 1
        error = answer_as_error(answer)
        if error is None:
            lane.remove(flight)
            lane.refreshes = 0
            lane.refusal = None
            lane.backoff.reset()
            self.records_stored += flight.batch.count
            self.duplicates += flight.batch.count if answer.duplicate else 0
            flight.batch.stored(answer.base_sequence, answer.append_time_ms, answer.duplicate)
            self._settle(flight)
        else:
            lane.refused(flight, error)
        if not lane.stopped:
            self._pump(lane)
        elif lane.in_flight == 0:
            self._recover(lane)

    def _recover(self, lane: Lane) -> None:
        """A stopped lane has nothing in flight: end what must end, then send the rest again after a pause."""
        retry_after_ms = max(
            (f.error.facts.get("retry_after_ms", 0) for f in lane.window if f.error is not None), default=0
        )
        plan = lane.plan(self._clock.monotonic_ms())
        first = min((flight.batch.sequence for flight, _ in plan.fail), default=0)
        for flight, error in plan.fail:
            self._fail(lane, flight, self._gone if self._gone and isinstance(error, NotFound) else error)
        if plan.rename and self.config.idempotent:
            self._start(self._rename(lane), "rename")
            return
        if plan.renumber and self.config.idempotent:
            lane.close_holes(first)
        if plan.refresh and not self._refreshing:
            self._refreshing = True
            self._start(self._refresh(), "refresh")
        if not lane.window:
            self._resume(lane)
            return
        # Never past a deadline: the window is in the order of put, so its first is the next to end.
        left_ms = lane.window[0].deadline_ms - self._clock.monotonic_ms() + 1
        pause_ms = min(max(lane.backoff.next_ms(), retry_after_ms), max(0, left_ms))
        lane.retry_timer = self._loop.call_later(pause_ms / 1000, self._resume, lane)

    def _resume(self, lane: Lane) -> None:
        lane.retry_timer = None
        lane.stopped = False
        self._send(lane)                   # ends what is late, then comes back here
        if not lane.stopped:
            self._pump(lane)

    async def _rename(self, lane: Lane) -> None:
        """A new identity for this shard alone; others keep theirs. Never goes on under the old one: numbers that

        were used before would make the shard take new records for repeats.
        """
        backoff = self._backoff()
        while True:
            try:
                async with asyncio.timeout(self.config.request_timeout_ms / 1000):
                    identity = await self._client.new_producer()
                break
            except (StreamkitError, TimeoutError) as error:
                cause = error if isinstance(error, StreamkitError) else None
                _log.log(logging.DEBUG if backoff.tries else logging.WARNING,
                         "producer.rename_failed shard=%s error=%s", lane.shard.id, error)  # fmt: skip
            hopeless = cause if cause is not None and judge(cause) is Verdict.FAIL else None
            now_ms = self._clock.monotonic_ms()
            for flight in [flight for flight in lane.window if hopeless or now_ms >= flight.deadline_ms]:
                self._fail(lane, flight, hopeless or lane.timed_out(flight, cause))
            await asyncio.sleep(backoff.next_ms() / 1000)
        lane.rename(identity)
        self._resume(lane)

    async def _refresh(self) -> None:
        try:
            found = await self._client.stream(self.stream.name, refresh=True)
        except StreamkitError as error:
            self._gone = error if isinstance(error, NotFound) else None
            _log.info("producer.refresh_failed stream=%s code=%s", self.stream.name, error.code)
            return
        finally:
            self._refreshing = False
        by_uuid = {shard.uuid: shard for shard in found.shards}
        self._gone = None if any(each.shard.uuid in by_uuid for each in self._lanes) else StreamNotFound(
            f'stream "{self.stream.name}" was deleted; one of the same name was made since',
            try_="make a new producer for it", stream=self.stream.name, near=None,
        )  # fmt: skip
        for each in self._lanes:
            each.shard = by_uuid.get(each.shard.uuid, each.shard)

    def _fail(self, lane: Lane, flight: Flight, error: StreamkitError) -> None:
        lane.remove(flight)
        self.records_failed += flight.batch.count
        _log.warning(
            "batch.failed stream=%s shard=%s records=%d code=%s attempts=%d",
            self.stream.name, lane.shard.id, flight.batch.count, error.code, flight.attempts,
        )  # fmt: skip
        for outcome in flight.batch.failed(error):
            self.keep_failure(outcome)
        self._settle(flight)

    def _settle(self, flight: Flight) -> None:
        for flush in flight.flushes:
            flush.one_settled()
        self._settled()

    def _backoff(self) -> Backoff:
        return Backoff(self._client.runtime.random, self.config.retry_first_ms, self.config.retry_most_ms)

    def _start(self, work: Awaitable[None], name: str) -> None:
        self._tasks.start(work, name)  # type: ignore[arg-type]
