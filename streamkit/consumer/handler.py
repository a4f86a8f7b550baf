"""User code as the shard consumer drives it: functions on records or batches, processors, and the pull style.

A driver runs one batch, or a part of one, and answers with how far it came. The loops here are all that Python does
for a record: take the next one from the batch's C iterator, and call.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import types
import typing
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import repeat
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from streamkit._core.batch import Batch, Record
from streamkit.consumer.aggregates import Place
from streamkit.consumer.checkpointer import Checkpointer, Checkpointing, Named, Track
from streamkit.consumer.deadline import LATE, NEVER, Looks
from streamkit.consumer.failure import Aborted, HandlerTimedOut, PauseAsked, RetryLater, Surrendered, raise_rejected
from streamkit.consumer.processor import RecordProcessor, ShardContext
from streamkit.consumer.stage import Stage, Stages, Stopping
from streamkit.errors import BatchFailure, InvalidUse
from streamkit.model.codec import Codec, Decoding
from streamkit.model.entry import Headers

if TYPE_CHECKING:
    from streamkit.consumer.transactional import LeaseTransactions
    from streamkit.transactions.lineage import Gathered

_YIELD_EVERY = 256                         # records of a coroutine handler between two turns of the loop


@dataclass(frozen=True, slots=True)
class Outcome:
    """done: leading records that are finished. failed: indexes that failed, when the handler named them.

    exact: what failed is the record at `done`, though a batch was handed over; together: with so many, as one.
    unhandled: how many of the finished ones no handler was called for. undecided: for how many a condition could not be
    decided.
    """

    done: int
    error: BaseException | None = None
    failed: tuple[int, ...] = ()
    exact: bool = False
    together: int = 1
    unhandled: int = 0
    undecided: int = 0


class Driver(Protocol):
    """One lease's user code. whole: it takes a batch at once, so a failure does not say which record it was.

    shard_ended: whether user code had anything to say about the end, and so has finished with the shard. passed_over:
    these records are finished though they were not handled, the policy said so.
    """

    whole: bool

    async def initialize(self) -> None: ...
    async def run(self, batch: Batch[Any]) -> Outcome: ...
    async def shard_ended(self) -> bool: ...
    async def passed_over(self, batch: Batch[Any]) -> None: ...
    async def shutdown_requested(self) -> None: ...
    async def lease_lost(self) -> None: ...


class Context:
    """What a handler may know and do besides handling. Valid while the handler runs.

    record: the one in hand (record handlers); batch: the batch in hand. stopping: set when the shard is to be given
    up soon. log: a logger bound to application, stream and shard.
    """

    __slots__ = (
        "_calls", "_halt", "_halted", "_index", "_lease", "_records", "application", "attempt_counted", "batch",
        "checkpointer", "log", "looks", "shard", "stopping", "stream", "token", "transactions", "wanted",
        "worker",
    )  # fmt: skip

    def __init__(self, lease: Track, application: str, worker: str) -> None:
        self.application = application
        self.worker = worker
        self.stream = lease.stream
        self.shard = lease.shard.id
        self.stopping = Stopping()
        self.batch: Batch[Any] | None = None
        self.checkpointer: Checkpointer | None = None
        self.transactions: LeaseTransactions | None = None
        self.log = logging.LoggerAdapter(
            logging.getLogger("streamkit.consumer.handler"),
            {"application": application, "stream": self.stream, "shard": self.shard, "worker": worker},
        )
        self._lease = lease
        self._records = True
        self._index = 0
        self._halt = False                 # come back, having handled one record at least
        self._halted = False               # for good, and at once
        self.wanted = 0                    # how many wait for a turn
        self._calls = 0                    # odd while user code runs
        self.attempt_counted = False       # the attempt in hand was written down before it began
        self.token = ""                    # of an effect: see `effects`
        self.looks: Looks | None = None    # at the worker's deadline, between records

    @property
    def record(self) -> Record[Any]:
        if self.batch is None or not self._records:
            raise InvalidUse("there is no single record in hand", try_="use ctx.batch in a batch handler")
        return self.batch[self._index]

    @property
    def attempt(self) -> int:
        """1 for the first time; the batch's attempt is that of its first record."""
        if self.batch is None:
            return 1
        place = self.batch.place(self._index if self._records else 0)
        return self._lease.attempts.get(place, 0) + (0 if self.attempt_counted else 1)

    @property
    def fencing_token(self) -> int:
        """Grows with every change of the shard's owner: a store that refuses older ones refuses zombies."""
        return self._lease.lease_epoch

    @property
    def connection(self) -> Any:
        """The sink's, inside the transaction that the position belongs to; see `streamkit.PostgresPosition`."""
        assert self.checkpointer is not None, "a context has a checkpointer before its handler runs"
        return self.checkpointer.connection

    def put(
        self, stream: str | Named, value: Any, *, key: str | None = None, headers: Headers | None = None,
        time: datetime | None = None, explicit_hash_key: int | None = None,
    ) -> None:
        """Put a record in one transaction with the position: both are there, or neither. Needs transactional=True.

        stream: a name, or a producer that has one. It is stored when the handler's batch is; nothing is to be awaited.
        Raises InvalidUse, InvalidRequest.
        """
        assert self.checkpointer is not None, "a context has a checkpointer before its handler runs"
        self.checkpointer.put(
            stream, value, key=key, headers=headers, time=time, explicit_hash_key=explicit_hash_key
        )

    def checkpoint(self, at: Record[Any] | Batch[Any] | int | None = None) -> Checkpointing:
        """Everything up to and with `at` is finished; None: up to and with what is in hand. Raises LeaseLost."""
        assert self.checkpointer is not None, "a context has a checkpointer before its handler runs"
        return self.checkpointer.checkpoint(at)

    def decide(self, gathered: Gathered, at: Record[Any] | Batch[Any] | int | None = None) -> Checkpointing:
        """As Checkpointer.decide."""
        assert self.checkpointer is not None, "a context has a checkpointer before its handler runs"
        return self.checkpointer.decide(gathered, at)

    def retry_later(self, seconds: float) -> NoReturn:
        """Give the record back; it comes again after that time, before all later ones."""
        raise RetryLater(f"asked for again in {seconds} s", seconds=seconds)

    def reject(self, reason: str) -> NoReturn:
        """No retry will help: to the dead-letter stream at once, or what on_exhausted says."""
        raise_rejected(reason)

    def pause(self, reason: str) -> NoReturn:
        """Stop at this record until an operator resumes the application."""
        raise PauseAsked(reason or "paused by the handler")

    def in_hand(self) -> Place:
        """Place of the first record not finished, while the handler runs."""
        batch = self.batch
        return (0, 0) if batch is None else batch.place(self._index)

    def covered(self) -> Place:
        """One past what a checkpoint without a position covers now."""
        batch = self.batch
        if batch is None:
            return self._lease.finished
        return batch.place(min(self._index + 1, len(batch)) if self._records else len(batch))

    def begin_batch(self, batch: Batch[Any]) -> None:
        """This batch is in hand, its first record first."""
        self._halt = self._halted or self.wanted > 0
        if self.stopping.is_set() and not self._halted:
            self.stopping = Stopping()     # the call before was asked to end, not this one
        self._index = 0
        self.batch = batch

    def takes_batches(self) -> None:
        """The driver hands over whole batches: there is no record in hand."""
        self._records = False

    def look(self, done: int) -> int:
        """Before the record with that index: the index to look at again; LATE: it must not be handed out."""
        if self.looks is None:
            return NEVER
        stride = self.looks.stride()
        return done + stride if stride else LATE

    def halt(self) -> None:
        """Stop after the record in hand."""
        self._halted = True
        self.ask_to_return()

    def ask_to_return(self) -> None:
        """The call in hand has taken too long: it may look at `stopping`."""
        self._halt = True
        self.stopping.set()

    def want(self) -> None:
        """Somebody else of the lane waits for a turn: come back after the record in hand."""
        self.wanted += 1
        self._halt = True

    def unwant(self) -> None:
        """He has it, or waits no more."""
        self.wanted -= 1

    def follow(self, track: Track) -> None:
        """What is handled next counts there."""
        self._lease = track

    @property
    def call_in_hand(self) -> tuple[int, int] | None:
        """The call of user code, and which record it is at; None while there is none."""
        return (self._calls, self._index) if self._calls & 1 else None

    @contextlib.contextmanager
    def calling(self) -> Iterator[None]:
        """Around user code, where it runs."""
        self._calls += 1
        try:
            yield
        finally:
            self._calls += 1


