"""What sinks over HTTP share: bounded requests, and what goes wrong with them in streamkit's words.

aiohttp is loaded when a sink is made. Redirects are not followed: where records go is said once, in the configuration.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import msgspec

from streamkit.errors import (
    ConnectionFailed,
    InvalidUse,
    SinkMisused,
    StreamkitError,
    Throttled,
    TimedOut,
    Unavailable,
)
from streamkit.runtime.libraries import library

_PASSING = (408, 425, 429)                 # the refusals among 3xx and 4xx that go by themselves
_TOLD_CHARACTERS_MAX = 500


@dataclass(frozen=True, slots=True)
class Answer:
    """headers: found in any case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """None when it is none."""
        try:
            return msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None

    @property
    def text(self) -> str:
        """Its beginning, for people."""
        return self.body[:_TOLD_CHARACTERS_MAX].decode("utf-8", "replace")

    @property
    def retry_after_ms(self) -> float:
        """As its header asks; a date counts from the answer's own. 0: it asks for nothing that can be read."""
        asked = self.headers.get("Retry-After", "").strip()
        if asked.isascii() and asked.isdigit():
            return int(asked[:9]) * 1_000.0
        try:
            wait = parsedate_to_datetime(asked) - parsedate_to_datetime(self.headers.get("Date", ""))
        except (TypeError, ValueError):    # no date, or one of them without a zone
            return 0.0
        return max(0.0, wait.total_seconds() * 1_000)


class HttpClient:
    """Requests to one address. sink: its name in errors; tls: True, or an ssl.SSLContext of one's own; answers longer
    than answer_bytes_max are not read on.

    private_only: plain http goes to loopback and private networks alone. Raises InvalidUse, MissingLibrary.
    """

    def __init__(
        self, sink: str, url: str, *, timeout_seconds: float, answer_bytes_max: int, tls: Any = True,
        connections: int = 100, headers: Mapping[str, str] | None = None, private_only: bool = False,
    ) -> None:
        library("aiohttp", "sinks")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidUse(f"{url!r} is no address", try_="https://host:port/path", argument="url")
        if parts.username or parts.password:
            raise InvalidUse("an address holds no password: it is shown in errors", try_="give it as an argument",
                             argument="url")
        for name, value in (headers or {}).items():
            check_header(name, value)
        if timeout_seconds <= 0:
            raise InvalidUse(f"timeout_seconds must be above 0, got {timeout_seconds}", try_="timeout_seconds=60",
                             argument="timeout_seconds")
        self.url = url
        self.address = f"{parts.scheme}://{parts.netloc}"
        self._host, self._plain = parts.hostname, parts.scheme == "http"
        self._sink = sink
        self._timeout_seconds = timeout_seconds
        self._bytes_max = answer_bytes_max
        self._tls = tls
        self._connections = connections
        self._headers = {"Accept-Encoding": "identity", "User-Agent": "streamkit", **(headers or {})}
        self._private_only = private_only
        self._session: Any = None

    async def open(self) -> None:
        """Connections are made as they are needed. Raises SinkMisused for an address that plain http may not go to."""
        if self._plain and self._private_only and not await self._is_private():
            raise SinkMisused(f"{self.address} is not in a private network, and http is not encrypted",
                              try_="use https", sink=self._sink, told="")  # fmt: skip
        aiohttp = library("aiohttp", "sinks")
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._connections, ssl=self._tls), headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=self._timeout_seconds), auto_decompress=False, trust_env=True,
            cookie_jar=aiohttp.CookieJar(unsafe=True),     # of addresses without a name, too
        )  # fmt: skip

    async def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """path: behind the URL, or "". Raises ConnectionFailed, TimedOut, Unavailable, SinkMisused."""
        assert self._session is not None, "it is open"
        aiohttp = library("aiohttp", "sinks")
        try:
            async with self._session.post(self.url + path, data=body, headers=headers, allow_redirects=False) as said:
                read = bytearray()
                async for piece in said.content.iter_any():
                    read += piece
                    if len(read) > self._bytes_max:
                        said.close()       # what is left of it would be read before the connection is used again
                        raise Unavailable(f"{self.address} answers with more than {self._bytes_max} bytes",
                                          status=said.status, reason="response_too_large")  # fmt: skip
                return Answer(said.status, said.headers, bytes(read))
        except TimeoutError as cause:
            raise TimedOut(f"{self.address} did not answer within {self._timeout_seconds:g} s", sent=True,
                           timeout_ms=round(self._timeout_seconds * 1000)) from cause  # fmt: skip
        except aiohttp.ClientSSLError as cause:
            raise SinkMisused(f"{self.address}: {cause}", try_="look at the address and its certificate",
                              sink=self._sink, told=str(cause)) from cause  # fmt: skip
        except aiohttp.ClientConnectorError as cause:
            raise ConnectionFailed(f"{self.address} cannot be reached: {cause}", address=self.address,
                                   sent=False) from cause  # fmt: skip
        except (aiohttp.ClientError, OSError) as cause:
            raise ConnectionFailed(f"the connection to {self.address} broke: {cause}", address=self.address,
                                   sent=True) from cause  # fmt: skip

    def cookies(self) -> dict[str, str]:
        """That the other side has set."""
        return {cookie.key: cookie.value for cookie in self._session.cookie_jar}

    async def close(self) -> None:
        """With all its connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def failure(self, answer: Answer, what: str = "", **facts: Any) -> StreamkitError:
        """What to raise for an answer that is no success. what: instead of its own beginning."""
        told = what or answer.text
        message = f"{self.address} answers {answer.status}: {told}"
        if answer.retry_after_ms:
            facts["retry_after_ms"] = answer.retry_after_ms
        if answer.status == 429:
            return Throttled(message, scope=self.address, **facts)
        if 300 <= answer.status < 500 and answer.status not in _PASSING:
            return SinkMisused(message, try_="look at the address, the credentials and what the other side logs",
                               sink=self._sink, told=told, **facts)  # fmt: skip
        return Unavailable(message, status=answer.status, **facts)

    async def _is_private(self) -> bool:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(self._host, None)
        except OSError as cause:
            raise ConnectionFailed(f"{self._host} has no address: {cause}", address=self.address,
                                   sent=False) from cause  # fmt: skip
        return all(ipaddress.ip_address(str(where[4][0]).partition("%")[0]).is_private for where in found)


def check_header(name: str, value: str) -> None:
    """Raises InvalidUse for what a header cannot hold."""
    if not (value.isascii() and value.isprintable()):
        raise InvalidUse(f"{name} holds what a header cannot", try_="take out what is not printable ASCII",
                         argument=name)
