"""The store in one SQLite file: for one host, with one process or several.

    entries(key, value, revision, expires_ms)     value NULL: deleted, kept until the next open for watchers
    revision(last)                                one row

Write-ahead logging with synchronous=FULL: a change is on disk when the call returns. Every call is one
transaction on the executor's thread, never on the event loop; writers begin IMMEDIATE, so that a transaction
that read cannot fail to write. Expiry uses the wall clock, the only one that processes share.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TypeVar

from streamkit.errors import CorruptFile, DiskFailed, StreamkitError
from streamkit.metadata.store import Change, Entry, Swap
from streamkit.runtime.interfaces import Runtime

T = TypeVar("T")
_POLL_SECONDS = 0.25           # how late a watcher learns of another process's change, or of an expiry
_BUSY_SECONDS = 10.0
_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries(
    key TEXT PRIMARY KEY, value BLOB, revision INTEGER NOT NULL, expires_ms INTEGER
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS entries_revision ON entries(revision);
CREATE INDEX IF NOT EXISTS entries_expires ON entries(expires_ms) WHERE expires_ms IS NOT NULL;
CREATE TABLE IF NOT EXISTS revision(only INTEGER PRIMARY KEY CHECK (only = 1), last INTEGER NOT NULL);
INSERT OR IGNORE INTO revision VALUES (1, 0);
"""
_CURRENT = "SELECT revision FROM entries WHERE key = ? AND value IS NOT NULL"
_SET = """
INSERT INTO entries(key, value, revision, expires_ms) VALUES (?, ?, ?, ?)
ON CONFLICT(key) DO UPDATE SET value = excluded.value, revision = excluded.revision, expires_ms = excluded.expires_ms
"""


