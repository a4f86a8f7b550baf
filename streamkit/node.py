"""A node: storage, metadata, broker, coordinator and listeners, plugged together, started and stopped.

    start   refuse unsafe listeners ▸ lock and recover storage ▸ metadata, epochs raised ▸ shards served
            ▸ coordinator replays its log ▸ listeners open ▸ ready
    in a    … storage ▸ registered in the store, or refused ▸ links and listeners open ▸ announced ▸ ready;
    cluster leaders come by election, the coordinator with the leader of its log
    stop    not ready ▸ leaders handed over ▸ no new connections, goodbye ▸ what is under way is answered
            ▸ coordinator, links, storage, metadata

A failed start undoes what it did. The simulator runs this same class on its own runtime, with its own store.
Read `Node.start`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from streamkit import __version__
from streamkit.broker.command_log import ShardCommandLog
from streamkit.broker.coordination import Coordination
from streamkit.broker.coordinator import Coordinator, CoordinatorConfig
from streamkit.broker.counters import Counters
from streamkit.broker.link import LinkConfig
from streamkit.broker.reshard import Reshards
from streamkit.broker.retention import retain, retain_once
from streamkit.broker.server import Server, ServerConfig
from streamkit.broker.service import Service
from streamkit.broker.streams import Streams
from streamkit.config import Config
from streamkit.errors import DiskFull, InvalidConfig, NodeDraining, StreamkitError
from streamkit.metadata.catalog import APPLICATIONS_STREAM, Catalog
from streamkit.metadata.notes import Notes
from streamkit.metadata.reshardings import Reshardings
from streamkit.metadata.sqlite_store import SqliteStore
from streamkit.metadata.store import Store
from streamkit.model.stream import StreamConfig
from streamkit.protocol.messages import Message, NodeDescribed
from streamkit.runtime.interfaces import ProtocolFactory, Runtime
from streamkit.runtime.real import RealNetwork, socket_pair
from streamkit.security.policy import ListenerPlan, check_listeners, is_unix
from streamkit.storage import LogDirectory, StorageConfig

if TYPE_CHECKING:
    from streamkit.broker.cluster import Cluster
    from streamkit.client.client import AsyncClient
    from streamkit.faces import Faces
    from streamkit.observability.metrics import ClusterNumbers

logger = logging.getLogger("streamkit.node")

_LOOK_SECONDS = 0.005
_TRIM_LOOKS = 400
_METADATA_FILE = "metadata.sqlite"
OURS = frozenset({"node.id", "lock", "journal", "shards", _METADATA_FILE})     # any of them marks a data directory


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOptions:
    """What the caller plugs in, beside the configuration.

    listen: False for an embedded node; clients come in through `Node.connect`.
    store: the metadata's store; None: SQLite in the data directory, or what cluster.url names.
    storage: sizes that the configuration does not name.
    cluster: a member of a cluster also without cluster.url; `store` is then its coordination store.
    """

    listen: bool = True
    store: Store | None = None
    storage: StorageConfig | None = None
    cluster: bool = False


@dataclass(slots=True)
class Addresses:
    """Where the node really listens; "" when it does not."""

    native: str = ""
    health: str = ""
    http: str = ""                         # the Kinesis API
    https: str = ""
    peer: str = ""                         # of a cluster's node


class Node:
    """One node on the running event loop. `await start()`, `await stop()`; made once, used once."""

    def __init__(self, config: Config, runtime: Runtime, *, data_dir: str, options: NodeOptions | None = None) -> None:
        self.config = config
        self.runtime = runtime
        self.data_dir = data_dir
        self.options = options or NodeOptions()
        self.addresses = Addresses()
        self.name = config.node.name
        self.counters = Counters()
        self.insecure: list[ListenerPlan] = []
        self._starting = "node.starting"
        self._draining = False
        self._stopped = asyncio.Event()
        self.stack = contextlib.AsyncExitStack()
        self._background: set[asyncio.Task[None]] = set()
        self._ticking: asyncio.Task[None] | None = None
        self._server: Server | None = None
        self._faces: Faces | None = None
        self.reshards: Reshards
        self._directory: LogDirectory
        self._catalog: Catalog
        self._streams: Streams
        self._coordinator: Coordinator | Coordination
        self.cluster: Cluster | None = None
        self.cluster_numbers: Callable[[], ClusterNumbers] | None = None
        self._ended_by: asyncio.Future[StreamkitError] | None = None
        self._carrier: AsyncClient | None = None

    # -- start and stop ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Raises UnsafeListener, DataDirectoryLocked, CorruptFile, ConnectionFailed, DiskFailed and the like."""
        began_ms = self.runtime.clock.monotonic_ms()
        if self.options.listen:
            plans = self._plans()
            self.insecure = check_listeners(plans, accept_insecure=self.config.listen.accept_insecure)
            for plan in self.insecure:
                logger.warning("listener.insecure", extra={"facts": {"name": plan.name, "address": plan.address}})
        try:
            await self._open()
        except BaseException:
            self._draining = True
            self._stopped.set()
            await self.stack.aclose()
            raise
        self._starting = ""
        seconds = (self.runtime.clock.monotonic_ms() - began_ms) / 1000
        logger.info("node.ready", extra={"facts": {"seconds": seconds, "node": self.name}})

    async def _open(self) -> None:
        config, runtime, push = self.config, self.runtime, self.stack.push_async_callback
        self._refuse_foreign()
        directory = await LogDirectory.open(self.data_dir, runtime=runtime, config=self._storage_config())
        push(directory.close)
        self.name = self.name or directory.node_id.hex()[:8]
        self._directory = directory
        directory.on_durable.append(self._progressed)
        directory.on_failed.append(self._failed)
        push(self._end_background)
        if self.is_clustered:
            # Loaded here: most nodes are alone.
            from streamkit.cluster_node import open_cluster

            self.cluster = await open_cluster(self, directory)
        else:
            await self._open_alone(directory)
        self._run(retain(self._streams, self.reshards, runtime.clock, config.storage.retention_check_seconds))
        self._keep_time()

    async def _open_alone(self, directory: LogDirectory) -> None:
        """One node, one copy of everything: it leads all shards from the start."""
        config, runtime, push = self.config, self.runtime, self.stack.push_async_callback
        store = self.options.store
        if store is None:
            store = await SqliteStore.open(f"{self.data_dir}/{_METADATA_FILE}", runtime)
            push(store.close)
        catalog = await Catalog.open(store, runtime, node=self.name, shards_max=config.streams.shards_max)
        streams = Streams(catalog, directory, self.counters, self.runtime.clock, auto_create=self.auto_create())
        await streams.open()
        internal = streams.shards[catalog.stream(APPLICATIONS_STREAM).shards[0].uuid]
        coordinator = Coordinator(
            ShardCommandLog(internal, runtime.clock), streams, runtime.clock, self.coordinator_config()
        )
        server = self.serve(streams, catalog, coordinator, Notes(store, runtime.random))
        push(coordinator.close)
        try:
            await coordinator.open()
        except DiskFull as error:
            # Reads go on, and so may a node on a full disk; applications are answered with the same error.
            logger.error("coordinator.unavailable", extra={"facts": {"error": str(error)}})
        await self.open_reshards(Reshardings(store, catalog, runtime))
        self.reshards.finish_left()
        for served in list(streams.public.values()):
            self.reshards.led(served)
        push(server.close)
        if self.options.listen:
            await self.listen_to(server)

    def serve(
        self, streams: Streams, catalog: Catalog, coordinator: Coordinator | Coordination, notes: Notes
    ) -> Server:
        service = Service(
            streams=streams, coordinator=coordinator, counters=self.counters, clock=self.runtime.clock,
            node=self.name, notes=notes, executor=self.runtime.executor, describe_node=self.describe,
            on_application=self._keep_time,
        )
        self._server = server = Server(
            node=self.name, service=service, counters=self.counters, config=self._server_config()
        )
        self._streams, self._catalog, self._coordinator = streams, catalog, coordinator
        if isinstance(coordinator, Coordinator):
            coordinator.decisions.carry_out = self.carry_out
        else:
            coordinator.carry_out = self.carry_out
            coordinator.on_open = self._keep_time          # applications that came with its log need a clock, too
        return server

    async def open_reshards(self, records: Reshardings) -> None:
        """Before the first shard is led, in a cluster. Raises StoreUnavailable, CorruptFile."""
        assert self._server is not None, "resharding is a service among others"
        push = self.stack.push_async_callback
        await records.open()
        push(records.close)
        self._server.service.reshards = self.reshards = Reshards(
            self._streams, records, self.runtime.clock, changed=self._coordinator.stream_changed
        )
        push(self.reshards.close)

    @property
    def is_clustered(self) -> bool:
        return bool(self.config.cluster.url) or self.options.cluster

    def _refuse_foreign(self) -> None:
        """A directory that holds something else is not touched."""
        disk = self.runtime.disk
        try:
            names = disk.list(self.data_dir) if disk.exists(self.data_dir) else []
        except OSError as error:
            raise InvalidConfig(
                f"{self.data_dir} cannot be a data directory: {(error.strerror or str(error)).lower()}",
                try_="name a directory that this user may read and write, or one that does not exist yet",
                file="", line=0, key="storage.data_dir", value=self.data_dir,
            ) from error
        if names and not OURS.intersection(names) and names != ["lost+found"]:
            raise InvalidConfig(
                f"{self.data_dir} is not a streamkit data directory: it holds {names[0]!r}",
                try_="name an empty directory, or one that does not exist yet",
                file="", line=0, key="storage.data_dir", value=self.data_dir,
            )

    async def listen_to(self, server: Server) -> None:
        listen = self.config.listen
        native = listen.host if is_unix(listen.host) else f"{listen.host}:{listen.native.port}"
        self.addresses.native = (await server.listen(self.runtime.network, native)).address
        self._catalog.address = self.told(self.addresses.native)
        logger.info("listener.open", extra={"facts": {"name": "native", "address": self.addresses.native}})
        if not is_unix(listen.host) and (listen.http.enabled or listen.https.certificate_file):
            # Loaded here: an embedded node has no use for HTTP.
            from streamkit.faces import Faces

            self._faces = faces = await Faces.open(self)
            self.stack.push_async_callback(faces.close)
            self.addresses.http, self.addresses.https = faces.http, faces.https
        if listen.health.enabled and not is_unix(listen.host):
            # Loaded here: an embedded node has no use for HTTP and the metrics library.
            from streamkit.broker.report import HealthPages, Report
            from streamkit.http.listener import HttpConfig, HttpListener

            report = Report(
                server=server, streams=self._streams, counters=self.counters, clock=self.runtime.clock,
                version=__version__, insecure_listeners=len(self.insecure),
                cluster=self.cluster_numbers, faces=self._faces.numbers if self._faces is not None else None,
                coordinator=self._coordinating,
            )
            pages = HealthPages(
                report, self.describe, host=listen.host, metrics=self.config.metrics.enabled,
                per_shard_max=self.config.metrics.per_shard_max,
            )
            http = await HttpListener.open(
                self.runtime.network, f"{listen.host}:{listen.health.port}", pages.answer,
                HttpConfig(
                    http2=False, connections_max=listen.health.connections_max, head_bytes_max=16 * 1024,
                    body_bytes_max=0,
                ),
            )
            self.stack.push_async_callback(http.close)
            self.addresses.health = http.address
            logger.info("listener.open", extra={"facts": {"name": "health", "address": http.address}})

    def told(self, address: str) -> str:
        """Where others are to reach what listens at `address`: listen.advertised may name another host."""
        host = self.config.listen.advertised
        if not host or is_unix(address):
            return address
        return f"{f'[{host}]' if ':' in host else host}:{address.rpartition(':')[2]}"

    async def stop(self, drain_seconds: float | None = None) -> None:
        """Orderly; what could not be finished in time is cut off. Who calls it again waits for the first."""
        if self._draining:
            await self._stopped.wait()
            return
        self._draining = True
        try:
            if self.cluster is not None:
                await self.cluster.hand_over()
            await self._stop(drain_seconds)
        finally:
            self._stopped.set()

    async def _stop(self, drain_seconds: float | None) -> None:
        began_ms = self.runtime.clock.monotonic_ms()
        seconds = self.config.node.drain_seconds if drain_seconds is None else drain_seconds
        cut = 0
        if self._faces is not None:
            await self._faces.drain(seconds)
        if self._server is not None:
            links = len(self._server.links)
            logger.info("node.draining", extra={"facts": {"connections": links, "deadline_seconds": seconds}})
            cut = await self._server.drain(seconds)
            self._streams.close()
        await self.stack.aclose()
        took = (self.runtime.clock.monotonic_ms() - began_ms) / 1000
        logger.info("node.stopped", extra={"facts": {"seconds": took, "connections_cut": cut}})

    def abandon(self) -> None:
        """After its loop has ended without `stop`, as the simulator's kill does: let go of what storage holds."""
        if self._server is not None:
            self._directory.abandon()

    async def connect(self, factory: ProtocolFactory) -> asyncio.BaseProtocol:
        """A connection from this process, without a port: the client's `Connector`. Must run on the node's loop."""
        if self._server is None or self._draining:
            raise NodeDraining(f"node {self.name} is stopping", try_="open it again", node=self.name)
        ours, theirs = socket_pair()
        network = RealNetwork()
        await network.connect_socket(ours, self._server.new_link)
        return await network.connect_socket(theirs, factory)

    # -- while it runs -------------------------------------------------------------------------------------

    def _progressed(self) -> None:
        """Storage finished a group."""
        uuids = [log.uuid for log in self._directory.take_progressed()]
        if self._server is not None:
            self._server.progressed(uuids)
        if self.cluster is not None:
            self.cluster.copies.progressed(uuids)

    def _failed(self, error: Exception) -> None:
        """The disk failed for good."""
        assert isinstance(error, StreamkitError), "see LogDirectory.on_failed"
        if self.cluster is not None:
            self.cluster.failed()                  # puts that wait are told that another node leads
            self.end(error)
        elif self._server is not None:
            self._server.failed(error)

    def end(self, error: StreamkitError) -> None:
        """This process can be of no use any more; whoever waits in `ended` stops it."""
        if self._ended_by is None:
            self._ended_by = asyncio.get_running_loop().create_future()
        if not self._ended_by.done():
            self._ended_by.set_result(error)

    async def ended(self) -> StreamkitError:
        """Why the node must be stopped: another process took its name, or its disk failed in a cluster."""
        if self._ended_by is None:
            self._ended_by = asyncio.get_running_loop().create_future()
        return await asyncio.shield(self._ended_by)

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("node.background_failed", exc_info=error)

    async def _end_background(self) -> None:
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    def _keep_time(self) -> None:
        """Applications need a clock; a node without any has none."""
        if self._ticking is None or self._ticking.done():
            self._ticking = self._run(self._tick())

    async def _tick(self) -> None:
        while self._coordinator.has_applications and not self._draining:
            await asyncio.sleep(self.config.applications.tick_ms / 1000)
            await self._coordinator.tick()

    async def carry_out(self, outputs: bytes) -> None:
        """Put what a transaction decided and nobody carried out into its shards."""
        # Loaded here: as a rule whoever decided carries out.
        from streamkit.client.client import AsyncClient
        from streamkit.transactions.carrying import carry_out
        from streamkit.transactions.outputs import unpack

        if self._carrier is None:
            self._carrier = AsyncClient(self.addresses.native or self.connect, self.runtime)
            self.stack.push_async_callback(self._carrier.close)
        await carry_out(self._carrier, unpack(outputs))

    async def ask_coordinator(self, message: Message) -> Message:
        """What it answers about applications, without a connection. Raises the error a client would be given."""
        return await self._coordinator.handle(message, 0)

    async def look_at_time(self) -> None:
        """Do now what is done every so often: what is too old goes, members and leases expire. For turned clocks.

        Segments that still take records are closed first, since retention removes whole ones: days have passed.
        """
        now_ms = self.runtime.clock.now_ms()
        with contextlib.suppress(StreamkitError, OSError):     # on a disk that is full or slow to fail nothing goes
            for shard in list(self._streams.public.values()):
                if shard.log.log_end > shard.log.log_start:
                    await self._directory.close_segment(shard.log, shard.log.log_end - 1)
            await self._directory.checkpoint()
            await retain_once(self._streams, now_ms)
            for _ in range(_TRIM_LOOKS):                       # storage trims when it has written down where
                if all(shard.log.log_start >= shard.log.trim_to for shard in self._streams.public.values()):
                    break
                await asyncio.sleep(_LOOK_SECONDS)
        await self.reshards.forget_expired(now_ms)
        await self._coordinator.tick()

    # -- how it is -----------------------------------------------------------------------------------------

    def reasons(self) -> tuple[str, ...]:
        """Why the node is not ready; empty when it is."""
        found = [self._starting] if self._starting else []
        if self._draining:
            found.append("node.draining")
        if not self._starting and (refusal := self._directory.read_only) is not None:
            found.append(f"storage.read_only: {refusal}")
        return tuple(found)

    def describe(self) -> NodeDescribed:
        reasons = self.reasons()
        started = not self._starting
        return NodeDescribed(
            node=self.name, version=__version__, ready=not reasons, reasons=reasons,
            streams=len(self._catalog.names()) if started else 0,
            shards=len(self._streams.public) if started else 0,
            free_bytes=self.runtime.disk.free_bytes(self.data_dir) if started else 0, data_dir=self.data_dir,
            durability_note="every put is on disk before it is acknowledged, unless its stream says otherwise",
            put_ms=self.counters.put_ms(0.99),
        )

    # -- configuration, for the rooms ----------------------------------------------------------------------

    def _plans(self) -> list[ListenerPlan]:
        listen = self.config.listen
        plans = [ListenerPlan("native", listen.host, listen.native.port)]
        if listen.health.enabled:
            plans.append(ListenerPlan("health", listen.host, listen.health.port))
        secured = bool(self.config.kinesis.keys_file)      # TLS and keys together are fit for others
        if listen.http.enabled:
            plans.append(ListenerPlan("http", listen.host, listen.http.port))
        if listen.https.certificate_file:
            plans.append(
                ListenerPlan("https", listen.https.host or listen.host, listen.https.port, protected=secured)
            )
        return plans

    def auto_create(self) -> StreamConfig | None:
        return self.config.streams.new_stream() if self.config.streams.auto_create else None

    def _coordinating(self) -> Coordinator | None:
        # In a cluster the coordinator comes and goes with the leadership of its log.
        given = self._coordinator
        return given.coordinator if isinstance(given, Coordination) else given

    def coordinator_config(self) -> CoordinatorConfig:
        return CoordinatorConfig(membership_ms_max=self.config.applications.membership_seconds_max * 1000)

    def _storage_config(self) -> StorageConfig:
        if self.options.storage is not None:
            return self.options.storage
        storage = self.config.storage
        return StorageConfig(
            segment_bytes=storage.segment_bytes, tail_bytes=storage.tail_bytes_max,
            free_bytes_min=storage.free_bytes_min,
        )

    def _server_config(self) -> ServerConfig:
        native = self.config.listen.native
        return ServerConfig(
            connections_max=native.connections_max, memory_bytes_max=self.config.storage.memory_bytes_max,
            link=LinkConfig(
                greeting_seconds=native.greeting_seconds, frame_seconds=native.frame_seconds,
                idle_seconds=native.idle_seconds, unacknowledged_bytes_max=native.unacknowledged_bytes_max,
            ),
        )
