"""Schedules that random steps find too rarely, told step by step: why a rule is needed.

Each ends well with the rule and badly without it. They run on the model and on the shipped classes.
"""

import random

from tests.replication.model import Copy, Model


class Story:
    """A model whose steps are told: messages arrive when `pass_on` says so, in order, nothing is lost."""

    def __init__(self, *, mode="fsync", without=(), nodes=3, kind=Model):
        self.model = kind(0, mode=mode, without=frozenset(without), nodes=nodes, harm=0.0)
        self.model.draw = _Never()
        self.copies = self.model.copies

    def pass_on(self, *nodes, kinds=("offered", "accepted", "mismatch", "stale", "seal", "sealed")):
        """Deliver what waits for those nodes (all of them: until nothing is left), of those kinds."""
        model = self.model
        while True:
            found = next(
                (at for at, (node, _, message) in enumerate(model.network) if node in nodes and message[0] in kinds),
                None,
            )
            if found is None:
                return
            node, life, message = model.network.pop(found)
            copy = model.copies[node]
            if copy.up and (copy.life == life or not model.on("connection")):
                getattr(model, f"on_{message[0]}")(copy, *message[1:])

    def take(self, kind, node):
        """One message out of the network, to be `give`n later."""
        at = next(i for i, (to, _, message) in enumerate(self.model.network) if to == node and message[0] == kind)
        return self.model.network.pop(at)

    def give(self, held):
        self.model.network.append(held)

    def forget(self):
        self.model.network.clear()

    def elect(self, node, *voters):
        register = self.model.register
        self.model.take_epoch(self.copies[node], register.members, register.previous, register.learners)
        self.pass_on(*voters, kinds=("seal",))
        self.pass_on(node, kinds=("sealed",))
        self.drop(*(set(range(len(self.copies))) - {node, *voters}))

    def drop(self, *nodes):
        self.model.network[:] = [item for item in self.model.network if item[0] not in nodes]

    def replicate(self, leader, *followers):
        self.model.offer(self.copies[leader])
        for _ in range(8):
            self.pass_on(*followers, kinds=("offered",))
            self.pass_on(leader, kinds=("accepted", "mismatch", "stale"))
            if self.copies[leader].role:
                self.model.offer(self.copies[leader])
        self.drop(*range(len(self.copies)))

    def put(self, leader, *followers):
        copy: Copy = self.copies[leader]
        producer = 1
        copy.add((copy.epoch, producer, self.model.wanted[producer]))
        self.sync(leader)
        self.replicate(leader, *followers)

    def sync(self, node):
        copy = self.copies[node]
        copy.durable = copy.end
        if copy.role == "leader":
            self.model.commit(copy)

    def lose_power(self, node):
        self.model.lose_power(self.copies[node])
        self.model.begin(self.copies[node])


class _Never(random.Random):
    """Draws that make nothing happen by chance: followers sync at once, offers go whole and once."""

    def random(self):
        return 0.3

    def choice(self, options):
        return options[-1]

    def randint(self, low, high):
        return low


def settled(**settings):
    """Node 0 leads epoch 1, its start and one put are committed on 0 and 1; 2 has nothing."""
    story = Story(**settings)
    story.elect(0, 1)
    story.sync(0)
    story.put(0, 1)
    assert len(story.model.committed) == 2
    return story


def a_promise_is_lost_with_power(without, kind=Model):
    story = settled(without=without, kind=kind)
    story.elect(2, 1)                                      # 1 promises epoch 2
    story.sync(2)
    story.lose_power(1)
    story.put(0, 1)                                        # the old leader knows nothing of epoch 2
    story.replicate(2, 1)
    story.elect(2, 1)


