"""Latency of single records at a tenth of what the node takes, sent at a rate that does not wait for answers."""

from __future__ import annotations

from benchmarks.paths.processes import nodes, run_client
from benchmarks.paths.produce import LEVELS
from benchmarks.paths.report import Result, from_client
from streamkit import Client


def latency(probe: int, count: int, level: str, replicas: int = 1) -> list[Result]:
    """probe: requests used to find the full rate first."""
    with nodes(replicas) as running:
        with Client(url=running.url) as client:
            client.create_stream("probe", shards=1, durability=level)
            client.create_stream("orders", shards=1, durability=level)
        full = run_client("sealed", running, stream="probe", batches=probe, batch_records=1, window=1024)
        rate = full["records"] / full["seconds"] / 10
        measured = run_client("open_loop", running, stream="orders", records=count, rate=rate)
        shape = f"1 record a request, {rate:,.0f}/s: a tenth of the full rate"
        acknowledged = from_client(
            measured, name="put → acknowledged", shape=shape, durability=LEVELS[level],
            server_memory_mib=running.memory_mib(), replicas=replicas,
        )  # fmt: skip
        seen = from_client(
            {**measured, "latencies_ms": measured["end_to_end_ms"]}, name="put → seen by a reader", shape=shape,
            durability=LEVELS[level], server_memory_mib=running.memory_mib(), replicas=replicas,
        )  # fmt: skip
        return [acknowledged, seen]
