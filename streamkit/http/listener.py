"""The HTTP listener: connections with limits and time-outs around `http1.RequestReader`.

    connected ──▶ reading a request (request_seconds) ──▶ answering ──▶ idle (idle_seconds) ──▶ closed

Requests of one connection are answered one after the other, in order.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import cast

from streamkit.http.http1 import Answer, Request, RequestReader
from streamkit.runtime.interfaces import Connection, Listener, Network

logger = logging.getLogger("streamkit.http")

Handler = Callable[[Request], Awaitable[Answer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpConfig:
    """Bounds of a listener that serves probes and scrapers."""

    connections_max: int = 100
    head_bytes_max: int = 16 * 1024
    request_seconds: float = 10.0      # from a request's first byte to its last
    idle_seconds: float = 75.0
    pipelined_max: int = 16


class HttpListener:
    """Open with `await HttpListener.open(…)`."""

    def __init__(self, handler: Handler, config: HttpConfig) -> None:
        self.handler = handler
        self.config = config
        self.connections: set[HttpConnection] = set()
        self.rejected = 0
        self.address = ""
        self._listener: Listener | None = None

    @classmethod
    async def open(
        cls, network: Network, address: str, handler: Handler, config: HttpConfig | None = None
    ) -> HttpListener:
        """handler: answers a GET or HEAD. Raises ConnectionFailed when the address cannot be had."""
        made = cls(handler, config or HttpConfig())
        made._listener = await network.listen(address, lambda: HttpConnection(made))
        made.address = made._listener.address
        return made

    async def close(self) -> None:
        if self._listener is not None:
            await self._listener.close()
        for connection in list(self.connections):
            connection.abort()


class HttpConnection(asyncio.Protocol):
    def __init__(self, listener: HttpListener) -> None:
        self._listener = listener
        self._reader = RequestReader(head_bytes_max=listener.config.head_bytes_max)
        self._waiting: deque[Request] = deque()
        self._task: asyncio.Task[None] | None = None
        self._transport: Connection | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("Connection", transport)
        if len(self._listener.connections) >= self._listener.config.connections_max:
            self._refuse(Answer(503, b"too many connections\n"))
            return
        self._listener.connections.add(self)
        self._wait(self._listener.config.request_seconds)

    def data_received(self, data: bytes) -> None:
        began = not self._reader.partial
        self._waiting.extend(self._reader.feed(data))
        if len(self._waiting) > self._listener.config.pipelined_max:
            self._refuse(Answer(400, b"too many requests at once\n"))
        elif self._waiting:
            self._wait(None)
            if self._task is None:
                self._task = asyncio.get_running_loop().create_task(self._answer())
        elif self._reader.refusal is not None:
            self._refuse(self._reader.refusal)
        elif began and self._reader.partial:
            self._wait(self._listener.config.request_seconds)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: BaseException | None) -> None:
        self._wait(None)
        self._transport = None
        self._listener.connections.discard(self)
        if self._task is not None:
            self._task.cancel()

    async def _answer(self) -> None:
        while self._waiting and self._transport is not None:
            request = self._waiting.popleft()
            keep_alive = request.keep_alive and self._reader.refusal is None
            answer = await self._one(request)
            if self._transport is None:
                return
            self._transport.write(answer.to_bytes(keep_alive=keep_alive, head=request.method == "HEAD"))
            if not keep_alive:
                self._transport.close()
                return
        self._task = None
        config = self._listener.config
        self._wait(config.request_seconds if self._reader.partial else config.idle_seconds)

    async def _one(self, request: Request) -> Answer:
        if request.method not in ("GET", "HEAD"):
            return Answer(405, b"only GET and HEAD\n")
        try:
            return await self._listener.handler(request)
        except Exception:
            logger.exception("http.failed", extra={"facts": {"path": request.path[:200]}})
            return Answer(500, b"this is a defect in streamkit; see the log\n")

    def _refuse(self, answer: Answer) -> None:
        self._listener.rejected += 1
        self._waiting.clear()
        if self._transport is not None:
            self._transport.write(answer.to_bytes(keep_alive=False))
            self._transport.close()

    def _wait(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else asyncio.get_running_loop().call_later(seconds, self._too_slow)

    def _too_slow(self) -> None:
        self._timer = None
        if self._reader.partial:
            self._refuse(Answer(408, b"the request took too long to arrive\n"))
        elif self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
