"""What happens when a record cannot be handled: how often it is tried again, and where it goes then.

    failed ──▶ retried with back-off ──▶ exhausted ──▶ block        tried again at the longest back-off, for ever
       └── permanent (does not decode, rejected) ──▶    dead_letter  copied there, acknowledged, then passed over
                                                        pause        the lease waits for an operator
                                                        skip         passed over, counted and logged; only if chosen
                                                        stop         the worker ends with the error
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import msgspec

from streamkit._core.batch import Record
from streamkit.errors import DecodeFailed, InvalidUse, StreamkitError
from streamkit.model.codec import explain

_TRACE_BYTES_MAX = 8 * 1024
_REASON_CHARACTERS_MAX = 1_000
_HEADERS_BYTES_MAX = 65_535


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often a record is tried, and how long the waits between are: first_ms, doubling, at most last_ms."""

    attempts_max: int = 10
    first_ms: int = 100
    last_ms: int = 30_000
    jitter: float = 0.2                    # share of a wait that is drawn at random

    def __post_init__(self) -> None:
        if self.attempts_max < 1 or not 0 < self.first_ms <= self.last_ms or not 0 <= self.jitter <= 1:
            raise InvalidUse(
                f"not a retry policy: attempts_max={self.attempts_max}, first_ms={self.first_ms}, "
                f"last_ms={self.last_ms}, jitter={self.jitter}",
                try_="choose attempts_max >= 1, 0 < first_ms <= last_ms, jitter 0..1",
            )

    def wait_ms(self, attempts: int, drawn: float) -> float:
        """After that many failed attempts (1 and up); drawn: 0 … 1."""
        whole = min(self.first_ms * 2.0 ** min(attempts - 1, 60), float(self.last_ms))
        return whole * (1 - self.jitter * drawn)


class Rejected(StreamkitError):
    """`ctx.reject(reason)`: no retry will help; facts: none."""

    code = "rejected"


class RetryLater(StreamkitError):
    """`ctx.retry_later(seconds)`: not now; facts: seconds."""

    code = "retry_later"


class PauseAsked(StreamkitError):
    """`ctx.pause(reason)`: the shard is to wait for an operator."""

    code = "pause_asked"


class Surrendered(StreamkitError):
    """A processor cannot go on with what it was given: the lease is given back and begins anew at its checkpoint."""

    code = "surrendered"


class ProcessDied(StreamkitError):
    """A record that workers died on, each time it was delivered; facts: attempts."""

    code = "process_died"


class Aborted(StreamkitError):
    """The handler was cancelled from elsewhere, or tried to end the process; facts: none. Its cause says which."""

    code = "aborted"


class HandlerTimedOut(StreamkitError):
    """A call took longer than handler_timeout_seconds, and was cancelled; facts: seconds."""

    code = "handler_timed_out"


class Unhandled(StreamkitError):
    """No handler's condition holds for the record; facts: none."""

    code = "unhandled"


def is_permanent(error: BaseException) -> bool:
    """Trying again cannot help."""
    return isinstance(error, DecodeFailed | Rejected | Unhandled)


def reason_of(error: BaseException) -> str:
    """One line for people: what the data lacks, or the error's class and text."""
    if isinstance(error, Rejected | Unhandled):
        return str(error)
    if isinstance(error, DecodeFailed):
        return explain(error.__cause__ or error)[:_REASON_CHARACTERS_MAX]
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return text[:_REASON_CHARACTERS_MAX]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadRecord:
    """A record on its way to the dead-letter stream. Times in Unix milliseconds."""

    record: Record[Any]
    error: BaseException
    attempts: int
    application: str
    worker: str
    failed_first_ms: int
    failed_last_ms: int

    def headers(self) -> bytes:
        """The record's own headers and where it comes from; the trace goes first when there is no room."""
        origin = self._origin()
        trace = "".join(traceback.format_exception(self.error))[-_TRACE_BYTES_MAX:].encode()[-_TRACE_BYTES_MAX:]
        own = _own_headers(self.record)
        for kept in ({**own, **origin, "dead-letter-trace": trace}, {**own, **origin}):
            packed = msgspec.msgpack.encode(kept)
            if len(packed) <= _HEADERS_BYTES_MAX:
                return packed
        return msgspec.msgpack.encode(origin)

    def _origin(self) -> dict[str, bytes]:
        record = self.record
        facts: Mapping[str, object] = {
            "stream": record.stream,
            "shard": record.shard,
            "sequence-number": record.sequence_number,
            **({} if record.sub_sequence is None else {"sub-sequence": record.sub_sequence}),
            "arrived-ms": int(record.arrived.timestamp() * 1000),
            "failed-first-ms": self.failed_first_ms,
            "failed-last-ms": self.failed_last_ms,
            "attempts": self.attempts,
            "error": type(self.error).__name__,
            "reason": reason_of(self.error),
            "application": self.application,
            "worker": self.worker,
        }
        return {f"dead-letter-{name}": str(value).encode() for name, value in facts.items()}


def _own_headers(record: Record[Any]) -> dict[str, bytes]:
    try:
        return dict(record.headers)
    except DecodeFailed:
        return {}                          # unreadable headers are one reason why a record ends here


def raise_rejected(reason: str) -> NoReturn:
    raise Rejected(reason or "rejected by the handler")