class SqliteStore:
    """Open with `await SqliteStore.open(path, runtime)`."""

    def __init__(self, path: str, runtime: Runtime) -> None:
        self.path = path
        self._runtime = runtime
        self._connection: sqlite3.Connection | None = None
        self._turn = asyncio.Lock()           # one transaction at a time on the one connection
        self._changed = asyncio.Event()
        self._revision = 0                    # last seen; where a new watch starts

    @classmethod
    async def open(cls, path: str, runtime: Runtime) -> SqliteStore:
        """Create or open the file. Raises CorruptFile, DiskFailed."""
        store = cls(path, runtime)
        await store._run(store._connect)
        return store

    async def close(self) -> None:
        async with self._turn:
            if self._connection is not None:
                connection, self._connection = self._connection, None
                await self._runtime.executor.run(connection.close)
        self._announce()

    async def read(self, key: str) -> tuple[bytes | None, int]:
        def work() -> tuple[bytes | None, int]:
            with self._transaction() as connection:
                row = connection.execute(
                    "SELECT value, revision FROM entries WHERE key = ? AND value IS NOT NULL", (key,)
                ).fetchone()
            return (row[0], row[1]) if row else (None, 0)

        return await self._run(work)

    async def compare_and_swap(self, key: str, revision: int, value: bytes | None) -> int | None:
        return await self.compare_and_swap_many((Swap(key, revision, value),))

    async def compare_and_swap_many(self, swaps: Sequence[Swap]) -> int | None:
        assert len({swap.key for swap in swaps}) == len(swaps), "one swap for each key"
        return await self._run(self._swap, swaps, None)

    async def list(self, prefix: str) -> list[Entry]:
        def work() -> list[Entry]:
            with self._transaction() as connection:
                rows = connection.execute(
                    "SELECT key, value, revision FROM entries WHERE key >= ? AND value IS NOT NULL ORDER BY key",
                    (prefix,),
                )
                found = []
                for row in rows:
                    if not row[0].startswith(prefix):
                        break
                    found.append(Entry(*row))
            return found

        return await self._run(work)

    def watch(self, prefix: str) -> AsyncGenerator[Change, None]:
        return self._watch(prefix, self._revision)

    async def _watch(self, prefix: str, seen: int) -> AsyncGenerator[Change, None]:
        while self._connection is not None:
            changed = self._changed
            fresh = await self._run(self._since, prefix, seen)
            for change in fresh:
                seen = change.revision
                yield change
            if not fresh:
                try:
                    await asyncio.wait_for(changed.wait(), _POLL_SECONDS)
                except TimeoutError:
                    continue

    async def register(self, key: str, value: bytes, ttl_ms: int) -> SqliteRegistration | None:
        revision = await self._run(self._swap, (Swap(key, 0, value),), ttl_ms)
        return None if revision is None else SqliteRegistration(self, key, revision, ttl_ms)

    async def renew(self, key: str, revision: int, ttl_ms: int) -> bool:
        def work() -> bool:
            with self._transaction() as connection:
                return connection.execute(
                    "UPDATE entries SET expires_ms = ? WHERE key = ? AND revision = ? AND value IS NOT NULL",
                    (self._runtime.clock.now_ms() + ttl_ms, key, revision),
                ).rowcount == 1

        return await self._run(work)

    # -- on the executor's thread --------------------------------------------------------------------------

    def _connect(self) -> None:
        # Made here with mode 0600, which SQLite gives its journals too; what hinders this, SQLite reports itself.
        with contextlib.suppress(OSError):
            self._runtime.disk.open(self.path, create=True).close()
        connection = sqlite3.connect(
            self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, _SCHEMA_VERSION):
                raise CorruptFile(
                    f"{self.path} has metadata format {version}; this version knows {_SCHEMA_VERSION}",
                    try_="use the streamkit version that wrote it, or a newer one",
                    path=self.path, position=0, reason="format",
                )
            connection.executescript(_SCHEMA)
            connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
            connection.execute("DELETE FROM entries WHERE value IS NULL")
            self._revision = connection.execute("SELECT last FROM revision").fetchone()[0]
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def _swap(self, swaps: Sequence[Swap], ttl_ms: int | None) -> int | None:
        with self._transaction() as connection:
            for swap in swaps:
                row = connection.execute(_CURRENT, (swap.key,)).fetchone()
                if (row[0] if row else 0) != swap.revision:
                    return None
            revision = self._next_revision(connection)
            expires_ms = None if ttl_ms is None else self._runtime.clock.now_ms() + ttl_ms
            connection.executemany(_SET, [(swap.key, swap.value, revision, expires_ms) for swap in swaps])
        self._revision = revision
        return revision

    def _since(self, prefix: str, seen: int) -> Sequence[Change]:
        with self._transaction() as connection:
            rows = connection.execute(
                "SELECT key, value, revision FROM entries WHERE revision > ? ORDER BY revision, key", (seen,)
            ).fetchall()
        return [Change(*row) for row in rows if row[0].startswith(prefix)]

    def _transaction(self) -> _Transaction:
        if self._connection is None:
            raise DiskFailed(f"{self.path} is closed", path=self.path, errno=0)
        return _Transaction(self._connection, self._runtime.clock.now_ms(), self)

    def _next_revision(self, connection: sqlite3.Connection) -> int:
        row = connection.execute("UPDATE revision SET last = last + 1 RETURNING last").fetchone()
        return int(row[0])

    def expire(self, connection: sqlite3.Connection, now_ms: int) -> None:
        """Turn what has expired into deletions, each with a revision of its own."""
        due = connection.execute("SELECT key FROM entries WHERE expires_ms <= ?", (now_ms,)).fetchall()
        for (key,) in due:
            connection.execute(_SET, (key, None, self._next_revision(connection), None))

    # -- on the event loop ---------------------------------------------------------------------------------

    async def _run(self, work: Callable[..., T], *args: object) -> T:
        async with self._turn:
            before = self._revision
            task = asyncio.get_running_loop().create_task(self._execute(work, *args))
            try:
                result = await asyncio.shield(task)
            except asyncio.CancelledError:
                # The thread goes on, and the connection is its own until it is done.
                while not task.done():
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.wait([task])
                if not task.cancelled():
                    task.exception()
                raise
            except sqlite3.Error as error:
                raise self._translated(error) from error
        if self._revision != before:
            self._announce()
        return result

    async def _execute(self, work: Callable[..., T], *args: object) -> T:
        return await self._runtime.executor.run(work, *args)

    def _translated(self, error: sqlite3.Error) -> StreamkitError:
        if isinstance(error, sqlite3.OperationalError):
            return DiskFailed(
                f"the metadata in {self.path} cannot be used: {error}",
                try_="look at free space and permissions of the data directory",
                path=self.path, errno=getattr(error, "sqlite_errorcode", 0),
            )
        return CorruptFile(
            f"the metadata in {self.path} is damaged: {error}",
            try_="restore it from a backup; the records themselves are in the shard directories",
            path=self.path, position=0, reason=str(error),
        )

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class _Transaction:
    """BEGIN IMMEDIATE … COMMIT, or ROLLBACK when the body raises; expiry is applied first."""

    def __init__(self, connection: sqlite3.Connection, now_ms: int, store: SqliteStore) -> None:
        self._connection, self._now_ms, self._store = connection, now_ms, store

    def __enter__(self) -> sqlite3.Connection:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            self._store.expire(self._connection, self._now_ms)
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        return self._connection

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self._connection.execute("COMMIT" if kind is None else "ROLLBACK")


class SqliteRegistration:
    def __init__(self, store: SqliteStore, key: str, revision: int, ttl_ms: int) -> None:
        self._store, self._key, self._revision, self._ttl_ms = store, key, revision, ttl_ms

    async def renew(self) -> bool:
        return await self._store.renew(self._key, self._revision, self._ttl_ms)

    async def release(self) -> None:
        await self._store.compare_and_swap(self._key, self._revision, None)
