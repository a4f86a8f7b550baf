"""`python -m benchmarks.gateway`: every server in turn, round after round; a page against the targets, and JSON.

A round starts each server on an empty directory, does every work, and stops it. Rounds alternate the servers, so that
a machine that slows down slows all of them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.gateway.pushes import WORKS
from benchmarks.gateway.report import Table, markdown, verdicts, write_json
from benchmarks.gateway.systems import SYSTEMS, left_out
from benchmarks.gateway.works import FULL, QUICK, TINY, Limits, quantiles
from benchmarks.paths.processes import CheckFailed
from benchmarks.paths.report import machine
from benchmarks.peers.loading import load
from benchmarks.peers.system import System

FORMS = {"full": (FULL, 2), "quick": (QUICK, 1), "tiny": (TINY, 1)}     # limits, rounds
MARGIN_SECONDS = 120                   # for making streams and reading back, beyond the time measured


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    parser.add_argument("--only", default="", metavar="WORDS",
                        help=f"works whose names contain one of these: {', '.join(WORKS)}")  # fmt: skip
    parser.add_argument("--systems", default="", metavar="NAMES", help="some of streamkit, kinesalite, …")
    parser.add_argument("--rounds", type=int, help="how often all is done (default: 2)")
    parser.add_argument("--stalled-seconds", type=float, help="how long a subscriber is stalled (default: 60)")
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--tiny", action="store_true", help="shows that it works, measures nothing")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--markdown", type=Path, help="write the page here")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    words = [word for word in options.only.split(",") if word]
    works = [name for name in WORKS if not words or any(word in name for word in words)]
    if not works:
        print(f"there is no such work: choose from {', '.join(WORKS)}", file=sys.stderr)
        return 2
    limits, rounds = FORMS["tiny" if options.tiny else "quick" if options.quick else "full"]
    if options.stalled_seconds is not None:
        limits = replace(limits, stalled_seconds=options.stalled_seconds)
    host = {**machine(Path(tempfile.gettempdir())), "load": load_of_machine(), "sync": sync_time()}
    table = Table(host, limits, options.rounds or rounds)
    named = [name for name in options.systems.split(",") if name]
    present = []
    for system in SYSTEMS:
        name = system.variants[0].name
        if not named or name in named:
            if table.add_system(name, system):
                present.append((name, system))
            else:
                print(f"{name}: {table.absent[name]}", file=sys.stderr)
    for round_number in range(1, table.rounds + 1):
        for name, system in present:
            os.sync()                  # what the server before left to be written is not this one's
            asked = [work for work in works if not left_out(name, work)]
            for line in measure(system, asked, limits):
                table.add(name, round_number, line)
                print(f"{round_number} {name:<14} {said(line)}", flush=True)
            write(options, table)
    for work, target, got, met in verdicts(table):
        print(f"{work:<18} {target:<40} {got:<44} {'' if met is None else 'met' if met else 'MISSED'}")
    return 1 if table.failed else 0


def measure(system: System, works: list[str], limits: Limits) -> list[dict[str, Any]]:
    """Starts, loads, stops. What breaks is a line with `error`, and no figure."""
    with tempfile.TemporaryDirectory(prefix="streamkit-gateway-", ignore_cleanup_errors=True) as directory:
        try:
            servers = system.start(system.variants[0], Path(directory))
        except (CheckFailed, OSError, subprocess.CalledProcessError) as error:
            return [{"work": name, "error": f"did not start: {str(error)[-400:]}"} for name in works]
        try:
            longest = max(limits.seconds, limits.stalled_seconds + limits.stalled_warm_seconds)
            return load("benchmarks.gateway.client", {
                "facts": servers.facts, "pids": servers.pids, "works": works, "limits": asdict(limits),
                "work_seconds_max": longest + limits.subscribe_seconds + MARGIN_SECONDS,
            })  # fmt: skip
        finally:
            servers.stop()


def load_of_machine() -> str:
    """Said on the page: figures of a busy machine are not those of a quiet one."""
    load = os.getloadavg()[0]
    return f"{'busy with other work' if load > 1 else 'otherwise idle'} (load {load:.1f} when the run began)"


def sync_time() -> str:
    """What durability costs here: no put is acknowledged, or pushed to a subscriber, sooner."""
    seconds = []
    with tempfile.TemporaryFile() as file:
        for _ in range(200):
            os.write(file.fileno(), bytes(4_096))
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            seconds.append(time.perf_counter() - began)
    found = quantiles(seconds)
    return f"{found['p50']:.2f} ms (p50), {found['p99']:.2f} ms (p99)"


def write(options: argparse.Namespace, table: Table) -> None:
    """After each server, so that what was measured is kept when a later one breaks."""
    if options.json:
        write_json(options.json, table)
    if options.markdown:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(markdown(table))


def said(line: dict[str, Any]) -> str:
    if "error" in line:
        return f"{line['work']:<18} FAILED: {line['error']}"
    million, seconds = line["records"] / 1e6, line["seconds"]
    text = (
        f"{line['work']:<18} {line['records'] / seconds:>10,.0f}/s"
        f"  cpu {line['server_cpu_seconds'] / million:8.2f} + {line['client_cpu_seconds'] / million:8.2f} s/M"
        f" ({line['server_cpu_seconds'] / seconds:.2f} + {line['client_cpu_seconds'] / seconds:.2f} cores)"
        f"  {line['server_peak_mib']:5.0f} MiB"
    )
    if latencies := line.get("latencies_ms"):
        text += f"  p50 {latencies['p50']:.2f} p99 {latencies['p99']:.2f} ms"
    if "grown_mib" in line:
        text += f"  {line['grown_mib']:+.1f} MiB"
    return f"{text}  [{time.strftime('%H:%M:%S')}, took {line['took_seconds']} s]"


if __name__ == "__main__":
    sys.exit(main())
