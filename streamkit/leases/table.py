"""The durable state of all applications, changed by facts alone: the same facts give the same state.

`Table.apply` is used live and in replay; what it holds is what a snapshot holds. Deadlines are not here (see
`membership.py`): they do not outlive the coordinator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from streamkit._core.lease_table import LeaseTable
from streamkit.leases import facts
from streamkit.leases.assignment import Candidate, Holding

T = TypeVar("T")

FACTS_VERSION = 1
_CHUNK = 2_000                             # leases in one fact of a snapshot: 128 KiB of rows
_ROW_BYTES = 64
_NONE_LEFT = facts.Left(0, 0, b"", 0)
IDLE = frozenset({"waiting", "complete"})  # states of leases that nobody may take


class Application:
    """One application: its streams in the order they came, its members, its leases.

    streams: name → {shard: ordinal}. attempts, reasons, sub_sequences (of checkpoints inside an aggregate), app_states
    (what the application keeps with the position), prepared (checkpoints that are announced: sequence, sub-sequence,
    state), ahead (what is finished beyond a checkpoint): only of leases that have any. parents: of shards that have
    any, and are named for ever. ends: of shards that take no more records, one past the last.
    """

    def __init__(self, name: str, created_ms: int, sessions: int) -> None:
        self.name = name
        self.created_ms = created_ms
        self.sessions = sessions
        self.streams: dict[str, dict[bytes, int]] = {}
        self.stream_of: dict[bytes, str] = {}
        self.members: dict[int, facts.MemberJoined] = {}
        self.counting = 0                  # members that want leases assigned by count
        self.leases = LeaseTable()
        self.attempts: dict[bytes, dict[int, int]] = {}
        self.reasons: dict[bytes, str] = {}
        self.sub_sequences: dict[bytes, int] = {}
        self.app_states: dict[bytes, bytes] = {}
        self.prepared: dict[bytes, tuple[int, int, bytes]] = {}
        self.ahead: dict[bytes, bytes] = {}
        self.held = ""                      # why nothing is handed out; "": it is
        # Put aside by the last reset: sequence, sub-sequence, state and what was finished ahead.
        self.before: dict[bytes, tuple[int, int, bytes, bytes]] = {}
        self.before_ms = 0                 # when that was, wall clock; 0: never
        self.created_ms_of: dict[str, int] = {}            # stream → its creation; two of one name differ
        self.parents: dict[bytes, tuple[bytes, ...]] = {}
        self.children: dict[bytes, list[bytes]] = {}
        self.ends: dict[bytes, int] = {}

    @property
    def by_load(self) -> bool:
        """Whether leases are assigned by load: all members say so."""
        return self.counting == 0 and bool(self.members)

    def candidates(self) -> list[Candidate]:
        """Members that may be given leases."""
        return [
            Candidate(member.session, frozenset(member.streams), member.leases_max, member.weight)
            for member in self.members.values() if member.has_place and not member.away
        ]

    def holdings(self) -> list[Holding]:
        """Every lease that somebody has work with, or could have, by stream and ordinal."""
        owners = {shard: (session, state) for shard, session, state in self.leases.owners() if state not in IDLE}
        return [
            Holding(shard, stream, *owners[shard])
            for stream in sorted(self.streams)
            for shard in sorted(self.streams[stream], key=self.streams[stream].__getitem__) if shard in owners
        ]

    def awaited(self) -> set[str]:
        """Streams that members want and that do not exist, as far as is known."""
        return {stream for member in self.members.values() for stream in member.streams} - self.streams.keys()

    def kept_bytes(self, shard: bytes) -> int:
        """What the application keeps with its lease."""
        prepared = self.prepared.get(shard)
        return len(self.app_states.get(shard, b"")) + (len(prepared[2]) if prepared is not None else 0)

    def forget(self, shards: set[bytes]) -> None:
        self.leases.remove(shards)
        for shard in shards:
            self.attempts.pop(shard, None)
            self.reasons.pop(shard, None)
            self.sub_sequences.pop(shard, None)
            self.app_states.pop(shard, None)
            self.prepared.pop(shard, None)
            self.ahead.pop(shard, None)
            self.before.pop(shard, None)
            self.stream_of.pop(shard, None)
            self.ends.pop(shard, None)
            self.children.pop(shard, None)
            for parent in self.parents.pop(shard, ()):
                if shard in self.children.get(parent, ()):
                    self.children[parent].remove(shard)


class Table:
    """All applications, as the log has them.

    left: decided outputs that were not reported as carried out, by (application, shard) and ("", writer); they outlive
    lease and application. writers: the last epoch and number of whoever commits without a position.
    """

    def __init__(self) -> None:
        self.applications: dict[str, Application] = {}
        self.left: dict[tuple[str, bytes], facts.Left] = {}
        self.left_bytes = 0
        self.writers: dict[bytes, facts.OutputsCommitted] = {}         # the last of each, without its outputs
        self._rebuilt: Table | None = None     # while a snapshot is being read
        self._begun = False

    def replay(self, fact: facts.Fact) -> None:
        """The next fact of a log. Facts before the first snapshot of a log without its beginning do not count."""
        match fact:
            case facts.Genesis():
                self._begun = True
            case facts.SnapshotStart():
                self._rebuilt = Table()
            case facts.SnapshotEnd():
                if self._rebuilt is not None:
                    self.applications = self._rebuilt.applications
                    self.left, self.left_bytes = self._rebuilt.left, self._rebuilt.left_bytes
                    self.writers = self._rebuilt.writers
                    self._rebuilt = None
                    self._begun = True
            case _:
                if self._rebuilt is not None:
                    self._rebuilt.apply(fact)
                elif self._begun:
                    self.apply(fact)

    @property
    def empty(self) -> bool:
        """Nothing was ever replayed: the log needs its Genesis."""
        return not self._begun

    def apply(self, fact: facts.Fact) -> None:
        """Change the state. What the fact names must exist: a log that says otherwise raises KeyError or ValueError."""
        _APPLY[type(fact)](self, fact)

    def snapshot(self) -> Iterator[facts.Fact]:
        """Facts that rebuild this state, with the marks around them."""
        yield facts.SnapshotStart(FACTS_VERSION)
        for name in sorted(self.applications):
            yield from self._image(self.applications[name])
        yield from self.writers.values()
        for (application, key), left in self.left.items():
            yield facts.OutputsLeft(application, key, left)
        yield facts.SnapshotEnd()

    def _image(self, application: Application) -> Iterator[facts.Fact]:
        name = application.name
        yield facts.ApplicationCreated(name, application.created_ms, application.sessions)
        for stream, shards in application.streams.items():
            created_ms = application.created_ms_of.get(stream, 0)
            leases = [(shard, ordinal, 0) for shard, ordinal in shards.items()]
            for start in range(0, len(leases), _CHUNK):
                yield facts.StreamAdded(name, stream, tuple(leases[start : start + _CHUNK]), created_ms)
            parents = tuple((shard, application.parents[shard]) for shard in shards if shard in application.parents)
            ends = tuple((shard, application.ends[shard]) for shard in shards if shard in application.ends)
            for start in range(0, max(len(parents), len(ends)), _CHUNK):
                end = start + _CHUNK
                yield facts.MapChanged(name, stream, parents=parents[start:end], ends=ends[start:end])
        yield from application.members.values()
        for start in range(0, len(application.leases), _CHUNK):
            rows = application.leases.dump(start, start + _CHUNK)
            shards_here = [rows[at : at + 16] for at in range(0, len(rows), _ROW_BYTES)]
            inside = application.sub_sequences
            yield facts.LeaseRows(
                name,
                rows,
                {shard: application.attempts[shard] for shard in shards_here if shard in application.attempts},
                {shard: application.reasons[shard] for shard in shards_here if shard in application.reasons},
                {shard: inside[shard] for shard in shards_here if shard in inside},
                {shard: application.ahead[shard] for shard in shards_here if shard in application.ahead},
            )
        for shard in sorted({*application.app_states, *application.prepared}):
            yield facts.StateKept(
                name, shard, application.app_states.get(shard, b""), application.prepared.get(shard)
            )

        for shard, (sequence, sub_sequence, app_state, ahead) in application.before.items():
            yield facts.PositionBefore(name, application.before_ms, shard, sequence, sub_sequence, app_state, ahead)
        if application.held:
            yield facts.ApplicationHeld(name, application.held)

    def _created(self, fact: facts.ApplicationCreated) -> None:
        assert fact.application not in self.applications, "an application is created once"
        self.applications[fact.application] = Application(fact.application, fact.created_ms, fact.sessions)

    def _deleted(self, fact: facts.ApplicationDeleted) -> None:
        del self.applications[fact.application]

    def _stream_added(self, fact: facts.StreamAdded) -> None:
        application = self.applications[fact.application]
        shards = application.streams.setdefault(fact.stream, {})
        for shard, ordinal, start in fact.leases:
            shards[shard] = ordinal
            application.stream_of[shard] = fact.stream
            application.leases.add(shard, start)
        if fact.created_ms:
            application.created_ms_of[fact.stream] = fact.created_ms

    def _stream_removed(self, fact: facts.StreamRemoved) -> None:
        application = self.applications[fact.application]
        application.forget(set(application.streams.pop(fact.stream)))
        application.created_ms_of.pop(fact.stream, None)

    def _map_changed(self, fact: facts.MapChanged) -> None:
        application = self.applications[fact.application]
        shards = application.streams[fact.stream]
        for shard, ordinal, start, waits in fact.added:
            shards[shard] = ordinal
            application.stream_of[shard] = fact.stream
            application.leases.add(shard, start, waits)
        for shard, parents in fact.parents:
            application.parents[shard] = parents
            for parent in parents:
                application.children.setdefault(parent, []).append(shard)
        application.ends.update(fact.ends)
        application.forget(set(fact.removed))
        for shard in fact.removed:
            del shards[shard]

    def _completed(self, fact: facts.LeasesCompleted) -> None:
        leases = self.applications[fact.application].leases
        for shard in fact.shards:
            leases.complete(shard)
        for shard in fact.ready:
            leases.open(shard)

    def _joined(self, fact: facts.MemberJoined) -> None:
        application = self.applications[fact.application]
        before = application.members.get(fact.session)
        application.counting += (fact.assignment == "count") - (before is not None and before.assignment == "count")
        application.members[fact.session] = fact
        application.sessions = max(application.sessions, fact.session)

    def _gone(self, fact: facts.MemberGone) -> None:
        application = self.applications[fact.application]
        application.counting -= application.members.pop(fact.session).assignment == "count"
        for shard in application.leases.owned_by(fact.session):
            application.leases.free(shard, fact.crashed)

    def _granted(self, fact: facts.LeasesGranted) -> None:
        application = self.applications[fact.application]
        for shard, session, lease_epoch in fact.leases:
            assert session in application.members, "a lease is granted to a member"
            application.leases.grant(shard, session, lease_epoch)

    def _draining(self, fact: facts.LeasesDraining) -> None:
        for shard in fact.shards:
            self.applications[fact.application].leases.drain(shard)

    def _freed(self, fact: facts.LeasesFreed) -> None:
        for shard in fact.shards:
            self.applications[fact.application].leases.free(shard, fact.crashed)

    def _checkpointed(self, fact: facts.Checkpointed) -> None:
        application = self.applications[fact.application]
        application.leases.replay(fact.changes, fact.wall_ms)
        self.note(application, fact)

    def note(self, application: Application, fact: facts.Checkpointed) -> None:
        """What a checkpoint brought beside the position; what is empty, or 0, is there no more."""
        _note(application.attempts, fact.attempts)
        _note(application.sub_sequences, fact.sub_sequences)
        _note(application.app_states, fact.app_states)
        _note(application.prepared, fact.prepared)
        _note(application.ahead, fact.ahead)

    def _transacted(self, fact: facts.Transacted) -> None:
        self._checkpointed(fact.checkpointed)
        self.keep(fact.checkpointed.application, fact.shard, fact.left)

    def keep(self, application: str, key: bytes, left: facts.Left) -> None:
        """In the place of what was left under that key: whoever commits again has carried that out."""
        before = self.left.pop((application, key), None)
        self.left_bytes -= len(before.outputs) if before is not None else 0
        if left.outputs:
            self.left[application, key] = left
            self.left_bytes += len(left.outputs)

    def _outputs_committed(self, fact: facts.OutputsCommitted) -> None:
        left = fact.left
        self.writers[fact.writer] = facts.OutputsCommitted(
            fact.writer, facts.Left(left.epoch, left.number, b"", left.wall_ms), fact.decided or bool(left.outputs)
        )
        if left.outputs:
            self.keep("", fact.writer, left)

    def _carried_out(self, fact: facts.OutputsCarriedOut) -> None:
        self.keep(fact.application, fact.key, _NONE_LEFT)

    def _outputs_left(self, fact: facts.OutputsLeft) -> None:
        self.keep(fact.application, fact.key, fact.left)

    def _writer_forgotten(self, fact: facts.WriterForgotten) -> None:
        del self.writers[fact.writer]

    def _paused(self, fact: facts.LeasePaused) -> None:
        application = self.applications[fact.application]
        application.leases.pause(fact.shard)
        application.reasons[fact.shard] = fact.reason

    def _resumed(self, fact: facts.LeasesResumed) -> None:
        application = self.applications[fact.application]
        for shard in fact.shards:
            application.leases.resume(shard)
            application.reasons.pop(shard, None)

    def _rows(self, fact: facts.LeaseRows) -> None:
        application = self.applications[fact.application]
        application.leases.restore(fact.rows)
        application.attempts.update(fact.attempts)
        application.reasons.update(fact.reasons)
        application.sub_sequences.update(fact.sub_sequences)
        application.ahead.update(fact.ahead)

    def _positions_set(self, fact: facts.PositionsSet) -> None:
        application = self.applications[fact.application]
        leases = application.leases
        if fact.undone:
            places = application.before
        else:
            # Nothing is ahead of a place that somebody names: it would be passed over, though it is to come again.
            places = {shard: (sequence, sub_sequence, b"", b"") for shard, sequence, sub_sequence in fact.positions}
        application.before_ms = fact.wall_ms
        application.before = {
            shard: (
                leases.row(shard)[3], application.sub_sequences.get(shard, 0), application.app_states.get(shard, b""),
                application.ahead.get(shard, b""),
            )
            for shard in places
        }
        for shard, (sequence, sub_sequence, app_state, ahead) in places.items():
            leases.place(shard, sequence)
            application.attempts.pop(shard, None)
            application.reasons.pop(shard, None)
            application.prepared.pop(shard, None)
            _note(application.ahead, {shard: ahead})
            _note(application.sub_sequences, {shard: sub_sequence})
            _note(application.app_states, {shard: app_state})
        for shard in fact.completed:
            leases.complete(shard)
        for shard in fact.waiting:
            if shard not in places:
                application.reasons.pop(shard, None)
                leases.place(shard, leases.row(shard)[3])
            leases.wait(shard)

    def _position_before(self, fact: facts.PositionBefore) -> None:
        application = self.applications[fact.application]
        application.before_ms = fact.wall_ms
        application.before[fact.shard] = (fact.sequence, fact.sub_sequence, fact.app_state, fact.ahead)

    def _held(self, fact: facts.ApplicationHeld) -> None:
        self.applications[fact.application].held = fact.reason

    def _kept(self, fact: facts.StateKept) -> None:
        application = self.applications[fact.application]
        _note(application.app_states, {fact.shard: fact.app_state})
        _note(application.prepared, {fact.shard: fact.prepared})


def _note(known: dict[bytes, T], brought: Mapping[bytes, T | None]) -> None:
    for shard, value in brought.items():
        if value:
            known[shard] = value
        else:
            known.pop(shard, None)


_APPLY: dict[type, Callable[..., None]] = {
    facts.ApplicationCreated: Table._created,
    facts.ApplicationDeleted: Table._deleted,
    facts.StreamAdded: Table._stream_added,
    facts.StreamRemoved: Table._stream_removed,
    facts.MemberJoined: Table._joined,
    facts.MemberGone: Table._gone,
    facts.LeasesGranted: Table._granted,
    facts.LeasesDraining: Table._draining,
    facts.LeasesFreed: Table._freed,
    facts.Checkpointed: Table._checkpointed,
    facts.LeasePaused: Table._paused,
    facts.LeasesResumed: Table._resumed,
    facts.LeaseRows: Table._rows,
    facts.MapChanged: Table._map_changed,
    facts.LeasesCompleted: Table._completed,
    facts.StateKept: Table._kept,
    facts.PositionsSet: Table._positions_set,
    facts.PositionBefore: Table._position_before,
    facts.ApplicationHeld: Table._held,
    facts.Transacted: Table._transacted,
    facts.OutputsCommitted: Table._outputs_committed,
    facts.OutputsCarriedOut: Table._carried_out,
    facts.OutputsLeft: Table._outputs_left,
    facts.WriterForgotten: Table._writer_forgotten,
}
