"""NATS JetStream: one server, or a cluster of three; synced when the server likes, or always."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.packages import missing_program, missing_python, python_version, run
from benchmarks.peers.servers import Servers, free_ports
from benchmarks.peers.system import DISK, PAGE_CACHE, PEERS, Acknowledged, Client, System, Variant

MODULE = "github.com/nats-io/nats-server/v2@latest"
PROGRAM = PEERS / "nats" / "nats-server"
UNDER_WAY = 4000                   # records not acknowledged yet; the default of nats-py's publish_async
FLOW_RECORDS = 500                 # of a fast batch between two acknowledgements; the server allows no more
FETCH_RECORDS = 1000
START, APPEND, COMMIT = 0, 1, 3    # operations of a fast batch; this commit stores nothing more
ANSWER_SECONDS_MAX = 30

CONFIGURATION = """
server_name: node{index}
listen: 127.0.0.1:{port}
jetstream {{ store_dir: "{directory}", max_mem: 512M, max_file: 20G{sync} }}
"""
CLUSTER = """
cluster {{ name: bench, listen: 127.0.0.1:{port}, routes: [{routes}] }}
"""


class NatsClient(Client):
    """nats-py, publishing with reply subjects of its own and counting the answers.

    Its publish_async() makes a future, a task and two random names a record, and reaches a third of this rate. In
    bulk the records form fast batches (server 2.14 and later): one acknowledgement for 500.
    """

    async def open(self) -> None:
        import nats

        self._connection: Any = await nats.connect(self.facts["urls"], pending_size=16 << 20)
        self._stream: Any = self._connection.jetstream(timeout=30)
        self._inbox = self._connection.new_inbox()
        self._sent = self._answered = self._sent_alone = 0
        self._batch = self._batch_sent = self._batch_answered = 0
        self._batch_log = ""
        self._ended = self._moved = asyncio.Event()
        self._failures: list[BaseException] = []
        self._waiting: dict[str, Acknowledged] = {}
        self._sending: set[asyncio.Task[None]] = set()
        await self._connection.subscribe(f"{self._inbox}.>", cb=self._answer)

    async def _answer(self, message: Any) -> None:
        failure = RuntimeError(message.data.decode()) if b'"error"' in message.data else None
        if message.subject.endswith(".$FI"):
            said = json.loads(message.data)
            # A flow acknowledgement has `seq` of the batch; the last one, of the stream, counts the batch.
            self._batch_answered = max(self._batch_answered, said["count"] if "stream" in said else said.get("seq", 0))
            if "stream" in said:
                self._ended.set()
        elif waiting := self._waiting.pop(message.subject, None):
            waiting(failure)
        else:
            self._answered += 1
        if failure:
            self._failures.append(failure)
        self._moved.set()

    async def create(self, log: str) -> None:
        from nats.js.api import StorageType, StreamConfig

        await self._stream.add_stream(
            StreamConfig(
                name=log, subjects=[log], storage=StorageType.FILE, num_replicas=self.facts["copies"],
                allow_batched=True,
            )
        )  # fmt: skip

    async def produce(self, log: str, values: Sequence[bytes]) -> None:
        if log != self._batch_log:
            await self._commit()
            self._batch_log, self._batch = log, self._batch + 1
            self._batch_sent = self._batch_answered = 0
        publish, prefix = self._connection.publish, f"{self._inbox}.b{self._batch}.{FLOW_RECORDS}.fail"
        for value in values:
            while self._batch_sent - self._batch_answered >= UNDER_WAY:
                await self._move()
            operation = APPEND if self._batch_sent else START
            self._batch_sent += 1
            await publish(log, value, f"{prefix}.{self._batch_sent}.{operation}.$FI")

    async def _commit(self) -> None:
        if not self._batch_sent:
            return
        self._ended = asyncio.Event()
        reply = f"{self._inbox}.b{self._batch}.{FLOW_RECORDS}.fail.{self._batch_sent + 1}.{COMMIT}.$FI"
        await self._connection.publish(self._batch_log, b"", reply)
        await asyncio.wait_for(self._ended.wait(), ANSWER_SECONDS_MAX)
        if self._batch_answered != self._batch_sent:
            self._failures.append(RuntimeError(f"{self._batch_answered} of {self._batch_sent} in the batch"))
        self._batch_log, self._batch_sent = "", 0

    async def single(self, log: str, values: Sequence[bytes]) -> None:
        publish, reply = self._connection.publish, f"{self._inbox}.one"
        for value in values:
            while self._sent - self._answered >= UNDER_WAY:
                await self._move()
            self._sent += 1
            await publish(log, value, reply)

    async def _move(self) -> None:
        self._moved.clear()
        await asyncio.wait_for(self._moved.wait(), ANSWER_SECONDS_MAX)
        if self._failures:
            raise self._failures[0]

    async def flush(self) -> None:
        await self._commit()
        while self._answered < self._sent:
            await self._move()
        if self._failures:
            raise self._failures[0]

    def send(self, log: str, value: bytes, acknowledged: Acknowledged) -> None:
        self._sent_alone += 1
        reply = f"{self._inbox}.alone.{self._sent_alone}"
        self._waiting[reply] = acknowledged
        task = asyncio.create_task(self._connection.publish(log, value, reply))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def consume(self, log: str) -> AsyncIterator[list[bytes]]:
        import nats.errors
        from nats.js.api import AckPolicy, ConsumerConfig

        settings = ConsumerConfig(ack_policy=AckPolicy.NONE)
        subscription = await self._stream.pull_subscribe(log, durable=f"{log}-reader", stream=log, config=settings)
        while True:
            try:
                messages = await subscription.fetch(FETCH_RECORDS, timeout=5)
            except nats.errors.TimeoutError:
                continue
            yield [message.data for message in messages]

    async def close(self) -> None:
        await self._connection.close()


class Nats(System):
    client_class = NatsClient
    setup = (
        "`go install` of the newest release. File storage, one stream with one subject. By default the server syncs "
        "every two minutes; `sync_interval: always` syncs each write before it answers. nats-py with 4,000 records "
        "under way: in bulk as fast batches (2.14 and later: one acknowledgement for 500 records), else "
        "one acknowledgement a record. The suite publishes with reply subjects and counts the answers itself, which is "
        "three times as fast as the library's `publish_async`. Reading is a pull consumer without acknowledgements, "
        "1,000 at a time."
    )
    variants = (
        Variant("nats-1", "NATS JetStream", 1, PAGE_CACHE, "default: sync every 2 min"),
        Variant("nats-1-always", "NATS JetStream", 1, DISK, "sync_interval: always"),
        Variant("nats-3", "NATS JetStream", 3, PAGE_CACHE, "default: sync every 2 min"),
        Variant("nats-3-always", "NATS JetStream", 3, DISK, "sync_interval: always"),
    )

    def absent(self) -> str:
        if not PROGRAM.exists():
            return missing_program("go") or "nats-server is not in build/peers: make bench-peers-install"
        return missing_python("nats-py")

    def install(self) -> None:
        run("go", "install", MODULE, GOBIN=str(PROGRAM.parent))

    def version(self) -> str:
        said = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True).stdout
        return f"{said.split()[-1].lstrip('v')}, nats-py {python_version('nats-py')}"

    def start(self, variant: Variant, directory: Path) -> Servers:
        servers = Servers(directory)
        ports, routes = free_ports(variant.copies), free_ports(variant.copies)
        for i in range(variant.copies):
            sync = ", sync_interval: always" if variant.durability == DISK else ""
            text = CONFIGURATION.format(index=i, port=ports[i], directory=directory / f"data-{i}", sync=sync)
            if variant.copies > 1:
                others = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)
                text += CLUSTER.format(port=routes[i], routes=others)
            path = directory / f"node{i}.conf"
            path.write_text(text)
            servers.run([PROGRAM, "-c", path])
        servers.wait(lambda: servers.all_said("Server is ready"))
        if variant.copies > 1:
            servers.wait(lambda: any("JetStream cluster new metadata leader" in servers.log(i) for i in range(3)))
        servers.facts = {"urls": [f"nats://127.0.0.1:{port}" for port in ports], "copies": variant.copies}
        return servers
