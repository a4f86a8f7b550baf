"""Values as lines of PostgreSQL's COPY in its text format. Pure; runs in a thread.

    column TAB column TAB …        NULL is \\N; backslash, tab, newline and return are written with a backslash
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import msgspec

from streamkit.delivery.sinks.sink import Refused

_NULL = r"\N"
_ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})
_KEPT = (bytes, bytearray, datetime, date, time, Decimal)        # PostgreSQL has types for them
_MISSING = object()
_json = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Column:
    """Of a table. type: the name of its type, below any domain; category: PostgreSQL's letter, A for arrays."""

    name: str
    type: str
    category: str

    def text(self, value: Any) -> str:
        """A field of a line, escaped. Raises what a value that has no text raises."""
        if value is None:
            return _NULL
        if self.type in ("json", "jsonb"):
            return _json(value).decode().translate(_ESCAPES)
        if self.category == "A" and isinstance(value, list | tuple):
            return _array(value).translate(_ESCAPES)
        return _plain(value).translate(_ESCAPES)


@dataclass(slots=True)
class Run:
    """Rows with the same columns. indices: in the chunk, one a line; lines have no end."""

    columns: tuple[str, ...]
    indices: list[int] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class Made:
    """unknown: members that have no column."""

    runs: list[Run] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    unknown: set[str] = field(default_factory=set)


def runs(
    values: Sequence[Any], first: int, there: dict[str, Column], chosen: Mapping[str, str] | None, in_order: bool
) -> Made:
    """Values from index `first` on. there: the table's columns; chosen: paths of members by column, None: as they come.

    in_order: rows stay in the order of the chunk; else rows with the same columns come together.
    """
    made, known = Made(), dict[tuple[str, ...], Run]()
    for index in range(first, len(values)):
        try:
            members = _members(values[index])
            if members is None:
                made.refused.append(Refused(index, "not_an_object", f"{_shown(values[index])} has no members"))
                continue
            if chosen is None:
                row = [(there[name], value) for name, value in members.items() if name in there]
                if len(row) < len(members):
                    made.unknown.update(str(name) for name in members if name not in there)
                row.sort(key=lambda entry: entry[0].name)
                found = len(row)
            else:
                looked = [(there[name], _look(members, path)) for name, path in chosen.items()]
                row = [(column, None if value is _MISSING else value) for column, value in looked]
                found = sum(value is not _MISSING for _, value in looked)
            if not found:
                made.refused.append(Refused(index, "no_such_field", "no member of it has a column"))
                continue
            line = "\t".join([column.text(value) for column, value in row]).encode()
        except Exception as error:         # the user's own objects, and text that is no Unicode
            made.refused.append(Refused(index, "format_failed", f"{type(error).__name__}: {error}"))
            continue
        columns = tuple([column.name for column, _ in row])
        if in_order:
            if not made.runs or made.runs[-1].columns != columns:
                made.runs.append(Run(columns))
            run = made.runs[-1]
        else:
            if columns not in known:
                known[columns] = Run(columns)
                made.runs.append(known[columns])
            run = known[columns]
        run.indices.append(index)
        run.lines.append(line)
    return made


def _members(value: Any) -> dict[str, Any] | None:
    if isinstance(value, dict):
        return value
    if isinstance(value, msgspec.Struct) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        made = msgspec.to_builtins(value, builtin_types=_KEPT)
        return made if isinstance(made, dict) else None        # None: a Struct that is written as an array
    return None


def _look(members: Any, path: str) -> Any:
    """The member itself, if there is one of that whole name; else step by step."""
    if path in members:
        return members[path]
    found = members
    for name in path.split("."):
        if not isinstance(found, dict) or name not in found:
            return _MISSING
        found = found[name]
    return found


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return "\\x" + bytes(value).hex()
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    made = msgspec.to_builtins(value)      # text of decimals, UUIDs and enumerations
    return made if isinstance(made, str) else _json(made).decode()


def _array(values: Sequence[Any]) -> str:
    """PostgreSQL's own way to write an array: {1,"two",NULL,{3}}."""
    return "{" + ",".join([_element(value) for value in values]) + "}"


def _element(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, list | tuple):
        return _array(value)
    return '"' + _plain(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _shown(value: Any) -> str:
    return repr(value)[:80]
