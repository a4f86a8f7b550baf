"""Who holds which shard, in memory and in the store: one value a shard, changed by compare-and-swap.

    replicas/<shard uuid, hex>     ReplicaSetEntry as JSON

`entries` follows the store by a watch and is never waited for; a change goes through `swap`, whose answer is certain:
a change whose outcome is unknown is repeated until the store has said what became of it.
Called by the broker's copies, the cluster's catalog and the controller. Read `ReplicaSetEntry`, then
`ReplicaSets.swap`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping

import msgspec

from streamkit.errors import StoreUnavailable
from streamkit.metadata.certainty import swap_certainly
from streamkit.metadata.store import Store, Swap
from streamkit.metadata.view import View
from streamkit.replication.replica_set import Member, ReplicaSet

PREFIX = "replicas/"
_log = logging.getLogger("streamkit.metadata")

EntryMember = tuple[str, str]      # node, incarnation in hexadecimal


class ReplicaSetEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the store holds of one shard.

    previous: not empty while a change of members is under way. learners: copies that are not yet counted.
    target_leader, target_members: what the controller wants (node names); empty: nothing.
    accept_loss: an operator wants a leader although copies may have lost something; the leader takes it back.
    unmade: members whose copy was not there when the shard was led for the first time. It is sent nothing, and so has
    acknowledged nothing, until its node has made it and taken it off this list (docs/decisions/0073).
    revision: of the key in the store; never written.
    """

    stream: str
    epoch: int
    leader: str
    members: tuple[EntryMember, ...]
    previous: tuple[EntryMember, ...] = ()
    learners: tuple[EntryMember, ...] = ()
    target_leader: str = ""
    target_members: tuple[str, ...] = ()
    accept_loss: bool = False
    unmade: tuple[EntryMember, ...] = ()
    revision: int = 0

    @classmethod
    def of(
        cls, stream: str, replicas: ReplicaSet, *, target_leader: str = "", target_members: tuple[str, ...] = ()
    ) -> ReplicaSetEntry:
        return cls(
            stream=stream, epoch=replicas.epoch, leader=replicas.leader, members=_written(replicas.members),
            previous=_written(replicas.previous), learners=_written(replicas.learners),
            target_leader=target_leader, target_members=target_members,
        )

    @property
    def replica_set(self) -> ReplicaSet:
        return ReplicaSet(
            epoch=self.epoch, leader=self.leader, members=_read(self.members), previous=_read(self.previous),
            learners=_read(self.learners),
        )

    def with_set(self, replicas: ReplicaSet) -> ReplicaSetEntry:
        """The same stream and targets with another replica set."""
        return msgspec.structs.replace(
            self, epoch=replicas.epoch, leader=replicas.leader, members=_written(replicas.members),
            previous=_written(replicas.previous), learners=_written(replicas.learners),
        )

    def with_targets(self, *, leader: str, members: tuple[str, ...]) -> ReplicaSetEntry:
        return msgspec.structs.replace(self, target_leader=leader, target_members=members)

    def is_unmade(self, member: Member) -> bool:
        return bool(self.unmade) and (member.node, member.incarnation.hex()) in self.unmade

    def with_unmade(self, members: Iterable[Member]) -> ReplicaSetEntry:
        return msgspec.structs.replace(self, unmade=_written(tuple(members)))

    def with_made(self, member: Member) -> ReplicaSetEntry:
        return self.with_unmade(other for other in _read(self.unmade) if other != member)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The members' nodes, in order."""
        return tuple(node for node, _ in self.members)

    @property
    def copies(self) -> tuple[str, ...]:
        """Every node that holds or is to hold a copy, each once."""
        return tuple(dict.fromkeys(node for node, _ in (*self.members, *self.previous, *self.learners)))


def _written(members: tuple[Member, ...]) -> tuple[EntryMember, ...]:
    return tuple((member.node, member.incarnation.hex()) for member in members)


def _read(members: tuple[EntryMember, ...]) -> tuple[Member, ...]:
    return tuple(Member(node, bytes.fromhex(incarnation)) for node, incarnation in members)


_encode_json = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(ReplicaSetEntry)


def encode(entry: ReplicaSetEntry) -> bytes:
    return _encode_json(msgspec.structs.replace(entry, revision=0))


def decode(value: bytes, revision: int) -> ReplicaSetEntry:
    """Raises ValueError (msgspec.MsgspecError is one)."""
    return msgspec.structs.replace(_decoder.decode(value), revision=revision)


def key_of(uuid: bytes) -> str:
    return PREFIX + uuid.hex()


OnReplicaSet = Callable[[bytes, "ReplicaSetEntry | None"], None]


