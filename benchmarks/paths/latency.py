"""Latency of single records: at a tenth of what the node takes, sent at a rate that does not wait for answers; and at
rest, through the producer beside the bare round trip.
"""

from __future__ import annotations

from benchmarks.paths.processes import node, nodes, run_client
from benchmarks.paths.produce import LEVELS
from benchmarks.paths.report import Result, from_client
from benchmarks.paths.waiting import LINGER_MS
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


def waiting(count: int, records: int, level: str) -> list[Result]:
    """Acceptance: producer 11. At rest beside the bare round trip; under load beside linger_ms and one."""
    with node() as running:
        with Client(url=running.url) as client:
            client.create_stream("rest", shards=1, durability=level)
            client.create_stream("load", shards=1, durability=level)
        rest = run_client("at_rest", running, stream="rest", records=count)
        load = run_client("lingering", running, stream="load", records=records)
        memory_mib = running.memory_mib()
        return [
            from_client(
                rest, name="put at rest → acknowledged", shape="one record at a time, in turn with the next",
                durability=LEVELS[level], server_memory_mib=memory_mib,
            ),
            from_client(
                {**rest, "latencies_ms": rest["bare_ms"]}, name="bare round trip", shape="a sealed batch of one record",
                durability=LEVELS[level], server_memory_mib=memory_mib,
            ),
            from_client(
                load, name="put → on the wire", durability=LEVELS[level], server_memory_mib=memory_mib,
                shape=f"under load, linger_ms={LINGER_MS}; a round trip takes {load['round_trip_ms']:.1f} ms (p99)",
            ),
        ]  # fmt: skip
