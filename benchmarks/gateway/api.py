"""The Kinesis API with as little client as can be: requests built beforehand, one at a time on a connection.

A load generator must not be what is measured: bodies are made once, answers are kept as bytes, and nobody parses more
than he needs. The header for the signature is there in its form; none of the servers is asked to check it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Sequence
from typing import Any, cast
from urllib.parse import urlsplit

JSON = "application/x-amz-json-1.1"
CBOR = "application/x-amz-cbor-1.1"
_SCOPE = "Credential=AKIDBENCH/20260101/us-east-1/kinesis/aws4_request"
_SIGNED = "SignedHeaders=content-type;host;x-amz-date;x-amz-target"
_FAILED = re.compile(rb'"FailedRecordCount"\s*:\s*(\d+)')
_NEXT = re.compile(rb'"NextShardIterator"\s*:\s*"([^"]*)"')
_MILLIS = re.compile(rb'"MillisBehindLatest"\s*:\s*(\d+)')


class RequestFailed(Exception):
    """An answer that is not 200, or a connection that ended."""


class Api:
    """Builds requests for one server. url: http://host:port."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None and parts.port is not None
        self.host, self.port = parts.hostname, parts.port

    def request(self, operation: str, body: bytes | dict[str, Any], content_type: str = JSON) -> bytes:
        """Head and body in one piece."""
        if isinstance(body, dict):
            body = json.dumps(body, separators=(",", ":")).encode()
        head = (
            f"POST / HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nContent-Type: {content_type}\r\n"
            f"X-Amz-Target: Kinesis_20131202.{operation}\r\nX-Amz-Date: 20260101T000000Z\r\n"
            f"Authorization: AWS4-HMAC-SHA256 {_SCOPE}, {_SIGNED}, Signature={'0' * 64}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    async def connect(self, count: int) -> list[Connection]:
        connections = [Connection(self.host, self.port) for _ in range(count)]
        for connection in connections:
            await connection.open()
        return connections


class Connection(asyncio.Protocol):
    """One request at a time; the next may be sent when the answer is there.

    A server that closes after each answer (moto) is connected to again.
    """

    def __init__(self, host: str, port: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._host, self._port = host, port
        self._parts: list[bytes] = []
        self._have = 0
        self._need = -1                            # of head and body; -1: the head is not whole, or there is no length
        self._body_at = 0
        self._status = 0
        self._answer: asyncio.Future[bytes] | None = None

    async def open(self) -> None:
        await self._loop.create_connection(lambda: self, self._host, self._port)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._closing = False

    async def ask(self, request: bytes) -> bytes:
        """The body of the answer. Raises RequestFailed."""
        if self._closing:
            self._transport.abort()
            await self.open()
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self._answer = answer
        self._transport.write(request)
        return await answer

    async def call(self, api: Api, operation: str, **members: Any) -> dict[str, Any]:
        """For what is not measured: members in, members out."""
        body = await self.ask(api.request(operation, members))
        found: dict[str, Any] = json.loads(body) if body else {}
        return found

    def data_received(self, data: bytes) -> None:
        self._parts.append(data)
        self._have += len(data)
        if self._need < 0:
            self._look()
        if 0 <= self._need <= self._have:
            self._done(b"".join(self._parts) if len(self._parts) > 1 else self._parts[0])

    def _look(self) -> None:
        # Without a length the body is chunked, and looked at anew with each piece: such servers are not the fast ones.
        whole = b"".join(self._parts)
        self._parts = [whole]
        at = whole.find(b"\r\n\r\n")
        if at < 0:
            return
        head = whole[:at].lower()
        self._status, self._body_at = int(head[9:12]), at + 4
        self._closing = b"\r\nconnection: close" in head
        found = head.find(b"\r\ncontent-length:")
        if found >= 0:
            end = head.find(b"\r\n", found + 2)
            self._need = self._body_at + int(head[found + 17 : end if end > 0 else len(head)])
        elif whole.endswith(b"0\r\n\r\n"):
            body = unchunked(whole, self._body_at)
            if body is not None:
                self._parts = [whole[: self._body_at] + body]
                self._need = self._have = len(self._parts[0])

    def _done(self, whole: bytes) -> None:
        body, status, answer = whole[self._body_at :], self._status, self._answer
        self._parts, self._have, self._need, self._answer = [], 0, -1, None
        if answer is None or answer.done():
            return
        if status == 200:
            answer.set_result(body)
        else:
            answer.set_exception(RequestFailed(f"{status} {body[:300].decode(errors='replace')}"))

    def connection_lost(self, error: Exception | None) -> None:
        if self._closing:
            return                                 # it may be the one before the one that is open now
        self._closing = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(RequestFailed(f"the connection ended: {error}"))

    def close(self) -> None:
        self._transport.abort()


def unchunked(whole: bytes, at: int) -> bytes | None:
    """The body, which begins at `at`, without its chunks; None when it is not all there."""
    parts: list[bytes] = []
    while True:
        end = whole.find(b"\r\n", at)
        if end < 0:
            return None
        size = int(whole[at:end].partition(b";")[0], 16)
        if size == 0:
            return b"".join(parts)
        if end + 2 + size + 2 > len(whole):
            return None
        parts.append(whole[end + 2 : end + 2 + size])
        at = end + 2 + size + 2


# -- bodies and what is looked for in answers ------------------------------------------------------------------------


def put_records_body(stream: str, values: Sequence[bytes], keys: Sequence[str], *, cbor: bool = False) -> bytes:
    if cbor:
        import cbor2

        entries = [{"Data": value, "PartitionKey": key} for value, key in zip(values, keys, strict=True)]
        return bytes(cbor2.dumps({"StreamName": stream, "Records": entries}))
    records = ",".join(
        f'{{"Data":"{base64.b64encode(value).decode()}","PartitionKey":"{key}"}}'
        for value, key in zip(values, keys, strict=True)
    )
    return f'{{"StreamName":"{stream}","Records":[{records}]}}'.encode()


def put_record_body(stream: str, value: bytes, key: str) -> bytes:
    data = base64.b64encode(value).decode()
    return f'{{"StreamName":"{stream}","Data":"{data}","PartitionKey":"{key}"}}'.encode()


def failed_count(body: bytes, *, cbor: bool = False) -> int:
    """FailedRecordCount of an answer to PutRecords. Raises RequestFailed when there is none."""
    at = body.find(b"FailedRecordCount") if cbor else -1
    found = None if cbor else _FAILED.search(body)
    if at < 0 and found is None:
        raise RequestFailed("an answer to PutRecords without FailedRecordCount")
    # In CBOR small numbers are their own byte; any other one is not zero either.
    return int(found[1]) if found is not None else body[at + 17]


def next_iterator(body: bytes) -> str:
    """Empty at a shard's end."""
    found = _NEXT.search(body, max(0, len(body) - 2000)) or _NEXT.search(body)
    return found[1].decode() if found else ""


def record_count(body: bytes) -> int:
    return body.count(b'"PartitionKey"')


def milliseconds_behind(body: bytes) -> int:
    found = _MILLIS.search(body, max(0, len(body) - 2000)) or _MILLIS.search(body)
    return int(found[1]) if found else 0
