"""The slow, obvious twin of `_core.framing`: one function that lays a frame out, one that takes a stream apart."""

from __future__ import annotations

import struct
from typing import Any

MESSAGE, PUT, PUT_OK, FETCH, FETCH_OK, REPLICATE, REPLICATED = 1, 2, 3, 4, 5, 6, 7
_HEADER_BYTES_LEAST = {MESSAGE: 0, PUT: 24, PUT_OK: 24, FETCH: 48, FETCH_OK: 40, REPLICATE: 8, REPLICATED: 8}
_SECTION = struct.Struct("<16sIIQIIQQQQ")
_ACKNOWLEDGEMENT = struct.Struct("<16s16sIIQQ")
ALL_KINDS = sum(1 << kind for kind in _HEADER_BYTES_LEAST)


def frame(kind: int, request_id: int, header: bytes, payload: bytes = b"") -> bytes:
    return struct.pack("<IBBHI", 8 + len(header) + len(payload), kind, 0, len(header), request_id) + header + payload


def encode(fields: tuple[Any, ...]) -> bytes:
    """The bytes of a frame given as `parse` gives it."""
    kind, request_id, *rest = fields
    if kind == MESSAGE:
        return frame(kind, request_id, b"", rest[0])
    if kind == PUT:
        shard, timeout_ms, batch = rest
        return frame(kind, request_id, struct.pack("<16sII", shard, timeout_ms, 0), batch)
    if kind == PUT_OK:
        base, time, epoch, duplicate, replicas, synced = rest
        bits = (0, 1, 3)[duplicate] | synced << 2 | replicas << 8
        return frame(kind, request_id, struct.pack("<QQII", base, time, epoch, bits))
    if kind == FETCH:
        shard, start, bytes_max, wait_ms, lease_epoch, session, application = rest
        header = struct.pack("<16sQIIQQ", shard, start, bytes_max, wait_ms, lease_epoch, session)
        return frame(kind, request_id, header + application.encode())
    if kind == REPLICATE:
        (sections,) = rest
        return frame(kind, 0, struct.pack("<II", len(sections), 0), b"".join(map(_section, sections)))
    if kind == REPLICATED:
        (answers,) = rest
        packed = b"".join(_ACKNOWLEDGEMENT.pack(*answer) for answer in answers)
        return frame(kind, 0, struct.pack("<II", len(answers), 0), packed)
    high, low, end, following, batches = rest
    header = struct.pack("<QQQQII", high, low, end, following, len(batches), 0)
    return frame(kind, request_id, header, b"".join(batches))


def _section(fields: tuple[Any, ...]) -> bytes:
    shard, epoch, level, start, previous_epoch, high, low, leader_end, epoch_start, batches = fields
    header = (shard, epoch, level, start, previous_epoch, len(batches), high, low, leader_end, epoch_start)
    return _SECTION.pack(*header) + batches


def parse(
    stream: bytes, length_max: int, accepts: int = ALL_KINDS
) -> tuple[list[tuple[Any, ...]], str | None]:
    """Every whole frame as (kind, request_id, fields …), and why what follows is garbage (None: it is not)."""
    frames: list[tuple[Any, ...]] = []
    while len(stream) >= 4:
        length = int.from_bytes(stream[:4], "little")
        if not 8 <= length <= length_max:
            return frames, "length"
        if len(stream) < 12:
            break
        _, kind, flags, header_bytes, request_id = struct.unpack("<IBBHI", stream[:12])
        if kind not in _HEADER_BYTES_LEAST:
            return frames, "kind"
        if flags:
            return frames, "flags"
        if not _HEADER_BYTES_LEAST[kind] <= header_bytes <= length - 8:
            return frames, "header"
        if not accepts & 1 << kind:
            return frames, "state"
        if kind != MESSAGE and (request_id == 0) is not (kind in (REPLICATE, REPLICATED)):
            return frames, "request"
        if len(stream) < 4 + length:
            break
        header, payload = stream[12 : 12 + header_bytes], stream[12 + header_bytes : 4 + length]
        stream = stream[4 + length :]
        parsed, reason = _fields(kind, header, payload)
        if reason:
            return frames, reason
        frames.append((kind, request_id, *parsed))
    return frames, None


def _fields(kind: int, header: bytes, payload: bytes) -> tuple[tuple[Any, ...], str | None]:
    if kind == MESSAGE:
        return (payload,), None
    if kind == PUT:
        shard, timeout_ms, _ = struct.unpack("<16sII", header[:24])
        return (shard, timeout_ms, payload), None
    if kind == PUT_OK:
        base, time, epoch, bits = struct.unpack("<QQII", header[:24])
        return (base, time, epoch, (0, 1, 2, 2)[bits & 3], bits >> 8 & 255, bool(bits & 4)), None
    if kind == FETCH:
        try:
            application = header[48:].decode()
        except UnicodeDecodeError:
            return (), "application"
        return (*struct.unpack("<16sQIIQQ", header[:48]), application), "application" if len(header) > 560 else None
    if kind == REPLICATE:
        return _sections(int.from_bytes(header[:4], "little"), payload)
    if kind == REPLICATED:
        answers = [_ACKNOWLEDGEMENT.unpack(payload[at : at + 56]) for at in range(0, len(payload) - 55, 56)]
        sound = len(payload) == 56 * int.from_bytes(header[:4], "little") and all(answer[3] <= 4 for answer in answers)
        return (answers,), None if sound else "acknowledgements"
    high, low, end, following, count, _ = struct.unpack("<QQQQII", header[:40])
    batches = []
    while payload:
        size = int.from_bytes(payload[4:8], "little")
        if len(payload) < 112 or payload[:2] != b"SK" or not 112 <= size <= len(payload):
            return (), "batches"
        batches.append(payload[:size])
        payload = payload[size:]
    return (high, low, end, following, batches), None if len(batches) == count else "batches"


def _sections(count: int, payload: bytes) -> tuple[tuple[Any, ...], str | None]:
    sections = []
    for _ in range(count):
        if len(payload) < 72:
            return (), "sections"
        shard, epoch, level, start, previous_epoch, size, *ends = _SECTION.unpack(payload[:72])
        if level > 2 or 0 < size < 112 or size > len(payload) - 72:
            return (), "sections"
        sections.append((shard, epoch, level, start, previous_epoch, *ends, payload[72 : 72 + size]))
        payload = payload[72 + size :]
    return (sections,), "sections" if payload else None


def flat(frames: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Frames as a reader hands them out: sections and acknowledgements one by one."""
    found: list[tuple[Any, ...]] = []
    for frame in frames:
        found += [(frame[0], part) for part in frame[2]] if frame[0] in (REPLICATE, REPLICATED) else [frame]
    return found
