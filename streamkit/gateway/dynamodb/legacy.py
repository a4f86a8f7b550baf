"""The parameters from before expressions: Expected, AttributeUpdates, KeyConditions, QueryFilter, ScanFilter. Pure.

They become the same trees that expressions do, so one evaluator serves both. Nearly all lease traffic of the KCL comes
this way.
"""

from __future__ import annotations

from typing import Any

from streamkit.gateway.dynamodb.errors import invalid, invalid_value
from streamkit.gateway.dynamodb.expressions import (
    Among,
    Between,
    Change,
    Compare,
    Condition,
    Constant,
    Every,
    Negated,
    Some,
    Test,
)
from streamkit.gateway.dynamodb.paths import Path
from streamkit.gateway.dynamodb.requests import Fields
from streamkit.gateway.dynamodb.values import SETS, TYPE_NAMES, Value, compare, kind_of, parse_value, text_of

_SIGNS = {"EQ": "=", "NE": "<>", "LE": "<=", "LT": "<", "GE": ">=", "GT": ">"}
OPERATORS = (*_SIGNS, "NOT_NULL", "NULL", "CONTAINS", "NOT_CONTAINS", "BEGINS_WITH", "IN", "BETWEEN")
_SCALARS = ("S", "N", "B")
_COUNTS = {"NULL": (0, 0), "NOT_NULL": (0, 0), "IN": (1, 100), "BETWEEN": (2, 2)}      # of arguments; others: one


def joined(conditions: list[Condition], operator: str) -> Condition | None:
    """operator: "AND" or "OR"; None for no conditions."""
    if not conditions:
        return None
    if len(conditions) == 1:
        return conditions[0]
    return Some(tuple(conditions)) if operator == "OR" else Every(tuple(conditions))


def conditions_of(fields: Fields, member: str) -> dict[str, Condition]:
    """The conditions of KeyConditions, QueryFilter, ScanFilter by attribute. Raises DynamoError."""
    found: dict[str, Condition] = {}
    for name, given in (fields.mapping(member) or {}).items():
        entry = Fields(given, f"{fields.label(member)}.{name}.member")
        entry.need("ComparisonOperator")
        found[text_of(name)] = _compared(name, entry)
    return found


def expected(fields: Fields) -> Condition | None:
    """What Expected and ConditionalOperator ask for; None when nothing. Raises DynamoError."""
    found: list[Condition] = []
    for name, given in (fields.mapping("Expected") or {}).items():
        entry = Fields(given, f"expected.{name}.member")
        if entry.has("ComparisonOperator"):
            if entry.has("Exists"):
                raise invalid_value(f"Exists and ComparisonOperator cannot be used together for Attribute: {name}")
            found.append(_compared(text_of(name), entry))
        else:
            found.append(_existing(text_of(name), entry))
    return joined(found, operator_of(fields, bool(found)))


def operator_of(fields: Fields, used: bool) -> str:
    """ConditionalOperator; used: there is something that it could join."""
    operator = fields.choice("ConditionalOperator", ("AND", "OR"), "AND")
    if fields.has("ConditionalOperator") and not used:
        raise invalid("ConditionalOperator cannot be used without Filter or Expected")
    return operator


def _existing(name: str, entry: Fields) -> Condition:
    if entry.has("AttributeValueList"):
        raise invalid_value(f"AttributeValueList can only be used with a ComparisonOperator for Attribute: {name}")
    path = Path((name,))
    if entry.boolean("Exists", True):
        if not entry.has("Value"):
            shown = "true" if entry.has("Exists") else "null"
            raise invalid_value(f"Value must be provided when Exists is {shown} for Attribute: {name}")
        return Compare("=", path, Constant(parse_value(entry.get("Value"))))
    if entry.has("Value"):
        raise invalid_value(f"Value cannot be used when Exists is false for Attribute: {name}")
    return Test("attribute_not_exists", path)


def _compared(name: str, entry: Fields) -> Condition:
    operator = entry.choice("ComparisonOperator", OPERATORS)
    given: list[Any] = entry.elements("AttributeValueList") or []
    if entry.has("Value"):
        if given:
            raise invalid_value(f"Value and AttributeValueList cannot be used together for Attribute: {name}")
        given = [entry.get("Value")]
    values = [parse_value(each) for each in given]
    low, high = _COUNTS.get(operator, (1, 1))
    if not low <= len(values) <= high:
        raise invalid_value(f"Invalid number of argument(s) for the {operator} ComparisonOperator")
    _check_kinds(operator, values)
    path = Path((name,))
    constants = [Constant(value) for value in values]
    if operator in _SIGNS:
        return Compare(_SIGNS[operator], path, constants[0])
    match operator:
        case "NULL":
            return Test("attribute_not_exists", path)
        case "NOT_NULL":
            return Test("attribute_exists", path)
        case "CONTAINS":
            return Test("contains", path, constants[0])
        case "NOT_CONTAINS":
            return Negated(Test("contains", path, constants[0]))
        case "BEGINS_WITH":
            return Test("begins_with", path, constants[0])
        case "IN":
            return Among(path, tuple(constants))
    return Between(path, constants[0], constants[1])


def _check_kinds(operator: str, values: list[Value]) -> None:
    allowed: tuple[str, ...] | None = None
    if operator in ("LE", "LT", "GE", "GT", "BETWEEN", "IN", "CONTAINS", "NOT_CONTAINS"):
        allowed = _SCALARS
    elif operator == "BEGINS_WITH":
        allowed = ("S", "B")
    for value in values:
        kind = kind_of(value)
        if allowed is not None and kind not in allowed and not (kind in ("BOOL", "NULL") and "CONTAINS" in operator):
            raise invalid_value(f"ComparisonOperator {operator} is not valid for {kind} AttributeValue type")
    if operator == "BETWEEN":
        order = compare(values[0], values[1])
        if order is None:
            raise invalid_value("AttributeValues inside AttributeValueList must be of same type")
        if order > 0:
            raise invalid(
                "The BETWEEN condition was provided a range where the lower bound is greater than the upper bound"
            )


def attribute_updates(fields: Fields) -> tuple[Change, ...]:
    """Raises DynamoError. No changes: the item is only made when it is missing."""
    changes: list[Change] = []
    for name, given in (fields.mapping("AttributeUpdates") or {}).items():
        entry = Fields(given, f"attributeUpdates.{name}.member")
        action = entry.choice("Action", ("ADD", "PUT", "DELETE"), "PUT")
        path = Path((text_of(name),))
        if not entry.has("Value"):
            if action != "DELETE":
                raise invalid_value(f"Only DELETE action is allowed when no attribute value is specified: {name}")
            changes.append(Change("remove", path))
            continue
        value = parse_value(entry.get("Value"))
        kind = kind_of(value)
        if action == "PUT":
            changes.append(Change("set", path, Constant(value)))
        elif action == "ADD":
            if kind not in ("N", "L", *SETS):
                raise invalid_value(f"ADD action is not supported for the type {TYPE_NAMES[kind]}")
            changes.append(Change("add", path, Constant(value)))
        else:
            if kind not in SETS:
                raise invalid_value(f"DELETE action with value is not supported for the type {TYPE_NAMES[kind]}")
            changes.append(Change("delete", path, Constant(value)))
    return tuple(changes)
