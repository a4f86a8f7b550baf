"""The sender against a broker that obeys the producer table: once, in order, whatever gets lost."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamkit._core.batch import read_header
from streamkit._core.outcome import ColumnsHandle
from streamkit.errors import (
    BufferFull,
    Closed,
    ConnectionFailed,
    InvalidRequest,
    OutcomeUnknown,
    PutFailed,
    RecordTooLarge,
    SequenceGap,
    ShardNotFound,
    StreamkitError,
    StreamNotFound,
    Throttled,
    TimedOut,
    UnknownProducer,
    WrongShard,
)
from streamkit.producer.config import ProducerConfig
from streamkit.producer.producer import AsyncProducer
from streamkit.protocol.messages import ProducerGiven
from tests.producer.fake_broker import LOSE, LOSE_ANSWER, FakeBroker


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries follow within a turn or two; nothing here depends on how long they take."""
    fields = ProducerConfig.__init__.__kwdefaults__
    assert fields is not None
    monkeypatch.setitem(fields, "retry_first_ms", 0)
    monkeypatch.setitem(fields, "retry_most_ms", 0)


def producer(broker: FakeBroker, **options: Any) -> AsyncProducer:
    return AsyncProducer("orders", client=broker, **options)  # type: ignore[arg-type]


def assert_in_order(broker: FakeBroker, count: int) -> None:
    by_key: dict[str, list[int]] = {}
    for key, value in broker.stored():
        by_key.setdefault(key, []).append(int(value))
    assert sum(map(len, by_key.values())) == count
    assert all(values == sorted(set(values)) for values in by_key.values())


async def test_an_idle_producer_sends_at_once_and_a_busy_one_fills_batches() -> None:
    broker = FakeBroker(shards=1)
    async with producer(broker, linger_ms=60_000) as p:
        await (await p.put(b"0", key="k"))
        assert len(broker.batches) == 1
        broker.held = []
        for i in range(1, 100):
            await p.put(b"%d" % i, key="k")
            await asyncio.sleep(0)
        assert len(broker.batches) == 2              # one travels, the rest waits for company
        broker.release()
        await p.flush()

    assert len(broker.batches) == 3
    assert_in_order(broker, 100)


async def test_no_more_than_five_batches_of_a_shard_travel() -> None:
    broker = FakeBroker(shards=1)
    async with producer(broker, batch_bytes_max=100) as p:
        broker.held = []
        for i in range(200):
            await p.put(b"%d" % i, key="k")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert broker.in_flight_most == 5
        broker.release()
        await p.flush()
    assert_in_order(broker, 200)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), rate=st.floats(0.05, 0.7), batch_bytes_max=st.integers(60, 600))
def test_whatever_gets_lost_each_record_is_stored_once_and_in_order(
    seed: int, rate: float, batch_bytes_max: int
) -> None:
    draw = random.Random(seed)
    broker = FakeBroker(shards=2)
    troubles: list[Any] = [LOSE, LOSE_ANSWER, Throttled("slow down", retry_after_ms=0)]
    broker.faults = lambda number: draw.choice(troubles) if draw.random() < rate else None

    async def run() -> list[Any]:
        async with producer(broker, batch_bytes_max=batch_bytes_max, linger_ms=0) as p:
            handles = []
            for i in range(150):
                handles.append(await p.put(b"%d" % i, key=f"k{i % 5}"))
                if draw.random() < 0.2:
                    await asyncio.sleep(0)
            await p.flush()
            return [handle.result() for handle in handles]

    results = asyncio.run(run())

    assert_in_order(broker, 150)
    places = Counter((result.shard, result.sequence_number) for result in results if result.sequence_number)
    assert set(places.values()) == {1}
    assert broker.producers == 1


async def test_a_repeat_is_byte_identical() -> None:
    broker = FakeBroker(shards=1)
    sent: list[bytes] = []
    take = broker._take
    broker._take = lambda uuid, batch: sent.append(batch) or take(uuid, batch)  # type: ignore[method-assign, func-returns-value]
    broker.faults = lambda number: LOSE_ANSWER if number < 3 else None
    async with producer(broker) as p:
        result = await p.put_and_wait(b"v" * 1_000, key="k")

    assert result.duplicate
    assert len(sent) == 4
    assert len(set(sent)) == 1


