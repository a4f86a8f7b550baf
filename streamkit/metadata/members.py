"""Who belongs to the cluster, who is alive, and whether this node may be one of them.

    cluster/id        random, written by the first node of all
    members/<node>    MemberEntry: stays until `streamkit cluster remove`
    nodes/<node>      NodeEntry: a registration that expires 5 s after the node was last heard of

    join   cluster id ▸ registration (one process at a time under a name) ▸ starts + 1, here first, then in the store
           ▸ renewed from then on; made anew when it was lost, unless another process has started under the name since

`starts` tells a data directory from its copies: it is written to the directory before the store takes it, so a
directory that is behind the store was cloned, or restored from a backup, and has forgotten what it promised since.
Called by the node and by whoever places copies. Read `Members.join` first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import msgspec

from streamkit.errors import DuplicateNode, NodeRefused, StaleDirectory, StoreUnavailable, WrongCluster
from streamkit.metadata.store import Registration, Store
from streamkit.metadata.view import View
from streamkit.runtime.interfaces import Random, Runtime
from streamkit.runtime.tasks import Tasks

T = TypeVar("T")
CLUSTER_ID = "cluster/id"
MEMBERS = "members/"
NODES = "nodes/"
TTL_MS = 5_000
ACTIVE, DRAINING = "active", "draining"
_log = logging.getLogger("streamkit.metadata")
_AGAIN_SECONDS = 0.25              # between two looks at a store that is down, or at a name that is taken
_TRIES = 5


class MemberEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """disk: uuid of its data directory's disk, in hexadecimal. starts: how often it has joined."""

    node: str
    disk: str
    starts: int
    zone: str = ""
    state: str = ACTIVE
    joined_ms: int = 0
    version: str = ""
    protocol_max: int = 0


class NodeEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """A node that is alive. address: for clients; peer_address: for nodes. boot, starts: which process this is."""

    address: str
    peer_address: str
    zone: str = ""
    version: str = ""
    pid: int = 0
    disk: str = ""
    boot: str = ""
    starts: int = 0


class LocalFacts(Protocol):
    """What the data directory remembers of its cluster; storage's ClusterFacts."""

    @property
    def cluster(self) -> str: ...
    @property
    def node(self) -> str: ...
    @property
    def starts(self) -> int: ...
    @property
    def next_starts(self) -> int: ...


