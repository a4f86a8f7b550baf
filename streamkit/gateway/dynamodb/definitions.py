"""What is known of a table: the note that keeps it, what requests make of it, how it is described. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from streamkit.gateway.dynamodb.errors import DynamoError, invalid, invalid_value, unsupported
from streamkit.gateway.dynamodb.keys import KeySchema, parse_schema
from streamkit.gateway.dynamodb.requests import Fields, violation
from streamkit.gateway.dynamodb.values import Item

_INDEX_NAME = re.compile(r"[a-zA-Z0-9_.-]+")
_INDEXES_MAX = 20
TAGS_MAX = 50
_BILLING = ("PROVISIONED", "PAY_PER_REQUEST")
_CLASSES = ("STANDARD", "STANDARD_INFREQUENT_ACCESS")


class IndexNote(msgspec.Struct, frozen=True, omit_defaults=True):
    """schema: of each key attribute its name and "HASH" or "RANGE". projection: ALL, KEYS_ONLY or INCLUDE."""

    schema: tuple[tuple[str, str], ...]
    projection: str
    included: tuple[str, ...] = ()
    units: tuple[int, int] = (0, 0)        # of provisioned throughput: reading, writing


class TableNote(msgspec.Struct, frozen=True, omit_defaults=True):
    """id: 32 hex digits; another one when the table is made again. kinds: of the key attributes."""

    name: str
    id: str
    created_ms: int
    kinds: dict[str, str]
    schema: tuple[tuple[str, str], ...]
    billing: str = "PROVISIONED"
    units: tuple[int, int] = (0, 0)
    indexes: dict[str, IndexNote] = {}
    tags: dict[str, str] = {}
    protected: bool = False
    table_class: str = ""
    sealed: dict[str, str] = {}            # SSESpecification's names; stored, described, and without effect
    recovery: bool = False                 # point-in-time recovery: stored, described, and without effect
    expiry: str = ""                       # time to live's attribute; likewise

    @property
    def keys(self) -> KeySchema:
        return parse_schema(self.schema, self.kinds)

    def index(self, name: str) -> IndexNote:
        """Raises DynamoError."""
        try:
            return self.indexes[name]
        except KeyError:
            raise invalid(f"The table does not have the specified index: {name}") from None


@dataclass(frozen=True, slots=True)
class Place:
    """An account and region, in which a table's name means one table."""

    account: str
    region: str

    @property
    def space(self) -> str:
        return f"dynamodb/{self.account}/{self.region}/"

    def table_key(self, name: str) -> str:
        return f"{self.space}tables/{name}"

    def items_prefix(self, name: str, table_id: str = "") -> str:
        """Of the notes of the table's items; without an id also of those that an earlier table of that name left."""
        return f"{self.space}items/{name}/{table_id}/" if table_id else f"{self.space}items/{name}/"

    def arn(self, name: str) -> str:
        return f"arn:aws:dynamodb:{self.region}:{self.account}:table/{name}"


def project_index(index: IndexNote, table: TableNote, item: Item) -> Item:
    """What an index holds of an item."""
    if index.projection == "ALL":
        return item
    kept = {*(name for name, _ in index.schema), *(name for name, _ in table.schema), *index.included}
    return {name: value for name, value in item.items() if name in kept}