async def test_a_definite_failure_leaves_no_hole_for_those_behind_it() -> None:
    broker = FakeBroker(shards=1)
    broker.faults = lambda number: RecordTooLarge("no", size_bytes=1, limit_bytes=0) if number == 1 else None
    async with producer(broker, batch_bytes_max=1) as p:
        handles = [await p.put(b"%d" % i, key="k") for i in range(10)]
        with pytest.raises(PutFailed) as caught:
            await p.flush()

    assert caught.value.facts["count"] == 1
    assert isinstance(caught.value.failures[0], RecordTooLarge)
    assert [handle.exception() is not None for handle in handles] == [i == 1 for i in range(10)]
    assert [int(value) for _, value in broker.stored()] == [0, 2, 3, 4, 5, 6, 7, 8, 9]
    assert broker.producers == 1
    assert [read_header(batch).producer_sequence for batch in broker.batches] == list(range(9))


async def test_doubt_about_one_batch_is_settled_and_the_rest_keeps_its_identity() -> None:
    broker = FakeBroker(shards=1)
    broker.faults = lambda number: StreamkitError("defect") if number == 0 else None
    async with producer(broker, batch_bytes_max=1) as p:
        handles = [await p.put(b"%d" % i, key="k") for i in range(4)]
        with pytest.raises(PutFailed):
            await p.flush()

    assert [handle.exception() is not None for handle in handles] == [True, False, False, False]
    assert [int(value) for _, value in broker.stored()] == [1, 2, 3]
    assert broker.producers == 1
    assert {read_header(batch).producer_id for batch in broker.batches} == {1}


async def test_a_shard_that_forgot_the_producer_is_told_a_new_name() -> None:
    broker = FakeBroker(shards=1)
    async with producer(broker) as p:
        await p.put_and_wait(b"0", key="k")
        broker.known.clear()
        await p.put_and_wait(b"1", key="k")

    assert_in_order(broker, 2)
    assert broker.producers == 2


async def test_a_batch_in_doubt_is_not_repeated_under_a_new_name() -> None:
    broker = FakeBroker(shards=1)
    async with producer(broker) as p:
        await p.put_and_wait(b"0", key="k")
        broker.faults = lambda number: LOSE_ANSWER if number == 1 else UnknownProducer("?") if number == 2 else None
        handle = await p.put(b"1", key="k")
        with pytest.raises(OutcomeUnknown) as caught:
            await handle
        await p.put_and_wait(b"2", key="k")

    assert caught.value.facts["sent"] is True
    assert caught.value.facts["token"].endswith(".0")

    assert_in_order(broker, 3)


async def test_a_shard_that_lost_acknowledged_batches_is_told_a_new_name() -> None:
    broker = FakeBroker(shards=1)
    async with producer(broker) as p:
        await p.put_and_wait(b"0", key="k")
        broker.faults = lambda number: SequenceGap("gap", expected=0, got=1) if number == 1 else None
        await p.put_and_wait(b"1", key="k")

    assert broker.producers == 2
    assert_in_order(broker, 2)


@pytest.mark.parametrize("kind", [WrongShard, StreamNotFound])
async def test_a_missing_shard_is_looked_for_and_tried_three_times_more(kind: type[StreamkitError]) -> None:
    broker = FakeBroker(shards=1)
    broker.faults = lambda number: kind("gone")
    async with producer(broker) as p:
        handle = await p.put(b"0", key="k")
        with pytest.raises(kind):
            await handle

    assert broker.refreshes >= 1
    assert broker.number == 4


@pytest.mark.parametrize("fault", [LOSE, Throttled("wait", retry_after_ms=0)])
async def test_a_record_ends_at_its_deadline_and_is_certainly_not_stored(fault: Any) -> None:
    broker = FakeBroker(shards=1)
    broker.cancel_faults = lambda number: None
    async with producer(broker, delivery_timeout_ms=5) as p:
        broker.faults = lambda number: fault
        handle = await p.put(b"0", key="k")
        with pytest.raises(TimedOut) as caught:
            await handle
        assert caught.value.facts["sent"] is False
        assert caught.value.facts.get("cancelled", False) is (fault is LOSE)
        broker.faults = lambda number: None
        await p.put_and_wait(b"1", key="k")

    assert broker.producers == 1
    assert [value for _, value in broker.stored()] == [b"1"]


