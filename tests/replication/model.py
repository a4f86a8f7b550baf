"""The rules of replication as a small random model of one shard: an executable specification.

Copies of a log, one register, and a network that drops, repeats and reorders what it carries. Every step is drawn; what
was committed is kept outside the copies and compared at every step, so a rule that is missing shows as `Violation`.
`RULES` names every rule; a model made with some of them `without` is expected to fail for some seed.

    put ▸ append ▸ offered to every copy ▸ accepted, durably ▸ a majority ▸ committed ▸ acknowledged ▸ next put
    swap in the register ▸ seal a majority ▸ adopt the best log ▸ epoch-start entry ▸ committed ▸ lead

A message reaches only the process that was there when it was sent, as over a connection. Entries are
(epoch, producer, number); producer 0 is an epoch start, producer CLOSE the end of the shard.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import NamedTuple

CLOSE = -1
Entry = tuple[int, int, int]
Member = tuple[int, int]                       # node, incarnation

RULES = (
    "eligibility",         # only certain copies count for a seal
    "seal_quorum",         # a candidate seals a majority
    "fence",               # a copy refuses epochs older than its promise
    "promise_durable",     # a promise is on disk before it is answered
    "current_epoch",       # a majority commits only what the leader's own epoch ends
    "incarnation",         # answers count for the life of the copy that the register lists
    "match",               # entries are appended only where the entry before them is the leader's
    "truncate",            # entries that differ from the leader's are cut off
    "longest",             # the best log among the answers is adopted
    "last_epoch_first",    # the best log is the one with the newest last epoch, not the longest one
    "ack_durable",         # what is not on disk is not vouched for
    "ack_matched",         # what was not compared with the leader's log in this epoch is not vouched for
    "learners",            # a copy that is being filled is not counted
    "previous_quorum",     # while members change, a majority of the old ones is sealed as well
    "settle_late",         # the old members are forgotten only when the new epoch's start is committed
    "vote_late",           # a copy votes again only when it holds the leader's whole log, its epoch's start committed
    "connection",          # what was sent to a process does not reach the next one
    "retention",           # only what is committed is removed
    "remember_epoch",      # a log of which all was removed still knows the epoch of its last entry
    "producer_rebuild",    # a leader knows the producers' numbers from its log
    "producer_truncate",   # what is cut off is forgotten about its producers, too
    "closed",              # nothing but epoch starts follows a closing entry
    "children_late",       # children take records when the closing entry is committed, not before
)


class Violation(Exception):
    """A promise was broken."""


class Answer(NamedTuple):
    """What a copy says when it is sealed."""

    certain: bool
    start: int
    before: int
    log: tuple[Entry, ...]
    numbers: dict[int, int]
    places: dict[int, int]

    @property
    def last_epoch(self) -> int:
        return self.log[-1][0] if self.log else self.before


@dataclass(slots=True, eq=False)
class Copy:
    """One node's copy and the process that serves it. Ends are sequences; `log[0]` is at `start`."""

    node: int
    incarnation: int = 0
    log: list[Entry] = field(default_factory=list)
    start: int = 0
    before: int = 0                            # epoch of the entry before `start`, which was removed
    durable: int = 0
    promised: int = 0
    durable_promise: int = 0
    certain: bool = True
    up: bool = True
    life: int = 0                              # of the process
    role: str = ""
    epoch: int = 0
    high_watermark: int = 0
    matched: tuple[int, int] = (0, 0)          # epoch, end
    numbers: dict[int, int] = field(default_factory=dict)     # producer → number of its last entry
    places: dict[int, int] = field(default_factory=dict)      # producer → sequence of its last entry
    acked: dict[int, tuple[int, int]] = field(default_factory=dict)     # node → incarnation, end
    next: dict[int, int] = field(default_factory=dict)
    sealed: dict[Member, Answer] = field(default_factory=dict)
    epoch_start: int = 0

    @property
    def end(self) -> int:
        return self.start + len(self.log)

    @property
    def last_epoch(self) -> int:
        return self.log[-1][0] if self.log else self.before

    def epoch_at(self, sequence: int) -> int:
        if sequence == self.start - 1:
            return self.before
        return self.log[sequence - self.start][0] if self.start <= sequence < self.end else 0

    def add(self, entry: Entry) -> None:
        if entry[1] > 0:
            self.numbers[entry[1]] = entry[2]
            self.places[entry[1]] = self.end
        self.log.append(entry)

    def know_producers(self) -> None:
        """From the log; what was trimmed away is as a snapshot says it, which a cut never reaches."""
        for producer in [producer for producer, place in self.places.items() if place >= self.start]:
            del self.numbers[producer], self.places[producer]
        for sequence, entry in enumerate(self.log, self.start):
            if entry[1] > 0:
                self.numbers[entry[1]], self.places[entry[1]] = entry[2], sequence


