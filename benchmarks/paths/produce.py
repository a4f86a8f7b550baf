"""Records in: sealed batches, the producer library in bulk and one by one, and single records pipelined."""

from __future__ import annotations

from benchmarks.paths.clients import BATCH_BYTES, KEY_BYTES, VALUE_BYTES
from benchmarks.paths.processes import node, nodes, run_client
from benchmarks.paths.report import Result, from_client
from streamkit import Client

BATCH_RECORDS = BATCH_BYTES // (KEY_BYTES + VALUE_BYTES + 12)
SHARDS = 4
LEVELS = {"fsync": "disk", "os": "page cache"}


def sealed(batches: int, level: str, replicas: int = 1, value_bytes: int = VALUE_BYTES) -> list[Result]:
    """What the broker takes when the client only sends."""
    batch_records = BATCH_BYTES // (KEY_BYTES + value_bytes + 12)
    size = "" if value_bytes == VALUE_BYTES else f" of {value_bytes:,}-byte values"
    with nodes(replicas) as running:
        with Client(url=running.url) as client:
            client.create_stream("orders", shards=SHARDS, durability=level)
        measured = run_client(
            "sealed", running, stream="orders", batches=batches, batch_records=batch_records, window=64,
            value_bytes=value_bytes,
        )  # fmt: skip
        return [
            from_client(
                measured, name="put sealed batches",
                shape=f"64 KiB{size}, {SHARDS} shards, 64 under way, {batches * BATCH_BYTES / 1e9:.1f} GB",
                durability=LEVELS[level], server_memory_mib=running.memory_mib(), replicas=replicas,
            )
        ]  # fmt: skip


def single(count: int, level: str, replicas: int = 1) -> list[Result]:
    """One record a request, many requests under way."""
    with nodes(replicas) as running:
        with Client(url=running.url) as client:
            client.create_stream("orders", shards=1, durability=level)
        measured = run_client("sealed", running, stream="orders", batches=count, batch_records=1, window=1024)
        return [
            from_client(
                measured, name="put one record a request", shape="1 shard, 1,024 under way",
                durability=LEVELS[level], server_memory_mib=running.memory_mib(), replicas=replicas,
            )
        ]  # fmt: skip


def library(role: str, count: int, level: str) -> list[Result]:
    """The producer library, acknowledged to the last record."""
    names = {
        "bulk": ("producer, bulk call", f"Arrow columns, {SHARDS} shards"),
        "put": ("producer, put() a record", f"one thread, {SHARDS} shards"),
    }
    name, shape = names[role]
    with node() as running:
        with Client(url=running.url) as client:
            client.create_stream("orders", shards=SHARDS, durability=level)
        measured = run_client(role, running, stream="orders", records=count)
        return [
            from_client(
                measured, name=name, shape=shape, durability=LEVELS[level], server_memory_mib=running.memory_mib()
            )
        ]
