"""The MultiLangDaemon's protocol, the daemon's side: JSON objects, a line each, between a daemon and a child.

    daemon                                   child
    initialize ──────────────────────────▶
               ◀────────────────────────── status
    processRecords, leaseLost, shardEnded, shutdownRequested ─▶
               ◀────────────────────────── checkpoint, any number of times; each waits for its answer
    checkpoint ──────────────────────────▶
               ◀────────────────────────── status

Strictly in turns. What we send is never a blank line, and every object in it has an action, because the child of
amazon_kclpy ends at anything else; what we take may have blank lines before it, and fields that we do not know.
Pure: bytes in, bytes out. Source: amazon_kclpy 3, and the specification's part A11.
"""

from __future__ import annotations

from typing import Any

import msgspec

from streamkit._core.batch import Batch

INITIALIZE = "initialize"
PROCESS_RECORDS = "processRecords"
LEASE_LOST = "leaseLost"
SHARD_ENDED = "shardEnded"
SHUTDOWN_REQUESTED = "shutdownRequested"


class Status(msgspec.Struct, tag_field="action", tag="status", frozen=True):
    """The child has finished with that request. Field names are the protocol's own."""

    responseFor: str


class CheckpointAsked(msgspec.Struct, tag_field="action", tag="checkpoint", frozen=True):
    """sequenceNumber: None for all that was delivered."""

    sequenceNumber: str | int | None = None
    subSequenceNumber: int | None = None


Answer = Status | CheckpointAsked
_decoder = msgspec.json.Decoder(Answer)
_encoder = msgspec.json.Encoder()


def parse(line: bytes) -> Answer | None:
    """What the child says; None for a line that is none of the protocol's: a blank one, or something printed."""
    try:
        answer: Answer = _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return answer


def request(action: str) -> bytes:
    """leaseLost, shardEnded or shutdownRequested."""
    return _line({"action": action})


def initialize(shard: str, number: str, sub_number: int) -> bytes:
    return _line({
        "action": INITIALIZE, "shardId": shard, "sequenceNumber": number, "subSequenceNumber": sub_number,
    })  # fmt: skip


def process_records(batch: Batch[Any], millis_behind: int) -> bytes:
    records = [
        {
            "action": "record", "data": record.data, "partitionKey": record.key,      # bytes become base64 text
            "sequenceNumber": record.sequence_number, "subSequenceNumber": record.sub_sequence or 0,
            "approximateArrivalTimestamp": int(record.arrived.timestamp() * 1000),
        }
        for record in batch
    ]  # fmt: skip
    return _line({"action": PROCESS_RECORDS, "records": records, "millisBehindLatest": millis_behind})


def checkpointed(asked: CheckpointAsked, error: str | None) -> bytes:
    """Both numbers come back as they were sent."""
    return _line({
        "action": "checkpoint", "sequenceNumber": asked.sequenceNumber, "subSequenceNumber": asked.subSequenceNumber,
        "error": error,
    })  # fmt: skip


def _line(message: dict[str, Any]) -> bytes:
    return _encoder.encode(message) + b"\n"
