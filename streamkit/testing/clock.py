"""A clock that a test turns: the machine's, and as much ahead as it was told."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from streamkit.errors import InvalidUse
from streamkit.runtime.real import RealClock


class Clock:
    """`runtime.Clock`. Both its readings go on with the machine's, and jump together when it is advanced.

    To whoever holds a lease it is as if the machine had slept: a worker that runs meanwhile finds its lease expired,
    loses it, and joins again by itself.
    """

    def __init__(self) -> None:
        self._machine = RealClock()
        self._ahead_ms = 0
        self._followers: list[Callable[[], None]] = []

    def now_ms(self) -> int:
        return self._machine.now_ms() + self._ahead_ms

    def monotonic_ms(self) -> int:
        return self._machine.monotonic_ms() + self._ahead_ms

    @property
    def now(self) -> datetime:
        """What it shows; aware, UTC."""
        return datetime.fromtimestamp(self.now_ms() / 1000, UTC)

    def advance(self, *, days: float = 0, hours: float = 0, minutes: float = 0, seconds: float = 0) -> None:
        """Turn it forward. When this returns, every node on the clock has looked at it: what expired is gone."""
        passed = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        if passed < timedelta(0):
            raise InvalidUse("time does not go back", try_="advance by a time above 0", seconds=passed.total_seconds())
        self._ahead_ms += passed // timedelta(milliseconds=1)
        for follow in list(self._followers):
            follow()

    def follow(self, look: Callable[[], None]) -> None:
        """Have `look` called after each turn."""
        self._followers.append(look)

    def unfollow(self, look: Callable[[], None]) -> None:
        self._followers.remove(look)
