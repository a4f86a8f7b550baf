"""`python -m examples.flights`: a broker, a producer, two workers, one kill -9, and a table that must be right.

Everything is a real process on a temporary directory; nothing is left behind. Exits 1 when the workers' totals differ
from those computed directly from the file, or when a record is missing from the stream or in it twice.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from streamkit import Client, Producer, Reader, errors

from .data import CarrierTotals, aircraft, flights, totals_of
from .totals import connect

SHARDS = 4
STEADY_PER_SECOND = 3_000      # the first half comes at this pace, so that latency is that of a node with time to spare
SECONDS_MAX = 120

console = Console(soft_wrap=True)


@dataclass(slots=True)
class Processes:
    """What was started; everything still alive is ended when the demonstration leaves, however it leaves."""

    directory: Path
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        log = (self.directory / f"{name}.log").open("wb")
        with log:
            process = subprocess.Popen([sys.executable, "-m", *arguments], stdout=log, stderr=subprocess.STDOUT)
        self.started[name] = process
        return process

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text(errors="replace")

    def end(self) -> None:
        for process in reversed(self.started.values()):
            process.terminate()
        for process in self.started.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@dataclass(slots=True)
class Outcome:
    put_per_second: float = 0.0
    read_per_second: float = 0.0
    takeover_seconds: float | None = None
    killed_after: int = 0
    counted: int = 0
    repeats: int = 0
    missing: int = 0
    twice: int = 0
    steady: list[tuple[int, int]] = field(default_factory=list)
    latencies: list[tuple[int, int]] = field(default_factory=list)
    totals: dict[str, CarrierTotals] = field(default_factory=dict)


def quantile_ms(latencies: list[tuple[int, int]], fraction: float) -> float:
    """Of (tenth of a millisecond, count) in order: the time that this fraction of the records did not exceed."""
    left = fraction * sum(count for _, count in latencies)
    for tenth_ms, count in latencies:
        left -= count
        if left <= 0:
            return tenth_ms / 10
    return 0.0


def latencies(database: sqlite3.Connection) -> list[tuple[int, int]]:
    return database.execute("SELECT tenth_ms, count FROM latencies ORDER BY tenth_ms").fetchall()


def start_broker(processes: Processes) -> str:
    """Its URL, read from the one JSON line that it prints when it is ready."""
    broker = processes.start(
        "broker", "streamkit.cli", "serve", "--data", str(processes.directory / "data"), "--port", "0", "--json"
    )  # fmt: skip
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and broker.poll() is None:
        for line in processes.log("broker").splitlines():
            if line.startswith('{"schema":"streamkit.node'):
                return str(json.loads(line)["native"])
        time.sleep(0.02)
    raise SystemExit(f"the broker did not start:\n{processes.log('broker')}")


def start_worker(processes: Processes, name: str, url: str, database: Path) -> subprocess.Popen[bytes]:
    return processes.start(
        name, "examples.flights.totals", "--url", url, "--database", str(database), "--worker", name
    )  # fmt: skip


def counted(database: sqlite3.Connection) -> int:
    return int(database.execute("SELECT coalesce(sum(flights), 0) FROM totals").fetchone()[0])


def wait_for_leases(database: sqlite3.Connection, processes: Processes, workers: int) -> None:
    """Until every shard has an owner and each worker owns one, so that the kill takes something away."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        owned = dict(database.execute("SELECT shard, worker FROM owners ORDER BY lease_epoch").fetchall())
        if len(owned) == SHARDS and len(set(owned.values())) == workers:
            return
        time.sleep(0.05)
    raise SystemExit(f"the workers did not share the shards:\n{processes.log('one')}\n{processes.log('two')}")


