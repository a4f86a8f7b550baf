"""One prefix of the store, kept current in memory: readers never wait, also not while the store is down.

What this process writes is shown at once (`wrote`), before the watch brings it; older news of that key are then left
out. Called by replica_sets, members and the cluster's catalog.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from streamkit.metadata.store import Change, Entry, Listing, Store
from streamkit.runtime.tasks import Tasks

_log = logging.getLogger("streamkit.metadata")
OnChange = Callable[[str, bytes | None, int], None]


class View:
    """on_change(key, value, revision) is called for every change, in order; value None: the key is gone."""

    def __init__(self, store: Store, prefix: str, on_change: OnChange) -> None:
        self.prefix = prefix
        self.entries: dict[str, Entry] = {}
        self.revision = 0                          # everything up to here has been seen
        self._store = store
        self._on_change = on_change
        self._ahead: dict[str, int] = {}           # written here, and not yet seen in the watch
        self._tasks = Tasks(f"view {prefix}")

    async def open(self) -> None:
        """Returns when the first listing is there. Raises StoreUnavailable."""
        entries = await self._store.list(self.prefix)
        self._replace(Listing(tuple(entries), max((entry.revision for entry in entries), default=0)))
        self._tasks.start(self._follow(), "follow")

    async def close(self) -> None:
        await self._tasks.close()

    def wrote(self, key: str, value: bytes | None, revision: int) -> None:
        """This process changed the key, under that revision."""
        if revision > max(self.revision, self._ahead.get(key, 0)):
            self._ahead[key] = revision
            self._apply(key, value, revision)

    async def _follow(self) -> None:
        async for news in self._store.follow(self.prefix):
            if isinstance(news, Listing):
                self._replace(news)
            else:
                self._take(news)

    def _take(self, change: Change) -> None:
        self.revision = max(self.revision, change.revision)
        ahead = self._ahead.get(change.key, 0)
        if ahead <= change.revision:
            self._ahead.pop(change.key, None)
        if change.revision > ahead:
            self._apply(change.key, change.value, change.revision)

    def _replace(self, listing: Listing) -> None:
        """What is missing from it is gone, unless it was written here after the listing was made."""
        if listing.revision < self.revision:
            # The store was emptied, or restored from a backup. Nothing is given up because metadata looks odd.
            _log.error("store.went_back", extra={"facts": {
                "prefix": self.prefix, "revision": listing.revision, "known": self.revision
            }})  # fmt: skip
            return
        self.revision = max(self.revision, listing.revision)
        listed = {entry.key for entry in listing.entries}
        gone = [key for key in self.entries if key not in listed]
        for key in gone:
            self._take(Change(key, None, max(listing.revision, self.entries[key].revision)))
        for entry in listing.entries:
            self._take(Change(*entry))
        for key in [key for key, revision in self._ahead.items() if revision <= listing.revision]:
            del self._ahead[key]

    def _apply(self, key: str, value: bytes | None, revision: int) -> None:
        known = self.entries.get(key)
        if value is None:
            if known is None or known.revision > revision:
                return
            del self.entries[key]
        else:
            if known is not None and known.revision >= revision:
                return
            self.entries[key] = Entry(key, value, revision)
        self._on_change(key, value, revision)
