"""The store in one SQLite file: for one host, with one process or several.

    entries(key, value, revision, expires_ms)     value NULL: deleted, kept for watchers of all processes
    revision(last)                                one row
    facts(name, value)                            boot: of the machine when it was last opened; compacted: deletions up
                                                  to this revision are forgotten

Write-ahead logging with synchronous=FULL: a change is on disk when the call returns; a renewal alone is not waited for,
since after a loss of power no registration holds. Calls run on the executor's thread; only writers take the lock, with
BEGIN IMMEDIATE, so that a transaction that read cannot fail to write. Expiry follows the monotonic clock, which the
processes of a host share until it boots again.

Watching costs next to nothing: `PRAGMA data_version` reads a few bytes of memory that SQLite shares between processes,
and only when it has moved is anything asked for.

On a full disk the file <path>.reserve is given up, and what could not be written is done once more.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TypeVar

from streamkit.errors import CorruptFile, DiskFailed, StoreUnavailable, StreamkitError
from streamkit.metadata.reserve import Reserve
from streamkit.metadata.store import Change, Entry, Listing, Swap
from streamkit.runtime.interfaces import Runtime
from streamkit.runtime.sqlite import lacks_log
from streamkit.runtime.tasks import Tasks, wait_out

T = TypeVar("T")
_POLL_SECONDS = 0.1           # how late a watcher learns of another process's change, or of an expiry
_CALM_POLL_SECONDS = 0.25     # the same when nothing has changed for a while: a wake-up costs more than the look
_CALM_AFTER_SECONDS = 3.0
_BUSY_SECONDS = 10.0
_BUSY_SHARED_SECONDS = 2.0     # several processes: who holds the lock may have been stopped
_DELETED_KEPT = 10_000         # revisions for which deletions are remembered
_NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)      # the latter: for the file beside it, at opening
_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries(
    key TEXT PRIMARY KEY, value BLOB, revision INTEGER NOT NULL, expires_ms INTEGER
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS entries_revision ON entries(revision);
CREATE INDEX IF NOT EXISTS entries_expires ON entries(expires_ms) WHERE expires_ms IS NOT NULL;
CREATE TABLE IF NOT EXISTS revision(only INTEGER PRIMARY KEY CHECK (only = 1), last INTEGER NOT NULL);
INSERT OR IGNORE INTO revision VALUES (1, 0);
CREATE TABLE IF NOT EXISTS facts(name TEXT PRIMARY KEY, value) WITHOUT ROWID;
INSERT OR IGNORE INTO facts VALUES ('compacted', 0);
"""
_ALIVE = "value IS NOT NULL AND (expires_ms IS NULL OR expires_ms > ?)"
_READ = f"SELECT value, revision FROM entries WHERE key = ? AND {_ALIVE}"
_LIST = f"SELECT key, value, revision FROM entries WHERE key >= ? AND {_ALIVE} ORDER BY key"
_LIST_AFTER = _LIST.replace("key >=", "key >")
_CURRENT = "SELECT revision FROM entries WHERE key = ? AND value IS NOT NULL"
_SET = """
INSERT INTO entries(key, value, revision, expires_ms) VALUES (?, ?, ?, ?)
ON CONFLICT(key) DO UPDATE SET value = excluded.value, revision = excluded.revision, expires_ms = excluded.expires_ms
"""


class _Watcher:
    """What one watch has not handed out yet."""

    def __init__(self, prefix: str, seen: int) -> None:
        self.prefix = prefix
        self.seen = seen
        self.waiting: deque[Change] = deque()
        self.must_list = False
        self.news = asyncio.Event()

    def hear(self, changes: Sequence[Change], compacted: int) -> None:
        self.must_list |= self.seen < compacted
        for change in changes:
            if change.revision > self.seen and change.key.startswith(self.prefix):
                self.waiting.append(change)
        if changes:
            self.seen = max(self.seen, changes[-1].revision)
        self.news.set()


