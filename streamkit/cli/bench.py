"""`streamkit bench`: puts, reads and end-to-end latency of the node one talks to, through the library one would use.

For whole tables on a machine of its own there is `make bench`; this is the quick look at a node that runs.
"""

from __future__ import annotations

import platform
import random
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from streamkit.cli.invocation import Invocation, common, pass_invocation
from streamkit.cli.rendering import count, emit, note, quantile, size

if TYPE_CHECKING:
    from streamkit.client.sync import Client

KEYS = 1_000
LEVELS = {"fsync": "disk before ack", "os": "page cache before ack", "leader": "memory before ack"}


class Run:
    """One measured stream, made for it and deleted after it. Every record's value begins with its number."""

    def __init__(self, invocation: Invocation, records: int, record_bytes: int, shards: int, durability: str) -> None:
        self.url = invocation.url or None
        self.records, self.shards, self.durability = records, shards, durability
        self.stream = f"bench-{random.getrandbits(32):08x}"
        self.padding = random.Random(1).randbytes(max(0, record_bytes - 16))
        self.bytes = records * (16 + len(self.padding))

    @contextmanager
    def open(self) -> Iterator[Client]:
        from streamkit.client.sync import Client

        with Client(self.url) as client:
            client.create_stream(self.stream, shards=self.shards, durability=self.durability)
            try:
                yield client
            finally:
                client.delete_stream(self.stream)

    def value(self, number: int) -> bytes:
        return number.to_bytes(8, "big") + time.time_ns().to_bytes(8, "big") + self.padding

    def put(self, pace_per_second: int = 0) -> dict[str, Any]:
        """All records, acknowledged; latency is put → acknowledged, of every record."""
        from streamkit.producer.producer import Producer

        latencies: list[float] = []
        pending: deque[tuple[float, Any]] = deque()
        with Producer(self.stream, url=self.url, codec="bytes") as producer:
            started = time.perf_counter()
            for number in range(self.records):
                if pace_per_second and (early := started + number / pace_per_second - time.perf_counter()) > 0:
                    time.sleep(early)
                began = time.perf_counter()
                handle = producer.put(self.value(number), key=str(number % KEYS))
                handle.add_done_callback(partial(_note_latency, latencies, began))
                pending.append((began, handle))
                while pending and pending[0][1].done():
                    pending.popleft()[1].result()
            producer.flush()
            while pending:
                pending.popleft()[1].result()
            seconds = time.perf_counter() - started
        return {**self._rate(seconds), **_latency_facts(latencies)}

    def read(self) -> dict[str, Any]:
        """All records as objects, checked: each once, and in order for its key."""
        from streamkit.consumer.reader import Reader

        seen = bytearray(self.records)
        newest: dict[str, int] = {}
        started = time.perf_counter()
        for record in Reader(self.stream, start="trim_horizon", until="latest", url=self.url):
            self.check(record.data, record.key, seen, newest)
        seconds = time.perf_counter() - started
        self.check_complete(seen)
        return self._rate(seconds)

    def end_to_end(self, pace_per_second: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Puts at a pace while a reader follows; (put facts, latency put → read)."""
        latencies: list[float] = []
        seen = bytearray(self.records)
        newest: dict[str, int] = {}
        failure: list[BaseException] = []

        def follow() -> None:
            from streamkit.consumer.reader import Reader

            try:
                left = self.records
                for record in Reader(self.stream, start="trim_horizon", url=self.url):
                    data = record.data
                    latencies.append((time.time_ns() - int.from_bytes(data[8:16], "big")) / 1e6)
                    self.check(data, record.key, seen, newest)
                    left -= 1
                    if not left:
                        return
            except Exception as error:
                failure.append(error)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        put = self.put(pace_per_second)
        thread.join(60)
        if failure:
            raise failure[0]
        self.check_complete(seen)
        return put, _latency_facts(latencies)

    def check(self, data: bytes, key: str, seen: bytearray, newest: dict[str, int]) -> None:
        number = int.from_bytes(data[:8], "big")
        if seen[number] or newest.get(key, -1) > number:
            raise _wrong(f"record {number} was read twice or out of order for its key")
        seen[number] = 1
        newest[key] = number

    def check_complete(self, seen: bytearray) -> None:
        if missing := seen.count(0):
            raise _wrong(f"{missing} of {self.records} records were not read")

    def _rate(self, seconds: float) -> dict[str, Any]:
        rates = {"records_per_second": self.records / seconds, "bytes_per_second": self.bytes / seconds}
        return {"seconds": seconds, **rates}


def _wrong(message: str) -> Exception:
    from streamkit.errors import InternalError

    return InternalError(f"the check of the measurement failed: {message}", try_="run it again", incident="")


def _note_latency(latencies_ms: list[float], began: float, _handle: object) -> None:
    latencies_ms.append((time.perf_counter() - began) * 1000)


def _latency_facts(latencies_ms: list[float]) -> dict[str, Any]:
    ordered = sorted(latencies_ms)
    return {name: quantile(ordered, q) for name, q in (("p50_ms", 0.5), ("p99_ms", 0.99), ("p999_ms", 0.999))}


@click.command()
@click.argument("what", type=click.Choice(["put", "read", "end-to-end"]))
@click.option("--records", type=click.IntRange(min=1), default=100_000, show_default=True, help="How many.")
@click.option(
    "--size", "record_bytes", type=click.IntRange(16, 1 << 20), default=100, show_default=True, help="Bytes a value."
)
@click.option("--shards", type=click.IntRange(min=1), default=4, show_default=True, help="Of the stream made for it.")
@click.option(
    "--durability", type=click.Choice(list(LEVELS)), default="fsync", show_default=True, help="Of that stream."
)
@click.option("--pace", default=5_000, show_default=True, help="Records a second, for end-to-end.")
@click.option("--repeat", type=click.IntRange(1, 100), default=1, show_default=True, help="Runs, each on a new stream.")
@common
@pass_invocation
def bench(
    invocation: Invocation, what: str, records: int, record_bytes: int, shards: int, durability: str, pace: int,
    repeat: int,
) -> None:  # fmt: skip
    """Measure puts, reads and end-to-end latency against a node.

    Makes a stream of its own and deletes it again. Every record is checked: there, once, in order for its key.
    """
    import os

    from streamkit import __version__

    versions = f"Python {platform.python_version()}, streamkit {__version__}"
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, {versions}"
    if not (invocation.json or invocation.quiet):
        click.echo(f"machine     {machine}      durability  {LEVELS[durability]}      copies 1")
    for _ in range(repeat):
        run = Run(invocation, records, record_bytes, shards, durability)
        facts: dict[str, Any] = {"stream_shards": shards, "records": records, "record_bytes": record_bytes}
        with run.open():
            if what == "end-to-end":
                facts["put"], facts["end_to_end"] = run.end_to_end(pace)
            else:
                facts["put"] = run.put()
                facts["read"] = run.read()
        if invocation.json:
            emit("bench", {"what": what, "machine": machine, "durability": durability, "copies": 1, **facts})
        else:
            _show(facts)
    if not invocation.json:
        note("one run on a busy machine differs by tens of percent: use --repeat 5; for the broker alone, make bench")


def _show(facts: dict[str, Any]) -> None:
    put = facts["put"]
    rate = f"{count(round(put['records_per_second'])):>12} rec/s   {size(put['bytes_per_second'])}/s"
    click.echo(f"put         {rate}   {_latency_text(put)}")
    if "read" in facts:
        read = facts["read"]
        rate = f"{count(round(read['records_per_second'])):>12} rec/s   {size(read['bytes_per_second'])}/s"
        click.echo(f"read        {rate}")
    if "end_to_end" in facts:
        click.echo(f"end-to-end  {_latency_text(facts['end_to_end'])}")
    click.echo(f"checked     {count(facts['records'])} records: no loss, no repeat, in order for each key")


def _latency_text(facts: dict[str, Any]) -> str:
    return f"p50 {facts['p50_ms']:.1f} ms   p99 {facts['p99_ms']:.1f} ms   p99.9 {facts['p999_ms']:.1f} ms"
