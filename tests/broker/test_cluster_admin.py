"""What operators ask of a cluster: what is reported, what is refused, and what is written as wanted."""

import pytest

from streamkit.broker.cluster_admin import NO_CLUSTER, ClusterAdmin
from streamkit.errors import (
    CannotPlace,
    ConnectionFailed,
    InvalidRequest,
    InvalidUse,
    LastCopy,
    NodeInUse,
    NodeNotFound,
    ShardNotFound,
    StreamBusy,
    StreamNotFound,
)
from streamkit.metadata import replica_sets
from streamkit.metadata.members import MemberEntry, Members, NodeEntry
from streamkit.metadata.members import _encode as encode_entry
from streamkit.metadata.memory_store import MemoryStore
from streamkit.metadata.replica_sets import ReplicaSetEntry, ReplicaSets, key_of
from streamkit.model.shard import Shard, even_ranges
from streamkit.model.stream import StreamConfig, StreamDescription, StreamStatus
from streamkit.protocol import messages as m
from tests.metadata.conftest import turned_runtime

STREAM = "orders"
ZONES = {"a": "one", "b": "two", "c": "three", "d": "three"}


def uuid_of(ordinal):
    return (ordinal + 1).to_bytes(16, "big")


class Streams:
    def __init__(self, shards):
        ranges = even_ranges(shards)
        made = tuple(
            Shard(ordinal=n, uuid=uuid_of(n), hash_start=start, hash_end=end, created_ms=0, epoch=0)
            for n, (start, end) in enumerate(ranges)
        )
        self.streams = {
            STREAM: StreamDescription(
                name=STREAM, status=StreamStatus.ACTIVE, config=StreamConfig(shards=shards), created_ms=0,
                map_version=1, shards=made,
            )
        }

    def stream(self, name):
        if name not in self.streams:
            raise StreamNotFound("no", stream=name, near=None)
        return self.streams[name]


class Copies:
    """told: what each node says; a missing one does not answer. node: the one that is asked."""

    def __init__(self, told):
        self.told = told
        self.node = "a"

    def here(self):
        return self.told[self.node]

    async def at(self, node):
        if node not in self.told:
            raise ConnectionFailed("nothing answers", address=node, sent=False)
        return self.told[node]


class Cluster:
    """Four members, a … d in three zones; shards led by a, copies on a, b and c; all held and certain."""

    async def begin(self, shards=1):
        self.runtime = turned_runtime()
        self.store = MemoryStore(self.runtime.clock)
        await self.store.compare_and_swap("cluster/id", 0, b"cafe")
        for node, zone in ZONES.items():
            entry = MemberEntry(node=node, disk="", starts=1, zone=zone, version="1", protocol_max=2)
            await self.store.compare_and_swap(f"members/{node}", 0, encode_entry(entry))
            here = NodeEntry(address=f"{node}:1", peer_address=f"{node}:2", zone=zone, version="1")
            await self.store.compare_and_swap(f"nodes/{node}", 0, encode_entry(here))
        for ordinal in range(shards):
            entry = ReplicaSetEntry(
                stream=STREAM, epoch=3, leader="a", members=tuple((node, node.encode().hex() * 16) for node in "abc")
            )
            await self.store.compare_and_swap(key_of(uuid_of(ordinal)), 0, replica_sets.encode(entry))
        self.members = await Members.open(self.store, self.runtime)
        self.sets = await ReplicaSets.open(self.store)
        self.told = {node: self.says(node, shards if node != "d" else 0) for node in ZONES}
        self.told["a"] = self.says("a", shards, role="leader")
        self.admin = ClusterAdmin(
            node="a", members=self.members, sets=self.sets, streams=Streams(shards), copies=Copies(self.told),
            replicas=3, controller=lambda: "b", store_trouble=lambda: "",
        )
        return self

    def says(self, node, shards, **changes):
        copy = m.CopyInfo(
            shard=b"", role="follower", epoch=3, log_start=0, log_end=100, high_watermark=100, certain=True,
            incarnation=b"",
        )
        fields = {name: getattr(copy, name) for name in copy.__struct_fields__} | changes
        copies = tuple(m.CopyInfo(**fields | {"shard": uuid_of(n)}) for n in range(shards))
        return m.CopiesDescribed(node, 1 << 30, copies)

    def down(self, *nodes):
        for node in nodes:
            del self.members.nodes[node]
            del self.told[node]

    def ask_at(self, node):
        self.admin._node = self.admin._copies.node = node

    def entry(self, ordinal=0):
        return self.sets.entries[uuid_of(ordinal)]

    def change(self, ordinal=0, **changes):
        entry = self.entry(ordinal)
        fields = {name: getattr(entry, name) for name in entry.__struct_fields__} | changes
        self.sets.entries[uuid_of(ordinal)] = ReplicaSetEntry(**fields)

    async def ask(self, message):
        return await self.admin.answers[type(message)](message, 0)

    async def describe(self):
        return await self.ask(m.DescribeCluster())

    async def trouble(self):
        (found,) = (await self.describe()).troubles
        return found

    async def close(self):
        await self.members.close()
        await self.sets.close()


