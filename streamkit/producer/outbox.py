"""What Producer and AsyncProducer share: the senders of one producer, its identity and its buffer.

Everything here runs on the event loop that sends, except `Room`, which lets any thread wait for space.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any

from streamkit._core.accumulator import Accumulator, Budget
from streamkit._core.outcome import forked, set_latch
from streamkit.errors import BufferFull, Closed, InvalidUse, PutFailed, TimedOut
from streamkit.model.codec import Codec, find_codec
from streamkit.producer.config import ProducerConfig
from streamkit.producer.entry import content_type_of, hash_key_bytes, pack_headers, payload_encoder, time_to_ms
from streamkit.producer.sender import NOBODY, Sender, Sending
from streamkit.protocol.messages import ProducerGiven
from streamkit.runtime.latch import Latch

set_latch(Latch)

_RECORD_OVERHEAD_BYTES = 64                # no less than what the accumulator charges for a record beside its parts


class Room:
    """Whoever found the buffer full leaves a call here; all are made when bytes were let go."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], object]] = deque()

    def when_freed(self, call: Callable[[], object]) -> None:
        self._waiting.append(call)

    def freed(self) -> None:
        for _ in range(len(self._waiting)):
            self._waiting.popleft()()


class Target:
    """One stream as put() sees it. `put` is the accumulator's own; the rest prepares what it takes."""

    def __init__(self, sender: Sender, codec: Codec) -> None:
        self.sender = sender
        self.accumulator: Accumulator = sender.accumulator
        self.put = sender.accumulator.put
        self.encode = payload_encoder(codec)
        self.headers = content_type_of(codec, sender.stream.config.codec)
        self._codec = codec

    def arguments(
        self, value: object, key: str, headers: Any, time: Any, explicit_hash_key: int | None
    ) -> tuple[str, bytes, bytes, int | None, bytes | None]:
        """What `put` takes, from what the user gave."""
        return (
            key,
            self.encode(value),
            pack_headers(headers, self._codec, self.sender.stream.config.codec) if headers else self.headers,
            None if time is None else time_to_ms(time),
            None if explicit_hash_key is None else hash_key_bytes(explicit_hash_key),
        )


class Outbox:
    """The senders of one producer, one for each stream it puts to."""

    def __init__(self, client: Sending, owns_client: bool, codec: Codec | str, config: ProducerConfig) -> None:
        self.config = config
        self.codec = find_codec(codec)
        self.budget = Budget(config.buffer_bytes_max)
        self.room = Room()
        self.targets: dict[str, Target] = {}
        self.loop: asyncio.AbstractEventLoop | None = None
        self._client: Any = client
        self._owns_client = owns_client
        self._identity: ProducerGiven | None = None
        self._opening = asyncio.Lock()
        self._closed = False
        self._held: list[Target] = []                # from before a fork to after it: whose accumulators are locked

    async def target(self, stream: str) -> Target:
        """Opens the stream at first use. Raises StreamNotFound, ConnectionFailed."""
        async with self._opening:
            if (found := self.targets.get(stream)) is not None:
                return found
            self.loop = asyncio.get_running_loop()
            description = await self._client.stream(stream)
            if self._identity is None:
                self._identity = await self._client.new_producer() if self.config.idempotent else NOBODY
            if self._closed:                         # while the stream was looked up
                raise Closed("the producer is closed", try_="make another one", what="producer")
            sender = Sender(self._client, description, self._identity, self.config, self.budget, self.room.freed)
            self.targets[stream] = made = Target(sender, self.codec)
            return made

    async def flush(self, timeout_s: float | None = None) -> None:
        """As Producer.flush."""
        await self._drain(timeout_s)
        self.raise_failures()

    async def close(self, timeout_s: float | None) -> None:
        """As Producer.close; safe to call twice."""
        self._closed = True
        with contextlib.suppress(TimedOut):          # what is left fails with Closed, and is raised as that
            await self._drain(timeout_s)
        for target in self.targets.values():
            await target.sender.close()
        if self._owns_client:
            await self._client.close()
        self.raise_failures()

    def outstanding(self) -> int:
        """Records accepted and not settled."""
        return sum(target.sender.outstanding() for target in self.targets.values())

    def raise_failures(self) -> None:
        """Raises PutFailed with every failure nobody looked at, once."""
        errors: dict[int, Any] = {}                  # by identity: each error once, in order
        count = 0
        for target in self.targets.values():
            sender = target.sender
            outcomes, sender.failures = sender.failures, []
            count += sender.failures_dropped
            sender.failures_dropped = 0
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

    def check_fits(self, key: str, value: bytes, headers: bytes, *_: object) -> None:
        """Raises BufferFull when the buffer may not wait, or could never hold the record."""
        if self.config.on_full == "raise" or not self.fits(len(key.encode()) + len(value) + len(headers)):
            raise self.buffer_full()

    def fits(self, size_bytes: int) -> bool:
        """Whether an empty buffer would hold a record of that size."""
        return size_bytes + _RECORD_OVERHEAD_BYTES <= self.budget.limit

    def buffer_full(self) -> BufferFull:
        return BufferFull(
            f"the producer's buffer is full: {self.budget.used} of {self.budget.limit} bytes wait to be acknowledged",
            try_='put more slowly, raise buffer_bytes_max, or use on_full="wait"',
            buffered_bytes=self.budget.used,
            limit_bytes=self.budget.limit,
        )

    def stats(self) -> dict[str, int]:
        """Counts since the producer was made."""
        senders = [target.sender for target in self.targets.values()]
        return {
            "records": sum(s.accumulator.records for s in senders),
            "bytes": sum(s.accumulator.payload_bytes for s in senders),
            "records_stored": sum(s.records_stored for s in senders),
            "records_failed": sum(s.records_failed for s in senders),
            "records_duplicate": sum(s.duplicates for s in senders),
            "records_outstanding": self.outstanding(),
            "buffered_bytes": self.budget.used,
            "buffer_bytes_max": self.budget.limit,
            "batches_sent": sum(s.batches_sent for s in senders),
            "batches_retried": sum(s.batches_retried for s in senders),
            "bytes_sent": sum(s.bytes_sent for s in senders),
        }

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


def closed_in_child() -> InvalidUse:
    return InvalidUse(
        "this producer was made before a fork; its records and connections belong to the parent process",
        try_="make the producer in the process that uses it",
    )