@dataclass(frozen=True, slots=True)
class Register:
    """What the coordination store holds; a swap is lost when anything in it changed."""

    epoch: int
    leader: int
    members: tuple[Member, ...]
    previous: tuple[Member, ...] = ()
    learners: tuple[Member, ...] = ()
    children: bool = False

    @property
    def copies(self) -> tuple[Member, ...]:
        return tuple(dict.fromkeys((*self.members, *self.previous, *self.learners)))


class Model:
    """mode: "fsync" or "memory". Harm and changes are chances for each step."""

    def __init__(
        self, seed: int, *, mode: str = "fsync", without: frozenset[str] = frozenset(), nodes: int = 4,
        harm: float = 0.01, elections: float = 0.02, changes: float = 0.004, closing: bool = False,
        kinds: tuple[int, ...] = (7, 7, 2, 2, 3), slack: int = 2, removals: float = 0.004,
    ) -> None:  # fmt: skip
        """kinds: weights of killing a process, losing power, damage, wiping, and a copy that is away for a while.

        slack: how far a learner may be behind when it becomes a member. removals: chance of retention at each step.
        """
        assert without <= set(RULES)
        self.draw = random.Random(f"{seed} {mode}")
        self.mode = mode
        self.without = without
        self.harm, self.elections, self.changes, self.kinds = harm, elections, changes, kinds
        self.slack, self.removals = slack, removals
        self.copies = [Copy(node) for node in range(nodes)]
        self.register = Register(0, -1, tuple((node, 0) for node in range(3)))
        self.seen: dict[int, Register] = {}                # what a leading or standing node knows of the register
        self.network: list[tuple[int, int, tuple[object, ...]]] = []
        self.committed: list[Entry] = []
        self.committed_in: list[int] = []                  # the epoch whose leader did
        self.closed_at: int | None = None
        self.closing = closing
        self.wanted = {1: 1, 2: 1}                         # producer → the number it is putting
        self.acknowledged = 0
        self.elected = 0
        self.changed = 0

    def on(self, rule: str) -> bool:
        return rule not in self.without

    # ---- steps ------------------------------------------------------------------------------------------------------

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        chance = self.draw.random()
        for weight, act in (
            (self.harm, self.fault), (self.elections, self.stand), (self.changes, self.change),
            (self.removals, self.retain), (0.0015 if self.closing else 0.0, self.close), (0.13, self.put),
            (0.06, self.sync),
        ):  # fmt: skip
            chance -= weight
            if chance < 0:
                act()
                break
        else:
            self.deliver()
        if len(self.network) > 80:
            del self.network[:30]

    def quiet(self, steps: int = 2500) -> bool:
        """No more harm; True when a put was acknowledged, or when too few copies may vote to ask for that."""
        for copy in self.copies:
            copy.up = True
        before = self.acknowledged
        for step in range(steps):
            if self.acknowledged > before + 1 or self.closed_at is not None:
                return True
            if step % 500 == 0:
                self.stand()
            elif step % 9 == 0:
                self.put()
            elif step % 5 == 0:
                self.sync()
            else:
                self.deliver(calm=True)
        groups = (self.register.members, self.register.previous)
        voters = {(copy.node, copy.incarnation) for copy in self.copies if copy.certain}
        return any(sum(member in voters for member in group) <= len(group) // 2 for group in groups if group)

    def send(self, node: int, *message: object) -> None:
        self.network.append((node, self.copies[node].life, message))

    def deliver(self, *, calm: bool = False) -> None:
        if not self.network:
            return
        at = 0 if calm else self.draw.randrange(len(self.network))
        node, life, message = self.network[at]
        chance = 1.0 if calm else self.draw.random()
        if chance > 0.15:
            del self.network[at]                           # else it stays, and comes again
        if 0.15 < chance < 0.25:
            return
        copy = self.copies[node]
        if copy.up and (copy.life == life or not self.on("connection")):
            getattr(self, f"on_{message[0]}")(copy, *message[1:])

    # ---- putting ----------------------------------------------------------------------------------------------------

    def put(self) -> None:
        """A producer sends what it has not had acknowledged to somebody who thinks that he leads."""
        leaders = [copy for copy in self.copies if copy.up and copy.role == "leader"]
        if not leaders:
            return
        leader = self.draw.choice(leaders)
        producer = self.draw.choice((1, 2))
        number = self.wanted[producer]
        if leader.numbers.get(producer, 0) >= number:
            self.answer_put(leader, producer)
        elif not self.is_closed(leader):
            leader.add((leader.epoch, producer, number))
        self.offer(leader)

    def is_closed(self, leader: Copy) -> bool:
        return self.on("closed") and any(entry[1] == CLOSE for entry in leader.log)

    def answer_put(self, leader: Copy, producer: int) -> None:
        """The number is in the log; once it is committed the producer hears of it."""
        number, sequence = leader.numbers[producer], leader.places[producer]
        if sequence >= leader.high_watermark or number < self.wanted[producer]:
            return
        there = self.committed[sequence] if sequence < len(self.committed) else None
        if there is None or there[1:] != (producer, number):
            raise Violation(f"{producer}/{number} is acknowledged at {sequence}, where {there} is committed")
        self.wanted[producer] = number + 1
        self.acknowledged += 1

    def offer(self, leader: Copy) -> None:
        register = self.seen[leader.node]
        for node, _ in register.copies:
            if node == leader.node:
                continue
            start = min(leader.next.get(node, leader.end), leader.end) - self.draw.randint(0, 2)
            start = max(leader.start, start)
            entries = leader.log[start - leader.start :][: self.draw.choice((1, 2, 4, 99))]
            self.send(
                node, "offered", leader.node, leader.epoch, start, leader.epoch_at(start - 1), tuple(entries),
                leader.high_watermark, leader.start, leader.end, leader.epoch_start,
            )  # fmt: skip

    def on_offered(
        self, copy: Copy, sender: int, epoch: int, start: int, previous: int, entries: tuple[Entry, ...],
        high_watermark: int, log_start: int, leader_end: int, epoch_start: int,
    ) -> None:  # fmt: skip
        if epoch < copy.promised and self.on("fence"):
            self.send(sender, "stale", copy.promised)
            return
        if epoch > copy.promised:
            self.promise(copy, epoch)
        if copy.role == "leader" and copy.epoch == epoch:
            return
        if copy.matched[0] != epoch:
            copy.matched = (epoch, 0)
        if start > copy.end and start == log_start:
            self.reset(copy, start, previous)
        if self.on("match") and not self.joins_on(copy, start, previous):
            if start == log_start:
                self.reset(copy, start, previous)
            else:
                self.send(sender, "mismatch", copy.node, epoch, min(copy.end, start - 1))
                return
        self.take(copy, start, entries)
        end = start + len(entries)
        copy.matched = (epoch, max(copy.matched[1], end))
        known = min(high_watermark, copy.matched[1], copy.end)
        if known > copy.high_watermark:
            self.check_read(copy, copy.high_watermark, known)
            copy.high_watermark = known
        if copy.start < log_start <= copy.high_watermark:
            self.trim(copy, log_start)
        whole = copy.matched[1] >= leader_end and copy.high_watermark > epoch_start
        if not copy.certain and (whole or not self.on("vote_late")):
            copy.certain = True
            copy.durable = copy.end
        if self.mode == "fsync" and self.draw.random() < 0.5:
            copy.durable = copy.end
        self.vouch(copy, sender)

    def joins_on(self, copy: Copy, start: int, previous: int) -> bool:
        if start > copy.end:
            return False
        return start <= max(copy.start, copy.high_watermark) or copy.epoch_at(start - 1) == previous

    def take(self, copy: Copy, start: int, entries: tuple[Entry, ...]) -> None:
        for sequence, entry in enumerate(entries, start):
            if sequence < copy.start or sequence > copy.end:
                continue
            if sequence < copy.end:
                if copy.log[sequence - copy.start] == entry:
                    continue
                if not self.on("truncate"):
                    continue
                self.cut(copy, sequence)
            copy.add(entry)

    def cut(self, copy: Copy, sequence: int) -> None:
        if sequence < copy.high_watermark:
            raise Violation(f"copy {copy.node} cuts at {sequence}, below its high watermark {copy.high_watermark}")
        del copy.log[sequence - copy.start :]
        copy.durable = min(copy.durable, sequence)
        if self.on("producer_truncate"):
            copy.know_producers()

    def reset(self, copy: Copy, start: int, before: int) -> None:
        """All that is here was trimmed where the leader is. The producers' numbers come with the first entries."""
        copy.log, copy.start, copy.before, copy.durable = [], start, before, start
        copy.matched = (copy.matched[0], start)
        copy.high_watermark = max(copy.high_watermark, start)
        copy.numbers, copy.places = {}, {}
        for sequence, (_, producer, number) in enumerate(self.committed[:start]):
            if producer > 0:
                copy.numbers[producer], copy.places[producer] = number, sequence
        copy.certain = False

    def vouch(self, copy: Copy, leader: int) -> None:
        end = copy.matched[1] if self.on("ack_matched") else copy.end
        if self.mode == "fsync" and self.on("ack_durable"):
            end = min(end, copy.durable)
        self.send(leader, "accepted", copy.node, copy.incarnation, copy.matched[0], end)

    def on_accepted(self, leader: Copy, node: int, incarnation: int, epoch: int, end: int) -> None:
        if leader.role != "leader" or leader.epoch != epoch:
            return
        before = leader.acked.get(node, (incarnation, 0))
        if before[0] != incarnation:
            before = (incarnation, 0)
        leader.acked[node] = (incarnation, max(before[1], end))
        leader.next[node] = max(leader.next.get(node, 0), end)
        self.commit(leader)

    def on_mismatch(self, leader: Copy, node: int, epoch: int, hint: int) -> None:
        if leader.role == "leader" and leader.epoch == epoch:
            leader.next[node] = hint

    def on_stale(self, copy: Copy, promised: int) -> None:
        if copy.role and promised > copy.epoch:
            copy.role = ""

    def commit(self, leader: Copy) -> None:
        register = self.seen[leader.node]
        own = leader.durable if self.mode == "fsync" and self.on("ack_durable") else leader.end
        counted = register.members if self.on("learners") else (*register.members, *register.learners)
        ends = []
        for node, incarnation in counted:
            listed, end = leader.acked.get(node, (incarnation, 0))
            if node == leader.node:
                ends.append(own)
            else:
                ends.append(end if listed == incarnation or not self.on("incarnation") else 0)
        reached = min(sorted(ends, reverse=True)[len(register.members) // 2], leader.end)
        if reached <= leader.high_watermark:
            return
        if reached <= leader.epoch_start and self.on("current_epoch"):
            return
        for sequence in range(leader.high_watermark, reached):
            self.commit_entry(leader, sequence)
        leader.high_watermark = reached
        for producer in (1, 2):
            if producer in leader.numbers:
                self.answer_put(leader, producer)
        if reached > leader.epoch_start and not leader.certain:
            leader.certain, leader.durable = True, leader.end

    def commit_entry(self, leader: Copy, sequence: int) -> None:
        entry = leader.log[sequence - leader.start]
        if sequence < len(self.committed):
            if self.committed[sequence] != entry:
                raise Violation(f"{self.committed[sequence]} at {sequence} becomes {entry} in epoch {leader.epoch}")
            return
        if entry[1] > 0:
            if any(other[1:] == entry[1:] for other in self.committed):
                raise Violation(f"{entry} is committed twice")
            if self.closed_at is not None:
                raise Violation(f"{entry} is committed after the shard was closed at {self.closed_at}")
            if self.register.children:
                raise Violation(f"{entry} is committed when children take records")
        if entry[1] == CLOSE and self.closed_at is None:
            self.closed_at = sequence
        self.committed.append(entry)
        self.committed_in.append(leader.epoch)

    def check_read(self, copy: Copy, start: int, end: int) -> None:
        for sequence in range(max(start, copy.start), end):
            if sequence >= len(self.committed) or self.committed[sequence] != copy.log[sequence - copy.start]:
                raise Violation(f"copy {copy.node} lets {copy.log[sequence - copy.start]} at {sequence} be read")

    # ---- elections --------------------------------------------------------------------------------------------------

    def promise(self, copy: Copy, epoch: int) -> None:
        copy.promised = epoch
        if self.on("promise_durable"):
            copy.durable_promise = epoch
        if copy.role and copy.epoch < epoch:
            copy.role = ""

    def stand(self) -> None:
        """A member takes the next epoch."""
        able = [
            copy for copy in self.copies
            if copy.up and copy.role != "leader" and (copy.node, copy.incarnation) in self.register.members
        ]
        if able:
            copy = self.draw.choice(able)
            register = self.register
            self.take_epoch(copy, register.members, register.previous, register.learners)

    def take_epoch(
        self, copy: Copy, members: tuple[Member, ...], previous: tuple[Member, ...], learners: tuple[Member, ...]
    ) -> None:
        epoch = self.register.epoch + 1
        self.register = Register(epoch, copy.node, members, previous, learners, self.register.children)
        self.seen[copy.node] = self.register
        copy.role, copy.epoch, copy.sealed = "candidate", epoch, {}
        self.promise(copy, epoch)
        self.elected += 1
        if self.draw.random() < 0.05:
            copy.role = ""                                 # it dies between the swap and the seal
            return
        self.answer_seal(copy, copy.node, epoch)
        for node, _ in dict.fromkeys((*members, *previous)):
            if node != copy.node:
                self.send(node, "seal", copy.node, epoch)

    def on_seal(self, copy: Copy, candidate: int, epoch: int) -> None:
        if epoch < copy.promised:
            self.send(candidate, "stale", copy.promised)
            return
        self.promise(copy, epoch)
        self.answer_seal(copy, candidate, epoch)

    def answer_seal(self, copy: Copy, candidate: int, epoch: int) -> None:
        member = (copy.node, copy.incarnation)
        answer = Answer(
            copy.certain, copy.start, copy.before, tuple(copy.log), dict(copy.numbers), dict(copy.places)
        )
        if copy.node == candidate:
            self.on_sealed(copy, member, epoch, answer)
        else:
            self.send(candidate, "sealed", member, epoch, answer)

    def on_sealed(self, copy: Copy, member: Member, epoch: int, answer: Answer) -> None:
        if copy.role != "candidate" or copy.epoch != epoch:
            return
        register = self.seen[copy.node]
        if not self.on("incarnation"):
            member = next((listed for listed in register.copies if listed[0] == member[0]), member)
        if member not in (*register.members, *register.previous):
            return
        copy.sealed[member] = answer
        voters = [one for one, answer in copy.sealed.items() if answer.certain or not self.on("eligibility")]
        groups = (register.members, register.previous if self.on("previous_quorum") else ())
        for group in groups:
            needed = len(group) // 2 + 1 if self.on("seal_quorum") else 1
            if group and sum(one in voters for one in group) < needed:
                return
        self.lead(copy)

    def lead(self, copy: Copy) -> None:
        answers = list(copy.sealed.values())
        if not self.on("longest"):
            answers = [copy.sealed[copy.node, copy.incarnation]] if self.on("incarnation") else answers[:1]
        best = max(answers, key=self.worth)
        for sequence in range(best.start, min(best.start + len(best.log), copy.end)):
            if sequence >= copy.start and copy.log[sequence - copy.start] != best.log[sequence - best.start]:
                copy.durable = min(copy.durable, sequence)
                break
        copy.start, copy.before, copy.log = best.start, best.before, list(best.log)
        copy.durable = max(best.start, min(copy.durable, copy.end))
        if self.on("producer_rebuild"):
            copy.numbers, copy.places = dict(best.numbers), dict(best.places)
        copy.role, copy.acked, copy.next, copy.sealed = "leader", {}, {}, {}
        copy.high_watermark = max(copy.high_watermark, best.start)
        self.check_adopted(copy)
        copy.epoch_start = copy.end
        copy.add((copy.epoch, 0, copy.epoch))
        self.offer(copy)

    def worth(self, answer: Answer) -> tuple[int, int]:
        """What logs are compared by."""
        last = answer.last_epoch if answer.log or self.on("remember_epoch") else 0
        return last if self.on("last_epoch_first") else 0, answer.start + len(answer.log)

    def check_adopted(self, copy: Copy) -> None:
        """Nothing that was committed by an earlier leader is missing where the next one begins."""
        for sequence in range(copy.start, len(self.committed)):
            if self.committed_in[sequence] > copy.epoch:
                return                                     # it was fenced before it began
            there = copy.log[sequence - copy.start] if sequence < copy.end else None
            if there != self.committed[sequence]:
                raise Violation(f"the leader of {copy.epoch} has {there} at {sequence}, not {self.committed[sequence]}")

    # ---- changes of members -----------------------------------------------------------------------------------------

    def leaders_settled(self) -> list[Copy]:
        """Leaders of the register's own epoch whose start is committed: they may change the register."""
        return [
            copy for copy in self.copies
            if copy.up and copy.role == "leader" and self.seen[copy.node] is self.register
            and (copy.high_watermark > copy.epoch_start or not self.on("settle_late"))
        ]  # fmt: skip

    def change(self) -> None:
        """One step of a change: add a learner, make it a member in place of another, or forget the old members."""
        for leader in self.leaders_settled():
            register = self.register
            if register.previous:
                self.swap(leader, Register(register.epoch, register.leader, register.members, (), register.learners))
            elif not register.learners:
                spare = [
                    (copy.node, copy.incarnation) for copy in self.copies
                    if copy.up and (copy.node, copy.incarnation) not in register.members and copy is not leader
                ]  # fmt: skip
                if spare:
                    added = (*register.learners, self.draw.choice(spare))
                    self.swap(leader, Register(register.epoch, register.leader, register.members, (), added))
            else:
                self.replace_member(leader, register)

    def replace_member(self, leader: Copy, register: Register) -> None:
        learner = register.learners[0]
        incarnation, end = leader.acked.get(learner[0], (-1, 0))
        if self.draw.random() < 0.1:
            self.swap(leader, Register(register.epoch, register.leader, register.members))       # given up
            return
        if incarnation != learner[1] or end < leader.end - self.slack:
            return
        others = [member for member in register.members if member[0] not in (leader.node, learner[0])]
        gone = next((member for member in register.members if member[0] == learner[0]), None)
        if gone is None:
            gone = self.draw.choice(others)
        members = tuple(learner if member == gone else member for member in register.members)
        self.changed += 1
        leader.role = ""
        self.take_epoch(leader, members, register.members, ())

    def swap(self, leader: Copy, register: Register) -> None:
        self.register = self.seen[leader.node] = Register(
            register.epoch, register.leader, register.members, register.previous, register.learners,
            self.register.children,
        )  # fmt: skip

    # ---- the end of the shard, and of old entries --------------------------------------------------------------------

    def close(self) -> None:
        """A leader closes the shard; once that is committed, its children take records."""
        for leader in self.copies:
            if not leader.up or leader.role != "leader":
                continue
            closing = [sequence for sequence, entry in enumerate(leader.log, leader.start) if entry[1] == CLOSE]
            if not closing:
                leader.add((leader.epoch, CLOSE, 0))
                self.offer(leader)
            elif self.seen[leader.node] is self.register and (
                closing[0] < leader.high_watermark or not self.on("children_late")
            ):
                register = self.register
                self.register = self.seen[leader.node] = Register(
                    register.epoch, register.leader, register.members, register.previous, register.learners, True
                )

    def retain(self) -> None:
        """A leader removes what is old: committed, and of no put that may still be repeated."""
        leaders = [copy for copy in self.copies if copy.up and copy.role == "leader"]
        if not leaders:
            return
        leader = self.draw.choice(leaders)
        limit = leader.high_watermark if self.on("retention") else leader.end
        if any(entry[1] == CLOSE for entry in leader.log):
            return
        self.trim(leader, self.draw.randint(leader.start, max(leader.start, limit)))

    def trim(self, copy: Copy, start: int) -> None:
        copy.before = copy.epoch_at(start - 1)
        del copy.log[: start - copy.start]
        copy.start = start
        copy.durable = max(copy.durable, start)
        if start > len(self.committed):
            raise Violation(f"copy {copy.node} removes up to {start}, but {len(self.committed)} are committed")

    # ---- disks and faults -------------------------------------------------------------------------------------------

    def sync(self) -> None:
        copy = self.draw.choice(self.copies)
        if not copy.up:
            return
        copy.durable = copy.end if self.mode == "fsync" else self.draw.randint(copy.durable, copy.end)
        if copy.role == "leader":
            self.commit(copy)
            self.offer(copy)
        elif copy.matched[0] == copy.promised:
            leader = next((one for one in self.copies if one.role == "leader" and one.epoch == copy.promised), None)
            if leader is not None:
                self.vouch(copy, leader.node)

    def fault(self) -> None:
        copy = self.draw.choice(self.copies)
        if not copy.up:
            copy.up = True
            return
        harms = (self.end_process, self.lose_power, self.rot, self.wipe, self.leave)
        self.draw.choices(harms, self.kinds)[0](copy)
        copy.up = self.draw.random() < 0.5

    def begin(self, copy: Copy) -> None:
        """A new process on what the disk holds; there is nothing to take up."""

    def leave(self, copy: Copy) -> None:
        """Only its absence hurts."""

    def end_process(self, copy: Copy) -> None:
        copy.life += 1
        copy.role = ""
        copy.matched = (0, 0)
        copy.high_watermark = copy.start

    def lose_power(self, copy: Copy) -> None:
        self.end_process(copy)
        kept = self.draw.randint(copy.durable, copy.end)
        del copy.log[kept - copy.start :]
        copy.promised = copy.durable_promise
        copy.know_producers()
        if self.mode != "fsync":
            copy.certain = False

    def rot(self, copy: Copy) -> None:
        """The end of the log is damaged; recovery cuts it off and says that it did."""
        if not self.minority_would_suffer(copy):
            return
        self.end_process(copy)
        kept = self.draw.randint(max(copy.start, copy.end - 3), copy.end)
        if kept < copy.end:
            del copy.log[kept - copy.start :]
            copy.durable = min(copy.durable, kept)
            copy.certain = False
            copy.know_producers()

    def wipe(self, copy: Copy) -> None:
        """Another disk: an empty copy with an incarnation of its own, which promises what the register says."""
        if not self.minority_would_suffer(copy):
            return
        self.end_process(copy)
        copy.log, copy.start, copy.before, copy.durable, copy.high_watermark = [], 0, 0, 0, 0
        copy.numbers, copy.places = {}, {}
        copy.incarnation += 1
        if self.on("incarnation"):
            copy.certain = False
            copy.promised = copy.durable_promise = self.register.epoch
        else:
            copy.certain = True
            copy.promised = copy.durable_promise = 0

    def minority_would_suffer(self, copy: Copy) -> bool:
        """Whether enough others are whole: a majority that loses what it vouched for is beyond any protocol."""
        whole = {(one.node, one.incarnation) for one in self.copies if one.certain and one is not copy}
        groups = [group for group in (self.register.members, self.register.previous) if group]
        return all(sum(member in whole for member in group) > len(group) // 2 for group in groups)
