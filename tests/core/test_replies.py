"""Stored batches become arrays of records, as json, base64 and a small CBOR reader see them; events are framed."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit._core.batch import control_batch, seal, stamped
from streamkit._core.replies import EncodedRecords, encode_records, frame_event
from streamkit.errors import CorruptBatch, InvalidUse
from tests import oracles_gateway as oracles
from tests.core.test_batch import records as sealed_records

UUID = bytes(range(16))
SHARD = {"ordinal": 2_147_483_647, "created_ms": 1_699_999_999_999}
ALL: dict[str, Any] = {"count_max": 10_000, "bytes_max": 10 << 20, **SHARD, "cbor": False, "kms": False}


def stored(parts: list[list[Any]], *, codec: int = 0, base: int = 40, control_at: int = -1) -> list[bytes]:
    """Batches that follow each other; the one at `control_at` comes behind a control batch."""
    found: list[bytes] = []
    for i, part in enumerate(parts):
        for raw, flags, count in [(control_batch("epoch_start"), 3, 1)] * (i == control_at) + [
            (seal(part, codec=codec), 0, len(part))
        ]:
            found.append(stamped(raw, flags=flags, base_sequence=base, epoch=1,
                                 append_time_ms=1_700_000_000_000 + 7 * (base % 10**9), shard_uuid=UUID))
            base += count
    return found


def decoded(encoded: EncodedRecords, *, cbor: bool, kms: bool) -> list[dict[str, Any]]:
    """The records in the form that the twin gives."""
    found = []
    for one in oracles.cbor_loads(encoded.body) if cbor else json.loads(encoded.body):
        arrival = one.pop("ApproximateArrivalTimestamp")
        data = one.pop("Data")
        key = one.pop("PartitionKey", "")
        assert one.pop("EncryptionType", None) == ("KMS" if kms else None)
        ms = arrival.value if cbor else round(arrival * 1000)
        assert not cbor or arrival.tag == 1
        found.append({"number": one.pop("SequenceNumber"), "ms": ms, "key": key,
                      "data": data if cbor else base64.b64decode(data, validate=True)})
        assert one == {}
    return found


@given(
    parts=st.lists(sealed_records, max_size=4),
    codec=st.sampled_from([0, 1, 2]),
    control_at=st.integers(-1, 3),
    skipped=st.integers(-41, 60),
    count_max=st.integers(1, 60),
    bytes_max=st.integers(0, 3_000) | st.just(10 << 20),
    cbor=st.booleans(),
    kms=st.booleans(),
)
def test_records_are_what_the_twin_reads(
    parts: list[list[Any]], codec: int, control_at: int, skipped: int, count_max: int, bytes_max: int, cbor: bool,
    kms: bool,
) -> None:
    batches = stored(parts, codec=codec, control_at=control_at)
    first = max(40 + skipped, 0)

    encoded = encode_records(
        batches, first, count_max=count_max, bytes_max=bytes_max, **SHARD, cbor=cbor, kms=kms)

    expected, following = oracles.records(batches, first, count_max=count_max, bytes_max=bytes_max, **SHARD)
    assert decoded(encoded, cbor=cbor, kms=kms) == expected
    assert encoded.count == len(expected)
    assert encoded.payload_bytes == sum(len(one["data"]) + len(one["key"].encode()) for one in expected)
    assert encoded.next_sequence == following
    assert encoded.last_append_ms == (expected[-1]["ms"] if expected else 0)
    if expected:
        index = int(expected[-1]["number"]) >> 80 & 0xFFFFFFFFFFFFFFFF
        assert encoded.last_sequence == index - 1
    else:
        assert encoded.last_sequence == -1


def test_the_exact_text_of_a_record() -> None:
    batch = stamped(seal([(b'a"\\/\x00\x1f\n\x7f\xc3\xa9\xe2\x80\xa8', b"\xff\xfe", b"", None, None)], codec=0),
                    base_sequence=0, append_time_ms=1_700_000_000_005, shard_uuid=UUID)

    encoded = encode_records([batch], 0, **{**ALL, "kms": True, "ordinal": 0, "created_ms": 0})

    number = 2 << 184 | 1 << 80 | 1_700_000_000 << 36 | 2
    assert encoded.body.decode() == (
        f'[{{"SequenceNumber":"{number}","ApproximateArrivalTimestamp":1700000000.005,"Data":"//4=",'
        '"PartitionKey":"a\\"\\\\/\\u0000\\u001f\\u000a\x7fé\u2028","EncryptionType":"KMS"}]')
    assert len(str(number)) == 56


@given(key=st.text(min_size=1, max_size=60), data=st.binary(max_size=200))
def test_any_key_is_json(key: str, data: bytes) -> None:
    batches = stored([[(key.encode(), data, b"", None, None)]])

    (one,) = json.loads(encode_records(batches, 0, **ALL).body)

    assert (one["PartitionKey"], base64.b64decode(one["Data"], validate=True)) == (key, data)


def test_an_empty_key_is_left_out() -> None:
    batches = stored([[(b"", b"v", b"", None, bytes(16))]])

    assert "PartitionKey" not in json.loads(encode_records(batches, 0, **ALL).body)[0]
    assert "PartitionKey" not in oracles.cbor_loads(encode_records(batches, 0, **{**ALL, "cbor": True}).body)[0]


def test_nothing_to_encode() -> None:
    for batches, first in (([], 17), (stored([[(b"k", b"", b"", None, None)]]), 41)):
        encoded = encode_records(batches, first, **ALL)
        assert (encoded.body, encoded.count, encoded.next_sequence, encoded.last_sequence) == (b"[]", 0, first, -1)
        assert encode_records(batches, first, **{**ALL, "cbor": True}).body == b"\x80"
    with pytest.raises(InvalidUse):
        encode_records([], 0, **{**ALL, "count_max": 0})
    with pytest.raises(TypeError):
        EncodedRecords()


def test_numbers_carry_over_every_digit() -> None:
    for base in (0, 10**7 - 3, 10**12 - 3, 2**32 - 3, 2**48 - 3, 2**60, 2**62 - 3, 2**63 - 400):
        batches = stored([[(b"k", b"", b"", None, None)] * 300], base=base)
        expected, _ = oracles.records(batches, base, count_max=300, bytes_max=10**6, **SHARD)
        assert decoded(encode_records(batches, base, **ALL), cbor=False, kms=False) == expected


def test_10000_records_and_a_large_one() -> None:
    batches = stored([[(b"key-%d" % i, bytes([i % 256]) * 100, b"", None, None) for i in range(2_500)]] * 4, codec=1)
    expected, _ = oracles.records(batches, 0, count_max=10_000, bytes_max=10 << 20, **SHARD)
    for cbor in (False, True):
        encoded = encode_records([memoryview(one) for one in batches], 0, **{**ALL, "cbor": cbor})
        assert decoded(encoded, cbor=cbor, kms=False) == expected

    large = stored([[(b"k", bytes(10 << 20), b"", None, None)], [(b"k", b"", b"", None, None)]])
    encoded = encode_records(large, 40, **{**ALL, "bytes_max": 10})
    assert (encoded.count, encoded.next_sequence, encoded.payload_bytes) == (1, 41, (10 << 20) + 1)


@pytest.mark.parametrize("codec", [0, 1, 2])
def test_damage_is_found(codec: int) -> None:
    good, bad = stored([[(b"k", b"v" * 900, b"", None, None)]] * 2, codec=codec)
    for at in (0, 5, 36, 60, len(bad) - 1):
        broken = bytearray(bad)
        broken[at] ^= 0x41
        with pytest.raises(CorruptBatch):
            encode_records([good, broken], 40, **ALL)
    with pytest.raises(CorruptBatch):
        encode_records([good, bad[:-1]], 40, **ALL)


@given(headers=st.lists(st.tuples(st.text(min_size=1, max_size=40), st.text(max_size=60)), max_size=4),
       payload=st.binary(max_size=300))
def test_an_event_is_framed(headers: list[tuple[str, str]], payload: bytes) -> None:
    message = frame_event(headers, memoryview(payload))

    total, headers_size, crc = struct.unpack(">III", message[:12])
    assert total == len(message) == 16 + headers_size + len(payload)
    assert crc == zlib.crc32(message[:8])
    assert struct.unpack(">I", message[-4:])[0] == zlib.crc32(message[:-4])
    assert message[12 + headers_size : -4] == payload
    found, rest = [], message[12 : 12 + headers_size]
    while rest:
        name, rest = rest[1 : 1 + rest[0]], rest[1 + rest[0] :]
        assert rest[0] == 7
        size = int.from_bytes(rest[1:3], "big")
        found.append((name.decode(), rest[3 : 3 + size].decode()))
        rest = rest[3 + size :]
    assert found == headers


def test_headers_that_do_not_fit_an_event() -> None:
    for header in (("", "v"), ("n" * 256, "v"), ("n", "v" * 65_536)):
        with pytest.raises(InvalidUse):
            frame_event([header], b"")
