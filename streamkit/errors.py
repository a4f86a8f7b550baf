"""Every error that streamkit raises on purpose, in one tree.

`str(error)` says what could not be done and why; `error.try_` says what to do next (a command or a
setting that exists); `error.facts` holds names and numbers for retry loops and log lines, never
payload or secrets. `code` is stable on the wire; a retired code is never given out again.

    StreamkitError
    ├── InvalidRequest ── InvalidUse ── MissingLibrary · InvalidConfig ── UnsafeListener · InvalidPosition
    │                   · InvalidQuery · RecordTooLarge · InvalidTable · NotMapped
    ├── NotFound ── StreamNotFound · ShardNotFound · ApplicationNotFound · NodeNotFound
    ├── Conflict ── StreamExists · StreamBusy · LimitReached · DataDirectoryLocked · CannotPlace · NodeInUse · LastCopy
    │              · ApplicationExists · InstanceTaken · NodeRefused ── WrongCluster · DuplicateNode · StaleDirectory
    ├── Throttled ── BufferFull
    ├── Unavailable ── ConnectionFailed · NotLeader · NodeDraining · DiskFull · DiskFailed · StoreUnavailable
    ├── ProtocolMismatch
    ├── TimedOut
    ├── LeaseLost
    ├── ProducerError ── ProducerFenced · UnknownProducer · SequenceGap · SequenceCorrupt · WrongShard · ShardClosed
    │                  · ForkedHandle
    ├── DataError ── DecodeFailed · CorruptBatch · CorruptFile · SequenceTrimmed
    ├── PutFailed · BatchFailure
    ├── TransactionAborted ── TransactionTooLarge
    ├── SinkMisused · Undeliverable
    ├── Closed
    └── InternalError
"""

from __future__ import annotations

from typing import Any


class StreamkitError(Exception):
    """Base of all; facts: as its subclass says."""

    code = "internal"
    retryable = False

    def __init__(self, message: str, *, try_: str = "", **facts: object) -> None:
        super().__init__(message)
        self.try_ = try_
        self.facts: dict[str, Any] = facts
        if try_:
            self.add_note(f"try: {try_}")              # tracebacks end with it

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), str(self), self.try_, self.facts)


def _rebuild(kind: type[StreamkitError], message: str, try_: str, facts: dict[str, Any]) -> StreamkitError:
    return kind(message, try_=try_, **facts)


class InvalidRequest(StreamkitError):
    """The request can never work as it is; facts: the field and its value."""

    code = "invalid_request"


class InvalidUse(InvalidRequest):
    """The caller's programming mistake; facts: what was called."""

    code = "invalid_use"


class MissingLibrary(InvalidUse):
    """An optional library is not installed; facts: library, extra (of the pip command)."""

    code = "missing_library"


class InvalidConfig(InvalidRequest):
    """A setting that is unknown or impossible; facts: file, line, key, value."""

    code = "invalid_config"


class UnsafeListener(InvalidConfig):
    """A listener off loopback without TLS and login; facts: host, port."""

    code = "unsafe_listener"


class InvalidPosition(InvalidRequest):
    """A position that names no place in the shard; facts: position."""

    code = "invalid_position"


class InvalidQuery(InvalidRequest):
    """A condition or query that cannot be understood; facts: line, column (from 1), place (the text with a mark)."""

    code = "invalid_query"


class InvalidTable(InvalidRequest):
    """What was given is no lease table of the KCL; facts: item (its number, from 1; 0: the whole)."""

    code = "invalid_table"


class NotMapped(InvalidRequest):
    """Leases of the KCL that mean nothing here, so none was taken over; facts: shards ("stream/shard: why")."""

    code = "not_mapped"


class RecordTooLarge(InvalidRequest):
    """A record above the stream's limit; facts: size_bytes, limit_bytes."""

    code = "record_too_large"


class NotFound(StreamkitError):
    """Something named does not exist."""

    code = "not_found"


class StreamNotFound(NotFound):
    """No such stream; facts: stream, near (a similar name or None)."""

    code = "stream_not_found"


class ShardNotFound(NotFound):
    """No such shard; facts: shard."""

    code = "shard_not_found"


class ApplicationNotFound(NotFound):
    """No such application; facts: application."""

    code = "application_not_found"


