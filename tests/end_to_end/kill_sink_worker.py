"""SIGKILL a worker again and again while it adds up in a store that holds its position: the sum is exact.

    python -m tests.end_to_end.kill_sink_worker --times 10000 --sink sqlite

Other sinks: postgres, duckdb, files, stream, effect, delivery, delivery-postgres.

With "effect" the store is an HTTP endpoint that knows tokens again, and loses requests and answers now and then.

Each life ends at a random instant, with SIGKILL; every eighth is stopped instead (SIGSTOP), replaced while it still
believes that it owns its shards, let go on, and then killed. At the end a worker finishes what is left, and the store
is compared with what was put: nothing is missing, nothing counts twice. With "stream" the store is another stream, and
the node is killed as well, every sixteenth time.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamkit
from streamkit import Batch, Client, Context, Producer, PutEntry
from streamkit.consumer.failure import RetryPolicy
from streamkit.delivery import Buffer, Delivery, FileSink, PostgresSink
from streamkit.errors import ApplicationNotFound
from streamkit.protocol.messages import DescribeApplication
from tests.end_to_end.endpoint import Endpoint, add_once, was_added
from tests.end_to_end.processes import Broker, broker

STREAM, APPLICATION = "kill-sink", "adder"
SHARDS = 2
SINKS = ("sqlite", "postgres", "duckdb", "files", "stream", "effect", "delivery", "delivery-postgres")
SUMS = "sums"                           # the stream that is the sink of "stream"
_RECORDS_A_LIFE = 25
_PARENT_DEATH_SIGNAL = 1                # prctl's number
_LIFE_S_MAX = 0.12
_DRAIN_S_MAX = 60.0
_TABLE = "CREATE TABLE sums (shard TEXT, value BIGINT)"


@dataclass(slots=True)
class Outcome:
    kills: int
    stops: int
    put: int
    values: list[int]                      # what the store holds, sorted
    seconds: float

    def wrong(self) -> list[str]:
        """Every broken promise, in words."""
        counted: dict[int, int] = {}
        for value in self.values:
            counted[value] = counted.get(value, 0) + 1
        missing = [value for value in range(self.put) if value not in counted]
        twice = [value for value, count in counted.items() if count > 1]
        return [*(f"{value} is missing" for value in missing), *(f"{value} counts twice or more" for value in twice)]


# ---- the worker's side ---------------------------------------------------------------------------------------


def position(kind: str, where: str) -> Any:
    kinds = {"sqlite": "SQLitePosition", "postgres": "PostgresPosition", "duckdb": "DuckDBPosition",
             "files": "FilePosition"}  # fmt: skip
    return getattr(streamkit, kinds[kind])(where)


def work(url: str, kind: str, where: str) -> None:
    """One life of a worker; every life has the same name, so that the next replaces it at once."""
    if kind == "effect":
        work_by_requests(url, where)
        return
    if kind.startswith("delivery"):
        work_by_delivering(url, where, into_rows=kind == "delivery-postgres")
        return
    sink: dict[str, Any] = {"transactional": True} if kind == "stream" else {"sink": position(kind, where)}
    consumer = streamkit.Consumer(
        STREAM, application=APPLICATION, start="trim_horizon", worker="adder", membership_ms=1_000, url=url,
        batch_records_max=7, checkpoint_interval_ms=20, **sink,
    )  # fmt: skip
    mark = "%s" if kind == "postgres" else "?"

    @consumer.handler
    def add(batch: Batch[int], ctx: Context) -> None:
        for record in batch:
            if kind == "stream":
                ctx.put(SUMS, record.value, key=record.key)
            elif kind == "files":
                ctx.connection.write(b"%d\n" % record.value)
            else:
                ctx.connection.execute(f"INSERT INTO sums VALUES ({mark}, {mark})", (ctx.shard, record.value))

    consumer.run()


def work_by_requests(url: str, where: str) -> None:
    """The same with an effect: each range of records is one request with a token."""
    consumer = streamkit.Consumer(
        STREAM, application=APPLICATION, start="trim_horizon", worker="adder", membership_ms=1_000, url=url,
        batch_records_max=7, checkpoint_interval_ms=20, retry=RetryPolicy(attempts_max=1_000, first_ms=1, last_ms=20),
    )  # fmt: skip

    @consumer.effect(finished=lambda token: was_added(where, token))
    def add(batch: Batch[int], token: str) -> None:
        add_once(where, token, [record.value for record in batch])

    consumer.run()


def work_by_delivering(url: str, where: str, into_rows: bool) -> None:
    """The same as a delivery into files or rows; how ranges end is left to chance, as it is in life."""
    made = Delivery(
        APPLICATION, source=STREAM, sink=PostgresSink(where, table="sums") if into_rows else FileSink(where),
        worker="adder", membership_ms=1_000, url=url, buffer=Buffer(bytes_max=100, seconds_max=0.01),
    )  # fmt: skip
    if into_rows:
        made.transform(lambda value: {"value": value})
    made.run()


def spawn_lives(url: str, kind: str, where: str) -> None:
    """A process without threads that makes a worker by fork for each line on its input, and says its number."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    if kind == "delivery-postgres":
        PostgresSink(where, table="sums")  # imports the library once
    elif kind not in ("stream", "effect", "delivery"):
        position(kind, where)
    for _ in sys.stdin:
        process = os.fork()
        if process == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)      # nothing outlives an aborted trial
            faulthandler.enable()
            try:
                work(url, kind, where)
                print("the worker ended in order", file=sys.stderr, flush=True)
            except BaseException:
                traceback.print_exc()
            os._exit(0)
        print(process, flush=True)


