"""The 27,004 flights that left New York in January 2013, as the records that the demonstration puts."""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent.parent / "data" / "flights-2013-01.csv.gz"
NUMBERS = frozenset(
    ("year", "month", "day", "sched_dep_time", "dep_time", "dep_delay", "arr_delay", "flight", "air_time", "distance")
)


@dataclass(slots=True)
class CarrierTotals:
    """delay_sum and worst are minutes, over the flights whose departure delay is known (cancelled ones have none)."""

    flights: int = 0
    delayed: int = 0
    delay_sum: int = 0
    worst: int | None = None

    def add(self, delay: int | None) -> None:
        self.flights += 1
        if delay is not None:
            self.delayed += 1
            self.delay_sum += delay
            self.worst = delay if self.worst is None else max(self.worst, delay)

    @property
    def mean(self) -> float | None:
        return self.delay_sum / self.delayed if self.delayed else None


def flights() -> list[dict[str, Any]]:
    """One dict a flight in the file's order; `row` counts from 1, missing values are None."""
    with gzip.open(FILE, "rt", newline="") as file:
        return [
            {
                "row": row,
                **{name: (int(text) if name in NUMBERS else text) if text else None for name, text in fields.items()},
            }
            for row, fields in enumerate(csv.DictReader(file), 1)
        ]


def aircraft(flight: dict[str, Any]) -> str:
    """The partition key: the tail number; the flight's own number where the aircraft is not known."""
    return flight["tailnum"] or f"{flight['carrier']}{flight['flight']}"


def totals_of(all_flights: list[dict[str, Any]]) -> dict[str, CarrierTotals]:
    """What the workers must arrive at, computed in one pass."""
    totals: dict[str, CarrierTotals] = {}
    for flight in all_flights:
        totals.setdefault(flight["carrier"], CarrierTotals()).add(flight["dep_delay"])
    return totals
