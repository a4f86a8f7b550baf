"""streamkit: ordered, replayable, durable streams that a Python team runs itself.

    from streamkit import Consumer, Producer

Public names live here, in `streamkit.errors` and nowhere else. They are loaded on first use: importing the package
costs little and brings in no server code. Start with `Producer`, `Consumer`, `Reader` and `Client`; `open` runs
everything in this process on a directory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from streamkit import errors as errors
    from streamkit._core.batch import Batch as Batch
    from streamkit._core.batch import Record as Record
    from streamkit._core.outcome import PutHandle as PutHandle
    from streamkit.client.client import AsyncClient as AsyncClient
    from streamkit.client.lag import Lag as Lag
    from streamkit.client.operations import AsyncOperation as AsyncOperation
    from streamkit.client.operations import Operation as Operation
    from streamkit.client.sync import Client as Client
    from streamkit.client.url import InsecureConnectionWarning as InsecureConnectionWarning
    from streamkit.consumer.checkpointer import Checkpointer as Checkpointer
    from streamkit.consumer.checkpointer import PreparedCheckpoint as PreparedCheckpoint
    from streamkit.consumer.consumer import Consumer as Consumer
    from streamkit.consumer.failure import RetryPolicy as RetryPolicy
    from streamkit.consumer.handler import Context as Context
    from streamkit.consumer.ordering import Ordering as Ordering
    from streamkit.consumer.positions.duckdb import DuckDBPosition as DuckDBPosition
    from streamkit.consumer.positions.files import FilePosition as FilePosition
    from streamkit.consumer.positions.postgres import PostgresPosition as PostgresPosition
    from streamkit.consumer.positions.sqlite import SQLitePosition as SQLitePosition
    from streamkit.consumer.processor import Prepared as Prepared
    from streamkit.consumer.processor import RecordProcessor as RecordProcessor
    from streamkit.consumer.processor import ShardContext as ShardContext
    from streamkit.consumer.reader import AsyncReader as AsyncReader
    from streamkit.consumer.reader import Reader as Reader
    from streamkit.consumer.worker import Worker as Worker
    from streamkit.errors import BatchFailure as BatchFailure
    from streamkit.model.codec import Codec as Codec
    from streamkit.model.codec import Protobuf as Protobuf
    from streamkit.model.fate import Fate as Fate
    from streamkit.model.stream import Durability as Durability
    from streamkit.model.stream import StreamConfig as StreamConfig
    from streamkit.model.stream import StreamDescription as StreamDescription
    from streamkit.producer.entry import PutEntry as PutEntry
    from streamkit.producer.entry import PutResult as PutResult
    from streamkit.producer.producer import AsyncProducer as AsyncProducer
    from streamkit.producer.producer import Producer as Producer
    from streamkit.session import Session as Session
    from streamkit.session import connect as connect
    from streamkit.session import open as open

# Public name → the module that defines it.
_HOMES = {
    "AsyncClient": "streamkit.client.client",
    "AsyncOperation": "streamkit.client.operations",
    "AsyncProducer": "streamkit.producer.producer",
    "AsyncReader": "streamkit.consumer.reader",
    "Batch": "streamkit._core.batch",
    "BatchFailure": "streamkit.errors",
    "Checkpointer": "streamkit.consumer.checkpointer",
    "Client": "streamkit.client.sync",
    "Codec": "streamkit.model.codec",
    "Consumer": "streamkit.consumer.consumer",
    "Context": "streamkit.consumer.handler",
    "DuckDBPosition": "streamkit.consumer.positions.duckdb",
    "Durability": "streamkit.model.stream",
    "FilePosition": "streamkit.consumer.positions.files",
    "Fate": "streamkit.model.fate",
    "InsecureConnectionWarning": "streamkit.client.url",
    "Lag": "streamkit.client.lag",
    "Operation": "streamkit.client.operations",
    "Ordering": "streamkit.consumer.ordering",
    "PostgresPosition": "streamkit.consumer.positions.postgres",
    "Prepared": "streamkit.consumer.processor",
    "PreparedCheckpoint": "streamkit.consumer.checkpointer",
    "Producer": "streamkit.producer.producer",
    "Protobuf": "streamkit.model.codec",
    "PutEntry": "streamkit.producer.entry",
    "PutHandle": "streamkit._core.outcome",
    "PutResult": "streamkit.producer.entry",
    "Reader": "streamkit.consumer.reader",
    "Record": "streamkit._core.batch",
    "RecordProcessor": "streamkit.consumer.processor",
    "RetryPolicy": "streamkit.consumer.failure",
    "SQLitePosition": "streamkit.consumer.positions.sqlite",
    "Session": "streamkit.session",
    "ShardContext": "streamkit.consumer.processor",
    "StreamConfig": "streamkit.model.stream",
    "StreamDescription": "streamkit.model.stream",
    "Worker": "streamkit.consumer.worker",
    "connect": "streamkit.session",
    "open": "streamkit.session",
}

__all__ = ["__version__", "errors", *sorted(_HOMES)]


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name == "errors":
        return import_module("streamkit.errors")
    if name not in _HOMES:
        raise AttributeError(f"module 'streamkit' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
