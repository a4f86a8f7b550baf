"""How far a shard is finished, told to the coordinator: coalesced, numbered, repeated until it is answered.

`HeldLease` is what this worker knows of a lease it owns. `CheckpointWriter` gathers the positions of all held leases
into one message at a time; a message that was not answered is sent again unchanged, so that its numbers are
recognised. `Checkpointer` is what user code sees of it, from any thread.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Generator, Iterator
from datetime import datetime
from typing import Any, Protocol

from streamkit._core.batch import Batch, Record
from streamkit.consumer.aggregates import Place, attempts_from_wire, attempts_to_wire
from streamkit.errors import InvalidUse, LeaseLost, StreamkitError, TimedOut, Unavailable
from streamkit.model.entry import Headers
from streamkit.model.shard import Shard
from streamkit.protocol.messages import (
    Checkpoint,
    Checkpointed,
    CheckpointItem,
    CommitTransaction,
    LeaseGrant,
    Message,
    OutputsCarriedOut,
)
from streamkit.runtime.backoff import Backoff
from streamkit.runtime.interfaces import Random
from streamkit.runtime.threads import Promise, PromiseTimeout, firm_promise
from streamkit.transactions.lineage import Gathered

log = logging.getLogger("streamkit.consumer")

Call = Callable[[Message], Awaitable[Message]]
_REFUSED = ("fenced", "beyond")            # the lease is another's; or its shard no longer has what was handled
_LATE_S = 1.0
STATE_BYTES_MAX = 64 * 1024
_KEPT_BYTES = 256 * 1024                   # of state in one message, and one lease's more


class Track(ABC):
    """How far one row of a lease's records is handled: all of them, or one lane's.

    finished: place of the first record not yet finished; live(): the same while a handler runs. attempts: of records
    that failed and are not finished.
    """

    def __init__(self, grant: LeaseGrant, shard: Shard, attempts: dict[Place, int]) -> None:
        self.grant = grant
        self.shard = shard
        self.stream = grant.stream
        self.lease_epoch = grant.lease_epoch
        self.start: Place = (grant.checkpoint, grant.sub_sequence)
        self.finished = self.start
        self.attempts = attempts
        self.live: Callable[[], Place] | None = None

    @property
    def reached(self) -> Place:
        """Place of the first record that is not finished, also while a handler runs."""
        return max(self.finished, self.live()) if self.live is not None else self.finished

    @property
    @abstractmethod
    def lost(self) -> bool:
        """Whether the lease is another's by now."""

    @abstractmethod
    def lease_lost(self) -> LeaseLost:
        """The error for whoever goes on all the same."""


