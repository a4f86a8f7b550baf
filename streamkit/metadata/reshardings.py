"""Reshardings on their way, in the store: a plan is written before anything is done, and gone with the transaction.

    begin       reshards/<stream> appears; the stream's own key is witness that nobody changed it meanwhile
    note_ends   a parent's closing batch is safe: its end goes into the plan. The end of the last one is not written:
                instead, in one transaction, parents are closed, children added, the plan is gone
    abandon     nothing was closed: the plan is gone, and the stream as it was

Any node may do any of these at any time, and twice: whoever finds a plan finishes it.
Called by `broker.reshard`. Read `note_ends` first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from streamkit.errors import CorruptFile, StreamBusy
from streamkit.metadata.catalog import Catalog, decode_stream, encode_stream
from streamkit.metadata.reshard import (
    Plan,
    ReshardEntry,
    decode_entry,
    encode_entry,
    fits,
    new_entry,
    resharded,
    with_ends,
    with_shards,
)
from streamkit.metadata.store import Store, Swap
from streamkit.metadata.view import View
from streamkit.model.shard import Shard
from streamkit.model.stream import StreamDescription, StreamStatus
from streamkit.runtime.interfaces import Runtime

logger = logging.getLogger("streamkit.metadata")

PREFIX = "reshards/"
_STREAMS = "streams/"
_TRIES = 20

OnChange = Callable[[str, ReshardEntry | None], None]


class Reshardings:
    """entries: the plans that are under way, by stream. alone: no other node has part in them.

    epoch: of a shard that was just made, as its entry says.
    """

    alone = True
    epoch = 1

    def __init__(self, store: Store, catalog: Catalog, runtime: Runtime) -> None:
        self.entries: dict[str, ReshardEntry] = {}
        self.on_change: list[OnChange] = []
        self._store = store
        self._catalog = catalog
        self._runtime = runtime
        self._revisions: dict[str, int] = {}
        self._view = View(store, PREFIX, self._changed)

    async def open(self) -> None:
        """Raises StoreUnavailable, CorruptFile."""
        for entry in await self._store.list(PREFIX):
            decode_entry(entry.key, entry.value)           # damage is named at the start; later it is only reported
            if self.alone:
                self._view.wrote(*entry)
        if not self.alone:
            await self._view.open()                        # other nodes make plans too

    async def close(self) -> None:
        await self._view.close()

    # -- the three steps -----------------------------------------------------------------------------------

    async def begin(self, name: str, make_plan: Callable[[StreamDescription], Plan | None]) -> ReshardEntry | None:
        """The plan, recorded; None when there is nothing to do.

        Raises what make_plan raises, StreamNotFound, StreamBusy, LimitReached, CannotPlace, StoreUnavailable.
        """
        stream = self._catalog.stream(name)
        if stream.status is not StreamStatus.ACTIVE:
            raise _busy(name, stream.status.value)
        if name in self.entries:
            if not await self.discard_dead(name):
                raise _busy(name, "being resharded")
            stream = self._catalog.stream(name)                # somebody may have changed it meanwhile
        plan = make_plan(stream)
        if plan is None:
            return None
        now_ms = self._runtime.clock.now_ms()
        uuids = [self._runtime.random.uuid() for _ in range(len(plan.children) + 1)]
        entry = new_entry(stream, plan, uuids, now_ms)
        self.check_room(stream, entry)
        # Rewritten as it is, so that of this and any other change of the stream one is first.
        witness = Swap(_STREAMS + name, self._catalog.revision(name), encode_stream(stream))
        await self._commit((Swap(PREFIX + name, 0, encode_entry(entry)), witness), name)
        return entry

    async def note_ends(self, name: str, ends: Mapping[int, int]) -> StreamDescription | None:
        """ends: ordinal → one past the closing batch, of parents where that is safe.

        The stream as it is now when that was the last of them, or the plan is gone already; None: others are to come.
        Raises StreamNotFound, StreamBusy, StoreUnavailable: ask again later.
        """
        for _ in range(_TRIES):
            stream = self._catalog.stream(name)
            entry = self.entries.get(name)
            if entry is None:
                return stream
            if stream.status is not StreamStatus.ACTIVE or not fits(stream, entry):
                raise _busy(name, stream.status.value)     # about to be deleted; the plan goes with it
            noted = with_ends(entry, ends)
            try:
                if noted.closed:
                    return await self._finish(stream, noted)
                if noted != entry:
                    await self._commit((Swap(PREFIX + name, self._revisions[name], encode_entry(noted)),), name)
                return None
            except StreamBusy:
                await self.look(name)                     # the leader of another parent was first
        raise _busy(name, "being resharded")

    async def _finish(self, stream: StreamDescription, entry: ReshardEntry) -> StreamDescription:
        after = resharded(stream, entry, self._runtime.clock.now_ms(), epoch=self.epoch)
        # Of what was looked at, not of what others make of it while the children are made.
        swaps = (
            Swap(_STREAMS + stream.name, self._catalog.revision(stream.name), encode_stream(after)),
            Swap(PREFIX + stream.name, self._revisions[stream.name], None),
        )
        await self.make_children(entry)
        await self._commit(swaps, stream.name)
        return after

    async def abandon(self, name: str) -> None:
        """Only while no parent has a closing batch, anywhere."""
        if name in self._revisions:
            await self._commit((Swap(PREFIX + name, self._revisions[name], None),), name)

    async def discard_dead(self, name: str) -> bool:
        """Drop the plan if its stream is gone, or another of the same name; whether there is none any more.

        What this node knows of streams may be older than the plan, so the store is asked. First the plan goes: while it
        is there as it was, nobody has carried it out. Raises StreamBusy, StoreUnavailable.
        """
        entry, revision = self.entries.get(name), self._revisions.get(name, 0)
        if entry is None:
            return True
        key = _STREAMS + name
        value, read_at = await self._store.read(key)
        if value is not None and fits(decode_stream(key, value), entry):
            return False
        if self._revisions.get(name) != revision:
            return name not in self.entries                    # carried out meanwhile: its children are in use
        # Reads may be older than they should: a plan goes only while the stream is as it was read.
        await self._commit((Swap(PREFIX + name, revision, None), Swap(key, read_at, value)), name)
        await self.remove_children(entry)
        return True

    # -- what a cluster adds -------------------------------------------------------------------------------

    def check_room(self, stream: StreamDescription, entry: ReshardEntry) -> None:
        """Before anything is written. Raises LimitReached, CannotPlace."""
        self._catalog.check_room(len(entry.children))

    async def make_children(self, entry: ReshardEntry) -> None:
        """Where the children's copies lie. Raises CannotPlace, StoreUnavailable, StreamBusy."""

    async def remove_children(self, entry: ReshardEntry) -> None:
        """What make_children made, for a plan that will not be carried out."""

    def removals(self, gone: set[bytes]) -> list[Swap]:
        """What goes from the store with closed shards; takes out of `gone` those that must wait for another turn."""
        return []

    async def correct_end(self, name: str, ordinal: int, end: int) -> None:
        """A closed shard ends elsewhere than the map says. Raises StreamNotFound, StreamBusy, StoreUnavailable."""
        for _ in range(_TRIES):
            stream = self._catalog.stream(name)
            shards = tuple(replace(s, end=end) if s.ordinal == ordinal else s for s in stream.shards)
            if shards == stream.shards:
                return
            swap = Swap(_STREAMS + name, self._catalog.revision(name), encode_stream(with_shards(stream, shards)))
            try:
                await self._commit((swap,), name)
                return
            except StreamBusy:
                await self._catalog.look(name)
        raise _busy(name, "being changed")

    # -- closed shards -------------------------------------------------------------------------------------

    async def forget_shards(self, name: str, shards: Sequence[Shard]) -> StreamDescription:
        """Closed shards leave the map. Raises StreamBusy, StoreUnavailable."""
        stream = self._catalog.stream(name)
        if stream.status is not StreamStatus.ACTIVE or name in self.entries:
            raise _busy(name, stream.status.value)
        gone = {shard.uuid for shard in shards}
        assert all(s.closed_ms is not None for s in stream.shards if s.uuid in gone), "open shards do not leave"
        removals = self.removals(gone)
        after = with_shards(stream, tuple(shard for shard in stream.shards if shard.uuid not in gone))
        entry = Swap(_STREAMS + name, self._catalog.revision(name), encode_stream(after))
        await self._commit((entry, *removals), name)
        return after

    # -- the store -----------------------------------------------------------------------------------------

    async def _commit(self, swaps: Sequence[Swap], name: str) -> None:
        revision = await self._catalog.commit(swaps, name)
        for swap in swaps:
            if swap.key.startswith(PREFIX):
                self._view.wrote(swap.key, swap.value, revision)

    async def look(self, name: str) -> None:
        """Ask the store for the stream and its plan. Raises StoreUnavailable."""
        await self._catalog.look(name)
        value, revision = await self._store.read(PREFIX + name)
        if value is not None or name in self._revisions:
            self._view.wrote(PREFIX + name, value, revision or self._revisions[name] + 1)

    def _changed(self, key: str, value: bytes | None, revision: int) -> None:
        name = key.removeprefix(PREFIX)
        if value is None:
            self.entries.pop(name, None)
            self._revisions.pop(name, None)
        else:
            try:
                entry = decode_entry(key, value)
            except CorruptFile as error:
                logger.error("metadata.unreadable", extra={"facts": {"key": key, "error": str(error)}})
                return
            self.entries[name] = entry
            self._revisions[name] = revision
        for call in tuple(self.on_change):
            call(name, self.entries.get(name))


def _busy(name: str, status: str) -> StreamBusy:
    return StreamBusy(f'stream "{name}" is {status}', try_="try again in a moment", stream=name, status=status)
