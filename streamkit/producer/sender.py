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
from streamkit.errors import Closed, StreamkitError
from streamkit.model.shard import Shard
from streamkit.model.stream import StreamDescription
from streamkit.producer.config import COMPRESSIONS, ProducerConfig
from streamkit.producer.entry import result_maker
from streamkit.producer.lane import Flight, Flush, Lane, answer_as_error
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
            Lane(index, shard, identity, self._backoff()) for index, shard in enumerate(stream.shards)
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

    async def close(self, reason: StreamkitError | None = None) -> None:
        """Whatever is left fails; late answers are ignored. Call flush first to lose nothing."""
        if self._closed:
            return
        self.accumulator.close()
        self._turn()
        self._closed = True
        for lane in self._lanes:
            self._take(lane, close_open=True)
            for timer in (lane.linger_timer, lane.retry_timer):
                if timer is not None:
                    timer.cancel()
            for flight in list(lane.window):
                in_doubt = flight.in_doubt or flight.in_flight
                self._fail(lane, flight, reason or Closed(
                    f"the producer was closed before {lane.shard.id} acknowledged the record",
                    try_="it may be stored" if in_doubt else "put it again; it was not stored",
                    what="producer", sent=in_doubt,
                ))  # fmt: skip
        self._settled()
        await self._tasks.close()

    # ---- from put to the wire ----------------------------------------------------------------------------

    def _wake(self) -> None:
        # From any thread, after put; the accumulator asks once until take_touched.
        if self._loop.is_closed():
            return
        if asyncio._get_running_loop() is self._loop:
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
        deadline_ms = self._clock.monotonic_ms() + self.config.delivery_timeout_ms
        while batch := self.accumulator.take(
            lane.index,
            close_open=close_open,
            producer_id=identity.producer_id,
            producer_epoch=identity.producer_epoch,
            sequence=lane.next_sequence,
        ):
            lane.admit(batch, deadline_ms)
            self.batch_records.record(batch.count)
            if not self.accumulator.waiting(lane.index):
                lane.overdue = False

    def _send(self, lane: Lane) -> None:
        if lane.stopped or self._closed:
            return
        for flight in lane.window:
            if lane.in_flight >= self._in_flight_max:
                break
            if flight.in_flight:
                continue
            flight.in_flight = True
            flight.attempts += 1
            lane.in_flight += 1
            self.batches_sent += 1
            self.batches_retried += flight.attempts > 1
            payload = flight.batch.payload
            self.bytes_sent += len(payload)
            left_ms = max(1, flight.deadline_ms - self._clock.monotonic_ms())
            self._client.put_batch(
                lane.shard, payload, partial(self._answered, lane, flight), min(self.config.request_timeout_ms, left_ms)
            )

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
            self._fail(lane, flight, error)
        if plan.rename and self.config.idempotent:
            self._start(self._rename(lane), "rename")
            return
        if plan.renumber and self.config.idempotent:
            lane.close_holes(first)
        if plan.refresh:
            self._start(self._refresh(lane), "refresh")
        if not lane.window:
            self._resume(lane)
            return
        pause_ms = max(lane.backoff.next_ms(), retry_after_ms)
        lane.retry_timer = self._loop.call_later(pause_ms / 1000, self._resume, lane)

    def _resume(self, lane: Lane) -> None:
        lane.retry_timer = None
        lane.stopped = False
        now_ms = self._clock.monotonic_ms()
        if any(now_ms >= flight.deadline_ms for flight in lane.window):
            lane.stopped = True            # ends the late ones, then comes back here
            self._recover(lane)
            return
        self._send(lane)
        self._pump(lane)

    async def _rename(self, lane: Lane) -> None:
        """A new identity for this shard alone; others keep theirs."""
        backoff = self._backoff()
        while True:
            try:
                identity = await self._client.new_producer()
                break
            except StreamkitError as error:
                _log.warning("producer.rename_failed shard=%s code=%s", lane.shard.id, error.code)
                await asyncio.sleep(backoff.next_ms() / 1000)
                now_ms = self._clock.monotonic_ms()
                for flight in [flight for flight in lane.window if now_ms >= flight.deadline_ms]:
                    self._fail(lane, flight, error)
        lane.rename(identity)
        self._resume(lane)

    async def _refresh(self, lane: Lane) -> None:
        try:
            found = await self._client.stream(self.stream.name, refresh=True)
        except StreamkitError as error:
            _log.info("producer.refresh_failed stream=%s code=%s", self.stream.name, error.code)
            return
        by_uuid = {shard.uuid: shard for shard in found.shards}
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
            if len(self.failures) < FAILURES_KEPT_MAX:
                self.failures.append(outcome)
            else:
                self.failures_dropped += outcome.unseen()
        self._settle(flight)

    def _settle(self, flight: Flight) -> None:
        for flush in flight.flushes:
            flush.one_settled()
        self._settled()

    def _backoff(self) -> Backoff:
        return Backoff(self._client.runtime.random, self.config.retry_first_ms, self.config.retry_most_ms)

    def _start(self, work: Awaitable[None], name: str) -> None:
        self._tasks.start(work, name)  # type: ignore[arg-type]
