"""What DynamoDB calls its errors. All are status 400, and none carries a secret."""

from __future__ import annotations

from typing import Any

_MODEL = "com.amazonaws.dynamodb.v20120810#"
_CORAL = {
    "ValidationException": "com.amazon.coral.validate#",
    "SerializationException": "com.amazon.coral.service#",
}


class DynamoError(Exception):
    """An answer that is an error; name: as DynamoDB calls it; members: what the reply holds beside type and message."""

    def __init__(self, name: str, message: str, *, status: int = 400, **members: Any) -> None:
        super().__init__(message)
        self.name = name
        self.status = status
        self.members = members

    @property
    def kind(self) -> str:
        """What stands in `__type`; clients read what follows the #."""
        return _CORAL.get(self.name, _MODEL) + self.name

    def body(self) -> dict[str, Any]:
        # A cancelled transaction writes its message with a capital; clients read either.
        word = "Message" if "CancellationReasons" in self.members else "message"
        return {"__type": self.kind, word: str(self), **self.members}


def invalid(message: str) -> DynamoError:
    return DynamoError("ValidationException", message)


def invalid_value(message: str) -> DynamoError:
    return invalid(f"One or more parameter values were invalid: {message}")


def malformed(message: str) -> DynamoError:
    return DynamoError("SerializationException", message)


def unsupported(what: str) -> DynamoError:
    """streamkit's own words: the real service would take it."""
    return invalid(f"{what} is not supported by this endpoint, which holds lease tables only")


def table_missing() -> DynamoError:
    return DynamoError("ResourceNotFoundException", "Requested resource not found")


def table_in_use(name: str) -> DynamoError:
    return DynamoError("ResourceInUseException", f"Table already exists: {name}")


def condition_failed(item: dict[str, Any] | None) -> DynamoError:
    """item: the one that was there, when the caller asked for it."""
    error = DynamoError("ConditionalCheckFailedException", "The conditional request failed")
    if item is not None:
        error.members["Item"] = item
    return error
