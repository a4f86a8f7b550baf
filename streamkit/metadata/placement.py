"""Where copies lie and who leads: pure choices over nodes, zones and load.

    choose         members and a leader for new shards
    plan_members   targets for shards that lose a node (drained, removed, long dead) or have too few copies
    plan_spread    targets that even out the number of copies, as for a node that was added
    plan_leaders   targets that even out the number of led shards

Copies of a shard lie in as many zones as there are, then on the nodes with the fewest copies; a node without a zone is
a zone of its own. The same input gives the same answer. Called by the cluster's catalog and the controller.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from streamkit.errors import CannotPlace
from streamkit.metadata.replica_sets import ReplicaSetEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A node that may hold copies. copies, leads: what it has or is to have."""

    node: str
    zone: str = ""
    live: bool = True
    copies: int = 0
    leads: int = 0


@dataclass(frozen=True, slots=True)
class Chosen:
    """For one new shard. The leader is one of the members."""

    members: tuple[str, ...]
    leader: str


@dataclass(frozen=True, slots=True)
class Move:
    """Targets to write. members: empty: as they are. leader: empty: whoever."""

    uuid: bytes
    members: tuple[str, ...] = ()
    leader: str = ""


class _Load:
    """Copies and leads while they are handed out."""

    def __init__(self, places: Iterable[Place]) -> None:
        self.places = {place.node: place for place in sorted(places, key=lambda place: place.node)}
        self.copies = Counter({place.node: place.copies for place in self.places.values()})
        self.leads = Counter({place.node: place.leads for place in self.places.values()})

    def zone(self, node: str) -> str:
        place = self.places.get(node)
        return place.zone if place is not None and place.zone else f"\0{node}"

    def next_member(self, taken: Sequence[str], *, live: bool) -> str | None:
        """The best node for one more copy; live: only those that are alive."""
        zones = Counter(self.zone(node) for node in taken)
        free = [place for node, place in self.places.items() if node not in taken and (place.live or not live)]
        best = min(
            free, default=None,
            key=lambda place: (zones[self.zone(place.node)], not place.live, self.copies[place.node], place.node),
        )
        return None if best is None else best.node

    def next_leader(self, members: Sequence[str]) -> str:
        """Of the live members, who leads least; "" when none lives."""
        live = [node for node in members if node in self.places and self.places[node].live]
        return min(live, default="", key=lambda node: (self.leads[node], members.index(node)))


def choose(shards: int, replicas: int, places: Sequence[Place], *, accept_fewer: bool = False) -> list[Chosen]:
    """Members and leader for each of `shards` new shards. A node that is down is taken when there are no others, and
    never so many that a shard could not commit.

    accept_fewer: with fewer nodes than replicas, as many copies as there are nodes. Raises CannotPlace.
    """
    load = _Load(places)
    count = min(replicas, len(places)) if accept_fewer else replicas
    live = sum(place.live for place in places)
    if count == 0 or count > len(places) or live <= count // 2:
        raise CannotPlace(
            f"{replicas} copies need {replicas} nodes, a majority of them running: "
            f"there are {len(places)} that take copies, {live} of them running",
            try_="add nodes, or set cluster.replicas to what there is", replicas=replicas, nodes=len(places), live=live,
        )
    return [_choose_one(load, count) for _ in range(shards)]


def _choose_one(load: _Load, count: int) -> Chosen:
    members: list[str] = []
    for _ in range(count):
        down_max = (count - 1) // 2
        down = sum(not load.places[node].live for node in members)
        node = load.next_member(members, live=down >= down_max)
        assert node is not None, "counted before"
        members.append(node)
    for node in members:
        load.copies[node] += 1
    leader = load.next_leader(members)
    load.leads[leader] += 1
    return Chosen(tuple(members), leader)


def loads(sets: Mapping[bytes, ReplicaSetEntry]) -> tuple[Counter[str], Counter[str]]:
    """(copies, leads) of each node, with targets counted as if they were reached; a first member is to lead."""
    copies: Counter[str] = Counter()
    leads: Counter[str] = Counter()
    for entry in sets.values():
        copies.update(entry.target_members or entry.nodes)
        leads[entry.target_leader or entry.leader or entry.nodes[0]] += 1
    return copies, leads


