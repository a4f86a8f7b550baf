"""A MemoryStore as one node reaches it: the simulator's coordination service, with everything that can go wrong.

    reachable        False: nothing arrives; every call ends in StoreUnavailable, "not_done", after timeout_ms
    answers          False: requests arrive and are carried out, answers do not: "unknown" after timeout_ms
    delay_ms         a call takes between the two; beyond timeout_ms it fails, and a change is made all the same
    lost_rate        share of changes whose answer is lost: done, or done only after the caller gave up, or never done
    stale_ms         reads and lists may be that old (a replica of the store that lags); changes and watches never are
    expire_sessions  every registration made here goes away at once

While a node cannot reach the store its watches stand still; they go on where they were.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from streamkit.errors import StoreUnavailable
from streamkit.metadata.memory_store import MemoryRegistration, MemoryStore
from streamkit.metadata.store import Change, Entry, Listing, Swap
from streamkit.runtime.interfaces import Random

T = TypeVar("T")
_STANDSTILL_SECONDS = 0.05         # how often a watch that is cut off looks whether it is still


@dataclass(slots=True)
class StoreFaults:
    """May be changed at any time; calls under way see it."""

    reachable: bool = True
    answers: bool = True
    delay_ms: tuple[float, float] = (0.0, 0.0)
    lost_rate: float = 0.0
    stale_ms: int = 0
    timeout_ms: int = 2_000


class MemoryHandle:
    """Made by `MemoryStore.handle`. random: draws delays and losses; None: neither."""

    def __init__(self, store: MemoryStore, node: str, random: Random | None) -> None:
        self.node = node
        self.faults = StoreFaults()
        self.stale_reads = 0               # how many reads and lists were older than they should have been
        self.operations_max = store.operations_max
        self._store = store
        self._random = random
        self._registrations: tuple[MemoryRegistration, ...] = ()

    async def read(self, key: str) -> tuple[bytes | None, int]:
        await self._arrive()
        if self.faults.stale_ms:
            self.stale_reads += 1
            for entry in self._store.past_entries(key, self._age_ms()):
                if entry.key == key:
                    return entry.value, entry.revision
            return None, 0
        return self._store.value(key)

    async def list(self, prefix: str, *, after: str = "", count_max: int | None = None) -> list[Entry]:
        await self._arrive()
        if self.faults.stale_ms:
            self.stale_reads += 1
            past = self._store.past_entries(prefix, self._age_ms())
            return [entry for entry in past if entry.key > after][:count_max]
        return [*self._store.entries(prefix, after, count_max)]

    async def compare_and_swap(self, key: str, revision: int, value: bytes | None) -> int | None:
        return await self.compare_and_swap_many((Swap(key, revision, value),))

    async def compare_and_swap_many(self, swaps: Sequence[Swap]) -> int | None:
        return await self._change(lambda: self._store.swap(swaps))

    async def register(self, key: str, value: bytes, ttl_ms: int) -> HandleRegistration | None:
        revision = await self._change(lambda: self._store.swap((Swap(key, 0, value),), ttl_ms))
        if revision is None:
            return None
        inner = MemoryRegistration(self._store, key, revision, ttl_ms)
        alive = (kept for kept in self._registrations if self._store.value(kept.key)[1] == kept.revision)
        self._registrations = (*alive, inner)
        return HandleRegistration(self, inner, ttl_ms)

    def watch(self, prefix: str) -> AsyncGenerator[Change, None]:
        return self._when_reachable(self._store.watch(prefix))

    def follow(self, prefix: str) -> AsyncGenerator[Listing | Change, None]:
        return self._when_reachable(self._store.follow(prefix))

    async def _when_reachable(self, news: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        async for item in news:
            while not (self.faults.reachable and self.faults.answers):      # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(_STANDSTILL_SECONDS)
            delay_ms = self._drawn_delay_ms()
            if delay_ms:
                await asyncio.sleep(delay_ms / 1000)
            yield item

    def expire_sessions(self) -> None:
        """The store lost this node's sessions: its registrations are gone."""
        for registration in self._registrations:
            self._store.expire(registration.key, registration.revision)
        self._registrations = ()

    async def close(self) -> None:
        """The shared store stays."""

    # -- faults ------------------------------------------------------------------------------------------------

    async def change(self, work: Callable[[], T]) -> T:
        """For registrations."""
        return await self._change(work)

    async def _arrive(self) -> None:
        """A request that changes nothing, there and back."""
        delay_ms = self._drawn_delay_ms()
        if not self.faults.reachable or not self.faults.answers or delay_ms > self.faults.timeout_ms:
            await asyncio.sleep(self.faults.timeout_ms / 1000)
            raise self._unavailable("not_done")
        if delay_ms:
            await asyncio.sleep(delay_ms / 1000)

    async def _change(self, work: Callable[[], T]) -> T:
        faults, timeout_seconds = self.faults, self.faults.timeout_ms / 1000
        if not faults.reachable:
            await asyncio.sleep(timeout_seconds)
            raise self._unavailable("not_done")
        delay_ms = self._drawn_delay_ms()
        lost = faults.lost_rate > 0.0 and self._uniform() < faults.lost_rate
        if delay_ms > faults.timeout_ms or (lost and self._uniform() < 0.3):
            # It is still on its way when the caller gives up.
            late_seconds = max(delay_ms / 1000, timeout_seconds * (1.0 + self._uniform()))
            asyncio.get_running_loop().call_later(late_seconds, work)
            await asyncio.sleep(timeout_seconds)
            raise self._unavailable("unknown")
        if delay_ms:
            await asyncio.sleep(delay_ms / 2000)
        if lost and self._uniform() < 0.3:
            await asyncio.sleep(timeout_seconds)
            raise self._unavailable("unknown")
        result = work()
        if lost or not (faults.answers and faults.reachable):
            await asyncio.sleep(timeout_seconds)
            raise self._unavailable("unknown")
        if delay_ms:
            await asyncio.sleep(delay_ms / 2000)
        return result

    def _drawn_delay_ms(self) -> float:
        low_ms, high_ms = self.faults.delay_ms
        return low_ms + (high_ms - low_ms) * self._uniform() if high_ms else 0.0

    def _age_ms(self) -> int:
        return int(self.faults.stale_ms * self._uniform())

    def _uniform(self) -> float:
        return 0.5 if self._random is None else self._random.uniform()

    def _unavailable(self, outcome: str) -> StoreUnavailable:
        return StoreUnavailable(
            f"the coordination store did not answer {self.node} within {self.faults.timeout_ms} ms",
            try_="look whether it runs and can be reached; what is stored goes on without it",
            store="memory", outcome=outcome,
        )


class HandleRegistration:
    """A registration whose renewals go through a handle's faults."""

    def __init__(self, handle: MemoryHandle, inner: MemoryRegistration, ttl_ms: int) -> None:
        self._handle, self._inner, self._ttl_ms = handle, inner, ttl_ms

    async def renew(self) -> bool:
        inner, store = self._inner, self._handle._store
        return await self._handle.change(lambda: store.renew(inner.key, inner.revision, self._ttl_ms))

    async def update(self, value: bytes) -> bool:
        inner, store = self._inner, self._handle._store

        def work() -> bool:
            revision = store.update(inner.key, inner.revision, value)
            inner.revision = inner.revision if revision is None else revision
            return revision is not None

        return await self._handle.change(work)

    async def release(self) -> None:
        inner, store = self._inner, self._handle._store
        await self._handle.change(lambda: store.swap((Swap(inner.key, inner.revision, None),)))
