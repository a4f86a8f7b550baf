"""The numbers of a delivery that `delivery_metrics` shows. Apart from it, because every delivery loads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from streamkit.observability.producer_numbers import Distribution


@dataclass(frozen=True, slots=True)
class DeliveryNumbers:
    """One delivery of one process. failed: reason → records; trouble: code → shards that wait because of it."""

    delivery: str
    records: int
    payload_bytes: int
    written_bytes: int
    chunks: int
    repeated: int
    dropped: int
    failed: Mapping[str, int]
    trouble: Mapping[str, int]
    lag_seconds: float
    buffer_bytes: int
    write: Distribution
