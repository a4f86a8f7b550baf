"""Whole fleets over hours: each lease moves once when it must, and not at all when nothing happens."""

import random

from streamkit.leases import events
from streamkit.leases.applications import Applications
from streamkit.leases.membership import heartbeat_ms
from tests.leases.test_applications import MEMBERSHIP_MS, join, owned, stream


class Fleet:
    """Workers that do what they are told at once; `moves` counts grants, `busy` is who owns what."""

    def __init__(self, shards: int) -> None:
        self.machine = Applications()
        self.machine.genesis()
        self.found = [stream("s", min(shards, 256)), *(
            [stream(f"t{n}", 256) for n in range((shards - 1) // 256)] if shards > 256 else []
        )]
        self.streams = tuple(each.name for each in self.found)
        self.held: dict[str, dict[bytes, int]] = {}
        self.sessions: dict[str, int] = {}
        self.moves = 0
        self.now_ms = 0

    def join(self, name: str) -> None:
        view = join(self.machine, name, found=self.found, streams=self.streams, now_ms=self.now_ms)
        self.sessions[name] = view.session
        self.held[name] = {}
        self._learn(name, view)

    def leave(self, name: str) -> None:
        """In order: what it has is released one by one, then it says goodbye."""
        session = self.sessions.pop(name)
        for lease in list(self.held.pop(name).items()):
            self.machine.step(events.Release("app", [lease], self.now_ms, session))
        self.machine.step(events.Leave("app", session, self.now_ms))

    def beat(self) -> bool:
        """A heartbeat of each; whether anything moved."""
        moved = False
        for name, session in self.sessions.items():
            view = self.machine.step(events.Beat("app", session, list(self.held[name].items()), 0, self.now_ms)).view
            moved |= not view.empty
            self._learn(name, view)
        return moved

    def settle(self, seconds_max: float) -> None:
        began_ms = self.now_ms
        while self.beat():
            self.now_ms += 100
            self.machine.step(events.Tick(self.now_ms))
        assert self.now_ms - began_ms < seconds_max * 1000

    def _learn(self, name, view) -> None:
        held = self.held[name]
        for shard in view.lost:
            held.pop(shard, None)
        for shard, lease_epoch in owned(view):
            held[shard] = lease_epoch
            self.moves += 1
        for shard in view.draining:
            self.machine.step(events.Release("app", [(shard, held.pop(shard))], self.now_ms))

    def shares(self) -> list[int]:
        return sorted(len(held) for held in self.held.values())


def test_a_thousand_shards_are_shared_by_twenty_workers_and_move_once_at_each_join_and_leave():
    """Acceptance: balanced within ten simulated seconds; a lease moves at most once at a join or leave."""
    fleet = Fleet(1_024)
    for number in range(20):
        before, moves = {s: n for n, held in fleet.held.items() for s in held}, fleet.moves
        fleet.join(f"w{number}")
        fleet.settle(10)
        after = {s: n for n, held in fleet.held.items() for s in held}
        assert len(after) == 1_024
        assert fleet.moves - moves == sum(before.get(shard) != name for shard, name in after.items())
        assert all(name == f"w{number}" for shard, name in after.items() if before.get(shard) != name)
    assert fleet.shares() == [51] * 16 + [52] * 4

    held, moves = len(fleet.held["w7"]), fleet.moves
    fleet.leave("w7")
    fleet.settle(10)
    assert fleet.moves - moves == held, "only what it had moves, and once"
    assert fleet.shares()[-1] - fleet.shares()[0] <= 1


def test_an_idle_fleet_moves_nothing_for_a_day():
    """Acceptance: consumer 9: twenty-four simulated hours without load, no lease moves after the first
    balance."""
    fleet = Fleet(60)
    for number in range(7):
        fleet.join(f"w{number}")
    fleet.settle(10)
    moves, epochs = fleet.moves, {name: dict(held) for name, held in fleet.held.items()}

    for _ in range(24 * 3_600_000 // heartbeat_ms(MEMBERSHIP_MS)):
        fleet.now_ms += heartbeat_ms(MEMBERSHIP_MS)
        fleet.machine.step(events.Tick(fleet.now_ms))
        assert not fleet.beat()

    assert fleet.moves == moves and fleet.held == epochs


def test_ten_workers_are_replaced_one_after_the_other_and_every_shard_waits_for_nobody():
    """Acceptance: a rolling deploy; each shard has an owner again in the step in which it was released."""
    fleet = Fleet(100)
    for number in range(10):
        fleet.join(f"old{number}")
    fleet.settle(10)
    moves = fleet.moves
    order = random.Random(1).sample(range(10), 10)
    for number in order:
        fleet.leave(f"old{number}")
        rows = fleet.machine.table.applications["app"].leases.owners()
        assert all(session for _, session, _ in rows), "no shard is without an owner"
        fleet.settle(2)
        fleet.join(f"new{number}")
        fleet.settle(2)

    assert fleet.shares() == [10] * 10
    assert fleet.moves - moves <= 10 * 2 * 11, "those of the worker that left, and its share for the new one"