def create(fields: Fields, *, table_id: str, now_ms: int) -> TableNote:
    """Of CreateTable. Raises DynamoError."""
    fields.refuse(
        "LocalSecondaryIndexes", "GlobalTableSourceArn", "GlobalTableSettingsReplicationMode", "VectorIndexes",
        "ResourcePolicy",
    )  # fmt: skip
    _refuse_stream(fields)
    name = fields.table()
    kinds = _attributes(fields)
    if not fields.has("KeySchema"):
        raise violation("keySchema", None, "Member must not be null")
    schema = _schema(fields, kinds)
    billing = fields.choice("BillingMode", _BILLING, "PROVISIONED")
    units = _units(fields, billing, "table")
    indexes: dict[str, IndexNote] = {}
    for entry in fields.structures("GlobalSecondaryIndexes"):
        index_name, index = _index(entry, kinds, billing)
        if index_name in indexes:
            raise invalid_value(f"Duplicate index name: {index_name}")
        indexes[index_name] = index
    if len(indexes) > _INDEXES_MAX:
        raise invalid_value(f"GlobalSecondaryIndex count exceeds the per-table limit of {_INDEXES_MAX}")
    _check_attributes(kinds, schema, indexes)
    return TableNote(
        name=name, id=table_id, created_ms=now_ms, kinds=kinds, schema=schema, billing=billing, units=units,
        indexes=indexes, tags=tags_of(fields), protected=fields.boolean("DeletionProtectionEnabled"),
        table_class=fields.choice("TableClass", _CLASSES), sealed=_sealed(fields),
    )  # fmt: skip


def _refuse_stream(fields: Fields) -> None:
    stream = fields.structure("StreamSpecification")
    if stream is not None and stream.boolean("StreamEnabled"):
        raise unsupported("StreamSpecification")


def _attributes(fields: Fields) -> dict[str, str]:
    kinds: dict[str, str] = {}
    for entry in fields.structures("AttributeDefinitions"):
        entry.need("AttributeName")
        entry.need("AttributeType")
        name = entry.text("AttributeName", low=1, high=255)
        if name in kinds:
            raise invalid_value(f"Duplicate AttributeName: {name}")
        kinds[name] = entry.choice("AttributeType", ("B", "N", "S"))
    return kinds


