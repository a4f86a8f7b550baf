"""Checkpoints as the KCL has them: at a sequence number or at all that was delivered, refused with the KCL's words."""

from __future__ import annotations

import sys
from typing import Any

from streamkit._core.batch import Batch
from streamkit.compat.sequence_numbers import position_of
from streamkit.consumer.checkpointer import Checkpointer
from streamkit.errors import InvalidPosition, InvalidUse, LeaseLost, StreamkitError, Throttled, TimedOut

SHUTDOWN = "ShutdownException"
THROTTLING = "ThrottlingException"
INVALID_STATE = "InvalidStateException"
DEPENDENCY = "KinesisClientLibDependencyException"
ILLEGAL_ARGUMENT = "IllegalArgumentException"

_PATIENCE_S = 30.0                         # then the application is told, and may try again


class CheckpointError(Exception):
    """A checkpoint was refused. value: the name of the KCL's exception, which applications compare with."""

    def __init__(self, value: str) -> None:
        super().__init__(value)
        self.value = value

    def __str__(self) -> str:
        return repr(self.value)


def checkpoint_error(value: str) -> Exception:
    """Of the class that the application catches: amazon_kclpy's own where that is what it was written with."""
    theirs = sys.modules.get("amazon_kclpy.checkpoint_error")
    kind: type[Exception] = getattr(theirs, "CheckpointError", CheckpointError)
    return kind(value)


class KclCheckpoints:
    """One shard's checkpoints. `begin` and `end` say when one may be made: while a callback runs that allows it."""

    def __init__(self, shard: str) -> None:
        self._shard = shard
        self._checkpointer: Checkpointer | None = None
        self._batch: Batch[Any] | None = None

    def begin(self, checkpointer: Checkpointer, batch: Batch[Any] | None = None) -> None:
        self._checkpointer = checkpointer
        self._batch = batch

    def end(self) -> None:
        self._checkpointer = self._batch = None

    def write(self, number: object = None, sub_number: object = None) -> str | None:
        """Waits until it is stored; None: all that was delivered. Returns the name of what went wrong, or None."""
        checkpointer = self._checkpointer
        if checkpointer is None:
            return INVALID_STATE
        try:
            at = None
            if number is not None:
                at = position_of(number, sub_number, self._shard, self._batch)
                if (at if isinstance(at, tuple) else (at.sequence, 0))[0] < checkpointer.position - 1:
                    return ILLEGAL_ARGUMENT        # a checkpoint never goes back
            checkpointer.checkpoint(at).result(_PATIENCE_S)
        except LeaseLost:
            return SHUTDOWN
        except (InvalidPosition, InvalidUse):
            return ILLEGAL_ARGUMENT
        except Throttled:
            return THROTTLING
        except (StreamkitError, TimedOut):
            return DEPENDENCY
        return None


class KclpyCheckpointer:
    """What a record processor in Python is handed."""

    def __init__(self, checkpoints: KclCheckpoints) -> None:
        self._checkpoints = checkpoints

    def checkpoint(self, sequence_number: str | None = None, sub_sequence_number: int | None = None) -> None:
        """At that record, or at all that was delivered; waits until it is stored. Raises CheckpointError."""
        if (refusal := self._checkpoints.write(sequence_number, sub_sequence_number)) is not None:
            raise checkpoint_error(refusal)


class LeaseLostCheckpointer:
    """After the lease was lost."""

    def checkpoint(self, sequence_number: str | None = None, sub_sequence_number: int | None = None) -> None:
        raise checkpoint_error(SHUTDOWN)
