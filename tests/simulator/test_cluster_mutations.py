"""Rules of replication patched away in whole clusters: what clients and the watch see must give it away.

Every rule is left out once in tests/replication, on the pure classes; here are those whose loss shows within a few
seconds of a whole run, so that the way from a broken rule to a violation is known to be open.
"""

import copy

import pytest

from streamkit.broker.copy import Copy
from streamkit.replication.replica import Ends
from streamkit.simulator.disk import DiskFaults
from streamkit.simulator.faults import Faults
from streamkit.simulator.run import run
from tests.replication import test_driven as rules

SEEDS_MAX = 12
WORLD = {"nodes": 3, "workers": 0, "busy_seconds": 2.0, "records": 150, "shards": 1, "suspect_ms": 300}
CUT_OFF = {"acts": {"isolate": 2.0, "kill_node": 1.0}, "act_count": 8}
POWER = {"acts": {"power_loss": 1.0, "power_loss_two": 2.0, "power_loss_all": 2.0}, "act_count": 4, "durability": "os"}


def nobody_waits_for_the_disk(patch):
    patch.setattr(Ends, "at", lambda self, durability: self.appended)
    patch.setattr(Copy, "_safe_end", lambda self: self.log.log_end)


# first: the first seed to try; each of them alone shows it within a few more.
MUTATIONS = [
    (nobody_waits_for_the_disk, 0,
     {"acts": {"power_loss_all": 1.0}, "act_count": 3, "disk": DiskFaults(sync_seconds=0.05)}),
    (rules.our_own_log_is_adopted, 0, CUT_OFF),
    (rules.everyone_may_vote, 0, POWER),
    (rules.one_copy_is_a_majority, 30, CUT_OFF),
]  # fmt: skip


@pytest.mark.parametrize(("mutation", "first", "world"), MUTATIONS, ids=[entry[0].__name__ for entry in MUTATIONS])
def test_a_rule_patched_away_in_a_cluster_is_noticed(mutation, first, world, monkeypatch):
    mutation(monkeypatch)
    for seed in range(first, first + SEEDS_MAX):
        report = run(seed, copy.deepcopy(Faults(**{**WORLD, **world})))
        if any(not violation.startswith("no progress") for violation in report.violations):
            return
    raise AssertionError(f"{SEEDS_MAX} seeds, and nobody noticed")
