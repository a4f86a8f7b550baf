"""Primary keys, and the text they become in a note's name. Pure.

The text keeps the order of keys: strings and binaries by their bytes, numbers by value. Letters, digits and most signs
stand for themselves, so that a lease can be found by eye:

    below "-"    ! and two hex digits        "."    .0        "/"    .1        above "z"    ~ and two hex digits

A number is n (negative), o (zero) or p, three digits of exponent, and its digits; of a negative one each digit is its
complement to 9 and a z ends it. Hash and range are joined by "/", which neither holds.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from streamkit.gateway.dynamodb.errors import invalid, invalid_value, unsupported
from streamkit.gateway.dynamodb.values import Item, Value, kind_of, text_size

_HASH_BYTES_MAX = 2_048
_RANGE_BYTES_MAX = 1_024
NOTE_KEY_CHARACTERS_MAX = 600          # of the encoded key: the rest of a note's 1,024 is the table's name and its id
_COMPLEMENT = str.maketrans("0123456789", "9876543210")
_EXPONENT_BASE = 400


def _escape(byte: int) -> str:
    if byte < 0x2D:
        return f"!{byte:02x}"
    if byte == 0x2E:
        return ".0"
    if byte == 0x2F:
        return ".1"
    return chr(byte) if byte <= 0x7A else f"~{byte:02x}"


_ESCAPES = [_escape(byte) for byte in range(256)]


@dataclass(frozen=True, slots=True)
class Attribute:
    """Of a key. kind: "S", "N" or "B"."""

    name: str
    kind: str


@dataclass(frozen=True, slots=True)
class KeySchema:
    hash: Attribute
    range: Attribute | None = None

    @property
    def attributes(self) -> tuple[Attribute, ...]:
        return (self.hash,) if self.range is None else (self.hash, self.range)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(attribute.name for attribute in self.attributes)

    def key_of(self, item: Item) -> Item:
        """The key attributes of an item of the table."""
        return {name: item[name] for name in self.names}

    def check_key(self, key: Item) -> None:
        """Of a request that names an item: the key and nothing else. Raises DynamoError."""
        if set(key) != set(self.names):
            raise invalid("The provided key element does not match the schema")
        for attribute in self.attributes:
            if kind_of(key[attribute.name]) != attribute.kind:
                raise invalid("The provided key element does not match the schema")
            self._check_content(attribute, key[attribute.name])

    def check_item(self, item: Item) -> None:
        """Of an item to be put. Raises DynamoError."""
        for attribute in self.attributes:
            value = item.get(attribute.name)
            if value is None:
                raise invalid_value(f"Missing the key {attribute.name} in the item")
            if (kind := kind_of(value)) != attribute.kind:
                raise invalid_value(
                    f"Type mismatch for key {attribute.name} expected: {attribute.kind} actual: {kind}"
                )
            self._check_content(attribute, value)

    def holds(self, item: Item) -> bool:
        """Whether the item is in an index with this schema."""
        return all(kind_of(item.get(each.name) or {"": ""}) == each.kind for each in self.attributes)

    def _check_content(self, attribute: Attribute, value: Value) -> None:
        content = value[attribute.kind]
        if not content:
            words = "a string" if attribute.kind == "S" else "a binary"
            raise invalid(
                "One or more parameter values are not valid. The AttributeValue for a key attribute cannot contain an "
                f"empty {words.removeprefix('a ')} value. Key: {attribute.name}"
            )
        most, what = (_HASH_BYTES_MAX, "hashkey") if attribute == self.hash else (_RANGE_BYTES_MAX, "rangekey")
        if attribute.kind != "N" and text_size(content) > most:
            raise invalid_value(f"Size of {what} has exceeded the maximum size limit of{most} bytes")

    def encode(self, item: Item) -> str:
        """The item's place in the order of the table. Raises DynamoError: a key that no note's name can hold."""
        text = "/".join(encode_value(item[name]) for name in self.names)
        if len(text) > NOTE_KEY_CHARACTERS_MAX:
            raise unsupported(f"A key of more than {NOTE_KEY_CHARACTERS_MAX} characters, as they are stored,")
        return text

    def place(self, key: Item, table: KeySchema) -> tuple[str, ...]:
        """Where an item stands in the order of an index with this schema: by its own key, then by the table's."""
        return (*(encode_value(key[name]) for name in self.names), table.encode(key))


def encode_value(value: Value) -> str:
    """Texts compare as the values do, those of one type."""
    kind = kind_of(value)
    if kind == "N":
        return _encode_number(Decimal(value["N"]))
    content = value["S"].encode() if kind == "S" else base64.b64decode(value["B"])
    return "".join(map(_ESCAPES.__getitem__, content))


def _encode_number(number: Decimal) -> str:
    if not number:
        return "o"
    exponent = number.adjusted() + _EXPONENT_BASE
    digits = "".join(map(str, number.as_tuple().digits)).rstrip("0")
    if number > 0:
        return f"p{exponent:03}{digits}"
    return f"n{f'{exponent:03}{digits}'.translate(_COMPLEMENT)}z"


def parse_schema(names: Sequence[tuple[str, str]], kinds: dict[str, str]) -> KeySchema:
    """names: of each key attribute its name and "HASH" or "RANGE"; kinds: of all attributes. Raises DynamoError."""
    roles = [role for _, role in names]
    if roles[0] != "HASH":
        raise invalid("Invalid KeySchema: The first KeySchemaElement is not a HASH key type")
    if len(roles) > 1 and roles[1] != "RANGE":
        raise invalid("Invalid KeySchema: The second KeySchemaElement is not a RANGE key type")
    if len({name for name, _ in names}) < len(names):
        raise invalid("Invalid KeySchema: Some index key attribute have no definition")
    found = [Attribute(name, kinds[name]) for name, _ in names]
    return KeySchema(*found)
