"""Which segments are old enough to go: a rule without a clock or a disk.

Whole sealed segments only, oldest first, by the append time of their newest batch or by the bytes kept after them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentAge:
    """A sealed, synced segment. end: one past its last sequence. last_append_ms: of its newest batch."""

    end: int
    size_bytes: int
    last_append_ms: int


def drop_point(
    segments: Sequence[SegmentAge], *, stored_bytes: int, now_ms: int, retention_ms: int, retention_bytes: int | None
) -> int:
    """The sequence before which everything may be dropped; 0 when nothing may.

    segments: oldest first. stored_bytes: of the whole log, with what is not sealed. A segment goes when its newest
    batch is retention_ms old, or when the log without it still holds retention_bytes.
    """
    point = 0
    left = stored_bytes
    for segment in segments:
        expired = segment.last_append_ms + retention_ms <= now_ms
        surplus = retention_bytes is not None and left - segment.size_bytes >= retention_bytes
        if not (expired or surplus):
            break
        point = segment.end
        left -= segment.size_bytes
    return point
