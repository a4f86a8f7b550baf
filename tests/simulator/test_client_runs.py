"""What clients do beside the plain things: each feature in drawn worlds, and seeds that once failed with some."""

import random

import pytest

from streamkit.simulator.faults import FEATURES, draw_cluster_faults, draw_faults
from streamkit.simulator.run import run

# (seed, features, whether it is a node alone): what it was.
ONCE_FAILED = {
    (65000002, ("named", "halt"), True): "a batch that failed as it was sealed was asked for its size",
    (65000097, ("named", "halt"), True): "a batch in doubt ended as fenced, and nobody said that it may be stored",
    (65000106, ("named", "halt"), True): "a shard got new numbers while a batch with the old ones was on its way",
    (65500531, ("poison", "resolve", "halt", "named"), True): "a shard was resumed twice, and shut itself out",
    (65200637, ("keyless", "poison"), True): "a dead letter that was cut off gave its number to the next",
    (65000058, ("named", "halt"), False): "an old read of the store shut the youngest holder of a name out",
}  # fmt: skip


def world(seed, features, alone):
    faults = (draw_faults if alone else draw_cluster_faults)(random.Random(f"faults {seed}"))
    faults.features = features
    return faults


@pytest.mark.parametrize(("seed", "features", "alone"), ONCE_FAILED)
def test_a_seed_that_once_failed_keeps_every_promise(seed, features, alone):
    assert run(seed, world(seed, features, alone)).violations == []


@pytest.mark.parametrize("feature", FEATURES)
def test_each_feature_alone_is_survived(feature):
    for seed in range(300, 306):
        assert run(seed, world(seed, (feature,), True)).violations == []
    for seed in range(300, 302):
        assert run(seed, world(seed, (feature,), False)).violations == []


def test_half_of_the_drawn_worlds_are_plain():
    drawn = [draw_faults(random.Random(f"faults {seed}")).features for seed in range(400)]

    assert 150 < sum(not features for features in drawn) < 250
    assert {feature for features in drawn for feature in features} == set(FEATURES)
