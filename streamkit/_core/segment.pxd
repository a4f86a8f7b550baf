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

cdef Stop look(const uint8_t* at, size_t size, uint32_t seed, uint64_t sequence, uint32_t epoch_min,
               bint with_body, BatchHeader* header) noexcept nogil
    # STOP_END when a sound batch of this shard that starts at `sequence` lies in the first header.batch_bytes
    # of `size` readable bytes; otherwise why not. with_body: also sum the body.