def run(processes: Processes, all_flights: list[dict[str, Any]], progress: Progress) -> tuple[Outcome, str]:
    outcome = Outcome()
    url = start_broker(processes)
    with Client(url=url) as client:
        client.create_stream("flights", shards=SHARDS)
    database_path = processes.directory / "totals.sqlite"
    database = connect(str(database_path))
    start_worker(processes, "one", url, database_path)
    victim = start_worker(processes, "two", url, database_path)
    wait_for_leases(database, processes, 2)

    putting = progress.add_task("put", total=len(all_flights))
    counting = progress.add_task("counted by two workers", total=len(all_flights))
    half = len(all_flights) // 2
    with Producer("flights", url=url) as producer:
        put_steadily(producer, all_flights[:half], lambda n: report(progress, putting, n, counting, database))
        outcome.steady = latencies(database)
        # Kill in the middle of the work: the second half is on its way and not yet counted.
        started = time.perf_counter()
        for flight in all_flights[half : half + half // 4]:
            producer.put({**flight, "put_ns": time.time_ns()}, key=aircraft(flight))
        while counted(database) < half + 100 and time.perf_counter() - started < 5:
            time.sleep(0.001)
        victim.send_signal(signal.SIGKILL)
        killed_ns = time.time_ns()
        outcome.killed_after = counted(database)
        progress.update(counting, description="worker two killed (-9); worker one goes on")
        for flight in all_flights[half + half // 4 :]:
            producer.put({**flight, "put_ns": time.time_ns()}, key=aircraft(flight))
        producer.flush(60)
        outcome.put_per_second = (len(all_flights) - half) / (time.perf_counter() - started)
    progress.update(putting, completed=len(all_flights))
    victim.wait()

    deadline = time.monotonic() + SECONDS_MAX
    while counted(database) < len(all_flights) and time.monotonic() < deadline:
        progress.update(counting, completed=counted(database))
        time.sleep(0.05)
    progress.update(counting, completed=counted(database))
    collect(outcome, database, killed_ns)
    read_back(outcome, url, all_flights)
    database.close()
    return outcome, url


def put_steadily(producer: Producer, part: list[dict[str, Any]], tick: Any) -> None:
    """At STEADY_PER_SECOND, in slices of a hundredth of a second; a late slice does not delay the next."""
    started, done = time.perf_counter(), 0
    while done < len(part):
        due = min(len(part), int((time.perf_counter() - started) * STEADY_PER_SECOND))
        for flight in part[done:due]:
            producer.put({**flight, "put_ns": time.time_ns()}, key=aircraft(flight))
        done = max(done, due)
        tick(done)
        time.sleep(0.01)


def report(progress: Progress, putting: Any, done: int, counting: Any, database: sqlite3.Connection) -> None:
    progress.update(putting, completed=done)
    progress.update(counting, completed=counted(database))


def collect(outcome: Outcome, database: sqlite3.Connection, killed_ns: int) -> None:
    outcome.counted = counted(database)
    outcome.repeats = int(database.execute("SELECT coalesce(sum(count), 0) FROM repeats").fetchone()[0])
    outcome.latencies = latencies(database)
    query = "SELECT carrier, sum(flights), sum(delayed), sum(delay_sum), max(worst) FROM totals GROUP BY carrier"
    outcome.totals = {carrier: CarrierTotals(*row) for carrier, *row in database.execute(query)}
    query = "SELECT max(first_batch_ns) FROM owners WHERE since_ns > ?"
    taken_ns = database.execute(query, (killed_ns,)).fetchone()[0]
    outcome.takeover_seconds = None if taken_ns is None else (taken_ns - killed_ns) / 1e9


def read_back(outcome: Outcome, url: str, all_flights: list[dict[str, Any]]) -> None:
    """Every row of the file must be in the stream exactly once."""
    started = time.perf_counter()
    rows = [record.json()["row"] for record in Reader("flights", start="trim_horizon", until="latest", url=url)]
    outcome.read_per_second = len(rows) / (time.perf_counter() - started)
    outcome.missing = len({flight["row"] for flight in all_flights} - set(rows))
    outcome.twice = len(rows) - len(set(rows))


def show(outcome: Outcome, expected: dict[str, CarrierTotals]) -> bool:
    """Prints the table and the figures; True when everything agrees."""
    table = Table(box=None, header_style="bold")
    for name in ("CARRIER", "FLIGHTS", "MEAN DELAY", "WORST", ""):
        table.add_column(name, justify="left" if name == "CARRIER" else "right")
    for carrier, want in sorted(expected.items(), key=lambda item: -item[1].flights):
        got = outcome.totals.get(carrier, CarrierTotals())
        mean = "–" if got.mean is None else f"{got.mean:.1f} min"
        worst = "–" if got.worst is None else f"{got.worst} min"
        table.add_row(carrier, f"{got.flights:,}", mean, worst, "ok" if got == want else f"expected {want}")
    console.print(table)
    total = sum(want.flights for want in expected.values())
    right = outcome.totals == expected and not outcome.missing and not outcome.twice
    takeover = "none seen" if outcome.takeover_seconds is None else f"{outcome.takeover_seconds:.2f} s"
    console.print(f"\nput         {outcome.put_per_second:>10,.0f} records/s, each on disk before it is acknowledged")
    console.print(f"read back   {outcome.read_per_second:>10,.0f} records/s, decoded JSON")
    before = " ".join(f"{name} {quantile_ms(outcome.steady, q):.1f} ms" for name, q in (("p50", 0.5), ("p99", 0.99)))
    after = " ".join(f"{name} {quantile_ms(outcome.latencies, q):.0f} ms" for name, q in (("p50", 0.5), ("p99", 0.99)))
    console.print(f"end to end  {before}   put → counted, at {STEADY_PER_SECOND:,} records/s, both workers alive")
    console.print(f"            {after}   over all records, with the burst and the wait for the take-over")
    console.print(f"take-over   {takeover} after kill -9, which came at {outcome.killed_after:,} flights counted")
    console.print(f"repeats     {outcome.repeats:,} records came again after the kill, and were left out")
    console.print(
        f"check       {outcome.counted:,} of {total:,} counted, {outcome.missing} lost, {outcome.twice} stored twice: "
        + ("[green]every total agrees with the file[/]" if right else "[red]WRONG[/]")
    )
    return right


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.flights", description=__doc__)
    parser.add_argument("--flights", type=int, default=0, help="only the first N (default: all 27,004)")
    parser.add_argument("--keep", action="store_true", help="keep the temporary directory")
    options = parser.parse_args()
    all_flights = flights()[: options.flights or None]
    directory = Path(tempfile.mkdtemp(prefix="streamkit-flights-"))
    processes = Processes(directory)
    columns = (TextColumn("{task.description:<44}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console) as progress:
            outcome, _ = run(processes, all_flights, progress)
    except errors.StreamkitError as error:
        console.print(f"[red]error:[/] {error}\ntry:   {error.try_}", highlight=False)
        for name in processes.started:
            console.print(f"-- {name}\n{processes.log(name)[-2000:]}", highlight=False, markup=False)
        return 1
    finally:
        processes.end()
        if not options.keep:
            shutil.rmtree(directory, ignore_errors=True)
    right = show(outcome, totals_of(all_flights))
    streamkit = os.path.relpath(Path(sys.executable).with_name("streamkit"))
    console.print("\nnext, in two terminals:")
    console.print(f"  {streamkit} serve --dev", highlight=False)
    console.print(f"  {streamkit} put hello '{{\"id\": 1}}' --key a", highlight=False)
    console.print(f"  {streamkit} tail hello -f", highlight=False)
    return 0 if right else 1


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
