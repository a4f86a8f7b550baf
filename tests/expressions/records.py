"""Batches to hold conditions against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from streamkit._core.batch import Batch, RecordContext, seal, stamped
from streamkit.expressions.condition import Condition

ARRIVED_MS = 1_700_000_000_000             # 2023-11-14T22:13:20Z


def batch_of(
    *values: Any, key: str = "k", headers: Mapping[str, bytes] | None = None, time_ms: int | None = None, base: int = 0,
) -> Batch[Any]:
    """One record a value: bytes as they are, everything else as JSON."""
    packed = msgspec.msgpack.encode(headers) if headers else b""
    records = [
        (key.encode(), value if isinstance(value, bytes) else msgspec.json.encode(value), packed, time_ms, None)
        for value in values
    ]
    whole = stamped(seal(records), base_sequence=base, append_time_ms=ARRIVED_MS, shard_uuid=b"\1" * 16)
    return Batch(whole, RecordContext("orders", "shardId-000000000000", decode=msgspec.json.decode))


def holds(text: str, value: Any = None, *, codec: str = "auto", **record: Any) -> bool | None:
    """True, False, or None for what is neither: unknown, or not to be decided."""
    batch = batch_of(value, **record)
    if len(Condition(text, codec).matching(batch)):
        return True
    return False if len(Condition(f"NOT ({text})", codec).matching(batch)) else None


def undecided(text: str, *values: Any, **options: Any) -> int:
    condition = Condition(text, **options)
    condition.matching(batch_of(*values))
    return condition.undecided
