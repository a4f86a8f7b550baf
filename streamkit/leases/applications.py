"""`step(event) -> Effects`: every decision about members and leases.

A handler looks at the state, decides facts, and applies each at once, so that later decisions of the same step see
it. After anything that may leave a lease without an owner or a worker without its share, the application is
balanced. What an answer says is durable before it leaves: that is the owner's duty (`Effects.write`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import msgspec

from streamkit.errors import ApplicationNotFound, Conflict, InstanceTaken, InvalidRequest, LeaseLost
from streamkit.leases import events, facts, lineage
from streamkit.leases.assignment import Candidate, Plan, balance, place
from streamkit.leases.load import ROUND_MS, LoadBook, Loaded, fill, rebalance, welcome
from streamkit.leases.membership import Membership
from streamkit.leases.table import FACTS_VERSION, Application, Table
from streamkit.model.shard import shard_id

WRITER_KNOWN_MS = 7 * 24 * 3_600_000       # after its last commit its epoch and number are forgotten
UNDO_MS = 7 * 24 * 3_600_000               # how long the positions before a reset are kept
_KEPT_BYTES_MAX = 1024 * 1024              # of what applications keep with their leases, in one answer


class Applications:
    """The state machine. `table` is durable, `membership` and `loads` are not."""

    def __init__(self) -> None:
        self.table = Table()
        self.membership = Membership()
        self.loads: dict[str, LoadBook] = {}           # of applications whose leases are assigned by load
        self._now_ms = 0
        self._facts: list[bytes] = []
        self._wake: set[tuple[str, int]] = set()

    def step(self, event: events.Event) -> events.Effects:
        """Raises ApplicationNotFound, LeaseLost (a session or a lease that is not held any more)."""
        assert not self._facts and not self._wake, "effects of a step leave with it"
        self._now_ms = getattr(event, "now_ms", self._now_ms)
        try:
            answer = _STEPS[type(event)](self, event)
            return events.Effects(
                write=tuple(self._facts),
                view=answer if isinstance(answer, events.View) else None,
                results=answer if isinstance(answer, tuple) else (),
                wake=frozenset(self._wake),
            )
        finally:
            self._facts.clear()
            self._wake.clear()

    def application(self, name: str) -> Application:
        try:
            return self.table.applications[name]
        except KeyError:
            raise ApplicationNotFound(
                f'application "{name}" does not exist', try_="streamkit app list", application=name
            ) from None

    def genesis(self) -> tuple[bytes, ...]:
        """What a log without a beginning needs first."""
        fact = facts.Genesis(FACTS_VERSION)
        self.table.replay(fact)
        return (facts.encode(fact),)

    def check_fetch(self, name: str, session: int, shard: bytes, lease_epoch: int) -> None:
        """Raises LeaseLost unless that session owns the shard in that epoch; ApplicationNotFound."""
        application = self.application(name)
        if not application.leases.holds(shard, session, lease_epoch):
            raise self.lease_lost(application, shard, lease_epoch)

    def lease_lost(self, application: Application, shard: bytes, lease_epoch: int) -> LeaseLost:
        """The error that tells a worker who has the shard now."""
        stream = application.stream_of.get(shard)
        if stream is None:
            return LeaseLost(
                f'application "{application.name}" has no such shard any more; this worker must stop',
                try_="streamkit stream list", shard=shard.hex(), lease_epoch=lease_epoch, owner="",
            )
        shown = shard_id(application.streams[stream][shard])
        session = application.leases.row(shard)[1]
        owner = application.members[session].worker if session in application.members else ""
        return LeaseLost(
            f"{shown} of {stream} moved to worker {owner}; this worker must stop" if owner
            else f"{shown} of {stream} was taken from this worker and waits for a new owner; this worker must stop",
            try_=f"nothing to do; if it happens often: streamkit lag {application.name}",
            shard=shown, stream=stream, lease_epoch=lease_epoch, owner=owner,
        )

    # ---- deciding ------------------------------------------------------------------------------------------

    def _decide(self, fact: facts.Fact) -> None:
        self.table.apply(fact)
        self._facts.append(facts.encode(fact))

    def _member(self, application: Application, session: int) -> facts.MemberJoined:
        try:
            return application.members[session]
        except KeyError:
            raise LeaseLost(
                f'this worker was silent for too long and is no longer a member of application "{application.name}"',
                try_="nothing to do: the worker joins again by itself",
                application=application.name, session=session, owner="",
            ) from None

    def _staying(self, application: Application) -> list[Candidate]:
        return [
            candidate for candidate in application.candidates()
            if (application.name, candidate.session) not in self.membership.leaving
        ]

    def _grant(self, application: Application, grants: Sequence[tuple[bytes, int]]) -> None:
        if grants:
            self._decide(facts.LeasesGranted(application.name, tuple(
                (shard, session, application.leases.row(shard)[2] + 1) for shard, session in grants
            )))
            self._wake.update((application.name, session) for _, session in grants)
            if application.by_load:
                book = self._book(application)
                for shard, _ in grants:
                    book.moved_ms[shard] = self._now_ms
                    book.intended.pop(shard, None)

    def _placed(self, application: Application, freed: Sequence[bytes], leaving: int) -> bool:
        # In the middle of many hand-overs only what was freed is looked at; the last of them balances everything.
        if application.held or application.by_load:
            return False
        held, draining = application.leases.loads()
        staying = self._staying(application)
        more = draining or (leaving and application.leases.count_of(leaving))
        if not more or any(candidate.leases_max for candidate in staying):
            return False
        ready = [
            (shard, application.stream_of[shard]) for shard in freed if application.leases.row(shard)[0] == "ready"
        ]
        ready.sort(key=lambda entry: (entry[1], application.streams[entry[1]][entry[0]]))
        self._grant(application, place(ready, held, staying))
        return True

    def _balance(self, application: Application, now_ms: int) -> None:
        if application.held:
            plan = Plan(drains=[shard for shard, _, state in application.leases.owners() if state == "owned"])
        elif application.by_load:
            grants = fill(application.holdings(), self._staying(application), self._book(application))
            plan = Plan(grants=grants)
        else:
            plan = balance(application.holdings(), self._staying(application))
        self._grant(application, plan.grants)
        self._drain(application, plan.drains, now_ms)
        if any(member.standby for member in application.members.values()) and not application.held:
            left = {application.stream_of[shard] for shard, _, state in application.leases.owners() if state == "ready"}
            if left and self._promote(application, left):
                self._balance(application, now_ms)

    def _book(self, application: Application) -> LoadBook:
        if (book := self.loads.get(application.name)) is None:
            book = self.loads[application.name] = LoadBook.new(self._now_ms)
        return book

    def _welcome(self, application: Application, member: facts.MemberJoined, now_ms: int) -> None:
        book = self._book(application)
        shards = welcome(application.holdings(), self._staying(application), member.session, book)
        book.intended.update(dict.fromkeys(shards, member.session))
        self._drain(application, shards, now_ms)

    def _move_by_load(self, application: Application, book: LoadBook, now_ms: int) -> None:
        owners = application.leases.owners()
        if any(state == "draining" for _, _, state in owners) or application.held:
            return
        book.round_ms = now_ms
        book.forget_others(application.stream_of)
        leases = [
            Loaded(shard, application.stream_of[shard], session, book.loads.get(shard, 0.0),
                   state == "owned" and book.is_cool(shard, now_ms))
            for shard, session, state in owners if session
        ]
        moves, book.acting = rebalance(leases, self._staying(application), acting=book.acting)
        book.intended.update(moves)
        self._drain(application, [shard for shard, _ in moves], now_ms)

    def _drain(self, application: Application, shards: Sequence[bytes], now_ms: int) -> None:
        if shards:
            self._decide(facts.LeasesDraining(application.name, tuple(shards)))
        for shard in shards:
            session = application.leases.row(shard)[1]
            self._wake.add((application.name, session))
            self.membership.drains[application.name, shard] = now_ms + application.members[session].drain_ms

    def _promote(self, application: Application, streams: Collection[str]) -> bool:
        # The longest waiting standby worker that reads one of these takes a place; False: there is none.
        for session, member in sorted(application.members.items()):
            if not member.has_place and not member.away and not set(streams).isdisjoint(member.streams) \
                    and (application.name, session) not in self.membership.leaving:
                self._decide(msgspec.structs.replace(member, promoted=True))
                return True
        return False

    def _demote(self, application: Application, now_ms: int) -> None:
        # Somebody has come for the place that a standby worker took: the last one promoted stands by again.
        promoted = [session for session, member in application.members.items() if member.promoted]
        if promoted:
            session = max(promoted)
            self._decide(msgspec.structs.replace(application.members[session], promoted=False))
            leases = application.leases
            owned = [shard for shard in leases.owned_by(session) if leases.row(shard)[0] == "owned"]
            self._drain(application, owned, now_ms)

    def _remove_member(self, application: Application, session: int, crashed: bool) -> None:
        for shard in application.leases.owned_by(session):
            self.membership.drains.pop((application.name, shard), None)
        self._decide(facts.MemberGone(application.name, session, crashed))
        self.membership.forget((application.name, session))
        self._wake.add((application.name, session))

    def _add_streams(self, application: Application, found: Sequence[events.FoundStream]) -> None:
        # Whoever comes first decides where a stream is started; a second answer to the same question is dropped.
        for stream in found:
            if stream.name in application.streams:
                continue
            if not stream.parents and not stream.ends:
                self._decide(facts.StreamAdded(application.name, stream.name, stream.leases, stream.created_ms))
                continue
            self._decide(facts.StreamAdded(application.name, stream.name, (), stream.created_ms))
            self._change_map(application, stream)

    def _change_map(self, application: Application, stream: events.FoundStream) -> bool:
        change = lineage.map_change(application, stream)
        if change is None:
            return False
        for shard in change.removed:
            self.membership.drains.pop((application.name, shard), None)
            self._wake_owner(application, shard)
        self._decide(change)
        self._settle(application, list(application.streams[stream.name]))
        return True

    def _settle(self, application: Application, shards: Collection[bytes]) -> bool:
        # Leases that are at their shard's end, and those that waited for them.
        completed = lineage.settled(application, shards)
        if completed is None:
            return False
        for shard in completed.shards:
            self.membership.drains.pop((application.name, shard), None)
        self._decide(completed)
        return True

    def _wake_owner(self, application: Application, shard: bytes) -> None:
        if session := application.leases.row(shard)[1]:
            self._wake.add((application.name, session))

    def _view(
        self, application: Application, member: facts.MemberJoined, owned: Sequence[tuple[bytes, int]]
    ) -> events.View:
        lost, draining, held = application.leases.renew(member.session, owned)
        granted: list[events.Granted] = []
        kept_bytes = 0
        if held != application.leases.count_of(member.session):
            named = set(owned)
            for shard in application.leases.owned_by(member.session):
                state, _, lease_epoch, checkpoint, takeovers, crashed, _ = application.leases.row(shard)
                if (shard, lease_epoch) in named or state == "complete":
                    continue
                kept_bytes += application.kept_bytes(shard)
                left = self.table.left.get((application.name, shard))
                kept_bytes += len(left.outputs) if left is not None else 0
                if granted and kept_bytes > _KEPT_BYTES_MAX:
                    break                  # the others with the next heartbeat, which follows at once
                granted.append(events.Granted(
                    application.stream_of[shard], shard, lease_epoch, checkpoint, takeovers, crashed,
                    application.attempts.get(shard, {}), application.sub_sequences.get(shard, 0),
                    application.app_states.get(shard, b""), application.prepared.get(shard),
                    application.ahead.get(shard, b""), left,
                ))
                if state == "draining":
                    draining.append(shard)
        missing = tuple(name for name in member.streams if name not in application.streams)
        return events.View(
            member.session, member.membership_ms, tuple(granted), tuple(lost), tuple(draining), missing
        )

    # ---- events --------------------------------------------------------------------------------------------

    def _join(self, event: events.Join) -> events.View:
        name = event.application
        if name not in self.table.applications:
            self._decide(facts.ApplicationCreated(name, event.wall_ms))
        application = self.table.applications[name]
        self._check_instance(application, event)
        self._add_streams(application, event.found)
        elders = [
            elder for elder in application.members.values()
            if elder.worker == event.worker or (event.instance and elder.instance == event.instance)
        ]
        promoted = event.standby and any(elder.promoted for elder in elders)
        kept = [shard for elder in elders if event.instance == elder.instance != ""
                for shard in application.leases.owned_by(elder.session) if application.leases.row(shard)[0] == "owned"]
        for elder in elders:
            self._remove_member(application, elder.session, crashed=not elder.away)
        member = facts.MemberJoined(
            name, application.sessions + 1, event.worker, event.streams,
            event.membership_ms, event.leases_max, event.drain_ms, event.instance, event.incarnation,
            False, event.standby, promoted, event.weight, event.assignment,
        )
        self._decide(member)
        self._beaten(member, event.connection, event.now_ms)
        if member.has_place and not application.held:
            mine = [shard for shard in kept if application.stream_of[shard] in event.streams]
            self._grant(application, [(shard, member.session) for shard in mine[: event.leases_max or None]])
        if not elders and not event.standby:
            self._demote(application, event.now_ms)
        self._balance(application, event.now_ms)
        if application.by_load and application.members[member.session].has_place and not elders:
            self._welcome(application, member, event.now_ms)
        return self._view(application, application.members[member.session], ())

    def _check_instance(self, application: Application, event: events.Join) -> None:
        # A worker that starts takes its name over from one that lives; one that was shut out does not take it back.
        for other in application.members.values():
            if event.instance and other.instance == event.instance and other.incarnation != event.incarnation \
                    and 0 < event.before < other.session:
                raise InstanceTaken(
                    f'worker {other.worker} runs under the instance name "{event.instance}" now; this one must end',
                    try_="give each worker that runs at the same time an instance name of its own",
                    application=application.name, instance=event.instance, worker=other.worker,
                )

    def _beaten(self, member: facts.MemberJoined, connection: int, now_ms: int) -> None:
        # Who may come back under an instance name has the whole time-out, though its connection breaks.
        self.membership.beat(
            (member.application, member.session), member.membership_ms, 0 if member.instance else connection, now_ms
        )

    def _beat(self, event: events.Beat) -> events.View:
        application = self.application(event.application)
        member = self._member(application, event.session)
        self._beaten(member, event.connection, event.now_ms)
        if event.loads and application.by_load:
            book = self._book(application)
            for shard, load, observed_ms in event.loads:
                if shard in application.leases and application.leases.row(shard)[1] == member.session:
                    book.note(shard, load, observed_ms)
        return self._view(application, member, event.owned)

    def _look(self, event: events.Look) -> events.View:
        application = self.application(event.application)
        return self._view(application, self._member(application, event.session), event.owned)

    def _checkpoints(self, event: events.Checkpoints) -> tuple[str, ...]:
        application = self.application(event.application)
        if event.beyond:
            return self._beyond(application, event)
        results, fact = self._noted(application, event)
        if fact is not None:
            self._facts.append(facts.encode(fact))
            self._reached(application, event)
        return results

    def _noted(
        self, application: Application, event: events.Checkpoints
    ) -> tuple[tuple[str, ...], facts.Checkpointed | None]:
        """The checkpoints' results, and what is to be written if anything changed; here it has changed already."""
        results, changes = application.leases.checkpoint(event.items, event.wall_ms)
        if not changes:
            return results, None
        fact = facts.Checkpointed(application.name, changes, event.wall_ms, {}, {}, {}, {}, {})
        for item, result in zip(event.items, results, strict=True):
            if result != "ok":
                continue
            if item.attempts or item.shard in application.attempts:
                fact.attempts[item.shard] = dict(item.attempts)
            if item.sub_sequence or item.shard in application.sub_sequences:
                fact.sub_sequences[item.shard] = item.sub_sequence
            if item.app_state is not None:
                fact.app_states[item.shard] = item.app_state
            prepared = item.prepared or application.prepared.get(item.shard)
            if prepared is not None and (prepared[:2] <= (item.sequence, item.sub_sequence) or item.prepared):
                is_over = prepared[:2] <= (item.sequence, item.sub_sequence)
                fact.prepared[item.shard] = None if is_over else prepared
            if item.ahead or item.shard in application.ahead:
                fact.ahead[item.shard] = item.ahead
        self.table.note(application, fact)
        return results, fact

    def _reached(self, application: Application, event: events.Checkpoints) -> None:
        if application.ends and self._settle(application, list(dict.fromkeys(item.shard for item in event.items))):
            self._balance(application, event.now_ms)

    # ---- transactions --------------------------------------------------------------------------------------

    def _transact(self, event: events.Transact) -> tuple[str, ...]:
        # A repeat is answered from the row and decides nothing: the first time it was decided with its outputs.
        application = self.application(event.application)
        item = event.item
        one = events.Checkpoints(
            event.application, (item,), event.wall_ms, beyond=(0,) if event.beyond else (), now_ms=event.now_ms
        )
        if event.beyond:
            return self._beyond(application, one)
        if item.shard in application.leases and application.leases.row(item.shard)[2] == item.lease_epoch:
            self._check_left(application.name, item.shard, item.lease_epoch)
        results, fact = self._noted(application, one)
        if fact is not None and results[0] != "ok":
            self._facts.append(facts.encode(fact))
        elif fact is not None:
            left = facts.Left(item.lease_epoch, item.number, event.outputs, event.wall_ms)
            self.table.keep(application.name, item.shard, left)
            self._facts.append(facts.encode(facts.Transacted(fact, item.shard, left)))
            self._reached(application, one)
        return results

    def _commit_outputs(self, event: events.CommitOutputs) -> tuple[str, ...]:
        known = self.table.writers.get(event.writer)
        if known is not None:
            last = known.left
            if event.epoch < last.epoch:
                return ("fenced",)
            if event.epoch == last.epoch and event.number <= last.number:
                decided = known.decided and event.number == last.number
                return ("ok" if decided or not event.number else "void",)
        if event.outputs:
            self._check_left("", event.writer, event.epoch)
        self._decide(facts.OutputsCommitted(
            event.writer, facts.Left(event.epoch, event.number, event.outputs, event.wall_ms)
        ))
        return ("ok" if event.outputs or not event.number else "void",)

    def _check_left(self, application: str, key: bytes, epoch: int) -> None:
        """Whoever commits again has carried its last outputs out, and told so of those of an elder epoch."""
        left = self.table.left.get((application, key))
        if left is not None and left.epoch != epoch:
            raise InvalidRequest(
                f"outputs that were decided under epoch {left.epoch} are not carried out yet",
                try_="carry out what was granted with the lease, and tell it, first", field="outputs", value=left.epoch,
            )

    def _carried_out(self, event: events.CarriedOut) -> None:
        for key, epoch, number in event.items:
            left = self.table.left.get((event.application, key))
            if left is not None and (left.epoch, left.number) == (epoch, number):
                self._decide(facts.OutputsCarriedOut(event.application, key))

    def _forget_writers(self, wall_ms: int) -> None:
        old = [writer for writer, last in self.table.writers.items()
               if last.left.wall_ms + WRITER_KNOWN_MS < wall_ms and ("", writer) not in self.table.left]
        for writer in old:
            self._decide(facts.WriterForgotten(writer))

    # ---- leases come back ----------------------------------------------------------------------------------

    def _beyond(self, application: Application, event: events.Checkpoints) -> tuple[str, ...]:
        # A position that does not exist yet would pass over whatever comes to stand there. The others are settled.
        within = [item for i, item in enumerate(event.items) if i not in event.beyond]
        settled = iter(self._checkpoints(
            events.Checkpoints(event.application, within, event.wall_ms, now_ms=event.now_ms)
        ))
        results = []
        for i, item in enumerate(event.items):
            if i not in event.beyond:
                results.append(next(settled))
                continue
            known = item.shard in application.leases
            session, lease_epoch = application.leases.row(item.shard)[1:3] if known else (0, 0)
            results.append("beyond" if session and lease_epoch == item.lease_epoch else "fenced")
        return tuple(results)

    def _release(self, event: events.Release) -> None:
        application = self.application(event.application)
        leaving = (application.name, event.leaving)
        if event.leaving in application.members and leaving not in self.membership.leaving:
            self.membership.leaving.add(leaving)
            self._vacated(application, application.members[event.leaving])
        freed = []
        for shard, lease_epoch in dict.fromkeys(event.leases):
            if shard in application.leases and application.leases.row(shard)[2] == lease_epoch \
                    and application.leases.row(shard)[1]:
                freed.append(shard)
                self.membership.drains.pop((application.name, shard), None)
        if freed:
            self._decide(facts.LeasesFreed(application.name, tuple(freed), False))
            if not self._placed(application, freed, event.leaving):
                self._balance(application, event.now_ms)

    def _leave(self, event: events.Leave) -> None:
        application = self.application(event.application)
        member = application.members.get(event.session)
        if member is None:
            return
        if event.away and member.instance:
            leases = application.leases
            moving = [shard for shard in leases.owned_by(event.session) if leases.row(shard)[0] == "draining"]
            for shard in moving:
                self.membership.drains.pop((application.name, shard), None)
            if moving:
                self._decide(facts.LeasesFreed(application.name, tuple(moving), False))
            self._decide(msgspec.structs.replace(member, away=True))
            self._beaten(member, 0, event.now_ms)
        else:
            told = (application.name, event.session) in self.membership.leaving
            self._remove_member(application, event.session, crashed=False)
            if not told:
                self._vacated(application, member)
        self._balance(application, event.now_ms)

    def _vacated(self, application: Application, member: facts.MemberJoined) -> None:
        # As many go on working as before, while there are standby workers.
        if member.has_place:
            self._promote(application, member.streams)

    def _pause(self, event: events.Pause) -> None:
        application = self.application(event.application)
        if event.shard not in application.leases:
            raise self.lease_lost(application, event.shard, event.lease_epoch)
        state, session, lease_epoch, *_ = application.leases.row(event.shard)
        if not session or lease_epoch != event.lease_epoch:
            raise self.lease_lost(application, event.shard, event.lease_epoch)
        if state in ("owned", "draining"):
            self.membership.drains.pop((application.name, event.shard), None)
            self._decide(facts.LeasePaused(application.name, event.shard, event.reason[:1000]))

    def _resume(self, event: events.Resume) -> None:
        application = self.application(event.application)
        if application.held:
            self._decide(facts.ApplicationHeld(application.name, ""))
            self._balance(application, event.now_ms)
        paused = [(shard, session) for shard, session, state in application.leases.owners() if state == "paused"]
        if paused:
            self._decide(facts.LeasesResumed(application.name, tuple(shard for shard, _ in paused)))
            self._wake.update((application.name, session) for _, session in paused if session)
            self._balance(application, event.now_ms)

    def _hold(self, event: events.Hold) -> None:
        application = self.application(event.application)
        self._decide(facts.ApplicationHeld(application.name, event.reason[:1000] or "paused"))
        self._balance(application, event.now_ms)

    def _set_positions(self, event: events.SetPositions) -> None:
        application = self.application(event.application)
        if event.undo:
            if not application.before or event.wall_ms - application.before_ms > UNDO_MS:
                raise Conflict(
                    f'application "{application.name}" was not reset in the last seven days: there is nothing to undo',
                    try_=f"streamkit app describe {application.name}", application=application.name,
                )
            places = {shard: (sequence, inside) for shard, (sequence, inside, *_) in application.before.items()}
        else:
            places = {shard: (sequence, inside) for shard, sequence, inside in event.positions}
            for shard in places:
                if shard not in application.leases:
                    raise InvalidRequest(
                        f'application "{application.name}" has no shard {shard.hex()}',
                        try_=f"streamkit app describe {application.name}", field="positions", value=shard.hex(),
                    )
        fact = lineage.positions_set(application, places, event.wall_ms, undone=event.undo)
        for shard in dict.fromkeys([*places, *fact.waiting]):
            self.membership.drains.pop((application.name, shard), None)
            self._wake_owner(application, shard)
        self._decide(fact)
        for shards in application.streams.values():
            self._settle(application, list(shards))
        self._balance(application, event.now_ms)

    def _delete(self, event: events.Delete) -> None:
        application = self.application(event.application)
        for session in list(application.members):
            self.membership.forget((application.name, session))
            self._wake.add((application.name, session))
        for lease in [lease for lease in self.membership.drains if lease[0] == application.name]:
            del self.membership.drains[lease]
        self._decide(facts.ApplicationDeleted(application.name))

    def _streams_seen(self, event: events.StreamsSeen) -> None:
        application = self.application(event.application)
        for name in event.gone:
            if name in application.streams:
                for shard in application.streams[name]:
                    self.membership.drains.pop((application.name, shard), None)
                self._decide(facts.StreamRemoved(application.name, name))
                self._wake.update((application.name, session) for session in application.members)
        self._add_streams(application, event.found)
        for stream in event.changed:
            if stream.name in application.streams:
                self._change_map(application, stream)
        self._balance(application, event.now_ms)

    def _connection_lost(self, event: events.ConnectionLost) -> None:
        self.membership.connection_lost(event.connection, event.now_ms)

    def _restarted(self, event: events.Restarted) -> None:
        for application in self.table.applications.values():
            for member in application.members.values():
                self.membership.beat((application.name, member.session), member.membership_ms, 0, event.now_ms)
            for shard, session, state in application.leases.owners():
                if state == "draining":
                    deadline = event.now_ms + application.members[session].drain_ms
                    self.membership.drains[application.name, shard] = deadline
            # Nothing to decide, unless the log ends in the middle of a step.
            for shards in application.streams.values():
                self._settle(application, list(shards))
            self._balance(application, event.now_ms)

    def _tick(self, event: events.Tick) -> None:
        touched: dict[str, None] = {}
        for name, session in self.membership.expired(event.now_ms):
            application = self.table.applications[name]
            member = application.members[session]
            told = (name, session) in self.membership.leaving
            self._remove_member(application, session, crashed=not member.away)
            if not told:
                self._vacated(application, member)
            touched[name] = None
        for name, shard in self.membership.overdue(event.now_ms):
            del self.membership.drains[name, shard]
            application = self.table.applications[name]
            self._wake.add((name, application.leases.row(shard)[1]))
            self._decide(facts.LeasesFreed(name, (shard,), True))
            touched[name] = None
        for name in touched:
            self._balance(self.table.applications[name], event.now_ms)
        for name, book in list(self.loads.items()):
            if name not in self.table.applications or not self.table.applications[name].by_load:
                del self.loads[name]
            elif event.now_ms - book.round_ms >= ROUND_MS:
                self._move_by_load(self.table.applications[name], book, event.now_ms)
        if event.wall_ms:
            self._forget_writers(event.wall_ms)


_STEPS: dict[type, Callable[..., Any]] = {
    events.Join: Applications._join,
    events.Beat: Applications._beat,
    events.Look: Applications._look,
    events.Checkpoints: Applications._checkpoints,
    events.Release: Applications._release,
    events.Leave: Applications._leave,
    events.Pause: Applications._pause,
    events.Resume: Applications._resume,
    events.Hold: Applications._hold,
    events.SetPositions: Applications._set_positions,
    events.Delete: Applications._delete,
    events.StreamsSeen: Applications._streams_seen,
    events.ConnectionLost: Applications._connection_lost,
    events.Restarted: Applications._restarted,
    events.Tick: Applications._tick,
    events.Transact: Applications._transact,
    events.CommitOutputs: Applications._commit_outputs,
    events.CarriedOut: Applications._carried_out,
}