@pytest.fixture
async def cluster():
    made = await Cluster().begin()
    yield made
    await made.close()


# -- how it is ---------------------------------------------------------------------------------------------


async def test_a_healthy_cluster_has_a_row_a_node_and_no_troubles(cluster):
    found = await cluster.describe()

    assert (found.cluster, found.controller, found.shards) == ("cafe", "b", 1)
    assert [(n.node, n.leaders, n.members, n.live, n.answers) for n in found.nodes] == [
        ("a", 1, 1, True, True), ("b", 0, 1, True, True), ("c", 0, 1, True, True), ("d", 0, 0, True, True),
    ]  # fmt: skip
    assert found.troubles == () and found.trouble_counts == {}


async def test_lag_counts_what_the_leader_has_more(cluster):
    cluster.told["b"] = cluster.says("b", 1, log_end=70)

    assert [node.lag_records for node in (await cluster.describe()).nodes] == [0, 30, 0, 0]


async def test_a_silent_node_is_shown_without_what_it_would_tell(cluster):
    del cluster.told["c"]
    row = (await cluster.describe()).nodes[2]

    assert (row.live, row.answers, row.lag_records, row.free_bytes, row.uncertain) == (True, False, None, None, None)


async def test_a_dead_follower_leaves_the_shard_short_and_says_what_to_start(cluster):
    cluster.down("c")
    trouble = await cluster.trouble()

    assert (trouble.stream, trouble.ordinal, trouble.kind) == (STREAM, 0, "short")
    assert trouble.reason == "2 of 3 copies are alive: c is down"
    assert trouble.try_.startswith("start c;") and "drain c" in trouble.try_


async def test_a_dead_leader_is_being_replaced_while_a_majority_lives(cluster):
    cluster.down("a")
    cluster.ask_at("b")
    trouble = await cluster.trouble()

    assert trouble.kind == "no_leader"
    assert "its leader a is down; b and c are alive" in trouble.reason


async def test_without_a_majority_it_says_how_many_must_live_and_which_to_start(cluster):
    cluster.down("b", "c")
    cluster.change(leader="b")
    trouble = await cluster.trouble()

    assert trouble.kind == "no_leader"
    assert "1 of 3 copies are alive, 2 must be" in trouble.reason
    assert trouble.try_ == "start b and c"


async def test_a_shard_that_stalls_because_copies_may_not_vote_says_so(cluster):
    cluster.told["b"], cluster.told["c"] = (cluster.says(node, 1, certain=False) for node in "bc")
    cluster.down("a")
    cluster.ask_at("b")
    trouble = await cluster.trouble()

    assert trouble.kind == "no_leader"
    assert "b and c may not vote" in trouble.reason
    assert trouble.try_ == "start a on its own directory"


async def test_a_node_that_should_lead_and_does_not_is_no_leader(cluster):
    for node in "abc":
        cluster.told[node] = cluster.says(node, 1, certain=False)
    trouble = await cluster.trouble()

    assert trouble.kind == "no_leader"
    assert trouble.reason.startswith("a does not lead it, and a, b and c may not vote: after an unclean end")
    assert "accept-loss" in trouble.try_