class TurnedClock:
    """Stands still until a test turns it."""

    def __init__(self) -> None:
        self.ms = 0

    def now_ms(self) -> int:
        return self.ms

    def monotonic_ms(self) -> int:
        return self.ms


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_the_time_out_counts_from_put_not_from_when_the_batch_was_sealed() -> None:
    broker = FakeBroker(shards=1)
    clock = TurnedClock()
    broker.runtime = replace(broker.runtime, clock=clock)
    async with producer(broker, linger_ms=60_000, delivery_timeout_ms=1_000) as p:
        await p.put_and_wait(b"0", key="k")
        broker.held = []
        travelling = await p.put(b"1", key="k")
        await turns()
        waiting = await p.put(b"2", key="k")
        await turns()
        clock.ms += 1_000
        later = await p.put(b"3" * 600_000, key="k")     # fills the open batch
        await turns()
        broker.release()
        await travelling
        with pytest.raises(TimedOut) as caught:
            await waiting
        await later

    assert caught.value.facts["sent"] is False
    assert caught.value.facts["timeout_ms"] == 1_000
    assert [value[:1] for _, value in broker.stored()] == [b"0", b"1", b"3"]
    assert broker.producers == 1


async def test_a_broker_that_asks_for_patience_does_not_outlast_the_deadline() -> None:
    broker = FakeBroker(shards=1)
    broker.faults = lambda number: Throttled("wait", retry_after_ms=10**9)
    async with producer(broker, delivery_timeout_ms=5) as p:
        handle = await p.put(b"0", key="k")
        with pytest.raises(TimedOut):
            await handle


async def test_records_that_wait_for_an_identity_end_at_their_deadline() -> None:
    broker = FakeBroker(shards=1)
    given = broker.new_producer

    async def refuse(name: str = "") -> ProducerGiven:
        raise ConnectionFailed("no", address="fake", sent=True)

    async with producer(broker, delivery_timeout_ms=5) as p:
        await p.put_and_wait(b"0", key="k")
        broker.known.clear()
        broker.new_producer = refuse  # type: ignore[method-assign]
        handle = await p.put(b"1", key="k")
        with pytest.raises(TimedOut) as caught:
            await handle
        broker.new_producer = given  # type: ignore[method-assign]
        await p.put_and_wait(b"2", key="k")

    assert caught.value.facts["sent"] is False
    assert [value for _, value in broker.stored()] == [b"0", b"2"]


@pytest.mark.parametrize("made_anew", [False, True])
async def test_a_stream_that_was_deleted_is_named(made_anew: bool) -> None:
    broker = FakeBroker(shards=1)
    async with producer(broker) as p:
        await p.put_and_wait(b"0", key="k")
        broker.faults = lambda number: ShardNotFound("gone")
        if made_anew:
            other = replace(broker.description.shards[0], uuid=b"n" * 16)
            broker.description = replace(broker.description, shards=(other,))
        else:
            broker.description = replace(broker.description, name="another")
        handle = await p.put(b"1", key="k")
        with pytest.raises(StreamNotFound) as caught:
            await handle

    assert ("new producer" in caught.value.try_) is made_anew


def test_an_event_loop_that_has_ended_leaves_no_record_undecided() -> None:
    broker = FakeBroker(shards=1)
    p = producer(broker, linger_ms=60_000)

    async def put(value: bytes) -> Any:
        broker.held = []
        return await p.put(value, key="k")

    lost = asyncio.run(put(b"0"))
    late = asyncio.run(put(b"1"))
    assert isinstance(late.exception(), Closed)
    assert isinstance(lost.exception(), Closed)
    with pytest.raises(Closed):
        asyncio.run(put(b"2"))
    asyncio.run(p.close())


async def test_without_idempotence_one_batch_travels_at_a_time() -> None:
    broker = FakeBroker(shards=1)
    broker.faults = lambda number: LOSE if number == 2 else None
    async with producer(broker, idempotent=False, batch_bytes_max=1) as p:
        for i in range(20):
            await p.put(b"%d" % i, key="k")

    assert broker.in_flight_most == 1
    assert broker.producers == 0
    assert_in_order(broker, 20)


# ---- buffer, flush, close --------------------------------------------------------------------------------


async def test_put_waits_for_room() -> None:
    broker = FakeBroker(shards=1)
    async with producer(broker, buffer_bytes_max=2_000) as p:
        broker.held = []
        waiting = asyncio.ensure_future(p.put_many([]))
        await waiting
        puts = [asyncio.ensure_future(p.put(b"v" * 500, key="k")) for _ in range(10)]
        for _ in range(20):
            await asyncio.sleep(0)
        assert 0 < sum(put.done() for put in puts) < 10
        assert p.stats()["buffered_bytes"] <= 2_000
        broker.release()
        await asyncio.gather(*puts)
        await p.flush()
    assert len(broker.stored()) == 10


async def test_put_raises_when_the_buffer_may_not_wait() -> None:
    broker = FakeBroker(shards=1)
    async with producer(broker, buffer_bytes_max=2_000, on_full="raise") as p:
        broker.held = []
        with pytest.raises(BufferFull) as caught:
            for _ in range(10):
                await p.put(b"v" * 500, key="k")
        assert caught.value.facts["limit_bytes"] == 2_000
        broker.release()


