"""The newest value of each series that somebody reported, bounded. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

SERIES_MAX = 10_000
NAME_CHARACTERS_MAX = 8 * 1024 * 1024      # of all series' names together


@dataclass(frozen=True, slots=True)
class SeriesName:
    """dimensions: (name, value), sorted by name. unit: "None" when the reporter named none."""

    account: str
    region: str
    namespace: str
    metric: str
    dimensions: tuple[tuple[str, str], ...] = ()
    unit: str = "None"

    @property
    def characters(self) -> int:
        return (
            len(self.namespace) + len(self.metric) + len(self.unit)
            + sum(len(name) + len(value) for name, value in self.dimensions)
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of the samples of one report."""

    count: float
    sum: float
    minimum: float
    maximum: float

    @property
    def mean(self) -> float:
        return self.sum / self.count if self.count else 0.0


@dataclass(slots=True)
class Series:
    """last: the newest report. count, sum: of all since the series is held. time_ms: of `last`, as reported."""

    name: SeriesName
    last: Statistics
    count: float
    sum: float
    time_ms: int


class Registry:
    """Series by name; the one that was longest without a report makes room for a new one.

    reports: data that came in. forgotten: series that made room.
    """

    def __init__(self, series_max: int = SERIES_MAX, name_characters_max: int = NAME_CHARACTERS_MAX) -> None:
        self._series_max = series_max
        self._name_characters_max = name_characters_max
        self._series: dict[SeriesName, Series] = {}            # longest without a report first
        self._characters = 0
        self.reports = 0
        self.forgotten = 0

    def __len__(self) -> int:
        return len(self._series)

    def series(self) -> Iterator[Series]:
        """Those held now, in the order of their names."""
        return iter(sorted(self._series.values(), key=lambda held: _sorting(held.name)))

    def get(self, name: SeriesName) -> Series | None:
        return self._series.get(name)

    def put(self, name: SeriesName, statistics: Statistics, time_ms: int) -> None:
        """A report counts as the newest unless a later one is held."""
        self.reports += 1
        held = self._series.pop(name, None)
        if held is None:
            held = Series(name, statistics, 0.0, 0.0, time_ms)
            self._characters += name.characters
        self._series[name] = held
        if time_ms >= held.time_ms:
            held.last, held.time_ms = statistics, time_ms
        held.count += statistics.count
        held.sum += statistics.sum
        while len(self._series) > self._series_max or self._characters > self._name_characters_max:
            oldest = next(iter(self._series))
            del self._series[oldest]
            self._characters -= oldest.characters
            self.forgotten += 1


def _sorting(name: SeriesName) -> tuple[object, ...]:
    return name.namespace, name.metric, name.dimensions, name.unit, name.account, name.region
