"""Records without a key go where there is least to do, stay in the shard's range, and leave slow shards alone."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import replace
from typing import Any

import pyarrow

from streamkit._core.batch import Batch, check_batch
from streamkit.errors import PutFailed
from streamkit.model.stream import StreamDescription
from streamkit.producer.producer import AsyncProducer
from streamkit.simulator.loop import Process, SimulatedLoop
from tests.producer.fake_broker import FakeBroker


def producer(broker: FakeBroker, **options: Any) -> AsyncProducer:
    return AsyncProducer("orders", client=broker, **options)  # type: ignore[arg-type]


class TimedBroker(FakeBroker):
    """Each shard answers one batch after the other and takes `each_s[ordinal]` for it, in simulated time."""

    def __init__(self, each_s: list[float], loop: SimulatedLoop) -> None:
        super().__init__(len(each_s))
        self.each_s = each_s
        self.loop = loop
        self.free_at_s = [0.0] * len(each_s)
        self.answered: Counter[int] = Counter()
        self.runtime = replace(self.runtime, clock=self)       # type: ignore[arg-type]

    def monotonic_ms(self) -> int:
        return int(self.loop.time() * 1000)

    now_ms = monotonic_ms

    def put_batch(self, shard: Any, batch: Any, on_done: Any, timeout_ms: int | None = None) -> None:
        number = shard.ordinal
        answer = self._take(shard.uuid, bytes(batch))
        self.free_at_s[number] = max(self.free_at_s[number], self.loop.time()) + self.each_s[number]
        count = check_batch(bytes(batch)).record_count

        def reply() -> None:
            self.answered[number] += count
            on_done(answer)

        self.loop.call_at(self.free_at_s[number], reply)


def stored_by_shard(each_s: list[float], seconds: float) -> Counter[int]:
    """Records acknowledged in so many simulated seconds, while a producer puts as fast as it can."""
    loop = SimulatedLoop()
    broker = TimedBroker(each_s, loop)

    async def run() -> Counter[int]:
        p = producer(broker, batch_bytes_max=10_000, buffer_bytes_max=1_000_000, compression="none", on_full="raise")
        end_s = loop.time() + seconds
        while loop.time() < end_s:
            while p.stats()["buffered_bytes"] < 900_000:
                for _ in range(10):
                    await p.put(b"v" * 900)
            await asyncio.sleep(0.002)
        found = Counter(broker.answered)
        broker.each_s = [0.0] * len(each_s)
        with contextlib.suppress(PutFailed):     # what lies with a shard that never answers
            await p.close()
        return found

    try:
        return loop.run_until_complete(loop.spawn(Process("producer"), run()))
    finally:
        loop.close()


def test_a_slow_broker_gets_less_and_the_others_lose_nothing() -> None:
    """Acceptance: producer 15.

    One broker with 100 ms delay gets less traffic, not more; the healthy part's throughput stays.
    """
    healthy = stored_by_shard([0.02, 0.02, 0.02], 10)
    mixed = stored_by_shard([0.02, 0.02, 0.02, 0.1], 10)

    assert mixed[3] < min(mixed[i] for i in range(3)) / 2
    assert sum(mixed.values()) >= 0.9 * sum(healthy.values())


def test_a_shard_that_stands_still_is_left_out() -> None:
    mixed = stored_by_shard([0.02, 0.02, 3_600.0], 20)
    healthy = stored_by_shard([0.02, 0.02], 20)

    assert mixed[2] == 0
    assert sum(mixed.values()) >= 0.9 * sum(healthy.values())


async def test_keyless_records_are_spread_and_lie_within_their_shards_ranges() -> None:
    broker = FakeBroker(shards=4)
    async with producer(broker, batch_bytes_max=2_000) as p:
        results = [await (await p.put(b"%d" % i)) for i in range(200)]
        handles = [await p.put(b"v" * 100) for _ in range(2_000)]
        columns = await p.put_columns(None, pyarrow.array([b"c"] * 500))
        await p.flush()
        results += [handle.result() for handle in handles]

    assert columns.failed == 0
    assert p.stats()["records_keyless"] == 2_700
    by_shard = Counter(result.shard for result in results)
    assert len(by_shard) == 4
    assert min(by_shard.values()) > 200
    for batch in broker.batches:                 # FakeBroker refuses a batch with a hash key out of range
        assert all(record.key == "" for record in Batch(batch))
        header = check_batch(batch)
        assert header.attributes & 16            # says that it holds records without a key


async def test_keyless_records_stay_in_one_shard_for_the_length_of_a_batch() -> None:
    broker = FakeBroker(shards=4)
    async with producer(broker, linger_ms=60_000, batch_bytes_max=100_000) as p:
        for _ in range(500):
            await p.put(b"v" * 100)
        await p.flush()
    assert len(broker.batches) == 1


async def test_records_with_and_without_a_key_travel_together_and_keep_the_order_of_keys() -> None:
    broker = FakeBroker(shards=2)
    async with producer(broker, batch_bytes_max=3_000) as p:
        for i in range(1_000):
            await p.put(b"%d" % i, key=f"k{i % 5}" if i % 3 else None)
    stored = broker.stored()
    assert len(stored) == 1_000
    for number in range(5):
        values = [int(value) for key, value in stored if key == f"k{number}"]
        assert values == sorted(values)
        assert values
    assert sum(key == "" for key, _ in stored) == 334


async def test_keyless_records_of_a_split_shard_go_to_its_children() -> None:
    broker = FakeBroker(shards=1)
    async with producer(broker, batch_bytes_max=500) as p:
        broker.held = []
        for i in range(200):
            await p.put(b"%d" % i)
        before: StreamDescription = broker.description
        broker.split(before.shards[0].uuid)
        broker.release()
        for i in range(200, 400):
            await p.put(b"%d" % i)
            await asyncio.sleep(0)
        await p.flush()
    assert sorted(int(value) for _, value in broker.stored()) == list(range(400))
    assert all(broker.logs[shard.uuid] for shard in broker.description.shards[1:])
