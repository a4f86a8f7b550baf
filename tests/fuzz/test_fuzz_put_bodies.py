"""Damaged put bodies, JSON and CBOR: MalformedBody or entries that hold together, never anything else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit._core.batch import Batch, check_batch
from streamkit._core.entries import MalformedBody, PutEntries
from streamkit._core.framing import PutReceipt
from streamkit._core.hashing import ShardTable
from streamkit.errors import InvalidUse
from streamkit.model.shard import even_ranges
from tests.oracles_gateway import Parts, Tagged, cbor_dumps, cbor_loads

TABLE = ShardTable(even_ranges(3))
ORIGINS = [(i, 1_700_000_000_000) for i in range(3)]
ENTRIES: list[dict[str, Any]] = [
    {"Data": b"hello world", "PartitionKey": "clé \"1\"\u2028", "ExplicitHashKey": str(2**128 - 1)},
    {"PartitionKey": "\U0001f600", "Data": b"", "Unknown": [1, -2.5e3, True, None, {"a": ["b"]}]},
]
OTHERS = {"StreamName": "orders", "DryRun": False, "X": [0.5, {"y": "z"}]}


def json_text(value: Any) -> Any:
    """The entries with Data in base64 (of bytes that give a plus and a slash too)."""
    return {**value, "Data": "+/8AaGVsbG8="} if value["Data"] else {**value, "Data": "YQ=="}


def seeds(cbor: bool, single: bool) -> list[bytes]:
    if cbor:
        parts = [{**ENTRIES[0], "Data": Parts([b"ab", b"", b"c"])}, {**ENTRIES[1], "PartitionKey": Tagged(1, "k")}]
        wholes = [{**one, **OTHERS} if single else {"Records": [one, one], **OTHERS} for one in [*ENTRIES, *parts]]
        return [cbor_dumps(w, indefinite=i, width=8 * i) for w in wholes for i in (False, True)]
    texts = [json_text(one) for one in ENTRIES]
    wholes = [{**one, **OTHERS} if single else {"Records": texts, **OTHERS} for one in texts]
    return [json.dumps(w, ensure_ascii=a, indent=1 if a else None).encode() for w in wholes for a in (False, True)]


def one_input(data: bytes, *, cbor: bool, single: bool) -> None:
    """Whatever the bytes are: MalformedBody, or batches and a reply that fit each other."""
    try:
        put = PutEntries(data, cbor=cbor, single=single)
    except MalformedBody as error:
        assert str(error)
        return
    assert put.has_records == (put.count > 0) or single or put.count == 0
    violations = put.violations()
    assert len(violations) <= 10 and all(path and shown and text for path, shown, text in violations)
    bad = put.bad_hash_key()
    assert bad is None or int(bad) >= 2**128
    json.dumps([*violations, bad]).encode()
    if put.count > 500:
        return
    try:
        packed = put.pack(TABLE, codec=0, map_version=1)
    except InvalidUse:
        assert violations or bad is not None
        return
    sizes = []
    for one in packed:
        assert check_batch(one.batch).record_count == one.count
        sizes += [len(record.data) + len(record.key.encode()) for record in Batch(one.batch)]
    assert (len(sizes), sum(sizes), max(sizes, default=0)) == (put.count, put.payload_bytes, put.largest())
    reply = put.reply(packed, [PutReceipt(5, 1_700_000_000_000, 1)] * len(packed), ORIGINS)
    decoded = cbor_loads(reply) if cbor else json.loads(reply)
    assert "SequenceNumber" in decoded if single else len(decoded["Records"]) == put.count


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("cbor", [False, True])
def test_a_body_cut_anywhere_is_malformed(cbor: bool, single: bool) -> None:
    for seed in seeds(cbor, single):
        PutEntries(seed, cbor=cbor, single=single)
        for end in range(len(seed)):
            with pytest.raises(MalformedBody):
                PutEntries(seed[:end], cbor=cbor, single=single)


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("cbor", [False, True])
def test_any_byte_may_be_wrong(cbor: bool, single: bool) -> None:
    for seed in seeds(cbor, single)[:2]:
        for at in range(len(seed)):
            for value in {0, 0x22, 0x5B, 0x5C, 0x5F, 0x7F, 0x80, 0x9F, 0xBF, 0xFF, seed[at] ^ 1, seed[at] ^ 0x20}:
                one_input(seed[:at] + bytes([value]) + seed[at + 1 :], cbor=cbor, single=single)
            one_input(seed[:at] + seed[at + 1 :], cbor=cbor, single=single)


@pytest.mark.fuzz
@given(
    data=st.data(),
    cbor=st.booleans(),
    single=st.booleans(),
    edits=st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), max_size=6),
    cut=st.tuples(st.integers(0, 600), st.integers(0, 600)),
    noise=st.binary(max_size=30) | st.text(max_size=20).map(str.encode),
)
def test_a_damaged_body_is_malformed_or_holds_together(
    data: st.DataObject, cbor: bool, single: bool, edits: list[tuple[int, int]], cut: tuple[int, int], noise: bytes
) -> None:
    seed = data.draw(st.sampled_from(seeds(cbor, single)))
    damaged = bytearray(seed)
    for at, value in edits:
        damaged[at % len(damaged)] = value
    one_input(bytes(damaged), cbor=cbor, single=single)
    one_input(bytes(damaged[: cut[0]] + noise + damaged[cut[1] :]), cbor=cbor, single=single)
    one_input(noise, cbor=cbor, single=single)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.fuzz
@given(members=st.dictionaries(st.text(max_size=9), json_values, max_size=6), ascii_only=st.booleans())
def test_any_json_is_scanned_as_json_reads_it(members: dict[str, Any], ascii_only: bool) -> None:
    members.pop("Records", None)
    put = PutEntries(json.dumps(members, ensure_ascii=ascii_only).encode(), cbor=False, single=False)

    assert put.members == {name: value for name, value in members.items() if value is not None}


@pytest.mark.fuzz
@given(text=st.text(alphabet='{}[]",:\\ntrueflas0123.-+eE \n\u00e9', max_size=40))
def test_what_json_refuses_is_refused(text: str) -> None:
    body = '{"a":' + text + "}"
    try:
        json.loads(body, parse_constant=lambda name: json.loads("?"))
    except ValueError:
        with pytest.raises(MalformedBody):
            PutEntries(body.encode(), cbor=False, single=False)
    else:
        PutEntries(body.encode(), cbor=False, single=False)
