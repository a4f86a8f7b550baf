"""Ranges end where the buffer says, hold every record once, and are the same when they are planned before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit.delivery.buffer import Buffer, Gathering, Range
from streamkit.errors import InvalidUse
from tests.delivery.batches import batch_of


def gathered(gathering: Gathering, batches: list) -> list[Range]:
    ranges = []
    for batch in batches:
        done = 0
        while done < len(batch):
            done += gathering.add(batch.part(done, len(batch)))
            if gathering.is_full:
                ranges.append(gathering.take())
    return [*ranges, gathering.take()] if gathering else ranges


def values(ranges: list[Range]) -> list[bytes]:
    return [value for each in ranges for part in each.parts for value in part.values()]


SIZES = st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=20), min_size=1, max_size=8)


@given(SIZES, st.integers(1, 200), st.integers(1, 30))
def test_ranges_follow_each_other_hold_every_record_and_stay_near_the_bounds(sizes, bytes_max, records_max):
    batches, base = [], 0
    for rows in sizes:
        batches.append(batch_of([b"x" * size for size in rows], base))
        base += len(rows)

    ranges = gathered(Gathering(Buffer(bytes_max=bytes_max, records_max=records_max), (0, 0)), batches)

    assert values(ranges) == [b"x" * size for rows in sizes for size in rows]
    assert [each.start for each in ranges] == [(0, 0), *(each.end for each in ranges[:-1])]
    assert ranges[-1].end == (base, 0)
    for each in ranges:
        rows = values([each])
        assert len(rows) == each.count <= records_max
        assert sum(map(len, rows[:-1])) < bytes_max, "it would have been full before its last record"


@given(SIZES, st.integers(1, 100), st.integers(1, 100))
def test_what_was_planned_is_gathered_again_however_the_records_come(sizes, first, other):
    rows = [b"x" * size for part in sizes for size in part]
    [planned, *_] = gathered(Gathering(Buffer(bytes_max=first), (0, 0)), [batch_of(rows)])
    again = Gathering(Buffer(bytes_max=other), (0, 0), until=planned.end)
    batches = [batch_of([row], number) for number, row in enumerate(rows)]

    ranges = gathered(again, batches)

    assert (ranges[0].start, ranges[0].end) == (planned.start, planned.end)
    assert values(ranges[:1]) == values([planned])
    assert values(ranges) == rows


def test_a_planned_range_whose_last_records_are_gone_ends_with_the_first_record_behind_it():
    gathering = Gathering(Buffer(), (0, 0), until=(5, 0))
    assert gathering.add(batch_of([1, 2], base=1)) == 2
    assert not gathering.is_full
    assert gathering.add(batch_of([3], base=7)) == 0
    assert gathering.is_full
    assert gathering.take().end == (5, 0)


@pytest.mark.parametrize("wrong", [{"bytes_max": 0}, {"seconds_max": -1}, {"records_max": 0}])
def test_a_buffer_that_can_never_be_full_is_refused(wrong):
    with pytest.raises(InvalidUse, match=next(iter(wrong))):
        Buffer(**wrong)
