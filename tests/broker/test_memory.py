"""A real node under full load, with readers that take nothing: what it holds stays within what was configured.

What it counts is checked byte by byte in test_bounds; here the system says what the process really occupies.
"""

import pytest

from benchmarks.paths.memory import BUDGET_MIB, MARGIN_MIB, TAIL_MIB, under_load

BATCHES = 3_000                            # 190 MiB, more than the node may hold


@pytest.mark.parametrize("level", ["fsync", "leader"])
def test_resident_memory_grows_by_no_more_than_the_budgets_and_a_margin(level):
    (row,) = under_load(BATCHES, level)

    assert row.checked
    assert row.facts["grown_mib"] <= BUDGET_MIB + TAIL_MIB + MARGIN_MIB < BATCHES / 16
