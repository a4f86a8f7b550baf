"""A real node in the test's process: on a free port, in memory unless it is told a directory, ready in a moment.

    with Node() as node:
        node.create_stream("orders", shards=2)
        with node.producer("orders") as producer:
            producer.put({"id": 1}, key="a")
        node.run_until_idle(consumer)
        assert node.application("billing").lag.records == 0
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Unpack

from streamkit.client.lag import Lag, lag_of
from streamkit.client.sync import Client
from streamkit.config import compose
from streamkit.errors import ApplicationNotFound, InvalidUse, StreamkitError, TimedOut
from streamkit.model.shard import shard_id
from streamkit.model.stream import StreamDescription
from streamkit.node import Node as RealNode
from streamkit.node import NodeOptions
from streamkit.protocol.messages import ApplicationDescribed, DescribeApplication
from streamkit.runtime.interfaces import Runtime
from streamkit.runtime.real import LoopThread, RealExecutor, RealRandom
from streamkit.storage import StorageConfig
from streamkit.testing.clock import Clock
from streamkit.testing.disk import FaultyDisk
from streamkit.testing.network import Severable

if TYPE_CHECKING:
    from streamkit.consumer.consumer import Consumer
    from streamkit.consumer.reader import Reader
    from streamkit.consumer.running import Running
    from streamkit.producer.producer import Producer
    from streamkit.producer.settings import PutSettings

Fault = Literal["disk_full", "slow_disk", "partition", "kill_worker"]
_FAULTS = ("disk_full", "slow_disk", "partition", "kill_worker")
_MIB = 1024 * 1024
_SLOW_SYNC_S = 0.25
_LOOK_S = 0.005
_START_S = 30.0
_KILLED_S = 10.0
_STORAGE = StorageConfig(
    segment_bytes=4 * _MIB, journal_bytes=4 * _MIB, journal_step_bytes=256 * 1024, group_bytes_max=_MIB,
    bypass_bytes=256 * 1024, tail_bytes=16 * _MIB, free_bytes_min=1, reserve_bytes=64 * 1024,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Application:
    """An application as the node knows it. checkpoints: "stream/shard" → sequence of the first unfinished record."""

    name: str
    lag: Lag
    workers: tuple[str, ...]
    checkpoints: Mapping[str, int]


class Node:
    """Made running; `close` it, or use `with`. Streams are made on first use.

    data_dir: where it keeps its files; None: in memory (a directory of /dev/shm, or /tmp where there is none), gone
    when it is closed. settings: configuration by dotted key, as for `streamkit.open`. kinesis: the Kinesis API, too.
    """

    def __init__(
        self, data_dir: str | None = None, *, clock: Clock | None = None, settings: Mapping[str, object] | None = None,
        kinesis: bool = False,
    ) -> None:
        self.clock = clock or Clock()
        self.disk = FaultyDisk()
        self.network = Severable()
        self._in_memory = data_dir is None
        base = "/dev/shm" if self.disk.exists("/dev/shm") else "/tmp"
        self.data_dir = data_dir or f"{base}/streamkit-test-{RealRandom().uuid().hex()}"
        self._settings = {
            "streams.auto_create": True, "listen.health.enabled": False, "listen.http.enabled": kinesis,
            "listen.native.port": 0, "listen.http.port": 0, **(settings or {}),
        }  # fmt: skip
        self._thread = LoopThread("streamkit-test-node")
        self._clients: list[Client] = []
        self._started: dict[Running, Severable] = {}
        self._closed = False
        self._node: RealNode
        try:
            self._start()
        except BaseException:
            self._thread.stop()
            raise
        self.clock.follow(self._look_at_time)

    def _start(self) -> None:
        config = compose(flags=self._settings).config
        runtime = self._runtime(self.network)
        self._node = RealNode(config, runtime, data_dir=self.data_dir, options=NodeOptions(storage=_STORAGE))
        self._thread.run(self._node.start(), _START_S)
        port = self._node.addresses.native.rpartition(":")[2]
        self._settings["listen.native.port"] = int(port)       # after a restart it is found where it was

    def _runtime(self, network: Severable) -> Runtime:
        return Runtime(
            clock=self.clock, random=RealRandom(), network=network, disk=self.disk, executor=RealExecutor()
        )

    def _look_at_time(self) -> None:
        self._thread.run(self._node.look_at_time(), _START_S)

    @property
    def url(self) -> str:
        """For clients: streamkit://127.0.0.1:PORT."""
        return f"streamkit://{self._node.addresses.native}"

    @property
    def kinesis_url(self) -> str:
        """For Kinesis clients, when `kinesis=True`."""
        return f"http://{self._node.addresses.http}" if self._node.addresses.http else ""

    @property
    def client(self) -> Client:
        if not self._clients:
            self._clients.append(Client(self.url))
        return self._clients[0]

    def create_stream(self, name: str, shards: int = 1, **options: Any) -> StreamDescription:
        """As `Client.create_stream`."""
        return self.client.create_stream(name, shards=shards, **options)

    def producer(self, stream: str | None = None, **options: Unpack[PutSettings]) -> Producer:
        """As `streamkit.Producer`, connected to this node."""
        from streamkit.producer.producer import Producer

        return Producer(stream, url=self.url, **options)

    def consumer(self, stream: str | list[str], **options: Any) -> Consumer:
        """As `streamkit.Consumer`, connected to this node."""
        from streamkit.consumer.consumer import Consumer

        return Consumer(stream, url=self.url, **options)

    def reader(self, stream: str, **options: Any) -> Reader:
        """As `streamkit.Reader`, connected to this node."""
        from streamkit.consumer.reader import Reader

        return Reader(stream, url=self.url, **options)

    def application(self, name: str) -> Application:
        """What the node knows of an application. Raises ApplicationNotFound."""
        described = self._thread.run(self._described(name))
        checkpoints = {f"{lease.stream}/{shard_id(lease.ordinal)}": lease.checkpoint for lease in described.leases}
        return Application(name, lag_of(described), described.workers, checkpoints)

    async def _described(self, name: str) -> ApplicationDescribed:
        # Asked without a connection, which may be cut at the moment.
        answer = await self._node.ask_coordinator(DescribeApplication(name))
        assert isinstance(answer, ApplicationDescribed), "the only answer"
        return answer

    # ---- consumers -----------------------------------------------------------------------------------------

    def start(self, consumer: Running) -> None:
        """Run a Consumer or Worker on this node, wherever it was made for; it checkpoints every few milliseconds."""
        network = Severable()
        consumer.connect_to(self.url, self._runtime(network))
        consumer.config = dataclasses.replace(consumer.config, checkpoint_interval_ms=5)
        consumer.start()
        self._started[consumer] = network

    def stop(self, consumer: Running) -> None:
        """End it in order; raises what ended it before."""
        self._started.pop(consumer, None)
        consumer.stop()

    def run_until_idle(self, *consumers: Running, timeout_s: float = 30.0) -> None:
        """Run these until they have handled and checkpointed every record there is, then end them.

        Raises TimedOut when that does not come to pass (it says which shard is behind, and why, as far as it is known),
        or what ended one of them.
        """
        for consumer in consumers:
            self.start(consumer)
        deadline_s = time.monotonic() + timeout_s
        try:
            while not all(self._is_idle(consumer) for consumer in consumers):
                if time.monotonic() > deadline_s:
                    raise self._not_idle(consumers, timeout_s)
                time.sleep(_LOOK_S)            # the workers run on threads of their own, and tell nobody
        except BaseException:
            for consumer in consumers:
                with contextlib.suppress(StreamkitError):
                    self.stop(consumer)
            raise
        for consumer in consumers:
            self.stop(consumer)

    def _is_idle(self, consumer: Running) -> bool:
        if not consumer.running:
            self.stop(consumer)            # raises what ended it
        try:
            application = self.application(consumer.config.application)
        except ApplicationNotFound:
            return False                   # it has not joined yet
        known = {shard.stream for shard in application.lag.shards}
        return application.lag.records == 0 and known >= set(consumer.config.streams)

    def _not_idle(self, consumers: tuple[Running, ...], timeout_s: float) -> TimedOut:
        behind = []
        for consumer in consumers:
            with contextlib.suppress(ApplicationNotFound):
                for shard in self.application(consumer.config.application).lag.shards:
                    if shard.records:
                        behind.append(f"{shard.stream}/{shard.shard} by {shard.records} ({shard.state})")
        failures = sum(consumer.statistics.failures for consumer in consumers)
        return TimedOut(
            f"after {timeout_s:g} s the consumers are behind on {', '.join(behind) or 'streams that do not exist'}"
            + (f"; their handlers failed {failures} times" if failures else ""),
            try_="the log says why records are retried; raise timeout_s if the handler is slow", sent=True,
        )

    # ---- faults --------------------------------------------------------------------------------------------

    def fail(self, fault: Fault) -> Healing:
        """Begin a fault; it ends with `heal()`, or with the `with` block that this opens.

        disk_full: writes find no space; puts wait or are refused, reads go on. slow_disk: every sync takes 250 ms
        longer. partition: nobody reaches the node, and connections break. kill_worker: a consumer that `start` runs is
        gone without a word, as if with its process; its leases expire.
        """
        if fault not in _FAULTS:
            raise InvalidUse(f"{fault!r} is no fault", try_=f"choose among {', '.join(_FAULTS)}", fault=fault)
        if fault == "disk_full":
            self.disk.full = True
        elif fault == "slow_disk":
            self.disk.slow_s = _SLOW_SYNC_S
        elif fault == "partition":
            self.network.cut()
        else:
            self._kill_worker()
        return Healing(self, fault)

    def heal(self) -> None:
        """All faults end; who was killed stays so."""
        self.disk.full = False
        self.disk.slow_s = 0.0
        self.network.mend()

    def _kill_worker(self) -> None:
        living = [consumer for consumer in self._started if consumer.running]
        if not living:
            raise InvalidUse("no worker of this node runs", try_="node.start(consumer) first", fault="kill_worker")
        self._started.pop(living[0]).cut()
        living[0].kill()
        with contextlib.suppress(StreamkitError):
            living[0].stop(_KILLED_S)

    def restart(self) -> None:
        """End it in order and start it again, on the same files and at the same address."""
        self._thread.run(self._node.stop(0))
        self._start()

    def close(self) -> None:
        """Consumers that `start` runs are stopped; files in memory are gone."""
        if self._closed:
            return
        self._closed = True
        self.heal()
        self.clock.unfollow(self._look_at_time)
        try:
            for consumer in list(self._started):
                with contextlib.suppress(StreamkitError):
                    self.stop(consumer)
            for client in self._clients:
                client.close()
            self._thread.run(self._node.stop(1))
        finally:
            self._thread.stop()
            if self._in_memory:
                self.disk.remove_directory(self.data_dir)

    def __enter__(self) -> Node:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Healing:
    """A fault that goes on."""

    def __init__(self, node: Node, fault: str) -> None:
        self._node = node
        self.fault = fault

    def heal(self) -> None:
        """This one ends; a worker that was killed stays so."""
        if self.fault == "disk_full":
            self._node.disk.full = False
        elif self.fault == "slow_disk":
            self._node.disk.slow_s = 0.0
        elif self.fault == "partition":
            self._node.network.mend()

    def __enter__(self) -> Healing:
        return self

    def __exit__(self, *_: object) -> None:
        self.heal()
