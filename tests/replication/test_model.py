"""The rules kept: no promise breaks, and there is progress. Any one of them left out: some schedule shows it."""

import random

import pytest

from tests.replication.model import RULES, Model, Violation
from tests.replication.stories import SCHEDULES

RUNS = 400
CAUGHT_WITHIN = 1_500

# Where the harm must be of one kind to show what a rule is for: the settings that show it soonest.
POWER_ONLY = {"kinds": (0, 1, 0, 0, 0), "harm": 0.06}
SETTINGS = {
    "eligibility": {"mode": "memory", "nodes": 5, **POWER_ONLY},
    "incarnation": {"mode": "memory", "kinds": (0, 1, 0, 4, 1), "harm": 0.03},
    "ack_durable": {"mode": "fsync", **POWER_ONLY},
    "ack_matched": {"mode": "memory", "nodes": 3, "elections": 0.04, "harm": 0.003, "kinds": (1, 1, 0, 0, 3)},
    "learners": {"mode": "memory", "changes": 0.03},
    "closed": {"closing": True},
    "children_late": {"closing": True},
}
# Too rare for random steps: stories.py tells the story of each.
BY_SCHEDULE = {
    "promise_durable", "current_epoch", "previous_quorum", "settle_late", "connection", "vote_late", "remember_epoch",
}  # fmt: skip


def any_settings(draw):
    return {
        "mode": draw.choice(("fsync", "memory")),
        "nodes": draw.choice((3, 4, 5)),
        "harm": draw.choice((0.003, 0.01, 0.03, 0.06)),
        "elections": draw.choice((0.004, 0.01, 0.02, 0.04)),
        "changes": draw.choice((0.003, 0.03, 0.1, 0.2)),
        "kinds": draw.choice(((7, 7, 2, 2, 3), (1, 5, 1, 1, 1), (0, 1, 0, 0, 0), (0, 1, 0, 4, 1), (1, 1, 0, 0, 8))),
        "removals": draw.choice((0.004, 0.02)),
        "slack": draw.choice((2, 6)),
        "closing": draw.random() < 0.3,
    }


def test_with_every_rule_nothing_is_lost_and_puts_go_on():
    draw = random.Random(1)
    acknowledged = elected = changed = 0
    for seed in range(RUNS):
        model = Model(seed, **any_settings(draw))
        model.run(500)
        assert model.quiet(), f"seed {seed}: no put is acknowledged any more"
        acknowledged, elected, changed = (
            acknowledged + model.acknowledged, elected + model.elected, changed + model.changed
        )  # fmt: skip

    assert acknowledged > 4 * RUNS
    assert elected > 4 * RUNS
    assert changed > RUNS / 20


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in BY_SCHEDULE])
def test_a_rule_left_out_is_noticed(rule):
    without = frozenset((rule,))
    for seed in range(CAUGHT_WITHIN):
        try:
            Model(seed, without=without, **SETTINGS.get(rule, {})).run(500)
        except Violation:
            return
    raise AssertionError(f"{CAUGHT_WITHIN} runs without {rule}, and nobody noticed")


@pytest.mark.parametrize("rule", SCHEDULES)
def test_the_story_of_a_rule_ends_well_with_it_and_badly_without(rule):
    SCHEDULES[rule](())

    with pytest.raises(Violation):
        SCHEDULES[rule]((rule,))


def test_every_rule_is_left_out_once():
    assert set(SCHEDULES) == BY_SCHEDULE
    assert set(RULES) > BY_SCHEDULE
