"""What operators ask of a cluster: how it is, and that shards move. Any node answers.

Nothing is moved here: what is wanted goes into the store (a member's state, a shard's targets), and whoever leads the
shard or acts as controller carries it out. So a wish survives this node, and asking twice changes nothing.
Called by the service. Read `ClusterAdmin.describe`, then `ClusterAdmin.move`.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from streamkit.broker.cluster_report import Facts, node_rows, troubles
from streamkit.errors import (
    CannotPlace,
    InvalidRequest,
    InvalidUse,
    LastCopy,
    NodeInUse,
    NodeNotFound,
    ShardNotFound,
    StreamBusy,
    StreamkitError,
)
from streamkit.metadata.members import ACTIVE, DRAINING, MemberEntry, Members, NodeEntry
from streamkit.metadata.placement import Move, Place, loads, plan_spread
from streamkit.metadata.replica_sets import ReplicaSetEntry, ReplicaSets
from streamkit.model.shard import shard_id
from streamkit.model.stream import StreamDescription
from streamkit.protocol import messages as m

if TYPE_CHECKING:
    from streamkit.broker.copies import Copies as AllCopies
    from streamkit.broker.copy import Copy

logger = logging.getLogger("streamkit.broker")

_ASK_TIMEOUT_MS = 2_000
_TRIES = 5                                 # of a change that others are faster with
_TROUBLES_MAX = 10_000


class Copies(Protocol):
    """What the copies on nodes are like; the node wires it to its own and to the links."""

    def here(self) -> m.CopiesDescribed: ...

    async def at(self, node: str) -> m.CopiesDescribed:
        """Raises ConnectionFailed, TimedOut."""


class NodesCopies:
    """Of this node, and of others over their links."""

    def __init__(self, copies: AllCopies, free_bytes: Callable[[], int]) -> None:
        self._copies = copies
        self._free_bytes = free_bytes
        copies.on_described = self.here

    def here(self) -> m.CopiesDescribed:
        return m.CopiesDescribed(
            self._copies.node, self._free_bytes(), tuple(map(_described, self._copies.copies.values()))
        )

    async def at(self, node: str) -> m.CopiesDescribed:
        """Raises ConnectionFailed, TimedOut."""
        answer = await self._copies.peers.ask(node, m.DescribeCopies(), _ASK_TIMEOUT_MS)
        assert isinstance(answer, m.CopiesDescribed), "each request has its answer"
        return answer


def _described(copy: Copy) -> m.CopyInfo:
    log = copy.log
    return m.CopyInfo(
        shard=copy.uuid, role="leader" if copy.server is not None else "follower", epoch=copy.epoch,
        log_start=log.log_start, log_end=log.log_end, high_watermark=copy.high_watermark, certain=log.certain,
        incarnation=log.incarnation,
    )  # fmt: skip


class Streams(Protocol):
    @property
    def streams(self) -> Mapping[str, StreamDescription]: ...

    def stream(self, name: str) -> StreamDescription:
        """Raises StreamNotFound."""


class ClusterAdmin:
    """answers: for the service, by type of message.

    controller: the node that plans moves now, "" when unknown. store_trouble: why the store does not answer, or "".
    replicas: how many copies a shard should have.
    """

    def __init__(
        self, *, node: str, members: Members, sets: ReplicaSets, streams: Streams, copies: Copies, replicas: int,
        controller: Callable[[], str], store_trouble: Callable[[], str],
    ) -> None:  # fmt: skip
        self._node = node
        self._members = members
        self._sets = sets
        self._streams = streams
        self._copies = copies
        self._replicas = replicas
        self._controller = controller
        self._store_trouble = store_trouble
        self.answers: dict[type, Callable[[Any, int], Awaitable[m.Message]]] = {
            m.DescribeCluster: self.describe,
            m.DescribeCopies: self.describe_copies,
            m.DrainNode: self.drain,
            m.MoveShard: self.move,
            m.AddNode: self.add,
            m.RemoveNode: self.remove,
            m.AcceptLoss: self.accept_loss,
        }

    # -- how it is -----------------------------------------------------------------------------------------

    async def describe(self, message: m.DescribeCluster, _: int = 0) -> m.ClusterDescribed:
        facts = Facts(
            self._members.members, self._members.nodes, self._sets.entries, await self._told(self._members.nodes),
            self._replicas, self._places(),
        )  # fmt: skip
        found = troubles(facts)
        return m.ClusterDescribed(
            cluster=self._members.cluster_id, controller=self._controller(), store=self._store_trouble(),
            shards=len(self._sets.entries), nodes=node_rows(facts),
            troubles=tuple(found[: min(message.troubles_max, _TROUBLES_MAX)]),
            trouble_counts=dict(Counter(one.kind for one in found)),
        )

    async def describe_copies(self, _: m.DescribeCopies, __: int = 0) -> m.CopiesDescribed:
        return self._copies.here()

    async def _told(self, nodes: Iterable[str]) -> dict[str, m.CopiesDescribed]:
        """Of those that answer."""

        async def ask(node: str) -> m.CopiesDescribed | None:
            if node == self._node:
                return self._copies.here()
            try:
                return await self._copies.at(node)
            except StreamkitError as error:
                logger.debug("node.silent node=%s error=%s", node, error)
                return None                # down or cut off: the report shows that it does not answer

        asked = list(nodes)
        answers = await asyncio.gather(*map(ask, asked))
        return {node: told for node, told in zip(asked, answers, strict=True) if told is not None}

    def _places(self) -> dict[bytes, tuple[str, int]]:
        return {
            shard.uuid: (stream.name, shard.ordinal)
            for stream in self._streams.streams.values() for shard in stream.shards
        }  # fmt: skip

    # -- what is wanted ------------------------------------------------------------------------------------

    async def drain(self, message: m.DrainNode, _: int = 0) -> m.ShardsMoving:
        """Asked again, it tells what is left. A node may be down. Raises NodeNotFound, StoreUnavailable.

        A copy for which there is no other node stays; what the node leads goes to other members in any case.
        """
        node = self._member(message.node).node
        await self._members.set_state(node, ACTIVE if message.undo else DRAINING)
        if message.undo:
            return m.ShardsMoving(0)
        others = set(self._usable())
        held = [entry for entry in self._sets.entries.values() if node in entry.copies or node == entry.leader]
        staying = sum(not (others if entry.leader == node else others - set(entry.nodes)) for entry in held)
        return m.ShardsMoving(len(held) - staying, staying)

    async def move(self, message: m.MoveShard, _: int = 0) -> m.Done:
        """Raises StreamNotFound, ShardNotFound, InvalidRequest, CannotPlace, StreamBusy, StoreUnavailable."""
        if bool(message.leader) == bool(message.out and message.into):
            raise InvalidRequest(
                "a move names either the new leader or two nodes, one out and one in",
                try_="streamkit cluster move STREAM/SHARD --to NODE, or --replace A=B",
                field="leader", value=message.leader,
            )  # fmt: skip
        uuid = self._shard(message.stream, message.ordinal)

        def wanted(entry: ReplicaSetEntry) -> ReplicaSetEntry:
            called = self._called(uuid, entry)
            if message.leader:
                return self._led_by(entry, message.leader, called)
            return self._replaced(entry, message.out, message.into, called)

        await self._change(uuid, wanted)
        return m.Done()

    async def accept_loss(self, message: m.AcceptLoss, _: int = 0) -> m.Done:
        """Raises StreamNotFound, ShardNotFound, InvalidRequest when the shard has a leader, StoreUnavailable."""
        uuid = self._shard(message.stream, message.ordinal)
        told = await self._told(self._members.nodes)

        def wanted(entry: ReplicaSetEntry) -> ReplicaSetEntry:
            leader = told.get(entry.leader)
            if leader is not None and any(copy.shard == uuid and copy.role == "leader" for copy in leader.copies):
                raise InvalidRequest(
                    f"{entry.leader} leads {self._called(uuid, entry)}: there is no loss to accept",
                    try_="streamkit cluster status", field="shard", value=uuid.hex(),
                )
            return msgspec.structs.replace(entry, accept_loss=True)

        await self._change(uuid, wanted)
        return m.Done()

    async def add(self, message: m.AddNode, _: int = 0) -> m.ShardsMoving:
        """Raises NodeNotFound, CannotPlace, StoreUnavailable."""
        node = self._member(message.node)
        if node.node not in self._members.nodes:
            raise CannotPlace(
                f"{node.node} is down", try_=f"start it: streamkit serve --node-id {node.node}",
                replicas=self._replicas, nodes=len(self._members.members), live=len(self._members.nodes),
            )
        if node.state == DRAINING:
            await self._members.set_state(node.node, ACTIVE)
        copies, leads = loads(self._sets.entries)
        places = [
            Place(node=name, zone=entry.zone, live=True, copies=copies[name], leads=leads[name])
            for name, entry in self._usable().items()
        ]
        moving = 0
        for move in plan_spread(self._sets.entries, places, moves_max=len(self._sets.entries)):
            if node.node in move.members:
                moving += await self._change(move.uuid, partial(_still_free, move))
        return m.ShardsMoving(moving)

    async def remove(self, message: m.RemoveNode, _: int = 0) -> m.Done:
        """Raises NodeNotFound, NodeInUse, LastCopy, StoreUnavailable."""
        node = self._member(message.node).node
        held = {uuid: entry for uuid, entry in self._sets.entries.items() if node in entry.copies}
        if held:
            await self._refuse_to_lose(node, held)
            raise NodeInUse(
                f"{node} holds copies of {_shards(len(held))}", try_=f"streamkit cluster drain {node}",
                node=node, shards=len(held),
            )
        if node in self._members.nodes:
            raise NodeInUse(f"{node} is running", try_=f"stop {node} first", node=node, shards=0)
        await self._members.remove(node)
        return m.Done()

    async def _refuse_to_lose(self, node: str, held: Mapping[bytes, ReplicaSetEntry]) -> None:
        told = await self._told(self._members.nodes)
        certain = {
            other: {copy.shard for copy in described.copies if copy.certain}
            for other, described in told.items() if other != node
        }  # fmt: skip
        for uuid, entry in held.items():
            if node in entry.nodes and not any(uuid in certain.get(other, ()) for other in entry.nodes):
                raise LastCopy(
                    f"{node} holds the last certain copy of {self._called(uuid, entry)}: its records would be lost",
                    try_=f"start {' or '.join(n for n in entry.nodes if n != node) or node}, then look again",
                    shard=uuid.hex(), node=node,
                )

    # -- entries -------------------------------------------------------------------------------------------

    async def _change(self, uuid: bytes, wanted: Callable[[ReplicaSetEntry], ReplicaSetEntry]) -> bool:
        """False: it is that way already. Raises StreamBusy when others are faster all the time."""
        for _ in range(_TRIES):
            if (entry := self._sets.entries.get(uuid)) is None:
                raise ShardNotFound("the shard does not exist any more", try_="streamkit stream list", shard=uuid.hex())
            changed = wanted(entry)
            if changed == entry:
                return False
            if await self._sets.swap(uuid, entry.revision, changed) is not None:
                return True
        assert entry is not None, "there was at least one try"
        raise StreamBusy(
            f"the copies of {self._called(uuid, entry)} change at this moment", try_="try again in a moment",
            stream=entry.stream, status="moving",
        )

    def _led_by(self, entry: ReplicaSetEntry, leader: str, called: str) -> ReplicaSetEntry:
        if leader not in entry.nodes:
            self._member(leader)
            raise InvalidRequest(
                f"{leader} holds no copy of {called}; {', '.join(entry.nodes)} do",
                try_=f"first give it one: streamkit cluster move … --replace {entry.nodes[-1]}={leader}",
                field="leader", value=leader,
            )
        if leader not in self._usable():
            raise self._unusable(leader)
        target = "" if leader == entry.leader else leader
        return entry.with_targets(leader=target, members=entry.target_members)

    def _replaced(self, entry: ReplicaSetEntry, out: str, into: str, called: str) -> ReplicaSetEntry:
        self._member(into)
        members = tuple(entry.target_members or entry.nodes)
        if entry.target_members and set(members) == ({*entry.nodes} - {out}) | {into}:
            return entry                   # asked for already
        if entry.previous or entry.learners or (entry.target_members and set(members) != set(entry.nodes)):
            raise StreamBusy(
                f"the copies of {called} are moving already", try_="streamkit cluster status",
                stream=entry.stream, status="moving",
            )
        if out not in members or into in members:
            who = f"{into} holds one" if into in members else f"{out} holds none"
            raise InvalidRequest(
                f"{who} of the copies of {called}, which lie on {', '.join(members)}",
                try_="streamkit cluster status", field="replace", value=f"{out}={into}",
            )
        if into not in self._usable():
            raise self._unusable(into)
        leader = into if entry.leader == out else entry.target_leader
        return entry.with_targets(leader=leader, members=tuple(into if node == out else node for node in entry.nodes))

    def _shard(self, stream_name: str, ordinal: int) -> bytes:
        """Its uuid. Raises StreamNotFound, ShardNotFound."""
        stream = self._streams.stream(stream_name)
        shard = next((shard for shard in stream.shards if shard.ordinal == ordinal), None)
        if shard is None:
            raise ShardNotFound(
                f'stream "{stream.name}" has no shard {shard_id(ordinal)}',
                try_=f"streamkit stream describe {stream.name}", shard=shard_id(ordinal),
            )
        return shard.uuid

    # -- words ---------------------------------------------------------------------------------------------

    def _member(self, node: str) -> MemberEntry:
        try:
            return self._members.members[node]
        except KeyError:
            near = next(iter(difflib.get_close_matches(node, self._members.members, n=1)), None)
            hint = f'; did you mean "{near}"?' if near else ""
            raise NodeNotFound(
                f'no node "{node[:64]}" belongs to the cluster{hint}', try_="streamkit cluster status",
                node=node[:64], near=near,
            ) from None

    def _usable(self) -> dict[str, NodeEntry]:
        """Nodes that may take copies, by name."""
        members = self._members.members
        return {
            node: entry for node, entry in sorted(self._members.nodes.items())
            if node in members and members[node].state == ACTIVE
        }  # fmt: skip

    def _unusable(self, node: str) -> CannotPlace:
        down = node not in self._members.nodes
        return CannotPlace(
            f"{node} is {'down' if down else 'being drained'}",
            try_=f"start {node}" if down else f"streamkit cluster drain {node} --undo",
            replicas=self._replicas, nodes=len(self._members.members), live=len(self._members.nodes),
        )

    def _called(self, uuid: bytes, entry: ReplicaSetEntry) -> str:
        stream = self._streams.streams.get(entry.stream)
        shards = stream.shards if stream is not None else ()
        ordinal = next((shard.ordinal for shard in shards if shard.uuid == uuid), None)
        return f"{entry.stream}/{uuid.hex()[:8] if ordinal is None else ordinal}"


def _still_free(move: Move, entry: ReplicaSetEntry) -> ReplicaSetEntry:
    """With what was planned, unless the shard has begun to move meanwhile."""
    if entry.previous or entry.learners or entry.target_members:
        return entry
    return entry.with_targets(leader=entry.target_leader, members=move.members)


def _shards(count: int) -> str:
    return "1 shard" if count == 1 else f"{count} shards"


async def _no_cluster(message: m.Message, _: int) -> m.Message:
    raise InvalidUse(
        "this node runs by itself and belongs to no cluster",
        try_="streamkit serve --replicas 3, or streamkit serve --node-id NAME --cluster etcd://HOST:PORT",
        operation=type(message).__name__,
    )


NO_CLUSTER: dict[type, Callable[[Any, int], Awaitable[m.Message]]] = dict.fromkeys(
    (m.DescribeCluster, m.DescribeCopies, m.DrainNode, m.MoveShard, m.AddNode, m.RemoveNode, m.AcceptLoss),
    _no_cluster,
)
