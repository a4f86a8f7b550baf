"""Links to the other nodes of a cluster: one connection a pair, kept up, used by everything between two nodes.

    the node whose name sorts lower dials        at once, then every 0.1 … 1 s
    the other one, while there is no link        tries the address and hangs up: is anybody there?

so that both ends know within a round trip that a killed process is gone (`refused`): its listener is, too. Nothing
here decides who leads or which epoch is right: that is `copies`, the PeerHandler. Read `Peers.__init__`, then
`peer_link.PeerLink`, then `feed.Feed`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Mapping
from typing import Protocol

from streamkit.broker.feed import Feed, Leading
from streamkit.broker.peer_feeds import CatchUpBudget, PeerFeeds
from streamkit.broker.peer_link import PeerLink, PeersConfig, side_of
from streamkit.errors import Closed, ConnectionFailed, ProtocolMismatch, StreamkitError, TimedOut
from streamkit.protocol.frames import Acknowledgement, Fetched, Section
from streamkit.protocol.peers import Identity, PeerAnswer, PeerConnection, PeerHello, PeerRequest, PeerSide
from streamkit.runtime.backoff import Backoff
from streamkit.runtime.interfaces import Listener, Runtime
from streamkit.runtime.tasks import Tasks

__all__ = ["Feed", "Leading", "PeerHandler", "Peers", "PeersConfig"]

logger = logging.getLogger("streamkit.broker")

_NOBODY_THERE = frozenset({errno.ECONNREFUSED, errno.ENOENT})


class PeerHandler(Protocol):
    """What a node does with what its peers say: broker.copies."""

    def sections(self, node: str, sections: list[Section]) -> None:
        """A leader's batches and news. They are good only during the call; answers go through Peers.acknowledge."""

    async def asked(self, node: str, message: PeerRequest) -> PeerAnswer:
        """The answer, or a StreamkitError, which the peer's `ask` then raises."""

    async def read_log(self, uuid: bytes, start: int, bytes_max: int) -> Fetched:
        """Whole batches from `start` on, up to the log's end, committed or not."""

    def link_up(self, node: str) -> None: ...
    def link_down(self, node: str) -> None: ...


class _Peer:
    """What is known of one node. keeper: the task that keeps a link to it; None for a node nobody listed."""

    def __init__(self, node: str, address: str, lane: PeerFeeds) -> None:
        self.node = node
        self.address = address
        self.lane = lane
        self.link: PeerLink | None = None
        self.heard_s: float | None = None
        self.refused = False
        self.failure: StreamkitError | None = None
        self.keeper: asyncio.Task[None] | None = None
        self.changed = asyncio.Event()             # the link went, or the address is another


