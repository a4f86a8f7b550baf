"""Batches whose records are aggregates, against the slow reader: any mixture, any part, any range of hash keys."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from streamkit._core.batch import Batch, seal, stamped
from streamkit._core.hashing import hash_key
from tests import oracles_aggregation as twin
from tests.core.test_aggregation import RECORDS, written
from tests.oracles_aggregation import sign

BASE = 1_000
PAYLOADS = st.one_of(
    st.binary(max_size=40),
    RECORDS.map(lambda records: sign(written(records))),
    RECORDS.map(lambda records: sign(written(records))[:-1]),
    st.binary(min_size=1, max_size=30).map(sign),
)
MIXTURES = st.lists(PAYLOADS, min_size=1, max_size=8)
Row = tuple[int, int | None, str, bytes, bytes]        # sequence, sub-sequence, key, hash key, data


def rows(payloads: list[bytes], low: int = 0, high: int = 2**128) -> list[Row]:
    found: list[Row] = []
    for i, payload in enumerate(payloads):
        inside = twin.split(payload)
        if inside is None:
            found.append((BASE + i, None, f"outer{i}", hash_key(f"outer{i}"), payload))
            continue
        for sub_sequence, (key, explicit, data, _) in enumerate(inside):
            number = int.from_bytes(hash_key(key), "big") if explicit is None else explicit
            if low <= number < high:
                found.append((BASE + i, sub_sequence, key, number.to_bytes(16, "big"), data))
    return found


def batch_of(payloads: list[bytes], codec: int) -> Batch[Any]:
    records = [(f"outer{i}".encode(), payload, b"", None, None) for i, payload in enumerate(payloads)]
    return Batch(stamped(seal(records, codec=codec), base_sequence=BASE, append_time_ms=9, shard_uuid=bytes(16)))


def seen(batch: Batch[Any]) -> list[Row]:
    return [(record.sequence, record.sub_sequence, record.key, record.hash_key, record.data) for record in batch]


@given(MIXTURES, st.sampled_from([0, 1]), st.data())
def test_an_unwrapped_batch_is_what_the_slow_reader_finds(payloads: list[bytes], codec: int, data: Any) -> None:
    expected = rows(payloads)

    made = batch_of(payloads, codec).unwrap()

    assert seen(made) == expected
    assert made.values() == [row[4] for row in expected] and made.keys() == [row[2] for row in expected]
    end = BASE + len(payloads)
    places = [(row[0], row[1] or 0) for row in expected] + [(end, 0)]
    assert [made.place(done) for done in range(len(made) + 1)] == places
    assert [record.end_place for record in made] == places[1:]
    start = data.draw(st.integers(0, len(made)))
    stop = data.draw(st.integers(start, len(made)))
    part = made.part(start, stop)
    assert seen(part) == expected[start:stop] and part.values() == [row[4] for row in expected[start:stop]]
    assert (part.first_sequence, part.end_sequence) == (places[start][0], places[stop][0])
    assert [made.index_of(record) for record in part] == list(range(start, stop))


@given(MIXTURES, st.integers(0, 2**128 - 1), st.integers(0, 2**128))
def test_a_range_of_hash_keys_keeps_what_belongs_to_it(payloads: list[bytes], one: int, other: int) -> None:
    low, high = min(one, other), max(one, other, one + 1)

    made = batch_of(payloads, 0).unwrap((low, high))

    assert seen(made) == rows(payloads, low, high)


@given(MIXTURES, st.integers(0, 7))
def test_what_was_left_out_before_is_not_looked_into(payloads: list[bytes], skipped: int) -> None:
    batch = batch_of(payloads, 0)

    later = Batch(batch.raw, first_sequence=BASE + skipped).unwrap()

    assert seen(later) == [row for row in rows(payloads) if row[0] >= BASE + skipped]
