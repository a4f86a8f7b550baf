"""One Producer, many threads and event loops: puts keep their caller's order, an awaited handle wakes its own loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from typing import Any

import pyarrow
import pytest

from streamkit.producer.entry import PutResult
from streamkit.producer.producer import Producer
from streamkit.runtime.real import LoopThread
from tests.producer.fake_broker import FakeBroker

THREADS = 6


def producer(broker: FakeBroker, **options: Any) -> Producer:
    return Producer("orders", client=broker, loop_thread=LoopThread.shared(), **options)


def in_threads(work: Any) -> list[Any]:
    """What work(number) gave, each in a thread of its own."""
    found: list[Any] = [None] * THREADS
    threads = [threading.Thread(target=lambda i=i: found.__setitem__(i, work(i))) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return found


def test_handles_wake_the_event_loop_that_awaits_them() -> None:
    broker = FakeBroker(shards=3)
    with producer(broker, batch_bytes_max=2_000) as p:

        async def talk(number: int) -> list[PutResult]:
            handles = [p.put(b"%d" % i, key=f"t{number}") for i in range(300)]
            results = [await handle for handle in handles[:100]]
            return results + list(await asyncio.gather(*map(one, handles[100:])))

        async def one(handle: Any) -> PutResult:
            result: PutResult = await handle
            return result

        results = in_threads(lambda number: asyncio.run(asyncio.wait_for(talk(number), 20)))

    assert all(len(each) == 300 for each in results)
    for number in range(THREADS):
        assert [int(value) for key, value in broker.stored() if key == f"t{number}"] == list(range(300))


def test_one_handle_may_be_awaited_in_several_loops_and_waited_for_in_a_thread() -> None:
    broker = FakeBroker(shards=1)
    broker.held = []
    with producer(broker) as p:
        handle = p.put(b"v", key="k")
        waiting = threading.Barrier(THREADS + 1)

        async def wait() -> PutResult:
            found = asyncio.ensure_future(asyncio.wait_for(_awaited(handle), 20))
            await asyncio.sleep(0)
            waiting.wait(20)
            return await found

        def release() -> None:
            waiting.wait(20)
            LoopThread.shared().call(broker.release)

        threading.Thread(target=release).start()
        results = in_threads(lambda number: asyncio.run(wait()) if number else _blocking(handle, waiting))

    assert len(set(results)) == 1


async def _awaited(handle: Any) -> PutResult:
    result: PutResult = await handle
    return result


def _blocking(handle: Any, waiting: threading.Barrier) -> PutResult:
    waiting.wait(20)
    result: PutResult = handle.result(20)
    return result


def test_a_loop_that_ended_disturbs_nobody_else_who_waits() -> None:
    broker = FakeBroker(shards=1)
    broker.held = []
    with producer(broker) as p:
        handle = p.put(b"v", key="k")

        async def give_up() -> None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(_awaited(handle), 0.01)

        asyncio.run(give_up())
        LoopThread.shared().call(broker.release)
        assert handle.result(20).shard == "shardId-000000000000"


STALLED = """
import resource, sys
from streamkit.producer.producer import Producer
from streamkit.errors import BufferFull
from streamkit.runtime.real import LoopThread
from tests.producer.fake_broker import FakeBroker

class Stalled(FakeBroker):
    def put_batch(self, shard, batch, on_done, timeout_ms=None):
        pass

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

size, how, room = int(sys.argv[1]), sys.argv[2], 48 << 20
p = Producer("orders", client=Stalled(4), loop_thread=LoopThread.shared(), buffer_bytes_max=room, shard_share=1.0,
             compression="none", on_full=how, max_block_ms=300)
p.put(b"v" * size, key="warm")
before, count, value = resident(), 0, b"v" * size
try:
    while not (how == "drop_new" and p.stats()["records_dropped"] > 1_000):
        for _ in range(100):
            p.put(value, key=str(count))
            count += 1
except BufferFull:
    pass
assert p.stats()["buffered_bytes"] > 0.9 * room, p.stats()
print(resident() - before, room)
sys.stdout.flush()
import os; os._exit(0)
"""


@pytest.mark.parametrize(("size", "how"), [(1_000, "wait"), (100_000, "raise"), (1_000, "drop_new")])
def test_memory_stays_within_the_buffer_while_the_broker_stands_still(size: int, how: str) -> None:
    """Acceptance: producer 8.

    A sender at full speed grows by no more than the buffer and a tenth; wait, raise and drop behave.
    """
    done = subprocess.run([sys.executable, "-c", STALLED, str(size), how], capture_output=True, text=True, timeout=60,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    grown, room = map(int, done.stdout.split())
    assert grown <= 1.1 * room, grown / room


def test_a_bulk_put_makes_no_python_object_a_row() -> None:
    """Acceptance: producer 13. Allocation counting shows no object a record in the bulk call."""
    broker = FakeBroker(shards=2)
    rows = 50_000
    keys, values = pyarrow.array([f"k{i}" for i in range(rows)]), pyarrow.array([b"v" * 20] * rows)
    broker.put_batch = lambda *args: None  # type: ignore[method-assign]
    p = producer(broker, compression="none")
    p.put_columns(keys.slice(0, 10), values.slice(0, 10))
    before = sys.getallocatedblocks()
    handle = p.put_columns(keys, values)
    made = sys.getallocatedblocks() - before
    with pytest.raises(Exception, match="not stored"):
        p.close(0)

    assert handle.count == rows
    assert made < rows // 100
