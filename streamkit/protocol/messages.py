"""Everything that can be said on the native wire, as frozen values.

A frame carries one message. The data plane (put, fetch and their answers) has fixed binary headers and is
built and parsed in `_core.framing`; everything here is rare and travels as a msgpack array whose first
element is the tag. Tags are never reused; fields are only added at the end, with a default, so that two
versions can talk. Raw batches never enter msgpack: they follow the header as payload.

    tag  1-9    connection      10-19 streams      20-29 positions and producers
        30-49   applications    50-69 node and cluster    100- transactions (70-99 between nodes: peers.py)
        110-    changes of shards under way
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from streamkit.model.limits import OUTPUTS_BYTES_MAX

_Saved = Annotated[bytes, msgspec.Meta(max_length=64 * 1024)]
Ahead = Annotated[bytes, msgspec.Meta(max_length=4096)]
_Whole = Annotated[int, msgspec.Meta(ge=0)]     # 0 … 2⁶⁴ - 1: what kernels and files have room for
_Outputs = Annotated[bytes, msgspec.Meta(max_length=OUTPUTS_BYTES_MAX)]
_Writer = Annotated[bytes, msgspec.Meta(max_length=128)]


class _Message(msgspec.Struct, array_like=True, frozen=True):
    """Base: a msgpack array, tag first."""


class _Part(msgspec.Struct, array_like=True, frozen=True):
    """Base of what only ever travels inside a message."""


# ---- connection ------------------------------------------------------------------------------------------


class Hello(_Message, tag=1, frozen=True):
    """First frame of a connection, from the client."""

    version_min: int
    version_max: int
    client: str = ""                       # "streamkit/0.1.0 python/3.11", for logs


class Welcome(_Message, tag=2, frozen=True):
    """The broker's answer: the version both will speak."""

    version: int
    node: str
    frame_bytes_max: int
    addresses: tuple[str, ...] = ()        # where clients reach the nodes that live now; (): this one is alone
    features: tuple[str, ...] = ()         # requests that came later: clients make them only of brokers that name them


class Failure(_Message, tag=3, frozen=True):
    """A request failed; `code` is one of errors.BY_CODE."""

    code: str
    message: str
    try_: str = ""
    facts: dict[str, Any] = {}


class Goodbye(_Message, tag=4, frozen=True):
    """The sender will start nothing new on this connection; what is under way is finished."""

    reason: str = ""


class Done(_Message, tag=5, frozen=True):
    """It is done; there is nothing else to say."""


# ---- streams ---------------------------------------------------------------------------------------------


class ShardInfo(_Message, tag=9, frozen=True):
    """model.Shard on the wire; hash bounds as 17-byte big-endian so that 2**128 fits."""

    ordinal: int
    uuid: bytes
    hash_start: bytes
    hash_end: bytes
    created_ms: int
    closed_ms: int | None
    parents: tuple[int, ...]
    children: tuple[int, ...]
    epoch: int
    leader: str
    address: str
    end: int | None = None                 # of a closed shard: one past its last record


class StreamInfo(_Message, tag=8, frozen=True):
    """model.StreamDescription on the wire."""

    name: str
    status: str
    shard_count: int
    retention_hours: int
    retention_bytes: int | None
    durability: str
    record_bytes_max: int
    codec: str
    created_ms: int
    map_version: int
    shards: tuple[ShardInfo, ...]


class CreateStream(_Message, tag=10, frozen=True):
    name: str
    shards: int
    retention_hours: int
    retention_bytes: int | None
    durability: str
    record_bytes_max: int
    codec: str


class DescribeStream(_Message, tag=11, frozen=True):
    name: str


class StreamDescribed(_Message, tag=12, frozen=True):
    """Answers CreateStream, DescribeStream, AlterStream, SplitShard, MergeShards and ScaleStream.

    operation: what was begun and not waited for, for DescribeOperation; "": it is done.
    """

    stream: StreamInfo
    operation: str = ""


class ListStreams(_Message, tag=13, frozen=True):
    after: str = ""                        # exclusive; names in sorted order
    count_max: int = 1000


class StreamsListed(_Message, tag=14, frozen=True):
    streams: tuple[StreamInfo, ...]        # with shards left out
    more: bool


class DeleteStream(_Message, tag=15, frozen=True):
    name: str


class DescribeShards(_Message, tag=16, frozen=True):
    """How much each shard of a stream holds."""

    name: str