class HeldLease(Track):
    """One lease while it is held.

    asked: what manual checkpoints cover. stored: what the coordinator has. ahead: what lanes have finished beyond a
    position, for the coordinator. passed: the place past the last record that was handed out, and the end of what came
    behind it and holds none for this application; who asked for the first has the second. has_ended: the shard takes
    no more records, and there it is complete.
    """

    def __init__(self, grant: LeaseGrant, shard: Shard, *, manual: bool) -> None:
        super().__init__(grant, shard, attempts_from_wire(grant.attempts))
        self.manual = manual
        self.asked = self.start
        self.stored = self.start
        self.ahead: Callable[[int], bytes] | None = None
        self.passed: tuple[Place, Place] = (self.start, self.start)
        self.has_ended = False
        self.decided: tuple[int, int] | None = None    # (epoch, number) of the last transaction of this lease
        self.owner_told = ""               # why it was lost, when that is known
        self._lost = False
        self._number = 0
        self._attempts_stored = dict(grant.attempts)
        self._ahead_stored = grant.ahead
        self._waiters: list[tuple[Place, Promise[None]]] = []
        self._state: bytes | None = None       # to be stored with the next checkpoint
        self._state_waiters: list[Promise[None]] = []
        self._prepared: tuple[Place, bytes, Promise[None]] | None = None

    def seek(self, place: Place) -> None:
        """Begin elsewhere than the coordinator says; before anything was handed out."""
        assert self.finished == self.start, "nothing was handed out yet"
        self.start = self.finished = self.asked = place
        self.passed = (place, place)

    @property
    def lost(self) -> bool:
        return self._lost

    @property
    def position(self) -> Place:
        """What a checkpoint written now would say."""
        if self.manual:
            return max(self.asked, self.passed[1]) if self.all_asked else self.asked
        return self.reached

    @property
    def all_asked(self) -> bool:
        """A manual checkpoint covers whatever was handed out."""
        return self.asked >= self.passed[0]

    def next_item(self) -> CheckpointItem | None:
        """The checkpoint that is due, with the next number; None when nothing changed."""
        return self._item(max(self.position, self.stored))

    def item_at(self, place: Place) -> CheckpointItem:
        """A checkpoint there, with the next number, for a transaction."""
        item = self._item(max(place, self.stored), always=True)
        assert item is not None, "a lease that is held has a checkpoint"
        return item

    def _item(self, position: Place, *, always: bool = False) -> CheckpointItem | None:
        attempts = attempts_to_wire({place: count for place, count in self.attempts.items() if place >= position})
        ahead = self.ahead(position[0]) if self.ahead is not None else b""
        changed = position != self.stored or attempts != self._attempts_stored or ahead != self._ahead_stored
        changed = changed or self._state is not None or self._prepared is not None
        if not always and (self.lost or not changed):
            return None
        self._number += 1
        prepared = None if self._prepared is None else (*self._prepared[0], self._prepared[1])
        return CheckpointItem(
            self.shard.uuid, self.lease_epoch, self._number, position[0], attempts, position[1], self._state, prepared,
            ahead,
        )

    def answered(self, item: CheckpointItem, result: str) -> None:
        if result in _REFUSED:
            self.lose()
            return
        self.stored = max(self.stored, (item.sequence, item.sub_sequence))
        self._attempts_stored = dict(item.attempts)
        self._ahead_stored = item.ahead
        if self._state is item.app_state:
            self._state = None
            waiters, self._state_waiters = self._state_waiters, []
            for waiter in waiters:
                waiter.set_result(None)
        if self._prepared is not None and item.prepared is not None and self._prepared[1] is item.prepared[2]:
            self._prepared[2].set_result(None)
            self._prepared = None
        for place, waiter in self._waiters:
            if place <= self.stored:
                waiter.set_result(None)
        self._waiters = [entry for entry in self._waiters if entry[0] > self.stored]

    def when_stored(self, place: Place, waiter: Promise[None]) -> None:
        """Complete `waiter` when the coordinator has `place`, or with LeaseLost. On the worker's loop."""
        if place <= self.stored:
            waiter.set_result(None)
        elif self.lost:
            waiter.set_exception(self.lease_lost())
        else:
            self._waiters.append((place, waiter))

    def ask_with_state(self, place: Place, state: bytes, waiter: Promise[None]) -> None:
        """A manual checkpoint with what the application keeps at that place. On the worker's loop."""
        if self.lost or place < self.asked:
            self.when_stored(place, waiter)            # below what was asked for already: nothing changes
            return
        self.asked, self._state = place, state
        self._state_waiters.append(waiter)

    def prepare(self, place: Place, state: bytes, waiter: Promise[None]) -> None:
        """Announce a checkpoint; in the place of an earlier one. On the worker's loop."""
        before, self._prepared = self._prepared, (place, state, waiter)
        if before is not None:
            before[2].set_result(None)
        if self.lost:
            self.lose()

    def lose(self) -> None:
        self._lost = True
        waiters = [*self._state_waiters, *(waiter for _, waiter in self._waiters)]
        if self._prepared is not None:
            waiters.append(self._prepared[2])
        self._waiters, self._state_waiters, self._state, self._prepared = [], [], None, None
        for waiter in waiters:
            waiter.set_exception(self.lease_lost())

    def lease_lost(self) -> LeaseLost:
        return LeaseLost(
            f"{self.shard.id} of {self.stream} is no longer this worker's; it must stop",
            try_="nothing to do; if it happens often: streamkit lag", shard=self.shard.id, stream=self.stream,
            lease_epoch=self.lease_epoch, owner=self.owner_told,
        )


