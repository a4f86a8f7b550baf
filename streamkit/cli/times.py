"""Times, durations and positions as people type them: `2h`, `2026-11-23T10:00Z`, `SHARD:SEQUENCE`."""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import TYPE_CHECKING

from streamkit.errors import InvalidPosition, InvalidUse

if TYPE_CHECKING:
    from streamkit.model.position import Position

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def parse_duration_ms(text: str) -> int:
    """`250ms`, `30s`, `15m`, `2h`, `7d`. Raises InvalidUse."""
    if not (match := _DURATION.fullmatch(text.strip().lower())):
        raise InvalidUse(f"{text!r} is not a duration", try_="write 250ms, 30s, 15m, 2h or 7d", value=text)
    return int(float(match[1]) * _UNIT_MS[match[2]])


def parse_instant_ms(text: str) -> int:
    """A duration before now, a date, or a time; without a zone it is this machine's. Raises InvalidPosition."""
    if _DURATION.fullmatch(text.strip().lower()):
        return int(time.time() * 1000) - parse_duration_ms(text)
    try:
        return int(datetime.fromisoformat(text).astimezone().timestamp() * 1000)
    except ValueError:
        raise InvalidPosition(
            f"{text!r} is not a time", try_="write 2h, 15m, 2026-11-23 or 2026-11-23T10:00Z", position=text
        ) from None


def parse_start(text: str) -> tuple[str | None, Position]:
    """(shard id or None for all shards, position). Raises InvalidPosition."""
    from streamkit.model.position import AtSequence, AtTime, parse_position
    from streamkit.model.sequence import parse_sequence_number

    shard, colon, number = text.rpartition(":")
    if colon and shard.startswith("shardId-"):
        if len(number) > 20:
            return shard, AtSequence(parse_sequence_number(number).sequence)
        if number.isdigit():
            return shard, AtSequence(int(number))
    if text.lower() in ("trim_horizon", "latest"):
        return None, parse_position(text)
    return None, AtTime(parse_instant_ms(text))
