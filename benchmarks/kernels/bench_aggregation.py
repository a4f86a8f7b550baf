"""The KPL's aggregated records, read and written. 400x117B: 400 records of 117 bytes, 50 keys, 50 KB together."""

from __future__ import annotations

import random
from typing import Any

from streamkit._core.aggregation import Aggregator, split
from streamkit._core.batch import Batch, seal, stamped

NOISE = random.Random(20_26)
RECORDS = [(f"key-{i % 50:03}", NOISE.randbytes(117)) for i in range(400)]


def aggregated() -> bytes:
    made = Aggregator()
    for key, data in RECORDS:
        assert made.add(key, data)
    return made.bytes()


def batch_of(payloads: list[bytes]) -> bytes:
    records = [(b"a", payload, b"", None, None) for payload in payloads]
    return stamped(seal(records, codec=0), base_sequence=1, append_time_ms=9, shard_uuid=bytes(16))


WHOLE = aggregated()


def bench_split_aggregate_400x117B(benchmark: Any) -> None:
    benchmark.extra_info["records"] = 400
    found = benchmark(split, WHOLE)
    assert found is not None and found.values() == [data for _, data in RECORDS]


def bench_split_aggregate_values_400x117B(benchmark: Any) -> None:
    def read() -> list[bytes]:
        found = split(WHOLE)
        assert found is not None
        return found.values()

    benchmark.extra_info["records"] = 400
    assert benchmark(read) == [data for _, data in RECORDS]


def bench_aggregate_400x117B(benchmark: Any) -> None:
    benchmark.extra_info["records"] = 400
    assert benchmark(aggregated) == WHOLE


def bench_unwrap_batch_20_aggregates(benchmark: Any) -> None:
    sealed = batch_of([WHOLE] * 20)
    benchmark.extra_info["records"] = 8_000
    assert len(benchmark(lambda: Batch(sealed).unwrap())) == 8_000


def bench_unwrap_batch_without_aggregates_1000x100B(benchmark: Any) -> None:
    whole = Batch(batch_of([data[:100] for _, data in RECORDS] * 2 + [data[17:] for _, data in RECORDS[:200]]))
    whole.values()                         # opened: what is left is the look at each record
    benchmark.extra_info["records"] = 1_000
    assert benchmark(whole.unwrap) is whole
