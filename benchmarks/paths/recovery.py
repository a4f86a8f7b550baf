"""kill -9 with a full log: how long until the node serves again, and whether everything acknowledged is there."""

from __future__ import annotations

import time

from benchmarks.paths.clients import BATCH_BYTES, KEY_BYTES, VALUE_BYTES, sealed_batches
from benchmarks.paths.processes import Node, check, node, run_client, start_node
from benchmarks.paths.report import Result
from streamkit import Client

BATCH_RECORDS = BATCH_BYTES // (KEY_BYTES + VALUE_BYTES + 12)


def recovery(log_bytes: int, shards: int) -> list[Result]:
    with node() as running:
        with Client(url=running.url) as client:
            client.create_stream("orders", shards=shards, durability="os")
        run_client(
            "sealed", running, stream="orders", batches=max(shards, log_bytes // BATCH_BYTES),
            batch_records=BATCH_RECORDS, window=64,
        )  # fmt: skip
        with Client(url=running.url) as client:
            before = [s.high_watermark for s in client.describe_shards("orders")]
            stored = sum(s.stored_bytes for s in client.describe_shards("orders"))
        running.kill()
        again = start_node(running.directory)
        try:
            first_put_seconds = _until_first_put(again, before)
        finally:
            again.stop()
    return [
        Result(
            name="restart after kill -9", shape=f"{stored / 2**30:.2f} GiB in {shards} shards",
            figure=f"{again.ready_seconds:.2f} s to serving, {again.ready_seconds + first_put_seconds:.2f} s to the "
            f"first put acknowledged",
            durability="os", server_memory_mib=None, checked="every acknowledged record is below the high watermark",
            facts={"ready_seconds": again.ready_seconds, "stored_bytes": stored},
        )
    ]  # fmt: skip


def _until_first_put(again: Node, before: list[int]) -> float:
    with Client(url=again.url) as client:
        started = time.perf_counter()
        shard = client.describe_stream("orders").shards[0]
        ((batch,),) = sealed_batches(1, 1, (shard,))
        client.put_batch(shard, batch)
        seconds = time.perf_counter() - started
        after = [s.high_watermark for s in client.describe_shards("orders")]
    check(after[0] > before[0], "the put is below the high watermark")
    check(all(b >= a for a, b in zip(before, after, strict=True)), f"high watermarks {before} became {after}")
    return seconds
