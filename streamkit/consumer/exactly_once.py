"""What a handler writes and how far it came, in one transaction of the store that it writes to: exactly once.

    consumer = Consumer("orders", application="billing", start="trim_horizon", sink=PostgresPosition("dbname=shop"))

    @consumer.handler
    def bill(orders: Batch[Order], ctx: Context) -> None:
        ctx.connection.executemany("INSERT INTO bills …", …)

    begin ──▶ handler ──▶ position: "was `start`, and no later owner has been here" ──▶ commit
                 └── raises ──▶ roll back; what came before the failing record is handled again by itself

The store's position wins over the coordinator's: a shard is read from where the store says, and the coordinator's
checkpoint, which follows, only shows the lag. A worker that lost its shard and does not know is refused by the store,
from the moment the next owner has claimed the position. A commit without an answer is doubt: the position is read
again before anything else is handled. See docs/decisions/0091.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from streamkit._core.batch import Batch
from streamkit.consumer.aggregates import Place
from streamkit.consumer.checkpointer import HeldLease
from streamkit.consumer.failure import Aborted, RetryLater
from streamkit.consumer.handler import Context, Driver, Outcome
from streamkit.consumer.stage import Stage
from streamkit.errors import InvalidUse, LeaseLost, StreamkitError
from streamkit.runtime.backoff import Backoff
from streamkit.runtime.real import RealRandom

log = logging.getLogger("streamkit.consumer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Who writes for which shard. Grows with (application_ms, lease_epoch): what is smaller is refused.

    application_ms: when the application was created, so that one that was deleted and made again begins anew.
    shard_uuid: in hex; two streams of one name have different shards. place: the coordinator's, for a store that
    knows none.
    """

    application: str
    stream: str
    shard: str
    shard_uuid: str
    application_ms: int
    lease_epoch: int
    place: Place

    @property
    def fence(self) -> tuple[int, int]:
        return self.application_ms, self.lease_epoch

    def lost(self) -> LeaseLost:
        """A later owner has been here."""
        return LeaseLost(
            f"{self.shard} of {self.stream} was claimed by a later owner in the sink",
            try_="nothing to do; if it comes again: streamkit app describe, and look at the sink's lease_epoch",
            shard=self.shard, stream=self.stream, lease_epoch=self.lease_epoch, owner="",
        )

    def moved(self, expected: Place, found: Place | None) -> LeaseLost:
        """Somebody else wrote the position: the shard is claimed anew, and read from there."""
        return LeaseLost(
            f"the position of {self.shard} of {self.stream} in the sink is {found}, and was left at {expected}",
            try_="nothing to do: the shard is read again from where the sink says", shard=self.shard,
            stream=self.stream, lease_epoch=self.lease_epoch, owner="",
        )


class ShardSink(Protocol):
    """One shard's transactions, called by one thread at a time. Opened lazily: `claim` may fail, and come again."""

    @property
    def connection(self) -> Any:
        """What handlers write with."""

    def claim(self) -> Place:
        """From here on smaller claims are refused. The position to go on at. Raises LeaseLost."""

    def begin(self) -> None: ...

    def advance(self, start: Place, end: Place) -> None:
        """Inside the transaction. Raises LeaseLost unless the position is `start` and the claim is the largest."""

    def commit(self) -> None:
        """Raises InvalidUse when the handler ended the transaction by itself."""

    def rollback(self) -> None:
        """Never raises: a transaction that cannot be rolled back is gone with its connection."""

    def transient(self, error: BaseException) -> bool:
        """The store's trouble and not the record's: worth the same call again."""

    def close(self) -> None: ...


class AsyncShardSink(Protocol):
    """The same for coroutine handlers, on their event loop."""

    @property
    def connection(self) -> Any: ...
    async def claim(self) -> Place: ...
    async def begin(self) -> None: ...
    async def advance(self, start: Place, end: Place) -> None: ...
    async def commit(self) -> None: ...
    async def rollback(self) -> None: ...
    def transient(self, error: BaseException) -> bool: ...
    async def close(self) -> None: ...


class SinkPosition(Protocol):
    """Where positions are kept. A store of your own needs these two methods."""

    def open(self, claim: Claim) -> ShardSink:
        """For handlers that are plain functions."""

    def open_async(self, claim: Claim) -> AsyncShardSink:
        """For coroutine functions; `Awaited(self.open(claim))` where the library knows no event loop."""


class Awaited:
    """A sink without an event loop, for coroutine handlers: its calls are short, and made where they are awaited."""

    def __init__(self, sink: ShardSink) -> None:
        self._sink = sink

    @property
    def connection(self) -> Any:
        return self._sink.connection

    async def claim(self) -> Place:
        return self._sink.claim()

    async def begin(self) -> None:
        self._sink.begin()

    async def advance(self, start: Place, end: Place) -> None:
        self._sink.advance(start, end)

    async def commit(self) -> None:
        self._sink.commit()

    async def rollback(self) -> None:
        self._sink.rollback()

    def transient(self, error: BaseException) -> bool:
        return self._sink.transient(error)

    async def close(self) -> None:
        self._sink.close()


