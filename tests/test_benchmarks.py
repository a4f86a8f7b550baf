"""Every measurement in its tiny form: it runs, its own check passes, and its report holds what a report must."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.paths.__main__ import MEASUREMENTS
from benchmarks.paths.processes import CheckFailed, check
from benchmarks.paths.report import Result, machine, markdown, write_json

ROOT = Path(__file__).parents[1]


# What differs from another one by its durability alone is left out where starting three nodes is most of the time.
TINY = [name for name in MEASUREMENTS if not (name.startswith("cluster-") and name.endswith("-os"))]


@pytest.mark.parametrize("name", TINY)
def test_a_path_measures_itself_in_its_tiny_form(name, tmp_path):
    results = MEASUREMENTS[name][1]()

    assert results
    for result in results:
        assert result.checked, result.name
        assert result.figure or (result.records_per_second > 0 and result.durability), result.name
        assert result.figure or (result.server_cpu is not None and result.client_cpu is not None), result.name
    write_json(tmp_path / "results.json", results, machine(tmp_path))
    document = json.loads((tmp_path / "results.json").read_text())
    assert {"cpu", "cores", "python", "streamkit", "file_system", "date"} <= set(document["machine"])
    table = markdown(results, machine(tmp_path), "make bench")
    assert all(result.name in table for result in results)


def test_a_wrong_answer_is_a_failure_and_not_a_figure():
    with pytest.raises(CheckFailed, match="7 of 8"):
        check(False, "7 of 8 records came")


def test_a_rate_is_records_over_seconds():
    assert Result(name="x", shape="", records=10, seconds=2.0).records_per_second == 5.0
    assert Result(name="x", shape="").records_per_second == 0.0


def test_the_kernels_measure_themselves_in_their_tiny_form():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "benchmarks/kernels", "--benchmark-disable", "-p", "no:cacheprovider"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