class ReplicaSets:
    """Open with `await ReplicaSets.open(store)`.

    entries: every shard's entry by uuid, as last heard of. on_change: called with (uuid, entry, or None when it is
    gone) for each change, also for those made here, after `entries` shows it.
    """

    def __init__(self, store: Store) -> None:
        self.entries: dict[bytes, ReplicaSetEntry] = {}
        self.on_change: list[OnReplicaSet] = []
        self._store = store
        self._view = View(store, PREFIX, self._changed)

    @classmethod
    async def open(cls, store: Store) -> ReplicaSets:
        """Raises StoreUnavailable."""
        sets = cls(store)
        await sets._view.open()
        return sets

    async def close(self) -> None:
        await self._view.close()

    async def swap(self, uuid: bytes, expected_revision: int, entry: ReplicaSetEntry) -> ReplicaSetEntry | None:
        """The entry with its new revision, or None when somebody else's change was first: look at `entries` again.

        expected_revision: of the entry that this one follows; 0: there must be none.
        Raises StoreUnavailable when the store does not answer in several tries; with outcome "unknown" the change may
        still be seen later, through `on_change`.
        """
        key, value = key_of(uuid), encode(entry)
        revision = await swap_certainly(self._store, (Swap(key, expected_revision, value),))
        if revision is None:
            with contextlib.suppress(StoreUnavailable):      # then the watch says to what
                await self.look_again((uuid,))
            return None
        self._view.wrote(key, value, revision)
        return msgspec.structs.replace(entry, revision=revision)

    async def swap_many(
        self, changes: Mapping[bytes, ReplicaSetEntry]
    ) -> dict[bytes, ReplicaSetEntry | StoreUnavailable | None]:
        """Each of them as `swap` does it, over the entry's own revision; in one transaction when nobody was faster.

        What became of each: the entry with its new revision, None, or why the store did not take it.
        """
        found: dict[bytes, ReplicaSetEntry | StoreUnavailable | None] = {}
        uuids = list(changes)
        for at in range(0, len(uuids), self._store.operations_max):
            part = uuids[at : at + self._store.operations_max]
            swaps = [Swap(key_of(uuid), changes[uuid].revision, encode(changes[uuid])) for uuid in part]
            try:
                revision = await swap_certainly(self._store, swaps)
            except StoreUnavailable as error:
                found |= dict.fromkeys(part, error)
                continue
            if revision is not None:
                self.wrote(swaps, revision)
                found |= {uuid: msgspec.structs.replace(changes[uuid], revision=revision) for uuid in part}
            else:
                found |= {uuid: await self._swap_one(uuid, changes[uuid]) for uuid in part}
        return found

    async def _swap_one(self, uuid: bytes, entry: ReplicaSetEntry) -> ReplicaSetEntry | StoreUnavailable | None:
        try:
            return await self.swap(uuid, entry.revision, entry)
        except StoreUnavailable as error:
            return error

    async def look_again(self, uuids: Iterable[bytes]) -> None:
        """What the store holds now; what is gone from it is left to the watch to say. Raises StoreUnavailable."""
        for uuid in uuids:
            value, revision = await self._store.read(key_of(uuid))
            if value is not None:
                self._view.wrote(key_of(uuid), value, revision)

    def create_many(self, entries: Mapping[bytes, ReplicaSetEntry]) -> list[Swap]:
        """For a transaction of the caller's: all of them, none of which may exist."""
        return [Swap(key_of(uuid), 0, encode(entry)) for uuid, entry in entries.items()]

    def delete_many(self, uuids: Iterable[bytes]) -> list[Swap]:
        """For a transaction of the caller's: those that are known."""
        known = [(uuid, self.entries[uuid]) for uuid in uuids if uuid in self.entries]
        return [Swap(key_of(uuid), entry.revision, None) for uuid, entry in known]

    def wrote(self, swaps: Iterable[Swap], revision: int) -> None:
        """The caller's transaction was made: show it now."""
        for swap in swaps:
            if swap.key.startswith(PREFIX):
                self._view.wrote(swap.key, swap.value, revision)

    def _changed(self, key: str, value: bytes | None, revision: int) -> None:
        try:
            uuid = bytes.fromhex(key.removeprefix(PREFIX))
            entry = None if value is None else decode(value, revision)
        except ValueError as error:
            # Nothing is done because metadata looks odd: what was known of the shard goes on.
            _log.error("metadata.unreadable", extra={"facts": {"key": key, "error": str(error)}})
            return
        if entry is None:
            self.entries.pop(uuid, None)
        else:
            self.entries[uuid] = entry
        for call in tuple(self.on_change):
            call(uuid, entry)
