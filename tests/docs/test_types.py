"""The public interface as a type checker sees it: right programs pass `mypy --strict`, wrong ones are told where."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

RIGHT = '''
from collections.abc import Iterator
from datetime import UTC, datetime

from streamkit import (
    AsyncProducer, Batch, Checkpointer, Client, Consumer, Context, FilePosition, Lag, PostgresPosition, Producer,
    PutResult, Reader, Record, RecordProcessor, RetryPolicy, ShardContext, SQLitePosition, StreamDescription, Worker,
    errors,
)


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


def feeds() -> int:
    record: Record[Order]
    return consumer.feed([{"id": 1}]).handled
'''
WRONG = '''
from streamkit import Client, Consumer, Producer, SQLitePosition, Worker

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


def handle(value: dict[str, int]) -> None:
    """Returns nothing."""


wrong: int = Consumer("orders", application="billing", start="latest").handler(handle)      # assignment
'''


def test_right_programs_pass_and_wrong_ones_are_told_where(tmp_path: Path) -> None:
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "wrong.py").write_text(WRONG)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--ignore-missing-imports",
         "--follow-imports=silent", "--cache-dir", str(ROOT / ".mypy_cache" / "programs"), "right.py", "wrong.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "MYPYPATH": str(ROOT)},
    )  # fmt: skip
    told = re.findall(r"^(\w+\.py):(\d+): error: .*\[([\w-]+)\]$", done.stdout, re.MULTILINE)
    wanted = [
        ("wrong.py", number, line.rsplit("# ", 1)[1])
        for number, line in enumerate(WRONG.splitlines(), 1) if "  # " in line
    ]

    assert [(name, int(number)) for name, number, _ in told] == [each[:2] for each in wanted], done.stdout + done.stderr
    assert [code for *_, code in told] == [code for *_, code in wanted], done.stdout
