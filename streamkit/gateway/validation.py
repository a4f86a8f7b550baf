"""Requests against their shapes: types first, then constraints.

A wrong type ends it at once (SerializationException). Constraints are collected over the whole request, ten at most,
and told together (ValidationException).
"""

from __future__ import annotations

import binascii
import math
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import cbor2

from streamkit.gateway.errors import ApiError, serialization, validation
from streamkit.gateway.shapes import (
    LONG_MAX,
    Blob,
    Boolean,
    Double,
    Integer,
    List,
    Map,
    Shape,
    String,
    Structure,
    Timestamp,
)
from streamkit.gateway.wire import Format

VIOLATIONS_MAX = 10
SHOWN_MAX = 1024               # characters of a value in a message
NESTED_MAX = 160               # shapes in shapes that a request may use; only models that contain themselves get near
Violation = tuple[str, str, str]


def checked(shape: Structure, value: Any, format: Format) -> dict[str, Any]:
    """The request, typed: blobs as bytes, timestamps as integer milliseconds, null and unknown members left out.

    Raises ApiError (SerializationException, ValidationException).
    """
    params: dict[str, Any] = typed(shape, value, format, "", 0)
    found = list(islice(violations(shape, params, ""), VIOLATIONS_MAX))
    if found:
        raise refusal(found)
    return params


def refusal(found: list[Violation]) -> ApiError:
    """found: path, value as it is shown (`shown`), and the constraint that it breaks; of each at least one."""
    plural = "s" if len(found) > 1 else ""
    told = "; ".join(
        f"Value {value} at '{path}' failed to satisfy constraint: {constraint}" for path, value, constraint in found
    )
    return validation(f"{len(found)} validation error{plural} detected: {told}")


# -- types -----------------------------------------------------------------------------------------------------------


def typed(shape: Shape, value: Any, format: Format, path: str, depth: int) -> Any:
    """depth: shapes around this one. Raises ApiError (SerializationException)."""
    if isinstance(shape, Structure):
        if type(value) is not dict:
            raise wrong_type(value, "a structure", path)
        if depth > NESTED_MAX:
            raise serialization(f"The request is nested too deeply at '{path[:SHOWN_MAX]}'.")
        made = {}
        for name, member in shape.members.items():
            item = value.get(name)
            if item is not None and item is not cbor2.undefined:
                inner = f"{path}.{member.label}" if path else member.label
                made[name] = typed(member.shape, item, format, inner, depth + 1)
        return made
    if isinstance(shape, List):
        if type(value) is not list:
            raise wrong_type(value, "a list", path)
        return [
            None if item is None else typed(shape.element, item, format, f"{path}.{number}.member", depth + 1)
            for number, item in enumerate(value, 1)
        ]
    if isinstance(shape, Map):
        if type(value) is not dict:
            raise wrong_type(value, "a map", path)
        if not all(type(key) is str for key in value):
            raise serialization(f"A key of the map at '{path}' is not text.")
        return {
            key: None if item is None else typed(shape.value, item, format, f"{path}.{key}.member", depth + 1)
            for key, item in value.items()
        }
    return SCALARS[type(shape)](shape, value, format, path)


def _string(shape: String, value: Any, format: Format, path: str) -> str:
    if type(value) is not str:
        raise wrong_type(value, "text", path)
    return value


def _boolean(shape: Boolean, value: Any, format: Format, path: str) -> bool:
    if type(value) is not bool:
        raise wrong_type(value, "a boolean", path)
    return value


def _integer(shape: Integer, value: Any, format: Format, path: str) -> int:
    """Fractions are cut, and what is beyond the type becomes the type's last number."""
    return max(-shape.limit - 1, min(shape.limit, _whole(_number(value, path), shape.limit)))


def _double(shape: Double, value: Any, format: Format, path: str) -> float:
    return float(_number(value, path))


def _timestamp(shape: Timestamp, value: Any, format: Format, path: str) -> int:
    number = _number(value, path)
    if format.seconds:
        number = number * 1000 if type(number) is int else round(number * 1000, 0)
    return max(-LONG_MAX - 1, min(LONG_MAX, _whole(number, LONG_MAX)))


