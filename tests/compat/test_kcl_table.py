"""Exported lease tables of the KCL, in each format, and what is none."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit.compat.kcl_table import KclLease, parse_table
from streamkit.errors import InvalidTable

ITEMS = [
    {"leaseKey": {"S": "shardId-000000000001"}, "checkpoint": {"S": "TRIM_HORIZON"},
     "checkpointSubSequenceNumber": {"N": "0"}, "leaseCounter": {"N": "7"},
     "parentShardId": {"SS": ["shardId-000000000000"]}},
    {"leaseKey": {"S": "shardId-000000000000"}, "checkpoint": {"S": "495900"}, "leaseOwner": {"S": "w1"},
     "checkpointSubSequenceNumber": {"N": "3"}, "entityType": {"S": "LEASE"}},
    {"leaseKey": {"S": "w1"}, "entityType": {"S": "WORKER_METRICS"}, "metricStats": {"M": {"a": {"L": []}, "b": {}}}},
    {"key": {"S": "Leader"}, "ownerName": {"S": "w1"}},
]  # fmt: skip
PLAIN = [
    {"leaseKey": "shardId-000000000001", "checkpoint": "TRIM_HORIZON", "parentShardId": ["shardId-000000000000"]},
    {"leaseKey": "shardId-000000000000", "checkpoint": "495900", "leaseOwner": "w1", "checkpointSubSequenceNumber": 3},
]
LEASES = (
    KclLease("shardId-000000000001", "TRIM_HORIZON"), KclLease("shardId-000000000000", "495900", 3, owner="w1"),
)  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"Items": ITEMS, "Count": 4}, indent=2),
        "\n".join(json.dumps({"Item": item}) for item in ITEMS) + "\n\n",
        json.dumps(ITEMS).encode(),
        json.dumps(PLAIN),
        "\n".join(json.dumps(item) for item in PLAIN),
    ],
    ids=["scan", "export", "items", "plain", "plain lines"],
)
def test_every_format_says_the_same(text):
    assert parse_table(text) == LEASES


def test_leases_of_several_streams_name_theirs():
    key = "123456789012:orders:1700000000:shardId-000000000002"
    (lease,) = parse_table(json.dumps([{"leaseKey": key, "checkpoint": "SHARD_END"}]))

    assert lease == KclLease("shardId-000000000002", "SHARD_END", stream="orders")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "there is no lease"), ("[]", "there is no lease"), ("7", "item 1 is no object"),
        ('{"a": 1}\nnonsense', "line 2 is no JSON"), (b"\xff", "it is no text"),
        ('[{"leaseKey": "orders", "checkpoint": "1"}]', "which is no shard"),
        ('[{"leaseKey": "shardId-1", "checkpoint": "soon"}]', "the checkpoint of shardId-1 is 'soon'"),
        ('[{"leaseKey": "shardId-1", "checkpoint": "1", "checkpointSubSequenceNumber": -1}]', "sub-sequence number"),
        ('[{"leaseKey": {"S": "shardId-1", "T": ""}, "checkpoint": "1"}]', "item 1 holds"),
        (json.dumps([PLAIN[0], PLAIN[0]]), "two leases of shardId-000000000001"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_refused_with_its_place(text, word):
    with pytest.raises(InvalidTable, match=word):
        parse_table(text)


@pytest.mark.fuzz
@given(text=st.binary(max_size=200) | st.recursive(
    st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["leaseKey", "checkpoint", "Items", "Item", "S", "N"]), inner, max_size=3)
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_nothing_but_a_refusal_comes_of_garbage(text):
    with contextlib.suppress(InvalidTable):
        assert parse_table(text)