async def test_a_loss_is_accepted_only_for_a_shard_that_nobody_leads(cluster):
    with pytest.raises(InvalidRequest, match="a leads orders/0: there is no loss to accept"):
        await cluster.ask(m.AcceptLoss(STREAM, 0))
    for node in "abc":
        cluster.told[node] = cluster.says(node, 1, certain=False)
    await cluster.ask(m.AcceptLoss(STREAM, 0))

    assert cluster.entry().accept_loss


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"target_leader": "c"}, "c shall lead it"),
        ({"target_members": ("a", "b", "d")}, "its copies shall lie on a, b and d"),
        ({"learners": (("d", "00" * 16),)}, "d is being filled"),
        ({"previous": (("a", "00" * 16),)}, "its copies change to a, b and c"),
    ],
)
async def test_a_move_under_way_is_told(cluster, changes, reason):
    cluster.change(**changes)
    trouble = await cluster.trouble()

    assert (trouble.kind, trouble.reason) == ("moving", reason)


async def test_too_few_copies_are_told(cluster):
    cluster.change(members=cluster.entry().members[:2])

    assert (await cluster.trouble()).reason == "it has 2 copies, 3 are wanted"


async def test_the_answer_lists_as_many_troubles_as_asked_for_and_counts_all():
    cluster = await Cluster().begin(shards=20)
    cluster.down("c")
    found = await cluster.ask(m.DescribeCluster(5))
    await cluster.close()

    assert len(found.troubles) == 5
    assert found.trouble_counts == {"short": 20}


# -- what is wanted ----------------------------------------------------------------------------------------


async def test_a_new_leader_is_written_as_wanted_and_asking_twice_changes_nothing(cluster):
    await cluster.ask(m.MoveShard(STREAM, 0, leader="b"))
    first = cluster.entry()
    await cluster.ask(m.MoveShard(STREAM, 0, leader="b"))

    assert (first.target_leader, first.leader, first.epoch) == ("b", "a", 3)
    assert cluster.entry().revision == first.revision


async def test_a_copy_that_moves_keeps_the_others_and_takes_the_leader_along(cluster):
    await cluster.ask(m.MoveShard(STREAM, 0, out="a", into="d"))

    assert cluster.entry().target_members == ("d", "b", "c")
    assert cluster.entry().target_leader == "d"
    assert cluster.entry().members == (await Cluster().begin()).entry().members


@pytest.mark.parametrize(
    ("message", "error", "words"),
    [
        (m.MoveShard("ordres", 0, leader="b"), StreamNotFound, "no"),
        (m.MoveShard(STREAM, 7, leader="b"), ShardNotFound, "shardId-000000000007"),
        (m.MoveShard(STREAM, 0), InvalidRequest, "names either"),
        (m.MoveShard(STREAM, 0, leader="b", out="a", into="d"), InvalidRequest, "names either"),
        (m.MoveShard(STREAM, 0, leader="d"), InvalidRequest, "d holds no copy of orders/0"),
        (m.MoveShard(STREAM, 0, leader="x"), NodeNotFound, '"x"'),
        (m.MoveShard(STREAM, 0, out="d", into="a"), InvalidRequest, "a holds one"),
        (m.MoveShard(STREAM, 0, out="a", into="x"), NodeNotFound, '"x"'),
        (m.DrainNode("x"), NodeNotFound, '"x"'),
        (m.AddNode("x"), NodeNotFound, '"x"'),
        (m.RemoveNode("x"), NodeNotFound, '"x"'),
        (m.RemoveNode("a"), NodeInUse, "a holds copies of 1 shard"),
        (m.RemoveNode("d"), NodeInUse, "d is running"),
    ],
)
async def test_what_cannot_be_done_is_refused_and_changes_nothing(cluster, message, error, words):
    before = dict(cluster.sets.entries), dict(cluster.members.members)

    with pytest.raises(error, match=words) as caught:
        await cluster.ask(message)
    assert caught.value.try_ or error is StreamNotFound
    assert (dict(cluster.sets.entries), dict(cluster.members.members)) == before


