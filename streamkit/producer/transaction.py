"""producer.transaction(): records for any shards of any streams, all of them or none, with a position or without.

    async with producer.transaction() as tx:
        tx.put({"id": 1}, key="a")
        tx.put({"id": 1, "of": "a"}, stream="by-id", key="1")
        tx.commit_positions(ctx, batch)        # with a consumer's lease; else the producer's name and epoch decide

The block gathers; its end decides, and sends what was decided; leaving it by an exception aborts. `Writer` is the
producer's, on its event loop: one transaction at a time, numbered, so that a commit without an answer is asked for
again until it is decided or void for good. A named producer shuts out whoever had the name before, and first carries
out what that one had decided.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime
from types import TracebackType
from typing import Any, Protocol

from streamkit.client.client import AsyncClient
from streamkit.errors import (
    InvalidRequest,
    InvalidUse,
    LimitReached,
    OutcomeUnknown,
    ProducerFenced,
    StreamkitError,
    TimedOut,
    TransactionAborted,
    Unavailable,
)
from streamkit.model.codec import Codec
from streamkit.model.entry import Headers
from streamkit.producer.naming import Name
from streamkit.protocol.messages import CommitOutputs, OutputsCarriedOut, OutputsCommitted, ProducerGiven
from streamkit.runtime.backoff import Backoff
from streamkit.runtime.tasks import wait_out
from streamkit.transactions.carrying import carry_out
from streamkit.transactions.lineage import Gathered, Lineage, packed
from streamkit.transactions.outputs import Outputs, unpack

_log = logging.getLogger("streamkit.producer")

TIMEOUT_S = 60.0
_SETTLE_S = 30.0                           # past its time-out, so long is asked whether a commit went through


class Positions(Protocol):
    """Of a consumer's lease, as far as a transaction looks at it: its Context, or its Checkpointer."""

    def decide(self, gathered: Gathered, at: Any) -> Deciding: ...


class Deciding(Protocol):
    def __await__(self) -> Any: ...
    def result(self, timeout_s: float | None = None) -> None: ...


