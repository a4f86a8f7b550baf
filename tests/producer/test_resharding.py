"""Puts go on while shards are split and merged and leaders move: each record once, each key in order."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamkit._core.batch import Batch
from streamkit._core.hashing import hash_key
from streamkit.errors import Closed, PutFailed, ShardClosed, TimedOut, UnknownProducer
from streamkit.model.limits import HASH_KEYS
from streamkit.producer.config import ProducerConfig
from streamkit.producer.producer import AsyncProducer, Producer
from streamkit.runtime.real import LoopThread
from tests.producer.fake_broker import LOSE, LOSE_ANSWER, FakeBroker


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = ProducerConfig.__init__.__kwdefaults__
    assert fields is not None
    monkeypatch.setitem(fields, "retry_first_ms", 0)
    monkeypatch.setitem(fields, "retry_most_ms", 0)
    monkeypatch.setattr("streamkit.producer.sender._LOOK_FIRST_MS", 0)


def producer(broker: FakeBroker, **options: Any) -> AsyncProducer:
    return AsyncProducer("orders", client=broker, **options)  # type: ignore[arg-type]


def values_by_key(broker: FakeBroker) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for key, value in broker.lineage():
        found.setdefault(key, []).append(int(value))
    return found


def assert_in_order(broker: FakeBroker, count: int) -> None:
    by_key = values_by_key(broker)
    assert sum(map(len, by_key.values())) == count
    assert all(values == sorted(set(values)) for values in by_key.values())


def assert_where_told(broker: FakeBroker, results: list[Any]) -> None:
    """Every receipt names the place where its record lies."""
    ids = {shard.id: shard.uuid for shard in broker.description.shards}
    for number, result in enumerate(results):
        if result.sequence_number:
            log = broker.logs[ids[result.shard]]
            assert any(value == b"%d" % number for _, value in log)


def open_shards(broker: FakeBroker) -> list[Any]:
    found = [shard for shard in broker.description.shards if shard.closed_ms is None]
    return sorted(found, key=lambda shard: shard.hash_start)


def reshape(broker: FakeBroker, draw: random.Random) -> None:
    """One split, merge or move, drawn; now and then the next look finds the map from before."""
    before = broker.description
    shards = open_shards(broker)
    kind = draw.random()
    if kind < 0.3 and len(broker.description.shards) < 40:
        broker.split(draw.choice(shards).uuid)
    elif kind < 0.5 and len(shards) > 1:
        at = draw.randrange(len(shards) - 1)
        broker.merge(shards[at].uuid, shards[at + 1].uuid)
    else:
        broker.move(draw.choice(broker.description.shards).uuid, draw.choice(["a", "b", "c"]))
    if draw.random() < 0.3:
        broker.stale = before


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32), rate=st.floats(0, 0.4), changes=st.floats(0, 0.2),
    batch_bytes_max=st.integers(60, 600), names_leaders=st.booleans(), bulk=st.booleans(),
)  # fmt: skip
def test_each_record_is_stored_once_and_in_order_whatever_changes(
    seed: int, rate: float, changes: float, batch_bytes_max: int, names_leaders: bool, bulk: bool
) -> None:
    draw = random.Random(seed)
    broker = FakeBroker(shards=2)
    broker.names_leaders = names_leaders
    broker.faults = lambda number: draw.choice([LOSE, LOSE_ANSWER]) if draw.random() < rate else None

    async def run() -> list[Any]:
        async with producer(broker, batch_bytes_max=batch_bytes_max, linger_ms=0) as p:
            handles, columns = [], []
            for i in range(200):
                key = f"k{draw.randrange(8)}"
                if bulk and key != "k7" and draw.random() < 0.3:
                    columns.append(await p.put_columns(pyarrow.array([key]), pyarrow.array([b"%d" % i])))
                else:
                    explicit = int.from_bytes(hash_key(key), "big") ^ (HASH_KEYS - 1) if key == "k7" else None
                    handles.append((i, await p.put(b"%d" % i, key=key, explicit_hash_key=explicit)))
                if draw.random() < changes:
                    reshape(broker, draw)
                if draw.random() < 0.3:
                    await asyncio.sleep(0)
            await p.flush()
            assert p.stats()["buffered_bytes"] == 0
            for column in columns:
                shards = p._outbox.targets["orders"].sender._lanes
                log = broker.logs[shards[column.shards[0]].shard.uuid]
                assert len(log) > column.sequences[0]
            results: list[Any] = [None] * 200
            for i, handle in handles:
                results[i] = handle.result()
            return results

    results = asyncio.run(run())

    assert_in_order(broker, 200)
    ids = {shard.id: shard.uuid for shard in broker.description.shards}
    for number, result in enumerate(results):
        if result is not None and result.sequence_number:
            assert (b"%d" % number) in [value for _, value in broker.logs[ids[result.shard]]]
    assert broker.producers == 1, "no change costs an identity"


async def test_what_was_refused_comes_before_what_was_put_meanwhile() -> None:
    broker = FakeBroker(shards=1)
    async with producer(broker, batch_bytes_max=100) as p:
        await p.put_and_wait(b"0", key="k")
        broker.held = []
        first = [await p.put(b"%d" % i, key="k") for i in range(1, 40)]
        broker.split(broker.description.shards[0].uuid)
        await asyncio.sleep(0)
        later = [await p.put(b"%d" % i, key="k") for i in range(40, 60)]
        broker.release()
        await p.flush()

    assert_in_order(broker, 60)
    assert {handle.result().shard for handle in [*first, *later]} <= {f"shardId-{i:012d}" for i in (0, 1, 2)}
    assert len(broker.logs[b"\0" * 16]) < 60 == len(broker.lineage())


async def test_a_batch_in_doubt_at_a_closed_shard_is_asked_about_and_not_stored_again() -> None:
    broker = FakeBroker(shards=1)

    def lose_then_split(number: int) -> Any:
        if number == 0:
            asyncio.get_running_loop().call_soon(broker.split, broker.description.shards[0].uuid)
            return LOSE_ANSWER
        return None

    broker.faults = lose_then_split
    async with producer(broker) as p:
        result = await p.put_and_wait(b"0", key="k")
        await p.put_and_wait(b"1", key="k")

    assert result.duplicate
    assert len(broker.logs[b"\0" * 16]) == 1
    assert_in_order(broker, 2)


async def test_explicit_hash_keys_choose_the_child() -> None:
    broker = FakeBroker(shards=1)
    low, high = 5, HASH_KEYS - 5
    async with producer(broker) as p:
        await p.put_and_wait(b"0", key="k", explicit_hash_key=low)
        broker.held = []
        handles = [await p.put(b"%d" % i, key="k", explicit_hash_key=high if i % 2 else low) for i in range(1, 9)]
        broker.split(broker.description.shards[0].uuid)
        broker.release()
        await p.flush()
        assert [handle.result().shard[-1] for handle in handles[1:]] == ["1", "2"] * 3 + ["1"]


async def test_headers_and_times_survive_the_move() -> None:
    from datetime import UTC, datetime

    broker = FakeBroker(shards=1)
    times = [datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC) for second in (3, 1, 2)]
    async with producer(broker, compression="lz4") as p:
        await p.put_and_wait(b"0", key="k")
        broker.split(broker.description.shards[0].uuid)
        broker.held = []
        for i, time in enumerate(times):
            await p.put(b"%d" % i * 400, key="k", headers={"n": str(i)}, time=time)
        broker.release()
        await p.flush()
    records = [record for raw in broker.batches for record in Batch(raw)][1:]
    assert [bytes(record.headers["n"]) for record in records] == [b"0", b"1", b"2"]
    assert [record.time for record in records] == times


@pytest.mark.parametrize("compression", ["none", "lz4"])
async def test_a_large_backlog_moves_without_a_record_changed(compression: str) -> None:
    broker = FakeBroker(shards=1)
    async with producer(broker, compression=compression, linger_ms=60_000) as p:
        await p.put_and_wait(b"0", key="k")
        broker.held = []
        for i in range(1, 3_000):
            await p.put(b"%d" % i, key=f"k{i % 17}")
        broker.split(broker.description.shards[0].uuid)
        broker.release()
        await p.flush()
    assert_in_order(broker, 3_000)


async def test_grandchildren_wait_for_children_that_wait_for_parents() -> None:
    broker = FakeBroker(shards=1)
    async with producer(broker, batch_bytes_max=80) as p:
        await p.put_and_wait(b"0", key="k")
        broker.held = []
        for i in range(1, 60):
            await p.put(b"%d" % i, key=f"k{i % 6}")
        broker.split(broker.description.shards[0].uuid)
        for shard in open_shards(broker):
            broker.split(shard.uuid)
        broker.release()
        for i in range(60, 90):
            await p.put(b"%d" % i, key=f"k{i % 6}")
        await p.flush()
    assert_in_order(broker, 90)


async def test_a_map_that_comes_late_is_waited_for() -> None:
    broker = FakeBroker(shards=1)
    async with producer(broker) as p:
        await p.put_and_wait(b"0", key="k")
        old = broker.description
        broker.split(old.shards[0].uuid)
        looks = 0
        known = broker.stream

        async def stream(name: str, refresh: bool = False) -> Any:
            nonlocal looks
            looks += 1
            return old if looks < 5 else await known(name, refresh)

        broker.stream = stream  # type: ignore[method-assign]
        await p.put_and_wait(b"1", key="k")
    assert looks == 5
    assert_in_order(broker, 2)


async def test_a_named_leader_is_followed_without_asking_again() -> None:
    broker = FakeBroker(shards=1)
    async with producer(broker) as p:
        await p.put_and_wait(b"0", key="k")
        broker.move(broker.description.shards[0].uuid, "b")
        await p.put_and_wait(b"1", key="k")
    assert broker.refreshes == 0
    assert_in_order(broker, 2)


async def test_a_leader_nobody_names_is_looked_for() -> None:
    broker = FakeBroker(shards=1)
    broker.names_leaders = False
    async with producer(broker) as p:
        await p.put_and_wait(b"0", key="k")
        broker.move(broker.description.shards[0].uuid, "b")
        await p.put_and_wait(b"1", key="k")
    assert broker.refreshes == 1


async def test_a_closed_shard_that_moves_before_its_children_are_known_is_waited_for() -> None:
    broker = FakeBroker(shards=1)
    async with producer(broker) as p:
        await p.put_and_wait(b"0", key="k")
        shard = broker.description.shards[0].uuid
        broker.faults = lambda number: ShardClosed("closed", shard="s", map_version=2)
        handle = await p.put(b"1", key="k")
        sender = p._outbox.targets["orders"].sender
        while not sender.lanes()[0].told_closed:                   # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.001)
        broker.move(shard, "b")
        looked = broker.refreshes
        while sender._looking and broker.refreshes < looked + 2:   # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.001)
        broker.faults = lambda number: None
        broker.split(shard)
        async with asyncio.timeout(5):
            await handle
    assert_in_order(broker, 2)


async def test_what_never_reaches_the_children_fails_at_its_deadline() -> None:
    broker = FakeBroker(shards=1)
    async with producer(broker, delivery_timeout_ms=1_000) as p:
        await p.put_and_wait(b"0", key="k")
        known = broker.stream
        broker.faults = lambda number: ShardClosed("closed", shard="s", map_version=2)
        clock = p._outbox.targets["orders"].sender
        ahead = clock._clock.monotonic_ms

        handle = await p.put(b"1", key="k")
        await asyncio.sleep(0)
        clock._clock = type("Ahead", (), {"monotonic_ms": lambda self: ahead() + 5_000})()
        with pytest.raises(TimedOut) as caught:
            await handle
        assert caught.value.facts["sent"] is False
        broker.stream = known  # type: ignore[method-assign]


async def test_a_producer_the_closed_shard_forgot_leaves_doubt() -> None:
    broker = FakeBroker(shards=1)
    async with producer(broker, batch_bytes_max=1) as p:
        await p.put_and_wait(b"0", key="k")
        answers: list[Any] = [LOSE_ANSWER, UnknownProducer("forgotten", producer_id=1)]
        broker.faults = lambda number: answers.pop(0) if answers else None
        doubtful = await p.put(b"1", key="k")
        broker.held = []
        broker.split(broker.description.shards[0].uuid)
        broker.release()
        with pytest.raises(PutFailed):
            await p.flush()
        assert doubtful.exception() is not None
        await p.put_and_wait(b"2", key="k")
    assert values_by_key(broker)["k"][-1] == 2


async def test_closing_meanwhile_settles_every_handle() -> None:
    broker = FakeBroker(shards=1)
    p = producer(broker, batch_bytes_max=100)
    await p.put_and_wait(b"0", key="k")
    broker.held = []
    handles = [await p.put(b"%d" % i, key="k") for i in range(50)]
    broker.split(broker.description.shards[0].uuid)
    await asyncio.sleep(0)
    with pytest.raises(PutFailed):
        await p.close(0.001)
    assert all(isinstance(handle.exception(), Closed) for handle in handles)
    assert p.stats()["buffered_bytes"] == 0


async def test_flush_waits_for_what_is_behind_a_closed_shard() -> None:
    broker = FakeBroker(shards=1)
    async with producer(broker, batch_bytes_max=100) as p:
        await p.put_and_wait(b"0", key="k")
        broker.held = []
        before = [await p.put(b"%d" % i, key=f"k{i}") for i in range(30)]
        broker.split(broker.description.shards[0].uuid)
        flush = asyncio.ensure_future(p.flush())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not flush.done()
        broker.release()
        await flush
        assert all(handle.done() for handle in before)


def test_threads_put_while_the_map_is_replaced() -> None:
    broker = FakeBroker(shards=2)
    thread = LoopThread("test-reshard")
    try:
        with Producer("orders", client=broker, loop_thread=thread, batch_bytes_max=2_000) as p:  # type: ignore[arg-type]
            p.put(b"0", key="warm").result()
            stop = threading.Event()

            def put(name: int) -> None:
                for i in range(1_500):
                    if i % 3:
                        p.put(b"%d" % i, key=f"t{name}")
                    else:
                        p.put_columns(pyarrow.array([f"t{name}"]), pyarrow.array([b"%d" % i]))

            def change() -> None:
                draw = random.Random(7)
                while not stop.is_set():
                    thread.run(_once(lambda: reshape(broker, draw)))

            putting = [threading.Thread(target=put, args=(name,)) for name in range(3)]
            changing = threading.Thread(target=change)
            for each in [*putting, changing]:
                each.start()
            for each in putting:
                each.join()
            stop.set()
            changing.join()
            p.flush()
    finally:
        thread.stop()

    by_key = values_by_key(broker)
    for name in range(3):
        assert by_key[f"t{name}"] == list(range(1_500))


async def _once(work: Callable[[], None]) -> None:
    work()
    await asyncio.sleep(0)
