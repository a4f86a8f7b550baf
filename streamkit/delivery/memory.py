"""How much payload all shards of one delivery may hold, gathered or being written, in this process.

When that is used up, whoever has gathered most writes it, and nobody reads further until there is room again.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from streamkit.errors import InvalidUse


class Gatherer(Protocol):
    def give_way(self) -> None:
        """Write what was gathered, if that can begin now."""


class Memory:
    """bytes_max: a batch more may be held, since batches are taken whole. held: now, over all."""

    def __init__(self, bytes_max: int) -> None:
        if bytes_max < 1:
            raise InvalidUse(f"memory_bytes_max must be at least 1, got {bytes_max}", try_="memory_bytes_max=256 << 20",
                             argument="memory_bytes_max")  # fmt: skip
        self.bytes_max = bytes_max
        self.held = 0
        self._gathered: dict[Gatherer, int] = {}
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def is_full(self) -> bool:
        return self.held >= self.bytes_max

    def gathered(self, who: Gatherer, payload_bytes: int) -> None:
        """So much more."""
        self.held += payload_bytes
        self._gathered[who] = self._gathered.get(who, 0) + payload_bytes

    def begun(self, who: Gatherer) -> None:
        """All that it gathered is being written: it is held until it is released."""
        self._gathered.pop(who, None)

    def released(self, payload_bytes: int) -> None:
        """It is written, or given up."""
        self.held -= payload_bytes
        self._wake()

    def left(self, who: Gatherer) -> None:
        """What it gathered is forgotten."""
        self.held -= self._gathered.pop(who, 0)
        self._wake()

    async def room(self) -> None:
        """Until something was released. Whoever has gathered most, and can, begins to write."""
        for who in sorted(self._gathered, key=self._gathered.__getitem__, reverse=True):
            before = len(self._gathered)
            who.give_way()
            if len(self._gathered) < before:
                break
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        try:
            await waiting
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if not each.done():
                each.set_result(None)
