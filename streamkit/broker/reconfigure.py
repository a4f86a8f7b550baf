"""Leaders carry out what the store wants of their shards' replica sets, one small step at a time.

    previous not empty, our epoch established     ▸ drop `previous`: the change is done
    a member's disk was replaced, or a target
    member has no copy                            ▸ list it as learner; its node makes a log, a feed fills it
    every target member's copy is close, may vote ▸ the next epoch with these members, sealed by the old ones, too
    the leader is no target member                ▸ a target member is asked to lead, and then drops us
    a learner that nobody wants                   ▸ taken off the list

Each step is a compare-and-swap of the entry that it follows from, so any number of nodes may think about it, and a
crash in between leaves a replica set that is whole. Who leads a target is decided by `elections` there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import msgspec

from streamkit.broker.copies import Copies
from streamkit.broker.copy import Copy
from streamkit.metadata.members import is_on_disk, new_incarnation
from streamkit.metadata.replica_sets import ReplicaSetEntry
from streamkit.replication.replica_set import Member, ReplicaSet

logger = logging.getLogger("streamkit.broker")

_CLOSE_BYTES = 1024 * 1024         # a learner that lacks no more than that becomes a member
_BRISK_SECONDS = 0.05
_CALM_SECONDS = 1.0


class Reconfiguration:
    """Run with `run()`; `wake()` when an entry changed."""

    def __init__(self, copies: Copies) -> None:
        self._copies = copies
        self._woken = asyncio.Event()
        self._pending: dict[bytes, Copy] = {}

    def entry_changed(self, copy: Copy) -> None:
        """The store said something of it, or it began or ceased to lead."""
        if copy.server is not None and self._is_unsettled(copy):
            self._pending[copy.uuid] = copy
            self._woken.set()
        else:
            self._pending.pop(copy.uuid, None)

    def disk_changed(self, node: str) -> None:
        """That node has another disk: its copies are to be filled anew."""
        for copy in self._copies.copies.values():
            if node in copy.entry.copies:
                self.entry_changed(copy)

    def _is_unsettled(self, copy: Copy) -> bool:
        entry, disks = copy.entry, self._copies.disks
        return bool(
            entry.previous or entry.accept_loss or entry.learners or entry.target_members
            or any(_copy_on(copy.replica_set, node, disks.get(node, "")) is None for node in entry.nodes)
        )

    async def run(self) -> None:
        while True:
            for copy in list(self._pending.values()):
                if copy.closed or copy.server is None:
                    self._pending.pop(copy.uuid, None)
                else:
                    await self._step(copy)
            self._woken.clear()
            try:
                async with asyncio.timeout(_BRISK_SECONDS if self._pending else _CALM_SECONDS):
                    await self._woken.wait()
            except TimeoutError:
                continue

    async def _step(self, copy: Copy) -> None:
        """At most one change of this shard."""
        if not copy.is_established or copy.is_standing or copy.entry.epoch != copy.epoch:
            return
        close = await self._close_copies(copy)
        if not copy.is_established or copy.is_standing or copy.entry.epoch != copy.epoch:
            return                                         # meanwhile
        wanted = next_entry(
            copy.entry, us=self._copies.node, disks=self._copies.disks, close=close,
            new_incarnation=lambda disk: new_incarnation(disk, self._copies.random),
        )  # fmt: skip
        if wanted is None:
            if not self._is_unsettled(copy):
                self._pending.pop(copy.uuid, None)
            return
        won = await self._copies.swap(copy.uuid, wanted)
        if won is None:
            return
        logger.info("replica_set.changed", extra={"facts": {
            "shard": copy.uuid.hex(), "epoch": won.epoch, "members": list(won.nodes),
            "learners": [node for node, _ in won.learners],
        }})  # fmt: skip
        if won.epoch > copy.epoch:
            await copy.campaign(won)

    async def _close_copies(self, copy: Copy) -> set[Member]:
        """Copies that lack little of the leader's log, and may vote if they are not counted yet."""
        found = set()
        replicas = copy.replica_set
        for member in (*replicas.members, *replicas.learners):
            feed = copy.feed(member.node)
            if member.incarnation == copy.incarnation or (
                feed is not None and feed.matched is not None and feed.lag_bytes <= _CLOSE_BYTES
                and self._copies.peers.connected(member.node)
                # One that may not vote is filled by a leader alone; were its vote needed for the next epoch, there
                # would be none.
                and (member in replicas.members or await self._copies.voter(member, copy.uuid) is not None)
            ):
                found.add(member)
        return found


def next_entry(
    entry: ReplicaSetEntry, *, us: str, disks: Mapping[str, str], close: Collection[Member],
    new_incarnation: Callable[[str], bytes],
) -> ReplicaSetEntry | None:  # fmt: skip
    """The next step from `entry`, taken by its leader `us`; None: there is nothing to do, or something to wait for.

    disks: node → its disk. close: the copies that lack little and may vote. new_incarnation: for a copy on that disk.
    """
    replicas = entry.replica_set
    if replicas.previous or entry.accept_loss:
        return msgspec.structs.replace(entry.with_set(replicas.settled()), accept_loss=False)
    wanted = entry.target_members or entry.nodes
    copies = {node: _copy_on(replicas, node, disks.get(node, "")) for node in wanted}
    missing = [node for node, copy in copies.items() if copy is None and node in disks]
    if missing:
        new = tuple(Member(node, new_incarnation(disks[node])) for node in missing)
        return entry.with_set(replace(replicas, learners=(*replicas.learners, *new)))
    members = tuple(copy for copy in copies.values() if copy is not None)
    if len(members) < len(wanted):
        return None                                        # a target whose node nobody has heard of
    if set(members) == set(replicas.members):
        return _finished(entry, replicas)
    if any(member not in close for member in members):
        return None
    own = _copy_on(replicas, us, disks.get(us, ""))
    if us in wanted or own is None:
        return entry.with_set(replicas.changed_to(members))
    if any(member not in replicas.members for member in members):
        return entry.with_set(replicas.changed_to((*members, own)))
    if entry.target_leader not in wanted:
        return msgspec.structs.replace(entry, target_leader=wanted[0])
    return None                                        # the target member stands by itself, and goes on from here


def _finished(entry: ReplicaSetEntry, replicas: ReplicaSet) -> ReplicaSetEntry | None:
    """The members are those that are wanted: what is left over is taken off the list."""
    leader = entry.target_leader if entry.target_leader in entry.nodes else ""
    done = msgspec.structs.replace(entry, target_members=(), target_leader=leader)
    done = done.with_set(replace(replicas, learners=()))
    return done if done != entry else None


def _copy_on(replicas: ReplicaSet, node: str, disk: str) -> Member | None:
    """The copy on that node, on the disk that the node has now; a counted one before a learner."""
    for member in (*replicas.members, *replicas.learners):
        if member.node == node and (not disk or is_on_disk(member.incarnation, disk)):
            return member
    return None
