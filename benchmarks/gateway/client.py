"""The loading process: `python -m benchmarks.gateway.client REQUEST`, one JSON line for each work.

It is a process of its own so that its CPU seconds are its own. A work that fails says so in its line; the next one is
tried all the same.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from typing import Any

import uvloop

from benchmarks.gateway.pushes import WORKS
from benchmarks.gateway.works import Limits, Works


async def run(request: dict[str, Any]) -> None:
    works = Works(request["facts"], request["pids"], Limits(**request["limits"]))
    gc.freeze()
    for name in request["works"]:
        started = time.perf_counter()
        try:
            result = await asyncio.wait_for(WORKS[name](works), request["work_seconds_max"])
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"[:500]}
        line = {"work": name, **result, "took_seconds": round(time.perf_counter() - started, 2)}
        print(json.dumps(line), flush=True)


def main() -> None:
    uvloop.run(run(json.loads(sys.argv[1])))


if __name__ == "__main__":
    main()
