"""What the command log holds: facts, each a msgpack array with its tag first. Tags are never reused.

A fact says what was decided, not what was asked, so that replaying needs no clock and survives a change of the
assignment rules. The log begins with `Genesis` or, once it was compacted, with a snapshot: `SnapshotStart`, the
facts that rebuild every application, `SnapshotEnd`. A snapshot without its end does not count.
"""

from __future__ import annotations

import msgspec


class _Fact(msgspec.Struct, array_like=True, frozen=True):
    """Base: a msgpack array, tag first."""


class Genesis(_Fact, tag=1, frozen=True):
    """The first fact of a log that was never compacted."""

    version: int


class SnapshotStart(_Fact, tag=2, frozen=True):
    version: int


class SnapshotEnd(_Fact, tag=3, frozen=True):
    pass


class ApplicationCreated(_Fact, tag=4, frozen=True):
    application: str
    created_ms: int
    sessions: int = 0                      # sessions given out so far


class StreamAdded(_Fact, tag=5, frozen=True):
    """leases: (shard uuid, ordinal, sequence to start at); may come in parts. created_ms: of the stream, 0: unknown."""

    application: str
    stream: str
    leases: tuple[tuple[bytes, int, int], ...]
    created_ms: int = 0


class StreamRemoved(_Fact, tag=6, frozen=True):
    application: str
    stream: str


class MemberJoined(_Fact, tag=7, frozen=True):
    """A member, or what has changed about one that is known.

    instance: its leases wait for the next worker of that name until the time-out; incarnation: tells two of them apart.
    away: it said that it will be back. standby: it is given leases only while promoted, in the place of one that went.
    assignment: "count" or "load", which counts once all say so.
    """

    application: str
    session: int
    worker: str
    streams: tuple[str, ...]
    membership_ms: int
    leases_max: int
    drain_ms: int
    instance: str = ""
    incarnation: int = 0
    away: bool = False
    standby: bool = False
    promoted: bool = False
    weight: float = 1.0
    assignment: str = "count"

    @property
    def has_place(self) -> bool:
        """Whether it is to be given leases."""
        return self.promoted or not self.standby


class MemberGone(_Fact, tag=8, frozen=True):
    """Its leases are freed by this fact; crashed: it did not say so itself."""

    application: str
    session: int
    crashed: bool


class LeasesGranted(_Fact, tag=9, frozen=True):
    """leases: (shard, session, lease epoch)."""

    application: str
    leases: tuple[tuple[bytes, int, int], ...]


class LeasesDraining(_Fact, tag=10, frozen=True):
    application: str
    shards: tuple[bytes, ...]


class LeasesFreed(_Fact, tag=11, frozen=True):
    application: str
    shards: tuple[bytes, ...]
    crashed: bool


class Checkpointed(_Fact, tag=12, frozen=True):
    """changes: packed by `_core.lease_table`; the others: of the shards whose own changed.

    app_states: b"" when there is none any more. prepared: (sequence, sub_sequence, state), or None when that is over.
    """

    application: str
    changes: bytes
    wall_ms: int
    attempts: dict[bytes, dict[int, int]] = {}
    sub_sequences: dict[bytes, int] = {}
    app_states: dict[bytes, bytes] = {}
    prepared: dict[bytes, tuple[int, int, bytes] | None] = {}
    ahead: dict[bytes, bytes] = {}


class LeasePaused(_Fact, tag=13, frozen=True):
    application: str
    shard: bytes
    reason: str


class LeasesResumed(_Fact, tag=14, frozen=True):
    application: str
    shards: tuple[bytes, ...]


class ApplicationDeleted(_Fact, tag=15, frozen=True):
    application: str


class LeaseRows(_Fact, tag=16, frozen=True):
    """Only in a snapshot: rows of shards added before it, as `_core.lease_table` dumps them."""

    application: str
    rows: bytes
    attempts: dict[bytes, dict[int, int]] = {}
    reasons: dict[bytes, str] = {}
    sub_sequences: dict[bytes, int] = {}
    ahead: dict[bytes, bytes] = {}


