"""An effect elsewhere, once for each record: an HTTP request, a payment, a mail, anything that knows a token again.

    @consumer.effect(finished=was_charged)
    def charge(orders: Batch[Order], token: str) -> None:
        post(url, orders, headers={"Idempotency-Key": token})

    range of records ──▶ announced, with its token ──▶ effect(records, token) ──▶ checkpoint
                                  │                          └── raises: again, the same records with the same token
                                  └── this worker dies: the next owner finds the announcement; finished(token), or again

The announcement is a prepared checkpoint, in the coordinator's log before the effect is asked for. So a token always
stands for the same records, whoever asks, and whoever is asked may leave out what it did under a token before. Only the
last range can be in doubt. A reset makes new tokens: what is replayed is done again. See docs/decisions/0096.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from streamkit._core.batch import Batch
from streamkit.consumer.aggregates import Place
from streamkit.consumer.checkpointer import HeldLease
from streamkit.consumer.config import ConsumerConfig
from streamkit.consumer.exactly_once import Places, UserCode
from streamkit.consumer.failure import Aborted
from streamkit.consumer.handler import Context, Handler, Outcome
from streamkit.consumer.stage import Stage
from streamkit.errors import InvalidUse, LeaseLost

log = logging.getLogger("streamkit.consumer")

Finished = Callable[[str], Any]


class _Announced(msgspec.Struct, array_like=True):
    """The state beside the prepared checkpoint, which is at the range's end."""

    token: str
    sequence: int                          # where the range begins
    sub_sequence: int


@dataclass(slots=True)
class _Range:
    start: Place
    end: Place
    token: str
    doubtful: bool                         # the effect may have been asked for


class EffectDriver:
    """`user` as an effect on the records of one lease. finished: of a token, or None: it is asked for again."""

    whole = True

    def __init__(
        self, user: UserCode, finished: Finished | None, lease: HeldLease, context: Context, stages: Places, *,
        records_max: int,
    ) -> None:
        self._user = user
        self._finished = finished
        self._lease = lease
        self._context = context
        self._records_max = records_max
        self._stage: Stage = stages.coroutines if user.is_async else stages.threads
        self._asking = stages.coroutines if inspect.iscoroutinefunction(finished) else stages.threads
        self._range = _found(lease)
        assert context.checkpointer is not None, "a context has a checkpointer before its driver is made"
        context.checkpointer.kept_by_sink = True

    async def initialize(self) -> None:
        await self._user.initialize()

    def together(self, batch: Batch[Any]) -> int:
        """How many leading records belong to a range that was announced; 1 when there is none."""
        if self._range is None:
            return 1
        count = 0
        while count < len(batch) and batch.place(count) < self._range.end:
            count += 1
        return max(1, count)

    async def run(self, batch: Batch[Any]) -> Outcome:
        if self._range is not None and batch.place(0) >= self._range.end:
            log.error("effect.records_gone stream=%s shard=%s token=%s: retention took what was announced",
                      self._lease.stream, self._lease.shard.id, self._range.token)
            self._range = None
        if self._range is None:
            count = min(len(batch), self._records_max)
            await self._announce(batch.part(0, count))
        else:
            count = self.together(batch)
        assert self._range is not None, "it is announced"
        part = batch.part(0, count)
        try:
            if await self._is_finished(self._range):
                log.info("effect.was_finished stream=%s shard=%s token=%s", self._lease.stream, self._lease.shard.id,
                         self._range.token)
                self._range = None
                return Outcome(count)
            outcome = await self._asked(part)
        except (Aborted, Exception) as error:
            if isinstance(error, LeaseLost):
                raise
            return Outcome(0, error, exact=True, together=count)
        if outcome.error is not None:
            return Outcome(0, outcome.error, exact=True, together=count)
        if outcome.done:
            self._range = None
        return outcome

    async def passed_over(self, batch: Batch[Any]) -> None:
        """The policy gave the range up: its checkpoint ends the announcement."""
        self._range = None

    async def shard_ended(self) -> bool:
        return await self._user.shard_ended()

    async def shutdown_requested(self) -> None:
        await self._user.shutdown_requested()

    async def lease_lost(self) -> None:
        await self._user.lease_lost()

    async def _is_finished(self, announced: _Range) -> bool:
        if not announced.doubtful or self._finished is None:
            return False
        return bool(await self._asking.call(self._finished, announced.token))

    async def _announce(self, part: Batch[Any]) -> None:
        start, end = part.place(0), part.place(len(part))
        lease = self._lease
        token = (f"{self._context.application}/{lease.stream}/{lease.shard.uuid.hex()}/"
                 f"{start[0]}.{start[1]}-{end[0]}.{end[1]}/{lease.grant.application_ms}-{lease.lease_epoch}")
        assert self._context.checkpointer is not None, "a context has a checkpointer before its driver runs"
        await self._context.checkpointer.announce(end, msgspec.msgpack.encode(_Announced(token, *start)))
        self._range = _Range(start, end, token, doubtful=False)

    async def _asked(self, part: Batch[Any]) -> Outcome:
        assert self._range is not None, "it is announced"
        self._range.doubtful = True
        self._context.token = self._range.token
        self._context.begin_batch(part)
        try:
            outcome: Outcome = await self._stage.call(self._user.work, part)
        finally:
            self._context.batch = None
        return outcome


def _found(lease: HeldLease) -> _Range | None:
    """What an owner before announced and did not checkpoint."""
    prepared = lease.grant.prepared
    if prepared is None:
        return None
    try:
        announced = msgspec.msgpack.decode(prepared[2], type=_Announced)
    except msgspec.MsgspecError:
        return None                        # a processor's, from another time
    return _Range((announced.sequence, announced.sub_sequence), prepared[:2], announced.token, doubtful=True)


def effect_handler(handler: Handler) -> Handler:
    """A function of (records, token) as a handler. Raises InvalidUse for one that takes no token."""
    if not handler.with_context:
        raise InvalidUse(
            f"effect {handler.name!r} takes the records alone; without the token nobody knows them again",
            try_=f"write def {handler.name}(records: Batch, token: str)", handler=handler.name,
        )
    function = handler.function
    return replace(handler, function=lambda records, context: function(records, context.token))


def check_effect(config: ConsumerConfig, *, sink: object, others: int) -> None:
    """Raises InvalidUse for what can never work."""
    refused = {
        "sink": sink is not None, "transactional": config.transactional, "ordering": config.ordering.within != "shard",
        "checkpoint": config.checkpoint != "auto",
    }  # fmt: skip
    for argument, is_wrong in refused.items():
        if is_wrong:
            raise InvalidUse(f"an effect announces its own checkpoints, one after the other: no {argument}=",
                             try_=f"leave {argument} out", argument=argument)
    if others:
        raise InvalidUse("an effect takes every record", try_="use a second application for other handlers")
