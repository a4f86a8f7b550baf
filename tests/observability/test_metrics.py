"""Numbers come out under their promised names."""

from prometheus_client.parser import text_string_to_metric_families

from streamkit.observability.buckets import LATENCY_BOUNDS
from streamkit.observability.metrics import (
    Exposition,
    FaceNumbers,
    Latency,
    ReportedNumbers,
    ShardNumbers,
    Snapshot,
    StreamNumbers,
)


def shard(stream, ordinal, records):
    return ShardNumbers(
        stream=stream, shard=f"shardId-{ordinal:012d}", put_records=records, put_bytes=records * 100, duplicates=1,
        trimmed_records=0, kept_bytes=10, high_watermark=records, log_start=0, oldest_ms=500,
        reads={"": (records, 5), "billing": (2, 3)},
    )


def samples(per_shard_max=1000, **changes):
    values = {
        "version": "1", "ready": True, "now_ms": 2500, "insecure_listeners": 0, "connections": 3,
        "refused_connections": 0, "requests": {"put": 10}, "failures": {("put", "disk_full"): 4},
        "streams": [StreamNumbers("orders", Latency([1] * (len(LATENCY_BOUNDS) + 1), 1.5), {"wrong_shard": 2})],
        "memory_bytes": 1, "memory_limit_bytes": 2,
        "free_bytes": 3, "read_only": False, "shards": [shard("orders", 0, 5), shard("orders", 1, 7)],
    } | changes
    text = Exposition(lambda: Snapshot(**values), per_shard_max=per_shard_max).text().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text) for sample in family.samples
    }


def test_each_shard_has_its_own_series():
    found = samples()

    assert found["streamkit_put_records_total", (("shard", "shardId-000000000001"), ("stream", "orders"))] == 7
    assert found["streamkit_stream_oldest_seconds", (("stream", "orders"),)] == 2.0
    assert found["streamkit_metrics_aggregated", ()] == 0


def test_above_the_limit_totals_stay_right_without_the_shard_label():
    found = samples(per_shard_max=1)

    assert found["streamkit_put_records_total", (("stream", "orders"),)] == 12
    assert found["streamkit_metrics_aggregated", ()] == 1


def test_requests_are_told_apart_by_outcome():
    found = samples()

    assert found["streamkit_native_requests_total", (("code", "ok"), ("operation", "put"))] == 6
    assert found["streamkit_native_requests_total", (("code", "disk_full"), ("operation", "put"))] == 4


def test_latency_buckets_are_cumulative():
    found = samples()

    orders = ("stream", "orders")
    assert found["streamkit_put_seconds_bucket", (("le", "0.001"), orders)] == 2
    assert found["streamkit_put_seconds_count", (orders,)] == len(LATENCY_BOUNDS) + 1
    assert found["streamkit_put_seconds_sum", (orders,)] == 1.5
    assert found["streamkit_put_failures_total", (("code", "wrong_shard"), orders)] == 2


def test_what_each_application_read_is_told_apart():
    found = samples(per_shard_max=1)

    assert found["streamkit_read_records_total", (("application", ""), ("stream", "orders"))] == 12
    assert found["streamkit_read_bytes_total", (("application", "billing"), ("stream", "orders"))] == 6


def test_http_faces_tell_what_they_answered_and_what_programs_reported():
    faces = FaceNumbers(
        connections=2, rejected=1, subscriptions=3,
        answers={("PutRecords", "ok"): 5, ("PutRecords", "ValidationException"): 1},
        latency={"PutRecords": Latency([6] + [0] * len(LATENCY_BOUNDS), 0.5)},
        reported=[ReportedNumbers("billing", "MillisBehindLatest", "ShardId=a", 12.5)],
    )
    found = samples(faces=faces)

    http = ("listener", "http")
    assert found["streamkit_http_requests_total", (("code", "ok"), http, ("operation", "PutRecords"))] == 5
    assert found["streamkit_http_request_seconds_count", (http, ("operation", "PutRecords"))] == 6
    assert found["streamkit_http_connections", (http,)] == 2
    assert found["streamkit_subscriptions", ()] == 3
    reported = (("dimensions", "ShardId=a"), ("metric", "MillisBehindLatest"), ("namespace", "billing"))
    assert found["streamkit_reported_metric", reported] == 12.5


def test_labels_are_those_of_the_catalogue():
    found = {name: {label for label, _ in labels} for name, labels in samples()}

    assert found["streamkit_read_bytes_total"] == {"stream", "shard", "application"}
    assert found["streamkit_duplicates_total"] == found["streamkit_trimmed_records_total"] == {"stream"}
    assert found["streamkit_put_records_total"] == {"stream", "shard"}
