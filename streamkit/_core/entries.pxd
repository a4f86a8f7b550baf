# Put bodies by entry; see bodies.pxd for what a scan leaves behind.

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t

from streamkit._core.batch cimport BatchHeader
from streamkit._core.bodies cimport Body, sk_number
from streamkit._core.hashing cimport ShardTable

cdef enum:
    BATCH_RECORDS_LIMIT = 10000      # of one sealed batch
    BATCH_BYTES_LIMIT = 8388608      # of its body before compression; a record that is larger goes alone
    GROUP_SLOTS = 1024               # a power of two, at least twice ENTRIES_MAX

cdef struct Routed:                  # beside each entry while it is packed
    uint8_t digest[16]
    int32_t shard
    int32_t next_entry               # of the same group, or -1
    bint explicit_hash

cdef struct Group:                   # the entries of one batch
    int32_t shard
    int32_t first
    int32_t last
    uint32_t count
    size_t bytes                     # keys and data
    bint hashes
    uint8_t* at                      # the batch's memory while it is written; the caller's
    size_t size
    BatchHeader header

cdef struct Plan:
    Routed* routed                   # [kept entries], owned by pack()
    Group* groups                    # [kept entries], owned by pack()
    int32_t group_count

cdef struct Line:                    # how the entries of one Packed are answered
    const uint8_t* head              # stored: what precedes the number; failed: the whole
    size_t head_size
    const uint8_t* tail              # stored: what follows the number; failed: NULL
    size_t tail_size
    sk_number number                 # of the next of its entries

cdef class Packed:
    cdef readonly int32_t shard      # index into the table
    cdef readonly bytes batch
    cdef readonly uint32_t count
    cdef readonly size_t payload_bytes
    cdef bytes entries               # count × uint16: the entries' indices, in the batch's order

cdef class PutEntries:
    cdef readonly dict members
    cdef readonly size_t payload_bytes
    cdef bytes source                # what body points into
    cdef Body body                   # entries, members and scratch are owned
    cdef Py_ssize_t kept             # entries that are there to look at
    cdef bint cbor
    cdef dict other_members(self)
    cdef str path(self, Py_ssize_t entry, str name)
    cdef int choose(self, again, uint16_t* chosen) except -1
    cdef int seal_groups(self, Plan* plan) noexcept nogil
    cdef bytes write_reply(self, Line* lines, const uint16_t* line_of, bytes opening, bytes closing)
