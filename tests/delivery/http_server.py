"""A small HTTP/1.1 server on loopback, for doubles of what sinks write to: it answers as it is told, also badly."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Request:
    """headers: names in lower case. body: decompressed. connection: its number."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    connection: int

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    """status 0: the connection is cut. endless: the body never comes to its end; each byte of it waits a moment."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    chunked: bool = False
    endless: bool = False

    @classmethod
    def of(cls, value: Any, status: int = 200, **headers: str) -> Reply:
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json"} | named)


CUT = Reply(0)


@asynccontextmanager
async def http_server(answer: Callable[[Request], Reply]) -> AsyncIterator[str]:
    """Its URL."""
    serving: set[asyncio.Task[None]] = set()
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        number = connections
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            while await _one(reader, writer, answer, number):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            return                         # the client went away
        finally:
            serving.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(serving):
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


async def _one(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Callable[[Request], Reply], connection: int
) -> bool:
    """A request; whether another one may follow on this connection."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip().split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    if headers.get("content-encoding") == "gzip":
        body = gzip.decompress(body)
    parts = urlsplit(target)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    reply = answer(Request(method, parts.path, query, headers, body, connection))
    if not reply.status:
        return False
    length = {"Transfer-Encoding": "chunked"} if reply.chunked else {"Content-Length": str(len(reply.body))}
    if reply.endless:
        length = {"Content-Length": "1000000000"}
    if reply.status == 204:
        length = {}
    head = "".join(f"{name}: {value}\r\n" for name, value in (reply.headers | length).items())
    writer.write(f"HTTP/1.1 {reply.status} X\r\n{head}\r\n".encode("latin-1"))
    while reply.endless:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.01)
    if reply.chunked:
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(reply.body), reply.body))
    else:
        writer.write(reply.body)
    await writer.drain()
    return True