class SplitShard(_Message, tag=18, frozen=True):
    """Close a shard and give its range to two children; answered with the stream as it is then.

    wait: False is answered as soon as nobody can prevent it any more, with the stream as it was.
    """

    name: str
    shard: _Whole                          # ordinal
    at: bytes | None = None                # first hash key of the second child, as in ShardInfo; None: the middle
    wait: bool = True


class MergeShards(_Message, tag=19, frozen=True):
    """Close neighbouring shards and give their ranges to one child. wait: as of SplitShard."""

    name: str
    shards: tuple[_Whole, ...]             # ordinals, in any order
    wait: bool = True


class ScaleStream(_Message, tag=24, frozen=True):
    """Close what is needed so that `shards` shards of nearly equal ranges are open. wait: as of SplitShard."""

    name: str
    shards: _Whole
    wait: bool = True


class DescribeOperation(_Message, tag=110, frozen=True):
    """How far a change of a stream's shards is. Answered when that changes, or after wait_ms."""

    stream: str
    operation: str
    wait_ms: _Whole = 0


class OperationDescribed(_Message, tag=111, frozen=True):
    """status: "running", "done", or "failed" (then failure says why, and the stream is as it was)."""

    status: str
    done: int                              # of `total` steps
    total: int
    failure: Failure | None = None


class DescribeTraffic(_Message, tag=112, frozen=True):
    """Where a split would halve what the shard took lately; asked of its leader."""

    shard: bytes


class TrafficDescribed(_Message, tag=113, frozen=True):
    """at: first hash key of the second half, as in ShardInfo; None: too few records, or one key that cannot be split.

    records: that were looked at. window_ms: how far back. below: share of the bytes that the first half would take.
    key, key_share: the heaviest key, and its share.
    """

    at: bytes | None
    records: int
    window_ms: int
    below: float = 0.0
    key: str = ""
    key_share: float = 0.0


class AlterStream(_Message, tag=25, frozen=True):
    """Other settings for a stream that exists; None: as it was. Answered with the stream as it is then."""

    name: str
    retention_hours: int | None = None
    retention_bytes: int | None = 0        # None: no bound; 0: as it was
    record_bytes_max: int | None = None


class ShardState(_Message, tag=7, frozen=True):
    ordinal: int
    log_start: int
    high_watermark: int
    log_end: int
    stored_bytes: int
    first_append_ms: int | None            # append time of the oldest kept batch; None when empty
    last_append_ms: int | None
    records_appended: int                  # since the node started
    put_records_rate: float = 0.0          # a second, over the last minute
    put_bytes_rate: float = 0.0            # the same, of bytes as they are stored


class ShardsDescribed(_Message, tag=17, frozen=True):
    shards: tuple[ShardState, ...]


# ---- positions and producers -----------------------------------------------------------------------------


class ResolvePosition(_Message, tag=20, frozen=True):
    """kind: "trim_horizon", "latest", "at_sequence", "after_sequence", "at_time"; value: sequence or ms."""

    shard: bytes
    kind: str
    value: int = 0


class PositionResolved(_Message, tag=21, frozen=True):
    sequence: int                          # first sequence to read
    log_start: int
    high_watermark: int


class NewProducer(_Message, tag=22, frozen=True):
    """A producer identity of one's own; name "" is anonymous, a name raises its epoch and fences elders."""

    name: str = ""
    instance: bytes = b""                  # drawn by each that opens the name
    renew: bool = False                    # only if that instance is still the newest; else refused as fenced


class ProducerGiven(_Message, tag=23, frozen=True):
    producer_id: int
    producer_epoch: int


class FetchMatching(_Message, tag=28, frozen=True):
    """A fetch, answered like every fetch; batches in which no record matches may be left out. Feature "where".

    codec: how payloads are read: "auto", "json", "msgpack", "text" or "bytes".
    """

    shard: bytes
    start: _Whole
    bytes_max: _Whole
    wait_ms: _Whole
    where: str
    codec: str = "auto"
    application: str = ""
    session: _Whole = 0
    lease_epoch: _Whole = 0


class OpenProducer(_Message, tag=26, frozen=True):
    """The newest instance of a name begins with a shard: nothing of elder ones is stored there once this is answered.

    Answered with ProducerOpened when the shard's copies know.
    """

    shard: bytes
    name: str
    instance: bytes                        # as in NewProducer
    producer_id: _Whole
    producer_epoch: _Whole


class ProducerOpened(_Message, tag=27, frozen=True):
    next: int                              # the producer's number of its next record in the shard
    closed: bool = False                   # the shard takes no more records


