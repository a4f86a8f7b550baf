"""Programs as people are promised that they may write them, on a real node; only the address is given from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from streamkit.client.sync import Client
from tests.end_to_end.processes import broker

Run = Callable[[str], str]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with broker(tmp_path / "data") as served:
        with Client(served.url) as client:
            client.create_stream("orders", shards=2)
            client.create_stream("orders-failed")

        def program(text: str) -> str:
            file = tmp_path / "program.py"
            file.write_text(textwrap.dedent(text))
            done = subprocess.run(
                [sys.executable, str(file)], env={**os.environ, "STREAMKIT_URL": served.url}, capture_output=True,
                text=True, timeout=40, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            return done.stdout

        yield program


PUT = """
    from streamkit import Producer

    with Producer("orders") as producer:
        for number in range(5):
            producer.put_and_wait({"id": number, "total": 2.5}, key="customer-7")
"""


def test_a_producer_tells_each_records_fate(run: Run) -> None:
    said = run(
        """
        from streamkit import Producer, errors

        orders = [{"id": 1, "customer": "a"}, {"id": 2, "customer": "b", "photo": "x" * (2 << 20)}]

        with Producer("orders") as producer:
            for order in orders:
                try:
                    handle = producer.put(order, key=order["customer"])
                    print("put", handle.result().shard)
                except errors.RecordTooLarge as e:           # permanent: e.retryable is False
                    print("too large", e.retryable, e.facts["limit_bytes"] < e.facts["size_bytes"])
                except errors.TimedOut as e:                 # retried inside; fate unknown if e.facts["sent"]
                    print("late", e.facts["sent"])
        """
    )

    first, second = said.splitlines()
    assert first.startswith("put shardId-") and second == "too large False True"


def test_a_function_gets_what_its_annotation_says_and_bad_data_goes_to_the_dead_letters(run: Run) -> None:
    said = run(
        """
        import msgspec
        from streamkit import Consumer, Context, Producer, Reader, RetryPolicy

        class Order(msgspec.Struct):
            id: int
            total: float

        consumer = Consumer(
            "orders", application="billing", start="trim_horizon",     # start is required: there is no safe default
            retry=RetryPolicy(attempts_max=5, first_ms=200, last_ms=30_000),
            dead_letter="orders-failed",
        )

        @consumer.handler
        async def bill(order: Order, ctx: Context) -> None:            # decoded and validated by the annotation
            print("bill", order.id, order.total, ctx.record.sequence_number.isdigit())

        with Producer("orders") as producer:
            producer.put_and_wait({"id": 1, "total": 2.5}, key="a")
            producer.put_and_wait({"id": "x", "total": 2.5}, key="a")

        with consumer:
            for dead in Reader("orders-failed", start="trim_horizon"):
                print(dead.headers["dead-letter-reason"].decode())
                break
        """
    )

    bill, reason = said.splitlines()
    assert bill == "bill 1 2.5 True"
    assert "int" in reason and "str" in reason and "id" in reason


def test_a_processor_lives_from_initialize_to_lease_lost(run: Run) -> None:
    said = run(
        PUT
        + """
    import threading
    from streamkit import Batch, Checkpointer, RecordProcessor, ShardContext, Worker

    done = threading.Event()

    class Totals(RecordProcessor):
        async def initialize(self, ctx: ShardContext) -> None:            # position, fencing_token, …
            self.total = 0.0
            self.fence = ctx.fencing_token

        async def process(self, batch: Batch, checkpointer: Checkpointer) -> None:
            for record in batch:
                self.total += record.value["total"]
            assert self.fence == checkpointer.fencing_token
            await checkpointer.checkpoint()                               # covers what was processed
            if self.total == 12.5:
                done.set()

        async def shutdown_requested(self, checkpointer: Checkpointer) -> None:
            await checkpointer.checkpoint()

        async def lease_lost(self) -> None:
            if self.total:
                print("total", self.total)

    worker = Worker("orders", application="totals", start="trim_horizon", processor=Totals)
    with worker:
        assert done.wait(20)
    print("left", worker.lag().records)
    """
    )

    total, left = said.splitlines()
    assert total == "total 12.5"
    assert left in ("left 0", "left 1"), "the shard that got nothing may still have its beginning before it"


def test_a_reader_needs_no_application(run: Run) -> None:
    said = run(
        PUT
        + """
    from datetime import UTC, datetime, timedelta
    from streamkit import Reader

    for record in Reader("orders", start=datetime.now(UTC) - timedelta(hours=1), until="latest",
                         where="data.id > 2"):
        print(record.value["id"])
    """
    )

    assert said.split() == ["3", "4"]


def test_administration_has_typed_errors_and_frozen_answers(run: Run) -> None:
    said = run(
        """
        from streamkit import Client, errors

        with Client() as client:
            try:
                client.create_stream("orders", shards=4, retention_hours=48)
            except errors.StreamExists as e:
                print(e.code, e.retryable, bool(e.try_))
            s = client.describe_stream("orders")
            print(s.name, len(s.shards))
            try:
                client.describe_stream("ordres")
            except errors.NotFound as e:
                print(type(e).__name__)
        """
    )

    assert said.splitlines() == ["stream_exists False True", "orders 2", "StreamNotFound"]
