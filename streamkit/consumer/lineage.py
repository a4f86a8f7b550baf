"""Shards that were split or merged, for those who read without an application: parents before children.

`Lineage` says which shards may be read now; `children_of` finds who goes on where a shard ended; `patiently` waits out
the time in which a shard has no leader.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import TypeVar

from streamkit.client.client import AsyncClient
from streamkit.errors import StreamkitError, StreamNotFound, TimedOut, Unavailable
from streamkit.model.shard import Shard
from streamkit.runtime.backoff import Backoff

log = logging.getLogger("streamkit.consumer")

T = TypeVar("T")
_PATIENCE_S = 30.0


class Lineage:
    """Shards to read; each is handed out once, when none of its parents is still to be read or being read."""

    def __init__(self, shards: Iterable[Shard]) -> None:
        self._waiting: dict[int, Shard] = {}
        self._reading: set[int] = set()
        self._known: set[int] = set()
        self.add(shards)

    def add(self, shards: Iterable[Shard]) -> None:
        """More of them; those known already are left out."""
        for shard in shards:
            if shard.ordinal not in self._known:
                self._known.add(shard.ordinal)
                self._waiting[shard.ordinal] = shard

    def ready(self) -> list[Shard]:
        """Those to begin with now, in the order of their ordinals."""
        # A parent's ordinal is below its children's, and one that is not known here was never to be read.
        found = [
            shard for _, shard in sorted(self._waiting.items())
            if not any(parent in self._waiting or parent in self._reading for parent in shard.parents)
        ]  # fmt: skip
        for shard in found:
            del self._waiting[shard.ordinal]
            self._reading.add(shard.ordinal)
        return found

    def ended(self, shard: Shard) -> None:
        """All of it that is to be read was read."""
        self._reading.discard(shard.ordinal)

    @property
    def is_over(self) -> bool:
        return not self._waiting and not self._reading


async def children_of(client: AsyncClient, stream: str, shard: Shard) -> list[Shard]:
    """The shards that take the keys of one that ended. The map may say so a little later than the shard itself.

    Raises StreamNotFound. Empty when retention removed the shard, or when it has no children: its stream ends here.
    """
    backoff = Backoff(client.runtime.random, 50, 1_000)
    while True:
        try:
            found = await client.stream(stream, refresh=True)
        except StreamNotFound:
            raise
        except (Unavailable, TimedOut) as error:
            log.info("shard.children_unknown stream=%s shard=%s error=%s", stream, shard.id, error)
        else:
            now = next((each for each in found.shards if each.uuid == shard.uuid), None)
            children = [each for each in found.shards if shard.ordinal in each.parents]
            if children or now is None or now.closed_ms is not None:
                return children
        await asyncio.sleep(backoff.next_ms() / 1000)


async def patiently(client: AsyncClient, shard: Shard, ask: Callable[[], Awaitable[T]]) -> T:
    """What `ask` answers of a shard whose leader may be moving. Raises what it raised last when that takes too long."""
    backoff = Backoff(client.runtime.random, 20, 500)
    loop = asyncio.get_running_loop()
    until_s = loop.time() + _PATIENCE_S
    while True:
        try:
            return await ask()
        except (Unavailable, TimedOut):
            if loop.time() >= until_s:
                raise
        with suppress(StreamkitError):
            await client.find_leader(shard)
        await asyncio.sleep(backoff.next_ms() / 1000)
