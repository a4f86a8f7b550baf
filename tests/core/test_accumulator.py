"""The accumulator: every accepted record leaves once, in order, in a sound batch, within the budget."""

from __future__ import annotations

import array
import random
import threading
from typing import Any

import lz4.block
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit._core import debug
from streamkit._core.accumulator import Accumulator, Budget
from streamkit._core.batch import Batch, check_batch, read_header
from streamkit._core.columns import Column
from streamkit._core.framing import PutReceipt
from streamkit._core.outcome import ColumnsHandle
from streamkit.errors import Closed, InvalidRequest, InvalidUse, RecordTooLarge, WrongShard
from streamkit.model.shard import even_ranges
from tests import oracles_batch as oracles

ROOM = 1 << 26


def made(shards: int = 3, room: int = ROOM, **settings: Any) -> Accumulator:
    settings.setdefault("wake", lambda: None)
    origins = [
        lambda receipt, index, i=i: (i, receipt.base_sequence + index, receipt.append_time_ms, receipt.duplicate)
        for i in range(shards)
    ]
    return Accumulator(even_ranges(shards), budget=Budget(room), origins=origins, **settings)


def drained(accumulator: Accumulator) -> list[list[Any]]:
    """The records of each shard, after checking that their batches are sound and numbered without holes."""
    found = []
    for shard in range(accumulator.shards):
        found.append([])
        sequence = 0
        while (sealed := accumulator.take(shard, close_open=True, producer_id=5, sequence=sequence)) is not None:
            payload = bytes(sealed.payload)
            header = check_batch(payload)
            assert (header.producer_id, header.producer_sequence, header.record_count) == (5, sequence, sealed.count)
            low, high = even_ranges(accumulator.shards)[shard]
            assert low <= int.from_bytes(header.hash_low, "big") <= int.from_bytes(header.hash_high, "big") < high
            found[-1] += oracles.decode(payload)
            sealed.stored(PutReceipt(sequence, 1_000, 1))
            sequence += sealed.count
    return found


puts = st.lists(
    st.tuples(
        st.text("abcdefgh", min_size=1, max_size=2), st.binary(max_size=120) | st.just(b"x" * 900),
        st.sampled_from([b"", b"\x81\xa1a\xc4\x01b"]), st.none() | st.integers(-(2**40), 2**40),
        st.none() | st.binary(min_size=16, max_size=16),
    ),
    max_size=60,
)  # fmt: skip


@given(
    entries=puts, batch_bytes_max=st.integers(1, 3_000), batch_records_max=st.integers(1, 9), codec=st.integers(0, 2)
)
def test_records_leave_once_and_in_order_for_each_shard(
    entries: list[Any], batch_bytes_max: int, batch_records_max: int, codec: int
) -> None:
    accumulator = made(batch_bytes_max=batch_bytes_max, batch_records_max=batch_records_max, codec=codec)
    expected: list[list[Any]] = [[], [], []]
    ranges: list[tuple[int, int] | None] = list(even_ranges(3))
    for key, value, headers, time_ms, hash_key in entries:
        accumulator.put(key, value, headers, time_ms, hash_key)
        number = oracles.hash_key(key.encode()) if hash_key is None else int.from_bytes(hash_key, "big")
        expected[oracles.find_shard(ranges, number)].append((key.encode(), value, headers, time_ms))

    found = drained(accumulator)

    assert [[record[:4] for record in shard] for shard in found] == expected
    assert accumulator.budget.used == 0


def test_a_batch_holds_no_more_than_it_may() -> None:
    accumulator = made(1, batch_bytes_max=1_000, codec=0)
    for _ in range(100):
        accumulator.put("k", b"v" * 90)
    accumulator.put("k", b"v" * 5_000)              # alone in its batch

    sizes = []
    while (sealed := accumulator.take(0, close_open=True)) is not None:
        sizes.append((sealed.count, read_header(sealed.payload).raw_bytes))
    assert sum(count for count, _ in sizes) == 101
    assert all(raw <= 1_000 for count, raw in sizes[:-1])
    assert sizes[-1] == (1, 5_013)


