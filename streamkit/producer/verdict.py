"""What a refused or unanswered batch means. Pure.

    RETRY     the same bytes again, after a pause
    REFRESH   the same, after asking where the shard is; three times in a row without success is FAIL
    RENAME    the shard does not know the producer: a new identity
    FAIL      the batch ends here
"""

from __future__ import annotations

from enum import Enum

from streamkit.errors import (
    Closed,
    ConnectionFailed,
    DiskFull,
    InvalidRequest,
    NotFound,
    NotLeader,
    ProducerFenced,
    SequenceGap,
    StreamkitError,
    Throttled,
    TimedOut,
    UnknownProducer,
    WrongShard,
)

REFRESHES_MAX = 3

Verdict = Enum("Verdict", "RETRY REFRESH RENAME FAIL")

# Refusals that say for certain: not stored, and this copy of the batch never will be.
_DEFINITE = (DiskFull, InvalidRequest, NotFound, ProducerFenced, SequenceGap, Throttled, UnknownProducer, WrongShard)


def judge(error: StreamkitError) -> Verdict:
    """What to do with a batch that ended in `error`."""
    if isinstance(error, NotLeader | WrongShard | NotFound):
        return Verdict.REFRESH
    if isinstance(error, UnknownProducer):
        return Verdict.RENAME
    if isinstance(error, Closed):          # a connection can be made anew, a client that was closed can not
        return Verdict.FAIL if error.facts.get("what") == "client" else Verdict.RETRY
    return Verdict.RETRY if error.retryable else Verdict.FAIL


def is_in_doubt(error: StreamkitError) -> bool:
    """True when the batch may have been stored, or may still be."""
    if isinstance(error, ConnectionFailed | TimedOut):
        return bool(error.facts.get("sent", True))
    return not isinstance(error, _DEFINITE)
