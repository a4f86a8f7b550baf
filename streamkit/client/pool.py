"""Connections by address, made when first needed and again when they broke.

A Link stands for one broker's address. While it is connected, requests go straight through; while it is
connecting, puts wait in order; when nothing answers, everything fails at once, and for a moment that grows
with each failed try nothing is tried again. Retrying is for those who know what a repeat means.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from streamkit.client.config import ClientConfig
from streamkit.client.connection import BrokerConnection, OnDone, OnRefused, again
from streamkit.errors import BufferFull, Closed, ConnectionFailed, ProtocolMismatch, StreamkitError
from streamkit.runtime.backoff import Backoff
from streamkit.runtime.interfaces import Buffer, ProtocolFactory, Runtime
from streamkit.runtime.tasks import Tasks

_log = logging.getLogger("streamkit.client")

Connector = Callable[[ProtocolFactory], Awaitable[asyncio.BaseProtocol]]


class Link:
    """One broker; connection: the one in use, None before the first and after a loss."""

    def __init__(
        self, address: str, connector: Connector, name: str, config: ClientConfig, runtime: Runtime,
        on_refused: OnRefused,
    ) -> None:  # fmt: skip
        self.address = address
        self.connection: BrokerConnection | None = None
        self._connector = connector
        self._name = name
        self._config = config
        self._on_refused = on_refused
        self._tasks = Tasks("client")
        self._backoff = Backoff(runtime.random, config.reconnect_first_ms, config.reconnect_most_ms)
        self._connecting: asyncio.Task[BrokerConnection | StreamkitError] | None = None
        self._failed: StreamkitError | None = None
        self._silent_until_s = 0.0
        self._queue: list[tuple[bytes, Buffer, int, OnDone]] = []
        self._queued_bytes = 0
        self._closed = False

    @property
    def node(self) -> str:
        """The broker's name, "" until it has been heard once."""
        return "" if self.connection is None else self.connection.node

    def put(self, shard: bytes, batch: Buffer, timeout_ms: int, on_done: OnDone) -> None:
        """As BrokerConnection.put; while connecting, batches wait and leave in order."""
        connection = self.connection
        if connection is not None and connection.usable:
            connection.put(shard, batch, timeout_ms, on_done)
            return
        error = self._refusal()
        if error is None and self._queued_bytes > self._config.queue_bytes_max:
            error = BufferFull(
                f"{self._queued_bytes} bytes wait for a connection to {self.address}",
                try_="put more slowly, or wait for earlier puts",
                buffered_bytes=self._queued_bytes,
                limit_bytes=self._config.queue_bytes_max,
            )
        if error is not None:
            asyncio.get_running_loop().call_soon(on_done, error)
            return
        self._queue.append((shard, batch, timeout_ms, on_done))
        self._queued_bytes += len(batch)
        self._start()

    async def ready(self) -> BrokerConnection:
        """A connection that takes requests. Raises ConnectionFailed, ProtocolMismatch, Closed."""
        connection = self.connection
        if connection is not None and connection.usable:
            return connection
        if (error := self._refusal()) is not None:
            raise error
        outcome = await asyncio.shield(self._start())
        if isinstance(outcome, StreamkitError):
            raise again(outcome)
        if not outcome.usable:
            raise ConnectionFailed(
                f"the connection to {self.address} broke", try_="try again", address=self.address, sent=False
            )
        return outcome

    async def close(self) -> None:
        self._closed = True
        await self._tasks.close()
        self._fail_queue(self._refusal() or Closed("the client was closed", what="client"))
        if self.connection is not None:
            self.connection.close()

    def _refusal(self) -> StreamkitError | None:
        if self._closed:
            return Closed("the client was closed", what="client")
        if self._failed is not None and asyncio.get_running_loop().time() < self._silent_until_s:
            return again(self._failed)
        return None

    def _start(self) -> asyncio.Task[BrokerConnection | StreamkitError]:
        if self._connecting is None:
            self._connecting = self._tasks.start(self._connect(), "connect")
        return self._connecting

    async def _connect(self) -> BrokerConnection | StreamkitError:
        # Returns its failure instead of raising it: it is no defect, and several may be waiting for it.
        loop = asyncio.get_running_loop()
        connection = BrokerConnection(self.address, self._name, self._config, self._on_refused)
        try:
            async with asyncio.timeout(self._config.connect_timeout_ms / 1000):
                await self._connector(lambda: connection)
                await connection.opened
        except TimeoutError:
            error: StreamkitError = ConnectionFailed(
                f"{self.address} did not answer within {self._config.connect_timeout_ms} ms",
                try_="streamkit serve --dev",
                address=self.address,
                sent=False,
            )
            connection.abort(error)
        except ProtocolMismatch as cause:
            error = _explained(cause, self.address)
        except StreamkitError as cause:
            error = cause
        else:
            self._connecting = self._failed = None
            self._backoff.reset()
            self.connection = connection
            queue, self._queue = self._queue, []
            self._queued_bytes = 0
            for shard, batch, timeout_ms, on_done in queue:
                connection.put(shard, batch, timeout_ms, on_done)
            return connection
        self._connecting = None
        self._failed = error
        self._silent_until_s = loop.time() + self._backoff.next_ms() / 1000
        self._fail_queue(error)
        return error

    def _fail_queue(self, error: StreamkitError) -> None:
        queue, self._queue = self._queue, []
        self._queued_bytes = 0
        for _, _, _, on_done in queue:
            on_done(again(error))


class Pool:
    """All links of one client.

    connector: set when every broker is reached the same way (embedded); else Network.connect by address.
    """

    def __init__(
        self, address: str, connector: Connector | None, name: str, config: ClientConfig, runtime: Runtime,
        on_refused: OnRefused,
    ) -> None:  # fmt: skip
        self._connector = connector
        self._name = name
        self._config = config
        self._runtime = runtime
        self._on_refused = on_refused
        self._links: dict[str, Link] = {}
        self.first = self.link(address)

    def link(self, address: str) -> Link:
        if self._connector is not None:
            address = "the embedded node"
        link = self._links.get(address)
        if link is None:
            connector = self._connector or self._by_address(address)
            link = Link(address, connector, self._name, self._config, self._runtime, self._on_refused)
            self._links[address] = link
        return link

    async def close(self) -> None:
        for link in self._links.values():
            await link.close()

    def _by_address(self, address: str) -> Connector:
        async def connect(factory: ProtocolFactory) -> asyncio.BaseProtocol:
            return await self._runtime.network.connect(address, factory)

        return connect


def _explained(error: ProtocolMismatch, address: str) -> ProtocolMismatch:
    facts = {**error.facts, "address": address}
    if error.facts.get("reason") in ("http", "tls", "ssh"):
        return ProtocolMismatch(
            f"{address} speaks {error.facts['theirs']}, not the native protocol; its usual port is 7440",
            try_="streamkit --url streamkit://127.0.0.1:7440 …",
            **facts,
        )
    return ProtocolMismatch(f"{address}: {error}", try_=error.try_, **facts)