def plan_members(
    sets: Mapping[bytes, ReplicaSetEntry], places: Sequence[Place], *, leaving: Collection[str], replicas: int
) -> list[Move]:
    """Each shard keeps its number of copies, or gets up to `replicas`. A leaving node for which there is no other place
    stays a member; a leaving leader hands over in any case when a member can take it."""
    load = _Load(places)
    moves = []
    for uuid, entry in sorted(sets.items()):
        if entry.previous or (entry.target_members and not set(entry.target_members) & set(leaving)):
            continue                                       # one change at a time
        members = _members_without(load, entry.nodes, leaving, replicas)
        leader = ""
        if entry.leader in leaving:
            staying = [node for node in members if node not in leaving]
            leader = load.next_leader([node for node in staying if node in entry.nodes] or staying)
        if set(members) == set(entry.target_members or entry.nodes) and leader in ("", entry.target_leader):
            continue
        load.copies.update(node for node in members if node not in entry.nodes)
        load.leads[leader] += 1                            # "" collects what nobody can take
        # A target that cannot be reached gives way to the members that there are.
        moves.append(Move(uuid, () if members == entry.nodes and not entry.target_members else members, leader))
    return moves


def _members_without(load: _Load, nodes: tuple[str, ...], leaving: Collection[str], replicas: int) -> tuple[str, ...]:
    members = [node for node in nodes if node not in leaving]
    unplaced = [node for node in nodes if node in leaving]
    while len(members) < max(len(nodes), replicas):
        node = load.next_member([*members, *unplaced], live=True)
        if node is None:
            break
        members.append(node)
    while len(members) < len(nodes):
        members.append(unplaced.pop(0))                    # nobody else: better a leaving copy than one fewer
    return nodes if set(members) == set(nodes) else tuple(members)


def plan_spread(sets: Mapping[bytes, ReplicaSetEntry], places: Sequence[Place], *, moves_max: int) -> list[Move]:
    """From the fullest node to the emptiest live one, while they are further apart than a tenth of the mean, and two.

    A move never lessens the number of zones that a shard lies in, nor takes its leader.
    """
    load = _Load(places)
    moves: dict[bytes, Move] = {}
    live = [node for node, place in load.places.items() if place.live]
    band = max(2, sum(load.copies[node] for node in live) // max(1, 10 * len(live)))
    while live and len(moves) < moves_max:
        emptiest = min(live, key=lambda node: (load.copies[node], node))
        found = None
        for fullest in sorted(live, key=lambda node: (-load.copies[node], node)):
            if load.copies[fullest] - load.copies[emptiest] <= band:
                break
            found = _movable(load, sets, moves, fullest, emptiest)
            if found is not None:
                break
        if found is None:
            break
        moves[found.uuid] = found
        load.copies[fullest] -= 1
        load.copies[emptiest] += 1
    return list(moves.values())


def _movable(
    load: _Load, sets: Mapping[bytes, ReplicaSetEntry], moves: Mapping[bytes, Move], giver: str, taker: str
) -> Move | None:
    for uuid, entry in sorted(sets.items()):
        nodes = entry.nodes
        if uuid in moves or entry.previous or entry.target_members or entry.learners:
            continue
        if giver not in nodes or taker in nodes or giver == entry.leader:
            continue
        members = tuple(taker if node == giver else node for node in nodes)
        if len({load.zone(node) for node in members}) >= len({load.zone(node) for node in nodes}):
            return Move(uuid, members, entry.target_leader)
    return None


def plan_leaders(sets: Mapping[bytes, ReplicaSetEntry], places: Sequence[Place], *, moves_max: int) -> list[Move]:
    """From nodes that lead more than their share to members that lead less, outside a dead band of a tenth, and one."""
    load = _Load(places)
    live = [node for node, place in load.places.items() if place.live]
    led = {node: [uuid for uuid, entry in sorted(sets.items()) if entry.leader == node] for node in live}
    band = max(1, sum(len(uuids) for uuids in led.values()) // max(1, 10 * len(live)))
    moves: list[Move] = []
    for giver in sorted(live, key=lambda node: (-load.leads[node], node)):
        for uuid in led[giver]:
            entry = sets[uuid]
            if len(moves) >= moves_max:
                return moves
            if entry.previous or entry.target_members or entry.target_leader not in ("", entry.leader):
                continue
            taker = load.next_leader([node for node in entry.nodes if node != giver])
            if taker and load.leads[giver] - load.leads[taker] > band:
                load.leads[giver] -= 1
                load.leads[taker] += 1
                moves.append(Move(uuid, (), taker))
    return moves
