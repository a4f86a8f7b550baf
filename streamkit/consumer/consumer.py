"""The function style: decorate a function, run it; it gets every record of the stream, shared with other workers.

    consumer = Consumer("orders", application="billing", start="trim_horizon")

    @consumer.handler
    def bill(order: dict, ctx: Context) -> None: ...

    consumer.run()
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar, overload

from streamkit._core.batch import Batch
from streamkit.client.pool import Connector
from streamkit.consumer.aggregates import Deaggregate
from streamkit.consumer.checkpointer import HeldLease, Track
from streamkit.consumer.config import ConsumerConfig, OnExhausted, Start, stream_names
from streamkit.consumer.effects import EffectDriver, Finished, check_effect, effect_handler
from streamkit.consumer.exactly_once import SinkDriver, SinkPosition, check_one_kind, check_sink
from streamkit.consumer.failure import RetryPolicy
from streamkit.consumer.feed import FeedReport, feed_values
from streamkit.consumer.handler import Context, Driver, Handler, Outcome
from streamkit.consumer.ordering import Ordering
from streamkit.consumer.routing import Handlers
from streamkit.consumer.running import Running, worker_name
from streamkit.consumer.stage import Stages
from streamkit.consumer.transactional import TransactionDriver
from streamkit.errors import Closed, InvalidUse
from streamkit.model.codec import Codec, Decoding
from streamkit.runtime.interfaces import Runtime
from streamkit.runtime.real import LoopThread
from streamkit.runtime.threads import Handover, HandoverEmpty, Promise

F = TypeVar("F", bound=Callable[..., Any])
_LOOK_S = 0.5                              # how often a waiting `batches()` looks whether the worker still lives


class Consumer(Running):
    """A worker of `application`. The first parameter's annotation decides what the handler gets.

    start: for shards the application has no position of; there is no safe default. stream: one name, or several.
    `def` handlers run in threads, `async def` handlers on the caller's loop. processes: for handlers that need more
    than one processor; `run()` spreads the leases over that many. ordering: `Ordering.by_key(8)` handles records of
    different keys at a time, in eight lanes a shard. deaggregate: the KPL's aggregates are taken apart, each user
    record with its `sub_sequence`; "owned" leaves out those that belong to another shard, False hands out the
    aggregates. where: a condition, as "data.total > 100"; records that do not match are passed over
    and counted. unhandled: "skip" passes over records that no handler's condition holds for. At least once: a
    record may come again after a crash; it is never passed over unless on_exhausted="skip" was chosen. instance: a
    worker that is started again under that name within membership_ms keeps its leases. standby: it holds none until
    another worker goes, then takes its place. weight: its share of the leases, beside the weights of others.
    assignment: "load" moves leases, slowly, from busy workers to idle ones, once all workers say so. sink: the
    position is kept with what handlers write, in one transaction, and each record counts exactly once there:
    `PostgresPosition`, `SQLitePosition`, `DuckDBPosition`, `FilePosition`; handlers write with `ctx.connection`.
    transactional: the same from stream to stream: what handlers put with `ctx.put` is stored together with the
    position, once, or not at all; so are dead letters.
    handler_timeout_seconds: how long one call may take. A coroutine is then cancelled and has failed. A plain function
    sees `ctx.stopping`; when it goes on all the same for as long again, the worker writes the attempt down and kills
    its own process, because nothing else ends a thread: run it under something that starts it again, or processes=2.
    """

    def __init__(
        self,
        stream: str | Sequence[str],
        *,
        application: str,
        start: Start,
        codec: Codec | str = "auto",
        ordering: Ordering = Ordering.SHARD,
        checkpoint: Literal["auto", "manual"] = "auto",
        checkpoint_interval_ms: int = 1_000,
        retry: RetryPolicy | None = None,
        dead_letter: str | None = None,
        on_exhausted: OnExhausted | None = None,
        batch_records_max: int = 10_000,
        prefetch_bytes_max: int = 64 * 1024 * 1024,
        deaggregate: Deaggregate = True,
        where: str | None = None,
        fan_out: bool = False,
        unhandled: Literal["skip"] | None = None,
        sink: SinkPosition | None = None,
        transactional: bool = False,
        processes: int = 1,
        leases_max: int | None = None,
        weight: float = 1.0,
        worker: str | None = None,
        instance: str | None = None,
        standby: bool = False,
        assignment: Literal["count", "load"] = "count",
        membership_ms: int = 10_000,
        stall_seconds: int = 300,
        handler_timeout_seconds: float = 0.0,
        drain_seconds: int = 30,
        url: str | Connector | None = None,
        runtime: Runtime | None = None,
        loop_thread: LoopThread | None = None,
    ) -> None:
        config = ConsumerConfig(
            streams=stream_names(stream), application=application, start=start, worker=worker_name(worker, instance),
            codec=codec, ordering=ordering, checkpoint=checkpoint, checkpoint_interval_ms=checkpoint_interval_ms,
            retry=retry or RetryPolicy(), dead_letter=dead_letter, on_exhausted=on_exhausted,
            batch_records_max=batch_records_max, prefetch_bytes_max=prefetch_bytes_max, leases_max=leases_max,
            processes=processes, deaggregate=deaggregate, where=where, fan_out=fan_out, unhandled=unhandled,
            transactional=transactional,
            membership_ms=membership_ms, stall_seconds=stall_seconds, drain_seconds=drain_seconds,
            weight=weight, instance=instance, standby=standby, assignment=assignment,
            handler_timeout_seconds=handler_timeout_seconds,
        )
        super().__init__(config, url, runtime, loop_thread)
        self._sink = sink
        check_one_kind(sink, transactional=transactional)
        if sink is not None:
            check_sink(sink, checkpoint=checkpoint)
            if ordering.within != "shard":
                raise InvalidUse("a sink keeps one position a shard, in one transaction at a time; lanes have several",
                                 try_="use ordering=Ordering.SHARD, and more shards", argument="ordering")
        self._handlers = Handlers(config)
        self._is_effect = False
        self._finished: Finished | None = None
        self._handoff: _Handoff | None = None

    @overload
    def handler(self, fn: F, *, where: str | None = None) -> F: ...
    @overload
    def handler(self, fn: None = None, *, where: str | None = None) -> Callable[[F], F]: ...

    def handler(self, fn: F | None = None, *, where: str | None = None) -> F | Callable[[F], F]:
        """The function that gets the records; it is returned unchanged.

        where: only those records for which the condition holds. Of several handlers the first whose condition holds
        gets a record, else the one without. Raises InvalidUse for what can never work, InvalidQuery.
        """
        def add(fn: F) -> F:
            self._handlers.add(Handler.inspected(fn, self.config.codec, sys._getframe(1).f_locals), where)
            return fn

        if fn is None:
            return add
        self._handlers.add(Handler.inspected(fn, self.config.codec, sys._getframe(1).f_locals), where)
        return fn

    @overload
    def effect(self, fn: F, *, finished: Finished | None = None) -> F: ...
    @overload
    def effect(self, fn: None = None, *, finished: Finished | None = None) -> Callable[[F], F]: ...

    def effect(self, fn: F | None = None, *, finished: Finished | None = None) -> F | Callable[[F], F]:
        """A function of (records, token) that does something elsewhere, which counts once: see `effects`.

        It is called with the same records for the same token until it returns, by this worker or the next owner; who is
        asked leaves out what it did under that token. records: a Batch, of at most batch_records_max; or one record.
        finished: of a token, whether that was done; asked only in doubt. Raises InvalidUse for what can never work.
        """
        def add(fn: F) -> F:
            handler = effect_handler(Handler.inspected(fn, self.config.codec, sys._getframe(2).f_locals))
            check_effect(self.config, sink=self._sink, others=len(self._handlers))
            self._handlers.add(handler, None)
            self._is_effect, self._finished = True, finished
            return fn

        def decorate(fn: F) -> F:
            return add(fn)

        return decorate if fn is None else add(fn)

    @property
    def decorated(self) -> Handler:
        """The function that gets every record, inspected. Raises InvalidUse where there is no such one."""
        self.check()
        if not self._handlers:
            raise InvalidUse("a loop over batches handles these records", try_="decorate a function")
        if self.config.transactional:
            raise InvalidUse("there are no other streams to put into", try_="feed() it, or use a node",
                             argument="transactional")
        if self._handlers.are_conditional or self.config.where is not None:
            raise InvalidUse("conditions decide which handler gets a record", try_="try one handler without where")
        return self._handlers.first

    def batches(self) -> Iterator[Batch[Any]]:
        """Pull style: the previous batch counts as done when the next is asked for.

        A loop that is left by `break` or an exception leaves its last batch unfinished: it comes again. The loop ends
        when `stop` is called elsewhere.
        """
        if self._handlers:
            raise InvalidUse(
                f"{self._handlers.first.name!r} handles these records already", try_="use a second application"
            )
        if self.config.handler_timeout_seconds:
            raise InvalidUse("a loop over batches cannot be ended from outside", try_="decorate a function instead",
                             argument="handler_timeout_seconds")
        if self._sink is not None or self.config.transactional:
            raise InvalidUse("a loop over batches has no transaction", try_="decorate a function instead",
                             argument="sink")
        if self.config.ordering.within != "shard":
            raise InvalidUse("a loop over batches takes them one after the other", try_="use a handler with lanes")
        handoff = self._handoff = _Handoff()
        self.start()
        try:
            while (offered := self._offered(handoff)) is not None:
                batch, finished = offered
                try:
                    yield batch
                except GeneratorExit:
                    finished.set_exception(Closed("the loop over batches ended", what="batches"))
                    raise
                if not finished.done():
                    finished.set_result(None)
        finally:
            handoff.closed = True
            self.stop()
            self._handoff = None

    def _offered(self, handoff: _Handoff) -> tuple[Batch[Any], Promise[None]] | None:
        while self.running or not handoff.offers.empty():
            try:
                offered = handoff.offers.get(timeout=_LOOK_S)
            except HandoverEmpty:
                continue
            if offered[1].set_running_or_notify_cancel():      # else its lease was lost before anybody took it
                return offered
        return None

    def feed(self, values: Iterable[Any], *, key: str = "test") -> FeedReport:
        """Unit test: handle these values as if they had been put, without a broker and without waiting."""
        self.check()
        assert self._handlers, "check() refuses a consumer without a handler"
        return feed_values(self.config, self._handlers, values, key, self._sink)

    # ---- what Running asks for -----------------------------------------------------------------------------

    def check(self) -> None:
        if self._is_effect and len(self._handlers) > 1:
            raise InvalidUse("an effect takes every record", try_="use a second application for other handlers")
        if not self._handlers and self._handoff is None:
            raise InvalidUse("there is no handler", try_="decorate a function with @consumer.handler")

    def decoding(self) -> Decoding:
        return self._handlers.first.decoding if self._handlers else Decoding(self.config.codec)

    def make_driver(self, lease: Track, context: Context, stages: Stages) -> Driver:
        if not self._handlers:
            assert self._handoff is not None, "check() refuses a consumer with neither"
            return _HandoffDriver(self._handoff, context)
        driver = self._handlers.driver(context, stages.coroutines if self._handlers.first.is_async else stages.threads)
        if self.config.transactional:
            assert isinstance(lease, HeldLease), "transactions have one lane"
            return TransactionDriver(driver, lease, context, stages, self.config.dead_letter)
        if self._is_effect:
            assert isinstance(lease, HeldLease), "effects have one lane"
            records_max = self.config.batch_records_max if self._handlers.first.takes == "batch" else 1
            return EffectDriver(driver, self._finished, lease, context, stages, records_max=records_max)
        if self._sink is None:
            return driver
        assert isinstance(lease, HeldLease), "a sink has one lane"
        return SinkDriver(driver, self._sink, lease, context, stages)


class _Handoff:
    """Between the shards' drivers and the thread that loops over batches."""

    def __init__(self) -> None:
        self.offers: Handover[tuple[Batch[Any], Promise[None]]] = Handover()
        self.closed = False


class _HandoffDriver:
    """Offers each batch and waits until the loop comes back for the next."""

    whole = True

    def __init__(self, handoff: _Handoff, context: Context) -> None:
        self._handoff = handoff
        self._context = context
        context.takes_batches()

    async def initialize(self) -> None:
        """The loop prepares itself."""

    async def shard_ended(self) -> bool:
        """The loop sees records alone."""
        return False

    async def passed_over(self, batch: Batch[Any]) -> None:
        """The checkpoint says it."""

    async def shutdown_requested(self) -> None:
        """The loop is not asked."""

    async def lease_lost(self) -> None:
        """The loop is not told; what it does with its batch is not checkpointed any more."""

    async def run(self, batch: Batch[Any]) -> Outcome:
        finished: Promise[None] = Promise()
        self._context.batch = batch
        self._handoff.offers.put((batch, finished))
        waiting = asyncio.wrap_future(finished)
        try:
            while not waiting.done() and not self._handoff.closed:
                await asyncio.wait([waiting], timeout=_LOOK_S)
        finally:
            self._context.batch = None
            finished.cancel()              # withdrawn, if the loop has not taken it
        if not waiting.done() or waiting.exception() is not None:
            self._context.halt()
            return Outcome(0)
        return Outcome(len(batch))
