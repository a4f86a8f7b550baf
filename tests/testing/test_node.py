"""`streamkit.testing.Node`: a real node in a test, whose clock, disk, network and workers the test commands."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from streamkit import Client, Consumer, Producer, RecordProcessor, RetryPolicy, Worker, errors
from streamkit.testing import Clock, Node
from tests.waiting import until


@pytest.fixture
def node():
    with Node() as made:
        yield made


def put(node: Node, count: int, first: int = 0, stream: str = "orders") -> None:
    with node.producer(stream) as producer:
        for number in range(first, first + count):
            producer.put({"id": number}, key=f"k{number % 4}")


def noting(**options):
    consumer = Consumer("orders", application="billing", start="trim_horizon", **options)
    seen: list[int] = []

    @consumer.handler
    def note(order: dict) -> None:
        seen.append(order["id"])

    return consumer, seen


def test_it_is_ready_in_a_moment():
    """Acceptance: embedded test node < 200 ms."""
    with Node():
        took = []
        for _ in range(5):
            began = time.perf_counter()
            with Node():
                took.append(time.perf_counter() - began)

    assert sorted(took)[2] < 0.2


def test_a_consumer_made_for_nowhere_runs_on_it_until_it_is_idle(node):
    consumer, seen = noting()
    node.create_stream("orders", shards=2)
    put(node, 30)

    node.run_until_idle(consumer)
    put(node, 10, first=30)
    node.run_until_idle(consumer)

    assert sorted(seen) == list(range(40)) and not consumer.running
    billing = node.application("billing")
    assert billing.lag.records == 0 and billing.workers == ()
    assert sum(billing.checkpoints.values()) == 40 + 2 and len(billing.checkpoints) == 2


def test_a_second_node_is_another_place(node):
    consumer, seen = noting()
    put(node, 5)
    node.run_until_idle(consumer)

    with Node() as other:
        put(other, 3, first=100)
        other.run_until_idle(consumer)

    assert sorted(seen) == [0, 1, 2, 3, 4, 100, 101, 102]


def test_several_consumers_run_together(node):
    first, seen_by_first = noting()
    second = Consumer("orders", application="audit", start="trim_horizon")
    seen_by_second: list[int] = []

    @second.handler
    async def note(order: dict) -> None:
        seen_by_second.append(order["id"])

    put(node, 8)
    node.run_until_idle(first, second)

    assert sorted(seen_by_first) == sorted(seen_by_second) == list(range(8))


def test_a_worker_with_a_processor_runs_on_it_too(node):
    class Totals(RecordProcessor):
        total = 0

        def process(self, batch, checkpointer):
            Totals.total += sum(record.value["id"] for record in batch)
            checkpointer.checkpoint()

    put(node, 5)
    node.run_until_idle(Worker("orders", application="totals", start="trim_horizon", processor=Totals))

    assert Totals.total == 10


def test_what_is_never_idle_says_where_and_why(node):
    consumer = Consumer(
        "orders", application="billing", start="trim_horizon", retry=RetryPolicy(first_ms=1, last_ms=5)
    )

    @consumer.handler
    def never(order: dict) -> None:
        raise ValueError("not today")

    put(node, 3)
    with pytest.raises(errors.TimedOut, match=r"behind on orders/shardId-0+ by 3 \(owned\); their handlers failed \d"):
        node.run_until_idle(consumer, timeout_s=0.5)

    assert not consumer.running


def test_what_ends_a_consumer_is_raised(node):
    consumer = Consumer(
        "orders", application="billing", start="trim_horizon", on_exhausted="stop",
        retry=RetryPolicy(attempts_max=1),
    )

    @consumer.handler
    def never(order: dict) -> None:
        raise ValueError("not today")

    put(node, 3)
    with pytest.raises(errors.StreamkitError, match="not today"):
        node.run_until_idle(consumer)


def test_records_are_gone_when_their_time_is_over(node):
    node.create_stream("orders", retention_hours=24)
    put(node, 10)
    node.clock.advance(hours=23)
    before = len(list(node.reader("orders", start="trim_horizon", until="latest")))
    put(node, 5, first=10)

    node.clock.advance(hours=2)

    left = [record.value["id"] for record in node.reader("orders", start="trim_horizon", until="latest")]
    assert before == 10 and left == [10, 11, 12, 13, 14]


def test_leases_expire_when_time_passes_and_running_workers_come_back(node):
    consumer, seen = noting()
    put(node, 4)
    node.start(consumer)
    until(lambda: len(seen) == 4)

    node.clock.advance(minutes=5)
    put(node, 4, first=4)
    until(lambda: len(set(seen)) == 8)
    node.stop(consumer)

    assert sorted(set(seen)) == list(range(8))


def test_a_killed_worker_is_replaced_when_its_leases_expire(node):
    consumer, seen = noting()
    heir, seen_by_heir = noting(worker="heir")
    put(node, 4)
    node.start(consumer)
    until(lambda: len(seen) == 4)

    node.fail("kill_worker")
    put(node, 4, first=4)
    node.start(heir)
    node.clock.advance(seconds=30)
    until(lambda: {4, 5, 6, 7} <= set(seen_by_heir))
    node.stop(heir)

    assert not consumer.running and seen == [0, 1, 2, 3]


def test_a_full_disk_refuses_puts_and_lets_them_in_when_there_is_room(node):
    put(node, 2)

    with node.fail("disk_full"):
        producer = node.producer("orders", delivery_timeout_ms=700)
        failed = producer.put({"id": 2}, key="a").exception(30)
        read = list(node.reader("orders", start="trim_horizon", until="latest"))
        producer.close()
    put(node, 1, first=3)

    assert isinstance(failed, errors.StreamkitError) and len(read) == 2
    assert 3 in [record.value["id"] for record in node.reader("orders", start="trim_horizon", until="latest")]


def test_a_slow_disk_makes_puts_late(node):
    with node.producer("orders") as producer:
        producer.put_and_wait({"id": 0}, key="a")
        with node.fail("slow_disk"):
            began = time.monotonic()
            producer.put_and_wait({"id": 1}, key="a")
            late_s = time.monotonic() - began

    assert 0.2 < late_s < 5


def test_a_partition_is_waited_out(node):
    consumer, seen = noting()
    put(node, 2)
    node.start(consumer)
    until(lambda: len(seen) == 2)

    with node.producer("orders") as producer:
        producer.put_and_wait({"id": 7}, key="a")
        with node.fail("partition"):
            handle = producer.put({"id": 2}, key="a")
            with pytest.raises(errors.StreamkitError):
                Client(node.url).list_streams()
            assert not handle.done()
        handle.result(20)
        until(lambda: 2 in seen)
    node.stop(consumer)

    assert sorted(set(seen)) == [0, 1, 2, 7]


def test_a_fault_that_is_none_is_refused(node):
    with pytest.raises(errors.InvalidUse, match="'flood' is no fault"):
        node.fail("flood")  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidUse, match="no worker of this node runs"):
        node.fail("kill_worker")
    with pytest.raises(errors.InvalidUse, match="time does not go back"):
        node.clock.advance(hours=-1)


def test_it_is_found_again_after_a_restart(node):
    put(node, 3)
    url = node.url

    node.restart()

    assert node.url == url
    assert len(list(node.reader("orders", start="trim_horizon", until="latest"))) == 3


def test_files_in_memory_are_gone_and_others_stay(tmp_path):
    with Node() as node:
        memory = Path(node.data_dir)
        assert memory.exists()
    with Node(str(tmp_path / "kept"), clock=Clock()) as node:
        put(node, 2)

    assert not memory.exists()
    with Node(str(tmp_path / "kept")) as node:
        assert len(list(node.reader("orders", start="trim_horizon", until="latest"))) == 2


def test_the_kinesis_api_is_there_when_asked_for():
    import boto3

    with Node(kinesis=True) as node, Producer("orders", url=node.url) as producer:
        producer.put_and_wait({"id": 1}, key="a")
        kinesis = boto3.client(
            "kinesis", endpoint_url=node.kinesis_url, region_name="us-east-1", aws_access_key_id="a",
            aws_secret_access_key="b",
        )  # fmt: skip
        kinesis.put_record(StreamName="orders", PartitionKey="a", Data=b"two")
        records = list(node.reader("orders", start="trim_horizon", until="latest", codec="bytes"))

    assert [record.data for record in records] == [b'{"id":1}', b"two"]
