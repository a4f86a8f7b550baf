"""The loading process: `python -m benchmarks.peers.client REQUEST`. See `loading`."""

from __future__ import annotations

import json
import sys
from typing import Any

import uvloop

from benchmarks.peers.loading import do_all
from benchmarks.peers.systems import system_of
from benchmarks.peers.works import WORKS, Limits, Works


async def run(request: dict[str, Any]) -> None:
    client = system_of(request["variant"]).client_class(request["variant"], request["facts"])
    await client.open()
    await do_all(WORKS, Works(client, request["pids"], Limits(**request["limits"]), request["latency_rate"]), request)
    await client.close()


if __name__ == "__main__":
    uvloop.run(run(json.loads(sys.argv[1])))
