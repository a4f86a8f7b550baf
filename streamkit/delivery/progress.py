"""What a delivery has done since it started, and what stands in its way."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from streamkit._core.histogram import Histogram


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why nothing gets through. since_ms: wall clock, of the first failure in a row; attempts: so far."""

    code: str
    message: str
    since_ms: int
    attempts: int = 1


@dataclass(slots=True)
class Progress:
    """Counts over all shards of this process. oldest_ms: wall clock arrival of the oldest record that is read and not
    yet delivered, by shard. trouble: by shard, while there is any.
    """

    records: int = 0
    payload_bytes: int = 0
    written_bytes: int = 0
    chunks: int = 0
    dropped: int = 0
    failed: Counter[str] = field(default_factory=Counter)        # code → records
    repeated: int = 0                      # ranges that an owner before had planned and not finished
    trouble: dict[str, Trouble] = field(default_factory=dict)
    oldest_ms: dict[str, int] = field(default_factory=dict)
    write_us: Histogram = field(default_factory=Histogram)       # of chunks, with what had to be repeated

    def freshness_seconds(self, now_ms: int) -> float:
        """Age of the oldest record that is not delivered; 0 when there is none."""
        return max(0, now_ms - min(self.oldest_ms.values(), default=now_ms)) / 1000
