"""Transactions are decided here: one fact with the position and the outputs, or with outputs alone.

What is decided and was not reported as carried out is looked after: once it is `carry_after_ms` old, `carry_out`, which
the node plugs in, puts it into its shards. So nobody has to come back for it. Carrying out twice changes nothing: each
batch has its producer's numbers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from streamkit._core.batch import check_batch
from streamkit.errors import DataError, InvalidRequest, LimitReached, StreamkitError
from streamkit.leases import events, facts
from streamkit.leases.table import Table
from streamkit.protocol import messages
from streamkit.runtime.interfaces import Clock
from streamkit.runtime.tasks import Tasks
from streamkit.transactions.outputs import unpack

log = logging.getLogger("streamkit.broker")

CARRY_AFTER_MS = 5_000
_LEFT_BYTES_MAX = 256 << 20
_CARRIED_AT_ONCE = 16
_CARRY_S = 30.0                            # then its turn is over: others are not held up by a stream nobody can write
_REST_FIRST_MS = 1_000                     # after a failure, then twice as long each time …
_REST_MOST_MS = 60_000                     # … up to that

CarryOut = Callable[[bytes], Awaitable[None]]


class Decisions:
    """A part of the coordinator. beyond: which of the items are above what their shards hold."""

    def __init__(
        self, table: Table, clock: Clock, step: Callable[[events.Event], events.Effects],
        settled: Callable[[], Awaitable[None]], counts: dict[str, int],
        beyond: Callable[[messages.CommitTransaction, Sequence[messages.CheckpointItem]], Sequence[int]],
    ) -> None:
        self.carry_out: CarryOut | None = None
        self.carry_after_ms = CARRY_AFTER_MS
        self._table = table
        self._clock = clock
        self._step = step
        self._settled = settled
        self._counts = counts
        self._beyond = beyond
        self._carrying: set[tuple[str, bytes]] = set()
        # What is left, by key: its number, and since when it is seen here; other nodes' clocks are not believed.
        self._seen: dict[tuple[str, bytes], tuple[tuple[int, int], int]] = {}
        self._resting: dict[tuple[str, bytes], tuple[int, int]] = {}   # until when after a failure, and how long
        self._tasks = Tasks("decisions")
        self.handlers: dict[type, Callable[[Any, int], Awaitable[messages.Message]]] = {
            messages.CommitTransaction: self._commit,
            messages.CommitOutputs: self._commit_outputs,
            messages.OutputsCarriedOut: self._carried_out,
        }

    async def _commit(self, message: messages.CommitTransaction, connection_id: int) -> messages.Message:
        self._check(message.outputs)
        effects = self._step(events.Transact(
            message.application, message.item, message.outputs, self._clock.now_ms(),
            bool(self._beyond(message, (message.item,))), self._clock.monotonic_ms(),
        ))
        self._counts[effects.results[0]] += 1
        await self._settled()
        return messages.Checkpointed(effects.results)

    async def _commit_outputs(self, message: messages.CommitOutputs, connection_id: int) -> messages.Message:
        self._check(message.outputs)
        effects = self._step(events.CommitOutputs(
            message.writer, message.epoch, message.number, message.outputs, self._clock.now_ms()
        ))
        await self._settled()
        left = self._table.left.get(("", message.writer))
        mine = left is not None and left.epoch == message.epoch
        return messages.OutputsCommitted(effects.results[0], None if mine else left_to_wire(left))

    async def _carried_out(self, message: messages.OutputsCarriedOut, connection_id: int) -> messages.Message:
        self._step(events.CarriedOut(message.application, message.items))
        await self._settled()
        return messages.Done()

    def _check(self, outputs: bytes) -> None:
        # What is decided will be sent to shards by whoever finds it: it must be something that they can take.
        try:
            for stream in unpack(outputs).streams if outputs else ():
                for shard in stream.shards:
                    for batch in shard.batches:
                        check_batch(batch)
        except DataError as cause:
            raise InvalidRequest(f"the outputs cannot be carried out: {cause}", try_="upgrade this side",
                                 field="outputs", value=len(outputs)) from cause  # fmt: skip
        if self._table.left_bytes + len(outputs) > _LEFT_BYTES_MAX:
            raise LimitReached(
                f"{self._table.left_bytes} bytes of decided transactions are not in their shards yet",
                try_="look which streams cannot be written: streamkit cluster status", limit=_LEFT_BYTES_MAX,
                scope="transactions",
            )

    # ---- what nobody carried out ---------------------------------------------------------------------------

    def look(self) -> None:
        """Carry out what was left, the oldest first. Owed every second or so."""
        if self.carry_out is None:
            return
        now_ms = self._clock.monotonic_ms()
        self._resting = {key: rest for key, rest in self._resting.items() if key in self._table.left}
        before, self._seen = self._seen, {}
        for key, left in self._table.left.items():
            which = left.epoch, left.number
            seen = before.get(key)
            since_ms = seen[1] if seen is not None and seen[0] == which else now_ms
            self._seen[key] = which, since_ms
            rests = key in self._resting and self._resting[key][0] > now_ms
            is_due = since_ms + self.carry_after_ms <= now_ms and not rests
            if is_due and key not in self._carrying and len(self._carrying) < _CARRIED_AT_ONCE:
                self._carrying.add(key)
                self._tasks.start(self._carry(self.carry_out, key, left), "carry")

    async def _carry(self, carry_out: CarryOut, key: tuple[str, bytes], left: facts.Left) -> None:
        application, name = key
        try:
            await self._settled()          # what a crash might still undo must not be seen in any shard
            async with asyncio.timeout(_CARRY_S):
                await carry_out(left.outputs)
            self._step(events.CarriedOut(application, ((name, left.epoch, left.number),)))
            log.info("transaction.carried_out application=%s key=%s bytes=%d", application, name.hex(),
                     len(left.outputs))
        except (StreamkitError, TimeoutError) as error:
            rest_ms = min(2 * self._resting.get(key, (0, _REST_FIRST_MS // 2))[1], _REST_MOST_MS)
            self._resting[key] = self._clock.monotonic_ms() + rest_ms, rest_ms
            log.warning("transaction.left application=%s key=%s error=%s next_ms=%d", application, name.hex(),
                        str(error) or "not in time", rest_ms)
        finally:
            self._carrying.discard(key)

    async def close(self) -> None:
        """What is under way is left to whoever coordinates next."""
        self.carry_out = None
        await self._tasks.close()


def left_to_wire(left: facts.Left | None) -> messages.LeftOutputs | None:
    return None if left is None else messages.LeftOutputs(left.epoch, left.number, left.outputs)
