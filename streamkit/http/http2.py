"""HTTP/2: one connection with its streams, around the engine `h2`.

    stream:  head ▸ body (window given back as it comes) ▸ waits for its turn ▸ handler ▸ answer ▸ ended
                                  └── refused or reset: from any state ──┘

Answers go out through `_pump`: one frame of each stream in turn, as far as the peer's windows and the socket allow; a
stream whose window is shut stands aside. Nothing is copied before it can leave. What a peer may ask for without
bringing work is counted by `FrameGuard`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    PingReceived,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from hyperframe.frame import GoAwayFrame

from streamkit.errors import ConnectionFailed
from streamkit.http.engine import Engine
from streamkit.http.exchange import WITHOUT_BODY, HttpConfig, Request, Response, add_part, joined, uncancelled
from streamkit.http.guard import FrameGuard

if TYPE_CHECKING:
    from streamkit.http.connection import HttpConnection

logger = logging.getLogger("streamkit.http")

_FLUSH_BYTES = 64 * 1024
_UNREAD_BYTES_MAX = 1024 * 1024        # of answers to pings and the like that a peer does not read
_SMALL_FRAME_BYTES = 512               # of answers: sending it earns nothing
_TINY_BYTES = 16                       # of requests: it costs as much as a frame without any


class _Stream:
    """One request and its answer.

    whole: nothing of the request is missing. begun: its task runs. pending: what is to be sent of the answer from
    `at` on; last: nothing follows it. moved: loop time when the body began, or the answer last moved.
    """

    __slots__ = (
        "at", "begun", "gone", "headers", "id", "last", "method", "moved", "parts", "pending", "ready", "size",
        "streaming", "taker", "target", "task", "whole",
    )  # fmt: skip

    def __init__(self, stream_id: int, now: float) -> None:
        self.id = stream_id
        self.method = self.target = ""
        self.headers: dict[str, str] = {}
        self.parts: list[bytes | bytearray] = []
        self.size = 0
        self.whole = self.begun = self.gone = self.ready = self.last = self.streaming = False
        self.pending: memoryview | None = None
        self.at = 0
        self.moved = now
        self.task: asyncio.Task[None] | None = None
        self.taker: asyncio.Future[None] | None = None

    def take(self, headers: list[tuple[bytes, bytes]], config: HttpConfig) -> int:
        """The status to refuse with, or 0. The engine has checked names, values and their order."""
        if len(headers) > config.headers_max + 4:
            return 431
        fields = self.headers
        for name, value in headers:
            key, text = name.decode("latin-1"), value.decode("latin-1")
            if key[0] == ":":
                if key == ":method":
                    self.method = text
                elif key == ":path":
                    self.target = text
                elif key == ":authority":
                    fields["host"] = text
            elif key in fields:
                if key != "host":
                    fields[key] = f"{fields[key]},{text}"
            else:
                fields[key] = text
        if not self.target or not self.method or "host" not in fields:
            return 400
        if len(self.target) > config.target_bytes_max:
            return 414
        length = fields.get("content-length", "0")
        if not length.isascii() or not length.isdigit():
            return 400
        return 413 if int(length) > config.body_bytes_max else 0


class _Frames:
    """The body of an answer, as DATA frames."""

    def __init__(self, owner: Http2, stream: _Stream) -> None:
        self._owner = owner
        self._stream = stream

    async def send(self, chunk: bytes | memoryview) -> None:
        await self._owner.send(self._stream, chunk)


class Http2:
    """`connection.Speaker`. A task a request, while the handler has it or it streams."""

    def __init__(self, connection: HttpConnection) -> None:
        self._connection = connection
        self._listener = connection.listener
        self._config = config = connection.config
        self._loop = connection.loop
        now = self._loop.time()
        self._guard = FrameGuard(config, now)
        self._streams: dict[int, _Stream] = {}
        self._waiting: deque[_Stream] = deque()        # whole, for a handler
        self._ready: deque[_Stream] = deque()          # have something to send and, as far as is known, room for it
        self._unread = b""
        self._running = 0                              # in the handler's hands
        self.unsent_bytes = 0                         # of whole answers
        self._flushing = self._draining = self._ended = self._no_more_input = False
        self._idle_since = now
        self._block_since: float | None = now          # the head of a request, or the preface, has begun
        self._next = now + config.head_seconds         # no deadline is earlier
        self._engine = Engine(config)
        self._flush()

    # -- the connection calls these ------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        if self._unread or self._ended:
            self._unread += data if not self._ended else b""
            return
        at = self._take(data)
        if at < len(data) and not self._ended:
            self._unread = data[at:]
            self._pause_reading(True)
            self._loop.call_soon(self._take_more)

    def _take_more(self) -> None:
        """What came with too many frames at once to let everybody else wait for."""
        if self._unread and not self._ended:
            self._unread = self._unread[self._take(self._unread) :]
        if self._unread and not self._ended:
            self._loop.call_soon(self._take_more)
        else:
            self._unread = b""
            self._pause_reading(False)

    def _take(self, data: bytes) -> int:
        """Some frames of `data`; returns where the rest begins."""
        now = self._loop.time()
        reason, at = self._guard.look(data, now)
        if reason:
            self._end(ErrorCodes.ENHANCE_YOUR_CALM, f"too many {reason}")
            return at
        try:
            events = self._engine.receive_data(data[:at])
        except ProtocolError as error:     # the engine has written the GOAWAY
            self._end(None, str(error))
            return at
        except Exception as error:
            logger.exception("http.failed", extra={"facts": {"peer": self._connection.peer}})
            self._end(ErrorCodes.INTERNAL_ERROR, str(error))
            return at
        for event in events:
            take = _TAKE.get(type(event))
            if take is not None and not self._ended:
                take(self, event)
        if not self._guard.in_block:
            self._block_since = None
        elif self._block_since is None:
            self._block_since = now
            self._sooner(now + self._config.head_seconds)
        self._start_some()
        self._pump()
        self._flush()
        transport = self._connection.transport
        unread_max = self._config.write_buffer_bytes + _UNREAD_BYTES_MAX
        if transport is not None and transport.get_write_buffer_size() > unread_max:
            self._connection.abort()
        return at

    def _pause_reading(self, paused: bool) -> None:
        transport = self._connection.transport
        if transport is not None and not transport.is_closing():
            (transport.pause_reading if paused else transport.resume_reading)()

    def end_of_input(self) -> bool:
        while self._unread and not self._ended:
            self._unread = self._unread[self._take(self._unread) :]
        self._no_more_input = True
        if self._ended:
            return False
        for stream in list(self._streams.values()):
            if not stream.whole or stream.streaming:
                self._drop(stream)
        self._rest()
        return bool(self._streams)

    def lost(self) -> None:
        self._ended = True
        for stream in list(self._streams.values()):
            self._drop(stream)

    def writable(self) -> None:
        self._pump()
        self._flush()
        self._start_some()

    def drain(self) -> None:
        """A GOAWAY that names the last stream taken; those that come later are refused, so that clients repeat them."""
        if self._ended or self._draining:
            return
        self._draining = True
        self._flush()
        self._connection.write(GoAwayFrame(0, last_stream_id=self._engine.highest_inbound_stream_id).serialize())
        self._rest()

    def deadline(self) -> float | None:
        return self._next

    def expired(self, now: float) -> None:
        config = self._config
        if self._ended:
            self._connection.close()
            return
        if self._block_since is not None and self._block_since + config.head_seconds <= now:
            self._end(ErrorCodes.NO_ERROR, "the head of a request took too long")
            return
        for stream in list(self._streams.values()):
            if self._stream_until(stream, now) > now:
                continue
            if stream.whole:
                self._reset(stream, ErrorCodes.CANCEL)
            else:
                self._refuse(stream, 408)
        if not self._streams and self._idle_since + config.idle_seconds <= now:
            self._end(ErrorCodes.NO_ERROR, "")
        self._flush()
        if not self._ended:
            times = [self._stream_until(stream, now) for stream in self._streams.values()]
            if self._block_since is not None:
                times.append(self._block_since + config.head_seconds)
            self._next = min(times, default=self._idle_since + config.idle_seconds)

    def _stream_until(self, stream: _Stream, now: float) -> float:
        config = self._config
        if not stream.whole:
            return stream.moved + config.body_seconds + stream.size / config.body_rate_min
        if stream.pending is not None and not stream.streaming:
            return stream.moved + config.answer_seconds
        return now + config.idle_seconds

    def _sooner(self, when: float) -> None:
        """There is a deadline at `when`. Looked at again then: it may have moved meanwhile."""
        if when < self._next:
            self._next = when
            self._connection.watch()

    # -- what the engine tells -----------------------------------------------------------------------------

    def _request(self, event: RequestReceived) -> None:
        stream_id = event.stream_id
        assert stream_id is not None, "a request has a stream"
        stream = _Stream(stream_id, self._loop.time())
        self._streams[stream_id] = stream
        if self._draining:
            self._reset(stream, ErrorCodes.REFUSED_STREAM)
            return
        refusal = stream.take(event.headers, self._config)
        if refusal:
            self._refuse(stream, refusal)
        elif event.stream_ended is None:
            self._sooner(stream.moved + self._config.body_seconds)
            expects = stream.headers.get("expect", "").lower() == "100-continue"
            if expects and self._engine.takes(stream_id):
                self._engine.send_headers(stream_id, [(b":status", b"100")])

    def _data(self, event: DataReceived) -> None:
        stream_id, data = event.stream_id, event.data or b""
        assert stream_id is not None, "data has a stream"
        if event.flow_controlled_length:
            self._engine.acknowledge_received_data(event.flow_controlled_length, stream_id)
            if len(data) < _TINY_BYTES and event.stream_ended is None and not self._guard.spend():
                self._end(ErrorCodes.ENHANCE_YOUR_CALM, "too many tiny frames")
                return
        stream = self._streams.get(stream_id)
        if stream is None or not data:
            return
        if stream.size + len(data) > self._config.body_bytes_max:
            self._refuse(stream, 413)
        elif not self._listener.bodies.take(len(data)):
            self._refuse(stream, 503)
        else:
            stream.size += len(data)
            add_part(stream.parts, bytes(data))

    def _whole(self, event: StreamEnded) -> None:
        stream = self._streams.get(event.stream_id or 0)
        if stream is not None and not stream.whole:
            stream.whole = True
            self._waiting.append(stream)

    def _was_reset(self, event: StreamReset) -> None:
        stream = self._streams.get(event.stream_id or 0)
        if stream is not None:
            self._drop(stream)
        else:
            self._engine.forget(event.stream_id or 0)

    def _window(self, event: WindowUpdated) -> None:
        if not event.stream_id:
            return                         # of the connection: `_pump` looks at it anyway
        stream = self._streams.get(event.stream_id)
        if stream is not None and stream.pending is not None:
            self._make_ready(stream)

    def _settings(self, event: RemoteSettingsChanged) -> None:
        for stream in self._streams.values():          # the windows of all of them may have changed
            if stream.pending is not None:
                self._make_ready(stream)

    def _ping(self, event: PingReceived) -> None:
        self._idle_since = self._loop.time()           # the engine has answered it

    def _goaway(self, event: ConnectionTerminated) -> None:
        if event.error_code:
            self._ended = True
            self._connection.close()
            return
        self._draining = True
        self._rest()

    # -- requests ------------------------------------------------------------------------------------------

    def _start_some(self) -> None:
        config = self._config
        while (
            self._waiting and self._running < config.handlers_max and self.unsent_bytes < config.unsent_bytes_max
        ):
            stream = self._waiting.popleft()
            if not stream.gone:
                self._running += 1
                stream.task = self._loop.create_task(self._answer(stream))

    async def _answer(self, stream: _Stream) -> None:
        stream.begun = True
        request = Request(
            stream.method, stream.target, stream.headers, joined(stream.parts), True, self._connection.secure,
            self._connection.peer,
        )  # fmt: skip
        stream.parts = []
        try:
            response = await self._listener.answer(request)
        finally:
            self._running -= 1
            self._give_back(stream)
            del request
        if stream.gone or self._ended:
            return
        if response.stream is None or stream.method == "HEAD" or response.status in WITHOUT_BODY:
            self._respond(stream, response)
        else:
            self._send_head(stream, response, None)
            stream.streaming = True
            self._start_some()
            await self._stream(stream, response.stream)
        self._start_some()

    def _respond(self, stream: _Stream, response: Response) -> None:
        size = len(response.body)
        if not size or stream.method == "HEAD" or response.status in WITHOUT_BODY:
            self._send_head(stream, response, size, end=True)
            self._finished(stream)
        else:
            self._send_head(stream, response, size)
            stream.last = True
            self.unsent_bytes += size
            self._put(stream, response.body)
        self._flush_soon()

    async def _stream(self, stream: _Stream, give: Callable[[_Frames], Awaitable[None]]) -> None:
        self._flush_soon()
        try:
            await uncancelled(give(_Frames(self, stream)))
        except ConnectionFailed:
            self._reset(stream, ErrorCodes.CANCEL)
        except Exception:
            logger.exception("http.failed", extra={"facts": {"path": stream.target[:200]}})
            self._reset(stream, ErrorCodes.INTERNAL_ERROR)
        else:
            if not stream.gone:
                self._engine.end_stream(stream.id)
                self._finished(stream)
        self._flush_soon()

    async def send(self, stream: _Stream, chunk: bytes | memoryview) -> None:
        if stream.gone:
            raise self._connection.gone()
        if not len(chunk):
            return
        self._put(stream, chunk)
        self._flush_soon()
        if stream.pending is not None:
            stream.taker = self._loop.create_future()
            await stream.taker
        if stream.gone:
            raise self._connection.gone()
        if self._connection.paused:
            await self._connection.taken()

    def _send_head(self, stream: _Stream, response: Response, size: int | None, *, end: bool = False) -> None:
        headers = [(b":status", b"%d" % response.status)]
        for name, value in response.headers:
            headers.append((name.encode("latin-1"), value.encode("latin-1")))
        if size is not None and response.status not in WITHOUT_BODY:
            headers.append((b"content-length", b"%d" % size))
        headers.append((b"date", self._listener.date(self._loop.time()).encode()))
        self._engine.send_headers(stream.id, headers, end_stream=end)

    def _refuse(self, stream: _Stream, status: int) -> None:
        """Answer without a body, and take no more of the request."""
        self._listener.rejected += 1
        if self._engine.takes(stream.id):
            self._send_head(stream, Response(status), 0, end=True)
        if self._engine.takes(stream.id):
            self._engine.reset_stream(stream.id, ErrorCodes.NO_ERROR)
        self._drop(stream)

    def _reset(self, stream: _Stream, code: ErrorCodes) -> None:
        if not stream.gone and not self._ended:
            if self._engine.takes(stream.id):
                self._engine.reset_stream(stream.id, code)
            self._drop(stream)

    def _finished(self, stream: _Stream) -> None:
        self._guard.earn(2)
        stream.task = None                 # it ends by itself
        self._drop(stream)

    def _drop(self, stream: _Stream) -> None:
        """The stream is over, one way or the other."""
        if stream.gone:
            return
        stream.gone = True
        del self._streams[stream.id]
        self._engine.forget(stream.id)
        if stream.pending is not None:
            self._done_sending(stream)
        if stream.ready:
            self._ready.remove(stream)
        if stream.task is not None:
            stream.task.cancel()
            self._running -= not stream.begun          # a task that is cancelled before it began does nothing at all
        elif stream.whole and not stream.begun and self._waiting:
            with contextlib.suppress(ValueError):
                self._waiting.remove(stream)
        if not stream.begun:
            self._give_back(stream)
        if not self._streams:
            self._idle_since = self._loop.time()
            self._sooner(self._idle_since + self._config.idle_seconds)
            self._rest()

    def _give_back(self, stream: _Stream) -> None:
        self._listener.bodies.give_back(stream.size)
        stream.size = 0
        stream.parts = []

    # -- what leaves ---------------------------------------------------------------------------------------

    def _put(self, stream: _Stream, body: bytes | memoryview) -> None:
        assert stream.pending is None, "one piece of an answer at a time"
        stream.pending, stream.at, stream.moved = memoryview(body), 0, self._loop.time()
        self._make_ready(stream)
        self._pump()
        if stream.pending is not None and not stream.streaming:
            self._sooner(stream.moved + self._config.answer_seconds)

    def _make_ready(self, stream: _Stream) -> None:
        if not stream.ready:
            stream.ready = True
            self._ready.append(stream)

    def _pump(self) -> None:
        engine, ready, written = self._engine, self._ready, 0
        while ready and not self._connection.paused and not self._ended:
            if engine.outbound_flow_control_window <= 0:
                break
            stream = ready.popleft()
            pending = stream.pending
            if pending is None:
                stream.ready = False
                continue
            left = len(pending) - stream.at
            size = min(left, engine.local_flow_control_window(stream.id), engine.max_outbound_frame_size)
            if size <= 0:
                stream.ready = False       # its own window is shut: it comes back with a WINDOW_UPDATE
                continue
            engine.send_data(stream.id, pending[stream.at : stream.at + size], end_stream=stream.last and size == left)
            stream.at += size
            stream.moved = self._loop.time()
            if size >= _SMALL_FRAME_BYTES:
                self._guard.earn(2)
            if size < left:
                ready.append(stream)
            else:
                stream.ready = False
                self._done_sending(stream)
                if stream.last:
                    self._finished(stream)
            written += size
            if written >= _FLUSH_BYTES:
                written = 0
                self._flush()

    def _done_sending(self, stream: _Stream) -> None:
        if stream.last and stream.pending is not None:
            self.unsent_bytes -= len(stream.pending)
            if self._waiting:
                self._loop.call_soon(self._start_some)
        stream.pending = None
        if stream.taker is not None and not stream.taker.done():
            stream.taker.set_result(None)

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if data := self._engine.data_to_send():
            self._connection.write(data)

    def _rest(self) -> None:
        """Close when nothing is under way and nothing more is to come."""
        if not self._streams and (self._draining or self._no_more_input) and not self._ended:
            self._ended = True
            self._flush()
            self._connection.close()

    def _end(self, code: ErrorCodes | None, reason: str) -> None:
        """code: None when the engine has already written the GOAWAY."""
        if self._ended:
            return
        if code != ErrorCodes.NO_ERROR:
            self._listener.rejected += 1
        if code is not None:
            last = self._engine.highest_inbound_stream_id
            self._flush()
            self._connection.write(GoAwayFrame(0, last, int(code), reason.encode()[:200]).serialize())
        self._flush()
        self._ended = True
        if code == ErrorCodes.NO_ERROR or not self._config.linger_seconds:
            self._connection.close()
        else:
            # What still arrives is thrown away, so that it does not destroy the GOAWAY on its way.
            for stream in list(self._streams.values()):
                self._drop(stream)
            self._next = self._loop.time() + self._config.linger_seconds
            self._connection.watch()


_TAKE: dict[type, Callable[[Http2, Any], None]] = {
    RequestReceived: Http2._request, DataReceived: Http2._data, StreamEnded: Http2._whole,
    StreamReset: Http2._was_reset, WindowUpdated: Http2._window, RemoteSettingsChanged: Http2._settings,
    PingReceived: Http2._ping, ConnectionTerminated: Http2._goaway,
}  # fmt: skip
