"""The batch: what is sealed is what is read, and damage is always found."""

from __future__ import annotations

import datetime
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit._core import debug
from streamkit._core.batch import (
    HEADER_BYTES,
    Batch,
    RecordContext,
    check_batch,
    control_batch,
    read_header,
    seal,
    shard_seed,
    stamped,
)
from streamkit.errors import CorruptBatch, DecodeFailed, InvalidUse
from streamkit.model.sequence import sequence_number
from tests import oracles_batch as oracles

UUID = bytes(range(16))
NOW_MS = 1_700_000_000_123

keys = st.text(min_size=1, max_size=20).map(lambda text: text.encode("utf-8", "ignore") or b"k")
header_maps = st.dictionaries(st.text(max_size=5), st.binary(max_size=9), min_size=1, max_size=2)
headers = st.just(b"") | header_maps.map(msgspec.msgpack.encode)
hash_keys = st.none() | st.binary(min_size=16, max_size=16)
times = st.none() | st.integers(1_600_000_000_000, 1_600_000_000_000 + (1 << 31) - 1)
records = st.lists(
    st.tuples(keys, st.binary(max_size=300), headers, times, hash_keys), min_size=1, max_size=20
)


def stamped_batch(entries: list[oracles.SealedRecord], codec: int = 0, base_sequence: int = 40) -> bytes:
    sealed = seal(entries, codec=codec, producer_id=7, producer_sequence=3)
    return stamped(sealed, base_sequence=base_sequence, epoch=2, append_time_ms=NOW_MS, shard_uuid=UUID)


@given(entries=records, sequence=st.integers(0, 2**64 - 1))
def test_seal_writes_what_the_twin_writes(entries: list[oracles.SealedRecord], sequence: int) -> None:
    settings = {"producer_id": 9, "producer_epoch": 3, "producer_sequence": sequence, "map_version": 5}

    assert seal(entries, codec=0, **settings) == oracles.encode(entries, **settings)


