# The leases of one application: who owns which shard, how far it is processed.
#
# A row, as it lies in memory and in a snapshot of the command log (little-endian, 64 bytes):
#
#   off size field
#     0  16  shard              uuid
#    16   8  lease_epoch        +1 at every change of owner or reset; the fencing token
#    24   8  checkpoint         sequence of the first record not yet finished
#    32   8  number             last checkpoint number of this lease epoch; 0: none yet
#    40   8  session            owner; 0: nobody
#    48   8  checkpointed_ms    wall clock of the last accepted checkpoint; information only
#    56   4  takeovers          owners in a row that crashed without moving the checkpoint
#    60   1  state              READY, OWNED, DRAINING, PAUSED, WAITING (for its parents), COMPLETE (at its shard's end)
#    61   1  result             what checkpoint `number` was answered: RESULT_OK or RESULT_BEHIND
#    62   1  progressed         the present owner has moved the checkpoint
#    63   1  crashed            the last owner did not release the lease

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

cdef enum:
    ROW_BYTES = 64
    ITEM_BYTES = 40            # an accepted checkpoint: uuid 16, lease epoch 8, number 8, sequence 8

cdef enum:                     # states
    READY = 1
    OWNED = 2
    DRAINING = 3
    PAUSED = 4
    WAITING = 5
    COMPLETE = 6

cdef enum:                     # results
    RESULT_OK = 0
    RESULT_FENCED = 1
    RESULT_BEHIND = 2

cdef packed struct Row:
    uint8_t shard[16]
    uint64_t lease_epoch
    uint64_t checkpoint
    uint64_t number
    uint64_t session
    int64_t checkpointed_ms
    uint32_t takeovers
    uint8_t state
    uint8_t result
    uint8_t progressed
    uint8_t crashed

cdef packed struct Item:
    uint8_t shard[16]
    uint64_t lease_epoch
    uint64_t number
    uint64_t sequence

cdef class LeaseTable:
    cdef Row* rows             # `count` of `capacity` are in use, in the order they were added; owned
    cdef Py_ssize_t count
    cdef Py_ssize_t capacity
    cdef int32_t* buckets      # row index or -1, open addressing; bucket_mask + 1 of them; owned
    cdef uint64_t bucket_mask

    cdef Row* find(self, const uint8_t* shard) noexcept nogil
    cdef Row* at(self, bytes shard) except NULL
    cdef int index(self) except -1
    cdef int reserve(self, Py_ssize_t count) except -1
