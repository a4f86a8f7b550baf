"""A producer's figures: for `stats()`, and as the numbers that observability shows to Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamkit._core.histogram import Histogram
from streamkit.observability.buckets import LATENCY_BOUNDS, SIZE_BOUNDS
from streamkit.observability.producer_numbers import Distribution, LaneNumbers, ProducerNumbers
from streamkit.producer.figures import summary
from streamkit.producer.sender import Sender

if TYPE_CHECKING:
    from streamkit.producer.outbox import Outbox

_MICROSECOND = 1e-6


def snapshot(outbox: Outbox) -> dict[str, Any]:
    """As Producer.stats: counts and histograms since the producer was made, and what it holds now."""
    senders = [target.sender for target in list(outbox.targets.values())]        # from any thread
    figures = outbox.figures()
    lanes = [lane for sender in senders for lane in sender.lanes()]
    return {
        "records": sum(s.accumulator.records for s in senders),
        "records_keyless": sum(s.accumulator.keyless for s in senders),
        "bytes": sum(s.accumulator.payload_bytes for s in senders),
        "records_stored": sum(s.records_stored for s in senders),
        "records_failed": sum(s.records_failed for s in senders),
        "records_duplicate": sum(s.duplicates for s in senders),
        "records_dropped": outbox.dropped,
        "records_outstanding": outbox.outstanding(),
        "puts_blocked": outbox.blocked,
        "buffered_bytes": outbox.budget.used,
        "buffer_bytes_max": outbox.budget.limit,
        "oldest_ms": max((s.oldest_ms() for s in senders), default=0),
        "batches_sent": sum(s.batches_sent for s in senders),
        "batches_retried": sum(s.batches_retried for s in senders),
        "batches_in_flight": sum(lane.in_flight for lane in lanes),
        "bytes_sent": sum(s.bytes_sent for s in senders),
        "bytes_sealed": figures.raw_bytes_sent,
        "throttled": figures.throttled,
        "throttled_seconds": figures.throttled_s,
        "sequence_gaps": figures.sequence_gaps,
        "identities": figures.identities,
        "sealed": dict(figures.sealed),
        "failures": dict(figures.failures),
        "retries": dict(figures.retries),
        "reroutes": dict(figures.reroutes),
        "ack_seconds": summary(figures.ack_us, _MICROSECOND),
        "queue_seconds": summary(figures.queue_us, _MICROSECOND),
        "request_seconds": summary(figures.request_us, _MICROSECOND),
        "block_seconds": summary(outbox.block_us, _MICROSECOND),
        "batch_records": summary(figures.batch_records),
        "batch_bytes": summary(figures.batch_bytes),
        "compressed_ratio": summary(figures.compressed_percent, 0.01),
        "shards": [
            {"stream": s.stream.name, "shard": each.shard, "buffered_bytes": each.buffered_bytes,
             "batches_in_flight": each.in_flight, "window_bytes": each.window_bytes, "oldest_ms": each.oldest_ms}
            for s in senders for each in _lanes(s)
        ],
    }  # fmt: skip


def numbers(outbox: Outbox) -> list[ProducerNumbers]:
    """One for each stream that was put to."""
    return [_numbers(name, target.sender) for name, target in sorted(outbox.targets.items())]


def _numbers(stream: str, sender: Sender) -> ProducerNumbers:
    figures, accumulator = sender.figures, sender.accumulator
    lanes = _lanes(sender)
    return ProducerNumbers(
        stream=stream,
        records=accumulator.records,
        bytes=accumulator.payload_bytes,
        stored=sender.records_stored,
        duplicates=sender.duplicates,
        outstanding=sender.outstanding(),
        buffered_bytes=sum(lane.buffered_bytes for lane in lanes),
        oldest_ms=sender.oldest_ms(),
        sent_bytes=sender.bytes_sent,
        sealed_bytes=figures.raw_bytes_sent,
        map_version=sender.stream.map_version,
        sealed=dict(figures.sealed),
        failures=dict(figures.failures),
        retries=dict(figures.retries),
        reroutes=dict(figures.reroutes),
        throttled=figures.throttled,
        throttled_s=figures.throttled_s,
        sequence_gaps=figures.sequence_gaps,
        identities=figures.identities,
        ack=_distribution(figures.ack_us, LATENCY_BOUNDS, _MICROSECOND),
        queue=_distribution(figures.queue_us, LATENCY_BOUNDS, _MICROSECOND),
        request=_distribution(figures.request_us, LATENCY_BOUNDS, _MICROSECOND),
        batch_records=_distribution(figures.batch_records, SIZE_BOUNDS, 1),
        batch_bytes=_distribution(figures.batch_bytes, SIZE_BOUNDS, 1),
        lanes=lanes,
    )


def _lanes(sender: Sender) -> list[LaneNumbers]:
    now_ms = sender.now_ms()
    return [
        LaneNumbers(lane.shard.id, lane.in_flight, sender.accumulator.held(lane.index), lane.pace.bytes,
                    lane.oldest_ms(now_ms))
        for lane in sender.lanes() if not lane.finished
    ]  # fmt: skip


def _distribution(histogram: Histogram, bounds: tuple[float, ...], scale: float) -> Distribution:
    below = [histogram.count_below(int(bound / scale) + 1) for bound in bounds]
    return Distribution(bounds, below, histogram.count, histogram.total * scale)
