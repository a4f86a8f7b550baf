"""What a delivery is made of: the plan of a range, the chunks it is written as, and what could not be written.

A plan is made before a byte leaves, and kept as the announcement of the range's checkpoint. So the same records are
always written as the same chunks with the same ids, whoever writes them, and however often.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from streamkit._core.batch import Record

Takes = Literal["body", "values", "data"]
Place = tuple[int, int]                    # of a record: its sequence, and how many user records before it inside

_CHUNKS = uuid.UUID("8d0f4a9e-5f0b-4c55-9a3b-0c6c2f1f7c11")


class Plan(msgspec.Struct, array_like=True, frozen=True):
    """A range of one shard, half-open, as one delivery decided to write it.

    oldest_ms: arrival of its first record, which every time in names is. names: of the chunks, in order; "" where the
    sink knows no names.
    """

    id: str
    start: Place
    end: Place
    oldest_ms: int
    names: tuple[str, ...] = ()

    @property
    def oldest(self) -> datetime:
        return datetime.fromtimestamp(self.oldest_ms / 1000, UTC)


def plan_id(delivery: str, shard_uuid: bytes, start: Place, end: Place) -> str:
    """The same for the same work."""
    return str(uuid.uuid5(_CHUNKS, f"{delivery}/{shard_uuid.hex()}/{start[0]}.{start[1]}-{end[0]}.{end[1]}"))


def chunk_id(plan: str, part: str) -> str:
    """Of a plan's chunk; part: what tells it from the plan's others."""
    return str(uuid.uuid5(uuid.UUID(plan), part))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, weakref_slot=True)
class Chunk:
    """What a sink writes at once: all of it or nothing. The same `id` may come again, with the same records.

    While one process tries it, it is the same object: a sink may keep, weakly by it, how far it came.

    start, end: places in the shard, half-open; with several chunks a range, those of the range. oldest: arrival of the
    range's first record. name: where it goes, for sinks that write objects. body: formatted and compressed; b"" for
    sinks that take others. values: decoded and transformed; data: payloads as bytes, transformed, one a record.
    records: the origin of each, of those a transformation made several of as often.
    """

    id: str
    plan: str
    delivery: str
    stream: str
    shard: str
    shard_uuid: bytes
    start: Place
    end: Place
    oldest: datetime
    name: str = ""
    body: bytes = b""
    content_type: str = "application/octet-stream"
    content_encoding: str = ""
    values: Sequence[Any] = ()
    data: Sequence[bytes] = ()
    records: Sequence[Record[Any]] = ()
    count: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """A record that cannot be delivered. stage: "decode", "transform", "format" or "write"; code: for programs."""

    record: Record[Any]
    stage: str
    code: str
    message: str
    attempts: int = 1