class Writer:
    """Decides and carries out, one transaction after the other."""

    def __init__(
        self, client: AsyncClient, name: Name | None, identity: Callable[[], Awaitable[ProducerGiven]]
    ) -> None:
        """identity: the producer's own, whose epoch says who has the name."""
        self.busy = asyncio.Lock()
        self._client = client
        self._name = name
        self._identity = identity
        self._shut_out: ProducerFenced | None = None
        self._key = b""
        self._epoch = self._number = 0
        self._open = False
        self._doubt: Outputs | None = None             # sent under `_number`, and never answered
        self._lineage = Lineage(client)
        self._carrying: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Raises ProducerFenced, and whatever asking raises."""
        if self._shut_out is not None:
            raise self._shut_out
        if not self._open:
            await self._take_up()
            self._open = True
        if self._doubt is not None:
            try:
                await self._settle_doubt(self._doubt)
            except TransactionAborted:
                return                     # that one is void: nothing is in this one's way
            except OutcomeUnknown:
                if self._shut_out is not None:
                    raise self._shut_out from None
                raise

    async def _take_up(self) -> None:
        if self._name is None:
            given = await self._client.new_producer()
            self._key, self._epoch = b"\0" + given.producer_id.to_bytes(8, "big"), 0
        else:
            self._key, self._epoch = self._name.name.encode(), (await self._identity()).producer_epoch
        answer = await self._ask(0, b"")
        if answer.result == "fenced":
            self._shut_out = self._fenced()
            raise self._shut_out
        if (left := answer.left) is not None:
            await carry_out(self._client, unpack(left.outputs))
            await self._client.call(OutputsCarriedOut("", ((self._key, left.epoch, left.number),)))

    async def _ask(self, number: int, outputs: bytes) -> OutputsCommitted:
        answer = await self._client.call(CommitOutputs(self._key, self._epoch, number, outputs))
        assert isinstance(answer, OutputsCommitted), "a commit is answered with its result"
        return answer

    async def commit(self, gathered: Gathered, left_s: float, stored_s: float) -> None:
        """Decided within `left_s`, or not at all; then stored, or on its way after `stored_s`.

        Raises TransactionAborted, TransactionTooLarge, ProducerFenced, OutcomeUnknown, and whatever sealing raises.
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + left_s
        try:
            async with asyncio.timeout_at(deadline_s):
                await self._carried()
        except TimeoutError:
            raise timed_out() from None
        outputs = await self._lineage.seal(gathered)
        data = packed(outputs)
        if loop.time() >= deadline_s:
            raise timed_out()
        self._number += 1
        self._doubt = outputs
        result = await self._asked_until(deadline_s, self._number, data)
        if result is None:
            await self._settle_doubt(outputs)
        else:
            self._conclude(outputs, *result)
        assert self._carrying is not None, "what is decided is carried out"
        done, _ = await asyncio.wait([self._carrying], timeout=stored_s)
        if done and (error := self._carrying.exception()) is not None:
            _log.error("transaction.not_carried_out error=%s", error)

    async def _settle_doubt(self, outputs: Outputs) -> None:
        # Without outputs the number is used up: whatever comes late decides nothing.
        deadline_s = asyncio.get_running_loop().time() + _SETTLE_S
        result = await self._asked_until(deadline_s, self._number, b"", in_doubt=True)
        if result is None:
            raise self._unknown()
        self._conclude(outputs, result[0], in_doubt=True)

    async def _asked_until(
        self, deadline_s: float, number: int, data: bytes, *, in_doubt: bool = False
    ) -> tuple[str, bool] | None:
        """(the result, whether an earlier try may have been decided); None: nobody said what became of it."""
        loop = asyncio.get_running_loop()
        backoff = Backoff(self._client.runtime.random, 20, 1_000)
        while loop.time() < deadline_s:
            try:
                return (await self._ask(number, data)).result, in_doubt
            except (Unavailable, TimedOut) as error:
                in_doubt = in_doubt or bool(error.facts.get("sent", True))
                _log.info("transaction.retrying error=%s", error)
                await asyncio.sleep(backoff.next_ms() / 1000)
            except (LimitReached, InvalidRequest):
                if in_doubt:
                    return None            # this try was refused, an earlier one may have been decided
                self._doubt = None         # refused before anything was written down
                raise
            except StreamkitError:
                return None                # perhaps after it was written down: to be settled
        return None

    def _conclude(self, outputs: Outputs, result: str, in_doubt: bool) -> None:
        self._doubt = None
        if result == "ok":
            self._lineage.decided(outputs)
            self._carrying = asyncio.get_running_loop().create_task(self._lineage.carry_out(outputs))
        elif result == "fenced":
            self._shut_out = self._fenced()
            raise self._unknown() if in_doubt else self._shut_out
        else:
            raise timed_out()

    async def _carried(self) -> None:
        if self._carrying is not None:
            await asyncio.shield(self._carrying)       # raises what no repeat cures: nothing may overtake it
            self._carrying = None

    async def close(self, timeout_s: float) -> None:
        """What was decided is stored and told, if that can be in time; else others do it."""
        if self._carrying is not None:
            await asyncio.wait([self._carrying], timeout=timeout_s)
            if self._carrying.done() and self._carrying.exception() is None:
                with contextlib.suppress(StreamkitError):
                    await self._client.call(OutputsCarriedOut("", ((self._key, self._epoch, self._number),)))
            else:
                self._carrying.cancel()
                await wait_out([self._carrying])

    def _fenced(self) -> ProducerFenced:
        name = self._name.name if self._name is not None else ""
        return ProducerFenced(f'the name "{name}" was opened by another producer since; nothing was decided',
                              try_="let one of the two go", name=name, epoch=self._epoch)  # fmt: skip

    def _unknown(self) -> OutcomeUnknown:
        return OutcomeUnknown(
            "whether the transaction is decided is not known: nobody who coordinates answered",
            try_="begin the next one: it settles this one first", sent=True, timeout_ms=int(_SETTLE_S * 1000),
        )


