"""Several real nodes of one cluster in this process, on a store in memory and loopback."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from streamkit.broker.copy import Copy
from streamkit.client.client import AsyncClient
from streamkit.config import (
    ClusterSection,
    Config,
    HealthListener,
    HttpFace,
    ListenSection,
    NativeListener,
    NodeSection,
    PeerListener,
    StorageSection,
)
from streamkit.metadata.memory_store import MemoryStore
from streamkit.node import Node, NodeOptions
from streamkit.runtime.real import real_runtime

SECONDS = 20.0


class Nodes:
    """nodes: by name. `await start("a")` again after `await stop("a")` is the same node on the same directory."""

    def __init__(self, path: Path, replicas: int = 3, advertised: str = "") -> None:
        self.path = path
        self.advertised = advertised
        self.replicas = replicas
        self.runtime = real_runtime()
        self.store = MemoryStore(self.runtime.clock)
        self.nodes: dict[str, Node] = {}

    async def start(self, *names: str) -> None:
        for name in names:
            node = Node(
                Config(
                    node=NodeSection(name=name, drain_seconds=2),
                    listen=ListenSection(
                        advertised=self.advertised, native=NativeListener(port=0), peer=PeerListener(port=0),
                        health=HealthListener(enabled=False), http=HttpFace(enabled=False),
                    ),
                    cluster=ClusterSection(replicas=self.replicas, suspect_ms=500),
                    storage=StorageSection(free_bytes_min=0),
                ),
                self.runtime,
                data_dir=str(self.path / name),
                options=NodeOptions(store=self.store, cluster=True),
            )
            await node.start()
            self.nodes[name] = node

    async def stop(self, name: str) -> None:
        await self.nodes.pop(name).stop()

    async def close(self) -> None:
        for name in list(self.nodes):
            await self.stop(name)

    def client(self, name: str = "") -> AsyncClient:
        """Of one node, by default of all."""
        asked = [self.nodes[name]] if name else list(self.nodes.values())[-1:]
        return AsyncClient("streamkit://" + ",".join(node.addresses.native for node in asked))

    def copies(self, uuid: bytes) -> dict[str, Copy]:
        found = {}
        for name, node in self.nodes.items():
            assert node.cluster is not None
            if (copy := node.cluster.copies.copies.get(uuid)) is not None:
                found[name] = copy
        return found

    def leader(self, uuid: bytes) -> str:
        """The node that leads the shard, established; "" when none does."""
        return next((name for name, copy in self.copies(uuid).items() if copy.is_established), "")

    async def led(self, uuid: bytes, by: str = "") -> str:
        await eventually(lambda: self.leader(uuid) == by if by else bool(self.leader(uuid)))
        return self.leader(uuid)

    async def alike(self, uuid: bytes) -> None:
        """Every copy holds the same batches."""

        async def sums() -> set[tuple[int, int, int]]:
            return {await copy.log.digest(0, copy.log.log_end) for copy in self.copies(uuid).values()}

        async with asyncio.timeout(SECONDS):
            while len(await sums()) != 1:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def eventually(holds: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait until it does; fails after SECONDS."""
    async with asyncio.timeout(SECONDS):
        while True:
            found = holds()
            if await found if isinstance(found, Awaitable) else found:
                return
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def cluster(path: Path, *names: str, replicas: int = 3, advertised: str = "") -> AsyncIterator[Nodes]:
    nodes = Nodes(path, replicas, advertised)
    try:
        await nodes.start(*(names or ("a", "b", "c")))
        yield nodes
    finally:
        await nodes.close()
