"""What a listener and a handler exchange: a whole request in, a response or a stream out. No socket, no clock.

The listener adds `date` and the framing of the body; every other header is the handler's. When the peer goes away
the handler's task, or the function that streams, is cancelled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(slots=True)
class Request:
    """target: as sent, path and perhaps ?query, latin-1 text; in HTTP/2 the :path.

    headers: names in lower case, repeated ones joined by ","; :authority becomes "host". body: whole, bounded by
    the listener. peer: "host:port".
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
        return self.target.partition("?")[2]


class Sender(Protocol):
    """Takes a streamed body."""

    async def send(self, chunk: bytes | memoryview) -> None:
        """Flushed at once. Returns when the peer has taken (nearly) all of it, so that a caller holds one chunk.

        Raises ConnectionFailed when the peer has gone or reset the stream.
        """


@dataclass(slots=True)
class Response:
    """stream: instead of a body; the response then has no content-length."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | memoryview = b""
    stream: Callable[[Sender], Awaitable[None]] | None = None


Handler = Callable[[Request], Awaitable[Response]]
