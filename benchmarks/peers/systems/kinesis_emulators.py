"""The Kinesis API as emulators have it: kinesalite, kinesis-local (kinesis-mock) and moto, all through boto3."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.peers.packages import (
    PYTHON,
    install_npm,
    install_python,
    missing_program,
    missing_python,
    npm_version,
    python_version,
)
from benchmarks.peers.servers import Servers, answers, free_ports
from benchmarks.peers.system import MEMORY, PAGE_CACHE, PEERS, Acknowledged, Client, System, Variant

REQUEST_RECORDS = 500              # what PutRecords takes
THREADS = 4
OPEN_LOOP_THREADS = 16
HEAP_MIB = 2048
SHARDS_MAX = 20_000


class KinesisClient(Client):
    """boto3: PutRecords of 500 from four threads, PutRecord for single records, GetRecords of 10,000."""

    chunk_records = 1000

    async def open(self) -> None:
        import boto3
        from botocore.config import Config

        self._kinesis = boto3.client(
            "kinesis", endpoint_url=self.facts["url"], region_name="us-east-1", aws_access_key_id="bench",
            aws_secret_access_key="bench",
            config=Config(max_pool_connections=OPEN_LOOP_THREADS, retries={"max_attempts": 5}, read_timeout=60),
        )  # fmt: skip
        self._threads = ThreadPoolExecutor(OPEN_LOOP_THREADS)
        self._room = asyncio.Semaphore(self.facts.get("threads", THREADS))
        self._tasks: set[asyncio.Task[None]] = set()

    async def create(self, log: str) -> None:
        self._kinesis.create_stream(StreamName=log, ShardCount=1)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            described = self._kinesis.describe_stream(StreamName=log)["StreamDescription"]
            if described["StreamStatus"] == "ACTIVE":
                return
            await asyncio.sleep(0.05)
        raise TimeoutError(f"{log} is not active")

    def _put_records(self, log: str, values: Sequence[bytes]) -> None:
        left = [{"Data": value, "PartitionKey": "key-0001"} for value in values]
        while left:                    # records that were throttled are put again
            answer = self._kinesis.put_records(StreamName=log, Records=left)
            left = [r for r, said in zip(left, answer["Records"], strict=True) if "ErrorCode" in said]

    def _put_record(self, log: str, value: bytes) -> None:
        self._kinesis.put_record(StreamName=log, Data=value, PartitionKey="key-0001")

    async def produce(self, log: str, values: Sequence[bytes]) -> None:
        for at in range(0, len(values), REQUEST_RECORDS):
            await self._start(self._put_records, log, values[at : at + REQUEST_RECORDS])

    async def single(self, log: str, values: Sequence[bytes]) -> None:
        for value in values:
            await self._start(self._put_record, log, value)

    async def _start(self, call: Any, *arguments: Any) -> None:
        await self._room.acquire()

        async def run() -> None:
            try:
                await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)
            finally:
                self._room.release()

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.exception() is None:
            self._tasks.discard(task)

    async def flush(self) -> None:
        tasks = list(self._tasks)
        self._tasks.clear()
        await asyncio.gather(*tasks)

    def send(self, log: str, value: bytes, acknowledged: Acknowledged) -> None:
        loop = asyncio.get_running_loop()

        def done(future: Future[None]) -> None:
            loop.call_soon_threadsafe(acknowledged, future.exception())

        self._threads.submit(self._put_record, log, value).add_done_callback(done)

    async def consume(self, log: str) -> AsyncIterator[list[bytes]]:
        shard = self._kinesis.list_shards(StreamName=log)["Shards"][0]["ShardId"]
        iterator = self._kinesis.get_shard_iterator(StreamName=log, ShardId=shard, ShardIteratorType="TRIM_HORIZON")
        position = iterator["ShardIterator"]
        while True:
            answer = self._kinesis.get_records(ShardIterator=position, Limit=10_000)
            position = answer["NextShardIterator"]
            yield [record["Data"] for record in answer["Records"]]
            await asyncio.sleep(0)

    async def close(self) -> None:
        self._threads.shutdown()
        self._kinesis.close()


class _Emulator(System):
    client_class = KinesisClient
    latency_rate = 100
    package = ""

    def absent(self) -> str:
        if missing := missing_program("node"):
            return missing
        if not (PEERS / self.package / "node_modules" / self.package).exists():
            return f"npm package {self.package} is not in build/peers: make bench-peers-install"
        return missing_python("boto3")

    def install(self) -> None:
        install_npm(self.package)

    def version(self) -> str:
        return f"{npm_version(self.package)}, boto3 {python_version('boto3')}"

    def _run(self, servers: Servers, program: str, *arguments: str, **environment: str) -> None:
        script = PEERS / self.package / "node_modules" / self.package / program
        servers.run(
            ["node", f"--max-old-space-size={HEAP_MIB}", script, *arguments], environment=environment, bounded=False
        )


class Kinesalite(_Emulator):
    package = "kinesalite"
    setup = (
        "npm package on Node.js with a LevelDB directory, which it writes without syncing. The emulators are loaded "
        "through boto3, PutRecords of 500 records from four threads, and single records with PutRecord from four "
        "threads; HTTP, JSON and base64 are part of their interface. Their open loop runs at 100 records a second."
    )
    variants = (Variant("kinesalite", "kinesalite", 1, PAGE_CACHE, "LevelDB, no sync"),)

    def start(self, variant: Variant, directory: Path) -> Servers:
        servers = Servers(directory)
        (port,) = free_ports(1)
        self._run(
            servers, "cli.js", "--port", str(port), "--path", str(directory / "data"), "--createStreamMs", "0",
            "--shardLimit", str(SHARDS_MAX),
        )  # fmt: skip
        servers.facts = {"url": f"http://127.0.0.1:{port}"}
        servers.wait(lambda: answers(port))
        return servers


class KinesisLocal(_Emulator):
    package = "kinesis-local"
    setup = "npm package (kinesis-mock) on Node.js; records are in memory. Loaded as kinesalite is."
    variants = (Variant("kinesis-local", "kinesis-local", 1, MEMORY, "in memory"),)

    def start(self, variant: Variant, directory: Path) -> Servers:
        servers = Servers(directory)
        plain, tls = free_ports(2)
        # Its own certificate, which it looks for where it is started.
        shutil.copy(PEERS / self.package / "node_modules" / self.package / "server.json", directory)
        self._run(
            servers, "main.js", KINESIS_MOCK_PLAIN_PORT=str(plain), KINESIS_MOCK_TLS_PORT=str(tls),
            SHARD_LIMIT=str(SHARDS_MAX), CREATE_STREAM_DURATION="10ms", LOG_LEVEL="ERROR",
        )  # fmt: skip
        servers.facts = {"url": f"http://127.0.0.1:{plain}"}
        servers.wait(lambda: answers(plain))
        return servers


class Moto(_Emulator):
    setup = (
        "PyPI package, `moto_server`; records are in memory. Loaded as kinesalite is, but by one thread: with four it "
        "loses about one acknowledged record in a hundred."
    )
    variants = (Variant("moto", "moto", 1, MEMORY, "in memory"),)

    def absent(self) -> str:
        return missing_python("moto", "boto3")

    def install(self) -> None:
        install_python()

    def version(self) -> str:
        return f"{python_version('moto')}, boto3 {python_version('boto3')}"

    def start(self, variant: Variant, directory: Path) -> Servers:
        servers = Servers(directory)
        (port,) = free_ports(1)
        servers.run([PYTHON, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)])
        servers.facts = {"url": f"http://127.0.0.1:{port}", "threads": 1}
        servers.wait(lambda: answers(port))
        return servers