# ---- the side that kills -------------------------------------------------------------------------------------


class Trial:
    def __init__(self, served: Broker, kind: str, folder: Path, stack: ExitStack, seed: int) -> None:
        url = served.url
        self.served = served
        self.kind = kind
        self.draw = random.Random(seed)
        self.client = stack.enter_context(Client(url))
        self.client.create_stream(STREAM, shards=SHARDS, durability="os")
        self.producer = stack.enter_context(Producer(STREAM, url=url, linger_ms=1))
        self.put = self.kills = self.stops = 0
        self.where = str(folder / f"sink.{kind}")
        self.log = folder / "workers.log"
        if kind.endswith("postgres"):
            from tests.postgres import Postgres

            self.where = stack.enter_context(Postgres()).dsn
        if kind == "stream":
            self.client.create_stream(SUMS, shards=3, durability="os")
        elif kind == "effect":
            self.endpoint = stack.enter_context(Endpoint(seed))
            self.where = self.endpoint.url
        elif kind not in ("files", "delivery"):
            self.rows(_TABLE)
        self._lives = subprocess.Popen(
            [sys.executable, "-m", "tests.end_to_end.kill_sink_worker", "--lives", url, kind, self.where],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stack.enter_context(self.log.open("w")), text=True,
            bufsize=1,
        )  # fmt: skip
        stack.callback(self._end_lives)

    def _end_lives(self) -> None:
        self._lives.kill()
        self._lives.wait()
        assert self._lives.stdin is not None and self._lives.stdout is not None
        self._lives.stdin.close()
        self._lives.stdout.close()

    def live(self) -> int:
        assert self._lives.stdin is not None and self._lives.stdout is not None
        self._lives.stdin.write("live\n")
        return int(self._lives.stdout.readline())

    def load(self) -> None:
        self.producer.put_many(
            [PutEntry(number, key=f"k{number % 31}") for number in range(self.put, self.put + _RECORDS_A_LIFE)]
        )
        self.producer.flush()
        self.put += _RECORDS_A_LIFE

    def once(self) -> None:
        loading = threading.Thread(target=self.load)
        loading.start()
        process = self.live()
        time.sleep(self.draw.uniform(0.01, _LIFE_S_MAX))       # a life of its own length
        # DuckDB's file belongs to one process: another cannot take over from one that is only stopped.
        if self.kind != "duckdb" and not self.draw.randrange(8):
            os.kill(process, signal.SIGSTOP)
            second = self.live()
            time.sleep(self.draw.uniform(0.05, 2 * _LIFE_S_MAX))
            os.kill(process, signal.SIGCONT)
            time.sleep(self.draw.uniform(0.0, _LIFE_S_MAX))
            self._kill(second)
            self.stops += 1
        if self.kind == "stream" and self.kills % 16 == 15:
            self.served.kill()
            self.served.start()
            self.served.wait_ready()
        self._kill(process)
        self.kills += 1
        loading.join()

    def _kill(self, process: int) -> None:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            raise AssertionError(f"a worker ended by itself; its log:\n{self.log.read_text()[-40_000:]}") from None

    def finish(self) -> list[int]:
        process = self.live()
        deadline = time.monotonic() + _DRAIN_S_MAX + self.put / 100
        while self._left():
            assert time.monotonic() < deadline, f"{self._left()} records are left"
            time.sleep(0.05)                   # between two looks
        os.kill(process, signal.SIGTERM)
        while _alive(process) and time.monotonic() < deadline:
            time.sleep(0.01)                   # between two looks
        if self.kind == "stream":
            reader = streamkit.Reader(SUMS, start="trim_horizon", until="latest", url=self.served.url)
            return sorted(record.value for record in reader)
        if self.kind == "effect":
            assert self.endpoint.mixed == [], "a token stood for other records than before"
            return self.endpoint.values()
        if self.kind == "delivery":
            return sorted(int(line) for file in Path(self.where).rglob("adder-*") for line in file.read_text().split())
        if self.kind == "files":
            return sorted(int(line) for file in Path(self.where).rglob("0*") for line in file.read_text().split())
        return sorted(row[0] for row in self.rows("SELECT value FROM sums"))

    def _left(self) -> int:
        try:
            answer: Any = self.client.call(DescribeApplication(APPLICATION))
        except ApplicationNotFound:
            return self.put
        return sum(lease.lag_records for lease in answer.leases)

    def rows(self, sql: str) -> list[Any]:
        from importlib import import_module

        library = {"sqlite": "sqlite3", "duckdb": "duckdb"}.get(self.kind, "psycopg")
        database = import_module(library).connect(self.where)
        try:
            cursor = database.execute(sql)
            rows = cursor.fetchall() if sql.startswith("SELECT") else []
            database.commit()
            return rows
        finally:
            database.close()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def run(times: int, kind: str, folder: Path, *, seed: int = 1, seconds_max: float = float("inf")) -> Outcome:
    began = time.monotonic()
    with ExitStack() as stack:
        served = stack.enter_context(broker(folder / "data"))
        trial = Trial(served, kind, folder, stack, seed)
        while trial.kills < times and time.monotonic() - began < seconds_max:
            trial.once()
            if trial.kills % 200 == 0:
                print(f"{trial.kills} kills, {trial.put} records, {time.monotonic() - began:.0f} s", flush=True)
        values = trial.finish()
        return Outcome(trial.kills, trial.stops, trial.put, values, time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=10_000)
    parser.add_argument("--sink", choices=SINKS, default="sqlite")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lives", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.lives:
        spawn_lives(*options.lives)
        return
    with tempfile.TemporaryDirectory() as folder:
        outcome = run(options.times, options.sink, Path(folder), seed=options.seed)
    wrong = outcome.wrong()
    print(f"{options.sink}: {outcome.kills} kills, {outcome.stops} of them of stopped workers, {outcome.put} records, "
          f"{outcome.seconds:.0f} s, {len(wrong)} wrong")
    print("\n".join(wrong[:20]))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