def test_a_handle_tells_where_its_record_is() -> None:
    accumulator = made(1)
    handles = [accumulator.put("k", b"%d" % i) for i in range(3)]
    sealed = accumulator.take(0, close_open=True)
    assert not any(handle.done() for handle in handles)

    sealed.stored(PutReceipt(70, 123, 1, 1))

    assert [handle.result() for handle in handles] == [(0, 70 + i, 123, 1) for i in range(3)]
    assert handles[0].exception() is None


def test_failures_nobody_looked_at_are_counted() -> None:
    accumulator = made(1)
    handles = [accumulator.put("k", b"v") for _ in range(4)]
    [delivery] = accumulator.take(0, close_open=True).failed(Closed("gone"))
    assert delivery.unseen() == 4

    with pytest.raises(Closed):
        handles[0].result()
    with pytest.raises(Closed):
        handles[0].result()
    assert isinstance(handles[1].exception(), Closed)

    assert delivery.unseen() == 2
    delivery.look()
    assert delivery.unseen() == 0


def test_callbacks_run_once_settled_and_their_errors_stop_nobody(caplog: pytest.LogCaptureFixture) -> None:
    accumulator = made(1)
    seen: list[Any] = []
    handle = accumulator.put("k", b"v")
    handle.add_done_callback(lambda _: 1 / 0)
    handle.add_done_callback(seen.append)

    accumulator.take(0, close_open=True).stored(PutReceipt(0, 0, 1))
    handle.add_done_callback(seen.append)

    assert seen == [handle, handle]
    assert "put.callback_failed" in caplog.text


def test_the_budget_refuses_and_gives_back() -> None:
    accumulator = made(1, room=1_000)
    accepted = 0
    while accumulator.put("k", b"v" * 100) is not None:
        accepted += 1
    assert 6 <= accepted <= 9
    assert accumulator.budget.used <= 1_000

    sealed = accumulator.take(0, close_open=True)
    assert accumulator.put("k", b"v" * 100) is None
    sealed.stored(PutReceipt(0, 0, 1))

    assert accumulator.budget.used == 0
    assert accumulator.put("k", b"v" * 100) is not None


def test_the_same_bytes_are_sent_until_renumbered() -> None:
    for codec, value in ((0, b"v" * 900), (1, b"v" * 900)):
        accumulator = made(1, codec=codec)
        accumulator.put("k", value)
        sealed = accumulator.take(0, close_open=True, producer_id=1, sequence=4)
        first = sealed.payload
        kept = bytes(first)
        assert bytes(sealed.payload) == kept

        sealed.renumber(2, 0, 9)

        assert bytes(first) == kept                  # a connection may still hold the old bytes
        header = check_batch(sealed.payload)
        assert (header.producer_id, header.producer_sequence) == (2, 9)
        assert Batch(sealed.payload).values() == [value]


def test_a_view_outlives_its_batch() -> None:
    accumulator = made(1, codec=0)
    accumulator.put("k", b"value")
    sealed = accumulator.take(0, close_open=True)
    view = sealed.payload
    sealed.stored(PutReceipt(0, 0, 1))
    del sealed

    assert Batch(view).values() == [b"value"]


def test_shards_that_compress_badly_are_left_alone_for_a_while() -> None:
    accumulator = made(1, codec=1)
    noise = random.Random(1).randbytes(2_000)

    def codec_of(value: bytes) -> str:
        accumulator.put("k", value)
        sealed = accumulator.take(0, close_open=True)
        codec = read_header(sealed.payload).codec
        sealed.stored(PutReceipt(0, 0, 1))
        return codec

    assert codec_of(b"v" * 2_000) == "lz4"
    assert codec_of(b"v" * 100) == "none"            # too small to try
    assert {codec_of(noise) for _ in range(16)} == {"none"}
    assert {codec_of(b"v" * 2_000) for _ in range(256)} == {"none"}
    assert codec_of(b"v" * 2_000) == "lz4"