async def test_a_record_that_never_fits_the_buffer_is_refused_at_once() -> None:
    async with producer(FakeBroker(), buffer_bytes_max=100) as p:
        with pytest.raises(BufferFull):
            await p.put(b"v" * 500, key="k")


async def test_columns_wait_for_room_too() -> None:
    import pyarrow

    broker = FakeBroker(shards=2)
    async with producer(broker, buffer_bytes_max=3_000) as p:
        values = [b"%d" % i for i in range(500)]
        keys = [f"k{i % 5}" for i in range(500)]
        handle = await p.put_columns(pyarrow.array(keys), pyarrow.chunked_array([values[:200], values[200:]]))
        assert await handle is handle
        assert set(handle.states) == {1}
    assert_in_order(broker, 500)


async def test_columns_report_the_rows_that_failed() -> None:
    import pyarrow

    broker = FakeBroker(shards=1, record_bytes_max=10)
    async with producer(broker) as p:
        handle = await p.put_columns(pyarrow.array(["k", "", "k", "k"]), pyarrow.array([b"0", b"1", b"v" * 20, b"3"]))
        with pytest.raises(PutFailed) as caught:
            await handle
    assert [type(error) for error in caught.value.failures] == [InvalidRequest, RecordTooLarge]
    assert list(handle.states) == [1, 2, 2, 1]


async def test_a_row_that_never_fits_the_buffer_fails_alone() -> None:
    import pyarrow

    broker = FakeBroker(shards=1)
    async with producer(broker, buffer_bytes_max=1_000) as p:
        handle = await p.put_columns(pyarrow.array(["k"] * 3), pyarrow.array([b"0", b"v" * 2_000, b"2"]))
        with pytest.raises(PutFailed) as caught:
            await handle
    assert [type(error) for error in caught.value.failures] == [BufferFull]
    assert list(handle.states) == [1, 2, 1]


async def test_a_bulk_put_that_is_broken_off_decides_every_row() -> None:
    import pyarrow

    broker = FakeBroker(shards=1)
    handles: list[ColumnsHandle] = []
    async with producer(broker, buffer_bytes_max=1_000) as p:
        await p.put_and_wait(b"0", key="k")
        broker.held = []
        put = asyncio.ensure_future(p.put_columns(pyarrow.array(["k"] * 100), pyarrow.array([b"v" * 50] * 100)))
        await turns()
        put.cancel()
        await turns()
        handles += [each for each in p._outbox.targets["orders"].sender.failures if isinstance(each, ColumnsHandle)]
        broker.release()
        with pytest.raises(PutFailed):
            await p.flush()

    (handle,) = handles
    assert handle.settled == 100
    assert 0 < len(broker.stored()) - 1 == 100 - handle.failed


async def test_refused_rows_are_raised_by_flush_when_nobody_looked() -> None:
    import pyarrow

    async with producer(FakeBroker(shards=1)) as p:
        await p.put_columns(pyarrow.array(["k", ""]), pyarrow.array([b"0", b"1"]))
        with pytest.raises(PutFailed) as caught:
            await p.flush()
    assert caught.value.facts["count"] == 1


async def test_a_producer_without_a_stream_of_its_own_flushes() -> None:
    broker = FakeBroker(shards=1)
    async with AsyncProducer(client=broker, buffer_bytes_max=2_000) as p:  # type: ignore[arg-type]
        for i in range(20):
            await p.put(b"%d" % i * 200, key="k", stream="orders")
        await p.flush()
    assert len(broker.stored()) == 20


async def test_flush_waits_only_for_what_came_before() -> None:
    broker = FakeBroker(shards=1)
    async with producer(broker) as p:
        await p.put_and_wait(b"0", key="k")
        broker.held = []
        before = await p.put(b"1", key="k")
        flush = asyncio.ensure_future(p.flush())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not flush.done()
        broker.release()
        broker.held = []
        after = await p.put(b"2", key="k")
        await flush
        assert before.done()
        assert not after.done()
        with pytest.raises(TimedOut):
            await p.flush(0.001)
        broker.release()


async def test_flush_raises_each_failure_once_and_only_unseen_ones() -> None:
    broker = FakeBroker(shards=1)
    broker.faults = lambda number: RecordTooLarge("no") if number < 3 else None
    async with producer(broker, batch_bytes_max=1) as p:
        seen = await p.put(b"0", key="k")
        assert isinstance(await asyncio.wait_for(_exception(seen), 5), RecordTooLarge)
        await p.put(b"1", key="k")
        await p.put(b"2", key="k")
        with pytest.raises(PutFailed) as caught:
            await p.flush()
        assert caught.value.facts["count"] == 2
        await p.flush()


