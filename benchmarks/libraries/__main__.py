"""`python -m benchmarks.libraries`: every library in turn, round after round; a page and JSON.

A round starts each library's servers on empty directories, does every work, and stops them; rounds alternate the
libraries, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.libraries.entries import ENTRIES, Entry, install
from benchmarks.libraries.report import Table, markdown, write_json
from benchmarks.libraries.works import FULL, QUICK, TINY, WORKS, Limits
from benchmarks.paths.processes import CheckFailed
from benchmarks.paths.report import machine
from benchmarks.peers.loading import load

FORMS = {"full": (FULL, 2), "quick": (QUICK, 1), "tiny": (TINY, 1)}     # limits, rounds
MARGIN_SECONDS = 90                    # for putting what is handled, and joining a group, beyond the time measured


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.libraries", description=__doc__)
    parser.add_argument("--libraries", default="", metavar="WORDS", help="those whose name contains one of these")
    parser.add_argument("--works", default="", metavar="NAMES", help=f"some of {', '.join(WORKS)} (default: all)")
    parser.add_argument("--rounds", type=int, help="how often all is done (default: 2)")
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--tiny", action="store_true", help="shows that it works, measures nothing")
    parser.add_argument("--install", action="store_true", help="install the libraries that are not peers' already")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--markdown", type=Path, help="write the page here")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    if options.install:
        install()
        return 0
    words = [word for word in options.libraries.split(",") if word]
    works = [name for name in options.works.split(",") if name] or list(WORKS)
    if unknown := [name for name in works if name not in WORKS]:
        print(f"there is no work {unknown[0]}: choose from {', '.join(WORKS)}", file=sys.stderr)
        return 2
    limits, rounds = FORMS["tiny" if options.tiny else "quick" if options.quick else "full"]
    table = Table(machine(Path(tempfile.gettempdir())), limits, options.rounds or rounds)
    chosen = [entry for entry in ENTRIES if not words or any(word in entry.name for word in words)]
    for entry in chosen:
        if why := entry.absent():
            table.absent[entry.name] = why
            print(f"{entry.name}: {why}", file=sys.stderr)
        else:
            table.versions[entry.name] = entry.version()
    for round_number in range(1, table.rounds + 1):
        for entry in chosen:
            if entry.name in table.absent:
                continue
            os.sync()                  # what the servers before left to be written is not these ones'
            asked = [work for work in works if entry.library.batches or work != "handle-batches"]
            for line in measure(entry, asked, limits):
                table.add(entry, round_number, line)
                print(f"{round_number} {entry.name:<24} {said(line)}", flush=True)
            if options.json:
                write_json(options.json, table)
            if options.markdown:
                options.markdown.write_text(markdown(table))
    return 1 if table.failed else 0


def measure(entry: Entry, works: list[str], limits: Limits) -> list[dict[str, Any]]:
    """Starts, loads, stops. What breaks is a line with `error`, and no figure."""
    with tempfile.TemporaryDirectory(prefix="streamkit-libraries-", ignore_cleanup_errors=True) as directory:
        try:
            servers = entry.system.start(entry.variant, Path(directory))
        except (CheckFailed, OSError, subprocess.CalledProcessError) as error:
            return [{"work": name, "error": f"did not start: {str(error)[-400:]}"} for name in works]
        try:
            request = {
                "entry": entry.name, "facts": servers.facts, "pids": servers.pids, "works": works,
                "limits": asdict(limits), "work_seconds_max": 12 * limits.seconds + MARGIN_SECONDS,
            }  # fmt: skip
            return load("benchmarks.libraries.client", request, entry.library.python)
        finally:
            servers.stop()


def said(line: dict[str, Any]) -> str:
    if "error" in line:
        return f"{line['work']:<14} FAILED: {line['error']}"
    million = line["records"] / 1e6
    return (
        f"{line['work']:<14} {line['records'] / line['seconds']:>12,.0f} rec/s"
        f"  cpu {line['server_cpu_seconds'] / million:8.2f} + {line['client_cpu_seconds'] / million:8.2f} s/M"
        f"  {line['records']:,} records in {line['seconds']:.1f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