class SqliteStore:
    """Open with `await SqliteStore.open(path, runtime)`.

    shared: a cluster's file. What hinders a call is StoreUnavailable then, not DiskFailed: the node goes on.
    """

    operations_max = 1_000_000

    def __init__(self, path: str, runtime: Runtime, *, shared: bool = False) -> None:
        self.path = path
        self._runtime = runtime
        self._shared = shared
        self._busy_seconds = _BUSY_SHARED_SECONDS if shared else _BUSY_SECONDS
        self._reserve = Reserve(f"{path}.reserve", runtime.disk)
        self._connection: sqlite3.Connection | None = None
        self._peeking: sqlite3.Connection | None = None      # used on the event loop, for data_version alone
        self._turn = asyncio.Lock()           # one transaction at a time on the one connection
        self._committing = False
        self._revision = 0                    # last seen; where a new watch starts
        self._watchers: list[_Watcher] = []
        self._wake = asyncio.Event()          # something is to be told now
        self._tick = asyncio.Event()          # or it is time to look
        self._tasks = Tasks(f"sqlite {path}")

    @classmethod
    async def open(cls, path: str, runtime: Runtime, *, shared: bool = False) -> SqliteStore:
        """Create or open the file. Raises CorruptFile, DiskFailed; StoreUnavailable when shared."""
        store = cls(path, runtime, shared=shared)
        loop = asyncio.get_running_loop()
        until_s = loop.time() + store._busy_seconds
        while await store._run(store._lacks_log):
            if loop.time() > until_s:
                raise store._refusal(f"the metadata in {path} are locked by another process", sqlite3.SQLITE_BUSY)
            await asyncio.sleep(_POLL_SECONDS)
        await store._run(store._connect)
        return store

    async def close(self) -> None:
        await self._tasks.close()
        async with self._turn:
            if self._connection is not None:
                connection, self._connection = self._connection, None
                await self._runtime.executor.run(connection.close)
            if self._peeking is not None:
                self._peeking.close()
                self._peeking = None
        for watcher in self._watchers:
            watcher.news.set()

    async def read(self, key: str) -> tuple[bytes | None, int]:
        def work() -> tuple[bytes | None, int]:
            row = self._open_connection().execute(_READ, (key, self._now_ms())).fetchone()
            return (row[0], row[1]) if row else (None, 0)

        return await self._run(work)

    async def compare_and_swap(self, key: str, revision: int, value: bytes | None) -> int | None:
        return await self.compare_and_swap_many((Swap(key, revision, value),))

    async def compare_and_swap_many(self, swaps: Sequence[Swap]) -> int | None:
        assert len({swap.key for swap in swaps}) == len(swaps), "one swap for each key"
        return await self._change(self._swap, swaps, None)

    async def list(self, prefix: str, *, after: str = "", count_max: int | None = None) -> list[Entry]:
        return [*(await self._run(self._listing, prefix, after, count_max)).entries]

    async def register(self, key: str, value: bytes, ttl_ms: int) -> SqliteRegistration | None:
        revision = await self._change(self._swap, (Swap(key, 0, value),), ttl_ms)
        return None if revision is None else SqliteRegistration(self, key, revision, ttl_ms)

    async def renew(self, key: str, revision: int, ttl_ms: int) -> bool:
        return await self._run(self._renew, key, revision, ttl_ms)

    async def update(self, key: str, revision: int, value: bytes) -> int | None:
        return await self._change(self._update, key, revision, value)

    # -- watching ------------------------------------------------------------------------------------------

    def watch(self, prefix: str) -> AsyncGenerator[Change, None]:
        return self._watch(self._new_watcher(prefix, self._revision))

    async def _watch(self, watcher: _Watcher) -> AsyncGenerator[Change, None]:
        async with contextlib.aclosing(self._news(watcher)) as all_news:
            async for news in all_news:
                for change in (news,) if isinstance(news, Change) else (Change(*entry) for entry in news.entries):
                    yield change

    def follow(self, prefix: str) -> AsyncGenerator[Listing | Change, None]:
        watcher = self._new_watcher(prefix, self._revision)
        watcher.must_list = True
        return self._news(watcher)

    def _new_watcher(self, prefix: str, seen: int) -> _Watcher:
        watcher = _Watcher(prefix, seen)
        self._watchers.append(watcher)
        if not self._tasks:
            self._tasks.start(self._poll(), "poll")
        self._look()
        return watcher

    async def _news(self, watcher: _Watcher) -> AsyncGenerator[Listing | Change, None]:
        try:
            while self._connection is not None:
                if watcher.must_list:
                    try:
                        listing = await self._run(self._listing, watcher.prefix)
                    except StoreUnavailable:
                        await asyncio.sleep(_POLL_SECONDS)
                        continue
                    watcher.must_list = False
                    watcher.seen = max(watcher.seen, listing.revision)
                    later = [change for change in watcher.waiting if change.revision > listing.revision]
                    watcher.waiting = deque(later)
                    yield listing
                elif watcher.waiting:
                    yield watcher.waiting.popleft()
                else:
                    watcher.news.clear()
                    await watcher.news.wait()
        finally:
            self._watchers.remove(watcher)

    async def _poll(self) -> None:
        """Tells the watchers of this process what this one and the others have changed."""
        loop = asyncio.get_running_loop()
        polled, version, last = self._revision, -1, -1
        due_ms: int | None = None
        changed_s = loop.time()
        while self._connection is not None:
            moved, now_last = self._data_version(), last
            if moved != version and moved >= 0:
                now_last = self._last_revision()           # the same: somebody renewed a registration
            expired = due_ms is not None and due_ms <= self._now_ms()
            if self._wake.is_set() or now_last != last or moved < 0 or expired:
                self._wake.clear()
                changed_s = loop.time()
                oldest = min((watcher.seen for watcher in self._watchers), default=polled)
                try:
                    changes, compacted, due_ms = await self._run(self._since, min(oldest, polled))
                except StoreUnavailable:
                    moved, now_last = -1, -1
                else:
                    polled = max([polled, *(change.revision for change in changes[-1:])])
                    for watcher in self._watchers:
                        watcher.hear(changes, compacted)
            version, last = moved, now_last
            if not self._wake.is_set():
                calm = loop.time() - changed_s > _CALM_AFTER_SECONDS
                timer = loop.call_later(_CALM_POLL_SECONDS if calm else _POLL_SECONDS, self._tick.set)
                await self._tick.wait()
                timer.cancel()
            self._tick.clear()

    def _data_version(self) -> int:
        """Another number when another connection has changed something. Shared memory: the loop does not wait."""
        return self._peek("PRAGMA data_version")

    def _last_revision(self) -> int:
        return self._peek("SELECT last FROM revision")

    def _peek(self, query: str) -> int:
        """-1: it cannot be told now."""
        try:
            if self._peeking is None:
                self._peeking = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
            return int(self._peeking.execute(query).fetchone()[0])
        except sqlite3.Error:
            return -1

    # -- on the executor's thread --------------------------------------------------------------------------

    def _lacks_log(self) -> bool:
        """Make the file; turn it to a write-ahead log, for good. True: others open it for the first time as well."""
        # Made here with mode 0600, which SQLite gives its journals too; what hinders this, SQLite reports itself.
        with contextlib.suppress(OSError):
            self._runtime.disk.open(self.path, create=True).close()
        connection = sqlite3.connect(self.path, timeout=self._busy_seconds, isolation_level=None)
        try:
            return lacks_log(connection)
        finally:
            connection.close()

    def _connect(self) -> None:
        connection = sqlite3.connect(
            self.path, timeout=self._busy_seconds, isolation_level=None, check_same_thread=False
        )
        try:
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
            self._connection = connection
            with _Writing(self) as connection:
                self._forget(connection)
            self._reserve.make()
        except BaseException:
            self._connection = None
            connection.close()
            raise

    def _forget(self, connection: sqlite3.Connection) -> None:
        """Registrations of an earlier boot, whose clock was another, and old deletions."""
        boot = self._runtime.disk.boot_id()
        if connection.execute("SELECT 1 FROM facts WHERE name = 'boot' AND value = ?", (boot,)).fetchone() is None:
            rows = connection.execute("SELECT key FROM entries WHERE expires_ms IS NOT NULL").fetchall()
            for (key,) in rows:
                connection.execute(_SET, (key, None, self._next_revision(connection), None))
            connection.execute("INSERT OR REPLACE INTO facts VALUES ('boot', ?)", (boot,))
        last = self._revision = connection.execute("SELECT last FROM revision").fetchone()[0]
        gone = connection.execute(
            "DELETE FROM entries WHERE value IS NULL AND revision <= ?", (last - _DELETED_KEPT,)
        ).rowcount
        if gone:
            connection.execute("UPDATE facts SET value = ? WHERE name = 'compacted'", (last - _DELETED_KEPT,))

    def _swap(self, swaps: Sequence[Swap], ttl_ms: int | None) -> int | None:
        with _Writing(self) as connection:
            for swap in swaps:
                row = connection.execute(_CURRENT, (swap.key,)).fetchone()
                if (row[0] if row else 0) != swap.revision:
                    return None
            revision = self._next_revision(connection)
            expires_ms = None if ttl_ms is None else self._now_ms() + ttl_ms
            connection.executemany(_SET, [(swap.key, swap.value, revision, expires_ms) for swap in swaps])
        return revision

    def _renew(self, key: str, revision: int, ttl_ms: int) -> bool:
        connection = self._open_connection()
        connection.execute("PRAGMA synchronous = NORMAL")
        try:
            return connection.execute(
                f"UPDATE entries SET expires_ms = ? WHERE key = ? AND revision = ? AND {_ALIVE}",
                (self._now_ms() + ttl_ms, key, revision, self._now_ms()),
            ).rowcount == 1
        finally:
            connection.execute("PRAGMA synchronous = FULL")

    def _update(self, key: str, revision: int, value: bytes) -> int | None:
        with _Writing(self) as connection:
            row = connection.execute(_CURRENT, (key,)).fetchone()
            if row is None or row[0] != revision:
                return None
            new = self._next_revision(connection)
            connection.execute("UPDATE entries SET value = ?, revision = ? WHERE key = ?", (value, new, key))
        return new

    def _listing(self, prefix: str, after: str = "", count_max: int | None = None) -> Listing:
        connection = self._open_connection()
        connection.execute("BEGIN")                        # a listing and its revision are of one moment
        try:
            last = connection.execute("SELECT last FROM revision").fetchone()[0]
            found: list[Entry] = []
            query, first = (_LIST_AFTER, after) if after >= prefix else (_LIST, prefix)
            for row in connection.execute(query, (first, self._now_ms())):
                if not row[0].startswith(prefix) or len(found) == count_max:
                    break
                found.append(Entry(*row))
        finally:
            connection.execute("COMMIT")
        return Listing(tuple(found), last)

    def _since(self, seen: int) -> tuple[Sequence[Change], int, int | None]:
        """(changes in order, up to where deletions are forgotten, when the next registration expires)."""
        connection = self._open_connection()
        due = connection.execute("SELECT 1 FROM entries WHERE expires_ms <= ? LIMIT 1", (self._now_ms(),)).fetchone()
        if due is not None:
            with _Writing(self):
                pass                                       # entering is what expires
        rows = connection.execute(
            "SELECT key, value, revision FROM entries WHERE revision > ? ORDER BY revision, key", (seen,)
        ).fetchall()
        compacted = connection.execute("SELECT value FROM facts WHERE name = 'compacted'").fetchone()[0]
        next_ms = connection.execute("SELECT min(expires_ms) FROM entries WHERE expires_ms IS NOT NULL").fetchone()[0]
        return [Change(*row) for row in rows], compacted, next_ms

    def _open_connection(self) -> sqlite3.Connection:
        if self._connection is None:
            raise self._refusal(f"{self.path} is closed", errno=0)
        return self._connection

    def _next_revision(self, connection: sqlite3.Connection) -> int:
        row = connection.execute("UPDATE revision SET last = last + 1 RETURNING last").fetchone()
        return int(row[0])

    def _now_ms(self) -> int:
        return self._runtime.clock.monotonic_ms()

    # -- on the event loop ---------------------------------------------------------------------------------

    async def _change(self, work: Callable[..., int | None], *args: object) -> int | None:
        revision = await self._run(work, *args)
        if revision is not None:
            self._revision = max(self._revision, revision)
            self._look()
        return revision

    def _look(self) -> None:
        self._wake.set()
        self._tick.set()

    async def _run(self, work: Callable[..., T], *args: object) -> T:
        async with self._turn:
            task = asyncio.get_running_loop().create_task(self._execute(work, *args))
            try:
                return await asyncio.shield(task)
            except asyncio.CancelledError:
                # The thread goes on, and the connection is its own until it is done.
                try:
                    await wait_out([task])
                finally:
                    if not task.cancelled():
                        task.exception()
                raise
            except sqlite3.Error as error:
                raise self._translated(error) from error

    async def _execute(self, work: Callable[..., T], *args: object) -> T:
        return await self._runtime.executor.run(self._attempt, work, *args)

    def _attempt(self, work: Callable[..., T], *args: object) -> T:
        """On the executor's thread. What a full disk undid is done once more in the reserve's room."""
        try:
            found = work(*args)
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", 0) not in _NO_ROOM:
                raise
            self._reserve.give_up()
            return work(*args)
        self._reserve.make_again()
        return found

    def _translated(self, error: sqlite3.Error) -> StreamkitError:
        if isinstance(error, sqlite3.OperationalError):
            return self._refusal(
                f"the metadata in {self.path} cannot be used: {error}", errno=getattr(error, "sqlite_errorcode", 0)
            )
        return CorruptFile(
            f"the metadata in {self.path} is damaged: {error}",
            try_="restore it from a backup; the records themselves are in the shard directories",
            path=self.path, position=0, reason=str(error),
        )

    def _refusal(self, message: str, errno: int) -> StreamkitError:
        if self._shared:
            return StoreUnavailable(
                message, try_="look at free space and permissions of its directory, and whether a process was stopped",
                store=self.path, outcome="unknown" if self._committing else "not_done",
            )
        return DiskFailed(
            message, try_="look at free space and permissions of the data directory", path=self.path, errno=errno
        )


