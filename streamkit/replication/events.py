"""What can happen to a replica, as frozen values. Sequences are ends: one past the last."""

from __future__ import annotations

from dataclasses import dataclass

from streamkit.replication.replica import Ends


@dataclass(frozen=True, slots=True)
class Progressed:
    """A replica's log reaches further, or safer, than it did.

    epoch: the leadership under which the replica took those batches; news of another one is not ours.
    """

    replica: bytes
    epoch: int
    ends: Ends


@dataclass(frozen=True, slots=True)
class EpochStarted:
    """The leader's own log holds the epoch-start batch: everything at or after `start` is of its epoch."""

    epoch: int
    start: int
