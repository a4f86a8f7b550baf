"""An item changed by an update. Pure: the old item is never touched.

Every value that a change needs is read from the item as it was, whatever the order in which changes are written.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

from streamkit.gateway.dynamodb.errors import DynamoError, invalid
from streamkit.gateway.dynamodb.expressions import Change, Constant, Joined, Otherwise, Source, Sum
from streamkit.gateway.dynamodb.paths import Path, find, put, remove
from streamkit.gateway.dynamodb.values import SETS, Item, Value, add_numbers, kind_of, sort_set


def _wrong_type() -> DynamoError:
    return invalid("An operand in the update expression has an incorrect data type")


def apply(changes: Sequence[Change], item: Item) -> Item:
    """The item afterwards. Raises DynamoError: a path or a type that does not fit, a number out of range."""
    changed = copy.deepcopy(item)
    for change in changes:
        if change.action == "set":
            assert change.source is not None, "a set has a source"
            put(change.path, changed, copy.deepcopy(_read(change.source, item)))
        elif change.action == "add":
            put(change.path, changed, _added(find(change.path, item), _constant(change)))
        elif change.action == "delete":
            left = _without(find(change.path, item), _constant(change))
            if left is None:
                remove(change.path, changed)
            else:
                put(change.path, changed, left)
    # Last and from behind, because an element that goes moves those after it.
    removed = [change.path for change in changes if change.action == "remove"]
    for path in sorted(removed, key=_position, reverse=True):
        remove(path, changed)
    return changed


def _position(path: Path) -> list[tuple[int, int, str]]:
    return [(0, part, "") if isinstance(part, int) else (1, 0, part) for part in path.parts]


def _constant(change: Change) -> Value:
    assert isinstance(change.source, Constant), "add and delete have a constant"
    return change.source.value


def _read(source: Source, item: Item) -> Value:
    match source:
        case Constant(value):
            return value
        case Path():
            if (found := find(source, item)) is None:
                raise invalid("The provided expression refers to an attribute that does not exist in the item")
            return found
        case Otherwise(path, operand):
            found = find(path, item)
            return _read(operand, item) if found is None else found
        case Joined(left, right):
            one, two = _read(left, item), _read(right, item)
            if "L" not in one or "L" not in two:
                raise _wrong_type()
            return {"L": one["L"] + two["L"]}
        case Sum(left, right, subtract):
            one, two = _read(left, item), _read(right, item)
            if "N" not in one or "N" not in two:
                raise _wrong_type()
            return {"N": add_numbers(one["N"], two["N"], subtract=subtract)}


def _added(old: Value | None, extra: Value) -> Value:
    """ADD: a number to a number, members to a set; of legacy updates also elements to a list."""
    kind = kind_of(extra)
    if old is None:
        return copy.deepcopy(extra)
    if kind not in old:
        raise _wrong_type()
    if kind == "N":
        return {"N": add_numbers(old["N"], extra["N"])}
    if kind == "L":
        return {"L": copy.deepcopy(old["L"] + extra["L"])}
    return {kind: sort_set(kind, list({*old[kind], *extra[kind]}))}


def _without(old: Value | None, gone: Value) -> Value | None:
    """DELETE: the set that is left; None when nothing is, or nothing was there."""
    kind = kind_of(gone)
    if old is None:
        return None
    if kind not in old or kind not in SETS:
        raise _wrong_type()
    left = [member for member in old[kind] if member not in set(gone[kind])]
    return {kind: left} if left else None


def touched(changes: Iterable[Change]) -> tuple[Path, ...]:
    return tuple(change.path for change in changes)
