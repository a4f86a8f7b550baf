"""The shipped rules driven by the model's schedule: same steps, same harm, same promises to keep.

Only who decides changes: what a copy answers is `Follower`'s word, who may lead is `Candidate`'s, what is committed is
`Leader`'s. What their owner does on a disk (promise, cut) takes a while here, too, and is lost when the process ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from streamkit.model.stream import Durability
from streamkit.replication.candidate import Candidate
from streamkit.replication.effects import Effects, Verdict
from streamkit.replication.events import (
    Adopted,
    Appended,
    EpochStarted,
    Flushed,
    Offered,
    Progressed,
    Promised,
    SealAsked,
    Sealed,
    Truncated,
)
from streamkit.replication.follower import Follower
from streamkit.replication.leader import Leader
from streamkit.replication.replica import Ends
from streamkit.replication.replica_set import Member, ReplicaSet
from tests.replication.model import Copy, Entry, Model, Register


def incarnation_of(node: int, life: int) -> bytes:
    return b"%d/%d" % (node, life)


@dataclass(slots=True, eq=False)
class DrivenCopy(Copy):
    """It is its own LogView. pending: what was asked of the disk and is not done."""

    rules: Follower = None  # type: ignore[assignment]
    leading: Leader | None = None
    standing: Candidate | None = None
    logs: dict[Member, DrivenAnswer] = field(default_factory=dict)
    pending: list[tuple[str, int]] = field(default_factory=list)
    speaker: int = -1
    asked: list[tuple[int, int]] = field(default_factory=list)     # who wants it to seal which epoch

    @property
    def log_start(self) -> int:
        return self.start

    @property
    def log_end(self) -> int:
        return self.end

    @property
    def epochs(self) -> list[tuple[int, int]]:
        found = [(self.before, self.start - 1)] if self.before else []
        for sequence, entry in enumerate(self.log, self.start):
            if not found or found[-1][0] != entry[0]:
                found.append((entry[0], sequence))
        return found

    @property
    def member(self) -> Member:
        return Member(str(self.node), incarnation_of(self.node, self.incarnation))


@dataclass(frozen=True, slots=True)
class DrivenAnswer:
    sealed: Sealed
    log: tuple[Entry, ...]
    numbers: dict[int, int]
    places: dict[int, int]


def set_of(register: Register) -> ReplicaSet:
    def named(members: tuple[tuple[int, int], ...]) -> tuple[Member, ...]:
        return tuple(Member(str(node), incarnation_of(node, life)) for node, life in members)

    return ReplicaSet(
        register.epoch, str(register.leader), named(register.members), named(register.previous),
        named(register.learners),
    )  # fmt: skip


class Driven(Model):
    """A Model whose copies are ruled by the shipped classes."""

    copies: list[DrivenCopy]

    def __init__(self, seed: int, *, nodes: int = 4, **settings: object) -> None:
        super().__init__(seed, nodes=nodes, **settings)  # type: ignore[arg-type]
        self.copies = [DrivenCopy(node) for node in range(nodes)]
        for copy in self.copies:
            self.begin(copy)

    def begin(self, copy: DrivenCopy) -> None:  # type: ignore[override]
        copy.rules = Follower(copy, promised=copy.durable_promise, certain=copy.certain)
        copy.leading = copy.standing = None
        copy.pending, copy.asked = [], []
        copy.promised = copy.durable_promise

    @property
    def level(self) -> Durability:
        return Durability.FSYNC if self.mode == "fsync" else Durability.OS

    def safe(self, copy: DrivenCopy) -> int:
        return copy.durable if self.mode == "fsync" else copy.end

    def ends(self, copy: DrivenCopy) -> Ends:
        return Ends(copy.end, copy.end, copy.durable)

    # ---- effects ----------------------------------------------------------------------------------------------------

    def carry(self, copy: DrivenCopy, effects: Effects, node: int) -> None:
        if effects.step_down and copy.role and copy.epoch < copy.rules.promised:
            self.stop(copy)
        copy.promised = copy.rules.promised
        if effects.promise is not None:
            self.on_disk(copy, "promise", effects.promise)
        if effects.truncate is not None:
            self.on_disk(copy, "cut", effects.truncate)
        if effects.reset is not None:
            self.on_disk(copy, "reset", effects.reset)
        if effects.certain:
            copy.certain, copy.durable = True, copy.end
        if effects.answer is not None and node >= 0:
            answer = effects.answer
            if answer.verdict is Verdict.ACCEPTED:
                self.send(node, "accepted", copy.node, copy.incarnation, answer.epoch, answer.end)
            elif answer.verdict is Verdict.MISMATCH:
                self.send(node, "mismatch", copy.node, answer.epoch, answer.end)
            else:
                self.send(node, "stale", answer.epoch)
        if effects.seal:
            asked, copy.asked = copy.asked, []
            for candidate, _ in asked:
                self.tell(copy, candidate)

    def on_disk(self, copy: DrivenCopy, what: str, value: int) -> None:
        copy.pending.append((what, value))
        if self.draw.random() < 0.6:
            self.finish(copy)

    def finish(self, copy: DrivenCopy) -> None:
        """The disk has done all that it was asked."""
        pending, copy.pending = copy.pending, []
        for what, value in pending:
            if what == "promise":
                copy.durable_promise = max(copy.durable_promise, value)
                self.carry(copy, copy.rules.step(Promised(value)), copy.speaker)
            else:
                if what == "cut":
                    self.cut(copy, value)
                else:
                    self.reset(copy, value, 0)
                self.carry(copy, copy.rules.step(Truncated()), copy.speaker)

    def stop(self, copy: DrivenCopy) -> None:
        if copy.leading is not None:
            copy.rules.high_watermark = max(copy.rules.high_watermark, copy.leading.high_watermark)
        copy.role = ""
        copy.leading = copy.standing = None

    # ---- following --------------------------------------------------------------------------------------------------

    def on_offered(  # type: ignore[override]
        self, copy: DrivenCopy, sender: int, epoch: int, start: int, previous: int, entries: tuple[Entry, ...],
        high_watermark: int, log_start: int, leader_end: int, epoch_start: int,
    ) -> None:  # fmt: skip
        if copy.role == "leader" and copy.epoch == epoch:
            return
        known, end = copy.rules.high_watermark, start + len(entries)
        differs_at = next(
            (
                sequence for sequence, entry in enumerate(entries, start)
                if copy.start <= sequence < copy.end and copy.epoch_at(sequence) != entry[0]
            ),
            None,
        )  # fmt: skip
        offer = Offered(
            epoch, start, end, previous, high_watermark, log_start, leader_end, epoch_start, differs_at
        )
        if epoch >= copy.rules.promised:
            copy.speaker = sender
        effects = copy.rules.step(offer)
        if not effects.hear:
            self.carry(copy, effects, sender)
            return
        if effects.accept:
            for sequence, entry in enumerate(entries, start):
                if sequence >= copy.end:
                    assert sequence == copy.end, "an offer that is accepted joins on"
                    copy.add(entry)
            copy.rules.step(Appended(end))
        if self.mode == "fsync" and self.draw.random() < 0.5:
            copy.durable = copy.end
        self.carry(copy, copy.rules.heard(offer, self.safe(copy)), sender)
        copy.high_watermark = copy.rules.high_watermark
        self.check_read(copy, known, min(copy.high_watermark, copy.end))
        if copy.start < log_start <= copy.high_watermark:
            self.trim(copy, log_start)

    def cut(self, copy: Copy, sequence: int) -> None:
        copy.high_watermark = min(copy.high_watermark, copy.end)
        super().cut(copy, sequence)

    # ---- sealing and leading ----------------------------------------------------------------------------------------

    def promise(self, copy: Copy, epoch: int) -> None:
        """The rules promise, when they are asked to seal."""

    def on_seal(self, copy: DrivenCopy, candidate: int, epoch: int) -> None:  # type: ignore[override]
        copy.asked.append((candidate, epoch))
        self.carry(copy, copy.rules.step(SealAsked(epoch)), copy.speaker)

    def answer_seal(self, copy: Copy, candidate: int, epoch: int) -> None:
        """The candidate asks itself."""
        assert isinstance(copy, DrivenCopy)
        copy.leading, copy.logs = None, {}
        copy.standing = Candidate(set_of(self.seen[copy.node]))
        self.on_seal(copy, copy.node, epoch)

    def tell(self, copy: DrivenCopy, candidate: int) -> None:
        leading = copy.leading
        known = leading.high_watermark if leading is not None else copy.rules.high_watermark
        sealed = Sealed(
            copy.member, copy.rules.durable_promise, copy.rules.certain, copy.start, copy.end, known,
            tuple(copy.epochs),
        )  # fmt: skip
        answer = DrivenAnswer(sealed, tuple(copy.log), dict(copy.numbers), dict(copy.places))
        if candidate == copy.node:
            self.on_sealed(copy, answer)
        else:
            self.send(candidate, "sealed", answer)

    def on_sealed(self, copy: DrivenCopy, answer: DrivenAnswer) -> None:  # type: ignore[override]
        candidate = copy.standing
        if candidate is None or copy.role != "candidate":
            return
        if answer.sealed.epoch == candidate.epoch:
            copy.logs[answer.sealed.member] = answer
        effects = candidate.step(answer.sealed)
        if effects.step_down:
            self.stop(copy)
        elif effects.adopt is not None:
            if effects.truncate is not None:
                self.cut(copy, effects.truncate)
            adopt = effects.adopt
            if adopt.reset:
                self.reset(copy, adopt.start, 0)
            best = next(found for found in copy.logs.values() if found.sealed.member.node == adopt.node)
            assert copy.end == adopt.start, "what is fetched joins on"
            for entry in best.log[adopt.start - best.sealed.log_start :]:
                copy.add(entry)
            copy.numbers, copy.places = dict(best.numbers), dict(best.places)
            self.begin_leading(copy, candidate.step(Adopted()))
        elif effects.lead is not None:
            self.begin_leading(copy, effects)

    def begin_leading(self, copy: DrivenCopy, effects: Effects) -> None:
        candidate = copy.standing
        assert candidate is not None and effects.lead is not None and effects.certain
        if copy.rules.promised != candidate.epoch:
            self.stop(copy)
            return
        copy.standing = None
        copy.certain, copy.durable = True, copy.end
        copy.rules.certain = True
        copy.high_watermark = effects.lead
        self.check_read(copy, copy.start, effects.lead)
        self.check_adopted(copy)
        copy.role, copy.acked, copy.next = "leader", {}, {}
        copy.epoch_start = copy.end
        copy.leading = Leader(
            epoch=copy.epoch, replica=copy.member.incarnation, durability=self.level, high_watermark=effects.lead,
            replicas={
                member.incarnation: self.ends(copy) if member == copy.member else Ends(0, 0, 0)
                for member in candidate.replica_set.members
            },
            others=[
                member.incarnation for member in candidate.replica_set.copies
                if member not in candidate.replica_set.members
            ],
        )  # fmt: skip
        copy.add((copy.epoch, 0, copy.epoch))
        copy.leading.step(EpochStarted(copy.epoch, copy.epoch_start))
        self.offer(copy)

    def on_accepted(  # type: ignore[override]
        self, copy: DrivenCopy, node: int, incarnation: int, epoch: int, end: int
    ) -> None:
        if copy.leading is None or copy.leading.epoch != epoch:
            return
        copy.next[node] = max(copy.next.get(node, 0), end)
        copy.acked[node] = (incarnation, end)
        self.advance(copy, Progressed(incarnation_of(node, incarnation), epoch, Ends(end, end, end)))

    def commit(self, leader: Copy) -> None:
        assert isinstance(leader, DrivenCopy)
        if leader.leading is not None:
            self.advance(leader, Progressed(leader.member.incarnation, leader.epoch, self.ends(leader)))

    def advance(self, copy: DrivenCopy, event: Progressed) -> None:
        assert copy.leading is not None
        moved = copy.leading.step(event).high_watermark
        if moved is None:
            return
        for sequence in range(max(copy.start, copy.high_watermark), moved):
            self.commit_entry(copy, sequence)
        copy.high_watermark = moved
        for producer in (1, 2):
            if producer in copy.numbers:
                self.answer_put(copy, producer)

    # ---- disks and faults -------------------------------------------------------------------------------------------

    def sync(self) -> None:
        copy = self.draw.choice(self.copies)
        if not copy.up:
            return
        self.finish(copy)
        copy.durable = copy.end if self.mode == "fsync" else self.draw.randint(copy.durable, copy.end)
        if copy.role == "leader":
            self.commit(copy)
            self.offer(copy)
        elif copy.role != "candidate":
            self.carry(copy, copy.rules.step(Flushed(self.safe(copy))), copy.speaker)

    def end_process(self, copy: Copy) -> None:
        super().end_process(copy)
        assert isinstance(copy, DrivenCopy)
        copy.standing = copy.leading = None

    def fault(self) -> None:
        """What ended begins anew from what its disk holds."""
        lives = [copy.life for copy in self.copies]
        super().fault()
        for copy, life in zip(self.copies, lives, strict=True):
            if copy.life != life:
                self.begin(copy)
