"""The leader of one epoch: from how far each copy reaches to how far readers may read.

    high watermark = the end that a majority holds, if its last batch is of this epoch;
                     else the end that every copy holds, counted or not.

A majority alone does not do for batches of an older epoch: a copy outside it may hold newer ones, win the
next election and take them back. Once a batch of our own epoch lies above them on a majority, no such copy can
win; and what *every* copy holds nobody can win without. Every copy whose log may be adopted, that is: previous members
and learners, too. The second rule is what lets a single copy serve its recovered log before the first put of the new
epoch.
Called by the broker's shard_server. Source: docs/decisions/0020.
"""

from __future__ import annotations

from collections.abc import Collection

from streamkit.model.stream import Durability
from streamkit.replication.effects import NOTHING, Effects
from streamkit.replication.events import EpochStarted, Progressed
from streamkit.replication.replica import Ends


class Leader:
    """Leadership of one shard for one epoch. The owner makes a new one for the next epoch."""

    __slots__ = ("_ends", "_majority", "_others", "_replica", "durability", "epoch", "epoch_start", "high_watermark")

    def __init__(
        self, *, epoch: int, replica: bytes, replicas: dict[bytes, Ends], durability: Durability = Durability.FSYNC,
        high_watermark: int = 0, others: Collection[bytes] = (),
    ) -> None:  # fmt: skip
        """replica: this node's own copy, one of `replicas`; their ends as known when the epoch began.

        others: copies that are not counted, but whose log the next leader may adopt.
        high_watermark: what a copy knew to be committed, when this epoch began.
        """
        assert replica in replicas, "a leader holds a copy itself"
        self.epoch = epoch
        self.durability = durability
        self.epoch_start: int | None = None      # None: nothing of this epoch was appended yet
        self._replica = replica
        self._ends = {name: ends.at(durability) for name, ends in replicas.items()}
        self._others = dict.fromkeys(others, 0)
        self._majority = len(replicas) // 2 + 1
        self.high_watermark = max(high_watermark, self._held_by_all())

    @property
    def copies_needed(self) -> int:
        """So many copies hold whatever is acknowledged; with durability `leader` its memory alone."""
        return 1 if self.durability is Durability.LEADER else self._majority

    def step(self, event: Progressed | EpochStarted) -> Effects:
        """Late, repeated and foreign news change nothing: networks do that."""
        if event.epoch != self.epoch:
            return NOTHING
        if isinstance(event, EpochStarted):
            assert self.epoch_start in (None, event.start), "an epoch starts once"
            assert event.start >= self.high_watermark, "what readers saw is not of a later epoch"
            self.epoch_start = event.start
            return self._advance()
        end = event.ends.at(self.durability)
        ends = self._ends if event.replica in self._ends else self._others
        if end <= ends.get(event.replica, end):
            return NOTHING
        ends[event.replica] = end
        return self._advance()

    def _advance(self) -> Effects:
        ends = sorted(self._ends.values(), reverse=True)
        reached = ends[self._majority - 1]
        if self.epoch_start is None or reached <= self.epoch_start:
            reached = self._held_by_all()
        if reached <= self.high_watermark:
            return NOTHING
        self.high_watermark = reached
        return Effects(high_watermark=reached)

    def _held_by_all(self) -> int:
        return min(*self._ends.values(), *self._others.values(), 1 << 64)
