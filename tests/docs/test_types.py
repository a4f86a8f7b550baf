"""The public interface as mypy and pyright see it, both at their strictest: right programs pass, wrong ones are told

where.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from streamkit.producer.producer import Producer, _Base
from streamkit.producer.settings import ProducerSettings

ROOT = Path(__file__).resolve().parents[2]

RIGHT = '''
from collections.abc import Iterator
from datetime import UTC, datetime

from streamkit import (
    AsyncClient, AsyncProducer, AsyncReader, Batch, Checkpointer, Client, Consumer, Context, FilePosition, Lag,
    Operation, Ordering, PostgresPosition, Producer, PutEntry, PutResult, Reader, Record, RecordProcessor, RetryPolicy,
    ShardContext, SQLitePosition, StreamDescription, Worker, errors,
)
from streamkit.testing import Clock, Node


class Order:
    id: int


consumer = Consumer("orders", application="billing", start="trim_horizon", retry=RetryPolicy(attempts_max=5),
                    dead_letter="orders-failed")


@consumer.handler
async def bill(order: Order, ctx: Context) -> None:
    ctx.log.info("%s %s", order.id, ctx.record.sequence_number)
    await ctx.checkpoint()


in_sink = Consumer("orders", application="ledger", start=datetime.now(UTC), sink=SQLitePosition("bills.sqlite"))


@in_sink.handler
def write(orders: Batch[Order], ctx: Context) -> None:
    ctx.connection.execute("SELECT 1")
    order: Order = orders[0].value
    print(order.id)


class Totals(RecordProcessor):
    async def initialize(self, ctx: ShardContext) -> None:
        self.fence: int = ctx.fencing_token

    async def process(self, batch: Batch[Order], checkpointer: Checkpointer) -> None:
        await checkpointer.checkpoint(batch)


worker = Worker("orders", application="totals", start="latest", processor=Totals, sink=FilePosition("out"))
PostgresPosition("dbname=shop", table="positions")


def puts() -> PutResult:
    with Producer("orders") as producer:
        handle = producer.put({"id": 1}, key="a")
        try:
            handle.result(5.0)
        except errors.RecordTooLarge as error:
            print(error.facts["size_bytes"], error.retryable)
        return producer.put_and_wait({"id": 1}, key="a")


async def puts_async() -> str:
    async with AsyncProducer("orders") as producer:
        handle = await producer.put({"id": 2}, key="b")
        return (await handle).sequence_number


def reads() -> Iterator[bytes]:
    for record in Reader("orders", start="trim_horizon", until="latest"):
        yield record.data


def asks() -> tuple[Lag, StreamDescription]:
    with Client() as client:
        lag: Lag = client.lag("billing")
        seconds: float = lag.seconds
        names: tuple[str, ...] = client.list_applications()
        print(seconds, names)
        return lag, client.describe_stream("orders")


def changes() -> StreamDescription:
    with Client("streamkit://127.0.0.1:7440") as client:
        hot = max(client.describe_stream("orders").shards, key=lambda shard: shard.put_bytes_rate)
        operation: Operation = client.split_shard("orders", hot.id, at="traffic")
        print(operation.id, operation.status, operation.progress, operation.note)
        client.split_shard("orders", 1, at=2**127)
        client.merge_shards("orders", 2, "shardId-000000000003").wait()
        plan = client.reset_application("billing", to=datetime(2026, 11, 1, tzinfo=UTC), dry_run=True)
        print(plan.again)
        return client.scale_stream("orders", shards=8).wait(timeout_s=60)


async def changes_async() -> StreamDescription:
    async with AsyncClient() as client:
        operation = client.scale_stream("orders", 4)
        await operation.accepted()
        print(operation.progress)
        await operation
        return await client.split_shard("orders", 0)


async def reads_async() -> None:
    async for record in AsyncReader("orders", start=datetime.now(UTC), until="latest", where="data.total > 100"):
        print(record.sequence_number.isdigit(), record.headers.get("x", b""), record.arrived.tzinfo)


def pulls() -> None:
    lanes = Consumer("orders", application="lanes", start={"shardId-000000000000": "latest"},
                     ordering=Ordering.by_key(8), on_exhausted="dead_letter", dead_letter="orders-failed")
    with lanes:
        print(lanes.lag().seconds)
    for batch in Consumer(["orders", "refunds"], application="pull", start="latest").batches():
        for record in batch:
            print(record.value)


@consumer.handler(where="data.kind = 'refund'")
def refund(order: Order) -> None:
    print(order.id)


def many(producer: Producer) -> list[str]:
    handles = producer.put_many([PutEntry({"id": 1}, key="a"), PutEntry({"id": 2}, headers={"x": b"1"})])
    tuned = Producer("orders", linger_ms=5, compression="zstd", on_full="raise", idempotent=True, codec="msgpack")
    tuned.flush(timeout_s=1.0)
    tuned.close()
    return [handle.result(5.0).sequence_number for handle in handles]


def test_end_to_end(streamkit_node: Node, streamkit_clock: Clock) -> None:
    streamkit_node.create_stream("orders", shards=2)
    with streamkit_node.producer("orders", linger_ms=1) as producer:
        producer.put({"id": 1}, key="a")
    streamkit_node.run_until_idle(consumer)
    streamkit_clock.advance(hours=25)
    with streamkit_node.fail("disk_full"):
        assert streamkit_node.application("billing").lag.records == 0


def feeds() -> int:
    return consumer.feed([{"id": 1}]).handled


def identity(record: Record[Order]) -> int:
    return record.value.id
'''
WRONG = '''
from streamkit import AsyncProducer, Batch, Client, Consumer, Producer, Reader, Record, SQLitePosition, Worker
from streamkit.testing import Node

Consumer("orders", application="billing")                                                   # call-arg
Consumer("orders", application="billing", start=5)                                          # arg-type
Consumer("orders", application="billing", start="latest", on_exhausted="give up")           # arg-type
Consumer("orders", application="billing", start="latest", sink="dbname=shop")               # arg-type
Consumer("orders", application="billing", start="latest", retries=3)                        # call-arg
Worker("orders", application="billing", start="latest", processor=5)                        # arg-type
SQLitePosition(5)                                                                           # arg-type
Producer("orders").put({"id": 1}, "key")                                                    # call-arg
Client().describe_stream(5)                                                                 # arg-type
Client().lag("billing").hours                                                               # attr-defined
Producer("orders", linger=5)                                                                # call-arg
Producer("orders", compression="gzip")                                                      # arg-type
AsyncProducer("orders", on_full="drop")                                                     # arg-type
Node().producer("orders", linger_ms="5")                                                    # arg-type
Node().fail("flood")                                                                        # arg-type
Producer("orders").put({"id": 1}, key="a", time="now")                                      # arg-type
Producer("orders").put({"id": 1}, key="a").result().offset                                  # attr-defined
Client().split_shard("orders", 0, at="trafic")                                              # arg-type
Client().split_shard("orders", 0).shards                                                    # attr-defined
Client().scale_stream("orders", shards="8")                                                 # arg-type
Client().reset_application("billing", to=5)                                                 # arg-type
Reader("orders")                                                                            # call-arg
Reader("orders", start="latest", until=5)                                                   # arg-type
Consumer("orders", application="a", start="latest", ordering="by_key")                      # arg-type


def value_of(record: Record[int], batch: Batch[str]) -> None:
    """The type of a record's value is its parameter."""
    record.value.upper()                                                                    # attr-defined
    batch[0].value + 1                                                                      # operator
    record.offset                                                                           # attr-defined


