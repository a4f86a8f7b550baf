"""Batches dealt out to lanes: nothing is lost, nothing doubled, and a key's lane never changes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit._core.aggregation import Aggregator
from streamkit._core.batch import Batch, seal, stamped
from streamkit._core.lanes import deal, parted, row_at, unfinished

SHARD = bytes(16)
KEYS = st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=60)
COUNTS = st.integers(1, 9)


def batch_of(keys, base=0):
    records = [(key.encode(), str(number).encode(), b"", None, None) for number, key in enumerate(keys)]
    return Batch(stamped(seal(records), base_sequence=base, shard_uuid=SHARD))


def places(batch):
    return [(record.sequence, record.sub_sequence or 0) for record in batch or ()]


@given(KEYS, COUNTS, st.integers(0, 1000))
def test_every_record_is_in_one_lane_in_order_and_records_of_a_key_share_theirs(keys, count, base):
    batch = batch_of(keys, base)

    lanes = deal(batch, count, True)

    assert sorted(place for lane in lanes for place in places(lane)) == places(batch)
    assert all(places(lane) == sorted(places(lane)) for lane in lanes)
    lane_of = {}
    for number, lane in enumerate(lanes):
        for key in lane.keys() if lane else ():
            assert lane_of.setdefault(key, number) == number
    assert all(lane is None or lane.place(len(lane)) == (base + len(keys), 0) for lane in lanes)


@given(KEYS, COUNTS)
def test_without_an_order_records_are_dealt_in_turn(keys, count):
    lanes = deal(batch_of(keys, 7), count, False)

    assert all(sequence % count == number for number, lane in enumerate(lanes) for sequence, _ in places(lane))


@given(KEYS, st.lists(st.integers(0, 80), min_size=1, max_size=9), st.booleans())
def test_what_lies_below_its_lanes_mark_is_left_out(keys, marks, by_key):
    batch = batch_of(keys, 10)
    expected = [
        place for number, lane in enumerate(deal(batch, len(marks), by_key)) for place in places(lane)
        if place[0] >= marks[number]
    ]

    left = unfinished(batch, marks, by_key)

    assert places(left) == sorted(expected)
    assert left.place(len(left)) == (10 + len(keys), 0)


@given(KEYS, st.sets(st.integers(0, 59)), st.integers(0, 30), st.booleans())
def test_chosen_rows_are_parted_from_the_others_in_order(keys, chosen, start, by_key):
    batch = batch_of(keys, 10)
    batch = batch.part(min(start, len(batch) - 1), len(batch))
    rows = [row_at(batch, index, by_key) for index in range(len(batch))]
    chosen_rows = {rows[index] for index in chosen if index < len(rows)}

    others, held = parted(batch, list(chosen_rows), by_key)

    assert places(held) == [place for place, row in zip(places(batch), rows, strict=True) if row in chosen_rows]
    assert places(others) == [place for place, row in zip(places(batch), rows, strict=True) if row not in chosen_rows]
    assert all(part.place(len(part)) == (10 + len(keys), 0) for part in (others, held) if part is not None)


@given(KEYS, st.lists(st.integers(0, 80), min_size=1, max_size=5), st.booleans(),
       st.dictionaries(st.integers(0, 59), st.integers(0, 80)))  # fmt: skip
def test_a_row_with_a_mark_of_its_own_does_not_count_by_its_lanes(keys, marks, by_key, own):
    batch = batch_of(keys, 10)
    rows = {row_at(batch, index, by_key): mark for index, mark in own.items() if index < len(batch)}
    by_lane = places(unfinished(batch, marks, by_key))
    expected = [
        place for index, place in enumerate(places(batch))
        if (place[0] >= rows[row] if (row := row_at(batch, index, by_key)) in rows else place in by_lane)
    ]

    assert places(unfinished(batch, marks, by_key, rows)) == expected


def test_there_are_at_most_256_rows():
    with pytest.raises(ValueError):
        parted(batch_of("a"), list(range(257)), True)
    with pytest.raises(ValueError):
        unfinished(batch_of("a"), [0], True, dict.fromkeys(range(257), 0))
    with pytest.raises(IndexError):
        row_at(batch_of("a"), 1, True)


def test_user_records_of_an_aggregate_are_dealt_by_their_own_keys():
    aggregate = Aggregator()
    for key, value in (("a", b"1"), ("b", b"2"), ("c", b"3"), ("a", b"4")):
        assert aggregate.add(key, value)
    sealed = seal([(b"k", aggregate.bytes(), b"", None, None), (b"c", b"5", b"", None, None)])
    batch = Batch(stamped(sealed, base_sequence=3, shard_uuid=SHARD)).unwrap()

    lanes = deal(batch, 5, True)

    assert sorted(place for lane in lanes for place in places(lane)) == [(3, 0), (3, 1), (3, 2), (3, 3), (4, 0)]
    of_a = next(lane for lane in lanes if lane is not None and lane.keys()[0] == "a")
    assert [record.value for record in of_a if record.key == "a"] == [b"1", b"4"]
    assert next(lane for lane in lanes if lane is not None and b"5" in lane.values()).keys().count("c") == 2
    assert unfinished(batch, [4] * 5, True).values() == [b"5"]


def test_the_lanes_of_keys_are_those_of_every_version():
    """Checkpoints rest on them."""
    lanes = deal(batch_of(["customer-1", "customer-2", "é", "x" * 256]), 256, True)

    assert {lane.keys()[0]: number for number, lane in enumerate(lanes) if lane} == LANES


LANES = {"customer-1": 69, "customer-2": 102, "é": 92, "x" * 256: 232}


@pytest.mark.parametrize("count", [0, -1, 257])
def test_there_are_1_to_256_lanes(count):
    with pytest.raises(ValueError, match="lanes"):
        deal(batch_of(["a"]), count, True)
    with pytest.raises(ValueError, match="lanes"):
        unfinished(batch_of(["a"]), [0] * max(count, 0), True)
