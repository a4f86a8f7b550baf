"""What a handler went through in `chaos`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_SHOWN = 10


@dataclass(frozen=True, slots=True)
class ChaosReport:
    """values: what was put, in order. again: index of a value → how often it was handled, of those handled repeatedly.

    lost: indexes of values that were never handled and are no dead letters. disordered: pairs of indexes with one key
    of which the later was handled first. dead_letters: indexes of values that went there. failures: of calls.
    happened: what was done to it, by virtual second. stuck: why it did not come to an end, or "".
    """

    seed: int
    values: tuple[Any, ...]
    handled: int
    again: Mapping[int, int]
    lost: tuple[int, ...]
    disordered: tuple[tuple[int, int], ...]
    dead_letters: tuple[int, ...]
    failures: int
    happened: tuple[tuple[float, str], ...]
    stuck: str = ""

    @property
    def ok(self) -> bool:
        """What streamkit promises was kept: every value at least once, the first time in the order of its key."""
        return not (self.lost or self.disordered or self.stuck)

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}: {self.handled} calls for {len(self.values)} values, {len(self.again)} handled again, "
            f"{len(self.lost)} lost, {len(self.disordered)} out of order, {len(self.dead_letters)} dead letters"
        ]
        lines += [f"  stuck: {self.stuck}"] if self.stuck else []
        lines += [f"  lost: {self.values[index]!r}" for index in self.lost[:_SHOWN]]
        lines += [
            f"  {times} times: {self.values[index]!r}" for index, times in list(self.again.items())[:_SHOWN]
        ]
        lines += [f"  {seconds:9.3f} {what}" for seconds, what in self.happened]
        return "\n".join(lines)
