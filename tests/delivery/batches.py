"""Records as a shard would give them out, and ranges of them."""

from __future__ import annotations

from typing import Any

import msgspec

from streamkit._core.batch import Batch, RecordContext, seal, stamped
from streamkit.delivery.buffer import Buffer, Gathering, Range
from streamkit.delivery.chunk import Plan, plan_id
from streamkit.delivery.pipeline import Origin
from streamkit.model.codec import Decoding

ARRIVED_MS = 1_790_000_000_000             # 2026-09-21 14:13:20 UTC
ORIGIN = Origin("lake", "orders", "shardId-000000000000", bytes(16))


def batch_of(values: list[Any], base: int = 0, annotation: Any = None) -> Batch[Any]:
    """Values as JSON, bytes as they are; keys k0, k1 …"""
    rows = [value if isinstance(value, bytes) else msgspec.json.encode(value) for value in values]
    raw = seal([(f"k{number}".encode(), row, b"", None, None) for number, row in enumerate(rows)])
    context = RecordContext("orders", ORIGIN.shard, uuid=bytes(16))
    return Batch(
        stamped(raw, base_sequence=base, append_time_ms=ARRIVED_MS, shard_uuid=bytes(16)),
        Decoding("auto", annotation).instead(context),
    )


def range_of(values: list[Any], base: int = 0, annotation: Any = None) -> Range:
    gathering = Gathering(Buffer(bytes_max=1 << 30), (base, 0))
    batch = batch_of(values, base, annotation)
    assert gathering.add(batch) == len(batch)
    return gathering.take()


def plan_of(gathered: Range) -> Plan:
    identity = plan_id("lake", bytes(16), gathered.start, gathered.end)
    return Plan(identity, gathered.start, gathered.end, gathered.oldest_ms)
