"""Operations on tables. A table is ACTIVE, and an index is complete, as soon as its note is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from streamkit.gateway.dynamodb import definitions
from streamkit.gateway.dynamodb.definitions import Place, TableNote
from streamkit.gateway.dynamodb.errors import DynamoError, invalid, invalid_value, table_in_use
from streamkit.gateway.dynamodb.requests import Fields, violation
from streamkit.gateway.dynamodb.store import Store

_LIST_MAX = 100
_READ_UNITS_MAX = 40_000


def _missing(name: str) -> DynamoError:
    return DynamoError("ResourceNotFoundException", f"Requested resource not found: Table: {name} not found")


class Tables:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def create(self, place: Place, fields: Fields) -> dict[str, Any]:
        table = definitions.create(
            fields, table_id=self._store.random.uuid().hex(), now_ms=self._store.clock.now_ms()
        )
        if not await self._store.put_table(place, table.name, table, 0):
            raise table_in_use(table.name)
        await self._store.remove_orphans(place, table)
        return {"TableDescription": definitions.describe(
            table, place, status="CREATING", index_status=dict.fromkeys(table.indexes, "CREATING")
        )}  # fmt: skip

    async def describe(self, place: Place, fields: Fields) -> dict[str, Any]:
        name = fields.table()
        table, _ = await self._store.find_table(place, name)
        if table is None:
            raise _missing(name)
        count, size = await self._store.size(place, table)
        return {"Table": definitions.describe(table, place, count=count, size=size)}

    async def update(self, place: Place, fields: Fields) -> dict[str, Any]:
        index = ""

        def changed(table: TableNote) -> TableNote:
            nonlocal index
            after, index = definitions.update(fields, table)
            return after

        before, after = await self._change(place, fields.table(), changed)
        status: dict[str, str] = {}
        shown = after
        if index in after.indexes:
            status[index] = "CREATING"
        elif index:
            status[index] = "DELETING"
            shown = msgspec.structs.replace(
                after, indexes={**after.indexes, index: before.indexes[index]}, kinds=before.kinds
            )
        return {"TableDescription": definitions.describe(shown, place, status="UPDATING", index_status=status)}

    async def delete(self, place: Place, fields: Fields) -> dict[str, Any]:
        name = fields.table()
        patience = self._store.patience()
        while True:
            table, revision = await self._store.find_table(place, name)
            if table is None:
                raise _missing(name)
            if table.protected:
                raise invalid(
                    f"Resource cannot be deleted as it is currently protected against deletion. Disable deletion "
                    f"protection first: {place.arn(name)}"
                )
            if await self._store.put_table(place, name, None, revision):
                break
            await patience.wait()
        await self._store.remove_items(place, table)
        return {"TableDescription": definitions.describe(table, place, status="DELETING")}

    async def list(self, place: Place, fields: Fields) -> dict[str, Any]:
        limit = fields.integer("Limit", _LIST_MAX, low=1, high=_LIST_MAX)
        after = fields.table("ExclusiveStartTableName") if fields.has("ExclusiveStartTableName") else ""
        found = await self._store.tables(place, after, limit + 1)
        names = [table.name for table in found]
        if len(names) <= limit:
            return {"TableNames": names}
        return {"TableNames": names[:limit], "LastEvaluatedTableName": names[limit - 1]}

    async def _change(
        self, place: Place, name: str, change: Callable[[TableNote], TableNote]
    ) -> tuple[TableNote, TableNote]:
        """The table before and after. Raises DynamoError: there is none, or `change` does."""
        patience = self._store.patience()
        while True:
            table, revision = await self._store.find_table(place, name)
            if table is None:
                raise _missing(name)
            after = change(table)
            if after == table or await self._store.put_table(place, name, after, revision):
                return table, after
            await patience.wait()

    # What is stored and described, and has no effect here.

    async def describe_backups(self, place: Place, fields: Fields) -> dict[str, Any]:
        name = fields.table()
        table, _ = await self._store.find_table(place, name)
        if table is None:
            raise DynamoError("TableNotFoundException", f"Table not found: {name}")
        return _backups(table)

    async def update_backups(self, place: Place, fields: Fields) -> dict[str, Any]:
        wanted = fields.structure("PointInTimeRecoverySpecification")
        if wanted is None:
            raise violation("pointInTimeRecoverySpecification", None, "Member must not be null")
        wanted.need("PointInTimeRecoveryEnabled")
        on = wanted.boolean("PointInTimeRecoveryEnabled")
        name = fields.table()
        if (await self._store.find_table(place, name))[0] is None:
            raise DynamoError("TableNotFoundException", f"Table not found: {name}")
        _, after = await self._change(place, name, lambda table: msgspec.structs.replace(table, recovery=on))
        return _backups(after)

    async def describe_expiry(self, place: Place, fields: Fields) -> dict[str, Any]:
        name = fields.table()
        table, _ = await self._store.find_table(place, name)
        if table is None:
            raise _missing(name)
        if not table.expiry:
            return {"TimeToLiveDescription": {"TimeToLiveStatus": "DISABLED"}}
        return {"TimeToLiveDescription": {"TimeToLiveStatus": "ENABLED", "AttributeName": table.expiry}}

    async def update_expiry(self, place: Place, fields: Fields) -> dict[str, Any]:
        wanted = fields.structure("TimeToLiveSpecification")
        if wanted is None:
            raise violation("timeToLiveSpecification", None, "Member must not be null")
        wanted.need("Enabled")
        wanted.need("AttributeName")
        on, attribute = wanted.boolean("Enabled"), wanted.text("AttributeName", low=1, high=255)

        def changed(table: TableNote) -> TableNote:
            if on == bool(table.expiry):
                raise invalid(f"TimeToLive is already {'enabled' if on else 'disabled'}")
            return msgspec.structs.replace(table, expiry=attribute if on else "")

        await self._change(place, fields.table(), changed)
        return {"TimeToLiveSpecification": {"Enabled": on, "AttributeName": attribute}}

    # Tags.

    async def tag(self, place: Place, fields: Fields) -> None:
        added = definitions.tags_of(fields)

        def changed(table: TableNote) -> TableNote:
            tags = {**table.tags, **added}
            if len(tags) > definitions.TAGS_MAX:
                raise DynamoError("LimitExceededException", f"A table has at most {definitions.TAGS_MAX} tags")
            return msgspec.structs.replace(table, tags=tags)

        if not added:
            raise invalid_value("Tags must not be empty")
        await self._change(place, _tagged(place, fields), changed)

    async def untag(self, place: Place, fields: Fields) -> None:
        gone = fields.elements("TagKeys")
        if gone is None:
            raise violation("tagKeys", None, "Member must not be null")
        await self._change(place, _tagged(place, fields), lambda table: msgspec.structs.replace(
            table, tags={key: value for key, value in table.tags.items() if key not in gone}
        ))  # fmt: skip

    async def list_tags(self, place: Place, fields: Fields) -> dict[str, Any]:
        name = _tagged(place, fields)
        table, _ = await self._store.find_table(place, name)
        if table is None:
            raise _missing(name)
        return {"Tags": [{"Key": key, "Value": value} for key, value in sorted(table.tags.items())]}

    # Of the account.

    async def limits(self, place: Place, fields: Fields) -> dict[str, Any]:
        return {
            "AccountMaxReadCapacityUnits": _READ_UNITS_MAX * 2, "AccountMaxWriteCapacityUnits": _READ_UNITS_MAX * 2,
            "TableMaxReadCapacityUnits": _READ_UNITS_MAX, "TableMaxWriteCapacityUnits": _READ_UNITS_MAX,
        }  # fmt: skip


def _tagged(place: Place, fields: Fields) -> str:
    arn = fields.need("ResourceArn")
    if not isinstance(arn, str) or not arn.startswith(place.arn("")):
        raise invalid(f"Invalid TableArn: Invalid ResourceArn provided as input {str(arn)[:256]}")
    return fields.table("ResourceArn")


def _backups(table: TableNote) -> dict[str, Any]:
    recovery: dict[str, Any] = {"PointInTimeRecoveryStatus": "ENABLED" if table.recovery else "DISABLED"}
    return {"ContinuousBackupsDescription": {
        "ContinuousBackupsStatus": "ENABLED", "PointInTimeRecoveryDescription": recovery,
    }}  # fmt: skip
