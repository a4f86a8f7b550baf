"""Document paths: a.b[0].c, in an item. Pure.

A path is a name, then names (into a map) and positions (into a list). Legacy parameters name top-level attributes only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from streamkit.gateway.dynamodb.errors import DynamoError, invalid
from streamkit.gateway.dynamodb.values import Item, Value


@dataclass(frozen=True, slots=True)
class Path:
    parts: tuple[str | int, ...]           # the first one is a name

    @property
    def name(self) -> str:
        """The top-level attribute."""
        first = self.parts[0]
        assert isinstance(first, str), "a path begins with a name"
        return first

    def __str__(self) -> str:
        return "[" + ", ".join(f"[{part}]" if isinstance(part, int) else part for part in self.parts) + "]"


def find(path: Path, item: Item) -> Value | None:
    """The value there, which belongs to the item; None when there is none."""
    value = item.get(path.name)
    for part in path.parts[1:]:
        if value is None:
            return None
        if isinstance(part, int):
            held = value.get("L")
            value = held[part] if held is not None and part < len(held) else None
        else:
            value = value.get("M", {}).get(part)
    return value


def _misfit() -> DynamoError:
    return invalid("The document path provided in the update expression is invalid for update")


def _holder(path: Path, item: Item) -> Any:
    """The map or list that the last part of the path is in. Raises DynamoError when there is none."""
    if len(path.parts) == 1:
        return item
    value = find(Path(path.parts[:-1]), item)
    held = None if value is None else value.get("L" if isinstance(path.parts[-1], int) else "M")
    if held is None:
        raise _misfit()
    return held


def put(path: Path, item: Item, value: Value) -> None:
    """Changes the item. A position past the end of a list appends. Raises DynamoError."""
    held, last = _holder(path, item), path.parts[-1]
    if isinstance(last, int) and last >= len(held):
        held.append(value)
    else:
        held[last] = value


def remove(path: Path, item: Item) -> None:
    """Changes the item; nothing happens when nothing is there. Raises DynamoError: no map or list to take it from."""
    held, last = _holder(path, item), path.parts[-1]
    if isinstance(last, int):
        if last < len(held):
            del held[last]
    else:
        held.pop(last, None)


def clashes(paths: Iterable[Path]) -> tuple[str, Path, Path] | None:
    """The first two that cannot stand in one expression and why: "overlap" or "conflict"; None when all can."""
    seen: list[Path] = []
    for path in paths:
        for other in seen:
            shorter = min(len(path.parts), len(other.parts))
            same = 0
            while same < shorter and path.parts[same] == other.parts[same]:
                same += 1
            if same == shorter:
                return "overlap", other, path
            if same and isinstance(path.parts[same], int) != isinstance(other.parts[same], int):
                return "conflict", other, path
        seen.append(path)
    return None


def project(paths: Iterable[Path], item: Item) -> Item:
    """What lies at the paths, in an item of its own. Elements of lists move up to the front, in their order."""
    tree: dict[str | int, Any] = {}
    for path in paths:
        branch = tree
        for part in path.parts:
            branch = branch.setdefault(part, {})
    found: Item = {}
    for name, branch in tree.items():
        if isinstance(name, str) and name in item and (value := _cut(branch, item[name])) is not None:
            found[name] = value
    return found


def _cut(tree: dict[str | int, Any], value: Value) -> Value | None:
    """The part of a value that a tree of parts names; an empty tree names all of it."""
    if not tree:
        return value
    positions = sorted(part for part in tree if isinstance(part, int))
    if positions and "L" in value:
        kept = [_cut(tree[at], value["L"][at]) for at in positions if at < len(value["L"])]
        elements = [each for each in kept if each is not None]
        return {"L": elements} if elements else None
    if "M" in value:
        held = value["M"]
        inner = {
            part: cut for part, branch in tree.items()
            if isinstance(part, str) and part in held and (cut := _cut(branch, held[part])) is not None
        }  # fmt: skip
        return {"M": inner} if inner else None
    return None
