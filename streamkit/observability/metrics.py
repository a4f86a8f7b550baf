"""The metrics a node has, read at scrape time. Nothing is counted here.

The node hands over a function that returns a `Snapshot` of plain integers; `exposition` turns it into
Prometheus text. Names, labels and units are promises to users' dashboards.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry

from streamkit.observability.applications import ApplicationNumbers, application_metrics
from streamkit.observability.buckets import LATENCY_BOUNDS


@dataclass(frozen=True, slots=True)
class Latency:
    """counts: one a bucket of LATENCY_BOUNDS and one for what is slower; not cumulative."""

    counts: Sequence[int]
    seconds_sum: float


@dataclass(frozen=True, slots=True)
class ShardNumbers:
    stream: str
    shard: str
    put_records: int
    put_bytes: int
    duplicates: int
    trimmed_records: int
    kept_bytes: int
    high_watermark: int
    log_start: int
    oldest_ms: int | None
    reads: dict[str, tuple[int, int]] = field(default_factory=dict)     # application ("": none) → (records, bytes)


@dataclass(frozen=True, slots=True)
class StreamNumbers:
    stream: str
    put_latency: Latency
    put_failures: dict[str, int] = field(default_factory=dict)          # code → puts refused


@dataclass(frozen=True, slots=True)
class ClusterNumbers:
    """A node's part in its cluster. lag_bytes: node → what its copies lack of the shards led here."""

    leaders: int
    followers: int
    uncertain: int
    short: int                                      # led here, and a member's copy is not connected or far behind
    lag_bytes: dict[str, int]
    peers: dict[str, bool]                          # node → connected
    elections_won: int
    damaged: int
    repaired: int
    differences: int
    store_available: bool


@dataclass(frozen=True, slots=True)
class ReportedNumbers:
    """The newest value of a series that a program reported to this node, as the KCL does."""

    namespace: str
    metric: str
    dimensions: str                                 # "Operation=ProcessTask,ShardId=shardId-000000000000"
    value: float


@dataclass(frozen=True, slots=True)
class FaceNumbers:
    """A node's HTTP faces. answers: (operation, error or "ok") → count. latency: by operation, of whole answers."""

    connections: int
    rejected: int
    subscriptions: int
    answers: dict[tuple[str, str], int]
    latency: dict[str, Latency]
    reported: Sequence[ReportedNumbers] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A node's numbers at one moment."""

    version: str
    ready: bool
    now_ms: int
    insecure_listeners: int
    connections: int
    refused_connections: int
    requests: dict[str, int]                        # operation → count
    failures: dict[tuple[str, str], int]            # (operation, code) → count
    streams: Sequence[StreamNumbers]
    memory_bytes: int
    memory_limit_bytes: int
    free_bytes: int
    read_only: bool
    shards: Sequence[ShardNumbers] = field(default_factory=tuple)
    cluster: ClusterNumbers | None = None
    faces: FaceNumbers | None = None
    applications: ApplicationNumbers | None = None


