"""One connection, and what it may cost.

Bytes come in through asyncio.BufferedProtocol into the wire's own buffer; what leaves is gathered in the wire's
writer and written once a loop turn. Three bounds keep a connection from filling the node's memory:

    puts not yet acknowledged     reading stops above unacknowledged_bytes_max, and for all links that put
                                  while the node is above its budget
    answers not yet taken         fetches are held back above write_bytes_max
    requests under way            reading stops above requests_max
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from streamkit.errors import ProtocolMismatch, StreamkitError, TimedOut
from streamkit.model.limits import FRAME_BYTES_MAX
from streamkit.protocol.connection import Connection as Wire
from streamkit.protocol.connection import Side, State
from streamkit.protocol.conversion import failure_to_wire
from streamkit.protocol.messages import Message
from streamkit.runtime.interfaces import Connection

if TYPE_CHECKING:
    from streamkit.broker.matching import Fetch
    from streamkit.broker.pushing import PushedFetch
    from streamkit.broker.server import Server


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkConfig:
    """Bounds of one connection."""

    greeting_seconds: float = 10.0                 # from connected to a whole Hello
    frame_seconds: float = 60.0                    # from a frame's first byte to its last
    stall_seconds: float = 60.0                    # with answers to take and none taken
    idle_seconds: float = 900.0                    # without a frame and nothing under way; 0: for ever
    unacknowledged_bytes_max: int = 16 * 1024 * 1024
    write_bytes_max: int = 4 * 1024 * 1024
    requests_max: int = 1024                       # messages and held fetches
    receive_bytes: int = 512 * 1024                # the receive buffer's size under load

    def __post_init__(self) -> None:
        for name in ("unacknowledged_bytes_max", "write_bytes_max", "requests_max", "receive_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


class Link(asyncio.BufferedProtocol):
    """Made by the Server for each connection; the Service reads frames from it and answers into it."""

    def __init__(self, server: Server, number: int) -> None:
        self.number = number
        self.unacknowledged_bytes = 0
        self.requests = 0                          # messages under way, fetches held or reading the disk
        self.waiting = 0                           # fetches that wait for records
        self.held: deque[Fetch] = deque()     # fetches that wait until the peer takes what it asked for
        self.subscriptions: dict[int, PushedFetch] = {}            # by request number
        self.reading_bytes = 0                     # asked of the disk, not in the writer yet
        self.frames = 0
        self.closed = False
        self.quiet_since = self.partial_since = server.loop.time()
        self.seen_frames = -1
        self._seen_waiting = 0
        self._stalled_since = self.quiet_since
        self._server = server
        self._config = server.config.link
        self._paused = False
        self._writing_paused = False
        self._transport: Connection | None = None
        self._greeting: asyncio.TimerHandle | None = None
        self.wire = Wire(
            Side.BROKER, server.node, keep_bytes=self._config.receive_bytes, frame_bytes_max=FRAME_BYTES_MAX,
            addresses=server.addresses(),
        )  # fmt: skip

    # -- asyncio calls -------------------------------------------------------------------------------------

    def __hash__(self) -> int:
        """Sets of links are gone through in an order that the next run repeats, not in that of addresses."""
        return self.number

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("Connection", transport)
        self._transport.set_write_buffer_limits(high=self._config.write_bytes_max)
        if not self._server.admit(self):
            self.flush()
            return
        self._greeting = self._server.loop.call_later(self._config.greeting_seconds, self._no_greeting)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.wire.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        wire = self.wire
        frames = wire.buffer_updated(nbytes)
        if self.closed:
            return
        if self._greeting is not None and wire.state is not State.GREETING:
            self._greeting.cancel()
            self._greeting = None
        if frames:
            self.frames += len(frames)
            self._server.service.handle(self, frames)
            self._server.put_bytes += nbytes
        if wire.state is State.CLOSED:
            self._server.broke(self)
        elif self._paused or self.requests or self.unacknowledged_bytes:
            self.balance()
        self.flush()

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._resume_held()

    def _resume_held(self) -> None:
        if not self.closed:
            self._server.service.fetches.resume(self)
            self.flush()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._greeting is not None:
            self._greeting.cancel()
        self.closed = True
        self.held.clear()
        self.subscriptions.clear()
        self._server.forget(self)

    # -- answers -------------------------------------------------------------------------------------------

    def acknowledge(
        self, request_id: int, base_sequence: int, append_time_ms: int, epoch: int, duplicate: int, replicas: int,
        synced: bool,
    ) -> None:  # fmt: skip
        self.wire.writer.put_ok(request_id, base_sequence, append_time_ms, epoch, duplicate, replicas, synced)

    def answering(self, byte_count: int) -> None:
        """That much more is to be taken by the peer."""
        self._server.answer_bytes += byte_count

    def answer(self, request_id: int, message: Message) -> None:
        if not self.closed and self.wire.state is not State.CLOSED:
            self.wire.send(message, request_id)

    def refuse(self, request_id: int, operation: str, error: BaseException) -> None:
        """Answer with the error, and count it."""
        code = error.code if isinstance(error, StreamkitError) else "internal"
        self._server.counters.failures[operation, code] += 1
        self.answer(request_id, failure_to_wire(error))

    def flush(self) -> None:
        """Write what is gathered. Called at the end of whatever gathered it."""
        parts = self.wire.take()
        if not parts or self.closed or self._transport is None:
            return
        if len(parts) == 1:
            self._transport.write(parts[0])
        else:
            self._transport.writelines(parts)
        if self.wire.state is State.CLOSED:
            self._transport.close()
        elif self.held and not self._writing_paused:
            self._server.loop.call_soon(self._resume_held)     # the kernel took it all: nobody else will call

    def flush_soon(self) -> None:
        """At the end of this loop turn, once, whatever else is answered until then."""
        self._server.flush_soon(self)

    # -- bounds --------------------------------------------------------------------------------------------

    def outgoing_bytes(self) -> int:
        """Answers that the peer has not taken, and those being read for it."""
        waiting = self._transport.get_write_buffer_size() if self._transport is not None else 0
        return waiting + self.wire.writer.queued_bytes + self.reading_bytes

    def has_room(self) -> bool:
        """Whether another fetch may be answered now; when not, held ones are resumed once there is room."""
        gathered = self.wire.writer.queued_bytes + self.reading_bytes
        if self._writing_paused or gathered >= self._config.write_bytes_max:
            return False
        if self._server.answer_room():
            return True
        self._server.starve(self)
        return False

    def balance(self) -> None:
        """Stop or resume reading, as the bounds say. Cheap when nothing changes."""
        config = self._config
        if not self._paused:
            if (
                self.unacknowledged_bytes > config.unacknowledged_bytes_max
                or self.requests > config.requests_max
                or (self.unacknowledged_bytes and not self._server.put_room())
            ):
                self.pause()
        elif (
            self.unacknowledged_bytes <= config.unacknowledged_bytes_max // 2
            and self.requests <= config.requests_max // 2
            and self._server.put_room()
        ):
            self._paused = False
            self._server.paused.discard(self)
            if self._transport is not None and not self.closed:
                self._transport.resume_reading()

    def pause(self) -> None:
        """Read no more until `balance` finds every bound kept."""
        if self._transport is not None and not self._paused and not self.closed:
            self._paused = True
            self._server.paused.add(self)
            self._server.starve(self)
            self._transport.pause_reading()

    def keep_up(self) -> None:
        """It put what is acknowledged before it is written: the disk must not fall behind for ever."""
        if not self._server.put_room():
            self.pause()

    # -- ends ----------------------------------------------------------------------------------------------

    def _no_greeting(self) -> None:
        self._greeting = None
        seconds = self._config.greeting_seconds
        self.end(TimedOut(f"no greeting within {seconds:g} s", sent=False, timeout_ms=int(seconds * 1000)))

    def sweep(self, now_s: float) -> None:
        """Called every few seconds: end what trickles or sleeps."""
        waiting = self._transport.get_write_buffer_size() if self._transport is not None else 0
        if not waiting or waiting != self._seen_waiting:
            self._seen_waiting, self._stalled_since = waiting, now_s
        elif now_s - self._stalled_since > self._config.stall_seconds:
            self.abort()                           # it asked for answers and takes none
            return
        asking = self.requests or self.subscriptions or self.unacknowledged_bytes
        busy = self._paused or asking or self._greeting is not None
        if self.frames != self.seen_frames or busy:
            self.seen_frames, self.quiet_since, self.partial_since = self.frames, now_s, now_s
            return
        if not self.wire.reader.buffered_bytes:
            self.partial_since = now_s
        elif now_s - self.partial_since > self._config.frame_seconds:
            self.end(ProtocolMismatch("a frame took too long to arrive", reason="slow"))
            return
        if 0 < self._config.idle_seconds < now_s - self.quiet_since:
            self.say_goodbye("idle")
            if self._transport is not None:
                self._transport.close()

    def say_goodbye(self, reason: str) -> None:
        self.wire.say_goodbye(reason)
        self.flush()

    def end(self, error: StreamkitError) -> None:
        """Tell the peer why, and close."""
        self.wire.fail(error)
        self._server.broke(self)
        self.flush()
        if self._transport is not None:
            self._transport.close()

    def close(self) -> None:
        """After what is written has left."""
        self.flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
