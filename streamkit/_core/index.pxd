# A sparse index of one segment, 16 bytes an entry, little-endian as it lies in the .idx file:
#
#   off size field
#     0   4  sequence   of the batch, relative to the segment's base
#     4   4  position   of the batch in the segment file
#     8   8  append_time_ms
#
# All three grow. The index is only a cache: whoever uses an entry checks the batch header it points to.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    INDEX_ENTRY_BYTES = 16
    INDEX_STEP_BYTES = 32768       # at most one entry in so many bytes of segment

cdef struct IndexEntry:
    uint32_t sequence
    uint32_t position
    uint64_t append_time_ms

cdef class SparseIndex:
    cdef IndexEntry* entries       # owned; `room` of them allocated, `count` in use
    cdef Py_ssize_t count
    cdef Py_ssize_t room
    cdef int add(self, uint64_t sequence, uint64_t position, uint64_t append_time_ms) except -1
    cdef Py_ssize_t before_sequence(self, uint64_t sequence) noexcept nogil
    cdef Py_ssize_t before_time(self, uint64_t append_time_ms) noexcept nogil
