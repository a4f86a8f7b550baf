"""Query and Scan: pages of at most 1 MiB of items, before any filter.

A table is read in the order of its keys as they are stored. An index is not stored: a page of it is picked out of the
whole table, which lease tables are small enough for. Items that change while a page is read may be seen or not.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from streamkit.gateway.dynamodb import legacy
from streamkit.gateway.dynamodb.conditions import holds
from streamkit.gateway.dynamodb.definitions import IndexNote, Place, TableNote, project_index
from streamkit.gateway.dynamodb.errors import DynamoError, invalid, invalid_value
from streamkit.gateway.dynamodb.expressions import (
    Between,
    Compare,
    Condition,
    Constant,
    Every,
    Substitutions,
    Test,
    parse_condition,
    parse_projection,
)
from streamkit.gateway.dynamodb.items import Capacity, attributes_to_get, units_read
from streamkit.gateway.dynamodb.keys import Attribute, KeySchema, encode_value, parse_schema
from streamkit.gateway.dynamodb.paths import Path, project
from streamkit.gateway.dynamodb.requests import Fields
from streamkit.gateway.dynamodb.store import Store
from streamkit.gateway.dynamodb.values import Item, Value, item_size, kind_of, parse_item
from streamkit.gateway.dynamodb.writes import mixed, substitutions_of

PAGE_BYTES_MAX = 1024 * 1024
_SEGMENTS_MAX = 1_000_000
_PRUNE_AT_BYTES = 8 * PAGE_BYTES_MAX
_SELECTS = ("ALL_ATTRIBUTES", "ALL_PROJECTED_ATTRIBUTES", "SPECIFIC_ATTRIBUTES", "COUNT")
_RANGE_OPERATORS = ("EQ", "LE", "LT", "GE", "GT", "BEGINS_WITH", "BETWEEN")
_MIRRORED = {"=": "=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}


@dataclass(frozen=True, slots=True)
class Reading:
    """What Query and Scan have in common."""

    table: str
    index: str
    limit: int | None
    start: Item | None                     # ExclusiveStartKey
    filter: Condition | None
    paths: tuple[Path, ...] | None
    counts: bool                           # Select COUNT: no items in the reply
    select: str
    consistent: bool


@dataclass(slots=True)
class _Page:
    """Items as they were evaluated, and where the page ended; last: None when nothing follows."""

    items: list[Item] = field(default_factory=list)
    scanned: int = 0
    size: int = 0
    last: Item | None = None

    def full(self, limit: int | None) -> bool:
        return self.size >= PAGE_BYTES_MAX or (limit is not None and self.scanned >= limit)


def _parse(fields: Fields, substitutions: Substitutions, legacy_filter: str) -> Reading:
    filter_: Condition | None = None
    if fields.has("FilterExpression"):
        filter_ = parse_condition(fields.get("FilterExpression"), substitutions, "FilterExpression")
    if fields.has(legacy_filter):
        found = list(legacy.conditions_of(fields, legacy_filter).values())
        filter_ = legacy.joined(found, legacy.operator_of(fields, bool(found)))
    elif fields.has("ConditionalOperator"):
        legacy.operator_of(fields, used=False)
    paths = attributes_to_get(fields)
    if fields.has("ProjectionExpression"):
        paths = parse_projection(fields.get("ProjectionExpression"), substitutions)
    select = fields.choice("Select", _SELECTS)
    if paths is not None and select not in ("", "SPECIFIC_ATTRIBUTES"):
        raise invalid(f"Cannot specify the AttributesToGet when choosing to get {select}")
    if paths is None and select == "SPECIFIC_ATTRIBUTES":
        raise invalid(
            "Must specify the AttributesToGet or ProjectionExpression when choosing to get SPECIFIC_ATTRIBUTES"
        )
    index = fields.text("IndexName", low=3, high=255)
    if select == "ALL_PROJECTED_ATTRIBUTES" and not index:
        raise invalid("ALL_PROJECTED_ATTRIBUTES can be used only when Querying using an IndexName")
    consistent = fields.boolean("ConsistentRead")
    if consistent and index:
        raise invalid("Consistent reads are not supported on global secondary indexes")
    return Reading(
        table=fields.table(), index=index,
        limit=fields.integer("Limit", 0, low=1) if fields.has("Limit") else None,
        start=parse_item(fields.get("ExclusiveStartKey"), "ExclusiveStartKey")
        if fields.has("ExclusiveStartKey") else None,
        filter=filter_, paths=paths, counts=select == "COUNT", select=select, consistent=consistent,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _View:
    """A table, or one of its indexes."""

    table: TableNote
    index: IndexNote | None
    keys: KeySchema                        # those of the view; an index's items also have the table's

    @classmethod
    def of(cls, table: TableNote, reading: Reading) -> _View:
        if not reading.index:
            return cls(table, None, table.keys)
        index = table.index(reading.index)
        if reading.select == "ALL_ATTRIBUTES" and index.projection != "ALL":
            raise invalid_value(
                "Select type ALL_ATTRIBUTES is not supported for global secondary index "
                f"{reading.index} because its projection type is not ALL"
            )
        return cls(table, index, parse_schema(index.schema, table.kinds))

    def seen(self, item: Item) -> Item:
        return item if self.index is None else project_index(self.index, self.table, item)

    def key_of(self, item: Item) -> Item:
        """What LastEvaluatedKey says of an item."""
        return {name: item[name] for name in (*self.keys.names, *self.table.keys.names)}

    def check_start(self, start: Item | None) -> None:
        """Raises DynamoError: an ExclusiveStartKey that no page of this view ended with."""
        if start is None:
            return
        names = {*self.keys.names, *self.table.keys.names}
        fits = set(start) == names and all(
            kind_of(start[name]) == self.table.kinds[name] and start[name][self.table.kinds[name]] for name in names
        )
        if not fits:
            raise invalid("The provided starting key is invalid: The provided key element does not match the schema")


class Reads:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def scan(self, place: Place, fields: Fields) -> dict[str, Any]:
        capacity = Capacity(fields)
        mixed(
            fields, ("AttributesToGet", "ScanFilter", "ConditionalOperator"),
            ("FilterExpression", "ProjectionExpression", "ExpressionAttributeNames", "ExpressionAttributeValues"),
        )  # fmt: skip
        substitutions = substitutions_of(fields, "FilterExpression", "ProjectionExpression")
        reading = _parse(fields, substitutions, "ScanFilter")
        substitutions.check_all_used()
        segment, segments = _segments(fields)
        table = await self._store.table(place, reading.table)
        view = _View.of(table, reading)
        view.check_start(reading.start)
        after = "" if reading.start is None else table.keys.encode(reading.start)
        page = _Page()
        async for key, item in self._store.items(place, table, after=after):
            if segments > 1 and zlib.crc32(key.partition("/")[0].encode()) % segments != segment:
                continue
            if view.index is not None and not view.keys.holds(item):
                continue
            _take(page, view, reading, item)
            if page.full(reading.limit):
                page.last = view.key_of(item)
                break
        return _answer(page, reading, capacity)

    async def query(self, place: Place, fields: Fields) -> dict[str, Any]:
        capacity = Capacity(fields)
        mixed(
            fields, ("AttributesToGet", "QueryFilter", "ConditionalOperator", "KeyConditions"),
            (
                "FilterExpression", "ProjectionExpression", "KeyConditionExpression", "ExpressionAttributeNames",
                "ExpressionAttributeValues",
            ),
        )  # fmt: skip
        substitutions = substitutions_of(fields, "FilterExpression", "ProjectionExpression", "KeyConditionExpression")
        conditions = _key_conditions(fields, substitutions)
        reading = _parse(fields, substitutions, "QueryFilter")
        substitutions.check_all_used()
        forward = fields.boolean("ScanIndexForward", True)
        table = await self._store.table(place, reading.table)
        view = _View.of(table, reading)
        hashed, ranged = _fit_conditions(conditions, view.keys)
        view.check_start(reading.start)
        _check_filter(reading.filter, view.keys, legacy_filter=fields.has("QueryFilter"))
        if reading.start is not None and reading.start[view.keys.hash.name] != hashed:
            raise invalid("The provided starting key is outside query boundaries based on provided conditions")
        rows = self._rows(place, view, hashed, reading.start if forward else None)
        if view.index is None and forward:
            page = await _in_order(rows, view, reading, ranged)
        else:
            page = await _sorted(rows, view, reading, ranged, forward=forward)
        return _answer(page, reading, capacity)

    async def _rows(
        self, place: Place, view: _View, hashed: Value, start: Item | None
    ) -> AsyncIterator[Item]:
        """Of the view with that hash key. start: where to begin in a table; of an index all items come."""
        table = view.table
        if view.index is not None:
            async for _, item in self._store.items(place, table):
                if view.keys.holds(item) and item[view.keys.hash.name] == hashed:
                    yield item
            return
        if table.keys.range is None:
            stored = await self._store.read(self._store.item_key(place, table, {table.keys.hash.name: hashed}))
            if stored.item is not None and start is None:
                yield stored.item
            return
        after = "" if start is None else table.keys.encode(start)
        async for _, item in self._store.items(place, table, start=encode_value(hashed) + "/", after=after):
            yield item


def _segments(fields: Fields) -> tuple[int, int]:
    if fields.has("Segment") != fields.has("TotalSegments"):
        missing, given = ("TotalSegments", "Segment") if fields.has("Segment") else ("Segment", "TotalSegments")
        raise invalid(
            f"The {missing} parameter is required but was not present in the request when {given} parameter is present"
        )
    total = fields.integer("TotalSegments", 1, low=1, high=_SEGMENTS_MAX)
    segment = fields.integer("Segment", 0, low=0, high=_SEGMENTS_MAX - 1)
    if segment >= total:
        raise invalid(
            "The Segment parameter is zero-based and must be less than parameter TotalSegments: "
            f"Segment: {segment} is not less than TotalSegments: {total}"
        )
    return segment, total


def _take(page: _Page, view: _View, reading: Reading, item: Item) -> None:
    page.scanned += 1
    seen = view.seen(item)
    page.size += item_size(seen)
    if reading.filter is None or holds(reading.filter, seen):
        page.items.append(seen)


def _answer(page: _Page, reading: Reading, capacity: Capacity) -> dict[str, Any]:
    capacity.add(reading.table, units_read(page.size, reading.consistent))
    found: dict[str, Any] = {"Count": len(page.items), "ScannedCount": page.scanned, **capacity.one()}
    if not reading.counts:
        paths = reading.paths
        found["Items"] = page.items if paths is None else [project(paths, item) for item in page.items]
    if page.last is not None:
        found["LastEvaluatedKey"] = page.last
    return found


async def _in_order(
    rows: AsyncIterator[Item], view: _View, reading: Reading, ranged: Condition | None
) -> _Page:
    page = _Page()
    async for item in rows:
        if ranged is not None and not holds(ranged, item):
            continue
        _take(page, view, reading, item)
        if page.full(reading.limit):
            page.last = view.key_of(item)
            break
    return page


async def _sorted(
    rows: AsyncIterator[Item], view: _View, reading: Reading, ranged: Condition | None, *, forward: bool
) -> _Page:
    """Rows in any order, or to be read from behind; keeps no more of them than a few pages."""
    def place(item: Item) -> tuple[str, ...]:
        return view.keys.place(item, view.table.keys)

    edge = None if reading.start is None else place(reading.start)
    held: list[tuple[tuple[str, ...], Item]] = []
    size = 0
    async for item in rows:
        if ranged is not None and not holds(ranged, item):
            continue
        at = place(item)
        if edge is not None and (at <= edge if forward else at >= edge):
            continue
        held.append((at, item))
        size += item_size(item)
        if size > _PRUNE_AT_BYTES:
            held, size = _pruned(held, forward)
    held.sort(key=lambda row: row[0], reverse=not forward)
    page = _Page()
    for _, item in held:
        _take(page, view, reading, item)
        if page.full(reading.limit):
            page.last = view.key_of(item)
            break
    return page


def _pruned(
    held: list[tuple[tuple[str, ...], Item]], forward: bool
) -> tuple[list[tuple[tuple[str, ...], Item]], int]:
    """The first rows, a little more than a page."""
    held.sort(key=lambda row: row[0], reverse=not forward)
    size = count = 0
    for _, item in held:
        size += item_size(item)
        count += 1
        if size > 2 * PAGE_BYTES_MAX:
            break
    return held[:count], size


# What a query asks of the key.


def _key_conditions(fields: Fields, substitutions: Substitutions) -> dict[str, Condition]:
    """By attribute. Raises DynamoError."""
    if fields.has("KeyConditions"):
        for name, given in (fields.mapping("KeyConditions") or {}).items():
            operator = Fields(given, f"keyConditions.{name}.member").text("ComparisonOperator")
            if operator in legacy.OPERATORS and operator not in _RANGE_OPERATORS:
                raise invalid("Attempted conditional constraint is not an indexable operation")
        return legacy.conditions_of(fields, "KeyConditions")
    if not fields.has("KeyConditionExpression"):
        raise invalid("Either the KeyConditions or KeyConditionExpression parameter must be specified in the request.")
    tree = parse_condition(fields.get("KeyConditionExpression"), substitutions, "KeyConditionExpression")
    found: dict[str, Condition] = {}
    for part in tree.parts if isinstance(tree, Every) else (tree,):
        name, condition = _key_condition(part)
        if name in found:
            raise _bad_key("KeyConditionExpressions must only contain one condition per key")
        found[name] = condition
    return found


def _bad_key(why: str) -> DynamoError:
    return invalid(f"Invalid KeyConditionExpression: {why}")


def _key_condition(part: Condition) -> tuple[str, Condition]:
    """The attribute that the condition is on, and the condition with the attribute on its left. Raises DynamoError."""
    if isinstance(part, Compare) and isinstance(part.left, Constant) and part.operator in _MIRRORED:
        part = Compare(_MIRRORED[part.operator], part.right, part.left)
    match part:
        case Compare(operator, Path(parts), Constant()) if operator != "<>" and len(parts) == 1:
            return str(parts[0]), part
        case Between(Path(parts), Constant(), Constant()) if len(parts) == 1:
            return str(parts[0]), part
        case Test("begins_with", Path(parts), Constant()) if len(parts) == 1:
            return str(parts[0]), part
        case Compare("<>"):
            raise _bad_key("Unsupported operator on KeyCondition: operator: <>")
    raise _bad_key("Invalid operator or operand used in KeyConditionExpression")


def _fit_conditions(conditions: dict[str, Condition], keys: KeySchema) -> tuple[Value, Condition | None]:
    """The hash key that is asked for, and the condition on the range key. Raises DynamoError."""
    left = dict(conditions)
    hashed = left.pop(keys.hash.name, None)
    if hashed is None:
        raise invalid(f"Query condition missed key schema element: {keys.hash.name}")
    if not isinstance(hashed, Compare) or hashed.operator != "=":
        raise invalid("Query key condition not supported")
    ranged = left.pop(keys.range.name, None) if keys.range is not None else None
    if left:
        missing = keys.range.name if keys.range is not None and ranged is None else ""
        raise invalid(f"Query condition missed key schema element: {missing}" if missing else
                      "Query key condition not supported")  # fmt: skip
    _check_kinds(hashed, keys.hash)
    if ranged is not None and keys.range is not None:
        _check_kinds(ranged, keys.range)
    assert isinstance(hashed.right, Constant), "key conditions compare with constants"
    return hashed.right.value, ranged


def _check_kinds(condition: Condition, attribute: Attribute) -> None:
    operands: tuple[Any, ...] = ()
    match condition:
        case Compare(_, _, right):
            operands = (right,)
        case Between(_, low, high):
            operands = (low, high)
        case Test(_, _, argument):
            operands = (argument,)
    for operand in operands:
        value = operand.value
        if kind_of(value) != attribute.kind:
            raise invalid_value("Condition parameter type does not match schema type")
        if not value[attribute.kind]:
            raise invalid(
                "One or more parameter values are not valid. The AttributeValue for a key attribute cannot contain an "
                f"empty string value. Key: {attribute.name}"
            )


def _check_filter(condition: Condition | None, keys: KeySchema, *, legacy_filter: bool) -> None:
    """A filter of a query is not on its key. Raises DynamoError."""
    for name in _names_in(condition):
        if name in keys.names:
            what = "QueryFilter" if legacy_filter else "Filter Expression"
            raise invalid(
                f"{what} can only contain non-primary key attributes: Primary key attribute: {name}"
            )


def _names_in(condition: Any) -> set[str]:
    """The top-level attributes that a tree names."""
    if isinstance(condition, Path):
        return {condition.name}
    if isinstance(condition, tuple):
        return set().union(*map(_names_in, condition))
    if condition is None or isinstance(condition, str | Constant):
        return set()
    return set().union(*(_names_in(getattr(condition, slot)) for slot in condition.__slots__))
