from collections.abc import Callable
from typing import Any, Protocol

from streamkit._core.index import SparseIndex
from streamkit._core.journal import Journal
from streamkit._core.producers import ProducerTable

Buffer = bytes | bytearray | memoryview

class _File(Protocol):
    path: str
    def fileno(self) -> int: ...
    def read(self, size: int, position: int) -> bytes: ...
    def read_nowait(self, size: int, position: int) -> bytes | None: ...
    def close(self) -> None: ...

class Appended:
    base_sequence: int
    end_sequence: int
    append_time_ms: int
    duplicate: int

class Segment:
    shard: ShardCore
    base: int
    end: int
    position: int
    written_position: int
    first_append_ms: int
    last_append_ms: int
    batches: int
    headers_crc: int
    sealed: bool
    dirty: bool
    measured: bool
    naming: bool
    in_flight: int
    file: _File | None
    used: int
    index: SparseIndex
    index_whole: bool
    named: bool
    def __init__(self, shard: ShardCore, base: int) -> None: ...
    def use_file(self, file: _File) -> None: ...
    def forget_places(self) -> None: ...
    def close_file(self) -> None: ...

class NodeLog:
    journal: Journal
    refusal: Callable[[], Exception] | None
    on_push: Callable[[], None]
    pushed: bool
    tail_bytes: int
    tail_bytes_max: int
    segment_bytes: int
    bypass_bytes: int
    batch_bytes_max: int
    unnamed_bytes_max: int
    tick: int
    progressed: list[Any]
    open_segments: dict[Segment, None]
    files_open_max: int
    batches_appended: int
    bytes_appended: int
    def __init__(
        self,
        journal: Journal,
        *,
        tail_bytes_max: int,
        segment_bytes: int,
        bypass_bytes: int,
        batch_bytes_max: int,
        unnamed_bytes_max: int,
        files_open_max: int,
    ) -> None: ...
    def collect(self) -> bool: ...
    def take_progressed(self) -> list[Any]: ...
    unmarked: list[Any]
    def take_unmarked(self) -> list[Any]: ...
    def note_progress(self, shard: ShardCore) -> None: ...
    def close_surplus_files(self, keep: Segment) -> None: ...

class ShardCore:
    node: NodeLog
    uuid: bytes
    seed: int
    log_start: int
    log_end: int
    journal_end: int
    synced_end: int
    segment_end: int
    os_end: int
    epoch: int
    last_append_ms: int
    segments: list[Segment]
    epochs: list[tuple[int, int]]
    producers: ProducerTable
    certain: bool
    checkpoint_due: bool
    memory_marked: bool
    changing: bool
    cuts: int
    closing: bytes | None
    closing_end: int
    durable_end: int
    written_end: int
    tail_start: int
    def __init__(
        self,
        node: NodeLog,
        uuid: bytes,
        *,
        log_start: int,
        log_end: int,
        epoch: int,
        last_append_ms: int,
        producers: ProducerTable,
        epochs: list[tuple[int, int]],
    ) -> None: ...
    def set_range(self, low: bytes | int, high: bytes | int) -> None: ...
    def append(self, batch: Buffer, *, now_ms: int, epoch: int, durability: str) -> Appended: ...
    def accept(self, run: Any, *, epoch: int, durability: str) -> int: ...
    def append_control(self, kind: str, payload: bytes, *, now_ms: int, epoch: int, durability: str) -> Appended: ...
    def open_producer(
        self, producer_id: int, producer_epoch: int, *, now_ms: int, epoch: int, durability: str
    ) -> int: ...
    def cancel(
        self,
        *,
        producer_id: int,
        producer_epoch: int,
        producer_sequence: int,
        records: int,
        age_ms: int,
        now_ms: int,
        epoch: int,
        durability: str,
    ) -> Appended: ...
    def epoch_at(self, sequence: int) -> int: ...
    def start_epoch(self, epoch: int, now_ms: int, synced: bool) -> None: ...
    def place(self, size: int, now_ms: int) -> Segment: ...
    def read(self, start: int, limit: int, bytes_max: int) -> list[bytes | memoryview] | None: ...
    def read_segments(
        self, start: int, limit: int, bytes_max: int, nowait: bool
    ) -> list[bytes | memoryview] | None: ...
    def missing(self, segment: Segment | None, sequence: int) -> Exception: ...
    def take_segments(self, segments: list[Segment]) -> None: ...
    def restore_ends(self, synced_end: int, unsynced: bool) -> None: ...
    def reload(
        self,
        *,
        log_start: int,
        log_end: int,
        epoch: int,
        last_append_ms: int,
        producers: ProducerTable,
        epochs: list[tuple[int, int]],
        segments: list[Segment],
    ) -> None: ...
    def find_closing(self, batch: Buffer, end: int) -> None: ...
    def move_start(self, log_start: int) -> None: ...
    def forget_tail(self) -> None: ...
