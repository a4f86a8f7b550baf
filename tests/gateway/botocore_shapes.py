"""Values for botocore's shapes: such as its model allows, and such as it does not."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import botocore.session
from hypothesis import strategies as st

ORACLE = botocore.session.get_session().get_service_model("kinesis")
OPERATIONS = sorted(ORACLE.operation_names)
ITEMS_MAX = 3                  # of a list or map that may be longer
LENGTH_MAX = 5_000             # of text that is made too long on purpose


def valid(shape: Any) -> st.SearchStrategy[Any]:
    """Typed as inside the gateway: blobs are bytes, timestamps integer milliseconds."""
    return getattr(Values, shape.type_name)(shape)


class Values:
    """One strategy for each kind of shape, named as botocore names the kind."""

    @staticmethod
    def structure(shape: Any) -> st.SearchStrategy[dict[str, Any]]:
        members = {name: valid(member) for name, member in shape.members.items()}
        required = {name: members.pop(name) for name in shape.required_members}
        return st.fixed_dictionaries(required, optional=members)

    @staticmethod
    def list(shape: Any) -> st.SearchStrategy[Any]:
        low, high = _bounds(shape)
        return st.lists(valid(shape.member), min_size=low, max_size=min(max(ITEMS_MAX, low), high or ITEMS_MAX))

    @staticmethod
    def map(shape: Any) -> st.SearchStrategy[Any]:
        low, _ = _bounds(shape)
        return st.dictionaries(valid(shape.key), valid(shape.value), min_size=low, max_size=ITEMS_MAX)

    @staticmethod
    def string(shape: Any) -> st.SearchStrategy[str]:
        low, high = _bounds(shape)
        if shape.enum:
            return st.sampled_from(shape.enum)
        if pattern := shape.metadata.get("pattern"):
            return matching(pattern, low, high or 40)
        return st.text(min_size=low, max_size=min(high or 20, low + 20))

    @staticmethod
    def integer(shape: Any) -> st.SearchStrategy[int]:
        facts = shape.metadata
        return st.integers(facts.get("min", -(1 << 31)), facts.get("max", (1 << 31) - 1))

    @staticmethod
    def long(shape: Any) -> st.SearchStrategy[int]:
        facts = shape.metadata
        return st.integers(facts.get("min", -(1 << 63)), facts.get("max", (1 << 63) - 1))

    @staticmethod
    def boolean(shape: Any) -> st.SearchStrategy[bool]:
        return st.booleans()

    @staticmethod
    def blob(shape: Any) -> st.SearchStrategy[bytes]:
        return st.binary(max_size=30)

    @staticmethod
    def timestamp(shape: Any) -> st.SearchStrategy[int]:
        return st.integers(0, 4_102_444_800_000)               # to the year 2100


NAMES = re.compile(r"\^?(\[[^]]+\])[+*]\$?")
ARN = "arn:aws{}:kinesis:{}:123456789012:{}"
EXAMPLES = (
    "0", "1", "340282366920938463463374607431768211455", "123456789012", "abcdefghij0123456789-abc",
    *(ARN.format(part, region, name) for part in ("", "-cn") for region in ("us-east-1", "") for name in (
        "stream/a", "stream/a.b-c_d", "stream/a/consumer/b:1", "channel/1", "queue/1-2", "xstream/é",
    )),
    "arn:aws:s3:::some.bucket", "arn:aws:iam::123456789012:role/a/b",
    "arn:aws:s3tables:eu-west-1:123456789012:bucket/abc",
    "arn:aws:glue:eu-west-1:123456789012:schema/a/b",
)  # fmt: skip


@cache
def matching(pattern: str, low: int, high: int) -> st.SearchStrategy[str]:
    """Text that the whole pattern matches: of its characters where it names them, else one of the examples."""
    if found := NAMES.fullmatch(pattern):
        one = re.compile(found[1])
        alphabet = [chr(code) for code in range(33, 127) if one.match(chr(code))]
        return st.text(alphabet, min_size=low, max_size=min(high, 30))
    whole = re.compile(pattern, re.ASCII)
    examples = [text for text in EXAMPLES if low <= len(text) <= high and whole.fullmatch(text)]
    assert examples, pattern
    return st.sampled_from(examples)


def _bounds(shape: Any) -> tuple[int, int | None]:
    return shape.metadata.get("min", 0), shape.metadata.get("max")


# -- on the wire -----------------------------------------------------------------------------------------------------


def written(shape: Any, value: Any, *, cbor: bool) -> Any:
    """A typed value as a client puts it into JSON (base64, seconds) or CBOR (bytes, milliseconds)."""
    kind = shape.type_name
    if kind == "structure":
        return {name: written(shape.members[name], item, cbor=cbor) for name, item in value.items()}
    if kind == "list":
        return [written(shape.member, item, cbor=cbor) for item in value]
    if kind == "map":
        return {key: written(shape.value, item, cbor=cbor) for key, item in value.items()}
    if kind == "blob":
        return value if cbor else base64.b64encode(value).decode()
    if kind == "timestamp":
        return value if cbor else value / 1000
    return value


# -- what is not allowed ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Damage:
    """At `path` into a value on the wire stands `value` instead, or nothing when `gone`; that is refused as `name`."""

    path: tuple[Any, ...]
    value: Any
    name: str
    told: str = ""
    gone: bool = False

    def done_to(self, whole: Any, path: tuple[Any, ...] | None = None) -> Any:
        path = self.path if path is None else path
        if not path:
            return self.value
        copy = whole.copy()
        if len(path) == 1 and self.gone:
            del copy[path[0]]
        else:
            copy[path[0]] = self.done_to(whole[path[0]], path[1:])
        return copy


WRONG_TYPES: dict[str, tuple[Any, ...]] = {
    "structure": ("text", 1, [1], True), "list": ("text", 1, {"a": 1}, False), "map": ("text", 1, [1], True),
    "string": (1, 1.5, True, ["a"], {"a": "b"}), "integer": ("1", True, [1], {}), "long": ("1", False, [1], {}),
    "boolean": ("true", 1, 0, [True]), "blob": (1, True, [1], {}), "timestamp": ("now", True, [1], {}),
}  # fmt: skip


def damages(shape: Any, value: Any, path: tuple[Any, ...] = ()) -> Iterator[Damage]:
    """All that can be done to a valid value on the wire, one thing at a time."""
    for wrong in WRONG_TYPES[shape.type_name]:
        yield Damage(path, wrong, "SerializationException")
    for wrong, told in _outside(shape, value):
        yield Damage(path, wrong, "ValidationException", told)
    if shape.type_name == "structure":
        for name in shape.required_members:
            yield Damage((*path, name), None, "ValidationException", "must not be null", gone=True)
            yield Damage((*path, name), None, "ValidationException", "must not be null")
        for name, item in value.items():
            yield from damages(shape.members[name], item, (*path, name))
    elif shape.type_name == "list":
        for number, item in enumerate(value):
            yield Damage((*path, number), None, "ValidationException", "must not be null")
            yield from damages(shape.member, item, (*path, number))
    elif shape.type_name == "map":
        for key, item in value.items():
            yield from damages(shape.value, item, (*path, key))


def _outside(shape: Any, value: Any) -> Iterator[tuple[Any, str]]:
    facts, kind = shape.metadata, shape.type_name
    low, high = facts.get("min"), facts.get("max")
    if kind in ("integer", "long"):
        if low is not None:
            yield low - 1, f"value greater than or equal to {low}"
        if high is not None:
            yield high + 1, f"value less than or equal to {high}"
        return
    if kind == "string":
        if shape.enum:
            yield "SOMETHING_ELSE", f"enum value set: [{', '.join(shape.enum)}]"
        if "pattern" in facts:
            # After the end of a line nothing else would be wrong: a match of a prefix would let it pass.
            for wrong in (value + "\n", "\n", "é:*"):
                if (high is None or len(wrong) <= high) and not re.fullmatch(facts["pattern"], wrong, re.ASCII):
                    yield wrong, f"regular expression pattern: {facts['pattern']}"
        if high is not None and high <= LENGTH_MAX:
            yield "a" * (high + 1), f"length less than or equal to {high}"
        if low:
            yield "", f"length greater than or equal to {low}"
    if kind in ("list", "map") and low:
        yield type(value)(), f"length greater than or equal to {low}"
    if kind == "list" and value and high is not None and high <= LENGTH_MAX:
        yield value[:1] * (high + 1), f"length less than or equal to {high}"
