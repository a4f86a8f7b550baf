# Frames: how requests and answers are laid out on a connection. Little-endian.
#
#   off size field          note
#     0   4  length         bytes after this field; 8 .. the connection's limit
#     4   1  kind           1 message, 2 put, 3 put_ok, 4 fetch, 5 fetch_ok
#     5   1  flags          0 (reserved: a frame with flags set is refused)
#     6   2  header_bytes   of the fixed header below; a longer one than is known is skipped over
#     8   4  request_id     0: one-way, only for messages; an answer repeats its request's
#    12   .. header, then payload up to the end of the frame
#
#   message   header 0                                            payload: msgpack of protocol.messages
#   put       header 24: shard uuid 16, u32 timeout_ms, u32 0     payload: one batch
#   put_ok    header 24: u64 base_sequence, u64 append_time_ms, u32 epoch,
#                        u32 bits (0 repeated batch, 1 repeated, its place no longer known)
#   fetch     header 48 and the application's name in UTF-8: shard uuid 16, u64 start, u32 bytes_max,
#                        u32 wait_ms, u64 lease_epoch (0: a plain reader), u64 session (0: a plain reader)
#   fetch_ok  header 40: u64 high_watermark, u64 log_start, u64 log_end, u64 next_sequence,
#                        u32 batch_count, u32 0                   payload: whole batches

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef enum:
    START_BYTES = 12
    PUT_HEADER_BYTES = 24
    PUT_OK_HEADER_BYTES = 24
    FETCH_HEADER_BYTES = 48
    FETCH_OK_HEADER_BYTES = 40
    APPLICATION_BYTES_MAX = 512
    KIND_MESSAGE = 1
    KIND_PUT = 2
    KIND_PUT_OK = 3
    KIND_FETCH = 4
    KIND_FETCH_OK = 5

cdef enum Verdict:             # what read_start makes of the bytes
    WHOLE = 1                  # start is filled in; the frame's bytes may still be on their way
    MORE = 0                   # too few bytes to tell
    BAD_LENGTH = -1
    BAD_KIND = -2
    BAD_FLAGS = -3
    BAD_HEADER = -4
    BAD_REQUEST = -5
    BAD_STATE = -6
    BAD_NAME = -7
    BAD_BATCHES = -8

cdef packed struct FrameStart:
    uint32_t length
    uint8_t kind
    uint8_t flags
    uint16_t header_bytes
    uint32_t request_id

cdef packed struct PutHeader:
    uint8_t shard[16]
    uint32_t timeout_ms
    uint32_t reserved

cdef packed struct PutOkHeader:
    uint64_t base_sequence
    uint64_t append_time_ms
    uint32_t epoch
    uint32_t bits

cdef packed struct FetchHeader:
    uint8_t shard[16]
    uint64_t start
    uint32_t bytes_max
    uint32_t wait_ms
    uint64_t lease_epoch
    uint64_t session

cdef packed struct FetchOkHeader:
    uint64_t high_watermark
    uint64_t log_start
    uint64_t log_end
    uint64_t next_sequence
    uint32_t batch_count
    uint32_t reserved

cdef inline uint32_t header_bytes_least(uint8_t kind) noexcept nogil:
    if kind == KIND_FETCH:
        return FETCH_HEADER_BYTES
    if kind == KIND_FETCH_OK:
        return FETCH_OK_HEADER_BYTES
    return 0 if kind == KIND_MESSAGE else PUT_HEADER_BYTES

cdef inline Verdict read_start(const uint8_t* at, Py_ssize_t available, FrameStart* start,
                               uint32_t length_max, uint32_t accepts) noexcept nogil:
    # The length is judged as soon as it is there: a frame that claims too much is never waited for.
    if available < 4:
        return MORE
    memcpy(&start.length, at, 4)
    if start.length < START_BYTES - 4 or start.length > length_max:
        return BAD_LENGTH
    if available < START_BYTES:
        return MORE
    memcpy(start, at, START_BYTES)
    if start.kind < KIND_MESSAGE or start.kind > KIND_FETCH_OK:
        return BAD_KIND
    if start.flags:
        return BAD_FLAGS
    if start.header_bytes > start.length - (START_BYTES - 4) or start.header_bytes < header_bytes_least(start.kind):
        return BAD_HEADER
    if not accepts & (1 << start.kind):
        return BAD_STATE
    if start.request_id == 0 and start.kind != KIND_MESSAGE:
        return BAD_REQUEST
    return WHOLE


cdef class Block:              # one receive buffer; never moved nor freed while a view of it lives
    cdef uint8_t* bytes
    cdef Py_ssize_t size


cdef class MessageFrame:
    cdef readonly uint32_t request_id
    cdef readonly bytes payload


cdef class PutFrame:           # itself a read-only buffer over its batch
    cdef readonly uint32_t request_id
    cdef readonly uint32_t timeout_ms
    cdef readonly bytes shard
    cdef Block block           # keeps `at` alive; what lies there changes with the reader's next get_buffer
    cdef uint8_t* at
    cdef Py_ssize_t size


cdef class PutReceipt:
    cdef readonly uint32_t request_id
    cdef readonly uint32_t epoch
    cdef readonly uint32_t duplicate
    cdef readonly uint64_t base_sequence
    cdef readonly uint64_t append_time_ms


cdef class FetchFrame:
    cdef readonly uint32_t request_id
    cdef readonly uint32_t bytes_max
    cdef readonly uint32_t wait_ms
    cdef readonly uint64_t start
    cdef readonly uint64_t lease_epoch
    cdef readonly uint64_t session
    cdef readonly bytes shard
    cdef readonly str application


cdef class Fetched:
    cdef readonly uint32_t request_id
    cdef readonly uint64_t high_watermark
    cdef readonly uint64_t log_start
    cdef readonly uint64_t log_end
    cdef readonly uint64_t next_sequence
    cdef readonly list batches


cdef class FrameReader:
    cdef Block block
    cdef Py_ssize_t begin      # first unparsed byte
    cdef Py_ssize_t end        # one past the last received byte
    cdef Py_ssize_t total      # size of the frame that begins at `begin`, 0 when not known yet
    cdef Py_ssize_t keep       # an empty buffer larger than this is given back
    cdef Py_ssize_t wanted     # capacity that the traffic has earned, at most `keep`
    cdef uint32_t length_max
    cdef bint first            # nothing has been parsed yet: garbage may be another protocol
    cdef public uint32_t accepts
    cdef readonly object failure

    cdef void resize(self, Py_ssize_t size)
    cdef void make_room(self)
    cdef list parse(self)
    cdef object build(self, FrameStart* start)
    cdef object build_fetch(self, FrameStart* start, const uint8_t* header)
    cdef object build_fetched(self, FrameStart* start, const uint8_t* header, const uint8_t* payload, Py_ssize_t size)
    cdef void fail(self, Verdict verdict, FrameStart* start)


cdef class FrameWriter:
    cdef uint8_t* scratch      # headers and small payloads, side by side
    cdef Py_ssize_t used
    cdef Py_ssize_t size
    cdef list parts
    cdef readonly Py_ssize_t queued_bytes

    cdef uint8_t* reserve(self, Py_ssize_t count) except NULL
    cdef uint8_t* begin(self, uint8_t kind, uint32_t request_id, Py_ssize_t header_bytes,
                        Py_ssize_t payload_bytes) except NULL
    cdef int add(self, object payload, Py_ssize_t size) except -1
    cdef void cut(self)
