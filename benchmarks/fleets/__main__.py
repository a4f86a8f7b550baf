"""`python -m benchmarks.fleets`: every measurement, or those that --works names; a page and JSON."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path

from benchmarks.fleets.report import markdown, write_json
from benchmarks.fleets.works import FULL, TINY, WORKS, Row
from benchmarks.paths.processes import CheckFailed
from benchmarks.paths.report import machine


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleets", description=__doc__)
    parser.add_argument("--works", default="", metavar="NAMES", help=f"some of {', '.join(WORKS)} (default: all)")
    parser.add_argument("--tiny", action="store_true", help="shows that it works, measures nothing")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--markdown", type=Path, help="write the page here")
    options = parser.parse_args()
    names = [name for name in options.works.split(",") if name] or list(WORKS)
    if unknown := [name for name in names if name not in WORKS]:
        print(f"there is no work {unknown[0]}: choose from {', '.join(WORKS)}", file=sys.stderr)
        return 2
    sizes = TINY if options.tiny else FULL
    logging.getLogger("streamkit").addHandler(logging.NullHandler())       # thousands of clients would all say the same
    host = machine(Path(tempfile.gettempdir()))
    results: dict[str, list[Row]] = {}
    failed = False
    for name in names:
        try:
            for row in WORKS[name](sizes):
                results.setdefault(name, []).append(row)
                print(name, row, flush=True)
        except CheckFailed as error:
            print(f"{name} FAILED: {error}", file=sys.stderr)
            failed = True
        if options.json:
            write_json(options.json, host, sizes, results)
        if options.markdown:
            options.markdown.write_text(markdown(host, sizes, results))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