class NodeCollector(Collector):
    def __init__(self, snapshot: Callable[[], Snapshot], *, per_shard_max: int = 1000) -> None:
        self._snapshot = snapshot
        self._per_shard_max = per_shard_max

    def collect(self) -> Iterable[Metric]:
        now = self._snapshot()
        yield _gauge("streamkit_build_info", "Always 1; the labels tell the version.", 1,
                     {"version": now.version, "python": platform.python_version()})
        yield _gauge("streamkit_ready", "1 when the node takes requests.", now.ready)
        yield _gauge("streamkit_insecure_listeners", "Listeners open to others without TLS and login.",
                     now.insecure_listeners)
        yield _gauge("streamkit_native_connections", "Open native connections.", now.connections)
        yield _counter("streamkit_native_rejected_total", "Connections refused at the limit.", now.refused_connections)
        yield _gauge("streamkit_memory_bytes", "Memory in use.", now.memory_bytes, {"pool": "buffers"})
        yield _gauge("streamkit_memory_limit_bytes", "Memory budget.", now.memory_limit_bytes, {"pool": "buffers"})
        yield _gauge("streamkit_storage_free_bytes", "Free on the data directory's file system.", now.free_bytes)
        yield _gauge("streamkit_storage_read_only", "1 while puts are refused.", now.read_only)
        yield self._requests(now)
        yield from self._streams(now)
        yield from self._shards(now)
        yield from self._reads(now)
        if now.applications is not None:
            yield from application_metrics(now.applications, apart=len(now.applications.leases) <= self._per_shard_max)
        if now.cluster is not None:
            yield from _cluster(now.cluster)
        if now.faces is not None:
            yield from _faces(now.faces)

    def _requests(self, now: Snapshot) -> Metric:
        family = CounterMetricFamily(
            "streamkit_native_requests_total", "Requests by outcome.", labels=["operation", "code"]
        )
        failed: dict[str, int] = {}
        for (operation, code), count in sorted(now.failures.items()):
            failed[operation] = failed.get(operation, 0) + count
            family.add_metric([operation, code], count)
        for operation, count in sorted(now.requests.items()):
            family.add_metric([operation, "ok"], max(0, count - failed.get(operation, 0)))
        return family

    def _streams(self, now: Snapshot) -> Iterable[Metric]:
        seconds = HistogramMetricFamily("streamkit_put_seconds", "Put received to acknowledged.", labels=["stream"])
        refused = CounterMetricFamily("streamkit_put_failures_total", "Puts refused.", labels=["stream", "code"])
        for stream in now.streams:
            seconds.add_metric(
                [stream.stream], buckets=_buckets(stream.put_latency), sum_value=stream.put_latency.seconds_sum
            )
            for code, count in sorted(stream.put_failures.items()):
                refused.add_metric([stream.stream, code], count)
        yield seconds
        yield refused

    def _reads(self, now: Snapshot) -> Iterable[Metric]:
        apart = len(now.shards) <= self._per_shard_max
        labels = ["stream", "shard", "application"] if apart else ["stream", "application"]
        for index, unit in enumerate(("records", "bytes")):
            sums: dict[tuple[str, ...], int] = {}
            for shard in now.shards:
                for application, counts in shard.reads.items():
                    key = (shard.stream, *([shard.shard] if apart else []), application)
                    sums[key] = sums.get(key, 0) + counts[index]
            family = CounterMetricFamily(f"streamkit_read_{unit}_total", f"{unit.title()} handed out.", labels=labels)
            for series, total in sums.items():
                family.add_metric(list(series), total)
            yield family

    def _shards(self, now: Snapshot) -> Iterable[Metric]:
        apart = len(now.shards) <= self._per_shard_max
        labels = ["stream", "shard"] if apart else ["stream"]
        yield _gauge("streamkit_metrics_aggregated", "1 when shard labels are left out.", not apart)
        counters: dict[str, tuple[str, bool, Callable[[ShardNumbers], int]]] = {
            "streamkit_put_records_total": ("Records accepted.", apart, lambda shard: shard.put_records),
            "streamkit_put_bytes_total": ("Payload bytes accepted, before compression.", apart,
                                          lambda shard: shard.put_bytes),
            "streamkit_duplicates_total": ("Repeats recognised and not stored.", False, lambda shard: shard.duplicates),
            "streamkit_trimmed_records_total": ("Removed by retention.", False, lambda shard: shard.trimmed_records),
        }  # fmt: skip
        for name, (text, by_shard, value) in counters.items():
            family = CounterMetricFamily(name, text, labels=labels if by_shard else ["stream"])
            for key, total in _summed(now.shards, value, by_shard):
                family.add_metric(key, total)
            yield family
        kept = GaugeMetricFamily("streamkit_stream_kept_bytes", "Bytes on disk.", labels=["stream"])
        for key, total in _summed(now.shards, lambda shard: shard.kept_bytes, False):
            kept.add_metric(key, total)
        yield kept
        count = GaugeMetricFamily("streamkit_shards", "Shards.", labels=["stream", "state"])
        for key, total in _summed(now.shards, lambda _: 1, False):
            count.add_metric([*key, "open"], total)
        yield count
        oldest = GaugeMetricFamily("streamkit_stream_oldest_seconds", "Age of the oldest record.", labels=["stream"])
        ages: dict[str, int] = {}
        for shard in now.shards:
            if shard.oldest_ms is not None:
                ages[shard.stream] = max(ages.get(shard.stream, 0), now.now_ms - shard.oldest_ms)
        for stream, age_ms in sorted(ages.items()):
            oldest.add_metric([stream], age_ms / 1000)
        yield oldest


