"""A KCL application's lease table, as it is exported: one lease for each shard, with how far it is processed.

Understood are the answer of `aws dynamodb scan`, DynamoDB's export to JSON lines, and plain JSON: a list, or an object
a line. Rows of the table that are no leases (the leader's lock, metrics of workers) are passed over. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from streamkit.errors import InvalidTable

TRIM_HORIZON, LATEST, AT_TIMESTAMP, SHARD_END = "TRIM_HORIZON", "LATEST", "AT_TIMESTAMP", "SHARD_END"
SENTINELS = (TRIM_HORIZON, LATEST, AT_TIMESTAMP, SHARD_END)
_SHARD = "shardId-"
_ATTRIBUTES = ("leaseKey", "checkpoint", "checkpointSubSequenceNumber", "leaseOwner", "entityType")


@dataclass(frozen=True, slots=True)
class KclLease:
    """checkpoint: decimal sequence number of the last finished record, or a sentinel; sub: inside an aggregate.

    stream: "" where the table belongs to one stream. owner: the worker that held it when the table was read.
    """

    shard: str
    checkpoint: str
    sub: int = 0
    stream: str = ""
    owner: str = ""


def parse_table(text: str | bytes) -> tuple[KclLease, ...]:
    """Raises InvalidTable."""
    return leases_of(_items(text))


def leases_of(items: Iterable[Mapping[str, Any]]) -> tuple[KclLease, ...]:
    """Of the table's items, in DynamoDB's attribute format or plain. Raises InvalidTable."""
    found: list[KclLease] = []
    for number, item in enumerate(items, 1):
        plain = {name: _plain(item[name], number) for name in _ATTRIBUTES if name in item}
        if plain.get("entityType", "LEASE") != "LEASE" or "checkpoint" not in plain or "leaseKey" not in plain:
            continue
        found.append(_lease(plain, number))
    seen: set[tuple[str, str]] = set()
    for lease in found:
        if (lease.stream, lease.shard) in seen:
            raise _wrong(f"{lease.stream or 'the table'} has two leases of {lease.shard}", 0)
        seen.add((lease.stream, lease.shard))
    if not found:
        raise _wrong("there is no lease in it", 0)
    return tuple(found)


def _items(given: str | bytes) -> list[Mapping[str, Any]]:
    whole: list[Any] = []
    try:
        text = given if isinstance(given, str) else given.decode()
    except UnicodeDecodeError as cause:
        raise _wrong("it is no text", 0) from cause
    try:
        whole.append(msgspec.json.decode(text))
    except msgspec.DecodeError:
        for number, line in enumerate(text.splitlines(), 1):
            try:
                whole += [msgspec.json.decode(line)] if line.strip() else []
            except msgspec.DecodeError as cause:
                raise _wrong(f"line {number} is no JSON: {cause}", number) from cause
    items: list[Any] = []
    for value in whole:
        if isinstance(value, dict) and isinstance(value.get("Items"), list):
            items += value["Items"]
        elif isinstance(value, dict) and isinstance(value.get("Item"), dict):
            items.append(value["Item"])
        elif isinstance(value, list):
            items += value
        else:
            items.append(value)
    for number, item in enumerate(items, 1):
        if not isinstance(item, dict):
            raise _wrong(f"item {number} is no object", number)
    return items


def _plain(value: Any, number: int) -> Any:
    """{"S": "x"} is "x", {"N": "7"} is "7"; what is not in that format stays."""
    if isinstance(value, dict):
        if len(value) != 1:
            raise _wrong(f"item {number} holds {value!r:.80}", number)
        ((_, value),) = value.items()
    return value


def _lease(plain: Mapping[str, Any], number: int) -> KclLease:
    key, checkpoint = str(plain["leaseKey"]), str(plain["checkpoint"])
    parts = key.split(":")
    stream, shard = (parts[1], parts[3]) if len(parts) == 4 else ("", key)
    if not shard.startswith(_SHARD) or not shard.removeprefix(_SHARD).isdigit():
        raise _wrong(f"item {number} is a lease of {key!r:.80}, which is no shard", number)
    if checkpoint not in SENTINELS and not (checkpoint.isascii() and checkpoint.isdigit()):
        raise _wrong(f"the checkpoint of {shard} is {checkpoint!r:.80}", number)
    sub = str(plain.get("checkpointSubSequenceNumber", 0))
    if not (sub.isascii() and sub.isdigit()):
        raise _wrong(f"the sub-sequence number of {shard} is {sub!r:.80}", number)
    return KclLease(shard, checkpoint, int(sub), stream, str(plain.get("leaseOwner") or ""))


def _wrong(what: str, item: int) -> InvalidTable:
    return InvalidTable(
        f"this is not a KCL's lease table: {what}", item=item,
        try_="export it with: aws dynamodb scan --table-name APPLICATION --output json",
    )