class Subscribe(_Message, tag=29, frozen=True):
    """A fetch that goes on by itself: answers with this request's number follow one another until a Failure, or a Done
    after GiveCredit(0). Feature "push".

    credit_bytes: how many bytes of batches may be sent; GiveCredit adds to it. where: "" for everything.
    """

    shard: bytes
    start: _Whole
    credit_bytes: _Whole
    where: str = ""
    codec: str = "auto"
    application: str = ""
    session: _Whole = 0
    lease_epoch: _Whole = 0


class GiveCredit(_Message, tag=68, frozen=True):
    """So many bytes more for the subscription whose request number this carries; 0 ends it. Not answered otherwise."""

    bytes: _Whole


class CancelBatch(_Message, tag=90, frozen=True):
    """Use up the producer's numbers from `producer_sequence` on, so that the batch that had them is never stored.

    age_ms: how long ago the batch was sent first. Answered with BatchSettled, once that is replicated.
    """

    shard: bytes
    producer_id: _Whole
    producer_epoch: _Whole
    producer_sequence: _Whole
    records: _Whole
    age_ms: _Whole = 0


class BatchSettled(_Message, tag=91, frozen=True):
    """fate: "stored" (at base_sequence), "cancelled" (it never will be), or "forgotten" (nobody knows any more)."""

    fate: str
    base_sequence: int = 0
    append_time_ms: int = 0
    epoch: int = 0                         # of the leader that answers
    replicas: int = 0
    synced: bool = False


# ---- applications ----------------------------------------------------------------------------------------


class LeftOutputs(_Part, frozen=True):
    """Outputs of a transaction that was decided, under which epoch and number, and was not reported as carried out."""

    epoch: _Whole
    number: _Whole
    outputs: bytes


class LeaseGrant(_Message, tag=30, frozen=True):
    """A lease this worker owns now."""

    stream: str
    shard: ShardInfo
    lease_epoch: int
    checkpoint: int                        # sequence of the first record not yet finished
    takeovers_without_progress: int
    previous_owner_crashed: bool
    attempts: dict[int, int] = {}          # sequence → failed attempts so far
    sub_sequence: int = 0                  # that record is an aggregate, of which so many user records are finished
    application_ms: int = 0                # when the application was created: one that was made again is another
    app_state: bytes = b""                 # as in CheckpointItem
    prepared: tuple[int, int, bytes] | None = None
    ahead: bytes = b""                     # as in CheckpointItem
    outputs: LeftOutputs | None = None     # to be carried out before anything else is handled


class JoinApplication(_Message, tag=31, frozen=True):
    """A worker joins; the application is created by the first, and `start` is resolved once, then.

    start_kind, start_value: as in ResolvePosition, or "per_shard" with start_by_shard (shard id → sequence
    number text, or "trim_horizon" or "latest"). instance: a name whose leases wait for its next worker; incarnation:
    drawn by the process, tells two of one name apart; before: the session that this process had, 0: none yet.
    standby: it wants leases only in the place of a worker that went. weight: its share of them. assignment: "count",
    or "load" by what the heartbeats' reports say, once all workers want that.
    """

    application: str
    worker: str
    streams: tuple[str, ...]
    start_kind: str
    start_value: int = 0
    start_by_shard: dict[str, str] = {}
    membership_ms: _Whole = 10_000
    leases_max: _Whole = 0                 # 0: no bound
    drain_ms: _Whole = 30_000              # how long the worker may take to finish a lease it must hand over
    instance: str = ""
    incarnation: _Whole = 0
    before: _Whole = 0
    standby: bool = False
    weight: float = 1.0
    assignment: str = "count"


class ShardPace(_Part, frozen=True):
    """Where a worker's time goes in one shard, over the last quarter of a minute or so; shares are 0 to 1.

    busy: inside user code. waiting: with no batch to hand out. record_ms: of user code; 0: unknown. top_key_share: of
    the records looked at. throttled: fetches refused since the lease began. stream, ordinal: filled in by the
    coordinator. load: as busy, with a half-life of 30 s; observed_ms: since when.
    """

    shard: bytes
    busy: float
    waiting: float
    record_ms: float
    top_key: str = ""
    top_key_share: float = 0.0
    throttled: int = 0
    stream: str = ""
    ordinal: int = 0
    load: float = 0.0
    observed_ms: int = 0


