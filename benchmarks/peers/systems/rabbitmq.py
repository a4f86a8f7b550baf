"""RabbitMQ Streams: one node, or three, with the stream plugin alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.packages import DEBIAN, debian_environment, install_debian, missing_python, python_version
from benchmarks.peers.servers import Servers, answers, free_ports
from benchmarks.peers.system import PAGE_CACHE, Acknowledged, Client, System, Variant

SUB_ENTRY_RECORDS = 100
UNDER_WAY = 50_000                 # records not confirmed yet
LOGIN = {"username": "guest", "password": "guest"}

CONFIGURATION = """
listeners.tcp.1 = 127.0.0.1:{amqp_port}
stream.listeners.tcp.1 = 127.0.0.1:{stream_port}
stream.advertised_host = localhost
stream.advertised_port = {stream_port}
cluster_formation.peer_discovery_backend = classic_config
log.console = true
log.console.level = info
log.file = false
vm_memory_high_watermark.absolute = 4GiB
disk_free_limit.absolute = 50MB
"""


class RabbitClient(Client):
    """rstream. Records in bulk go as sub-entries of 100."""

    async def open(self) -> None:
        import rstream

        self._producer = rstream.Producer("localhost", self.facts["ports"][0], **LOGIN)
        await self._producer.start()
        self._unconfirmed = 0
        self._moved = asyncio.Event()
        self._failures: list[Exception] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def create(self, log: str) -> None:
        await self._producer.create_stream(log, exists_ok=False)

    async def produce(self, log: str, values: Sequence[bytes]) -> None:
        entries = []
        for at in range(0, len(values), SUB_ENTRY_RECORDS):
            some = values[at : at + SUB_ENTRY_RECORDS]
            entries.append(_Notification(_sub_entry(some), self._confirmed(len(some))))
        await self._until_below(UNDER_WAY)
        self._unconfirmed += len(values)
        # send_sub_entry() would do the same from a timer, twice a second: that would be measuring the timer.
        await self._producer._send_batch_async(log, entries)

    async def single(self, log: str, values: Sequence[bytes]) -> None:
        """Confirmations come for many; a frame holds one record."""
        for value in values:
            if self._unconfirmed >= 1000:
                await self._until_below(1000)
            self._unconfirmed += 1
            await self._producer.send_batch(log, [_message(value)], on_publish_confirm=self._confirmed(1))

    def _confirmed(self, records: int) -> Any:
        def confirmed(status: Any) -> None:
            self._unconfirmed -= records
            self._moved.set()
            if not status.is_confirmed:
                self._failures.append(RuntimeError(f"not confirmed: code {status.response_code}"))

        return confirmed

    async def _until_below(self, records: int) -> None:
        while self._unconfirmed >= records:
            self._moved.clear()
            await asyncio.wait_for(self._moved.wait(), 30)

    async def flush(self) -> None:
        await self._until_below(1)
        if self._failures:
            raise self._failures[0]

    def send(self, log: str, value: bytes, acknowledged: Acknowledged) -> None:
        def confirmed(status: Any) -> None:
            acknowledged(None if status.is_confirmed else RuntimeError(f"code {status.response_code}"))

        task = asyncio.create_task(
            self._producer.send_batch(log, [_message(value)], on_publish_confirm=confirmed)
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def consume(self, log: str) -> AsyncIterator[list[bytes]]:
        import rstream

        consumer = rstream.Consumer("localhost", self.facts["ports"][0], **LOGIN)
        await consumer.start()
        found: list[bytes] = []
        arrived = asyncio.Event()

        def take(message: bytes, context: Any) -> None:
            found.append(message)
            arrived.set()

        await consumer.subscribe(log, take, decoder=_body, initial_credit=20)
        try:
            while True:
                await arrived.wait()
                arrived.clear()
                some = found.copy()
                found.clear()
                yield some
        finally:
            await consumer.close()

    async def close(self) -> None:
        await self._producer.close()


class _Notification:
    """What rstream's producer keeps for an entry that it will send."""

    publisher_name = None
    __slots__ = ("callback", "entry")

    def __init__(self, entry: Any, callback: Any) -> None:
        self.entry, self.callback = entry, callback


