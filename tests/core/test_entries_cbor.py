"""Put bodies in CBOR: every length form, width and tag that a writer may choose gives the same entries."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit._core.batch import Batch
from streamkit._core.entries import MalformedBody, PutEntries
from streamkit._core.hashing import ShardTable
from tests.oracles_gateway import Parts, Tagged, cbor_dumps, cbor_head

WHOLE = ShardTable([(0, 2**128)])


def scanned(body: bytes, *, single: bool = False) -> PutEntries:
    return PutEntries(body, cbor=True, single=single)


def rows(put: PutEntries) -> list[tuple[str, bytes]]:
    return [(r.key, r.data) for one in put.pack(WHOLE, codec=0, map_version=0) for r in Batch(one.batch)]


def cut(value: Any, places: list[int]) -> Parts:
    """A string in parts, some of them empty."""
    edges = sorted({0, len(value), *(place % (len(value) + 1) for place in places)})
    return Parts([value[a:b] for a, b in itertools.pairwise(edges)] or [value])


@given(data=st.data(), indefinite=st.booleans(), width=st.sampled_from([0, 1, 2, 4, 8]), single=st.booleans())
def test_any_way_to_write_it_is_read(data: st.DataObject, indefinite: bool, width: int, single: bool) -> None:
    entries, expected = [], []
    places = st.lists(st.integers(0, 50), max_size=4)
    for _ in range(1 if single else data.draw(st.integers(1, 5))):
        value = data.draw(st.binary(max_size=50))
        key = data.draw(st.text(min_size=1, max_size=20))
        expected.append((key, value))
        as_key = data.draw(st.sampled_from([key, key.encode(), cut(key, data.draw(places)), Tagged(9, key)]))
        pairs = [
            ("Data", data.draw(st.sampled_from([value, cut(value, data.draw(places)), Tagged(64, value)]))),
            ("PartitionKey", as_key),
            ("ExplicitHashKey", data.draw(st.sampled_from([None, "77"]))),
            ("Else", [1, {"Data": None}]),
        ]
        entries.append(dict(data.draw(st.permutations(pairs))))
    whole = {**entries[0], "StreamName": "s"} if single else {"Records": entries, "StreamName": "s"}
    body = cbor_dumps(Tagged(55799, whole), indefinite=indefinite, width=width)

    put = scanned(body, single=single)

    assert rows(put) == expected
    assert put.members == ({"StreamName": "s", "Else": [1, {"Data": None}]} if single else {"StreamName": "s"})
    assert put.payload_bytes == sum(len(key.encode()) + len(value) for key, value in expected)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(members=st.dictionaries(st.text(max_size=9), values, max_size=5), indefinite=st.booleans(),
       width=st.sampled_from([0, 2, 8]))
def test_other_members_are_decoded(members: dict[str, Any], indefinite: bool, width: int) -> None:
    members.pop("Records", None)

    put = scanned(cbor_dumps(members, indefinite=indefinite, width=width))

    assert put.members == {name: value for name, value in members.items() if value is not None}
    assert not put.has_records


@pytest.mark.parametrize(("item", "value"), [
    (b"\xf9\x3c\x00", 1.0), (b"\xf9\x7c\x00", math.inf), (b"\xfa\x47\xc3\x50\x00", 100_000.0), (b"\xf7", None),
    (b"\xc1\x1b\x00\x00\x01\x8b\xcf\xe5\x68\x00", 1_700_000_000_000), (b"\xe0", None), (b"\xf8\x20", None),
    (b"\x7f\x61a\x60\x61b\xff", "ab"), (b"\x5f\xff", b""), (b"\x9f\xff", []), (b"\xbf\xff", {}),
    (b"\xa1\x80\x01", {"[]": 1}), (b"\x3b" + b"\xff" * 8, -(2**64)),
])
def test_rare_values(item: bytes, value: Any) -> None:
    assert scanned(b"\xa1\x61m" + item).members == ({} if value is None else {"m": value})


@pytest.mark.parametrize("body", [
    b"", b"\xf6", b"\x80", b"\xa1", b"\xa1\x61", b"\xa1\x61a", b"\xbf", b"\xbf\x61a\x01", b"\xbf\x61a\xff", b"\xff",
    b"\xa0\xa0", b"\xa0\x00", b"\xa1\x01\x01", b"\xa1\x41a\x01", b"\xa1\x61a\x1c", b"\xa1\x61a\xfc", b"\xa1\x61a\x3f",
    b"\xa1\x61a\xff", b"\xa1\x61a\xf8\x10", b"\xa1\x61a\x61\xff", b"\xa1\x61\xff\x01", b"\xa1\x61a\x7f\x41a\xff",
    b"\xa1\x61a\x7f\x7f\xff\xff", b"\xa1\x61a\x7f\x61\xc3\x61\xa9\xff", b"\xa1\x61a\x5f\x41", b"\xa1\x61a\xdf",
    b"\xa1\x61a\xc1", b"\xa1\x61a" + b"\xc1" * 100_000, b"\xa1\x61a" + b"\x81" * 100_000,
    b"\xa1\x61a" + b"\x9f" * 100_000, b"\xa1\x61a\x9b" + b"\xff" * 8, b"\xa1\x61a\xbb" + b"\xff" * 8,
    b"\xa1\x61a\x5b" + b"\xff" * 8, b"\xbb" + b"\xff" * 8, b"\xa1\x67Records\x9b" + b"\xff" * 8,
    cbor_dumps({"Records": {}}), cbor_dumps({"Records": "x"}), cbor_dumps({"Records": [1]}),
    cbor_dumps({"Records": [{"Data": "text"}]}), cbor_dumps({"Records": [{"Data": 1}]}),
    cbor_dumps({"Records": [{"PartitionKey": 1}]}), cbor_dumps({"Records": [{"PartitionKey": b"\xff"}]}),
    cbor_dumps({"Records": [{"PartitionKey": ["k"]}]}), cbor_dumps({"Records": [{"ExplicitHashKey": 12}]}),
])
def test_what_is_no_body(body: bytes) -> None:
    with pytest.raises(MalformedBody):
        scanned(body)


def test_missing_and_null() -> None:
    put = scanned(cbor_dumps({"Records": [{}, None, {"Data": None, "PartitionKey": None}], "StreamName": None}))
    assert (put.count, put.has_records, put.members, put.payload_bytes) == (3, True, {}, 0)
    assert [path for path, shown, _ in put.violations() if shown == "null"] == [
        f"records.{i}.member.{name}" for i in (1, 2, 3) for name in ("data", "partitionKey")]
    assert not scanned(cbor_dumps({"Records": None})).has_records
    assert not scanned(cbor_dumps({"PartitionKey": "k"}), single=True).has_records


def test_the_last_of_repeated_members_wins() -> None:
    entry = cbor_head(5, 3) + b"".join(map(cbor_dumps, ["Data", b"a", "PartitionKey", "k", "Data", b"b"]))
    records = cbor_dumps("Records")
    put = scanned(cbor_head(5, 2) + records + b"\x81\xa0" + records + b"\x82" + entry + entry)
    assert rows(put) == [("k", b"b")] * 2
