"""The nodes of a run: the shipped `Node` on simulated machines, started, killed and started again.

The coordination store stands outside, as a service of its own, and survives; each node reaches it through a handle with
faults of its own. `supervise` is the service manager of every machine: whenever a node's process is gone it starts
another, until it is told to stop. A node alone is a cluster of one that knows of no other.
"""

from __future__ import annotations

import asyncio
import random

from streamkit.config import (
    ClusterSection,
    Config,
    HealthListener,
    HttpFace,
    ListenSection,
    NativeListener,
    NodeSection,
    StorageSection,
)
from streamkit.errors import DiskFailed, DiskFull, DuplicateNode, NodeRefused, StoreUnavailable, StreamkitError
from streamkit.metadata.memory_handle import MemoryHandle
from streamkit.metadata.memory_store import MemoryStore
from streamkit.node import Node, NodeOptions
from streamkit.runtime.interfaces import Runtime
from streamkit.simulator.loop import Process
from streamkit.simulator.oracle import History
from streamkit.simulator.world import SimulatedRandom, World
from streamkit.storage import StorageConfig

KIB = 1024
ALONE = "node"
PORT = 7440
ADDRESS = f"{ALONE}:{PORT}"            # of a node alone
DATA_DIR = "data"
_SUPERVISE_SECONDS = 0.02
_DRAIN_SECONDS = 2.0
_FAILURES_MAX = 3
_ZONES = ("north", "east", "west")


class Place:
    """A machine and the node on it. `process` is the one that runs, or ran last; `node` what it runs.

    kept_down: nobody starts it again while that is so. protocol_max: what its next start speaks at most.
    """

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.name = name
        self.draw = random.Random(cluster.world.draw.getrandbits(64))
        self.ready = asyncio.Event()
        self.process = Process("none", name)
        self.process.gone = True
        self.node: Node | None = None
        self.handle: MemoryHandle | None = None
        self.starts = 0
        self.kept_down = False
        self.protocol_max = 0
        self.is_victim = False             # its disk may lose what it promised to keep, see ClusterNemesis
        self.refused = ""                  # why the last start was turned down, if it was
        self._failures = 0                 # starts in a row that ended so
        self._over = asyncio.Event()       # its process is gone, or the node in it has ended by itself
        self._over.set()

    @property
    def address(self) -> str:
        return f"{self.name}:{PORT}"

    @property
    def serving(self) -> Node | None:
        """The node, while it runs and is ready."""
        return self.node if self.ready.is_set() and not self.process.gone else None

    def start(self) -> None:
        self.starts += 1
        self.cluster.note(f"start {self.name} {self.starts}" if self.cluster.many else f"start node {self.starts}")
        self.ready = asyncio.Event()
        self.refused = ""
        self._over = asyncio.Event()
        name = f"{self.name}-{self.starts}"
        self.process, runtime = self.world.new_process(name, self.name)
        self.process.on_gone.append(self._over.set)
        self.world.start(self.process, self._run(self.process, runtime, self.ready, self._over))

    def _options(self) -> NodeOptions:
        storage = storage_config(small=self.world.faults.small_journal)
        if not self.cluster.many:
            return NodeOptions(store=self.cluster.store, storage=storage)
        before = self.handle
        self.handle = self.cluster.store.handle(self.name, SimulatedRandom(self.draw.getrandbits(64)))
        if before is not None:
            self.handle.faults = before.faults         # what is wrong between them does not end with a process
        return NodeOptions(store=self.handle, storage=storage, cluster=True)

    async def _run(self, process: Process, runtime: Runtime, ready: asyncio.Event, over: asyncio.Event) -> None:
        config = self.cluster.config(self)
        node = self.node = Node(config, runtime, data_dir=DATA_DIR, options=self._options())
        self.cluster.started.append(node)
        try:
            await node.start()
        except Exception as error:
            self.cluster.note(f"{self.name} did not start: {type(error).__name__}: {error}")
            self._judge(error)
            over.set()
            return
        self.cluster.note(f"{self.name} ready" if self.cluster.many else "node ready")
        self._failures = 0
        ready.set()
        if self.cluster.many:
            self.cluster.note(f"{self.name} gives up: {await node.ended()}")
            over.set()

    def _judge(self, error: Exception) -> None:
        """Whether the world is to blame that it did not start."""
        self._failures += 1
        faults = self.world.faults
        if isinstance(error, NodeRefused):
            self.refused = f"{type(error).__name__}: {error}"
            stale = self.handle is not None and self.handle.stale_reads
            if not isinstance(error, DuplicateNode) and not stale and not self.world.disk(self.name).damaged:
                self.cluster.history.wrong.append(f"{self.name} was refused with its own directory: {error}")
            return
        failing = isinstance(error, DiskFailed) and self.world.disk(self.name).faults.sync_fails
        excused = isinstance(error, DiskFull | StoreUnavailable) or failing
        damaged = self.world.disk(self.name).damaged or faults.rot
        if not excused and not (damaged and isinstance(error, StreamkitError | OSError)):
            self.cluster.history.wrong.append(f"the node did not start: {type(error).__name__}: {error}")

    async def stop_orderly(self) -> None:
        """SIGTERM, and what follows from it."""
        node, process = self.serving, self.process
        if node is None:
            return
        stopping = self.world.start(process, node.stop(_DRAIN_SECONDS))
        while not stopping.done() and not process.gone:  # noqa: ASYNC110 - no callback comes from a killed process
            await asyncio.sleep(_SUPERVISE_SECONDS)
        self.cluster.note(f"{self.name} stopped" if self.cluster.many else "node stopped")
        self.world.kill(process)

    async def supervise(self) -> None:
        """Runs until it is cancelled."""
        while True:
            await self._over.wait()
            while self.kept_down:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(_SUPERVISE_SECONDS)
            self.world.kill(self.process)
            await asyncio.sleep(self.draw.choice((0.01, 0.2, 1.0)) + self.draw.random() * _SUPERVISE_SECONDS)
            self._replace_disk()
            self.start()

    def _replace_disk(self) -> None:
        """What an operator does with a directory that is refused, or cannot be read, again and again."""
        disk = self.world.disk(self.name)
        if self.is_victim and disk.damaged and self._failures >= _FAILURES_MAX:
            self.cluster.note(f"{self.name} gets an empty disk")
            disk.replace({})
            self._failures = 0


