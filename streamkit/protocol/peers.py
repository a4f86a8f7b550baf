"""The wire between two nodes: what they say, in which versions, and when each frame may come.

    DIALLING (the node whose name sorts lower)      LISTENING
    GREETING   PeerHello ─────────────────────▶     GREETING    (nothing else may come first)
    OPEN       ◀─────────────────── PeerWelcome     OPEN        or Failure, then CLOSED
    OPEN       ◀── requests, answers, sections, acknowledgements, beats, both ways ──▶   OPEN
    CLOSED     garbage, or a frame that the table does not allow

Once open, both ends are equals: each asks with request numbers of its own, and which kind of frame an answer is
tells whose number it repeats. Sections and acknowledgements are kinds of frames of their own (`_core.framing`);
FETCH and FETCH_OK are those of the native wire and read a log up to its end, uncommitted batches too.

    version 1   the `written` field of an acknowledgement is 0
    version 2   it carries how far the follower has written, beside the end that the level asks for

Like `connection.Connection`, a PeerConnection is owned by whoever owns the socket, and calls nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto

import msgspec

from streamkit.errors import ProtocolMismatch, StreamkitError
from streamkit.protocol.conversion import failure_from_wire, failure_to_wire
from streamkit.protocol.frames import (
    FETCH,
    FETCH_OK,
    FRAME_BYTES_MAX,
    MESSAGE,
    MESSAGE_BYTES_MAX,
    REPLICATE,
    REPLICATED,
    Acknowledgement,
    Fetched,
    FetchFrame,
    Frame,
    FrameReader,
    FrameWriter,
    MessageFrame,
    Section,
)
from streamkit.protocol.messages import CopiesDescribed, DescribeCopies, Failure, ShardState

PEER_VERSION_MIN = 1
PEER_VERSION_MAX = 2
PEER_FRAME_BYTES_MAX = FRAME_BYTES_MAX + 2 * 1024 * 1024   # the largest batch, and a frame's worth of others before it

# What a follower makes of a section.
ACCEPTED = 0                   # end: one past the last record held at the level asked for
MISMATCH = 1                   # end: where to try next
STALE = 2                      # epoch: the one that was promised
UNKNOWN = 3                    # it has no copy of that shard
REFUSED = 4                    # its disk is full or failed

NOT_STARTED = 2**64 - 1        # Section.epoch_start of a leader that has not begun its epoch


# ---- messages: tags 70-99 --------------------------------------------------------------------------------


class _PeerMessage(msgspec.Struct, array_like=True, frozen=True):
    """Base: a msgpack array, tag first."""


class PeerHello(_PeerMessage, tag=70, frozen=True):
    """First frame, from the node that dialled."""

    version_min: int
    version_max: int
    cluster: str
    node: str
    disk: bytes
    address: str = ""                      # where that node listens for others


class PeerWelcome(_PeerMessage, tag=71, frozen=True):
    """The version both will speak, and who answers."""

    version: int
    node: str
    disk: bytes


class Beat(_PeerMessage, tag=72, frozen=True):
    """Nothing to say, still there. One-way."""


class Seal(_PeerMessage, tag=73, frozen=True):
    """Promise these epochs and report the logs. shards: (uuid, epoch)."""

    shards: tuple[tuple[bytes, int], ...]


class SealedShard(_PeerMessage, tag=74, frozen=True):
    """One copy as it is, after the promise. epoch: what is promised now; it may be higher than what was asked."""

    uuid: bytes
    known: bool
    epoch: int = 0
    incarnation: bytes = b""
    certain: bool = False
    log_start: int = 0
    log_end: int = 0
    high_watermark: int = 0
    epochs: tuple[tuple[int, int], ...] = ()
    doubtful: bool = False


class Sealed(_PeerMessage, tag=75, frozen=True):
    shards: tuple[SealedShard, ...]


class Hear(_PeerMessage, tag=76, frozen=True):
    """When did you last hear of that node?"""

    node: str


class Heard(_PeerMessage, tag=77, frozen=True):
    age_ms: int                            # -1: never


class DigestRange(_PeerMessage, tag=78, frozen=True):
    """Sum the headers of the batches in [start, end)."""

    uuid: bytes
    start: int
    end: int


class Digest(_PeerMessage, tag=79, frozen=True):
    crc: int
    batches: int
    end: int                               # one past the last batch summed; may lie below what was asked


class AskLeader(_PeerMessage, tag=80, frozen=True):
    """What the shards that the other node leads hold, and what positions mean there now.

    positions: (uuid, kind, value) as in ResolvePosition.
    """

    uuids: tuple[bytes, ...] = ()
    positions: tuple[tuple[bytes, str, int], ...] = ()


class LeaderSays(_PeerMessage, tag=81, frozen=True):
    """states: in the order asked, None for a shard that it does not lead; sequences: the same for positions."""

    states: tuple[ShardState | None, ...]
    sequences: tuple[int | None, ...]


PeerRequest = Seal | Hear | DigestRange | AskLeader | DescribeCopies
PeerAnswer = Sealed | Heard | Digest | LeaderSays | CopiesDescribed | Failure
PeerMessage = PeerHello | PeerWelcome | Beat | PeerRequest | PeerAnswer

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(PeerMessage)


# ---- the state table -------------------------------------------------------------------------------------


class PeerSide(Enum):
    DIALLING = auto()
    LISTENING = auto()


class PeerState(Enum):
    GREETING = auto()
    OPEN = auto()
    CLOSED = auto()


class Asked(msgspec.Struct, frozen=True):
    """A request of the other node."""

    request_id: int
    message: PeerRequest


class Answered(msgspec.Struct, frozen=True):
    """The answer to one of ours."""

    request_id: int
    message: PeerAnswer


PeerFrame = Section | Acknowledgement | FetchFrame | Fetched | Asked | Answered

_REQUESTS: tuple[type, ...] = (Seal, Hear, DigestRange, AskLeader, DescribeCopies)
_ANSWERS: tuple[type, ...] = (Sealed, Heard, Digest, LeaderSays, CopiesDescribed, Failure)
_KERNEL_FRAMES: tuple[type, ...] = (Section, Acknowledgement, FetchFrame, Fetched)
_OPEN: dict[type, PeerState] = dict.fromkeys((*_KERNEL_FRAMES, Beat, *_REQUESTS, *_ANSWERS), PeerState.OPEN)

# What may be received in each state, and the state after it. What is missing is an error of the other side.
PEER_MOVES: dict[PeerSide, dict[PeerState, dict[type, PeerState]]] = {
    PeerSide.DIALLING: {
        PeerState.GREETING: {PeerWelcome: PeerState.OPEN, Failure: PeerState.CLOSED},
        PeerState.OPEN: _OPEN,
        PeerState.CLOSED: {},
    },
    PeerSide.LISTENING: {
        PeerState.GREETING: {PeerHello: PeerState.OPEN},
        PeerState.OPEN: _OPEN,
        PeerState.CLOSED: {},
    },
}
_KINDS = 1 << MESSAGE | 1 << FETCH | 1 << FETCH_OK | 1 << REPLICATE | 1 << REPLICATED
_ONE_WAY = frozenset({PeerHello, PeerWelcome, Beat})
_EITHER_WAY = frozenset({Failure})         # of a request, or of the connection


class Identity(msgspec.Struct, frozen=True):
    """Who a node says it is. version_max: the newest protocol it will speak."""

    cluster: str
    node: str
    disk: bytes
    address: str = ""
    version_max: int = PEER_VERSION_MAX


class PeerConnection:
    """One side of a link between nodes.

    expected: the node that was dialled; "" on the listening side, which learns it from the greeting.
    admit: called with the PeerHello once everything else about it is right; raises what speaks against the peer.
    failure: why the state is CLOSED, when the peer or the protocol closed it.
    """

    def __init__(
        self,
        side: PeerSide,
        ours: Identity,
        *,
        expected: str = "",
        admit: Callable[[PeerHello], None] | None = None,
        keep_bytes: int = 1024 * 1024,
    ) -> None:
        self.side = side
        self.ours = ours
        self.peer = expected
        self.peer_disk = b""
        self.peer_address = ""
        self.version = 0
        self.beats = 0
        self.failure: StreamkitError | None = None
        self.writer = FrameWriter()
        self.reader = FrameReader(PEER_FRAME_BYTES_MAX, keep_bytes, _KINDS)
        self.get_buffer = self.reader.get_buffer
        self._admit_hello = admit
        self._enter(PeerState.GREETING)
        if side is PeerSide.DIALLING:
            self._write(PeerHello(PEER_VERSION_MIN, ours.version_max, ours.cluster, ours.node, ours.disk, ours.address))

    def buffer_updated(self, count: int) -> list[PeerFrame]:
        """The frames that `count` more bytes completed, in order. Greetings and beats are left out.

        When the peer breaks the protocol, the frames before that are returned, `state` is CLOSED and `failure` says
        why.
        """
        return self._sift(self.reader.buffer_updated(count))

    def feed(self, data: bytes | bytearray | memoryview) -> list[PeerFrame]:
        """The same for bytes that lie elsewhere."""
        return self._sift(self.reader.feed(data))

    def send(self, message: PeerRequest | PeerAnswer | Beat, request_id: int = 0) -> None:
        """Gather a message; what has a frame of its own goes to `writer` directly."""
        assert self.state is PeerState.OPEN, f"{type(message).__name__} sent while {self.state.name}"
        assert (request_id == 0) is (type(message) is Beat), "only a beat is one-way"
        self._write(message, request_id)

    def fail(self, error: StreamkitError) -> None:
        """End the link because of `error`, and tell the other node unless it ended it itself."""
        if self.state is PeerState.CLOSED:
            return
        greeting = self.state is PeerState.GREETING
        self.failure = error
        self._enter(PeerState.CLOSED)
        if not (greeting and self.side is PeerSide.DIALLING):
            self._write(failure_to_wire(error))

    def take(self) -> list[bytes | bytearray | memoryview]:
        """What is to be written now, for writelines."""
        return self.writer.take()

    def _enter(self, state: PeerState) -> None:
        self.state = state
        self._row = PEER_MOVES[self.side][state]

    def _write(self, message: PeerMessage, request_id: int = 0) -> None:
        self.writer.message(request_id, _encoder.encode(message))

    def _sift(self, frames: list[Frame]) -> list[PeerFrame]:
        sifted: list[PeerFrame] = []
        for frame in frames:
            if type(frame) is MessageFrame:
                try:
                    received = self._receive(frame)
                except StreamkitError as error:
                    self.fail(error)
                    return sifted
                if received is not None:
                    sifted.append(received)
            elif type(frame) in self._row:
                sifted.append(frame)  # type: ignore[arg-type]
            else:
                self.fail(self._out_of_turn(type(frame)))
                return sifted
        if self.reader.failure is not None:
            self.fail(self.reader.failure)
        return sifted

    def _receive(self, frame: MessageFrame) -> Asked | Answered | None:
        message = _decode(frame)
        kind = type(message)
        state = self._row.get(kind)
        if state is None:
            raise self._out_of_turn(kind)
        if kind not in _EITHER_WAY and (kind in _ONE_WAY) is not (frame.request_id == 0):
            raise ProtocolMismatch(
                f"{kind.__name__} with request number {frame.request_id}", reason="request", theirs=kind.__name__
            )
        if isinstance(message, Beat):
            self.beats += 1
            return None
        if isinstance(message, PeerHello):
            self._greet(message)
        elif isinstance(message, PeerWelcome):
            self._welcomed(message)
        elif isinstance(message, Failure) and (frame.request_id == 0 or self.state is PeerState.GREETING):
            self.failure = failure_from_wire(message)
            self._enter(PeerState.CLOSED)
        elif isinstance(message, Seal | Hear | DigestRange | AskLeader | DescribeCopies):
            return Asked(frame.request_id, message)
        else:
            return Answered(frame.request_id, message)
        if self.state is not PeerState.CLOSED:
            self._enter(state)
        return None

    def _greet(self, hello: PeerHello) -> None:
        ours = self.ours
        version = min(hello.version_max, ours.version_max)
        if version < max(hello.version_min, PEER_VERSION_MIN):
            raise ProtocolMismatch(
                f"node {hello.node[:200]} speaks peer protocol {hello.version_min} to {hello.version_max}, node "
                f"{ours.node} {PEER_VERSION_MIN} to {ours.version_max}",
                try_="pip install --upgrade streamkit   (on the older node)",
                reason="version", theirs=hello.version_max, ours=ours.version_max,
            )  # fmt: skip
        if hello.cluster != ours.cluster:
            raise ProtocolMismatch(
                f"node {hello.node[:200]} belongs to cluster {hello.cluster[:64] or 'none'}, node {ours.node} to "
                f"{ours.cluster}",
                try_="give both nodes the same --cluster, or the node a data directory of its own",
                reason="cluster", theirs=hello.cluster[:64], ours=ours.cluster,
            )  # fmt: skip
        if hello.node == ours.node:
            raise ProtocolMismatch(
                f"another node calls itself {ours.node}, too", try_="give each node a --node-id of its own",
                reason="name", theirs=hello.node, ours=ours.node,
            )  # fmt: skip
        if not hello.node or hello.node > ours.node or len(hello.node) > 200:
            raise ProtocolMismatch(
                f"node {hello.node[:200]!r} dialled, but it is {ours.node} that dials it", reason="direction",
                theirs=hello.node[:200], ours=ours.node,
            )  # fmt: skip
        if self._admit_hello is not None:
            self._admit_hello(hello)
        self.version = version
        self.peer, self.peer_disk, self.peer_address = hello.node, hello.disk, hello.address
        self._write(PeerWelcome(version, ours.node, ours.disk))

    def _welcomed(self, welcome: PeerWelcome) -> None:
        if welcome.node != self.peer:
            raise ProtocolMismatch(
                f"node {welcome.node[:200]} answers where node {self.peer} is registered",
                try_="streamkit cluster status", reason="name", theirs=welcome.node[:200], ours=self.peer,
            )  # fmt: skip
        if not PEER_VERSION_MIN <= welcome.version <= self.ours.version_max:
            raise ProtocolMismatch(
                f"node {self.peer} chose peer protocol {welcome.version}, node {self.ours.node} speaks "
                f"{PEER_VERSION_MIN} to {self.ours.version_max}",
                reason="version", theirs=welcome.version, ours=self.ours.version_max,
            )  # fmt: skip
        self.version, self.peer_disk = welcome.version, welcome.disk

    def _out_of_turn(self, kind: type) -> ProtocolMismatch:
        return ProtocolMismatch(
            f"{kind.__name__} while {self.state.name.lower()}", reason="state", theirs=kind.__name__
        )


def _decode(frame: MessageFrame) -> PeerMessage:
    if len(frame.payload) > MESSAGE_BYTES_MAX:
        raise ProtocolMismatch(
            f"a message of {len(frame.payload)} bytes, the limit is {MESSAGE_BYTES_MAX}", reason="message",
            theirs=len(frame.payload), ours=MESSAGE_BYTES_MAX,
        )  # fmt: skip
    try:
        message: PeerMessage = _decoder.decode(frame.payload)
    except (ValueError, RecursionError) as cause:
        raise ProtocolMismatch(f"a message does not decode: {cause}", reason="message") from cause
    return message
