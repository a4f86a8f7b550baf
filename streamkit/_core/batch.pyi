from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Generic

from typing_extensions import TypeVar

T = TypeVar("T", default=Any)
Buffer = bytes | bytearray | memoryview
SealedRecord = tuple[bytes, bytes, bytes, int | None, bytes | None]

MAGIC: bytes
HEADER_BYTES: int
RECORD_BYTES_OVERHEAD: int
COMPRESS_BYTES_MIN: int
CODECS: tuple[str, ...]
CONTROL: int
EPOCH_START: int

class Header:
    """A batch's header, read; field names as drawn in batch.pxd."""

    version: int
    flags: int
    batch_bytes: int
    base_sequence: int
    epoch: int
    header_crc: int
    append_time_ms: int
    body_crc: int
    attributes: int
    producer_epoch: int
    producer_id: int
    producer_sequence: int
    record_count: int
    raw_bytes: int
    event_time_ms: int
    event_time_delta_max: int
    map_version: int
    hash_low: bytes
    hash_high: bytes
    @property
    def codec(self) -> str: ...
    @property
    def is_control(self) -> bool: ...
    @property
    def is_epoch_start(self) -> bool: ...
    @property
    def end_sequence(self) -> int: ...

def read_header(buffer: Buffer) -> Header:
    """The header of the batch at the start of `buffer`; no checksum is looked at. Raises CorruptBatch."""

def check_batch(buffer: Buffer, shard_uuid: bytes | None = None) -> Header:
    """The header after every checksum agreed; without shard_uuid the leader's is left out. Raises CorruptBatch."""

def require_codec(codec: int) -> None:
    """Raise InvalidUse when the package for a codec (0 none, 1 lz4, 2 zstd) is not installed."""

def shard_seed(uuid: bytes) -> int: ...
def crc32c(data: Buffer, crc: int = 0) -> int: ...
def corrupt(reason: str, **facts: object) -> Exception: ...
def seal(
    records: Iterable[SealedRecord],
    *,
    producer_id: int = 0,
    producer_epoch: int = 0,
    producer_sequence: int = 0,
    codec: int = 1,
    map_version: int = 0,
) -> bytes:
    """One sealed batch of (key, value, headers, event_time_ms or None, hash_key or None)."""

def control_batch(kind: str, details: bytes = b"") -> bytes:
    """A batch that a log writes for itself; kind: "epoch_start"."""

def stamped(
    batch: Buffer,
    *,
    flags: int = 0,
    base_sequence: int = 0,
    epoch: int = 0,
    append_time_ms: int = 0,
    shard_uuid: bytes,
) -> bytes:
    """A copy of a sealed batch with the leader's zone filled in."""

class RecordContext:
    """What records share that is not in their batch: where they come from and how values are decoded."""

    stream: str
    shard: str
    ordinal: int
    created_ms: int
    decode: Callable[[bytes], Any] | None
    decode_for: Callable[[str], Callable[[bytes], Any]] | None
    explain: Callable[[BaseException], str] | None
    codec: str
    uuid: bytes
    def __init__(
        self,
        stream: str,
        shard: str,
        ordinal: int = 0,
        created_ms: int = 0,
        decode: Callable[[bytes], Any] | None = None,
        *,
        decode_for: Callable[[str], Callable[[bytes], Any]] | None = None,
        explain: Callable[[BaseException], str] | None = None,
        codec: str = "",
        uuid: bytes = b"",
    ) -> None: ...

class Record(Generic[T]):
    """One record as a reader sees it; cheap to keep, but it keeps its whole batch in memory."""

    batch: Batch
    @property
    def stream(self) -> str: ...
    @property
    def shard(self) -> str: ...
    @property
    def sequence(self) -> int: ...
    @property
    def sub_sequence(self) -> int | None: ...
    @property
    def end_place(self) -> tuple[int, int]: ...
    @property
    def sequence_number(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def hash_key(self) -> bytes: ...
    @property
    def headers(self) -> Mapping[str, bytes]: ...
    @property
    def arrived(self) -> datetime: ...
    @property
    def time(self) -> datetime: ...
    @property
    def data(self) -> bytes: ...
    @property
    def value(self) -> T: ...
    def json(self) -> Any: ...
    def view(self) -> memoryview: ...

class Batch(Generic[T]):
    """Records of one sealed batch, decoded when looked at. Raises CorruptBatch."""

    raw: Buffer
    context: RecordContext
    def __init__(self, buffer: Buffer, context: RecordContext | None = None, first_sequence: int = 0) -> None: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Record[T]]: ...
    def decoded(self) -> Iterator[T]: ...
    def __getitem__(self, index: int) -> Record[T]: ...
    def part(self, start: int, end: int) -> Batch[T]: ...
    def unwrap(self, hash_range: tuple[int, int] | None = None) -> Batch[T]: ...
    def chosen(self, routes: bytes, context: RecordContext | None = None, route: int = 0) -> Batch[T]: ...
    def place(self, done: int) -> tuple[int, int]: ...
    def index_of(self, record: Record[Any]) -> int: ...
    def keys(self) -> list[str]: ...
    def values(self) -> list[bytes]: ...
    def to_arrow(self) -> Any: ...          # pyarrow.RecordBatch; pyarrow has no stubs
    def read_header(self) -> Header: ...
    @property
    def stream(self) -> str: ...
    @property
    def shard(self) -> str: ...
    @property
    def base_sequence(self) -> int: ...
    @property
    def first_sequence(self) -> int: ...
    @property
    def end_sequence(self) -> int: ...
    @property
    def append_time_ms(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def is_control(self) -> bool: ...
    @property
    def is_closing(self) -> bool: ...
    @property
    def batch_bytes(self) -> int: ...
    @property
    def raw_bytes(self) -> int: ...
