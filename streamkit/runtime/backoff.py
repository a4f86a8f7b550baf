"""How long to wait before trying again: doubling, with jitter, bounded. Pure; whoever waits does the waiting."""

from __future__ import annotations

from dataclasses import dataclass

from streamkit.runtime.interfaces import Random


@dataclass(slots=True)
class Backoff:
    """Each wait lies between half and the whole of first_ms × 2^tries, at most most_ms.

    Half stays fixed so that a retry is never immediate; half is drawn so that many callers do not return together.
    """

    random: Random
    first_ms: float = 50.0
    most_ms: float = 5_000.0
    tries: int = 0

    def next_ms(self) -> float:
        whole = min(self.first_ms * 2.0 ** min(self.tries, 60), self.most_ms)
        self.tries += 1
        return whole * (0.5 + 0.5 * self.random.uniform())

    def reset(self) -> None:
        self.tries = 0
