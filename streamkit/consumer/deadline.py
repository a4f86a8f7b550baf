"""When a worker's leases are lost by its own clock, for code that stands between two records.

The clock counts time asleep. After a pause of the process or of the machine timers may be late, and the next record
must not be handed out all the same; so the clock is looked at between records: before each one of slow handlers, before
each sixteenth of quick ones, which costs them nothing that can be measured.
"""

from __future__ import annotations

from streamkit.runtime.interfaces import Clock

_QUICK_MS = 2
_STRIDE_MAX = 16
NEVER = 1 << 62
LATE = -1


class Deadline:
    """at_ms: set on the worker's loop, read in any thread."""

    __slots__ = ("_clock", "at_ms")

    def __init__(self, clock: Clock, at_ms: int = 0) -> None:
        self._clock = clock
        self.at_ms = at_ms

    def now_ms(self) -> int:
        return self._clock.monotonic_ms()


class Looks:
    """Those of one shard's handler."""

    __slots__ = ("_deadline", "_looked_ms", "_stride")

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        self._looked_ms = 0
        self._stride = 1

    def stride(self) -> int:
        """How many records may be handed out before the next look; 0: it is too late for any."""
        now_ms = self._deadline.now_ms()
        if now_ms >= self._deadline.at_ms:
            return 0
        self._stride = min(2 * self._stride, _STRIDE_MAX) if now_ms - self._looked_ms < _QUICK_MS else 1
        self._looked_ms = now_ms
        return self._stride