# ---- functions -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """A decorated function. takes: "value", "record", "data" or "batch"."""

    function: Callable[..., Any]
    name: str
    takes: str
    annotation: Any
    with_context: bool
    is_async: bool
    decoding: Decoding

    @classmethod
    def inspected(cls, function: Callable[..., Any], codec: Codec | str, names: Mapping[str, Any]) -> Handler:
        """names: local names of the place of decoration, for annotations that are text.

        Raises InvalidUse for what can never work: no parameter, too many, a generator, an unknown type.
        """
        name = getattr(function, "__name__", type(function).__name__)
        if not callable(function):
            raise InvalidUse(f"{function!r} is not a function", try_="decorate a def or an async def")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise InvalidUse(f"handler {name!r} is a generator; it would never run", try_="return instead of yield")
        target = function if inspect.isroutine(function) else type(function).__call__
        parameters = [
            parameter for parameter in inspect.signature(function).parameters.values()
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ]
        needed = [parameter for parameter in parameters if parameter.default is parameter.empty]
        if not parameters or len(needed) > 2:
            raise InvalidUse(
                f"handler {name!r} takes {len(needed)} arguments; it is called with the record, and the context",
                try_=f"write def {name}(value) or def {name}(value, ctx: Context)", handler=name,
            )
        annotation = _annotation(target, parameters[0], name, names)
        takes, inner = _taken(annotation)
        return cls(
            function=function, name=name, takes=takes, annotation=inner, with_context=len(parameters) > 1,
            is_async=inspect.iscoroutinefunction(target), decoding=_decoding(name, codec, inner),
        )


    def bounded(self, seconds: float) -> Handler:
        """The same, with calls that fail when they take longer; 0: no bound. Functions are bounded by their lane."""
        if not seconds or not self.is_async:
            return self
        function = self.function

        async def within(*arguments: Any) -> None:
            await in_time(function(*arguments), seconds)

        return replace(self, function=within)


