"""Waiting, in a plain test, for what nobody announces: threads and processes beside it."""

import time
from collections.abc import Callable

LOOK_S = 0.01


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Returns when it holds; fails after that time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that in time"
        time.sleep(LOOK_S)                     # between two looks
