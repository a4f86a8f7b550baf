"""The MultiLangDaemon's protocol: what is sent has a shape that children insist on, what is taken may be anything."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit._core.batch import Batch, RecordContext, seal, stamped
from streamkit.compat import multilang
from streamkit.compat.kclpy import dispatch
from streamkit.compat.multilang import CheckpointAsked, Status


def batch_of(records: list[tuple[str, bytes]]) -> Batch[Any]:
    sealed = seal([(key.encode(), value, b"", None, None) for key, value in records])
    whole = stamped(sealed, base_sequence=7, append_time_ms=1_700_000_000_123, shard_uuid=bytes(16))
    return Batch(whole, RecordContext("s", "shardId-000000000000", uuid=bytes(16)))


def objects(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, list):
        return [found for item in value for found in objects(item)]
    if isinstance(value, dict):
        return [value, *(found for item in value.values() for found in objects(item))]
    return []


@given(records=st.lists(st.tuples(st.text(min_size=1, max_size=20), st.binary(max_size=200)), min_size=1, max_size=20))
def test_a_request_is_one_line_and_every_object_in_it_has_an_action(records):
    line = multilang.process_records(batch_of(records), 5)

    assert line.endswith(b"}\n") and line.count(b"\n") == 1 and b"\r" not in line
    assert all("action" in found for found in objects(json.loads(line)))
    message = json.loads(line, object_hook=dispatch.message_decode)
    assert [(record.partition_key, record.binary_data) for record in message.records] == records
    assert {record.timestamp_millis for record in message.records} == {1_700_000_000_123}


@pytest.mark.parametrize("action", [multilang.LEASE_LOST, multilang.SHARD_ENDED, multilang.SHUTDOWN_REQUESTED])
def test_the_small_requests_are_nothing_but_their_action(action):
    assert json.loads(multilang.request(action)) == {"action": action}


def test_a_checkpoints_answer_has_its_numbers_as_they_came():
    asked = multilang.parse(b'{"action":"checkpoint","sequenceNumber":"42","subSequenceNumber":null}')

    assert isinstance(asked, CheckpointAsked)
    assert json.loads(multilang.checkpointed(asked, None)) == {
        "action": "checkpoint", "sequenceNumber": "42", "subSequenceNumber": None, "error": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (b'{"action": "status", "responseFor": "initialize"}\n', Status("initialize")),
        (b' \t{"colour":{"of":["sky"]},"responseFor":"shardEnded","action":"status"}\r\n', Status("shardEnded")),
        (b'{"action":"checkpoint"}', CheckpointAsked()),
        (b'{"action":"checkpoint","sequenceNumber":4959028397450192834650192837465019}',
         CheckpointAsked(4959028397450192834650192837465019)),
    ],
)  # fmt: skip
def test_answers_may_have_more_than_we_know(line, answer):
    assert multilang.parse(line) == answer


@pytest.mark.parametrize(
    "line",
    [b"\n", b"", b"hello\n", b"[]", b"{}", b'{"action":"status"}', b'{"action":"dance"}', b'{"action":7}', b"\xff\xfe",
     b'{"action":"status","responseFor":"initi', b'{"action":"checkpoint","subSequenceNumber":"x"}', b"[" * 5000],
)  # fmt: skip
def test_whatever_else_is_printed_is_no_answer(line):
    assert multilang.parse(line) is None


@pytest.mark.fuzz
@given(line=st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_no_line_does_any_harm(line):
    assert isinstance(multilang.parse(line), Status | CheckpointAsked | None)
