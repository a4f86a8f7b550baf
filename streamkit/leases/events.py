"""What can happen to an application, and what must be done about it.

Events carry the coordinator's monotonic clock (`now_ms`) where a deadline depends on it and the wall clock
(`wall_ms`) where it is stored for people. `Effects` are carried out in field order: write, then answer, then wake.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from streamkit.leases.facts import Left


@dataclass(frozen=True, slots=True)
class FoundStream:
    """A stream as it exists now. leases: (shard uuid, ordinal, sequence to start at), in the order of ordinals.

    created_ms: tells two streams of one name apart; 0: unknown. parents: (shard, its parents), of shards that have any;
    parents that are gone may be among them. ends: (shard, one past its last record), of shards that are closed.
    """

    name: str
    leases: tuple[tuple[bytes, int, int], ...]
    created_ms: int = 0
    parents: tuple[tuple[bytes, tuple[bytes, ...]], ...] = ()
    ends: tuple[tuple[bytes, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """A worker joins; the first one makes the application, and each stream's start is what came with it first.

    instance, incarnation, standby, weight, assignment: as in MemberJoined. before: the session that it had, 0: none.
    """

    application: str
    worker: str
    streams: tuple[str, ...]
    found: tuple[FoundStream, ...]         # those of `streams` that exist and are new to the application
    membership_ms: int
    leases_max: int
    drain_ms: int
    connection: int
    now_ms: int
    wall_ms: int
    instance: str = ""
    incarnation: int = 0
    before: int = 0
    standby: bool = False
    weight: float = 1.0
    assignment: str = "count"


@dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat: the worker is alive and believes it owns these. loads: (shard, busy share, ms it was watched)."""

    application: str
    session: int
    owned: Sequence[tuple[bytes, int]]
    connection: int
    now_ms: int
    loads: Sequence[tuple[bytes, float, int]] = ()


@dataclass(frozen=True, slots=True)
class Look:
    """What changed since `owned`, asked by the coordinator for a heartbeat that it kept waiting; no sign of life."""

    application: str
    session: int
    owned: Sequence[tuple[bytes, int]]


class CheckpointItem(Protocol):
    """One checkpoint, as the wire brings it. attempts: failed attempts by sequence, of records not finished.

    sub_sequence: user records that are finished inside the aggregate at `sequence`. app_state, prepared: None when they
    are as before. ahead: what is finished beyond, in the consumer's own form.
    """

    @property
    def shard(self) -> bytes: ...
    @property
    def lease_epoch(self) -> int: ...
    @property
    def number(self) -> int: ...
    @property
    def sequence(self) -> int: ...
    @property
    def attempts(self) -> Mapping[int, int]: ...
    @property
    def sub_sequence(self) -> int: ...
    @property
    def app_state(self) -> bytes | None: ...
    @property
    def prepared(self) -> tuple[int, int, bytes] | None: ...
    @property
    def ahead(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """beyond: indexes of items above what their shard holds."""

    application: str
    items: Sequence[CheckpointItem]
    wall_ms: int
    beyond: Collection[int] = ()
    now_ms: int = 0


@dataclass(frozen=True, slots=True)
class Transact:
    """A checkpoint and outputs that are decided with it. beyond: the position is above what its shard holds."""

    application: str
    item: CheckpointItem
    outputs: bytes
    wall_ms: int
    beyond: bool
    now_ms: int


@dataclass(frozen=True, slots=True)
class CommitOutputs:
    """Outputs without a position; none: only take the epoch up, or use the number up."""

    writer: bytes
    epoch: int
    number: int
    outputs: bytes
    wall_ms: int


@dataclass(frozen=True, slots=True)
class CarriedOut:
    """items: (shard or writer, epoch, number). application "": writers."""

    application: str
    items: Sequence[tuple[bytes, int, int]]


@dataclass(frozen=True, slots=True)
class Release:
    """The owner has finished with these (shard, lease epoch) and will not touch them again.

    leaving: the owner's session when it is about to leave and is to be given no other leases; else 0.
    """

    application: str
    leases: Sequence[tuple[bytes, int]]
    now_ms: int
    leaving: int = 0


@dataclass(frozen=True, slots=True)
class Leave:
    """away: it will be back under its instance name; its leases wait for it."""

    application: str
    session: int
    now_ms: int
    away: bool = False


@dataclass(frozen=True, slots=True)
class Pause:
    application: str
    shard: bytes
    lease_epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class Resume:
    application: str
    now_ms: int


@dataclass(frozen=True, slots=True)
class Hold:
    """An operator pauses the application: its leases are drained, and nobody gets one until it is resumed."""

    application: str
    reason: str
    now_ms: int


@dataclass(frozen=True, slots=True)
class SetPositions:
    """Go on there. positions: (shard, sequence, sub_sequence); undo: those before the last one, instead."""

    application: str
    positions: Sequence[tuple[bytes, int, int]]
    now_ms: int
    wall_ms: int
    undo: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    application: str


@dataclass(frozen=True, slots=True)
class StreamsSeen:
    """The catalog was looked at. found: streams the application waits for; gone: streams that were deleted.

    changed: streams whose shards may be others than before, whole; `start` counts for new shards only.
    """

    application: str
    found: tuple[FoundStream, ...]
    gone: tuple[str, ...]
    now_ms: int
    changed: tuple[FoundStream, ...] = ()


@dataclass(frozen=True, slots=True)
class ConnectionLost:
    connection: int
    now_ms: int


@dataclass(frozen=True, slots=True)
class Restarted:
    """The coordinator starts: whoever was a member gets a full, fresh time-out."""

    now_ms: int


@dataclass(frozen=True, slots=True)
class Tick:
    """wall_ms: 0 where nothing is stored with it."""

    now_ms: int
    wall_ms: int = 0


Event = (
    Join | Beat | Look | Checkpoints | Release | Leave | Pause | Resume | Hold | SetPositions | Delete | StreamsSeen
    | ConnectionLost | Restarted | Tick | Transact | CommitOutputs | CarriedOut
)


@dataclass(frozen=True, slots=True)
class Granted:
    """A lease the worker owns and did not name."""

    stream: str
    shard: bytes
    lease_epoch: int
    checkpoint: int
    takeovers_without_progress: int
    previous_owner_crashed: bool
    attempts: Mapping[int, int]
    sub_sequence: int = 0
    app_state: bytes = b""
    prepared: tuple[int, int, bytes] | None = None
    ahead: bytes = b""
    left: Left | None = None               # outputs to be carried out first


@dataclass(frozen=True, slots=True)
class View:
    """What a worker learns from a join or a heartbeat; missing: its streams that do not exist now."""

    session: int
    membership_ms: int
    granted: tuple[Granted, ...] = ()
    lost: tuple[bytes, ...] = ()
    draining: tuple[bytes, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        return not (self.granted or self.lost or self.draining)


@dataclass(frozen=True, slots=True)
class Effects:
    """What the owner does next, in field order.

    write: facts for the log, durable before the answer leaves. answer: a View, or one result a checkpoint.
    wake: (application, session) whose waiting heartbeat has something to learn.
    """

    write: tuple[bytes, ...] = ()
    view: View | None = None
    results: tuple[str, ...] = ()
    wake: frozenset[tuple[str, int]] = field(default_factory=frozenset)


NOTHING = Effects()
