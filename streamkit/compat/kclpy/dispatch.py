"""JSON objects of the MultiLangDaemon's protocol, as messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from streamkit.compat.kclpy import messages

_MESSAGES: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "initialize": messages.InitializeInput,
    "processRecords": messages.ProcessRecordsInput,
    "checkpoint": messages.CheckpointInput,
    "record": messages.Record,
    "shutdownRequested": messages.ShutdownRequestedInput,
    "leaseLost": messages.LeaseLostInput,
    "shardEnded": messages.ShardEndedInput,
}


class MalformedAction(Exception):
    """An object without an action, or with one that is not known."""


def message_decode(json_dict: Mapping[str, Any]) -> Any:
    """For json.loads(object_hook=…): what the object stands for. Raises MalformedAction, KeyError."""
    action = str(json_dict.get("action"))
    if action not in _MESSAGES:
        raise MalformedAction(f"{action!r} is no action; known: {', '.join(_MESSAGES)}")
    return _MESSAGES[action](json_dict)
