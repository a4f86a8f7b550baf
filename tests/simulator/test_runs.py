"""Whole runs: a friendly world first, then drawn ones. A seed that once failed is kept here."""

import copy
import os
import subprocess
import sys

import pytest

from streamkit.simulator.faults import ACTS, Faults
from streamkit.simulator.run import Report, run, run_many

SEEDS = 150

# Each found something, which is fixed: what it was.
ONCE_FAILED = {
    2: "the coordinator never wrote again after the disk had been full",
    8: "the data directory's own name was not synced, so a loss of power took everything",
    13: "a segment counted as written before its readers could see the bytes",
    118: "after a failed sync and a restart, recovery trusted pages that never reached the disk",
    261: "storage tried a full disk again without a pause",
    425: "a connection broke before the listener had looked at it",
    1132: "a stopping node told workers that it was full, and they gave up",
    3892: "a stop cancelled the coordinator's writer, and then waited for it",
    4734: "after a torn group the whole log counted as unsynced, and the coordinator replayed none of it",
    5874: "a worker past its deadline dropped a shard without giving the lease back",
}


def test_in_a_friendly_world_every_put_is_stored_and_processed():
    report = run(1, Faults.none())

    assert report.violations == []
    assert report.counts["stored"] == report.counts["read"] == report.counts["processed"] == Faults.none().records
    assert report.node_starts == 1


@pytest.mark.parametrize("seed", ONCE_FAILED)
def test_a_seed_that_once_failed_keeps_every_promise(seed):
    assert run(seed).violations == []


@pytest.mark.parametrize("act", ACTS)
def test_each_fault_alone_is_survived(act):
    faults = Faults(acts={act: 1.0}, act_count=3, busy_seconds=2.0, records=90)

    assert [run(seed, faults=_copy(faults)).violations for seed in range(2)] == [[], []]


def _copy(faults: Faults) -> Faults:
    # A run changes its faults when it heals.
    return copy.deepcopy(faults)


def test_drawn_worlds_keep_every_promise():
    seen: list[Report] = []

    failed = run_many(10_000, SEEDS, on_report=seen.append)

    assert "\n".join(map(str, failed)) == ""
    assert len(seen) == SEEDS
    assert sum(report.node_starts for report in seen) > 1.5 * SEEDS, "nodes must fall and rise"
    assert sum(report.counts["stored"] for report in seen) > 50 * SEEDS


def test_flipped_bits_are_never_given_out():
    for seed in range(12):
        report = run(seed, Faults(rot=True, busy_seconds=2.0, records=90))
        assert report.violations == []


def test_the_same_seed_is_the_same_run_in_any_process():
    code = "from streamkit.simulator.run import run; print(*[run(seed).digest for seed in (3, 11, 118)])"
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True,
            text=True, check=True, timeout=120,
        ).stdout
        for hash_seed in ("1", "2")
    }  # fmt: skip

    assert len(digests) == 1


def test_a_failure_names_the_seed_and_the_command():
    report = Report(seed=77, violations=["a record is lost"])

    assert "seed 77" in str(report)
    assert "streamkit simulate --seed 77" in str(report)
