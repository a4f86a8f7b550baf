"""What a node tells of itself: readiness with reasons, the health report, the numbers of a scrape."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from streamkit.broker.coordinator import Coordinator
from streamkit.broker.counters import Counters
from streamkit.broker.server import Server
from streamkit.broker.streams import Streams
from streamkit.http.exchange import Request, Response
from streamkit.model.shard import Shard, shard_id
from streamkit.observability.applications import ApplicationNumbers, LeaseNumbers
from streamkit.observability.metrics import (
    ClusterNumbers,
    Exposition,
    FaceNumbers,
    Latency,
    ShardNumbers,
    Snapshot,
    StreamNumbers,
)
from streamkit.protocol.messages import NodeDescribed
from streamkit.runtime.interfaces import Clock
from streamkit.security.policy import is_expected_host

_TEXT = "text/plain; version=0.0.4; charset=utf-8"


class Report:
    """Reads, never changes. Everything it gives out is a number or a name that operators know."""

    def __init__(
        self, *, server: Server, streams: Streams, counters: Counters, clock: Clock, version: str,
        insecure_listeners: int, cluster: Callable[[], ClusterNumbers] | None = None,
        faces: Callable[[], FaceNumbers] | None = None, coordinator: Callable[[], Coordinator | None] | None = None,
    ) -> None:
        """coordinator: of applications, while it is this node. cluster: a cluster's node tells its part in it.

        faces: so do its HTTP faces.
        """
        self._cluster = cluster
        self._faces = faces
        self._coordinator = coordinator
        self._server = server
        self._streams = streams
        self._counters = counters
        self._clock = clock
        self._version = version
        self._insecure_listeners = insecure_listeners

    def snapshot(self, described: NodeDescribed) -> Snapshot:
        counters = self._counters
        return Snapshot(
            version=self._version, ready=described.ready, now_ms=self._clock.now_ms(),
            insecure_listeners=self._insecure_listeners, connections=len(self._server.links),
            refused_connections=counters.connections_refused, requests=counters.requests(),
            failures=dict(counters.failures),
            streams=[
                StreamNumbers(
                    stream=name, put_latency=Latency(list(counts.put_latency), counts.put_seconds),
                    put_failures=dict(counts.put_failures),
                )
                for name, counts in counters.streams.items()
            ],
            memory_bytes=self._server.memory_bytes(), memory_limit_bytes=self._server.config.memory_bytes_max,
            free_bytes=described.free_bytes, read_only=self._streams.directory.read_only is not None,
            shards=[
                self._numbers(stream.name, shard)
                for stream in self._streams.catalog.streams.values()
                for shard in stream.shards
                if shard.uuid in self._streams.shards
            ],
            cluster=self._cluster() if self._cluster is not None else None,
            faces=self._faces() if self._faces is not None else None,
            applications=self._applications(),
        )

    def _applications(self) -> ApplicationNumbers | None:
        coordinator = self._coordinator() if self._coordinator is not None else None
        if coordinator is None:
            return None
        applications = coordinator.machine.table.applications
        return ApplicationNumbers(
            leases=[
                LeaseNumbers(
                    application=name, stream=lease.stream, shard=shard_id(lease.ordinal), state=lease.state,
                    owned=bool(lease.owner), lease_epoch=lease.lease_epoch, lag_records=lease.lag_records,
                    lag_bytes=lease.lag_bytes, lag_ms=lease.lag_ms,
                    trim_ms=lease.time_to_trim_ms if lease.time_to_trim_ms >= 0 else None,
                    checkpoint_age_ms=lease.checkpoint_age_ms, takeovers=lease.takeovers_without_progress,
                    retrying=lease.poisoned, lost=lease.records_lost,
                )
                for name in sorted(applications) for lease in coordinator.lag.states(applications[name])
            ],
            members={name: len(application.members) for name, application in sorted(applications.items())},
            checkpoints=dict(coordinator.checkpoints),
        )

    def _numbers(self, stream: str, shard: Shard) -> ShardNumbers:
        served = self._streams.shards[shard.uuid]
        log = served.log
        empty = log.log_start == log.log_end
        return ShardNumbers(
            stream=stream, shard=shard.id, put_records=served.put_records, put_bytes=served.put_bytes,
            duplicates=served.duplicates, trimmed_records=served.trimmed_records,
            reads={application: (records, size) for application, (records, size) in (served.reads or {}).items()},
            kept_bytes=log.stored_bytes, high_watermark=served.high_watermark, log_start=log.log_start,
            oldest_ms=None if empty else log.first_append_ms(),
        )


def _page(status: int, body: bytes, content_type: str = "text/plain; charset=utf-8") -> Response:
    headers = (("content-type", content_type), ("cache-control", "no-store"), ("x-content-type-options", "nosniff"))
    return Response(status, headers, body)


class HealthPages:
    """GET /live, /ready, /health and /metrics. `describe` says how the node is."""

    def __init__(
        self, report: Report, describe: Callable[[], NodeDescribed], *, host: str, metrics: bool,
        per_shard_max: int,
    ) -> None:
        self._describe = describe
        self._host = host
        self._exposition = (
            Exposition(lambda: report.snapshot(describe()), per_shard_max=per_shard_max) if metrics else None
        )

    async def answer(self, request: Request) -> Response:
        path = request.path
        if request.method not in ("GET", "HEAD"):
            return _page(405, b"only GET and HEAD\n")
        if path == "/live":
            return _page(200, b"live\n")
        if path == "/ready":
            described = self._describe()
            body = msgspec.json.encode({"ready": described.ready, "reasons": described.reasons})
            return _page(200 if described.ready else 503, body + b"\n", "application/json")
        if not is_expected_host(request.headers.get("host", ""), self._host):
            return _page(421, b"this host name is not served here\n")
        if path == "/health":
            return _page(200, msgspec.json.encode(self._health()) + b"\n", "application/json")
        if path == "/metrics" and self._exposition is not None:
            return _page(200, self._exposition.text(), _TEXT)
        return _page(404, b"here are /live, /ready, /health and /metrics\n")

    def _health(self) -> dict[str, object]:
        described = self._describe()
        return {name: getattr(described, name) for name in described.__struct_fields__}
