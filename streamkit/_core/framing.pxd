# Frames: how requests and answers are laid out on a connection. Little-endian.
#
#   off size field          note
#     0   4  length         bytes after this field; 8 .. the connection's limit
#     4   1  kind           1 message, 2 put, 3 put_ok, 4 fetch, 5 fetch_ok, 6 replicate, 7 replicated
#     5   1  flags          0 (reserved: a frame with flags set is refused)
#     6   2  header_bytes   of the fixed header below; a longer one than is known is skipped over
#     8   4  request_id     0: one-way, for messages and always for kinds 6 and 7; an answer repeats its request's
#    12   .. header, then payload up to the end of the frame
#
#   message   header 0                                            payload: msgpack of protocol.messages
#   put       header 24: shard uuid 16, u32 timeout_ms, u32 0     payload: one batch
#   put_ok    header 24: u64 base_sequence, u64 append_time_ms, u32 epoch,
#                        u32 bits (0 repeated batch, 1 repeated, its place no longer known, 2 synced,
#                                  8..15 copies that hold it at least; 0: not told)
#   fetch     header 48 and the application's name in UTF-8: shard uuid 16, u64 start, u32 bytes_max,
#                        u32 wait_ms, u64 lease_epoch (0: a plain reader), u64 session (0: a plain reader)
#   fetch_ok  header 40: u64 high_watermark, u64 log_start, u64 log_end, u64 next_sequence,
#                        u32 batch_count, u32 0                   payload: whole batches
#
# Between nodes only:
#
#   replicate  header 8: u32 section_count, u32 0                 payload: sections, each followed by its batches
#     section  0 16 shard uuid   16 u32 epoch     20 u32 level (0 fsync, 1 os, 2 leader)
#             24 u64 start: sequence of the first batch, which the follower's log must reach
#             32 u32 previous_epoch: of the record before start; 0: none, or start is the leader's log_start
#             36 u32 batch_bytes 40 u64 high_watermark 48 u64 log_start 56 u64 leader_end
#             64 u64 epoch_start: where the leader's epoch begins; 2**64 - 1: nowhere yet
#   replicated header 8: u32 count, u32 0                         payload: count acknowledgements of 56 bytes
#             0 16 shard uuid   16 16 incarnation   32 u32 epoch
#             36 u32 verdict (0 accepted, 1 mismatch, 2 stale, 3 unknown, 4 refused)
#             40 u64 end        48 u64 written: protocol 2, the end that is written, whatever the level; protocol 1: 0

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
    KIND_REPLICATE = 6
    KIND_REPLICATED = 7
    GROUP_HEADER_BYTES = 8         # of replicate and replicated
    SECTION_BYTES = 72
    ACKNOWLEDGEMENT_BYTES = 56
    LEVEL_MAX = 2
    VERDICT_MAX = 4

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
    BAD_SECTIONS = -9
    BAD_ACKNOWLEDGEMENTS = -10

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

cdef packed struct GroupHeader:
    uint32_t count
    uint32_t reserved

cdef packed struct SectionHeader:
    uint8_t shard[16]
    uint32_t epoch
    uint32_t level
    uint64_t start
    uint32_t previous_epoch
    uint32_t batch_bytes
    uint64_t high_watermark
    uint64_t log_start
    uint64_t leader_end
    uint64_t epoch_start

cdef packed struct AcknowledgementEntry:
    uint8_t shard[16]
    uint8_t incarnation[16]
    uint32_t epoch
    uint32_t verdict
    uint64_t end
    uint64_t written

cdef inline uint32_t header_bytes_least(uint8_t kind) noexcept nogil:
    if kind >= KIND_REPLICATE:
        return GROUP_HEADER_BYTES
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
    if start.kind < KIND_MESSAGE or start.kind > KIND_REPLICATED:
        return BAD_KIND
    if start.flags:
        return BAD_FLAGS
    if start.header_bytes > start.length - (START_BYTES - 4) or start.header_bytes < header_bytes_least(start.kind):
        return BAD_HEADER
    if not accepts & (1 << start.kind):
        return BAD_STATE
    if start.kind != KIND_MESSAGE and (start.request_id == 0) != (start.kind >= KIND_REPLICATE):
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
    cdef readonly uint32_t replicas
    cdef readonly bint synced
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


cdef class Section:            # itself a read-only buffer over its batches
    cdef readonly bytes shard
    cdef readonly uint32_t epoch
    cdef readonly uint32_t level
    cdef readonly uint32_t previous_epoch
    cdef readonly uint64_t start
    cdef readonly uint64_t high_watermark
    cdef readonly uint64_t log_start
    cdef readonly uint64_t leader_end
    cdef readonly uint64_t epoch_start
    cdef object owner          # keeps `at` alive; a reader's block changes with its next get_buffer
    cdef const uint8_t* at
    cdef Py_ssize_t size


cdef class Acknowledgement:
    cdef readonly bytes shard
    cdef readonly bytes incarnation
    cdef readonly uint32_t epoch
    cdef readonly uint32_t verdict
    cdef readonly uint64_t end
    cdef readonly uint64_t written


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
    cdef bint build_sections(self, list frames, const uint8_t* header, const uint8_t* at, Py_ssize_t size)
    cdef bint build_acknowledgements(self, list frames, const uint8_t* header, const uint8_t* at, Py_ssize_t size)
    cdef bint build_group(self, list frames, FrameStart* start)
    cdef void fail(self, Verdict verdict, FrameStart* start)


cdef class FrameWriter:
    cdef uint8_t* scratch      # headers and small payloads, side by side
    cdef Py_ssize_t used
    cdef Py_ssize_t size
    cdef list parts
    cdef readonly Py_ssize_t queued_bytes
    cdef Py_ssize_t group_part     # where the replicate frame begins that is being written: index in `parts`, -1: none
    cdef Py_ssize_t group_at       # and the position in that part
    cdef Py_ssize_t group_bytes    # of its payload so far
    cdef uint32_t group_count

    cdef uint8_t* reserve(self, Py_ssize_t count) except NULL
    cdef uint8_t* begin(self, uint8_t kind, uint32_t request_id, Py_ssize_t header_bytes,
                        Py_ssize_t payload_bytes) except NULL
    cdef int add(self, object payload, Py_ssize_t size) except -1
    cdef void cut(self)
