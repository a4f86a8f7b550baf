"""Producer from threads: blocking calls, fork, exit and collection."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from typing import Any

import pytest

from streamkit._core import debug
from streamkit.errors import (
    BufferFull,
    Closed,
    ForkedHandle,
    InvalidConfig,
    InvalidRequest,
    InvalidUse,
    PutFailed,
    RecordTooLarge,
    TimedOut,
)
from streamkit.producer.entry import PutEntry, PutResult
from streamkit.producer.producer import Producer
from streamkit.runtime.real import LoopThread
from tests.producer.fake_broker import FakeBroker


def producer(broker: FakeBroker, **options: Any) -> Producer:
    return Producer("orders", client=broker, **options)  # type: ignore[arg-type]


def on_loop(work: Any) -> None:
    async def call() -> None:
        work()

    LoopThread.shared().run(call())


def test_put_and_wait_gives_the_place() -> None:
    with producer(FakeBroker(shards=1)) as p:
        first = p.put_and_wait({"id": 1}, key="k")
        second = p.put({"id": 2}, key="k").result(5)

    assert isinstance(first, PutResult)
    assert (first.stream, first.shard, first.duplicate) == ("orders", "shardId-000000000000", False)
    assert first.arrived.tzinfo is not None
    assert int(first.sequence_number) < int(second.sequence_number)


def test_put_many_takes_entries() -> None:
    broker = FakeBroker(shards=1)
    with producer(broker) as p:
        handles = p.put_many(PutEntry(i, key="k", headers={"a": "b"}) for i in range(5))
        assert [handle.result().duplicate for handle in handles] == [False] * 5

    assert [value for _, value in broker.stored()] == [b"0", b"1", b"2", b"3", b"4"]


@pytest.mark.parametrize("looked", [True, False])
def test_an_entry_that_is_refused_fails_in_its_own_handle_and_flush_raises_it_unless_somebody_looked(looked) -> None:
    broker = FakeBroker(shards=1)
    with producer(broker) as p:
        first, refused, last = p.put_many([PutEntry(b"a"), PutEntry(b"b", key="x" * 3_000), PutEntry(b"c")])

        assert refused.done() and refused.outcome == "failed"
        assert not first.result().duplicate and not last.result().duplicate
        if looked:
            assert isinstance(refused.exception(), InvalidRequest)
            p.flush()
        else:
            with pytest.raises(PutFailed) as caught:
                p.flush()
            assert caught.value.facts["count"] == 1
            p.flush()                              # raised once
    assert [value for _, value in broker.stored()] == [b"a", b"c"]


def test_threads_share_a_producer() -> None:
    broker = FakeBroker(shards=3)
    with producer(broker, batch_bytes_max=2_000, buffer_bytes_max=50_000) as p:

        def put_some(name: str) -> None:
            for i in range(2_000):
                p.put(b"%d" % i, key=name)

        threads = [threading.Thread(target=put_some, args=(f"thread-{n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        p.flush()

    by_key: dict[str, list[int]] = {}
    for key, value in broker.stored():
        by_key.setdefault(key, []).append(int(value))
    assert by_key == {f"thread-{n}": list(range(2_000)) for n in range(4)}


def test_put_blocks_until_there_is_room() -> None:
    broker = FakeBroker(shards=1)
    with producer(broker, buffer_bytes_max=1_000) as p:
        p.put_and_wait(b"0", key="k")
        broker.held = []
        done = threading.Event()

        def put_some() -> None:
            for _ in range(10):
                p.put(b"v" * 300, key="k")
            done.set()

        thread = threading.Thread(target=put_some)
        thread.start()
        assert not done.wait(0.02)
        on_loop(broker.release)
        thread.join()
        p.flush()
    assert len(broker.stored()) == 11


def test_waiting_for_an_answer_may_time_out_and_go_on() -> None:
    broker = FakeBroker(shards=1)
    with producer(broker) as p:
        p.put_and_wait(b"0", key="k")
        broker.held = []
        handle = p.put(b"1", key="k")
        with pytest.raises(TimedOut):
            handle.result(0.001)
        with pytest.raises(TimedOut):
            p.flush(0.001)
        on_loop(broker.release)
        assert not handle.result().duplicate


def test_waiting_on_the_loop_that_settles_is_misuse() -> None:
    broker = FakeBroker(shards=1)
    with producer(broker) as p:
        p.put_and_wait(b"0", key="k")
        broker.held = []
        handle = p.put(b"1", key="k")
        with pytest.raises(InvalidUse):
            on_loop(handle.result)
        on_loop(broker.release)


def test_bad_records_are_refused_at_put() -> None:
    with producer(FakeBroker(record_bytes_max=100)) as p:
        with pytest.raises(RecordTooLarge) as caught:
            p.put(b"v" * 101, key="k")
        assert caught.value.facts == {"size_bytes": 102, "limit_bytes": 100}
        for key in ("", "k" * 1_025):
            with pytest.raises(InvalidRequest):
                p.put(b"v", key=key)
        with pytest.raises(InvalidUse):
            p.put(object(), key="k")
        assert p.stats()["records"] == 0


def test_a_producer_without_a_stream_needs_one_at_put() -> None:
    with Producer(client=FakeBroker()) as p:
        with pytest.raises(InvalidUse):
            p.put(b"v", key="k")
        p.put(b"v", key="k", stream="orders").result()


@pytest.mark.parametrize(
    "options",
    [{"linger_ms": -1}, {"batch_bytes_max": 0}, {"on_full": "no"}, {"compression": "gzip"}, {"delivery_timeout_ms": 0}],
)
def test_impossible_settings_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig):
        producer(FakeBroker(), **options)


def test_columns_fail_with_buffer_full_where_waiting_is_not_wanted() -> None:
    import pyarrow

    with producer(FakeBroker(), buffer_bytes_max=1_000, on_full="raise") as p:
        handle = p.put_columns(pyarrow.array(["k"] * 50), pyarrow.array([b"v" * 100] * 50))
        with pytest.raises(PutFailed) as caught:
            handle.result()
    assert isinstance(caught.value.failures[0], BufferFull)
    assert 0 < list(handle.states).count(1) < 50


def test_closed_is_closed() -> None:
    p = producer(FakeBroker())
    p.close()
    p.close()
    for call in (lambda: p.put(b"v", key="k"), p.flush):
        with pytest.raises(Closed):
            call()


def test_an_error_in_the_block_is_not_hidden_by_failed_records() -> None:
    broker = FakeBroker(shards=1)
    broker.faults = lambda number: RecordTooLarge("no")
    with pytest.raises(ZeroDivisionError), producer(broker) as p:
        p.put(b"v", key="k")
        raise ZeroDivisionError


def test_a_fork_leaves_the_records_to_the_parent() -> None:
    broker = FakeBroker(shards=2)
    with producer(broker) as p:
        p.put_and_wait(b"0", key="k")
        broker.held = []
        handles = [p.put(b"%d" % i, key=f"k{i}") for i in range(1, 100)]
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                answers = []
                for call in (lambda: p.put(b"v", key="k"), handles[0].result, p.flush, p.close):
                    try:
                        call()
                        answers.append("ok")
                    except Exception as error:
                        answers.append(type(error).__name__)
                os.write(write, ",".join(answers).encode())
            finally:
                os._exit(0)
        os.close(write)
        assert os.waitpid(child, 0)[1] == 0
        assert os.read(read, 1_000).decode() == f"InvalidUse,{ForkedHandle.__name__},InvalidUse,ok"
        os.close(read)
        on_loop(broker.release)
        p.flush()
        assert all(handle.done() for handle in handles)

    assert len(broker.stored()) == 100


SCRIPT = """
import warnings
from tests.producer.fake_broker import FakeBroker
from streamkit.producer.producer import Producer

