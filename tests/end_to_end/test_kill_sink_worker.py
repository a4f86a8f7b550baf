"""Acceptance: consumer 12, exactly once, patterns 1 to 3.

Workers that die at random instants leave an exact sum in the store they write to.
"""

import pytest

from tests.end_to_end.kill_sink_worker import SINKS, run


@pytest.mark.parametrize("kind", SINKS)
def test_the_sum_is_exact_however_often_the_worker_is_killed(kind, tmp_path):
    outcome = run(12, kind, tmp_path, seed=7, seconds_max=6)

    assert outcome.wrong() == []
    assert outcome.kills >= 3 and len(outcome.values) == outcome.put