@given(entries=records, codec=st.sampled_from([0, 1, 2]))
def test_a_batch_gives_back_its_records(entries: list[oracles.SealedRecord], codec: int) -> None:
    entries = entries * 3
    whole = stamped_batch(entries, codec)

    read = Batch(whole, RecordContext("orders", "shardId-000000000000", 0, NOW_MS, uuid=UUID))

    assert check_batch(whole, UUID).record_count == len(read) == len(entries)
    assert [(r.key.encode(), r.data) for r in read] == [(e[0], e[1]) for e in entries]
    assert read.values() == [e[1] for e in entries]
    assert read.keys() == [e[0].decode() for e in entries]
    assert [bytes(r.view()) for r in read] == read.values()
    assert [dict(r.headers) for r in read] == [msgspec.msgpack.decode(e[2]) if e[2] else {} for e in entries]
    assert [r.hash_key for r in read] == [e[4] or oracles.hash_key(e[0]).to_bytes(16, "big") for e in entries]
    assert [r.sequence for r in read] == list(range(40, 40 + len(entries)))
    for record, entry in zip(read, entries, strict=True):
        expected = NOW_MS if entry[3] is None else entry[3]
        assert (record.time - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(
            milliseconds=1
        ) == expected


@given(entries=records, codec=st.sampled_from([0, 1, 2]), skip=st.integers(0, 30))
def test_arrow_columns_hold_what_records_hold(entries: list[oracles.SealedRecord], codec: int, skip: int) -> None:
    whole = stamped_batch(entries, codec)

    table = Batch(whole, None, 40 + skip).to_arrow()

    table.validate(full=True)
    expected = oracles.arrow_rows(whole)[skip:]
    rows = table.to_pylist()
    for name in ("sequence", "key", "data"):
        assert [row[name] for row in rows] == [row[name] for row in expected]
    assert table.column("time").cast("int64").to_pylist() == [e["time"] for e in expected]
    assert table.column("arrived").cast("int64").to_pylist() == [NOW_MS] * len(expected)


@given(entries=records, codec=st.sampled_from([0, 1]), data=st.data())
def test_any_flipped_bit_is_found(entries: list[oracles.SealedRecord], codec: int, data: st.DataObject) -> None:
    whole = bytearray(stamped_batch(entries, codec))
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    whole[bit // 8] ^= 1 << bit % 8

    with pytest.raises(CorruptBatch):
        check_batch(whole, UUID)


@given(entries=records, cut=st.integers(1, 1 << 20))
def test_a_batch_cut_short_anywhere_is_corrupt(entries: list[oracles.SealedRecord], cut: int) -> None:
    whole = stamped_batch(entries)
    short = whole[: -(cut % len(whole) or 1)]

    for read in (read_header, check_batch, Batch):
        with pytest.raises(CorruptBatch):
            read(short)


def test_a_resealed_lie_in_the_record_table_is_found_before_any_record() -> None:
    whole = bytearray(seal([(b"key", b"value", b"", None, None)] * 3, codec=0))
    for at in range(HEADER_BYTES, HEADER_BYTES + 12 + 4):
        for value in (0, 1, 0x7F, 0xFF):
            lie = bytearray(whole)
            lie[at] = value
            struct.pack_into("<I", lie, 32, oracles.crc32c(bytes(lie[36:])))
            try:
                found = [(r.key, r.data) for r in Batch(lie)]
            except CorruptBatch:
                continue
            assert sum(len(k) + len(d) for k, d in found) <= 3 * 8


@pytest.mark.parametrize("codec", [1, 2])
@pytest.mark.parametrize("claim", [13, 5_000, 5_200, 9_000_000, 2**32 - 1])
def test_a_claimed_raw_size_is_never_believed(codec: int, claim: int) -> None:
    whole = bytearray(seal([(b"key", b"v" * 5_000, b"", None, None)], codec=codec))
    assert read_header(whole).codec != "none"
    struct.pack_into("<I", whole, 60, claim)
    struct.pack_into("<I", whole, 32, oracles.crc32c(bytes(whole[36:])))

    with pytest.raises(CorruptBatch):
        Batch(whole).values()


def test_a_key_that_is_no_text_is_corrupt() -> None:
    whole = bytearray(seal([(b"\xff\xfe", b"", b"", None, None)], codec=0))

    with pytest.raises(CorruptBatch):
        list(Batch(whole))


def test_a_batch_of_another_shard_is_corrupt_where_the_shard_is_known() -> None:
    whole = stamped_batch([(b"k", b"v", b"", None, None)])

    assert check_batch(whole, UUID).base_sequence == 40
    with pytest.raises(CorruptBatch):
        check_batch(whole, bytes(16))
    with pytest.raises(CorruptBatch):
        Batch(whole, RecordContext("orders", "s", uuid=bytes(16)))
    assert shard_seed(UUID) == oracles.crc32c(UUID)


def test_records_before_the_first_asked_for_are_left_out() -> None:
    whole = stamped_batch([(b"k", b"%d" % i, b"", None, None) for i in range(10)])

    batch = Batch(whole, None, 47)

    assert (batch.base_sequence, batch.first_sequence, batch.end_sequence, len(batch)) == (40, 47, 50, 3)
    assert [r.data for r in batch] == batch.values() == [b"7", b"8", b"9"]
    assert batch[0].sequence == 47
    assert batch[-1].sequence == 49
    assert len(Batch(whole, None, 99)) == 0


def test_records_outlive_a_buffer_that_is_used_again() -> None:
    whole = bytearray(stamped_batch([(b"k", b"first", b"", None, None)]))
    record = Batch(memoryview(whole))[0]
    whole[:] = bytes(len(whole))

    assert record.data == b"first"


def test_sequence_numbers_are_the_models() -> None:
    context = RecordContext("orders", "shardId-000000000017", 17, 1_690_000_000_000)
    record = Batch(stamped_batch([(b"k", b"v", b"", None, None)], base_sequence=2**40), context)[0]

    assert record.sequence_number == sequence_number(
        2**40, ordinal=17, created_ms=1_690_000_000_000, arrived_ms=NOW_MS
    )


def test_a_value_is_decoded_once_and_failures_say_where() -> None:
    calls = []

    def decode(data: bytes) -> int:
        calls.append(data)
        return int(data)

    context = RecordContext("orders", "shardId-000000000000", decode=decode, codec="number")
    good, bad = Batch(stamped_batch([(b"k", b"5", b"", None, None), (b"k", b"x", b"", None, None)]), context)

    assert (good.value, good.value, calls) == (5, 5, [b"5"])
    with pytest.raises(DecodeFailed) as caught:
        _ = bad.value
    assert caught.value.facts["sequence_number"] == bad.sequence_number
    assert caught.value.facts["codec"] == "number"
    assert good.json() == 5
    with pytest.raises(DecodeFailed):
        bad.json()


def test_decoded_values_come_without_records_and_fail_as_theirs_do() -> None:
    records = [(b"k", b"%d" % number, b"", None, None) for number in range(5)]
    context = RecordContext("s", "h", decode=int, explain=lambda error: f"because: {type(error).__name__}")
    batch = Batch(stamped_batch([*records, (b"k", b"x", b"", None, None)]), context)
    got = batch.decoded()

    assert [next(got) for _ in range(5)] == list(range(5))
    with pytest.raises(DecodeFailed, match="because: ValueError") as caught:
        next(got)
    assert caught.value.facts["sequence_number"] == batch[5].sequence_number
    assert list(batch.part(2, 4).decoded()) == [2, 3]
    assert list(Batch(stamped_batch(records)).decoded()) == [record[1] for record in records]


def test_the_content_type_chooses_the_decoder() -> None:
    packed = msgspec.msgpack.encode({"content-type": b"upper"})
    context = RecordContext("s", "h", decode=bytes.lower, decode_for=lambda kind: getattr(bytes, kind))
    one, two = Batch(stamped_batch([(b"k", b"aB", packed, None, None), (b"k", b"aB", b"", None, None)]), context)

    assert (one.value, two.value) == (b"AB", b"ab")


def test_broken_headers_fail_to_decode() -> None:
    record = Batch(stamped_batch([(b"k", b"v", b"\xc1", None, None)]))[0]

    with pytest.raises(DecodeFailed):
        _ = record.headers


def test_control_batches_are_marked() -> None:
    header = read_header(control_batch("epoch_start"))

    assert header.is_control
    assert header.is_epoch_start
    with pytest.raises(InvalidUse):
        control_batch("nonsense")


def test_a_batch_has_between_one_record_and_its_limit() -> None:
    for count in (0, 65_536):
        with pytest.raises(InvalidUse):
            seal([(b"k", b"", b"", None, None)] * count)
    assert read_header(seal([(b"k", b"", b"", None, None)] * 65_535)).record_count == 65_535


def test_nothing_is_left_alive() -> None:
    before = debug.live()
    batch = Batch(stamped_batch([(b"k", b"v", b"", None, None)] * 5))
    kept = list(batch)
    del batch, kept

    assert debug.live() == before
