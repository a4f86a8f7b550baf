"""Records cut into sealed batches: the same records always give the same batches, with the same numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from streamkit._core.batch import Record, seal
from streamkit._core.hashing import hash_key
from streamkit.model.entry import pack_raw_headers, time_to_ms

BATCH_BYTES = 256 * 1024                   # of payload in one batch, unless one record is larger
BATCH_RECORDS = 10_000
TIME_APART_MS = 0x7FFFFFFF                 # between two event times of one batch: they are kept as differences

Sealable = tuple[bytes, bytes, bytes, int | None, bytes | None]        # as _core.batch.seal takes it


def batches_of(
    records: Sequence[Sealable], identity: tuple[int, int], sequence: int, map_version: int
) -> Iterable[bytes]:
    """Always the same batches of the same records: whoever repeats the cut gets the numbers that were used."""
    part: list[Sealable] = []
    size = 0
    first_ms = last_ms = None
    for record in records:
        record_bytes = len(record[0]) + len(record[1]) + len(record[2])
        time_ms = record[3]
        if time_ms is not None:
            first_ms = time_ms if first_ms is None else min(first_ms, time_ms)
            last_ms = time_ms if last_ms is None else max(last_ms, time_ms)
        apart = first_ms is not None and last_ms is not None and last_ms - first_ms > TIME_APART_MS
        if part and (size + record_bytes > BATCH_BYTES or len(part) == BATCH_RECORDS or apart):
            yield _seal(part, identity, sequence, map_version)
            sequence += len(part)
            part, size = [], 0
            first_ms = last_ms = time_ms
        part.append(record)
        size += record_bytes
    yield _seal(part, identity, sequence, map_version)


def _seal(part: list[Sealable], identity: tuple[int, int], sequence: int, map_version: int) -> bytes:
    return seal(
        part, producer_id=identity[0], producer_epoch=identity[1], producer_sequence=sequence, map_version=map_version
    )


def sealable(record: Record) -> Sealable:
    """A record of a sealed batch that no shard has stored, as it was sealed."""
    key = record.key.encode()
    explicit = record.hash_key
    return (
        key, record.data, pack_raw_headers(record.headers), time_to_ms(record.time) or None,
        None if explicit == hash_key(key) else explicit,
    )
