"""`python -m benchmarks.paths`: every measurement, or those that --only names; a table, JSON and markdown."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.paths import consume, failover, latency, memory, produce, recovery, startup
from benchmarks.paths.processes import CheckFailed
from benchmarks.paths.report import Result, machine, markdown, write_json
from streamkit.errors import StreamkitError

GIB = 1 << 30

# name → the full form and the tiny one.
MEASUREMENTS: dict[str, tuple[Callable[[], list[Result]], Callable[[], list[Result]]]] = {
    "sealed-fsync": (lambda: produce.sealed(20_000, "fsync"), lambda: produce.sealed(8, "fsync")),
    "sealed-os": (lambda: produce.sealed(30_000, "os"), lambda: produce.sealed(8, "os")),
    # Long enough that the disk, and not its cache or the page cache, sets the pace.
    "sustained-fsync": (lambda: produce.sealed(150_000, "fsync"), lambda: produce.sealed(8, "fsync")),
    "sustained-os": (lambda: produce.sealed(150_000, "os"), lambda: produce.sealed(8, "os")),
    "bulk": (lambda: produce.library("bulk", 6_000_000, "fsync"), lambda: produce.library("bulk", 3_000, "fsync")),
    "put": (lambda: produce.library("put", 2_000_000, "fsync"), lambda: produce.library("put", 500, "fsync")),
    "single-fsync": (lambda: produce.single(400_000, "fsync"), lambda: produce.single(200, "fsync")),
    "single-os": (lambda: produce.single(400_000, "os"), lambda: produce.single(200, "os")),
    "read": (lambda: consume.read(8_000), lambda: consume.read(8)),
    "copy": (lambda: consume.copy(400), lambda: consume.copy(4)),
    "latency-fsync": (lambda: latency.latency(100_000, 60_000, "fsync"), lambda: latency.latency(99, 99, "fsync")),
    "latency-os": (lambda: latency.latency(100_000, 60_000, "os"), lambda: latency.latency(99, 99, "os")),
    "waiting-fsync": (lambda: latency.waiting(5_000, 1_000_000, "fsync"), lambda: latency.waiting(20, 400, "fsync")),
    "waiting-os": (lambda: latency.waiting(5_000, 1_000_000, "os"), lambda: latency.waiting(20, 400, "os")),
    "memory-fsync": (lambda: memory.under_load(20_000, "fsync"), lambda: memory.under_load(8, "fsync", 2)),
    "memory-leader": (lambda: memory.under_load(20_000, "leader"), lambda: memory.under_load(8, "leader", 2)),
    "shards": (lambda: startup.many_shards(10_000), lambda: startup.many_shards(20)),
    "recovery": (lambda: recovery.recovery(10 * GIB, 4, 35), lambda: recovery.recovery(1 << 20, 2, 0)),
    "cluster-fsync": (lambda: produce.sealed(20_000, "fsync", 3), lambda: produce.sealed(8, "fsync", 3)),
    "cluster-os": (lambda: produce.sealed(30_000, "os", 3), lambda: produce.sealed(8, "os", 3)),
    "cluster-1k-fsync": (lambda: produce.sealed(20_000, "fsync", 3, 1024), lambda: produce.sealed(8, "fsync", 3, 1024)),
    "cluster-single-fsync": (lambda: produce.single(200_000, "fsync", 3), lambda: produce.single(200, "fsync", 3)),
    "cluster-single-os": (lambda: produce.single(200_000, "os", 3), lambda: produce.single(200, "os", 3)),
    "cluster-latency-fsync": (lambda: latency.latency(100_000, 60_000, "fsync", 3),
                              lambda: latency.latency(99, 99, "fsync", 3)),
    "cluster-latency-os": (lambda: latency.latency(100_000, 60_000, "os", 3), lambda: latency.latency(99, 99, "os", 3)),
    "cluster-kills": (lambda: failover.kills(9, "fsync"), lambda: failover.kills(1, "fsync")),
    "cluster-moves": (lambda: failover.moves(9, "fsync"), lambda: failover.moves(1, "fsync")),
    "cluster-idle": (lambda: failover.idle(10_000, 30), lambda: failover.idle(20, 1)),
    "imports": (lambda: startup.imports(15), lambda: startup.imports(1)),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paths", description=__doc__)
    parser.add_argument("--only", default="", metavar="WORDS", help="names that contain one of these, comma separated")
    parser.add_argument("--tiny", action="store_true", help="the form that tests run: shows that it works")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    options = parser.parse_args()
    words = [word for word in options.only.split(",") if word]
    chosen = [name for name in MEASUREMENTS if not words or any(word in name for word in words)]
    results: list[Result] = []
    failed = 0
    for name in chosen:
        os.sync()                      # what the measurement before left to be written is not this one's
        started = time.perf_counter()
        try:
            found = MEASUREMENTS[name][1 if options.tiny else 0]()
        except (CheckFailed, StreamkitError) as error:
            print(f"{name:<14} FAILED: {error}", file=sys.stderr)
            failed += 1
            continue
        results += found
        for result in found:
            print(f"{name:<14} {line(result)}   [{time.perf_counter() - started:.0f} s]", flush=True)
        write(options, results)
    return 1 if failed else 0


def write(options: argparse.Namespace, results: list[Result]) -> None:
    """After each measurement, so that what was measured is kept when a later one breaks."""
    host = machine(Path(tempfile.gettempdir()))
    if options.json:
        write_json(options.json, results, host)
    if options.markdown:
        options.markdown.write_text(markdown(results, host, "make bench"))


def line(result: Result) -> str:
    if result.figure:
        return f"{result.name}: {result.figure}   ({result.shape})"
    document = result.document()
    megabytes = document["megabytes_per_second"]
    latencies = f"p50 {result.p50_ms:.2f} p99 {result.p99_ms:.2f} ms" if result.p50_ms is not None else ""
    return (
        f"{result.name}: {result.records_per_second:,.0f} rec/s  {megabytes:.1f} MB/s  {latencies}"
        f"  cpu {result.server_cpu:.2f}+{result.client_cpu:.2f} s/M  {result.durability}  ({result.shape})"
    )


if __name__ == "__main__":
    sys.exit(main())