class MapChanged(_Fact, tag=17, frozen=True):
    """A stream's shards are others than before: all that one look at its map brought.

    added: (shard, ordinal, sequence to start at, whether it waits for its parents). parents: (shard, its parents), of
    shards that have any. ends: (shard, one past its last record), of shards that were closed. removed: shards whose
    records are too old to be kept.
    """

    application: str
    stream: str
    added: tuple[tuple[bytes, int, int, bool], ...] = ()
    parents: tuple[tuple[bytes, tuple[bytes, ...]], ...] = ()
    ends: tuple[tuple[bytes, int], ...] = ()
    removed: tuple[bytes, ...] = ()


class LeasesCompleted(_Fact, tag=18, frozen=True):
    """shards: processed to their end, for ever. ready: shards that waited for the last of their parents only."""

    application: str
    shards: tuple[bytes, ...]
    ready: tuple[bytes, ...] = ()


class StateKept(_Fact, tag=19, frozen=True):
    """Only in a snapshot: what the application keeps with one lease, of shards added before it."""

    application: str
    shard: bytes
    app_state: bytes
    prepared: tuple[int, int, bytes] | None


class PositionsSet(_Fact, tag=20, frozen=True):
    """Somebody said where to go on. positions: (shard, sequence, sub_sequence). Whoever owned one is fenced.

    waiting: shards that wait for parents from now on, in `positions` or not. completed: shards of `positions` that are
    at their end. undone: positions are those before the last such fact, with what was kept with them, not `positions`.
    """

    application: str
    positions: tuple[tuple[bytes, int, int], ...]
    waiting: tuple[bytes, ...]
    completed: tuple[bytes, ...]
    wall_ms: int
    undone: bool = False


class PositionBefore(_Fact, tag=21, frozen=True):
    """Only in a snapshot: what the last PositionsSet put aside, shard by shard."""

    application: str
    wall_ms: int
    shard: bytes
    sequence: int
    sub_sequence: int
    app_state: bytes
    ahead: bytes = b""


class ApplicationHeld(_Fact, tag=22, frozen=True):
    """Nothing is handed out from now on; reason "": it is again."""

    application: str
    reason: str


class Left(msgspec.Struct, array_like=True, frozen=True):
    """Outputs that were decided under (epoch, number) and may not be in their shards yet. wall_ms: of the decision."""

    epoch: int
    number: int
    outputs: bytes
    wall_ms: int


class Transacted(_Fact, tag=23, frozen=True):
    """A checkpoint of one lease, and what came of the records before it: one fact, so that neither is there alone."""

    checkpointed: Checkpointed
    shard: bytes
    left: Left


class OutputsCommitted(_Fact, tag=24, frozen=True):
    """A transaction without a position. left.outputs empty: the epoch was taken up, or the number used up.

    decided: there were outputs; left alone says it where it is not in a snapshot.
    """

    writer: bytes
    left: Left
    decided: bool = False


class OutputsCarriedOut(_Fact, tag=25, frozen=True):
    """application "": key is a writer, else a shard."""

    application: str
    key: bytes


class OutputsLeft(_Fact, tag=26, frozen=True):
    """Only in a snapshot."""

    application: str
    key: bytes
    left: Left


class WriterForgotten(_Fact, tag=27, frozen=True):
    """It was not heard of for long, and nothing of it is left."""

    writer: bytes


Fact = (
    Genesis | SnapshotStart | SnapshotEnd | ApplicationCreated | StreamAdded | StreamRemoved | MemberJoined | MemberGone
    | LeasesGranted | LeasesDraining | LeasesFreed | Checkpointed | LeasePaused | LeasesResumed | ApplicationDeleted
    | LeaseRows | MapChanged | LeasesCompleted | StateKept
    | PositionsSet | PositionBefore | ApplicationHeld
    | Transacted | OutputsCommitted | OutputsCarriedOut | OutputsLeft | WriterForgotten
)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Fact)


def encode(fact: Fact) -> bytes:
    return _encoder.encode(fact)


def decode(data: bytes) -> Fact:
    """Raises msgspec.ValidationError or msgspec.DecodeError."""
    fact: Fact = _decoder.decode(data)
    return fact
