"""The loading process: `python -m benchmarks.gateway.client REQUEST`. See `benchmarks.peers.loading`."""

from __future__ import annotations

import json
import sys
from typing import Any

import uvloop

from benchmarks.gateway.pushes import WORKS
from benchmarks.gateway.works import Limits, Works
from benchmarks.peers.loading import do_all


async def run(request: dict[str, Any]) -> None:
    await do_all(WORKS, Works(request["facts"], request["pids"], Limits(**request["limits"])), request)


if __name__ == "__main__":
    uvloop.run(run(json.loads(sys.argv[1])))
