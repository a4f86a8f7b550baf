"""The loading process: `python -m benchmarks.peers.client REQUEST`, one JSON line for each work.

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

from benchmarks.peers.systems import system_of
from benchmarks.peers.works import WORKS, Limits, Works


async def run(request: dict[str, Any]) -> None:
    system = system_of(request["variant"])
    client = system.client_class(request["variant"], request["facts"])
    limits = Limits(**request["limits"])
    await client.open()
    works = Works(client, request["pids"], limits, request["latency_rate"])
    gc.freeze()
    for name in request["works"]:
        started = time.perf_counter()
        try:
            result = await asyncio.wait_for(WORKS[name](works), request["work_seconds_max"])
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"[:500]}
        line = {"work": name, **result, "took_seconds": round(time.perf_counter() - started, 2)}
        print(json.dumps(line), flush=True)
    await client.close()


def main() -> None:
    uvloop.run(run(json.loads(sys.argv[1])))


if __name__ == "__main__":
    main()
