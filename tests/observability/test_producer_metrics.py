"""What a producer tells Prometheus: every family is there, its figures are those that were counted."""

from __future__ import annotations

import asyncio
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from streamkit.errors import RecordTooLarge, Throttled
from streamkit.observability.producer_metrics import ProducerCollector, exposition
from streamkit.observability.producer_numbers import ProducerNumbers
from streamkit.producer.producer import AsyncProducer
from tests.producer.fake_broker import FakeBroker

FAMILIES = {
    "streamkit_producer_" + name
    for name in (
        "records", "bytes", "stored", "duplicates", "sent_bytes", "sealed_bytes", "throttled", "throttled_seconds",
        "sequence_gaps", "identities", "batches", "failures", "retries", "reroutes", "outstanding_records",
        "buffered_bytes", "oldest_outstanding_seconds", "map_version", "ack_seconds", "queue_seconds",
        "request_seconds", "batch_records", "batch_bytes", "in_flight_batches", "window_bytes",
    )
}  # fmt: skip


async def numbers_of_some_work() -> tuple[list[ProducerNumbers], dict[str, Any], bytes]:
    broker = FakeBroker(shards=2)
    faults: dict[int, Any] = {
        0: Throttled("slow down", retry_after_ms=1), 3: RecordTooLarge("no", size_bytes=1, limit_bytes=0),
    }  # fmt: skip
    broker.faults = lambda number: faults.get(number)
    async with AsyncProducer("orders", client=broker, batch_bytes_max=2_000) as producer:  # type: ignore[arg-type]
        handles = [await producer.put(b"v" * 100, key=f"k{i}") for i in range(200)]
        await asyncio.gather(*handles, return_exceptions=True)
        return producer.numbers(), producer.stats(), producer.prometheus()


async def test_every_family_is_there_and_counts_what_happened() -> None:
    _, stats, text = await numbers_of_some_work()
    families = {family.name: family for family in text_string_to_metric_families(text.decode())}
    samples = {(s.name, *sorted(s.labels.items())): s.value for f in families.values() for s in f.samples}
    orders = ("stream", "orders")

    assert families.keys() == FAMILIES
    assert samples["streamkit_producer_records_total", orders] == 200
    failed = samples["streamkit_producer_failures_total", ("code", "record_too_large"), orders]
    assert failed == stats["records_failed"] == stats["failures"]["record_too_large"] > 0
    assert samples["streamkit_producer_stored_total", orders] == 200 - failed
    assert samples["streamkit_producer_retries_total", ("code", "throttled"), orders] == 1
    assert samples["streamkit_producer_throttled_total", orders] == stats["throttled"] == 1
    assert samples["streamkit_producer_ack_seconds_count", orders] == 200 - failed == stats["ack_seconds"]["count"]
    assert samples["streamkit_producer_ack_seconds_bucket", ("le", "+Inf"), orders] == 200 - failed
    assert samples["streamkit_producer_batch_records_count", orders] == sum(stats["sealed"].values())
    small = samples["streamkit_producer_batch_bytes_bucket", ("le", "1000000.0"), orders]
    assert small == sum(stats["sealed"].values())
    assert stats["sealed"]["full"] > 5
    assert samples["streamkit_producer_outstanding_records", orders] == 0
    assert ("streamkit_producer_in_flight_batches", ("shard", "shardId-000000000001"), orders) in samples
    assert 0 < stats["compressed_ratio"]["mean"] < 1
    assert stats["bytes_sealed"] > stats["bytes_sent"] > 0
    assert stats["request_seconds"]["p50"] >= 0


async def test_shards_are_left_out_above_a_bound() -> None:
    numbers, _, _ = await numbers_of_some_work()
    [flight, _] = list(ProducerCollector(lambda: numbers, per_shard_max=1).collect())[-2:]

    assert [sample.labels for sample in flight.samples] == [{"stream": "orders"}]


def test_a_producer_that_did_nothing_has_figures_too() -> None:
    assert b"streamkit_producer_records_total" in exposition(list)
