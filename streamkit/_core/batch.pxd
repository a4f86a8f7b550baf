# The batch: sealed by a producer, sent, stored, copied and decoded as these same bytes. Little-endian.
#
#   off size field             owner     note
#     0   2  magic "SK"        leader
#     2   1  version           leader    1
#     3   1  flags             leader    bit 0 control (not for readers), bit 1 epoch start
#     4   4  batch_bytes       leader    whole batch, header included
#     8   8  base_sequence     leader    sequence of the first record
#    16   4  epoch             leader    leadership that appended it
#    20   4  header_crc        leader    CRC-32C of bytes 0..20 and 24..36, seeded with CRC-32C(shard uuid)
#    24   8  append_time_ms    leader    never decreases within a shard
#    32   4  body_crc          producer  CRC-32C of bytes 36..end; leader, follower, scrubber and reader check it
#    36   2  attributes        producer  bits 0-1 codec (0 none, 1 lz4, 2 zstd), bit 2 has headers,
#                                        bit 3 every record carries its 16-byte hash key, bit 4 keyless,
#                                        bit 5 transactional (reserved), bit 6 application sequence (reserved)
#    38   2  producer_epoch    producer
#    40   8  producer_id       producer  0: not idempotent
#    48   8  producer_sequence producer  of the first record; counted in records for each shard, from 0
#    56   4  record_count      producer  1..65535
#    60   4  raw_bytes         producer  size of the body before compression; checked before decompressing
#    64   8  event_time_ms     producer  base that the records' deltas add to
#    72   4  event_time_delta_max producer  largest delta in the batch (signed)
#    76   4  map_version       producer  version of the shard map it was routed by
#    80  16  hash_low          producer  lowest hash key in the batch, big-endian as MD5 gives it
#    96  16  hash_high         producer  highest hash key in the batch, inclusive
#   112  ..  body                        compressed as one unit when codec is not 0:
#                                        record_count × u32 end offsets (from the end of this table), then records
#
#   record:  u16 key_bytes, u16 headers_bytes, i32 event_time_delta_ms, [16-byte hash key], key, headers, value
#
# The leader's zone is 0..32; the producer seals it as zeros except magic, version and batch_bytes.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from "crc32c.h" nogil:
    uint32_t sk_crc32c(uint32_t crc, const void* data, size_t size)

cdef enum:
    HEADER_BYTES = 112
    RECORD_HEADER_BYTES = 8
    HASH_BYTES = 16
    FLAG_CONTROL = 1
    FLAG_EPOCH_START = 2
    ATTRIBUTE_CODEC = 3
    ATTRIBUTE_HEADERS = 4
    ATTRIBUTE_HASHES = 8
    ATTRIBUTE_KEYLESS = 16
    CODEC_NONE = 0
    CODEC_LZ4 = 1
    CODEC_ZSTD = 2

cdef packed struct BatchHeader:      # the header as it lies in memory and on disk (little-endian machines only)
    uint8_t magic[2]
    uint8_t version
    uint8_t flags
    uint32_t batch_bytes
    uint64_t base_sequence
    uint32_t epoch
    uint32_t header_crc
    uint64_t append_time_ms
    uint32_t body_crc
    uint16_t attributes
    uint16_t producer_epoch
    uint64_t producer_id
    uint64_t producer_sequence
    uint32_t record_count
    uint32_t raw_bytes
    int64_t event_time_ms
    int32_t event_time_delta_max
    uint32_t map_version
    uint8_t hash_low[16]
    uint8_t hash_high[16]

cdef enum:                           # what check_frame answers
    BATCH_OK = 0
    BATCH_SHORT = 1                  # fewer bytes than the header or batch_bytes says
    BATCH_MAGIC = 2                  # not a batch, or an unknown version
    BATCH_SIZE = 3                   # batch_bytes below a header, or the record count cannot fit
    BATCH_HEADER_CRC = 4
    BATCH_BODY_CRC = 5

cdef inline int read_header(const uint8_t* at, size_t size, BatchHeader* header) noexcept nogil:
    # Copies the header out of `size` readable bytes; BATCH_OK means that batch_bytes of them are there too.
    if size < HEADER_BYTES:
        return BATCH_SHORT
    memcpy(header, at, HEADER_BYTES)
    if header.magic[0] != 0x53 or header.magic[1] != 0x4B or header.version != 1:
        return BATCH_MAGIC
    if header.batch_bytes < HEADER_BYTES or header.record_count == 0 or header.record_count > 65535:
        return BATCH_SIZE
    if header.batch_bytes > size:
        return BATCH_SHORT
    return BATCH_OK

cdef inline uint32_t header_crc(const uint8_t* at, uint32_t shard_seed) noexcept nogil:
    # shard_seed: CRC-32C of the shard's 16-byte uuid.
    return sk_crc32c(sk_crc32c(shard_seed, at, 20), at + 24, 12)

cdef inline uint32_t body_crc(const uint8_t* at, size_t batch_bytes) noexcept nogil:
    return sk_crc32c(0, at + 36, batch_bytes - 36)

cdef inline void stamp(uint8_t* at, uint8_t flags, uint64_t base_sequence, uint32_t epoch,
                       uint64_t append_time_ms, uint32_t shard_seed) noexcept nogil:
    # The leader's zone of a batch whose body was checked; `at` must be writable and not shared.
    cdef uint32_t crc
    at[3] = flags
    memcpy(at + 8, &base_sequence, 8)
    memcpy(at + 16, &epoch, 4)
    memcpy(at + 24, &append_time_ms, 8)
    crc = header_crc(at, shard_seed)
    memcpy(at + 20, &crc, 4)