WriteFacts = Callable[[str, str, int, int], Awaitable[None]]       # cluster, node, starts, next_starts; durably


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who wants to join. facts: what the data directory remembers; None: it has never joined. boot: disk.boot_id()."""

    node: str
    disk: bytes
    facts: LocalFacts | None
    write_facts: WriteFacts
    zone: str = ""
    version: str = ""
    protocol_max: int = 0
    boot: str = ""
    pid: int = 0


def new_incarnation(disk: str, random: Random) -> bytes:
    """For a copy on that disk (hexadecimal). It begins with the disk's own name, so a disk that was replaced cannot
    take up a copy that it never had."""
    return bytes.fromhex(disk)[:8] + random.uuid()[8:]


def is_on_disk(incarnation: bytes, disk: str) -> bool:
    return incarnation[:8] == bytes.fromhex(disk)[:8]


_encode = msgspec.json.Encoder().encode
_member_decoder = msgspec.json.Decoder(MemberEntry)
_node_decoder = msgspec.json.Decoder(NodeEntry)


class Members:
    """Open with `await Members.open(store, runtime)`: looks on. `join` makes this node one of them.

    nodes: the live ones by name; members: all. on_change: called with (node, NodeEntry or None) when a node comes, goes
    or moves; on_member: the same for MemberEntry. on_replaced: called once with an error when this node must stop at
    once, since another process has started under its name, or it was removed from the cluster.
    """

    def __init__(self, store: Store, runtime: Runtime, *, ttl_ms: int = TTL_MS) -> None:
        self.cluster_id = ""
        self.node = ""
        self.starts = 0
        self.nodes: dict[str, NodeEntry] = {}
        self.members: dict[str, MemberEntry] = {}
        self.on_change: list[Callable[[str, NodeEntry | None], None]] = []
        self.on_member: list[Callable[[str, MemberEntry | None], None]] = []
        self.on_replaced: list[Callable[[NodeRefused], None]] = []
        self.replaced: NodeRefused | None = None
        self.store_trouble = ""            # why the store did not answer when it was asked last; "" when it did
        self._store = store
        self._runtime = runtime
        self._ttl_ms = ttl_ms
        self._nodes_view = View(store, NODES, self._node_changed)
        self._members_view = View(store, MEMBERS, self._member_changed)
        self._registration: Registration | None = None
        self._ours = NodeEntry(address="", peer_address="")
        self._tasks = Tasks("members")

    @classmethod
    async def open(cls, store: Store, runtime: Runtime, *, ttl_ms: int = TTL_MS) -> Members:
        """Raises StoreUnavailable."""
        members = cls(store, runtime, ttl_ms=ttl_ms)
        value, _ = await store.read(CLUSTER_ID)
        members.cluster_id = (value or b"").decode()
        try:
            await members._members_view.open()
            await members._nodes_view.open()
        except BaseException:
            await members.close()
            raise
        return members

    async def close(self) -> None:
        """Without saying good-bye: `leave` does."""
        await self._tasks.close()
        await self._members_view.close()
        await self._nodes_view.close()

    async def leave(self) -> None:
        """The others see this node go now, not when its registration expires."""
        registration, self._registration = self._registration, None
        await self._tasks.close()
        if registration is not None:
            with contextlib.suppress(StoreUnavailable):
                await registration.release()
        await self.close()

    def peer_addresses(self) -> dict[str, str]:
        """Of the live nodes, this one included."""
        return {node: entry.peer_address for node, entry in self.nodes.items() if entry.peer_address}

    # -- joining ---------------------------------------------------------------------------------------------

    async def join(self, who: Identity, *, address: str = "", peer_address: str = "") -> int:
        """How often this node has started. Nothing is changed for a node that is refused.

        Raises WrongCluster, DuplicateNode, StaleDirectory, StoreUnavailable.
        """
        assert not self.node, "a node joins once"
        self.cluster_id = await self._agree_on_cluster(who)
        known, _ = await self._member(who.node)
        self._check(who, known)
        self._ours = NodeEntry(
            address=address, peer_address=peer_address, zone=who.zone, version=who.version, pid=who.pid,
            disk=who.disk.hex(), boot=who.boot, starts=(known.starts if known else 0) + 1,
        )
        self._registration = await self._register(who.node, who.facts)
        try:
            self.starts = await self._count_start(who)
        except BaseException:
            registration, self._registration = self._registration, None
            with contextlib.suppress(StoreUnavailable):
                await registration.release()
            raise
        self.node = who.node
        self._tasks.start(self._keep(), "keep")
        await self._show_ours()
        return self.starts

    async def announce(self, *, address: str | None = None, peer_address: str | None = None) -> None:
        """Where this node answers, once it listens. Raises StoreUnavailable."""
        self._ours = msgspec.structs.replace(
            self._ours, address=self._ours.address if address is None else address,
            peer_address=self._ours.peer_address if peer_address is None else peer_address,
        )
        await self._rewrite()

    async def _rewrite(self) -> None:
        if self._registration is not None and not await self._registration.update(_encode(self._ours)):
            _log.warning("registration.lost", extra={"facts": {"node": self.node}})
        await self._show_ours()

    async def _show_ours(self) -> None:
        """In `nodes` now, not when the watch brings it."""
        key = NODES + self.node
        with contextlib.suppress(StoreUnavailable):
            value, revision = await self._store.read(key)
            if value is not None:
                self._nodes_view.wrote(key, value, revision)

    async def _agree_on_cluster(self, who: Identity) -> str:
        ours = who.facts.cluster if who.facts is not None else ""
        if who.facts is not None and who.facts.node != who.node:
            raise WrongCluster(
                f"the data directory belongs to node {who.facts.node}, not to {who.node}",
                try_=f"start it as --node-id {who.facts.node}, or name an empty directory",
                node=who.node, cluster=ours, ours=who.facts.node, theirs=who.node,
            )
        for _ in range(_TRIES):
            value, _revision = await self._store.read(CLUSTER_ID)
            if value is not None and ours in ("", value.decode()):
                return value.decode()
            if ours:
                theirs = (value or b"").decode()
                raise WrongCluster(
                    f"the data directory belongs to cluster {ours}, "
                    + (f"the store holds cluster {theirs}" if theirs else "but the store holds no cluster"),
                    try_="check --cluster; a store that was emptied is restored from its own backup",
                    node=who.node, cluster=ours, ours=ours, theirs=theirs,
                )
            fresh = self._runtime.random.uuid().hex().encode()
            with contextlib.suppress(StoreUnavailable):          # whatever came of it is read next
                await self._store.compare_and_swap(CLUSTER_ID, 0, fresh)
        raise StoreUnavailable(
            "the coordination store does not take the cluster's id", try_="look whether it may be written to",
            store=CLUSTER_ID, outcome="unknown",
        )

    def _check(self, who: Identity, known: MemberEntry | None) -> None:
        """Whether this data directory is the newest that the member has run on."""
        facts = who.facts
        if facts is None:
            return                              # a new directory: a new member, or one whose disk was replaced
        if known is None and facts.starts == 0:
            return                              # its first start was cut off before the store knew of it
        if known is None:
            raise WrongCluster(
                f"node {who.node} was removed from the cluster",
                try_="start it with an empty data directory to add it again",
                node=who.node, cluster=facts.cluster, ours=facts.cluster, theirs=self.cluster_id,
            )
        if known.disk != who.disk.hex() or known.starts not in (facts.starts, facts.next_starts):
            raise StaleDirectory(
                f"node {who.node} has started {known.starts} times, this data directory knows of {facts.next_starts}: "
                "it is a copy or was restored from a backup, and has forgotten what it promised since",
                try_=f"start {who.node} on its own directory, or on an empty one: the others fill it again",
                node=who.node, cluster=facts.cluster, starts=facts.next_starts, known=known.starts,
            )

    async def _register(self, node: str, facts: LocalFacts | None) -> Registration:
        """Waits for the registration of a process that died; a live one keeps its name."""
        key, value = NODES + node, _encode(self._ours)
        waits = int((self._ttl_ms / 1000 + 1.0) / _AGAIN_SECONDS)
        while True:
            with contextlib.suppress(StoreUnavailable):
                if (registration := await self._store.register(key, value, self._ttl_ms)) is not None:
                    return registration
            found, revision = await self._store.read(key)
            if found is not None and (found == value or self._is_our_past(found, facts)):
                # Our own, of a try whose answer was lost or of the process before this one: its directory is ours,
                # with its lock, so that process is gone.
                await self._store.compare_and_swap(key, revision, None)
                continue
            if waits == 0 and found is not None:
                there = _node_decoder.decode(found)
                raise DuplicateNode(
                    f"another process runs as node {node}, at {there.address or there.peer_address}",
                    try_="give each node a --node-id of its own",
                    node=node, cluster=self.cluster_id, address=there.address,
                )
            if waits == 0:
                raise StoreUnavailable(
                    f"the coordination store does not take the registration of node {node}",
                    try_="look whether it may be written to", store=key, outcome="unknown",
                )
            waits -= 1
            await asyncio.sleep(_AGAIN_SECONDS)

    def _is_our_past(self, found: bytes, facts: LocalFacts | None) -> bool:
        there = _node_decoder.decode(found)
        return (
            facts is not None and bool(there.boot) and there.boot == self._ours.boot
            and there.disk == self._ours.disk and there.starts in (facts.starts, facts.next_starts)
        )

    async def _count_start(self, who: Identity) -> int:
        """Nobody else does this for the node while we hold its registration."""
        starts, before = 0, who.facts.starts if who.facts else 0
        for _ in range(_TRIES):
            known, revision = await self._member(who.node)
            if known is None or known.starts != starts:
                self._check(who, known)         # not one that this loop has written itself
            starts = (known.starts if known else 0) + 1
            await who.write_facts(self.cluster_id, who.node, before, starts)
            entry = MemberEntry(
                node=who.node, disk=who.disk.hex(), starts=starts, zone=who.zone,
                state=known.state if known else ACTIVE,
                joined_ms=known.joined_ms if known else self._runtime.clock.now_ms(),
                version=who.version, protocol_max=who.protocol_max,
            )
            if known is not None and known.disk != entry.disk:
                _log.warning("member.disk_replaced", extra={"facts": {"node": who.node, "disk": entry.disk}})
            if await self._store_member(entry, revision):
                await who.write_facts(self.cluster_id, who.node, starts, starts)
                if starts != self._ours.starts:
                    self._ours = msgspec.structs.replace(self._ours, starts=starts)
                    await self._rewrite()
                return starts
        raise StoreUnavailable(
            f"the entry of node {who.node} is changed by others all the time", try_="try again",
            store=MEMBERS + who.node, outcome="not_done",
        )

    async def _store_member(self, entry: MemberEntry, revision: int) -> bool:
        key, value = MEMBERS + entry.node, _encode(entry)
        try:
            made = await self._store.compare_and_swap(key, revision, value)
        except StoreUnavailable as error:
            if error.facts["outcome"] != "unknown":
                raise
            # It may yet be made; once the same change is refused, it was made or never will be.
            made = await self._store.compare_and_swap(key, revision, value)
            if made is None:
                found, now = await self._store.read(key)
                made = now if found == value else None
        if made is not None:
            self._members_view.wrote(key, value, made)
        return made is not None

    async def _member(self, node: str) -> tuple[MemberEntry | None, int]:
        value, revision = await self._store.read(MEMBERS + node)
        return (None if value is None else _member_decoder.decode(value)), revision

    # -- what operators change -------------------------------------------------------------------------------

    async def set_state(self, node: str, state: str) -> None:
        """ACTIVE or DRAINING. Nothing happens for a node that was removed. Raises StoreUnavailable."""
        for _ in range(_TRIES):
            known, revision = await self._member(node)
            if known is None or known.state == state:
                return
            if await self._store_member(msgspec.structs.replace(known, state=state), revision):
                return
        raise StoreUnavailable(
            f"the entry of node {node} is changed by others all the time", try_="try again",
            store=MEMBERS + node, outcome="not_done",
        )

    async def remove(self, node: str) -> None:
        """The node, which holds nothing any more, is forgotten. Raises StoreUnavailable."""
        for _ in range(_TRIES):
            known, revision = await self._member(node)
            if known is None:
                return
            made = await self._store.compare_and_swap(MEMBERS + node, revision, None)
            if made is not None:
                self._members_view.wrote(MEMBERS + node, None, made)
                return
        raise StoreUnavailable(
            f"the entry of node {node} is changed by others all the time", try_="try again",
            store=MEMBERS + node, outcome="not_done",
        )

    # -- staying ---------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Renew; a store that is down is asked again and again, and a registration that was lost is made anew."""
        quiet = True
        while self.replaced is None:
            await asyncio.sleep(self._ttl_ms / 3000 if quiet else _AGAIN_SECONDS)
            try:
                if self._registration is None or not await self._registration.renew():
                    await self._register_again()
            except StoreUnavailable as error:
                self.store_trouble = str(error)
                if quiet:
                    _log.warning("store.unavailable", extra={"facts": {"node": self.node, "error": str(error)}})
                quiet = False
                continue
            if not quiet:
                _log.info("store.available", extra={"facts": {"node": self.node}})
            quiet, self.store_trouble = True, ""

    async def _register_again(self) -> None:
        self._registration = None
        cluster, _ = await self._store.read(CLUSTER_ID)
        if cluster != self.cluster_id.encode():
            raise StoreUnavailable(
                f"the store no longer holds cluster {self.cluster_id}",
                try_="restore it from its backup, or start nodes on empty directories",
                store=CLUSTER_ID, outcome="not_done",
            )
        known, _ = await self._member(self.node)
        self._compare(known)
        if self.replaced is not None:
            return
        key = NODES + self.node
        for _ in range(_TRIES):
            self._registration = await self._store.register(key, _encode(self._ours), self._ttl_ms)
            if self._registration is not None:
                _log.info("registration.renewed", extra={"facts": {"node": self.node}})
                return
            found, revision = await self._store.read(key)
            if found is not None and _node_decoder.decode(found).starts != self.starts:
                self._end(self._overtaken(_node_decoder.decode(found).starts))
                return
            if found is not None:
                # Our own, of a try whose answer was lost, or of an address that has changed: it makes room.
                await self._store.compare_and_swap(key, revision, None)

    def _compare(self, known: MemberEntry | None) -> None:
        if known is None:
            self._end(NodeRefused(
                f"node {self.node} was removed from the cluster",
                try_="start it with an empty data directory to add it", node=self.node, cluster=self.cluster_id,
            ))  # fmt: skip
        elif known.starts != self.starts or known.disk != self._ours.disk:
            self._end(self._overtaken(known.starts))

    def _overtaken(self, starts: int) -> StaleDirectory:
        return StaleDirectory(
            f"another process has started as node {self.node}, from a copy of its directory or from a new one",
            try_="run one of them, and start it with an empty data directory when in doubt",
            node=self.node, cluster=self.cluster_id, starts=self.starts, known=starts,
        )

    def _end(self, error: NodeRefused) -> None:
        if self.replaced is None:
            self.replaced = error
            _log.error("node.replaced", extra={"facts": {"node": self.node, "error": str(error)}})
            for call in tuple(self.on_replaced):
                call(error)

    # -- the views -------------------------------------------------------------------------------------------

    def _node_changed(self, key: str, value: bytes | None, revision: int) -> None:
        node = key.removeprefix(NODES)
        entry = _decoded(_node_decoder, key, value)
        if value is not None and entry is None:
            return
        if entry is None:
            self.nodes.pop(node, None)
        else:
            self.nodes[node] = entry
        for call in tuple(self.on_change):
            call(node, entry)

    def _member_changed(self, key: str, value: bytes | None, revision: int) -> None:
        node = key.removeprefix(MEMBERS)
        entry = _decoded(_member_decoder, key, value)
        if value is not None and entry is None:
            return
        if entry is None:
            self.members.pop(node, None)
        else:
            self.members[node] = entry
        if node == self.node:
            self._compare(entry)
        for call in tuple(self.on_member):
            call(node, entry)


def _decoded(decoder: msgspec.json.Decoder[T], key: str, value: bytes | None) -> T | None:
    """None also for what cannot be read: it is reported, and nothing is done because of it."""
    if value is None:
        return None
    try:
        return decoder.decode(value)
    except msgspec.MsgspecError as error:
        _log.error("metadata.unreadable", extra={"facts": {"key": key, "error": str(error)}})
        return None
