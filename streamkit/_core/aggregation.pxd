# The KPL's aggregated record: many user records in one stored record.
#
#   off size field
#     0   4  magic              F3 89 9A C2
#     4   n  message            protobuf (proto2), below; at least one byte
#   4+n  16  digest             MD5 of the message
#
#   AggregatedRecord: 1 repeated string partition_key_table, 2 repeated string explicit_hash_key_table, 3 repeated Record
#   Record:           1 required uint64 partition_key_index, 2 optional uint64 explicit_hash_key_index,
#                     3 required bytes data, 4 repeated Tag
#   Tag:              1 required string key, 2 optional string value
#
# Fields come in any order and unknown ones are skipped, as protobuf has it; tables may follow the records that point
# into them and may hold an entry twice. A group, an index outside its table, a text that is not UTF-8, or a hash key
# that is no decimal number below 2**128: the bytes are not an aggregate. Zero records is an aggregate of nothing.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp

cdef enum:
    MAGIC_BYTES = 4
    DIGEST_BYTES = 16
    ENVELOPE_BYTES = 20
    NOT_AN_AGGREGATE = -1
    NO_MEMORY = -2

cdef extern from *:
    """
    static const unsigned char sk_aggregate_magic[4] = {0xF3, 0x89, 0x9A, 0xC2};
    """
    const uint8_t* AGGREGATE_MAGIC "sk_aggregate_magic"

cdef struct UserRecordEntry:         # one user record, where it lies; whoever made it keeps those bytes alive
    const uint8_t* key               # UTF-8
    const uint8_t* data
    const uint8_t* hash_text         # the explicit hash key's decimal digits, checked; NULL when there is none
    const uint8_t* message           # the whole Record message when it has tags; else NULL
    uint32_t key_bytes
    uint32_t data_bytes
    uint32_t hash_bytes
    uint32_t message_bytes
    uint32_t outer                   # the caller's number for the record it was in
    uint32_t sub_sequence            # place within that record

cdef struct Span:
    const uint8_t* at
    uint32_t size

cdef struct Spans:
    Span* at
    size_t count
    size_t capacity

cdef inline bint looks_aggregated(const uint8_t* at, size_t size) noexcept nogil:
    # The one comparison that an ordinary record costs.
    return size > ENVELOPE_BYTES and memcmp(at, AGGREGATE_MAGIC, MAGIC_BYTES) == 0

cdef class Entries:
    cdef UserRecordEntry* at         # `count` of `capacity` are in use; ours
    cdef size_t count
    cdef size_t capacity
    cdef Spans keys                  # the tables of the aggregate in hand; kept from one to the next for their memory
    cdef Spans hashes
    cdef UserRecordEntry* grown(self) noexcept nogil       # one more, zeroed; NULL when memory runs out
    cdef Py_ssize_t append(self, const uint8_t* at, size_t size, uint32_t outer) noexcept nogil

cdef void entry_hash_key(const UserRecordEntry* entry, uint8_t* out) noexcept nogil     # 16 bytes, big-endian
