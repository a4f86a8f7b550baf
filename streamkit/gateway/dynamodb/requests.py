"""Members of a request, taken out one by one with the checks of the service's model. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from streamkit.gateway.dynamodb.errors import DynamoError, invalid, malformed, unsupported

_decode = msgspec.json.Decoder().decode
_TABLE_NAME = re.compile(r"[a-zA-Z0-9_.-]+")
_TABLE_ARN = re.compile(r"arn:aws[^:]*:dynamodb:([^:]*):(\d{12}):table/([a-zA-Z0-9_.-]+)", re.ASCII)


def violation(member: str, value: object, constraint: str) -> DynamoError:
    """member: as the service writes it, small at the start."""
    shown = "null" if value is None else f"'{str(value)[:256]}'"
    words = f"Value {shown} at '{member}' failed to satisfy constraint: {constraint}"
    return invalid(f"1 validation error detected: {words}")


class Fields:
    """A structure of the request; members that are null are absent."""

    def __init__(self, held: Any, where: str = "") -> None:
        if not isinstance(held, dict):
            raise malformed(f"{where or 'The request'} must be a structure")
        self.held: dict[str, Any] = {name: value for name, value in held.items() if value is not None}
        self._where = where

    @classmethod
    def parse(cls, body: bytes) -> Fields:
        """Raises DynamoError: no JSON, or no structure."""
        try:
            return cls(_decode(body))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise malformed("The body is not JSON") from error

    def label(self, name: str) -> str:
        small = name[:1].lower() + name[1:]
        return f"{self._where}.{small}" if self._where else small

    def get(self, name: str) -> Any:
        """As it stands; None when absent."""
        return self.held.get(name)

    def has(self, name: str) -> bool:
        return name in self.held

    def need(self, name: str) -> Any:
        if name not in self.held:
            raise violation(self.label(name), None, "Member must not be null")
        return self.held[name]

    def text(self, name: str, default: str = "", *, low: int = 0, high: int | None = None) -> str:
        value = self.held.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise malformed(f"{name} must be a string")
        if len(value) < low:
            raise violation(self.label(name), value, f"Member must have length greater than or equal to {low}")
        if high is not None and len(value) > high:
            raise violation(self.label(name), value, f"Member must have length less than or equal to {high}")
        return value

    def choice(self, name: str, values: Sequence[str], default: str = "") -> str:
        value = self.text(name, default)
        if name in self.held and value not in values:
            raise violation(
                self.label(name), value, f"Member must satisfy enum value set: [{', '.join(values)}]"
            )
        return value

    def integer(self, name: str, default: int, *, low: int, high: int | None = None) -> int:
        value = self.held.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise malformed(f"{name} must be a number")
        number = int(max(min(value, 2.0**62), -(2.0**62))) if isinstance(value, float) else value
        if number < low:
            raise violation(self.label(name), number, f"Member must have value greater than or equal to {low}")
        if high is not None and number > high:
            raise violation(self.label(name), number, f"Member must have value less than or equal to {high}")
        return number

    def boolean(self, name: str, default: bool = False) -> bool:
        value = self.held.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise malformed(f"{name} must be true or false")
        return value

    def mapping(self, name: str) -> dict[str, Any] | None:
        value = self.held.get(name)
        if value is not None and not isinstance(value, dict):
            raise malformed(f"{name} must be a map")
        return value

    def elements(self, name: str, *, low: int = 0, high: int | None = None) -> list[Any] | None:
        value = self.held.get(name)
        if value is None:
            return None
        if not isinstance(value, list):
            raise malformed(f"{name} must be a list")
        if len(value) < low:
            raise violation(self.label(name), value, f"Member must have length greater than or equal to {low}")
        if high is not None and len(value) > high:
            raise violation(self.label(name), value, f"Member must have length less than or equal to {high}")
        return value

    def structure(self, name: str) -> Fields | None:
        value = self.held.get(name)
        return None if value is None else Fields(value, self.label(name))

    def structures(self, name: str, *, low: int = 0, high: int | None = None) -> list[Fields]:
        """The structures of a list, which may be absent."""
        found = self.elements(name, low=low, high=high) or []
        return [Fields(each, f"{self.label(name)}.{at}.member") for at, each in enumerate(found, 1)]

    def table(self, name: str = "TableName") -> str:
        """The name of a table, perhaps out of its ARN."""
        return table_name(self.need(name), self.label(name))

    def refuse(self, *names: str) -> None:
        """Members that only a whole DynamoDB understands; empty or false ones do no harm."""
        for name in names:
            if self.held.get(name) not in (None, False, [], {}):
                raise unsupported(name)


def table_name(wire: Any, label: str) -> str:
    """Raises DynamoError."""
    if not isinstance(wire, str):
        raise malformed(f"{label} must be a string")
    given: str = wire
    if (arn := _TABLE_ARN.fullmatch(given)) is not None:
        given = str(arn[3])
    if not given:
        raise violation(label, given, "Member must have length greater than or equal to 1")
    if not 3 <= len(given) <= 255:
        raise invalid("TableName must be at least 3 characters long and at most 255 characters long")
    if not _TABLE_NAME.fullmatch(given):
        raise violation(label, given, "Member must satisfy regular expression pattern: [a-zA-Z0-9_.-]+")
    return given