class SinkTrouble(StreamkitError):
    """The store that holds the position did not take a transaction; it is tried again. Its cause says why."""

    code = "sink_trouble"
    retryable = True


class Places(Protocol):
    """Where user code runs: functions in threads, coroutines on its event loop."""

    @property
    def threads(self) -> Stage: ...
    @property
    def coroutines(self) -> Stage: ...


class UserCode(Driver, Protocol):
    """A driver whose call can be made inside a transaction."""

    is_async: bool
    exact: bool                            # a failure says which record it was

    def work(self, batch: Batch[Any]) -> Any:
        """The call itself: an Outcome, or a coroutine of one when `is_async`. Raises nothing but what ends a task."""


class SinkDriver:
    """`user` inside transactions of `sink`. resume: False for `feed`, whose values have no position."""

    whole = True

    def __init__(
        self, user: UserCode, sink: SinkPosition, lease: HeldLease, context: Context, stages: Places, *,
        resume: bool = True,
    ) -> None:
        grant = lease.grant
        self._claim = Claim(
            application=context.application, stream=lease.stream, shard=lease.shard.id,
            shard_uuid=lease.shard.uuid.hex(), application_ms=grant.application_ms, lease_epoch=lease.lease_epoch,
            place=lease.start,
        )
        self._user = user
        self._lease = lease
        self._context = context
        self._resume = resume
        self._backoff = Backoff(RealRandom(), 100, 10_000)
        self._begun = False                # records are handed out from `_at` on
        self._doubt = True                 # what the store's position is
        self._at = lease.start
        self._stage: Stage = stages.coroutines if user.is_async else stages.threads
        self._sink: Any = sink.open_async(self._claim) if user.is_async else sink.open(self._claim)
        assert context.checkpointer is not None, "a context has a checkpointer before its driver is made"
        context.checkpointer.kept_by_sink = True

    async def initialize(self) -> None:
        await self._settle_doubt()
        if not self._begun:
            self._begun = True
            self._lease.seek(self._at)
        await self._user.initialize()

    async def run(self, batch: Batch[Any]) -> Outcome:
        try:
            if self._doubt:
                await self._settle_doubt()
                if done := _leading(batch, self._at):
                    return Outcome(done)   # the commit without an answer had gone through
            outcome = await self._transacted(batch)
        except SinkTrouble as error:
            wait_s = self._backoff.next_ms() / 1000
            log.warning("sink.retrying application=%s stream=%s shard=%s error=%s next_s=%.1f",
                        self._claim.application, self._claim.stream, self._claim.shard, error, wait_s)
            return Outcome(0, RetryLater(str(error), seconds=wait_s), exact=True)
        except Aborted as error:
            return Outcome(0, error)
        self._backoff.reset()
        return outcome

    async def passed_over(self, batch: Batch[Any]) -> None:
        """These records were not handled, and will not be: the position goes past them."""
        if not self._resume or self._doubt:
            return                         # then it goes past them with the next record
        call: Callable[..., Any] = transact_async if self._user.is_async else transact
        nothing: Callable[..., Any] = _nothing_async if self._user.is_async else _nothing
        try:
            await self._stage.call(call, self._sink, nothing, batch, self._at)
            self._at = batch.place(len(batch))
        except SinkTrouble as error:
            self._doubt = True
            log.warning("sink.retrying application=%s stream=%s shard=%s error=%s", self._claim.application,
                        self._claim.stream, self._claim.shard, error)

    async def shard_ended(self) -> bool:
        return await self._user.shard_ended()

    async def shutdown_requested(self) -> None:
        await self._user.shutdown_requested()

    async def lease_lost(self) -> None:
        try:
            await self._user.lease_lost()
        finally:
            self._connect(None)
            await self._stage.call(self._sink.close)

    async def _settle_doubt(self) -> None:
        if self._resume:
            at: Place = await self._stage.call(_claim_async if self._user.is_async else _claim, self._sink)
            if self._begun and at < self._at:
                raise self._claim.moved(self._at, at)      # records would have to be read again: another lease does
            self._at = at
        else:
            await self._stage.call(_open_async if self._user.is_async else _open, self._sink)
        self._doubt = False
        self._connect(self._sink.connection)

    def _connect(self, connection: Any) -> None:
        if self._context.checkpointer is not None:
            self._context.checkpointer.sink_connection = connection

    async def _transacted(self, batch: Batch[Any]) -> Outcome:
        start = self._at if self._resume else None
        outcome = await self._one(batch, start)
        if outcome.error is not None and self._user.exact and outcome.done:
            # Rolled back with the record that failed: these are handled again, and leave it alone at the head.
            failed, outcome = outcome, await self._one(batch.part(0, outcome.done), start)
            if outcome.error is None and outcome.done == failed.done:
                return replace(outcome, error=failed.error, exact=True)
        if outcome.error is not None:
            return Outcome(0, outcome.error, exact=self._user.exact and not outcome.done)
        return outcome

    async def _one(self, batch: Batch[Any], start: Place | None) -> Outcome:
        context = self._context
        context.begin_batch(batch)
        call: Callable[..., Any] = transact_async if self._user.is_async else transact
        try:
            outcome: Outcome = await self._stage.call(call, self._sink, self._user.work, batch, start)
        except BaseException:
            self._doubt = True             # cancelled or refused somewhere between begin and commit
            raise
        finally:
            context.batch = None
        if outcome.error is None and outcome.done:
            self._at = batch.place(outcome.done)
        return outcome


