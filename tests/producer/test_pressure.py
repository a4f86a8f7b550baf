"""A full buffer: who waits, who is told, and what one stuck shard may hold."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pyarrow
import pytest

from streamkit._core.hashing import ShardTable
from streamkit.errors import BufferFull, PutFailed, RecordTooLarge, StreamkitError, Throttled
from streamkit.producer.producer import AsyncProducer
from tests.producer.fake_broker import FakeBroker


def producer(broker: FakeBroker, **options: Any) -> AsyncProducer:
    return AsyncProducer("orders", client=broker, **options)  # type: ignore[arg-type]


def keys_of(broker: FakeBroker, shard: int) -> list[str]:
    """Keys that belong to the shard."""
    table = ShardTable([(each.hash_start, each.hash_end) for each in broker.description.shards])
    return [key for key in (f"k{i}" for i in range(200)) if table.find_key(key) == shard]


class StuckShard(FakeBroker):
    """One shard whose batches are answered only when `free` is called."""

    def __init__(self, shards: int, stuck: int) -> None:
        super().__init__(shards)
        self.uuid = self.description.shards[stuck].uuid
        self.waiting: list[tuple[Any, ...]] | None = []

    def put_batch(self, shard: Any, batch: Any, on_done: Any, timeout_ms: int | None = None) -> None:
        if self.waiting is not None and shard.uuid == self.uuid:
            self.waiting.append((shard, batch, on_done, timeout_ms))
        else:
            super().put_batch(shard, batch, on_done, timeout_ms)

    def free(self) -> None:
        waiting, self.waiting = self.waiting or [], None
        for call in waiting:
            super().put_batch(*call)


async def test_one_stuck_shard_takes_its_share_and_the_others_go_on() -> None:
    """Acceptance: producer 8.

    Memory is bounded while a broker stalls, and other shards go on when one is stuck.
    """
    broker = StuckShard(2, stuck=0)
    slow, quick = keys_of(broker, 0), keys_of(broker, 1)
    async with producer(broker, buffer_bytes_max=100_000, shard_share=0.5, batch_bytes_max=2_000) as p:
        async def fill() -> int:
            for i in range(200):
                await p.put(b"v" * 1_000, key=slow[i % len(slow)])
            return 200

        filling = asyncio.ensure_future(fill())
        await asyncio.sleep(0.05)
        assert not filling.done()                # its share is used up
        stuck_bytes = p.stats()["buffered_bytes"]
        assert 40_000 < stuck_bytes <= 50_000
        for i in range(500):                     # ten times what the buffer has left
            await p.put_and_wait(b"v" * 1_000, key=quick[i % len(quick)])
        assert p.stats()["buffered_bytes"] == stuck_bytes
        assert p.stats()["shards"][0]["buffered_bytes"] == stuck_bytes
        broker.free()
        assert await filling == 200
    assert len(broker.stored()) == 700
    assert p.stats()["puts_blocked"] >= 1
    assert p.stats()["block_seconds"]["count"] >= 1


async def test_a_put_gives_up_waiting_and_says_which_shard_is_stuck() -> None:
    """Acceptance: producer 8.

    Awaiting ends with BufferFull after max_block_ms, naming shard, age and last refusal.
    """
    broker = FakeBroker(shards=2)
    broker.faults = lambda number: Throttled("too much at once", retry_after_ms=5)
    p = producer(broker, buffer_bytes_max=4_000, max_block_ms=60, delivery_timeout_ms=60_000)
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    with pytest.raises(BufferFull, match="too much at once") as caught:
        for _ in range(10):
            await p.put(b"v" * 900, key="k")
    assert 0.05 <= loop.time() - began_s < 5
    assert caught.value.facts["shard"].startswith("shardId-")
    assert caught.value.facts["cause"] == "throttled"
    assert caught.value.facts["oldest_ms"] >= 50
    broker.faults = lambda number: None
    await p.close()


async def test_new_records_are_dropped_where_that_is_wanted(caplog: pytest.LogCaptureFixture) -> None:
    """Acceptance: producer 8. drop_new counts and reports, and neither waits nor raises."""
    broker = FakeBroker(shards=1)
    with caplog.at_level(logging.WARNING, "streamkit.producer"):
        async with producer(broker, buffer_bytes_max=10_000, on_full="drop_new") as p:
            broker.held = []
            handles = [await p.put(b"v" * 900, key="k") for _ in range(100)]
            columns = await p.put_columns(pyarrow.array([b"k"]), pyarrow.array([b"v" * 900]))
            await asyncio.sleep(0)
            broker.release()
            await p.flush()                      # does not raise what was dropped
            assert p.stats()["records_dropped"] == 100 - len(broker.stored()) + 1
    failed = [handle for handle in handles if handle.exception() is not None]
    assert 80 < len(failed) == 100 - len(broker.stored())
    assert columns.failed == 1
    assert isinstance(failed[0].exception(), BufferFull)
    assert sum("producer.dropped" in record.getMessage() for record in caplog.records) == 1


async def test_pressure_is_told_once_on_the_way_up_and_once_on_the_way_down() -> None:
    broker = FakeBroker(shards=1)
    told: list[bool] = []
    async with producer(broker, buffer_bytes_max=20_000, batch_bytes_max=1_000, on_pressure=told.append) as p:
        for _ in range(3):
            broker.held = []
            while p.stats()["buffered_bytes"] < 16_500:
                await p.put(b"v" * 400, key="k")
            await asyncio.sleep(0.01)
            broker.release()
            await p.flush()
    assert told == [True, False] * 3


async def test_a_callback_that_raises_does_not_stop_the_sender(caplog: pytest.LogCaptureFixture) -> None:
    broker = FakeBroker(shards=1)

    def raises(*_: object) -> None:
        raise ValueError("the caller's own")

    async with producer(broker, buffer_bytes_max=5_000, on_pressure=raises, on_error=raises) as p:
        for i in range(100):
            await p.put(b"v" * 900, key="k")
            if i == 50:
                broker.faults = lambda number: RecordTooLarge("no", size_bytes=1, limit_bytes=0)
        await asyncio.sleep(0.05)
    assert {"producer.on_pressure_failed", "producer.on_error_failed"} <= {r.getMessage() for r in caplog.records}


async def test_failures_of_handles_that_nobody_holds_are_told_and_not_raised_again() -> None:
    broker = FakeBroker(shards=1)
    told: list[tuple[StreamkitError, int]] = []
    p = producer(broker, on_error=lambda error, count: told.append((error, count)))
    await p.put_and_wait(b"v", key="k")
    broker.faults = lambda number: RecordTooLarge("no", size_bytes=1, limit_bytes=0)
    for _ in range(7):
        await p.put(b"v", key="k")
    held = [await p.put(b"v", key="k") for _ in range(3)]
    await p.put_columns(pyarrow.array([b"k", b"k"]), pyarrow.array([b"v", b"v"]))
    with pytest.raises(PutFailed) as caught:
        await p.flush()                          # of those whose handle somebody holds
    assert caught.value.facts["count"] == 3
    assert sum(count for _, count in told) == 9
    assert {error.code for error, _ in told} == {"record_too_large"}
    assert all(isinstance(handle.exception(), RecordTooLarge) for handle in held)
    await p.close()


async def test_a_throttled_shard_does_not_hold_up_the_others() -> None:
    broker = FakeBroker(shards=2)
    throttled, free = keys_of(broker, 0)[0], keys_of(broker, 1)[0]
    first = broker.description.shards[0].uuid
    take, refusing = broker._take, True

    def takes(uuid: bytes, batch: bytes) -> Any:
        return Throttled("slow down", retry_after_ms=200) if refusing and uuid == first else take(uuid, batch)

    broker._take = takes  # type: ignore[method-assign]
    loop = asyncio.get_running_loop()
    async with producer(broker, batch_bytes_max=1_000) as p:
        waiting = [await p.put(b"v" * 400, key=throttled) for _ in range(40)]
        began_s = loop.time()
        for _ in range(100):
            await p.put_and_wait(b"v", key=free)
        assert loop.time() - began_s < 0.19 or not waiting[0].done()
        window = p.stats()["shards"][0]["window_bytes"]
        assert window < 5_000
        refusing = False
        await p.flush()
        stats = p.stats()
    assert [handle.exception() for handle in waiting] == [None] * 40
    assert stats["throttled"] >= 1
    assert stats["throttled_seconds"] >= 0.2
    assert stats["retries"]["throttled"] >= 1
    assert [len(handle.attempts) >= 2 for handle in waiting[:1]] == [True]
    assert waiting[0].attempts[0].error.code == "throttled"
    assert waiting[0].attempts[-1].error is None


async def test_a_throttled_record_fails_at_once_where_that_is_wanted() -> None:
    broker = FakeBroker(shards=1)
    broker.faults = lambda number: Throttled("slow down", retry_after_ms=60_000)
    async with producer(broker, fail_if_throttled=True) as p:
        with pytest.raises(Throttled):
            await p.put_and_wait(b"v", key="k")
