"""kill -9 with a full log: how long until the node serves again, and whether everything acknowledged is there."""

from __future__ import annotations

import time

from benchmarks.paths.clients import BATCH_BYTES, KEY_BYTES, VALUE_BYTES, sealed_batches
from benchmarks.paths.processes import Node, check, node, run_client, start_node
from benchmarks.paths.report import Result
from streamkit import Client

BATCH_RECORDS = BATCH_BYTES // (KEY_BYTES + VALUE_BYTES + 12)


def recovery(log_bytes: int, shards: int, settle_seconds: float) -> list[Result]:
    """Twice: with everything written in the moments before the kill, and with a log that had time to settle."""
    with node() as running:
        with Client(url=running.url) as client:
            client.create_stream("orders", shards=shards, durability="os")
        fresh = _kill_and_restart(running, log_bytes, shards, "all of it just written")
        time.sleep(settle_seconds)
        settled = _kill_and_restart(running, log_bytes // 32, shards, f"a 32nd of it after {settle_seconds:.0f} s")
        return [fresh, settled]


def _kill_and_restart(running: Node, log_bytes: int, shards: int, what: str) -> Result:
    """Puts log_bytes more, kills the node, and lets `running` be the one that takes its place."""
    run_client(
        "sealed", running, stream="orders", batches=max(shards, log_bytes // BATCH_BYTES),
        batch_records=BATCH_RECORDS, window=64,
    )  # fmt: skip
    with Client(url=running.url) as client:
        before = [s.high_watermark for s in client.describe_shards("orders")]
        stored = sum(s.stored_bytes for s in client.describe_shards("orders"))
    running.kill()
    again = start_node(running.directory)
    running.process, running.url = again.process, again.url
    first_put_seconds = _until_first_put(again, before)
    return Result(
        name="restart after kill -9", shape=f"{stored / 2**30:.2f} GiB in {shards} shards, {what}",
        figure=f"{again.ready_seconds:.2f} s to serving, {first_put_seconds * 1000:.0f} ms more to the first put",
        durability="page cache", checked="every acknowledged record is below the high watermark",
        facts={"ready_seconds": again.ready_seconds, "stored_bytes": stored},
    )  # fmt: skip


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