async def in_time(call: Awaitable[Any], seconds: float) -> None:
    """The call is cancelled at the bound, and has failed then, however it ends. 0: no bound. Raises HandlerTimedOut."""
    if not seconds:
        await call
        return
    late = HandlerTimedOut(f"it took longer than {seconds:g} s and was cancelled", seconds=seconds)
    bound = asyncio.timeout(seconds)
    try:
        async with bound:
            await call
    except TimeoutError as cause:
        if bound.expired():
            raise late from cause
        raise                              # the handler's own
    if bound.expired():
        raise late


def _annotation(
    function: Callable[..., Any], parameter: inspect.Parameter, name: str, names: Mapping[str, Any]
) -> Any:
    if parameter.annotation is parameter.empty:
        return Any
    if not isinstance(parameter.annotation, str):
        return parameter.annotation
    try:
        # Only this parameter: a name that the others cannot resolve does not matter.
        alone = types.SimpleNamespace(__annotations__={"it": parameter.annotation})
        return typing.get_type_hints(alone, getattr(function, "__globals__", {}), dict(names))["it"]
    except (NameError, AttributeError, TypeError, SyntaxError) as cause:
        raise InvalidUse(
            f"handler {name!r} takes {parameter.annotation!r}; known: dict, list, str, int, float, bytes, Record, "
            f"Batch, and types that can be seen from where it stands",
            try_="correct the name, or import the type at the top of the module", handler=name,
        ) from cause