class Peers:
    """A node's links. disk_id: of its data directory, so that two nodes with one name are told apart."""

    def __init__(
        self,
        *,
        node: str,
        cluster_id: str,
        disk_id: bytes,
        runtime: Runtime,
        handler: PeerHandler,
        config: PeersConfig | None = None,
    ) -> None:
        self.node = node
        self.handler = handler
        self.config = config or PeersConfig()
        self.tasks = Tasks("peers")
        self._cluster_id = cluster_id
        self._disk_id = disk_id
        self._runtime = runtime
        self._loop = asyncio.get_running_loop()
        self._budget = CatchUpBudget(self.config.feeds.catch_up_bytes_per_second)
        self._peers: dict[str, _Peer] = {}
        self._strangers: dict[PeerLink, None] = {}     # connections that have not greeted yet
        self._listeners: list[Listener] = []
        self._address = ""
        self._closed = False

    # -- which nodes there are ---------------------------------------------------------------------------------

    async def listen(self, address: str) -> str:
        """Take links at `address`; where it is really bound. Raises ConnectionFailed."""
        listener = await self._runtime.network.listen(address, self._taken)
        self._listeners.append(listener)
        self._address = self._address or listener.address
        return listener.address

    def set_nodes(self, nodes: Mapping[str, str]) -> None:
        """node → peer address of all that are registered now. A link to one that left is closed."""
        if self._closed:
            return
        for node in [node for node, peer in self._peers.items() if peer.keeper is not None and node not in nodes]:
            self._drop(self._peers[node])
        for node in sorted(nodes):
            if node == self.node:
                continue
            peer = self._known(node)
            if peer.address != nodes[node]:
                peer.address = nodes[node]
                peer.refused = False
                peer.changed.set()
            if peer.keeper is None:
                peer.keeper = self.tasks.start(self._keep(peer), f"keep.{node}")

    def _known(self, node: str) -> _Peer:
        peer = self._peers.get(node)
        if peer is None:
            lane = PeerFeeds(node, self.config.feeds, self._budget, self.tasks)
            peer = self._peers[node] = _Peer(node, "", lane)
        return peer

    def _drop(self, peer: _Peer) -> None:
        if peer.keeper is not None:
            peer.keeper.cancel()
            peer.keeper = None
        peer.address = ""
        if peer.link is not None:
            peer.link.leave(Closed(f"node {peer.node} is not registered any more", what=peer.node))
        self._forget_idle(peer)

    def _forget_idle(self, peer: _Peer) -> None:
        if peer.keeper is None and peer.link is None and not peer.lane.feeds:
            self._peers.pop(peer.node, None)

    # -- what is known of them -----------------------------------------------------------------------------------

    def connected(self, node: str) -> bool:
        peer = self._peers.get(node)
        return peer is not None and peer.link is not None

    def heard_ms(self, node: str) -> int | None:
        """Milliseconds since anything came from it; None: never since it is known."""
        peer = self._peers.get(node)
        if peer is None:
            return None
        heard_s = peer.heard_s if peer.link is None else peer.link.heard_s
        return None if heard_s is None else int((self._loop.time() - heard_s) * 1000)

    def refused(self, node: str) -> bool:
        """The last try to reach it was refused: nobody listens there. A hint, as everything about other nodes is."""
        peer = self._peers.get(node)
        return peer is not None and peer.refused

    def failure(self, node: str) -> StreamkitError | None:
        """Why there is no link to it; None when there is one, or none was tried."""
        peer = self._peers.get(node)
        return None if peer is None or peer.link is not None else peer.failure

    def version(self, node: str) -> int | None:
        """The peer protocol spoken with it; None while there is no link."""
        peer = self._peers.get(node)
        return None if peer is None or peer.link is None else peer.link.wire.version

    # -- talking to them -----------------------------------------------------------------------------------------

    async def ask(self, node: str, message: PeerRequest, timeout_ms: int) -> PeerAnswer:
        """Raises ConnectionFailed (facts: sent), TimedOut, or what the other node answered with."""
        return await self._link(node).ask(message, timeout_ms)

    async def read_log(self, node: str, uuid: bytes, start: int, bytes_max: int, timeout_ms: int) -> Fetched:
        """Stored batches of that node's copy from `start` on, committed or not; may be fewer bytes than asked for."""
        return await self._link(node).read_log(uuid, start, bytes_max, timeout_ms)

    def _link(self, node: str) -> PeerLink:
        peer = self._peers.get(node)
        if peer is None or peer.link is None:
            raise ConnectionFailed(
                f"there is no link to node {node}", try_="streamkit cluster status", address=node, sent=False,
            )  # fmt: skip
        return peer.link

    def feed(self, leader: Leading, node: str) -> Feed:
        """Begin sending that shard's log to that node; goes on over every link there will be, until feed.close()."""
        assert node != self.node, "a node feeds others"
        return self._known(node).lane.open(leader)

    def acknowledge(
        self, node: str, uuid: bytes, incarnation: bytes, epoch: int, verdict: int, end: int, written: int = 0
    ) -> None:
        """Answer a section of that node, at the end of this turn. written: one past the last record written at all.

        Dropped while there is no link: the leader asks every shard again when there is one.
        """
        peer = self._peers.get(node)
        if peer is not None and peer.link is not None:
            peer.link.acknowledge(uuid, incarnation, epoch, verdict, end, written)

    async def close(self) -> None:
        self._closed = True
        for listener in self._listeners:
            await listener.close()
        for peer in list(self._peers.values()):
            for feed in list(peer.lane.feeds.values()):
                feed.close()
            if peer.link is not None:
                peer.link.leave(Closed(f"node {self.node} is stopping", what=self.node))
        for link in list(self._strangers):
            link.cut(Closed(f"node {self.node} is stopping", what=self.node))
        await self.tasks.close()

    # -- keeping links -------------------------------------------------------------------------------------------

    def _identity(self) -> Identity:
        return Identity(self._cluster_id, self.node, self._disk_id, self._address, self.config.version_max)

    def _taken(self) -> PeerLink:
        wire = PeerConnection(
            PeerSide.LISTENING, self._identity(), admit=self._admit, keep_bytes=self.config.receive_bytes
        )
        return PeerLink(self, wire)

    def _admit(self, hello: PeerHello) -> None:
        """Refuses a second node of the same name while the first is there. A restart of it has the same disk."""
        peer = self._peers.get(hello.node)
        link = None if peer is None else peer.link
        if link is None or link.wire.peer_disk == hello.disk:
            return
        if self._loop.time() - link.heard_s < 2 * self.config.beat_ms / 1000:
            raise ProtocolMismatch(
                f"node {hello.node} is connected already, with another data directory",
                try_="give each node a --node-id and a data directory of its own", reason="duplicate",
                theirs=hello.disk.hex(), ours=link.wire.peer_disk.hex(),
            )  # fmt: skip

    async def _keep(self, peer: _Peer) -> None:
        """Connect whenever there is no link; or, where the other node dials, see whether it is there at all."""
        config = self.config
        dials = side_of(self.node, peer.node) is PeerSide.DIALLING
        backoff = Backoff(self._runtime.random, config.reconnect_first_ms, config.reconnect_most_ms)
        while True:
            peer.changed.clear()
            if peer.link is not None:
                backoff.reset()
                await peer.changed.wait()
                continue
            try:
                await self._try(peer, dials)
            except (StreamkitError, OSError) as error:
                self._failed(peer, error)
            if peer.link is None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(backoff.next_ms() / 1000):
                        await peer.changed.wait()

    async def _try(self, peer: _Peer, dials: bool) -> None:
        config = self.config
        link = None
        try:
            async with asyncio.timeout(config.greeting_ms / 1000):
                if dials:
                    wire = PeerConnection(
                        PeerSide.DIALLING, self._identity(), expected=peer.node, keep_bytes=config.receive_bytes
                    )
                    link = PeerLink(self, wire)
                    await self._runtime.network.connect(peer.address, lambda: link)
                    await link.greeted
                else:
                    knock = _Knock()
                    await self._runtime.network.connect(peer.address, lambda: knock)
                    knock.transport.close()
                    peer.refused = False
        except TimeoutError:
            error = TimedOut(f"node {peer.node} at {peer.address} does not answer", sent=False,
                             timeout_ms=config.greeting_ms)  # fmt: skip
            if link is not None:
                link.cut(error)
            raise error from None

    def _failed(self, peer: _Peer, cause: StreamkitError | OSError) -> None:
        error = cause
        if not isinstance(error, StreamkitError):
            error = ConnectionFailed(f"node {peer.node} at {peer.address}: {cause}", address=peer.address, sent=False)
        peer.refused = isinstance(error, ConnectionFailed) and _nobody_there(error)
        news = peer.failure is None or (type(peer.failure), str(peer.failure)) != (type(error), str(error))
        peer.failure = error
        if news:
            logger.warning("peer.unreachable", extra={"facts": {
                "node": peer.node, "address": peer.address, "refused": peer.refused, "error": str(error),
            }})  # fmt: skip

    # -- links call ----------------------------------------------------------------------------------------------

    def connected_to(self, link: PeerLink) -> None:
        self._strangers[link] = None

    def opened(self, link: PeerLink) -> None:
        """Both ends know each other."""
        self._strangers.pop(link, None)
        if self._closed:
            link.cut(Closed(f"node {self.node} is stopping", what=self.node))
            return
        peer = self._known(link.node)
        if peer.link is not None:                  # it started again before its old connection was known to be gone
            peer.link.cut(ConnectionFailed(f"node {link.node} made a new link", address=link.node, sent=True))
            peer = self._known(link.node)          # one that nobody listed was forgotten with its link
        peer.link, peer.refused, peer.failure = link, False, None
        peer.changed.set()
        logger.info("peer.connected", extra={"facts": {"node": link.node, "version": link.wire.version}})
        peer.lane.link_up(link)
        self.handler.link_up(link.node)

    def turned_away(self, link: PeerLink, error: StreamkitError) -> None:
        logger.warning("peer.refused", extra={"facts": {"error": str(error), **error.facts}})

    def lost(self, link: PeerLink, error: StreamkitError) -> None:
        self._strangers.pop(link, None)
        peer = self._peers.get(link.node)
        if peer is None or peer.link is not link:
            return
        peer.link, peer.heard_s, peer.failure = None, link.heard_s, error
        logger.info("peer.disconnected", extra={"facts": {"node": link.node, "error": str(error)}})
        peer.lane.link_down()
        self.handler.link_down(link.node)
        peer.changed.set()
        self._forget_idle(peer)

    def acknowledged(self, link: PeerLink, answer: Acknowledgement) -> None:
        self._peers[link.node].lane.acknowledged(answer)

    def turn(self, link: PeerLink) -> None:
        self._peers[link.node].lane.turn()

    def drained(self, link: PeerLink) -> None:
        self._peers[link.node].lane.resume()

    def tick(self, link: PeerLink, now_s: float) -> None:
        self._peers[link.node].lane.tick(now_s)


class _Knock(asyncio.Protocol):
    """A connection that only wanted to know whether somebody listens."""

    transport: asyncio.BaseTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport


def _nobody_there(error: ConnectionFailed) -> bool:
    # Several addresses for one name leave no errno, only a text that repeats each.
    number = error.facts.get("errno")
    return number in _NOBODY_THERE if number is not None else "refused" in str(error).lower()
