"""The load strategy: leases lie where their user code finds time.

The signal is the busy share of each lease: time inside user code by wall time, smoothed by the worker over a half-life
of 30 s, sent with its heartbeats. The utilisation of a worker is the sum over its leases, by its weight. CPU time is no
signal: coroutines that wait for a store use none.

Every move costs something, so few are made. `rebalance` acts when the busiest and the idlest worker are 20 points apart
and stops below 10; it leaves workers below 30 % alone, and leases without load, and leases that moved in the last five
minutes; it moves a twentieth of the leases in a round, and rounds are 30 s apart. Each move is simulated first: unless
the busier of the two is better off afterwards, it is not made. So the utilisations, highest first, fall with each move,
and with loads that stay the same it ends.

All functions are pure; `LoadBook` is what an owner of them remembers, and may forget.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from streamkit.leases.assignment import Candidate, Holding

BAND_START = 0.20
BAND_STOP = 0.10
BUSY_MIN = 0.30
COOL_MS = 300_000
ROUND_MS = 30_000
OBSERVED_MS = 30_000                       # a report about less says little
MOVES_SHARE = 0.05


@dataclass(slots=True)
class LoadBook:
    """What is known of one application. Nothing of it is durable: a new coordinator waits before it moves anything.

    loads: by shard, 0 to 1, of leases that were watched for long enough. moved_ms: when a lease got its owner.
    intended: whom a lease is drained for. acting: utilisations were too far apart, and are not yet close.
    """

    round_ms: int
    began_ms: int
    loads: dict[bytes, float] = field(default_factory=dict)
    moved_ms: dict[bytes, int] = field(default_factory=dict)
    intended: dict[bytes, int] = field(default_factory=dict)
    acting: bool = False

    @classmethod
    def new(cls, now_ms: int) -> LoadBook:
        return cls(now_ms, now_ms)

    def note(self, shard: bytes, load: float, observed_ms: int) -> None:
        """What the owner tells. Until it has watched for long enough, what the one before told holds."""
        if observed_ms >= OBSERVED_MS:
            self.loads[shard] = load if 0.0 <= load <= 1.0 else 1.0 if load > 1.0 else 0.0     # 0: also for no number

    def is_cool(self, shard: bytes, now_ms: int) -> bool:
        return now_ms - self.moved_ms.get(shard, self.began_ms) >= COOL_MS

    def forget_others(self, shards: Collection[bytes]) -> None:
        for shard in {*self.loads, *self.moved_ms, *self.intended}.difference(shards):
            self.loads.pop(shard, None)
            self.moved_ms.pop(shard, None)
            self.intended.pop(shard, None)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A lease with an owner; movable: owned, and cool."""

    shard: bytes
    stream: str
    owner: int
    load: float
    movable: bool


class _Utilisation:
    """Of each member, as moves are tried on."""

    def __init__(self, members: Iterable[Candidate]) -> None:
        self.members = {member.session: member for member in members}
        self.sums = dict.fromkeys(self.members, 0.0)
        self.counts = dict.fromkeys(self.members, 0)

    def of(self, session: int, more: float = 0.0) -> float:
        return (self.sums[session] + more) / self.members[session].weight

    def add(self, session: int, load: float, count: int = 1) -> None:
        self.sums[session] += load
        self.counts[session] += count

    def may_take(self, session: int, stream: str) -> bool:
        member = self.members[session]
        return stream in member.streams and (not member.leases_max or self.counts[session] < member.leases_max)