class WorkerReport(_Part, frozen=True):
    """wall_ms: the worker's clock as it sent this. worker, clock_ms (ahead of the coordinator's): filled in there."""

    wall_ms: int
    prefetch_bytes: int
    prefetch_bytes_max: int
    shards: tuple[ShardPace, ...]
    worker: str = ""
    clock_ms: int = 0


class Heartbeat(_Message, tag=32, frozen=True):
    """I am alive, and I believe I own these. owned: (shard uuid, lease epoch)."""

    application: str
    worker: str
    session: _Whole
    owned: tuple[tuple[bytes, _Whole], ...]
    wait_ms: _Whole = 0                    # the answer may wait that long for news; the sign of life counts at once
    report: WorkerReport | None = None


class Membership(_Message, tag=33, frozen=True):
    """Answers JoinApplication and Heartbeat: only what changed since the worker's `owned`."""

    session: int                           # of this join; a worker that rejoins gets another
    membership_ms: int
    granted: tuple[LeaseGrant, ...]        # owned by the worker, missing from `owned`
    lost: tuple[bytes, ...]                # in `owned`, but owned by the worker no longer
    draining: tuple[bytes, ...]            # to be finished, checkpointed and released soon
    missing: tuple[str, ...] = ()          # streams the worker asked for that do not exist now


class CheckpointItem(_Message, tag=34, frozen=True):
    shard: bytes
    lease_epoch: _Whole
    number: _Whole                         # grows by one for each checkpoint of this lease epoch
    sequence: _Whole                       # first record not yet finished
    attempts: dict[int, int] = {}          # of records that failed at least once and are not finished
    sub_sequence: _Whole = 0               # as in LeaseGrant
    app_state: _Saved | None = None        # what the application keeps with this position; None: as before
    prepared: tuple[_Whole, _Whole, _Saved] | None = None      # (sequence, sub_sequence, state), to be checkpointed
    ahead: Ahead = b""                     # what lanes finished beyond it, as `consumer.ahead` packs it


class Checkpoint(_Message, tag=35, frozen=True):
    application: str
    worker: str
    items: tuple[CheckpointItem, ...]


class Checkpointed(_Message, tag=36, frozen=True):
    """One result an item: "ok", "fenced", "behind" (below what is stored) or "beyond" (above what the shard holds).

    Only "ok" changes anything.
    """

    results: tuple[str, ...]


class CommitTransaction(_Message, tag=100, frozen=True):
    """A checkpoint and records for other shards: both are decided, or neither. Answered with Checkpointed.

    outputs: as `transactions.outputs` packs them; those of the lease's transaction before are carried out. Feature
    "transactions".
    """

    application: str
    worker: str
    item: CheckpointItem
    outputs: _Outputs


class CommitOutputs(_Message, tag=101, frozen=True):
    """The same without a position, by whoever holds `writer` in the highest epoch. Answered with OutputsCommitted.

    writer: the name of a producer, or what stands for one without. number: grows by one for each transaction of an
    epoch. outputs empty: only take the epoch up, or use the number up, so that nothing is decided under it later.
    Feature "transactions".
    """

    writer: _Writer
    epoch: _Whole
    number: _Whole
    outputs: _Outputs


class OutputsCommitted(_Message, tag=102, frozen=True):
    """result: "ok" (decided), "void" (never will be), "fenced" (by a higher epoch).

    left: what was decided for the writer and not reported as carried out.
    """

    result: str
    left: LeftOutputs | None = None


class OutputsCarriedOut(_Message, tag=103, frozen=True):
    """Every record of these outputs is stored. items: (shard, epoch, number), or (writer, …) without application.

    Answered with Done. Feature "transactions".
    """

    application: str
    items: tuple[tuple[_Writer, _Whole, _Whole], ...]


class ReleaseLeases(_Message, tag=37, frozen=True):
    """The worker has finished with these and will not touch them again."""

    application: str
    worker: str
    leases: tuple[tuple[bytes, _Whole], ...]
    leaving_session: _Whole = 0            # the worker's session when it is about to leave: it wants no other leases


class LeaveApplication(_Message, tag=38, frozen=True):
    """away: it will be back under its instance name within the time-out, and its leases wait for it."""

    application: str
    worker: str
    session: _Whole
    away: bool = False


class ListApplications(_Message, tag=39, frozen=True):
    pass


class ApplicationsListed(_Message, tag=40, frozen=True):
    names: tuple[str, ...]


class DescribeApplication(_Message, tag=41, frozen=True):
    application: str


