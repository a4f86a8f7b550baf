"""A latch: something a thread waits for once."""

from __future__ import annotations

import threading


class Latch:
    """Closed until set() is called, from any thread; then open for good."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """True once it is open; False when `timeout_s` passed first."""
        return self._event.wait(timeout_s)
