"""What reshardings add in a cluster: replica sets of the children, made after `begin` and before the transaction.

The plan names the children, so sets that were made twice are made once, and those of a plan that came to nothing are
found again.
"""

from __future__ import annotations

import contextlib

from streamkit.errors import LimitReached, StreamBusy
from streamkit.metadata.catalog import decode_stream, encode_stream
from streamkit.metadata.cluster_catalog import ENTRY_BYTES_MAX, STREAMS, ClusterCatalog
from streamkit.metadata.reshard import ReshardEntry, encode_entry, resharded, with_ends
from streamkit.metadata.reshardings import Reshardings
from streamkit.metadata.store import Store, Swap
from streamkit.model.stream import StreamDescription
from streamkit.runtime.interfaces import Runtime

_TRIES = 20


class ClusterReshardings(Reshardings):
    """Epochs are kept with the replica sets; the map says 0."""

    alone = False
    epoch = 0

    def __init__(self, store: Store, catalog: ClusterCatalog, runtime: Runtime) -> None:
        super().__init__(store, catalog, runtime)
        self._cluster = catalog

    def check_room(self, stream: StreamDescription, entry: ReshardEntry) -> None:
        super().check_room(stream, entry)
        closed = with_ends(entry, {parent.ordinal: 1 << 62 for parent in entry.parents})
        size = max(len(encode_entry(closed)), len(encode_stream(resharded(stream, closed, entry.started_ms))))
        if size > ENTRY_BYTES_MAX:
            raise LimitReached(
                f"the map of {len(stream.shards) + len(entry.children)} shards takes {size} bytes, the store takes "
                f"{ENTRY_BYTES_MAX}",
                try_="choose fewer shards, or wait until closed ones are older than the retention",
                limit=ENTRY_BYTES_MAX, scope="stream",
            )
        self._cluster.new_sets(stream.name, _uuids(entry))     # there are nodes for the copies; nothing is written yet

    async def make_children(self, entry: ReshardEntry) -> None:
        sets = self._cluster.replica_sets
        for _ in range(_TRIES):
            missing = [uuid for uuid in _uuids(entry) if uuid not in sets.entries]
            if not missing:
                return
            for at in range(0, len(missing), self._store.operations_max):
                part = missing[at : at + self._store.operations_max]
                try:
                    new = self._cluster.new_sets(entry.stream, part)
                    await self._cluster.commit(sets.create_many(new), entry.stream)
                except StreamBusy:
                    await sets.look_again(part)            # another node makes them at this moment
        raise StreamBusy(
            f'stream "{entry.stream}" is being resharded by several nodes at once', try_="try again in a moment",
            stream=entry.stream, status="being resharded",
        )

    async def remove_children(self, entry: ReshardEntry) -> None:
        """Unless the plan was carried out: who deleted it is not always known (see `swap_certainly`), its map tells."""
        key, most = STREAMS + entry.stream, self._store.operations_max - 1
        for _ in range(_TRIES + len(entry.children) // most):
            value, revision = await self._store.read(key)
            shards = decode_stream(key, value).shards if value is not None else ()
            await self._cluster.replica_sets.look_again(_uuids(entry))     # others made them, a moment ago perhaps
            removals = self._cluster.replica_sets.delete_many(_uuids(entry))[:most]
            if not removals or not {shard.uuid for shard in shards}.isdisjoint(_uuids(entry)):
                return
            if value is not None:
                removals.append(Swap(key, revision, value))    # as it was read: reads may be older than they should
            with contextlib.suppress(StreamBusy):
                await self._cluster.commit(removals, entry.stream)

    def removals(self, gone: set[bytes]) -> list[Swap]:
        most = self._store.operations_max - 1                  # and the stream itself
        for uuid in sorted(gone)[most:]:
            gone.discard(uuid)
        return self._cluster.replica_sets.delete_many(sorted(gone))


def _uuids(entry: ReshardEntry) -> list[bytes]:
    return [bytes.fromhex(child.uuid) for child in entry.children]
