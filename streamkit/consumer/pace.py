"""What a worker tells of itself with its heartbeats: where its time goes, so that a lag can be explained.

Figures are halved with each report, so they speak of the last quarter of a minute or so; the load by which leases are
assigned is steadier.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from streamkit._core.batch import Batch
from streamkit.protocol.messages import ShardPace

_KEYS_A_CALL = 8                           # looked at; the others are taken to be like them
_KEYS_MAX = 256
LOAD_HALF_LIFE_S = 30.0


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
        self._began_s = now_s
        self._busy_before_s = 0.0          # of _busy_s, what was told before
        self._load = 0.0                   # sum of busy shares by their age, and of the ages
        self._load_weight = 0.0

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
        self._smooth(now_s - self._since_s)
        wall_s = max(self._wall_s, 1e-3)
        key, count = self._keys.most_common(1)[0] if self._keys else ("", 0)
        told = ShardPace(
            shard=shard, busy=min(1.0, self._busy_s / self._lanes / wall_s),
            waiting=min(1.0, self._waiting_s / wall_s),
            record_ms=1000 * self._busy_s / self._records if self._records >= 0.5 else 0.0,
            top_key=key[:128], top_key_share=count / self._keys.total() if count else 0.0, throttled=throttled,
            load=self._load / self._load_weight if self._load_weight else 0.0,
            observed_ms=int(1000 * (now_s - self._began_s)),
        )
        self._since_s = now_s
        self._wall_s /= 2
        self._busy_s /= 2
        self._busy_before_s = self._busy_s
        self._waiting_s /= 2
        self._records /= 2
        self._keys = Counter({each: number // 2 for each, number in self._keys.items() if number > 1})
        return told

    def _smooth(self, seconds: float) -> None:
        # The share since the last report, with the weight of its time; what is older counts half after each half-life.
        kept = 0.5 ** (seconds / LOAD_HALF_LIFE_S)
        busy_s = (self._busy_s - self._busy_before_s) / self._lanes
        share = min(1.0, max(0.0, busy_s / seconds)) if seconds > 0 else 0.0
        self._load = self._load * kept + share * (1 - kept)
        self._load_weight = self._load_weight * kept + (1 - kept)
