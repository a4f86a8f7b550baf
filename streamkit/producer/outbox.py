"""What Producer and AsyncProducer share: the senders of one producer, its identity and its buffer.

Everything here runs on the event loop that sends, except where it says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from streamkit._core.accumulator import Accumulator, Budget
from streamkit._core.histogram import Histogram
from streamkit._core.outcome import ColumnsHandle, Delivery, PutHandle, forked, refused, refused_entry, set_latch
from streamkit.errors import (
    BufferFull,
    Closed,
    ConnectionFailed,
    InvalidRequest,
    InvalidUse,
    NameInUse,
    PutFailed,
    StreamkitError,
    TimedOut,
)
from streamkit.model.codec import Codec, find_codec
from streamkit.model.entry import content_type_of, hash_key_bytes, pack_headers, payload_encoder, time_to_ms
from streamkit.model.fate import Fate
from streamkit.producer.config import ProducerConfig
from streamkit.producer.figures import Figures, total
from streamkit.producer.naming import Name
from streamkit.producer.pressure import Pressure, Room
from streamkit.producer.progress import HEADER
from streamkit.producer.resumption import Resumption
from streamkit.producer.sender import FAILURES_KEPT_MAX, NOBODY, Owner, Sender, Sending
from streamkit.producer.transaction import AsyncTransactionBlock, Transaction, Writer
from streamkit.protocol.messages import ProducerGiven
from streamkit.runtime import fork
from streamkit.runtime.latch import Latch

set_latch(Latch)

_log = logging.getLogger("streamkit.producer")
T = TypeVar("T")

_DROPS_TOLD_MS = 1_000                     # a log line about dropped records at most so often
_ASK_TRIES = 5                              # an answer that was lost costs an identity or an epoch, and nothing else
_RECORD_OVERHEAD_BYTES = 64                # no less than what the accumulator charges for a record beside its parts


class Target:
    """One stream as put() sees it. `put` is the accumulator's own; the rest prepares what it takes."""

    def __init__(self, sender: Sender, codec: Codec) -> None:
        self.sender = sender
        self.accumulator: Accumulator = sender.accumulator
        self.put = sender.accumulator.put
        self.encode = payload_encoder(codec)
        self.headers = content_type_of(codec, sender.stream.config.codec)
        self._codec = codec
        self.resumption: Resumption | None = None    # made with the first number of a named producer

    def arguments(
        self, value: object, key: str | None, headers: Any, time: Any, explicit_hash_key: int | None,
        mark: bytes | None = None,
    ) -> tuple[str | None, bytes, bytes, int | None, bytes | None]:  # fmt: skip
        """What `put` takes, from what the user gave; mark: of Progress.header."""
        own = None if mark is None else {HEADER: mark}
        stream_codec = self.sender.stream.config.codec
        return (
            key,
            self.encode(value),
            pack_headers(headers or {}, self._codec, stream_codec, own) if headers or own else self.headers,
            None if time is None else time_to_ms(time),
            None if explicit_hash_key is None else hash_key_bytes(explicit_hash_key),
        )


