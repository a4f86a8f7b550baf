"""The KPL's aggregated records, read and written. 400x117B: 400 records of 117 bytes, 50 keys, 50 KB together."""

from __future__ import annotations

import random
from typing import Any

from streamkit._core.aggregation import Aggregator, split

NOISE = random.Random(20_26)
RECORDS = [(f"key-{i % 50:03}", NOISE.randbytes(117)) for i in range(400)]


def aggregated() -> bytes:
    made = Aggregator()
    for key, data in RECORDS:
        assert made.add(key, data)
    return made.bytes()


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
