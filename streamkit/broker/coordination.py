"""Whoever coordinates applications in a cluster: this node while it leads the applications' log, else another.

    this node leads the log ▸ everything in it is committed ▸ Coordinator replays it ▸ it answers
    this node ceases to lead ▸ everybody is told who does

Looks to the service as a Coordinator does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from streamkit.broker.command_log import ShardCommandLog
from streamkit.broker.coordinator import Coordinator, CoordinatorConfig, Streams
from streamkit.broker.decisions import CarryOut
from streamkit.broker.shard_server import ShardServer
from streamkit.errors import NotLeader, StreamkitError
from streamkit.metadata.catalog import APPLICATIONS_STREAM
from streamkit.protocol import messages
from streamkit.runtime.interfaces import Clock
from streamkit.runtime.tasks import Tasks

logger = logging.getLogger("streamkit.broker")

_AGAIN_SECONDS = 0.2
_LOOK_MS = 1_000                   # between two looks at shards that lie elsewhere


class ClusterDirectory(Streams, Protocol):
    """What the coordinator asks of streams, and where it is when it is not here."""

    def coordinator(self) -> tuple[str, str]:
        """(node, native address); ("", "") while nobody is known to lead the applications' log."""

    async def catch_up(self) -> None:
        """Know every stream that was there when this was called. Raises StoreUnavailable."""

    async def prepare(self, message: messages.JoinApplication) -> None:
        """Find out what the positions in it mean in shards that other nodes lead."""

    async def look(self, names: list[str]) -> None:
        """Find out what shards hold of which nothing lies here."""


class Coordination:
    """streams: also says who leads the applications' log when this node does not."""

    def __init__(self, streams: ClusterDirectory, clock: Clock, config: CoordinatorConfig) -> None:
        self.coordinator: Coordinator | None = None
        self._streams = streams
        self._clock = clock
        self._config = config
        self.on_open: Callable[[], None] = _nobody
        self.carry_out: CarryOut | None = None         # what was decided and left, into its shards
        self._server: ShardServer | None = None
        self._looked_ms = 0
        self._closed = False
        self._tasks = Tasks("coordination")

    # -- leadership of the log -----------------------------------------------------------------------------

    def began(self, server: ShardServer) -> None:
        """This node leads a shard from now on."""
        if server.stream_name == APPLICATIONS_STREAM and not self._closed:
            self._server = server
            self._tasks.start(self._open(server), "open")

    def ended(self, server: ShardServer) -> None:
        if server is self._server:
            self._server = None
            coordinator, self.coordinator = self.coordinator, None
            if coordinator is not None:
                self._tasks.start(_close(coordinator), "close")

    async def _open(self, server: ShardServer) -> None:
        while self._server is server:
            moved = asyncio.Event()
            server.watch(self, moved.set)
            if server.is_established:
                break
            await moved.wait()
        server.unwatch(self)
        while self._server is server:
            coordinator = Coordinator(ShardCommandLog(server, self._clock), self._streams, self._clock, self._config)
            coordinator.decisions.carry_out = self.carry_out
            try:
                # Applications know streams that this node may not have heard of yet: those are not gone.
                await self._streams.catch_up()
                await coordinator.open()
            except NotLeader:
                return
            except StreamkitError as error:
                logger.error("coordinator.unavailable", extra={"facts": {"error": str(error)}})
                await asyncio.sleep(_AGAIN_SECONDS)
                continue
            if self._server is server:
                self.coordinator = coordinator
                self.on_open()
            return

    # -- as a coordinator ----------------------------------------------------------------------------------

    @property
    def has_applications(self) -> bool:
        return self.coordinator is not None and self.coordinator.has_applications

    @property
    def checkpoints(self) -> dict[str, int]:
        return self.coordinator.checkpoints if self.coordinator is not None else {}

    async def handle(self, message: messages.Message, connection_id: int) -> messages.Message:
        """Raises NotLeader with the coordinator's address when it is another node."""
        coordinator = self.coordinator
        if coordinator is None:
            raise self._elsewhere()
        if isinstance(message, messages.JoinApplication):
            await self._streams.prepare(message)
        try:
            return await coordinator.handle(message, connection_id)
        except NotLeader as error:
            raise self._elsewhere() from error

    def stream_changed(self, name: str) -> None:
        if self.coordinator is not None:
            self.coordinator.stream_changed(name)

    def check_fetch(self, application: str, session: int, shard: bytes, lease_epoch: int) -> None:
        """Only the coordinator knows who owns what; where it is another node, checkpoints alone are fenced."""
        if self.coordinator is not None:
            self.coordinator.check_fetch(application, session, shard, lease_epoch)

    def connection_lost(self, connection_id: int) -> None:
        if self.coordinator is not None:
            self.coordinator.connection_lost(connection_id)

    async def tick(self) -> None:
        coordinator = self.coordinator
        if coordinator is None:
            return
        now_ms = self._clock.monotonic_ms()
        if now_ms - self._looked_ms >= _LOOK_MS:
            self._looked_ms = now_ms
            names = {name for one in coordinator.machine.table.applications.values() for name in one.streams}
            self._tasks.start(self._streams.look(sorted(names)), "look")
        await coordinator.tick()

    async def close(self) -> None:
        self._closed = True                        # copies may still win an election on their way out
        self._server = None
        coordinator, self.coordinator = self.coordinator, None
        if coordinator is not None:
            await _close(coordinator)
        await self._tasks.close()

    def _elsewhere(self) -> NotLeader:
        node, address = self._streams.coordinator()
        return NotLeader(
            "this node does not coordinate applications", try_="ask the node that does, or try again in a moment",
            shard="", epoch=0, leader=node, address=address,
        )  # fmt: skip


def _nobody() -> None:
    """Nobody wants to know."""


async def _close(coordinator: Coordinator) -> None:
    try:
        await coordinator.close()
    except StreamkitError as error:
        logger.info("coordinator.left_unwritten", extra={"facts": {"error": str(error)}})
