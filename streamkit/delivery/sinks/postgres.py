"""Rows of a PostgreSQL table, each record once: the rows of a chunk and how far its shard came, in one transaction.

    begin ─▶ lock the shard's row of streamkit_progress ─▶ stored there already? ─▶ roll back, done
                                   └─▶ COPY the rows, bisecting where one is bad ─▶ move the place on ─▶ commit

The row is locked first, so of two workers with the same chunk the second waits, and then sees the first one's place.
What was refused is kept in it: a worker that died after its commit has told nobody, and the next one must.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

from streamkit.delivery.chunk import Chunk, Place
from streamkit.delivery.sinks.rows import Column, Run, runs
from streamkit.delivery.sinks.sink import Refused
from streamkit.errors import InvalidUse, SinkMisused
from streamkit.runtime.libraries import library
from streamkit.runtime.real import RealExecutor

log = logging.getLogger("streamkit.delivery")

PROGRESS = "streamkit_progress"
_LOCK = 0x73747265616D6464                 # "streamdd": workers that start together make the table one by one
_PIECE_ROWS = 1_000                        # that are sent at a time
_MESSAGE_CHARACTERS_MAX = 500
_DATA_CLASSES = ("22", "23", "54")         # bad values, broken constraints, rows that are too large: each a row's own
_MISUSES = ("42", "3D", "3F", "28")        # names, rights, databases, schemas, passwords
_DEFAULTS = {
    "connect_timeout": 10, "fallback_application_name": "streamkit", "keepalives_idle": 30, "keepalives_interval": 10,
    "keepalives_count": 3, "tcp_user_timeout": 60_000,
}  # fmt: skip
_HINTS = {
    "42P01": "create the table, or correct its name; the delivery then goes on by itself",
    "42703": "add the column to the table, or take it out of columns=",
    "42501": "grant INSERT on the table, and SELECT, INSERT and UPDATE on the table of progress",
    "42P10": "create a unique index on exactly the conflict_columns",
    "28P01": "correct the user or the password in the dsn",
    "28000": "correct the user in the dsn, or the server's pg_hba.conf",
    "3D000": "create the database, or correct its name in the dsn",
    "3F000": "create the schema, or correct its name",
}
# libpq tells of a connection that was refused in words alone, so these are the server's.
_REFUSED_AT_THE_DOOR = {
    "password authentication failed": "28P01", "no password supplied": "28P01", "no pg_hba.conf entry": "28000",
    "is not permitted to log in": "28000", "permission denied for database": "42501",
}  # fmt: skip
_CREATE = """CREATE TABLE IF NOT EXISTS {} (
    delivery text NOT NULL, shard text NOT NULL, shard_name text NOT NULL, sequence bigint NOT NULL,
    sub_sequence bigint NOT NULL, chunk text NOT NULL, refused text NOT NULL, moved timestamptz NOT NULL,
    PRIMARY KEY (delivery, shard))"""
_COLUMNS = """SELECT a.attname, b.typname, b.typcategory
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
    JOIN pg_type b ON b.oid = coalesce(nullif(t.typbasetype, 0), t.oid)
    WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
    ORDER BY a.attnum"""


class PostgresSink:
    """A row for each record, whose value is an object: its members go to the columns of the same names.

    dsn: as libpq takes it, "dbname=shop" or "postgresql://…". table: in `schema`, or where the search path leads.
    columns: names, or {column: "path.of.members"}; a missing member is then NULL. None: what the table has; a missing
    member is the column's default, and one without a column is left out. conflict_columns: of a unique index: a row
    whose key is there replaces it, and of several in a chunk the last one counts. progress: a table beside it, made
    when it is missing; delete a delivery's rows there to have its records written again. connections_max: at most.

    There are no names of objects here, so a range is one chunk. Raises InvalidUse, MissingLibrary.
    """

    takes: Literal["values"] = "values"

    def __init__(
        self, dsn: str, *, table: str, schema: str | None = None,
        columns: Sequence[str] | Mapping[str, str] | None = None, conflict_columns: Sequence[str] = (),
        progress: str = PROGRESS, connections_max: int = 4,
    ) -> None:
        self._library, self._sql = library("psycopg", "postgres"), library("psycopg.sql", "postgres")
        for name, given in (("columns", columns), ("conflict_columns", conflict_columns)):
            if isinstance(given, str):
                raise InvalidUse(f"{name} is {given!r}, one text", try_=f'{name}=["{given}"]', argument=name)
        if columns is not None and (not columns or set(conflict_columns).difference(columns)):
            raise InvalidUse("columns lacks what rows are told apart by" if columns else "columns is empty",
                             try_="name every column that is written", argument="columns")  # fmt: skip
        if connections_max < 1:
            raise InvalidUse(f"connections_max must be at least 1, got {connections_max}", try_="connections_max=4",
                             argument="connections_max")  # fmt: skip
        try:
            given = self._library.conninfo.conninfo_to_dict(dsn)
        except self._library.Error as cause:
            raise InvalidUse(f"the dsn is none: {_first_line(cause)}", try_='"dbname=shop" or "postgresql://…"',
                             argument="dsn") from cause  # fmt: skip
        self._dsn = self._library.conninfo.make_conninfo(dsn, **{k: v for k, v in _DEFAULTS.items() if k not in given})
        self._columns = columns if columns is None or isinstance(columns, Mapping) else {name: name for name in columns}
        self._conflict = tuple(conflict_columns)
        place = (schema,) if schema is not None else ()
        self._table = self._sql.Identifier(*place, table)
        self._progress = self._sql.Identifier(*place, progress)
        self._connections_max = connections_max
        self._idle: list[Any] = []
        self._room: Any = None
        self._executor: RealExecutor | None = None
        self._told: set[str] = set()       # members without a column, each named once in the log

    async def open(self) -> None:
        """Connections are made as they are needed."""
        self._room = asyncio.Semaphore(self._connections_max)
        self._executor = RealExecutor(self._connections_max)

    async def write(self, chunk: Chunk) -> list[Refused]:
        """Raises SinkMisused for what only a person can put right, else what psycopg raises."""
        try:
            async with self._connected() as connection, connection.transaction() as transaction:
                await self._execute(connection, "SET CONSTRAINTS ALL IMMEDIATE")       # else they fail the commit
                stored, known, before = await self._locked(connection, chunk)
                if stored >= chunk.end:
                    log.info("delivery.written_before delivery=%s shard=%s chunk=%s", chunk.delivery, chunk.shard,
                             chunk.id)  # fmt: skip
                    refused = before if known == chunk.id else []
                    raise self._library.Rollback(transaction)
                refused = await self._write_rows(connection, chunk, stored)
                await self._move(connection, chunk, refused)
        except self._library.Error as error:
            misused = self._misused(error)
            if misused is None:
                raise
            raise misused from error
        return refused

    async def close(self) -> None:
        """Connections and threads end."""
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.close()
        if self._executor is not None:
            self._executor.close()
            self._executor = None

    # ---- connections -----------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Any]:
        """One for this chunk alone. After any error it is closed: the next chunk has a fresh one."""
        assert self._room is not None, "it is open"
        async with self._room:
            connection = self._idle.pop() if self._idle else await self._connect()
            try:
                yield connection
            except BaseException:
                idle, self._idle = self._idle, []      # the server that ended one has ended these as well, as a rule
                for each in (connection, *idle):
                    await each.close()
                raise
            if self._executor is None:
                await connection.close()
            else:
                self._idle.append(connection)

    async def _connect(self) -> Any:
        # Statements are not prepared: behind a pooler the next one may meet another server process.
        connection = await self._library.AsyncConnection.connect(self._dsn, autocommit=True, prepare_threshold=None)
        try:
            # Positions move once a chunk is committed, so that has to mean on disk.
            await self._execute(connection, "SELECT set_config('synchronous_commit', 'on', false) "
                                            "WHERE current_setting('synchronous_commit') = 'off'")  # fmt: skip
            found = "SELECT 1 WHERE to_regclass(%s) IS NOT NULL"
            if not await self._execute(connection, found, self._named(self._progress)):
                async with connection.transaction():
                    await self._execute(connection, "SELECT pg_advisory_xact_lock(%s)", _LOCK)
                    await connection.execute(self._sql.SQL(_CREATE).format(self._progress))
        except BaseException:
            await connection.close()
            raise
        return connection

    @staticmethod
    async def _execute(connection: Any, statement: Any, *values: Any) -> list[Any]:
        cursor = await connection.execute(statement, values or None)
        rows: list[Any] = await cursor.fetchall() if cursor.description is not None else []
        return rows

    @staticmethod
    def _named(identifier: Any) -> str:
        text: str = identifier.as_string(None)
        return text

    # ---- progress --------------------------------------------------------------------------------------------

    async def _locked(self, connection: Any, chunk: Chunk) -> tuple[Place, str, list[Refused]]:
        """How far the shard came, the last chunk, and what was refused of it; the row is this transaction's now."""
        key = (chunk.delivery, chunk.shard_uuid.hex())     # a stream that is made again has other shards of these names
        await self._execute(
            connection, self._sql.SQL("INSERT INTO {} VALUES (%s, %s, %s, -1, 0, '', '[]', now()) "
                                      "ON CONFLICT DO NOTHING").format(self._progress), *key, chunk.shard,
        )  # fmt: skip
        [(sequence, sub_sequence, known, refused)] = await self._execute(
            connection, self._sql.SQL("SELECT sequence, sub_sequence, chunk, refused FROM {} "
                                      "WHERE delivery = %s AND shard = %s FOR UPDATE").format(self._progress), *key,
        )  # fmt: skip
        return (sequence, sub_sequence), known, [Refused(*each) for each in json.loads(refused)]

    async def _move(self, connection: Any, chunk: Chunk, refused: list[Refused]) -> None:
        told = json.dumps([[each.index, each.code, each.message.replace("\x00", "")] for each in refused])
        await self._execute(
            connection, self._sql.SQL("UPDATE {} SET sequence = %s, sub_sequence = %s, chunk = %s, refused = %s, "
                                      "moved = now() WHERE delivery = %s AND shard = %s").format(self._progress),
            *chunk.end, chunk.id, told, chunk.delivery, chunk.shard_uuid.hex(),
        )  # fmt: skip

    # ---- rows ------------------------------------------------------------------------------------------------

    async def _write_rows(self, connection: Any, chunk: Chunk, stored: Place) -> list[Refused]:
        """Those from `stored` on: whoever moved the position back may cut a range where another did not end."""
        assert self._executor is not None, "it is open"
        first = 0
        if stored > chunk.start:
            while first < len(chunk.records) and _place(chunk.records[first]) < stored:
                first += 1
        columns = await self._columns_there(connection)
        made = await self._executor.run(runs, chunk.values, first, columns, self._columns, bool(self._conflict))
        for name in made.unknown - self._told:
            log.warning("delivery.member_without_column delivery=%s table=%s member=%s: it is left out", chunk.delivery,
                        self._named(self._table), name)  # fmt: skip
        self._told |= made.unknown
        refused = list(made.refused)
        for run in made.runs:
            refused += await self._bisected(connection, run)
        return sorted(refused, key=lambda each: each.index)

    async def _columns_there(self, connection: Any) -> dict[str, Column]:
        """Of the table as it is now. Raises SinkMisused when there is none."""
        name = self._named(self._table)
        there = {row[0]: Column(row[0], row[1], row[2]) for row in await self._execute(connection, _COLUMNS, name)}
        if not there:
            raise self._told_off("42P01", f"there is no table {name}")
        lacking = [column for column in (*(self._columns or ()), *self._conflict) if column not in there]
        if lacking:
            raise self._told_off("42703", f"the table {name} has no column {lacking[0]}")
        return there

    async def _bisected(self, connection: Any, run: Run) -> list[Refused]:
        """Everything but the rows that the server refuses, which are found by halves."""
        refused, left = [], [(0, len(run.lines))]
        while left:
            start, end = left.pop()
            try:
                async with connection.transaction():
                    await self._copy(connection, run, start, end)
            except self._library.Error as error:
                if not (error.sqlstate or "").startswith(_DATA_CLASSES):
                    raise
                if end - start == 1:
                    refused.append(Refused(run.indices[start], error.sqlstate, _first_line(error)))
                else:
                    middle = (start + end) // 2
                    left += [(middle, end), (start, middle)]       # the first half first: of a key the last row counts
        return refused

    async def _copy(self, connection: Any, run: Run, start: int, end: int) -> None:
        sql = self._sql
        columns = sql.SQL(", ").join(map(sql.Identifier, run.columns))
        target, listed, trailing = self._table, columns, False
        if self._conflict:
            target, trailing = sql.Identifier("pg_temp", "streamkit_rows"), True
            listed = sql.SQL("{}, streamkit_row").format(columns)
            await connection.execute(sql.SQL("CREATE TEMPORARY TABLE streamkit_rows ON COMMIT DROP AS SELECT {}, "
                                             "0 AS streamkit_row FROM {} WITH NO DATA").format(columns, self._table))
        statement = sql.SQL("COPY {} ({}) FROM STDIN WITH (FORMAT text, ENCODING 'UTF8')").format(target, listed)
        async with connection.cursor() as cursor, cursor.copy(statement) as copy:
            for at in range(start, end, _PIECE_ROWS):
                lines = run.lines[at : min(at + _PIECE_ROWS, end)]
                if trailing:
                    lines = [b"%b\t%d" % (line, at + number) for number, line in enumerate(lines)]
                await copy.write(b"\n".join(lines) + b"\n")
        if self._conflict:
            await connection.execute(self._upsert(run, columns))
            await connection.execute("DROP TABLE pg_temp.streamkit_rows")

    def _upsert(self, run: Run, columns: Any) -> Any:
        sql = self._sql
        key = sql.SQL(", ").join(map(sql.Identifier, self._conflict))
        changed = [column for column in run.columns if column not in self._conflict]
        change = sql.SQL("NOTHING")
        if changed:
            change = sql.SQL("UPDATE SET {}").format(sql.SQL(", ").join(
                sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(column)) for column in changed
            ))  # fmt: skip
        # Keys with a NULL in them are never equal to another, so each of them stands for itself.
        alone = sql.SQL("CASE WHEN {} THEN streamkit_row END").format(sql.SQL(" OR ").join(
            sql.SQL("{} IS NULL").format(sql.Identifier(column)) for column in self._conflict
        ))  # fmt: skip
        return sql.SQL(
            "INSERT INTO {table} ({columns}) SELECT DISTINCT ON ({key}, {alone}) {columns} FROM pg_temp.streamkit_rows "
            "ORDER BY {key}, {alone}, streamkit_row DESC ON CONFLICT ({key}) DO {change}"
        ).format(table=self._table, columns=columns, key=key, alone=alone, change=change)

    # ---- errors ----------------------------------------------------------------------------------------------

    def _misused(self, error: Any) -> SinkMisused | None:
        """What a person must put right; None for what passes."""
        code, text = error.sqlstate or "", _first_line(error)
        if not code and isinstance(error, self._library.OperationalError):
            whole = str(error)
            code = next((state for words, state in _REFUSED_AT_THE_DOOR.items() if words in whole), "")
            if not code and "FATAL" in whole and whole.rstrip().endswith("does not exist"):
                code = "28000" if 'role "' in whole else "3D000"
            text = " ".join(whole.split())[:_MESSAGE_CHARACTERS_MAX]
        return self._told_off(code, text) if code.startswith(_MISUSES) else None

    @staticmethod
    def _told_off(code: str, text: str) -> SinkMisused:
        hint = _HINTS.get(code, "look at the table, its columns and the rights of this user")
        return SinkMisused(f"PostgreSQL refuses: {text}", try_=hint, sink="postgres", told=code)


def _place(record: Any) -> Place:
    return record.sequence, record.sub_sequence or 0


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:_MESSAGE_CHARACTERS_MAX]
