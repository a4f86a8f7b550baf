"""One end of the wire, without the wire: when each frame may come, and how both ends greet and part.

    CLIENT                                    BROKER
    GREETING   Hello ─────────────────────▶   GREETING     (nothing else may come first)
    OPEN       ◀───────────────────── Welcome OPEN         or Failure, then CLOSED
    OPEN       put, fetch, requests ──────▶   OPEN
    OPEN       ◀─ put_ok, fetch_ok, answers   OPEN         in any order; request_id tells which
    DRAINING   Goodbye ───────────────────▶   DRAINING     answers still leave, requests may not come
    DRAINING   ◀───────────────────── Goodbye OPEN         the node stops: requests on their way are still answered
    CLOSED     garbage, or a frame that the table does not allow

Whoever owns the socket calls a Connection; it calls nobody. Bytes go in through get_buffer and buffer_updated
(or feed), frames come out; what is to be sent is gathered in `writer` and handed out by `take`. After each
buffer_updated the owner handles the frames, writes `take()`, and closes when `state` is CLOSED.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from streamkit.errors import ProtocolMismatch, StreamkitError
from streamkit.protocol import messages as m
from streamkit.protocol.conversion import failure_from_wire, failure_to_wire
from streamkit.protocol.frames import (
    FETCH,
    FETCH_OK,
    FRAME_BYTES_MAX,
    HTTP_ANSWER,
    MESSAGE,
    PUT,
    PUT_OK,
    Fetched,
    FetchFrame,
    Frame,
    FrameReader,
    FrameWriter,
    MessageFrame,
    PutFrame,
    PutReceipt,
    unpack,
)
from streamkit.protocol.versions import VERSION_MAX, VERSION_MIN, check_version, negotiate


class Side(Enum):
    CLIENT = auto()
    BROKER = auto()


class State(Enum):
    GREETING = auto()
    OPEN = auto()
    DRAINING = auto()
    CLOSED = auto()


@dataclass(frozen=True, slots=True)
class Received:
    """A message that came. request_id 0: one-way."""

    request_id: int
    message: m.Message


REQUESTS: tuple[type, ...] = (
    m.CreateStream, m.DescribeStream, m.ListStreams, m.DeleteStream, m.DescribeShards, m.SplitShard, m.MergeShards,
    m.ScaleStream, m.AlterStream, m.DescribeOperation, m.DescribeTraffic, m.ResolvePosition, m.FetchMatching,
    m.CancelBatch,
    m.Subscribe, m.GiveCredit,
    m.NewProducer, m.OpenProducer, m.JoinApplication, m.Heartbeat, m.Checkpoint, m.ReleaseLeases, m.LeaveApplication,
    m.ListApplications, m.DescribeApplication, m.DeleteApplication, m.PauseLease, m.ResumeLeases, m.DescribeNode,
    m.HoldApplication, m.SetPositions, m.CheckApplication,
    m.DescribeCluster, m.DrainNode, m.MoveShard, m.AddNode, m.RemoveNode, m.DescribeCopies,
    m.AcceptLoss, m.ReadNote, m.SwapNotes, m.ListNotes, m.CommitTransaction, m.CommitOutputs, m.OutputsCarriedOut,
)  # fmt: skip
ANSWERS: tuple[type, ...] = (
    m.Failure, m.Done, m.StreamDescribed, m.StreamsListed, m.ShardsDescribed, m.PositionResolved, m.ProducerGiven,
    m.ProducerOpened, m.BatchSettled, m.OperationDescribed, m.TrafficDescribed,
    m.Membership, m.Checkpointed, m.ApplicationsListed, m.ApplicationDescribed, m.ApplicationChecked, m.NodeDescribed,
    m.ClusterDescribed, m.ShardsMoving, m.CopiesDescribed, m.NoteRead, m.NotesSwapped, m.NotesListed,
    m.OutputsCommitted,
)  # fmt: skip

_REQUEST_FRAMES: tuple[type, ...] = (PutFrame, FetchFrame, *REQUESTS)
_ANSWER_FRAMES: tuple[type, ...] = (PutReceipt, Fetched, *ANSWERS)

# What may be received in each state, and the state after it. What is missing is an error of the other side.
MOVES: dict[Side, dict[State, dict[type, State]]] = {
    Side.BROKER: {
        State.GREETING: {m.Hello: State.OPEN},
        State.OPEN: {**dict.fromkeys(_REQUEST_FRAMES, State.OPEN), m.Goodbye: State.DRAINING},
        State.DRAINING: {},
        State.CLOSED: {},
    },
    Side.CLIENT: {
        State.GREETING: {m.Welcome: State.OPEN, m.Failure: State.CLOSED},
        State.OPEN: {**dict.fromkeys(_ANSWER_FRAMES, State.OPEN), m.Goodbye: State.DRAINING},
        State.DRAINING: {**dict.fromkeys(_ANSWER_FRAMES, State.DRAINING), m.Goodbye: State.DRAINING},
        State.CLOSED: {},
    },
}
_KINDS = {
    Side.BROKER: 1 << MESSAGE | 1 << PUT | 1 << FETCH,
    Side.CLIENT: 1 << MESSAGE | 1 << PUT_OK | 1 << FETCH_OK,
}
FEATURES = ("where", "push", "transactions", "traffic")     # what this build's brokers answer beyond the first version
_ONE_WAY = frozenset({m.Hello, m.Welcome, m.Goodbye})
_EITHER_WAY = frozenset({m.Failure})       # of a request, or of the connection


class Connection:
    """One side of one connection.

    name: what this side calls itself to the other (Hello.client or Welcome.node).
    addresses: a broker's Welcome.addresses, and as a client got them `peer_addresses`; likewise `peer_features`.
    keep_bytes: the receive buffer's size at rest under load; see FrameReader.
    failure: why the state is CLOSED, when the peer or a Failure for the whole connection closed it.
    """

    def __init__(
        self,
        side: Side,
        name: str = "",
        *,
        keep_bytes: int = 256 * 1024,
        frame_bytes_max: int = FRAME_BYTES_MAX,
        addresses: tuple[str, ...] = (),
    ) -> None:
        self.side = side
        self.name = name
        self.peer = ""
        self.peer_addresses: tuple[str, ...] = ()
        self.peer_features: frozenset[str] = frozenset()
        self.version = 0
        self.peer_frame_bytes_max = FRAME_BYTES_MAX
        self.failure: StreamkitError | None = None
        self.writer = FrameWriter()
        self.reader = FrameReader(frame_bytes_max, keep_bytes, _KINDS[side])
        self.get_buffer = self.reader.get_buffer
        self._frame_bytes_max = frame_bytes_max
        self._addresses = addresses
        self._enter(State.GREETING)
        if side is Side.CLIENT:
            self._write(m.Hello(VERSION_MIN, VERSION_MAX, name))

    def buffer_updated(self, count: int) -> list[Frame | Received]:
        """The frames that `count` more bytes completed, in order; messages come as Received.

        Greetings are dealt with here and left out. When the peer breaks the protocol, the frames before that
        are returned, `state` is CLOSED and `failure` says why.
        """
        return self._admit(self.reader.buffer_updated(count))

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame | Received]:
        """The same for bytes that lie elsewhere."""
        return self._admit(self.reader.feed(data))

    def send(self, message: m.Message, request_id: int = 0) -> None:
        """Gather a message. Puts, fetches and their answers go to `writer` directly."""
        expected = ANSWERS if self.side is Side.BROKER else REQUESTS
        assert self.state in (State.OPEN, State.DRAINING), f"{type(message).__name__} sent while {self.state.name}"
        assert request_id and isinstance(message, expected), f"{type(message).__name__} is not this side's to send"
        self._write(message, request_id)

    def say_goodbye(self, reason: str = "") -> None:
        """This side starts nothing new. A broker goes on answering what is on its way."""
        if self.state is State.OPEN:
            self._write(m.Goodbye(reason))
            if self.side is Side.CLIENT:
                self._enter(State.DRAINING)

    def fail(self, error: StreamkitError) -> None:
        """End the connection because of `error`; a broker tells the client why."""
        if self.state is State.CLOSED:
            return
        self.failure = error
        self._enter(State.CLOSED)
        if self.side is Side.CLIENT:
            return
        if error.facts.get("reason") == "http":
            self.writer.raw(HTTP_ANSWER)
        else:
            self._write(failure_to_wire(error))

    def take(self) -> list[bytes | bytearray | memoryview]:
        """What is to be written now, for writelines."""
        return self.writer.take()

    def _enter(self, state: State) -> None:
        self.state = state
        self._row = MOVES[self.side][state]

    def _write(self, message: m.Message, request_id: int = 0) -> None:
        self.writer.message(request_id, m.encode(message))

    def _admit(self, frames: list[Frame]) -> list[Frame | Received]:
        admitted: list[Frame | Received] = []
        for frame in frames:
            if type(frame) is MessageFrame:
                try:
                    received = self._receive(frame)
                except ProtocolMismatch as error:
                    self.fail(error)
                    return admitted
                if received is not None:
                    admitted.append(received)
            elif type(frame) in self._row:                 # put and fetch and their answers never move the state
                admitted.append(frame)
            else:
                self.fail(self._out_of_turn(type(frame)))
                return admitted
        if self.reader.failure is not None:
            self.fail(self.reader.failure)
        return admitted

    def _receive(self, frame: MessageFrame) -> Received | None:
        message = unpack(frame)
        kind = type(message)
        state = self._row.get(kind)
        if state is None:
            raise self._out_of_turn(kind)
        if kind not in _EITHER_WAY and (kind in _ONE_WAY) is not (frame.request_id == 0):
            raise ProtocolMismatch(
                f"{kind.__name__} with request number {frame.request_id}", reason="request", theirs=kind.__name__
            )
        if isinstance(message, m.Hello):
            self.version = negotiate(message.version_min, message.version_max)
            self.peer = message.client[:200]
            self._write(m.Welcome(self.version, self.name, self._frame_bytes_max, self._addresses, FEATURES))
        elif isinstance(message, m.Welcome):
            self.version = check_version(message.version)
            self.peer = message.node[:200]
            self.peer_frame_bytes_max = message.frame_bytes_max
            self.peer_addresses = tuple(address[:300] for address in message.addresses[:1_000])
            self.peer_features = frozenset(message.features[:1_000])
        elif isinstance(message, m.Failure) and (frame.request_id == 0 or self.state is State.GREETING):
            self.fail(failure_from_wire(message))
            return None
        if state is not self.state:
            self._enter(state)
        return None if isinstance(message, m.Hello | m.Welcome) else Received(frame.request_id, message)

    def _out_of_turn(self, kind: type) -> ProtocolMismatch:
        return ProtocolMismatch(
            f"{kind.__name__} while {self.state.name.lower()}", reason="state", theirs=kind.__name__
        )
