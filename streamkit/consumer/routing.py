"""Several handlers of one consumer: the first whose condition holds gets the record, else the one without.

They take records (not whole batches) and run at one place, in the order of the records, so that a shard's order is kept
whichever handler a record goes to. Each has its own annotation: a record is decoded as its handler asks for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from operator import attrgetter
from typing import Any

from streamkit._core.batch import Batch, RecordContext
from streamkit._core.conditions import NO_ROUTE, ROUTES_MAX
from streamkit.consumer.config import ConsumerConfig
from streamkit.consumer.deadline import LATE
from streamkit.consumer.failure import Unhandled
from streamkit.consumer.handler import Context, FunctionDriver, Handler, Outcome
from streamkit.consumer.stage import Stage
from streamkit.errors import InvalidUse
from streamkit.expressions.condition import Condition, Router

_YIELD_EVERY = 256                         # records of coroutine handlers between two turns of the loop
_TAKEN: dict[str, Callable[[Any], Any]] = {
    "record": lambda record: record, "value": attrgetter("value"), "data": attrgetter("data"),
}  # fmt: skip


class Handlers:
    """The decorated functions of a consumer, in the order of decoration."""

    def __init__(self, config: ConsumerConfig) -> None:
        self._config = config
        self._handlers: list[Handler] = []
        self._conditions: list[Condition | None] = []

    def __len__(self) -> int:
        return len(self._handlers)

    @property
    def are_conditional(self) -> bool:
        return any(condition is not None for condition in self._conditions)

    @property
    def first(self) -> Handler:
        return self._handlers[0]

    def add(self, handler: Handler, where: str | None) -> None:
        """Raises InvalidUse for handlers that exclude each other, InvalidQuery."""
        condition = None if where is None else Condition(where, self._config.codec)
        for other, at in zip(self._handlers, self._conditions, strict=True):
            if condition is None and at is None:
                raise InvalidUse(
                    f"{other.name!r} handles these records already",
                    try_="use a second application, or give one of them where=…", handler=handler.name,
                )
            if handler.is_async != other.is_async:
                raise InvalidUse(
                    f"{handler.name!r} and {other.name!r} would run at two places; the handlers of one consumer are "
                    f"all def, or all async def", try_="make both the same", handler=handler.name,
                )
        if len(self._handlers) == ROUTES_MAX:
            raise InvalidUse(f"a consumer has at most {ROUTES_MAX} handlers", try_="use a second application")
        if (self._handlers or condition is not None) and "batch" in (handler.takes, *(h.takes for h in self._handlers)):
            raise InvalidUse(
                f"handler {handler.name!r}: with a condition, records go to handlers one by one, not in batches",
                try_="take Record, or filter the whole consumer: Consumer(…, where=…)", handler=handler.name,
            )
        self._handlers.append(handler)
        self._conditions.append(condition)

    def driver(self, context: Context, stage: Stage) -> FunctionDriver:
        """Them, on the records of one lease."""
        if not self.are_conditional:
            return FunctionDriver(self._handlers[0].bounded(self._config.handler_timeout_seconds), context, stage)
        router = Router(self._conditions, self._config.codec)
        handlers = [handler.bounded(self._config.handler_timeout_seconds) for handler in self._handlers]
        return RoutedDriver(handlers, router, context, stage, skip=self._config.unhandled == "skip")


class RoutedDriver(FunctionDriver):
    """Handlers on the records of one lease. skip: records that none takes are passed over."""

    def __init__(self, handlers: list[Handler], router: Router, context: Context, stage: Stage, *, skip: bool) -> None:
        super().__init__(handlers[0], context, stage)
        self._handlers = handlers
        self._router = router
        self._skip = skip
        self._contexts: list[RecordContext] = []

    def _call(self, batch: Batch[Any]) -> Any:
        run = _each_async if self.is_async else _each
        return run(self, self._context, batch)

    def calls(self, batch: Batch[Any]) -> tuple[bytes, int, list[tuple[Batch[Any], Callable[..., Any]]]]:
        """Where each record goes, how many could not be decided, and a view and a call for each handler."""
        if not self._contexts:
            self._contexts = [handler.decoding.instead(batch.context) for handler in self._handlers]
        before = self._router.undecided
        routes = self._router.routes(batch)
        everything = bytes(len(batch))
        calls = [
            (batch.chosen(everything, context), _call(handler, self._context))
            for handler, context in zip(self._handlers, self._contexts, strict=True)
        ]
        return routes, self._router.undecided - before, calls

    def untaken(self) -> Unhandled | None:
        """The error of a record that no handler takes; None when it is passed over."""
        if self._skip:
            return None
        return Unhandled(
            "no handler's condition holds for it", try_='decorate a handler without where, or pass unhandled="skip"'
        )


def _call(handler: Handler, context: Context) -> Callable[[Any], Any]:
    function, taken = handler.function, _TAKEN[handler.takes]
    if handler.with_context:
        return lambda record: function(taken(record), context)
    return lambda record: function(taken(record))


def _finished(routes: bytes, undecided: int, outcome: Outcome) -> Outcome:
    return replace(outcome, unhandled=routes[: outcome.done].count(NO_ROUTE), undecided=undecided)


def _steps(driver: RoutedDriver, context: Context, routes: bytes, calls: list[Any]) -> Iterator[tuple[Any, Any]]:
    # (call, record) one after the other; the context knows which is in hand. Raises Unhandled.
    look_at = 0
    for done, route in enumerate(routes):
        context._index = done
        late = done >= look_at and (look_at := context.look(done)) == LATE
        if late or (context._halt and (done or context._halted)):
            return
        if route != NO_ROUTE:
            context.batch, call = calls[route]
            yield call, context.batch[done]
        elif (error := driver.untaken()) is not None:
            raise error
    context._index = len(routes)


def _each(driver: RoutedDriver, context: Context, batch: Batch[Any]) -> Outcome:
    routes, undecided, calls = driver.calls(batch)
    try:
        for call, record in _steps(driver, context, routes, calls):
            call(record)
    except Exception as error:
        return _finished(routes, undecided, Outcome(context._index, error))
    return _finished(routes, undecided, Outcome(context._index))


async def _each_async(driver: RoutedDriver, context: Context, batch: Batch[Any]) -> Outcome:
    routes, undecided, calls = driver.calls(batch)
    called = 0
    try:
        for call, record in _steps(driver, context, routes, calls):
            await call(record)
            called += 1
            if not called % _YIELD_EVERY:
                await asyncio.sleep(0)
    except Exception as error:
        return _finished(routes, undecided, Outcome(context._index, error))
    return _finished(routes, undecided, Outcome(context._index))
