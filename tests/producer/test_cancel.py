"""Definite outcomes: a batch whose time is over is cancelled by its numbers, or its record is told to be unknown."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamkit.client.fates import find_fate
from streamkit.errors import (
    Closed,
    InternalError,
    OutcomeUnknown,
    ProducerFenced,
    ProtocolMismatch,
    PutFailed,
    StreamkitError,
    StreamNotFound,
    TimedOut,
)
from streamkit.model.fate import parse_put_token
from streamkit.model.sequence import parse_sequence_number
from streamkit.producer.config import ProducerConfig
from streamkit.producer.producer import AsyncProducer
from tests.producer.fake_broker import LOSE, LOSE_ANSWER, FakeBroker


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = ProducerConfig.__init__.__kwdefaults__
    assert fields is not None
    monkeypatch.setitem(fields, "retry_first_ms", 0)
    monkeypatch.setitem(fields, "retry_most_ms", 0)


def producer(broker: FakeBroker, **options: Any) -> AsyncProducer:
    return AsyncProducer("orders", client=broker, **{"request_timeout_ms": 20, **options})  # type: ignore[arg-type]


async def outcome(handle: Any) -> Any:
    try:
        return await asyncio.wait_for(handle, 60)
    except StreamkitError as error:
        return error


def values(broker: FakeBroker) -> list[bytes]:
    return [value for _, value in broker.stored()]


async def test_a_lost_batch_ends_as_certainly_not_stored_and_those_behind_it_go_on() -> None:
    broker = FakeBroker(shards=1)
    broker.cancel_faults = lambda number: None
    async with producer(broker, delivery_timeout_ms=200, batch_bytes_max=1) as p:
        broker.faults = lambda number: LOSE
        lost = await p.put(b"0", key="k")
        error = await outcome(lost)
        broker.faults = lambda number: None
        await p.put_and_wait(b"1", key="k")

    assert isinstance(error, TimedOut) and not isinstance(error, OutcomeUnknown)
    assert (error.facts["sent"], error.facts["cancelled"]) == (False, True)
    assert values(broker) == [b"1"]
    assert broker.producers == 1                     # neither a new identity nor other numbers
    assert [batch.producer_sequence for batch in broker.cancelled] == [0]


async def test_a_batch_whose_answer_was_lost_is_found_to_be_stored() -> None:
    broker = FakeBroker(shards=1)
    broker.cancel_faults = lambda number: None
    async with producer(broker, delivery_timeout_ms=200) as p:
        await p.put_and_wait(b"0", key="k")
        lost = iter([LOSE_ANSWER])
        broker.faults = lambda number: next(lost, LOSE)
        result = await outcome(await p.put(b"1", key="k"))
        broker.faults = lambda number: None
        await p.put_and_wait(b"2", key="k")

    assert result.sequence_number
    assert values(broker) == [b"0", b"1", b"2"]
    assert broker.cancelled == []


@pytest.mark.parametrize("stored", [False, True])
async def test_unknown_only_while_nobody_can_be_asked_and_the_shard_is_settled_before_it_goes_on(stored: bool) -> None:
    """Acceptance: producer 4.

    The outcome is unknown only while the broker is cut off; afterwards its token settles it.
    """
    broker = FakeBroker(shards=1)
    async with producer(broker, delivery_timeout_ms=200) as p:
        await p.put_and_wait(b"0", key="k")
        first = iter([LOSE_ANSWER if stored else LOSE])
        broker.faults = lambda number: next(first, LOSE)
        error = await outcome(await p.put(b"1", key="k"))
        assert isinstance(error, OutcomeUnknown)
        assert error.facts["sent"] is True
        later = await outcome(await p.put(b"2", key="k"))     # never sent, behind numbers that are not settled
        assert later.facts["sent"] is False
        broker.faults = lambda number: None
        await p.put_and_wait(b"3", key="k")

    token = parse_put_token(error.facts["token"])
    assert (token.stream, token.shard, token.place) == ("orders", bytes(16), 0)
    settled = await broker.cancel_batch(broker.shard(token.shard), token.batch)
    assert settled.fate == ("stored" if stored else "cancelled")
    assert values(broker) == ([b"0", b"1", b"3"] if stored else [b"0", b"3"])
    assert broker.producers == 1


async def test_what_a_shard_has_forgotten_ends_as_unknown_and_is_not_put_again() -> None:
    """Acceptance: producer 5.

    The producer's state expires while a batch is in doubt: unknown, never a silent duplicate.
    """
    broker = FakeBroker(shards=1)
    broker.cancel_faults = lambda number: None
    async with producer(broker, delivery_timeout_ms=200) as p:
        await p.put_and_wait(b"0", key="k")
        first = iter([LOSE_ANSWER])
        broker.faults = lambda number: next(first, LOSE)
        handle = await p.put(b"1", key="k")
        await asyncio.sleep(0)
        broker.known.clear()
        error = await outcome(handle)
        broker.faults = lambda number: None
        await p.put_and_wait(b"2", key="k")

    assert isinstance(error, OutcomeUnknown)
    assert values(broker) == [b"0", b"1", b"2"]
    assert broker.producers == 2


async def test_a_batch_that_is_refused_in_doubt_is_cancelled_and_ends_with_that_refusal() -> None:
    broker = FakeBroker(shards=1)
    broker.cancel_faults = lambda number: None
    async with producer(broker) as p:
        faults = iter([LOSE, InternalError("a bug", incident="1")])
        broker.faults = lambda number: next(faults, None)
        error = await outcome(await p.put(b"0", key="k"))
        await p.put_and_wait(b"1", key="k")

    assert isinstance(error, InternalError)
    assert values(broker) == [b"1"]
    assert len(broker.cancelled) == broker.producers == 1


@pytest.mark.parametrize("error", [ProducerFenced("newer"), StreamNotFound("gone")])
async def test_where_nobody_is_left_to_ask_the_refusal_itself_is_told(error: StreamkitError) -> None:
    broker = FakeBroker(shards=1)
    async with producer(broker) as p:
        faults = iter([LOSE])
        broker.faults = lambda number: next(faults, error)
        told = await outcome(await p.put(b"0", key="k"))

    assert type(told) is type(error)
    assert told is not None
    assert told.facts["sent"], "an earlier try may be stored"
    assert told.facts["token"]
    assert broker.cancelled == []


async def test_who_asks_for_the_numbers_of_a_batch_given_up_and_is_told_of_a_newer_instance_stops() -> None:
    broker = FakeBroker(shards=1)
    async with producer(broker, delivery_timeout_ms=200, batch_bytes_max=1) as p:
        broker.faults = lambda number: LOSE
        handles = [await p.put(b"%d" % number, key="k") for number in range(2)]
        assert [type(await outcome(handle)) for handle in handles] == [OutcomeUnknown] * 2
        broker.faults = lambda number: ProducerFenced("newer")
        async with asyncio.timeout(5):
            while (halted := p._outbox.targets["orders"].sender.halted) is None:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.001)
        assert isinstance(halted, ProducerFenced)
        later = await outcome(await p.put(b"2", key="k"))

    assert isinstance(later, ProducerFenced)
    assert "token" not in later.facts and not later.facts.get("sent"), "it never left; another's token is not its own"
    assert values(broker) == []


async def test_a_broker_that_does_not_know_how_to_cancel_costs_the_shard_its_identity() -> None:
    broker = FakeBroker(shards=1)
    broker.cancel_faults = lambda number: ProtocolMismatch("what?")
    async with producer(broker, delivery_timeout_ms=200) as p:
        broker.faults = lambda number: LOSE
        error = await outcome(await p.put(b"0", key="k"))
        broker.faults = lambda number: None
        await p.put_and_wait(b"1", key="k")

    assert isinstance(error, OutcomeUnknown)
    assert broker.producers == 2


async def test_without_idempotence_nobody_can_be_asked() -> None:
    broker = FakeBroker(shards=1)
    broker.faults = lambda number: LOSE
    async with producer(broker, delivery_timeout_ms=200, idempotent=False) as p:
        error = await outcome(await p.put(b"0", key="k"))

    assert type(error) is TimedOut
    assert error.facts["sent"] is True
    assert broker.cancelled == []


async def test_a_batch_in_doubt_at_a_closed_shard_is_settled_there_before_its_children_begin() -> None:
    broker = FakeBroker(shards=1)
    broker.cancel_faults = lambda number: None
    async with producer(broker, delivery_timeout_ms=300) as p:
        await p.put_and_wait(b"0", key="k")
        broker.faults = lambda number: LOSE
        lost = await p.put(b"1", key="k")
        await asyncio.sleep(0)
        broker.split(bytes(16))
        error = await outcome(lost)
        broker.faults = lambda number: None
        await p.put_and_wait(b"2", key="k")

    assert error.facts["sent"] is False
    assert [value for _, value in broker.lineage()] == [b"0", b"2"]


async def test_closing_cancels_what_is_in_doubt() -> None:
    broker = FakeBroker(shards=1)
    broker.cancel_faults = lambda number: None
    p = producer(broker, batch_bytes_max=1)
    broker.faults = lambda number: LOSE
    handles = [await p.put(b"%d" % i, key="k") for i in range(20)]
    with pytest.raises(PutFailed):
        await p.close(0.05)

    errors = [handle.exception() for handle in handles]
    assert all(isinstance(error, Closed) and error.facts["sent"] is False for error in errors)
    assert len(broker.cancelled) == 5                # as many as had been sent
    assert values(broker) == []


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), rate=st.floats(0.2, 0.9), batch_bytes_max=st.integers(1, 300))
def test_every_outcome_is_true_whatever_gets_lost(seed: int, rate: float, batch_bytes_max: int) -> None:
    """Acceptance: producer 4.

    "Not stored" is not in the log, "stored" is; unknown only while cut off, and asking settles that.
    """
    draw = random.Random(seed)
    broker = FakeBroker(shards=2)
    broker.faults = lambda number: draw.choice((LOSE, LOSE_ANSWER)) if draw.random() < rate else None

    async def run() -> None:
        async with producer(broker, batch_bytes_max=batch_bytes_max, linger_ms=0, delivery_timeout_ms=2) as p:
            handles = []
            for i in range(60):
                handles.append((b"%d" % i, await p.put(b"%d" % i, key=f"k{i % 5}")))
                if draw.random() < 0.2:
                    await asyncio.sleep(0)
                if i == 30 and draw.random() < 0.5:
                    broker.split(bytes(16))
            outcomes = [(value, await outcome(handle)) for value, handle in handles]
            broker.faults = lambda number: None
            await p.flush()
        stored = values(broker)
        assert len(stored) == len(set(stored))
        for value, told in outcomes:
            if isinstance(told, OutcomeUnknown):
                fate = await find_fate(broker, parse_put_token(told.facts["token"]))
                assert (fate.outcome == "stored") is (value in stored) or fate.outcome == "forgotten"
                if fate.outcome == "stored":
                    place = parse_sequence_number(fate.sequence_number)
                    assert broker.logs[bytes([place.ordinal]) * 16][place.sequence][1] == value
            else:
                assert (not isinstance(told, StreamkitError)) is (value in stored), told
        by_key: dict[str, list[int]] = {}
        for key, value in broker.lineage():
            by_key.setdefault(key, []).append(int(value))
        assert all(found == sorted(found) for found in by_key.values())

    asyncio.run(run())


@pytest.mark.parametrize("on_failure", ["halt_key", "halt"])
async def test_a_cancelled_batch_holds_back_what_is_behind_it_when_that_is_wanted(on_failure: str) -> None:
    broker = FakeBroker(shards=1)
    broker.cancel_faults = lambda number: None
    async with producer(broker, delivery_timeout_ms=100, batch_bytes_max=1, on_failure=on_failure) as p:
        broker.faults = lambda number: LOSE
        lost = await p.put(b"0", key="k")
        await asyncio.sleep(0.03)
        behind = await p.put(b"1", key="k")          # its time is not over when the first one's is
        error = await outcome(lost)
        broker.faults = lambda number: None
        held = await outcome(behind)
        await p.resume_key("k" if on_failure == "halt_key" else None)
        await p.put_and_wait(b"2", key="k")

    assert error.facts["sent"] is False
    assert isinstance(held, StreamkitError)
    assert values(broker) == [b"2"]