class NodeNotFound(NotFound):
    """No such node belongs to the cluster; facts: node, near (a similar name or None)."""

    code = "node_not_found"


class Conflict(StreamkitError):
    """The present state forbids it."""

    code = "conflict"


class StreamExists(Conflict):
    """A stream of that name exists; facts: stream."""

    code = "stream_exists"


class ApplicationExists(Conflict):
    """An application of that name exists, with positions of its own; facts: application."""

    code = "application_exists"


class InstanceTaken(Conflict):
    """A younger worker runs under this worker's instance name; facts: application, instance, worker."""

    code = "instance_taken"


class StreamBusy(Conflict):
    """The stream is being created, changed or deleted; facts: stream, status."""

    code = "stream_busy"
    retryable = True


class LimitReached(Conflict):
    """A configured count is used up; facts: limit, scope."""

    code = "limit_reached"


class DataDirectoryLocked(Conflict):
    """Another process owns the data directory; facts: path, pid (None when unknown)."""

    code = "data_directory_locked"


class CannotPlace(Conflict):
    """There are not enough nodes for the copies that are asked for; facts: replicas, nodes, live."""

    code = "cannot_place"


class NodeInUse(Conflict):
    """The node still holds copies, or runs; facts: node, shards."""

    code = "node_in_use"


class LastCopy(Conflict):
    """The change would leave a shard without a copy that counts; facts: shard, node."""

    code = "last_copy"


class NodeRefused(Conflict):
    """The node may not join the cluster as it is; facts: node, cluster."""

    code = "node_refused"


class WrongCluster(NodeRefused):
    """The data directory belongs to another cluster or node; facts: node, cluster, ours, theirs."""

    code = "wrong_cluster"


class DuplicateNode(NodeRefused):
    """Another process runs under this node's name; facts: node, cluster, address."""

    code = "duplicate_node"


class StaleDirectory(NodeRefused):
    """A copied or restored data directory: the node has started from another since; facts: node, starts, known."""

    code = "stale_directory"


class Throttled(StreamkitError):
    """Too much at once; facts: retry_after_ms, limit, scope."""

    code = "throttled"
    retryable = True


class BufferFull(Throttled):
    """The producer's own buffer is full, or a shard's share of it; facts: buffered_bytes, limit_bytes, and of the

    shard that holds most of it shard, shard_bytes, oldest_ms, cause (code of its last refusal, or None).
    """

    code = "buffer_full"


class Unavailable(StreamkitError):
    """The same call may work later."""

    code = "unavailable"
    retryable = True


class ConnectionFailed(Unavailable):
    """Nothing answers, or the connection broke; facts: address, sent (True: fate unknown)."""

    code = "connection_failed"


class NotLeader(Unavailable):
    """The shard is led elsewhere; facts: shard, epoch, leader (None when unknown)."""

    code = "not_leader"


class NodeDraining(Unavailable):
    """The node is stopping; facts: node."""

    code = "node_draining"


class DiskFull(Unavailable):
    """Puts are refused to keep free space; facts: free_bytes, floor_bytes, path."""

    code = "disk_full"


class DiskFailed(Unavailable):
    """A write or sync failed; the node stops appending until it is restarted; facts: path, errno."""

    code = "disk_failed"
    retryable = False


class StoreUnavailable(Unavailable):
    """The coordination store does not answer; facts: store, outcome ("not_done", or "unknown": read before acting)."""

    code = "store_unavailable"


class ProtocolMismatch(StreamkitError):
    """Another protocol, or a version too far apart; facts: address, theirs, ours."""

    code = "protocol_mismatch"


class TimedOut(StreamkitError):
    """No answer in time; facts: sent (True: fate unknown), timeout_ms."""

    code = "timed_out"
    retryable = True


class OutcomeUnknown(TimedOut):
    """The broker could not be asked whether the record is stored; facts: sent (True), token for resolve(), shard."""

    code = "outcome_unknown"
    retryable = False


class LeaseLost(StreamkitError):
    """The shard has another owner; stop working on it; facts: shard, lease_epoch, owner."""

    code = "lease_lost"


class ProducerError(StreamkitError):
    """The idempotence rules refused a batch; facts: producer_id, shard."""

    code = "producer_error"


class ProducerFenced(ProducerError):
    """A newer instance of this producer exists; facts: producer_id, epoch, newest; sent, token: it may be stored."""

    code = "producer_fenced"


