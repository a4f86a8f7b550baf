"""The store in memory: for the simulator, for tests, and for nodes that keep nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from streamkit.metadata.store import Change, Entry, Swap
from streamkit.runtime.interfaces import Clock

_POLL_SECONDS = 0.25           # how late a watcher may learn that a registration expired


@dataclass(slots=True)
class _Slot:
    value: bytes | None        # None: deleted; kept so that watchers see it go
    revision: int
    expires_ms: int | None = None


class MemoryStore:
    """Keeps everything in one dictionary; expiry follows the clock's monotonic time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._slots: dict[str, _Slot] = {}
        self._revision = 0
        self._changed = asyncio.Event()

    async def read(self, key: str) -> tuple[bytes | None, int]:
        self._expire()
        slot = self._slots.get(key)
        return (None, 0) if slot is None or slot.value is None else (slot.value, slot.revision)

    async def compare_and_swap(self, key: str, revision: int, value: bytes | None) -> int | None:
        return await self.compare_and_swap_many((Swap(key, revision, value),))

    async def compare_and_swap_many(self, swaps: Sequence[Swap]) -> int | None:
        self._expire()
        assert len({swap.key for swap in swaps}) == len(swaps), "one swap for each key"
        if any(self._revision_of(swap.key) != swap.revision for swap in swaps):
            return None
        self._revision += 1
        for swap in swaps:
            self._slots[swap.key] = _Slot(swap.value, self._revision)
        self._announce()
        return self._revision

    async def list(self, prefix: str) -> list[Entry]:
        self._expire()
        return [
            Entry(key, slot.value, slot.revision)
            for key, slot in sorted(self._slots.items())
            if slot.value is not None and key.startswith(prefix)
        ]

    def watch(self, prefix: str) -> AsyncGenerator[Change, None]:
        return self._watch(prefix, self._revision)

    async def _watch(self, prefix: str, seen: int) -> AsyncGenerator[Change, None]:
        while True:
            self._expire()
            changed = self._changed
            fresh = sorted(
                (slot.revision, key, slot.value)
                for key, slot in self._slots.items()
                if slot.revision > seen and key.startswith(prefix)
            )
            for revision, key, value in fresh:
                seen = revision
                yield Change(key, value, revision)
            if not fresh:
                try:
                    await asyncio.wait_for(changed.wait(), _POLL_SECONDS)
                except TimeoutError:
                    continue

    async def register(self, key: str, value: bytes, ttl_ms: int) -> MemoryRegistration | None:
        revision = await self.compare_and_swap(key, 0, value)
        if revision is None:
            return None
        self._slots[key].expires_ms = self._clock.monotonic_ms() + ttl_ms
        return MemoryRegistration(self, key, revision, ttl_ms)

    def renew(self, key: str, revision: int, ttl_ms: int) -> bool:
        self._expire()
        if self._revision_of(key) != revision:
            return False
        self._slots[key].expires_ms = self._clock.monotonic_ms() + ttl_ms
        return True

    async def close(self) -> None:
        self._announce()

    def _revision_of(self, key: str) -> int:
        slot = self._slots.get(key)
        return 0 if slot is None or slot.value is None else slot.revision

    def _expire(self) -> None:
        now_ms = self._clock.monotonic_ms()
        for slot in self._slots.values():
            if slot.expires_ms is not None and slot.expires_ms <= now_ms:
                self._revision += 1
                slot.value, slot.revision, slot.expires_ms = None, self._revision, None

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class MemoryRegistration:
    def __init__(self, store: MemoryStore, key: str, revision: int, ttl_ms: int) -> None:
        self._store, self._key, self._revision, self._ttl_ms = store, key, revision, ttl_ms

    async def renew(self) -> bool:
        return self._store.renew(self._key, self._revision, self._ttl_ms)

    async def release(self) -> None:
        await self._store.compare_and_swap(self._key, self._revision, None)