def test_incompressible_data_cost_next_to_nothing_and_are_sampled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Acceptance: producer 14.

    With data that compression gains nothing from, nearly all batches are not even tried.
    """
    tried: list[int] = []
    compress = lz4.block.compress

    def counted(body: Any, **options: Any) -> bytes:
        tried.append(len(body))
        packed: bytes = compress(body, **options)
        return packed

    monkeypatch.setattr(lz4.block, "compress", counted)
    accumulator = made(1, batch_records_max=1, codec=1)
    noise = random.Random(7).randbytes(2_000)

    def batches(value: bytes, count: int) -> int:
        smaller = 0
        for _ in range(count):
            accumulator.put("k", value)
            sealed = accumulator.take(0, close_open=True)
            assert sealed is not None
            smaller += len(sealed) < sealed.raw_bytes
            sealed.stored(PutReceipt(0, 1_000, 1))
        return smaller

    assert batches(noise, 2_000) == 0
    assert len(tried) <= 16 + 2_000 // 256 + 1       # 1.2 % of them: what trying costs is lost in the noise
    assert batches(b"v" * 2_000, 600) > 600 - 257    # one sample that gains brings it back


def test_wrong_records_are_refused_and_cost_nothing() -> None:
    accumulator = made(2, record_bytes_max=100)
    for key in ("", "k" * 1_025):
        with pytest.raises(InvalidRequest):
            accumulator.put(key, b"")
    with pytest.raises(RecordTooLarge):
        accumulator.put("k", b"v" * 100)
    with pytest.raises(InvalidRequest):
        accumulator.put("k", b"v", hash_key=b"short")
    with pytest.raises(InvalidRequest):
        accumulator.put("k", b"", b"h" * 65_536)
    with pytest.raises(TypeError):
        accumulator.put("k", "text")                 # type: ignore[arg-type]
    accumulator.close()
    with pytest.raises(Closed):
        accumulator.put("k", b"v")

    assert accumulator.budget.used == 0


def test_a_hash_key_that_no_shard_takes_is_refused() -> None:
    accumulator = Accumulator([(0, 1), None], budget=Budget(ROOM), origins=[print, print], wake=lambda: None)

    with pytest.raises(WrongShard):
        accumulator.put("k", b"v")
    assert accumulator.put("k", b"v", hash_key=bytes(16)) is not None


def test_it_asks_to_be_woken_once_until_looked_at() -> None:
    woken: list[int] = []
    accumulator = made(3, wake=lambda: woken.append(1))
    for i in range(50):
        accumulator.put(f"k{i}", b"v")
    assert len(woken) == 1

    assert sorted(accumulator.take_touched()) == [0, 1, 2]
    assert accumulator.take_touched() == []
    accumulator.put("k", b"v")                       # joins an open batch: nothing new to know
    assert len(woken) == 1


# ---- columns ---------------------------------------------------------------------------------------------

rows = st.lists(st.tuples(st.text("abc", min_size=1, max_size=3), st.binary(max_size=50)), max_size=80)


def pair(values: list[bytes], kind: str) -> tuple[array.array[int], bytes]:
    ends = array.array(kind, [0])
    for value in values:
        ends.append(ends[-1] + len(value))
    return ends, b"".join(values)


def columns_of(entries: list[tuple[str, bytes]], form: str) -> tuple[Any, Any]:
    keys, values = [key for key, _ in entries], [value for _, value in entries]
    match form:
        case "arrow":
            return pyarrow.array(keys, pyarrow.string()), pyarrow.array(values, pyarrow.binary())
        case "large":
            return pyarrow.array(keys, pyarrow.large_string()), pyarrow.array(values, pyarrow.large_binary())
        case "sliced":
            padded = pyarrow.array(["?", *keys, "?"]), pyarrow.array([b"?", *values, b"?"], pyarrow.binary())
            return padded[0].slice(1, len(keys)), padded[1].slice(1, len(keys))
        case _:
            return pair([key.encode() for key in keys], form), pair(values, form)


@given(entries=rows, form=st.sampled_from(["arrow", "large", "sliced", "i", "q", "Q"]), records_max=st.integers(1, 7))
def test_columns_are_put_as_their_rows_would_be(entries: list[tuple[str, bytes]], form: str, records_max: int) -> None:
    bulk, single = made(batch_records_max=records_max), made(batch_records_max=records_max)
    keys, values = columns_of(entries, form)
    handle = ColumnsHandle(len(entries))

    assert bulk.put_columns(Column(keys), Column(values), handle)
    assert handle.taken == len(entries)
    for key, value in entries:
        single.put(key, value)

    found = drained(bulk)
    assert found == drained(single)
    assert handle.result() is handle
    assert set(handle.states) <= {1}
    for row, (key, value) in enumerate(entries):
        assert found[handle.shards[row]][handle.sequences[row]][:2] == (key.encode(), value)


def test_a_full_budget_stops_a_bulk_put_at_a_row() -> None:
    accumulator = made(1, room=5_000)
    keys, values = columns_of([("k", b"v" * 100)] * 100, "arrow")
    handle = ColumnsHandle(100)
    taken = 0
    while not accumulator.put_columns(Column(keys), Column(values), handle):
        assert taken < handle.taken < 100
        taken = handle.taken
        drained(accumulator)
    drained(accumulator)

    assert handle.state == 1
    assert accumulator.budget.used == 0


def test_a_bad_row_is_named_and_the_rows_before_it_are_taken() -> None:
    accumulator = made(1, record_bytes_max=10)
    keys, values = columns_of([("k", b"v"), ("k", b"v" * 10), ("k", b"v")], "arrow")
    handle = ColumnsHandle(3)

    with pytest.raises(RecordTooLarge) as caught:
        accumulator.put_columns(Column(keys), Column(values), handle)
    assert handle.taken == 1
    handle.refuse_row(caught.value)
    assert accumulator.put_columns(Column(keys), Column(values), handle)
    drained(accumulator)

    assert list(handle.states) == [1, 2, 1]
    assert handle.failed == handle.unseen() == 1
    assert handle.failures[0][0].facts["row"] == 1


@pytest.mark.parametrize("key", [b"\xff", b"\xed\xa0\x80", "\ud800", 5])
def test_a_key_is_text(key: Any) -> None:
    with pytest.raises((InvalidRequest, TypeError)):
        made().put(key, b"v")


def test_a_column_of_keys_that_are_no_text_is_refused_row_by_row() -> None:
    accumulator = made(1)
    keys, values = pair([b"k", b"\xff", b"k"], "q"), pair([b"0", b"1", b"2"], "q")
    handle = ColumnsHandle(3)

    with pytest.raises(InvalidRequest, match="UTF-8") as caught:
        accumulator.put_columns(Column(keys), Column(values), handle)
    handle.refuse_row(caught.value)
    assert accumulator.put_columns(Column(keys), Column(values), handle)

    assert [value for _, value, *_ in drained(accumulator)[0]] == [b"0", b"2"]


def test_a_closed_accumulator_leaves_no_row_undecided() -> None:
    before = debug.live()
    accumulator = made(1, batch_records_max=2)
    accumulator.close()
    keys, values = columns_of([("k", b"v")] * 5, "arrow")
    handle = ColumnsHandle(5)
    with pytest.raises(Closed) as caught:
        accumulator.put_columns(Column(keys), Column(values), handle)
    assert handle.taken == 0
    handle.abandon(caught.value)
    handle.abandon(caught.value)

    assert handle.failed == 5
    del accumulator, handle, caught
    assert debug.live() == before


@pytest.mark.parametrize(
    "source",
    [
        [b"a", b"b"], pyarrow.array([1, 2]), pyarrow.array([b"a", None]), (array.array("q", []), b""),
        (array.array("q", [0, 5]), b"abc"), (array.array("q", [2, 1]), b"abc"), (array.array("q", [-1, 1]), b"abc"),
        (array.array("d", [0.0, 1.0]), b"abc"), (array.array("b", [0, 1]), b"abc"),
        (array.array("Q", [0, 2**64 - 1]), b"abc"),
    ],
)  # fmt: skip
def test_what_is_no_column_is_refused(source: Any) -> None:
    with pytest.raises(InvalidUse):
        Column(source)


def test_keys_and_values_are_of_one_length() -> None:
    with pytest.raises(InvalidUse):
        made().put_columns(Column(pyarrow.array(["a"])), Column(pyarrow.array([b"a", b"b"])), ColumnsHandle(1))


def test_threads_may_put_while_others_put_columns() -> None:
    accumulator = made(4, batch_records_max=50)
    keys, values = columns_of([(f"bulk{i % 50}", b"%06d" % i) for i in range(4_000)], "arrow")
    handle = ColumnsHandle(4_000)
    found: list[list[Any]] = [[], [], [], []]

    def put_some(name: str) -> None:
        for i in range(2_000):
            accumulator.put(f"{name}{i % 50}", b"%06d" % i)

    threads = [threading.Thread(target=put_some, args=(name,)) for name in "ab"]
    threads.append(threading.Thread(target=lambda: accumulator.put_columns(Column(keys), Column(values), handle)))
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or any(accumulator.waiting(i) for i in range(4)):
        for shard, records in enumerate(drained_once(accumulator)):
            found[shard] += records
    for thread in threads:
        thread.join()

    assert sum(map(len, found)) == 8_000
    for records in found:
        by_key: dict[bytes, list[bytes]] = {}
        for key, value, *_ in records:
            by_key.setdefault(key, []).append(value)
        assert all(values == sorted(values) for values in by_key.values())
    assert handle.done()


def drained_once(accumulator: Accumulator) -> list[list[Any]]:
    found = []
    for shard in range(accumulator.shards):
        sealed = accumulator.take(shard, close_open=True)
        found.append(oracles.decode(bytes(sealed.payload)) if sealed is not None else [])
        if sealed is not None:
            sealed.stored(PutReceipt(0, 0, 1))
    return found


def test_columns_of_a_lost_accumulator_fail() -> None:
    accumulator = made(2, batch_records_max=3)
    keys, values = columns_of([(f"k{i}", b"v") for i in range(10)], "arrow")
    handle = ColumnsHandle(10)
    accumulator.put_columns(Column(keys), Column(values), handle)
    sealed = accumulator.take(0, close_open=True)
    del accumulator
    assert not handle.done()
    del sealed

    assert handle.failed == 10
    assert isinstance(handle.failures[0][0], Closed)


def test_records_of_a_lost_accumulator_fail() -> None:
    accumulator = made(1)
    handle = accumulator.put("k", b"v")
    assert handle is not None
    sealed = accumulator.take(0, close_open=True)
    del accumulator, sealed

    assert isinstance(handle.exception(), Closed)


def test_nothing_is_left_alive() -> None:
    before = debug.live()
    accumulator = made(2)
    keys, values = columns_of([("k", b"v")] * 10, "arrow")
    handle = ColumnsHandle(10)
    accumulator.put_columns(Column(keys), Column(values), handle)
    drained(accumulator)
    kept = [accumulator.put(f"k{i}", b"v") for i in range(20)]
    sealed = accumulator.take(0, close_open=True)
    del accumulator, handle, kept, sealed

    assert debug.live() == before
