"""Records out: as objects, as raw values, as Arrow columns; each reader checks count and content."""

from __future__ import annotations

from benchmarks.paths.processes import node, run_client
from benchmarks.paths.produce import BATCH_RECORDS, SHARDS
from benchmarks.paths.report import Result, from_client
from streamkit import Client

ROLES = {
    "read_objects": ("read, record objects", "Reader, every record's value touched"),
    "read_raw": ("read, whole batches", "Reader.batches(), not decoded"),
    "read_values": ("read, values", "Reader.batches(), list of bytes a batch"),
    "read_arrow": ("read, Arrow columns", "Reader.batches(), to_arrow()"),
    "consume": ("consume with checkpoints", "Worker, class style, record objects"),
}


COPIES = {
    "copy_plain": ("copy, at least once", "Worker: put, flush, checkpoint for each batch"),
    "copy_transactional": ("copy, exactly once", "Worker, transactional: one transaction a batch"),
}


def copy(batches: int) -> list[Result]:
    """A worker puts what it reads into another stream of four shards, on disk."""
    return read(batches, tuple(COPIES), "fsync")


def read(batches: int, roles: tuple[str, ...] = tuple(ROLES), level: str = "page cache") -> list[Result]:
    """One process reads what was put, once for each way of reading."""
    results = []
    with node() as running:
        with Client(url=running.url) as client:
            client.create_stream("orders", shards=SHARDS, durability="os")
        run_client("sealed", running, stream="orders", batches=batches, batch_records=BATCH_RECORDS, window=64)
        with Client(url=running.url) as client:
            shards = client.describe_shards("orders")
        total = sum(s.high_watermark - s.log_start for s in shards) - sum(1 for s in shards if s.high_watermark)
        for role in roles:
            name, shape = (ROLES | COPIES)[role]
            measured = run_client(role, running, stream="orders", records=total)
            results.append(
                from_client(
                    measured, name=name, shape=shape, durability=level, server_memory_mib=running.memory_mib()
                )
            )
    return results
