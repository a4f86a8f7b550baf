"""The nodes of a run: the shipped `Node` on a simulated machine, started, killed and started again.

The metadata's store stands outside, as a coordination service would, and survives. `supervise` is the service manager:
whenever the node's process is gone it starts another, until it is told to stop.
"""

from __future__ import annotations

import asyncio
import random

from streamkit.config import Config, HealthListener, ListenSection, NativeListener, StorageSection
from streamkit.errors import DiskFailed, DiskFull, StreamkitError
from streamkit.metadata.memory_store import MemoryStore
from streamkit.node import Node, NodeOptions
from streamkit.runtime.interfaces import Runtime
from streamkit.simulator.loop import Process
from streamkit.simulator.oracle import History
from streamkit.simulator.world import World
from streamkit.storage import StorageConfig

KIB = 1024
NODE_MACHINE = "node"
HOST, PORT = "node", 7440
ADDRESS = f"{HOST}:{PORT}"
_SUPERVISE_SECONDS = 0.02
_DRAIN_SECONDS = 2.0


class Cluster:
    """One node today; `process` is the one that runs, or ran last."""

    def __init__(self, world: World, history: History) -> None:
        self.world = world
        self.history = history
        self.draw = random.Random(world.draw.getrandbits(64))
        self.store = MemoryStore(world.clock)
        self.starts = 0
        self.ready = asyncio.Event()
        self.process = Process("none", NODE_MACHINE)
        self.process.gone = True
        self._node: Node | None = None
        self._nodes: list[Node] = []
        self._task: asyncio.Task[None] | None = None
        self._ended = False

    def note(self, text: str) -> None:
        self.history.note(self.world.loop.time(), text)

    def start(self) -> None:
        self.starts += 1
        self.note(f"start node {self.starts}")
        self.ready = asyncio.Event()
        self._ended = False
        self.process, runtime = self.world.new_process(f"node-{self.starts}", NODE_MACHINE)
        self._task = self.world.start(self.process, self._run(self.process, runtime, self.ready))

    async def _run(self, process: Process, runtime: Runtime, ready: asyncio.Event) -> None:
        node = Node(node_config(), runtime, data_dir="data", options=NodeOptions(
            store=self.store, storage=storage_config(small=self.world.faults.small_journal)
        ))  # fmt: skip
        self._node = node
        self._nodes.append(node)
        try:
            await node.start()
        except Exception as error:
            self.note(f"node did not start: {type(error).__name__}: {error}")
            failing = isinstance(error, DiskFailed) and self.world.disk(NODE_MACHINE).faults.sync_fails
            if not isinstance(error, DiskFull) and not failing:
                self._fail(error)
            self._ended = True
            return
        self.note("node ready")
        ready.set()

    def _fail(self, error: Exception) -> None:
        damaged = self.world.faults.rot and isinstance(error, StreamkitError | OSError)
        if not damaged:
            self.history.wrong.append(f"the node did not start: {type(error).__name__}: {error}")

    async def stop_orderly(self) -> None:
        """SIGTERM, and what follows from it."""
        node, process = self._node, self.process
        if node is None or not self.ready.is_set() or process.gone:
            return
        stopping = self.world.start(process, node.stop(_DRAIN_SECONDS))
        while not stopping.done() and not process.gone:  # noqa: ASYNC110 - no callback comes from a killed process
            await asyncio.sleep(_SUPERVISE_SECONDS)
        self.note("node stopped")
        self.world.kill(process)

    def forget(self) -> None:
        """After the run."""
        for node in self._nodes:
            node.abandon()
        self._nodes.clear()

    async def supervise(self) -> None:
        """Runs until it is cancelled."""
        while True:
            if self.process.gone or self._ended:
                self.world.kill(self.process)
                await asyncio.sleep(self.draw.choice((0.01, 0.2, 1.0)))
                self.start()
            await asyncio.sleep(_SUPERVISE_SECONDS)


def node_config() -> Config:
    """A node in a world where nobody listens in: the simulated network has no strangers."""
    return Config(
        listen=ListenSection(
            host=HOST, accept_insecure=True, native=NativeListener(port=PORT), health=HealthListener(enabled=False)
        ),
        storage=StorageSection(free_bytes_min=0),
    )


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
