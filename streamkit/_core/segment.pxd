# A segment file: batches one after the other from position 0, nothing in between; a sealed one ends with a trailer.
#
#   off size trailer field (96 bytes; little-endian)
#     0   4  magic "SKT1"
#     4   4  crc            CRC-32C of bytes 8..96, seeded with CRC-32C(shard uuid)
#     8   8  base           sequence of the first record
#    16   8  end            one past the last record
#    24   8  bytes          of batches, so also the trailer's own position
#    32   8  batches
#    40   8  first_append_ms
#    48   8  last_append_ms
#    56   4  headers_crc    CRC-32C over the 112-byte headers of all batches in order; each holds its body's sum
#    60  36  zero
#
# A batch never begins with "SKT1": its third byte is its version.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from streamkit._core.batch cimport BatchHeader

cdef enum:
    TRAILER_BYTES = 96

cdef enum Stop:                    # why a walk over batches stopped
    STOP_END = 0                   # at the end of the bytes, or at the limit
    STOP_SHORT = 1                 # the next batch needs more bytes than there are
    STOP_TRAILER = 2               # a sound trailer begins here
    STOP_ZERO = 3                  # a header of zeros: nothing was written here
    STOP_BAD = 4                   # neither a sound batch nor any of these

cdef enum RunFault:                # what check_run found wrong
    RUN_SOUND = 0
    RUN_BYTES = 1                  # not whole batches one after the other
    RUN_SUM = 2                    # a checksum of header or body
    RUN_GAP = 3                    # a batch does not begin where the one before it ends, or where the log does
    RUN_EPOCH = 4                  # epochs fall, pass the leader's, or change without an epoch-start batch
    RUN_TIME = 5                   # append times fall
    RUN_OVERLAP = 6                # a batch begins before the log's end and ends behind it

cdef struct Run:                   # a follower's log as check_run is given it, and what it found
    uint32_t seed
    uint64_t log_end
    uint32_t epoch                 # of the log's last batch
    uint32_t epoch_max
    uint64_t append_time_ms        # of the log's last batch
    uint64_t batch_bytes_max
    bint empty                     # the log holds nothing: its first batch may come from the midst of an epoch
    RunFault fault
    uint64_t sequence              # fault: of the batch
    size_t fresh                   # where the first batch that the log does not hold begins; size when it holds all
    uint64_t held_sequence         # the last batch that it should hold already, when fresh > 0
    uint32_t held_epoch

cdef void check_run(const uint8_t* at, size_t size, Run* run) noexcept nogil
    # Batches as a leader stored them, one after the other: whether the log may take in those it does not hold.

cdef Stop look(const uint8_t* at, size_t size, uint32_t seed, uint64_t sequence, uint32_t epoch_min,
               bint with_body, BatchHeader* header) noexcept nogil
    # STOP_END when a sound batch of this shard that starts at `sequence` lies in the first header.batch_bytes
    # of `size` readable bytes; otherwise why not. with_body: also sum the body.