class LeaseState(_Message, tag=42, frozen=True):
    stream: str
    ordinal: int
    state: str                             # "ready", "owned", "draining", "paused", "complete"
    owner: str
    lease_epoch: int
    checkpoint: int
    high_watermark: int
    lag_records: int
    lag_ms: int                            # age of the first unfinished record; 0 when there is none
    checkpoint_age_ms: int
    takeovers_without_progress: int
    poisoned: int                          # records being retried
    reason: str = ""                       # why it is paused
    lag_bytes: int = 0                     # stored bytes of what is unfinished
    time_to_trim_ms: int = -1              # until retention may remove the first unfinished record; -1: there is none
    records_lost: int = 0                  # removed by retention before they were finished, since the coordinator began
    sub_sequence: int = 0                  # as in LeaseGrant


class StreamTrend(_Part, frozen=True):
    """The last minute of an application on one stream, as the coordinator saw it; shorter after its start."""

    stream: str
    lag_ms: tuple[int, ...]                # oldest first, every few seconds
    put_rate: float                        # records a second
    finished_rate: float


class ApplicationDescribed(_Message, tag=43, frozen=True):
    application: str
    workers: tuple[str, ...]
    leases: tuple[LeaseState, ...]
    trends: tuple[StreamTrend, ...] = ()
    reports: tuple[WorkerReport, ...] = ()
    held: str = ""                         # why an operator paused it; "": nobody did
    reset_ms: int = 0                      # of the last change of its positions that can be undone, 0: there is none


class DeleteApplication(_Message, tag=44, frozen=True):
    application: str


class PauseLease(_Message, tag=45, frozen=True):
    """The owner stops at `sequence` until an operator resumes the lease."""

    application: str
    worker: str
    shard: bytes
    lease_epoch: _Whole
    reason: str


class ResumeLeases(_Message, tag=46, frozen=True):
    """What policies paused, and what HoldApplication did, goes on."""

    application: str


class HoldApplication(_Message, tag=47, frozen=True):
    """Workers finish what is in hand, checkpoint and give their leases up; nobody gets one before ResumeLeases."""

    application: str
    reason: str = ""


class SetPositions(_Message, tag=48, frozen=True):
    """Go on there: whoever owns one of these leases is fenced, and what is kept with them is put aside.

    positions: (shard uuid, sequence, sub_sequence as in LeaseGrant). undo: the positions before the last such request.
    """

    application: str
    positions: tuple[tuple[bytes, _Whole, _Whole], ...] = ()
    undo: bool = False


class CheckApplication(_Message, tag=49, frozen=True):
    application: str


class ApplicationChecked(_Message, tag=69, frozen=True):
    """problems: promises that do not hold, for people; none as a rule."""

    problems: tuple[str, ...]


# ---- node ------------------------------------------------------------------------------------------------


class DescribeNode(_Message, tag=50, frozen=True):
    pass


class NodeDescribed(_Message, tag=51, frozen=True):
    node: str
    version: str
    ready: bool
    reasons: tuple[str, ...]               # why it is not ready
    streams: int
    shards: int
    free_bytes: int
    data_dir: str
    durability_note: str
    put_ms: float = 0.0                    # one put in a hundred takes at least that long, since the node started


# ---- notes -----------------------------------------------------------------------------------------------


class NoteInfo(_Part, frozen=True):
    """model.Note on the wire."""

    key: str
    value: bytes
    revision: int


class NoteSwap(_Part, frozen=True):
    """revision: the note's now, 0: there is none; value None: it is deleted."""

    key: str
    revision: _Whole
    value: bytes | None


class ReadNote(_Message, tag=62, frozen=True):
    key: str


class NoteRead(_Message, tag=63, frozen=True):
    """(None, 0): there is none."""

    value: bytes | None
    revision: int


class SwapNotes(_Message, tag=64, frozen=True):
    """All of them, or nothing."""

    swaps: tuple[NoteSwap, ...]


class NotesSwapped(_Message, tag=65, frozen=True):
    revision: int | None                   # theirs now; None: the revision of one was another, nothing was done


class ListNotes(_Message, tag=66, frozen=True):
    prefix: str
    after: str = ""                        # exclusive; notes in the order of their keys
    count_max: int = 1000


class NotesListed(_Message, tag=67, frozen=True):
    notes: tuple[NoteInfo, ...]            # fewer than asked for when they are large
    more: bool


# ---- cluster ---------------------------------------------------------------------------------------------


