"""What a refused or unanswered batch means. Pure.

    RETRY     the same bytes again, after a pause
    REFRESH   the same, while asking where the shard is; see is_passing for how often
    RENAME    the shard does not know the producer: a new identity
    FAIL      the batch ends here
"""

from __future__ import annotations

from enum import Enum

from streamkit.errors import (
    Cancelled,
    Closed,
    ConnectionFailed,
    DiskFull,
    InvalidRequest,
    NodeDraining,
    NotFound,
    NotLeader,
    ProducerFenced,
    SequenceGap,
    ShardClosed,
    StreamkitError,
    Throttled,
    TimedOut,
    Unavailable,
    UnknownProducer,
    WrongShard,
)

REFRESHES_MAX = 3

Verdict = Enum("Verdict", "RETRY REFRESH RENAME FAIL")

# Refusals that say for certain: not stored, and this copy of the batch never will be.
_DEFINITE = (
    Cancelled, DiskFull, InvalidRequest, NotFound, ProducerFenced, SequenceGap, ShardClosed, Throttled, UnknownProducer,
    WrongShard,
)  # fmt: skip


# The shard, or its keys, may be served somewhere else by now.
_ELSEWHERE = (ConnectionFailed, NodeDraining, NotFound, NotLeader, ShardClosed, TimedOut, WrongShard)


def judge(error: StreamkitError) -> Verdict:
    """What to do with a batch that ended in `error`."""
    if isinstance(error, _ELSEWHERE):
        return Verdict.REFRESH
    if isinstance(error, UnknownProducer):
        return Verdict.RENAME
    if isinstance(error, Closed):          # a connection can be made anew, a client that was closed can not
        return Verdict.FAIL if error.facts.get("what") == "client" else Verdict.RETRY
    return Verdict.RETRY if error.retryable else Verdict.FAIL


def is_passing(error: StreamkitError | None) -> bool:
    """True for what goes by when a leader is found or a node is back: it may take until the deadline.

    Anything else that asks for a refresh fails after REFRESHES_MAX rounds without success.
    """
    return isinstance(error, Unavailable | TimedOut | ShardClosed)


def is_in_doubt(error: StreamkitError) -> bool:
    """True when the batch may have been stored, or may still be."""
    if isinstance(error, ConnectionFailed | TimedOut):
        return bool(error.facts.get("sent", True))
    return not isinstance(error, _DEFINITE)
