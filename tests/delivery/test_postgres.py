"""Rows on a real PostgreSQL server: each record once, whoever dies, and bad rows alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec
import psycopg
import pytest

from streamkit.delivery import Buffer, Chunk, Delivery, PostgresSink, Refused
from streamkit.delivery.chunk import Place
from streamkit.delivery.compression import compression
from streamkit.delivery.formats.lines import Lines
from streamkit.delivery.pipeline import Pipeline
from streamkit.errors import InvalidUse, SinkMisused
from streamkit.testing import Node
from tests.delivery.batches import ORIGIN, plan_of, range_of
from tests.postgres import Postgres
from tests.waiting import until


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture
def ask(postgres: Postgres) -> Iterator[Callable[..., list[Any]]]:
    """Run one statement; its rows. Every test begins with an empty schema."""

    def asked(sql: str, *values: Any) -> list[Any]:
        with psycopg.connect(postgres.dsn, autocommit=True) as database:
            cursor = database.execute(sql, values or None)
            return cursor.fetchall() if cursor.description is not None else []

    asked("DROP SCHEMA public CASCADE")
    asked("CREATE SCHEMA public")
    yield asked


def chunk_of(values: list[Any], base: int = 0) -> Chunk:
    gathered = range_of(values, base)
    pipeline = Pipeline(form=Lines(), compression=compression("none", None), template=None, transform=None,
                        takes="values")  # fmt: skip
    [chunk] = pipeline.stage(gathered, plan_of(gathered), ORIGIN).chunks
    return chunk


def numbers(start: int, end: int) -> Chunk:
    return chunk_of([{"value": value} for value in range(start, end)], base=start)


def using(sink: PostgresSink, work: Callable[[], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        await sink.open()
        try:
            return await work()
        finally:
            await sink.close()

    return asyncio.run(run())


def write(sink: PostgresSink, *chunks: Chunk) -> list[list[Refused]]:
    async def each() -> list[list[Refused]]:
        return [await sink.write(chunk) for chunk in chunks]

    found: list[list[Refused]] = using(sink, each)
    return found


def place(ask: Callable[..., list[Any]]) -> Place:
    [(sequence, sub_sequence)] = ask("SELECT sequence, sub_sequence FROM streamkit_progress WHERE delivery = 'lake'")
    return sequence, sub_sequence


def test_rows_and_how_far_the_shard_came_are_there_together(postgres, ask):
    ask("CREATE TABLE sums (value int)")
    write(PostgresSink(postgres.dsn, table="sums"), numbers(0, 10), numbers(10, 12))

    assert ask("SELECT value FROM sums ORDER BY value") == [(value,) for value in range(12)]
    assert place(ask) == (12, 0)


def test_a_chunk_that_comes_again_and_an_older_one_after_a_newer_leave_no_row(postgres, ask):
    ask("CREATE TABLE sums (value int)")
    write(PostgresSink(postgres.dsn, table="sums"), numbers(0, 10), numbers(0, 10), numbers(10, 20), numbers(0, 10))

    assert ask("SELECT count(*), count(DISTINCT value) FROM sums") == [(20, 20)]
    assert place(ask) == (20, 0)


def test_of_two_workers_with_one_chunk_one_writes_it(postgres, ask):
    ask("CREATE TABLE sums (value int)")
    sinks = [PostgresSink(postgres.dsn, table="sums", connections_max=2) for _ in range(2)]

    async def race() -> None:
        for sink in sinks:
            await sink.open()
        await asyncio.gather(*(sink.write(numbers(0, 200)) for sink in sinks for _ in range(3)))
        for sink in sinks:
            await sink.close()

    asyncio.run(race())
    assert ask("SELECT count(*), count(DISTINCT value) FROM sums") == [(200, 200)]


def test_other_deliveries_shards_and_incarnations_of_a_stream_have_places_of_their_own(postgres, ask):
    ask("CREATE TABLE sums (value int)")
    chunk = numbers(0, 3)
    write(PostgresSink(postgres.dsn, table="sums"), chunk, replace(chunk, delivery="another"),
          replace(chunk, shard_uuid=b"\x01" * 16))  # fmt: skip
    assert ask("SELECT count(*) FROM sums") == [(9,)]


def test_a_range_that_begins_before_the_stored_place_leaves_only_its_new_rows(postgres, ask):
    ask("CREATE TABLE sums (value int)")
    write(PostgresSink(postgres.dsn, table="sums"), numbers(0, 10), numbers(7, 15))      # as after `app reset`
    assert ask("SELECT value FROM sums ORDER BY value") == [(value,) for value in range(15)]


def test_bad_rows_stand_alone_and_are_told_again_to_who_comes_next(postgres, ask):
    ask("CREATE TABLE sums (value int PRIMARY KEY CHECK (value <> 700), name varchar(3))")
    values: list[Any] = [{"value": value} for value in range(1000)]
    values[333] = {"value": "three"}
    values[512] = {"value": 511}
    values[800] = {"value": 800, "name": "too long"}
    values[801] = {"value": 801, "name": "a\x00b"}
    values[900] = [1]
    values[901] = {"other": 1}
    chunk = chunk_of(values)
    first, again = write(PostgresSink(postgres.dsn, table="sums"), chunk, chunk)

    assert [(each.index, each.code) for each in first] == [
        (333, "22P02"), (512, "23505"), (700, "23514"), (800, "22001"), (801, "22021"), (900, "not_an_object"),
        (901, "no_such_field"),
    ]  # fmt: skip
    assert again == first and '"three"' in first[0].message
    assert ask("SELECT count(*) FROM sums") == [(993,)]
    assert place(ask) == (1000, 0)


def test_a_constraint_that_waits_for_the_commit_refuses_its_row_alone(postgres, ask):
    ask("CREATE TABLE parents (id int PRIMARY KEY)")
    ask("INSERT INTO parents VALUES (1)")
    ask("CREATE TABLE children (parent int REFERENCES parents DEFERRABLE INITIALLY DEFERRED)")
    [refused] = write(PostgresSink(postgres.dsn, table="children"), chunk_of([{"parent": 1}, {"parent": 2}]))

    assert [(each.index, each.code) for each in refused] == [(1, "23503")]
    assert ask("SELECT parent FROM children") == [(1,)]


class Order(msgspec.Struct):
    id: int
    made: datetime
    tags: list[str]
    item: dict[str, Any]


def test_members_find_their_columns_whatever_their_types(postgres, ask):
    ask('CREATE TABLE "Odd ""Table" ("select" text, number numeric, at timestamptz, words text[], grid int[], a jsonb, '
        "b json, raw bytea, yes bool, said text, twice int GENERATED ALWAYS AS (2) STORED, d int DEFAULT 7)")
    value = {"select": 'a\tb\n\\N "é"', "number": 2**70, "at": datetime(2026, 11, 24, 1, 2, 3, tzinfo=UTC),
             "words": ['say "x"', "\\", None, "NULL", "a,b"], "grid": [[1, 2], [3, 4]], "a": {"x": [1, None]},
             "b": "text", "raw": b"\x00\xff", "yes": True, "said": {"k": [1]}, "twice": 9, "nobody": 1}  # fmt: skip
    chunk = replace(chunk_of([{}, {}]), values=[value, {"said": None}])
    assert write(PostgresSink(postgres.dsn, table='Odd "Table', schema="public"), chunk) == [[]]

    assert ask('SELECT "select", number, at, words, grid, a, b, raw, yes, said, twice, d FROM "Odd ""Table" '
               "WHERE yes") == [(
        value["select"], 2**70, value["at"], value["words"], value["grid"], value["a"], "text", b"\x00\xff", True,
        '{"k":[1]}', 2, 7,
    )]  # fmt: skip
    assert ask('SELECT said, d FROM "Odd ""Table" WHERE yes IS NULL') == [(None, 7)]


def test_structs_and_chosen_paths(postgres, ask):
    ask("CREATE TABLE orders (id bigint DEFAULT 5, made timestamptz, tags text[], city text)")
    made = datetime(2026, 1, 1, tzinfo=UTC)
    chunk = replace(chunk_of([{}, {}]), values=[Order(1, made, ["a"], {"to": {"city": "Oslo"}}), {"tags": []}])
    columns = {"id": "id", "made": "made", "tags": "tags", "city": "item.to.city"}
    assert write(PostgresSink(postgres.dsn, table="orders", columns=columns), chunk) == [[]]

    assert ask("SELECT * FROM orders ORDER BY id") == [(1, made, ["a"], "Oslo"), (None, None, [], None)]


def test_rows_replace_those_of_their_key_and_of_several_the_last_counts(postgres, ask):
    ask("CREATE TABLE stock (item text, shop int, count int CHECK (count >= 0), note text, UNIQUE (item, shop))")
    sink = PostgresSink(postgres.dsn, table="stock", conflict_columns=["item", "shop"])
    first = chunk_of([{"item": "a", "shop": 1, "count": 1, "note": "kept"}, {"item": "a", "shop": 1, "count": 2},
                      {"item": "b", "shop": 1, "count": 3}, {"item": "b", "shop": 1, "count": -1},
                      {"item": None, "shop": 1, "count": 8}, {"item": None, "shop": 1, "count": 9}])  # fmt: skip
    second = chunk_of([{"item": "b", "shop": 1, "count": 5}, {"item": "b", "shop": 1, "count": 4}], base=6)
    refused = write(sink, first, second, first)

    assert [(each.index, each.code) for each in refused[0]] == [(3, "23514")] and refused[1:] == [[], []]
    assert ask("SELECT item, count, note FROM stock ORDER BY item, count") == [
        ("a", 2, "kept"), ("b", 4, None), (None, 8, None), (None, 9, None)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("prepare", "options", "code", "hint"),
    [
        ("SELECT 1", {}, "42P01", "create the table"),
        ("CREATE TABLE sums (value int)", {"columns": ["value", "more"]}, "42703", "add the column"),
        ("CREATE TABLE sums (value int)", {"conflict_columns": ["value"]}, "42P10", "unique index"),
        ("CREATE TABLE sums (value int)", {"dsn": "user=stranger"}, "42501", "grant"),
        ("SELECT 1", {"dsn": "user=nobody_of_that_name"}, "28000", "user"),
        ("SELECT 1", {"dsn": "dbname=nowhere"}, "3D000", "create the database"),
    ],
)
def test_what_only_a_person_can_put_right_says_what_to_do(postgres, ask, prepare, options, code, hint):
    ask("DO $$ BEGIN CREATE ROLE stranger LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    ask("GRANT ALL ON SCHEMA public TO stranger")
    ask(prepare)
    options = dict(options)
    dsn = psycopg.conninfo.make_conninfo(postgres.dsn, **psycopg.conninfo.conninfo_to_dict(options.pop("dsn", "")))

    chunk = chunk_of([{"value": 1, "more": 2}])
    with pytest.raises(SinkMisused, match=hint) as refused:
        write(PostgresSink(dsn, table="sums", **options), chunk)
    assert refused.value.facts["told"] == code


def test_a_password_that_is_wrong_is_told(postgres, ask):
    ask("DO $$ BEGIN CREATE ROLE secret LOGIN PASSWORD 'right'; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    rules = postgres.folder / "data" / "pg_hba.conf"
    rules.write_text("host all secret 127.0.0.1/32 scram-sha-256\n" + rules.read_text())
    ask("SELECT pg_reload_conf()")

    def code() -> str:
        dsn = psycopg.conninfo.make_conninfo(postgres.dsn, user="secret", password="wrong")
        try:
            write(PostgresSink(dsn, table="sums"), numbers(0, 1))
        except SinkMisused as refused:
            return str(refused.facts["told"])
        return ""

    until(lambda: code() == "28P01")       # the server reads its rules when it gets to it


def test_a_failure_that_passes_is_raised_as_it_is_and_the_next_try_has_another_connection(postgres, ask):
    ask("CREATE TABLE sums (value int)")
    sink = PostgresSink(postgres.dsn, table="sums")

    async def story() -> None:
        await sink.write(numbers(0, 1))
        ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'streamkit'")
        with pytest.raises(psycopg.OperationalError):
            await sink.write(numbers(1, 2))
        await sink.write(numbers(1, 2))

    using(sink, story)
    assert ask("SELECT value FROM sums ORDER BY value") == [(0,), (1,)]


def test_a_serialization_failure_is_raised_as_it_is(postgres, ask):
    ask("CREATE TABLE sums (value int)")
    ask("CREATE FUNCTION fail() RETURNS trigger AS $$ BEGIN RAISE EXCEPTION 'later' USING ERRCODE = '40001'; END $$ "
        "LANGUAGE plpgsql")  # fmt: skip
    ask("CREATE TRIGGER failing BEFORE INSERT ON sums FOR EACH ROW EXECUTE FUNCTION fail()")
    with pytest.raises(psycopg.errors.SerializationFailure):
        write(PostgresSink(postgres.dsn, table="sums"), numbers(0, 4))
    ask("DROP TRIGGER failing ON sums")
    assert write(PostgresSink(postgres.dsn, table="sums"), numbers(0, 4)) == [[]]
    assert ask("SELECT count(*) FROM sums") == [(4,)]


def test_a_server_that_is_killed_while_rows_come_in_has_them_once_when_it_is_back(postgres, ask):
    ask("CREATE TABLE sums (value int)")
    ask("CREATE FUNCTION wait() RETURNS trigger AS $$ BEGIN IF NEW.value = 5 THEN PERFORM pg_advisory_lock(42); "
        "END IF; RETURN NEW; END $$ LANGUAGE plpgsql")  # fmt: skip
    ask("CREATE TRIGGER waiting BEFORE INSERT ON sums FOR EACH ROW EXECUTE FUNCTION wait()")
    sink = PostgresSink(postgres.dsn, table="sums")

    async def story() -> None:
        with psycopg.connect(postgres.dsn, autocommit=True) as holding:
            holding.execute("SELECT pg_advisory_lock(42)")
            writing = asyncio.ensure_future(sink.write(numbers(0, 10)))
            inside = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            await asyncio.to_thread(until, lambda: ask(inside))
            postgres.kill()
            with pytest.raises(psycopg.OperationalError):
                await writing
        postgres.start()
        assert ask("SELECT count(*) FROM sums") == [(0,)]
        await sink.write(numbers(0, 10))
        await sink.write(numbers(0, 10))

    using(sink, story)
    assert ask("SELECT count(*) FROM sums") == [(10,)]


def test_who_loses_the_lease_while_it_writes_leaves_nothing_and_blocks_nobody(postgres, ask):
    ask("CREATE TABLE sums (value int)")
    sink = PostgresSink(postgres.dsn, table="sums")

    async def story() -> None:
        await sink.write(numbers(0, 1))
        with psycopg.connect(postgres.dsn) as holding:
            holding.execute("LOCK TABLE sums")
            writing = asyncio.ensure_future(sink.write(numbers(1, 2)))
            await asyncio.to_thread(until, lambda: ask("SELECT 1 FROM pg_locks WHERE NOT granted"))
            writing.cancel()
            await asyncio.wait([writing])
            assert writing.cancelled()
        await sink.write(numbers(1, 2))

    using(sink, story)
    assert ask("SELECT value FROM sums ORDER BY value") == [(0,), (1,)]


def test_a_delivery_waits_for_its_table_and_goes_on_when_it_was_renamed_and_put_back(postgres, ask):
    with Node() as node:
        node.client.create_stream("orders")
        made = Delivery("lake", source="orders", sink=PostgresSink(postgres.dsn, table="sums"), url=node.url,
                        buffer=Buffer(seconds_max=0.01))  # fmt: skip
        with made, node.producer("orders") as producer:
            for value in range(3):
                producer.put({"value": value}, key=str(value))
            until(lambda: any(each.code == "sink_misused" for each in list(made.progress.trouble.values())))
            ask("CREATE TABLE sums (value int)")
            until(lambda: ask("SELECT count(*) FROM sums") == [(3,)])
            ask("ALTER TABLE sums RENAME TO sums_before")
            producer.put({"value": 3}, key="3")
            until(lambda: bool(made.progress.trouble))
            ask("ALTER TABLE sums_before RENAME TO sums")
            until(lambda: ask("SELECT count(*) FROM sums") == [(4,)])
        assert ask("SELECT value FROM sums ORDER BY value") == [(value,) for value in range(4)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"columns": "value"}, "one text"), ({"columns": []}, "empty"), ({"connections_max": 0}, "at least 1"),
        ({"columns": ["a"], "conflict_columns": ["b"]}, "lacks"), ({"dsn": "no such words"}, "dsn"),
    ],
)  # fmt: skip
def test_a_sink_refuses_what_can_never_work(options, words):
    with pytest.raises(InvalidUse, match=words):
        PostgresSink(**({"dsn": "dbname=x", "table": "t"} | options))
