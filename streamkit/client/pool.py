"""Connections by address, made when first needed and again when they broke.

A Link stands for one broker's address. While it is connected, requests go straight through; while it is
connecting, puts wait in order; when nothing answers, everything fails at once, and for a moment that grows
with each failed try nothing is tried again. Retrying is for those who know what a repeat means.

What any node can answer goes to the first link. It stays where it is as long as that node answers; then the other
addresses, given or learned from greetings, are tried, the next one as soon as one has failed or takes its time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator

from streamkit.client.config import ClientConfig
from streamkit.client.connection import BrokerConnection, OnDone, OnRefused, again
from streamkit.client.url import parse_url
from streamkit.errors import BufferFull, Closed, ConnectionFailed, InvalidConfig, ProtocolMismatch, StreamkitError
from streamkit.runtime.backoff import Backoff
from streamkit.runtime.interfaces import Buffer, ProtocolFactory, Runtime
from streamkit.runtime.tasks import Tasks

_log = logging.getLogger("streamkit.client")

Connector = Callable[[ProtocolFactory], Awaitable[asyncio.BaseProtocol]]


class Link:
    """One broker; connection: the last one that was opened. on_change: called when one was opened or lost."""

    def __init__(
        self, address: str, connector: Connector, name: str, config: ClientConfig, runtime: Runtime,
        on_refused: OnRefused, on_change: Callable[[Link], None],
    ) -> None:  # fmt: skip
        self.address = address
        self.connection: BrokerConnection | None = None
        self._on_change = on_change
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

    @property
    def usable(self) -> bool:
        """Requests leave at once."""
        return self.connection is not None and self.connection.usable

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

    def give_back(self, shard: bytes) -> None:
        """Batches of that shard that wait for a connection fail now: they were not sent."""
        back = [entry for entry in self._queue if entry[0] == shard]
        self._queue = [entry for entry in self._queue if entry[0] != shard]
        for _, batch, _, on_done in back:
            self._queued_bytes -= len(batch)
            asyncio.get_running_loop().call_soon(on_done, ConnectionFailed(
                f"{self.address} does not answer", try_="try again", address=self.address, sent=False
            ))  # fmt: skip

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
        connection = BrokerConnection(
            self.address, self._name, self._config, self._on_refused, lambda: self._on_change(self)
        )
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
        except Exception as cause:         # a defect, but whoever waits here learns of it, and the next may try
            _log.exception("connection.defect address=%s", self.address)
            error = ConnectionFailed(
                f"no connection to {self.address} came about: {cause!r}", address=self.address, sent=False
            )
            connection.abort(error)
        else:
            self._connecting = self._failed = None
            self._backoff.reset()
            self.connection = connection
            self._on_change(self)
            queue, self._queue = self._queue, []
            self._queued_bytes = 0
            for shard, batch, timeout_ms, on_done in queue:
                connection.put(shard, batch, timeout_ms, on_done)
            return connection
        self._connecting = None
        self._failed = error
        self._silent_until_s = loop.time() + self._backoff.next_ms() / 1000
        self._on_change(self)
        self._fail_queue(error)
        return error

    def _fail_queue(self, error: StreamkitError) -> None:
        queue, self._queue = self._queue, []
        self._queued_bytes = 0
        for _, _, _, on_done in queue:
            on_done(again(error))


class Pool:
    """All links of one client.

    addresses: where to begin, in the order in which they are tried; more are learned from greetings. connector: set
    when every broker is reached the same way (embedded); else Network.connect by address. on_lost: called with a link
    whose connection broke, or could not be made.
    """

    def __init__(
        self, addresses: tuple[str, ...], connector: Connector | None, name: str, config: ClientConfig,
        runtime: Runtime, on_refused: OnRefused, on_lost: Callable[[Link], None],
    ) -> None:  # fmt: skip
        self._connector = connector
        self._name = name
        self._config = config
        self._runtime = runtime
        self._on_refused = on_refused
        self._on_lost = on_lost
        self._given = addresses
        self._learned: tuple[str, ...] = ()
        self._links: dict[str, Link] = {}
        self._tasks = Tasks("client")
        self._seeking: asyncio.Task[StreamkitError | None] | None = None
        self.first = self.link(addresses[0])

    def link(self, address: str) -> Link:
        if self._connector is not None:
            address = "the embedded node"
        link = self._links.get(address)
        if link is None:
            connector = self._connector or self._by_address(address)
            link = Link(
                address, connector, self._name, self._config, self._runtime, self._on_refused, self._changed
            )
            self._links[address] = link
        return link

    def link_to(self, node: str) -> Link | None:
        """A link that is connected to the node of that name: it may be known by another address."""
        return next((link for link in self._links.values() if link.usable and link.node == node), None)

    async def ready(self) -> BrokerConnection:
        """A connection to any node. Raises ConnectionFailed when none of them answers, ProtocolMismatch, Closed."""
        if self.first.usable or len(self.addresses) == 1:
            return await self.first.ready()
        if self._seeking is None:
            self._seeking = self._tasks.start(self._seek(), "seek")
        error = await asyncio.shield(self._seeking)
        if error is not None:
            raise again(error)
        return await self.first.ready()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Every node known: where the first link is, then those that were given, then those learned."""
        if self._connector is not None:
            return (self.first.address,)
        return tuple(dict.fromkeys((self.first.address, *self._given, *self._learned)))

    async def close(self) -> None:
        await self._tasks.close()
        for link in list(self._links.values()):
            await link.close()

    async def _seek(self) -> StreamkitError | None:
        # Returns its failure instead of raising it: several may be waiting for it.
        loop = asyncio.get_running_loop()
        tries: list[asyncio.Task[BrokerConnection | StreamkitError]] = []
        left = self._order()
        errors: list[StreamkitError] = []
        try:
            while left or tries:
                if left:
                    tries.append(loop.create_task(_attempt(self.link(left.pop(0)))))
                stagger_s = self._config.connect_stagger_ms / 1000 if left else None
                done, _ = await asyncio.wait(tries, timeout=stagger_s, return_when=asyncio.FIRST_COMPLETED)
                for attempt in [each for each in tries if each in done]:
                    tries.remove(attempt)
                    outcome = attempt.result()
                    if isinstance(outcome, BrokerConnection):
                        self.first = next(link for link in self._links.values() if link.connection is outcome)
                        return None
                    errors.append(outcome)
            return self._none_answers(errors)
        finally:
            self._seeking = None
            for attempt in tries:
                attempt.cancel()

    def _order(self) -> list[str]:
        """As given for the first time; later from anywhere on, so that not all clients of a node go to the same one."""
        addresses = list(self.addresses)
        if self.first.connection is None and not self._learned:
            return addresses
        lost, *others = addresses
        at = self._runtime.random.bits(16) % len(others)
        return [*others[at:], *others[:at], lost]

    def _none_answers(self, errors: list[StreamkitError]) -> StreamkitError:
        wrong = next((error for error in errors if not isinstance(error, ConnectionFailed)), None)
        if wrong is not None:
            return wrong
        return ConnectionFailed(
            f"none of {len(errors)} nodes answers: {errors[0]}", try_=errors[0].try_,
            address=",".join(self.addresses), sent=False,
        )  # fmt: skip

    def _changed(self, link: Link) -> None:
        if not link.usable:
            self._on_lost(link)
        elif link.connection is not None and link.connection.node_addresses:
            self._learned = tuple(_known(link.connection.node_addresses))

    def _by_address(self, address: str) -> Connector:
        async def connect(factory: ProtocolFactory) -> asyncio.BaseProtocol:
            return await self._runtime.network.connect(address, factory)

        return connect


async def _attempt(link: Link) -> BrokerConnection | StreamkitError:
    try:
        return await link.ready()
    except StreamkitError as error:
        return error


def _known(addresses: tuple[str, ...]) -> Iterator[str]:
    # What a node says of others is taken as far as it makes sense.
    for address in addresses:
        with contextlib.suppress(InvalidConfig):
            yield parse_url(address)


def _explained(error: ProtocolMismatch, address: str) -> ProtocolMismatch:
    facts = {**error.facts, "address": address}
    if error.facts.get("reason") in ("http", "tls", "ssh"):
        return ProtocolMismatch(
            f"{address} speaks {error.facts['theirs']}, not the native protocol; its usual port is 7440",
            try_="streamkit --url streamkit://127.0.0.1:7440 …",
            **facts,
        )
    return ProtocolMismatch(f"{address}: {error}", try_=error.try_, **facts)
