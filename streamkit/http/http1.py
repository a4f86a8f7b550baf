"""One HTTP/1.1 connection: bytes in, requests out, answers as bytes. No socket, no clock."""

from __future__ import annotations

from dataclasses import dataclass, field

import httptools

_REASONS = {
    200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 408: "Request Timeout",
    413: "Content Too Large", 421: "Misdirected Request", 431: "Request Header Fields Too Large",
    500: "Internal Server Error", 503: "Service Unavailable",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    """path: without the query, as sent. headers: names in lower case; of repeated ones the last."""

    method: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    keep_alive: bool = True


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"

    def to_bytes(self, *, keep_alive: bool, head: bool = False) -> bytes:
        start = (
            f"HTTP/1.1 {self.status} {_REASONS[self.status]}\r\n"
            f"content-type: {self.content_type}\r\ncontent-length: {len(self.body)}\r\n"
            f"cache-control: no-store\r\nx-content-type-options: nosniff\r\n"
            f"connection: {'keep-alive' if keep_alive else 'close'}\r\n\r\n"
        )
        return start.encode("latin-1") + (b"" if head else self.body)


class RequestReader:
    """Feed it what arrives. Requests with a body, with too large a head, or that do not parse end the connection."""

    def __init__(self, *, head_bytes_max: int) -> None:
        self._head_bytes_max = head_bytes_max
        self._parser = httptools.HttpRequestParser(self)
        self._head_bytes = 0
        self._target = b""
        self._headers: dict[str, str] = {}
        self._complete: list[Request] = []
        self.refusal: Answer | None = None

    @property
    def partial(self) -> bool:
        """Whether a request has begun and is not whole yet."""
        return self._head_bytes > 0

    def feed(self, data: bytes) -> list[Request]:
        """The requests that are whole now; look at `refusal` afterwards."""
        if self.refusal is not None:
            return []
        self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.refusal = Answer(400, b"no other protocol is spoken here\n")
        except (httptools.HttpParserError, ValueError, UnicodeDecodeError):
            self.refusal = self.refusal or Answer(400, b"this is not a request that HTTP/1.1 knows\n")
        if self._head_bytes > self._head_bytes_max and self.refusal is None:
            self.refusal = Answer(431, f"a request has at most {self._head_bytes_max} bytes here\n".encode())
        found, self._complete = self._complete, []
        return found

    # -- httptools calls these -----------------------------------------------------------------------------

    def on_url(self, part: bytes) -> None:
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, part: bytes) -> None:
        self.refusal = Answer(413, b"no request has a body here\n")

    def on_message_complete(self) -> None:
        path = self._target.split(b"?", 1)[0].decode("latin-1")
        self._complete.append(
            Request(self._parser.get_method().decode("latin-1"), path, self._headers, self._parser.should_keep_alive())
        )
        self._head_bytes, self._target, self._headers = 0, b"", {}
