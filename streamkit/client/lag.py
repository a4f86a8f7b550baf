"""How far an application is behind, as the coordinator tells it: for programs, commands and checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from streamkit.model.shard import shard_id
from streamkit.protocol.messages import ApplicationDescribed, LeaseState, StreamTrend

_CLOSE_MS = 5_000                          # nearer than that nobody is behind
_SLOPE = 0.02                              # of the rates: what differs by less is level


@dataclass(frozen=True, slots=True)
class ShardLag:
    """ms: age of the first unfinished record; 0 when there is none. owner: "" when nobody has the lease.

    bytes: stored ones. time_to_trim_ms: until retention may remove the first unfinished record, None when there is
    none. records_lost: removed before they were finished.
    """

    stream: str
    shard: str
    records: int
    ms: int
    state: str
    owner: str
    bytes: int = 0
    time_to_trim_ms: int | None = None
    records_lost: int = 0


@dataclass(frozen=True, slots=True)
class StreamLag:
    """An application on one stream. trend_ms: its lag over the last minute, oldest first, every five seconds.

    put_rate, finished_rate: records a second over that minute. state: "ok", "catching up", "steady", "falling behind",
    "no workers", "2 paused", "retrying 1 record".
    """

    application: str
    stream: str
    records: int
    bytes: int
    ms: int
    time_to_trim_ms: int | None
    records_lost: int
    workers: int
    leases_owned: int
    leases: int
    state: str
    put_rate: float = 0.0
    finished_rate: float = 0.0
    trend_ms: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Lag:
    """records, bytes: over all shards; ms, seconds: of the shard that is furthest behind; likewise time_to_trim_ms."""

    records: int
    ms: int
    workers: tuple[str, ...]
    shards: tuple[ShardLag, ...]
    bytes: int = 0
    time_to_trim_ms: int | None = None
    records_lost: int = 0
    streams: tuple[StreamLag, ...] = field(default=())

    @property
    def seconds(self) -> float:
        return self.ms / 1000


def lag_of(described: ApplicationDescribed) -> Lag:
    shards = tuple(
        ShardLag(
            lease.stream, shard_id(lease.ordinal), lease.lag_records, lease.lag_ms, lease.state, lease.owner,
            lease.lag_bytes, _trim(lease), lease.records_lost,
        )
        for lease in described.leases
    )  # fmt: skip
    trends = {trend.stream: trend for trend in described.trends}
    streams = tuple(
        _stream_lag(described, stream, trends.get(stream)) for stream in sorted({shard.stream for shard in shards})
    )
    return Lag(
        sum(shard.records for shard in shards), max((shard.ms for shard in shards), default=0), described.workers,
        shards, sum(shard.bytes for shard in shards), _soonest(described.leases),
        sum(shard.records_lost for shard in shards), streams,
    )  # fmt: skip


def _stream_lag(described: ApplicationDescribed, stream: str, trend: StreamTrend | None) -> StreamLag:
    leases = [lease for lease in described.leases if lease.stream == stream]
    owned = sum(1 for lease in leases if lease.owner)
    ms = max(lease.lag_ms for lease in leases)
    return StreamLag(
        application=described.application,
        stream=stream,
        records=sum(lease.lag_records for lease in leases),
        bytes=sum(lease.lag_bytes for lease in leases),
        ms=ms,
        time_to_trim_ms=_soonest(leases),
        records_lost=sum(lease.records_lost for lease in leases),
        workers=len({lease.owner for lease in leases if lease.owner}),
        leases_owned=owned,
        leases=len(leases),
        state=_state(leases, owned, ms, trend),
        put_rate=trend.put_rate if trend is not None else 0.0,
        finished_rate=trend.finished_rate if trend is not None else 0.0,
        trend_ms=trend.lag_ms if trend is not None else (),
    )


def _trim(lease: LeaseState) -> int | None:
    return lease.time_to_trim_ms if lease.time_to_trim_ms >= 0 else None


def _soonest(leases: Sequence[LeaseState]) -> int | None:
    return min((ms for lease in leases if (ms := _trim(lease)) is not None), default=None)


def _state(leases: Sequence[LeaseState], owned: int, ms: int, trend: StreamTrend | None) -> str:
    if paused := sum(lease.state == "paused" for lease in leases):
        return f"{paused} paused"
    if retrying := sum(lease.poisoned for lease in leases):
        return f"retrying {retrying} record{'s' if retrying > 1 else ''}"
    if not owned and any(lease.state != "complete" for lease in leases):
        return "no workers"
    if ms <= _CLOSE_MS or trend is None:
        return "ok"
    slope = trend.finished_rate - trend.put_rate
    if abs(slope) <= _SLOPE * max(trend.put_rate, trend.finished_rate):
        return "steady"
    return "catching up" if slope > 0 else "falling behind"