class Loud(FakeBroker):
    def _append(self, uuid, batch):
        receipt = super()._append(uuid, batch)
        print(len(self.stored()), flush=True)
        return receipt

p = Producer("orders", client=Loud(shards=1), linger_ms=1_000)
for i in range(50):
    p.put(b"v", key="k")
"""


def test_the_end_of_the_interpreter_sends_what_is_left() -> None:
    ended = subprocess.run(
        [sys.executable, "-W", "always", "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True
    )

    assert ended.stdout.split()[-1] == "50"
    assert "ResourceWarning: a producer was not closed: 0 records were not acknowledged" in ended.stderr


def test_a_collected_producer_warns_with_the_number_not_acknowledged() -> None:
    broker = FakeBroker(shards=1)
    p = producer(broker)
    p.put_and_wait(b"0", key="k")
    broker.held = []
    p.put(b"1", key="k")
    with pytest.warns(ResourceWarning, match="1 records"):
        del p
        gc.collect()
    on_loop(broker.release)


def test_nothing_is_left_alive() -> None:
    gc.collect()
    before = debug.live()
    with producer(FakeBroker()) as p:
        for i in range(100):
            p.put(b"v" * 1_000, key=f"k{i}")
    del p
    on_loop(lambda: None)
    gc.collect()

    after = debug.live()
    assert {name: count for name, count in after.items() if count > before[name]} == {}


def test_a_codec_without_its_package_is_refused_at_once() -> None:
    program = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == "zstandard":
            raise ImportError(name)
sys.meta_path.insert(0, Missing())
from streamkit.errors import InvalidUse
from streamkit.producer.config import ProducerConfig
try:
    ProducerConfig(compression="zstd")
except InvalidUse as error:
    print(error.try_)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert "streamkit[zstd]" in ran.stdout


def test_exit_goes_on_behind_a_producer_whose_warning_is_an_error() -> None:
    program = """
import sys
from streamkit.producer.producer import Producer
from tests.producer.fake_broker import FakeBroker
brokers = [FakeBroker(shards=1), FakeBroker(shards=1)]
producers = [Producer("orders", client=broker) for broker in brokers]
for broker, producer in zip(brokers, producers):
    producer.put(b"0", key="k").result(10)
    producer.put(b"1", key="k")
import atexit
import streamkit.runtime.fork as fork
end = fork._end
def ended():
    end()
    print([len(broker.stored()) for broker in brokers], [producer._state for producer in producers])
atexit.unregister(end)
atexit.register(ended)
"""
    ran = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", program], capture_output=True, text=True, timeout=60
    )
    assert ran.stdout.strip() == "[2, 2] ['closed', 'closed']"
