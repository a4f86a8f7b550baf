"""Batches ahead of the handler: long polls in a pipeline, under one byte budget for the whole worker.

A shard that holds nothing may always fetch a little, so that none starves; the others share what the budget leaves.
Bytes count from arrival until the batch is finished, before and after decompression; what is asked for counts too,
above that little, scaled by how much the shard's last batches unpacked to. A broken connection is waited out here, and
a leader that moved is looked for; nobody above notices but for the time it takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from streamkit._core.batch import Batch, RecordContext, control_batch, read_header, stamped
from streamkit.client.client import AsyncClient
from streamkit.errors import SequenceTrimmed, StreamkitError, Throttled, TimedOut, Unavailable
from streamkit.expressions.condition import Condition
from streamkit.model.shard import Shard
from streamkit.protocol.frames import Fetched
from streamkit.runtime.backoff import Backoff

log = logging.getLogger("streamkit.consumer")

_FETCH_BYTES_MIN = 64 * 1024               # what a shard may always ask for
_TRIES_QUIET = 3                           # a leader that moves is no news; more failures in a row are
_RATIO_FIRST = 2.0                         # held bytes for one fetched byte, before any was seen


class Budget:
    """Bytes fetched and not finished, of all shards of a worker."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.used_bytes = 0
        self.asked_bytes = 0
        self._waiters: deque[asyncio.Future[None]] = deque()

    def take(self, count: int) -> None:
        self.used_bytes += count

    def give_back(self, count: int) -> None:
        self.used_bytes -= count
        assert self.used_bytes >= 0, "what is given back was taken"
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                break

    @property
    def left_bytes(self) -> int:
        """What is neither held nor on its way; below 0 when shards that held nothing took their little."""
        return self.bytes_max - self.used_bytes - self.asked_bytes

    async def room_for(self, count: int) -> None:
        """Until `count` more bytes fit."""
        while self.left_bytes < count and self.used_bytes:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def wake(self) -> None:
        """Let the next waiter look again: the one before it did not use its turn."""
        self.give_back(0)


def held_bytes(batch: Batch[Any]) -> int:
    """What a batch costs while it is held: as it came, and unpacked when that is another copy."""
    return batch.batch_bytes + (batch.raw_bytes if batch.raw_bytes > batch.batch_bytes else 0)


