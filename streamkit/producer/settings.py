"""The keyword arguments of a producer as type checkers see them where they are passed on.

`_Base.__init__` in `producer` says what they mean and what they are when left out; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypedDict

from streamkit.client.client import AsyncClient
from streamkit.client.pool import Connector
from streamkit.errors import StreamkitError
from streamkit.model.codec import Codec


class PutSettings(TypedDict, total=False):
    """What any producer takes, wherever it is connected to."""

    codec: Codec | str
    compression: Literal["none", "lz4", "zstd"]
    linger_ms: float
    batch_bytes_max: int
    buffer_bytes_max: int
    on_full: Literal["wait", "raise", "drop_new"]
    max_block_ms: int
    shard_share: float
    on_pressure: Callable[[bool], object] | None
    on_error: Callable[[StreamkitError, int], object] | None
    delivery_timeout_ms: int
    request_timeout_ms: int
    fail_if_throttled: bool
    idempotent: bool
    name: str | None
    on_failure: Literal["continue", "halt_key", "halt"]


class ProducerSettings(PutSettings, total=False):
    """And where that is."""

    url: str | Connector | None
    client: AsyncClient | None
