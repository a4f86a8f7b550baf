"""The count strategy: every worker leases in proportion to its weight, and as few moves as possible.

A pure function of who owns what. A lease stays where it is until its owner would have more for its weight than another
worker that may take it has *with* that lease: among equals, at least two more. Then the excess is drained. Leases that
are draining are counted with whoever will get them, so that a second look in the middle of a move asks for nothing
more.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Candidate:
    """A member as the strategy sees it; leases_max 0: no bound."""

    session: int
    streams: frozenset[str]
    leases_max: int
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Holding:
    """A lease. owner: session or 0; state as in the table. Holdings come in the order of stream and ordinal."""

    shard: bytes
    stream: str
    owner: int
    state: str


@dataclass(slots=True)
class Plan:
    """grants: (shard, session) of leases that are ready; drains: leases whose owner must hand them over."""

    grants: list[tuple[bytes, int]] = field(default_factory=list)
    drains: list[bytes] = field(default_factory=list)


class _Loads:
    """How many leases each member has or will have; of those that may take a stream, whom one more burdens least."""

    def __init__(self, members: Iterable[Candidate]) -> None:
        self.members = {member.session: member for member in members}
        self.loads = dict.fromkeys(self.members, 0)
        self._heap: list[tuple[float, int]] = []

    def freeze(self) -> None:
        self._heap = sorted((self.with_one_more(session), session) for session in self.loads)

    def burden(self, session: int) -> float:
        return self.loads[session] / self.members[session].weight

    def with_one_more(self, session: int) -> float:
        return (self.loads[session] + 1) / self.members[session].weight

    def may_take(self, session: int, stream: str) -> bool:
        member = self.members[session]
        return stream in member.streams and not self.is_full(session)

    def is_full(self, session: int) -> bool:
        return 0 < self.members[session].leases_max <= self.loads[session]

    def least(self, stream: str) -> int:
        """The session, or 0 when nobody may take it."""
        passed = []
        found = 0
        while self._heap:
            burden, session = self._heap[0]
            if self.with_one_more(session) != burden or self.is_full(session):
                heapq.heappop(self._heap)  # stale, or of no use: every change of a load pushes an entry of its own
            elif self.may_take(session, stream):
                found = session
                break
            else:
                passed.append(heapq.heappop(self._heap))
        for entry in passed:
            heapq.heappush(self._heap, entry)
        return found

    def add(self, session: int, count: int) -> None:
        self.loads[session] += count
        heapq.heappush(self._heap, (self.with_one_more(session), session))


def balance(holdings: list[Holding], members: list[Candidate]) -> Plan:
    """What to grant and what to drain. Deterministic in its arguments."""
    plan = Plan()
    loads = _Loads(members)
    if not loads.members:
        return plan
    movable: dict[int, dict[str, list[bytes]]] = {session: {} for session in loads.members}
    for holding in holdings:
        if holding.owner in loads.loads and holding.state != "draining":
            loads.loads[holding.owner] += 1
            if holding.state == "owned":
                movable[holding.owner].setdefault(holding.stream, []).append(holding.shard)
    loads.freeze()
    for holding in holdings:
        if holding.state == "ready" and (session := loads.least(holding.stream)):
            plan.grants.append((holding.shard, session))
            loads.add(session, 1)
    for holding in holdings:
        if holding.state == "draining" and (session := loads.least(holding.stream)):
            loads.add(session, 1)
    # One lease at a time from whoever has most, so that no donor goes below what another still has too many of.
    donors = [(-loads.burden(session), session) for session in loads.members]
    heapq.heapify(donors)
    while donors:
        _, session = heapq.heappop(donors)
        if _shed_one(session, movable[session], loads, plan):
            heapq.heappush(donors, (-loads.burden(session), session))
    return plan


def place(
    freed: list[tuple[bytes, str]], held: Mapping[int, int], members: list[Candidate]
) -> list[tuple[bytes, int]]:
    """Grants for leases that have just become ready; what `balance` would say of them, without a look at all others.

    freed: (shard, stream), in the order of stream and ordinal. held: what each session has and keeps.
    """
    loads = _Loads(members)
    for session in loads.loads:
        loads.loads[session] = held.get(session, 0)
    loads.freeze()
    grants = []
    for shard, stream in freed:
        if session := loads.least(stream):
            grants.append((shard, session))
            loads.add(session, 1)
    return grants


def _shed_one(session: int, movable: dict[str, list[bytes]], loads: _Loads, plan: Plan) -> bool:
    # Drains the newest shard of a stream in which somebody would be better off with it than this one is; else False.
    for stream in sorted(movable):
        poorer = loads.least(stream) if movable[stream] else 0
        if poorer and loads.burden(session) > loads.with_one_more(poorer):
            plan.drains.append(movable[stream].pop())
            loads.add(session, -1)
            loads.add(poorer, 1)
            return True
    return False
