"""Does a condition hold for an item? Pure, and never an error: what cannot be compared does not hold."""

from __future__ import annotations

import base64

from streamkit.gateway.dynamodb.expressions import (
    Among,
    Between,
    Compare,
    Condition,
    Constant,
    Every,
    Negated,
    Operand,
    Size,
    Some,
    Test,
)
from streamkit.gateway.dynamodb.paths import Path, find
from streamkit.gateway.dynamodb.values import SETS, Item, Value, compare, kind_of


def holds(condition: Condition, item: Item) -> bool:
    """item: {} when there is none."""
    match condition:
        case Every(parts):
            return all(holds(part, item) for part in parts)
        case Some(parts):
            return any(holds(part, item) for part in parts)
        case Negated(part):
            return not holds(part, item)
        case Compare(operator, left, right):
            return _compares(operator, _value(left, item), _value(right, item))
        case Between(subject, low, high):
            value = _value(subject, item)
            return _compares(">=", value, _value(low, item)) and _compares("<=", value, _value(high, item))
        case Among(subject, choices):
            value = _value(subject, item)
            return value is not None and any(value == _value(choice, item) for choice in choices)
        case Test():
            return _tests(condition, item)


def _value(operand: Operand, item: Item) -> Value | None:
    if isinstance(operand, Constant):
        return operand.value
    if isinstance(operand, Path):
        return find(operand, item)
    return _size(operand, item)


def _size(operand: Size, item: Item) -> Value | None:
    value = find(operand.path, item)
    if value is None:
        return None
    kind = kind_of(value)
    content = value[kind]
    if kind in ("S", *SETS, "L", "M"):
        return {"N": str(len(content))}
    if kind == "B":
        return {"N": str(len(base64.b64decode(content)))}
    return None


def _compares(operator: str, left: Value | None, right: Value | None) -> bool:
    if operator == "=":
        return left is not None and left == right
    if operator == "<>":
        return left is None or left != right           # what is not there differs from everything
    if left is None or right is None or (order := compare(left, right)) is None:
        return False
    return {"<": order < 0, "<=": order <= 0, ">": order > 0, ">=": order >= 0}[operator]


def _tests(test: Test, item: Item) -> bool:
    value = _value(test.subject, item)
    if test.function == "attribute_exists":
        return value is not None
    if test.function == "attribute_not_exists":
        return value is None
    assert test.argument is not None, "the parser has counted the operands"
    argument = _value(test.argument, item)
    if value is None or argument is None:
        return False
    if test.function == "attribute_type":
        return argument.get("S") == kind_of(value)
    return _begins(value, argument) if test.function == "begins_with" else _contains(value, argument)


def _begins(value: Value, start: Value) -> bool:
    if "S" in value and "S" in start:
        return str(value["S"]).startswith(start["S"])
    if "B" in value and "B" in start:
        return base64.b64decode(value["B"]).startswith(base64.b64decode(start["B"]))
    return False


def _contains(value: Value, wanted: Value) -> bool:
    kind = kind_of(value)
    if kind == "L":
        return wanted in value["L"]
    if kind in SETS:
        return wanted.get(SETS[kind]) in value[kind]
    if kind == "S" and "S" in wanted:
        return wanted["S"] in value["S"]
    if kind == "B" and "B" in wanted:
        return base64.b64decode(wanted["B"]) in base64.b64decode(value["B"])
    return False


