# Live-object counters of the debug build. A counted class calls SK_COUNT(live_counts[LIVE_X], 1) in __cinit__
# and with -1 in __dealloc__; both vanish in the ordinary build. New kinds: here, and a name in debug.pyx.

from libc.stdint cimport int64_t

cdef extern from "debug.h" nogil:
    const int SK_DEBUG
    void SK_COUNT(int64_t counter, int64_t delta)

cdef enum:
    LIVE_BATCH = 0
    LIVE_RECORD = 1
    LIVE_ACCUMULATOR = 2
    LIVE_SEALED = 3
    LIVE_HANDLE = 4
    LIVE_SLAB = 5
    LIVE_RECEIVE_BLOCK = 6
    LIVE_JOURNAL = 7
    LIVE_SHARD = 8
    LIVE_SEGMENT = 9
    LIVE_INDEX = 10
    LIVE_KINDS = 11

cdef int64_t live_counts[LIVE_KINDS]
