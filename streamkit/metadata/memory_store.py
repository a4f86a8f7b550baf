"""The store in memory: for the simulator, for tests, and for nodes that keep nothing.

Several nodes share one object: each calls through a handle of its own (`MemoryStore.handle`), which can be cut off,
slowed, made to lie about the past, or made to lose answers; see `memory_handle.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from streamkit.metadata.store import Change, Entry, Listing, Swap
from streamkit.runtime.interfaces import Clock, Random

if TYPE_CHECKING:
    from streamkit.metadata.memory_handle import MemoryHandle

_HISTORY_CHANGES = 10_000      # older ones are forgotten, and whoever follows lists again


@dataclass(slots=True)
class _Slot:
    value: bytes
    revision: int
    expires_ms: int | None = None


class _Past(NamedTuple):
    at_ms: int
    change: Change
    before: tuple[bytes | None, int]       # what the key was until then


class _Quiet(asyncio.Event):
    """Set when something under a prefix changes or the history is forgotten. until: nothing had changed up to there."""

    until = 0


class MemoryStore:
    """Keeps everything in one dictionary; expiry follows the clock's monotonic time."""

    def __init__(self, clock: Clock, *, operations_max: int = 1_000_000) -> None:
        self.operations_max = operations_max
        self.clock = clock
        self._slots: dict[str, _Slot] = {}
        self._expiring: dict[str, int] = {}
        self._history: deque[_Past] = deque()
        self._compacted = 0                # changes up to this revision are forgotten
        self._revision = 0
        self._quiet: dict[str, _Quiet] = {}       # by prefix; forgotten when something there changes

    def handle(self, node: str, random: Random | None = None) -> MemoryHandle:
        """The same store as one node sees it, with faults of its own."""
        from streamkit.metadata.memory_handle import MemoryHandle

        return MemoryHandle(self, node, random)

    async def read(self, key: str) -> tuple[bytes | None, int]:
        return self.value(key)

    async def compare_and_swap(self, key: str, revision: int, value: bytes | None) -> int | None:
        return self.swap((Swap(key, revision, value),))

    async def compare_and_swap_many(self, swaps: Sequence[Swap]) -> int | None:
        return self.swap(swaps)

    async def list(self, prefix: str, *, after: str = "", count_max: int | None = None) -> list[Entry]:
        return [*self.entries(prefix, after, count_max)]

    def watch(self, prefix: str) -> AsyncGenerator[Change, None]:
        return self._watch(prefix, self._revision)

    async def _watch(self, prefix: str, seen: int) -> AsyncGenerator[Change, None]:
        async for news in self._news(prefix, seen):
            if isinstance(news, Change):
                yield news
            else:
                for entry in news.entries:
                    yield Change(*entry)

    def follow(self, prefix: str) -> AsyncGenerator[Listing | Change, None]:
        return self._news(prefix, -1)

    async def _news(self, prefix: str, seen: int) -> AsyncGenerator[Listing | Change, None]:
        while True:
            self._expire()
            quiet = self._quiet.get(prefix) or self._quiet.setdefault(prefix, _Quiet())
            if seen < self._compacted or seen < 0:
                seen = self._revision
                yield Listing(self.entries(prefix), seen)
                continue
            fresh = self._since(prefix, seen)
            seen = self._revision
            for change in fresh:
                yield change
            if not fresh and not quiet.is_set():
                await self._wait(prefix, quiet)
                seen = max(seen, quiet.until)

    async def _wait(self, prefix: str, quiet: _Quiet) -> None:
        """Until something there changes or expires."""
        due_ms = min((due_ms for key, due_ms in self._expiring.items() if key.startswith(prefix)), default=None)
        seconds = None if due_ms is None else max(0.001, (due_ms - self.clock.monotonic_ms()) / 1000)
        # Not wait_for: in Python 3.11 it loses a cancellation that comes together with what it waits for.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await quiet.wait()

    async def register(self, key: str, value: bytes, ttl_ms: int) -> MemoryRegistration | None:
        revision = self.swap((Swap(key, 0, value),), ttl_ms)
        return None if revision is None else MemoryRegistration(self, key, revision, ttl_ms)

    async def close(self) -> None:
        self._wake_all()

    # -- what handles use: at once, without waiting ---------------------------------------------------------

    def value(self, key: str) -> tuple[bytes | None, int]:
        self._expire()
        slot = self._slots.get(key)
        return (None, 0) if slot is None else (slot.value, slot.revision)

    def entries(self, prefix: str, after: str = "", count_max: int | None = None) -> tuple[Entry, ...]:
        self._expire()
        keys = sorted(key for key in self._slots if key.startswith(prefix) and key > after)[:count_max]
        return tuple(Entry(key, self._slots[key].value, self._slots[key].revision) for key in keys)

    def swap(self, swaps: Sequence[Swap], ttl_ms: int | None = None) -> int | None:
        """ttl_ms: the keys go away by themselves."""
        self._expire()
        assert len({swap.key for swap in swaps}) == len(swaps), "one swap for each key"
        assert len(swaps) <= self.operations_max, "more swaps than one transaction takes"
        if any(self.value(swap.key)[1] != swap.revision for swap in swaps):
            return None
        self._revision += 1
        expires_ms = None if ttl_ms is None else self.clock.monotonic_ms() + ttl_ms
        for swap in swaps:
            self._set(swap.key, swap.value, expires_ms)
        return self._revision

    def renew(self, key: str, revision: int, ttl_ms: int) -> bool:
        if self.value(key)[1] != revision:
            return False
        self._slots[key].expires_ms = self._expiring[key] = self.clock.monotonic_ms() + ttl_ms
        return True

    def update(self, key: str, revision: int, value: bytes) -> int | None:
        """Another value, the same time of expiry."""
        if self.value(key)[1] != revision:
            return None
        self._revision += 1
        self._set(key, value, self._slots[key].expires_ms)
        return self._revision

    def expire(self, key: str, revision: int) -> None:
        """As if its time were up."""
        if self.value(key)[1] == revision and key in self._expiring:
            self._slots[key].expires_ms = self._expiring[key] = self.clock.monotonic_ms()
            self._expire()

    def compact(self) -> None:
        """Forget the history: who follows and has not seen all of it lists again."""
        self._history.clear()
        self._compacted = self._revision
        self._wake_all()

    def past_entries(self, prefix: str, age_ms: int) -> tuple[Entry, ...]:
        """What a listing gave `age_ms` ago, as far back as the history goes."""
        then_ms = self.clock.monotonic_ms() - age_ms
        known: dict[str, tuple[bytes | None, int]] = {}
        known.update((key, (slot.value, slot.revision)) for key, slot in self._slots.items())
        for past in reversed(self._history):
            if past.at_ms <= then_ms:
                break
            known[past.change.key] = past.before
        return tuple(
            Entry(key, value, revision) for key, (value, revision) in sorted(known.items())
            if value is not None and key.startswith(prefix)
        )

    # -- inside ----------------------------------------------------------------------------------------------

    def _set(self, key: str, value: bytes | None, expires_ms: int | None) -> None:
        slot = self._slots.pop(key, None)
        self._expiring.pop(key, None)
        if value is not None:
            self._slots[key] = _Slot(value, self._revision, expires_ms)
            if expires_ms is not None:
                self._expiring[key] = expires_ms
        before = (None, 0) if slot is None else (slot.value, slot.revision)
        self._history.append(_Past(self.clock.monotonic_ms(), Change(key, value, self._revision), before))
        while len(self._history) > _HISTORY_CHANGES:
            self._compacted = self._history.popleft().change.revision
        for prefix in [prefix for prefix in self._quiet if key.startswith(prefix)]:
            quiet = self._quiet.pop(prefix)
            quiet.until = self._revision - 1
            quiet.set()

    def _since(self, prefix: str, seen: int) -> Sequence[Change]:
        """In order; a key that changed twice under way is given once, as it is now."""
        fresh: dict[str, Change] = {}
        for past in reversed(self._history):
            change = past.change
            if change.revision <= seen:
                break
            if change.key.startswith(prefix):
                fresh.setdefault(change.key, change)
        return sorted(fresh.values(), key=lambda change: (change.revision, change.key))

    def _expire(self) -> None:
        now_ms = self.clock.monotonic_ms()
        due = [key for key, due_ms in self._expiring.items() if due_ms <= now_ms]
        for key in due:
            self._revision += 1
            self._set(key, None, None)

    def _wake_all(self) -> None:
        for quiet in self._quiet.values():
            quiet.set()
        self._quiet.clear()


class MemoryRegistration:
    def __init__(self, store: MemoryStore, key: str, revision: int, ttl_ms: int) -> None:
        self._store, self.key, self.revision, self._ttl_ms = store, key, revision, ttl_ms

    async def renew(self) -> bool:
        return self._store.renew(self.key, self.revision, self._ttl_ms)

    async def update(self, value: bytes) -> bool:
        revision = self._store.update(self.key, self.revision, value)
        if revision is None:
            return False
        self.revision = revision
        return True

    async def release(self) -> None:
        self._store.swap((Swap(self.key, self.revision, None),))