def timed_out() -> TransactionAborted:
    return TransactionAborted("the transaction was not decided in time, and is void", try_="begin it again",
                              reason="timeout")  # fmt: skip


class Transaction:
    """Records of one transaction. put: as the producer's, but there is nothing to wait for. One thread at a time."""

    def __init__(self, stream: str | None, codec: Codec, timeout_s: float, now_s: Callable[[], float]) -> None:
        self.gathered = Gathered(codec)
        self.positions: tuple[Positions, Any] | None = None
        self._stream = stream
        self._now_s = now_s
        self._deadline_s = now_s() + timeout_s
        self._over = False

    def put(
        self, value: object, *, key: str | None = None, stream: str | None = None, headers: Headers | None = None,
        time: datetime | None = None, explicit_hash_key: int | None = None,
    ) -> None:
        """Gather one record. Raises InvalidUse, InvalidRequest."""
        self._check_open()
        name = stream or self._stream
        if name is None:
            raise InvalidUse("no stream was named", try_="Producer(stream) or put(…, stream=…)", argument="stream")
        self.gathered.put(name, value, key, headers, time, explicit_hash_key)

    def commit_positions(self, ctx: Positions, at: Any = None) -> None:
        """Checkpoint that lease there when the block ends: both, or neither; the lease's epoch decides.

        ctx: a handler's Context, or a processor's Checkpointer, with checkpoint="manual". at: as for `ctx.checkpoint`.
        """
        self._check_open()
        if self.positions is not None:
            raise InvalidUse("a transaction has the position of one lease", try_="begin another one", argument="ctx")
        self.positions = ctx, at

    def left_s(self) -> float:
        """Seconds in which it may still be decided. Raises TransactionAborted."""
        left_s = self._deadline_s - self._now_s()
        if left_s <= 0:
            raise timed_out()
        return left_s

    def end(self) -> None:
        self._over = True

    def _check_open(self) -> None:
        if self._over:
            raise InvalidUse("the transaction is over", try_="begin another one", argument="transaction")


class AsyncTransactionBlock:
    """`async with producer.transaction() as tx`."""

    def __init__(self, writer: Callable[[], Writer], make: Callable[[], Transaction], stored_s: float) -> None:
        self._find_writer = writer
        self._make = make
        self._stored_s = stored_s
        self._writer: Writer
        self._transaction: Transaction

    async def __aenter__(self) -> Transaction:
        self._writer = self._find_writer()
        await self._writer.busy.acquire()
        try:
            self._transaction = self._make()
        except BaseException:
            self._writer.busy.release()
            raise
        return self._transaction

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._transaction.end()
        try:
            if error is None:
                await self._commit(self._transaction)
        finally:
            self._transaction.gathered.clear()
            self._writer.busy.release()

    async def _commit(self, transaction: Transaction) -> None:
        left_s = transaction.left_s()
        if transaction.positions is not None:
            positions, at = transaction.positions
            await positions.decide(transaction.gathered, at)
        elif transaction.gathered:
            try:
                async with asyncio.timeout(left_s):
                    await self._writer.begin()
            except TimeoutError:
                raise timed_out() from None
            await self._writer.commit(transaction.gathered, transaction.left_s(), self._stored_s)


class TransactionBlock:
    """`with producer.transaction() as tx`."""

    def __init__(self, block: AsyncTransactionBlock, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._block = block
        self._run = run

    def __enter__(self) -> Transaction:
        transaction: Transaction = self._run(self._block.__aenter__())
        return transaction

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._block.__aexit__(kind, error, trace))