def an_old_entry_reaches_a_majority_before_its_leader_has_one_of_its_own(without, kind=Model):
    story = Story(without=without, kind=kind)
    story.elect(0, 1)
    story.sync(0)
    story.replicate(0)                                     # epoch 1's start is on 0 alone
    story.elect(2, 1)
    story.sync(2)                                          # epoch 2's start is on 2 alone
    story.forget()
    story.elect(0, 1)                                      # epoch 3 finds epoch 1's start only
    copy = story.copies[0]
    copy.durable = copy.end - 1
    story.model.offer(copy)
    held = [item for item in story.model.network if item[0] == 1]
    story.forget()
    node, life, message = held[0]
    story.give((node, life, (*message[:3], 0, 0, tuple(copy.log[:1]), *message[6:])))
    story.pass_on(1)
    story.pass_on(0)
    story.elect(2, 1)                                      # epoch 2's start is of a newer epoch than epoch 1's


def a_member_is_replaced(story, gone, added):
    """Node 0 leads on; the learner has what 0 had when it was let in."""
    register = story.model.register
    members = tuple((added, 0) if member == (gone, 0) else member for member in register.members)
    story.copies[0].role = ""
    story.model.take_epoch(story.copies[0], members, register.members, ())


def old_members_alone_hold_what_was_committed(without, kind=Model):
    story = settled(without=without, kind=kind, nodes=4)
    a_member_is_replaced(story, 1, 3)                      # 0, 2, 3 now; 2 and 3 hold nothing
    story.forget()
    story.elect(2, 3)


def old_members_are_forgotten_too_early(without, kind=Model):
    story = settled(without=without, kind=kind, nodes=4)
    a_member_is_replaced(story, 1, 3)
    story.pass_on(1, 2, 3, kinds=("seal",))
    story.pass_on(0, kinds=("sealed",))
    story.forget()
    story.model.change()                                   # epoch 2's start is on 0 alone
    story.elect(2, 3)                                      # nobody asks 1, who has the put


def a_message_outlives_the_process_it_was_sent_to(without, kind=Model):
    story = settled(mode="memory", without=without, kind=kind)
    story.model.offer(story.copies[0])
    held = story.take("offered", 1)
    story.forget()
    story.put(0, 1)
    committed = len(story.model.committed)
    story.lose_power(1)                                    # 1 comes back without all of it, and does not vote
    copy = story.copies[1]
    copy.log = list(story.model.committed[: committed - 1])
    copy.durable = 0
    story.give(held)
    story.pass_on(1)                                       # "the leader's log ends where yours ends"
    story.forget()
    story.elect(2, 1)


def a_copy_votes_before_it_has_caught_up(without, kind=Model):
    story = settled(mode="memory", without=without, kind=kind)
    story.put(0, 1)
    story.lose_power(1)
    copy, leader = story.copies[1], story.copies[0]
    copy.log, copy.durable = list(story.model.committed[:1]), 1
    story.model.on_offered(copy, 0, 1, 1, 1, tuple(leader.log[1:2]), leader.high_watermark, 0, leader.end, 0)
    story.forget()
    story.elect(2, 1)


def all_of_a_log_is_removed(without, kind=Model):
    story = Story(without=without, kind=kind)
    story.elect(2, 1)
    story.sync(2)
    for _ in range(3):                                     # epoch 1: long and uncommitted, on 2 alone
        story.copies[2].add((1, 2, 1))
    story.sync(2)
    story.drop(0, 1, 2)
    story.elect(0, 1)                                      # epoch 2: short and committed, on 0 and 1
    story.sync(0)
    story.put(0, 1)
    story.replicate(0, 1)
    for node in (0, 1):
        story.model.trim(story.copies[node], 2)
    story.copies[0].up = False
    story.elect(2, 1)


SCHEDULES = {
    "promise_durable": a_promise_is_lost_with_power,
    "current_epoch": an_old_entry_reaches_a_majority_before_its_leader_has_one_of_its_own,
    "previous_quorum": old_members_alone_hold_what_was_committed,
    "settle_late": old_members_are_forgotten_too_early,
    "connection": a_message_outlives_the_process_it_was_sent_to,
    "vote_late": a_copy_votes_before_it_has_caught_up,
    "remember_epoch": all_of_a_log_is_removed,
}
