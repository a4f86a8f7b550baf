"""The coordination store: a small ordered map with revisions, compare-and-swap, watching and expiry.

Every change takes a newer revision of the whole store; a key's revision is that of its last change, 0 when it
does not exist. All halves (SQLite, memory, etcd) pass one test-suite.

A call that gets no answer in time raises StoreUnavailable. Its fact `outcome` says what became of a change:
"not_done" (it never reached the store), or "unknown" (it may have been made, or may still be made): read before acting.
Whoever watches or follows is not told of outages: news come late, and never out of order.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Entry(NamedTuple):
    key: str
    value: bytes
    revision: int


class Change(NamedTuple):
    """value: None when the key is gone, by deletion or by expiry."""

    key: str
    value: bytes | None
    revision: int


class Listing(NamedTuple):
    """Every key under a prefix as of `revision`, in key order; it replaces whatever was known before."""

    entries: tuple[Entry, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class Swap:
    """Set `key` to `value` (None: delete it) if its revision is still `revision` (0: it must not exist)."""

    key: str
    revision: int
    value: bytes | None


class Registration(Protocol):
    """A key that goes away by itself unless it is renewed."""

    async def renew(self) -> bool:
        """Another ttl_ms from now; False when it has expired: register again."""

    async def update(self, value: bytes) -> bool:
        """Another value under the same key, at the same time of expiry; False when it has expired."""

    async def release(self) -> None:
        """Remove the key now, if it is still ours."""


class Store(Protocol):
    operations_max: int                # most swaps that one transaction takes

    async def read(self, key: str) -> tuple[bytes | None, int]:
        """The value and its revision; (None, 0) when there is none."""

    async def compare_and_swap(self, key: str, revision: int, value: bytes | None) -> int | None:
        """The new revision, or None when the key's revision was another: read again, decide again."""

    async def compare_and_swap_many(self, swaps: Sequence[Swap]) -> int | None:
        """All of them under one revision, or none. Keys differ from one another."""

    async def list(self, prefix: str, *, after: str = "", count_max: int | None = None) -> list[Entry]:
        """Every key that begins with `prefix` and follows `after`, in key order, as of one moment.

        count_max: the first so many of them.
        """

    def watch(self, prefix: str) -> AsyncIterator[Change]:
        """Changes from the call on, in order; of several quick changes of a key only the last may be seen."""

    def follow(self, prefix: str) -> AsyncIterator[Listing | Change]:
        """A Listing, then what changed since, in order. Another Listing comes when changes may have been missed."""

    async def register(self, key: str, value: bytes, ttl_ms: int) -> Registration | None:
        """Create the key for `ttl_ms`; None when it exists."""

    async def close(self) -> None: ...
