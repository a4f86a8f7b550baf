"""The operations put together, and how an answer is written: JSON 1.0 with a CRC-32 of the body, which Java checks."""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from streamkit.gateway.calls import Access, Call, Service
from streamkit.gateway.dynamodb.definitions import Place
from streamkit.gateway.dynamodb.errors import DynamoError, malformed
from streamkit.gateway.dynamodb.items import Items
from streamkit.gateway.dynamodb.reads import Reads
from streamkit.gateway.dynamodb.requests import Fields
from streamkit.gateway.dynamodb.store import NoteClient, Store
from streamkit.gateway.dynamodb.tables import Tables
from streamkit.gateway.dynamodb.transactions import Transactions
from streamkit.gateway.shapes import Model
from streamkit.http.exchange import Response
from streamkit.runtime.interfaces import Clock, Random

TARGET = "DynamoDB_20120810"
CONTENT_TYPE = "application/x-amz-json-1.0"
Work = Callable[[Place, Fields], Awaitable[dict[str, Any] | None]]

# Who processes a stream keeps leases, so making a table is writing, not administration; removing one is.
_READS: tuple[str, ...] = (
    "DescribeTable", "ListTables", "DescribeContinuousBackups", "DescribeTimeToLive", "ListTagsOfResource",
    "DescribeEndpoints", "DescribeLimits", "GetItem", "BatchGetItem", "Query", "Scan", "TransactGetItems",
)  # fmt: skip
_ADMIN = ("DeleteTable",)

_encode = msgspec.json.Encoder().encode


def _respond(status: int, body: bytes, *headers: tuple[str, str]) -> Response:
    return Response(
        status, (("content-type", CONTENT_TYPE), ("x-amz-crc32", str(zlib.crc32(body))), *headers), body
    )


def _answering(work: Work) -> Callable[[Call], Awaitable[Response]]:
    async def operation(call: Call) -> Response:
        try:
            if call.cbor:
                raise malformed("This service speaks JSON")
            place = Place(call.caller.account, call.caller.region)
            answer = await work(place, Fields.parse(call.body))
        except DynamoError as error:
            return _respond(error.status, _encode(error.body()), ("x-amzn-errortype", error.name))
        return _respond(200, b"" if answer is None else _encode(answer))

    return operation


def _endpoints(call: Call) -> Response:
    address = call.request.headers.get("host", "localhost")
    return _respond(200, _encode({"Endpoints": [{"Address": address, "CachePeriodInMinutes": 1_440}]}))


def open_dynamodb(client: NoteClient, clock: Clock, random: Random) -> Service:
    """The service over the notes of `client` (an AsyncClient), which stays the caller's.

    Holds nothing but estimates of how large tables are; any number may serve the same cluster.
    """
    store = Store(client, clock, random)
    tables, items, reads, transactions = Tables(store), Items(store), Reads(store), Transactions(store)
    works: Mapping[str, Work] = {
        "CreateTable": tables.create, "DescribeTable": tables.describe, "UpdateTable": tables.update,
        "DeleteTable": tables.delete, "ListTables": tables.list,
        "DescribeContinuousBackups": tables.describe_backups, "UpdateContinuousBackups": tables.update_backups,
        "DescribeTimeToLive": tables.describe_expiry, "UpdateTimeToLive": tables.update_expiry,
        "TagResource": tables.tag, "UntagResource": tables.untag, "ListTagsOfResource": tables.list_tags,
        "DescribeLimits": tables.limits,
        "GetItem": items.get, "PutItem": items.put, "UpdateItem": items.update, "DeleteItem": items.delete,
        "BatchGetItem": items.batch_get, "BatchWriteItem": items.batch_write,
        "Query": reads.query, "Scan": reads.scan,
        "TransactWriteItems": transactions.write, "TransactGetItems": transactions.get,
    }  # fmt: skip

    async def endpoints(call: Call) -> Response:
        return _endpoints(call)

    operations = {name: _answering(work) for name, work in works.items()} | {"DescribeEndpoints": endpoints}
    access: dict[str, Access] = dict.fromkeys(operations, "write")
    access.update(dict.fromkeys(_READS, "read"))
    access.update(dict.fromkeys(_ADMIN, "admin"))
    return Service(
        target=TARGET,
        signing_name="dynamodb",
        model=Model(dict.fromkeys(operations, ("", "")), {}, {}),
        operations=operations,
        raw=frozenset(operations),
        json_version="1.0",
        access=access,
    )
