"""A node that won an epoch in the coordination store, until it leads or knows that it does not.

    swap won ▸ everyone is asked to seal ▸ a majority that may vote has ▸ the best log of all answers is adopted ▸ lead

Only certain copies make the majority; every copy's log may be adopted. When every voter has answered, doubtful ones
count: what was acknowledged lies on a majority, and damage on one of those copies leaves it on another.
Source: docs/decisions/0061.
"""

from __future__ import annotations

from streamkit.replication.agreement import agreement
from streamkit.replication.effects import NOTHING, Adopt, Effects
from streamkit.replication.events import Adopted, Sealed
from streamkit.replication.replica_set import Member, ReplicaSet


class Candidate:
    """replica_set: as it was swapped in: its epoch is the candidate's, its leader is this node.

    accept_loss: an operator has said that copies which may have lost something are to be believed all the same.
    """

    __slots__ = ("_accept_loss", "_answers", "_best", "epoch", "replica_set", "us")

    def __init__(self, replica_set: ReplicaSet, *, accept_loss: bool = False) -> None:
        us = replica_set.named(replica_set.leader)
        assert us is not None, "who leads holds a copy"
        self.us = us
        self.epoch = replica_set.epoch
        self.replica_set = replica_set
        self._accept_loss = accept_loss
        self._answers: dict[Member, Sealed] = {}
        self._best: Sealed | None = None           # whose log is being adopted

    def step(self, event: Sealed | Adopted) -> Effects:
        if isinstance(event, Adopted):
            return self._lead() if self._best is not None else NOTHING
        if event.epoch > self.epoch:
            return Effects(step_down=True)
        if self._best is not None or event.epoch != self.epoch or event.member not in self.replica_set.copies:
            return NOTHING
        self._answers[event.member] = event
        if self.us not in self._answers:
            return NOTHING                         # our own promise is not on disk yet
        return self._adopt() if self.replica_set.is_sealed_by(self._voting()) else NOTHING

    def _voting(self) -> list[Member]:
        answers = self._answers
        if self._accept_loss:
            return list(answers)
        complete = self.is_complete
        return [member for member, answer in answers.items() if answer.certain or (complete and answer.doubtful)]

    @property
    def is_complete(self) -> bool:
        """Whether nobody is left who could say more, or an operator wants no more to be waited for."""
        return self._accept_loss or all(member in self._answers for member in self.replica_set.voters)

    @property
    def certain_end(self) -> int | None:
        """Beyond it nothing was ever acknowledged: no copy of a majority that may vote holds more. None: unknown."""
        certain = {member: answer.log_end for member, answer in self._answers.items() if answer.certain}
        return max(certain.values()) if self.replica_set.is_sealed_by([*certain]) else None

    @property
    def answers(self) -> dict[Member, bool]:
        """Who has sealed, and whether it may vote: for whoever explains why it takes so long."""
        return {member: answer.certain for member, answer in self._answers.items()}

    def _adopt(self) -> Effects:
        ours = self._answers[self.us]
        best = max(self._answers.values(), key=lambda answer: (*answer.last, answer.member == self.us))
        self._best = best
        if best.last == ours.last:
            return self._lead()
        start = agreement(ours.epochs, ours.log_end, best.epochs, best.log_end)
        if start < best.log_start:
            return Effects(adopt=Adopt(best.member.node, best.log_start, best.log_end, reset=True, epochs=best.epochs))
        start = max(start, ours.log_start)
        cut = start if start < ours.log_end else None
        adopt = Adopt(best.member.node, start, best.log_end, reset=False, epochs=best.epochs)
        return Effects(truncate=cut, adopt=adopt)

    def _lead(self) -> Effects:
        """What anybody knew to be committed is committed, and the adopted log holds it."""
        assert self._best is not None
        known = max(answer.high_watermark for answer in self._answers.values())
        return Effects(certain=True, lead=min(known, self._best.log_end))
