"""Positions in SQLite: a file that several processes of one machine may share."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from typing import Any

from streamkit.consumer.aggregates import Place
from streamkit.consumer.exactly_once import Awaited, Claim
from streamkit.consumer.positions.sql import TABLE, Row, Statements, ended_by_handler, run
from streamkit.runtime.sqlite import turn_to_log

_BUSY_AGAIN_S = 0.005
_BUSY_CODES = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_IOERR", "SQLITE_FULL", "SQLITE_CANTOPEN")


class SQLitePosition:
    """The position of every shard in a table of the SQLite file at `path`, beside what handlers write there.

    `ctx.connection` is a `sqlite3.Connection` in a transaction. table: made when it is missing. busy_seconds: how long
    a writer waits for another; SQLite has one at a time. The file is switched to write-ahead logging.
    """

    def __init__(self, path: str, *, table: str = TABLE, busy_seconds: float = 30.0) -> None:
        self._path = str(path)
        self._statements = Statements(table, "?")
        self._busy_seconds = busy_seconds

    def open(self, claim: Claim) -> SQLiteSink:
        return SQLiteSink(self._path, self._statements, self._busy_seconds, claim)

    def open_async(self, claim: Claim) -> AwaitedSQLite:
        return AwaitedSQLite(SQLiteSink(self._path, self._statements, 0.0, claim), self._busy_seconds)


class SQLiteSink:
    """One shard's connection."""

    def __init__(self, path: str, statements: Statements, busy_seconds: float, claim: Claim) -> None:
        self._path = path
        self._statements = statements
        self._busy_seconds = busy_seconds
        self._claimed = claim
        self._database: sqlite3.Connection | None = None

    @property
    def connection(self) -> sqlite3.Connection:
        if self._database is None:
            # Calls come from one thread at a time, and not always from the same.
            database = sqlite3.connect(
                self._path, timeout=self._busy_seconds, isolation_level=None, check_same_thread=False
            )
            try:
                turn_to_log(database, self._busy_seconds)
            except sqlite3.Error:
                database.close()
                raise
            self._database = database
        return self._database

    def claim(self) -> Place:
        self.begin()
        try:
            self.connection.execute(self._statements.create)
            place = run(self._statements.claim(self._claimed), self._execute)
            self.commit()
        except BaseException:
            self.rollback()
            raise
        return place

    def begin(self) -> None:
        self.connection.execute("BEGIN IMMEDIATE")

    def advance(self, start: Place, end: Place) -> None:
        if not self.connection.in_transaction:
            raise ended_by_handler()
        run(self._statements.advance(self._claimed, start, end), self._execute)

    def commit(self) -> None:
        if not self.connection.in_transaction:
            raise ended_by_handler()
        self.connection.execute("COMMIT")

    def rollback(self) -> None:
        if self._database is not None and self._database.in_transaction:
            try:
                self._database.execute("ROLLBACK")
            except sqlite3.Error:
                self.close()

    def transient(self, error: BaseException) -> bool:
        name = getattr(error, "sqlite_errorname", "SQLITE_BUSY")       # without one it is `turn_to_log`'s
        return isinstance(error, sqlite3.OperationalError) and name.startswith(_BUSY_CODES)

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _execute(self, sql: str, values: tuple[Any, ...]) -> list[Row]:
        return self.connection.execute(sql, values).fetchall()


class AwaitedSQLite(Awaited):
    """For coroutines: who holds the lock may be another task of this event loop, so the wait is no blocking one."""

    def __init__(self, sink: SQLiteSink, busy_seconds: float) -> None:
        super().__init__(sink)
        self._busy_seconds = busy_seconds

    async def claim(self) -> Place:
        place: Place = await self._when_free(self._sink.claim)
        return place

    async def begin(self) -> None:
        await self._when_free(self._sink.begin)

    async def _when_free(self, call: Callable[[], Any]) -> Any:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._busy_seconds
        while True:
            try:
                return call()
            except sqlite3.OperationalError as error:
                if not self._sink.transient(error) or loop.time() > deadline_s:
                    raise
            await asyncio.sleep(_BUSY_AGAIN_S)
