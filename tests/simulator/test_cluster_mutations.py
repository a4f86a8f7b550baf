"""Every rule of the protocol left out in turn, in whole clusters: what clients and the watch see must give it away.

`cluster_mutations.py` holds one function a rule; the table `RULES` says which rule of the design it leaves out
(R1 … R8, and what docs/decisions 0020, 0061 to 0063 add), in which world its loss shows, and as what. The worlds are
composed for it (`streamkit/simulator/aimed.py`): drawn ones meet the right moment too rarely. Each mutation may take a
few seeds; the same worlds with every rule in place stay clean.

Rules that whole runs did not show the need of, and where it is shown instead:

    a batch of one's own epoch commits older ones  R3, 0020: both travel in one section, the moment between is short;
                                                   tests/replication: `current_epoch`
    a promise is on disk before it is told         R4: the new leader's first batches carry its epoch to the disk at
                                                   once; tests/replication: `promise_durable`
    previous members are sealed                    R7, 0061: the new one holds what the leader had when it was let in,
                                                   but for one trip; tests/replication: `previous_quorum`
    "every copy" means previous ones, too          0020, 0061: the same moment; tests/replication/test_leader
    answers of other epochs and lives do not count R2, R6: a connection ends with the process, and one of another life
                                                   is a learner first; tests/replication: `connection`, `incarnation`
    doubtful copies vote when all have answered    0061: they have what they vouched for unless the medium failed, too;
                                                   tests/replication/test_doubt
    children wait for the end of their parent      a lost end is written again before anybody puts; tests/replication:
                                                   `children_late`
    who stands, and when                           0062: a matter of liveness; a mistake costs a moment, never a record

Tried in a few dozen runs each without being seen in one; the tests named here fail without them:

    what differs from the adopted log is cut       R4: the log refuses what does not join on;
                                                   tests/replication/test_driven
    what is adopted is what was sealed             R4: tests/broker/test_copy
    a swap whose answer was lost is read again     tests/metadata/test_replica_sets
    a learner has caught up before it is a member  R7: tests/broker/test_cluster
    a change of members is a new epoch             R7: tests/replication/test_replica_set
    a damaged copy does not vote                   R5: tests/broker/test_copy_votes
    a repeated put waits for the first             1.6: tests/broker/test_cluster
    a former leader's coordinator writes no more   R8: tests/broker/test_cluster
"""

import copy
from dataclasses import dataclass

import pytest

from streamkit.simulator.disk import DiskFaults
from streamkit.simulator.faults import Faults
from streamkit.simulator.network import NetworkFaults
from streamkit.simulator.run import run
from tests.replication import mutations as rules
from tests.simulator import cluster_mutations as without

SEEDS_MAX = 40                         # most are seen in the first or second, the rarest in one of ten
NEAR, FAR = NetworkFaults(delay_seconds=0.002), NetworkFaults(delay_seconds=0.005)
UNEVEN = NetworkFaults(delay_seconds=0.002, slow=0.3, slow_seconds=0.05)
BREAKING = NetworkFaults(delay_seconds=0.005, broken=0.01)
LOST = ("committed", "is not at", "is there no more", "fell from", "differ between")


def world(acts, count, **settings):
    usual = {
        "nodes": 3, "workers": 0, "shards": 1, "producers": 3, "keys": 4, "suspect_ms": 300, "busy_seconds": 2.0,
        "records": 400, "network": NEAR, "disk": DiskFaults(sync_seconds=0.01),
    }  # fmt: skip
    return Faults(acts=acts, act_count=count, **{**usual, **settings})


WORLDS = {
    "alone": world({"leader_alone": 2, "leaders_in_turn": 1, "leader_dies": 1, "break_connections": 1}, 6),
    "turns": world({"leaders_in_turn": 1}, 3, records=600, network=UNEVEN),
    "long turns": world({"leaders_in_turn": 1}, 5, busy_seconds=4.0, records=900, network=UNEVEN, disk=DiskFaults()),
    "relay": world({"relay": 1}, 2, records=600),
    "power": world({"relay_power": 1}, 1),
    "memory": world({"relay_power": 1}, 2, durability="os"),
    "catch up": world({"catch_up_cut_off": 1}, 1, records=600, network=FAR, durability="os"),
    "wipe": world({"relay_wipe": 1}, 2),
    "rot": world({"relay_rot": 1}, 1),
    "usurper": world({"leader_usurped": 1}, 3, records=600, network=FAR, disk=DiskFaults()),
    "change": world({"change_cut_off": 1}, 3, nodes=5, disk=DiskFaults(sync_seconds=0.05)),
    "half": world({"change_half_done": 1}, 3, nodes=4, disk=DiskFaults(sync_seconds=0.05)),
    "deaths": world({"leader_dies": 1}, 4),
    "slow deaths": world({"leader_dies": 1}, 5, disk=DiskFaults(sync_seconds=0.2)),
    "broken": world({"leader_dies": 2, "break_connections": 1}, 10, busy_seconds=4.0, network=BREAKING),
    "restarts": world({"kill_node": 2, "break_connections": 2}, 10, records=150, network=BREAKING, disk=DiskFaults()),
    "store": world({"store_slow": 1, "leader_dies": 2}, 6),
    "coordinator": world({"coordinator_dies": 2, "coordinator_alone": 1}, 6, workers=2,
                         disk=DiskFaults(sync_seconds=0.05)),
}  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """told: what a violation says, any of them. first: the seed to begin with."""

    says: str
    mutation: object
    world: str
    told: tuple[str, ...] = LOST
    first: int = 0


