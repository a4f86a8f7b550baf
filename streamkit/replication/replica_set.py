"""Who holds a shard: what the coordination store says of its copies, as a frozen value.

    members    the copies that are counted; a majority of them commits, a majority of them seals
    previous   not empty: a change of members is under way, and whoever wants to lead seals a majority of these, too
    learners   copies that are being filled; never counted

`previous` is what makes a change safe that dies half-way: until the first batch of the new epoch is on a majority
of the new members, the records that only old members hold can still be asked for.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Member:
    """incarnation: 16 bytes, the life of this copy on this disk; a wiped disk comes back with another one."""

    node: str
    incarnation: bytes


@dataclass(frozen=True, slots=True)
class ReplicaSet:
    """epoch: of the leadership; it grows with every change of leader or members."""

    epoch: int
    leader: str
    members: tuple[Member, ...]
    previous: tuple[Member, ...] = ()
    learners: tuple[Member, ...] = ()

    def named(self, node: str) -> Member | None:
        """The copy on that node, counted or not; a member before a learner."""
        for member in (*self.members, *self.previous, *self.learners):
            if member.node == node:
                return member
        return None

    @property
    def voters(self) -> tuple[Member, ...]:
        """Everyone whose seal counts, each once."""
        return tuple(dict.fromkeys((*self.members, *self.previous)))

    @property
    def copies(self) -> tuple[Member, ...]:
        """Everyone that holds the log or is to hold it, each once."""
        return tuple(dict.fromkeys((*self.members, *self.previous, *self.learners)))

    def is_sealed_by(self, voters: Collection[Member]) -> bool:
        """Whether these are a majority of the members, and of the previous ones while there are any."""
        return all(
            sum(member in voters for member in group) > len(group) // 2
            for group in (self.members, self.previous) if group
        )

    def led_by(self, node: str) -> ReplicaSet:
        """The next epoch, led by that node."""
        return replace(self, epoch=self.epoch + 1, leader=node)

    def changed_to(self, members: tuple[Member, ...]) -> ReplicaSet:
        """The next epoch with these members, under the same leader; the old ones are sealed until it is settled."""
        left = tuple(learner for learner in self.learners if learner not in members)
        return replace(self, epoch=self.epoch + 1, members=members, previous=self.members, learners=left)

    def settled(self) -> ReplicaSet:
        """The change is safe on the new members: the same epoch without the previous ones."""
        return replace(self, previous=())
