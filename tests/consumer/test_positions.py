"""Positions in each store: claimed, guarded, moved with what was written, or not at all."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pytest

import streamkit
from streamkit.consumer.exactly_once import Claim, ShardSink, SinkPosition
from streamkit.errors import InvalidUse, LeaseLost, MissingLibrary
from tests.postgres import Postgres

CLAIM = Claim(application="app", stream="s", shard="shardId-000000000000", shard_uuid="aa" * 16, application_ms=1_000,
              lease_epoch=3, place=(5, 0))  # fmt: skip
KINDS = ("sqlite", "duckdb", "files", "postgres")


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


class Store:
    """One kind of store, with a table or a folder of its own."""

    def __init__(self, kind: str, folder: Path, server: Postgres | None) -> None:
        self.kind = kind
        self.folder = folder
        self._dsn = server.dsn if server is not None else ""
        self._table = f"results_{abs(hash(str(folder)))}"
        if server is not None:
            with psycopg.connect(self._dsn, autocommit=True) as database:
                database.execute(f"CREATE TABLE {self._table} (value BIGINT)")
        if kind == "duckdb":
            with duckdb.connect(str(folder / "db")) as database:
                database.execute(f"CREATE TABLE {self._table} (value BIGINT)")
        if kind == "sqlite":
            sqlite3.connect(folder / "db").execute(f"CREATE TABLE {self._table} (value BIGINT)")

    def position(self) -> SinkPosition:
        if self.kind == "sqlite":
            return streamkit.SQLitePosition(str(self.folder / "db"))
        if self.kind == "duckdb":
            return streamkit.DuckDBPosition(str(self.folder / "db"))
        if self.kind == "files":
            return streamkit.FilePosition(str(self.folder / "out"), suffix=".txt")
        return streamkit.PostgresPosition(self._dsn, table=f"positions{self._table}")

    def write(self, connection: Any, value: int) -> None:
        if self.kind == "files":
            connection.write(b"%d\n" % value)
        else:
            connection.execute(f"INSERT INTO {self._table} VALUES ({value})")

    def values(self) -> list[int]:
        if self.kind == "files":
            return sorted(int(line) for path in self.folder.rglob("*.txt") for line in path.read_text().split())
        opened: dict[str, Callable[[], Any]] = {
            "sqlite": lambda: sqlite3.connect(self.folder / "db"),
            "duckdb": lambda: duckdb.connect(str(self.folder / "db")),
            "postgres": lambda: psycopg.connect(self._dsn),
        }
        database = opened[self.kind]()
        try:
            return sorted(row[0] for row in database.execute(f"SELECT value FROM {self._table}").fetchall())
        finally:
            database.close()


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    server = request.getfixturevalue("postgres") if request.param == "postgres" else None
    return Store(request.param, tmp_path, server)


def write(store: Store, sink: ShardSink, value: int, start: tuple[int, int], end: tuple[int, int]) -> None:
    sink.begin()
    try:
        store.write(sink.connection, value)
        sink.advance(start, end)
        sink.commit()
    except BaseException:
        sink.rollback()
        raise


def test_a_store_that_knows_nothing_takes_the_coordinators_position(store: Store) -> None:
    sink = store.position().open(CLAIM)

    assert sink.claim() == (5, 0)
    sink.close()
    assert store.position().open(replace(CLAIM, lease_epoch=4, place=(0, 0))).claim() == (5, 0)


def test_writes_and_position_go_together(store: Store) -> None:
    sink = store.position().open(CLAIM)
    sink.claim()

    write(store, sink, 1, (5, 0), (8, 0))
    write(store, sink, 2, (8, 0), (9, 3))
    sink.begin()
    store.write(sink.connection, 3)
    sink.advance((9, 3), (12, 0))
    sink.rollback()
    sink.close()

    assert store.values() == [1, 2]
    assert store.position().open(replace(CLAIM, lease_epoch=4)).claim() == (9, 3)


def test_an_older_owner_is_refused_once_a_newer_has_claimed(store: Store) -> None:
    zombie, owner = store.position().open(CLAIM), store.position().open(replace(CLAIM, lease_epoch=4))
    zombie.claim()
    write(store, zombie, 1, (5, 0), (6, 0))
    assert owner.claim() == (6, 0)

    with pytest.raises(LeaseLost):
        write(store, zombie, 2, (6, 0), (7, 0))
    with pytest.raises(LeaseLost):
        zombie.claim()
    write(store, owner, 3, (6, 0), (7, 0))

    assert store.values() == [1, 3]
    zombie.close()
    owner.close()


def test_a_position_that_somebody_moved_is_not_written_over(store: Store) -> None:
    sink = store.position().open(CLAIM)
    sink.claim()

    with pytest.raises(LeaseLost) as lost:
        write(store, sink, 1, (4, 0), (6, 0))

    assert "(5, 0)" in str(lost.value)
    assert store.values() == []
    sink.close()


def test_an_application_that_was_made_again_begins_anew(store: Store) -> None:
    first = store.position().open(CLAIM)
    first.claim()
    write(store, first, 1, (5, 0), (8, 0))
    again = store.position().open(replace(CLAIM, application_ms=2_000, lease_epoch=1, place=(0, 0)))

    assert again.claim() == (0, 0)
    with pytest.raises(LeaseLost):
        write(store, first, 2, (8, 0), (9, 0))
    first.close()
    again.close()


def test_shards_and_applications_do_not_meet(store: Store) -> None:
    sinks = [
        store.position().open(claim)
        for claim in (CLAIM, replace(CLAIM, application="other"), replace(CLAIM, shard="shardId-000000000001"),
                      replace(CLAIM, stream="t"), replace(CLAIM, shard_uuid="bb" * 16))
    ]  # fmt: skip
    for number, sink in enumerate(sinks):
        assert sink.claim() == (5, 0)
        write(store, sink, number, (5, 0), (6 + number, 0))

    assert [sink.claim() for sink in sinks] == [(6 + number, 0) for number in range(5)]
    for sink in sinks:
        sink.close()


@pytest.mark.parametrize("store", ["sqlite", "duckdb", "postgres"], indirect=True)
def test_a_handler_that_ends_the_transaction_is_told(store: Store) -> None:
    sink = store.position().open(CLAIM)
    sink.claim()
    sink.begin()
    store.write(sink.connection, 1)
    if store.kind == "postgres":
        with pytest.raises(psycopg.ProgrammingError):      # psycopg itself refuses
            sink.connection.commit()
    else:
        sink.connection.execute("ROLLBACK")
        with pytest.raises(InvalidUse, match="ended the transaction"):
            sink.advance((5, 0), (6, 0))
    sink.rollback()
    sink.close()

    assert store.values() == []


def test_a_file_whose_position_was_not_written_any_more_counts(tmp_path: Path) -> None:
    position = streamkit.FilePosition(str(tmp_path), suffix=".txt")
    sink = position.open(CLAIM)
    sink.claim()
    Path(position.folder_of(CLAIM), f"{5:020d}-{9:020d}.txt").write_bytes(b"1\n")        # died between the two
    Path(position.folder_of(CLAIM), ".123-abc.staged").write_bytes(b"half")

    assert position.open(replace(CLAIM, lease_epoch=4)).claim() == (9, 0)
    assert [path.name for path in Path(position.folder_of(CLAIM)).glob("*.staged")] == []


def test_names_that_are_no_file_names_stay_below_the_folder(tmp_path: Path) -> None:
    position = streamkit.FilePosition(str(tmp_path / "out"))
    position.open(replace(CLAIM, application="../../etc", stream="a/b")).claim()

    assert [path.name for path in tmp_path.iterdir()] == ["out"]


async def test_coroutines_get_an_asynchronous_connection(postgres: Postgres) -> None:
    sink = streamkit.PostgresPosition(postgres.dsn, table="asynchronous").open_async(CLAIM)
    assert await sink.claim() == (5, 0)
    for end in (7, 9):
        await sink.begin()
        assert isinstance(sink.connection, psycopg.AsyncConnection)
        await sink.connection.execute("SELECT 1")
        await sink.advance((end - 2, 0), (end, 0))
        await (sink.commit() if end == 7 else sink.rollback())
    late = streamkit.PostgresPosition(postgres.dsn, table="asynchronous").open_async(replace(CLAIM, lease_epoch=9))

    assert await late.claim() == (7, 0)
    with pytest.raises(LeaseLost):
        await sink.claim()
    await sink.close()
    await late.close()


async def test_many_workers_make_the_table_at_once(postgres: Postgres) -> None:
    def claim(number: int) -> tuple[int, int]:
        sink = streamkit.PostgresPosition(postgres.dsn, table="made_once").open(replace(CLAIM, stream=f"s{number}"))
        try:
            return sink.claim()
        finally:
            sink.close()

    assert await asyncio.gather(*(asyncio.to_thread(claim, number) for number in range(8))) == [(5, 0)] * 8


@pytest.mark.parametrize(("library", "make", "extra"), [
    ("psycopg", lambda: streamkit.PostgresPosition("dbname=x"), "postgres"),
    ("duckdb", lambda: streamkit.DuckDBPosition("x"), "duckdb"),
])  # fmt: skip
def test_a_missing_library_names_the_command(
    library: str, make: Callable[[], object], extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)

    with pytest.raises(MissingLibrary) as missing:
        make()

    assert missing.value.try_ == f"pip install 'streamkit[{extra}]'"


def test_a_table_has_a_plain_name() -> None:
    with pytest.raises(InvalidUse):
        streamkit.SQLitePosition("x", table="positions; DROP TABLE users")


@pytest.mark.parametrize("form", ["thread", "loop"])
def test_processes_that_open_a_new_sqlite_file_at_one_moment_all_get_it(form, tmp_path):
    """Six wait for one word, and open each of 100 new files together; some were told that it is locked."""
    command = [sys.executable, "-m", "tests.consumer.sqlite_openers", str(tmp_path), "6", "100", form]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)

    assert ended.stdout.split() == ["600"], ended.stderr
