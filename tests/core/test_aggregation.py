"""The KPL's aggregated records: what we write others read and the reverse, and nothing else is taken for one."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest
from aws_kinesis_agg import aggregator, deaggregator, messages_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from streamkit._core.aggregation import BYTES_MAX, Aggregator, is_aggregate, split
from streamkit._core.hashing import hash_key
from streamkit.errors import InvalidUse
from tests import oracles_aggregation as twin
from tests.oracles_aggregation import UserRecord, sign

KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
HASHES = st.none() | st.integers(0, 2**128 - 1)
RECORDS = st.lists(st.tuples(KEYS, HASHES, st.binary(max_size=200)), max_size=30)
SMALL = [("k", None, b"one"), ("k", 7, b""), ("é", 2**128 - 1, b"three")]


def ours(data: bytes) -> list[UserRecord] | None:
    found = split(data)
    if found is None:
        return None
    return [(record.partition_key, record.explicit_hash_key, record.data, record.tags) for record in found]


def parsed(message: bytes) -> list[UserRecord] | None:
    """As the protobuf library and the rules about indexes and hash keys have it."""
    read = messages_pb2.AggregatedRecord()
    try:
        read.ParseFromString(message)
        keys = list(read.partition_key_table)
        hashes = [int(text) for text in read.explicit_hash_key_table]
        return [
            (
                keys[record.partition_key_index],
                hashes[record.explicit_hash_key_index] if record.HasField("explicit_hash_key_index") else None,
                record.data,
                tuple((tag.key, tag.value if tag.HasField("value") else None) for tag in record.tags),
            )
            for record in read.records
        ]
    except Exception:                      # its errors have no common class that is ours to name
        return None


def written(records: list[tuple[str, int | None, bytes]], *, repeat: bool = False, late: bool = False) -> bytes:
    """A message by the protobuf library. repeat: no table entry is shared. late: the tables follow the records."""
    message = messages_pb2.AggregatedRecord()
    for key, hashed, data in records:
        record = message.records.add()
        if repeat or key not in message.partition_key_table:
            message.partition_key_table.append(key)
            record.partition_key_index = len(message.partition_key_table) - 1
        else:
            record.partition_key_index = list(message.partition_key_table).index(key)
        if hashed is not None:
            message.explicit_hash_key_table.append(str(hashed))
            record.explicit_hash_key_index = len(message.explicit_hash_key_table) - 1
        record.data = data
    if not late:
        return bytes(message.SerializeToString())
    tables = messages_pb2.AggregatedRecord()
    tables.CopyFrom(message)
    tables.ClearField("records")
    message.ClearField("partition_key_table")
    message.ClearField("explicit_hash_key_table")
    return bytes(message.SerializePartialToString() + tables.SerializeToString())


def aggregated(records: list[tuple[str, int | None, bytes]]) -> Aggregator:
    made = Aggregator()
    for key, hashed, data in records:
        assert made.add(key, data, hashed)
    return made


# ---- reading what others write -----------------------------------------------------------------------------


@given(RECORDS, st.booleans(), st.booleans())
def test_what_protobuf_writes_is_read(records: list[tuple[str, int | None, bytes]], repeat: bool, late: bool) -> None:
    message = written(records, repeat=repeat, late=late)

    whole = sign(message)

    expected = [(key, hashed, data, ()) for key, hashed, data in records] if message else None
    assert ours(whole) == expected == twin.split(whole)


@given(st.lists(st.tuples(KEYS.filter(bool), st.binary(min_size=1, max_size=200)), min_size=2, max_size=20))
def test_what_the_python_kpl_library_writes_is_read(records: list[tuple[str, bytes]]) -> None:
    writer = aggregator.RecordAggregator()
    for key, data in records:
        assert writer.add_user_record(key, data) is None

    _key, _explicit, data = writer.clear_and_get().get_contents()

    found = split(bytes(data))
    assert found is not None
    assert list(zip(found.keys(), found.values(), strict=True)) == records
    assert [record.sub_sequence for record in found] == list(range(len(records)))


def test_tags_are_read_and_tables_may_repeat() -> None:
    message = messages_pb2.AggregatedRecord(partition_key_table=["a", "a"], explicit_hash_key_table=["5", "5"])
    record = message.records.add(partition_key_index=1, explicit_hash_key_index=1, data=b"x")
    record.tags.add(key="colour", value="red")
    record.tags.add(key="bare")
    record.tags.add(key="", value="")

    whole = sign(message.SerializeToString())

    assert ours(whole) == [("a", 5, b"x", (("colour", "red"), ("bare", None), ("", "")))] == twin.split(whole)


def test_unknown_fields_are_skipped_and_the_last_value_counts() -> None:
    inner = b"\x08\x00" + b"\x1a\x01x" + b"\x1a\x01y" + b"\x20\x05" + b"\x2d1234" + b"\x3112345678" + b"\x08\x01"
    message = b"\x0a\x01a\x0a\x01b" + b"\x22\x03unk" + b"\x1a" + bytes([len(inner)]) + inner + b"\x08\x01"

    assert ours(sign(message)) == [("b", None, b"y", ())] == parsed(message)


def test_effective_hash_keys() -> None:
    explicit, plain = split(sign(written([("k", 2**127 + 3, b""), ("k", None, b"")]))) or ()

    assert explicit.hash_key == (2**127 + 3).to_bytes(16, "big")
    assert plain.hash_key == hashlib.md5(b"k").digest() == hash_key("k")


# ---- what is not an aggregate ------------------------------------------------------------------------------


@pytest.mark.parametrize("message", [
    b"\x0a\x01k\x1a\x04\x08\x01\x1a\x00",                       # the key's index is past the table
    b"\x0a\x01k\x1a\x06\x08\x00\x10\x00\x1a\x00",               # there is no table of hash keys
    b"\x0a\x01k\x1a\x02\x08\x00",                               # no data
    b"\x0a\x01k\x1a\x02\x1a\x00",                               # no key
    b"\x0a\x01\xff\x1a\x04\x08\x00\x1a\x00",                    # a key that is not UTF-8
    b"\x0a\x01k\x12\x02-1\x1a\x04\x08\x00\x1a\x00",             # a hash key that is no number
    b"\x0a\x01k\x12\x00\x1a\x04\x08\x00\x1a\x00",
    b"\x0a\x01k\x12\x27" + str(2**128).encode() + b"\x1a\x04\x08\x00\x1a\x00",
    b"\x0a\x01k\x1a\x06\x08\x00\x1a\x00\x22\x00",               # a tag without its key
    b"\x0a\x01k\x1a\x04\x08\x00\x1a\x00\x23\x24",               # a group
    b"\x0a\x01k\x1a\x06\x08\x00\x1a\x00\x23\x24",
    b"\x0a\x01k\x1a\x05\x08\x00\x1a\x00",                       # runs past the end
    b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\x00\x01",
    b"\x0e\x01",
])  # fmt: skip
def test_a_message_that_breaks_a_rule_is_not_an_aggregate(message: bytes) -> None:
    assert ours(sign(message)) is None
    assert twin.split(sign(message)) is None


def test_an_envelope_without_a_message_is_not_an_aggregate() -> None:
    assert not is_aggregate(sign(b""))
    assert not is_aggregate(b"")
    assert ours(sign(b"\x0a\x01k")) == []


@given(st.binary(max_size=100))
def test_other_data_are_not_aggregates(data: bytes) -> None:
    assert not is_aggregate(data)
    assert not is_aggregate(twin.MAGIC + data)
    assert not is_aggregate(memoryview(bytearray(data)))


@given(st.binary(min_size=1, max_size=60))
@settings(max_examples=500)
@pytest.mark.fuzz
def test_random_messages_are_read_as_the_slow_reader_has_it(message: bytes) -> None:
    assert ours(sign(message)) == twin.split(sign(message))


@pytest.mark.fuzz
def test_a_cut_aggregate_is_none_and_a_cut_message_is_read_as_protobuf_does() -> None:
    message = written(SMALL)
    whole = sign(message)
    for end in range(len(whole)):
        assert split(whole[:end]) is None
    for end in range(1, len(message)):
        check(message[:end])


@pytest.mark.fuzz
def test_every_flipped_bit_is_noticed_or_read_as_protobuf_does() -> None:
    message = written(SMALL)
    whole = sign(message)
    for place in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        assert split(flipped) is None
    for place in range(len(message)):
        for value in range(256):
            changed = bytearray(message)
            changed[place] = value
            check(bytes(changed))


def check(message: bytes) -> None:
    found = ours(sign(message))
    assert found == twin.split(sign(message))
    if found is not None:                  # the other way round: we refuse groups, and texts protobuf does not look at
        assert parsed(message) == found


# ---- writing -----------------------------------------------------------------------------------------------


@given(RECORDS.filter(lambda records: len(records) > 1))
def test_what_we_write_is_read_by_protobuf_and_by_us(records: list[tuple[str, int | None, bytes]]) -> None:
    made = aggregated(records)

    whole = made.bytes()

    assert made.size == len(whole)
    expected = [(key, hashed, data, ()) for key, hashed, data in records]
    assert parsed(whole[4:-16]) == expected == ours(whole)
    key, hashed, _ = records[0]
    assert made.partition_key == "a"
    assert made.explicit_hash_key == (hashed if hashed is not None else int.from_bytes(hash_key(key), "big"))


@given(st.lists(st.tuples(KEYS.filter(bool), st.integers(0, 2**128 - 1), st.binary(max_size=50)),
                min_size=2, max_size=20))
def test_what_we_write_is_read_by_the_python_kpl_library(records: list[tuple[str, int, bytes]]) -> None:
    whole = aggregated(list(records)).bytes()

    event: dict[str, Any] = {"kinesis": {
        "kinesisSchemaVersion": "1.0", "sequenceNumber": "1", "approximateArrivalTimestamp": 0.0, "partitionKey": "a",
        "data": base64.b64encode(whole),
    }}
    read = [record["kinesis"] for record in deaggregator.deaggregate_records(event)]

    assert [
        (record["partitionKey"], int(record["explicitHashKey"]), base64.b64decode(record["data"])) for record in read
    ] == records
    assert [record["subSequenceNumber"] for record in read] == list(range(len(records)))


def test_our_bytes_are_those_of_the_python_kpl_library() -> None:
    writer = aggregator.RecordAggregator()
    made = Aggregator()
    for i in range(200):
        key, hashed = f"key-{i % 150}", i % 130 << 120
        writer.add_user_record(key, b"x" * i, str(hashed))
        assert made.add(key, b"x" * i, hashed)

    assert made.bytes() == bytes(writer.clear_and_get().get_contents()[2])


@given(RECORDS, st.integers(100, 400))
def test_an_aggregate_never_passes_its_size_and_a_refused_record_changes_nothing(
    records: list[tuple[str, int | None, bytes]], bytes_max: int
) -> None:
    made = Aggregator(bytes_max)
    taken: list[tuple[str, int | None, bytes]] = []
    for key, hashed, data in records:
        before = made.bytes() if taken else b""
        if made.add(key, data, hashed):
            taken.append((key, hashed, data))
            assert len(taken) == 1 or made.size <= bytes_max
        else:
            assert taken and made.bytes() == before
    assert len(made) == len(taken)
    if len(taken) > 1:
        assert ours(made.bytes()) == [(key, hashed, data, ()) for key, hashed, data in taken]


def test_a_single_record_is_put_as_it_is() -> None:
    made = aggregated([("mine", None, b"data")])
    assert (made.partition_key, made.explicit_hash_key, made.bytes(), made.size) == ("mine", None, b"data", 4)

    with_hash = aggregated([("mine", 9, b"data")])
    assert (with_hash.partition_key, with_hash.explicit_hash_key, with_hash.bytes()) == ("mine", 9, b"data")


def test_a_single_record_that_is_an_aggregate_itself_is_wrapped() -> None:
    inner = aggregated(SMALL).bytes()

    outer = aggregated([("mine", None, inner)])

    assert outer.partition_key == "a"
    assert outer.explicit_hash_key == int.from_bytes(hash_key("mine"), "big")
    assert ours(outer.bytes()) == [("mine", None, inner, ())]


def test_a_writer_begins_anew_and_takes_a_first_record_of_any_size() -> None:
    made = Aggregator()
    assert made.bytes_max == BYTES_MAX == 51_200
    assert made.add("k", bytes(60_000))
    assert not made.add("k", b"x")

    made.clear()

    assert made.size == len(made) == 0
    assert made.add("k", b"x") and made.bytes() == b"x"


def test_a_writer_says_what_is_wrong() -> None:
    made = Aggregator(hash_range=(0, 1 << 127))
    with pytest.raises(InvalidUse, match="holds no record"):
        made.bytes()
    with pytest.raises(InvalidUse, match="holds no record"):
        _ = made.partition_key
    with pytest.raises(InvalidUse, match="one shard"):
        made.add("k", b"", 1 << 127)
    with pytest.raises(InvalidUse, match="explicit hash key"):
        made.add("k", b"", 1 << 128)
    with pytest.raises(InvalidUse, match="explicit hash key"):
        made.add("k", b"", "7")
    with pytest.raises(InvalidUse, match="UTF-8"):
        made.add("\ud800", b"")
    with pytest.raises(TypeError):
        made.add("k", "text")
    assert made.size == 0
    with pytest.raises(InvalidUse, match="bytes_max"):
        Aggregator(20)
    assert made.add("k", b"", (1 << 127) - 1)
    with pytest.raises(IndexError):
        (split(aggregated(SMALL).bytes()) or ())[3]
