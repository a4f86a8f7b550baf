"""Who waits for room in the buffer, and who wants to know that it fills."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from streamkit._core.accumulator import Budget

_log = logging.getLogger("streamkit.producer")

_HIGH, _LOW = 0.8, 0.5                     # of the buffer


class Room:
    """Whoever found the buffer full leaves a call here; all are made when bytes were let go."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], object]] = deque()

    def when_freed(self, call: Callable[[], object]) -> None:
        self._waiting.append(call)

    def freed(self) -> None:
        for _ in range(len(self._waiting)):
            self._waiting.popleft()()


class Pressure:
    """Tells once that the buffer is filled to 80 %, and once that it is back at 50 %.

    call: given True, then False, on the event loop that sends. What it raises is logged.
    """

    def __init__(self, budget: Budget, call: Callable[[bool], object] | None) -> None:
        self._budget = budget
        self._call = call
        self.high = False

    def look(self) -> None:
        used, limit = self._budget.used, self._budget.limit
        if self._call is None or (used > limit * _LOW if self.high else used < limit * _HIGH):
            return
        self.high = not self.high
        try:
            self._call(self.high)
        except Exception:                  # the caller's code; it must not stop the sender
            _log.exception("producer.on_pressure_failed")
