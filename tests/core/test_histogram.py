"""The histogram answers as a sorted list would, within 1/32."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit._core.histogram import Histogram
from streamkit.errors import InvalidUse
from tests import oracles_batch as oracles

numbers = st.lists(st.integers(0, 100) | st.integers(0, 2**63 - 1), min_size=1, max_size=60)


def filled(values: list[int]) -> Histogram:
    made = Histogram()
    for value in values:
        made.record(value)
    return made


@given(values=numbers, percent=st.floats(0, 100))
def test_percentiles_are_within_one_thirty_second(values: list[int], percent: float) -> None:
    exact = oracles.percentile(values, percent)

    found = filled(values).percentile(percent)

    assert exact <= found <= exact + exact // 32 + 1


@given(numbers, numbers)
def test_merging_is_counting_both(first: list[int], second: list[int]) -> None:
    merged = filled(first)
    merged.merge(filled(second))
    both = filled(first + second)

    assert merged.buckets() == both.buckets()
    assert (merged.count, merged.min, merged.max) == (len(first + second), both.min, both.max)
    assert both.count_below(64) == sum(value < 64 for value in first + second)


def test_clearing_and_misuse() -> None:
    histogram = filled([5, 5])
    histogram.clear()

    assert (histogram.count, histogram.percentile(50), histogram.buckets()) == (0, 0, [])
    with pytest.raises(InvalidUse):
        histogram.record(-1)
    with pytest.raises(InvalidUse):
        histogram.percentile(101)
