"""Fetches: stored batches, whole and verbatim, never above the high watermark.

    begin ──▶ serve ──▶ from memory or the page cache: answered at once
                 │ ──▶ the disk would have to be waited for: read on a thread, then answered
                 │ ──▶ nothing readable yet: waits for the high watermark, at most wait_ms
                 ├──▶ it carries a condition: batches in which nothing matches are left out (matching.py)
                 └──▶ the peer has not taken what it asked for: held until it does
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from streamkit.broker.matching import Fetch, Matcher, MatchingFetch
from streamkit.broker.pushing import CREDIT_BYTES_MAX, SUBSCRIPTIONS_MAX, PushedFetch
from streamkit.broker.shard_server import ShardServer
from streamkit.broker.streams import unknown_shard
from streamkit.errors import InternalError, LimitReached, NodeDraining, StreamkitError
from streamkit.expressions.condition import Condition
from streamkit.protocol.frames import FETCH_BYTES_MAX, FetchFrame
from streamkit.protocol.messages import Done, FetchMatching, Subscribe
from streamkit.runtime.interfaces import Buffer

if TYPE_CHECKING:
    from streamkit.broker.link import Link
    from streamkit.broker.streams import Streams

logger = logging.getLogger("streamkit.broker")

WAIT_MS_MAX = 60_000
WAITING_MAX = 20_000                               # of one connection; more are answered empty at once
BYTES_MAX = 8 * 1024 * 1024                        # of one answer, unless a single batch is larger
_BASE_AND_COUNT = struct.Struct("<8xQ40xI")        # of a batch header: base_sequence, record_count


class FetchGuard(Protocol):
    def check_fetch(self, application: str, session: int, shard: bytes, lease_epoch: int) -> None:
        """Raises LeaseLost."""


def next_sequence(batches: Sequence[Buffer], start: int) -> int:
    """One past the last record of `batches`; `start` when there are none."""
    if not batches:
        return start
    base, count = _BASE_AND_COUNT.unpack_from(batches[-1])
    return max(start, int(base) + int(count))


class Fetches:
    """All fetches of a node; a fetch that waits is a Waiting, and nothing else remembers it."""

    def __init__(self, streams: Streams, guard: FetchGuard, matcher: Matcher) -> None:
        self._streams = streams
        self._guard = guard
        self._matcher = matcher
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: dict[Waiting, None] = {}        # in the order they came, so that a run can be had again
        self.draining = False

    def begin_matching(self, link: Link, request_id: int, message: FetchMatching) -> None:
        """A fetch with a condition: parsed first, unless it was lately."""
        link.requests += 1
        self._start(self._parse(link, request_id, message))

    async def _parse(self, link: Link, request_id: int, message: FetchMatching) -> None:
        try:
            condition = await self._matcher.condition(message.where, message.codec)
        except StreamkitError as error:
            link.requests -= 1
            link.refuse(request_id, "fetch", error)
        else:
            link.requests -= 1
            if not link.closed:
                self.begin(link, MatchingFetch.of(request_id, message, condition))
        link.flush_soon()

    def subscribe(self, link: Link, request_id: int, message: Subscribe) -> None:
        """Answers follow one another from here on."""
        if len(link.subscriptions) >= SUBSCRIPTIONS_MAX or request_id in link.subscriptions:
            link.refuse(request_id, "subscribe", LimitReached(
                f"a connection has at most {SUBSCRIPTIONS_MAX} subscriptions", try_="use a second connection",
                limit=SUBSCRIPTIONS_MAX,
            ))  # fmt: skip
            return
        frame = PushedFetch.of(request_id, message)
        link.subscriptions[request_id] = frame
        if message.where:
            link.requests += 1
            self._start(self._parse_pushed(link, frame, message))
        else:
            self._again(link, frame)

    async def _parse_pushed(self, link: Link, frame: PushedFetch, message: Subscribe) -> None:
        try:
            frame.condition = await self._matcher.condition(message.where, message.codec)
        except StreamkitError as error:
            self._refuse(link, frame, error)
        finally:
            link.requests -= 1
        self._again(link, frame)
        link.flush_soon()

    def give_credit(self, link: Link, request_id: int, byte_count: int) -> None:
        """0 ends the subscription; one that is over already is none."""
        frame = link.subscriptions.get(request_id)
        if frame is None:
            return
        if not byte_count:
            self._end(link, frame)
            link.answer(request_id, Done())
            return
        frame.credit_bytes = min(frame.credit_bytes + byte_count, CREDIT_BYTES_MAX)
        if frame.resting and frame.credit_bytes > 0:
            frame.resting = False
            self._again(link, frame)

    def _again(self, link: Link, frame: PushedFetch) -> None:
        if frame.over or link.closed:
            return
        if self.draining:
            self._refuse(link, frame, NodeDraining("the node is stopping", try_="try again at another node"))
        elif frame.credit_bytes <= 0:
            frame.resting = True
        else:
            self.begin(link, frame)
        link.flush_soon()

    def _end(self, link: Link, frame: PushedFetch) -> None:
        frame.over = True
        link.subscriptions.pop(frame.request_id, None)
        if frame.waiting is not None:
            frame.waiting.cancel()
            self._waiting.pop(frame.waiting, None)
            frame.waiting = None
            link.waiting -= 1

    def _refuse(self, link: Link, frame: Fetch, error: BaseException) -> None:
        if isinstance(frame, PushedFetch):
            if frame.over:
                return
            self._end(link, frame)
        link.refuse(frame.request_id, "fetch", error)

    def begin(self, link: Link, frame: Fetch) -> None:
        if link.held or not link.has_room():
            link.held.append(frame)
            link.requests += 1
            return
        self._serve(link, frame, frame.wait_ms)

    def resume(self, link: Link) -> None:
        """The peer took something, or the node has memory again."""
        while link.held and link.has_room():
            link.requests -= 1
            self._serve(link, link.held.popleft(), 0)
        link.balance()

    def _serve(self, link: Link, frame: Fetch, wait_ms: int) -> None:
        pushed = isinstance(frame, PushedFetch)
        if isinstance(frame, PushedFetch) and frame.over:
            return
        try:
            if frame.application:
                self._guard.check_fetch(frame.application, frame.session, frame.shard, frame.lease_epoch)
            shard = self._streams.shard(frame.shard)
            if frame.start >= shard.high_watermark and shard.log.log_start <= frame.start:
                if wait_ms and not self.draining and (pushed or link.waiting < WAITING_MAX):
                    waiting = Waiting(self, link, frame, shard, min(wait_ms, WAIT_MS_MAX) / 1000)
                    self._waiting[waiting] = None
                    if isinstance(frame, PushedFetch):
                        frame.waiting = waiting
                else:
                    self._answer(link, frame, shard, [])
                return
            bytes_max = min(frame.bytes_max, BYTES_MAX)
            batches = shard.log.read(frame.start, shard.high_watermark, bytes_max)
            if batches is None:
                self._read_cold(link, frame, shard, bytes_max)
            else:
                self._answer(link, frame, shard, batches)
        except StreamkitError as error:
            self._refuse(link, frame, error)

    def _read_cold(self, link: Link, frame: Fetch, shard: ShardServer, bytes_max: int) -> None:
        link.reading_bytes += bytes_max
        link.requests += 1
        self._start(self._cold(link, frame, shard, bytes_max))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _cold(self, link: Link, frame: Fetch, shard: ShardServer, bytes_max: int) -> None:
        try:
            batches = await shard.log.read_cold(frame.start, shard.high_watermark, bytes_max)
            self._answer(link, frame, shard, batches)
        except Exception as cause:
            error: Exception = cause
            if shard.gone:                             # its files went while they were read
                error = unknown_shard(frame.shard)
            elif not isinstance(cause, StreamkitError | OSError):
                logger.exception("fetch.failed", extra={"facts": {"shard": shard.shard.id}})
                error = InternalError("a read failed unexpectedly")
            self._refuse(link, frame, error)
        finally:
            link.reading_bytes -= bytes_max
            link.requests -= 1
        self.resume(link)
        link.flush_soon()

    def _answer(self, link: Link, frame: Fetch, shard: ShardServer, batches: Sequence[Buffer]) -> None:
        condition = None if isinstance(frame, FetchFrame) else frame.condition
        if batches and condition is not None:
            held = sum(map(len, batches))
            link.reading_bytes += held
            link.requests += 1
            self._start(self._match(link, frame, shard, batches, condition))
        else:
            self._send(link, frame, shard, batches, next_sequence(batches, frame.start))

    async def _match(
        self, link: Link, frame: Fetch, shard: ShardServer, batches: Sequence[Buffer], condition: Condition
    ) -> None:
        held = sum(map(len, batches))
        try:
            wanted = await self._matcher.matching(batches, condition)
            self._send(link, frame, shard, wanted, next_sequence(batches, frame.start))
        except Exception:                              # ours: the client is told, instead of waiting for ever
            logger.exception("fetch.failed", extra={"facts": {"shard": shard.shard.id}})
            self._refuse(link, frame, InternalError("a condition failed unexpectedly"))
        finally:
            link.reading_bytes -= held
            link.requests -= 1
        self.resume(link)
        link.flush_soon()

    def _send(self, link: Link, frame: Fetch, shard: ShardServer, batches: Sequence[Buffer], end: int) -> None:
        """end: where the peer goes on; past the batches, and past what was left out after them."""
        if link.closed or (isinstance(frame, PushedFetch) and frame.over):
            return
        size = sum(map(len, batches))
        assert size <= FETCH_BYTES_MAX, "an answer fits a frame"
        assert end <= max(shard.high_watermark, frame.start), "nothing above the high watermark leaves"
        if batches:
            shard.handed_out(frame.application, end - frame.start, size)
        link.answering(size)
        link.wire.writer.fetch_ok(
            frame.request_id, shard.high_watermark, shard.log.log_start, shard.log.log_end, end, batches
        )
        if isinstance(frame, PushedFetch):
            frame.start = end
            frame.credit_bytes -= size
            asyncio.get_running_loop().call_soon(self._again, link, frame)

    def woken(self, waiting: Waiting) -> None:
        self._waiting.pop(waiting, None)
        link = waiting.link
        link.waiting -= 1
        if isinstance(waiting.frame, PushedFetch):
            waiting.frame.waiting = None
        if link.closed:
            return
        if link.held or not link.has_room():
            link.held.append(waiting.frame)
            link.requests += 1
            return
        self._serve(link, waiting.frame, 0)
        link.flush_soon()

    def forget(self, link: Link) -> None:
        """Its connection is gone."""
        for waiting in [waiting for waiting in self._waiting if waiting.link is link]:
            waiting.cancel()
            self._waiting.pop(waiting, None)

    def drain(self) -> None:
        """Answer what waits, now; nothing waits from here on."""
        self.draining = True
        for waiting in list(self._waiting):
            waiting.wake()

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def waiting(self) -> int:
        return len(self._waiting)


class Waiting:
    """A fetch that waits for the high watermark to pass its start, or for its time to be up."""

    __slots__ = ("_fetches", "_shard", "_timer", "frame", "link")

    def __init__(self, fetches: Fetches, link: Link, frame: Fetch, shard: ShardServer, seconds: float) -> None:
        self.link, self.frame = link, frame
        link.waiting += 1
        self._fetches, self._shard = fetches, shard
        self._timer = asyncio.get_running_loop().call_later(seconds, self.wake)
        shard.watch(self, self._moved)

    def _moved(self) -> None:
        # A start above the new high watermark waits on, with the time it has left.
        if self.frame.start >= self._shard.high_watermark and not self._fetches.draining and not self._shard.gone:
            self._shard.watch(self, self._moved)
        else:
            self.wake()

    def wake(self) -> None:
        self.cancel()
        self._fetches.woken(self)

    def cancel(self) -> None:
        self._timer.cancel()
        self._shard.unwatch(self)
