"""Attribute values: checked, brought to one form, compared, measured.

A value is kept as it travels, a dict of one type letter: {"S": "a"}, {"N": "1"}, {"SS": ["a", "b"]}. `parse_value`
brings numbers to plain decimals without spare zeros, base64 to its canonical text and sets into order; after that two
values are equal exactly when their dicts are, and can be written down as they stand.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from decimal import MAX_EMAX, MIN_EMIN, ROUND_HALF_UP, Context, Decimal
from typing import Any

from streamkit.gateway.dynamodb.errors import DynamoError, invalid, invalid_value, malformed

Value = dict[str, Any]
Item = dict[str, Value]

ITEM_BYTES_MAX = 400 * 1024
NESTING_MAX = 32
NAME_BYTES_MAX = 64 * 1024 - 1
TYPES = ("S", "N", "B", "SS", "NS", "BS", "M", "L", "BOOL", "NULL")
TYPE_NAMES = {
    "S": "STRING", "N": "NUMBER", "B": "BINARY", "SS": "STRING_SET", "NS": "NUMBER_SET", "BS": "BINARY_SET", "M": "MAP",
    "L": "LIST", "BOOL": "BOOLEAN", "NULL": "NULL",
}  # fmt: skip
SETS = {"SS": "S", "NS": "N", "BS": "B"}
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,9})?")
_NUMBER_LENGTH_MAX = 1_024
_DIGITS_MAX = 38
_EXACT = Context(prec=_NUMBER_LENGTH_MAX + 8, Emax=MAX_EMAX, Emin=MIN_EMIN)
_ARITHMETIC = Context(prec=_DIGITS_MAX, rounding=ROUND_HALF_UP, Emax=MAX_EMAX, Emin=MIN_EMIN)


def kind_of(value: Value) -> str:
    """The type letters of a checked value."""
    return next(iter(value))


def parse_item(wire: Any, member: str) -> Item:
    """A map of attributes as a request carries it. Raises DynamoError."""
    if not isinstance(wire, dict):
        raise malformed(f"{member} must be a map")
    item: Item = {}
    for name, value in wire.items():
        if not text_of(name):
            raise invalid_value("An attribute name must not be empty")
        if text_size(name) > NAME_BYTES_MAX:
            raise invalid_value(f"An attribute name must not exceed {NAME_BYTES_MAX} bytes")
        item[name] = parse_value(value)
    return item


def parse_value(wire: Any, depth: int = 0) -> Value:
    """Raises DynamoError: SerializationException for a wrong JSON type, else ValidationException."""
    if not isinstance(wire, dict):
        raise malformed("An attribute value must be a structure")
    given = [(kind, value) for kind, value in wire.items() if value is not None]
    if not given:
        raise invalid("Supplied AttributeValue is empty, must contain exactly one of the supported datatypes")
    if len(given) > 1:
        raise invalid(
            "Supplied AttributeValue has more than one datatypes set, "
            "must contain exactly one of the supported datatypes"
        )
    if depth > NESTING_MAX:
        raise _too_deep()
    kind, value = given[0]
    if kind in ("S", "N", "B"):
        return {kind: _scalar(kind, value)}
    if kind in SETS:
        return {kind: _set(kind, value)}
    if kind == "M":
        if not isinstance(value, dict):
            raise malformed("M must be a map")
        return {kind: {text_of(name): parse_value(inner, depth + 1) for name, inner in value.items()}}
    if kind == "L":
        if not isinstance(value, list):
            raise malformed("L must be a list")
        return {kind: [parse_value(inner, depth + 1) for inner in value]}
    if kind == "BOOL":
        if not isinstance(value, bool):
            raise malformed("BOOL must be true or false")
        return {kind: value}
    if kind == "NULL":
        if not isinstance(value, bool):
            raise malformed("NULL must be true")
        if not value:
            raise invalid_value("Null attribute value types must have the value of true")
        return {kind: True}
    raise invalid("Supplied AttributeValue is empty, must contain exactly one of the supported datatypes")


def _too_deep() -> DynamoError:
    return invalid(
        f"Nesting Levels have exceeded supported limits: Attributes nested more than {NESTING_MAX} levels deep"
    )


def _check_depth(value: Value, depth: int) -> None:
    if depth > NESTING_MAX:
        raise _too_deep()
    for inner in value.get("L", ()):
        _check_depth(inner, depth + 1)
    for inner in value.get("M", {}).values():
        _check_depth(inner, depth + 1)


def text_of(value: Any) -> str:
    """A string that UTF-8 can carry. Raises DynamoError."""
    if not isinstance(value, str):
        raise malformed("A string was expected")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise malformed("A string holds half of a surrogate pair") from error
    return value


def text_size(text: str) -> int:
    """Bytes in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def _scalar(kind: str, value: Any) -> str:
    text = text_of(value)
    if kind == "N":
        return number_text(parse_number(text))
    return _base64(text) if kind == "B" else text


