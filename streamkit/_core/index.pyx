"""The sparse index of a segment: sequence and append time → a file position at or before it.

Serves `log` and `storage`. One index answers both questions since append times never fall in a shard.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from streamkit._core.debug cimport LIVE_INDEX, SK_COUNT, live_counts


cdef class SparseIndex:
    """Entries in order; add() keeps one entry a step. An empty index answers position 0."""

    def __cinit__(self):
        SK_COUNT(live_counts[LIVE_INDEX], 1)

    def __dealloc__(self):
        SK_COUNT(live_counts[LIVE_INDEX], -1)
        free(self.entries)

    def __len__(self):
        return self.count

    cdef int add(self, uint64_t sequence, uint64_t position, uint64_t append_time_ms) except -1:
        # The batch at `position` starts at `sequence` (relative). Batches must be offered in order.
        cdef IndexEntry* grown
        cdef Py_ssize_t room
        if self.count and position < <uint64_t>self.entries[self.count - 1].position + INDEX_STEP_BYTES:
            return 0
        if position < INDEX_STEP_BYTES or sequence > 0xFFFFFFFF or position > 0xFFFFFFFF:
            return 0               # the segment's beginning needs no entry
        if self.count == self.room:
            room = self.room * 2 if self.room else 8
            grown = <IndexEntry*>realloc(self.entries, room * sizeof(IndexEntry))
            if grown == NULL:
                raise MemoryError()
            self.entries = grown
            self.room = room
        self.entries[self.count].sequence = <uint32_t>sequence
        self.entries[self.count].position = <uint32_t>position
        self.entries[self.count].append_time_ms = append_time_ms
        self.count += 1
        return 0

    cdef Py_ssize_t before_sequence(self, uint64_t sequence) noexcept nogil:
        # The last entry whose sequence is at or before `sequence`; -1 when there is none.
        cdef Py_ssize_t low = 0
        cdef Py_ssize_t high = self.count
        cdef Py_ssize_t middle
        while low < high:
            middle = (low + high) >> 1
            if self.entries[middle].sequence <= sequence:
                low = middle + 1
            else:
                high = middle
        return low - 1

    cdef Py_ssize_t before_time(self, uint64_t append_time_ms) noexcept nogil:
        # The last entry older than `append_time_ms`; -1 when there is none.
        cdef Py_ssize_t low = 0
        cdef Py_ssize_t high = self.count
        cdef Py_ssize_t middle
        while low < high:
            middle = (low + high) >> 1
            if self.entries[middle].append_time_ms < append_time_ms:
                low = middle + 1
            else:
                high = middle
        return low - 1

    def offer(self, sequence: int, position: int, append_time_ms: int):
        """Add an entry unless the last one is less than a step away; sequence is relative to the base."""
        self.add(sequence, position, append_time_ms)

    def find(self, uint64_t sequence):
        """(relative sequence, position) of the last entry at or before `sequence`; (0, 0) when there is none."""
        cdef Py_ssize_t at = self.before_sequence(sequence)
        if at < 0:
            return 0, 0
        return self.entries[at].sequence, self.entries[at].position

    def find_time(self, uint64_t append_time_ms):
        """(relative sequence, position) of the last entry older than `append_time_ms`; (0, 0) when there is none."""
        cdef Py_ssize_t at = self.before_time(append_time_ms)
        if at < 0:
            return 0, 0
        return self.entries[at].sequence, self.entries[at].position

    def cut(self, uint64_t position):
        """Forget entries at `position` and after."""
        while self.count and self.entries[self.count - 1].position >= position:
            self.count -= 1

    def to_bytes(self) -> bytes:
        """The entries as they lie in an .idx file."""
        return PyBytes_FromStringAndSize(<char*>self.entries, self.count * INDEX_ENTRY_BYTES)

    @staticmethod
    def from_bytes(const uint8_t[::1] data not None, uint64_t size_max):
        """The longest leading part of `data` whose entries grow and lie below `size_max`; never raises on content."""
        cdef SparseIndex index = SparseIndex()
        cdef Py_ssize_t i
        cdef IndexEntry entry
        cdef IndexEntry last
        for i in range(data.shape[0] // INDEX_ENTRY_BYTES):
            memcpy(&entry, &data[i * INDEX_ENTRY_BYTES], INDEX_ENTRY_BYTES)
            if entry.position >= size_max or entry.position < INDEX_STEP_BYTES:
                break
            if i and (entry.sequence <= last.sequence or entry.append_time_ms < last.append_time_ms
                      or entry.position < <uint64_t>last.position + INDEX_STEP_BYTES):
                break
            index.add(entry.sequence, entry.position, entry.append_time_ms)
            last = entry
        return index
