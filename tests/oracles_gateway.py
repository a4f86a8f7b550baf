"""Slow, obvious twins of the gateway's kernels: Python's json, base64 and hashlib, and a small CBOR writer and reader.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from typing import Any

from streamkit._core.batch import Batch
from streamkit.model.sequence import sequence_number


class Tagged:
    """A CBOR value behind a tag."""

    def __init__(self, tag: int, value: Any) -> None:
        self.tag = tag
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tagged) and (self.tag, self.value) == (other.tag, other.value)

    __hash__ = None

    def __repr__(self) -> str:
        return f"Tagged({self.tag}, {self.value!r})"


class Parts:
    """A byte or text string of indefinite length."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts


def cbor_head(major: int, value: int, width: int = 0) -> bytes:
    """width: bytes of the number behind the head at least; 0 takes the shortest."""
    if value < 24 and not width:
        return bytes([major << 5 | value])
    for info, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if size >= width and value < 1 << 8 * size:
            return bytes([major << 5 | info]) + value.to_bytes(size, "big")
    raise AssertionError(value)


def cbor_dumps(value: Any, *, indefinite: bool = False, width: int = 0) -> bytes:
    """RFC 8949 for what bodies hold; dicts and lists of indefinite length on request."""

    def dumps(inner: Any) -> bytes:
        return cbor_dumps(inner, indefinite=indefinite, width=width)

    match value:
        case None:
            return b"\xf6"
        case bool():
            return b"\xf5" if value else b"\xf4"
        case int():
            return cbor_head(0, value, width) if value >= 0 else cbor_head(1, -1 - value, width)
        case float():
            return b"\xfb" + struct.pack(">d", value)
        case bytes():
            return cbor_head(2, len(value), width) + value
        case str():
            return cbor_head(3, len(value.encode()), width) + value.encode()
        case Tagged():
            return cbor_head(6, value.tag, width) + dumps(value.value)
        case Parts():
            major = 3 if value.parts and isinstance(value.parts[0], str) else 2
            return bytes([major << 5 | 31]) + b"".join(map(dumps, value.parts)) + b"\xff"
        case list():
            items = b"".join(map(dumps, value))
            return b"\x9f" + items + b"\xff" if indefinite else cbor_head(4, len(value), width) + items
        case dict():
            items = b"".join(dumps(part) for pair in value.items() for part in pair)
            return b"\xbf" + items + b"\xff" if indefinite else cbor_head(5, len(value), width) + items
    raise AssertionError(value)


def cbor_loads(data: bytes) -> Any:
    """The one value in `data`, of definite length throughout, as the kernels write it."""
    value, end = _cbor_value(data, 0)
    assert end == len(data), "nothing follows the value"
    return value


def _cbor_value(data: bytes, at: int) -> tuple[Any, int]:
    major, info = data[at] >> 5, data[at] & 31
    at += 1
    number = info
    if info >= 24:
        size = 1 << (info - 24)
        assert size <= 8
        number = int.from_bytes(data[at : at + size], "big")
        at += size
    match major:
        case 0:
            return number, at
        case 2 | 3:
            raw = data[at : at + number]
            assert len(raw) == number
            return (raw if major == 2 else raw.decode()), at + number
        case 4 | 5:
            items = []
            for _ in range(number * (major - 3)):
                item, at = _cbor_value(data, at)
                items.append(item)
            if major == 4:
                return items, at
            assert len(set(items[::2])) == number
            return dict(zip(items[::2], items[1::2], strict=True)), at
        case 6:
            value, at = _cbor_value(data, at)
            return Tagged(number, value), at
    raise AssertionError(f"major {major}")


def hash_number(key: str, explicit: str | None) -> int:
    """A record's hash key."""
    return int(explicit) if explicit is not None else int.from_bytes(hashlib.md5(key.encode()).digest(), "big")


def put_body(entries: list[dict[str, Any]], members: dict[str, Any], *, cbor: bool, single: bool) -> bytes:
    """A request as boto3 writes it. entries: Data as bytes."""
    if not cbor:
        entries = [
            {name: base64.b64encode(value).decode() if name == "Data" and value is not None else value
             for name, value in entry.items()}
            for entry in entries
        ]
    whole = {**entries[0], **members} if single else {"Records": entries, **members}
    return cbor_dumps(whole) if cbor else json.dumps(whole).encode()


def records(
    batches: list[bytes], first: int, *, count_max: int, bytes_max: int, ordinal: int, created_ms: int
) -> tuple[list[dict[str, Any]], int]:
    """What encode_records gives, with Data as bytes and arrival in ms; and next_sequence."""
    found: list[dict[str, Any]] = []
    taken, following = 0, first
    for raw in batches:
        batch = Batch(raw, None, first)
        if batch.end_sequence <= first:
            continue
        if batch.is_control:
            following = batch.end_sequence
            continue
        for record in batch:
            size = len(record.key.encode()) + len(record.data)
            if len(found) == count_max or (found and taken + size > bytes_max):
                return found, following
            taken += size
            following = record.sequence + 1
            number = sequence_number(
                record.sequence, ordinal=ordinal, created_ms=created_ms, arrived_ms=batch.append_time_ms
            )
            found.append({"number": number, "ms": batch.append_time_ms, "data": record.data, "key": record.key})
    return found, following
