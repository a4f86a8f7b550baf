"""The examples that people are promised, word for word, on a real node; what they leave open is put before them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from streamkit.client.sync import Client
from streamkit.consumer.consumer import Consumer
from streamkit.producer.producer import Producer
from tests.end_to_end.processes import broker
from tests.waiting import until

Run = Callable[..., str]


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with broker(tmp_path / "data") as served:
        with Client(served.url) as client:
            client.create_stream("orders", shards=2)
            client.create_stream("orders-failed")
        yield served.url


@pytest.fixture
def run(tmp_path: Path, url: str) -> Run:
    """What a program printed. last: a line after which it is stopped with Ctrl-C. on: a line, and what is done then."""

    def program(before: str, text: str, last: str = "", on: tuple[str, Callable[[], None]] | None = None) -> str:
        file = tmp_path / "program.py"
        file.write_text(textwrap.dedent(before) + textwrap.dedent(text))
        process = subprocess.Popen(
            [sys.executable, str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "STREAMKIT_URL": url, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        printed = ""
        with contextlib.ExitStack() as stack:
            stack.callback(process.kill)
            assert process.stdout is not None
            while last and last not in printed and (line := process.stdout.readline()):
                printed += line
                if on is not None and on[0] in line:
                    on[1]()
            if last:
                process.send_signal(signal.SIGINT)
            rest, complaints = process.communicate(timeout=60)
        assert process.returncode == 0, complaints
        assert "Traceback" not in complaints
        return printed + rest

    return program


def put(url: str, *values: object, key: str = "customer-7") -> None:
    with Producer("orders", url=url) as producer:
        for value in values:
            producer.put(value, key=key)


def test_a_producer_with_what_became_of_each_record(run: Run) -> None:
    said = run(
        """
        import msgspec

        class Order(msgspec.Struct):
            id: int
            customer: str

        orders = [Order(number, f"customer-{number}") for number in range(5)]
        """,
        """
        from streamkit import Producer, errors

        with Producer("orders") as producer:
            handles = [producer.put(o, key=o.customer) for o in orders]
            for handle in handles:
                try:
                    handle.result()
                except errors.RecordTooLarge as e:           # permanent: e.retryable is False
                    log.warning("too large", size=e.facts["size_bytes"], limit=e.facts["limit_bytes"])
                except errors.TimedOut as e:                 # retried inside until delivery_timeout_ms
                    park(e.facts["entry"])

        print(all(handle.done() for handle in handles), handles[0].result().sequence_number)
        """,
    )

    assert re.fullmatch(r"True \d{56}\n", said)


def test_a_consumer_in_the_style_of_functions(run: Run, url: str) -> None:
    put(url, {"id": 1, "total": 2.5}, {"id": "x"})
    said = run(
        """
        class Invoices:
            async def create(self, order, *, idempotency_key):
                print("invoice", order, idempotency_key.isdigit())

        invoices = Invoices()
        """,
        """
        import msgspec
        from streamkit import Batch, Consumer, Context, Record, RetryPolicy

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
            await invoices.create(order, idempotency_key=ctx.record.sequence_number)

        if __name__ == "__main__":
            consumer.run()                                             # SIGINT: finish, checkpoint, release, leave
        """,
        last="invoice",
    )

    assert said == "invoice Order(id=1, total=2.5) True\n"


def test_a_consumer_in_the_style_of_classes(run: Run, url: str) -> None:
    said = run(
        """
        class Adder(list):
            def add(self, value):
                self.append(value)

        class Store:
            async def load(self, shard):
                print("loaded", shard)
                return Adder()

            async def save(self, shard, totals, *, guard):
                print("saved", len(totals), guard > 0)

        store = Store()
        """,
        """
        from streamkit import Batch, Checkpointer, RecordProcessor, ShardContext, Worker

        class Totals(RecordProcessor):
            async def initialize(self, ctx: ShardContext) -> None:            # position, fencing_token, …
                self.totals = await store.load(ctx.shard)

            async def process(self, batch: Batch, checkpointer: Checkpointer) -> None:
                for record in batch:
                    self.totals.add(record.value)
                await store.save(batch.shard, self.totals, guard=checkpointer.fencing_token)
                await checkpointer.checkpoint()                               # covers what was processed

            async def shard_ended(self, checkpointer: Checkpointer) -> None: ...      # after a split or merge
            async def shutdown_requested(self, checkpointer: Checkpointer) -> None:   # lease still held
                await checkpointer.checkpoint()
            async def lease_lost(self) -> None: ...

        Worker("orders", application="totals", start="latest", processor=Totals).run()
        """,
        last="saved",
        on=("loaded", lambda: put(url, *({"id": number} for number in range(3)), key="a")),
    )

    assert "saved" in said and said.rstrip().endswith("True")


def test_a_reader_without_an_application(run: Run, url: str) -> None:
    put(url, {"id": 1, "total": 20}, {"id": 2, "total": 200})
    said = run(
        """
        from datetime import UTC, datetime, timedelta
        """,
        """
        from streamkit import AsyncReader, Reader

        for record in Reader("orders", start=datetime.now(UTC) - timedelta(hours=1), until="latest",
                             where="data.total > 100"):
            print(record.value)

        table = Reader("orders", start="trim_horizon", until="latest").to_arrow(limit=100_000)
        print(table.num_rows, table.column_names)
        """,
    )

    assert said.splitlines() == ["{'id': 2, 'total': 200}", "2 ['sequence', 'arrived', 'time', 'key', 'data']"]


def test_administration(run: Run, url: str) -> None:
    for number in range(100):
        put(url, {"id": number}, key=f"customer-{number}")
    billing = Consumer("orders", application="billing", start="trim_horizon", url=url)
    billing.handler(_nothing)
    with billing, Client(url) as client:
        until(lambda: "billing" in client.list_applications())
    said = run(
        """
        from datetime import UTC, datetime
        """,
        """
        from streamkit import AsyncClient, Client, errors

        with Client() as client:
            try:
                client.create_stream("orders", shards=4, retention_hours=48, codec="json")
            except errors.StreamExists:
                pass
            s = client.describe_stream("orders")                # StreamDescription: frozen struct
            hot = max(s.shards, key=lambda x: x.put_bytes_rate)
            client.split_shard("orders", hot.id, at="traffic")  # "middle" | "traffic" | int; returns an Operation
            client.scale_stream("orders", shards=8).wait(timeout_s=60)
            client.reset_application("billing", to=datetime(2026, 11, 1, tzinfo=UTC), dry_run=True)

            print(len([x for x in client.describe_stream("orders").shards if x.closed_ms is None]))
        """,
    )

    assert said == "8\n"


def _nothing(value: dict) -> None:
    """It is only to have been there."""
