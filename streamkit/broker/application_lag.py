"""How far applications are behind: what the coordinator and the shards know, with no worker connected.

`states` answers for this moment. `look`, called every second, keeps a minute of history for rates and trends, and
counts what retention removed before it was finished. Both are forgotten when the coordinator moves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Protocol

from streamkit.errors import StreamkitError
from streamkit.leases.table import Application
from streamkit.protocol.messages import LeaseState, StreamTrend
from streamkit.runtime.interfaces import Clock

_SAMPLE_MS = 5_000
_SAMPLES = 13                              # a minute, and the beginning of it
_HOUR_MS = 3_600_000


class Shards(Protocol):
    """The part of the coordinator's streams that lag is made of."""

    def high_watermark(self, shard: bytes) -> int: ...
    def append_time_of(self, shard: bytes, sequence: int) -> int | None: ...
    def backlog(self, shard: bytes, sequence: int) -> tuple[int, int]: ...
    def retention_hours(self, name: str) -> int: ...


class _Sample:
    __slots__ = ("at_ms", "finished", "lag_ms", "put")

    def __init__(self, at_ms: int) -> None:
        self.at_ms = at_ms
        self.put = 0
        self.finished = 0
        self.lag_ms = 0


class LagWatch:
    """Of all applications of one coordinator."""

    def __init__(self, shards: Shards, clock: Clock) -> None:
        self._shards = shards
        self._clock = clock
        self._samples: dict[tuple[str, str], deque[_Sample]] = {}
        self._lost: dict[tuple[str, bytes], tuple[int, int]] = {}     # (records lost, up to which sequence counted)
        self._sampled_ms = -_SAMPLE_MS

    def states(self, application: Application) -> list[LeaseState]:
        """Every lease with its lag, by stream and ordinal."""
        now_ms = self._clock.now_ms()
        states = []
        for stream in sorted(application.streams):
            for shard, ordinal in sorted(application.streams[stream].items(), key=lambda item: item[1]):
                try:
                    states.append(self._state(application, stream, shard, ordinal, now_ms))
                except StreamkitError:
                    continue               # deleted a moment ago; the next look at the streams takes its leases away
        return states

    def trends(self, application: str) -> tuple[StreamTrend, ...]:
        trends = []
        for (name, stream), samples in sorted(self._samples.items()):
            if name == application:
                first, last = samples[0], samples[-1]
                seconds = max(1, last.at_ms - first.at_ms) / 1000
                trends.append(StreamTrend(
                    stream, tuple(sample.lag_ms for sample in samples), max(0, last.put - first.put) / seconds,
                    max(0, last.finished - first.finished) / seconds,
                ))
        return tuple(trends)

    def look(self, applications: Mapping[str, Application]) -> None:
        """Count what was lost; every few seconds also a sample of each application and stream."""
        now_ms = self._clock.monotonic_ms()
        sample = now_ms - self._sampled_ms >= _SAMPLE_MS
        if sample:
            self._sampled_ms = now_ms
            self._samples = {key: kept for key, kept in self._samples.items() if key[1] in _streams(applications, key)}
            self._lost = {
                key: lost for key, lost in self._lost.items()
                if key[0] in applications and key[1] in applications[key[0]].leases
            }
        for application in applications.values():
            taken: dict[str, _Sample] = {}
            for stream, shards in application.streams.items():
                for shard in shards:
                    try:
                        self._look_at(application, shard, taken.setdefault(stream, _Sample(now_ms)) if sample else None)
                    except StreamkitError:
                        continue
            for stream, made in taken.items():
                self._samples.setdefault((application.name, stream), deque(maxlen=_SAMPLES)).append(made)

    def _look_at(self, application: Application, shard: bytes, sample: _Sample | None) -> None:
        checkpoint = application.leases.row(shard)[3]
        end = self._end(application, shard)
        log_start, _ = self._shards.backlog(shard, end)
        self._count_lost(application.name, shard, checkpoint, min(log_start, end))
        if sample is not None:
            arrived_ms = self._shards.append_time_of(shard, checkpoint) if end > checkpoint else None
            sample.put += end
            sample.finished += checkpoint
            if arrived_ms is not None:
                sample.lag_ms = max(sample.lag_ms, self._clock.now_ms() - arrived_ms)

    def _count_lost(self, application: str, shard: bytes, checkpoint: int, log_start: int) -> int:
        lost, through = self._lost.get((application, shard), (0, 0))
        if log_start > max(checkpoint, through):
            lost += log_start - max(checkpoint, through)
            self._lost[application, shard] = (lost, log_start)
        return lost

    def _end(self, application: Application, shard: bytes) -> int:
        # What may stand after the end of a closed shard are marks of later leaders.
        end = application.ends.get(shard)
        return self._shards.high_watermark(shard) if end is None else end

    def _state(self, application: Application, stream: str, shard: bytes, ordinal: int, now_ms: int) -> LeaseState:
        state, session, lease_epoch, checkpoint, takeovers, _, checkpointed_ms = application.leases.row(shard)
        end = self._end(application, shard)
        log_start, lag_bytes = self._shards.backlog(shard, checkpoint)
        log_start = min(log_start, end)
        lag_records = max(0, end - max(checkpoint, log_start))
        arrived_ms = self._shards.append_time_of(shard, checkpoint) if lag_records else None
        lag_ms = max(0, now_ms - arrived_ms) if arrived_ms is not None else 0
        retention_ms = self._shards.retention_hours(stream) * _HOUR_MS
        return LeaseState(
            stream=stream,
            ordinal=ordinal,
            state="paused" if application.held and state == "ready" else state,
            owner=application.members[session].worker if session else "",
            lease_epoch=lease_epoch,
            checkpoint=checkpoint,
            high_watermark=end,
            lag_records=lag_records,
            lag_ms=lag_ms,
            checkpoint_age_ms=max(0, now_ms - (checkpointed_ms or application.created_ms)),
            takeovers_without_progress=takeovers,
            poisoned=len(application.attempts.get(shard, ())),
            reason=application.reasons.get(shard, application.held),
            lag_bytes=lag_bytes if lag_records else 0,
            time_to_trim_ms=max(0, retention_ms - lag_ms) if lag_records else -1,
            records_lost=self._count_lost(application.name, shard, checkpoint, log_start),
            sub_sequence=application.sub_sequences.get(shard, 0),
        )


def _streams(applications: Mapping[str, Application], key: tuple[str, str]) -> Mapping[str, object]:
    application = applications.get(key[0])
    return application.streams if application is not None else {}
