"""How much of one shard may travel at once, and how long a refused batch waits. Pure.

A shard that refuses with Throttled gets half of what travelled, and a batch more each round trip after that. There is
one window a shard: a shard has one leader, and what one leader refuses says nothing about another. Until the first
refusal there is no window at all, so it costs nothing where nobody throttles.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from streamkit.runtime.backoff import Backoff

_JITTER = 0.2                              # of what a broker asked for, on top: callers do not return together


@dataclass(slots=True)
class Window:
    """batch_bytes: what it grows by in a round trip, and its least size. bytes_most: from here on there is none."""

    batch_bytes: int
    bytes_most: int
    bytes: float = inf

    def admits(self, travelling_bytes: int, size_bytes: int) -> bool:
        """Whether a batch may leave now. One always may."""
        return travelling_bytes == 0 or travelling_bytes + size_bytes <= self.bytes

    def acknowledged(self, size_bytes: int) -> None:
        if self.bytes < inf:
            self.bytes += self.batch_bytes * size_bytes / self.bytes
            if self.bytes >= self.bytes_most:
                self.bytes = inf

    def throttled(self, travelling_bytes: int) -> None:
        """Once for all that was under way together."""
        self.bytes = max(self.batch_bytes, min(self.bytes, travelling_bytes) / 2)


def pause_ms(backoff: Backoff, retry_after_ms: float | None) -> float:
    """Before the next try. What the broker asked for wins over our own patience, which grows with each try."""
    if retry_after_ms is None:
        return backoff.next_ms()
    return retry_after_ms * (1 + _JITTER * backoff.random.uniform())
