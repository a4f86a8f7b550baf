# The batch: sealed by a producer, sent, stored, copied and decoded as these same bytes. Little-endian.
#
#   off size field             owner     note
#     0   2  magic "SK"        leader
#     2   1  version           leader    1
#     3   1  flags             leader    bit 0 control (not for readers), bit 1 epoch start, bit 2 close,
#                                        bit 3 cancel: record_count of a producer's numbers, used up without a record;
#                                        it has no body, though codec and raw_bytes are those of so many empty records
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
#           a delta of -2^31 says that the producer gave no event time: readers then show the arrival time
#
# The leader's zone is 0..32; the producer seals it as zeros except magic, version, batch_bytes and,
# in a control batch, flags.

from cpython.buffer cimport Py_buffer
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from streamkit._core.aggregation cimport Entries, UserRecordEntry
from streamkit._core.buffers cimport u16_at, u32_at

cdef extern from "crc32c.h" nogil:
    uint32_t sk_crc32c(uint32_t crc, const void* data, size_t size)

cdef enum:
    HEADER_BYTES = 112
    RECORD_HEADER_BYTES = 8
    HASH_BYTES = 16
    FLAG_CONTROL = 1
    FLAG_EPOCH_START = 2
    FLAG_CLOSE = 4                       # the shard takes no more records: its one record says what follows it
    FLAG_CANCEL = 8                      # takes the place of a producer's batch that is never to be stored; no body
    ATTRIBUTE_CODEC = 3
    ATTRIBUTE_HEADERS = 4
    ATTRIBUTE_HASHES = 8
    ATTRIBUTE_KEYLESS = 16
    CODEC_NONE = 0
    CODEC_LZ4 = 1
    CODEC_ZSTD = 2
    BATCH_RECORDS_MAX = 65535
    BODY_BYTES_MAX = 10551296            # 10 MiB + 64 KiB: the most that a body may hold, raw

cdef enum:
    DELTA_NONE = -2147483648             # no event time given

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

cdef inline size_t record_bytes(size_t key_bytes, size_t headers_bytes, size_t value_bytes, bint hashes) noexcept nogil:
    return RECORD_HEADER_BYTES + (HASH_BYTES if hashes else 0) + key_bytes + headers_bytes + value_bytes

cdef inline uint8_t* write_record(uint8_t* at, const uint8_t* key, size_t key_bytes, const uint8_t* headers,
                                  size_t headers_bytes, const uint8_t* value, size_t value_bytes, int32_t delta,
                                  const uint8_t* hash_key) noexcept nogil:
    # Writes record_bytes(...) bytes; returns one past them. hash_key: 16 bytes, or NULL when records carry none.
    cdef uint16_t key_size = <uint16_t>key_bytes, headers_size = <uint16_t>headers_bytes
    memcpy(at, &key_size, 2)
    memcpy(at + 2, &headers_size, 2)
    memcpy(at + 4, &delta, 4)
    at += RECORD_HEADER_BYTES
    if hash_key != NULL:
        memcpy(at, hash_key, HASH_BYTES)
        at += HASH_BYTES
    if key_bytes:
        memcpy(at, key, key_bytes)
    at += key_bytes
    if headers_bytes:
        memcpy(at, headers, headers_bytes)
    at += headers_bytes
    if value_bytes:
        memcpy(at, value, value_bytes)
    return at + value_bytes

cdef inline void widen_hashes(BatchHeader* header, const uint8_t* hash_key) noexcept nogil:
    # hash_low starts as all ones, hash_high as zeros.
    if memcmp(hash_key, header.hash_low, HASH_BYTES) < 0:
        memcpy(header.hash_low, hash_key, HASH_BYTES)
    if memcmp(hash_key, header.hash_high, HASH_BYTES) > 0:
        memcpy(header.hash_high, hash_key, HASH_BYTES)

cdef inline void seal_header(uint8_t* at, BatchHeader* header, size_t batch_bytes) noexcept nogil:
    # The header in front of a body that already lies at `at` + HEADER_BYTES. The caller has filled the producer's
    # fields; magic, version, batch_bytes and body_crc are set here, the rest of the leader's zone is zeroed.
    memset(header, 0, 32)
    header.magic[0] = 0x53
    header.magic[1] = 0x4B
    header.version = 1
    header.batch_bytes = <uint32_t>batch_bytes
    memcpy(at, header, HEADER_BYTES)
    header.body_crc = body_crc(at, batch_bytes)
    memcpy(at + 32, &header.body_crc, 4)

