"""Where a reader starts: trim horizon, latest, at or after a sequence, or at a time.

`AtTime` names the first record that *arrived* at or after it (the append time, which never decreases
within a shard).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from streamkit.errors import InvalidPosition


@dataclass(frozen=True, slots=True)
class TrimHorizon:
    """The oldest record kept."""


@dataclass(frozen=True, slots=True)
class Latest:
    """Just after the newest readable record, at the time it is resolved."""


@dataclass(frozen=True, slots=True)
class AtSequence:
    """The record with this sequence; an older one than is kept means the oldest kept."""

    sequence: int


@dataclass(frozen=True, slots=True)
class AfterSequence:
    """The record after this sequence."""

    sequence: int


@dataclass(frozen=True, slots=True)
class AtTime:
    """The first record that arrived at or after `time_ms` (Unix milliseconds)."""

    time_ms: int


Position = TrimHorizon | Latest | AtSequence | AfterSequence | AtTime
TRIM_HORIZON = TrimHorizon()
LATEST = Latest()


def parse_position(start: str | datetime | Position) -> Position:
    """`"trim_horizon"`, `"latest"`, an aware datetime, or a Position. Raises InvalidPosition."""
    if isinstance(start, Position):
        return start
    if isinstance(start, datetime):
        if start.tzinfo is None:
            raise InvalidPosition(
                f"{start.isoformat()} has no time zone", try_="use datetime.now(UTC) or add tzinfo", position=str(start)
            )
        return AtTime(int(start.timestamp() * 1000))
    match start.lower() if isinstance(start, str) else start:
        case "trim_horizon":
            return TRIM_HORIZON
        case "latest":
            return LATEST
    raise InvalidPosition(
        f"{start!r} is not a position", try_='use "trim_horizon", "latest" or an aware datetime', position=str(start)
    )
