"""One accepted connection: which protocol it speaks, when it has waited too long, whether the peer takes more.

    accepted ──▶ ALPN said which, or the first 24 bytes do (head_seconds) ──▶ Http1 or Http2 ──▶ lost

The speaker sees bytes and deadlines; timers and the socket's back-pressure are here. One timer a connection, moved
only when a deadline comes earlier: most deadlines are replaced by later ones long before they are due.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol, cast

from streamkit.errors import ConnectionFailed
from streamkit.http.exchange import HttpConfig
from streamkit.http.http1 import Http1
from streamkit.runtime.interfaces import Connection

if TYPE_CHECKING:
    from streamkit.http.listener import HttpListener

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_BUSY = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Speaker(Protocol):
    """One protocol on one connection."""

    def receive(self, data: bytes) -> None: ...
    def end_of_input(self) -> bool:
        """The peer sends nothing more; True: there is still something to answer."""

    @property
    def unsent_bytes(self) -> int:
        """Of answers, beside what the socket has been given."""

    def lost(self) -> None: ...
    def writable(self) -> None:
        """The socket takes more again."""

    def drain(self) -> None:
        """Finish what is under way, begin nothing, close."""

    def deadline(self) -> float | None:
        """Loop time at which `expired` is to be called."""

    def expired(self, now: float) -> None: ...


class HttpConnection(asyncio.Protocol):
    def __init__(self, listener: HttpListener) -> None:
        self.listener = listener
        self.config: HttpConfig = listener.config
        self.loop = asyncio.get_running_loop()
        self.transport: Connection | None = None
        self.secure = False
        self.peer = ""
        self.paused = False                    # the peer takes no more for now
        self._speaker: Speaker | None = None
        self._first = b""
        self._first_deadline = 0.0
        self._abort_at = 0.0                   # once it is closing
        self._timer: asyncio.TimerHandle | None = None
        self._takers: list[asyncio.Future[None]] = []

    # -- asyncio calls these -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = made = cast("Connection", transport)
        made.set_write_buffer_limits(high=self.config.write_buffer_bytes)
        if len(self.listener.connections) >= self.config.connections_max or self.listener.draining:
            # An HTTP/2 client takes these bytes for a broken connection, and comes again later.
            self.listener.rejected += 1
            made.write(_BUSY)
            made.close()
            self.transport = None
            return
        self.listener.connections.add(self)
        name = made.get_extra_info("peername")
        if isinstance(name, tuple):
            self.peer = f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
        tls = made.get_extra_info("ssl_object")
        self.secure = tls is not None
        chosen = tls.selected_alpn_protocol() if tls is not None else None
        if chosen == "h2" and self.listener.http2 is not None:
            self._speaker = self.listener.http2(self)
        elif chosen == "http/1.1" or self.listener.http2 is None:
            self._speaker = Http1(self)
        else:
            self._first_deadline = self.loop.time() + self.config.head_seconds
        self.watch()

    def data_received(self, data: bytes) -> None:
        if self._speaker is not None:
            self._speaker.receive(data)
        elif self.transport is not None:
            self._first += data
            if PREFACE.startswith(self._first) and len(self._first) < len(PREFACE):
                return
            is_http2 = self._first.startswith(PREFACE) and self.listener.http2 is not None
            self._speaker = self.listener.http2(self) if is_http2 and self.listener.http2 is not None else Http1(self)
            data, self._first = self._first, b""
            self._speaker.receive(data)

    def eof_received(self) -> bool:
        # TLS has no half-closed connections.
        return self._speaker is not None and self._speaker.end_of_input() and not self.secure

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self._wake_takers()
        if self._speaker is not None:
            self._speaker.writable()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.transport = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.listener.forget(self)
        self._wake_takers()
        if self._speaker is not None:
            self._speaker.lost()

    # -- speakers call these --------------------------------------------------------------------------------

    @property
    def unsent_bytes(self) -> int:
        """Of its answers in memory, because the peer has not taken them."""
        if self.transport is None:
            return 0
        waiting = self._speaker.unsent_bytes if self._speaker is not None else 0
        return waiting + self.transport.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)

    def close(self) -> None:
        """What is written still leaves, unless the peer takes nothing of it for long."""
        if self.transport is not None:
            self._abort_at = self._abort_at or self.loop.time() + self.config.answer_seconds
            self.transport.close()
            self.watch()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    async def taken(self) -> None:
        """Until the socket takes more. Raises ConnectionFailed when the connection is gone."""
        while self.paused and self.transport is not None:
            taker = self.loop.create_future()
            self._takers.append(taker)
            await taker
        if self.transport is None or self.transport.is_closing():
            raise self.gone()

    def gone(self) -> ConnectionFailed:
        return ConnectionFailed(f"{self.peer or 'the peer'} has gone", address=self.peer, sent=True)

    def watch(self) -> None:
        """To be called when the speaker's deadline may have come earlier."""
        when = self._deadline()
        if when is None or self.transport is None:
            return
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = self.loop.call_at(when, self._look)

    def drain(self) -> None:
        if self._speaker is not None:
            self._speaker.drain()
        else:
            self.close()

    def _deadline(self) -> float | None:
        if self._abort_at:
            return self._abort_at
        return self._first_deadline if self._speaker is None else self._speaker.deadline()

    def _look(self) -> None:
        self._timer = None
        when, now = self._deadline(), self.loop.time()
        if when is not None and when <= now:
            if self._abort_at:
                self.abort()
            elif self._speaker is None:
                self.close()
            else:
                self._speaker.expired(now)
        self.watch()

    def _wake_takers(self) -> None:
        takers, self._takers = self._takers, []
        for taker in takers:
            if not taker.done():
                taker.set_result(None)
