"""`Consumer.feed`: a handler tried on values, without a broker, a network or a wait.

The values are sealed into one batch and go through the same shard consumer as real records: same decoding, same
retries, same policy. Waits take no time; what would block for ever ends the feed and is reported.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from streamkit._core.batch import Batch, Record, seal, stamped
from streamkit.consumer.aggregates import place_of
from streamkit.consumer.checkpointer import HeldLease, Track
from streamkit.consumer.config import ConsumerConfig
from streamkit.consumer.exactly_once import SinkDriver, SinkPosition
from streamkit.consumer.failure import DeadRecord, reason_of
from streamkit.consumer.handler import Context, Driver, Handler
from streamkit.consumer.routing import Handlers
from streamkit.consumer.shard_consumer import ShardConsumer, make_checkpointer
from streamkit.consumer.surroundings import Ended, Statistics, Surroundings
from streamkit.consumer.transactional import TransactionDriver
from streamkit.errors import InvalidUse
from streamkit.model.codec import find_codec
from streamkit.model.limits import BATCH_RECORDS_MAX, HASH_KEYS
from streamkit.model.shard import Shard
from streamkit.protocol.conversion import shard_to_wire
from streamkit.protocol.messages import LeaseGrant
from streamkit.runtime.real import LoopThread, RealClock, RealRandom
from streamkit.transactions.lineage import Gathered

_SHARD = Shard(ordinal=0, uuid=b"\xfe" * 16, hash_start=0, hash_end=HASH_KEYS, created_ms=0)
_WAITS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class FeedFailure:
    """A record that was not handled."""

    record: Record[Any]
    reason: str
    attempts: int
    error: BaseException | None = None


class FeedOutput(NamedTuple):
    """A record that the handler put, and that would have been stored with the position."""

    stream: str
    key: str | None
    data: bytes


class _Decided:
    """Decides at once, and keeps what there was."""

    def __init__(self) -> None:
        self.random = RealRandom()
        self.outputs: list[FeedOutput] = []

    async def commit(self, gathered: Gathered, place: tuple[int, int]) -> None:
        self.outputs += [FeedOutput(stream, put.key, put.payload)
                         for stream, puts in gathered.puts.items() for put in puts]


@dataclass(frozen=True, slots=True)
class FeedReport:
    """handled: records the handler finished. blocked: the record that would have held up the shard. paused: why.

    checkpoint: how many leading values are finished, as the checkpoint after the feed says. stopped: the error of
    on_exhausted="stop". filtered: values that the consumer's `where` passed over. unhandled: values that no handler
    took. undecided: values for which a condition could not be decided. outputs: what a transactional consumer put.
    """

    handled: int
    dead_letter: tuple[FeedFailure, ...]
    skipped: int
    retries: int
    blocked: FeedFailure | None
    paused: str | None
    stopped: BaseException | None
    checkpoint: int
    filtered: int = 0
    unhandled: int = 0
    undecided: int = 0
    outputs: tuple[FeedOutput, ...] = ()


class _Inline:
    """A stage that is no other place."""

    @property
    def threads(self) -> _Inline:
        return self

    @property
    def coroutines(self) -> _Inline:
        return self

    async def call(self, work: Callable[..., Any], *args: Any) -> Any:
        result = work(*args)
        return await result if inspect.isawaitable(result) else result

    def stack(self) -> str:
        return ""                          # whoever feeds sees it in the debugger


class _Values:
    """The source: batches made of values, then nothing for ever; `exhausted` is awaited once."""

    def __init__(self, batches: list[Batch[Any]], exhausted: Callable[[], Awaitable[None]]) -> None:
        self._batches = batches
        self._exhausted = exhausted

    async def next(self) -> Batch[Any]:
        await self._exhausted()
        await asyncio.Event().wait()
        raise AssertionError("an event that nobody sets")

    def next_nowait(self) -> Batch[Any] | None:
        return self._batches.pop(0) if self._batches else None

    def finished(self, batch: Batch[Any]) -> None:
        """Nothing is counted here."""

    def seek(self, sequence: int) -> None:
        raise AssertionError("values have one beginning")


class _Feed:
    """One feed, and everything around the shard consumer."""

    def __init__(
        self, config: ConsumerConfig, handlers: Handlers, values: Iterable[Any], key: str, sink: SinkPosition | None
    ) -> None:
        self._config = config
        self._sink = sink
        self._handlers = handlers
        self._batches = _sealed(config, handlers.first, list(values), key)
        self._dead: list[FeedFailure] = []
        self._decided = _Decided()
        self._paused: str | None = None
        self._waits = 0
        self._held_up = False
        self._statistics = Statistics()
        self._consumer: ShardConsumer | None = None

    async def run(self) -> FeedReport:
        grant = LeaseGrant(self._config.streams[0], shard_to_wire(_SHARD), 1, 0, 0, False)
        lease = HeldLease(grant, _SHARD, manual=self._config.checkpoint == "manual")
        around = Surroundings(
            config=self._config, clock=RealClock(), random=RealRandom(), statistics=self._statistics,
            dead_letters=self, flush=self._flush, nudge=_nothing, pause=self._pause, wait=self._wait,
            where=self._config.condition(),
        )
        consumer = self._consumer = ShardConsumer(
            lease, *self._hands_for(lease), _Values(list(self._batches), self._exhausted), around, self._hands_for
        )
        await consumer.run()
        await self._flush(lease)
        await asyncio.sleep(0)             # lets checkpoints that the handler did not wait for be told
        error = consumer.last_error
        blocked = None
        if self._held_up and error is not None:
            record = consumer.last_alone or self._record(lease.finished[0])
            attempts = lease.attempts.get(place_of(record), 1)
            blocked = FeedFailure(record, reason_of(error), attempts, error)
        return FeedReport(
            handled=self._statistics.records, dead_letter=tuple(self._dead), skipped=self._statistics.skipped,
            retries=self._statistics.retries, blocked=blocked, paused=self._paused, stopped=consumer.failed,
            checkpoint=lease.stored[0], filtered=self._statistics.filtered, unhandled=self._statistics.unhandled,
            undecided=self._statistics.undecided, outputs=tuple(self._decided.outputs),
        )

    def _hands_for(self, track: Track) -> tuple[Context, Driver]:
        context = Context(track, self._config.application, self._config.worker)
        make_checkpointer(track, context, asyncio.get_running_loop(), _nothing)
        function = self._handlers.driver(context, _Inline())
        if self._config.transactional:
            assert isinstance(track, HeldLease), "transactions have one lane"
            return context, TransactionDriver(function, track, context, _Inline(), None, self._decided)
        if self._sink is None:
            return context, function
        assert isinstance(track, HeldLease), "a sink has one lane"
        return context, SinkDriver(function, self._sink, track, context, _Inline(), resume=False)

    def _record(self, sequence: int) -> Record[Any]:
        batch = next(batch for batch in self._batches if sequence < batch.end_sequence)
        return batch[sequence - batch.first_sequence]

    async def _exhausted(self) -> None:
        assert self._consumer is not None, "the consumer runs"
        with contextlib.suppress(Ended):   # held up, or paused
            await self._consumer.settle()
        self._end()

    def _end(self) -> None:
        assert self._consumer is not None, "the consumer runs"
        self._consumer.drain(60.0)

    async def put(self, dead: DeadRecord) -> None:
        self._dead.append(FeedFailure(dead.record, reason_of(dead.error), dead.attempts, dead.error))

    async def _flush(self, lease: HeldLease) -> None:
        item = lease.next_item()
        if item is not None:
            lease.answered(item, "ok")

    async def _pause(self, lease: HeldLease, reason: str) -> None:
        self._paused = reason
        self._end()

    async def _wait(self, seconds: float, event: asyncio.Event) -> None:
        self._waits += 1
        if self._statistics.poisoned or self._waits > _WAITS_MAX:
            self._held_up = True
            self._end()


def _nothing() -> None:
    """Nobody is waiting for this."""


def _sealed(config: ConsumerConfig, handler: Handler, values: list[Any], key: str) -> list[Batch[Any]]:
    codec = find_codec(config.codec)
    context = handler.decoding.context(config.streams[0], _SHARD)
    now_ms = RealClock().now_ms()
    batches: list[Batch[Any]] = []
    for start in range(0, len(values), BATCH_RECORDS_MAX):
        try:
            records = [
                (key.encode(), value if isinstance(value, bytes) else codec.encode(value), b"", now_ms, None)
                for value in values[start : start + BATCH_RECORDS_MAX]
            ]
        except TypeError as cause:
            raise InvalidUse(
                f"a value cannot be encoded as {codec.name}: {cause}", try_="feed it as bytes", codec=codec.name
            ) from cause
        whole = stamped(seal(records), base_sequence=start, append_time_ms=now_ms, shard_uuid=_SHARD.uuid)
        batches.append(Batch(whole, context))
    return batches


def feed_values(
    config: ConsumerConfig, handlers: Handlers, values: Iterable[Any], key: str, sink: SinkPosition | None = None
) -> FeedReport:
    """Blocks until every value was handled or the shard is held up. What goes to a sink is written there."""
    feed = _Feed(config, handlers, values, key, sink)
    work: Callable[[], Awaitable[FeedReport]] = feed.run
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(feed.run())     # in the caller's thread, where a debugger can follow
    thread = LoopThread("streamkit-feed")  # the caller's loop is busy with the caller
    try:
        return thread.run(_awaited(work))
    finally:
        thread.stop()


async def _awaited(work: Callable[[], Awaitable[FeedReport]]) -> FeedReport:
    return await work()
