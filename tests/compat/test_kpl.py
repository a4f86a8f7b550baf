"""The KPL's producer on a real node: futures, flush, destroy, metrics, as a program written for it uses them."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from streamkit.compat import KinesisProducer, UserRecord, UserRecordFailedException
from streamkit.consumer.reader import Reader
from streamkit.errors import Closed, InvalidRequest, RecordTooLarge, Throttled, TimedOut
from streamkit.runtime.real import LoopThread
from streamkit.session import Session
from tests.producer.fake_broker import FakeBroker


def fake(broker: FakeBroker, configuration: dict[str, object] | None = None, **settings: Any) -> KinesisProducer:
    return KinesisProducer(configuration, client=broker, loop_thread=LoopThread.shared(), **settings)


def test_records_are_added_and_their_futures_tell_where_they_are(session: Session) -> None:
    with KinesisProducer(url=session._where) as producer:
        futures = [producer.add_user_record("s", f"k{i % 3}", b"%d" % i) for i in range(100)]
        futures.append(producer.add_user_record(UserRecord("s", "k", b"100", explicit_hash_key=str(2**127))))
        futures.append(producer.add_user_record("s", "k", bytearray(b"101"), 5))
        results = [future.result(20) for future in futures]
        assert producer.get_outstanding_records_count() == 0
        assert producer.get_outstanding_records_count("s") == 0
        assert producer.get_oldest_record_time_in_millis() == 0
        assert {metric.name: metric.sum for metric in producer.get_metrics()}["UserRecordsPut"] == 102
        assert [metric.dimensions for metric in producer.get_metrics("UserRecordsReceived")] == [{"StreamName": "s"}]

    assert all(result.successful and result.shard_id == "shardId-000000000000" for result in results)
    assert len({result.sequence_number for result in results}) == 102
    assert all(len(result.attempts) == 1 and result.attempts[0].successful for result in results)
    found = {}
    for record in Reader("s", url=session._where, start="trim_horizon"):
        found[record.sequence_number] = record.data
        if len(found) == 102:
            break
    assert {r.sequence_number: b"%d" % i for i, r in enumerate(results)} == found


def test_flush_starts_and_flush_sync_waits(session: Session) -> None:
    with KinesisProducer({"RecordMaxBufferedTime": 60_000}, url=session._where) as producer:
        futures = [producer.add_user_record("s", "k", b"x") for _ in range(2_000)]
        producer.flush()
        producer.flush("s")
        assert futures[-1].result(20).successful
        late = producer.add_user_record("s", "k", b"x")
        producer.flush_sync(20)
        assert late.done()


def test_a_properties_file_configures_a_producer(session: Session, tmp_path: Path) -> None:
    file = tmp_path / "kpl.properties"
    file.write_text("RecordTtl=45000\nMaxUserRecordSize=100\n")
    with KinesisProducer(file, url=session._where) as producer:
        assert producer.native._outbox.config.delivery_timeout_ms == 45_000
        with pytest.raises(RecordTooLarge):
            producer.add_user_record("s", "k", b"x" * 101)
        with pytest.raises(InvalidRequest):
            producer.add_user_record("s", "", b"x")
        assert producer.add_user_record("s", "k", b"x" * 100).result(20).successful


def test_a_future_is_awaited_in_the_loop_that_asks(session: Session) -> None:
    with KinesisProducer(url=session._where) as producer:
        async def add() -> list[bool]:
            futures = [producer.add_user_record("s", "k", b"x") for _ in range(50)]
            return [(await future).successful for future in futures]

        assert asyncio.run(add()) == [True] * 50


def test_each_try_is_told() -> None:
    broker = FakeBroker(shards=1)
    broker.faults = lambda number: Throttled("slow down", retry_after_ms=20) if number < 2 else None
    producer = fake(broker)
    result = producer.add_user_record("orders", "k", b"x").result(10)
    throttled = producer.get_metrics("ErrorsByCode")
    producer.destroy()

    assert [attempt.successful for attempt in result.attempts] == [False, False, True]
    assert [attempt.error_code for attempt in result.attempts] == ["throttled", "throttled", None]
    assert result.attempts[0].error_message == "slow down"
    assert result.attempts[1].delay >= 19
    assert [(metric.sum, metric.dimensions["ErrorCode"]) for metric in throttled] == [(2, "throttled")]


def test_a_record_that_is_throttled_fails_at_once_when_told_so_and_brings_itself_along() -> None:
    broker = FakeBroker(shards=1)
    broker.faults = lambda number: Throttled("slow down", retry_after_ms=60_000)
    producer = fake(broker, {"FailIfThrottled": True, "ReturnUserRecordOnFailure": "true"})
    with pytest.raises(UserRecordFailedException, match="slow down") as caught:
        producer.add_user_record("orders", "k", b"x", 7).result(10)
    producer.flush_sync(10)                          # does not raise what the future told
    producer.destroy()

    assert isinstance(caught.value.__cause__, Throttled)
    assert caught.value.user_record == UserRecord("orders", "k", b"x", 7)
    assert not caught.value.result.successful
    assert [attempt.error_code for attempt in caught.value.result.attempts] == ["throttled"]


def test_a_record_out_of_time_is_called_expired() -> None:
    broker = FakeBroker(shards=1)
    broker.faults = lambda number: Throttled("slow down", retry_after_ms=1)
    producer = fake(broker, {"RecordTtl": 150})
    error = producer.add_user_record("orders", "k", b"x").exception(10)
    assert error is not None
    assert isinstance(error.__cause__, TimedOut)
    assert error.result.attempts[-1].error_code == "Expired"
    assert [metric.sum for metric in producer.get_metrics("UserRecordExpired")] == [1]
    producer.destroy()


def test_destroy_ends_every_future_at_once_and_says_so() -> None:
    broker = FakeBroker(shards=1)
    broker.held = []
    producer = fake(broker)
    futures = [producer.add_user_record("orders", "k", b"x") for _ in range(100)]
    told = threading.Event()
    futures[-1].add_done_callback(lambda future: told.set())
    time.sleep(0.05)                       # long enough for an answer, were there one
    assert producer.get_outstanding_records_count() == 100
    assert 40 <= producer.get_oldest_record_time_in_millis() < 60_000
    with pytest.raises(TimeoutError):
        futures[0].result(0.01)
    with pytest.raises(TimeoutError):
        producer.flush_sync(0.01)

    began_s = time.monotonic()
    producer.destroy()
    producer.destroy()                               # once is enough, twice is no harm

    assert time.monotonic() - began_s < 5
    assert told.wait(5)
    assert all(isinstance(future.exception(1).__cause__, Closed) for future in futures)
    with pytest.raises(Closed):
        producer.add_user_record("orders", "k", b"x")
