"""Slow, obvious twins of the batch, hashing, CRC and histogram kernels; never in the product."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import lz4.block
import zstandard

HEADER = struct.Struct("<2sBBIQIIQIHHQQIIqiI16s16s")
NO_TIME = -(1 << 31)
SealedRecord = tuple[bytes, bytes, bytes, int | None, bytes | None]


def crc32c(data: bytes, crc: int = 0) -> int:
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def hash_key(key: bytes) -> int:
    return int.from_bytes(hashlib.md5(key).digest(), "big")


def find_shard(ranges: list[tuple[int, int] | None], number: int) -> int:
    for index, pair in enumerate(ranges):
        if pair is not None and pair[0] <= number < pair[1]:
            return index
    return -1


def encode(
    records: list[SealedRecord], *, producer_id: int = 0, producer_epoch: int = 0, producer_sequence: int = 0,
    map_version: int = 0,
) -> bytes:
    """An uncompressed batch, field by field as drawn in batch.pxd."""  # fmt: skip
    hashes = any(record[4] is not None for record in records)
    times = [record[3] for record in records if record[3] is not None]
    base = min(times, default=0)
    table, body = b"", b""
    keys = []
    for key, value, headers, time_ms, given in records:
        digest = given if given is not None else hashlib.md5(key).digest()
        keys.append(digest)
        delta = NO_TIME if time_ms is None else time_ms - base
        body += struct.pack("<HHi", len(key), len(headers), delta) + (digest if hashes else b"") + key + headers + value
        table += struct.pack("<I", len(body))
    body = table + body
    attributes = (8 if hashes else 0) | (4 if any(record[2] for record in records) else 0)
    producer = HEADER.pack(
        b"SK", 1, 0, 112 + len(body), 0, 0, 0, 0, 0, attributes, producer_epoch, producer_id, producer_sequence,
        len(records), len(body), base, max(times) - base if times else NO_TIME, map_version, min(keys), max(keys),
    )  # fmt: skip
    crc = crc32c(producer[36:] + body)
    return producer[:32] + struct.pack("<I", crc) + producer[36:] + body


def decode(batch: bytes) -> list[SealedRecord]:
    """The records of a sound batch."""
    fields = HEADER.unpack(batch[:112])
    attributes, count, raw_bytes, base = fields[9], fields[13], fields[14], fields[15]
    body = batch[112 : fields[3]]
    if attributes & 3 == 1:
        body = lz4.block.decompress(body, uncompressed_size=raw_bytes)
    elif attributes & 3 == 2:
        body = zstandard.ZstdDecompressor().decompress(body)
    found: list[SealedRecord] = []
    start = 4 * count
    for i in range(count):
        end = 4 * count + struct.unpack_from("<I", body, 4 * i)[0]
        record = body[start:end]
        key_bytes, headers_bytes, delta = struct.unpack_from("<HHi", record)
        at = 24 if attributes & 8 else 8
        given = record[8:24] if attributes & 8 else None
        key, headers = record[at : at + key_bytes], record[at + key_bytes : at + key_bytes + headers_bytes]
        value = record[at + key_bytes + headers_bytes :]
        found.append((key, value, headers, None if delta == NO_TIME else base + delta, given))
        start = end
    return found


def percentile(numbers: list[int], percent: float) -> int:
    """The smallest number that at least `percent` of 100 do not exceed."""
    ordered = sorted(numbers)
    for rank, number in enumerate(ordered, 1):
        if rank >= len(ordered) * percent / 100 - 1e-6:
            return number
    return ordered[-1]


def arrow_rows(batch: bytes) -> list[dict[str, Any]]:
    fields = HEADER.unpack(batch[:112])
    return [
        {"sequence": fields[4] + i, "key": key.decode(), "data": value, "time": fields[7] if time is None else time}
        for i, (key, value, _, time, _) in enumerate(decode(batch))
    ]
