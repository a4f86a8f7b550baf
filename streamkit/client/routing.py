"""Which shard takes a key, and where that shard is served, as far as this client knows.

Streams are described once and remembered; an answer that shows the memory wrong (the shard moved, or its keys
did) makes the next look-up ask again. Many who ask for one stream at the same time share one request. Where a shard is
led is remembered apart: a refusal that names the leader is believed at once, and an older epoch never replaces a newer
one, so that a node which lags behind sends nobody back.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Awaitable, Callable
from dataclasses import replace

from streamkit.errors import (
    NodeDraining,
    NotLeader,
    ShardClosed,
    ShardNotFound,
    StreamkitError,
    StreamNotFound,
    WrongShard,
)
from streamkit.model.shard import Shard
from streamkit.model.stream import StreamDescription

Describe = Callable[[str], Awaitable[StreamDescription]]


def shard_for(stream: StreamDescription, hash_key: int) -> Shard:
    """The open shard whose range holds `hash_key`. Raises ShardNotFound when none does."""
    open_shards = sorted((s for s in stream.shards if s.closed_ms is None), key=lambda s: s.hash_start)
    at = bisect_right(open_shards, hash_key, key=lambda s: s.hash_start) - 1
    if at < 0 or hash_key >= open_shards[at].hash_end:
        raise ShardNotFound(f"no open shard of {stream.name} takes that hash key", stream=stream.name, shard=None)
    return open_shards[at]


class Routes:
    """What is remembered of streams. describe: asks a broker."""

    def __init__(self, describe: Describe) -> None:
        self._describe = describe
        self._streams: dict[str, StreamDescription] = {}
        self._names: dict[bytes, str] = {}               # shard uuid → stream
        self._shards: dict[bytes, Shard] = {}            # shard uuid → with the newest leader known
        self._stale: set[str] = set()                    # streams to be asked for again
        self._asking: dict[str, asyncio.Task[StreamDescription]] = {}

    async def stream(self, name: str, *, refresh: bool = False) -> StreamDescription:
        """Raises StreamNotFound, and whatever asking raises."""
        known = self._streams.get(name)
        if known is not None and not refresh and name not in self._stale:
            return known
        task = self._asking.get(name)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._ask(name), name=f"client.describe.{name}")
            task.add_done_callback(_seen)
            self._asking[name] = task
        return await asyncio.shield(task)

    def remember(self, stream: StreamDescription) -> StreamDescription:
        """The stream as it was described, with the newest leaders known."""
        shards = tuple(self.newest(shard) for shard in stream.shards)
        if any(ours is not theirs for ours, theirs in zip(shards, stream.shards, strict=True)):
            stream = replace(stream, shards=shards)
        self.forget(stream.name)
        self._streams[stream.name] = stream
        self._names.update((shard.uuid, stream.name) for shard in shards)
        self._shards.update((shard.uuid, shard) for shard in shards)
        return stream

    def forget(self, name: str) -> None:
        self._stale.discard(name)
        known = self._streams.pop(name, None)
        for shard in known.shards if known else ():
            self._names.pop(shard.uuid, None)
            self._shards.pop(shard.uuid, None)

    def shard(self, shard: Shard) -> Shard:
        """The same shard, with the newest leader known. One that was never described is remembered from here on."""
        return self._shards.setdefault(shard.uuid, shard)

    def name_of(self, shard: bytes) -> str | None:
        """The stream that a shard is of, if it was ever described."""
        return self._names.get(shard)

    def note(self, shard: bytes, error: StreamkitError) -> bool:
        """A put or fetch was refused; True when that shows the memory of its stream to be stale (now forgotten)."""
        if not isinstance(error, NotLeader | NodeDraining | ShardClosed | WrongShard | ShardNotFound | StreamNotFound):
            return False
        known = self._shards.get(shard)
        if known is not None and isinstance(error, NotLeader):
            address, epoch = str(error.facts.get("address") or ""), int(error.facts.get("epoch") or 0)
            if address and epoch >= known.epoch:
                self._shards[shard] = replace(
                    known, epoch=epoch, leader=str(error.facts.get("leader") or ""), address=address
                )
                return True
        self.doubt(shard)
        return True

    def doubt(self, shard: bytes) -> None:
        """Nobody answers for the shard where it was: whatever is described next is believed."""
        if (known := self._shards.get(shard)) is not None and known.epoch:
            self._shards[shard] = replace(known, epoch=0)
        if (name := self._names.get(shard)) is not None:
            self._stale.add(name)

    def newest(self, shard: Shard) -> Shard:
        """A shard as it was described just now, unless a newer leader is known."""
        known = self._shards.get(shard.uuid)
        if known is None or known.epoch <= shard.epoch:
            return shard
        return replace(shard, epoch=known.epoch, leader=known.leader, address=known.address)

    async def _ask(self, name: str) -> StreamDescription:
        try:
            return self.remember(await self._describe(name))
        except StreamNotFound:
            self.forget(name)
            raise
        finally:
            del self._asking[name]


def _seen(task: asyncio.Task[StreamDescription]) -> None:
    # Whoever asked may have been cancelled meanwhile; then nobody looks at the failure, and that is fine.
    if not task.cancelled():
        task.exception()
