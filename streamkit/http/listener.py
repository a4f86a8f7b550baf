"""The HTTP listener: one address, any number of connections within bounds, an orderly end.

Which protocol a connection speaks is found out in `connection.py`; `http1.py` and `http2.py` speak them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from streamkit.http.connection import HttpConnection, Speaker
from streamkit.http.exchange import Budget, Handler, HttpConfig, Request, Response, http_date, uncancelled
from streamkit.runtime.interfaces import Clock, Listener, Network, TlsContext
from streamkit.runtime.real import RealClock

__all__ = ["HttpConfig", "HttpListener"]

logger = logging.getLogger("streamkit.http")

_COUNTED_SECONDS = 0.1         # how old what is known of unsent answers may be


class HttpListener:
    """Open with `await HttpListener.open(…)`.

    rejected: connections and requests that were refused for a bound or because they made no sense.
    """

    def __init__(self, handler: Handler, config: HttpConfig, clock: Clock) -> None:
        self.handler = handler
        self.config = config
        self.connections: set[HttpConnection] = set()
        self.bodies = Budget(config.buffered_bytes_max)
        self.rejected = 0
        self.address = ""
        self.draining = False
        self.http2: Callable[[HttpConnection], Speaker] | None = None
        self._clock = clock
        self._listener: Listener | None = None
        self._none_left: asyncio.Future[None] | None = None
        self._date = ""
        self._date_until = 0.0
        self._unsent_bytes = 0                 # of all connections, when they were counted last
        self._counted_until = 0.0

    @classmethod
    async def open(
        cls, network: Network, address: str, handler: Handler, config: HttpConfig | None = None,
        tls: TlsContext | None = None, *, clock: Clock | None = None,
    ) -> HttpListener:
        """tls: as `tls.server_context` makes it; None: cleartext. clock: for the date of answers.

        Raises ConnectionFailed when the address cannot be had.
        """
        made = cls(handler, config or HttpConfig(), clock or RealClock())
        if made.config.http2:
            # Loaded here: the health pages do without it.
            from streamkit.http.http2 import Http2

            made.http2 = Http2
        made._listener = await network.listen(address, lambda: HttpConnection(made), tls)
        made.address = made._listener.address
        return made

    async def drain(self, seconds: float) -> int:
        """No new connections and requests; those under way are answered, then their connections end.

        Returns how many connections were cut off because that took longer than `seconds`.
        """
        self.draining = True
        if self._listener is not None:
            await self._listener.close()
        for connection in list(self.connections):
            connection.drain()
        if self.connections:
            self._none_left = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._none_left], timeout=seconds)
        cut = len(self.connections)
        await self.close()
        return cut

    async def close(self) -> None:
        """At once. Handlers that are under way are cancelled."""
        self.draining = True
        if self._listener is not None:
            await self._listener.close()
        for connection in list(self.connections):
            connection.abort()

    # -- connections call these ----------------------------------------------------------------------------

    def forget(self, connection: HttpConnection) -> None:
        self.connections.discard(connection)
        if not self.connections and self._none_left is not None and not self._none_left.done():
            self._none_left.set_result(None)

    def date(self, now: float) -> str:
        """now: loop time. The wall clock is read once a second."""
        if now >= self._date_until:
            now_ms = self._clock.now_ms()
            self._date = http_date(now_ms)
            self._date_until = now + 1 - now_ms % 1000 / 1000
        return self._date

    def _is_full(self) -> bool:
        now = asyncio.get_running_loop().time()
        if now >= self._counted_until:
            self._counted_until = now + _COUNTED_SECONDS
            self._unsent_bytes = sum(connection.unsent_bytes for connection in self.connections)
        return self._unsent_bytes > self.config.answers_bytes_max

    async def answer(self, request: Request) -> Response:
        """The handler's response, or 500 when it fails or its response could be taken for two.

        503 without asking it while peers that do not read keep too much of earlier answers in memory.
        """
        if self._is_full():
            self.rejected += 1
            return Response(503)
        try:
            response = await uncancelled(self.handler(request))
            for name, value in response.headers:
                if not (value.isascii() and value.isprintable()):
                    raise ValueError(f"the response's header {name} is not printable ASCII")
            return response
        except Exception:
            logger.exception("http.failed", extra={"facts": {"path": request.path[:200]}})
            return Response(500)