def handle(value: dict[str, int]) -> None:
    """Returns nothing."""


wrong: int = Consumer("orders", application="billing", start="latest").handler(handle)      # assignment
'''


WRONG_AT = [
    (number, line.rsplit("# ", 1)[1]) for number, line in enumerate(WRONG.splitlines(), 1) if "  # " in line
]


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "wrong.py").write_text(WRONG)
    return tmp_path


def test_mypy_passes_right_programs_and_tells_where_wrong_ones_are(programs: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--ignore-missing-imports",
         "--follow-imports=silent", "--cache-dir", str(ROOT / ".mypy_cache" / "programs"), "right.py", "wrong.py"],
        cwd=programs, capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "MYPYPATH": str(ROOT)},
    )  # fmt: skip
    told = re.findall(r"^(\w+\.py):(\d+): error: .*\[([\w-]+)\]$", done.stdout, re.MULTILINE)

    assert [(name, int(number)) for name, number, _ in told] == [("wrong.py", n) for n, _ in WRONG_AT], done.stdout
    assert [code for *_, code in told] == [code for _, code in WRONG_AT], done.stdout


def test_pyright_passes_right_programs_and_tells_where_wrong_ones_are(programs: Path) -> None:
    (programs / "pyrightconfig.json").write_text(json.dumps({
        "typeCheckingMode": "strict", "extraPaths": [str(ROOT)], "pythonVersion": "3.11",
    }))  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "basedpyright", "--outputjson", "right.py", "wrong.py"],
        cwd=programs, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    told = {
        (Path(found["file"]).name, found["range"]["start"]["line"] + 1)
        for found in json.loads(done.stdout)["generalDiagnostics"] if found["severity"] == "error"
    }

    assert sorted(told) == [("wrong.py", number) for number, _ in WRONG_AT], done.stdout + done.stderr


def test_what_is_passed_on_to_a_producer_is_typed_as_it_is_taken() -> None:
    taken = {name: p for name, p in inspect.signature(_Base.__init__).parameters.items() if p.kind is p.KEYWORD_ONLY}
    told = ProducerSettings.__annotations__

    assert told.keys() == taken.keys()
    assert get_type_hints(ProducerSettings) == {
        name: hint for name, hint in get_type_hints(_Base.__init__).items() if name in taken
    }
    assert "Unpack[ProducerSettings]" in str(inspect.signature(Producer.__init__))
