"""TransactWriteItems and TransactGetItems.

A transaction of writes is one swap over all its items, those it only checks included, so it happens as a whole or not
at all. With a ClientRequestToken the same swap leaves a note of it for ten minutes: the same request again, because its
answer was lost, is then answered without being carried out twice.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import msgspec

from streamkit.gateway.dynamodb.definitions import Place, TableNote
from streamkit.gateway.dynamodb.errors import DynamoError, invalid
from streamkit.gateway.dynamodb.expressions import parse_projection
from streamkit.gateway.dynamodb.items import Capacity, units_read, units_written
from streamkit.gateway.dynamodb.keys import encode_value
from streamkit.gateway.dynamodb.paths import Path, project
from streamkit.gateway.dynamodb.requests import Fields, violation
from streamkit.gateway.dynamodb.store import Store, Swap
from streamkit.gateway.dynamodb.values import Item, item_size, parse_item
from streamkit.gateway.dynamodb.writes import Kind, Write, parse_write, substitutions_of
from streamkit.model.note import NOTE_SWAPS_MAX

ACTIONS_MAX = 100
TOKEN_KEPT_MS = 600_000
_SNAPSHOT_TRIES = 20
_OLD_TOKENS_AT_ONCE = 20
_ACTIONS: dict[str, Kind] = {"ConditionCheck": "check", "Put": "put", "Delete": "delete", "Update": "update"}


class TokenNote(msgspec.Struct, frozen=True):
    """request: SHA-256 of what was asked for."""

    request: str
    done_ms: int


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(TokenNote).decode


def _cancelled(reasons: list[dict[str, Any]]) -> DynamoError:
    codes = ", ".join(reason["Code"] for reason in reasons)
    return DynamoError(
        "TransactionCanceledException",
        f"Transaction cancelled, please refer cancellation reasons for specific reasons [{codes}]",
        CancellationReasons=reasons,
    )


def _reason(error: DynamoError) -> dict[str, Any]:
    code = {
        "ConditionalCheckFailedException": "ConditionalCheckFailed", "ValidationException": "ValidationError",
    }.get(error.name)  # fmt: skip
    if code is None:
        raise error
    return {"Code": code, "Message": str(error), **error.members}


class Transactions:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def write(self, place: Place, fields: Fields) -> dict[str, Any]:
        capacity = Capacity(fields)
        writes = _parse(fields)
        token = fields.text("ClientRequestToken", low=1, high=36)
        tables = {name: await self._store.table(place, name) for name in dict.fromkeys(each.table for each in writes)}
        notes = [self._store.item_key(place, tables[each.table], each.key(tables[each.table])) for each in writes]
        if len(set(notes)) < len(notes):
            raise invalid("Transaction request cannot include multiple operations on one item")
        asked = hashlib.sha256(_encode(fields.held.get("TransactItems"))).hexdigest()
        remembered = bool(token) and len(notes) < NOTE_SWAPS_MAX       # a full one leaves no room for the token
        token_key = f"{place.space}tokens/{encode_value({'S': token})}" if remembered else ""
        if remembered:
            await self._forget(place)
        patience = self._store.patience()
        while True:
            more: list[tuple[str, int, bytes | None]] = []
            if remembered:
                done, revision = await self._token(token_key, asked)
                if done:
                    return capacity.many()
                more = [(token_key, revision, _encode(TokenNote(asked, self._store.clock.now_ms())))]
            swaps = await self._evaluate(place, tables, writes, notes)
            if await self._store.swap(swaps, more):
                for write, swap in zip(writes, swaps, strict=True):
                    capacity.add(write.table, 2 * units_written(swap.item))
                return capacity.many()
            await patience.wait()

    async def _evaluate(
        self, place: Place, tables: dict[str, TableNote], writes: list[Write], notes: list[str]
    ) -> list[Swap]:
        """Raises DynamoError (TransactionCanceledException) when one of them cannot be."""
        swaps: list[Swap] = []
        reasons: list[dict[str, Any]] = []
        for write, note, stored in zip(writes, notes, await self._store.read_many(notes), strict=True):
            try:
                swaps.append(Swap(note, stored.revision, write.outcome(tables[write.table], stored.item)))
                reasons.append({"Code": "None"})
            except DynamoError as error:
                reasons.append(_reason(error))
        if len(swaps) < len(writes):
            raise _cancelled(reasons)
        for write, swap in zip(writes, swaps, strict=True):
            if not swap.revision and swap.item is not None:
                await self._store.make_room(place, tables[write.table])
        return swaps

    async def _token(self, key: str, asked: str) -> tuple[bool, int]:
        """Whether the request was carried out before, and the token's revision. Raises DynamoError: it was another."""
        value, revision = await self._store.read_raw(key)
        if value is None:
            return False, revision
        note = _decode(value)
        if self._store.clock.now_ms() - note.done_ms > TOKEN_KEPT_MS:
            return False, revision
        if note.request != asked:
            raise DynamoError(
                "IdempotentParameterMismatchException",
                "An error occurred: the ClientRequestToken was used before, with other parameters",
            )
        return True, revision

    async def _forget(self, place: Place) -> None:
        """A few of the tokens whose time is over go; not all at once, for somebody waits."""
        old = [
            (note.key, note.revision, None)
            for note in await self._store.list_raw(f"{place.space}tokens/", _OLD_TOKENS_AT_ONCE)
            if self._store.clock.now_ms() - _decode(note.value).done_ms > TOKEN_KEPT_MS
        ]
        if old:
            await self._store.swap_raw(old)

    async def get(self, place: Place, fields: Fields) -> dict[str, Any]:
        capacity = Capacity(fields)
        asked: list[tuple[str, Item, tuple[Path, ...] | None]] = []
        for entry in fields.structures("TransactItems", low=1, high=ACTIONS_MAX):
            get = entry.structure("Get")
            if get is None:
                raise violation(entry.label("get"), None, "Member must not be null")
            substitutions = substitutions_of(get, "ProjectionExpression")
            paths = None
            if get.has("ProjectionExpression"):
                paths = parse_projection(get.get("ProjectionExpression"), substitutions)
            substitutions.check_all_used()
            asked.append((get.table(), parse_item(get.need("Key"), "Key"), paths))
        if not asked:
            raise violation("transactItems", None, "Member must not be null")
        notes: list[str] = []
        for name, key, _ in asked:
            table = await self._store.table(place, name)
            table.keys.check_key(key)
            notes.append(self._store.item_key(place, table, key))
        if len(set(notes)) < len(notes):
            raise invalid("Transaction request cannot include multiple operations on one item")
        found: list[dict[str, Any]] = []
        for (name, _, paths), item in zip(asked, await self._snapshot(notes), strict=True):
            capacity.add(name, 2 * units_read(item_size(item or {}), True))
            if item is None:
                found.append({})
            else:
                found.append({"Item": item if paths is None else project(paths, item)})
        return {"Responses": found, **capacity.many()}

    async def _snapshot(self, notes: list[str]) -> list[Item | None]:
        """All as of one moment: read twice and found the same. Raises DynamoError when that does not come about."""
        seen = await self._store.read_many(notes)
        for _ in range(_SNAPSHOT_TRIES):
            again = await self._store.read_many(notes)
            if [each.revision for each in again] == [each.revision for each in seen]:
                return [each.item for each in again]
            seen = again
            await asyncio.sleep(0)
        conflict = {"Code": "TransactionConflict", "Message": "Transaction is ongoing for the item"}
        raise _cancelled([conflict] * len(notes))


def _parse(fields: Fields) -> list[Write]:
    entries = fields.structures("TransactItems", low=1, high=ACTIONS_MAX)
    if not entries:
        raise violation("transactItems", None, "Member must not be null")
    found: list[Write] = []
    for entry in entries:
        given = [(kind, action) for name, kind in _ACTIONS.items() if (action := entry.structure(name)) is not None]
        if len(given) != 1:
            raise invalid(
                "TransactItems can only contain one of Check, Put, Update or Delete" if given
                else "Invalid Request: TransactWriteRequest should contain Delete or Put or Update request"
            )  # fmt: skip
        kind, action = given[0]
        found.append(parse_write(kind, action, single=False))
    return found
