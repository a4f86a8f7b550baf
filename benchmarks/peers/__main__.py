"""`python -m benchmarks.peers`: every system in turn, round after round; a table, JSON and a plot.

A round starts each system on an empty directory, does every work, and stops it; the next round does all again. Rounds
alternate the systems, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.paths.processes import CheckFailed
from benchmarks.paths.report import machine
from benchmarks.peers.loading import load
from benchmarks.peers.report import Table, markdown, write_json
from benchmarks.peers.system import System, Variant
from benchmarks.peers.systems import SYSTEMS
from benchmarks.peers.works import FULL, QUICK, TINY, WORKS, Limits

FORMS = {"full": (FULL, 2), "quick": (QUICK, 1), "tiny": (TINY, 1)}     # limits, rounds
CLIENT_MARGIN_SECONDS = 30


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--systems", default="", metavar="WORDS",
                        help="variants whose name contains one of these, comma separated (default: all)")  # fmt: skip
    parser.add_argument("--works", default="", metavar="NAMES", help=f"some of {', '.join(WORKS)} (default: all)")
    parser.add_argument("--rounds", type=int, help="how often all is done (default: 2)")
    parser.add_argument("--quick", action="store_true", help="one short round: under five minutes")
    parser.add_argument("--tiny", action="store_true", help="shows that it works, measures nothing")
    parser.add_argument("--list", action="store_true", help="name the variants, and why one is absent")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--markdown", type=Path, help="write the page here")
    parser.add_argument("--plot", type=Path, help="write the plot here (.svg or .png)")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    words = [word for word in options.systems.split(",") if word]
    chosen = [
        (system, variant) for system in SYSTEMS for variant in system.variants
        if not words or any(word in variant.key for word in words)
    ]  # fmt: skip
    works = [name for name in options.works.split(",") if name] or list(WORKS)
    if unknown := [name for name in works if name not in WORKS]:
        print(f"there is no work {unknown[0]}: choose from {', '.join(WORKS)}", file=sys.stderr)
        return 2
    limits, rounds = FORMS["tiny" if options.tiny else "quick" if options.quick else "full"]
    table = Table(machine(Path(tempfile.gettempdir())), limits, options.rounds or rounds)
    present = table.add_systems(chosen)
    if options.list:
        for system, variant in chosen:
            print(f"{variant.key:<20} {system.absent() or 'present'}")
        return 0
    for round_number in range(1, table.rounds + 1):
        for system, variant in present:
            one_system(table, system, variant, works, round_number)
            write(options, table)
    return 1 if table.failed else 0


def one_system(table: Table, system: System, variant: Variant, works: list[str], round_number: int) -> None:
    os.sync()                          # what the system before left to be written is not this one's
    started = time.perf_counter()
    for line in measure(system, variant, works, table.limits):
        table.add(variant, round_number, line)
        print(f"{round_number} {variant.key:<18} {said(line)}", flush=True)
    print(f"{round_number} {variant.key:<18} took {time.perf_counter() - started:.0f} s", flush=True)


def measure(system: System, variant: Variant, works: list[str], limits: Limits) -> list[dict[str, Any]]:
    """Starts, loads, stops. What breaks is a line with `error`, and no figure."""
    with tempfile.TemporaryDirectory(prefix="streamkit-peers-", ignore_cleanup_errors=True) as directory:
        try:
            servers = system.start(variant, Path(directory))
        except (CheckFailed, OSError, subprocess.CalledProcessError) as error:
            why = f"did not start: {getattr(error, 'stderr', '') or error}"[:500]
            return [{"work": name, "error": why} for name in works]
        try:
            request = {
                "variant": variant.key, "facts": servers.facts, "pids": servers.pids, "works": works,
                "limits": asdict(limits), "latency_rate": system.latency_rate,
                "work_seconds_max": 10 * limits.seconds + CLIENT_MARGIN_SECONDS,
            }  # fmt: skip
            return load("benchmarks.peers.client", request)
        finally:
            servers.stop()


def write(options: argparse.Namespace, table: Table) -> None:
    """After each system, so that what was measured is kept when a later one breaks."""
    if options.json:
        write_json(options.json, table)
    if options.plot:
        from benchmarks.peers.plot import plot

        plot(options.plot, table)
    if options.markdown:
        options.markdown.write_text(markdown(table, options.plot))


def said(line: dict[str, Any]) -> str:
    if "error" in line:
        return f"{line['work']:<11} FAILED: {line['error']}"
    million = line["records"] / 1e6
    text = (
        f"{line['work']:<11} {line['records'] / line['seconds']:>12,.0f} rec/s"
        f"  cpu {line['server_cpu_seconds'] / million:8.2f} + {line['client_cpu_seconds'] / million:8.2f} s/M"
        f"  {line['server_peak_mib']:6.0f} MiB"
    )
    if latencies := line.get("latencies_ms"):
        text += f"  p50 {latencies['p50']:.2f} p99 {latencies['p99']:.2f} ms"
    return text


if __name__ == "__main__":
    sys.exit(main())
