"""Names of objects: a template, and the same name for the same chunk at any time and on any machine.

    orders/{arrived:%Y/%m/%d/%H}/{data.country}/

`{arrived:…}` is the arrival of the range's oldest record, with strftime's letters; `{stream}`, `{shard}` and
`{delivery}` are names; `{data.…}` and `{key}` are the record's, and part the range: a chunk for each of their values.
What follows is made here: delivery, time, and the chunk's id. Doubled braces stand for themselves.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from streamkit._core.batch import Record
from streamkit.errors import InvalidUse

NAME_BYTES_MAX = 1_024                     # of an object, in the stores that there are
_UNSAFE = str.maketrans(dict.fromkeys("/\\\x00\n\r", "_"))
_VALUE_BYTES_MAX = 200                     # of a record's word in a name
_WORDS = ("stream", "shard", "delivery")


class NoSuchField(Exception):
    """A record lacks what its name is made of."""


@dataclass(frozen=True, slots=True)
class _Field:
    word: str                              # "arrived", "key", "data", or one of _WORDS
    path: tuple[str, ...]
    pattern: str


class Template:
    """The text before the name that is made here. zone: of the times in it, as the tz database calls it.

    Raises InvalidUse for a template that can never be a name.
    """

    def __init__(self, text: str, *, zone: str = "UTC") -> None:
        self.text = text
        self.zone = _zone(zone)
        self._parts: list[str | _Field] = []
        try:
            parsed = list(string.Formatter().parse(text))
        except ValueError as cause:
            raise InvalidUse(f"{text!r} is no template: {cause}", try_="double braces that stand for themselves",
                             argument="template") from cause  # fmt: skip
        for literal, name, pattern, conversion in parsed:
            if literal:
                self._parts.append(literal)
            if name is not None:
                self._parts.append(self._field(name, pattern or "", conversion))
        self.parting = [part for part in self._parts if isinstance(part, _Field) and part.word in ("data", "key")]

    @property
    def is_parting(self) -> bool:
        """Whether records of one range may go to different places."""
        return bool(self.parting)

    @property
    def needs_values(self) -> bool:
        return any(field.word == "data" for field in self.parting)

    def part_of(self, record: Record[Any], value: Any) -> tuple[str, ...]:
        """What a record adds to its name. Raises NoSuchField."""
        return tuple([record.key if field.word == "key" else _look(value, field.path) for field in self.parting])

    def fill(self, part: tuple[str, ...], oldest: datetime, *, stream: str, shard: str, delivery: str) -> str:
        """Part: of `part_of`. oldest: aware."""
        words = {"stream": stream, "shard": shard, "delivery": delivery}
        parts = iter(part)
        local = oldest.astimezone(self.zone)
        made = []
        for each in self._parts:
            if isinstance(each, str):
                made.append(each)
            elif each.word == "arrived":
                made.append(local.strftime(each.pattern or "%Y/%m/%d/%H/"))
            elif each.word in words:
                made.append(words[each.word])
            else:
                # A folder's name has at most 255 bytes; the chunk's id tells apart what is cut.
                made.append(next(parts).translate(_UNSAFE).encode()[:_VALUE_BYTES_MAX].decode("utf-8", "ignore"))
        return "".join(made)

    def _field(self, name: str, pattern: str, conversion: str | None) -> _Field:
        word, *path = name.split(".")
        known = (word in (*_WORDS, "arrived", "key") and not path) or (word == "data" and all(path) and path)
        if not known or conversion or (pattern and word != "arrived"):
            raise InvalidUse(
                f"{{{name}{':' if pattern else ''}{pattern}}} means nothing in a name",
                try_="use {arrived:%Y/%m/%d}, {stream}, {shard}, {delivery}, {key} or {data.field}",
                argument="template",
            )
        return _Field(word, tuple(path), pattern)


def object_name(prefix: str, delivery: str, version: int, oldest: datetime, chunk: str, extension: str) -> str:
    """A name that nobody else gives. oldest: in the template's zone."""
    return f"{prefix}{delivery}-{version}-{oldest:%Y-%m-%d-%H-%M-%S}-{chunk}{extension}"


def _look(value: Any, path: tuple[str, ...]) -> str:
    for step in path:
        try:
            value = value[step] if isinstance(value, dict) else getattr(value, step)
        except (KeyError, AttributeError):
            value = None
        if value is None:
            raise NoSuchField(f"it has no data.{'.'.join(path)}")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        if value == "":
            raise NoSuchField(f"its data.{'.'.join(path)} is empty")
        return str(value)
    raise NoSuchField(f"its data.{'.'.join(path)} is no text and no number")


def _zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError) as cause:
        raise InvalidUse(f"there is no time zone {name!r}", try_='zone="Europe/Berlin"', argument="zone") from cause
