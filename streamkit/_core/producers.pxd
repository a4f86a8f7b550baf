# What a shard remembers of each idempotent producer. The table of answers is drawn in producers.pyx.

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from streamkit._core.batch cimport BatchHeader

cdef enum:
    PRODUCER_WINDOW = 8
    ACTIVE_MS = 3600 * 1000        # a producer seen within this time is never forgotten for want of room

cdef enum Verdict:
    VERDICT_APPEND = 0
    VERDICT_DUPLICATE = 1          # among the kept batches; `kept` says where it lies
    VERDICT_DUPLICATE_OLD = 2      # written, place no longer known
    VERDICT_GAP = 3
    VERDICT_CORRUPT = 4
    VERDICT_FENCED = 5
    VERDICT_UNKNOWN = 6
    VERDICT_CANCELLED = 7          # never to be stored; `kept` says where the cancelling batch lies

cdef struct KeptBatch:
    uint64_t first                 # producer's sequence of its first record
    uint64_t end                   # one past its last
    uint64_t base_sequence         # where it lies in the log
    uint64_t append_time_ms        # CANCELLED in it: its numbers were used up, no record was stored

cdef class Producer:
    cdef uint64_t next             # the sequence expected next
    cdef uint64_t seen_ms          # of its last append
    cdef uint32_t epoch
    cdef uint32_t count            # batches kept
    cdef KeptBatch[PRODUCER_WINDOW] kept      # oldest first

cdef class ProducerTable:
    cdef dict producers            # producer id → Producer
    cdef readonly Py_ssize_t producers_max
    cdef Verdict judge(self, BatchHeader* header, KeptBatch* kept, uint64_t* expected)
    cdef int note(self, BatchHeader* header, uint64_t base_sequence, uint64_t append_time_ms) except -1
    cdef bint find(self, uint64_t producer_id, uint32_t* epoch, uint64_t* expected)
    cdef bint has_room(self, uint64_t producer_id, uint64_t now_ms)
