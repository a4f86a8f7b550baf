"""Outputs as they are kept: what was packed comes back, anything else is refused as data; the same cut every time."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit._core.batch import Batch, read_header, seal
from streamkit._core.hashing import hash_key
from streamkit.errors import DataError, TransactionTooLarge
from streamkit.model.limits import OUTPUTS_BYTES_MAX
from streamkit.transactions.lineage import packed
from streamkit.transactions.outputs import Outputs, ShardOutputs, StreamOutputs, pack, unpack
from streamkit.transactions.sealing import BATCH_BYTES, BATCH_RECORDS, batches_of, sealable

RECORDS = st.lists(st.tuples(
    st.text(max_size=8).map(str.encode), st.binary(max_size=40),
    st.sampled_from((b"", b"\x81\xa1a\xc4\x01b")), st.none() | st.integers(1, 2**41),
    st.none() | st.binary(min_size=16, max_size=16),
), min_size=1, max_size=30)  # fmt: skip


def outputs(*batches: bytes) -> Outputs:
    return Outputs(1, 7, 0, (StreamOutputs("s", 1, (ShardOutputs(b"u" * 16, batches),)),))


def test_what_was_packed_comes_back() -> None:
    made = outputs(seal([(b"k", b"v", b"", None, None)]), b"")

    assert unpack(pack(made)) == made


@pytest.mark.fuzz
@given(st.binary(max_size=200) | st.integers(0, 300).map(lambda cut: pack(outputs(b"x" * 100))[:cut]))
def test_anything_else_is_refused_as_data(data: bytes) -> None:
    try:
        unpack(data)
    except DataError:
        return
    assert data == pack(outputs(b"x" * 100))


def test_another_version_is_refused() -> None:
    with pytest.raises(DataError):
        unpack(pack(Outputs(2, 7, 0, ())))


def test_more_than_one_entry_of_the_log_takes_is_told() -> None:
    with pytest.raises(TransactionTooLarge) as told:
        packed(outputs(b"x" * OUTPUTS_BYTES_MAX))

    assert told.value.facts["limit_bytes"] == OUTPUTS_BYTES_MAX


@given(RECORDS)
def test_records_of_a_batch_are_sealed_again_as_they_were(records) -> None:
    batches = list(batches_of(records, (7, 1), 40, 3))
    found = [sealable(record) for batch in batches for record in Batch(batch)]

    assert found == [(*record[:4], record[4] if record[4] != hash_key(record[0]) else None) for record in records]
    assert list(batches_of(found, (7, 1), 40, 3)) == batches


def test_event_times_too_far_apart_for_one_batch_are_cut() -> None:
    day = 24 * 3_600_000
    times = [day, None, 30 * day, 29 * day, 90 * day, None, 1]

    batches = list(batches_of([(b"k", b"v", b"", time, None) for time in times], (7, 1), 0, 0))

    assert [read_header(batch).record_count for batch in batches] == [2, 2, 2, 1]
    assert [sealable(record)[3] for batch in batches for record in Batch(batch)] == times


def test_a_cut_keeps_its_bounds_and_numbers() -> None:
    small, large = (b"k", bytes(100), b"", None, None), (b"k", bytes(BATCH_BYTES + 1), b"", None, None)
    records = [small] * (2 * BATCH_RECORDS + 1) + [large]

    batches = list(batches_of(records, (7, 1), 5, 0))

    headers = [read_header(batch) for batch in batches]
    assert headers[0].producer_sequence == 5 and sum(header.record_count for header in headers) == len(records)
    assert all(b.producer_sequence == a.producer_sequence + a.record_count for a, b in pairwise(headers))
    assert all(header.record_count <= BATCH_RECORDS for header in headers) and headers[-1].record_count == 1
