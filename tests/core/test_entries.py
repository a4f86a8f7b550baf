"""Put bodies: what boto3 and the Java SDK send becomes batches and a reply, as json, hashlib and int say."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit._core.batch import Batch, check_batch, read_header
from streamkit._core.entries import MalformedBody, Packed, PutEntries
from streamkit._core.framing import PutReceipt
from streamkit._core.hashing import ShardTable
from streamkit.errors import InvalidUse, WrongShard
from streamkit.model.sequence import sequence_number
from streamkit.model.shard import even_ranges
from tests import oracles_gateway as oracles

SHARDS = 4
TABLE = ShardTable(even_ranges(SHARDS))
WIDTH = 2**128 // SHARDS
ORIGINS = [(7 + i, 1_600_000_000_000 + i * 1_000) for i in range(SHARDS)]
NOW_MS = 1_700_000_000_123

entry = st.fixed_dictionaries(
    {"Data": st.binary(max_size=200), "PartitionKey": st.text(min_size=1, max_size=20)},
    optional={"ExplicitHashKey": st.none() | st.integers(0, 2**128 - 1).map(str)},
)
formats = st.booleans()


def scanned(text: str, *, single: bool = False) -> PutEntries:
    return PutEntries(text.encode(), cbor=False, single=single)


def records(*entries: str) -> str:
    """A PutRecords body of entries in JSON."""
    return '{"Records":[' + ",".join(entries) + "]}"


def record(data: str, key: str = "k") -> str:
    """An entry, or the body of a PutRecord."""
    return f'{{"Data":"{data}","PartitionKey":"{key}"}}'


def values(packed: list[Packed]) -> list[bytes]:
    return [value for one in packed for value in Batch(one.batch).values()]


def keys(packed: list[Packed]) -> list[str]:
    return [key for one in packed for key in Batch(one.batch).keys()]  # noqa: SIM118 - a batch is no mapping


def loads(reply: bytes, cbor: bool) -> Any:
    return oracles.cbor_loads(reply) if cbor else json.loads(reply)


@given(entries=st.lists(entry, min_size=1, max_size=30), cbor=formats, codec=st.sampled_from([0, 1, 2]))
def test_entries_lie_in_the_batches_of_their_shards(entries: list[dict[str, Any]], cbor: bool, codec: int) -> None:
    body = oracles.put_body(entries, {"StreamName": "orders"}, cbor=cbor, single=False)
    put = PutEntries(body, cbor=cbor, single=False)

    packed = put.pack(TABLE, codec=codec, map_version=9)

    expected: dict[int, list[tuple[str, bytes, int]]] = {}
    for one in entries:
        number = oracles.hash_number(one["PartitionKey"], one.get("ExplicitHashKey"))
        expected.setdefault(number // WIDTH, []).append((one["PartitionKey"], one["Data"], number))
    assert put.count == len(entries) and put.members == {"StreamName": "orders"} and put.has_records
    assert put.payload_bytes == sum(len(one["Data"]) + len(one["PartitionKey"].encode()) for one in entries)
    assert put.largest() == max(len(one["Data"]) + len(one["PartitionKey"].encode()) for one in entries)
    assert put.violations() == [] and put.bad_hash_key() is None
    found = {}
    for one in packed:
        header = check_batch(one.batch)
        assert header.record_count == one.count == len(one) and header.map_version == 9 and header.producer_id == 0
        rows = [(r.key, r.data, int.from_bytes(r.hash_key, "big")) for r in Batch(one.batch)]
        numbers = [row[2] for row in rows]
        assert (int.from_bytes(header.hash_low, "big"), int.from_bytes(header.hash_high, "big")) == (
            min(numbers), max(numbers))
        assert one.payload_bytes == sum(len(key.encode()) + len(value) for key, value, _ in rows)
        found[one.shard] = rows
    assert found == expected


@given(entries=st.lists(entry, min_size=1, max_size=30), cbor=formats, data=st.data())
def test_the_reply_answers_in_the_order_of_the_request(
    entries: list[dict[str, Any]], cbor: bool, data: st.DataObject
) -> None:
    put = PutEntries(oracles.put_body(entries, {}, cbor=cbor, single=False), cbor=cbor, single=False)
    packed = data.draw(st.permutations(put.pack(TABLE, codec=0, map_version=1)))
    encryption = data.draw(st.sampled_from([None, "NONE", "KMS"]))
    outcomes: list[PutReceipt | tuple[str, str]] = [
        ("InternalFailure", 'Internal "Service" Failure é') if data.draw(st.booleans())
        else PutReceipt(data.draw(st.integers(0, 2**62)), NOW_MS, 3)
        for _ in packed
    ]

    reply = loads(put.reply(packed, outcomes, ORIGINS, encryption=encryption), cbor)

    expected, places = [], {one.shard: 0 for one in packed}
    by_shard = {one.shard: outcome for one, outcome in zip(packed, outcomes, strict=True)}
    for one in entries:
        shard = oracles.hash_number(one["PartitionKey"], one.get("ExplicitHashKey")) // WIDTH
        outcome = by_shard[shard]
        if isinstance(outcome, tuple):
            expected.append({"ErrorCode": outcome[0], "ErrorMessage": outcome[1]})
            continue
        ordinal, created_ms = ORIGINS[shard]
        number = sequence_number(
            outcome.base_sequence + places[shard], ordinal=ordinal, created_ms=created_ms, arrived_ms=NOW_MS)
        places[shard] += 1
        expected.append({"SequenceNumber": number, "ShardId": f"shardId-{ordinal:012d}"})
    assert reply.pop("EncryptionType", None) == encryption
    assert reply == {"FailedRecordCount": sum("ErrorCode" in one for one in expected), "Records": expected}


@given(one=entry, cbor=formats, encryption=st.sampled_from([None, "KMS"]), sequence=st.integers(0, 2**62))
def test_a_single_record(one: dict[str, Any], cbor: bool, encryption: str | None, sequence: int) -> None:
    body = oracles.put_body([one], {"StreamName": "s", "SequenceNumberForOrdering": "49"}, cbor=cbor, single=True)
    put = PutEntries(body, cbor=cbor, single=True)
    (packed,) = put.pack(TABLE, codec=0, map_version=1)

    reply = loads(put.reply([packed], [PutReceipt(sequence, NOW_MS, 1)], ORIGINS, encryption=encryption), cbor)

    ordinal, created_ms = ORIGINS[packed.shard]
    assert put.members == {"StreamName": "s", "SequenceNumberForOrdering": "49"}
    assert (put.count, put.has_records, values([packed])) == (1, True, [one["Data"]])
    assert reply == {
        "ShardId": f"shardId-{ordinal:012d}",
        "SequenceNumber": sequence_number(sequence, ordinal=ordinal, created_ms=created_ms, arrived_ms=NOW_MS),
        **({"EncryptionType": encryption} if encryption else {}),
    }


@given(text=st.text(max_size=30), ascii_only=st.booleans())
def test_keys_are_unescaped_as_json_does(text: str, ascii_only: bool) -> None:
    body = json.dumps({"Records": [{"PartitionKey": text + "x", "Data": ""}]}, ensure_ascii=ascii_only)

    assert keys(scanned(body).pack(TABLE, codec=0, map_version=0)) == [text + "x"]


@given(data=st.binary(max_size=300))
def test_base64_of_every_length_comes_through(data: bytes) -> None:
    text = base64.b64encode(data).decode()

    put = scanned(records(record(text), record(text.replace("/", "\\/"))))       # PHP escapes slashes

    assert sorted(values(put.pack(TABLE, codec=0, map_version=0))) == [data, data]


@pytest.mark.parametrize("text", ["A", "AA", "AAA", "A===", "====", "AA=A", "=AAA", "AA==AAAA", "AA-_", "AAA ", " AAA",
                                  "AA\\n=", "A" * 31 + "é", "A" * 63 + "*", "*" + "A" * 63, "A" * 17 + "é" * 1])
def test_other_text_is_not_base64(text: str) -> None:
    with pytest.raises(MalformedBody):
        scanned(records(record(text)))


def test_every_character_is_base64_or_not() -> None:
    digits = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
    for place in (0, 5, 15, 16, 30, 31, 33):
        for code in range(1, 256):
            text = "A" * place + chr(code) + "A" * (35 - place)
            body = json.dumps({"Data": text, "PartitionKey": "k"}, ensure_ascii=False)
            if chr(code) in digits:
                (value,) = values(scanned(body, single=True).pack(TABLE, codec=0, map_version=0))
                assert value == base64.b64decode(text)
            else:
                with pytest.raises(MalformedBody):
                    scanned(body, single=True)


@pytest.mark.parametrize("single", [False, True])
def test_members_in_any_order_with_null_unknown_and_repeated_ones(single: bool) -> None:
    inner = ('"Extra":{"Data":[1,{"a":null}],"b":-1.5e+3},"Data":"eHg=","PartitionKey":null, "PartitionKey" :\t"k1",'
             '"Data":"eXk=","ExplicitHashKey":"12","ExplicitHashKey":null,"Nothing":[]')
    if single:
        body = '\r\n {"StreamARN":null,' + inner + ',"DryRun":true,"StreamName":"a","StreamName":"b"} '
        put = scanned(body, single=True)
        assert put.members == {"Extra": {"Data": [1, {"a": None}], "b": -1500.0}, "Nothing": [], "DryRun": True,
                               "StreamName": "b"}
    else:
        put = scanned('{"Records":[{}],"Records":[{' + inner + '}],"StreamName":"b","Data":[],"X":{},"X":null}')
        assert put.members == {"StreamName": "b", "Data": []}
    packed = put.pack(TABLE, codec=0, map_version=0)
    assert (keys(packed), values(packed), put.count) == (["k1"], [b"yy"], 1)


@pytest.mark.parametrize("body", ["{}", '{"Records":null}', '{"Records":[{}],"Records":null}'])
def test_missing_records(body: str) -> None:
    put = scanned(body)

    assert (put.has_records, put.count, put.violations(), put.payload_bytes, put.largest()) == (False, 0, [], 0, 0)
    assert put.pack(TABLE, codec=0, map_version=0) == []


@pytest.mark.parametrize("body", [
    "", " ", "[]", "null", "1", '"a"', "{", "{}x", "{} {}", "{,}", '{"a"}', '{"a":}', '{"a":1,}', '{"a":1 "b":2}',
    "{a:1}", '{"a":01}', '{"a":1.}', '{"a":.5}', '{"a":-}', '{"a":1e}', '{"a":+1}', '{"a":nul}', '{"a":True}',
    '{"a":"\t"}', '{"a":"\\x"}', '{"a":"\\u12g4"}', '{"a":"\\u123"}', '{"a":"', '{"a":"\\', '{"a":[1,]}', '{"a":[1}',
    '{"Records":{}}', '{"Records":"x"}', '{"Records":[1]}', '{"Records":[[]]}', '{"Records":[{}', '{"Records":[{}]',
    '{"Records":[{},]}', '{"Records":[{"Data":1}]}', '{"Records":[{"PartitionKey":7}]}',
    '{"Records":[{"ExplicitHashKey":0}]}', '{"Records":[{"PartitionKey":"\\ud800"}]}',
    '{"Records":[{"PartitionKey":"\\udc00\\ud800"}]}', '{"a":"\\ud83d\\u0041"}', '{"a":"\\ud83d"}', '{"a":1e999}',
    '{"a":' + "[" * 100 + "]" * 100 + "}",
    '{"a":' + "[" * 1_000_000,
    "{" + ",".join(f'"m{i}":1' for i in range(300)) + "}",
])
def test_what_is_no_body(body: str) -> None:
    with pytest.raises(MalformedBody):
        scanned(body)


@pytest.mark.parametrize("inner", [b"\x80", b"\xc3", b"\xc3(", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xc0\xaf",
                                   b"\xff"])
@pytest.mark.parametrize("place", [b'{"a":"%s"}', b'{"%s":1}', b'{"Records":[{"PartitionKey":"%s"}]}',
                                   b'{"Records":[{"X":["long enough for a wide step %s"]}]}'])
def test_text_that_is_not_utf8(inner: bytes, place: bytes) -> None:
    with pytest.raises(MalformedBody):
        PutEntries(place % inner, cbor=False, single=False)


def test_violations_name_the_entry_and_the_rule() -> None:
    entries: list[dict[str, Any] | None] = [
        {"Data": "", "PartitionKey": "é" * 256, "ExplicitHashKey": "0"},
        {"PartitionKey": "a", "ExplicitHashKey": "01"},
        {"Data": "", "PartitionKey": "é" * 257},
        {"Data": "", "PartitionKey": ""},
        {"Data": "", "PartitionKey": None, "ExplicitHashKey": "9" * 40},
        {"Data": "", "PartitionKey": "a", "ExplicitHashKey": ""},
        {"Data": "", "PartitionKey": "a", "ExplicitHashKey": "-1"},
        None,
    ]
    put = scanned(json.dumps({"Records": entries}))
    pattern = r"Member must satisfy regular expression pattern: 0|([1-9]\d{0,38})"

    assert put.violations() == [
        ("records.2.member.data", "null", "Member must not be null"),
        ("records.2.member.explicitHashKey", "'01'", pattern),
        ("records.3.member.partitionKey", f"'{'é' * 257}'", "Member must have length less than or equal to 256"),
        ("records.4.member.partitionKey", "''", "Member must have length greater than or equal to 1"),
        ("records.5.member.partitionKey", "null", "Member must not be null"),
        ("records.5.member.explicitHashKey", f"'{'9' * 40}'", pattern),
        ("records.6.member.explicitHashKey", "''", pattern),
        ("records.7.member.explicitHashKey", "'-1'", pattern),
        ("records.8.member.data", "null", "Member must not be null"),
        ("records.8.member.partitionKey", "null", "Member must not be null"),
    ]
    assert ("records.5.member.partitionKey", "null", "Member must not be null") not in put.violations(key_optional=True)
    assert len(scanned(records(*["{}"] * 50)).violations()) == 10
    assert scanned(record("", "é" * 2_000), single=True).violations()[0][1] == f"'{'é' * 1_024}…'"
    assert scanned("{}", single=True).violations()[0] == ("data", "null", "Member must not be null")
    with pytest.raises(InvalidUse):
        put.pack(TABLE, codec=0, map_version=0)


def test_data_and_batches_end_at_their_limits() -> None:
    most = 10_485_760
    body = oracles.cbor_dumps({"Records": [{"Data": bytes(most), "PartitionKey": "k"}] * 2})
    packed = PutEntries(body, cbor=True, single=False).pack(TABLE, codec=0, map_version=0)
    assert [one.count for one in packed] == [1, 1] and packed[0].shard == packed[1].shard
    assert [read_header(one.batch).raw_bytes for one in packed] == [most + 13] * 2

    half = oracles.cbor_dumps({"Records": [{"Data": bytes(3 << 20), "PartitionKey": "k"}] * 5})
    packed = PutEntries(half, cbor=True, single=False).pack(TABLE, codec=1, map_version=0)
    assert [one.count for one in packed] == [2, 2, 1]

    over = PutEntries(oracles.cbor_dumps({"Data": bytes(most + 1), "PartitionKey": "k"}), cbor=True, single=True)
    assert over.violations() == [
        ("data", "'10485761 bytes'", "Member must have length less than or equal to 10485760")]
    with pytest.raises(InvalidUse):
        over.pack(TABLE, codec=0, map_version=0)


def test_more_than_500_entries_are_counted_only() -> None:
    put = scanned(records(*[record("")] * 501))

    assert put.count == 501 and put.violations() == []
    with pytest.raises(InvalidUse):
        put.pack(TABLE, codec=0, map_version=0)
    with pytest.raises(MalformedBody):
        scanned(records(*[record("")] * 501, "7"))


@pytest.mark.parametrize(("text", "bad"), [("0", False), (str(2**128 - 1), False), (str(2**128), True),
                                           ("9" * 39, True), (str(2**127), False)])
def test_hash_keys_end_at_128_bits(text: str, bad: bool) -> None:
    put = scanned(json.dumps({"Data": "", "PartitionKey": "k", "ExplicitHashKey": text}), single=True)

    assert put.violations() == [] and put.bad_hash_key() == (text if bad else None)
    if bad:
        with pytest.raises(InvalidUse):
            put.pack(TABLE, codec=0, map_version=0)
    else:
        (packed,) = put.pack(TABLE, codec=0, map_version=0)
        assert packed.shard == int(text) // WIDTH


def test_records_without_a_key_are_spread_evenly() -> None:
    put = scanned(records(*['{"Data":"eA=="}'] * 400))
    assert put.violations(key_optional=True) == []
    packed = put.pack(TABLE, codec=0, map_version=0)
    assert sorted(one.shard for one in packed) == [0, 1, 2, 3]
    assert all(95 <= one.count <= 105 for one in packed)
    assert set(keys(packed)) == {""}
    for one in packed:
        assert {TABLE.find(record.hash_key) for record in Batch(one.batch)} == {one.shard}

    same = scanned(records(*[record("eA==")] * 400))
    assert len(same.pack(TABLE, codec=0, map_version=0)) == 1
    spread = same.pack(TABLE, codec=0, map_version=0, automatic=True)
    assert all(95 <= one.count <= 105 for one in spread) and set(keys(spread)) == {"k"}
    singles = [scanned('{"Data":""}', single=True).pack(TABLE, codec=0, map_version=0)[0].shard for _ in range(40)]
    assert all(9 <= singles.count(shard) <= 11 for shard in range(4))


def test_entries_are_packed_again_for_another_map() -> None:
    put = scanned(json.dumps({"Records": [{"Data": "", "PartitionKey": f"k{i}"} for i in range(100)]}))
    packed = put.pack(TABLE, codec=0, map_version=1)
    # Shard 0 was split into 4 and 5; the others took their entries.
    ranges: list[tuple[int, int] | None] = [None, *even_ranges(4)[1:], (0, WIDTH // 2), (WIDTH // 2, WIDTH)]
    with pytest.raises(WrongShard):
        put.pack(ShardTable([None, *even_ranges(4)[1:]]), codec=0, map_version=2)

    stored = [one for one in packed if one.shard != 0]
    again = put.pack(ShardTable(ranges), codec=0, map_version=2, again=[one for one in packed if one.shard == 0])

    assert {one.shard for one in again} == {4, 5}
    origins = [*ORIGINS, (11, 1_600_000_009_000), (12, 1_600_000_009_000)]
    receipts = [PutReceipt(10, NOW_MS, 1) for _ in [*stored, *again]]
    reply = json.loads(put.reply([*stored, *again], receipts, origins))
    for i, one in enumerate(reply["Records"]):
        hash_key = oracles.hash_number(f"k{i}", None)
        shard = next(s for s, pair in enumerate(ranges) if pair and pair[0] <= hash_key < pair[1])
        assert one["ShardId"] == f"shardId-{origins[shard][0]:012d}"
    for wrong in (packed[1:], [*packed, packed[0]], [*again, *packed]):
        with pytest.raises(InvalidUse):
            put.reply(wrong, [PutReceipt(0, 0, 1)] * len(wrong), origins)
    with pytest.raises(InvalidUse):
        put.pack(TABLE, codec=0, map_version=1, again=[*packed, *packed])
    with pytest.raises(InvalidUse):
        scanned(record(""), single=True).pack(TABLE, codec=0, map_version=1, again=packed)


@pytest.mark.parametrize("explicit", [False, True])
def test_keys_of_every_length_are_hashed_in_company(explicit: bool) -> None:
    table = ShardTable(even_ranges(256))
    names = [chr(97 + i % 26) * (i % 131 + 1) for i in range(499)]
    entries = [
        {"Data": "", "PartitionKey": name, **({"ExplicitHashKey": str(i << 119)} if explicit and i % 3 == 0 else {})}
        for i, name in enumerate(names)
    ]
    packed = scanned(json.dumps({"Records": entries})).pack(table, codec=0, map_version=0)

    found = sorted((one.shard, key) for one in packed for key in keys([one]))
    assert found == sorted(
        (oracles.hash_number(one["PartitionKey"], one.get("ExplicitHashKey")) >> 120, one["PartitionKey"])
        for one in entries)


def test_a_single_record_that_failed_has_no_reply() -> None:
    put = scanned(record(""), single=True)
    packed = put.pack(TABLE, codec=0, map_version=1)

    with pytest.raises(InvalidUse):
        put.reply(packed, [("InternalFailure", "Internal Service Failure")], ORIGINS)
    with pytest.raises(InvalidUse):
        put.reply(packed, [], ORIGINS)
    with pytest.raises(TypeError):
        Packed()
