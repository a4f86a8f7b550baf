"""One connection to one broker, shared by every request that goes there.

Requests get a number and leave together once a turn of the event loop; answers come in any order and are
handed out as they are parsed, without a further turn. A request ends exactly once: with its answer, with
TimedOut, or with ConnectionFailed when the connection breaks under it. A node that is frozen or cut off breaks no
connection: when nothing was heard for silence_ms while requests wait, it is asked for a sign of life, and when none
comes for as long again, the connection is taken for broken. Read `BrokerConnection.put` first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from streamkit.client.config import ClientConfig
from streamkit.errors import BufferFull, Closed, ConnectionFailed, ProtocolMismatch, StreamkitError, TimedOut
from streamkit.protocol.connection import Connection, Received, Side, State
from streamkit.protocol.conversion import failure_from_wire
from streamkit.protocol.frames import Fetched, PutReceipt
from streamkit.protocol.messages import DescribeNode, Failure, FetchMatching, GiveCredit, Goodbye, Message, Subscribe
from streamkit.runtime.interfaces import Buffer
from streamkit.runtime.interfaces import Connection as Transport

_log = logging.getLogger("streamkit.client")

Answer = PutReceipt | Fetched | Message
OnDone = Callable[[Any], None]             # gets the answer, or the StreamkitError that stands for it
OnRefused = Callable[[bytes, StreamkitError], None]

_SWEEP_S = 0.25                            # how late a time-out may be noticed
_FLUSH_BYTES = 1024 * 1024                 # this much leaves at once, before the turn is over
_ABANDONED_MAX = 10_000


class BrokerConnection(asyncio.BufferedProtocol):
    """opened: a future, done when the broker has answered the greeting, or failed.

    on_refused(shard uuid, error): called for every put or fetch that the broker refuses, before its on_done. on_lost:
    called when an opened connection has ended, before the requests under way learn of it.
    """

    def __init__(
        self, address: str, name: str, config: ClientConfig, on_refused: OnRefused,
        on_lost: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        self.address = address
        self.config = config
        self._on_lost = on_lost
        self._silent_sweeps = 0            # in a row, with requests under way and not a word since the one before
        self._was_heard = False            # since the last sweep
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.writable = True
        self._loop = asyncio.get_running_loop()
        self._wire = Connection(Side.CLIENT, name, keep_bytes=config.receive_bytes_keep)
        self._writer = self._wire.writer
        self._on_refused = on_refused
        self._transport: Transport | None = None
        self._pending: dict[int, tuple[float, type | None, OnDone, bytes]] = {}
        self._abandoned: set[int] = set()
        self._subscriptions: dict[int, tuple[OnDone, bytes]] = {}
        self._last_id = 0
        self._last_heard_s = 0.0
        self._flush_due = False
        self._sweep: asyncio.TimerHandle | None = None
        self._room: asyncio.Event | None = None
        self._lost: StreamkitError | None = None

    @property
    def usable(self) -> bool:
        """New requests may be made."""
        return self._wire.state is State.OPEN

    @property
    def node(self) -> str:
        """What the broker calls itself."""
        return self._wire.peer

    @property
    def node_addresses(self) -> tuple[str, ...]:
        """Where the nodes that lived when it greeted are reached; (): it is alone."""
        return self._wire.peer_addresses

    @property
    def features(self) -> frozenset[str]:
        """What it answers beyond the first version."""
        return self._wire.peer_features

    @property
    def pending(self) -> int:
        return len(self._pending)

    # ---- requests ----------------------------------------------------------------------------------------

    def put(self, shard: bytes, batch: Buffer, timeout_ms: int, on_done: OnDone) -> None:
        """Send a batch. on_done(PutReceipt or StreamkitError) is called once, from the loop, never from here.

        `batch` must not change until then.
        """
        if self._writer.queued_bytes > self.config.queue_bytes_max:
            self._loop.call_soon(on_done, self._full())
            return
        request_id = self._register(timeout_ms, PutReceipt, on_done, shard)
        self._writer.put(request_id, shard, timeout_ms, batch)
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)
        elif self._writer.queued_bytes > _FLUSH_BYTES and self.writable:
            self._flush()

    def fetch(
        self, shard: bytes, start: int, bytes_max: int, wait_ms: int, lease_epoch: int, session: int, application: str
    ) -> asyncio.Future[Fetched]:
        """Ask for stored batches; the broker answers after wait_ms at the latest."""
        future: asyncio.Future[Fetched] = self._loop.create_future()
        timeout_ms = self.config.request_timeout_ms + wait_ms
        request_id = self._register(timeout_ms, Fetched, partial(settle, future), shard)
        self._writer.fetch(request_id, shard, start, bytes_max, wait_ms, lease_epoch, session, application)
        self._flush_soon()
        return future

    def fetch_matching(self, message: FetchMatching) -> asyncio.Future[Fetched]:
        """The same where batches without a match may be left out; only of a broker that has the feature "where"."""
        future: asyncio.Future[Fetched] = self._loop.create_future()
        timeout_ms = self.config.request_timeout_ms + message.wait_ms
        request_id = self._register(timeout_ms, Fetched, partial(settle, future), message.shard)
        self._wire.send(message, request_id)
        self._flush_soon()
        return future

    def subscribe(self, message: Subscribe, on_push: OnDone) -> int:
        """Fetched after Fetched go to on_push, then the StreamkitError that ended them; the number is for give_credit.

        Only of a broker that has the feature "push".
        """
        request_id = self._new_id()
        self._subscriptions[request_id] = (on_push, message.shard)
        self._wire.send(message, request_id)
        self._keep_sweeping()
        self._flush_soon()
        return request_id

    def give_credit(self, subscription: int, byte_count: int) -> None:
        """0 ends it: on_push is not called again. Nothing happens when it is over already."""
        if subscription not in self._subscriptions:
            return
        if not byte_count:
            self._subscriptions[subscription] = (_heard, b"")      # until the broker says that it is done
        if self._wire.state is State.OPEN:
            self._wire.send(GiveCredit(byte_count), subscription)
            self._flush_soon()

    def call(self, message: Message, timeout_ms: int) -> asyncio.Future[Message]:
        """Send a message; the future gets the answer, or the error that the broker names."""
        future: asyncio.Future[Message] = self._loop.create_future()
        request_id = self._register(timeout_ms, None, partial(settle, future), b"")
        self._wire.send(message, request_id)
        self._flush_soon()
        return future

    async def wait_writable(self) -> None:
        """Until the socket takes more. Returns at once when nothing is held up, or when the connection is gone."""
        while not self.writable and self._lost is None:
            if self._room is None:
                self._room = asyncio.Event()
            await self._room.wait()

    def close(self) -> None:
        """Say goodbye and end; what is under way fails with Closed."""
        self._end(Closed(f"the connection to {self.address} was closed", what="connection"), graceful=True)

    def abort(self, error: StreamkitError) -> None:
        """End at once; what is under way fails with `error`."""
        self._end(error, graceful=False)

    # ---- asyncio calls these -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(Transport, transport)
        if self._lost is not None:
            self._transport.abort()        # given up while the network was still at it
            return
        self._last_heard_s = self._loop.time()
        self._flush()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._wire.get_buffer(sizehint)

    def buffer_updated(self, count: int) -> None:
        self._last_heard_s = self._loop.time()
        self._was_heard = True
        pending = self._pending
        frames: list[Any] = self._wire.buffer_updated(count)     # none of those that only nodes send to each other
        for frame in frames:
            waiting = pending.pop(frame.request_id, None)
            if type(frame) is PutReceipt and waiting is not None and waiting[1] is PutReceipt:
                self._hand_out(waiting[2], frame)
            else:
                self._receive(frame, waiting)
        state = self._wire.state
        if state is State.CLOSED and self._lost is None:
            self._end(self._wire.failure or self._broken(), graceful=False)
        elif state is State.OPEN and not self.opened.done():
            self.opened.set_result(None)
        elif state is State.DRAINING and not pending and self._lost is None:
            # Perhaps before anybody could use it: whoever waits for it is to try elsewhere.
            self._end(ConnectionFailed(
                f"{self.address} is about to end", try_="try again", address=self.address, sent=False
            ), graceful=True)  # fmt: skip

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        if self._room is not None:
            self._room.set()
            self._room = None
        self._flush()

    def connection_lost(self, cause: Exception | None) -> None:
        self._end(self._broken(cause), graceful=False)

    # ---- inside ------------------------------------------------------------------------------------------

    def _register(self, timeout_ms: int, expected: type | None, on_done: OnDone, shard: bytes) -> int:
        assert self._wire.state is State.OPEN, "requests go through Link, which waits for the greeting"
        request_id = self._new_id()
        self._pending[request_id] = (self._loop.time() + timeout_ms / 1000, expected, on_done, shard)
        self._keep_sweeping()
        return request_id

    def _new_id(self) -> int:
        request_id = self._last_id % 0xFFFFFFFF + 1
        while request_id in self._pending or request_id in self._abandoned or request_id in self._subscriptions:
            request_id = request_id % 0xFFFFFFFF + 1       # after four billion requests the numbers start over
        self._last_id = request_id
        return request_id

    def _keep_sweeping(self) -> None:
        if self._sweep is None:
            self._silent_sweeps = 0
            self._was_heard = True
            self._sweep = self._loop.call_later(_SWEEP_S, self._sweep_late)

    def _flush_soon(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if self.writable and self._writer.queued_bytes and self._transport is not None and self._lost is None:
            self._transport.writelines(self._wire.take())

    def _receive(self, frame: Any, waiting: tuple[float, type | None, OnDone, bytes] | None) -> None:
        # Everything but the receipt of a put that is waited for.
        answer: object = frame.message if isinstance(frame, Received) else frame
        if waiting is None:
            if isinstance(answer, Goodbye):
                _log.info("connection.draining address=%s reason=%s", self.address, answer.reason)
            elif frame.request_id in self._subscriptions:
                self._pushed(frame.request_id, answer)
            elif frame.request_id in self._abandoned:
                self._abandoned.discard(frame.request_id)  # too late; whoever asked has been told
            else:
                self._wire.fail(self._strange(f"answers request {frame.request_id}, which was not made"))
            return
        _, expected, on_done, shard = waiting
        if isinstance(answer, Failure):
            error = failure_from_wire(answer)
            if shard:
                self._on_refused(shard, error)
            self._hand_out(on_done, error)
        elif (expected is None) is isinstance(frame, Received) and expected in (None, type(frame)):
            self._hand_out(on_done, answer)
        else:
            error = self._strange(f"answers a request with {type(answer).__name__}")
            self._hand_out(on_done, error)
            self._wire.fail(error)

    def _pushed(self, request_id: int, answer: object) -> None:
        on_push, shard = self._subscriptions[request_id]
        if isinstance(answer, Fetched):
            self._hand_out(on_push, answer)
            return
        del self._subscriptions[request_id]
        if isinstance(answer, Failure):
            error = failure_from_wire(answer)
            if shard:
                self._on_refused(shard, error)
            self._hand_out(on_push, error)

    def _hand_out(self, on_done: OnDone, answer: object) -> None:
        try:
            on_done(answer)
        except Exception as error:         # the callback's defect must not cost the other requests their answers
            self._loop.call_exception_handler({"message": "a callback for an answer failed", "exception": error})

    def _sweep_late(self) -> None:
        # One timer for all: a timer a request would cost more than the request.
        now = self._loop.time()
        late = [request_id for request_id, waiting in self._pending.items() if waiting[0] <= now]
        silent = False
        for request_id in late:
            _, _, on_done, _ = self._pending.pop(request_id)
            self._abandoned.add(request_id)
            silent = silent or now - self._last_heard_s >= self.config.request_timeout_ms / 1000
            self._hand_out(on_done, TimedOut(f"{self.address} did not answer in time", sent=True, address=self.address))
        if silent or len(self._abandoned) > _ABANDONED_MAX or self._is_dead():
            self._end(self._broken(), graceful=False)      # most likely gone without a word
            return
        self._sweep = None
        if (self._pending or self._subscriptions) and self._lost is None:
            self._sweep = self._loop.call_later(_SWEEP_S, self._sweep_late)

    def _is_dead(self) -> bool:
        # Counted in sweeps, not in seconds: an event loop that stood still for a while has heard nothing either. Times
        # are not compared: on some loops what is heard in the turn of a sweep has the sweep's own.
        expecting = self._pending or self._subscriptions
        self._silent_sweeps = self._silent_sweeps + 1 if expecting and not self._was_heard else 0
        self._was_heard = False
        sweeps = max(1, round(self.config.silence_ms / 1000 / _SWEEP_S))
        if self._silent_sweeps == sweeps and self.usable:
            request_id = self._register(self.config.request_timeout_ms, None, _heard, b"")
            self._wire.send(DescribeNode(), request_id)
            self._flush_soon()
        return self._silent_sweeps >= 2 * sweeps

    def _end(self, error: StreamkitError, *, graceful: bool) -> None:
        if self._lost is not None:
            return
        if graceful and self._wire.state is State.OPEN:
            self._wire.say_goodbye()
            self.writable = True
            self._flush()
        self._lost = error
        self._wire.fail(error)
        self._wire.take()                  # batches that did not leave are not kept alive by a dead connection
        if self._transport is not None:
            self._transport.close() if graceful else self._transport.abort()
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        if not self.opened.done():
            self.opened.set_exception(error)
            self.opened.exception()        # nobody may be waiting; that is no defect
        elif self._on_lost is not None:
            self._on_lost()
        pending, self._pending = self._pending, {}
        for _, _, on_done, _ in pending.values():
            self._hand_out(on_done, again(error))
        subscriptions, self._subscriptions = self._subscriptions, {}
        for on_push, _ in subscriptions.values():
            self._hand_out(on_push, again(error))
        if self._room is not None:
            self._room.set()
            self._room = None

    def _broken(self, cause: Exception | None = None) -> ConnectionFailed:
        if self.opened.done():
            message = f"the connection to {self.address} broke" + (f": {cause}" if cause else "")
        else:
            message = f"{self.address} closed the connection before it greeted"
        return ConnectionFailed(message, try_="streamkit serve --dev", address=self.address, sent=self.opened.done())

    def _strange(self, what: str) -> ProtocolMismatch:
        return ProtocolMismatch(f"{self.address} {what}", reason="answer", address=self.address)

    def _full(self) -> BufferFull:
        return BufferFull(
            f"{self._writer.queued_bytes} bytes wait for {self.address} to take them",
            try_="put more slowly, or wait for earlier puts",
            buffered_bytes=self._writer.queued_bytes,
            limit_bytes=self.config.queue_bytes_max,
        )


def _heard(_answer: object) -> None:
    """That something came is all that was asked."""


def settle(future: asyncio.Future[Any], answer: object) -> None:
    """Give a future its answer, or the error that stands for it."""
    if future.done():
        return                             # the caller gave up
    if isinstance(answer, StreamkitError):
        future.set_exception(answer)
    else:
        future.set_result(answer)


def again(error: StreamkitError) -> StreamkitError:
    """The same error once more: each waiter gets its own, because raising one writes its traceback into it."""
    return type(error)(str(error), try_=error.try_, **error.facts)
