"""What was asked for and what was answered: the history of one run, kept outside the nodes.

It believes nobody. A put is *pending* until its outcome is known: *stored* (with the shard and sequence that were
promised), *refused* (it must not matter whether it is there) or *unknown* (it may be there, once). Reads and
checkpoints are noted as they are answered. `checkers.py` judges.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

from streamkit._core.batch import HEADER_BYTES, Batch, Record
from streamkit.model.limits import HASH_KEYS
from streamkit.model.sequence import ParsedSequence, parse_sequence_number
from streamkit.protocol.messages import Checkpoint, Checkpointed, LeaseGrant
from streamkit.runtime.interfaces import Buffer

PENDING, STORED, REFUSED, UNKNOWN = "pending", "stored", "refused", "unknown"


@dataclass(slots=True)
class Instance:
    """One that opened a producer's name. rank: its id and epoch; a higher one is a younger instance's.

    opened: the moment when its first put was taken, 0 before. fenced: it was told that a younger one is there.
    """

    producer: str
    rank: tuple[int, int] = (0, -1)
    opened: int = 0
    fenced: bool = False


@dataclass(slots=True)
class Put:
    """One record. number: grows with every put of its producer. key: "" for none. moment, settled: when it was put, and

    when its producer was told how that ended (0: never). instance: of a named producer.
    """

    producer: str
    key: str
    number: int
    outcome: str = PENDING
    shard: bytes = b""
    sequence: int = -1
    error: str = ""
    token: str = ""                        # to ask with, while the outcome is UNKNOWN
    moment: int = 0
    settled: int = 0
    instance: Instance | None = None


@dataclass(slots=True)
class Marks:
    """The last positions of a shard that one reader was told."""

    log_start: int = 0
    high_watermark: int = 0


@dataclass(frozen=True, slots=True)
class CheckpointSeen:
    """A checkpoint and its answer; order is the order of the answers. asked: when it was sent."""

    worker: str
    shard: bytes
    lease_epoch: int
    sequence: int
    result: str
    asked: int


@dataclass(frozen=True, slots=True)
class GrantSeen:
    worker: str
    shard: bytes
    lease_epoch: int
    checkpoint: int
    seen: int


@dataclass(frozen=True, slots=True)
class StateSeen:
    """What the owner of a lease found beside its checkpoint. prepared: sequence, sub-sequence and state."""

    worker: str
    shard: bytes
    checkpoint: int
    state: bytes
    prepared: tuple[int, int, bytes] | None


def folded(state: bytes, value: bytes) -> bytes:
    """The next state after a record: of all that was given so far, in its order."""
    return crc32(value, int.from_bytes(state, "big")).to_bytes(4, "big")


@dataclass(slots=True)
class Reset:
    """An operator sent the application elsewhere. asked, done: moments; done is 0 when nobody knows whether."""

    asked: int
    positions: dict[bytes, int]
    done: int = 0


@dataclass(slots=True)
class History:
    """`moment` counts what is noted; it orders asking and answering.

    copied: records of which a named producer said at last that all are stored.
    rot: bits were flipped at rest, so that the end of a log may be cut off and be written anew.
    final_seen: so many checkpoints were answered when `final_checkpoints` was asked for.
    parents: of shards that came of a split or a merge; `final` names parents before their children.
    stalled: why only an operator may go on, in a mode that says so rather than lose anything.
    placed: puts that are stored, and the ordinal of the shard. given: the id and epoch a client got for a name last.
    halting: how a producer goes on after a failure, where that is not "continue"; resumed: its keys that were resumed,
    None for all, and when that began and was done.
    where: the condition that all workers have. handled: what one lease handled last of a key. processed: when a record
    was handled last. held: an operator paused the application, and no lease had an owner. poisoned: records that failed
    on purpose. dead: what lies in the dead-letter stream, and why. ranges: of shards. tokens: which put was told of
    one. fates: what was told of a token, outcome and sequence number.
    """

    puts: dict[bytes, Put] = field(default_factory=dict)
    copied: list[bytes] = field(default_factory=list)
    read: dict[bytes, dict[int, bytes]] = field(default_factory=dict)
    final: dict[bytes, dict[int, bytes]] = field(default_factory=dict)
    processed: dict[bytes, dict[int, int]] = field(default_factory=dict)
    marks: dict[tuple[str, bytes], Marks] = field(default_factory=dict)
    checkpoints: list[CheckpointSeen] = field(default_factory=list)
    grants: list[GrantSeen] = field(default_factory=list)
    final_checkpoints: dict[bytes, int] = field(default_factory=dict)
    final_seen: int | None = None
    heard: dict[str, float] = field(default_factory=dict)
    rot: bool = False
    stalled: str = ""
    parents: dict[bytes, tuple[bytes, ...]] = field(default_factory=dict)
    moment: int = 0
    placed: list[tuple[Put, int]] = field(default_factory=list)
    given: dict[str, tuple[int, int]] = field(default_factory=dict)
    instances: list[Instance] = field(default_factory=list)
    halting: dict[str, str] = field(default_factory=dict)
    resumed: dict[str, list[tuple[str | None, int, int]]] = field(default_factory=dict)
    where: str | None = None
    handled: dict[tuple[str, int, bytes, str], int] = field(default_factory=dict)
    resets: list[Reset] = field(default_factory=list)
    held: bool = False
    states: list[StateSeen] = field(default_factory=list)
    poisoned: set[bytes] = field(default_factory=set)
    dead: dict[bytes, str] = field(default_factory=dict)
    ranges: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    tokens: dict[str, Put] = field(default_factory=dict)
    fates: dict[str, tuple[Put, str, str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    def tick(self) -> int:
        self.moment += 1
        return self.moment

    def note(self, seconds: float, text: str) -> None:
        self.log.append(f"{seconds:10.6f} {text}")

    # ---- puts ------------------------------------------------------------------------------------------------------

    def putting(self, value: bytes, producer: str, key: str, number: int) -> Put:
        put = Put(producer, key, number)
        self.puts[value] = put
        put.moment = self.tick()
        return put

    def settled(self, put: Put, handle: Any) -> None:
        """Its producer is told how it ended."""
        error = handle.exception()
        put.settled = self.tick()
        if error is None:
            result = handle.result()
            put.outcome = UNKNOWN
            if result.sequence_number:
                self.stored(put, parse_sequence_number(result.sequence_number))
            return
        put.error = str(error)
        put.outcome = UNKNOWN if error.facts.get("sent") else REFUSED
        put.token = error.facts.get("token", "")
        if put.token and self.tokens.setdefault(put.token, put) is not put:
            self.wrong.append(f"{put.producer} was told of one token for two records")

    def stored(self, put: Put, place: ParsedSequence) -> None:
        """Somebody was told where it is."""
        put.outcome, put.sequence = STORED, place.sequence
        self.placed.append((put, place.ordinal))

    def opening(self, producer: str) -> Instance:
        """It opens the name."""
        self.instances.append(Instance(producer))
        return self.instances[-1]

    # ---- reads -----------------------------------------------------------------------------------------------------

    def told(self, reader: str, shard: bytes, log_start: int, high_watermark: int) -> None:
        """Positions that came with an answer; for one reader they never fall."""
        marks = self.marks.setdefault((reader, shard), Marks())
        if high_watermark < marks.high_watermark and not self.rot:
            self.wrong.append(f"high watermark of {_name(shard)} fell from {marks.high_watermark} to {high_watermark}")
        if log_start < marks.log_start:
            self.wrong.append(f"log start of {_name(shard)} fell from {marks.log_start} to {log_start}")
        marks.log_start, marks.high_watermark = log_start, high_watermark

    def fetched(self, reader: str, shard: bytes, start: int, batches: Sequence[Buffer], high_watermark: int) -> int:
        """Notes every record of an answer; the sequence to fetch next."""
        into = self.final if reader == "final" else self.read
        seen = into.setdefault(shard, {})
        next_sequence = start
        before_ms = 0
        for raw in batches:
            if len(raw) < HEADER_BYTES:
                self.wrong.append(f"{reader} was sent {len(raw)} bytes that are no batch")
                return next_sequence
            header = Batch(raw).read_header()
            if not header.base_sequence <= next_sequence < header.end_sequence:
                self.wrong.append(
                    f"{reader} asked {_name(shard)} for {next_sequence} and got "
                    f"{header.base_sequence}..{header.end_sequence}"
                )
            if header.append_time_ms < before_ms:
                self.wrong.append(f"{reader} found append times of {_name(shard)} fall at {header.base_sequence}")
            before_ms = header.append_time_ms
            if header.end_sequence > high_watermark:
                self.wrong.append(f"{reader} read {_name(shard)} up to {header.end_sequence}, above {high_watermark}")
            if not header.is_control:
                for record in Batch(raw, None, next_sequence):
                    self.saw(reader, seen, shard, record.sequence, bytes(record.data))
                    if into is self.final:
                        self.lies_in_range(shard, record)
            next_sequence = header.end_sequence
        return next_sequence

    def lies_in_range(self, shard: bytes, record: Record[Any]) -> None:
        start, end = self.ranges.get(shard, (0, HASH_KEYS))
        if not start <= int.from_bytes(record.hash_key, "big") < end:
            self.wrong.append(f"record {record.sequence} of {_name(shard)} has a hash key beyond the shard's")

    def saw(self, reader: str, seen: dict[int, bytes], shard: bytes, sequence: int, value: bytes) -> None:
        before = seen.setdefault(sequence, value)
        if before != value and not self.rot:
            self.wrong.append(f"{reader} read another record than before at {_name(shard)} {sequence}")
        if value not in self.puts:
            self.wrong.append(f"{reader} read a record at {_name(shard)} {sequence} that nobody put")

    def skipped(self, shard: bytes) -> int:
        """Of what lies before, an operator may have left some out."""
        return max((reset.positions.get(shard, 0) for reset in self.resets), default=0)

    def answered(self, worker: str, sent_seconds: float) -> None:
        """The coordinator answered a heartbeat that the worker had sent then."""
        self.heard[worker] = max(sent_seconds, self.heard.get(worker, 0.0))

    def handed_out(self, worker: str, seconds: float, membership_seconds: float) -> None:
        """A batch goes to user code; by then the worker must not have been silent for its whole time-out."""
        if self.held:
            self.wrong.append(f"{worker} hands out records, and the application is paused")
        silent = seconds - self.heard.get(worker, 0.0)
        if silent > membership_seconds:
            self.wrong.append(f"{worker} hands out records {silent:.1f} s after its last answered heartbeat")

    def processing(self, worker: str, shard: bytes, sequence: int, value: bytes) -> None:
        self.saw(worker, self.read.setdefault(shard, {}), shard, sequence, value)
        self.processed.setdefault(shard, {})[sequence] = self.tick()

    def in_order(self, worker: str, lease_epoch: int, shard: bytes, key: str, sequence: int) -> None:
        """Handled by a worker that keeps a key's order: under one lease none comes twice, and none after a later."""
        place = (worker, lease_epoch, shard, key)
        if self.handled.get(place, -1) >= sequence:
            self.wrong.append(f"{worker} handled {sequence} of {_name(shard)} after {self.handled[place]} of its key")
        self.handled[place] = sequence

    def resolved(self, put: Put, token: str, outcome: str, number: str) -> None:
        """Somebody asked what became of a put; the answer is for good, but may be forgotten."""
        _, before, where = self.fates.setdefault(token, (put, outcome, number))
        if (outcome not in (before, "forgotten") and before != "forgotten") or (outcome == before and number != where):
            self.wrong.append(f"a token was resolved as {before} {where}, and then as {outcome} {number}")
        if put.outcome == UNKNOWN and outcome == "stored":
            self.stored(put, parse_sequence_number(number))
        elif put.outcome == UNKNOWN and outcome == "not_stored":
            put.outcome = REFUSED

    # ---- leases ----------------------------------------------------------------------------------------------------

    def granted(self, worker: str, grants: tuple[LeaseGrant, ...]) -> None:
        for grant in grants:
            self.grants.append(
                GrantSeen(worker, grant.shard.uuid, grant.lease_epoch, grant.checkpoint, self.tick())
            )

    def checkpointed(self, worker: str, asked: int, request: Checkpoint, answer: Checkpointed) -> None:
        self.tick()
        for item, result in zip(request.items, answer.results, strict=True):
            self.checkpoints.append(
                CheckpointSeen(worker, item.shard, item.lease_epoch, item.sequence, result, asked)
            )

    # ---- the whole ---------------------------------------------------------------------------------------------------

    def digest(self) -> str:
        """The same for two runs in which the same things happened."""
        parts = hashlib.sha256()
        for value, put in self.puts.items():
            parts.update(b"%s %s %s %d;" % (value[:40], put.outcome.encode(), put.shard, put.sequence))
        for shard, records in self.final.items():
            for sequence, value in sorted(records.items()):
                parts.update(b"%s %d %s;" % (shard, sequence, value[:40]))
        for checkpoint in self.checkpoints:
            parts.update(repr(checkpoint).encode())
        parts.update("\n".join(self.log).encode())
        return parts.hexdigest()[:16]

    def counts(self) -> dict[str, int]:
        outcomes = {PENDING: 0, STORED: 0, REFUSED: 0, UNKNOWN: 0}
        for put in self.puts.values():
            outcomes[put.outcome] += 1
        return {
            **outcomes,
            "read": sum(map(len, self.read.values())),
            "processed": sum(map(len, self.processed.values())),
            "checkpoints": sum(checkpoint.result == "ok" for checkpoint in self.checkpoints),
            "fenced": sum(checkpoint.result == "fenced" for checkpoint in self.checkpoints),
        }


def _name(shard: bytes) -> str:
    return f"shard {shard.hex()[:8]}"