class Cluster:
    """`places` in the order of their names. started: every Node that ever was, for letting go of what it holds."""

    def __init__(self, world: World, history: History) -> None:
        self.world = world
        self.history = history
        self.draw = random.Random(world.draw.getrandbits(64))
        self.many = world.faults.nodes > 1
        self.store = MemoryStore(world.clock)
        self.started: list[Node] = []
        self.places: list[Place] = []
        names = [f"n{number}" for number in range(1, world.faults.nodes + 1)] if self.many else [ALONE]
        for name in names:
            self.places.append(Place(self, name))
        if world.faults.versions:
            for place in self.places:
                place.protocol_max = self.draw.choice((0, 1))

    def note(self, text: str) -> None:
        self.history.note(self.world.loop.time(), text)

    @property
    def addresses(self) -> list[str]:
        return [place.address for place in self.places]

    @property
    def ready(self) -> asyncio.Event:
        """Of the first node, which may be the only one; so is `process`."""
        return self.places[0].ready

    @property
    def process(self) -> Process:
        return self.places[0].process

    def start(self) -> None:
        for place in self.places:
            place.start()

    async def until_ready(self) -> None:
        for place in self.places:
            await place.ready.wait()

    async def supervise(self) -> None:
        """Runs until it is cancelled."""
        await asyncio.gather(*(place.supervise() for place in self.places))

    def forget(self) -> None:
        """After the run."""
        for node in self.started:
            node.abandon()
        self.started.clear()

    def config(self, place: Place) -> Config:
        """Of a node in a world where nobody listens in: the simulated network has no strangers."""
        faults = self.world.faults
        listen = ListenSection(
            host=place.name, accept_insecure=True, native=NativeListener(port=PORT),
            health=HealthListener(enabled=False), http=HttpFace(enabled=False),
        )  # fmt: skip
        storage = StorageSection(free_bytes_min=0)
        if not self.many:
            return Config(listen=listen, storage=storage)
        number = self.places.index(place)
        return Config(
            node=NodeSection(name=place.name), listen=listen, storage=storage,
            cluster=ClusterSection(
                replicas=min(3, len(self.places)), zone=_ZONES[number % 3] if faults.zones else "",
                protocol_max=place.protocol_max, suspect_ms=faults.suspect_ms,
            ),
        )  # fmt: skip


def storage_config(*, small: bool) -> StorageConfig:
    """Sizes at which a short run rolls segments and journals many times; or ones at which it never does."""
    if not small:
        return StorageConfig(journal_bytes=1024 * KIB, journal_step_bytes=64 * KIB, group_bytes_max=256 * KIB,
                             bypass_bytes=64 * KIB, free_bytes_min=0, reserve_bytes=0)  # fmt: skip
    return StorageConfig(
        segment_bytes=64 * KIB, journal_bytes=1024 * KIB, journal_step_bytes=64 * KIB, group_bytes_max=64 * KIB,
        bypass_bytes=4 * KIB, tail_bytes=16 * KIB, checkpoint_ms=500, free_bytes_min=0, reserve_bytes=0,
        files_open_max=8,
    )  # fmt: skip
