"""Positions in PostgreSQL, through psycopg 3."""

from __future__ import annotations

import contextlib
from typing import Any

from streamkit.consumer.aggregates import Place
from streamkit.consumer.exactly_once import Claim
from streamkit.consumer.positions.sql import TABLE, Row, Statements, run, run_async
from streamkit.runtime.libraries import library

_LOCK = 0x73747265616D6B69                 # "streamki": workers that start together make the table one by one


class PostgresPosition:
    """The position of every shard in a table of a PostgreSQL database, beside what handlers write there.

    dsn: as libpq takes it, "dbname=shop" or "postgresql://…". `ctx.connection` is a `psycopg.Connection` in a
    transaction, and a `psycopg.AsyncConnection` for `async def` handlers; each shard has one. table: made when it is
    missing. Raises MissingLibrary.
    """

    def __init__(self, dsn: str, *, table: str = TABLE) -> None:
        self._library = library("psycopg", "postgres")
        self._dsn = dsn
        self._statements = Statements(table, "%s", " FOR UPDATE")
        self._exists = f"SELECT 1 WHERE to_regclass('{table}') IS NOT NULL"

    def open(self, claim: Claim) -> PostgresSink:
        return PostgresSink(self._library, self._dsn, self._statements, self._exists, claim)

    def open_async(self, claim: Claim) -> AsyncPostgresSink:
        return AsyncPostgresSink(self._library, self._dsn, self._statements, self._exists, claim)


class _Sink:
    """What both kinds of connection share."""

    def __init__(self, library: Any, dsn: str, statements: Statements, exists: str, claim: Claim) -> None:
        self._library = library
        self._dsn = dsn
        self._statements = statements
        self._exists = exists
        self._claimed = claim
        self._database: Any = None
        self._transaction: Any = None      # psycopg's own: inside it, commit() and rollback() are errors

    @property
    def broken(self) -> bool:
        """The server is gone, or the connection is; the next claim makes another."""
        return self._database is not None and bool(self._database.broken or self._database.closed)

    def transient(self, error: BaseException) -> bool:
        errors = self._library.errors
        again = (errors.SerializationFailure, errors.DeadlockDetected, errors.LockNotAvailable)
        return isinstance(error, again) or (self.broken and isinstance(error, self._library.Error))


class PostgresSink(_Sink):
    """One shard's connection."""

    @property
    def connection(self) -> Any:
        if self._database is None:
            self._database = self._library.connect(self._dsn, autocommit=True)
        return self._database

    def claim(self) -> Place:
        if self.broken:
            self.close()
        self.begin()
        try:
            if not self._execute(self._exists, ()):
                self.connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
                self.connection.execute(self._statements.create)
            place = run(self._statements.claim(self._claimed), self._execute)
            self.commit()
        except BaseException:
            self.rollback()
            raise
        return place

    def begin(self) -> None:
        transaction = self.connection.transaction()
        transaction.__enter__()
        self._transaction = transaction

    def advance(self, start: Place, end: Place) -> None:
        run(self._statements.advance(self._claimed, start, end), self._execute)

    def commit(self) -> None:
        transaction, self._transaction = self._transaction, None
        transaction.__exit__(None, None, None)

    def rollback(self) -> None:
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            with contextlib.suppress(self._library.Error):
                transaction.__exit__(self._library.Rollback, self._library.Rollback(), None)

    def close(self) -> None:
        database, self._database, self._transaction = self._database, None, None
        if database is not None:
            with contextlib.suppress(self._library.Error):
                database.close()

    def _execute(self, sql: str, values: tuple[Any, ...]) -> list[Row]:
        rows: list[Row] = []
        cursor = self.connection.execute(sql, values)
        return cursor.fetchall() if cursor.description is not None else rows


class AsyncPostgresSink(_Sink):
    """The same on an event loop."""

    @property
    def connection(self) -> Any:
        return self._database

    async def claim(self) -> Place:
        if self.broken:
            await self.close()
        await self.begin()
        try:
            if not await self._execute(self._exists, ()):
                await self._database.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
                await self._database.execute(self._statements.create)
            place = await run_async(self._statements.claim(self._claimed), self._execute)
            await self.commit()
        except BaseException:
            await self.rollback()
            raise
        return place

    async def begin(self) -> None:
        if self._database is None:
            self._database = await self._library.AsyncConnection.connect(self._dsn, autocommit=True)
        transaction = self._database.transaction()
        await transaction.__aenter__()
        self._transaction = transaction

    async def advance(self, start: Place, end: Place) -> None:
        await run_async(self._statements.advance(self._claimed, start, end), self._execute)

    async def commit(self) -> None:
        transaction, self._transaction = self._transaction, None
        await transaction.__aexit__(None, None, None)

    async def rollback(self) -> None:
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            with contextlib.suppress(self._library.Error):
                await transaction.__aexit__(self._library.Rollback, self._library.Rollback(), None)

    async def close(self) -> None:
        database, self._database, self._transaction = self._database, None, None
        if database is not None:
            with contextlib.suppress(self._library.Error):
                await database.close()

    async def _execute(self, sql: str, values: tuple[Any, ...]) -> list[Row]:
        rows: list[Row] = []
        cursor = await self._database.execute(sql, values)
        return await cursor.fetchall() if cursor.description is not None else rows
