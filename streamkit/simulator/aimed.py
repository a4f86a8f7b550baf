"""Harm that is aimed: at whoever leads a shard of the stream, or at a copy that is being made, at that very moment.

What is drawn blindly meets a leader with records that nobody else has only now and then; for finding out whether a rule
is needed these moments are what matters. None of it is in a drawn world: a test names it in `Faults.acts`.

    leader_alone          the leader reaches clients and the store, but no other node
    leader_with_one       the same, and one other copy is on its side
    leader_dies           its process is killed
    leader_loses_power    and perhaps one of the other copies at the same moment
    change_cut_off        a copy moves, and soon the leader and the new copy are cut off from the others
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from streamkit.broker.copy import Copy
from streamkit.protocol import messages as m
from streamkit.simulator.cluster import Cluster, Place
from streamkit.simulator.workload import STREAM, Workload
from streamkit.simulator.world import World

_SECONDS = (0.3, 0.8, 2.0)


@dataclass(slots=True)
class Aim:
    """after, ask, lose_power: the nemesis's own means."""

    world: World
    cluster: Cluster
    workload: Workload
    draw: random.Random
    after: Callable[[float, Callable[[], None]], None]
    ask: Callable[[m.Message], None]
    lose_power: Callable[[list[Place]], None]

    @property
    def acts(self) -> dict[str, Callable[[], None]]:
        return {
            "leader_alone": self.leader_alone,
            "leader_with_one": self.leader_with_one,
            "leader_loses_power": self.leader_loses_power,
            "leader_dies": self.leader_dies,
            "change_cut_off": self.change_cut_off,
        }

    def _leader(self) -> tuple[Place, Copy] | None:
        """Somebody who leads a shard of the stream, and the copy that does."""
        found = [
            (place, copy) for place in self.cluster.places
            if (node := place.serving) is not None and node.cluster is not None
            for copy in node.cluster.copies.copies.values()
            if copy.server is not None and copy.entry.stream == STREAM
        ]  # fmt: skip
        return self.draw.choice(found) if found else None

    def _others(self, copy: Copy, leader: Place) -> list[str]:
        return [member.node for member in copy.replica_set.members if member.node != leader.name]

    def _part(self, side: set[str]) -> None:
        """Cut those nodes off from all the other nodes, for a while."""
        names = [place.name for place in self.cluster.places]
        network, draw = self.world.network, self.draw
        links = [(one, other) for one in names for other in names if (one in side) != (other in side)]
        for link in links:
            network.stall(*link, True)
        reset = draw.random() < 0.3

        def lift() -> None:
            for link in links:
                network.stall(*link, False)
            if reset:
                network.break_some(0.5)

        self.after(draw.choice(_SECONDS) * (0.5 + draw.random()), lift)

    def leader_alone(self) -> None:
        if (found := self._leader()) is not None:
            self._part({found[0].name})

    def leader_with_one(self) -> None:
        if (found := self._leader()) is not None:
            leader, copy = found
            self._part({leader.name, *self.draw.sample(self._others(copy, leader), 1)})

    def leader_dies(self) -> None:
        if (found := self._leader()) is not None:
            self.world.kill(found[0].process)

    def leader_loses_power(self) -> None:
        if (found := self._leader()) is not None:
            leader, copy = found
            draw = self.draw
            names = {leader.name, *draw.sample(self._others(copy, leader), draw.choice((0, 0, 1)))}
            self.lose_power([place for place in self.cluster.places if place.name in names])

    def change_cut_off(self) -> None:
        """A copy moves to a node that has none, and soon the leader and that node are among themselves."""
        if (found := self._leader()) is None:
            return
        leader, copy = found
        draw = self.draw
        others = self._others(copy, leader)
        new = [place.name for place in self.cluster.places if place.name not in (leader.name, *others)]
        if not new or not others:
            return
        ordinal = next(shard.ordinal for shard in self.workload.shards if shard.uuid == copy.uuid)
        into = draw.choice(new)
        self.ask(m.MoveShard(STREAM, ordinal, out=draw.choice(others), into=into))
        self.after(draw.choice((0.01, 0.03, 0.1)) * (0.5 + draw.random()), lambda: self._part({leader.name, into}))