cdef bytes compress_body(int codec, object body)     # None when it would not save a tenth; GIL released inside
cdef bytes join_batch(BatchHeader* header, bytes body)

cdef class RecordContext:
    cdef readonly str stream
    cdef readonly str shard
    cdef readonly int ordinal
    cdef readonly int64_t created_ms
    cdef readonly object decode          # bytes -> value, or None: values are the bytes
    cdef readonly object decode_for      # content type -> decode, or None
    cdef readonly object explain         # what decode raised -> text, or None
    cdef readonly str codec
    cdef readonly bytes uuid
    cdef uint32_t seed                   # CRC-32C of uuid
    cdef object number_base              # the parts of a sequence number that this shard's records share

cdef class Batch:
    cdef readonly object raw             # what it was made of
    cdef readonly RecordContext context
    cdef Py_buffer source                # our export of `raw`, held while the batch lives
    cdef BatchHeader header
    cdef object body_owner               # the object that `body` points into; set together with it, never changed
    cdef const uint8_t* body             # NULL until opened; then a checked table and its records
    cdef const uint8_t* records          # first record: body + 4 * record_count
    cdef uint32_t first                  # index of the first record that is given out
    cdef uint32_t last                   # one past the last record that is given out; at most record_count
    cdef object arrived                  # datetime, made when asked for
    cdef Entries entries                 # None until unwrapped; then `first` and `last` count entries, not stored records
    cdef uint32_t stored_last            # unwrapped: one past the last stored record that was looked into
    cdef int open(self) except -1
    cdef Record record_at(self, uint32_t index)
    cdef uint64_t position(self, size_t index) noexcept
    cdef tuple place_at(self, size_t index)
    cdef Batch sibling(self)
    cdef Batch unwrapped(self, const uint8_t* low, const uint8_t* high)

cdef class Record:
    cdef readonly Batch batch            # keeps `at` alive
    cdef const uint8_t* at               # the record's header inside batch.body
    cdef uint32_t size                   # from `at` to one past the value; checked when the batch was opened
    cdef uint32_t index                  # of the stored record, within the batch
    cdef bint decoded
    cdef object cached                   # the decoded value
    cdef uint32_t place                  # in batch.entries; otherwise the index
    cdef const UserRecordEntry* entry    # what it is inside an aggregate; NULL for a record that is stored by itself
    cdef size_t key_start(self) noexcept
    cdef size_t value_start(self) noexcept
    cdef object decode_failed(self, str codec, object cause)

cdef enum:
    STORED = 0xFFFFFFF                   # sub_sequence of an entry for a record that is stored by itself

cdef struct Fields:
    const uint8_t* stored                # the stored record's header
    uint32_t index                       # of the stored record
    const uint8_t* key
    const uint8_t* value
    size_t key_bytes
    size_t value_bytes

cdef inline void locate_stored(Batch batch, uint32_t index, Fields* into) noexcept nogil:
    # The batch is open and `index` below record_count.
    cdef uint32_t start = u32_at(batch.body + 4 * <size_t>index - 4) if index else 0
    cdef uint32_t end = u32_at(batch.body + 4 * <size_t>index)
    cdef const uint8_t* at = batch.records + start
    into.stored = at
    into.index = index
    into.key = at + RECORD_HEADER_BYTES + (HASH_BYTES if batch.header.attributes & ATTRIBUTE_HASHES else 0)
    into.key_bytes = u16_at(at)
    into.value = into.key + into.key_bytes + u16_at(at + 2)
    into.value_bytes = batch.records + end - into.value

cdef inline void locate_entry(Batch batch, uint32_t place, Fields* into) noexcept nogil:
    # The batch is unwrapped and `place` below its number of entries.
    cdef const UserRecordEntry* entry = &batch.entries.at[place]
    locate_stored(batch, entry.outer, into)
    if entry.sub_sequence != STORED:
        into.key = entry.key
        into.key_bytes = entry.key_bytes
        into.value = entry.data
        into.value_bytes = entry.data_bytes

cdef class BatchIterator:
    cdef Batch batch
    cdef uint32_t next_index
    cdef bint decoded                    # the values alone
