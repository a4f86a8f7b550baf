from typing import TypedDict

Buffer = bytes | bytearray | memoryview

END: int
SHORT: int
TRAILER: int
ZERO: int
BAD: int
TRAILER_SIZE: int

class Trailer(TypedDict):
    base: int
    end: int
    bytes: int
    batches: int
    first_append_ms: int
    last_append_ms: int
    headers_crc: int

class Walk:
    batches: list[tuple[int, int, int, int, int, int, int, int, int, int]]
    position: int
    sequence: int
    epoch: int
    headers_crc: int
    stop: int
    needed: int

def walk(
    data: Buffer,
    position: int,
    sequence: int,
    seed: int,
    *,
    epoch_min: int = 0,
    sequence_max: int = ...,
    headers_crc: int = 0,
    with_body: bool = True,
) -> Walk: ...
def find_batch(data: Buffer, seed: int, sequence_min: int, sequence_max: int) -> tuple[int, int] | None: ...
def make_trailer(
    seed: int,
    *,
    base: int,
    end: int,
    bytes: int,
    batches: int,
    first_append_ms: int,
    last_append_ms: int,
    headers_crc: int,
) -> bytes: ...
def read_trailer(data: Buffer, seed: int) -> Trailer | None: ...
