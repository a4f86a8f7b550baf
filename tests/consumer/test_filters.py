"""Conditions of readers, consumers and handlers: on values with `feed`, and on a node."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streamkit import session
from streamkit._core.batch import Batch, Record
from streamkit.consumer.consumer import Consumer
from streamkit.consumer.handler import Context
from streamkit.consumer.processor import RecordProcessor
from streamkit.consumer.worker import Worker
from streamkit.errors import ApplicationNotFound, InvalidQuery, InvalidUse
from streamkit.session import Session
from tests.consumer.bottle import Bottle, consumer


class Refund(msgspec.Struct):
    n: int
    kind: str


def made(**options: Any) -> Consumer:
    settings: dict[str, Any] = {"application": "app", "start": "trim_horizon", "dead_letter": "dead"} | options
    return Consumer("s", **settings)


VALUES = [{"n": n, "kind": ("order", "refund", "note")[n % 3]} for n in range(9)]


# ---- handlers, without a node ----------------------------------------------------------------------------


def test_a_consumers_condition_passes_records_over_and_counts_them() -> None:
    consumer = made(where="data.n >= 4 AND data.kind <> 'note'")
    got: list[int] = []

    @consumer.handler
    def handle(value: dict) -> None:
        got.append(value["n"])

    report = consumer.feed([*VALUES, b"{no json"])

    assert got == [4, 6, 7]
    assert (report.handled, report.filtered, report.undecided, report.checkpoint) == (3, 7, 1, 10)


def test_the_first_handler_whose_condition_holds_gets_a_record_as_its_annotation_says() -> None:
    consumer = made()
    got: list[Any] = []

    @consumer.handler(where="data.kind = 'refund'")
    def refund(value: Refund, ctx: Context) -> None:
        got.append(("refund", value.n, ctx.record.sequence, ctx.record.value.n))

    @consumer.handler
    def rest(record: Record[Any]) -> None:
        got.append(("rest", record.value["n"], record.sequence))

    @consumer.handler(where="data.n > 3 AND data.kind <> 'note'")
    def late(data: bytes) -> None:
        got.append(("late", msgspec.json.decode(data)["n"]))

    report = consumer.feed(VALUES)

    assert got == [
        ("rest", 0, 0), ("refund", 1, 1, 1), ("rest", 2, 2), ("rest", 3, 3), ("refund", 4, 4, 4), ("rest", 5, 5),
        ("late", 6), ("refund", 7, 7, 7), ("rest", 8, 8),
    ]
    assert report.handled == 9


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_what_no_handler_takes_is_skipped_only_if_that_was_chosen(kind: str) -> None:
    def consume(**options: Any) -> tuple[list[int], Any]:
        consumer = made(**options)
        got: list[int] = []

        def one(value: dict) -> None:
            got.append(value["n"])

        async def one_async(value: dict) -> None:
            got.append(value["n"])

        consumer.handler(where="data.kind = 'refund'")(one if kind == "def" else one_async)
        return got, consumer.feed(VALUES)

    got, skipped = consume(unhandled="skip")
    assert (got, skipped.handled, skipped.unhandled, skipped.checkpoint) == ([1, 4, 7], 3, 6, 9)

    got, dead = consume()
    assert (got, dead.handled, dead.unhandled) == ([1, 4, 7], 3, 0)
    assert {failure.reason for failure in dead.dead_letter} == {"no handler's condition holds for it"}
    assert (len(dead.dead_letter), dead.retries) == (6, 0)

    got, blocked = consume(dead_letter=None)
    assert (got, blocked.checkpoint, blocked.blocked.record.sequence) == ([], 0, 0)


def test_a_handler_that_fails_is_tried_again_with_its_record_alone() -> None:
    consumer = made()
    calls: list[int] = []

    @consumer.handler(where="data.kind = 'refund'")
    def refund(value: dict) -> None:
        calls.append(value["n"])
        if value["n"] == 4 and calls.count(4) < 3:
            raise RuntimeError("not yet")

    @consumer.handler
    def rest(value: dict) -> None:
        calls.append(value["n"])

    report = consumer.feed(VALUES)

    assert calls == [0, 1, 2, 3, 4, 4, 4, 5, 6, 7, 8]
    assert (report.handled, report.retries) == (9, 2)


def test_conditions_and_handlers_that_cannot_work_are_refused_at_decoration() -> None:
    consumer = made()

    def one(value: dict) -> None: ...

    async def two(value: dict) -> None: ...

    def batches(batch: Batch[Any]) -> None: ...

    with pytest.raises(InvalidQuery, match=r'unknown name "kind" \(line 1, column 1\)'):
        consumer.handler(where="kind = 'refund'")(one)
    with pytest.raises(InvalidQuery, match="unknown name"):
        made(where="kind = 'refund'")
    with pytest.raises(InvalidUse, match="unhandled must be"):
        made(unhandled="stop")
    with pytest.raises(InvalidUse, match="one by one"):
        consumer.handler(where="size > 1")(batches)
    consumer.handler(one)
    with pytest.raises(InvalidUse, match="'one' handles these records already"):
        consumer.handler(one)
    with pytest.raises(InvalidUse, match="two places"):
        consumer.handler(where="size > 1")(two)
    with pytest.raises(InvalidUse, match="one by one"):
        consumer.handler(where="size > 1")(batches)


def test_there_is_no_one_function_where_conditions_choose() -> None:
    consumer = made()
    consumer.handler(where="size > 1")(lambda value: None)

    with pytest.raises(InvalidUse, match="conditions decide"):
        _ = consumer.decorated


# ---- on a node -------------------------------------------------------------------------------------------


@pytest.fixture
def opened(tmp_path: Path) -> Any:
    with session.open(str(tmp_path / "data")) as made:
        made.client.create_stream("s", shards=2)
        yield made


def put(opened: Session, count: int) -> None:
    with opened.producer("s") as producer:
        for n in range(count):
            producer.put({"n": n, "kind": ("order", "refund", "note")[n % 3]}, key=f"k{n % 5}")


def test_a_reader_gives_out_what_matches_and_counts_it_towards_the_limit(opened: Session) -> None:
    """Acceptance: a filtered read of a real node is the filter of the whole read."""
    put(opened, 3_000)
    whole = [record.value["n"] for record in opened.reader("s", start="trim_horizon", until="latest")]
    refunds = opened.reader("s", start="trim_horizon", until="latest", where="data.kind = 'refund' AND data.n > 30")

    assert sorted(record.value["n"] for record in refunds) == sorted(n for n in whole if n % 3 == 1 and n > 30)
    limited = opened.reader("s", start="trim_horizon", until="latest", where="data.n % 2 = 0", limit=10)
    assert [record.value["n"] % 2 for record in limited] == [0] * 10
    table = opened.reader("s", start="trim_horizon", until="latest", where="key = 'k1'").to_arrow()
    assert set(table.column("key").to_pylist()) == {"k1"}
    assert table.num_rows == 600


def test_a_reader_counts_what_it_cannot_decide(opened: Session) -> None:
    with opened.producer("s", codec="bytes") as producer:
        for value in (b'{"n": 1}', b"{no json", b"\xff"):
            producer.put(value, key="k", headers={"content-type": b"json"})
    reader = opened.reader("s", start="trim_horizon", until="latest", where="data.n = 1")

    assert [record.data for record in reader] == [b'{"n": 1}']
    assert reader.undecided == 2


def test_a_consumers_checkpoint_goes_past_what_it_passed_over(opened: Session) -> None:
    """Acceptance: several handlers on a real node; records that do not match hold up no checkpoint."""
    put(opened, 1_500)
    consumer = opened.consumer(
        "s", application="refunds", start="trim_horizon", where="data.kind <> 'note'", checkpoint_interval_ms=20
    )
    refunds: list[int] = []
    rest: list[int] = []
    done = threading.Event()

    @consumer.handler(where="data.kind = 'refund'")
    def refund(value: dict) -> None:
        refunds.append(value["n"])

    @consumer.handler
    def other(value: dict) -> None:
        rest.append(value["n"])
        if len(rest) == 500:
            done.set()

    consumer.start()
    try:
        assert done.wait(20)
        until_no_lag(consumer)
        assert (consumer.statistics.records, consumer.statistics.filtered) == (1_000, 500)
    finally:
        consumer.stop()
    assert sorted(refunds) == list(range(1, 1_500, 3))
    assert sorted(rest) == list(range(0, 1_500, 3))


def test_a_processors_manual_checkpoints_move_past_batches_without_a_match(opened: Session) -> None:
    class Nothing(RecordProcessor):
        async def process(self, batch: Batch[Any], checkpointer: Any) -> None:
            raise AssertionError("nothing matches")

    put(opened, 300)
    worker = Worker(
        "s", application="none", start="trim_horizon", processor=Nothing, where="key = 'nobody'",
        url=opened._where, checkpoint_interval_ms=20,
    )
    worker.start()
    try:
        until_no_lag(worker)
    finally:
        worker.stop()


def until_no_lag(running: Any) -> None:
    pause = threading.Event()
    for _ in range(400):
        with contextlib.suppress(ApplicationNotFound):       # nobody has joined yet
            lag = running.lag()
            if lag.shards and lag.records == 0:
                return
        pause.wait(0.025)
    raise AssertionError(f"still behind: {running.lag()}")


def test_a_worker_that_is_killed_goes_on_at_the_first_match_it_had_not_finished() -> None:
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s", shards=1)
        seen: list[int] = []

        def handler(value: dict) -> None:
            seen.append(value["n"])

        for name, start in (("w1", 0), ("w2", 100)):
            await bottle.put_together("s", [{"n": n} for n in range(start, start + 100)])
            made = consumer(name, where="data.n % 10 = 9")
            made.handler(handler)
            bottle.start(name, made)
            await bottle.until_done("app")
            bottle.kill(name)
        assert seen == list(range(9, 200, 10))

    Bottle.play(story)
