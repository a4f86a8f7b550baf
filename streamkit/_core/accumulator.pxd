# Open batches by shard, in C, so that records are taken without a Python object each.
#
# A record lies in the slab of its shard's open batch from put to acknowledgement; sealing writes the header and
# the table in front of it, where room was left. Slab memory:
#
#   0               HEADER_BYTES + 4 * records_max     .. used             .. capacity
#   room for header and table                | records, back to back | free
#                   ^ the sealed batch begins 4 * count + HEADER_BYTES before the records
#
# While open, end offsets are collected at HEADER_BYTES; sealing moves them up against the records.

from cpython.ref cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from streamkit._core.batch cimport Batch, BatchHeader
from streamkit._core.hashing cimport HashRange, ShardTable
from streamkit._core.outcome cimport Delivery

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t* mutex, const void* attributes)
    int pthread_mutex_destroy(pthread_mutex_t* mutex)
    int pthread_mutex_lock(pthread_mutex_t* mutex)
    int pthread_mutex_trylock(pthread_mutex_t* mutex)
    int pthread_mutex_unlock(pthread_mutex_t* mutex)

cdef extern from *:
    """
    #define sk_add(target, delta) __atomic_add_fetch(target, delta, __ATOMIC_RELAXED)
    #define sk_load(target) __atomic_load_n(target, __ATOMIC_RELAXED)
    """
    int64_t sk_add(int64_t* target, int64_t delta) noexcept nogil
    int64_t sk_load(int64_t* target) noexcept nogil

cdef enum:                           # what `add` answers
    ADDED = 0
    NO_ROOM = -1                     # the budget is used up
    NO_MEMORY = -2
    NO_SHARD = -3
    TOO_LARGE = -4
    BAD_KEY = -5
    CLOSED = -6
    BAD_TEXT = -7                    # the key is not UTF-8: readers could not tell it

cdef enum:
    TABLE_ENTRY_BYTES = 4

cdef struct Span:                    # neighbouring records of a slab that came from one bulk call
    PyObject* handle                 # a ColumnsHandle, which keeps itself alive until it is settled
    uint32_t first
    uint32_t count

cdef struct Slab:
    uint8_t* memory                  # owned
    size_t capacity
    size_t used                      # bytes of records
    size_t charged                   # of the byte budget
    BatchHeader header               # hash range, times, attributes, count: filled as records arrive
    PyObject* delivery               # Delivery of the handles given out, or NULL; owned
    Span* spans                      # owned
    uint32_t span_count
    uint32_t span_capacity
    uint32_t* rows                   # bulk row of each record, owned; NULL until a bulk call
    Slab* next

cdef struct Lane:                    # one shard
    Slab* open
    Slab* first_closed               # full, waiting to be taken; oldest first
    Slab* last_closed
    uint32_t poor_samples            # batches in a row that compression did not help
    uint32_t skip                    # batches to leave uncompressed before the next sample
    bint touched                     # in the accumulator's list of lanes to look at
    int64_t charged                  # of the byte budget: open, sealed and in flight; atomic
    bint slow                        # keyless records go elsewhere while they can

cdef class Budget:
    cdef readonly int64_t limit
    cdef int64_t taken               # atomic: several accumulators share it

cdef inline bint take_budget(Budget budget, int64_t size) noexcept nogil:
    # A lone record larger than what is left may not pass: the sender frees room as batches are acknowledged.
    if sk_add(&budget.taken, size) > budget.limit:
        sk_add(&budget.taken, -size)
        return False
    return True

cdef class Accumulator:
    cdef readonly Budget budget
    cdef readonly ShardTable table   # replaced under the mutex and with the GIL: whoever has either may read it
    cdef readonly Py_ssize_t shards
    cdef readonly uint64_t records   # accepted so far
    cdef readonly uint64_t payload_bytes   # their keys, headers and values
    cdef uint32_t records_max
    cdef size_t batch_bytes_max
    cdef size_t record_bytes_max
    cdef int codec
    cdef uint32_t map_version
    cdef object home                 # event loop that settles
    cdef object withdraw             # called with a PutHandle that is to be cancelled, or None
    cdef list origins                # for each shard: (receipt, index in its batch) -> PutResult
    cdef object wake                 # called when `touched` may have become non-empty
    cdef bint wake_asked             # until take_touched
    cdef Delivery spare              # made before the mutex is taken: nothing is allocated in Python under it
    cdef pthread_mutex_t mutex       # guards everything below; whoever holds it never needs the GIL
    cdef bint closed                 # nothing is accepted any more
    cdef Lane* lanes                 # [shards], owned; moved by replace_map, which only the sender's loop calls
    cdef uint32_t* touched           # [shards] lanes to look at, owned
    cdef Py_ssize_t touched_count
    cdef int64_t share_bytes         # of the budget, the most that one of several shards may hold
    cdef readonly uint64_t keyless   # records accepted without a key
    cdef Py_ssize_t sticky           # where keyless records go: a place in the table; -1: to be chosen
    cdef int64_t sticky_left         # bytes until it is chosen anew
    cdef uint8_t sticky_hash[16]     # their hash key, somewhere in its range
    cdef uint64_t random             # state of the draws
    cdef Slab* pool                  # empty slabs to use again
    cdef size_t pool_bytes
    cdef void lock(self) noexcept
    cdef int lock_with_spare(self) except -1
    cdef int add(self, Lane* lane, const uint8_t* key, size_t key_bytes, const uint8_t* headers, size_t headers_bytes,
                 const uint8_t* value, size_t value_bytes, int64_t time_ms, const uint8_t* digest,
                 bint explicit_hash) noexcept nogil
    cdef int32_t place_keyless(self, int64_t charge, uint8_t* digest) noexcept nogil
    cdef bint wanted(self, Py_ssize_t place, int64_t charge) noexcept nogil
    cdef double weight(self, Py_ssize_t place) noexcept nogil
    cdef bint has_share(self, Lane* lane, int64_t charge) noexcept nogil
    cdef Slab* new_slab(self, size_t first_record, bint hashes) noexcept nogil
    cdef void close_slab(self, Lane* lane) noexcept nogil
    cdef void touch(self, Lane* lane) noexcept nogil
    cdef void free_slab(self, Slab* slab) noexcept nogil
    cdef void give_memory(self, Slab* slab) noexcept nogil

cdef class SealedBatch:
    cdef Accumulator accumulator
    cdef Slab* slab                  # ours until the batch is settled and its bytes are let go
    cdef uint8_t* at                 # where the uncompressed batch begins
    cdef readonly Py_ssize_t shard   # index
    cdef readonly uint32_t count
    cdef readonly uint64_t sequence  # the producer's, of the first record
    cdef readonly size_t charged
    cdef readonly bint settled
    cdef bytes packed                # the compressed batch, or None
    cdef Py_ssize_t exported         # buffers that others hold on us
    cdef Py_ssize_t size
    cdef int compress(self, Lane* lane) except -1
    cdef int settle(self, object error, uint64_t base_sequence) except -1
    cdef void let_go(self) noexcept

# For `apart`.
cdef object refusal(int answer)
cdef int note_row(Accumulator accumulator, Lane* lane, PyObject* handle, uint32_t row, size_t charge) noexcept nogil
