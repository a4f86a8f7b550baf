"""Hostile bytes against the batch parser, coverage-guided.

    pip install atheris && python -m tests.fuzz.fuzz_batch -atheris_runs=200000

`one_input` is also what tests/fuzz/test_fuzz_batch.py runs on random damage, without atheris. Checksums are made to
fit first, for otherwise nothing behind them would ever be reached.
"""

from __future__ import annotations

import contextlib
import struct
import sys

from streamkit._core.batch import HEADER_BYTES, Batch, RecordContext, check_batch, crc32c, read_header, seal
from streamkit.errors import CorruptBatch, DecodeFailed

CONTEXT = RecordContext("orders", "shardId-000000000000", decode=bytes.decode)


def resealed(data: bytes) -> bytes:
    """The same with a batch_bytes and a body checksum that fit."""
    if len(data) < HEADER_BYTES:
        return data
    sized = data[:4] + struct.pack("<I", len(data)) + data[8:]
    return sized[:32] + struct.pack("<I", crc32c(sized[36:])) + sized[36:]


def one_input(data: bytes) -> None:
    """Whatever the bytes are: CorruptBatch, or records that lie within the batch."""
    for attempt in (data, resealed(data)):
        for check in (read_header, check_batch):
            with contextlib.suppress(CorruptBatch):
                check(attempt)
        try:
            batch = Batch(bytearray(attempt), CONTEXT)
            records = list(batch)
        except CorruptBatch:
            continue
        assert len(records) == len(batch) <= 65_535
        values = batch.values()
        assert sum(map(len, values)) + sum(len(key.encode()) for key in batch.keys()) <= batch.raw_bytes  # noqa: SIM118
        for record, value in zip(records, values, strict=True):
            assert record.data == value == bytes(record.view())
            touch(record)
        if len(values) < 1_000:
            batch.to_arrow().validate(full=True)


def touch(record: object) -> None:
    """Every property answers, or fails to decode."""
    for name in ("key", "hash_key", "sequence_number", "headers", "arrived", "time", "value"):
        with contextlib.suppress(DecodeFailed):
            getattr(record, name)


def seeds() -> list[bytes]:
    """Sound batches of every kind, to start from."""
    plain = [(b"key-%d" % i, b"value-%d" % i * 20, b"", None, None) for i in range(12)]
    rich = [(b"k", b"v", b"\x81\xa1a\xc4\x01b", 1_700_000_000_000 + i, bytes([i]) * 16) for i in range(5)]
    return [seal(records, codec=codec) for records in (plain, rich, rich * 20) for codec in (0, 1, 2)]


def main() -> None:
    import tempfile
    from pathlib import Path

    import atheris  # not a dependency: it has no wheel for every Python that streamkit runs on

    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds()):
            (Path(corpus) / str(number)).write_bytes(seed)
        atheris.Setup([*sys.argv, corpus], atheris.instrument_func(one_input))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
