"""The metrics of a delivery in a user's process, read when they are asked for. Nothing is counted here."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from streamkit.observability.delivery_numbers import DeliveryNumbers

_COUNTERS: dict[str, tuple[str, Callable[[DeliveryNumbers], float]]] = {
    "records_total": ("Records that were delivered, left out or given up.", lambda n: n.records),
    "bytes_total": ("Bytes of their payloads.", lambda n: n.payload_bytes),
    "written_bytes_total": ("Bytes of bodies that the store took.", lambda n: n.written_bytes),
    "chunks_total": ("Chunks that the store took.", lambda n: n.chunks),
    "repeated_total": ("Ranges that an owner before had planned.", lambda n: n.repeated),
    "dropped_total": ("Records that the transformation left out.", lambda n: n.dropped),
}
_GAUGES: dict[str, tuple[str, Callable[[DeliveryNumbers], float]]] = {
    "lag_seconds": ("Age of the oldest record that was read and is not delivered.", lambda n: n.lag_seconds),
    "buffer_bytes": ("Payload that is gathered or being written.", lambda n: n.buffer_bytes),
}


class DeliveryCollector(Collector):
    """For a registry of prometheus_client: `REGISTRY.register(DeliveryCollector(delivery.numbers))`."""

    def __init__(self, numbers: Callable[[], DeliveryNumbers]) -> None:
        self._numbers = numbers

    def collect(self) -> Iterable[Metric]:
        found = self._numbers()
        name = [found.delivery]
        for word, (text, value) in _COUNTERS.items():
            counter = CounterMetricFamily(f"streamkit_delivery_{word}", text, labels=["delivery"])
            counter.add_metric(name, value(found))
            yield counter
        for word, (text, value) in _GAUGES.items():
            gauge = GaugeMetricFamily(f"streamkit_delivery_{word}", text, labels=["delivery"])
            gauge.add_metric(name, value(found))
            yield gauge
        failed = CounterMetricFamily(
            "streamkit_delivery_dead_lettered_total", "Records that were given up.", labels=["delivery", "reason"]
        )
        for reason, count in sorted(found.failed.items()):
            failed.add_metric([found.delivery, reason], count)
        yield failed
        waiting = GaugeMetricFamily(
            "streamkit_delivery_waiting_shards", "Shards that cannot go on at present.", labels=["delivery", "code"]
        )
        for code, count in sorted(found.trouble.items()):
            waiting.add_metric([found.delivery, code], count)
        yield waiting
        seconds = HistogramMetricFamily(
            "streamkit_delivery_write_seconds", "A chunk, given to the store until it had it.", labels=["delivery"]
        )
        write = found.write
        buckets = [*zip(map(str, write.bounds), map(float, write.below), strict=True), ("+Inf", float(write.count))]
        seconds.add_metric(name, buckets=buckets, sum_value=write.total)
        yield seconds


def exposition(numbers: Callable[[], DeliveryNumbers]) -> bytes:
    """Prometheus text, format 0.0.4."""
    registry = CollectorRegistry()
    registry.register(DeliveryCollector(numbers))
    return generate_latest(registry)
