"""Errors as the API names them, and what streamkit's own errors become there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamkit.errors import CorruptFile, StreamkitError, Throttled, TimedOut, Unavailable


class ApiError(Exception):
    """An answer other than success. message None: the body has none.

    members: more of the body, beside the name and the message, ready for the wire.
    """

    def __init__(
        self, name: str, message: str | None = None, status: int = 400, members: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(name, message)
        self.name = name
        self.message = message
        self.status = status
        self.members = members

    def __str__(self) -> str:
        return f"{self.name}: {self.message}" if self.message else self.name


def serialization(message: str | None = None) -> ApiError:
    """The body, or a value in it, is not of the type that belongs there."""
    return ApiError("SerializationException", message)


def validation(message: str) -> ApiError:
    """A value outside the model's constraints."""
    return ApiError("ValidationException", message)


def invalid_argument(message: str) -> ApiError:
    """A value that is well-formed and makes no sense."""
    return ApiError("InvalidArgumentException", message)


def not_found(message: str) -> ApiError:
    return ApiError("ResourceNotFoundException", message)


def in_use(message: str) -> ApiError:
    return ApiError("ResourceInUseException", message)


def limit_exceeded(message: str) -> ApiError:
    return ApiError("LimitExceededException", message)


def throttled(message: str) -> ApiError:
    """A put or a read that may be tried again soon."""
    return ApiError("ProvisionedThroughputExceededException", message)


def access_denied(message: str) -> ApiError:
    return ApiError("AccessDeniedException", message)


def unavailable(message: str) -> ApiError:
    """Every client tries again."""
    return ApiError("ServiceUnavailable", message, 503)


def dry_run() -> ApiError:
    return ApiError("DryRunOperationException", "The request would have succeeded, but DryRun is set.")


def unknown_operation() -> ApiError:
    return ApiError("UnknownOperationException")


def internal_failure() -> ApiError:
    """Says nothing of what happened; the log does."""
    return ApiError("InternalFailureException", "Internal service failure.", 500)


def corrupt_note(key: str, reason: Exception) -> CorruptFile:
    """A note of a service that cannot be read."""
    return CorruptFile(
        f"the note under {key} cannot be read: {reason}", try_="restore the metadata from a backup",
        path=key, position=0, reason=str(reason),
    )  # fmt: skip


# What an operation lets through. A class stands for those below it; the nearest one counts. What is not here is a
# fault of ours: 500.
STREAMKIT_ERRORS: dict[type[StreamkitError], tuple[str, int]] = {
    Unavailable: ("ServiceUnavailable", 503),      # NotLeader, ConnectionFailed, NodeDraining, DiskFull, …
    TimedOut: ("ServiceUnavailable", 503),
    Throttled: ("ServiceUnavailable", 503),
}


def from_streamkit(error: StreamkitError) -> ApiError | None:
    """None for an error that no operation should have let through."""
    for kind in type(error).__mro__:
        if kind in STREAMKIT_ERRORS:
            name, status = STREAMKIT_ERRORS[kind]
            return ApiError(name, str(error), status)
    return None
