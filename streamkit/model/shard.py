"""A shard: a slice of the hash-key space with its own log."""

from __future__ import annotations

from dataclasses import dataclass, field

from streamkit.errors import InvalidUse
from streamkit.model.limits import HASH_KEYS


def shard_id(ordinal: int) -> str:
    """The Kinesis form, `shardId-` and twelve digits."""
    return f"shardId-{ordinal:012d}"


def shard_ordinal(shard: str | int) -> int:
    """What `shard_id` was made of; a number, also as text, is one already. Raises InvalidUse."""
    digits = shard.removeprefix("shardId-") if isinstance(shard, str) else str(shard)
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
        raise InvalidUse(
            f"{str(shard)[:80]!r} is not a shard", try_="name it as streamkit stream describe does, or by its number",
            shard=str(shard)[:80],
        )
    return int(digits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One shard as the catalog describes it.

    uuid: 16 bytes, its identity on the wire and on disk; never reused, not even for a re-created stream.
    hash_start, hash_end: half-open range of 128-bit hash keys.
    created_ms, closed_ms: wall clock; closed_ms is None while the shard takes records.
    parents, children: ordinals; a parent that retention has removed is still named.
    end: one past its last record, the closing one; None while the shard takes records.
    address: where its leader answers ("host:port", "" when embedded).
    put_records_rate, put_bytes_rate: a second, over the last minute, bytes as they are stored; only `describe_stream`
    of a client fills them in.
    """

    ordinal: int
    uuid: bytes
    hash_start: int
    hash_end: int
    created_ms: int
    closed_ms: int | None = None
    parents: tuple[int, ...] = ()
    children: tuple[int, ...] = ()
    epoch: int = 0
    leader: str = ""
    address: str = ""
    end: int | None = None
    put_records_rate: float = field(default=0.0, compare=False)
    put_bytes_rate: float = field(default=0.0, compare=False)

    @property
    def id(self) -> str:
        return shard_id(self.ordinal)


def even_ranges(count: int) -> list[tuple[int, int]]:
    """`count` half-open ranges that tile the hash-key space; the last takes what the division leaves."""
    width = HASH_KEYS // count
    return [(i * width, HASH_KEYS if i == count - 1 else (i + 1) * width) for i in range(count)]