class CheckpointWriter:
    """The one sender of checkpoints of a worker."""

    def __init__(self, application: str, worker: str, call: Call, random: Random, interval_ms: int) -> None:
        self.leases: dict[bytes, HeldLease] = {}
        self.on_lost: Callable[[HeldLease], None] | None = None
        self._application = application
        self._worker = worker
        self._call = call
        self._random = random
        self._interval_s = interval_ms / 1000
        self._nudged = asyncio.Event()
        self._sending = asyncio.Lock()
        self._began_s: float | None = None     # when the message that is not answered yet was sent first

    async def run(self) -> None:
        """Write what is due, every interval or when nudged, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._interval_s):
                    await self._nudged.wait()
            except TimeoutError:
                self._nudged.clear()
            self._nudged.clear()
            await self.flush()

    def nudge(self) -> None:
        self._nudged.set()

    @property
    def late(self) -> bool:
        """Checkpoints do not get through at present."""
        return self._began_s is not None and asyncio.get_running_loop().time() - self._began_s > _LATE_S

    async def flush(self, only: HeldLease | None = None) -> None:
        """Write what is due now and wait for the answer. Connection trouble is waited out while a lease is held."""
        async with self._sending:
            leases = [only] if only is not None else list(self.leases.values())
            due = [(lease, item) for lease in leases if (item := lease.next_item()) is not None]
            try:
                self._began_s = asyncio.get_running_loop().time()
                for part in _parts(due):
                    await self._write(part)
            finally:
                self._began_s = None

    async def transact(self, lease: HeldLease, place: Place, outputs: bytes) -> None:
        """Decide a checkpoint and outputs together; returns when that is so. Raises LeaseLost: maybe it is, maybe not.

        Raises TransactionTooLarge and LimitReached, when nothing was decided.
        """
        async with self._sending:
            if lease.lost:
                raise lease.lease_lost()
            item = lease.item_at(place)
            message = CommitTransaction(self._application, self._worker, item, outputs)
            answer = await self._asked(lease, message)
            assert isinstance(answer, Checkpointed) and len(answer.results) == 1, "a result an item"
            if answer.results[0] != "ok":
                self._lose(lease)
                raise lease.lease_lost()
            lease.answered(item, "ok")
            lease.decided = (lease.lease_epoch, item.number)

    async def _asked(self, lease: HeldLease, message: CommitTransaction) -> Message:
        # Once it may be decided and nobody says so, the lease is given up: what comes next would take its numbers.
        backoff = Backoff(self._random, 50, 2_000)
        in_doubt = False
        try:
            while True:
                try:
                    return await self._call(message)
                except (Unavailable, TimedOut) as error:
                    in_doubt = True
                    log.warning("transaction.retrying application=%s error=%s", self._application, error)
                    await asyncio.sleep(backoff.next_ms() / 1000)
                    if lease.lost:
                        raise lease.lease_lost() from error
        except asyncio.CancelledError:
            self._lose(lease)
            raise
        except StreamkitError as error:
            if in_doubt and not lease.lost:
                self._lose(lease)
                raise lease.lease_lost() from error
            raise

    async def carried_out(self, lease: HeldLease, epoch: int, number: int) -> None:
        """Tell that outputs are in their shards. Raises LeaseLost when the lease goes before it is heard."""
        message = OutputsCarriedOut(self._application, ((lease.shard.uuid, epoch, number),))
        backoff = Backoff(self._random, 50, 2_000)
        while True:
            try:
                await self._call(message)
                return
            except (Unavailable, TimedOut) as error:
                await asyncio.sleep(backoff.next_ms() / 1000)
                if lease.lost:
                    raise lease.lease_lost() from error

    async def _write(self, due: list[tuple[HeldLease, CheckpointItem]]) -> None:
        backoff = Backoff(self._random, 50, 2_000)
        while due:
            message = Checkpoint(self._application, self._worker, tuple(item for _, item in due))
            try:
                answer = await self._call(message)
            except (Unavailable, TimedOut) as error:
                log.warning("checkpoint.retrying application=%s error=%s", self._application, error)
                await asyncio.sleep(backoff.next_ms() / 1000)
                due = [(lease, item) for lease, item in due if not lease.lost]
                continue
            except StreamkitError as error:
                log.error("checkpoint.refused application=%s error=%s", self._application, error)
                for lease, _ in due:
                    self._lose(lease)
                return
            assert isinstance(answer, Checkpointed) and len(answer.results) == len(due), "a result an item"
            for (lease, item), result in zip(due, answer.results, strict=True):
                if result == "beyond":
                    log.error("checkpoint.beyond application=%s stream=%s shard=%s sequence=%d", self._application,
                              lease.stream, lease.shard.id, item.sequence)
                if result in _REFUSED:
                    self._lose(lease)
                lease.answered(item, result)
            return

    def _lose(self, lease: HeldLease) -> None:
        lease.lose()
        if self.on_lost is not None:
            self.on_lost(lease)


def _parts(due: list[tuple[HeldLease, CheckpointItem]]) -> Iterator[list[tuple[HeldLease, CheckpointItem]]]:
    part: list[tuple[HeldLease, CheckpointItem]] = []
    kept_bytes = 0
    for lease, item in due:
        part.append((lease, item))
        kept_bytes += len(item.app_state or b"") + (len(item.prepared[2]) if item.prepared else 0)
        if kept_bytes >= _KEPT_BYTES:
            yield part
            part, kept_bytes = [], 0
    if part:
        yield part


class Checkpointing:
    """A checkpoint on its way: await it, or call `result()` in a thread; left alone, it is written within a second."""

    def __init__(self, stored: Promise[None], hurry: Callable[[], None]) -> None:
        self._stored = stored
        self._hurry = hurry

    def __await__(self) -> Generator[Any, None, None]:
        self._hurry()
        return asyncio.wrap_future(self._stored).__await__()

    def result(self, timeout_s: float | None = None) -> None:
        """Wait in a thread until it is stored. Raises LeaseLost, TimedOut."""
        self._hurry()
        try:
            self._stored.result(timeout_s)
        except PromiseTimeout as cause:
            raise TimedOut(f"no answer to the checkpoint within {timeout_s} s", sent=True) from cause


class Named(Protocol):
    """A producer, as far as `put` looks at it."""

    stream: str | None


class Checkpointer:
    """What user code does with a lease's position. Every method may be called from any thread.

    With lanes there is nothing to do: what a handler returned from is finished, and is stored every interval.
    """

    def __init__(
        self, lease: Track, loop: asyncio.AbstractEventLoop, hurry: Callable[[], None], covered: Callable[[], Place]
    ) -> None:
        self._lease = lease
        self._loop = loop
        self._nudge = hurry
        self._covered = covered            # one past what a checkpoint without `at` covers now
        self.deadline_s: float | None = None
        self.kept_by_sink = False          # the position is written with what handlers write: see exactly_once
        self.sink_connection: Any = None
        self.transact: Callable[[Gathered, Place], Awaitable[None]] | None = None
        self.gathered: Gathered | None = None          # what is decided with the position, where it is transactional

    @property
    def fencing_token(self) -> int:
        """Grows with every change of owner: a store that refuses older ones refuses zombies."""
        return self._lease.lease_epoch

    @property
    def deadline(self) -> float | None:
        """While shutting down: seconds left until the lease goes; else None."""
        return None if self.deadline_s is None else max(0.0, self.deadline_s - self._loop.time())

    @property
    def connection(self) -> Any:
        """The sink's, inside the transaction that the position belongs to. Raises InvalidUse without a sink."""
        if self.sink_connection is None:
            raise InvalidUse("there is no sink whose transaction this could be",
                             try_="Worker(…, sink=PostgresPosition(…))", argument="sink")
        return self.sink_connection

    def put(
        self, stream: str | Named, value: Any, *, key: str | None = None, headers: Headers | None = None,
        time: datetime | None = None, explicit_hash_key: int | None = None,
    ) -> None:
        """Put a record in one transaction with the position: both are there, or neither. As Context.put."""
        if self.gathered is None:
            raise InvalidUse("this consumer's outputs and positions are not one transaction",
                             try_="Consumer(…, transactional=True)", argument="transactional")
        name = stream if isinstance(stream, str) else stream.stream
        if not name:
            raise InvalidUse("no stream was named", try_='ctx.put("bills", …)', argument="stream")
        self.gathered.put(name, value, key, headers, time, explicit_hash_key)

    @property
    def position(self) -> int:
        """Sequence of the first record that no checkpoint covers yet, or covers only in part: an aggregate."""
        lease = self._held()
        return max(lease.asked, lease.stored)[0]

    @property
    def complete(self) -> bool:
        """The shard takes no more records, and a checkpoint that was asked for covers its last one."""
        lease = self._held()
        return lease.has_ended and max(lease.asked, lease.stored) >= lease.passed[0]

    def checkpoint(
        self, at: Record[Any] | Batch | int | Place | None = None, *, state: bytes | None = None
    ) -> Checkpointing:
        """Everything up to and with `at` (a record, a batch, or its sequence) is finished; None: what was processed.

        Inside an aggregate a record covers the user records up to it, and so does (sequence, sub-sequence); a sequence
        the whole aggregate. Never covers a record whose processing failed. state: at most 64 KiB, stored in one write
        with this position: the next owner finds both or neither, as `ctx.app_state`; None leaves what is there, b""
        takes it away; with checkpoint="manual" only. Raises LeaseLost, InvalidUse.
        """
        lease = self._held()
        if self.kept_by_sink:
            raise InvalidUse("the position is kept in the transaction of what was written",
                             try_="leave the checkpoint out: it follows by itself", argument="checkpoint")
        if lease.lost:
            raise lease.lease_lost()
        position = self._position(at)
        if state is not None:
            if not lease.manual:
                raise InvalidUse(
                    "state belongs to one position, and checkpoint=\"auto\" goes on to others without it",
                    try_='pass checkpoint="manual"', argument="state",
                )
            return self._on_loop(lease.ask_with_state, position, _checked(state))
        lease.asked = max(lease.asked, position)
        if not lease.manual:
            lease.finished = max(lease.finished, position)
        stored = firm_promise()            # a wait that is given up, by a time-out say, takes nothing back
        self._loop.call_soon_threadsafe(lease.when_stored, position, stored)
        return Checkpointing(stored, self._hurry)

    def decide(self, gathered: Gathered, at: Record[Any] | Batch | int | Place | None = None) -> Checkpointing:
        """A checkpoint at `at`, by hand, and what a producer's transaction gathered: decided together, or not at all.

        For `Transaction.commit_positions`. Raises LeaseLost, InvalidUse; what waits for it, TransactionTooLarge.
        """
        lease = self._held()
        if lease.lost:
            raise lease.lease_lost()
        if not lease.manual or self.transact is None:
            raise InvalidUse("positions are committed by themselves here", try_='pass checkpoint="manual"',
                             argument="checkpoint")
        place = self._position(at)
        return Checkpointing(asyncio.run_coroutine_threadsafe(self._decide(gathered, place), self._loop), _nothing)

    async def _decide(self, gathered: Gathered, place: Place) -> None:
        lease = self._held()
        assert self.transact is not None, "decide looked"
        if gathered:
            await self.transact(gathered, place)
        lease.asked = max(lease.asked, place)
        if not gathered:
            stored = firm_promise()
            lease.when_stored(place, stored)
            self._nudge()
            await asyncio.wrap_future(stored)

    def prepare(self, at: Record[Any] | Batch | int | Place | None = None, *, state: bytes = b"") -> PreparedCheckpoint:
        """Announce a checkpoint at `at` before doing what must be done once: two phases.

        Await it (or `result()`), do the work in a way that can be recognised, then call its `checkpoint()`. An owner
        that comes in between finds it as `ctx.prepared`, and can look whether the work was done. state: at most
        64 KiB, whatever helps to look. A later `prepare` takes its place; a checkpoint there or beyond ends it.
        Raises LeaseLost, InvalidUse.
        """
        lease = self._held()
        if lease.lost:
            raise lease.lease_lost()
        position = self._position(at)
        stored = self._on_loop(lease.prepare, position, _checked(state))
        return PreparedCheckpoint(self, position, stored)

    def announce(self, place: Place, state: bytes) -> Checkpointing:
        """`prepare` for drivers, at a place that was not handled yet."""
        return self._on_loop(self._held().prepare, place, _checked(state))

    def checkpoint_prepared(self, place: Place) -> Checkpointing:
        """What `PreparedCheckpoint.checkpoint` does."""
        return self.checkpoint((place[0], place[1] - 1) if place[1] else place[0] - 1)

    def _on_loop(self, do: Callable[[Place, bytes, Promise[None]], None], place: Place, state: bytes) -> Checkpointing:
        stored = firm_promise()
        self._loop.call_soon_threadsafe(do, place, state, stored)
        return Checkpointing(stored, self._hurry)

    def _position(self, at: Record[Any] | Batch | int | Place | None) -> Place:
        covered = self._covered()
        if at is None:
            return covered
        position = _end_of(at)
        if position > covered:
            sequence = position[0] if position[1] else position[0] - 1
            raise InvalidUse(
                f"a checkpoint at sequence {sequence} would cover records that were not delivered or that failed",
                try_="checkpoint a record or batch that was handed to you", sequence=sequence,
            )
        return position

    def _held(self) -> HeldLease:
        if isinstance(self._lease, HeldLease):
            return self._lease
        raise InvalidUse(
            "lanes have no position of their own; what the handler returned from is checkpointed by itself",
            try_="leave the checkpoint out, or use ordering=Ordering.SHARD",
        )

    def _hurry(self) -> None:
        self._loop.call_soon_threadsafe(self._nudge)