class _Writing:
    """BEGIN IMMEDIATE … COMMIT, or ROLLBACK when the body raises; what has expired is deleted first."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self._connection = store._open_connection()

    def __enter__(self) -> sqlite3.Connection:
        connection, store = self._connection, self._store
        store._committing = False
        connection.execute("BEGIN IMMEDIATE")
        try:
            due = connection.execute("SELECT key FROM entries WHERE expires_ms <= ?", (store._now_ms(),)).fetchall()
            for (key,) in due:
                connection.execute(_SET, (key, None, store._next_revision(connection), None))
        except BaseException:
            self._roll_back()
            raise
        return connection

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is not None:
            self._roll_back()
            return
        self._store._committing = True
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise
        self._store._committing = False

    def _roll_back(self) -> None:
        if self._connection.in_transaction:            # a full disk may have ended it already
            self._connection.execute("ROLLBACK")


class SqliteRegistration:
    def __init__(self, store: SqliteStore, key: str, revision: int, ttl_ms: int) -> None:
        self._store, self._key, self._revision, self._ttl_ms = store, key, revision, ttl_ms

    async def renew(self) -> bool:
        return await self._store.renew(self._key, self._revision, self._ttl_ms)

    async def update(self, value: bytes) -> bool:
        revision = await self._store.update(self._key, self._revision, value)
        if revision is None:
            return False
        self._revision = revision
        return True

    async def release(self) -> None:
        await self._store.compare_and_swap(self._key, self._revision, None)
