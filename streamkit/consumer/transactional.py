"""What a handler puts into other streams and how far it came, in one transaction: exactly once, from stream to stream.

    consumer = Consumer("orders", application="billing", start="trim_horizon", transactional=True)

    @consumer.handler
    def bill(order: dict, ctx: Context) -> None:
        ctx.put("bills", {"order": order["id"], "total": order["total"]}, key=order["customer"])

    handler ──▶ sealed, numbered ──▶ decided: outputs and position, one entry of the coordinator's log ──▶ carried out
       └── raises: nothing was decided; what came before the failing record is handled again by itself

The outputs are sent while the next batch is handled, and are in their shards before the next transaction is decided. A
worker that dies in between leaves them to the next owner of the lease, who carries them out before it handles anything,
or to the coordinator's node. A worker that lost its lease and does not know is refused by its lease epoch. See
docs/decisions/0084.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace
from typing import Any, Protocol

from streamkit._core.batch import Batch
from streamkit.client.client import AsyncClient
from streamkit.consumer.aggregates import Place
from streamkit.consumer.checkpointer import CheckpointWriter, HeldLease
from streamkit.consumer.exactly_once import Places, UserCode
from streamkit.consumer.failure import Aborted, DeadRecord, RetryLater
from streamkit.consumer.handler import Context, Outcome
from streamkit.consumer.stage import Stage
from streamkit.errors import (
    LeaseLost,
    LimitReached,
    StreamkitError,
    StreamNotFound,
    Throttled,
    TimedOut,
    TransactionTooLarge,
    Unavailable,
)
from streamkit.model.codec import BYTES
from streamkit.model.entry import time_to_ms
from streamkit.runtime.backoff import Backoff
from streamkit.runtime.interfaces import Random
from streamkit.runtime.tasks import wait_out
from streamkit.transactions.carrying import carry_out
from streamkit.transactions.lineage import Gathered, Lineage, Put, packed
from streamkit.transactions.outputs import Outputs, unpack

log = logging.getLogger("streamkit.consumer")

_TELL_S = 1.0                              # nothing more came: the coordinator is told that the last outputs are stored
_PASSING = (Unavailable, TimedOut, Throttled, LimitReached, StreamNotFound)


class Deciding(Protocol):
    """Who decides what a driver gathered."""

    @property
    def random(self) -> Random: ...
    async def commit(self, gathered: Gathered, place: Place) -> None: ...


class LeaseTransactions:
    """One lease's transactions, one after the other. On the worker's loop."""

    def __init__(self, client: AsyncClient, writer: CheckpointWriter, lease: HeldLease) -> None:
        self.client = client
        self.random = client.runtime.random
        self.lease = lease
        self._writer = writer
        self._lineage = Lineage(client)
        self._taken_over = False
        self._carrying: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None

    async def take_over(self) -> None:
        """What the owners before decided and left is carried out. Raises what no repeat can cure."""
        left = self.lease.grant.outputs
        if left is None or self._taken_over:
            return
        await carry_out(self.client, unpack(left.outputs))
        await self._writer.carried_out(self.lease, left.epoch, left.number)
        self._taken_over = True
        log.info("transaction.taken_over stream=%s shard=%s epoch=%d bytes=%d", self.lease.stream,
                 self.lease.shard.id, left.epoch, len(left.outputs))

    async def commit(self, gathered: Gathered, place: Place) -> None:
        """Returns when both are decided. Raises LeaseLost, TransactionTooLarge, and whatever sealing raises."""
        await self.settle()
        outputs = await self._lineage.seal(gathered)
        await self._writer.transact(self.lease, place, packed(outputs))
        self._lineage.decided(outputs)
        self._carrying = asyncio.get_running_loop().create_task(self._carry(outputs))

    async def _carry(self, outputs: Outputs) -> None:
        await self._lineage.carry_out(outputs)
        self._telling = asyncio.get_running_loop().create_task(self._tell(_TELL_S))

    async def _tell(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        decided = self.lease.decided
        assert decided is not None, "what was carried out was decided"
        with contextlib.suppress(StreamkitError):          # then it is carried out once more
            await self._writer.carried_out(self.lease, *decided)

    async def settle(self) -> None:
        """The last outputs are in their shards. Raises LeaseLost when they cannot be: the next owner tries again."""
        carrying = self._carrying
        if carrying is not None:
            try:
                await asyncio.shield(carrying)
            except StreamkitError as error:
                log.error("transaction.not_carried_out stream=%s shard=%s error=%s", self.lease.stream,
                          self.lease.shard.id, error)
                self.lease.lose()
                raise self.lease.lease_lost() from error
            self._carrying = None
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None

    async def finish(self) -> None:
        """The lease goes in order: nothing is left to others."""
        was_carrying = self._carrying is not None or self._telling is not None
        await self.settle()
        if was_carrying:
            await self._tell(0)

    async def end(self) -> None:
        """Nothing of it runs any more."""
        running = [task for task in (self._carrying, self._telling) if task is not None]
        for task in running:
            task.cancel()
        await wait_out(running)
        for task in running:
            if not task.cancelled() and (error := task.exception()) is not None:
                log.info("transaction.left stream=%s shard=%s error=%s", self.lease.stream, self.lease.shard.id, error)
        if self._telling is not None:                  # begun by the last step of the other
            self._telling.cancel()
            await wait_out([self._telling])


class TransactionDriver:
    """`user` inside transactions of one lease. dead_letter: the stream that takes what the policy gives up."""

    whole = True

    def __init__(
        self, user: UserCode, lease: HeldLease, context: Context, stages: Places, dead_letter: str | None,
        transactions: Deciding | None = None,
    ) -> None:
        """transactions: who decides, when that is not the worker."""
        decides = transactions or context.transactions
        assert decides is not None, "a worker's context knows who decides"
        client = context.transactions.client if context.transactions is not None else None
        self.dead_letters = _DeadLetters(client, self, dead_letter) if dead_letter and client is not None else None
        self._user = user
        self._lease = lease
        self._context = context
        self._transactions: Deciding = decides
        assert context.checkpointer is not None, "a context has a checkpointer before its driver is made"
        context.checkpointer.kept_by_sink = True
        self._gathered = context.checkpointer.gathered = Gathered()
        self._backoff = Backoff(decides.random, 100, 10_000)
        self._stage: Stage = stages.coroutines if user.is_async else stages.threads

    async def initialize(self) -> None:
        await self._user.initialize()

    async def run(self, batch: Batch[Any]) -> Outcome:
        try:
            outcome = await self._transacted(batch)
        except Aborted as error:
            return Outcome(0, error)
        except LeaseLost:
            raise
        except _PASSING as error:
            wait_s = self._backoff.next_ms() / 1000
            log.warning("transaction.retrying stream=%s shard=%s error=%s next_s=%.1f", self._lease.stream,
                        self._lease.shard.id, error, wait_s)
            return Outcome(0, RetryLater(str(error), seconds=wait_s), exact=True)
        finally:
            self._gathered.clear()
        self._backoff.reset()
        return outcome

    async def _transacted(self, batch: Batch[Any]) -> Outcome:
        outcome = await self._one(batch)
        if outcome.error is not None and self._user.exact and outcome.done:
            # Aborted with the record that failed: these are handled again, and leave it alone at the head.
            failed, outcome = outcome, await self._one(batch.part(0, outcome.done))
            if outcome.error is None and outcome.done == failed.done:
                return replace(outcome, error=failed.error, exact=True)
        if outcome.error is not None:
            return Outcome(0, outcome.error, exact=self._user.exact and not outcome.done)
        return outcome

    async def _one(self, batch: Batch[Any]) -> Outcome:
        self._gathered.clear()
        self._context.begin_batch(batch)
        try:
            outcome: Outcome = await self._stage.call(self._user.work, batch)
        finally:
            self._context.batch = None
        if outcome.error is not None or not outcome.done or not self._gathered:
            return outcome                 # without outputs the position follows by itself
        try:
            await self._transactions.commit(self._gathered, batch.place(outcome.done))
        except TransactionTooLarge as error:
            if outcome.done == 1:
                return Outcome(0, error)
            log.info("transaction.halved stream=%s shard=%s records=%d error=%s", self._lease.stream,
                     self._lease.shard.id, outcome.done, error)
            return await self._one(batch.part(0, (outcome.done + 1) // 2))
        return outcome

    async def passed_over(self, batch: Batch[Any]) -> None:
        """The dead letter of a record, if it has one, is decided with the position past it."""
        try:
            while self._gathered:
                try:
                    await self._transactions.commit(self._gathered, batch.place(len(batch)))
                    return
                except LeaseLost:
                    raise
                except _PASSING as error:
                    wait_s = self._backoff.next_ms() / 1000
                    log.warning("dead_letter.retrying stream=%s shard=%s error=%s", self._lease.stream,
                                self._lease.shard.id, error)
                    await asyncio.sleep(wait_s)
                    if self._lease.lost:
                        raise self._lease.lease_lost() from error
        finally:
            self._gathered.clear()

    def gather(self, stream: str, put: Put) -> None:
        self._gathered.clear()
        self._gathered.add(stream, put)

    async def shard_ended(self) -> bool:
        return await self._user.shard_ended()

    async def shutdown_requested(self) -> None:
        await self._user.shutdown_requested()

    async def lease_lost(self) -> None:
        await self._user.lease_lost()


class _DeadLetters:
    """Kept until the record is passed over: then the letter and the position are decided together."""

    def __init__(self, client: AsyncClient, driver: TransactionDriver, stream: str) -> None:
        self._client = client
        self._driver = driver
        self._stream = stream

    async def put(self, dead: DeadRecord) -> None:
        """Raises what no repeat can cure: StreamNotFound."""
        record = dead.record
        await self._client.stream(self._stream)
        self._driver.gather(self._stream, Put(
            record.key, record.data, dead.headers(), time_to_ms(record.time), record.hash_key, BYTES
        ))

