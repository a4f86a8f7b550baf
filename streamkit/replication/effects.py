"""What the owner does after a step. None and False: nothing of that kind."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Verdict(IntEnum):
    """What a copy says to a leader that sent it something; numbers travel."""

    ACCEPTED = 0       # end: one past the last record held at the level asked for, and known to be the leader's
    MISMATCH = 1       # end: send from there
    STALE = 2          # a newer epoch is promised
    UNKNOWN = 3        # there is no such copy here
    REFUSED = 4        # the disk takes nothing


@dataclass(frozen=True, slots=True)
class Answer:
    """To the leader of `epoch`; for STALE, epoch is the one that is promised."""

    verdict: Verdict
    epoch: int
    end: int


@dataclass(frozen=True, slots=True)
class Adopt:
    """Fetch [start, end) from that node's copy, as it is there. reset: begin anew at `start`, which lies behind

    everything that is here. epochs: the table it had when it promised; what is not of these epochs is another log's.
    """

    node: str
    start: int
    end: int
    reset: bool
    epochs: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Effects:
    """In the order in which the owner carries them out.

    step_down: stop leading or standing, at once.
    promise: make that epoch durable, then step(Promised).
    truncate: cut the log there, then step(Truncated). reset: empty it, it begins there; then step(Truncated).
    accept: append what was offered, then step(Appended). hear: then ask the follower what it heard.
    certain: make the copy's vote count, durably.
    high_watermark: readers may read up to here, and puts below it are acknowledged.
    answer: send to the leader. seal: answer whoever asked to seal, now.
    adopt: then step(Adopted). lead: begin to lead, with this as the first high watermark.
    """

    step_down: bool = False
    promise: int | None = None
    truncate: int | None = None
    reset: int | None = None
    accept: bool = False
    hear: bool = False
    certain: bool = False
    high_watermark: int | None = None
    answer: Answer | None = None
    seal: bool = False
    adopt: Adopt | None = None
    lead: int | None = None


NOTHING = Effects()
ACCEPT = Effects(accept=True, hear=True)
HEAR = Effects(hear=True)
