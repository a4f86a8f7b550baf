"""This machine's network, with a knife: connections that exist break, new ones come to nothing."""

from __future__ import annotations

import asyncio
from typing import Any

from streamkit.errors import ConnectionFailed
from streamkit.runtime.interfaces import Listener, ProtocolFactory, TlsContext
from streamkit.runtime.real import RealNetwork


class Severable:
    """`runtime.Network`; `cut` and `mend` may be called from any thread."""

    def __init__(self) -> None:
        self._real = RealNetwork()
        self._cut = False
        self._open: dict[_Through, asyncio.AbstractEventLoop] = {}

    def cut(self) -> None:
        self._cut = True
        for through, loop in list(self._open.items()):
            if not loop.is_closed():
                loop.call_soon_threadsafe(through.abort)

    def mend(self) -> None:
        self._cut = False

    async def connect(self, address: str, factory: ProtocolFactory) -> asyncio.BaseProtocol:
        if self._cut:
            raise ConnectionFailed(f"nothing answers at {address}: cut by the test", try_="heal it", sent=False,
                                   address=address)
        through = await self._real.connect(address, lambda: _Through(self, factory()))
        assert isinstance(through, _Through), "what the factory makes"
        inner: asyncio.BaseProtocol = through.inner
        return inner

    async def listen(self, address: str, factory: ProtocolFactory, tls: TlsContext | None = None) -> Listener:
        return await self._real.listen(address, lambda: _Through(self, factory()), tls)

    def opened(self, through: _Through) -> None:
        self._open[through] = asyncio.get_running_loop()
        if self._cut:
            through.abort()

    def closed(self, through: _Through) -> None:
        self._open.pop(through, None)


class _Through(asyncio.BufferedProtocol):
    """Hands everything on to the protocol inside, and knows its transport."""

    def __init__(self, network: Severable, inner: asyncio.BaseProtocol) -> None:
        self.inner: Any = inner
        self._network = network
        self._transport: Any = None
        self._buffer = bytearray() if isinstance(inner, asyncio.BufferedProtocol) else bytearray(64 * 1024)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self.inner.connection_made(transport)
        self._network.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._network.closed(self)
        self.inner.connection_lost(exc)

    def get_buffer(self, sizehint: int) -> Any:
        return self._buffer or self.inner.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        if self._buffer:
            self.inner.data_received(bytes(self._buffer[:nbytes]))
        else:
            self.inner.buffer_updated(nbytes)

    def eof_received(self) -> bool | None:
        kept: bool | None = self.inner.eof_received()
        return kept

    def pause_writing(self) -> None:
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        self.inner.resume_writing()
