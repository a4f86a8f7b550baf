"""Handlers that write into a store whose transaction holds the position: once, whatever fails."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pytest

import streamkit
from streamkit import Batch, Checkpointer, Context, Record, RecordProcessor, RetryPolicy, ShardContext, Worker
from streamkit.consumer.consumer import Consumer
from streamkit.consumer.exactly_once import Claim
from streamkit.errors import ApplicationNotFound, InvalidUse
from streamkit.session import Session
from tests.postgres import Postgres
from tests.waiting import until

MARKS = 2                                  # each shard begins with a mark of its leader, which has a sequence
QUICK = RetryPolicy(attempts_max=3, first_ms=1, last_ms=5)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    with streamkit.open(str(tmp_path / "data"), {"streams.auto_create": False}) as session:
        session.client.create_stream("s", shards=2, durability="os")
        yield session


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "sink.sqlite"
    with sqlite3.connect(path) as made:
        made.execute("CREATE TABLE results (value INTEGER)")
    return path


def put(session: Session, first: int, last: int) -> None:
    with session.producer("s") as producer:
        producer.put_many([streamkit.PutEntry(number, key=f"k{number % 16}") for number in range(first, last)])


def consumer(session: Session, sink: Any, **options: Any) -> Consumer:
    settings = {"application": "app", "start": "trim_horizon", "retry": QUICK, "checkpoint_interval_ms": 50} | options
    return session.consumer("s", sink=sink, **settings)


def is_done(running: Any) -> bool:
    try:
        return running.lag().records == 0
    except ApplicationNotFound:
        return False


def until_done(running: Any) -> None:
    until(lambda: is_done(running))


def rows(path: Path) -> list[int]:
    return sorted(row[0] for row in sqlite3.connect(path).execute("SELECT value FROM results"))


def positions(path: Path) -> dict[str, int]:
    return dict(sqlite3.connect(path).execute("SELECT shard, next_sequence FROM streamkit_positions"))


def test_a_function_on_records_writes_each_once_and_the_coordinator_shows_the_lag(session, database):
    put(session, 0, 500)
    running = consumer(session, streamkit.SQLitePosition(str(database)))

    @running.handler
    def handle(value: int, ctx: Context) -> None:
        ctx.connection.execute("INSERT INTO results VALUES (?)", (value,))

    with running:
        until_done(running)

    assert rows(database) == list(range(500))
    assert sum(positions(database).values()) == 500 + MARKS


def test_a_failing_record_takes_nothing_with_it_and_its_neighbours_count_once(session, database):
    session.client.create_stream("dead")
    put(session, 0, 60)
    running = consumer(session, streamkit.SQLitePosition(str(database)), dead_letter="dead")
    tried: list[int] = []

    @running.handler
    def handle(value: int, ctx: Context) -> None:
        ctx.connection.execute("INSERT INTO results VALUES (?)", (value,))
        if value in (7, 31):
            tried.append(value)
            raise ValueError("odd")

    with running:
        until_done(running)

    assert rows(database) == [value for value in range(60) if value not in (7, 31)]
    assert tried.count(7) == 3 and tried.count(31) == 3
    assert sum(positions(database).values()) == 60 + MARKS
    assert sorted(record.value for record in session.reader("dead", start="trim_horizon", until="latest")) == [7, 31]


def test_a_failing_batch_is_halved_and_rolled_back_each_time(session, database):
    put(session, 0, 100)
    running = consumer(session, streamkit.SQLitePosition(str(database)), on_exhausted="skip")

    @running.handler
    def handle(batch: Batch[int], ctx: Context) -> None:
        for record in batch:
            ctx.connection.execute("INSERT INTO results VALUES (?)", (record.value,))
            if record.value == 42:
                raise ValueError("the answer")

    with running:
        until_done(running)

    assert rows(database) == [value for value in range(100) if value != 42]


def test_coroutine_handlers_and_processors_have_the_connection_too(session, database):
    put(session, 0, 50)
    running = consumer(session, streamkit.SQLitePosition(str(database)))

    @running.handler
    async def handle(record: Record[int], ctx: Context) -> None:
        await asyncio.sleep(0)
        ctx.connection.execute("INSERT INTO results VALUES (?)", (record.value,))

    begun: list[ShardContext] = []

    class Halves(RecordProcessor):
        def initialize(self, ctx: ShardContext) -> None:
            begun.append(ctx)

        def process(self, batch: Batch[Any], checkpointer: Checkpointer) -> None:
            checkpointer.connection.executemany(
                "INSERT INTO results VALUES (?)", [(1000 + record.value,) for record in batch]
            )

    worker = Worker("s", application="halves", start="trim_horizon", processor=Halves, url=session._where,
                    sink=streamkit.SQLitePosition(str(database)), checkpoint_interval_ms=50)  # fmt: skip
    with running, worker:
        until_done(running)
        until_done(worker)

    assert rows(database) == [*range(50), *range(1000, 1050)]
    assert len(begun) == 2


def test_the_sinks_position_wins_over_the_coordinators(session, database):
    put(session, 0, 40)
    sink = streamkit.SQLitePosition(str(database))

    def collect() -> list[int]:
        running = consumer(session, sink)
        seen: list[int] = []

        @running.handler
        def handle(value: int, ctx: Context) -> None:
            seen.append(value)
            ctx.connection.execute("INSERT INTO results VALUES (?)", (value,))

        with running:
            until(lambda: bool(positions_or_none(database)) and sum(positions(database).values()) == 40 + MARKS)
        return seen

    collect()
    with sqlite3.connect(database) as edited:      # a copy from before, restored
        edited.execute("UPDATE streamkit_positions SET next_sequence = 3")
    again = collect()

    assert len(again) == 40 - 2 * (3 - 1)


def test_a_stale_owner_writes_nothing_after_the_next_has_claimed(session, postgres):
    """Acceptance: zombie (sink with a guard by lease epoch). The worker still believes that it owns its shards."""
    with psycopg.connect(postgres.dsn, autocommit=True) as made:
        made.execute("CREATE TABLE stale (value BIGINT)")
    put(session, 0, 100)
    entered, claimed = threading.Event(), threading.Event()
    sink = streamkit.PostgresPosition(postgres.dsn, table="stale_positions")
    running = consumer(session, sink)

    @running.handler
    def handle(batch: Batch[int], ctx: Context) -> None:
        with ctx.connection.cursor() as cursor:
            cursor.executemany("INSERT INTO stale VALUES (%s)", [(record.value,) for record in batch])
        entered.set()
        assert claimed.wait(20)            # stopped inside its transaction, while another takes over

    with running:
        assert entered.wait(10)
        known: list[Any] = []
        with psycopg.connect(postgres.dsn, autocommit=True) as read:
            while len(known) < 2:
                known = read.execute("SELECT stream, shard, shard_uuid, application_ms FROM stale_positions").fetchall()
        for stream, shard, uuid, application_ms in known:
            newer = Claim(application="app", stream=stream, shard=shard, shard_uuid=uuid,
                          application_ms=application_ms, lease_epoch=1_000_000, place=(0, 0))  # fmt: skip
            owner = sink.open(newer)
            assert owner.claim() == (0, 0)
            owner.close()
        claimed.set()
        until(lambda: not running.shards or (running.statistics.records == 0 and entered.is_set()))
        time.sleep(0.3)                    # time for a stale write, were there one

    with psycopg.connect(postgres.dsn) as read:
        assert read.execute("SELECT count(*) FROM stale").fetchone() == (0,)
        assert read.execute("SELECT max(next_sequence), min(lease_epoch) FROM stale_positions").fetchone() == (
            0, 1_000_000,
        )  # fmt: skip
    assert running.lag().records in (100, 101, 102)    # the marks that two leaders began with may be passed


def positions_or_none(path: Path) -> dict[str, int]:
    try:
        return positions(path)
    except sqlite3.OperationalError:
        return {}


def test_postgres_that_is_killed_and_comes_back_costs_time_only(session, postgres):
    with psycopg.connect(postgres.dsn, autocommit=True) as made:
        made.execute("CREATE TABLE killed (value BIGINT)")
    put(session, 0, 2_000)
    running = consumer(session, streamkit.PostgresPosition(postgres.dsn), batch_records_max=50)
    begun = threading.Event()

    @running.handler
    def handle(batch: Batch[int], ctx: Context) -> None:
        begun.set()
        with ctx.connection.cursor() as cursor:
            cursor.executemany("INSERT INTO killed VALUES (%s)", [(record.value,) for record in batch])
        time.sleep(0.005)                  # so that the database goes away in the middle of the work

    with running:
        assert begun.wait(10)
        time.sleep(0.05)                   # some batches are in by then, others are not
        postgres.kill()
        time.sleep(0.1)                    # and it stays away for a while
        postgres.start()
        until_done(running)

    with psycopg.connect(postgres.dsn) as read:
        assert [row[0] for row in read.execute("SELECT value FROM killed ORDER BY value")] == list(range(2_000))
    assert running.statistics.failures == 0        # the records did nothing wrong


def test_an_async_handler_writes_to_postgres_on_its_own_loop(session, postgres):
    with psycopg.connect(postgres.dsn, autocommit=True) as made:
        made.execute("CREATE TABLE awaited (value BIGINT)")
    put(session, 0, 300)
    running = consumer(session, streamkit.PostgresPosition(postgres.dsn))

    @running.handler
    async def handle(value: int, ctx: Context) -> None:
        await ctx.connection.execute("INSERT INTO awaited VALUES (%s)", (value,))

    with running:
        until_done(running)

    with psycopg.connect(postgres.dsn) as read:
        assert [row[0] for row in read.execute("SELECT value FROM awaited ORDER BY value")] == list(range(300))


def test_duckdb_takes_the_writes_of_all_shards(session, tmp_path):
    path = str(tmp_path / "sink.duckdb")
    duckdb.connect(path).execute("CREATE TABLE results (value BIGINT)")
    put(session, 0, 1_000)
    running = consumer(session, streamkit.DuckDBPosition(path))

    @running.handler
    def handle(batch: Batch[int], ctx: Context) -> None:
        ctx.connection.executemany("INSERT INTO results VALUES (?)", [(record.value,) for record in batch])

    with running:
        until_done(running)

    with duckdb.connect(path) as read:
        assert [row[0] for row in read.execute("SELECT value FROM results ORDER BY value").fetchall()] == list(
            range(1_000)
        )


def test_files_appear_whole_and_once(session, tmp_path):
    put(session, 0, 1_000)
    running = consumer(session, streamkit.FilePosition(str(tmp_path / "out"), suffix=".txt"), batch_records_max=100)

    @running.handler
    def handle(batch: Batch[int], ctx: Context) -> None:
        for record in batch:
            ctx.connection.write(b"%d\n" % record.value)

    with running:
        until_done(running)

    written = [int(line) for path in (tmp_path / "out").rglob("*.txt") for line in path.read_text().split()]
    assert sorted(written) == list(range(1_000))


def test_what_can_never_work_is_refused_at_once(session, database):
    sink = streamkit.SQLitePosition(str(database))
    with pytest.raises(InvalidUse, match="nothing to checkpoint by hand"):
        consumer(session, sink, checkpoint="manual")
    with pytest.raises(InvalidUse, match="got str"):
        consumer(session, "dbname=shop")
    with pytest.raises(InvalidUse, match="no transaction"):
        next(consumer(session, sink).batches())


def test_a_checkpoint_by_hand_or_a_connection_without_a_sink_is_told(session, database):
    put(session, 0, 1)
    told: list[str] = []
    with_sink = consumer(session, streamkit.SQLitePosition(str(database)))
    without = session.consumer("s", application="plain", start="trim_horizon")

    @with_sink.handler
    def checkpointing(value: int, ctx: Context) -> None:
        with pytest.raises(InvalidUse, match="the position is kept in the transaction") as refused:
            ctx.checkpoint()
        told.append(str(refused.value))

    @without.handler
    def connecting(value: int, ctx: Context) -> None:
        with pytest.raises(InvalidUse, match="no sink") as refused:
            _ = ctx.connection
        told.append(str(refused.value))

    with with_sink, without:
        until_done(with_sink)
        until_done(without)

    assert len(told) == 2


def test_feed_writes_to_the_sink_and_leaves_positions_alone(database):
    running = Consumer("s", application="app", start="trim_horizon", retry=QUICK, on_exhausted="skip",
                       sink=streamkit.SQLitePosition(str(database)))  # fmt: skip

    @running.handler
    def handle(value: int, ctx: Context) -> None:
        ctx.connection.execute("INSERT INTO results VALUES (?)", (value,))
        if value == 2:
            raise ValueError("two")

    for _ in range(2):
        report = running.feed([1, 2, 3])
        assert (report.handled, report.skipped) == (2, 1)

    assert rows(database) == [1, 1, 3, 3]
    assert positions_or_none(database) == {}