def _sub_entry(values: Sequence[bytes]) -> Any:
    from rstream.compression import NoneCompressionCodec

    parts = []
    for value in values:
        parts += ((len(value)).to_bytes(4, "big"), value)
    data = b"".join(parts)
    return NoneCompressionCodec(len(data), len(data), len(values), data)


def _message(value: bytes) -> Any:
    from rstream.utils import RawMessage

    return RawMessage(value)


def _body(message: bytes) -> bytes:
    return message


class RabbitMQ(System):
    client_class = RabbitClient
    setup = (
        "Debian's package with its Erlang, unpacked beside the tree; plugin rabbitmq_stream. A stream confirms when a "
        "majority has it in the page cache; there is no setting that syncs. rstream with sub-entries of 100 records "
        "without compression. The suite builds sub-entries with one join and hands them to the producer's sender "
        "itself, because send_sub_entry() waits for a timer of 500 ms: both make this peer faster."
    )
    variants = (
        Variant("rabbitmq-1", "RabbitMQ Streams", 1, PAGE_CACHE, "no sync"),
        Variant("rabbitmq-3", "RabbitMQ Streams", 3, PAGE_CACHE, "no sync"),
    )

    def absent(self) -> str:
        if not list((DEBIAN / "root").glob("usr/lib/rabbitmq/lib/rabbitmq_server-*")):
            return "rabbitmq-server is not in build/peers: make bench-peers-install"
        return missing_python("rstream")

    def install(self) -> None:
        install_debian("rabbitmq-server")

    @property
    def _home(self) -> Path:
        return next((DEBIAN / "root").glob("usr/lib/rabbitmq/lib/rabbitmq_server-*"))

    def version(self) -> str:
        erlang = next((DEBIAN / "root" / "usr/lib/erlang/releases").glob("[0-9]*")).name
        return f"{self._home.name.partition('-')[2]} on Erlang {erlang}, rstream {python_version('rstream')}"

    def start(self, variant: Variant, directory: Path) -> Servers:
        servers = Servers(directory)
        copies = variant.copies
        (names_port, *ports) = free_ports(1 + 3 * copies)
        names = [f"bench{i}@localhost" for i in range(copies)]
        (cookie := directory / ".erlang.cookie").write_text("bench")
        cookie.chmod(0o400)
        (directory / "plugins").write_text("[rabbitmq_stream].\n")
        erlang = DEBIAN / "root" / "usr" / "lib" / "erlang"
        programs = next(erlang.glob("erts-*")) / "bin"
        # Debian's own `erl` knows only /usr/lib/erlang; this one does the same from where the package was unpacked.
        (start := directory / "erl").write_text(f'#!/bin/sh\nexec "{programs}/erlexec" "$@"\n')
        start.chmod(0o755)
        environment = debian_environment()
        environment |= {
            "PATH": f"{directory}:{environment['PATH']}", "HOME": str(directory), "ROOTDIR": str(erlang),
            "BINDIR": str(programs), "EMU": "beam", "PROGNAME": "erl",
            "ERL_EPMD_PORT": str(names_port), "ERL_EPMD_ADDRESS": "127.0.0.1", "RUNNING_UNDER_SYSTEMD": "true",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "plugins"), "RABBITMQ_LOG_BASE": str(directory),
        }  # fmt: skip
        # The name service, in the foreground: a node would start one that outlives it.
        servers.run([programs / "epmd", "-port", str(names_port)], environment=environment)
        servers.wait(lambda: answers(names_port))
        for i in range(copies):
            path = directory / f"node{i}.conf"
            nodes = [f"cluster_formation.classic_config.nodes.{n + 1} = {name}" for n, name in enumerate(names)]
            amqp, stream, distribution = ports[3 * i : 3 * i + 3]
            path.write_text("\n".join([CONFIGURATION.format(amqp_port=amqp, stream_port=stream), *nodes, ""]))
            own = {
                "RABBITMQ_NODENAME": names[i], "RABBITMQ_CONFIG_FILE": str(path),
                "RABBITMQ_DIST_PORT": str(distribution), "RABBITMQ_MNESIA_BASE": str(directory / f"data-{i}"),
            }  # fmt: skip
            servers.run([self._home / "sbin" / "rabbitmq-server"], environment={**environment, **own})
        servers.wait(lambda: all("Server startup complete" in servers.log(1 + i) for i in range(copies)))
        servers.facts = {"ports": [ports[3 * i + 1] for i in range(copies)]}
        return servers
