"""streamkit itself, through its public library: one node, and `serve --replicas 3`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers.packages import ROOT
from benchmarks.peers.servers import Servers
from benchmarks.peers.system import DISK, PAGE_CACHE, Acknowledged, Client, System, Variant

if TYPE_CHECKING:
    from streamkit import AsyncClient, AsyncProducer
    from streamkit.protocol.frames import PutReceipt

LEVELS = {DISK: "fsync", PAGE_CACHE: "os"}
UNDER_WAY = 1024                   # requests of one record
KEY = "key-0001"


class StreamkitClient(Client):
    """AsyncProducer.put_columns, AsyncReader.batches(), and AsyncClient.put_batch for single records."""

    async def open(self) -> None:
        from streamkit import AsyncClient

        self._client: AsyncClient = AsyncClient(self.facts["url"])
        self._producers: dict[str, AsyncProducer] = {}
        self._shards: dict[str, Any] = {}
        self._room = asyncio.Semaphore(UNDER_WAY)
        self._failures: list[Exception] = []

    async def create(self, log: str) -> None:
        stream = await self._client.create_stream(log, shards=1, durability=self.facts["level"])
        self._shards[log] = stream.shards[0]

    async def _producer(self, log: str) -> AsyncProducer:
        from streamkit import AsyncProducer

        if log not in self._producers:
            self._producers[log] = AsyncProducer(log, client=self._client, codec="bytes", compression="none")
        return self._producers[log]

    async def produce(self, log: str, values: Sequence[bytes]) -> None:
        import pyarrow

        producer = await self._producer(log)
        await producer.put_columns(_keys(len(values)), pyarrow.array(values, pyarrow.binary()))

    async def single(self, log: str, values: Sequence[bytes]) -> None:
        for value in values:
            await self._room.acquire()
            self._client.put_batch(self._shards[log], _sealed(value), self._answered)

    def _answered(self, answer: PutReceipt | Exception) -> None:
        self._room.release()
        if isinstance(answer, Exception):
            self._failures.append(answer)

    async def flush(self) -> None:
        for producer in self._producers.values():
            await producer.flush()
        for _ in range(UNDER_WAY):
            await self._room.acquire()
        for _ in range(UNDER_WAY):
            self._room.release()
        if self._failures:
            raise self._failures[0]

    def send(self, log: str, value: bytes, acknowledged: Acknowledged) -> None:
        def done(answer: PutReceipt | Exception) -> None:
            acknowledged(answer if isinstance(answer, Exception) else None)

        self._client.put_batch(self._shards[log], _sealed(value), done)

    async def consume(self, log: str) -> AsyncIterator[list[bytes]]:
        from streamkit import AsyncReader

        async for batch in AsyncReader(log, start="trim_horizon", client=self._client).batches():
            yield batch.values()

    async def close(self) -> None:
        for producer in self._producers.values():
            await producer.close()
        await self._client.close()


@lru_cache(maxsize=8)
def _keys(count: int) -> Any:
    import pyarrow

    return pyarrow.array([KEY] * count, pyarrow.string())


def _sealed(value: bytes) -> bytes:
    # What a producer makes of one record; made for each, as a producer does.
    from streamkit._core.batch import seal

    return seal([(KEY.encode(), value, b"", 0, None)], codec=0)


class Streamkit(System):
    client_class = StreamkitClient
    setup = (
        "This tree. One shard. Records go in as Arrow columns (`AsyncProducer.put_columns`, built from a list of bytes "
        "within the time measured) and come out as lists of bytes (`AsyncReader.batches()`); single records are sealed "
        "one by one and sent with `AsyncClient.put_batch`. Three copies are `streamkit serve --replicas 3`: a "
        "supervisor and three nodes, all counted."
    )
    variants: tuple[Variant, ...] = (
        Variant("streamkit-1-fsync", "streamkit", 1, DISK, "fsync (default)"),
        Variant("streamkit-1-os", "streamkit", 1, PAGE_CACHE, "os"),
        Variant("streamkit-3-fsync", "streamkit", 3, DISK, "fsync on a majority (default)"),
        Variant("streamkit-3-os", "streamkit", 3, PAGE_CACHE, "os on a majority"),
    )

    def absent(self) -> str:
        return ""

    def install(self) -> None:
        """It is built already: `make build`."""

    def version(self) -> str:
        import streamkit

        return streamkit.__version__

    def start(self, variant: Variant, directory: Path) -> Servers:
        servers = Servers(directory)
        command: list[str | Path] = [
            sys.executable, "-m", "streamkit.cli", "serve", "--data", directory / "data", "--port", "0", "--json",
        ]  # fmt: skip
        if variant.copies > 1:
            command += ["--replicas", str(variant.copies)]
        servers.run(command, environment={"PYTHONPATH": str(ROOT)})
        servers.wait(lambda: bool(announcements(servers.log())))
        servers.facts = {"url": announced_url(announcements(servers.log())), "level": LEVELS[variant.durability]}
        return servers


def announced_url(lines: list[dict[str, Any]]) -> str:
    """A node announces itself; a cluster announces all its nodes, of which any will do."""
    said = lines[-1]
    if "native" in said:
        return str(said["native"])
    return str(said["nodes"][0]["native"])


def announcements(text: str) -> list[dict[str, Any]]:
    """The JSON lines of a log that tell where a node or a cluster listens."""
    found = []
    for line in text.splitlines():
        if line.startswith('{"schema":"streamkit.') and line.endswith("}"):
            document = json.loads(line)
            if "native" in document or "nodes" in document:
                found.append(document)
    return found
