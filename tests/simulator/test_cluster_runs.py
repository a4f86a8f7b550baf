"""Whole clusters: a friendly world, drawn ones, and what no client sees. Seeds that once failed stay in seeds.txt."""

import copy
import random
from pathlib import Path

import pytest

from streamkit.simulator.faults import (
    DAMAGE_ACTS,
    LINK_ACTS,
    STORE_ACTS,
    Faults,
    draw_cluster_faults,
)
from streamkit.simulator.run import Report, run, run_many

SEEDS = 24
KEPT = [
    int(line.split()[0])
    for line in (Path(__file__).parent / "seeds.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


def test_in_a_friendly_world_a_cluster_stores_and_processes_every_put():
    report = run(1, Faults(nodes=3))

    assert report.violations == []
    assert report.counts["stored"] == report.counts["read"] == report.counts["processed"] == Faults().records
    assert report.node_starts == 3
    assert "--alone" not in report.command


@pytest.mark.parametrize("seed", KEPT)
def test_a_seed_of_a_cluster_that_once_failed_keeps_every_promise(seed):
    assert run(seed, alone=False).violations == []


def test_drawn_clusters_keep_every_promise():
    seen: list[Report] = []

    failed = run_many(20_000, SEEDS, on_report=seen.append, alone=False)

    assert "\n".join(map(str, failed)) == ""
    assert sum(report.node_starts for report in seen) > 4 * SEEDS, "nodes must fall and rise"
    assert sum(report.counts["stored"] for report in seen) > 50 * SEEDS


@pytest.mark.parametrize("kind", [LINK_ACTS, STORE_ACTS, DAMAGE_ACTS, ("power_loss_all",), ("split", "move_leader")])
def test_each_kind_of_harm_alone_is_survived(kind):
    faults = Faults(nodes=3, acts=dict.fromkeys(kind, 1.0), act_count=4, busy_seconds=2.0, records=60, workers=1)

    assert [run(seed, copy.deepcopy(faults)).violations for seed in (1, 2)] == [[], []]


def test_memory_durability_stalls_rather_than_loses():
    faults = Faults(nodes=3, acts={"power_loss_all": 1.0}, act_count=3, durability="os", records=90, workers=0)

    for seed in range(2):
        report = run(seed, copy.deepcopy(faults))
        assert report.violations == []


def test_the_same_seed_is_the_same_cluster_run():
    assert run(5, alone=False).digest == run(5, alone=False).digest


def test_every_draw_is_a_cluster_with_a_victim_at_most():
    worlds = [draw_cluster_faults(random.Random(f"faults {seed}")) for seed in range(200)]

    assert {world.nodes for world in worlds} == {3, 4, 5}
    assert {world.durability for world in worlds} == {"fsync", "os"}
