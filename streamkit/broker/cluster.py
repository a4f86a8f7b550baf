"""A node's part in a cluster, plugged together: members, replica sets, links, copies, elections, changes of members.

    open     members ▸ replica sets ▸ links listen ▸ copies of what lies here
    join     registered under its name: others find it ▸ elections
    leave    the registration goes first, so that others take over while this node still answers

The store is asked at the start and for changes; while it is down, everything that is led goes on. Made by `node`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import msgspec

from streamkit.broker.cluster_streams import ClusterStreams
from streamkit.broker.copies import Copies
from streamkit.broker.copy import Copy
from streamkit.broker.elections import ElectionConfig, Elections
from streamkit.broker.peers import Peers, PeersConfig
from streamkit.broker.reconfigure import Reconfiguration
from streamkit.broker.repair import Repair
from streamkit.errors import StreamkitError
from streamkit.metadata.members import Identity, MemberEntry, Members, NodeEntry
from streamkit.observability.metrics import ClusterNumbers
from streamkit.runtime.interfaces import Runtime
from streamkit.runtime.tasks import Tasks
from streamkit.storage import Damage, Scrubber, ShardLog

logger = logging.getLogger("streamkit.broker")

_HAND_OVER_SECONDS = 3.0
_TAKE_BACK_SECONDS = 0.5           # for the store, to forget an heir who did not come
_LOOK_SECONDS = 0.01
_KEEP_SECONDS = 1.0                # before work that failed is taken up again
_NEVER_BYTES = 1 << 62
_SHORT_BYTES = 64 * 1024 * 1024    # a copy that lacks more than that is not to be relied on
_APPLICATIONS_SECONDS = 0.25       # between attempts to make the coordinator's stream, until it is there


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """Bounds of the parts. scrub_bytes_per_second: how fast stored segments are read again; 0: never."""

    scrub_bytes_per_second: int = 4 * 1024 * 1024
    elections: ElectionConfig = field(default_factory=ElectionConfig)
    peers: PeersConfig = field(default_factory=PeersConfig)


class Cluster:
    """Made once the streams are; `streams.copies` and the rest hang together through it."""

    def __init__(
        self, *, identity: Identity, members: Members, streams: ClusterStreams, runtime: Runtime, config: ClusterConfig,
    ) -> None:  # fmt: skip
        self.identity = identity
        self.members = members
        self.streams = streams
        self.config = config
        self.copies = Copies(
            node=identity.node, directory=streams.directory, replica_sets=streams.replica_sets, catalogue=streams,
            counters=streams.counters, clock=runtime.clock, random=runtime.random,
        )  # fmt: skip
        self.elections = Elections(self.copies, config.elections)
        self.reconfiguration = Reconfiguration(self.copies)
        self.repair = Repair(self.copies)
        rate = config.scrub_bytes_per_second
        self.scrubber = Scrubber(streams.directory, runtime.clock, rate, self._found_damage) if rate else None
        self._runtime = runtime
        self._peer_addresses: dict[str, str] = {}
        self._loop = asyncio.get_running_loop()
        self._tasks = Tasks("cluster")
        self.peers: Peers

    async def open(self, peer_address: str) -> str:
        """Listen for other nodes and take up the copies that lie here; where it listens. Raises StreamkitError."""
        self.peers = self.copies.peers = Peers(
            node=self.identity.node, cluster_id=self.members.cluster_id, disk_id=self.identity.disk,
            runtime=self._runtime, handler=self.copies, config=self.config.peers,
        )  # fmt: skip
        bound = await self.peers.listen(peer_address)
        self.copies.on_entry = self._entry_changed
        self.copies.on_links = self.elections.wake
        self.copies.on_asked = self.streams.answer
        self.members.on_change.append(self._node_changed)
        self.members.on_member.append(self._member_changed)
        for node, member in self.members.members.items():
            self.copies.disks[node] = member.disk
        for node, entry in self.members.nodes.items():
            self._node_changed(node, entry)
        return bound

    async def start(self) -> None:
        """The node is registered: copies, elections and the rest begin."""
        self.copies.disks[self.identity.node] = self.identity.disk.hex()
        await self.copies.open()
        self._keep(self.elections.run, "elections")
        self._keep(self.reconfiguration.run, "reconfiguration")
        if self.scrubber is not None:
            self.scrubber.start()
        self._keep(self.repair.run, "repair")
        self._keep(self.repair.compare, "compare")
        self._tasks.start(self._ensure_applications(), "applications")

    def _keep(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        """Run it for ever: what fails for one shard must not end it for all."""

        async def again() -> None:
            while True:
                try:
                    await work()
                except Exception:
                    logger.exception("cluster.work_failed", extra={"facts": {"work": name}})
                await asyncio.sleep(_KEEP_SECONDS)

        self._tasks.start(again(), name)

    async def close(self) -> None:
        if self.scrubber is not None:
            await self.scrubber.stop()
        await self._tasks.close()
        await self.copies.close()
        await self.peers.close()

    async def hand_over(self) -> None:
        """Another member leads each shard that this node leads, if one is close enough to do it soon."""
        heirs = {copy: heir for copy in self.copies.copies.values() if copy.server and (heir := self._heir(copy))}
        for copy, heir in heirs.items():
            self._tasks.start(self._want_leader(copy, heir), "hand_over")
        await self._until_led_elsewhere(list(heirs), _HAND_OVER_SECONDS)
        # Who did not come by now is wanted no more: it would end another's leadership at any later time.
        late = [copy for copy, heir in heirs.items() if copy.server and copy.entry.target_leader == heir]
        for copy in late:
            self._tasks.start(self._want_leader(copy, ""), "hand_over")
        if late:
            await self._until_led_elsewhere(late, _TAKE_BACK_SECONDS, unless_wanted=True)

    async def _until_led_elsewhere(self, led: list[Copy], seconds: float, *, unless_wanted: bool = False) -> None:
        deadline = self._loop.time() + seconds
        while self._loop.time() < deadline and any(  # noqa: ASYNC110 - nobody tells
            copy.server is not None and not (unless_wanted and not copy.entry.target_leader) for copy in led
        ):
            await asyncio.sleep(_LOOK_SECONDS)

    def _heir(self, copy: Copy) -> str:
        """The member that lacks least of the log; "" when none can be reached."""
        nodes = [node for node in copy.entry.nodes if node != self.identity.node and self.peers.connected(node)]
        if 2 * len(nodes) <= len(copy.entry.nodes):
            return ""                                      # too few are left to lead without this node
        return min(nodes, key=lambda node: feed.lag_bytes if (feed := copy.feed(node)) is not None else _NEVER_BYTES)

    async def _want_leader(self, copy: Copy, node: str) -> None:
        await self.copies.swap(copy.uuid, msgspec.structs.replace(copy.entry, target_leader=node))

    def numbers(self) -> ClusterNumbers:
        """For the metrics."""
        copies = list(self.copies.copies.values())
        led = [copy for copy in copies if copy.server is not None]
        lag_bytes: dict[str, int] = {}
        short = 0
        for copy in led:
            lacking = {node: feed.lag_bytes for node, feed in copy.feeds().items()}
            short += any(not self.peers.connected(node) or lag > _SHORT_BYTES for node, lag in lacking.items())
            for node, lag in lacking.items():
                lag_bytes[node] = lag_bytes.get(node, 0) + lag
        return ClusterNumbers(
            leaders=len(led), followers=len(copies) - len(led),
            uncertain=sum(not copy.follower.certain for copy in copies), short=short, lag_bytes=lag_bytes,
            peers={node: self.peers.connected(node) for node in self._peer_addresses if node != self.identity.node},
            elections_won=self.elections.won, damaged=sum(len(copy.log.damages) for copy in copies),
            repaired=self.repair.repaired, differences=self.repair.differences,
            store_available=not self.members.store_trouble,
        )

    def _found_damage(self, log: ShardLog, damage: Damage) -> None:
        """By the scrubber; it is among log.damages now, where `repair` finds it."""
        logger.error("scrub.found_damage", extra={"facts": {
            "path": damage.path, "sequence": damage.sequence, "next_sequence": damage.next_sequence,
        }})  # fmt: skip

    def failed(self) -> None:
        """The disk is gone: others are to lead, and to see that they must."""
        self.copies.failed()
        self._tasks.start(self.peers.close(), "links")

    def _entry_changed(self, copy: Copy) -> None:
        self.elections.entry_changed(copy)
        self.reconfiguration.entry_changed(copy)

    def _node_changed(self, node: str, entry: NodeEntry | None) -> None:
        """A node came or went, as far as the store knows. Links outlive a registration that merely lapsed."""
        if entry is None:
            self.copies.addresses.pop(node, None)
        else:
            self.copies.addresses[node] = entry.address
            if entry.peer_address:
                self._peer_addresses[node] = entry.peer_address
        self.peers.set_nodes(self._peer_addresses)
        self.elections.wake()

    def _member_changed(self, node: str, entry: MemberEntry | None) -> None:
        if entry is None:
            self.copies.disks.pop(node, None)
            self._peer_addresses.pop(node, None)
            self.peers.set_nodes(self._peer_addresses)
        elif self.copies.disks.get(node) != entry.disk:
            self.copies.disks[node] = entry.disk
            self.reconfiguration.disk_changed(node)

    async def _ensure_applications(self) -> None:
        while not self.streams.has_applications:
            try:
                await self.streams.ensure_applications()
            except StreamkitError as error:
                logger.debug("applications.not_yet %s", error)
            await asyncio.sleep(_APPLICATIONS_SECONDS * (1 + self._runtime.random.uniform()))