def _cluster(now: ClusterNumbers) -> Iterable[Metric]:
    copies = GaugeMetricFamily("streamkit_copies", "Copies of shards on this node.", labels=["role"])
    copies.add_metric(["leader"], now.leaders)
    copies.add_metric(["follower"], now.followers)
    yield copies
    yield _gauge("streamkit_copies_uncertain", "Copies here that may not vote.", now.uncertain)
    yield _gauge("streamkit_shards_short", "Shards led here that a member's copy lacks or is far behind.", now.short)
    lag = GaugeMetricFamily("streamkit_replica_lag_bytes", "What a node lacks of shards led here.", labels=["node"])
    for node, lacking in sorted(now.lag_bytes.items()):
        lag.add_metric([node], lacking)
    yield lag
    peers = GaugeMetricFamily("streamkit_peer_connected", "1 while there is a link to the node.", labels=["node"])
    for node, connected in sorted(now.peers.items()):
        peers.add_metric([node], connected)
    yield peers
    yield _counter("streamkit_elections_won_total", "Elections that this node won.", now.elections_won)
    yield _gauge("streamkit_damaged_ranges", "Ranges of records that cannot be read here.", now.damaged)
    yield _counter("streamkit_repaired_ranges_total", "Damaged ranges that came back from another copy.", now.repaired)
    yield _counter("streamkit_replica_differences_total", "Ranges in which two copies were not alike.", now.differences)
    yield _gauge("streamkit_store_available", "1 while the coordination store answers.", now.store_available)


def _faces(now: FaceNumbers) -> Iterable[Metric]:
    listener = {"listener": "http"}
    yield _gauge("streamkit_http_connections", "Open HTTP connections.", now.connections, listener)
    yield _counter("streamkit_http_rejected_total", "Connections and requests refused at a bound.", now.rejected)
    yield _gauge("streamkit_subscriptions", "Consumers that records are pushed to over HTTP.", now.subscriptions)
    answers = CounterMetricFamily(
        "streamkit_http_requests_total", "Requests by outcome.", labels=["listener", "operation", "code"]
    )
    for (operation, code), count in sorted(now.answers.items()):
        answers.add_metric(["http", operation, code], count)
    yield answers
    seconds = HistogramMetricFamily(
        "streamkit_http_request_seconds", "Request received to answered.", labels=["listener", "operation"]
    )
    for operation, latency in sorted(now.latency.items()):
        seconds.add_metric(["http", operation], buckets=_buckets(latency), sum_value=latency.seconds_sum)
    yield seconds
    reported = GaugeMetricFamily(
        "streamkit_reported_metric", "Newest value of what programs reported with PutMetricData.",
        labels=["namespace", "metric", "dimensions"],
    )
    for each in now.reported:
        reported.add_metric([each.namespace, each.metric, each.dimensions], each.value)
    yield reported


def _gauge(name: str, text: str, value: float, labels: dict[str, str] | None = None) -> Metric:
    family = GaugeMetricFamily(name, text, labels=list(labels or ()))
    family.add_metric(list((labels or {}).values()), value)
    return family


def _counter(name: str, text: str, value: float) -> Metric:
    family = CounterMetricFamily(name, text)
    family.add_metric([], value)
    return family


def _buckets(latency: Latency) -> list[tuple[str, float]]:
    buckets, total = [], 0
    for bound, count in zip((*map(str, LATENCY_BOUNDS), "+Inf"), latency.counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets


def _summed(
    shards: Sequence[ShardNumbers], value: Callable[[ShardNumbers], int], apart: bool
) -> list[tuple[list[str], int]]:
    sums: dict[tuple[str, ...], int] = {}
    for shard in shards:
        key = (shard.stream, shard.shard) if apart else (shard.stream,)
        sums[key] = sums.get(key, 0) + value(shard)
    return [(list(key), total) for key, total in sums.items()]


class Exposition:
    """A node's own registry: two nodes in one process do not meet."""

    def __init__(self, snapshot: Callable[[], Snapshot], *, per_shard_max: int = 1000) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(NodeCollector(snapshot, per_shard_max=per_shard_max))
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def text(self) -> bytes:
        """Prometheus text, format 0.0.4."""
        return generate_latest(self._registry)
