"""Sealing, checking and reading batches, and the checksums and hashes below. 1000x100B: records of 100-byte values."""

from __future__ import annotations

import random
from typing import Any

import google_crc32c
import pytest

from streamkit._core.batch import Batch, RecordContext, check_batch, crc32c, seal, stamped
from streamkit._core.hashing import ShardTable, hash_key
from streamkit.model.shard import even_ranges

NOISE = random.Random(20_26)
UUID = bytes(16)
# Half noise, half repetition: lz4 leaves a little more than half.
RECORDS = [(b"key-%03d" % (i % 500), NOISE.randbytes(50) + b"x" * 50, b"", None, None) for i in range(1_000)]
CODECS = {"none": 0, "lz4": 1, "zstd": 2}
SEALED = {
    name: stamped(seal(RECORDS, codec=codec), base_sequence=5, epoch=1, append_time_ms=9, shard_uuid=UUID)
    for name, codec in CODECS.items()
}
CONTEXT = RecordContext("orders", "shardId-000000000000")


@pytest.mark.parametrize("codec", CODECS)
def bench_seal_batch_1000x100B(benchmark: Any, codec: str) -> None:
    benchmark.extra_info["records"] = 1_000
    assert Batch(benchmark(seal, RECORDS, codec=CODECS[codec])).values() == [record[1] for record in RECORDS]


def bench_check_batch_1000x100B(benchmark: Any) -> None:
    assert benchmark(check_batch, SEALED["none"], UUID).record_count == 1_000


@pytest.mark.parametrize("codec", CODECS)
def bench_read_records_1000x100B(benchmark: Any, codec: str) -> None:
    def read() -> int:
        count = 0
        for _ in Batch(SEALED[codec], CONTEXT):
            count += 1
        return count

    benchmark.extra_info["records"] = 1_000
    assert benchmark(read) == 1_000


@pytest.mark.parametrize("codec", CODECS)
def bench_read_values_1000x100B(benchmark: Any, codec: str) -> None:
    benchmark.extra_info["records"] = 1_000
    assert benchmark(lambda: Batch(SEALED[codec], CONTEXT).values()) == [record[1] for record in RECORDS]


@pytest.mark.parametrize("codec", CODECS)
def bench_read_arrow_1000x100B(benchmark: Any, codec: str) -> None:
    benchmark.extra_info["records"] = 1_000
    table = benchmark(lambda: Batch(SEALED[codec], CONTEXT).to_arrow())
    assert table.column("data").to_pylist() == [record[1] for record in RECORDS]


@pytest.mark.parametrize("size", [64, 4_096, 65_536, 1_048_576])
def bench_crc32c(benchmark: Any, size: int) -> None:
    data = NOISE.randbytes(size)
    benchmark.extra_info["bytes"] = size
    assert benchmark(crc32c, data) == google_crc32c.value(data)


def bench_hash_and_route_1000_keys(benchmark: Any) -> None:
    table = ShardTable(even_ranges(64))
    keys = [f"customer-{i}" for i in range(1_000)]
    found = benchmark(lambda: [table.find_key(key) for key in keys])
    assert found == [int.from_bytes(hash_key(key), "big") * 64 >> 128 for key in keys]
