"""A slow reader of the KPL's aggregated records, with the rules of `_core/aggregation.pxd` and nothing else."""

from __future__ import annotations

import hashlib

MAGIC = b"\xf3\x89\x9a\xc2"
Labels = tuple[tuple[str, str | None], ...]
UserRecord = tuple[str, int | None, bytes, Labels]


class _Malformed(Exception):
    pass


def sign(message: bytes) -> bytes:
    """The message in its envelope."""
    return MAGIC + message + hashlib.md5(message).digest()


def split(data: bytes) -> list[UserRecord] | None:
    if len(data) <= 20 or data[:4] != MAGIC or hashlib.md5(data[4:-16]).digest() != data[-16:]:
        return None
    try:
        return _aggregated(data[4:-16])
    except (_Malformed, UnicodeDecodeError, IndexError):
        return None


def _aggregated(message: bytes) -> list[UserRecord]:
    fields = _fields(message)
    keys = [value.decode() for number, value in fields if number == 1 and isinstance(value, bytes)]
    hashes = [_decimal(value) for number, value in fields if number == 2 and isinstance(value, bytes)]
    return [_record(value, keys, hashes) for number, value in fields if number == 3 and isinstance(value, bytes)]


def _record(message: bytes, keys: list[str], hashes: list[int]) -> UserRecord:
    key = hash_key = data = None
    labels = []
    for number, value in _fields(message):
        if isinstance(value, int):
            key = value if number == 1 else key
            hash_key = value if number == 2 else hash_key
        elif isinstance(value, bytes):
            data = value if number == 3 else data
            if number == 4:
                labels.append(_label(value))
    if key is None or data is None:
        raise _Malformed
    return keys[key], None if hash_key is None else hashes[hash_key], data, tuple(labels)


def _label(message: bytes) -> tuple[str, str | None]:
    texts = {number: value for number, value in _fields(message) if isinstance(value, bytes)}
    if 1 not in texts:
        raise _Malformed
    for number, value in _fields(message):
        if number <= 2 and isinstance(value, bytes):
            value.decode()
    return texts[1].decode(), texts[2].decode() if 2 in texts else None


def _decimal(text: bytes) -> int:
    if not text.isdigit() or int(text) >> 128:
        raise _Malformed
    return int(text)


def _fields(message: bytes) -> list[tuple[int, int | bytes | None]]:
    """(number, value): an int for a varint, bytes for a span, None for what is skipped."""
    found: list[tuple[int, int | bytes | None]] = []
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag >> 32 or tag < 8:
            raise _Malformed
        wire = tag & 7
        value: int | bytes | None = None
        if wire == 0:
            value, at = _varint(message, at)
        elif wire == 2:
            size, at = _varint(message, at)
            value, at = message[at : at + size], at + size
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise _Malformed
        if at > len(message):
            raise _Malformed
        found.append((tag >> 3, value))
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise _Malformed
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                raise _Malformed
            return value, at
    raise _Malformed
