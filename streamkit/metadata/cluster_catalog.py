"""The catalog of a cluster: every node may change it, and follows what the others change.

    create   claim (only for many shards) ▸ replica sets ▸ stream entry, CREATING ── one transaction where it fits
    forget   replica sets ▸ stream entry

A transaction of etcd takes 128 operations. A stream with more shards is written in several: its replica sets first,
under a claim that names them and that every one of these transactions rewrites; its own entry last, in the transaction
that removes the claim. Readers look for streams, so they see all of it or nothing. A claim whose writer died is marked
by the controller, after which none of the writer's transactions can be made any more, then its replica sets are
removed, then the claim. A deletion goes the other way: a stream entry that says DELETING stays until no replica set is
left.

    creating/<name>    Claim as JSON

Called by the broker and the controller. Read `ClusterCatalog.create`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

import msgspec

from streamkit.errors import CorruptFile, LimitReached, StoreUnavailable, StreamBusy
from streamkit.metadata.catalog import Catalog, decode_stream, encode_stream
from streamkit.metadata.certainty import swap_certainly
from streamkit.metadata.members import ACTIVE, Members, new_incarnation
from streamkit.metadata.placement import Chosen, Place, choose, loads
from streamkit.metadata.replica_sets import PREFIX, ReplicaSetEntry, ReplicaSets
from streamkit.metadata.store import Store, Swap
from streamkit.metadata.view import View
from streamkit.model.shard import Shard
from streamkit.model.stream import StreamConfig, StreamDescription, StreamStatus
from streamkit.runtime.interfaces import Runtime

STREAMS = "streams/"
CLAIMS = "creating/"
ENTRY_BYTES_MAX = 1_400_000        # etcd takes requests of 1.5 MiB
_log = logging.getLogger("streamkit.metadata")
_TRIES = 5


class Claim(msgspec.Struct, frozen=True):
    """A stream that is being created in several transactions. node: who writes; "": it is being removed.

    shards: uuids in hexadecimal. part: of the transaction that wrote this last.
    """

    stream: str
    node: str
    shards: tuple[str, ...]
    part: int = 0


_encode = msgspec.json.Encoder().encode


class ClusterCatalog(Catalog):
    """Open with `await ClusterCatalog.open_cluster(…)`. on_change: called with (name, stream, or None when it is gone)
    for each change, whoever made it."""

    def __init__(
        self, store: Store, runtime: Runtime, *, node: str, shards_max: int, replica_sets: ReplicaSets,
        members: Members, replicas: int, accept_fewer: bool,
    ) -> None:
        super().__init__(store, runtime, node=node, shards_max=shards_max)
        self.replica_sets = replica_sets
        self.members = members
        self.replicas = replicas
        self.on_change: list[Callable[[str, StreamDescription | None], None]] = []
        self._accept_fewer = accept_fewer
        self._view = View(store, STREAMS, self._changed)

    @classmethod
    async def open_cluster(
        cls, store: Store, runtime: Runtime, *, node: str, replica_sets: ReplicaSets, members: Members,
        replicas: int = 3, accept_fewer: bool = False, shards_max: int = 10_000,
    ) -> ClusterCatalog:
        """replicas: copies of each shard of a new stream. Raises StoreUnavailable, CorruptFile."""
        catalog = cls(
            store, runtime, node=node, shards_max=shards_max, replica_sets=replica_sets, members=members,
            replicas=replicas, accept_fewer=accept_fewer,
        )
        for entry in await store.list(STREAMS):
            decode_stream(entry.key, entry.value)          # damage is named at the start; later it is only reported
        await catalog._view.open()
        return catalog

    async def close(self) -> None:
        await self._view.close()

    def located(self, stream: StreamDescription) -> StreamDescription:
        """With leaders and addresses as last heard of; "" where nobody leads or the leader is gone."""
        return replace(stream, shards=tuple(self._located(shard) for shard in stream.shards))

    def _located(self, shard: Shard) -> Shard:
        entry = self.replica_sets.entries.get(shard.uuid)
        if entry is None:
            return replace(shard, leader="", address="")
        there = self.members.nodes.get(entry.leader)
        return replace(shard, epoch=entry.epoch, leader=entry.leader, address=there.address if there else "")

    # -- changing ------------------------------------------------------------------------------------------

    def place(self, shards: int) -> list[Chosen]:
        """Where copies of new shards go. Raises CannotPlace."""
        return choose(shards, self.replicas, self.places(), accept_fewer=self._accept_fewer)

    def places(self) -> list[Place]:
        """The nodes that take copies: those that are not drained; live or not."""
        copies, leads = loads(self.replica_sets.entries)
        return [
            Place(node=name, zone=member.zone, live=name in self.members.nodes, copies=copies[name], leads=leads[name])
            for name, member in sorted(self.members.members.items()) if member.state == ACTIVE
        ]

    def new_sets(self, name: str, uuids: Sequence[bytes]) -> dict[bytes, ReplicaSetEntry]:
        """First replica sets, in epoch 0 and without a leader yet, for new shards. Raises CannotPlace."""
        sets = {}
        for uuid, chosen in zip(uuids, self.place(len(uuids)), strict=True):
            # The first member is the first to stand for election.
            nodes = sorted(chosen.members, key=lambda node: node != chosen.leader)
            disks = ((node, self.members.members[node].disk) for node in nodes)
            members = tuple((node, new_incarnation(disk, self._runtime.random).hex()) for node, disk in disks)
            sets[uuid] = ReplicaSetEntry(stream=name, epoch=0, leader="", members=members)
        return sets

    async def create(self, name: str, config: StreamConfig) -> StreamDescription:
        """Register it as CREATING, with its shards and where they lie.

        Raises StreamExists, StreamBusy, LimitReached, CannotPlace, StoreUnavailable.
        """
        stream = self.new_stream(name, config)
        stream = replace(stream, shards=tuple(replace(shard, epoch=0) for shard in stream.shards))
        sets = self.replica_sets.create_many(self.new_sets(name, [shard.uuid for shard in stream.shards]))
        value = encode_stream(stream)
        if len(value) > ENTRY_BYTES_MAX:
            raise LimitReached(
                f"the map of {config.shards} shards takes {len(value)} bytes, the store takes {ENTRY_BYTES_MAX}",
                try_="choose fewer shards", limit=ENTRY_BYTES_MAX, scope="stream",
            )
        entry = Swap(STREAMS + name, 0, value)
        if len(sets) + 1 <= self._store.operations_max:
            await self._commit((entry, *sets), name)
        else:
            await self._create_in_parts(entry, sets, name)
        return stream

    async def _create_in_parts(self, entry: Swap, sets: Sequence[Swap], name: str) -> None:
        claim = Claim(stream=name, node=self.node, shards=tuple(swap.key.removeprefix(PREFIX) for swap in sets))
        key = CLAIMS + name
        try:
            revision = await self._commit((Swap(key, 0, _encode(claim)),), name)
            for number, part in enumerate(_parts(sets, self._store.operations_max - 1), 1):
                claim = msgspec.structs.replace(claim, part=number)
                revision = await self._commit((Swap(key, revision, _encode(claim)), *part), name)
            await self._commit((entry, Swap(key, revision, None)), name)
        except (StoreUnavailable, StreamBusy):
            # Nobody has seen it. What cannot be removed now is the controller's to remove: the claim names it.
            with contextlib.suppress(StoreUnavailable, StreamBusy):
                await remove_claim(self._store, name, writer=self.node)
            raise

    async def set_status(self, name: str, status: StreamStatus) -> StreamDescription:
        """Also when another node sets the same at the same time."""
        for _ in range(_TRIES):
            stream = self.stream(name)
            if stream.status is status:
                return stream
            if stream.status is StreamStatus.DELETING:
                raise self._busy(name)                     # a deletion that has begun is not taken back
            changed = replace(stream, status=status)
            with contextlib.suppress(StreamBusy):
                await self._commit((Swap(STREAMS + name, self._revisions[name], encode_stream(changed)),), name)
                return changed
            if not await self.look(name):
                raise self._not_found(name)
        raise self._busy(name)

    async def forget(self, name: str) -> None:
        """The last step of a deletion: its replica sets go, then the stream itself. Raises StreamBusy."""
        for _ in range(_TRIES):
            if (stream := self.streams.get(name)) is None:
                return
            removals = self.replica_sets.delete_many(shard.uuid for shard in stream.shards)
            entry = Swap(STREAMS + name, self._revisions[name], None)
            try:
                if len(removals) + 1 <= self._store.operations_max:
                    await self._commit((entry, *removals), name)
                else:
                    for part in _parts(removals, self._store.operations_max):
                        await self._commit(part, name)
                    await self._commit((entry,), name)
                return
            except StreamBusy:
                # A leader or the controller has changed one of them, or somebody else forgets it, too.
                if not await self.look(name):
                    return
                await self.replica_sets.look_again(shard.uuid for shard in stream.shards)
        raise self._busy(name)

    async def commit(self, swaps: Sequence[Swap], name: str) -> int:
        """One transaction on a stream's keys, the witness first (see `swap_certainly`); shown at once.

        Raises StreamBusy when another change was first, StoreUnavailable.
        """
        return await self._commit(swaps, name)

    def revision(self, name: str) -> int:
        """Of the stream's entry; 0: there is none."""
        return self._revisions.get(name, 0)

    async def _commit(self, swaps: Sequence[Swap], name: str) -> int:
        revision = await swap_certainly(self._store, swaps)
        if revision is None:
            raise self._busy(name)
        for swap in swaps:
            if swap.key.startswith(STREAMS):
                self._view.wrote(swap.key, swap.value, revision)
        self.replica_sets.wrote(swaps, revision)
        return revision

    async def look_at_all(self) -> None:
        """Know every stream that was there when this was called; one that is gone is heard of by the watch.

        Raises StoreUnavailable.
        """
        for entry in await self._store.list(STREAMS):
            self._view.wrote(*entry)

    async def look(self, name: str) -> bool:
        """Whether the stream is there; `streams` shows its newest entry then. Raises StoreUnavailable."""
        value, revision = await self._store.read(STREAMS + name)
        if value is not None:
            self._view.wrote(STREAMS + name, value, revision)
        return value is not None

    def _busy(self, name: str) -> StreamBusy:
        return StreamBusy(
            f'stream "{name}" is being changed by another node', try_="try again in a moment",
            stream=name, status="changing",
        )

    async def new_producer(self, name: str = "", instance: bytes = b"") -> tuple[int, int]:
        """As in one node; an answer that was lost costs an id or an epoch, and nothing else."""
        return await self._again(partial(super().new_producer, name, instance))

    async def renew_producer(self, name: str, instance: bytes) -> tuple[int, int]:
        """As in one node."""
        return await self._again(partial(super().renew_producer, name, instance))

    async def _again(self, ask: Callable[[], Awaitable[tuple[int, int]]]) -> tuple[int, int]:
        for _ in range(_TRIES - 1):
            try:
                return await ask()
            except StoreUnavailable as error:
                if error.facts["outcome"] != "unknown":
                    raise
        return await ask()

    def _changed(self, key: str, value: bytes | None, revision: int) -> None:
        name = key.removeprefix(STREAMS)
        stream = None
        if value is None:
            self.streams.pop(name, None)
            self._revisions.pop(name, None)
        else:
            try:
                stream = decode_stream(key, value)
            except CorruptFile as error:
                _log.error("metadata.unreadable", extra={"facts": {"key": key, "error": str(error)}})
                return
            self.streams[name] = stream
            self._revisions[name] = revision
        for call in tuple(self.on_change):
            call(name, stream)


def _parts(swaps: Sequence[Swap], operations_max: int) -> Iterable[Sequence[Swap]]:
    return (swaps[at : at + operations_max] for at in range(0, len(swaps), operations_max))


async def remove_claim(store: Store, name: str, *, writer: str = "") -> None:
    """Marks the claim, so that its writer cannot go on, removes the replica sets that it names, then the claim.

    writer: only if it is still that node's. Nobody has seen the stream. Raises StoreUnavailable, StreamBusy (its writer
    was first).
    """
    key = CLAIMS + name
    value, revision = await store.read(key)
    if value is None:
        return
    claim = msgspec.json.decode(value, type=Claim)
    if writer and claim.node not in (writer, ""):
        return
    if claim.node:
        marked: int | None = await swap_certainly(
            store, (Swap(key, revision, _encode(msgspec.structs.replace(claim, node=""))),)
        )
        if marked is None:
            raise StreamBusy(
                f'stream "{name}" is being created', try_="try again in a moment", stream=name, status="creating"
            )
        revision = marked
    for shard in claim.shards:
        found, at = await store.read(PREFIX + shard)
        if found is not None:
            await swap_certainly(store, (Swap(PREFIX + shard, at, None),))
    await swap_certainly(store, (Swap(key, revision, None),))
