"""What a handler sees of HTTP: a whole request in, a response out; and the bounds that both protocols keep."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol, TypeVar

T = TypeVar("T")

REASONS = {
    100: "Continue", 200: "OK", 201: "Created", 202: "Accepted", 204: "No Content", 206: "Partial Content",
    301: "Moved Permanently", 302: "Found", 303: "See Other", 304: "Not Modified", 307: "Temporary Redirect",
    308: "Permanent Redirect", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 406: "Not Acceptable", 408: "Request Timeout", 409: "Conflict", 410: "Gone",
    411: "Length Required", 412: "Precondition Failed", 413: "Content Too Large", 414: "URI Too Long",
    415: "Unsupported Media Type", 417: "Expectation Failed", 421: "Misdirected Request",
    422: "Unprocessable Content", 426: "Upgrade Required", 429: "Too Many Requests",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 501: "Not Implemented", 502: "Bad Gateway",
    503: "Service Unavailable", 504: "Gateway Timeout", 505: "HTTP Version Not Supported",
}  # fmt: skip
WITHOUT_BODY = frozenset({204, 304})
_PART_BYTES_MIN = 1024
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@dataclass(slots=True)
class Request:
    """One request, whole.

    target: as sent, latin-1 text: a path and perhaps "?" and a query; in HTTP/2 the :path.
    headers: names in lower case, repeated ones joined by ","; HTTP/2's :authority is "host".
    body: within the listener's bound. peer: "host:port" of the other end; "" when unknown.
    """

    method: str
    target: str
    headers: dict[str, str]
    body: bytes = b""
    http2: bool = False
    secure: bool = False
    peer: str = ""

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        """What follows the first "?"; "" when nothing does."""
        return self.target.partition("?")[2]


class Sender(Protocol):
    """How a `Response.stream` gives out its body."""

    async def send(self, chunk: bytes | memoryview) -> None:
        """Leaves at once, as one chunk or as DATA frames; returns when the peer has room for more, so that who
        awaits holds one chunk at most. The listener may look at `chunk` later: its bytes must not change. Raises
        ConnectionFailed when the peer is gone or wants no more of it.
        """


@dataclass(slots=True)
class Response:
    """headers: without date, content-length, transfer-encoding and connection, which the listener adds; names in
    lower case. stream: instead of `body`; the answer ends when it returns, and breaks off when it raises.
    """

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | memoryview = b""
    stream: Callable[[Sender], Awaitable[None]] | None = None


Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpConfig:
    """Bounds of a listener. Sizes of a request are of what arrives, before any decoding."""

    http2: bool = True                         # False: HTTP/1.1 only, and the HTTP/2 engine is not loaded
    connections_max: int = 1000
    head_bytes_max: int = 64 * 1024            # request line and headers; refused with 431
    headers_max: int = 100                     # refused with 431
    target_bytes_max: int = 8 * 1024           # refused with 414
    body_bytes_max: int = 16 * 1024 * 1024     # refused with 413
    buffered_bytes_max: int = 256 * 1024 * 1024    # request bodies in memory, over all connections; beyond: 503
    pipelined_max: int = 16                    # HTTP/1.1: requests read ahead of a connection's answers
    streams_max: int = 1000                    # HTTP/2: requests of a connection under way
    handlers_max: int = 128                    # HTTP/2: of them in the handler's hands at a time; streaming ones not
    unsent_bytes_max: int = 16 * 1024 * 1024   # HTTP/2: a connection with more of its answers unsent begins no request
    answers_bytes_max: int = 256 * 1024 * 1024     # answers that peers have not taken, all connections; beyond: 503
    write_buffer_bytes: int = 256 * 1024       # of answers handed to a connection's socket before senders wait
    control_frames_max: int = 1000             # HTTP/2: frames that ask and bring nothing, in a burst; 20 s refill it
    head_seconds: float = 10.0                 # from a request's first byte to the end of its headers
    body_seconds: float = 20.0                 # a body may take this long, and as much more as `body_rate_min` allows
    body_rate_min: int = 4096                  # bytes a second
    idle_seconds: float = 90.0                 # without a request under way
    answer_seconds: float = 75.0               # a whole answer of which the peer takes nothing; streams may wait longer
    linger_seconds: float = 1.0                # a refused request is still read this long, so that its answer arrives

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value < 0 or (value == 0 and name not in ("http2", "body_bytes_max", "linger_seconds")):
                raise ValueError(f"{name} must be above 0, got {value}")


class Budget:
    """Bytes of request bodies in memory, over all connections of a listener."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def take(self, size: int) -> bool:
        """False, and nothing taken, when it does not fit."""
        if self.used + size > self.limit:
            return False
        self.used += size
        return True

    def give_back(self, size: int) -> None:
        self.used -= size
        assert self.used >= 0, "more was given back than was taken"


def add_part(parts: list[bytes | bytearray], part: bytes) -> None:
    """To a body that arrives: parts as large as a read of the socket stay as they are, small ones share one part."""
    if not parts or len(part) >= _PART_BYTES_MIN:
        parts.append(part)
    elif type(last := parts[-1]) is bytearray:
        last += part
    else:
        parts.append(bytearray(part))


def joined(parts: list[bytes | bytearray]) -> bytes:
    if len(parts) == 1 and type(only := parts[0]) is bytes:
        return only
    return b"".join(parts)


async def uncancelled(work: Awaitable[T]) -> T:
    """`work`, whose own CancelledError is a failure like any other; only who cancels this task is obeyed.

    Otherwise a handler that awaits something which was cancelled would leave its request without an answer.
    Raises RuntimeError then.
    """
    try:
        return await work
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise RuntimeError("something that a handler waited for was cancelled") from error


def http_date(now_ms: int) -> str:
    """Unix milliseconds as HTTP writes a date: "Sun, 06 Nov 1994 08:49:37 GMT"."""
    at = datetime.fromtimestamp(now_ms // 1000, UTC)
    return (
        f"{_DAYS[at.weekday()]}, {at.day:02} {_MONTHS[at.month - 1]} {at.year:04} "
        f"{at.hour:02}:{at.minute:02}:{at.second:02} GMT"
    )