def _schema(fields: Fields, kinds: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    found: list[tuple[str, str]] = []
    for entry in fields.structures("KeySchema", low=1, high=2):
        entry.need("AttributeName")
        entry.need("KeyType")
        found.append((entry.text("AttributeName", low=1, high=255), entry.choice("KeyType", ("HASH", "RANGE"))))
    if not found:
        raise violation(fields.label("KeySchema"), None, "Member must not be null")
    missing = [name for name, _ in found if name not in kinds]
    if missing:
        raise invalid_value(
            "Some index key attributes are not defined in AttributeDefinitions. "
            f"Keys: [{', '.join(missing)}], AttributeDefinitions: [{', '.join(kinds)}]"
        )
    parse_schema(found, dict(kinds))
    return tuple(found)


def _units(fields: Fields, billing: str, what: str) -> tuple[int, int]:
    given = fields.structure("ProvisionedThroughput")
    if given is None:
        if billing == "PROVISIONED" and what == "table":
            raise invalid_value(
                "ReadCapacityUnits and WriteCapacityUnits must both be specified when BillingMode is PROVISIONED"
            )
        return 0, 0
    if billing == "PAY_PER_REQUEST":
        found = given.integer("ReadCapacityUnits", 0, low=0), given.integer("WriteCapacityUnits", 0, low=0)
        if any(found):
            raise invalid_value(
                "Neither ReadCapacityUnits nor WriteCapacityUnits can be specified when BillingMode is PAY_PER_REQUEST"
            )
        return found
    given.need("ReadCapacityUnits")
    given.need("WriteCapacityUnits")
    return given.integer("ReadCapacityUnits", 1, low=1), given.integer("WriteCapacityUnits", 1, low=1)


def _index(fields: Fields, kinds: Mapping[str, str], billing: str) -> tuple[str, IndexNote]:
    fields.need("IndexName")
    name = fields.text("IndexName", low=3, high=255)
    if not _INDEX_NAME.fullmatch(name):
        raise violation(
            fields.label("IndexName"), name, "Member must satisfy regular expression pattern: [a-zA-Z0-9_.-]+"
        )
    projection = fields.structure("Projection")
    if projection is None:
        raise violation(fields.label("Projection"), None, "Member must not be null")
    kind = projection.choice("ProjectionType", ("ALL", "KEYS_ONLY", "INCLUDE"))
    if not kind:
        raise invalid_value("Unknown ProjectionType: null")
    included = projection.elements("NonKeyAttributes", low=1, high=100) or []
    if not all(isinstance(each, str) for each in included):
        raise invalid_value("NonKeyAttributes must be names")
    if bool(included) != (kind == "INCLUDE"):
        words = "must be specified" if kind == "INCLUDE" else "was specified"
        raise invalid_value(f"ProjectionType is {kind}, and NonKeyAttributes {words}")
    schema = _schema(fields, kinds)
    return name, IndexNote(schema, kind, tuple(included), _units(fields, billing, "index"))


def _check_attributes(
    kinds: Mapping[str, str], schema: tuple[tuple[str, str], ...], indexes: Mapping[str, IndexNote]
) -> None:
    """Only key attributes are defined. Raises DynamoError."""
    used = {name for name, _ in schema} | {name for index in indexes.values() for name, _ in index.schema}
    if set(kinds) != used:
        raise invalid_value(
            "Number of attributes in KeySchema does not exactly match number of attributes defined in "
            "AttributeDefinitions"
        )


def tags_of(fields: Fields) -> dict[str, str]:
    """Raises DynamoError."""
    found: dict[str, str] = {}
    for entry in fields.structures("Tags"):
        entry.need("Key")
        entry.need("Value")
        found[entry.text("Key", low=1, high=128)] = entry.text("Value", high=256)
    if len(found) > TAGS_MAX:
        raise DynamoError("LimitExceededException", f"A table has at most {TAGS_MAX} tags")
    return found


def _sealed(fields: Fields) -> dict[str, str]:
    given = fields.structure("SSESpecification")
    if given is None or not given.boolean("Enabled"):
        return {}
    return {"SSEType": given.text("SSEType", "KMS"), "KMSMasterKeyArn": given.text("KMSMasterKeyId")}


def update(fields: Fields, table: TableNote) -> tuple[TableNote, str]:
    """The table after UpdateTable, and the name of the index that was made or removed, else "". Raises DynamoError."""
    fields.refuse(
        "ReplicaUpdates", "MultiRegionConsistency", "GlobalTableWitnessUpdates", "GlobalTableSettingsReplicationMode",
        "DisassociationProtectionEnabled", "VectorIndexUpdates",
    )  # fmt: skip
    _refuse_stream(fields)
    billing = fields.choice("BillingMode", _BILLING, table.billing)
    units = table.units
    if billing == "PAY_PER_REQUEST" and not fields.has("ProvisionedThroughput"):
        units = (0, 0)
    elif fields.has("ProvisionedThroughput") or billing != table.billing:
        units = _units(fields, billing, "table")
    kinds = {**table.kinds, **_attributes(fields)}
    indexes = dict(table.indexes)
    changed = ""
    entries = fields.structures("GlobalSecondaryIndexUpdates")
    for entry in entries:
        changed = _update_index(entry, kinds, billing, indexes) or changed
    if sum(entry.has("Create") or entry.has("Delete") for entry in entries) > 1:
        raise DynamoError(
            "LimitExceededException",
            "Subscriber limit exceeded: Only 1 online index can be created or deleted simultaneously per table",
        )
    if len(indexes) > _INDEXES_MAX:
        raise DynamoError("LimitExceededException", f"A table has at most {_INDEXES_MAX} global secondary indexes")
    used = {name for name, _ in table.schema} | {name for index in indexes.values() for name, _ in index.schema}
    if any(table.kinds.get(name, kind) != kind for name, kind in kinds.items()):
        raise invalid_value("The type of a key attribute cannot be changed")
    after = msgspec.structs.replace(
        table, billing=billing, units=units, indexes=indexes,
        kinds={name: kind for name, kind in kinds.items() if name in used},
        protected=fields.boolean("DeletionProtectionEnabled", table.protected),
        table_class=fields.choice("TableClass", _CLASSES, table.table_class),
        sealed=_sealed(fields) if fields.has("SSESpecification") else table.sealed,
    )  # fmt: skip
    known = {"TableName", "AttributeDefinitions", "ReturnConsumedCapacity"}
    if not set(fields.held) - known:
        raise invalid(
            "At least one of ProvisionedThroughput, BillingMode, UpdateStreamEnabled, GlobalSecondaryIndexUpdates or "
            "SSESpecification or ReplicaUpdates is required"
        )
    return after, changed


def _update_index(
    entry: Fields, kinds: Mapping[str, str], billing: str, indexes: dict[str, IndexNote]
) -> str:
    """Changes `indexes`. The name of one that was made or removed, else ""."""
    if (made := entry.structure("Create")) is not None:
        name, index = _index(made, kinds, billing)
        if name in indexes:
            raise invalid(f"Attempting to create an index which already exists: {name}")
        indexes[name] = index
        return name
    gone, updated = entry.structure("Delete"), entry.structure("Update")
    fields = gone or updated
    if fields is None:
        raise invalid_value("One of GlobalSecondaryIndexUpdate.Update, Create, Delete must not be null")
    fields.need("IndexName")
    name = fields.text("IndexName")
    if name not in indexes:
        raise DynamoError("ResourceNotFoundException", "Requested resource not found")
    if gone is not None:
        del indexes[name]
        return name
    indexes[name] = msgspec.structs.replace(indexes[name], units=_units(fields, billing, "index"))
    return ""


def describe(
    table: TableNote, place: Place, *, status: str = "ACTIVE", count: int = 0, size: int = 0,
    index_status: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """A TableDescription. count, size: items and their bytes. index_status: of those that are not ACTIVE."""
    arn = place.arn(table.name)
    found: dict[str, Any] = {
        "AttributeDefinitions": [
            {"AttributeName": name, "AttributeType": kind} for name, kind in sorted(table.kinds.items())
        ],
        "TableName": table.name,
        "KeySchema": _described_schema(table.schema),
        "TableStatus": status,
        "CreationDateTime": table.created_ms / 1_000,
        "ProvisionedThroughput": _described_units(table.units),
        "TableSizeBytes": size,
        "ItemCount": count,
        "TableArn": arn,
        "TableId": _dashed(table.id),
        "DeletionProtectionEnabled": table.protected,
    }
    if table.billing == "PAY_PER_REQUEST":
        found["BillingModeSummary"] = {
            "BillingMode": table.billing, "LastUpdateToPayPerRequestDateTime": table.created_ms / 1_000,
        }  # fmt: skip
    if table.indexes:
        found["GlobalSecondaryIndexes"] = [
            _described_index(name, index, arn, (index_status or {}).get(name, "ACTIVE"), count)
            for name, index in sorted(table.indexes.items())
        ]
    if table.table_class:
        found["TableClassSummary"] = {"TableClass": table.table_class}
    if table.sealed:
        found["SSEDescription"] = {"Status": "ENABLED", **{key: value for key, value in table.sealed.items() if value}}
    return found


def _dashed(table_id: str) -> str:
    return "-".join((table_id[:8], table_id[8:12], table_id[12:16], table_id[16:20], table_id[20:]))


def _described_schema(schema: tuple[tuple[str, str], ...]) -> list[dict[str, str]]:
    return [{"AttributeName": name, "KeyType": role} for name, role in schema]


def _described_units(units: tuple[int, int]) -> dict[str, int]:
    return {"NumberOfDecreasesToday": 0, "ReadCapacityUnits": units[0], "WriteCapacityUnits": units[1]}


def _described_index(name: str, index: IndexNote, arn: str, status: str, count: int) -> dict[str, Any]:
    projection: dict[str, Any] = {"ProjectionType": index.projection}
    if index.included:
        projection["NonKeyAttributes"] = list(index.included)
    return {
        "IndexName": name,
        "KeySchema": _described_schema(index.schema),
        "Projection": projection,
        "IndexStatus": status,
        "ProvisionedThroughput": _described_units(index.units),
        "IndexSizeBytes": 0,
        "ItemCount": count,
        "IndexArn": f"{arn}/index/{name}",
    }
