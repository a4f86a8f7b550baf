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
    from streamkit.client.client import AsyncClient as AsyncClient
    from streamkit.client.sync import Client as Client
    from streamkit.model.stream import Durability as Durability
    from streamkit.model.stream import StreamConfig as StreamConfig
    from streamkit.model.stream import StreamDescription as StreamDescription

# Public name → the module that defines it.
_HOMES = {
    "AsyncClient": "streamkit.client.client",
    "Batch": "streamkit._core.batch",
    "Client": "streamkit.client.sync",
    "Durability": "streamkit.model.stream",
    "Record": "streamkit._core.batch",
    "StreamConfig": "streamkit.model.stream",
    "StreamDescription": "streamkit.model.stream",
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
