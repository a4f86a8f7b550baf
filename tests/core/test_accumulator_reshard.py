"""Batches that are taken apart: every record once, in order, in front of what came later, with its outcome."""

from __future__ import annotations

import threading
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit._core import debug
from streamkit._core.accumulator import Accumulator, Budget
from streamkit._core.apart import take_apart
from streamkit._core.batch import check_batch
from streamkit._core.columns import Column
from streamkit._core.framing import PutReceipt
from streamkit._core.hashing import ShardTable, hash_key
from streamkit._core.outcome import ColumnsHandle
from streamkit.errors import Closed, TimedOut, WrongShard
from streamkit.model.limits import HASH_KEYS
from tests import oracles_batch as oracles

HALF = HASH_KEYS // 2
WHOLE, LOW, HIGH = (0, HASH_KEYS), (0, HALF), (HALF, HASH_KEYS)


def origins(count: int) -> list[Any]:
    return [lambda receipt, index, i=i: (i, receipt.base_sequence + index) for i in range(count)]


def made(**settings: Any) -> Accumulator:
    settings.setdefault("budget", Budget(1 << 26))
    settings.setdefault("batch_bytes_max", 300)
    return Accumulator([WHOLE], origins=origins(1), wake=lambda: None, **settings)


def split(accumulator: Accumulator) -> None:
    """Shard 0 is closed; 1 and 2 take its keys."""
    accumulator.replace_map([None, LOW, HIGH], origins=origins(3), map_version=2)


def side(key: str) -> int:
    """Which of the two."""
    return 1 if int.from_bytes(hash_key(key), "big") < HALF else 2


def taken(accumulator: Accumulator, shard: int = 0, **how: Any) -> list[Any]:
    found = []
    while (sealed := accumulator.take(shard, close_open=True, **how)) is not None:
        found.append(sealed)
    return found


def move(accumulator: Accumulator, batches: list[Any]) -> None:
    for sealed in reversed(batches):
        take_apart(accumulator, sealed, ShardTable([None, LOW, HIGH]))


def drained(accumulator: Accumulator, shard: int) -> list[Any]:
    """The records of a shard, acknowledged from sequence 100 on."""
    records = []
    for sealed in taken(accumulator, shard):
        header = check_batch(bytes(sealed.payload))
        assert header.map_version == 2
        records += oracles.decode(bytes(sealed.payload))
        sealed.stored(PutReceipt(100 + len(records) - sealed.count, 1_000, 1))
    return records


puts = st.lists(
    st.tuples(
        st.text("abcdefgh", min_size=1, max_size=2), st.binary(max_size=120),
        st.sampled_from([b"", b"\x81\xa1a\xc4\x01b"]), st.none() | st.integers(0, 2**40),
        st.none() | st.binary(min_size=16, max_size=16), st.booleans(),
    ),
    max_size=50,
)  # fmt: skip


@given(before=puts, after=puts, codec=st.sampled_from([0, 1]), compress=st.booleans())
def test_each_record_arrives_once_before_what_was_put_later(
    before: list[Any], after: list[Any], codec: int, compress: bool
) -> None:
    accumulator = made(codec=codec)
    plain = made(codec=0)
    expected: list[list[Any]] = [[], [], []]
    handles: list[Any] = []
    for when in (before, after):
        for key, value, headers, time_ms, explicit, bulk in when:
            if bulk:
                handle = ColumnsHandle(1)
                keys, values = pyarrow.array([key]), pyarrow.array([value], pyarrow.binary())
                assert accumulator.put_columns(Column(keys, "keys"), Column(values, "values"), handle)
                plain.put(key, value)
                shard = 1 if int.from_bytes(hash_key(key), "big") < HALF else 2
            else:
                handle = accumulator.put(key, value, headers, time_ms, explicit)
                plain.put(key, value, headers, time_ms, explicit)
                shard = 1 if int.from_bytes(explicit or hash_key(key), "big") < HALF else 2
            expected[shard].append(handle)
            handles.append((handle, shard))
        if when is before:
            split(accumulator)
            move(accumulator, taken(accumulator, compress=compress))
    whole = [record for sealed in taken(plain) for record in oracles.decode(bytes(sealed.payload))]
    for shard in (1, 2):
        records = drained(accumulator, shard)
        mine = [record for record, (_, where) in zip(whole, handles, strict=True) if where == shard]
        assert [record[:4] for record in records] == [record[:4] for record in mine]
    for shard in (1, 2):
        for index, handle in enumerate(expected[shard]):
            if isinstance(handle, ColumnsHandle):
                assert (handle.sequences[0], handle.shards[0]) == (100 + index, shard)
            else:
                assert handle.result(0) == (shard, 100 + index)
    assert accumulator.budget.used == 0
    assert accumulator.records == len(handles)