def _blob(shape: Blob, value: Any, format: Format, path: str) -> bytes:
    if not format.text:
        if type(value) is not bytes:
            raise wrong_type(value, "a blob", path)
        return value
    if type(value) is not str:
        raise wrong_type(value, "a blob in base64", path)
    try:
        if len(value) % 4:             # the decoder puts up with padding behind what is whole
            raise ValueError
        return binascii.a2b_base64(value, strict_mode=True)
    except ValueError:
        raise serialization(f"The blob at '{path[:SHOWN_MAX]}' is not base64.") from None


def _number(value: Any, path: str) -> int | float:
    if type(value) is not int and (type(value) is not float or math.isnan(value)):
        raise wrong_type(value, "a number", path)
    number: int | float = value
    return number


def _whole(number: int | float, limit: int) -> int:
    if type(number) is float and math.isinf(number):
        return limit if number > 0 else -limit - 1
    return int(number)


SCALARS: dict[type, Callable[[Any, Any, Format, str], Any]] = {
    String: _string, Boolean: _boolean, Integer: _integer, Double: _double, Timestamp: _timestamp, Blob: _blob,
}  # fmt: skip
KINDS = {str: "text", bool: "a boolean", int: "a number", float: "a number", bytes: "a blob", list: "a list"}


def wrong_type(value: Any, wanted: str, path: str) -> ApiError:
    where = f" at '{path[:SHOWN_MAX]}'" if path else ""
    return serialization(f"Expected {wanted}{where} and found {KINDS.get(type(value), 'a structure')}.")


# -- constraints -----------------------------------------------------------------------------------------------------


def violations(shape: Shape, value: Any, path: str) -> Iterator[Violation]:
    """Of a typed value, in the order of the model, each before those inside it."""
    if value is None:
        yield path, "null", "Member must not be null"
    elif isinstance(shape, Structure):
        for name, member in shape.members.items():
            inner = f"{path}.{member.label}" if path else member.label
            if name in value:
                yield from violations(member.shape, value[name], inner)
            elif member.required:
                yield inner, "null", "Member must not be null"
    elif isinstance(shape, String):
        yield from _of_text(shape, value, path)
    elif isinstance(shape, Integer):
        if shape.high is not None and value > shape.high:
            yield path, shown(value), f"Member must have value less than or equal to {shape.high}"
        if shape.low is not None and value < shape.low:
            yield path, shown(value), f"Member must have value greater than or equal to {shape.low}"
    elif isinstance(shape, Blob | List | Map):
        yield from _of_length(shape, value, path)
        if isinstance(shape, List):
            for number, item in enumerate(value, 1):
                yield from violations(shape.element, item, f"{path}.{number}.member")
        elif isinstance(shape, Map):
            for key, item in value.items():
                yield from violations(shape.key, key, f"{path}.{shown_key(key)}.key")
                yield from violations(shape.value, item, f"{path}.{shown_key(key)}.member")


def _of_text(shape: String, value: str, path: str) -> Iterator[Violation]:
    if shape.enum and value not in shape.enum:
        yield path, shown(value), f"Member must satisfy enum value set: [{', '.join(shape.enum)}]"
    # What is too long is not matched: the bound keeps a pattern from taking long.
    if (shape.high is None or len(value) <= shape.high) and not shape.matches(value):
        yield path, shown(value), f"Member must satisfy regular expression pattern: {shape.pattern}"
    yield from _of_length(shape, value, path)


def _of_length(shape: String | Blob | List | Map, value: Any, path: str) -> Iterator[Violation]:
    if shape.high is not None and len(value) > shape.high:
        yield path, shown(value), f"Member must have length less than or equal to {shape.high}"
    if len(value) < shape.low:
        yield path, shown(value), f"Member must have length greater than or equal to {shape.low}"


def shown(value: Any) -> str:
    """In quotes, and cut when it is long."""
    told = _plain(value)
    return f"'{told[:SHOWN_MAX]}…'" if len(told) > SHOWN_MAX else f"'{told}'"


def shown_key(key: str) -> str:
    return key[:128]


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, list):
        return f"[{', '.join(_plain(item) for item in value[:SHOWN_MAX])}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}={_plain(item)}' for key, item in islice(value.items(), SHOWN_MAX))}}}"
    return "null" if value is None else str(value)
