"""Consumer, Worker and Reader as users run them: threads, real files, an embedded node."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import streamkit.session
from streamkit._core.batch import Batch
from streamkit.consumer.handler import Context
from streamkit.consumer.reader import AsyncReader
from streamkit.errors import InvalidPosition, InvalidUse, StreamNotFound
from streamkit.session import Session


@pytest.fixture
def session(tmp_path: Path):
    with streamkit.session.open(str(tmp_path / "data"), {"streams.auto_create": False}) as session:
        session.client.create_stream("s", shards=2, durability="os")
        yield session


def put(session: Session, count: int, first: int = 0) -> None:
    with session.producer("s") as producer:
        for number in range(first, first + count):
            producer.put({"id": number}, key=f"k{number}")


def collecting(session: Session, count: int, **options: Any):
    consumer = session.consumer("s", application="app", start="trim_horizon", **options)
    seen: list[int] = []
    done = threading.Event()

    @consumer.handler
    def handle(value: dict, ctx: Context) -> None:
        seen.append(value["id"])
        if len(seen) >= count:
            done.set()

    return consumer, seen, done


def test_start_and_stop_in_the_background(session):
    put(session, 500)
    consumer, seen, done = collecting(session, 500)

    with consumer:
        assert done.wait(20)
        assert consumer.running and len(consumer.shards) == 2

    assert sorted(seen) == list(range(500)) and not consumer.running
    lag = consumer.lag()
    assert (lag.records, lag.ms, lag.workers) == (0, 0, ()) and len(lag.shards) == 2


def test_a_second_start_goes_on_where_the_first_stopped(session):
    put(session, 100)
    consumer, seen, done = collecting(session, 100)
    with consumer:
        assert done.wait(20)
    done.clear()
    put(session, 1, first=100)

    with consumer:
        assert done.wait(20)

    assert sorted(seen) == list(range(101))


async def test_serve_runs_coroutine_handlers_on_the_callers_loop(session):
    await asyncio.to_thread(put, session, 300)
    consumer = session.consumer("s", application="app", start="trim_horizon")
    loops: set[Any] = set()
    seen: list[int] = []
    done = asyncio.Event()

    @consumer.handler
    async def handle(value: dict) -> None:
        loops.add(asyncio.get_running_loop())
        seen.append(value["id"])
        if len(seen) == 300:
            done.set()

    serving = asyncio.create_task(consumer.serve())
    await done.wait()
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving

    assert loops == {asyncio.get_running_loop()}
    assert (await asyncio.to_thread(consumer.lag)).records == 0


def test_run_ends_in_order_at_a_signal(session):
    put(session, 50)
    consumer, seen, done = collecting(session, 50)

    def signal_when_done() -> None:
        assert done.wait(20)
        os.kill(os.getpid(), signal.SIGTERM)

    helper = threading.Thread(target=signal_when_done)
    helper.start()
    consumer.run()
    helper.join()

    assert sorted(seen) == list(range(50)) and consumer.lag().records == 0


def test_batches_are_pulled_and_count_as_done_when_the_next_is_asked_for(session):
    put(session, 200)
    consumer = session.consumer("s", application="app", start="trim_horizon", batch_records_max=50)
    taken: list[Batch] = []
    for batch in consumer.batches():
        taken.append(batch)
        if sum(map(len, taken)) >= 200:
            break

    values = [record.value["id"] for batch in taken for record in batch]
    assert sorted(values) == list(range(200))
    assert consumer.lag().records == len(taken[-1]), "the batch in hand when the loop was left comes again"


def test_an_error_that_ends_the_worker_is_raised_by_stop(session):
    consumer = session.consumer("nowhere", application="app", start="trim_horizon")
    consumer.handler(lambda value: None)
    consumer.start()

    with pytest.raises(StreamNotFound, match="nowhere"):
        consumer._ending.result(20)
    with pytest.raises(StreamNotFound):
        consumer.stop()


def test_starting_twice_is_refused(session):
    consumer, _, _ = collecting(session, 1)
    with consumer, pytest.raises(InvalidUse, match="running already"):
        consumer.start()


# ---- readers ---------------------------------------------------------------------------------------------


def test_a_reader_reads_to_the_present_end_and_again_from_the_start(session):
    put(session, 300)
    reader = session.reader("s", start="trim_horizon", until="latest")

    for _ in range(2):
        assert sorted(record.value["id"] for record in reader) == list(range(300))
    assert session.reader("s", start="latest", until="latest").to_arrow().num_rows == 0


def test_a_reader_gives_arrow_tables(session):
    put(session, 300)

    table = session.reader("s", start="trim_horizon", until="latest").to_arrow()

    assert table.column_names == ["sequence", "arrived", "time", "key", "data"] and table.num_rows == 300
    assert session.reader("s", start="trim_horizon").to_arrow(limit=17).num_rows == 17
    assert session.reader("s", start="trim_horizon", limit=5).to_arrow().num_rows == 5
    with pytest.raises(InvalidUse, match="a table needs an end"):
        session.reader("s", start="trim_horizon").to_arrow()


def test_a_reader_starts_and_ends_at_a_time_or_a_sequence_number(session):
    put(session, 20)
    records = list(session.reader("s", start="trim_horizon", until="latest"))
    future = datetime.now(UTC) + timedelta(hours=1)
    one = records[3]

    assert list(session.reader("s", start=future, until="latest")) == []
    assert len(list(session.reader("s", start="trim_horizon", until=future))) == 20
    at = next(iter(session.reader("s", start={one.shard: one.sequence_number}, until="latest")))
    assert (at.shard, at.sequence) == (one.shard, one.sequence)


def test_a_reader_of_a_missing_stream_says_so(session):
    with pytest.raises(StreamNotFound):
        list(session.reader("nowhere", start="trim_horizon", until="latest"))


@pytest.mark.parametrize("bad", [{"until": "tomorrow"}, {"start": "soon"}])
def test_an_impossible_position_is_refused_at_once(bad):
    with pytest.raises(InvalidPosition):
        AsyncReader("s", **({"start": "latest"} | bad))


def test_values_are_checked_against_the_readers_annotation(session):
    put(session, 3)

    values = [record.value for record in session.reader("s", start="trim_horizon", limit=3, annotation=dict[str, int])]

    assert sorted(value["id"] for value in values) == [0, 1, 2]
