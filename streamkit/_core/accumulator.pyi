import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from streamkit._core.columns import Column
from streamkit._core.framing import PutReceipt
from streamkit._core.outcome import ColumnsHandle, Delivery, PutHandle

class Budget:
    """Bytes that may be held at once: open, sealed and in flight."""

    limit: int
    def __init__(self, limit: int) -> None: ...
    @property
    def used(self) -> int: ...

class SealedBatch:
    """One sealed batch on its way."""

    shard: int
    count: int
    sequence: int
    charged: int
    settled: bool
    def __len__(self) -> int: ...
    @property
    def raw_bytes(self) -> int: ...
    @property
    def payload(self) -> bytes | memoryview: ...
    def renumber(self, producer_id: int, producer_epoch: int, sequence: int) -> None: ...
    def stored(self, receipt: PutReceipt, attempts: tuple[Any, ...] = ()) -> None: ...
    def unheld(self) -> int: ...
    def failed(
        self, error: Exception, attempts: tuple[Any, ...] = (), told: bool = False
    ) -> list[Delivery | ColumnsHandle]: ...

class Accumulator:
    """Open and sealed batches of one stream. put and put_columns from any thread, the rest from the sender."""

    budget: Budget
    shards: int
    records: int
    payload_bytes: int
    keyless: int
    def __init__(
        self,
        ranges: Iterable[tuple[int, int] | None],
        *,
        budget: Budget,
        origins: list[Callable[[PutReceipt, int], Any]],
        wake: Callable[[], object],
        home: asyncio.AbstractEventLoop | None = None,
        withdraw: Callable[[PutHandle[Any]], object] | None = None,
        batch_bytes_max: int = 524288,
        batch_records_max: int = 10000,
        record_bytes_max: int = 1048576,
        codec: int = 1,
        map_version: int = 0,
        share_bytes: int | None = None,
        seed: int = 0,
    ) -> None: ...
    def put(
        self,
        key: str | bytes | None,
        value: bytes,
        headers: bytes = b"",
        time_ms: int | None = None,
        hash_key: bytes | None = None,
    ) -> PutHandle[Any] | None: ...
    def put_columns(self, keys: Column | None, values: Column, handle: ColumnsHandle) -> bool: ...
    def close(self) -> None: ...
    def take_touched(self) -> list[int]: ...
    def held(self, shard: int) -> int: ...
    def avoid(self, shard: int, slow: bool) -> None: ...
    def waiting(self, shard: int) -> int: ...
    def take(
        self, shard: int, *, close_open: bool, producer_id: int = 0, producer_epoch: int = 0, sequence: int = 0,
        compress: bool = True,
    ) -> SealedBatch | None: ...
    def replace_map(
        self,
        ranges: Iterable[tuple[int, int] | None],
        *,
        origins: list[Callable[[PutReceipt, int], Any]],
        map_version: int,
    ) -> None: ...
    def before_fork(self) -> None: ...
    def after_fork(self) -> None: ...