def _taken(annotation: Any) -> tuple[str, Any]:
    origin = typing.get_origin(annotation) or annotation
    arguments = typing.get_args(annotation)
    if origin is Record:
        return "record", arguments[0] if arguments else Any
    if origin is Batch:
        return "batch", arguments[0] if arguments else Any
    return ("data", bytes) if annotation is bytes else ("value", annotation)


def _decoding(name: str, codec: Codec | str, annotation: Any) -> Decoding:
    try:
        return Decoding(codec, annotation)
    except InvalidUse as cause:
        raise InvalidUse(
            f"handler {name!r}: {cause}", try_=cause.try_, handler=name
        ) from cause


class FunctionDriver:
    """A handler on the records of one lease."""

    def __init__(self, handler: Handler, context: Context, stage: Stage) -> None:
        self.whole = handler.takes == "batch"
        self.exact = not self.whole
        self.is_async = handler.is_async
        self._handler = handler
        self._context = context
        self._stage = stage
        self._arguments: tuple[Context, ...] = (context,) if handler.with_context else ()
        if self.whole:
            context.takes_batches()

    async def initialize(self) -> None:
        """Functions have nothing to prepare."""

    async def shard_ended(self) -> bool:
        """Functions know of records alone."""
        return False

    async def shutdown_requested(self) -> None:
        """Functions have nothing to put away."""

    async def lease_lost(self) -> None:
        """Functions have nothing to give up."""

    async def passed_over(self, batch: Batch[Any]) -> None:
        """The checkpoint says it."""

    def work(self, batch: Batch[Any]) -> Any:
        """The call itself: an Outcome, or a coroutine of one."""
        if self.is_async:
            return self._work_async(batch)
        with self._context.calling():
            return self._call(batch)

    async def _work_async(self, batch: Batch[Any]) -> Any:
        with self._context.calling():
            return await self._call(batch)

    def _call(self, batch: Batch[Any]) -> Any:
        handler = self._handler
        work: Callable[..., Any]
        if self.whole:
            work = whole_batch_async if handler.is_async else whole_batch
        else:
            work = each_record_async if handler.is_async else each_record
        return work(handler, self._context, batch, self._arguments)

    async def run(self, batch: Batch[Any]) -> Outcome:
        context = self._context
        context.begin_batch(batch)
        try:
            outcome: Outcome = await self._stage.call(self.work, batch)
        except Aborted as error:
            outcome = Outcome(0 if self.whole else context._index, error)
        finally:
            if not self.whole:
                context._lease.finished = max(context._lease.finished, context.in_hand())
            context.batch = None
        return outcome


def _items(handler: Handler, batch: Batch[Any]) -> Iterable[Any]:
    if handler.takes == "record":
        return batch
    return batch.values() if handler.takes == "data" else batch.decoded()


def each_record(handler: Handler, context: Context, batch: Batch[Any], arguments: tuple[Context, ...]) -> Outcome:
    """One call a record, in order, until one raises or the shard is to be given up."""
    if context._halted or (look_at := context.look(0)) == LATE:
        return Outcome(0)
    # No more of Python for a record than the call: `map` makes it, and `enumerate` counts those that came back.
    calls = map(handler.function, _items(handler, batch), *map(repeat, arguments))
    try:
        for context._index, _ in enumerate(calls, 1):
            if context._halt or (context._index >= look_at and (look_at := context.look(context._index)) == LATE):
                return Outcome(context._index)
    except Exception as error:
        return Outcome(context._index, error)
    if context._index < len(batch):        # `map` takes it for the end
        return Outcome(context._index, RuntimeError(f"handler {handler.name!r} raised StopIteration"))
    return Outcome(context._index)


async def each_record_async(
    handler: Handler, context: Context, batch: Batch[Any], arguments: tuple[Context, ...]
) -> Outcome:
    """The same for a coroutine function; the loop gets its turn now and then even if it never waits."""
    function = handler.function
    done = look_at = 0
    try:
        for item in _items(handler, batch):
            late = done >= look_at and (look_at := context.look(done)) == LATE
            if late or (context._halt and (done or context._halted)):
                break
            context._index = done
            await function(item, *arguments)
            done += 1
            if not done % _YIELD_EVERY:
                await asyncio.sleep(0)
    except Exception as error:
        context._index = done
        return Outcome(done, error)
    context._index = done
    return Outcome(done)


