"""on_failure: what a failed record means for those behind it, against a broker that obeys the producer table."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import pytest

from streamkit._core.hashing import hash_key
from streamkit.errors import (
    InvalidConfig,
    KeyHalted,
    OutcomeUnknown,
    ProtocolMismatch,
    RecordTooLarge,
    StreamkitError,
    TimedOut,
)
from streamkit.model.limits import HASH_KEYS
from streamkit.producer.config import ProducerConfig
from streamkit.producer.producer import AsyncProducer, Producer
from tests.producer.fake_broker import LOSE, FakeBroker


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = ProducerConfig.__init__.__kwdefaults__
    assert fields is not None
    monkeypatch.setitem(fields, "retry_first_ms", 0)
    monkeypatch.setitem(fields, "retry_most_ms", 0)


def producer(broker: FakeBroker, on_failure: Any, **options: Any) -> AsyncProducer:
    return AsyncProducer("orders", client=broker, on_failure=on_failure, **options)  # type: ignore[arg-type]


async def outcomes(handles: list[Any]) -> list[StreamkitError | None]:
    found: list[StreamkitError | None] = []
    for handle in handles:
        try:
            await handle
            found.append(None)
        except StreamkitError as error:
            found.append(error)
    return found


def refuse(*numbers: int) -> Any:
    return lambda number: RecordTooLarge("no") if number in numbers else None


async def test_a_halted_key_waits_until_it_is_resumed_and_others_go_on() -> None:
    broker = FakeBroker(shards=1)
    broker.faults = refuse(0)
    async with producer(broker, "halt_key", batch_bytes_max=1) as p:
        handles = [await p.put(b"%d" % i, key="ab"[i % 2]) for i in range(6)]
        found = await outcomes(handles)
        assert [type(error) for error in found[::2]] == [RecordTooLarge, KeyHalted, KeyHalted]
        assert found[1::2] == [None] * 3
        assert found[2] is not None and found[2].facts == {"keys": ["a"], "cause": "record_too_large"}
        (late,) = await outcomes([await p.put(b"6", key="a")])
        assert isinstance(late, KeyHalted)
        await p.resume_key("a")
        assert await outcomes([await p.put(b"7", key="a"), await p.put(b"8", key="b")]) == [None, None]

    assert broker.stored() == [("b", b"1"), ("b", b"3"), ("b", b"5"), ("a", b"7"), ("b", b"8")]


async def test_batches_that_fail_as_they_are_sealed_leave_the_sender_at_work() -> None:
    broker = FakeBroker(shards=1)
    broker.faults = refuse(0)
    raised: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))
    async with producer(broker, "halt_key", batch_bytes_max=1) as p:
        await outcomes([await p.put(b"0", key="a")])
        handles = [await p.put(b"%d" % i, key="ab"[i % 2]) for i in range(6)]
        assert [error is None for error in await outcomes(handles)] == [False, True] * 3

    assert raised == []
    assert sum(p.stats()["sealed"].values()) == 7


async def test_a_halted_producer_stores_nothing_until_it_is_resumed() -> None:
    broker = FakeBroker(shards=2)
    broker.faults = refuse(3)
    async with producer(broker, "halt", batch_bytes_max=1) as p:
        found = await outcomes([await p.put(b"%d" % i, key=f"k{i}") for i in range(40)])
        assert any(isinstance(error, RecordTooLarge) for error in found)
        stored = len(broker.stored())
        assert stored == found.count(None) < 40
        assert all(isinstance(e, KeyHalted) for e in await outcomes([await p.put(b"x", key=f"k{i}") for i in range(5)]))
        assert len(broker.stored()) == stored
        await p.resume_key()
        assert await outcomes([await p.put(b"y", key=f"k{i}") for i in range(9)]) == [None] * 9

    assert len(broker.stored()) == stored + 9


async def test_a_halted_batch_does_not_give_its_number_to_one_in_doubt_behind_it() -> None:
    broker = FakeBroker(shards=1)
    sent: list[bytes] = []
    take = broker._take
    broker._take = lambda uuid, batch: sent.append(batch) or take(uuid, batch)  # type: ignore[func-returns-value,method-assign]
    broker.faults = lambda number: LOSE if number in (0, 2) else None
    async with producer(broker, "halt_key", batch_bytes_max=1) as p:
        handles = [await p.put(value, key=key) for value, key in ((b"0", "a"), (b"1", "a"), (b"2", "b"))]
        sender = p._outbox.targets["orders"].sender
        while len(sent) < 3:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
        sender.lanes()[0].window[0].deadline_ms = 0            # it is cancelled; then its key is halted
        found = await outcomes(handles)

        assert [type(error) for error in found] == [TimedOut, KeyHalted, type(None)]
        assert broker.stored() == [("b", b"2")]
        with contextlib.suppress(StreamkitError):              # the copy that was lost comes after all
            broker._append(broker.description.shards[0].uuid, sent[2])
    assert broker.stored() == [("b", b"2")]


async def test_resuming_twice_takes_one_identity() -> None:
    broker = FakeBroker(shards=1)
    broker.cancel_faults = lambda number: ProtocolMismatch("what?")
    async with producer(broker, "halt", delivery_timeout_ms=200) as p:
        broker.faults = lambda number: LOSE
        (error,) = await outcomes([await p.put(b"0", key="k")])
        assert isinstance(error, OutcomeUnknown)
        broker.faults = lambda number: None
        before = broker.producers
        await p.resume_key()
        p._outbox.targets["orders"].sender.halt(KeyHalted("another shard's record failed"))
        await p.resume_key()
        await p.put_and_wait(b"1", key="k")

    assert broker.producers == before + 1


async def test_a_failure_is_told_before_records_of_the_same_batch_that_went_to_another_shard_have_ended() -> None:
    """Else its key is resumed, and what is put next is stored before anybody can know that it failed."""
    broker = FakeBroker(shards=1)
    middle = HASH_KEYS // 2
    low = next(key for key in map(str, range(99)) if int.from_bytes(hash_key(key), "big") < middle)
    high = next(key for key in map(str, range(99)) if int.from_bytes(hash_key(key), "big") >= middle)

    def fault(number: int) -> Any:
        if number == 3:                    # the second child's: it waits for its answer
            broker.held = []
        return RecordTooLarge("no") if number == 2 else None

    broker.faults = fault
    told: list[Any] = []
    async with asyncio.timeout(10), producer(broker, "halt_key") as p:
        await p.put_and_wait(b"0", key=low)
        broker.split(bytes(16))
        failing, waiting = await p.put(b"1", key=low), await p.put(b"2", key=high)
        failing.add_done_callback(told.append)
        (error,) = await outcomes([failing])
        assert isinstance(error, RecordTooLarge)
        assert told == [failing]
        assert not waiting.done()
        broker.release()
        await waiting
        await p.resume_key(low)
        await p.put_and_wait(b"3", key=low)

    assert broker.stored() == [(low, b"0"), (low, b"3"), (high, b"2")]


@pytest.mark.parametrize("on_failure", ["halt_key", "halt"])
@pytest.mark.parametrize("seed", range(12))
async def test_what_is_stored_of_a_key_ends_where_it_failed_first(on_failure: str, seed: int) -> None:
    draw = random.Random(seed)
    broker = FakeBroker(shards=2)
    broker.faults = lambda number: draw.choice(
        (RecordTooLarge("no"), LOSE, None, None, None, None, None, None, None, None)
    )
    by_key: dict[str, list[tuple[bytes, bool]]] = {}
    async with producer(broker, on_failure, batch_bytes_max=60, delivery_timeout_ms=10_000) as p:
        handles = [(f"k{draw.randrange(8)}", b"%d" % i) for i in range(200)]
        found = await outcomes([await p.put(value, key=key) for key, value in handles])
    for (key, value), error in zip(handles, found, strict=True):
        by_key.setdefault(key, []).append((value, error is None))
    stored = broker.stored()
    for key, puts in by_key.items():
        whole = [value for value, ok in puts if ok]
        assert [ok for _, ok in puts] == sorted((ok for _, ok in puts), reverse=True)
        assert [value for name, value in stored if name == key] == whole


async def test_by_default_records_behind_a_failure_go_on() -> None:
    broker = FakeBroker(shards=1)
    broker.faults = refuse(0)
    async with producer(broker, "continue", batch_bytes_max=1) as p:
        found = await outcomes([await p.put(b"%d" % i, key="k") for i in range(4)])
    assert [error is None for error in found] == [False, True, True, True]


def test_threads_resume_as_well() -> None:
    broker = FakeBroker(shards=1)
    broker.faults = refuse(0)
    with Producer("orders", client=broker, on_failure="halt_key") as p:
        with pytest.raises(RecordTooLarge):
            p.put_and_wait(b"0", key="k")
        with pytest.raises(KeyHalted):
            p.put_and_wait(b"1", key="k")
        p.resume_key()
        p.put_and_wait(b"2", key="k")
    assert broker.stored() == [("k", b"2")]


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(InvalidConfig):
        AsyncProducer("orders", url="localhost:1", on_failure="ignore")  # type: ignore[arg-type]


async def test_a_batch_that_fails_when_it_is_sealed_does_not_hold_up_the_next() -> None:
    broker = FakeBroker(shards=1)
    broker.faults = refuse(0)
    p = producer(broker, "halt_key", batch_bytes_max=1)
    try:
        async with asyncio.timeout(10):
            failed = await outcomes([await p.put(b"0", key="a")])
            found = await outcomes([await p.put(b"1", key="a"), await p.put(b"2", key="b")])
    finally:
        with contextlib.suppress(StreamkitError):
            await p.close(0)
    assert [type(error) for error in (*failed, *found)] == [RecordTooLarge, KeyHalted, type(None)]
