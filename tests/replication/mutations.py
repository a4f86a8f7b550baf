"""One function for each rule of `streamkit.replication`: it leaves that rule out of the shipped classes.

Each takes pytest's monkeypatch. `test_driven` drives the classes alone, `tests/simulator` whole clusters of them.
"""

import dataclasses

from streamkit.replication.candidate import Candidate
from streamkit.replication.effects import NOTHING, Answer, Effects, Verdict
from streamkit.replication.events import Promised, Sealed
from streamkit.replication.follower import Follower
from streamkit.replication.leader import Leader
from streamkit.replication.replica_set import ReplicaSet


def no_seal_quorum(patch):
    patch.setattr(ReplicaSet, "is_sealed_by", lambda self, voters: bool(voters))


def previous_members_are_not_asked(patch):
    patch.setattr(
        ReplicaSet, "is_sealed_by",
        lambda self, voters: sum(member in voters for member in self.members) > len(self.members) // 2,
    )  # fmt: skip


def everyone_may_vote(patch):
    step = Candidate.step
    patch.setattr(
        Candidate, "step",
        lambda self, event: step(
            self, dataclasses.replace(event, certain=True) if isinstance(event, Sealed) else event
        ),
    )


def votes_come_back_at_once(patch):
    def at_once(self, offer):
        self.certain = True
        return True

    patch.setattr(Follower, "_may_vote", at_once)


def no_fence(patch):
    offered = Follower._offered

    def unfenced(self, offer):
        if offer.epoch < self.promised:
            offer = dataclasses.replace(offer, epoch=self.promised)
        return offered(self, offer)

    patch.setattr(Follower, "_offered", unfenced)


def promises_are_answered_before_they_are_kept(patch):
    promise = Follower._promise

    def hasty(self, epoch):
        promise(self, epoch)
        return dataclasses.replace(self.step(Promised(epoch)), step_down=True)

    patch.setattr(Follower, "_promise", hasty)


def offers_join_on_anywhere(patch):
    patch.setattr(Follower, "_joins_on", lambda self, offer: True)


def what_differs_stays(patch):
    offered = Follower._offered
    patch.setattr(Follower, "_offered", lambda self, offer: offered(self, dataclasses.replace(offer, differs_at=None)))


def all_that_is_here_is_vouched_for(patch):
    def vouch(self, safe, *, again):
        return None if self.cutting else Answer(Verdict.ACCEPTED, self.promised, safe)

    patch.setattr(Follower, "_vouch", vouch)


def what_is_not_on_disk_is_vouched_for(patch):
    vouch = Follower._vouch
    patch.setattr(Follower, "_vouch", lambda self, safe, *, again: vouch(self, self.log.log_end, again=again))


def old_epochs_are_committed_by_a_majority(patch):
    def advance(self):
        reached = sorted(self._ends.values(), reverse=True)[self._majority - 1]
        if reached <= self.high_watermark:
            return NOTHING
        self.high_watermark = reached
        return Effects(high_watermark=reached)

    patch.setattr(Leader, "_advance", advance)


def one_copy_is_a_majority(patch):
    init = Leader.__init__

    def alone(self, **settings):
        init(self, **settings)
        self._majority = 1

    patch.setattr(Leader, "__init__", alone)


def answers_of_other_lives_count(patch):
    step = Leader.step

    def trusting(self, event):
        known = {name.partition(b"/")[0]: name for name in self._ends}
        name = known.get(getattr(event, "replica", b"").partition(b"/")[0])
        return step(self, event if name is None else dataclasses.replace(event, replica=name))

    patch.setattr(Leader, "step", trusting)
    answered = Candidate.step

    def believing(self, event):
        if isinstance(event, Sealed) and (listed := self.replica_set.named(event.member.node)) is not None:
            event = dataclasses.replace(event, member=listed, certain=True)
        return answered(self, event)

    patch.setattr(Candidate, "step", believing)


def our_own_log_is_adopted(patch):
    def adopt(self):
        self._best = self._answers[self.us]
        return self._lead()

    patch.setattr(Candidate, "_adopt", adopt)


def the_longest_log_is_adopted_whatever_its_epoch(patch):
    patch.setattr(Sealed, "last", property(lambda self: (0, self.log_end)))