def _base64(text: str) -> str:
    try:
        return base64.b64encode(base64.b64decode(text, validate=True)).decode()
    except (binascii.Error, ValueError) as error:
        raise malformed("A binary value must be base64") from error


def _set(kind: str, value: Any) -> list[str]:
    if not isinstance(value, list):
        raise malformed(f"{kind} must be a list")
    if not value:
        words = {"SS": "An string set  may not be empty", "NS": "An number set  may not be empty"}
        raise invalid_value(words.get(kind, "Binary sets should not be empty"))
    found = [_scalar(SETS[kind], each) for each in value]
    if len(set(found)) != len(found):
        raise invalid_value(f"Input collection [{', '.join(str(each) for each in value)}] contains duplicates.")
    return sort_set(kind, found)


def sort_set(kind: str, members: list[str]) -> list[str]:
    """The order in which a set is kept: that of its members as values."""
    element = SETS[kind]
    return sorted(members, key=lambda member: _order(element, member))


def parse_number(text: str) -> Decimal:
    """Raises DynamoError: not a number, more than 38 digits, or out of range."""
    if len(text) > _NUMBER_LENGTH_MAX or not _NUMBER.fullmatch(text):
        shown = text if len(text) <= 64 else text[:64] + "…"
        raise invalid(f"The parameter cannot be converted to a numeric value: {shown}")
    number = _EXACT.create_decimal(text)
    return _fitting(number)


def _fitting(number: Decimal) -> Decimal:
    if not number:
        return Decimal(0)
    number = number.normalize(_EXACT)
    if len(number.as_tuple().digits) > _DIGITS_MAX:
        raise invalid("Attempting to store more than 38 significant digits in a Number")
    if number.adjusted() > 125:
        raise invalid("Number overflow. Attempting to store a number with magnitude larger than supported range")
    if number.adjusted() < -130:
        raise invalid("Number underflow. Attempting to store a number with magnitude smaller than supported range")
    return number


def number_text(number: Decimal) -> str:
    """Plain decimals, no exponent: what the service answers with."""
    return format(number, "f")


def add_numbers(left: str, right: str, *, subtract: bool = False) -> str:
    """Of two numbers' texts, rounded to 38 digits. Raises DynamoError: out of range."""
    work = _ARITHMETIC.subtract if subtract else _ARITHMETIC.add
    return number_text(_fitting(work(Decimal(left), Decimal(right))))


def _order(kind: str, content: str) -> Any:
    if kind == "N":
        return Decimal(content)
    return base64.b64decode(content) if kind == "B" else content.encode()


def sort_key(value: Value) -> Any:
    """What values of one scalar type are ordered by."""
    kind = kind_of(value)
    return _order(kind, value[kind])


def compare(left: Value, right: Value) -> int | None:
    """Less than, equal to or greater than 0; None when the two have no order."""
    kind = kind_of(left)
    if kind != kind_of(right) or kind not in ("S", "N", "B"):
        return None
    one, other = _order(kind, left[kind]), _order(kind, right[kind])
    return int(one > other) - int(one < other)


def value_size(value: Value) -> int:
    """Bytes as the service counts them."""
    kind = kind_of(value)
    content = value[kind]
    if kind in SETS:
        return sum(_scalar_size(SETS[kind], member) for member in content)
    if kind == "L":
        return 3 + sum(1 + value_size(each) for each in content)
    if kind == "M":
        return 3 + sum(1 + text_size(name) + value_size(each) for name, each in content.items())
    return 1 if kind in ("BOOL", "NULL") else _scalar_size(kind, content)


def _scalar_size(kind: str, content: str) -> int:
    if kind == "N":
        return 2 + len(content.strip("-").replace(".", "").strip("0")) // 2
    if kind == "B":
        return len(content) // 4 * 3 - content.count("=")
    return text_size(content)


def item_size(item: Mapping[str, Value]) -> int:
    return sum(text_size(name) + value_size(value) for name, value in item.items())


def check_item_size(item: Item, *, updated: bool = False) -> None:
    """Raises DynamoError. updated: the item has grown by an update, which the service words differently."""
    for value in item.values():
        _check_depth(value, 0)
    if item_size(item) > ITEM_BYTES_MAX:
        raise invalid(
            "Item size to update has exceeded the maximum allowed size" if updated
            else "Item size has exceeded the maximum allowed size"
        )  # fmt: skip