class CopyInfo(_Part, frozen=True):
    """One copy of a shard on the node that tells. role: "leader" or "follower"."""

    shard: bytes
    role: str
    epoch: int                             # promised
    log_start: int
    log_end: int
    high_watermark: int
    certain: bool                          # may vote
    incarnation: bytes


class DescribeCopies(_Message, tag=58, frozen=True):
    """What lies on the node that is asked."""


class CopiesDescribed(_Message, tag=59, frozen=True):
    node: str
    free_bytes: int
    copies: tuple[CopyInfo, ...]


class ClusterNode(_Part, frozen=True):
    """state: "active" or "draining". What a node that does not answer would tell is None."""

    node: str
    state: str
    live: bool                             # it keeps its registration
    answers: bool                          # to the node that was asked
    zone: str
    version: str
    protocol_max: int
    address: str
    peer_address: str
    leaders: int
    members: int
    learners: int
    uncertain: int | None                  # copies that may not vote
    lag_records: int | None                # its members' copies behind their leaders
    free_bytes: int | None


class ClusterTrouble(_Part, frozen=True):
    """A shard that has fewer copies than it should, or no leader. kind: "no_leader", "short", "uncertain", "moving"."""

    stream: str
    ordinal: int
    shard: bytes
    kind: str
    reason: str
    try_: str


class DescribeCluster(_Message, tag=52, frozen=True):
    """troubles_max: how many shards are told one by one; the answer counts all."""

    troubles_max: _Whole = 1_000


class ClusterDescribed(_Message, tag=53, frozen=True):
    cluster: str
    controller: str                        # the node that plans moves now; "" when there is none
    store: str                             # "" when the coordination store answers, else what is wrong
    shards: int
    nodes: tuple[ClusterNode, ...]
    troubles: tuple[ClusterTrouble, ...]
    trouble_counts: dict[str, int]         # kind → shards


class DrainNode(_Message, tag=54, frozen=True):
    """Its leaders and copies shall move to other nodes; undo: it may take some again. Answered with ShardsMoving."""

    node: str
    undo: bool = False


class MoveShard(_Message, tag=55, frozen=True):
    """Another leader (`leader`), or another member (`out`, `into`). Answered with Done when it is wanted, not done."""

    stream: str
    ordinal: _Whole
    leader: str = ""
    out: str = ""
    into: str = ""


class AddNode(_Message, tag=56, frozen=True):
    """Shards shall move to the node until it carries its share. Answered with ShardsMoving."""

    node: str


class RemoveNode(_Message, tag=57, frozen=True):
    """The node, stopped and without copies, is forgotten."""

    node: str


class ShardsMoving(_Message, tag=60, frozen=True):
    """Answers DrainNode and AddNode. staying: copies that have nowhere else to go."""

    shards: int
    staying: int = 0


class AcceptLoss(_Message, tag=61, frozen=True):
    """A shard that waits because copies may lack something is to be led from what they hold. Answered with Done."""

    stream: str
    ordinal: _Whole


Message = (
    Hello | Welcome | Failure | Goodbye | Done
    | CreateStream | DescribeStream | StreamDescribed | ListStreams | StreamsListed | DeleteStream
    | DescribeShards | ShardsDescribed | SplitShard | MergeShards | ScaleStream | AlterStream
    | DescribeOperation | OperationDescribed | DescribeTraffic | TrafficDescribed
    | FetchMatching | Subscribe | GiveCredit
    | ResolvePosition | PositionResolved | NewProducer | ProducerGiven | OpenProducer | ProducerOpened
    | CancelBatch | BatchSettled
    | JoinApplication | Heartbeat | Membership | Checkpoint | Checkpointed | ReleaseLeases | LeaveApplication
    | ListApplications | ApplicationsListed | DescribeApplication | ApplicationDescribed | DeleteApplication
    | CommitTransaction | CommitOutputs | OutputsCommitted | OutputsCarriedOut
    | PauseLease | ResumeLeases | HoldApplication | SetPositions | CheckApplication
    | ApplicationChecked | DescribeNode | NodeDescribed
    | DescribeCluster | ClusterDescribed | DrainNode | MoveShard | AddNode | RemoveNode | ShardsMoving | AcceptLoss
    | DescribeCopies | CopiesDescribed
    | ReadNote | NoteRead | SwapNotes | NotesSwapped | ListNotes | NotesListed
)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def decode(data: bytes | memoryview) -> Message:
    """Raises msgspec.ValidationError or msgspec.DecodeError; frames.py turns them into ProtocolMismatch."""
    message: Message = _decoder.decode(data)
    return message
