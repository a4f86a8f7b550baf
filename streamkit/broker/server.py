"""The native listener: connections in, bounded in number and memory, and an orderly end.

    starting ──▶ listening ──▶ draining ──▶ closed
                 admit links   goodbye to each, no new connections, what is under way is answered,
                               then every link is closed; those that do not finish in time are cut

Storage tells when disks got further; `progressed` steps the shards concerned and writes what became ready,
one buffer a connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from streamkit.broker.counters import Counters
from streamkit.broker.link import Link, LinkConfig
from streamkit.broker.service import Service
from streamkit.errors import LimitReached, NodeDraining, StreamkitError
from streamkit.runtime.interfaces import Listener, Network

logger = logging.getLogger("streamkit.broker")

_SWEEP_SECONDS = 5.0
_DRAIN_STEP_SECONDS = 0.01
_WEIGH_SECONDS = 0.02
_CLOSE_SECONDS = 1.0           # for peers to take what was written last


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """connections_max: more are turned away. memory_bytes_max: of all links, for what waits either way."""

    connections_max: int = 10_000
    memory_bytes_max: int = 256 * 1024 * 1024
    link: LinkConfig = field(default_factory=LinkConfig)


class Server:
    """One for each node; embedded nodes have it too, with no listener."""

    def __init__(self, *, node: str, service: Service, counters: Counters, config: ServerConfig) -> None:
        self.node = node
        self.service = service
        self.counters = counters
        self.config = config
        self.addresses: Callable[[], tuple[str, ...]] = tuple      # of all nodes that live, for Welcome
        self.loop = asyncio.get_running_loop()
        self.paused: set[Link] = set()
        self.links: set[Link] = set()
        self._listeners: list[Listener] = []
        self._numbers = 0
        self._dirty: set[Link] = set()
        self._flushing = False
        self._draining = False
        self.put_bytes = self.answer_bytes = 0     # estimates from above, see put_room
        self._half = config.memory_bytes_max // 2
        self._weighed_s = 0.0
        self._starved: set[Link] = set()
        self._relief: asyncio.TimerHandle | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    # -- connections ---------------------------------------------------------------------------------------

    def new_link(self) -> Link:
        """The protocol factory of a listener, and of an embedded client's socket pair."""
        self._numbers += 1
        return Link(self, self._numbers)

    async def listen(self, network: Network, address: str) -> Listener:
        """Raises ConnectionFailed."""
        listener = await network.listen(address, self.new_link)
        self._listeners.append(listener)
        return listener

    def admit(self, link: Link) -> bool:
        """Whether a new connection may stay."""
        if self._draining:
            self.counters.connections_refused += 1
            link.wire.fail(NodeDraining(
                f"node {self.node} is stopping", try_="try again when it is back", node=self.node
            ))
            return False
        if len(self.links) >= self.config.connections_max:
            self.counters.connections_refused += 1
            link.wire.fail(LimitReached(
                f"node {self.node} has {len(self.links)} connections, the limit is {self.config.connections_max}",
                try_="close some, or raise listen.native.connections_max",
                limit=self.config.connections_max, scope="connections",
            ))
            return False
        self.links.add(link)
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(_SWEEP_SECONDS, self._sweep)
        return True

    def forget(self, link: Link) -> None:
        self.paused.discard(link)
        self._dirty.discard(link)
        self._starved.discard(link)
        if link in self.links:
            self.links.discard(link)
            self.service.forget(link)

    def broke(self, link: Link) -> None:
        """The peer broke the protocol, or was too slow; it has been told why."""
        error = link.wire.failure
        if error is not None:
            self.counters.failures["connection", error.code] += 1
            logger.debug("connection.refused", extra={"facts": {"reason": str(error), "link": link.number}})

    def _sweep(self) -> None:
        self._sweeper = None
        now_s = self.loop.time()
        for link in list(self.links):
            link.sweep(now_s)
        if self.links:
            self._sweeper = self.loop.call_later(_SWEEP_SECONDS, self._sweep)

    # -- memory --------------------------------------------------------------------------------------------

    # Half of the budget is for puts that wait, half for answers that were not taken: readers that do not read
    # cannot stop those who write. What is taken on is added up; what was given back is found by weighing, and
    # only while an estimate is above its half.

    def put_room(self) -> bool:
        """Also false while the disk is behind with what was acknowledged before it was written."""
        if self.service.streams.directory.pending_bytes > self._half:
            return False
        return self.put_bytes <= self._half or (self._weigh() and self.put_bytes <= self._half)

    def answer_room(self) -> bool:
        return self.answer_bytes <= self._half or (self._weigh() and self.answer_bytes <= self._half)

    def _weigh(self) -> bool:
        now_s = self.loop.time()
        if now_s < self._weighed_s + _WEIGH_SECONDS:
            return False
        self._weighed_s = now_s
        self.put_bytes = sum(link.unacknowledged_bytes for link in self.links)
        self.answer_bytes = sum(link.outgoing_bytes() for link in self.links)
        return True

    def memory_bytes(self) -> int:
        """For the metrics."""
        self._weighed_s = 0.0
        self._weigh()
        return self.put_bytes + self.answer_bytes

    def starve(self, link: Link) -> None:
        """The link waits for memory that other links hold: look again soon."""
        self._starved.add(link)
        if self._relief is None:
            self._relief = self.loop.call_later(_WEIGH_SECONDS, self._relieve)

    def _relieve(self) -> None:
        self._relief = None
        starved, self._starved = self._starved, set()
        for link in starved:
            self.service.fetches.resume(link)      # which also balances it
            link.flush()
        for link in self.paused:
            self.starve(link)

    # -- what became ready ---------------------------------------------------------------------------------

    def progressed(self, uuids: Iterable[bytes]) -> None:
        """Storage got further with these shards."""
        shards = self.service.streams.shards
        ready: set[Link] = set()
        for uuid in uuids:
            if (shard := shards.get(uuid)) is not None and (links := shard.progressed()) is not None:
                ready |= links
        self._write(ready)
        if self.paused:
            for link in list(self.paused):
                link.balance()

    def failed(self, error: StreamkitError) -> None:
        """The disk is gone: every put that waits is told."""
        ready: set[Link] = set()
        for shard in self.service.streams.shards.values():
            ready |= shard.fail(error)
        self._write(ready)

    def _write(self, links: Iterable[Link]) -> None:
        for link in links:
            self._dirty.discard(link)
            link.flush()

    def flush_soon(self, link: Link) -> None:
        self._dirty.add(link)
        if not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        dirty, self._dirty = self._dirty, set()
        self._write(dirty)

    # -- the end -------------------------------------------------------------------------------------------

    async def drain(self, seconds: float) -> int:
        """Take nothing new, answer what is under way, part from every client. Returns how many were cut off."""
        self._draining = True
        for listener in self._listeners:
            await listener.close()
        for link in list(self.links):
            link.say_goodbye("the node is stopping")
        deadline = self.loop.time() + seconds
        await self.service.drain()
        # Looked at every 10 ms, once in a node's life: counting down in the hot path would cost every put.
        while self.service.under_way and self.loop.time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_DRAIN_STEP_SECONDS)
        for link in list(self.links):
            link.close()
        deadline = min(deadline, self.loop.time() + _CLOSE_SECONDS)
        while self.links and self.loop.time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_DRAIN_STEP_SECONDS)
        cut = list(self.links)
        for link in cut:
            link.abort()
        return len(cut)

    async def close(self) -> None:
        """At once; after `drain` there is nothing left to lose."""
        for timer in (self._sweeper, self._relief):
            if timer is not None:
                timer.cancel()
        for listener in self._listeners:
            await listener.close()
        self._listeners.clear()
        for link in list(self.links):
            link.abort()
        await self.service.close()