async def test_a_node_that_is_down_or_draining_is_given_nothing(cluster):
    await cluster.ask(m.DrainNode("d"))
    with pytest.raises(CannotPlace, match="d is being drained"):
        await cluster.ask(m.MoveShard(STREAM, 0, out="a", into="d"))
    cluster.down("b")
    with pytest.raises(CannotPlace, match="b is down"):
        await cluster.ask(m.MoveShard(STREAM, 0, leader="b"))
    cluster.down("d")
    with pytest.raises(CannotPlace, match="d is down"):
        await cluster.ask(m.AddNode("d"))


async def test_a_shard_that_moves_is_not_sent_elsewhere_meanwhile(cluster):
    cluster.change(target_members=("a", "b", "d"))

    with pytest.raises(StreamBusy, match="moving already"):
        await cluster.ask(m.MoveShard(STREAM, 0, out="a", into="d"))


async def test_draining_is_a_state_that_is_told_and_undone(cluster):
    left = await cluster.ask(m.DrainNode("c"))
    again = await cluster.ask(m.DrainNode("c"))

    assert left == again == m.ShardsMoving(1, 0)
    assert cluster.members.members["c"].state == "draining"
    await cluster.ask(m.DrainNode("c", undo=True))
    assert cluster.members.members["c"].state == "active"


async def test_a_copy_with_nowhere_to_go_stays_but_a_leader_goes(cluster):
    cluster.down("d")

    assert await cluster.ask(m.DrainNode("c")) == m.ShardsMoving(0, 1)
    await cluster.ask(m.DrainNode("c", undo=True))
    assert await cluster.ask(m.DrainNode("a")) == m.ShardsMoving(1, 0)


async def test_a_node_that_is_added_takes_its_share_from_its_own_zone():
    cluster = await Cluster().begin(shards=12)
    moving = await cluster.ask(m.AddNode("d"))
    moved = [entry.target_members for entry in cluster.sets.entries.values() if entry.target_members]
    again = await cluster.ask(m.AddNode("d"))
    await cluster.close()

    assert moving.shards == len(moved) >= 4
    assert all("d" in nodes and not {"c", "d"} <= set(nodes) for nodes in moved), "zone three is in each set once"
    assert again.shards == 0


async def test_the_last_certain_copy_is_not_removed(cluster):
    cluster.told["b"], cluster.told["c"] = (cluster.says(node, 1, certain=False) for node in "bc")
    cluster.down("a")
    cluster.ask_at("b")

    with pytest.raises(LastCopy, match="a holds the last certain copy of orders/0") as caught:
        await cluster.ask(m.RemoveNode("a"))
    assert caught.value.try_ == "start b or c, then look again"


async def test_a_node_that_is_stopped_and_empty_is_forgotten(cluster):
    cluster.down("d")
    await cluster.ask(m.RemoveNode("d"))

    assert "d" not in cluster.members.members
    assert await cluster.store.read("members/d") == (None, 0)


async def test_a_node_by_itself_says_that_there_is_no_cluster():
    for kind, answer in NO_CLUSTER.items():
        with pytest.raises(InvalidUse, match="belongs to no cluster"):
            await answer(kind(*("",) * len(kind.__struct_fields__)), 0)


async def test_a_change_that_others_were_faster_with_is_looked_at_again(cluster):
    entry = cluster.entry()
    other = replica_sets.encode(entry.with_targets(leader="c", members=("a", "b", "c")))
    await cluster.store.compare_and_swap(key_of(uuid_of(0)), entry.revision, other)
    await cluster.ask(m.MoveShard(STREAM, 0, leader="b"))

    assert (cluster.entry().target_leader, cluster.entry().target_members) == ("b", ("a", "b", "c"))


def test_descriptions_travel():
    description = m.ClusterDescribed(
        "c", "b", "", 1, (m.ClusterNode("a", "active", True, True, "", "1", 2, "", "", 0, 0, 0, None, None, None),),
        (m.ClusterTrouble(STREAM, 0, b"u" * 16, "short", "why", "try"),), {"short": 1},
    )  # fmt: skip

    assert m.decode(m.encode(description)) == description