def rebalance(
    leases: Sequence[Loaded], members: Iterable[Candidate], *, acting: bool
) -> tuple[list[tuple[bytes, int]], bool]:
    """One round: (shard, session that is to get it), in order, and whether the next round goes on from 10 points.

    leases: all that have an owner; those of others than `members` count for the size of a round alone.
    """
    used = _Utilisation(members)
    movable: dict[int, list[Loaded]] = {session: [] for session in used.members}
    for lease in leases:
        if lease.owner in movable:
            used.add(lease.owner, lease.load)
            if lease.movable and lease.load > 0.0:
                movable[lease.owner].append(lease)
    moves: list[tuple[bytes, int]] = []
    moves_max = max(1, int(len(leases) * MOVES_SHARE))
    while len(movable) > 1 and len(moves) < moves_max:
        utilisations = sorted(used.of(session) for session in movable)
        apart = utilisations[-1] - utilisations[0]
        if utilisations[-1] < BUSY_MIN or apart < (BAND_STOP if acting else BAND_START):
            return moves, False
        acting = True
        if (found := _best_move(used, movable)) is None:
            break
        lease, to = found
        movable[lease.owner].remove(lease)             # it is not moved twice in a round
        used.add(lease.owner, -lease.load, -1)
        used.add(to, lease.load)
        moves.append((lease.shard, to))
    return moves, acting


def _best_move(used: _Utilisation, movable: dict[int, list[Loaded]]) -> tuple[Loaded, int] | None:
    # From the busiest that can be helped to the idlest that can help: what leaves the busier of both least busy.
    order = sorted(movable, key=lambda session: (used.of(session), session))
    for donor in reversed(order):
        before = used.of(donor)
        if before < BUSY_MIN:
            return None
        for taker in order:
            if before - used.of(taker) < BAND_STOP:
                break
            best: tuple[float, Loaded] | None = None
            for lease in movable[donor]:
                after = max(used.of(donor, -lease.load), used.of(taker, lease.load))
                if after < before and (best is None or after < best[0]) and used.may_take(taker, lease.stream):
                    best = after, lease
            if best is not None:
                return best[1], taker
    return None


def fill(holdings: Sequence[Holding], members: Sequence[Candidate], book: LoadBook) -> list[tuple[bytes, int]]:
    """Grants for leases that are ready: to whom they are meant for, else where there is most time; then by count."""
    used = _Utilisation(members)
    for holding in holdings:
        if holding.owner in used.members and holding.state != "draining":
            used.add(holding.owner, book.loads.get(holding.shard, 0.0))
    grants = []
    for holding in holdings:
        if holding.state != "ready":
            continue
        takers = [session for session in used.members if used.may_take(session, holding.stream)]
        if not takers:
            continue
        taker = book.intended.get(holding.shard, 0)
        if taker not in takers:
            # Differences below a tenth are left to the count, so that leases without load do not pile up.
            taker = min(takers, key=lambda session: (
                int(used.of(session) / BAND_STOP), (used.counts[session] + 1) / used.members[session].weight, session
            ))
        used.add(taker, book.loads.get(holding.shard, 0.0))
        grants.append((holding.shard, taker))
    return grants


def welcome(
    holdings: Sequence[Holding], members: Sequence[Candidate], newcomer: int, book: LoadBook
) -> list[bytes]:
    """Leases to drain for a worker that has just joined, by count: of those alone whose load nobody knows yet.

    So that a fleet which starts together shares its leases at once; later ones are moved by load.
    """
    used = _Utilisation(members)
    unknown: dict[int, list[Holding]] = {}
    for holding in holdings:
        if holding.owner in used.members and holding.state != "draining":
            used.add(holding.owner, 0.0)
            if holding.state == "owned" and holding.shard not in book.loads and holding.owner != newcomer:
                unknown.setdefault(holding.owner, []).append(holding)

    def burden(session: int, more: int = 0) -> float:
        return (used.counts[session] + more) / used.members[session].weight

    drains = []
    donors = sorted(unknown)
    while donors:
        donor = max(donors, key=lambda session: (burden(session), session))
        given = next((holding for holding in reversed(unknown[donor]) if used.may_take(newcomer, holding.stream)), None)
        if given is None or burden(donor) <= burden(newcomer, 1):
            donors.remove(donor)
            continue
        unknown[donor].remove(given)
        used.add(donor, 0.0, -1)
        used.add(newcomer, 0.0)
        drains.append(given.shard)
    return drains
