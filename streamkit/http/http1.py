"""HTTP/1.1: requests out of bytes (`RequestReader`, no socket), and one connection's life (`Http1`).

    idle ──▶ head (head_seconds) ──▶ body (body_seconds, and more for more bytes) ──▶ handler ──▶ idle (idle_seconds)
                     └──── refused: answered in its turn, then closed ◀──┘

Requests that were sent ahead wait, `pipelined_max` of them; what follows stays unread. Answers leave in order.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING

import httptools

from streamkit.errors import ConnectionFailed
from streamkit.http.exchange import (
    REASONS,
    WITHOUT_BODY,
    Budget,
    HttpConfig,
    Request,
    Response,
    add_part,
    joined,
    uncancelled,
)

if TYPE_CHECKING:
    from streamkit.http.connection import HttpConnection

logger = logging.getLogger("streamkit.http")

_PIECE_BYTES = 4 * 1024                # looked at between two looks at how many requests wait
_JOINED_BYTES_MAX = 64 * 1024          # a longer body is handed to the socket beside its head, not copied behind it
_LINGER_BYTES_MAX = 4 * 1024 * 1024
_ONLY_ONCE = frozenset({"host", "content-length", "transfer-encoding", "authorization", "expect"})
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_STATUS_LINES = {status: f"HTTP/1.1 {status} {reason}\r\n" for status, reason in REASONS.items()}
_NAMES = {
    name.encode(): name.lower()
    for lower in (
        "accept", "accept-encoding", "amz-sdk-invocation-id", "amz-sdk-request", "authorization", "connection",
        "content-length", "content-type", "expect", "host", "transfer-encoding", "user-agent", "x-amz-content-sha256",
        "x-amz-date", "x-amz-security-token", "x-amz-target", "x-amz-user-agent",
    )
    for name in (lower, lower.title())
}  # fmt: skip


class _Refused(Exception):
    """Leaves the parser; the status is in `RequestReader.refusal`."""


class Incoming:
    """A whole request, and how its answer is to be sent."""

    __slots__ = ("keep_alive", "old", "request")

    def __init__(self, request: Request, keep_alive: bool, old: bool) -> None:
        """old: HTTP/1.0, which knows no chunks."""
        self.request, self.keep_alive, self.old = request, keep_alive, old


class RequestReader:
    """Feed it what arrives. `complete` holds whole requests; after a `refusal` or `ended` nothing is read any more.

    refusal: the status to answer with, after those in `complete`; 0: none. expects: the client waits for
    "100 Continue" before it sends the body. held: bytes of the body that arrives now, taken from `bodies`.
    """

    def __init__(self, config: HttpConfig, bodies: Budget, *, secure: bool = False, peer: str = "") -> None:
        self._config = config
        self._bodies = bodies
        self._secure, self._peer = secure, peer
        self._parser = httptools.HttpRequestParser(self)
        self.complete: deque[Incoming] = deque()
        self.refusal = 0
        self.ended = False
        self.expects = False
        self.partial = False               # a request has begun and is not whole yet
        self.in_body = False
        self.held = 0
        self._length = 0
        self._unused = 0                   # bytes since the head began, or since the body last grew
        self._body_follows = False         # of a request that asks for an upgrade: the parser thinks it is whole
        self._deaf = False
        self._begin()

    def _begin(self) -> None:
        self._target = b""
        self._headers: dict[str, str] = {}
        self._count = self._head_bytes = 0
        self._parts: list[bytes | bytearray] = []      # of the body; small ones together, so that they stay few

    def feed(self, data: bytes) -> bytes:
        """Returns what was left because enough requests wait."""
        if len(data) <= _PIECE_BYTES and len(self.complete) < self._config.pipelined_max:
            self._feed(data)
            return b""
        view, at = memoryview(data), 0
        while at < len(view) and not self.refusal and not self.ended:
            if len(self.complete) >= self._config.pipelined_max:
                return bytes(view[at:])
            size = max(_PIECE_BYTES, self._length - self.held if self.in_body else 0)
            self._feed(view[at : at + size])
            at += size
        return b""

    def _feed(self, data: bytes | memoryview) -> None:
        while len(data) and not self.refusal and not self.ended:
            self._unused += len(data)
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                # Nobody is upgraded here: the request was one of HTTP/1.1, and so is what follows it.
                self._start_again()
                data = data[upgrade.args[0] :]
                continue
            except httptools.HttpParserError as error:
                if isinstance(error, httptools.HttpParserCallbackError) and not self.refusal:
                    logger.error("http.failed", exc_info=error)
                    self.refusal = 500
                if not self.ended:             # what follows "Connection: close" does not matter
                    self.refusal = self.refusal or 400
            if self._unused > self._config.head_bytes_max and self.partial and not self.refusal:
                # A head, or the frame of chunks and trailers, that does not come to an end.
                self.refusal = 400 if self.in_body else 431
            return

    def _start_again(self) -> None:
        """A new parser for what follows a request that asked for an upgrade: its body, or the next request."""
        method, old = self._parser.get_method(), self._parser
        self._parser = httptools.HttpRequestParser(self)
        if not self._body_follows:
            return
        body = f"Content-Length: {self._length}" if self._length else "Transfer-Encoding: chunked"
        keep_alive = "keep-alive" if old.should_keep_alive() else "close"
        head = f"{method.decode()} / HTTP/{old.get_http_version()}\r\nConnection: {keep_alive}\r\n{body}\r\n\r\n"
        self._body_follows, self._deaf = False, True
        self._parser.feed_data(head.encode())
        self._deaf = False

    def let_go(self) -> None:
        """Give back what a body that will not become whole has taken."""
        self._bodies.give_back(self.held)
        self.held = 0

    def _refuse(self, status: int) -> None:
        self.refusal = status
        raise _Refused

    # -- httptools calls these -----------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self.partial = True

    def on_url(self, part: bytes) -> None:
        if self._deaf:
            return
        self._target += part
        if len(self._target) > self._config.target_bytes_max:
            self._refuse(414)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._deaf:
            return
        self._count += 1
        self._head_bytes += len(name) + len(value) + 4
        if self._count > self._config.headers_max or self._head_bytes > self._config.head_bytes_max:
            self._refuse(431)
        if self.in_body:
            return                         # a trailer
        key = _NAMES.get(name) or name.decode("latin-1").lower()
        text = value.decode("latin-1")
        if key in self._headers:
            if key in _ONLY_ONCE:
                self._refuse(400)
            text = f"{self._headers[key]},{text}"
        self._headers[key] = text

    def on_headers_complete(self) -> None:
        if self._deaf:
            return
        self.in_body = True
        self._unused = 0
        headers = self._headers
        old = self._parser.get_http_version() != "1.1"
        if "host" not in headers and not old:
            self._refuse(400)
        length = headers.get("content-length")
        coding = headers.get("transfer-encoding")
        if coding is not None and (length is not None or old or coding.lower() != "chunked"):
            self._refuse(400)
        if length is not None:
            if not (length.isascii() and length.isdigit()):
                self._refuse(400)
            self._length = int(length)
            if self._length > self._config.body_bytes_max:
                self._refuse(413)
        expect = headers.get("expect")
        if expect is not None:
            if expect.lower() != "100-continue":
                self._refuse(417)
            self.expects = coding is not None or self._length > 0
        if self._parser.should_upgrade():
            if self._parser.get_method() == b"CONNECT":
                self._refuse(400)
            self._body_follows = coding is not None or self._length > 0

    def on_body(self, part: bytes) -> None:
        size = len(part)
        self._unused = 0
        self.expects = False
        if self.held + size > self._config.body_bytes_max:
            self._refuse(413)
        if not self._bodies.take(size):
            self._refuse(503)
        self.held += size
        add_part(self._parts, part)

    def on_message_complete(self) -> None:
        parser = self._parser
        if self._body_follows:
            return
        keep_alive = parser.should_keep_alive()
        request = Request(
            parser.get_method().decode("latin-1"), self._target.decode("latin-1"), self._headers,
            joined(self._parts), False, self._secure, self._peer,
        )  # fmt: skip
        self.complete.append(Incoming(request, keep_alive, parser.get_http_version() == "1.0"))
        self.partial = self.in_body = self.expects = False
        self.held = self._length = self._unused = 0
        if not keep_alive:
            self.ended = True
        self._begin()


def response_head(response: Response, date: str, *, keep_alive: bool, length: int | None, old: bool = False) -> bytes:
    """length: of the body; None: chunked, or until the connection ends when `old`."""
    status = response.status
    text = "".join([f"{name}: {value}\r\n" for name, value in response.headers])
    if length is not None:
        ending = "" if status in WITHOUT_BODY else f"content-length: {length}\r\n"
    else:
        ending = "" if old else "transfer-encoding: chunked\r\n"
    connection = "" if keep_alive else "connection: close\r\n"
    first = _STATUS_LINES.get(status) or f"HTTP/1.1 {status} \r\n"
    return f"{first}{text}{ending}date: {date}\r\n{connection}\r\n".encode("latin-1")


class _Chunks:
    """The body of an answer, a chunk a call."""

    def __init__(self, connection: HttpConnection, old: bool) -> None:
        self._connection = connection
        self._old = old

    async def send(self, chunk: bytes | memoryview) -> None:
        transport, size = self._connection.transport, len(chunk)
        if transport is None or transport.is_closing():
            raise self._connection.gone()
        if not size:
            return
        if self._old:
            transport.write(chunk)
        elif size <= _JOINED_BYTES_MAX:
            transport.write(b"".join((b"%x\r\n" % size, chunk, b"\r\n")))
        else:
            transport.writelines((b"%x\r\n" % size, chunk, b"\r\n"))
        if self._connection.paused:
            await self._connection.taken()


class Http1:
    """`connection.Speaker`. One task answers what waits, and ends when nothing does."""

    unsent_bytes = 0                           # answers are given to the socket whole

    def __init__(self, connection: HttpConnection) -> None:
        self._connection = connection
        self._listener = connection.listener
        self._config = config = connection.config
        self._reader = RequestReader(
            config, connection.listener.bodies, secure=connection.secure, peer=connection.peer
        )
        self._task: asyncio.Task[None] | None = None
        self._unread = b""
        self._streaming = False
        self._no_more_input = False
        self._lingering = -1               # bytes seen since the last answer; -1: not yet
        self._began = connection.loop.time()
        self._deadline: float | None = self._began + config.head_seconds

    # -- the connection calls these ------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        if self._lingering >= 0:
            self._lingering += len(data)
            if self._lingering > _LINGER_BYTES_MAX:
                self._connection.abort()
            return
        if self._unread:
            self._unread += data
            return
        began = not self._reader.partial
        in_body = self._reader.in_body
        self._unread = self._reader.feed(data)
        if self._unread:
            self._pause_reading(True)
        if self._task is not None:
            return
        if self._reader.complete:
            self._deadline = None
            self._task = self._connection.loop.create_task(self._answer())
        else:
            self._rest(began or in_body != self._reader.in_body)

    def end_of_input(self) -> bool:
        self._no_more_input = True
        if self._streaming and self._task is not None:
            # Whoever waits for events would not notice until it has one to send.
            self._task.cancel()
            return False
        return self._task is not None

    def lost(self) -> None:
        self._reader.let_go()
        while self._reader.complete:
            self._listener.bodies.give_back(len(self._reader.complete.popleft().request.body))
        if self._task is not None:
            self._task.cancel()

    def writable(self) -> None:
        self._deadline = None if self._task is not None else self._deadline

    def drain(self) -> None:
        if self._task is None and not self._reader.partial:
            self._connection.close()

    def deadline(self) -> float | None:
        return self._deadline

    def expired(self, now: float) -> None:
        reader = self._reader
        if self._task is not None:         # the peer takes nothing of its answer
            self._connection.abort()
        elif self._lingering >= 0 or not reader.partial:
            self._deadline = None
            self._connection.close()
        elif reader.in_body and now < (until := self._body_until()):
            self._deadline = until
        else:
            reader.refusal = 408
            self._rest(False)

    # -- between requests ----------------------------------------------------------------------------------

    def _body_until(self) -> float:
        return self._began + self._config.body_seconds + self._reader.held / self._config.body_rate_min

    def _rest(self, began: bool) -> None:
        """Nobody is being answered. began: a head or a body has just begun."""
        reader, connection = self._reader, self._connection
        if reader.refusal:
            self._listener.rejected += 1
            reader.let_go()
            connection.write(self._head(Response(reader.refusal), keep_alive=False, length=0))
            self._linger()
            return
        if reader.expects:
            reader.expects = False
            connection.write(_CONTINUE)
        if not reader.partial:
            if self._no_more_input or self._listener.draining:
                connection.close()
            return
        if began:
            self._began = connection.loop.time()
            self._deadline = self._body_until() if reader.in_body else self._began + self._config.head_seconds
            connection.watch()

    def _linger(self) -> None:
        """Close, but not before the peer had time to read: closing on what it still sends would destroy the answer."""
        self._lingering = 0
        self._unread = b""
        if self._no_more_input or not self._config.linger_seconds:
            self._connection.close()
            return
        self._pause_reading(False)
        self._deadline = self._connection.loop.time() + self._config.linger_seconds
        self._connection.watch()

    def _pause_reading(self, paused: bool) -> None:
        transport = self._connection.transport
        if transport is not None and not transport.is_closing():
            (transport.pause_reading if paused else transport.resume_reading)()

    # -- answers -------------------------------------------------------------------------------------------

    async def _answer(self) -> None:
        reader, connection = self._reader, self._connection
        while reader.complete and connection.transport is not None:
            incoming = reader.complete.popleft()
            keep_alive = await self._one(incoming)
            if connection.paused:
                self._deadline = connection.loop.time() + self._config.answer_seconds
                connection.watch()
                await connection.taken()
            if not keep_alive:
                self._task = None
                if reader.partial or reader.complete or self._unread:
                    self._linger()
                else:
                    connection.close()
                return
            if self._unread and len(reader.complete) < self._config.pipelined_max:
                await asyncio.sleep(0)     # others have their turn: there may be thousands
                self._unread = reader.feed(self._unread)
                if not self._unread:
                    self._pause_reading(False)
        self._task = None
        if connection.transport is not None:
            self._deadline = connection.loop.time() + self._config.idle_seconds
            self._rest(True)
            connection.watch()

    async def _one(self, incoming: Incoming) -> bool:
        """Answers one request; whether another may follow on this connection."""
        request, connection, reader = incoming.request, self._connection, self._reader
        try:
            response = await self._listener.answer(request)
        finally:
            self._listener.bodies.give_back(len(request.body))
        keep_alive = incoming.keep_alive and (bool(reader.complete) or not self._listener.draining)
        if response.stream is not None and request.method != "HEAD" and response.status not in WITHOUT_BODY:
            return await self._stream(response, incoming, keep_alive)
        body = response.body
        head = self._head(response, keep_alive=keep_alive, length=len(body))
        if request.method == "HEAD" or not len(body) or response.status in WITHOUT_BODY:
            connection.write(head)
        elif len(body) <= _JOINED_BYTES_MAX:
            connection.write(head + body)
        elif connection.transport is not None:
            connection.transport.writelines((head, body))
        return keep_alive

    async def _stream(self, response: Response, incoming: Incoming, keep_alive: bool) -> bool:
        assert response.stream is not None, "the caller has looked"
        connection = self._connection
        keep_alive = keep_alive and not incoming.old
        connection.write(self._head(response, keep_alive=keep_alive, length=None, old=incoming.old))
        self._streaming = True
        try:
            await uncancelled(response.stream(_Chunks(connection, incoming.old)))
        except ConnectionFailed:
            connection.abort()
            return False
        except Exception:
            logger.exception("http.failed", extra={"facts": {"path": incoming.request.path[:200]}})
            connection.abort()             # the last chunk is missing, so the peer knows
            return False
        finally:
            self._streaming = False
        if not incoming.old:
            connection.write(b"0\r\n\r\n")
        return keep_alive

    def _head(self, response: Response, *, keep_alive: bool, length: int | None, old: bool = False) -> bytes:
        date = self._listener.date(self._connection.loop.time())
        return response_head(response, date, keep_alive=keep_alive, length=length, old=old)
