"""handle.cancel(): a record that is not sent is taken out for certain; one that was sent says what became of it."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamkit.errors import Cancelled, Closed, OutcomeUnknown, StreamkitError, Throttled
from streamkit.producer.producer import AsyncProducer
from tests.producer.fake_broker import LOSE, LOSE_ANSWER, FakeBroker
from tests.producer.test_cancel import outcome, producer, short_times, values

__all__ = ["short_times"]


async def under_way(broker: FakeBroker, batches: int) -> None:
    """So many batches wait for their answers."""
    for _ in range(1_000):
        if len(broker.held or ()) >= batches:
            return
        await asyncio.sleep(0)
    raise AssertionError(f"{len(broker.held or ())} of {batches} batches were sent")


async def test_a_record_that_waits_for_company_is_taken_out() -> None:
    broker = FakeBroker(shards=1)
    broker.held = []
    async with producer(broker, linger_ms=10_000) as p:
        first = await p.put(b"0", key="k")
        await under_way(broker, 1)
        handles = [await p.put(b"%d" % i, key="k") for i in range(1, 6)]
        told: list[Any] = []
        handles[1].add_done_callback(told.append)
        assert handles[1].cancel()
        assert handles[3].cancel()
        assert isinstance(await outcome(handles[1]), Cancelled)      # though those beside it still wait
        assert told == [handles[1]]
        assert not handles[0].done()
        assert isinstance(await outcome(handles[3]), Cancelled)
        assert not handles[1].cancel()
        broker.release()
        results = [await handles[i] for i in (0, 2, 4)]
        await first
    assert values(broker) == [b"0", b"1", b"3", b"5"]
    assert [int(result.sequence_number) for result in results] == sorted(int(r.sequence_number) for r in results)
    assert p._outbox.outstanding() == p._outbox.budget.used == 0


async def test_a_batch_whose_records_are_all_cancelled_is_not_sent() -> None:
    broker = FakeBroker(shards=1)
    broker.held = []
    async with producer(broker, batch_bytes_max=1, buffer_bytes_max=2_000) as p:
        sent = [await p.put(b"%d" % i, key="k") for i in range(5)]       # in_flight_max batches
        waiting = [await p.put(b"%d" % i, key="k") for i in range(5, 10)]
        flushed = asyncio.ensure_future(p.flush())
        await under_way(broker, 5)
        for handle in waiting[:-1]:
            assert handle.cancel()
        assert all([isinstance(await outcome(handle), Cancelled) for handle in waiting[:-1]])
        broker.release()
        await flushed                      # which a cancelled record does not fail
        assert [await outcome(handle) for handle in (*sent, waiting[-1])]
    assert values(broker) == [b"0", b"1", b"2", b"3", b"4", b"9"]
    assert broker.cancelled == []          # none of that needed the shard


async def test_one_that_was_sent_is_stored_when_the_shard_has_it() -> None:
    broker = FakeBroker(shards=1)
    broker.held = []
    async with producer(broker) as p:
        handle = await p.put(b"0", key="k")
        await under_way(broker, 1)
        assert handle.cancel()
        broker.release()
        assert (await handle).sequence_number
    assert values(broker) == [b"0"]


@pytest.mark.parametrize("fault", [LOSE, LOSE_ANSWER])
async def test_in_doubt_the_shard_says_what_became_of_it(fault: str) -> None:
    broker = FakeBroker(shards=1)
    broker.cancel_faults = lambda number: None
    asked = iter([fault])

    async with producer(broker, on_failure="halt") as p:
        broker.faults = lambda number: next(asked, Throttled("later", retry_after_ms=50))
        handle = await p.put(b"0", key="k")
        assert handle.cancel()
        result = await outcome(handle)
        broker.faults = lambda number: None
        await p.put_and_wait(b"1", key="k")          # a record that was cancelled is no failure that halts
    if fault == LOSE_ANSWER:
        assert result.sequence_number
        assert values(broker) == [b"0", b"1"]
    else:
        assert isinstance(result, Cancelled)
        assert values(broker) == [b"1"]


async def test_in_doubt_with_others_it_goes_with_them() -> None:
    broker = FakeBroker(shards=1)
    lost = iter([LOSE])
    async with producer(broker, linger_ms=0) as p:
        broker.faults = lambda number: next(lost, None)
        handles = [await p.put(b"%d" % i, key="k") for i in range(2)]
        handles[0].cancel()
        assert [await outcome(handle) for handle in handles]
    assert values(broker) == [b"0", b"1"]


async def test_cancelling_a_task_that_waits_leaves_the_record_alone() -> None:
    broker = FakeBroker(shards=1)
    broker.held = []
    async with producer(broker) as p:
        handle = await p.put(b"0", key="k")
        waiting = asyncio.ensure_future(outcome(handle))
        await under_way(broker, 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        broker.release()
        assert (await handle).sequence_number
    assert values(broker) == [b"0"]


async def test_a_thread_that_waits_hears_of_it_at_once() -> None:
    broker = FakeBroker(shards=1)
    broker.held = []
    async with producer(broker, linger_ms=10_000) as p:
        await p.put(b"0", key="k")
        await under_way(broker, 1)
        handle, other = await p.put(b"1", key="k"), await p.put(b"2", key="k")
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        def wait() -> StreamkitError | None:
            loop.call_soon_threadsafe(begun.set)
            return handle.exception(30)

        waiting = loop.run_in_executor(None, wait)
        await begun.wait()
        handle.cancel()
        assert isinstance(await waiting, Cancelled)
        broker.release()
        await other


@settings(max_examples=60)
@given(seed=st.integers(0, 1 << 30))
def test_every_handle_completes_and_tells_the_truth(seed: int) -> None:
    """Acceptance: producer 10. Random faults, splits, merges, cancels and an early end: none is left pending."""
    draw = random.Random(seed)
    broker = FakeBroker(shards=draw.choice((1, 2)))
    quiet = draw.random() < 0.3
    error = [LOSE, LOSE_ANSWER, Throttled("later", retry_after_ms=0), None, None, None]
    broker.faults = lambda number: None if quiet else draw.choice(error)
    broker.cancel_faults = lambda number: draw.choice([LOSE, None, None])
    handles: list[Any] = []
    end = draw.choice(("close", "close at once", "loop"))

    async def run() -> None:
        p = AsyncProducer(
            "orders", client=broker, linger_ms=draw.choice((0, 1)), batch_bytes_max=draw.choice((1, 200, 5_000)),  # type: ignore[arg-type]
            delivery_timeout_ms=draw.choice((20, 60_000)), request_timeout_ms=10,
            on_failure=draw.choice(("continue", "halt_key")),
        )  # fmt: skip
        for number in range(draw.choice((5, 60))):
            handles.append(await p.put(b"%d" % number, key=f"k{draw.randrange(4)}"))
            for _ in range(draw.choice((0, 0, 1, 3))):
                draw.choice(handles).cancel()
            if draw.random() < 0.3:
                await asyncio.sleep(0)
            if draw.random() < 0.03:
                open_ = [shard.uuid for shard in broker.description.shards if shard.closed_ms is None]
                broker.split(draw.choice(open_))
        if end != "loop":
            try:
                await p.close(0 if end == "close at once" else 30)
            except StreamkitError:
                assert any(handle.exception() for handle in handles)

    asyncio.run(run())
    stored = values(broker)
    assert len(stored) == len(set(stored))
    for number, handle in enumerate(handles):
        assert handle.done()
        failure = handle.exception()
        if failure is None:
            assert b"%d" % number in stored
        elif not (isinstance(failure, OutcomeUnknown | Closed) and failure.facts.get("sent")):
            assert b"%d" % number not in stored
    by_key: dict[str, list[int]] = {}
    for key, value in broker.lineage():
        by_key.setdefault(key, []).append(int(value))
    assert all(numbers == sorted(numbers) for numbers in by_key.values())