class PreparedCheckpoint:
    """A checkpoint that was announced: await it, or call `result()` in a thread; do the work; then `checkpoint()`."""

    def __init__(self, checkpointer: Checkpointer, place: Place, stored: Checkpointing) -> None:
        self._checkpointer = checkpointer
        self._place = place
        self._stored = stored

    def __await__(self) -> Generator[Any, None, None]:
        return self._stored.__await__()

    def result(self, timeout_s: float | None = None) -> None:
        """Wait in a thread until the announcement is stored. Raises LeaseLost, TimedOut."""
        self._stored.result(timeout_s)

    def checkpoint(self) -> Checkpointing:
        """The work is done: checkpoint where it was announced. Raises LeaseLost."""
        return self._checkpointer.checkpoint_prepared(self._place)


def _nothing() -> None:
    """It is on its way already."""


def _checked(state: bytes) -> bytes:
    if not isinstance(state, bytes | bytearray | memoryview) or len(state) > STATE_BYTES_MAX:
        raise InvalidUse(
            f"state must be bytes, at most {STATE_BYTES_MAX}; got "
            + (f"{len(state)}" if isinstance(state, bytes | bytearray | memoryview) else type(state).__name__),
            try_="keep what is larger in a store of your own, and its name here", argument="state",
        )
    return bytes(state)


def _end_of(at: Record[Any] | Batch | int | Place) -> Place:
    if isinstance(at, int):
        return at + 1, 0
    if isinstance(at, tuple):
        return at[0], at[1] + 1
    return at.place(len(at)) if isinstance(at, Batch) else at.end_place
