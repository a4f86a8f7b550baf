"""GetItem, PutItem, UpdateItem, DeleteItem and the two batches.

A write reads the item's note, evaluates, and swaps it with the revision that was read; when another writer was faster
it begins anew with what that one left. So of many writers that expect the same lease counter exactly one wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streamkit.gateway.dynamodb.definitions import Place, TableNote
from streamkit.gateway.dynamodb.errors import invalid
from streamkit.gateway.dynamodb.expressions import parse_projection
from streamkit.gateway.dynamodb.paths import Path, project
from streamkit.gateway.dynamodb.requests import Fields, table_name, violation
from streamkit.gateway.dynamodb.store import Store, Swap
from streamkit.gateway.dynamodb.values import Item, check_item_size, item_size, parse_item, text_of
from streamkit.gateway.dynamodb.writes import Kind, Write, mixed, parse_write, substitutions_of

_CAPACITY = ("INDEXES", "TOTAL", "NONE")
_BATCH_GET_MAX = 100
_BATCH_WRITE_MAX = 25
_BATCH_BYTES_MAX = 16 * 1024 * 1024


def units_read(size: int, consistent: bool) -> float:
    """Capacity of reading so many bytes."""
    whole = max(1, -(-size // 4096))
    return float(whole) if consistent else whole / 2


def units_written(*items: Item | None) -> float:
    return float(max(1, -(-max((item_size(item) for item in items if item), default=0) // 1024)))


class Capacity:
    """ConsumedCapacity of a request, for who asks for it."""

    def __init__(self, fields: Fields) -> None:
        self._wanted = fields.choice("ReturnConsumedCapacity", _CAPACITY, "NONE")
        self._units: dict[str, float] = {}

    def add(self, table: str, units: float) -> None:
        self._units[table] = self._units.get(table, 0.0) + units

    def _entry(self, table: str, units: float) -> dict[str, Any]:
        entry: dict[str, Any] = {"TableName": table, "CapacityUnits": units}
        if self._wanted == "INDEXES":
            entry["Table"] = {"CapacityUnits": units}
        return entry

    def one(self) -> dict[str, Any]:
        """The member to add to the reply of an operation on one table."""
        if self._wanted == "NONE":
            return {}
        return {"ConsumedCapacity": self._entry(*next(iter(self._units.items())))}

    def many(self) -> dict[str, Any]:
        if self._wanted == "NONE":
            return {}
        return {"ConsumedCapacity": [self._entry(*each) for each in self._units.items()]}


def projection_of(fields: Fields) -> tuple[Path, ...] | None:
    """Of ProjectionExpression or AttributesToGet; None for everything. Raises DynamoError."""
    mixed(fields, ("AttributesToGet",), ("ProjectionExpression", "ExpressionAttributeNames"))
    substitutions = substitutions_of(fields, "ProjectionExpression")
    if fields.has("ProjectionExpression"):
        paths = parse_projection(fields.get("ProjectionExpression"), substitutions)
        substitutions.check_all_used()
        return paths
    return attributes_to_get(fields)


def attributes_to_get(fields: Fields) -> tuple[Path, ...] | None:
    given = fields.elements("AttributesToGet", low=1)
    if given is None:
        return None
    names = [text_of(name) for name in given]
    if len(set(names)) < len(names):
        raise invalid(f"One or more parameter values were invalid: Duplicate value in attribute name: {names[0]}")
    return tuple(Path((name,)) for name in names)


class Items:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def get(self, place: Place, fields: Fields) -> dict[str, Any]:
        name = fields.table()
        capacity = Capacity(fields)
        consistent = fields.boolean("ConsistentRead")
        paths = projection_of(fields)
        key = parse_item(fields.need("Key"), "Key")
        table = await self._store.table(place, name)
        table.keys.check_key(key)
        item = (await self._store.read(self._store.item_key(place, table, key))).item
        capacity.add(name, units_read(item_size(item or {}), consistent))
        if item is None:
            return capacity.one()
        return {"Item": item if paths is None else project(paths, item), **capacity.one()}

    async def put(self, place: Place, fields: Fields) -> dict[str, Any]:
        return await self._write("put", place, fields)

    async def update(self, place: Place, fields: Fields) -> dict[str, Any]:
        return await self._write("update", place, fields)

    async def delete(self, place: Place, fields: Fields) -> dict[str, Any]:
        return await self._write("delete", place, fields)

    async def _write(self, kind: Kind, place: Place, fields: Fields) -> dict[str, Any]:
        capacity = Capacity(fields)
        write = parse_write(kind, fields)
        table = await self._store.table(place, write.table)
        old, new = await self._carry_out(place, table, write)
        capacity.add(write.table, units_written(old, new))
        shown = _shown(write, old, new)
        return {**({"Attributes": shown} if shown else {}), **capacity.one()}

    async def _carry_out(self, place: Place, table: TableNote, write: Write) -> tuple[Item | None, Item | None]:
        """The item before and after."""
        note = self._store.item_key(place, table, write.key(table))
        patience = self._store.patience()
        while True:
            old, revision = await self._store.read(note)
            new = write.outcome(table, old)
            if new == old:
                return old, new                    # as it was at the moment of reading: nothing is left to do
            if old is None:
                await self._store.make_room(place, table)
            if await self._store.swap([Swap(note, revision, new)]):
                return old, new
            await patience.wait()

    async def batch_get(self, place: Place, fields: Fields) -> dict[str, Any]:
        capacity = Capacity(fields)
        requests = fields.mapping("RequestItems")
        if requests is None:
            raise violation("requestItems", None, "Member must not be null")
        if not requests:
            raise violation("requestItems", "{}", "Member must have length greater than or equal to 1")
        parsed = [_parse_gets(name, wire) for name, wire in requests.items()]
        if sum(len(keys) for _, _, keys, _ in parsed) > _BATCH_GET_MAX:
            raise invalid("Too many items requested for the BatchGetItem call")
        responses: dict[str, list[Item]] = {}
        left: dict[str, Any] = {}
        size = 0
        for given, entry, keys, paths in parsed:
            table = await self._store.table(place, table_name(given, "requestItems"))
            for key in keys:
                table.keys.check_key(key)
            notes = [self._store.item_key(place, table, key) for key in keys]
            if len(set(notes)) < len(notes):
                raise invalid("Provided list of item keys contains duplicates")
            held = responses.setdefault(given, [])
            for at, stored in enumerate(await self._store.read_many(notes)):
                if size >= _BATCH_BYTES_MAX:
                    rest = left.setdefault(given, {**entry.held, "Keys": []})
                    rest["Keys"].append(keys[at])
                    continue
                if stored.item is not None:
                    size += item_size(stored.item)
                    held.append(stored.item if paths is None else project(paths, stored.item))
                capacity.add(table.name, units_read(item_size(stored.item or {}), entry.boolean("ConsistentRead")))
        return {"Responses": responses, "UnprocessedKeys": left, **capacity.many()}

    async def batch_write(self, place: Place, fields: Fields) -> dict[str, Any]:
        capacity = Capacity(fields)
        requests = fields.mapping("RequestItems")
        if requests is None:
            raise violation("requestItems", None, "Member must not be null")
        if not requests:
            raise violation("requestItems", "{}", "Member must have length greater than or equal to 1")
        work: list[tuple[TableNote, Write]] = []
        seen: set[str] = set()
        parsed = [(given, _parse_puts(given, wire)) for given, wire in requests.items()]
        if sum(len(writes) for _, writes in parsed) > _BATCH_WRITE_MAX:
            raise invalid("Too many items requested for the BatchWriteItem call")
        for given, writes in parsed:
            table = await self._store.table(place, table_name(given, "requestItems"))
            for write in writes:
                note = self._store.item_key(place, table, write.key(table))
                if note in seen:
                    raise invalid("Provided list of item keys contains duplicates")
                seen.add(note)
                write.outcome(table, None)                 # what is wrong with one is said before any is done
                work.append((table, write))
        for table, write in work:
            old, new = await self._carry_out(place, table, write)
            capacity.add(table.name, units_written(old, new))
        return {"UnprocessedItems": {}, **capacity.many()}


def _parse_gets(given: str, wire: Any) -> tuple[str, Fields, list[Item], tuple[Path, ...] | None]:
    entry = Fields(wire, f"requestItems.{given}.member")
    keys = entry.elements("Keys", low=1)
    if keys is None:
        raise violation(entry.label("keys"), None, "Member must not be null")
    return given, entry, [parse_item(key, "Key") for key in keys], projection_of(entry)


def _parse_puts(given: str, wire: Any) -> list[Write]:
    holder = Fields({"Requests": wire}, f"requestItems.{given}")
    found: list[Write] = []
    for entry in holder.structures("Requests", low=1):
        put, delete = entry.structure("PutRequest"), entry.structure("DeleteRequest")
        if (put is None) == (delete is None):
            raise invalid(
                "Supplied AttributeValue has more than one datatypes set, "
                "must contain exactly one of the supported datatypes"
                if put is not None else "Supplied WriteRequest is empty, must contain exactly one request"
            )  # fmt: skip
        if put is not None:
            item = parse_item(put.need("Item"), "Item")
            check_item_size(item)
            found.append(Write("put", given, item))
        elif delete is not None:
            found.append(Write("delete", given, parse_item(delete.need("Key"), "Key")))
    return found


def _shown(write: Write, old: Item | None, new: Item | None) -> Item | None:
    """What ReturnValues asks for."""
    match write.returns:
        case "ALL_OLD":
            return old
        case "ALL_NEW":
            return new
        case "UPDATED_OLD":
            return project(_paths(write), old) if old else None
        case "UPDATED_NEW":
            return project(_paths(write), new) if new else None
    return None


def _paths(write: Write) -> Sequence[Path]:
    return [change.path for change in write.changes]