def test_a_record_has_its_outcome_when_the_batch_that_took_it_over_has() -> None:
    accumulator = made(batch_bytes_max=10_000)
    handles = [accumulator.put(f"k{i}", b"%d" % i) for i in range(20)]
    told: list[Any] = []
    for handle in handles:
        handle.add_done_callback(told.append)  # type: ignore[union-attr]
    split(accumulator)
    move(accumulator, taken(accumulator))
    (low,), (high,) = taken(accumulator, 1), taken(accumulator, 2)
    assert told == []
    assert [handle.cancel() for handle in handles] == [False] * 20  # type: ignore[union-attr]
    low.stored(PutReceipt(0, 1_000, 1))
    assert told == [handle for handle in handles if handle.done()]  # type: ignore[union-attr]
    assert len(told) == low.count < 20
    assert [handle.result(0) for handle in told] == [(1, i) for i in range(low.count)]
    pending = [handle for handle in handles if handle not in told]
    assert {handle.outcome for handle in pending} == {"pending"}  # type: ignore[union-attr]
    with pytest.raises(TimedOut):
        pending[0].result(0)  # type: ignore[union-attr]
    (outcome,) = high.failed(Closed("gone"))
    assert told[low.count:] == pending
    failed = [handle for handle in handles if handle.exception() is not None]  # type: ignore[union-attr]
    assert len(failed) == high.count
    assert outcome.unseen() == 0, "each was looked at"


def test_who_waits_is_told_when_the_record_was_handed_on_twice_and_its_former_mates_wait() -> None:
    accumulator = made(batch_bytes_max=10_000)
    keys = ("k0", next(f"k{i}" for i in range(1, 99) if side(f"k{i}") != side("k0")))
    first, other = (accumulator.put(key, b"v") for key in keys)
    told: list[Any] = []
    first.add_done_callback(told.append)  # type: ignore[union-attr]
    results: list[Any] = []
    waiting = threading.Thread(target=lambda: results.append(first.result(60)))  # type: ignore[union-attr]
    waiting.start()
    split(accumulator)
    move(accumulator, taken(accumulator))
    ranges = [None, None, None, LOW, HIGH]
    accumulator.replace_map(ranges, origins=origins(5), map_version=3)
    for sealed in taken(accumulator, side("k0")):
        take_apart(accumulator, sealed, ShardTable(ranges))
    (sealed,) = taken(accumulator, side("k0") + 2)
    sealed.stored(PutReceipt(7, 1_000, 1))
    waiting.join(60)
    assert results == [(side("k0") + 2, 7)]
    assert told == [first]
    assert not other.done()  # type: ignore[union-attr]


def test_nobody_holds_what_failed_though_a_former_mate_was_looked_at_before() -> None:
    accumulator = made(batch_bytes_max=10_000)
    keys = ("k0", next(f"k{i}" for i in range(1, 99) if side(f"k{i}") != side("k0")))
    first, other = (accumulator.put(key, b"v") for key in keys)
    split(accumulator)
    move(accumulator, taken(accumulator))
    (sealed,), (late,) = taken(accumulator, side("k0")), taken(accumulator, 3 - side("k0"))
    sealed.stored(PutReceipt(7, 1_000, 1))
    assert first.result(0) == (side("k0"), 7)  # type: ignore[union-attr]
    assert late.unheld() == 0
    del other
    assert late.unheld() == 1
    late.failed(Closed("gone"))


def test_a_batch_may_be_taken_apart_again_and_again() -> None:
    accumulator = made(batch_bytes_max=10_000)
    handles = [accumulator.put("k", b"%d" % i) for i in range(5)]
    split(accumulator)
    move(accumulator, taken(accumulator))
    child = 1 if int.from_bytes(hash_key("k"), "big") < HALF else 2
    for merged in (3, 4, 5):
        ranges = [None] * merged + [WHOLE]
        accumulator.replace_map(ranges, origins=origins(merged + 1), map_version=merged)
        for sealed in taken(accumulator, child):
            take_apart(accumulator, sealed, ShardTable(ranges))
        child = merged
    (sealed,) = taken(accumulator, 5)
    sealed.stored(PutReceipt(7, 1_000, 1))
    assert [handle.result(0) for handle in handles] == [(5, 7 + i) for i in range(5)]  # type: ignore[union-attr]


def test_a_batch_without_a_target_stays_whole() -> None:
    accumulator = made(batch_bytes_max=10_000)
    handles = [accumulator.put(f"k{i}", b"v" * 100) for i in range(60)]
    used, records = accumulator.budget.used, accumulator.records
    split(accumulator)
    (sealed,) = taken(accumulator)
    with pytest.raises(WrongShard):
        take_apart(accumulator, sealed, ShardTable([None, (0, HALF // 4), None]))
    assert (accumulator.budget.used, accumulator.records) == (used, records)
    assert not accumulator.waiting(1)
    assert not accumulator.waiting(2)
    sealed.stored(PutReceipt(0, 1_000, 1))
    assert handles[59].result(0) == (0, 59)  # type: ignore[union-attr]


def test_after_close_nothing_is_taken_apart() -> None:
    accumulator = made()
    accumulator.put("k", b"v")
    split(accumulator)
    (sealed,) = taken(accumulator)
    accumulator.close()
    with pytest.raises(Closed):
        take_apart(accumulator, sealed, ShardTable([None, LOW, HIGH]))
    sealed.failed(Closed("closed"))
    assert accumulator.budget.used == 0


def test_nothing_is_left_behind() -> None:
    before = debug.live()
    accumulator = made()
    for i in range(50):
        accumulator.put(f"k{i}", b"v")
    split(accumulator)
    move(accumulator, taken(accumulator))
    del accumulator
    assert debug.live() == before