def whole_batch(handler: Handler, context: Context, batch: Batch[Any], arguments: tuple[Context, ...]) -> Outcome:
    """One call for all."""
    try:
        handler.function(batch, *arguments)
    except Exception as error:
        return failed_batch(batch, error)
    return Outcome(len(batch))


async def whole_batch_async(
    handler: Handler, context: Context, batch: Batch[Any], arguments: tuple[Context, ...]
) -> Outcome:
    try:
        await handler.function(batch, *arguments)
    except Exception as error:
        return failed_batch(batch, error)
    return Outcome(len(batch))


def failed_batch(batch: Batch[Any], error: Exception) -> Outcome:
    """A BatchFailure names records, the others are finished; anything else fails them all."""
    if not isinstance(error, BatchFailure) or not error.failed:
        return Outcome(0, error)
    failed = sorted({batch.index_of(record) for record in error.failed})
    if failed[0] < 0:
        return Outcome(0, error)
    return Outcome(failed[0], error.__cause__ or error, tuple(failed))


# ---- processors ------------------------------------------------------------------------------------------


class ProcessorDriver:
    """A RecordProcessor, or anything with its methods."""

    whole = True
    exact = False

    def __init__(
        self, processor: RecordProcessor, context: Context, shard: ShardContext, stages: Stages, *,
        timeout_s: float = 0.0,
    ) -> None:
        self._processor = processor
        self._timeout_s = timeout_s        # of `process`, when it is a coroutine; 0: none
        self._context = context
        context.takes_batches()
        self._shard = shard
        self._stages = stages
        self.is_async = inspect.iscoroutinefunction(getattr(processor, "process", None))

    async def _call(self, name: str, *args: Any) -> None:
        method = getattr(self._processor, name, None)
        if method is not None:
            stage = self._stages.coroutines if inspect.iscoroutinefunction(method) else self._stages.threads
            await stage.call(method, *args)

    async def initialize(self) -> None:
        await self._call("initialize", self._shard)

    async def passed_over(self, batch: Batch[Any]) -> None:
        """The checkpoint says it."""

    def work(self, batch: Batch[Any]) -> Any:
        """The call itself: an Outcome, or a coroutine of one."""
        return self._work_async(batch) if self.is_async else self._work(batch)

    def _work(self, batch: Batch[Any]) -> Outcome:
        assert self._context.checkpointer is not None, "a context has a checkpointer before its processor runs"
        try:
            with self._context.calling():
                self._processor.process(batch, self._context.checkpointer)
        except Surrendered:
            raise
        except Exception as error:
            return failed_batch(batch, error)
        return Outcome(len(batch))

    async def _work_async(self, batch: Batch[Any]) -> Outcome:
        assert self._context.checkpointer is not None, "a context has a checkpointer before its processor runs"
        try:
            with self._context.calling():
                await in_time(self._processor.process(batch, self._context.checkpointer), self._timeout_s)
        except Surrendered:
            raise
        except Exception as error:
            return failed_batch(batch, error)
        return Outcome(len(batch))

    async def run(self, batch: Batch[Any]) -> Outcome:
        self._context.begin_batch(batch)
        stages = self._stages
        try:
            outcome: Outcome = await (stages.coroutines if self.is_async else stages.threads).call(self.work, batch)
        except Aborted as error:
            outcome = Outcome(0, error)
        finally:
            self._context.batch = None
        return outcome

    async def shard_ended(self) -> bool:
        if getattr(self._processor, "shard_ended", None) is None:
            return False
        await self._call("shard_ended", self._context.checkpointer)
        return True

    async def shutdown_requested(self) -> None:
        await self._call("shutdown_requested", self._context.checkpointer)

    async def lease_lost(self) -> None:
        await self._call("lease_lost")
