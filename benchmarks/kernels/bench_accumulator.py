"""Records into the producer's buffer and out of it as sealed batches: put() one by one, and columns."""

from __future__ import annotations

import random
from typing import Any

import pyarrow
import pytest

from streamkit._core.accumulator import Accumulator, Budget
from streamkit._core.columns import Column
from streamkit._core.framing import PutReceipt
from streamkit._core.outcome import ColumnsHandle
from streamkit.model.shard import even_ranges

RECORDS = 20_000
NOISE = random.Random(20_26)
VALUES = [NOISE.randbytes(50) + b"x" * 50 for _ in range(RECORDS)]
KEYS = [f"customer-{i % 1_000}" for i in range(RECORDS)]
SHARDS = 4
CODECS = {"none": 0, "lz4": 1}


def made(codec: str) -> Accumulator:
    return Accumulator(
        even_ranges(SHARDS), budget=Budget(1 << 30), origins=[lambda *place: place] * SHARDS, wake=lambda: None,
        codec=CODECS[codec],
    )  # fmt: skip


def drain(accumulator: Accumulator) -> int:
    count = 0
    for shard in range(SHARDS):
        while (sealed := accumulator.take(shard, close_open=True)) is not None:
            count += sealed.count
            sealed.stored(PutReceipt(0, 0, 1))
    return count


@pytest.mark.parametrize("then", ["only", "and-seal-none", "and-seal-lz4"])
def bench_put_20000x100B(benchmark: Any, then: str) -> None:
    def put_all() -> Accumulator:
        accumulator = made(then.rpartition("-")[2] if "seal" in then else "none")
        put = accumulator.put
        for key, value in zip(KEYS, VALUES, strict=True):
            put(key, value)
        return accumulator

    def put_and_seal() -> int:
        return drain(put_all())

    benchmark.extra_info["records"] = RECORDS
    if then == "only":
        assert benchmark(put_all).records == RECORDS
    else:
        assert benchmark(put_and_seal) == RECORDS


@pytest.mark.parametrize("then", ["only", "and-seal-none", "and-seal-lz4"])
def bench_put_columns_20000x100B(benchmark: Any, then: str) -> None:
    keys, values = Column(pyarrow.array(KEYS)), Column(pyarrow.array(VALUES, pyarrow.binary()))

    def put_all() -> tuple[Accumulator, ColumnsHandle]:
        accumulator = made(then.rpartition("-")[2] if "seal" in then else "none")
        handle = ColumnsHandle(RECORDS)
        accumulator.put_columns(keys, values, handle)
        return accumulator, handle

    def put_and_seal() -> int:
        accumulator, handle = put_all()
        assert drain(accumulator) == RECORDS
        return bytes(handle.states).count(1)

    benchmark.extra_info["records"] = RECORDS
    if then == "only":
        assert benchmark(put_all)[0].records == RECORDS
    else:
        assert benchmark(put_and_seal) == RECORDS
