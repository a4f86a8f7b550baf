"""The shipped classes under the model's schedules keep its promises; with a rule patched away they do not."""

import random

import pytest

from tests.replication import mutations as without
from tests.replication.driven import Driven
from tests.replication.model import Violation
from tests.replication.stories import SCHEDULES
from tests.replication.test_model import any_settings

RUNS = 120
CAUGHT_WITHIN = 1_200


def test_the_shipped_rules_keep_every_promise_and_go_on():
    draw = random.Random(7)
    acknowledged = changed = 0
    for seed in range(RUNS):
        driven = Driven(seed, **any_settings(draw))
        driven.run(500)
        assert driven.quiet(), f"seed {seed}: no put is acknowledged any more"
        acknowledged, changed = acknowledged + driven.acknowledged, changed + driven.changed

    assert acknowledged > 3 * RUNS
    assert changed > 0


POWER = {"kinds": (0, 1, 0, 0, 0), "harm": 0.06}
MUTATIONS = {
    without.no_seal_quorum: {},
    without.everyone_may_vote: {"mode": "memory", "nodes": 5, **POWER},
    without.no_fence: {},
    without.offers_join_on_anywhere: {},
    without.what_differs_stays: {},
    without.all_that_is_here_is_vouched_for: {
        "mode": "memory", "nodes": 3, "elections": 0.04, "kinds": (1, 1, 0, 0, 3),
    },
    without.what_is_not_on_disk_is_vouched_for: {"mode": "fsync", **POWER},
    without.one_copy_is_a_majority: {},
    without.answers_of_other_lives_count: {"mode": "memory", "kinds": (0, 1, 0, 4, 1), "harm": 0.03},
    without.our_own_log_is_adopted: {},
    without.the_longest_log_is_adopted_whatever_its_epoch: {"mode": "fsync"},
}
TOLD = {
    without.promises_are_answered_before_they_are_kept: "promise_durable",
    without.old_epochs_are_committed_by_a_majority: "current_epoch",
    without.previous_members_are_not_asked: "previous_quorum",
    without.votes_come_back_at_once: "vote_late",
}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_a_rule_patched_away_is_noticed(mutation, monkeypatch):
    mutation(monkeypatch)
    for seed in range(CAUGHT_WITHIN):
        try:
            Driven(seed, **MUTATIONS[mutation]).run(500)
        except (Violation, AssertionError):
            return
    raise AssertionError(f"{CAUGHT_WITHIN} runs, and nobody noticed")


@pytest.mark.parametrize("rule", sorted(SCHEDULES.keys() - {"connection"}))
def test_the_story_of_a_rule_ends_well(rule):
    SCHEDULES[rule]((), Driven)


@pytest.mark.parametrize("mutation", TOLD, ids=lambda mutation: mutation.__name__)
def test_the_story_of_a_rule_that_is_patched_away_ends_badly(mutation, monkeypatch):
    mutation(monkeypatch)

    with pytest.raises(Violation):
        SCHEDULES[TOLD[mutation]]((), Driven)
