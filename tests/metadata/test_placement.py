"""Where copies lie: apart where that is possible, evenly, and never so that a shard loses its majority."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit.errors import CannotPlace
from streamkit.metadata.placement import Place, choose, loads, plan_leaders, plan_members, plan_spread
from streamkit.metadata.replica_sets import ReplicaSetEntry
from streamkit.replication.replica_set import Member, ReplicaSet

NODES = [f"n{number}" for number in range(9)]


def entries(chosen):
    return {
        number.to_bytes(16, "big"): ReplicaSetEntry.of(
            "s", ReplicaSet(1, one.leader, tuple(Member(node, bytes(16)) for node in one.members))
        )
        for number, one in enumerate(chosen)
    }


def reached(sets, moves):
    """As if every leader had done what was wanted of it."""
    after = dict(sets)
    for move in moves:
        entry = after[move.uuid]
        nodes = move.members or entry.nodes
        leader = move.leader or (entry.leader if entry.leader in nodes else nodes[0])
        after[move.uuid] = ReplicaSetEntry.of(
            "s", ReplicaSet(2, leader, tuple(Member(node, bytes(16)) for node in nodes))
        )
    return after


def places_of(sets, nodes, zones=None, down=()):
    zones, (copies, leads) = zones or {}, loads(sets)
    return [
        Place(node=node, zone=zones.get(node, ""), live=node not in down, copies=copies[node], leads=leads[node])
        for node in nodes
    ]


PLACES = st.dictionaries(
    st.sampled_from(NODES), st.tuples(st.sampled_from(["", "x", "y", "z"]), st.booleans()), min_size=1
).map(lambda drawn: [Place(node=node, zone=zone, live=live) for node, (zone, live) in drawn.items()])


@given(places=PLACES, replicas=st.integers(1, 5), shards=st.integers(1, 40))
def test_new_shards_lie_in_as_many_zones_as_can_be_on_nodes_that_run(places, replicas, shards):
    live = [place.node for place in places if place.live]
    if replicas > len(places) or len(live) <= replicas // 2:
        with pytest.raises(CannotPlace):
            choose(shards, replicas, places)
        return
    chosen = choose(shards, replicas, places)

    zone = {place.node: place.zone or place.node for place in places}
    zones = len({zone[node] for node in (live if len(live) >= replicas else zone)})
    for one in chosen:
        assert len(set(one.members)) == replicas
        assert one.leader in one.members
        assert one.leader in live
        assert sum(node in live for node in one.members) > replicas // 2
        if len(live) == len(places):
            assert len({zone[node] for node in one.members}) == min(replicas, zones)


@given(count=st.integers(1, 9), replicas=st.integers(1, 3), shards=st.integers(1, 60))
def test_on_equal_nodes_copies_and_leaders_are_even(count, replicas, shards):
    if replicas > count:
        return
    copies, leads = loads(entries(choose(shards, replicas, [Place(node=node) for node in NODES[:count]])))
    each = [copies[node] for node in NODES[:count]]
    led = [leads[node] for node in NODES[:count]]

    assert max(each) - min(each) <= 1
    assert max(led) - min(led) <= 2


@given(shards=st.integers(1, 30), zones=st.integers(3, 5))
def test_equal_zones_carry_equal_loads(shards, zones):
    places = [Place(node=node, zone=str(number % zones)) for number, node in enumerate(NODES[: zones * (9 // zones)])]
    copies, _ = loads(entries(choose(shards, 3, places)))
    assert max(copies[place.node] for place in places) - min(copies[place.node] for place in places) <= 1


# Nodes, copies of a shard, shards.
CLUSTERS = st.tuples(st.integers(1, 8), st.integers(1, 3), st.integers(1, 30)).filter(lambda it: it[1] <= it[0])


@given(cluster=CLUSTERS, leaving=st.sets(st.sampled_from(NODES[:8]), max_size=4))
def test_drained_nodes_end_without_copies_where_there_is_room_and_no_shard_loses_one(cluster, leaving):
    count, replicas, shards = cluster
    nodes = NODES[:count]
    sets = entries(choose(shards, replicas, [Place(node=node) for node in nodes]))
    staying = [node for node in nodes if node not in leaving]
    after = reached(sets, plan_members(sets, places_of(sets, staying), leaving=leaving, replicas=replicas))

    for uuid, entry in after.items():
        before = sets[uuid]
        assert len(set(entry.nodes)) == replicas
        assert len(set(entry.nodes) & leaving) == max(0, replicas - len(staying))
        if not set(before.nodes) & leaving:
            assert entry == before
        if set(entry.nodes) - leaving:
            assert entry.leader not in leaving
    if len(staying) >= replicas:
        copies, _ = loads(after)
        assert max(copies.values()) - min(copies[node] for node in staying) <= max(2, shards // 2)


@given(cluster=CLUSTERS, leaving=st.sets(st.sampled_from(NODES[:8]), max_size=4))
def test_a_plan_that_was_carried_out_leaves_nothing_to_plan(cluster, leaving):
    count, replicas, shards = cluster
    sets = entries(choose(shards, replicas, [Place(node=node) for node in NODES[:count]]))
    staying = [node for node in NODES[:count] if node not in leaving]
    for _ in range(2):
        moves = plan_members(sets, places_of(sets, staying), leaving=leaving, replicas=replicas)
        sets = reached(sets, moves)
    assert plan_members(sets, places_of(sets, staying), leaving=leaving, replicas=replicas) == []


def test_a_shard_with_too_few_copies_gets_more_when_nodes_come():
    sets = entries(choose(3, 3, [Place(node="n0")], accept_fewer=True))
    after = reached(sets, plan_members(sets, places_of(sets, NODES[:3]), leaving=(), replicas=3))
    assert {entry.nodes for entry in after.values()} == {("n0", "n1", "n2")}


def test_a_node_that_is_down_takes_no_new_copies():
    sets = entries(choose(4, 3, [Place(node=node) for node in NODES[:3]]))
    places = places_of(sets, ["n1", "n2", "n3"], down=("n3",))
    moves = plan_members(sets, places, leaving={"n0"}, replicas=3)

    assert all(not move.members for move in moves)
    assert {sets[move.uuid].leader for move in moves} == {"n0"}


@given(shards=st.integers(1, 40), down=st.sampled_from([None, *NODES[:4]]))
def test_leaders_even_out_over_the_nodes_that_run_and_then_rest(shards, down):
    nodes = NODES[:4]
    sets = {
        uuid: ReplicaSetEntry.of("s", ReplicaSet(1, entry.nodes[0], entry.replica_set.members))
        for uuid, entry in entries(choose(shards, 3, [Place(node=node) for node in nodes])).items()
    }
    for _ in range(50):
        moves = plan_leaders(sets, places_of(sets, nodes, down=(down,)), moves_max=4)
        assert len(moves) <= 4
        assert all(move.leader != down for move in moves)
        if not moves:
            break
        sets = reached(sets, moves)
    assert moves == []
    leads = Counter(entry.leader for entry in sets.values() if entry.leader != down)
    if down is None:
        assert max(leads.values()) - min(leads[node] for node in nodes) <= 3


@given(shards=st.integers(1, 60), zoned=st.booleans())
def test_an_added_node_gets_its_share_and_no_shard_loses_a_zone(shards, zoned):
    nodes = NODES[:4]
    zones = dict(zip(nodes, "xyzx", strict=True)) if zoned else {}
    sets = entries(choose(shards, 3, [Place(node=node, zone=zones.get(node, "")) for node in nodes[:3]]))
    for _ in range(200):
        moves = plan_spread(sets, places_of(sets, nodes, zones), moves_max=2)
        assert len(moves) <= 2
        if not moves:
            break
        sets = reached(sets, moves)
    assert moves == []
    if zoned:
        assert all(len({zones[node] for node in entry.nodes}) == 3 for entry in sets.values())
    else:
        copies, _ = loads(sets)
        # Leaders stay where they are, so a node that leads everything it holds gives nothing.
        assert copies["n3"] >= min(shards, shards * 3 // 4 - shards // 3 - 2)


def test_a_change_that_is_under_way_is_left_alone():
    (uuid, entry), = entries(choose(1, 3, [Place(node=node) for node in NODES[:3]])).items()
    for busy in (
        entry.with_set(entry.replica_set.changed_to(entry.replica_set.members)),
        entry.with_targets(leader="", members=("n0", "n1", "n4")),
    ):
        sets = {uuid: busy}
        places = places_of(sets, NODES)
        assert plan_members(sets, places, leaving={"n2"}, replicas=3) == []
        assert plan_spread(sets, places, moves_max=9) == []
        assert plan_leaders(sets, places, moves_max=9) == []


def test_a_target_that_leaves_is_given_up_for_another():
    (uuid, entry), = entries(choose(1, 3, [Place(node=node) for node in NODES[:3]])).items()
    sets = {uuid: entry.with_targets(leader="", members=("n0", "n1", "n4"))}
    moves = plan_members(sets, places_of(sets, ["n0", "n1", "n5"]), leaving={"n2", "n4"}, replicas=3)
    assert [move.members for move in moves] == [("n0", "n1", "n5")]