class Outbox:
    """The senders of one producer, one for each stream it puts to."""

    def __init__(
        self,
        client: Sending,
        owns_client: bool,
        codec: Codec | str,
        config: ProducerConfig,
        on_pressure: Callable[[bool], object] | None = None,
        on_error: Callable[[StreamkitError, int], object] | None = None,
    ) -> None:
        self.config = config
        self.codec = find_codec(codec)
        self.budget = Budget(config.buffer_bytes_max)
        self.room = Room()
        self.pressure = Pressure(self.budget, on_pressure)
        self.block_us = Histogram()                  # how long puts waited for room
        self.blocked = self.dropped = 0
        self._refused: deque[Delivery] = deque(maxlen=FAILURES_KEPT_MAX)     # entries, for flush to raise
        self._drop: BufferFull | None = None         # the error of the records that are dropped this second
        self._drop_told_ms = 0
        self._owner = Owner(self._settled, self.pressure.look, on_error)
        self._clock = client.runtime.clock
        self.targets: dict[str, Target] = {}
        self.loop: asyncio.AbstractEventLoop | None = None
        self._client: Any = client
        self._owns_client = owns_client
        self.name = None if config.name is None else Name(config.name, client.runtime.random.uuid())
        self._identity: ProducerGiven | None = None
        self._writer: Writer | None = None
        self._opening = asyncio.Lock()
        self._closed = False
        self._held: list[Target] = []                # from before a fork to after it: whose accumulators are locked

    async def _new_identity(self) -> ProducerGiven:
        if not self.config.idempotent:
            return NOBODY
        given: ProducerGiven = await self._client.new_producer(*(self.name or ()))
        return given

    async def _known_identity(self) -> ProducerGiven:
        if self._identity is None:
            self._identity = await _asked_again(self._new_identity)
        return self._identity

    async def identity(self) -> ProducerGiven:
        """Asked for once."""
        async with self._opening:
            return await self._known_identity()

    async def target(self, stream: str) -> Target:
        """Opens the stream at first use. Raises StreamNotFound, ConnectionFailed."""
        async with self._opening:
            if (found := self.targets.get(stream)) is not None:
                return found
            self.loop = asyncio.get_running_loop()
            description = await _asked_again(lambda: self._client.stream(stream))
            identity = await self._known_identity()
            if self._closed:                         # while the stream was looked up
                raise closed()
            sender = Sender(self._client, description, identity, self.config, self.budget, self._owner, self.name)
            if self.name is not None:
                try:
                    async with asyncio.timeout(2 * self.config.delivery_timeout_ms / 1000):
                        await sender.open()
                except TimeoutError:
                    await sender.close()
                    raise TimedOut(f"the shards of {stream} were not opened in time", try_="try again", sent=True,
                                   timeout_ms=2 * self.config.delivery_timeout_ms) from None  # fmt: skip
                except BaseException:
                    await sender.close()
                    raise
                if self._closed:                     # while its shards were opened: nobody would close it any more
                    await sender.close()
                    raise closed()
            self.targets[stream] = made = Target(sender, self.codec)
            return made

    async def resume(self, target: Target) -> None:
        """Find out what the name has stored in the stream before. Raises InvalidUse, and what asking raises."""
        if self.name is None:
            raise InvalidUse("app_seq needs a producer with a name", try_="Producer(…, name=…)", argument="app_seq")
        backoff = target.sender.backoff()
        until_ms = self._clock.monotonic_ms() + self.config.delivery_timeout_ms
        async with self._opening:
            while target.resumption is None:
                resumption = Resumption(self._client, target.sender, self.name.name)
                try:
                    await resumption.begin()
                    target.resumption = resumption
                except StreamkitError as error:
                    if not error.retryable or self._closed or self._clock.monotonic_ms() >= until_ms:
                        raise
                    await asyncio.sleep(backoff.next_ms() / 1000)

    async def resume_key(self, key: str | None, stream: str | None) -> None:
        """As Producer.resume_key."""
        for name, target in self.targets.items():
            if stream is None or name == stream:
                target.sender.resume_key(key)

    async def flush(self, timeout_s: float | None = None) -> None:
        """As Producer.flush."""
        await self._drain(timeout_s)
        for target in list(self.targets.values()):   # streams may be opened meanwhile
            if target.resumption is not None and target.resumption.progress.changed:
                await target.resumption.write()
        self.raise_failures()

    def push(self, stream: str | None = None) -> None:
        """Send what waits for company now."""
        for name, target in self.targets.items():
            if stream in (None, name):
                target.sender.push()

    async def close(self, timeout_s: float | None) -> None:
        """As Producer.close; safe to call twice."""
        self._closed = True
        try:
            await self._drain(timeout_s)
        except TimedOut:                             # what is left fails with Closed, and is raised as that
            settle_s = min(self.config.request_timeout_ms / 1000, timeout_s or 0)
            await asyncio.gather(*[
                target.sender.give_up("the producer was closed", settle_s) for target in self.targets.values()
            ])
        for target in list(self.targets.values()):
            if target.resumption is not None:
                await target.resumption.close()
            await target.sender.close()
        if self._writer is not None:
            await self._writer.close(min(self.config.request_timeout_ms / 1000, timeout_s or 0))
        if self._owns_client:
            await self._client.close()
        self.raise_failures()

    def writer(self) -> Writer:
        """Who decides this producer's transactions. On its event loop."""
        if self._closed:
            raise closed()
        if self._writer is None:
            self._writer = Writer(self._client, self.name, self.identity)
        return self._writer

    def transaction_block(self, stream: str | None, timeout_s: float) -> AsyncTransactionBlock:
        """As Producer.transaction."""
        return AsyncTransactionBlock(
            self.writer, lambda: Transaction(stream, self.codec, timeout_s, lambda: self._clock.monotonic_ms() / 1000),
            self.config.delivery_timeout_ms / 1000,
        )

    async def resolve(self, token: str) -> Fate:
        """As Producer.resolve."""
        fate: Fate = await self._client.resolve(token)
        return fate

    def outstanding(self) -> int:
        """Records accepted and not settled."""
        return sum(target.sender.outstanding() for target in self.targets.values())

    def raise_failures(self) -> None:
        """Raises PutFailed with every failure nobody looked at, once."""
        errors: dict[int, Any] = {}                  # by identity: each error once, in order
        count = 0
        outcomes: list[Delivery | ColumnsHandle] = [self._refused.popleft() for _ in range(len(self._refused))]
        for target in self.targets.values():
            sender = target.sender
            outcomes += sender.failures
            count += sender.failures_dropped
            sender.failures, sender.failures_dropped = [], 0
        for outcome in outcomes:
            if unseen := outcome.unseen():
                count += unseen
                found = getattr(outcome, "failures", None) or [(getattr(outcome, "error", None), unseen)]
                errors.update((id(error), error) for error, _ in found)
                outcome.look()
        if count:
            first = f": {next(iter(errors.values()))}" if errors else ""
            raise PutFailed(f"{count} records were not stored{first}",
                            try_="see error.failures; put them again if their errors say so",
                            count=count, failures=list(errors.values()))  # fmt: skip

    def full(self, key: str | None, value: bytes, headers: bytes, *_: object) -> PutHandle[Any] | None:
        """A put found no room: None when it shall wait, else the handle of a record that is dropped. From any thread.

        Raises BufferFull when the buffer may not wait, or could never hold the record.
        """
        self.look_at_pressure()
        if self.config.on_full == "drop_new":
            return refused(self.drop(1))
        if self.config.on_full == "raise" or not self.fits(
            len(key.encode() if key else b"") + len(value) + len(headers)
        ):
            raise self.buffer_full()
        return None

    def refuse(self, error: InvalidRequest) -> PutHandle[Any]:
        """The handle of an entry that is not taken while others are. From any thread."""
        handle, outcome = refused_entry(error)
        self._refused.append(outcome)
        return handle

    def drop(self, count: int) -> BufferFull:
        """`count` records are dropped: counted, and told in the log once a second. From any thread."""
        self.dropped += count
        now_ms = self._clock.monotonic_ms()
        if self._drop is None or now_ms - self._drop_told_ms >= _DROPS_TOLD_MS:
            self._drop_told_ms = now_ms
            self._drop = self.buffer_full()
            _log.warning("producer.dropped records=%d error=%s", self.dropped, self._drop)
        return self._drop

    def look_at_pressure(self) -> None:
        """From any thread."""
        if self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.pressure.look)

    def began_waiting(self) -> int:
        """For `waited`: a put waits for room from now on. From any thread."""
        self.blocked += 1
        return self._clock.monotonic_ms()

    def waited(self, since_ms: int) -> float:
        """Seconds that a put may still wait for room. From any thread. Raises BufferFull when there are none left."""
        left_ms = since_ms + self.config.max_block_ms - self._clock.monotonic_ms()
        if left_ms <= 0:
            raise self.buffer_full()
        return left_ms / 1000

    def found_room(self, since_ms: int) -> None:
        self.block_us.record(1000 * (self._clock.monotonic_ms() - since_ms))

    def fits(self, size_bytes: int) -> bool:
        """Whether an empty buffer would hold a record of that size."""
        return size_bytes + _RECORD_OVERHEAD_BYTES <= self.budget.limit

    def buffer_full(self) -> BufferFull:
        """Names the shard that holds most of it, how long its oldest record waits, and the last refusal."""
        reason, facts = "", {}
        fullest = max((found for t in self.targets.values() if (found := t.sender.fullest())), key=lambda f: f[1],
                      default=None)  # fmt: skip
        if fullest is not None:
            lane, held = fullest
            waiting_ms = lane.oldest_ms(self._clock.monotonic_ms())
            reason = f"; {lane.shard.id} holds {held}, the oldest for {waiting_ms} ms"
            reason += f": {lane.refusal}" if lane.refusal is not None else ""
            facts = {"shard": lane.shard.id, "shard_bytes": held, "oldest_ms": waiting_ms,
                     "cause": lane.refusal.code if lane.refusal is not None else None}  # fmt: skip
        return BufferFull(
            f"the producer's buffer is full: {self.budget.used} of {self.budget.limit} bytes wait to be acknowledged"
            f"{reason}",
            try_='put more slowly, raise buffer_bytes_max, or use on_full="wait"',
            buffered_bytes=self.budget.used,
            limit_bytes=self.budget.limit,
            **facts,
        )

    def figures(self) -> Figures:
        """Of all streams together."""
        return total(target.sender.figures for target in self.targets.values())

    def _settled(self) -> None:
        self.room.freed()
        self.pressure.look()
        for target in self.targets.values():
            if target.resumption is not None and not self._closed:
                target.resumption.soon()

    def before_fork(self) -> None:
        # Other threads run on until the fork and may open streams meanwhile: let go exactly of what was taken.
        self._held = list(self.targets.values())
        for target in self._held:
            target.accumulator.before_fork()

    def after_fork(self, in_child: bool) -> None:
        held, self._held = self._held, []
        for target in held:
            target.accumulator.after_fork()
        if in_child:
            forked()

    async def _drain(self, timeout_s: float | None) -> None:
        flushes = [asyncio.ensure_future(target.sender.flush()) for target in self.targets.values()]
        if not flushes:
            return
        _, late = await asyncio.wait(flushes, timeout=timeout_s)
        for flush in late:
            flush.cancel()
        if late:
            raise TimedOut(f"{self.outstanding()} records are still on their way after {timeout_s} s",
                           try_="flush again, or allow more time", sent=True,
                           timeout_ms=int((timeout_s or 0) * 1000), outstanding=self.outstanding())  # fmt: skip


async def _asked_again(ask: Callable[[], Awaitable[T]]) -> T:
    """A node that goes away while it is asked is no news for whoever puts: another one answers."""
    for _ in range(_ASK_TRIES - 1):
        try:
            return await ask()
        except ConnectionFailed as error:
            if not error.facts.get("sent"):
                raise                              # nobody could be reached at all
    return await ask()


def closed() -> Closed:
    return Closed("the producer is closed", try_="make another one", what="producer")


def closed_in_child(name: str | None = None) -> InvalidUse | NameInUse:
    """Why a producer that came with a fork is not to be used; name: its name."""
    if name is not None:
        return NameInUse(
            f'the name "{name}" belongs to the process that this one was forked from',
            try_="give the child a name of its own, or let the parent close its producer before the fork",
            name=name, parent_pid=fork.parent_id(),
        )  # fmt: skip
    return InvalidUse(
        "this producer was made before a fork; its records and connections belong to the parent process",
        try_="make the producer in the process that uses it",
    )
