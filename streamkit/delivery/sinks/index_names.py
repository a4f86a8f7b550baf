"""Names of indices: the configured one, and what the arrival of a record adds to it. Pure."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Literal

from streamkit.errors import InvalidUse

Rotation = Literal["none", "hour", "day", "week", "iso_week", "month"]

_NAME_BYTES_MAX = 255
_SUFFIX_BYTES_MAX = len("-yyyy-MM-dd-HH")
_FORBIDDEN = set('\\/*?"<>| ,#:')
_SATURDAY = 5                              # weekday() of it


def _week(day: datetime) -> str:
    """Weeks begin on Sunday; the first of a year is the first that has a Saturday of it, and the year is its week's."""
    saturday = day + timedelta(days=(_SATURDAY - day.weekday()) % 7)
    return f"-{saturday.year:04d}-w{(saturday.timetuple().tm_yday - 1) // 7 + 1:02d}"


def _iso_week(day: datetime) -> str:
    year, week, _ = day.isocalendar()
    return f"-{year:04d}-w{week:02d}"


_SUFFIXES: dict[str, Callable[[datetime], str]] = {
    "none": lambda day: "",
    "hour": lambda day: f"-{day:%Y-%m-%d-%H}",
    "day": lambda day: f"-{day:%Y-%m-%d}",
    "week": _week,
    "iso_week": _iso_week,
    "month": lambda day: f"-{day:%Y-%m}",
}


class IndexNames:
    """Raises InvalidUse for a name that no index can have, and an unknown rotation."""

    def __init__(self, name: str, rotation: Rotation) -> None:
        wrong = not name or name != name.lower() or name[0] in "-_+" or name in (".", "..")
        if wrong or _FORBIDDEN.intersection(name) or len(name.encode()) > _NAME_BYTES_MAX - _SUFFIX_BYTES_MAX:
            raise InvalidUse(f"{name!r} is no name of an index", try_="small letters, digits, - and _",
                             argument="index")
        if rotation not in _SUFFIXES:
            raise InvalidUse(f"rotation {rotation!r} is unknown", try_=f"one of {', '.join(_SUFFIXES)}",
                             argument="rotation")
        self._name = name
        self._suffix = _SUFFIXES[rotation]

    def of(self, arrived: datetime) -> str:
        """The index of a record that arrived then. arrived: aware."""
        return self._name + self._suffix(arrived.astimezone(UTC))
