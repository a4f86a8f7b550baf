"""A stream: a named log in shards, and what it was asked to keep."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import Final

from streamkit.errors import InvalidRequest
from streamkit.model import limits
from streamkit.model.shard import Shard


class Durability(StrEnum):
    """What an acknowledgement means. The default is the strongest; weaker ones are chosen by name."""

    FSYNC = "fsync"        # on disk (fdatasync) on a majority of the replicas
    OS = "os"              # in the page cache of a majority: survives kill -9, not power loss
    LEADER = "leader"      # in the leader's memory: survives nothing


class StreamStatus(StrEnum):
    CREATING = "creating"
    ACTIVE = "active"
    DELETING = "deleting"


class Unchanged(Enum):
    UNCHANGED = auto()


UNCHANGED: Final = Unchanged.UNCHANGED     # of a setting of which None means something: it stays as it is


_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamConfig:
    """What the user chose for a stream.

    retention_bytes: per shard, None for no bound by size; whole sealed segments go.
    record_bytes_max: key, headers and value of one record together.
    """

    shards: int = 1
    retention_hours: int = limits.RETENTION_HOURS_DEFAULT
    retention_bytes: int | None = None
    durability: Durability = Durability.FSYNC
    record_bytes_max: int = limits.RECORD_BYTES_MAX_DEFAULT
    codec: str = "auto"

    def __post_init__(self) -> None:
        _within("shards", self.shards, 1, limits.STREAM_SHARDS_MAX)
        _within("retention_hours", self.retention_hours, limits.RETENTION_HOURS_MIN, limits.RETENTION_HOURS_MAX)
        _within("record_bytes_max", self.record_bytes_max, 1, limits.RECORD_BYTES_MAX)
        if self.retention_bytes is not None:
            _within("retention_bytes", self.retention_bytes, 1, 1 << 62)


def _within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidRequest(
            f"{name} must be {low}..{high}, got {value}", try_=f"choose {name} in that range", field=name, value=value
        )


def check_stream_name(name: str, *, internal: bool = False) -> str:
    """The name itself. Raises InvalidRequest; names that begin with two underscores are streamkit's own."""
    if not _NAME.fullmatch(name) or (name.startswith("__") and not internal):
        raise InvalidRequest(
            f"{name[:140]!r} is not a stream name",
            try_="use 1 to 128 letters, digits, dots, hyphens and underscores, not beginning with two underscores",
            field="name",
            value=name[:140],
        )
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamDescription:
    """A stream and its shards, in ordinal order. map_version grows with every change of the shard map."""

    name: str
    status: StreamStatus
    config: StreamConfig
    created_ms: int
    map_version: int
    shards: tuple[Shard, ...]
