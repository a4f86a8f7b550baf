"""The metrics of a producer in a user's process, read when they are asked for. Nothing is counted here.

The producer hands over a function that returns its numbers for each stream; names, labels and units are promises, as
those of a node in `metrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from streamkit.observability.producer_numbers import Distribution, ProducerNumbers

_COUNTERS: dict[str, tuple[str, Callable[[ProducerNumbers], float]]] = {
    "records_total": ("Records accepted.", lambda n: n.records),
    "bytes_total": ("Bytes of their keys, headers and values.", lambda n: n.bytes),
    "stored_total": ("Records acknowledged.", lambda n: n.stored),
    "duplicates_total": ("Records that an earlier try had stored.", lambda n: n.duplicates),
    "sent_bytes_total": ("Bytes of batches on the wire, repeats included.", lambda n: n.sent_bytes),
    "sealed_bytes_total": ("Bytes of batches before compression.", lambda n: n.sealed_bytes),
    "throttled_total": ("Batches that a node throttled.", lambda n: n.throttled),
    "throttled_seconds_total": ("Pauses that followed.", lambda n: n.throttled_s),
    "sequence_gaps_total": ("Batches that overtook another.", lambda n: n.sequence_gaps),
    "identities_total": ("Identities asked for after the first.", lambda n: n.identities),
}
_LABELLED: dict[str, tuple[str, str, Callable[[ProducerNumbers], Mapping[str, int]]]] = {
    "batches_total": ("reason", "Batches sealed.", lambda n: n.sealed),
    "failures_total": ("code", "Records that failed.", lambda n: n.failures),
    "retries_total": ("code", "Tries that were refused or not answered.", lambda n: n.retries),
    "reroutes_total": ("reason", "Batches refused because the shard's range changed.", lambda n: n.reroutes),
}
_GAUGES: dict[str, tuple[str, Callable[[ProducerNumbers], float]]] = {
    "outstanding_records": ("Records without an outcome.", lambda n: n.outstanding),
    "buffered_bytes": ("Bytes of the buffer in use.", lambda n: n.buffered_bytes),
    "oldest_outstanding_seconds": ("Age of the oldest record without an outcome.", lambda n: n.oldest_ms / 1000),
    "map_version": ("Version of the shard map in use.", lambda n: n.map_version),
}
_HISTOGRAMS: dict[str, tuple[str, Callable[[ProducerNumbers], Distribution]]] = {
    "ack_seconds": ("From when a record's batch was opened to its acknowledgement.", lambda n: n.ack),
    "queue_seconds": ("From when a batch was opened to when it was sent.", lambda n: n.queue),
    "request_seconds": ("A batch sent to answered.", lambda n: n.request),
    "batch_records": ("Records a batch.", lambda n: n.batch_records),
    "batch_bytes": ("Bytes a batch, as sent.", lambda n: n.batch_bytes),
}


class ProducerCollector(Collector):
    """For a registry of prometheus_client: `REGISTRY.register(ProducerCollector(producer.numbers))`."""

    def __init__(self, numbers: Callable[[], Sequence[ProducerNumbers]], *, per_shard_max: int = 1000) -> None:
        self._numbers = numbers
        self._per_shard_max = per_shard_max

    def collect(self) -> Iterable[Metric]:
        streams = self._numbers()
        for name, (text, value) in _COUNTERS.items():
            yield _family(CounterMetricFamily(f"streamkit_producer_{name}", text, labels=["stream"]), streams, value)
        for name, (label, text, values) in _LABELLED.items():
            family = CounterMetricFamily(f"streamkit_producer_{name}", text, labels=["stream", label])
            for stream in streams:
                for key, count in sorted(values(stream).items()):
                    family.add_metric([stream.stream, key], count)
            yield family
        for name, (text, value) in _GAUGES.items():
            yield _family(GaugeMetricFamily(f"streamkit_producer_{name}", text, labels=["stream"]), streams, value)
        for name, (text, distribution) in _HISTOGRAMS.items():
            seconds = HistogramMetricFamily(f"streamkit_producer_{name}", text, labels=["stream"])
            for stream in streams:
                found = distribution(stream)
                buckets = [*zip(map(str, found.bounds), map(float, found.below), strict=True),
                           ("+Inf", float(found.count))]  # fmt: skip
                seconds.add_metric([stream.stream], buckets=buckets, sum_value=found.total)
            yield seconds
        yield from self._shards(streams)

    def _shards(self, streams: Sequence[ProducerNumbers]) -> Iterable[Metric]:
        apart = sum(len(stream.lanes) for stream in streams) <= self._per_shard_max
        labels = ["stream", "shard"] if apart else ["stream"]
        flight = GaugeMetricFamily("streamkit_producer_in_flight_batches", "Batches on their way.", labels=labels)
        window = GaugeMetricFamily(
            "streamkit_producer_window_bytes", "What a throttled shard may have on its way.", labels=labels
        )
        for stream in streams:
            if not apart:
                flight.add_metric([stream.stream], sum(lane.in_flight for lane in stream.lanes))
            for lane in stream.lanes if apart else ():
                flight.add_metric([stream.stream, lane.shard], lane.in_flight)
                if lane.window_bytes < inf:
                    window.add_metric([stream.stream, lane.shard], lane.window_bytes)
        yield flight
        yield window


def exposition(numbers: Callable[[], Sequence[ProducerNumbers]]) -> bytes:
    """Prometheus text, format 0.0.4."""
    registry = CollectorRegistry()
    registry.register(ProducerCollector(numbers))
    return generate_latest(registry)


def _family(
    family: CounterMetricFamily | GaugeMetricFamily,
    streams: Sequence[ProducerNumbers],
    value: Callable[[ProducerNumbers], float],
) -> Metric:
    for stream in streams:
        family.add_metric([stream.stream], value(stream))
    return family
