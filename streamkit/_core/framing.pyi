from collections.abc import Sequence
from typing import Any

from streamkit.errors import ProtocolMismatch

Buffer = bytes | bytearray | memoryview

MESSAGE: int
PUT: int
PUT_OK: int
FETCH: int
FETCH_OK: int
REPLICATE: int
REPLICATED: int
FRAME_START_BYTES: int

class MessageFrame:
    request_id: int
    payload: bytes
    def __init__(self, request_id: int, payload: bytes) -> None: ...

class PutFrame:
    request_id: int
    timeout_ms: int
    shard: bytes
    @property
    def batch(self) -> memoryview: ...
    @property
    def raw_bytes(self) -> int: ...
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

class PutReceipt:
    request_id: int
    base_sequence: int
    append_time_ms: int
    epoch: int
    duplicate: int
    replicas: int
    synced: bool
    def __init__(
        self, base_sequence: int, append_time_ms: int, epoch: int, duplicate: int = 0, request_id: int = 0,
        replicas: int = 0, synced: bool = False,
    ) -> None: ...

class FetchFrame:
    request_id: int
    shard: bytes
    start: int
    bytes_max: int
    wait_ms: int
    lease_epoch: int
    session: int
    application: str

class Fetched:
    request_id: int
    high_watermark: int
    log_start: int
    log_end: int
    next_sequence: int
    batches: list[memoryview]
    def __init__(
        self,
        batches: list[memoryview],
        high_watermark: int,
        log_start: int,
        log_end: int,
        next_sequence: int,
        request_id: int = 0,
    ) -> None: ...

class Section:
    shard: bytes
    epoch: int
    level: int
    start: int
    previous_epoch: int
    high_watermark: int
    log_start: int
    leader_end: int
    epoch_start: int
    def __init__(
        self,
        shard: bytes,
        epoch: int,
        level: int,
        start: int,
        previous_epoch: int,
        high_watermark: int,
        log_start: int,
        leader_end: int,
        epoch_start: int,
        batches: bytes = b"",
    ) -> None: ...
    @property
    def batches(self) -> memoryview: ...
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

class Acknowledgement:
    shard: bytes
    incarnation: bytes
    epoch: int
    verdict: int
    end: int
    written: int
    def __init__(
        self, shard: bytes, incarnation: bytes, epoch: int, verdict: int, end: int, written: int = 0
    ) -> None: ...

Parsed = MessageFrame | PutFrame | PutReceipt | FetchFrame | Fetched | Section | Acknowledgement

class FrameReader:
    accepts: int
    failure: ProtocolMismatch | None
    def __init__(self, frame_bytes_max: int, keep_bytes: int = 262144, accepts: int = 0x3E) -> None: ...
    @property
    def buffered_bytes(self) -> int: ...
    @property
    def capacity_bytes(self) -> int: ...
    def get_buffer(self, sizehint: int = -1) -> memoryview: ...
    def buffer_updated(self, count: int) -> list[Parsed]: ...
    def feed(self, data: Buffer) -> list[Parsed]: ...

class FrameWriter:
    queued_bytes: int
    def message(self, request_id: int, payload: bytes) -> None: ...
    def put(self, request_id: int, shard: bytes, timeout_ms: int, batch: Buffer) -> None: ...
    def put_ok(
        self, request_id: int, base_sequence: int, append_time_ms: int, epoch: int, duplicate: int = 0,
        replicas: int = 0, synced: bool = False,
    ) -> None: ...
    def fetch(
        self,
        request_id: int,
        shard: bytes,
        start: int,
        bytes_max: int,
        wait_ms: int,
        lease_epoch: int = 0,
        session: int = 0,
        application: str = "",
    ) -> None: ...
    def fetch_ok(
        self,
        request_id: int,
        high_watermark: int,
        log_start: int,
        log_end: int,
        next_sequence: int,
        batches: Sequence[Buffer],
    ) -> None: ...
    def begin_replicate(self) -> None: ...
    def section(
        self,
        shard: bytes,
        epoch: int,
        level: int,
        start: int,
        previous_epoch: int,
        high_watermark: int,
        log_start: int,
        leader_end: int,
        epoch_start: int,
        batches: list[Any],
    ) -> tuple[int, int]: ...
    def end_replicate(self) -> int: ...
    def replicated(self, acknowledgements: list[tuple[bytes, bytes, int, int, int, int]]) -> None: ...
    def raw(self, data: bytes) -> None: ...
    def take(self) -> list[Buffer]: ...
