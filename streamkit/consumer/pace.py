"""What a worker tells of itself with its heartbeats: where its time goes, so that a lag can be explained.

Figures are halved with each report, so they speak of the last quarter of a minute or so.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from streamkit._core.batch import Batch
from streamkit.protocol.messages import ShardPace

_KEYS_A_CALL = 8                           # looked at; the others are taken to be like them
_KEYS_MAX = 256


class Pace:
    """Of one lease. lanes: how many records are handled at the same time."""

    def __init__(self, now_s: float, lanes: int = 1) -> None:
        self._lanes = lanes
        self._since_s = now_s
        self._wall_s = 0.0
        self._busy_s = 0.0
        self._told_s = 0.0                 # of the call under way, in reports before
        self._waiting_s = 0.0
        self._records = 0.0
        self._keys: Counter[str] = Counter()

    def begins(self, batch: Batch[Any]) -> None:
        """User code is given the batch."""
        if len(self._keys) < _KEYS_MAX:
            for index in range(0, len(batch), max(1, len(batch) // _KEYS_A_CALL)):
                self._keys[batch[index].key] += 1

    def ran(self, done: int, seconds: float) -> None:
        """It had it for that long, and finished so many of its records."""
        self._busy_s += max(0.0, seconds - self._told_s)
        self._told_s = 0.0
        self._records += done

    def waited(self, seconds: float) -> None:
        """There was no batch to hand out for that long."""
        self._waiting_s += seconds

    def report(self, shard: bytes, now_s: float, busy_since_s: float | None, throttled: int) -> ShardPace:
        """busy_since_s: when the call under way began. throttled: fetches that were refused, since the start."""
        self._wall_s += now_s - self._since_s
        under_way_s = now_s - max(busy_since_s, self._since_s) if busy_since_s is not None else 0.0
        self._busy_s += under_way_s * self._lanes
        self._told_s += under_way_s * self._lanes
        wall_s = max(self._wall_s, 1e-3)
        key, count = self._keys.most_common(1)[0] if self._keys else ("", 0)
        told = ShardPace(
            shard=shard, busy=min(1.0, self._busy_s / self._lanes / wall_s),
            waiting=min(1.0, self._waiting_s / wall_s),
            record_ms=1000 * self._busy_s / self._records if self._records >= 0.5 else 0.0,
            top_key=key[:128], top_key_share=count / self._keys.total() if count else 0.0, throttled=throttled,
        )
        self._since_s = now_s
        self._wall_s /= 2
        self._busy_s /= 2
        self._waiting_s /= 2
        self._records /= 2
        self._keys = Counter({each: number // 2 for each, number in self._keys.items() if number > 1})
        return told
