"""Positions in DuckDB: a file that belongs to one process, written by all of its shards."""

from __future__ import annotations

from typing import Any

from streamkit.consumer.aggregates import Place
from streamkit.consumer.exactly_once import Awaited, Claim
from streamkit.consumer.positions.sql import TABLE, Row, Statements, ended_by_handler, run
from streamkit.runtime.libraries import library


class DuckDBPosition:
    """The position of every shard in a table of the DuckDB file at `path`, beside what handlers write there.

    `ctx.connection` is a `duckdb.DuckDBPyConnection` in a transaction. DuckDB lets one process write a file: run one
    worker, or give each worker a file. Raises MissingLibrary.
    """

    def __init__(self, path: str, *, table: str = TABLE) -> None:
        self._library = library("duckdb", "duckdb")
        self._path = str(path)
        self._statements = Statements(table, "?")

    def open(self, claim: Claim) -> DuckDBSink:
        return DuckDBSink(self._library, self._path, self._statements, claim)

    def open_async(self, claim: Claim) -> Awaited:
        return Awaited(self.open(claim))


class DuckDBSink:
    """One shard's connection; those of one process share the database."""

    def __init__(self, library: Any, path: str, statements: Statements, claim: Claim) -> None:
        self._library = library
        self._path = path
        self._statements = statements
        self._claimed = claim
        self._database: Any = None
        self._transaction: int | None = None           # DuckDB's number of the one that is open

    @property
    def connection(self) -> Any:
        if self._database is None:
            self._database = self._library.connect(self._path)
        return self._database

    def claim(self) -> Place:
        self.connection.execute(self._statements.create)
        self.begin()
        try:
            place = run(self._statements.claim(self._claimed), self._execute)
            self.commit()
        except BaseException:
            self.rollback()
            raise
        return place

    def begin(self) -> None:
        self.connection.execute("BEGIN TRANSACTION")
        self._transaction = self._number()

    def advance(self, start: Place, end: Place) -> None:
        self._check()
        run(self._statements.advance(self._claimed, start, end), self._execute)

    def commit(self) -> None:
        self._check()
        self._transaction = None
        self.connection.execute("COMMIT")

    def rollback(self) -> None:
        if self._transaction is not None:
            self._transaction = None
            try:
                self.connection.execute("ROLLBACK")
            except self._library.Error:
                self.close()               # whatever was open is gone with the connection

    def transient(self, error: BaseException) -> bool:
        kinds = (self._library.TransactionException, self._library.IOException, self._library.OutOfMemoryException)
        return isinstance(error, kinds)

    def close(self) -> None:
        self._transaction = None
        if self._database is not None:
            self._database.close()
            self._database = None

    def _number(self) -> int:
        return int(self.connection.execute("SELECT txid_current()").fetchone()[0])

    def _check(self) -> None:
        if self._number() != self._transaction:
            raise ended_by_handler()       # each statement outside a transaction has a number of its own

    def _execute(self, sql: str, values: tuple[Any, ...]) -> list[Row]:
        rows: list[Row] = self.connection.execute(sql, values).fetchall()
        return rows