NO_MAJORITY = ("no majority holds it",)
RULES = [
    Rule("R3 a leader counts its own copy when it is synced",
         without.a_leader_counts_its_own_copy_before_it_is_synced, "power", NO_MAJORITY),
    Rule("R2 a follower vouches for what is on its disk",
         without.a_copy_vouches_for_what_is_not_on_its_disk, "power", NO_MAJORITY),
    Rule("R3 a majority commits", rules.one_copy_is_a_majority, "alone"),
    Rule("R7 a learner does not count", without.learners_are_counted, "change"),
    Rule("R2 older epochs are refused", rules.no_fence, "turns"),
    Rule("R2 a promise outlives the process", without.promises_never_reach_the_disk, "restarts", ("promised",)),
    Rule("R4 who is sealed promises", without.a_promise_is_told_and_not_kept, "usurper", first=1),
    Rule("R2 what comes must join on to what is here", rules.offers_join_on_anywhere, "alone"),
    Rule("R2 what differs is cut off", rules.what_differs_stays, "alone"),
    Rule("0061 only what was compared is vouched for", without.all_that_is_here_is_vouched_for, "turns"),
    Rule("R3 only what was compared is called committed", without.what_was_not_compared_is_called_committed, "turns",
         first=4),
    Rule("R8 a leader ends at a newer epoch",
         without.a_leader_goes_on_beside_a_newer_one, "alone", (*LOST, "no progress")),
    Rule("R4 the store's swap decides who leads",
         without.a_leader_is_written_over_whoever_was_faster, "store", ("is led by",)),
    Rule("R4 a majority is sealed", rules.no_seal_quorum, "relay", first=1),
    Rule("R4 the best log is adopted", rules.our_own_log_is_adopted, "relay", first=1),
    Rule("R4 the best log is that of the last epoch",
         rules.the_longest_log_is_adopted_whatever_its_epoch, "long turns"),
    Rule("R4 an epoch begins with a batch of its own", without.no_epoch_start_is_written, "deaths",
         (*LOST, "no progress")),
    Rule("R4 what a copy knew to be committed is", without.what_others_knew_to_be_committed_is_forgotten, "deaths",
         ("fell from",)),
    Rule("R4 nobody is answered before that is known", without.a_leader_answers_before_it_knows_enough, "slow deaths",
         ("fell from",)),
    Rule("R4 the coordinator waits until its log is established",
         without.the_coordinator_opens_before_its_log_is_established, "coordinator", ("was granted", "no progress")),
    Rule("R5 uncertain copies do not vote", rules.everyone_may_vote, "memory"),
    Rule("R5 a copy whose memory was lost is uncertain", without.lost_memory_goes_unnoticed, "memory", first=3),
    Rule("R5 it is certain once it holds what the leader holds", rules.votes_come_back_at_once, "catch up"),
    Rule("R6 a copy on another disk is another copy",
         without.a_copy_on_an_empty_disk_is_the_one_that_was_there, "wipe"),
    Rule("0061 old members are kept until the change is safe",
         without.previous_members_are_forgotten_at_once, "half", ("settled the members",)),
    Rule("R8, 1.6 what followers take in is noted of its producers",
         without.what_others_put_is_not_noted_of_its_producers, "broken", ("again at", "lies after")),
    Rule("1.6 what is cut off is forgotten of its producers",
         without.what_was_cut_off_is_remembered_of_its_producers, "turns", first=7),
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=[rule.mutation.__name__ for rule in RULES])
def test_a_rule_left_out_of_a_cluster_is_noticed(rule, monkeypatch):
    rule.mutation(monkeypatch)
    for seed in range(rule.first, rule.first + SEEDS_MAX):
        report = run(seed, copy.deepcopy(WORLDS[rule.world]))
        if any(words in violation for violation in report.violations for words in rule.told):
            return
    raise AssertionError(f"{rule.says}: left out, and in {SEEDS_MAX} seeds nobody noticed")


@pytest.mark.parametrize("name", WORLDS)
def test_the_same_worlds_are_survived_with_every_rule_in_place(name):
    for seed in sorted({0, *(rule.first for rule in RULES if rule.world == name)}):
        assert run(seed, copy.deepcopy(WORLDS[name])).violations == []
