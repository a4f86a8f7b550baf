"""What a write asks for, and what it makes of an item. Pure; single writes and transactions share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from streamkit.gateway.dynamodb import legacy, updates
from streamkit.gateway.dynamodb.conditions import holds
from streamkit.gateway.dynamodb.definitions import TableNote
from streamkit.gateway.dynamodb.errors import condition_failed, invalid, invalid_value
from streamkit.gateway.dynamodb.expressions import (
    Change,
    Condition,
    Substitutions,
    parse_condition,
    parse_update,
)
from streamkit.gateway.dynamodb.requests import Fields, violation
from streamkit.gateway.dynamodb.values import Item, check_item_size, kind_of, parse_item

Kind = Literal["put", "update", "delete", "check"]
_RETURNS = ("ALL_NEW", "UPDATED_OLD", "ALL_OLD", "NONE", "UPDATED_NEW")
_ON_FAILURE = ("ALL_OLD", "NONE")


@dataclass(frozen=True, slots=True)
class Write:
    """named: the item to put, of all other kinds the key. creates: an update makes the item when it is missing.

    shows: on a failed condition the error holds the item that was there.
    """

    kind: Kind
    table: str
    named: Item
    condition: Condition | None = None
    changes: tuple[Change, ...] = ()
    creates: bool = True
    shows: bool = False
    returns: str = "NONE"

    def key(self, table: TableNote) -> Item:
        """The primary key. Raises DynamoError: it does not fit the table, or a change is of a key attribute."""
        schema = table.keys
        if self.kind == "put":
            schema.check_item(self.named)
        else:
            schema.check_key(self.named)
        for change in self.changes:
            if change.path.name in schema.names:
                raise invalid_value(
                    f"Cannot update attribute {change.path.name}. This attribute is part of the key"
                )
        return schema.key_of(self.named)

    def check(self, old: Item | None) -> None:
        """Raises DynamoError (ConditionalCheckFailedException)."""
        if self.condition is not None and not holds(self.condition, old or {}):
            raise condition_failed(old if self.shows else None)

    def outcome(self, table: TableNote, old: Item | None) -> Item | None:
        """The item afterwards, None for none; `old` is not touched. Raises DynamoError."""
        self.check(old)
        if self.kind == "check":
            return old
        if self.kind == "delete":
            return None
        if self.kind == "put":
            new = self.named
        elif old is None and not self.creates:
            return None
        else:
            new = updates.apply(self.changes, self.named if old is None else old)
        check_item_size(new, updated=self.kind == "update")
        check_index_keys(new, table)
        return new


def check_index_keys(item: Item, table: TableNote) -> None:
    """An item need not be in an index, but what it has of the index's key must fit. Raises DynamoError."""
    for index_name, index in table.indexes.items():
        for name, _ in index.schema:
            value = item.get(name)
            if value is None:
                continue
            if (kind := kind_of(value)) != table.kinds[name]:
                raise invalid_value(
                    f"Type mismatch for Index Key {name} Expected: {table.kinds[name]} Actual: {kind} "
                    f"IndexName: {index_name}"
                )
            if not value[kind]:
                raise invalid(
                    "One or more parameter values are not valid. A value specified for a secondary index key is not "
                    "supported. The AttributeValue for a key attribute cannot contain an empty string value. "
                    f"IndexName: {index_name}, IndexKey: {name}"
                )


def mixed(fields: Fields, old: Sequence[str], new: Sequence[str]) -> None:
    """Legacy parameters and expressions do not go together. Raises DynamoError."""
    one = [name for name in old if fields.has(name)]
    two = [name for name in new if fields.has(name)]
    if one and two:
        raise invalid(
            "Can not use both expression and non-expression parameters in the same request: "
            f"Non-expression parameters: {{{', '.join(one)}}} Expression parameters: {{{', '.join(two)}}}"
        )


def substitutions_of(fields: Fields, *expressions: str) -> Substitutions:
    """expressions: the members that may use them. Raises DynamoError."""
    if not any(fields.has(name) for name in expressions):
        for name in ("ExpressionAttributeNames", "ExpressionAttributeValues"):
            if fields.has(name):
                raise invalid(f"{name} can only be specified when using expressions: {expressions[-1]} is null")
    return Substitutions.parse(fields.get("ExpressionAttributeNames"), fields.get("ExpressionAttributeValues"))


def parse_write(kind: Kind, fields: Fields, *, single: bool = True) -> Write:
    """Of PutItem, UpdateItem, DeleteItem, or (not single) of a transaction's member. Raises DynamoError."""
    table = fields.table()
    member = "Item" if kind == "put" else "Key"
    if fields.get(member) is None:
        raise violation(fields.label(member), None, "Member must not be null")
    returns = fields.choice("ReturnValues", _RETURNS, "NONE") if single else "NONE"
    if kind != "update" and returns not in ("NONE", "ALL_OLD"):
        raise invalid("ReturnValues can only be ALL_OLD or NONE")
    shows = fields.choice("ReturnValuesOnConditionCheckFailure", _ON_FAILURE, "NONE") == "ALL_OLD"
    expressions = ("UpdateExpression", "ConditionExpression") if kind == "update" else ("ConditionExpression",)
    condition: Condition | None = None
    changes: tuple[Change, ...] = ()
    creates = True
    old_style = ("AttributeUpdates", "Expected", "ConditionalOperator") if single else ()
    mixed(fields, old_style, (*expressions, "ExpressionAttributeNames", "ExpressionAttributeValues"))
    substitutions = substitutions_of(fields, *expressions)
    if kind == "update" and fields.has("UpdateExpression"):
        changes = parse_update(fields.get("UpdateExpression"), substitutions)
    if fields.has("ConditionExpression"):
        condition = parse_condition(fields.get("ConditionExpression"), substitutions)
    substitutions.check_all_used()
    if single:
        if fields.has("AttributeUpdates") and kind == "update":
            changes = legacy.attribute_updates(fields)
            creates = not changes or any(change.action in ("set", "add") for change in changes)
        if fields.has("Expected") or fields.has("ConditionalOperator"):
            condition = legacy.expected(fields)
    if kind == "check" and condition is None:
        raise violation(fields.label("ConditionExpression"), None, "Member must not be null")
    if kind == "update" and not single and not changes:
        raise violation(fields.label("UpdateExpression"), None, "Member must not be null")
    named = parse_item(fields.get(member), member)
    if kind == "put":
        check_item_size(named)
    return Write(kind, table, named, condition, changes, creates, shows, returns)
