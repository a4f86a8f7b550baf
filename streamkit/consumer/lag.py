"""How far an application is behind, as the coordinator tells it."""

from __future__ import annotations

from dataclasses import dataclass

from streamkit.model.shard import shard_id
from streamkit.protocol.messages import ApplicationDescribed


@dataclass(frozen=True, slots=True)
class ShardLag:
    """ms: age of the first unfinished record; 0 when there is none. owner: "" when nobody has the lease."""

    stream: str
    shard: str
    records: int
    ms: int
    state: str
    owner: str


@dataclass(frozen=True, slots=True)
class Lag:
    """records: over all shards; ms: of the shard that is furthest behind."""

    records: int
    ms: int
    workers: tuple[str, ...]
    shards: tuple[ShardLag, ...]


def lag_of(described: ApplicationDescribed) -> Lag:
    shards = tuple(
        ShardLag(lease.stream, shard_id(lease.ordinal), lease.lag_records, lease.lag_ms, lease.state, lease.owner)
        for lease in described.leases
    )
    furthest_ms = max((shard.ms for shard in shards), default=0)
    return Lag(sum(shard.records for shard in shards), furthest_ms, described.workers, shards)
