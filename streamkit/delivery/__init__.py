"""Streams into stores: records are buffered, transformed, formatted and written, and the position follows.

A delivery is an application of `consumer`; what it writes is planned in its leases' announcements before a byte leaves,
so that a store that knows a chunk again holds everything once. Not for code that reacts to single records: that is
`Consumer`. Read `delivery.py` first, then `shard_delivery.py`; `formats/` and `sinks/` have a file each.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamkit.delivery.buffer import Buffer as Buffer
    from streamkit.delivery.chunk import Chunk as Chunk
    from streamkit.delivery.delivery import Delivery as Delivery
    from streamkit.delivery.formats.columns import Orc as Orc
    from streamkit.delivery.formats.columns import Parquet as Parquet
    from streamkit.delivery.formats.lines import Lines as Lines
    from streamkit.delivery.sinks.files import FileSink as FileSink
    from streamkit.delivery.sinks.http_endpoint import HttpEndpointSink as HttpEndpointSink
    from streamkit.delivery.sinks.objects import ObjectSink as ObjectSink
    from streamkit.delivery.sinks.objects import S3Sink as S3Sink
    from streamkit.delivery.sinks.opensearch import OpenSearchSink as OpenSearchSink
    from streamkit.delivery.sinks.postgres import PostgresSink as PostgresSink
    from streamkit.delivery.sinks.sink import Refused as Refused
    from streamkit.delivery.sinks.sink import Sink as Sink
    from streamkit.delivery.sinks.splunk import SplunkSink as SplunkSink

_HOMES = {
    "Buffer": "buffer", "Chunk": "chunk", "Delivery": "delivery", "FileSink": "sinks.files",
    "HttpEndpointSink": "sinks.http_endpoint", "Lines": "formats.lines", "ObjectSink": "sinks.objects",
    "OpenSearchSink": "sinks.opensearch", "Orc": "formats.columns", "Parquet": "formats.columns",
    "PostgresSink": "sinks.postgres", "Refused": "sinks.sink", "S3Sink": "sinks.objects", "Sink": "sinks.sink",
    "SplunkSink": "sinks.splunk",
}  # fmt: skip
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"streamkit.delivery has no {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