def transact(
    sink: ShardSink, work: Callable[[Batch[Any]], Outcome], batch: Batch[Any], start: Place | None
) -> Outcome:
    """One transaction with the call and, from `start`, the position. Raises LeaseLost, SinkTrouble."""
    try:
        _guarded(sink.begin)
        outcome = work(batch)
        if _to_be_committed(sink, outcome):
            if start is not None:
                _guarded(sink.advance, start, batch.place(outcome.done))
            _guarded(sink.commit)
        else:
            sink.rollback()
    except BaseException:
        sink.rollback()
        raise
    return outcome


async def transact_async(
    sink: AsyncShardSink, work: Callable[[Batch[Any]], Awaitable[Outcome]], batch: Batch[Any], start: Place | None
) -> Outcome:
    try:
        await _guarded_async(sink.begin)
        outcome = await work(batch)
        if _to_be_committed(sink, outcome):
            if start is not None:
                await _guarded_async(sink.advance, start, batch.place(outcome.done))
            await _guarded_async(sink.commit)
        else:
            await sink.rollback()
    except BaseException:
        await sink.rollback()
        raise
    return outcome


def _to_be_committed(sink: ShardSink | AsyncShardSink, outcome: Outcome) -> bool:
    if outcome.error is not None and sink.transient(outcome.error):
        raise _trouble(outcome.error) from outcome.error
    return outcome.error is None and outcome.done > 0


def _guarded(call: Callable[..., Any], *args: Any) -> Any:
    try:
        return call(*args)
    except StreamkitError:
        raise
    except Exception as cause:
        raise _trouble(cause) from cause


async def _guarded_async(call: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    try:
        return await call(*args)
    except StreamkitError:
        raise
    except Exception as cause:
        raise _trouble(cause) from cause


def _trouble(cause: BaseException) -> SinkTrouble:
    return SinkTrouble(f"{type(cause).__name__}: {cause}".strip(), try_="look at the store that holds the position")


def _claim(sink: ShardSink) -> Any:
    return _guarded(sink.claim)


async def _claim_async(sink: AsyncShardSink) -> Any:
    return await _guarded_async(sink.claim)


def _open(sink: ShardSink) -> None:
    _guarded(sink.begin)
    sink.rollback()


async def _open_async(sink: AsyncShardSink) -> None:
    await _guarded_async(sink.begin)
    await sink.rollback()


def _nothing(batch: Batch[Any]) -> Outcome:
    return Outcome(len(batch))


async def _nothing_async(batch: Batch[Any]) -> Outcome:
    return Outcome(len(batch))


def _leading(batch: Batch[Any], place: Place) -> int:
    """How many records of the batch lie before `place`."""
    done = 0
    while done < len(batch) and batch.place(done) < place:
        done += 1
    return done


def check_one_kind(sink: object, *, transactional: bool) -> None:
    """Raises InvalidUse when the position would be kept in two places."""
    if sink is not None and transactional:
        raise InvalidUse("the position is kept by the sink, or decided with outputs, not both",
                         try_="leave sink or transactional out", argument="transactional")


def check_sink(sink: object, *, checkpoint: str) -> None:
    """Raises InvalidUse for what can never work."""
    if not (callable(getattr(sink, "open", None)) and callable(getattr(sink, "open_async", None))):
        raise InvalidUse(
            f"sink must be a position such as PostgresPosition(…); got {type(sink).__name__}",
            try_="pass sink=PostgresPosition(…), SQLitePosition(…), DuckDBPosition(…) or FilePosition(…)",
            argument="sink",
        )
    if checkpoint != "auto":
        raise InvalidUse(
            'the sink keeps the position: there is nothing to checkpoint by hand',
            try_='leave checkpoint="manual" out', argument="checkpoint",
        )