async def _exception(handle: Any) -> Any:
    try:
        await handle
    except StreamkitError as error:
        return error
    return None


async def test_close_settles_every_handle() -> None:
    broker = FakeBroker(shards=2)
    p = producer(broker, batch_bytes_max=100)
    await p.put_and_wait(b"0", key="k0")
    broker.held = []
    handles = [await p.put(b"%d" % i, key=f"k{i}") for i in range(100)]

    with pytest.raises(PutFailed) as caught:
        await p.close(0.001)

    assert caught.value.facts["count"] == 100
    assert all(isinstance(handle.exception(), Closed) for handle in handles)
    assert {handle.exception().facts["sent"] for handle in handles} == {True, False}  # type: ignore[union-attr]
    broker.release()                                 # answers that come too late change nothing
    assert p.stats()["buffered_bytes"] == 0
    await p.close()
    with pytest.raises(Closed):
        await p.put(b"1", key="k")
    assert not broker.closed                         # the client was handed in


async def test_cancelling_one_who_waits_disturbs_nobody() -> None:
    broker = FakeBroker(shards=1)
    async with producer(broker) as p:
        await p.put_and_wait(b"0", key="k")
        broker.held = []
        handle = await p.put(b"1", key="k")

        async def wait() -> Any:
            return await handle

        one, two = asyncio.ensure_future(wait()), asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        one.cancel()
        await asyncio.sleep(0)
        broker.release()
        assert (await two).shard == "shardId-000000000000"
        assert one.cancelled()


async def test_an_unknown_stream_is_refused_with_the_first_put() -> None:
    async with AsyncProducer("nonsense", client=FakeBroker()) as p:  # type: ignore[arg-type]
        with pytest.raises(StreamNotFound):
            await p.put(b"0", key="k")
        await p.put_and_wait(b"1", key="k", stream="orders")


@pytest.mark.parametrize(("sent", "asked"), [(True, 2), (False, 1)])
async def test_a_node_that_goes_away_while_the_first_put_asks_it_is_no_news(
    sent: bool, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker, calls = FakeBroker(), list[str]()
    give = broker.new_producer

    async def breaks(*about: Any) -> Any:
        calls.append("")
        if len(calls) == 1:
            raise ConnectionFailed("the connection broke", try_="again", address="a", sent=sent)
        return await give(*about)

    monkeypatch.setattr(broker, "new_producer", breaks)
    async with producer(broker) as p:
        if sent:
            await p.put_and_wait(b"1", key="k")
        else:
            with pytest.raises(ConnectionFailed):
                await p.put(b"1", key="k")
    assert len(calls) == asked


async def test_a_collected_producer_warns_and_still_sends() -> None:
    broker = FakeBroker(shards=1)
    p = producer(broker)
    await p.put(b"0", key="k")
    with pytest.warns(ResourceWarning, match="1 records"):
        del p
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(broker.stored()) == 1


def test_failures_that_nobody_collects_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamkit.producer.sender.FAILURES_KEPT_MAX", 3)
    broker = FakeBroker(shards=1)
    broker.faults = lambda number: RecordTooLarge("no")

    async def run() -> None:
        async with producer(broker, batch_bytes_max=1) as p:
            for i in range(10):
                assert await _exception(await p.put(b"%d" % i, key="k"))     # looked at: no longer flush's
            for i in range(10):
                await p.put(b"%d" % i, key="k")
            with pytest.raises(PutFailed) as caught:
                await p.flush()
            assert caught.value.facts["count"] == 10
            assert len(caught.value.failures) <= 3

    asyncio.run(run())


async def test_a_stream_whose_shards_are_being_opened_when_the_producer_is_closed_is_not_left_open() -> None:
    broker = FakeBroker(shards=1)
    asked, answer, open_producer = asyncio.Event(), asyncio.Event(), broker.open_producer

    async def slowly(*arguments: Any, **options: Any) -> Any:
        asked.set()
        await answer.wait()
        return await open_producer(*arguments, **options)

    broker.open_producer = slowly  # type: ignore[method-assign]
    made = producer(broker, name="importer")
    putting = asyncio.ensure_future(made.put(b"1", key="k"))
    await asked.wait()
    await made.close()
    answer.set()
    with pytest.raises(Closed):
        await putting
    assert not made._outbox.targets
    assert not broker.stored()