class Fetcher:
    """One shard, from `start` on. Run it as a task; take batches with `next`."""

    def __init__(
        self, client: AsyncClient, shard: Shard, context: RecordContext, start: int, budget: Budget, *,
        application: str = "", session: int = 0, lease_epoch: int = 0, bytes_max: int = 4 << 20, wait_ms: int = 500,
        records_lost_ok: bool = True, where: Condition | None = None, on_left_out: Callable[[int], None] | None = None,
        fan_out: bool = False,
    ) -> None:
        """where: batches in which nothing matches may be left out at the broker; on_left_out: with how many records.

        fan_out: batches are pushed as they are committed, where the broker can; else each is asked for.
        """
        self.position = start              # where the next fetch begins
        self.high_watermark = 0
        self.lost_to_retention = 0
        self.throttled = 0                 # fetches that were refused for now
        self._client = client
        self._shard = shard
        self._context = context
        self._budget = budget
        self._application = application
        self._session = session
        self._lease_epoch = lease_epoch
        self._bytes_max = bytes_max
        self._wait_ms = wait_ms
        self._records_lost_ok = records_lost_ok
        self._ask_bytes = min(1 << 20, bytes_max)
        self._ratio = _RATIO_FIRST
        self._queue: deque[Batch[Any]] = deque()
        self._held_bytes = 0
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._failed: Exception | None = None
        self._seeks = 0
        # A codec that is an object is known to this process alone.
        self._condition: dict[str, str] = {}
        if where is not None and isinstance(where.codec, str):
            self._condition = {"where": where.text, "codec": where.codec}
        self._on_left_out = on_left_out
        self._fan_out = fan_out

    def seek(self, sequence: int) -> None:
        """Fetch from there instead; before any batch was taken."""
        self._seeks += 1
        self._queue.clear()
        self._give_back(self._held_bytes)
        self.position = sequence

    async def run(self) -> None:
        """Fetch until cancelled, or until an error that waiting does not cure; `next` raises that one."""
        backoff = Backoff(self._client.runtime.random, 20, 1_000)
        while self._failed is None:
            await self._wait_for_room()
            try:
                await (self._follow(backoff) if self._fan_out else self._fetch())
                backoff.reset()
            except (Unavailable, TimedOut, Throttled) as error:
                self.throttled += isinstance(error, Throttled)
                log.log(logging.WARNING if backoff.tries == _TRIES_QUIET else logging.DEBUG,
                        "fetch.retrying stream=%s shard=%s error=%s", self._context.stream, self._shard.id, error)
                with contextlib.suppress(StreamkitError):      # the fetch itself says what is wrong for good
                    await self._client.find_leader(self._shard, self._context.stream)
                await asyncio.sleep(backoff.next_ms() / 1000)
            except SequenceTrimmed as error:
                self._go_on_after_retention(error)
            except Exception as error:     # ours too: whoever waits for batches is told, instead of waiting for ever
                self._failed = error
        self._arrived.set()

    async def next(self) -> Batch[Any]:
        """The next batch, in order; may be a control batch. Raises what ended `run`."""
        while not self._queue:
            if self._failed is not None:
                raise self._failed
            self._arrived.clear()
            await self._arrived.wait()
        return self._queue.popleft()

    def next_nowait(self) -> Batch[Any] | None:
        return self._queue.popleft() if self._queue else None

    def finished(self, batch: Batch[Any]) -> None:
        """The batch is done with: its bytes may be used for others."""
        self._give_back(held_bytes(batch))

    def close(self) -> None:
        """Whatever is still held is given back; after the task has ended."""
        self._queue.clear()
        self._give_back(self._held_bytes)

    def _give_back(self, count: int) -> None:
        self._held_bytes -= count
        self._budget.give_back(count)
        self._room.set()

    async def _wait_for_room(self) -> None:
        # A shard with nothing in hand fetches at once. Otherwise it waits for the budget, or for its own last batch.
        while self._held_bytes and self._budget.left_bytes < (wanted := self._wanted_bytes()):
            self._room.clear()
            room = asyncio.ensure_future(self._budget.room_for(wanted))
            own = asyncio.ensure_future(self._room.wait())
            try:
                await asyncio.wait([room, own], return_when=asyncio.FIRST_COMPLETED)
            finally:
                room.cancel()
                own.cancel()
                self._budget.wake()

    def _wanted_bytes(self) -> int:
        # Once unpacked, and never more than could ever fit.
        return min(int(self._ask_bytes * self._ratio), self._budget.bytes_max)

    async def _fetch(self) -> None:
        budget = self._budget
        room = int(budget.left_bytes / self._ratio)
        ask_bytes = max(min(self._ask_bytes, room), int(_FETCH_BYTES_MIN / self._ratio))
        asked_bytes = max(0, int(ask_bytes * self._ratio) - _FETCH_BYTES_MIN)
        budget.asked_bytes += asked_bytes
        seeks = self._seeks
        try:
            fetched = await self._client.fetch(
                self._shard, self.position, bytes_max=ask_bytes, wait_ms=self._wait_ms,
                application=self._application, session=self._session, lease_epoch=self._lease_epoch,
                **self._condition,
            )
        finally:
            budget.asked_bytes -= asked_bytes
            budget.wake()
        if seeks != self._seeks:
            return                         # records from where nobody reads any more
        self._take(fetched, ask_bytes)

    async def _follow(self, backoff: Backoff) -> None:
        """Take what is pushed until it ends. Credit is what the budget leaves, and never more than bytes_max."""
        pushed: deque[Any] = deque()

        def on_push(answer: Any) -> None:
            pushed.append(answer)
            self._room.set()

        open_bytes = self._credit(0)       # credit that the broker has not used
        seeks = self._seeks
        give = await self._client.subscribe(
            self._shard, self.position, on_push, credit_bytes=open_bytes, application=self._application,
            session=self._session, lease_epoch=self._lease_epoch, **self._condition,
        )
        if give is None:
            self._fan_out = False
            return
        asked_bytes = 0                    # what the open credit counts for in the budget
        try:
            while seeks == self._seeks:
                while pushed:
                    answer = pushed.popleft()
                    if isinstance(answer, StreamkitError):
                        raise answer
                    open_bytes -= sum(map(len, answer.batches))
                    self._take(answer, self._ask_bytes)
                    backoff.reset()
                if more := self._credit(open_bytes):
                    open_bytes += more
                    give(more)
                self._budget.asked_bytes -= asked_bytes
                asked_bytes = max(0, int(open_bytes * self._ratio) - _FETCH_BYTES_MIN)
                self._budget.asked_bytes += asked_bytes
                self._room.clear()
                await self._room.wait()
        finally:
            give(0)
            self._budget.asked_bytes -= asked_bytes
            self._budget.wake()

    def _credit(self, open_bytes: int) -> int:
        """How much more may come now, beside what may come already."""
        window = self._bytes_max - self._held_bytes
        if 2 * open_bytes > window:
            return 0                       # given in large pieces
        more = min(window - open_bytes, int(self._budget.left_bytes / self._ratio))
        least = 0 if self._held_bytes or open_bytes > 0 else _FETCH_BYTES_MIN
        return max(more, least - open_bytes if least else 0, 0)

    def _take(self, fetched: Fetched, ask_bytes: int) -> None:
        self.high_watermark = fetched.high_watermark
        arrived_bytes = 0
        left_out = False
        held_before = self._held_bytes
        for buffer in fetched.batches:
            batch: Batch[Any] = Batch(buffer, self._context, self.position)
            if batch.base_sequence > self.position:
                left_out = True
                self._left_out(batch.base_sequence)
            if batch.end_sequence <= self.position:
                continue
            self._hold(batch)
            arrived_bytes += batch.batch_bytes
        if fetched.next_sequence > self.position:
            left_out = True
            self._left_out(fetched.next_sequence)
            self._hold(self._marker())
        if self._queue:
            self._arrived.set()
        if arrived_bytes:
            self._ratio = max(1.0, (self._held_bytes - held_before) / arrived_bytes)
        if 2 * arrived_bytes > ask_bytes:
            self._ask_bytes = min(2 * self._ask_bytes, self._bytes_max)
        elif 8 * arrived_bytes < ask_bytes and not left_out:
            self._ask_bytes = max(self._ask_bytes // 2, min(_FETCH_BYTES_MIN, self._bytes_max))

    def _hold(self, batch: Batch[Any]) -> None:
        self.position = batch.end_sequence
        self._queue.append(batch)
        size = held_bytes(batch)
        self._held_bytes += size
        self._budget.take(size)

    def _left_out(self, end: int) -> None:
        assert self._condition, "a fetch without a condition leaves no record out"
        if self._on_left_out is not None:
            self._on_left_out(end - self.position)
        self.position = end

    def _marker(self) -> Batch[Any]:
        """A control batch that ends where reading goes on: whoever takes it knows that nothing before it is to come."""
        control = control_batch("epoch_start")
        at = self.position - 1
        whole = stamped(control, flags=read_header(control).flags, base_sequence=at, shard_uuid=self._shard.uuid)
        return Batch(whole, self._context, at)

    def _go_on_after_retention(self, error: SequenceTrimmed) -> None:
        log_start = int(error.facts.get("log_start", 0))
        if not self._records_lost_ok or log_start <= self.position:
            self._failed = error
            return
        lost = log_start - self.position
        self.lost_to_retention += lost
        self.position = log_start
        log.error("records.lost_to_retention application=%s stream=%s shard=%s records=%d", self._application,
                  self._context.stream, self._shard.id, lost)
