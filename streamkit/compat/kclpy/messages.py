"""What record processors are handed: the attributes of amazon_kclpy's messages.

Made in two ways: from a JSON object of the MultiLangDaemon's protocol, as amazon_kclpy does, or, for processors inside
a Worker, from records, without JSON between.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from streamkit._core.batch import Record as OurRecord
from streamkit.compat.checkpoints import KclpyCheckpointer, LeaseLostCheckpointer

Object = Mapping[str, Any]


class Record:
    """One record. data: base64 text; binary_data: the bytes. approximate_arrival_timestamp: local, no zone."""

    def __init__(self, json_dict: Object) -> None:
        self._json = json_dict
        self.sequence_number: str = json_dict["sequenceNumber"]
        self.sub_sequence_number: int = json_dict["subSequenceNumber"]
        self.timestamp_millis = int(json_dict["approximateArrivalTimestamp"])
        self.partition_key: str = json_dict["partitionKey"]
        self.data: str = json_dict["data"]

    @property
    def binary_data(self) -> bytes:
        return base64.b64decode(self.data)

    @property
    def approximate_arrival_timestamp(self) -> datetime:
        return datetime.fromtimestamp(self.timestamp_millis / 1000)

    def get(self, field: str) -> Any:
        """By the name in the protocol, as "partitionKey"."""
        return self._json[field]

    def __getitem__(self, field: str) -> Any:
        return self._json[field]


class StreamRecord(Record):
    """A record that was never JSON: what is asked for is made when it is asked for."""

    _FIELDS: Mapping[str, str] = {
        "data": "data", "partitionKey": "partition_key", "sequenceNumber": "sequence_number",
        "subSequenceNumber": "sub_sequence_number", "approximateArrivalTimestamp": "timestamp_millis",
    }  # fmt: skip

    def __init__(self, record: OurRecord[Any]) -> None:
        self._record = record
        self.partition_key = record.key
        self.sequence_number = record.sequence_number
        self.sub_sequence_number = record.sub_sequence or 0
        self.timestamp_millis = int(record.arrived.timestamp() * 1000)

    @property
    def binary_data(self) -> bytes:
        return self._record.data

    @property
    def data(self) -> str:  # type: ignore[override]  # amazon_kclpy has it as text here, and as bytes above
        return base64.b64encode(self._record.data).decode()

    def get(self, field: str) -> Any:
        if field == "action":
            return "record"
        return getattr(self, self._FIELDS[field])

    def __getitem__(self, field: str) -> Any:
        return self.get(field)


class InitializeInput:
    """Where the processor starts: the last position that was checkpointed, or "TRIM_HORIZON"."""

    def __init__(self, json_dict: Object) -> None:
        self.action = "initialize"
        self.shard_id: str = json_dict["shardId"]
        self.sequence_number: str | None = json_dict["sequenceNumber"]
        self.sub_sequence_number: int = json_dict["subSequenceNumber"]

    def dispatch(self, checkpointer: Any, record_processor: Any) -> None:
        record_processor.initialize(self)


class ProcessRecordsInput:
    """millis_behind_latest: age of the last of the records, or None."""

    def __init__(self, json_dict: Object) -> None:
        self.action = "processRecords"
        self.records: list[Record] = json_dict["records"]
        self.millis_behind_latest: int | None = json_dict["millisBehindLatest"]
        self.checkpointer: Any = None

    def dispatch(self, checkpointer: Any, record_processor: Any) -> None:
        self.checkpointer = checkpointer
        record_processor.process_records(self)


class LeaseLostInput:
    """Another worker goes on with the shard."""

    def __init__(self, json_dict: Object) -> None:
        self.action = "leaseLost"

    def dispatch(self, checkpointer: Any, record_processor: Any) -> None:
        record_processor.lease_lost(self)


class ShardEndedInput:
    """All records of the shard were delivered; its children begin when the end is checkpointed."""

    def __init__(self, json_dict: Object) -> None:
        self.action = "shardEnded"
        self.checkpointer: Any = None

    def dispatch(self, checkpointer: Any, record_processor: Any) -> None:
        self.checkpointer = checkpointer
        record_processor.shard_ended(self)


class ShutdownRequestedInput:
    """The lease goes soon and is still held: the time for a last checkpoint."""

    def __init__(self, json_dict: Object) -> None:
        self.action = "shutdownRequested"
        self.checkpointer: Any = None

    def dispatch(self, checkpointer: Any, record_processor: Any) -> None:
        self.checkpointer = checkpointer
        record_processor.shutdown_requested(self)


class ShutdownInput:
    """The end, for processors of the second generation. reason: "TERMINATE" (checkpoint now) or "ZOMBIE"."""

    def __init__(self, reason: str, checkpointer: Any) -> None:
        self.action = "shutdown"
        self.reason = reason
        self.checkpointer = checkpointer

    @staticmethod
    def zombie() -> ShutdownInput:
        return ShutdownInput("ZOMBIE", LeaseLostCheckpointer())

    @staticmethod
    def terminate(checkpointer: KclpyCheckpointer | Any) -> ShutdownInput:
        return ShutdownInput("TERMINATE", checkpointer)


class CheckpointInput:
    """The answer to a checkpoint; not for record processors."""

    def __init__(self, json_dict: Object) -> None:
        self.action = "checkpoint"
        self.sequence_number: str | None = json_dict["sequenceNumber"]
        self.sub_sequence_number: int | None = json_dict["subSequenceNumber"]
        self.error: str | None = json_dict.get("error")
