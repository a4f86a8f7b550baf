"""A small language for the shapes of an API: what a member may hold, and which members a structure has.

    "StreamName! ShardCount:Count Tags:{TagKey:TagValue}1..200 Records!:[Entry]1..500"

One word a member: its name, `!` when it is required, `:` and its type when that has another name. `[T]` is a list and
`{K:V}` a map, both perhaps with bounds. A type is a scalar or a structure of the same model. Structures are built when
they are first asked for, so that a model costs next to nothing until it is used; they may contain themselves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

WORD = re.compile(r"(?P<name>\w+)(?P<required>!?)(?::(?P<type>\S+))?")
KIND = re.compile(
    r"(?:\[(?P<element>\w+)\]|\{(?P<key>\w+):(?P<value>\w+)\}|(?P<name>\w+))(?:(?P<low>\d+)\.\.(?P<high>\d*))?"
)
# `.*X` where `.*` follows: whatever the rest matches after a later X it also matches after the first one, and without
# looking for later ones a pattern with three of these takes linear time and not cubic.
SKIP = re.compile(r"\.\*((?:[\w:/-]|\\d\{\d+\})+)(?=\.\*)")

INTEGER_MAX = (1 << 31) - 1
LONG_MAX = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class String:
    """low, high: characters. pattern: must match the whole value. enum: the values there are; () for any."""

    low: int = 0
    high: int | None = None
    pattern: str = ""
    enum: tuple[str, ...] = ()

    def matches(self, value: str) -> bool:
        return not self.pattern or compiled(self.pattern).fullmatch(value) is not None


@dataclass(frozen=True, slots=True)
class Integer:
    """low, high: None for no bound but the type's. limit: the type's largest number."""

    low: int | None = None
    high: int | None = None
    limit: int = INTEGER_MAX


@dataclass(frozen=True, slots=True)
class Double:
    """64 bits; numbers that are whole are taken, too."""


@dataclass(frozen=True, slots=True)
class Boolean:
    """true or false, and nothing that counts as such."""


@dataclass(frozen=True, slots=True)
class Blob:
    """low, high: bytes."""

    low: int = 0
    high: int | None = None


@dataclass(frozen=True, slots=True)
class Timestamp:
    """Integer milliseconds inside; on the wire as the format says."""


@dataclass(frozen=True, slots=True)
class List:
    element: Shape
    low: int = 0
    high: int | None = None


@dataclass(frozen=True, slots=True)
class Map:
    key: String
    value: Shape
    low: int = 0
    high: int | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """label: the name as errors write it, in lower case at the start."""

    shape: Shape
    required: bool
    label: str


@dataclass(frozen=True, slots=True, eq=False)
class Structure:
    name: str
    members: dict[str, Member] = field(default_factory=dict, repr=False)
    required: list[str] = field(default_factory=list, repr=False)


Scalar = String | Integer | Double | Boolean | Blob | Timestamp
Shape = Scalar | List | Map | Structure
EMPTY = Structure("Empty")


def text(low: int, high: int | None = None, pattern: str = "") -> String:
    return String(low, high, pattern)


def choice(values: str) -> String:
    """values: with blanks between."""
    return String(enum=tuple(values.split()))


def long(low: int | None = None, high: int | None = None) -> Integer:
    return Integer(low, high, LONG_MAX)


@lru_cache(512)
def compiled(pattern: str) -> re.Pattern[str]:
    """ASCII classes, as in the models; what would try the same text many times over tries it once."""
    return re.compile(SKIP.sub(r"(?>.*?\1)", pattern), re.ASCII)


class Model:
    """operations: of each its input and output, as members; an empty output has none. Names: of the API."""

    def __init__(
        self, operations: Mapping[str, tuple[str, str]], structures: Mapping[str, str], scalars: Mapping[str, Scalar]
    ) -> None:
        self.operations = operations
        self._structures = structures
        self._scalars = scalars
        self._built: dict[str, Structure] = {}
        self._inputs: dict[str, Structure] = {}
        self._outputs: dict[str, Structure] = {}

    def input(self, operation: str) -> Structure:
        """Raises KeyError when the model does not know the operation."""
        if operation not in self._inputs:
            self._inputs[operation] = self._fill(Structure(operation), self.operations[operation][0])
        return self._inputs[operation]

    def output(self, operation: str) -> Structure:
        if operation not in self._outputs:
            self._outputs[operation] = self._fill(Structure(f"{operation}Output"), self.operations[operation][1])
        return self._outputs[operation]

    def shape(self, name: str) -> Shape:
        """A scalar or a structure. Raises KeyError when the model does not know it."""
        if name in self._scalars:
            return self._scalars[name]
        if name not in self._built:
            self._built[name] = Structure(name)
            self._fill(self._built[name], self._structures[name])
        return self._built[name]

    def structure(self, name: str) -> Structure:
        shape = self.shape(name)
        assert isinstance(shape, Structure), f"{name} is a scalar"
        return shape

    def _fill(self, structure: Structure, members: str) -> Structure:
        for word in members.split():
            found = WORD.fullmatch(word)
            assert found is not None, f"{structure.name}: {word!r} is no member"
            name, required = found["name"], bool(found["required"])
            shape = self._kind(found["type"] or name)
            structure.members[name] = Member(shape, required, name[0].lower() + name[1:])
            if required:
                structure.required.append(name)
        return structure

    def _kind(self, kind: str) -> Shape:
        found = KIND.fullmatch(kind)
        assert found is not None, f"{kind!r} is no type"
        low = int(found["low"] or 0)
        high = int(found["high"]) if found["high"] else None
        if found["element"]:
            return List(self.shape(found["element"]), low, high)
        if found["key"]:
            key = self.shape(found["key"])
            assert isinstance(key, String), f"{kind}: keys are text"
            return Map(key, self.shape(found["value"]), low, high)
        return self.shape(found["name"])
