"""One connection to another node: bytes, greetings, requests, beats; sections and acknowledgements once a turn.

Whatever is said in one turn of the event loop leaves in one write: the acknowledgements gathered as one frame, the
batches of all shards as another. One timer a link, none a shard.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from streamkit.broker.peer_feeds import FeedsConfig
from streamkit.errors import ConnectionFailed, InternalError, LimitReached, ProtocolMismatch, StreamkitError, TimedOut
from streamkit.protocol.conversion import failure_from_wire, failure_to_wire
from streamkit.protocol.frames import Acknowledgement, Fetched, FetchFrame, FrameWriter, Section
from streamkit.protocol.messages import Failure
from streamkit.protocol.peers import (
    PEER_VERSION_MAX,
    PEER_VERSION_MIN,
    Answered,
    Asked,
    Beat,
    PeerAnswer,
    PeerConnection,
    PeerRequest,
    PeerSide,
    PeerState,
)
from streamkit.runtime.interfaces import Connection

if TYPE_CHECKING:
    from streamkit.broker.peers import Peers

logger = logging.getLogger("streamkit.broker")

BEAT_MS = 500
_READS_MAX = 2                 # served at a time for one peer


@dataclass(frozen=True, slots=True, kw_only=True)
class PeersConfig:
    """Links between nodes. version_max: the newest peer protocol this node speaks, lowered while a cluster upgrades."""

    beat_ms: int = BEAT_MS                         # an idle link says that it is there
    silence_ms: int = 3_000                        # nothing heard for that long: the link is cut and made anew
    greeting_ms: int = 2_000                       # from dialled to greeted
    frame_ms: int = 30_000                         # from a frame's first byte to its last
    reconnect_first_ms: int = 100
    reconnect_most_ms: int = 1_000
    requests_max: int = 256                        # of one peer, under way
    read_bytes_max: int = 4 * 1024 * 1024          # of one answer to a read
    write_bytes_max: int = 2 * 1024 * 1024         # waiting to be taken by the peer, before batches are held back
    receive_bytes: int = 2 * 1024 * 1024           # the receive buffer's size under load
    version_max: int = PEER_VERSION_MAX
    feeds: FeedsConfig = field(default_factory=FeedsConfig)

    def __post_init__(self) -> None:
        if not PEER_VERSION_MIN <= self.version_max <= PEER_VERSION_MAX:
            raise ValueError(
                f"version_max must be {PEER_VERSION_MIN}..{PEER_VERSION_MAX}, got {self.version_max}"
            )
        if self.silence_ms < 2 * self.beat_ms:
            raise ValueError(f"silence_ms must be at least twice beat_ms, got {self.silence_ms}")


class PeerLink(asyncio.BufferedProtocol):
    """Made by Peers for each connection, dialled or taken. `greeted` is done once the other node is known."""

    def __init__(self, peers: Peers, wire: PeerConnection) -> None:
        self.wire = wire
        self.loop = asyncio.get_running_loop()
        self.greeted: asyncio.Future[None] = self.loop.create_future()
        self.greeted.add_done_callback(_seen)
        self.closed = False
        self.writing_paused = False
        self.heard_s = self.loop.time()
        self._peers = peers
        self._config = peers.config
        self._transport: Connection | None = None
        self._acknowledgements: dict[tuple[bytes, int], tuple[bytes, bytes, int, int, int, int]] = {}
        self._scheduled = False
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._last_id = 0
        self._serving = 0
        self._reads = asyncio.Semaphore(_READS_MAX)
        self._drained: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ticked_s = self.heard_s
        self._partial_s: float | None = None       # since when a frame is incomplete
        self._spoke = False                        # something was written since the last tick
        self._opened = False

    @property
    def node(self) -> str:
        return self.wire.peer

    @property
    def writer(self) -> FrameWriter:
        return self.wire.writer

    @property
    def open(self) -> bool:
        return self._opened and not self.closed and self.wire.state is PeerState.OPEN

    # -- asyncio calls -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("Connection", transport)
        self._transport.set_write_buffer_limits(high=self._config.write_bytes_max)
        self._timer = self.loop.call_later(self._config.greeting_ms / 1000, self._no_greeting)
        self._peers.connected_to(self)
        self.flush()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.wire.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        if self.closed:
            return
        self.heard_s = self.loop.time()
        wire = self.wire
        frames = wire.buffer_updated(nbytes)
        if not self._opened and wire.version and wire.state is not PeerState.GREETING:
            self._open()
        if frames:
            self._partial_s = None
            self._dispatch(frames)
        if wire.state is PeerState.CLOSED:
            self._broken()
        if wire.writer.queued_bytes:
            self.flush()

    def pause_writing(self) -> None:
        self.writing_paused = True

    def resume_writing(self) -> None:
        self.writing_paused = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self.open:
            self._peers.drained(self)
            if self._acknowledgements:
                self.schedule()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: BaseException | None) -> None:
        self._end(ConnectionFailed(
            f"the link to node {self.node or 'that dialled'} broke: {exc or 'closed by the other side'}",
            try_="streamkit cluster status", address=self.node, sent=True,
        ))  # fmt: skip

    # -- frames ------------------------------------------------------------------------------------------------

    def _dispatch(self, frames: list[Any]) -> None:
        sections: list[Section] = []
        peers = self._peers
        try:
            for frame in frames:
                kind = type(frame)
                if kind is Section:
                    sections.append(frame)
                elif kind is Acknowledgement:
                    peers.acknowledged(self, frame)
                elif kind is Answered:
                    self._answered(frame.request_id, frame.message)
                elif kind is Fetched:
                    self._answered(frame.request_id, frame)
                else:
                    self._serve(frame)
            if sections:
                peers.handler.sections(self.node, sections)
        except Exception as cause:
            logger.exception("peer.frames_failed", extra={"facts": {"node": self.node}})
            if not isinstance(cause, StreamkitError):
                cause = InternalError("what a node sent could not be dealt with")
            self.wire.fail(cause)

    # -- requests of ours --------------------------------------------------------------------------------------

    async def ask(self, message: PeerRequest, timeout_ms: int) -> PeerAnswer:
        request_id = self._next_id()
        self.wire.send(message, request_id)
        answer = await self._wait(request_id, timeout_ms, type(message).__name__)
        if isinstance(answer, Failure):
            raise failure_from_wire(answer)
        return cast("PeerAnswer", answer)

    async def read_log(self, uuid: bytes, start: int, bytes_max: int, timeout_ms: int) -> Fetched:
        request_id = self._next_id()
        self.writer.fetch(request_id, uuid, start, bytes_max, 0)
        answer = await self._wait(request_id, timeout_ms, "reading a log")
        if isinstance(answer, Failure):
            raise failure_from_wire(answer)
        return cast("Fetched", answer)

    def _next_id(self) -> int:
        self._last_id = self._last_id % 0xFFFFFFFF + 1
        return self._last_id

    async def _wait(self, request_id: int, timeout_ms: int, what: str) -> Any:
        self._asked[request_id] = future = self.loop.create_future()
        self.schedule()
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await future
        except TimeoutError:
            raise TimedOut(
                f"node {self.node} did not answer {what} within {timeout_ms} ms", try_="streamkit cluster status",
                sent=True, timeout_ms=timeout_ms, node=self.node,
            ) from None  # fmt: skip
        finally:
            self._asked.pop(request_id, None)

    def _answered(self, request_id: int, answer: PeerAnswer | Fetched) -> None:
        waiting = self._asked.get(request_id)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)             # else its time was up

    # -- requests of theirs ------------------------------------------------------------------------------------

    def _serve(self, frame: Asked | FetchFrame) -> None:
        if self._serving >= self._config.requests_max and self.writing_paused:
            self.wire.fail(LimitReached(
                f"node {self.node} asks and takes no answers", try_="look at the node that asked",
                limit=self._config.requests_max,
            ))  # fmt: skip
            return
        if self._serving >= self._config.requests_max:
            error = LimitReached(
                f"{self._serving} requests of node {self.node} are under way", try_="ask again later",
                limit=self._config.requests_max,
            )  # fmt: skip
            self.wire.send(failure_to_wire(error), frame.request_id)
            return
        self._serving += 1
        if isinstance(frame, FetchFrame):
            self._peers.tasks.start(self._guarded(frame.request_id, self._read(frame)), "read")
        else:
            self._peers.tasks.start(self._guarded(frame.request_id, self._answer(frame)), "asked")

    async def _guarded(self, request_id: int, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as cause:
            if not isinstance(cause, StreamkitError):
                logger.exception("peer.request_failed", extra={"facts": {"node": self.node}})
            await self._room_to_write()
            if self.open:
                self.wire.send(failure_to_wire(cause), request_id)
        finally:
            self._serving -= 1
        self.schedule()

    async def _answer(self, frame: Asked) -> None:
        answer = await self._peers.handler.asked(self.node, frame.message)
        await self._room_to_write()
        if self.open:
            self.wire.send(answer, frame.request_id)

    async def _read(self, frame: FetchFrame) -> None:
        async with self._reads:
            await self._room_to_write()
            if not self.open:
                return
            bytes_max = min(frame.bytes_max, self._config.read_bytes_max)
            found = await self._peers.handler.read_log(frame.shard, frame.start, bytes_max)
            if self.open:
                self.writer.fetch_ok(
                    frame.request_id, found.high_watermark, found.log_start, found.log_end, found.next_sequence,
                    found.batches,
                )  # fmt: skip
                self.flush()

    async def _room_to_write(self) -> None:
        """An answer is made when the peer takes bytes: those that wait are requests under way, which are bounded."""
        while self.writing_paused and self.open:
            if self._drained is None or self._drained.done():
                self._drained = self.loop.create_future()
            await self._drained

    # -- what leaves -------------------------------------------------------------------------------------------

    def acknowledge(
        self, uuid: bytes, incarnation: bytes, epoch: int, verdict: int, end: int, written: int
    ) -> None:
        """Gathered: of each shard only the last of each verdict leaves, all in one frame."""
        key = (uuid, verdict)
        gathered = self._acknowledgements
        if key in gathered:
            del gathered[key]                      # the order is that of the last ones
        gathered[key] = (uuid, incarnation, epoch, verdict, end, written if self.wire.version >= 2 else 0)
        if not self._scheduled:
            self.schedule()

    def schedule(self) -> None:
        if not self._scheduled and not self.closed:
            self._scheduled = True
            self.loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        if not self.open:
            return
        if self._acknowledgements and not self.writing_paused:
            self.writer.replicated(list(self._acknowledgements.values()))
            self._acknowledgements.clear()
        self._peers.turn(self)
        self.flush()

    def flush(self) -> None:
        """Write what is gathered."""
        parts = self.wire.take()
        if not parts or self.closed or self._transport is None:
            return
        self._spoke = True
        if len(parts) == 1:
            self._transport.write(parts[0])
        else:
            self._transport.writelines(parts)

    # -- time --------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        self._opened = True
        if self._timer is not None:
            self._timer.cancel()
        self._ticked_s = self.loop.time()
        self._timer = self.loop.call_later(self._config.beat_ms / 1000, self._tick)
        self._peers.opened(self)
        if not self.greeted.done():
            self.greeted.set_result(None)

    def _tick(self) -> None:
        now_s, config = self.loop.time(), self._config
        self._timer = self.loop.call_later(config.beat_ms / 1000, self._tick)
        # A tick that comes late says that this process stood still: what the peer sent meanwhile is not read yet.
        on_time = now_s - self._ticked_s < 2 * config.beat_ms / 1000
        self._ticked_s = now_s
        if not self.wire.reader.buffered_bytes:
            self._partial_s = None
        elif self._partial_s is None:
            self._partial_s = now_s
        if on_time and now_s - self.heard_s > config.silence_ms / 1000:
            self.cut(TimedOut(
                f"nothing was heard of node {self.node} for {config.silence_ms} ms", sent=True,
                timeout_ms=config.silence_ms, node=self.node,
            ))  # fmt: skip
            return
        if self._partial_s is not None and now_s - self._partial_s > config.frame_ms / 1000:
            self.wire.fail(ProtocolMismatch("a frame took too long to arrive", reason="slow", theirs=self.node))
            self._broken()
            return
        self._peers.tick(self, now_s)
        if not self._spoke and self.open:
            self.wire.send(Beat())
            self.flush()
        self._spoke = False

    def _no_greeting(self) -> None:
        seconds = self._config.greeting_ms / 1000
        error = TimedOut(f"no greeting within {seconds:g} s", sent=False, timeout_ms=self._config.greeting_ms)
        self.wire.fail(error)
        self._broken()

    # -- ends --------------------------------------------------------------------------------------------------

    def _broken(self) -> None:
        # The wire has closed: what it says last leaves, then the connection goes.
        assert self.wire.failure is not None, "a wire closes for a reason"
        if self.wire.side is PeerSide.LISTENING and not self._opened:
            self._peers.turned_away(self, self.wire.failure)
        self.flush()
        if self._transport is not None:
            self._transport.close()
        self._end(self.wire.failure)

    def cut(self, error: StreamkitError) -> None:
        """End the link at once; the other side may be past hearing why."""
        if self._transport is not None:
            self._transport.abort()
        self._end(error)

    def leave(self, error: StreamkitError) -> None:
        """Tell the peer why, and close."""
        if not self.closed:
            self.wire.fail(error)
            self._broken()

    def _end(self, error: StreamkitError) -> None:
        if self.closed:
            return
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        if not self.greeted.done():
            self.greeted.set_exception(error)
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        for waiting in self._asked.values():
            if not waiting.done():
                waiting.set_exception(ConnectionFailed(
                    f"the link to node {self.node} broke before it answered", try_="streamkit cluster status",
                    address=self.node, sent=True,
                ))  # fmt: skip
        self._acknowledgements.clear()
        self._peers.lost(self, error)


def _seen(greeted: asyncio.Future[None]) -> None:
    # Not everybody waits for a greeting; its failure is told to `lost` in any case.
    if not greeted.cancelled():
        greeted.exception()


def side_of(ours: str, theirs: str) -> PeerSide:
    """Which of two nodes dials: the one whose name sorts lower."""
    return PeerSide.DIALLING if ours < theirs else PeerSide.LISTENING
