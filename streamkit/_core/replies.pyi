from collections.abc import Iterable, Sequence

Buffer = bytes | bytearray | memoryview

class EncodedRecords:
    """What encode_records made. body: the array alone; count: its records; payload_bytes: their data and keys.

    next_sequence: one past the last record looked at, control batches included; the start when there was none.
    last_append_ms, last_sequence: of the last record in it; 0 and -1 when there is none.
    """

    body: bytes
    count: int
    payload_bytes: int
    next_sequence: int
    last_append_ms: int
    last_sequence: int

def encode_records(
    batches: Iterable[Buffer],
    first_sequence: int,
    *,
    count_max: int,
    bytes_max: int,
    ordinal: int,
    created_ms: int,
    cbor: bool,
    kms: bool,
) -> EncodedRecords:
    """Records from `first_sequence` on as one JSON or CBOR array.

    batches: each a buffer with one stored batch, oldest first; control batches and earlier records are left out.
    bytes_max: of data and keys; one record is encoded even when it alone is larger. Raises CorruptBatch.
    """

def frame_event(headers: Sequence[tuple[str, str]], payload: Buffer) -> bytes:
    """One event-stream message; (name, value) texts, names of at most 255 bytes, values of at most 65535."""
