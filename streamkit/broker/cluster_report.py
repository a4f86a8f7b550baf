"""How the cluster is, in rows for `streamkit cluster status`: its nodes, and the shards that lack something.

    no_leader   nobody takes puts: why, and what brings it back
    short       fewer copies than wanted are alive; puts go on
    uncertain   a copy lives and may not vote yet
    moving      a change of copies or of leader is wanted, or under way

Pure: made from what the store holds and what nodes told of their copies. Called by cluster_admin.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from streamkit.metadata.members import DRAINING, MemberEntry, NodeEntry
from streamkit.metadata.replica_sets import ReplicaSetEntry
from streamkit.protocol import messages as m

NO_LEADER, SHORT, UNCERTAIN, MOVING = "no_leader", "short", "uncertain", "moving"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known at one moment. told: by node, what it said of its copies; those that do not answer are missing.

    replicas: how many copies a shard should have. place_of: shard → (stream, ordinal).
    """

    members: Mapping[str, MemberEntry]
    nodes: Mapping[str, NodeEntry]
    entries: Mapping[bytes, ReplicaSetEntry]
    told: Mapping[str, m.CopiesDescribed]
    replicas: int
    place_of: Mapping[bytes, tuple[str, int]] = field(default_factory=dict)

    def copies_on(self, node: str) -> dict[bytes, m.CopyInfo]:
        told = self.told.get(node)
        return {copy.shard: copy for copy in told.copies} if told is not None else {}


def node_rows(facts: Facts) -> tuple[m.ClusterNode, ...]:
    """One a node that belongs to the cluster, by name; a live one that is about to join is among them."""
    leaders: Counter[str] = Counter()
    members: Counter[str] = Counter()
    learners: Counter[str] = Counter()
    for entry in facts.entries.values():
        leaders[entry.leader] += 1
        members.update(entry.nodes)
        learners.update(node for node, _ in entry.learners)
    lags = _lags(facts)
    rows = []
    for node in sorted({*facts.members, *facts.nodes}):
        member, live, told = facts.members.get(node), facts.nodes.get(node), facts.told.get(node)
        held = facts.copies_on(node)
        listed = [uuid for uuid in held if uuid in facts.entries and node in facts.entries[uuid].nodes]
        rows.append(
            m.ClusterNode(
                node=node, state=member.state if member else "joining", live=live is not None, answers=told is not None,
                zone=member.zone if member else live.zone if live else "",
                version=live.version if live else member.version if member else "",
                protocol_max=member.protocol_max if member else 0,
                address=live.address if live else "", peer_address=live.peer_address if live else "",
                leaders=leaders[node], members=members[node], learners=learners[node],
                uncertain=sum(not held[uuid].certain for uuid in listed) if told is not None else None,
                lag_records=lags.get(node) if told is not None else None,
                free_bytes=told.free_bytes if told is not None else None,
            )
        )
    return tuple(rows)


def _lags(facts: Facts) -> Counter[str]:
    """Records that each node's counted copies lack of what their leaders hold."""
    lags: Counter[str] = Counter(dict.fromkeys(facts.told, 0))
    held = {node: facts.copies_on(node) for node in facts.told}
    for uuid, entry in facts.entries.items():
        leader = held.get(entry.leader, {}).get(uuid)
        if leader is None:
            continue
        for node in entry.nodes:
            if (copy := held.get(node, {}).get(uuid)) is not None:
                lags[node] += max(0, leader.log_end - copy.log_end)
    return lags


def troubles(facts: Facts) -> list[m.ClusterTrouble]:
    """The worst first, then by stream and shard."""
    held = {node: facts.copies_on(node) for node in facts.told}
    order = (NO_LEADER, SHORT, UNCERTAIN, MOVING)
    found = []
    for uuid, entry in facts.entries.items():
        certain = {node: copies[uuid].certain for node, copies in held.items() if uuid in copies}
        leader = held.get(entry.leader, {}).get(uuid)
        leads = entry.leader in facts.nodes and (leader is None or leader.role == "leader")
        if (trouble := _trouble(entry, facts, leads, certain)) is not None:
            kind, reason, step = trouble
            stream, ordinal = facts.place_of.get(uuid, (entry.stream, -1))
            found.append(m.ClusterTrouble(stream, ordinal, uuid, kind, reason, step))
    return sorted(found, key=lambda one: (order.index(one.kind), one.stream, one.ordinal))


def _trouble(
    entry: ReplicaSetEntry, facts: Facts, leads: bool, certain: Mapping[str, bool]
) -> tuple[str, str, str] | None:
    """leads: who should lead does, as far as one can tell. certain: of the copies whose nodes answer."""
    live: Collection[str] = facts.nodes
    dead = [node for node in entry.nodes if node not in live]
    alive = [node for node in entry.nodes if node in live]
    needed = len(entry.nodes) // 2 + 1
    if not leads:
        return (NO_LEADER, *_why_no_leader(entry, alive, dead, needed, certain))
    if moving := _moving(entry):
        return MOVING, moving, "wait: it goes on by itself"
    if dead:
        return (
            SHORT, f"{len(alive)} of {len(entry.nodes)} copies are alive: {_and(dead)} {_is(dead)} down",
            f"start {_and(dead)}; when it is lost for good: streamkit cluster drain {dead[0]}",
        )
    if len(entry.nodes) < facts.replicas:
        usable = sum(member.state != DRAINING for member in facts.members.values())
        step = "start another node" if usable < facts.replicas else "wait: a copy is added by itself"
        return SHORT, f"it has {_copies(len(entry.nodes))}, {facts.replicas} are wanted", step
    if doubtful := [node for node in entry.nodes if certain.get(node) is False]:
        return (
            UNCERTAIN, f"the copy on {_and(doubtful)} may not vote until it holds what the leader holds",
            "wait; streamkit cluster status shows its lag",
        )
    return None


def _why_no_leader(
    entry: ReplicaSetEntry, alive: list[str], dead: list[str], needed: int, certain: Mapping[str, bool]
) -> tuple[str, str]:
    who = "it has no leader yet"
    if entry.leader:
        who = f"{entry.leader} does not lead it" if entry.leader in alive else f"its leader {entry.leader} is down"
    if len(alive) < needed:
        return (
            f"{who}, and {len(alive)} of {len(entry.nodes)} copies are alive, {needed} must be", f"start {_and(dead)}",
        )
    doubtful = [node for node in alive if certain.get(node) is False]
    if len(alive) - len(doubtful) < needed:
        step = f"start {_and(dead)} on its own directory" if dead else (
            "bring back a copy that ended well, or go on with what there is: streamkit cluster accept-loss"
        )
        return (
            f"{who}, and {_and(doubtful)} may not vote: after an unclean end the copy there may lack records that were "
            "acknowledged", step,
        )
    return f"{who}; {_and(alive)} {_is(alive)} alive", "wait: another is being chosen; streamkit cluster status"


def _moving(entry: ReplicaSetEntry) -> str:
    if entry.previous:
        return f"its copies change to {_and(list(entry.nodes))}"
    if entry.learners:
        return f"{_and([node for node, _ in entry.learners])} {_is(list(entry.learners))} being filled"
    if entry.target_members and set(entry.target_members) != set(entry.nodes):
        return f"its copies shall lie on {_and(list(entry.target_members))}"
    if entry.target_leader and entry.target_leader != entry.leader:
        return f"{entry.target_leader} shall lead it"
    return ""


def _and(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _is(some: Collection[object]) -> str:
    return "is" if len(some) == 1 else "are"


def _copies(count: int) -> str:
    return "1 copy" if count == 1 else f"{count} copies"