class NameInUse(ProducerError):
    """The producer's name belongs to the process that this one was forked from; facts: name, parent_pid."""

    code = "name_in_use"


class KeyHalted(ProducerError):
    """An earlier record failed, and on_failure keeps those behind it back; facts: keys (some), cause (a code)."""

    code = "key_halted"


class UnknownProducer(ProducerError):
    """The shard holds no state for this producer and its sequence is not 0; facts: producer_id."""

    code = "unknown_producer"


class SequenceGap(ProducerError):
    """An earlier batch of the producer is missing; facts: producer_id, expected, got."""

    code = "sequence_gap"
    retryable = True


class Cancelled(ProducerError):
    """The record, or its batch, was cancelled, and is not stored; from a shard with facts: producer_id, shard."""

    code = "cancelled"


class SequenceCorrupt(ProducerError):
    """A batch overlaps stored ones in part; facts: producer_id, expected, got."""

    code = "sequence_corrupt"


class WrongShard(ProducerError):
    """The batch holds keys outside the shard's hash range; facts: shard, map_version."""

    code = "wrong_shard"
    retryable = True


class ShardClosed(ProducerError):
    """The shard takes no more records, its children do; nothing was stored; facts: shard, map_version, end."""

    code = "shard_closed"
    retryable = True


class ForkedHandle(ProducerError):
    """The handle was made before a fork; its record belongs to the parent process; facts: parent_pid."""

    code = "forked_handle"


class DataError(StreamkitError):
    """Stored bytes cannot be given out as asked."""

    code = "data_error"


class DecodeFailed(DataError):
    """The payload is not what the codec or type expects; facts: codec, stream, shard, sequence_number."""

    code = "decode_failed"


class CorruptBatch(DataError):
    """Bytes that are not a whole, sound batch; facts: reason, and file and position when known."""

    code = "corrupt_batch"


class CorruptFile(DataError):
    """A file of the data directory is damaged where it was already durable; facts: path, position, reason."""

    code = "corrupt_file"


class SequenceTrimmed(DataError):
    """Retention removed that position; facts: shard, sequence, log_start."""

    code = "sequence_trimmed"


class PutFailed(StreamkitError):
    """Records that were not stored; `failures` holds each error once, facts: count."""

    code = "put_failed"

    @property
    def failures(self) -> list[StreamkitError]:
        return list(self.facts.get("failures", ()))


class BatchFailure(StreamkitError):
    """Raised by a batch handler to fail only some records: BatchFailure(failed=[record, …])."""

    code = "batch_failure"

    def __init__(self, message: str = "", *, failed: Any = (), try_: str = "", **facts: object) -> None:
        self.failed = list(failed)
        super().__init__(message or f"{len(self.failed)} records failed", try_=try_, **facts)


class TransactionAborted(StreamkitError):
    """Nothing of a transaction is stored or ever will be; facts: reason ("fenced", "timeout", "void")."""

    code = "transaction_aborted"


class TransactionTooLarge(TransactionAborted):
    """What a transaction puts is more than one entry of the coordinator's log takes; facts: size_bytes, limit_bytes."""

    code = "transaction_too_large"


class SinkMisused(StreamkitError):
    """A store refuses until a person puts something right: no bucket, no right, no table; facts: sink, what it said."""

    code = "sink_misused"
    retryable = True


class Undeliverable(StreamkitError):
    """A record that a delivery cannot write; facts: stage, reason."""

    code = "undeliverable"


class Closed(StreamkitError):
    """The object was closed; facts: what."""

    code = "closed"


class InternalError(StreamkitError):
    """A defect in streamkit; facts: incident."""

    code = "internal"


def _tree(kind: type[StreamkitError]) -> dict[str, type[StreamkitError]]:
    found = {kind.code: kind} if "code" in vars(kind) else {}
    for child in kind.__subclasses__():
        found.update(_tree(child))
    return found


BY_CODE: dict[str, type[StreamkitError]] = _tree(StreamkitError)


def from_code(code: str, message: str, try_: str = "", facts: dict[str, Any] | None = None) -> StreamkitError:
    """The error a peer named on the wire; an unknown code from a newer peer becomes StreamkitError."""
    return BY_CODE.get(code, StreamkitError)(message, try_=try_, **(facts or {}))
