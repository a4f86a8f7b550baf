"""What can happen to a copy, as frozen values. Sequences are ends: one past the last."""

from __future__ import annotations

from dataclasses import dataclass

from streamkit.replication.replica import Ends
from streamkit.replication.replica_set import Member

# ---- at the leader -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Progressed:
    """A replica's log reaches further, or safer, than it did.

    replica: its incarnation. epoch: the leadership under which it took those batches; news of another one is not ours.
    """

    replica: bytes
    epoch: int
    ends: Ends


@dataclass(frozen=True, slots=True)
class EpochStarted:
    """The leader's own log holds the epoch-start batch: everything at or after `start` is of its epoch."""

    epoch: int
    start: int


# ---- at a copy that follows --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Offered:
    """Batches [start, end) from the leader of `epoch`, perhaps none.

    previous_epoch: of the record before `start`; 0: the leader does not know it any more.
    leader_end: how far its log reached when it sent this. epoch_start: where its epoch begins.
    differs_at: the first batch in it that our log holds otherwise; None: there is none.
    """

    epoch: int
    start: int
    end: int
    previous_epoch: int
    high_watermark: int
    log_start: int
    leader_end: int
    epoch_start: int
    differs_at: int | None = None


@dataclass(frozen=True, slots=True)
class Appended:
    """What was offered up to `end` is in our log."""

    end: int


@dataclass(frozen=True, slots=True)
class Truncated:
    """Our log was cut, or emptied, as asked."""


@dataclass(frozen=True, slots=True)
class Flushed:
    """Our log is safe up to `end` at the level that the stream asks for."""

    end: int


@dataclass(frozen=True, slots=True)
class SealAsked:
    """Someone wants to lead in that epoch."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Promised:
    """That promise is on disk."""

    epoch: int


# ---- at a candidate ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sealed:
    """A copy has promised `epoch`, and says what it holds. epochs: its epoch table.

    doubtful: it is uncertain for no other reason than that a loss of power tore the very last thing it was writing:
    most likely nobody was told of it, but a damaged record looks the same.
    """

    member: Member
    epoch: int
    certain: bool
    log_start: int
    log_end: int
    high_watermark: int
    epochs: tuple[tuple[int, int], ...]
    doubtful: bool = False

    @property
    def last(self) -> tuple[int, int]:
        """What logs are compared by: the epoch of the last record, then the length."""
        return (self.epochs[-1][0] if self.epochs else 0), self.log_end


@dataclass(frozen=True, slots=True)
class Adopted:
    """Our log holds what was to be fetched."""
