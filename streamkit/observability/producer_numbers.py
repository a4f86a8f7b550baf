"""The numbers of a producer that `producer_metrics` shows. Apart from it, because every producer loads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Distribution:
    """below: how many values lie at or under each of `bounds`; cumulative."""

    bounds: Sequence[float]
    below: Sequence[int]
    count: int
    total: float


@dataclass(frozen=True, slots=True)
class LaneNumbers:
    shard: str
    in_flight: int                                  # batches
    buffered_bytes: int
    window_bytes: float                             # inf: no window
    oldest_ms: int


@dataclass(frozen=True, slots=True)
class ProducerNumbers:
    """One stream of one producer."""

    stream: str
    records: int                                    # accepted
    bytes: int                                      # their keys, headers and values
    stored: int
    duplicates: int
    outstanding: int
    buffered_bytes: int
    oldest_ms: int
    sent_bytes: int                                 # on the wire, repeats included
    sealed_bytes: int                               # of batches before compression
    map_version: int
    sealed: Mapping[str, int]                       # reason → batches
    failures: Mapping[str, int]                     # code → records
    retries: Mapping[str, int]                      # code → batches
    reroutes: Mapping[str, int]                     # reason → batches
    throttled: int
    throttled_s: float
    sequence_gaps: int
    identities: int
    ack: Distribution
    queue: Distribution
    request: Distribution
    batch_records: Distribution
    batch_bytes: Distribution
    lanes: Sequence[LaneNumbers] = field(default_factory=tuple)
