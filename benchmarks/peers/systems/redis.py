"""Redis Streams and Valkey Streams: one server with an append-only file."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.packages import DEBIAN, debian_environment, install_debian, python_version
from benchmarks.peers.servers import Servers, answers, free_ports
from benchmarks.peers.system import DISK, PAGE_CACHE, Acknowledged, Client, System, Variant

PIPELINE_COMMANDS = 1000
CONNECTIONS = 8                    # of the open loop, so that one slow answer does not hold the next record back
READ_COUNT = 5000


class RedisClient(Client):
    """redis-py with hiredis. A record is an entry with one field; the server gives the id."""

    async def open(self) -> None:
        import redis
        import redis.asyncio

        self._sync = redis.Redis(host="127.0.0.1", port=self.facts["port"])
        pool = redis.asyncio.BlockingConnectionPool(
            host="127.0.0.1", port=self.facts["port"], max_connections=CONNECTIONS
        )
        self._async = redis.asyncio.Redis(connection_pool=pool)
        self._tasks: set[asyncio.Task[None]] = set()

    async def create(self, log: str) -> None:
        self._sync.delete(log)

    async def produce(self, log: str, values: Sequence[bytes]) -> None:
        for at in range(0, len(values), PIPELINE_COMMANDS):
            pipeline = self._sync.pipeline(transaction=False)
            for value in values[at : at + PIPELINE_COMMANDS]:
                pipeline.execute_command("XADD", log, "*", "v", value)
            pipeline.execute()

    single = produce               # a request of Redis holds one record

    async def flush(self) -> None:
        await asyncio.gather(*self._tasks)

    def send(self, log: str, value: bytes, acknowledged: Acknowledged) -> None:
        async def add() -> None:
            try:
                await self._async.execute_command("XADD", log, "*", "v", value)
            except Exception as error:
                acknowledged(error)
            else:
                acknowledged(None)

        task = asyncio.create_task(add())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def consume(self, log: str) -> AsyncIterator[list[bytes]]:
        last: Any = "0"
        while True:
            found = self._sync.xread({log: last}, count=READ_COUNT, block=1000)
            for _, entries in found if isinstance(found, list) else found.items():
                entries = entries[0] if entries and isinstance(entries[0], list) else entries
                last = entries[-1][0]
                yield [fields[b"v"] for _, fields in entries]

    async def close(self) -> None:
        await self._async.aclose()
        self._sync.close()


class Redis(System):
    server = "redis-server"
    title = "Redis Streams"
    key = "redis"
    client_class = RedisClient
    setup = (
        "Debian's package, unpacked beside the tree. One server, `appendonly yes`, snapshots off. `always` syncs "
        "before it answers, once a turn of its event loop; `everysec` a second later. redis-py with hiredis, 1,000 "
        "XADD a pipeline on one connection: each is a request with one record, so *one record a request* is the same "
        "work. All records stay in memory, which is why it grows with what was put. No replicas: copies of Redis are "
        "asynchronous, and an acknowledgement says nothing about them."
    )

    def __init__(self) -> None:
        self.variants = (
            Variant(f"{self.key}-everysec", self.title, 1, PAGE_CACHE, "appendfsync everysec"),
            Variant(f"{self.key}-always", self.title, 1, DISK, "appendfsync always"),
        )

    @property
    def _program(self) -> Path:
        return DEBIAN / "root" / "usr" / "bin" / self.server

    def absent(self) -> str:
        return "" if self._program.exists() else f"{self.server} is not in build/peers: make bench-peers-install"

    def install(self) -> None:
        install_debian(self.server)

    def version(self) -> str:
        said = subprocess.run(
            [self._program, "--version"], capture_output=True, text=True, check=True, env=debian_environment()
        ).stdout
        number = next(word[2:] for word in said.split() if word.startswith("v="))
        return f"{number}, redis-py {python_version('redis')} with hiredis {python_version('hiredis')}"

    def start(self, variant: Variant, directory: Path) -> Servers:
        servers = Servers(directory)
        (port,) = free_ports(1)
        servers.run(
            [
                self._program, "--port", str(port), "--bind", "127.0.0.1", "--dir", directory, "--save", "",
                "--appendonly", "yes", "--appendfsync", variant.setting.split()[1],
            ],
            environment=debian_environment(),
        )  # fmt: skip
        servers.facts = {"port": port}
        servers.wait(lambda: answers(port))
        return servers


class Valkey(Redis):
    server = "valkey-server"
    title = "Valkey Streams"
    key = "valkey"
    setup = "As Redis, with Debian's valkey-server where the release has one (trixie and later)."
