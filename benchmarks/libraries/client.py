"""The loading process: `python -m benchmarks.libraries.client REQUEST`. See `benchmarks.peers.loading`."""

from __future__ import annotations

import json
import sys
from typing import Any

import uvloop

from benchmarks.libraries.entries import ENTRIES
from benchmarks.libraries.works import WORKS, Limits, Works
from benchmarks.peers.loading import do_all


async def run(request: dict[str, Any]) -> None:
    entry = next(entry for entry in ENTRIES if entry.name == request["entry"])
    library = entry.library(request["facts"])
    await library.open()
    await do_all(WORKS, Works(library, request["pids"], Limits(**request["limits"])), request)
    await library.close()


if __name__ == "__main__":
    uvloop.run(run(json.loads(sys.argv[1])))
