"""A batch dealt out to lanes, and without the records that a lane had finished before.

A lane is mixed(crc32c(partition key)) % count, or, where no order is asked for, (sequence + sub-sequence) % count.
Saved checkpoints rest on both: neither may ever change. Serves the consumer's `lanes`; no Python object a record.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from streamkit._core.aggregation cimport Entries, UserRecordEntry
from streamkit._core.batch cimport STORED, Batch, Fields, locate_entry, locate_stored

cdef extern from "crc32c.h" nogil:
    uint32_t sk_crc32c(uint32_t crc, const void* data, size_t size)

cdef enum:
    LANES_MAX = 256


cdef inline uint32_t lane_of(Batch batch, bint unwrapped, uint32_t index, uint32_t count, bint by_key) noexcept nogil:
    cdef Fields fields
    cdef uint32_t inner = 0
    if unwrapped:
        locate_entry(batch, index, &fields)
        inner = batch.entries.at[index].sub_sequence
        if inner == STORED:
            inner = 0
    else:
        locate_stored(batch, index, &fields)
    if by_key:
        # A checksum's low bits alone are much alike for keys that are: the product's upper half is not.
        return <uint32_t>(sk_crc32c(0, fields.key, fields.key_bytes) * <uint64_t>0x9E3779B97F4A7C15 >> 32) % count
    return <uint32_t>((batch.header.base_sequence + fields.index + inner) % count)


cdef int put(Entries into, Batch batch, bint unwrapped, uint32_t index) noexcept nogil:
    cdef UserRecordEntry* entry = into.grown()
    if entry == NULL:
        return -1
    if unwrapped:
        entry[0] = batch.entries.at[index]
    else:
        entry.outer = index
        entry.sub_sequence = STORED
    return 0


cdef Batch chosen(Batch batch, Entries entries):
    # A batch of these; it ends where `batch` does.
    cdef Batch made = batch.sibling()
    made.entries = entries
    made.stored_last = batch.stored_last if batch.entries is not None else batch.last
    made.first = 0
    made.last = <uint32_t>entries.count
    return made


cdef int check_count(Py_ssize_t count) except -1:
    if not 1 <= count <= LANES_MAX:
        raise ValueError(f"1 to {LANES_MAX} lanes, not {count}")
    return 0


cdef int check_whole(Batch batch) except -1:
    if batch.entries is not None and batch.last != batch.entries.count:
        raise ValueError("a batch whose last records were cut off cannot be dealt out")
    return 0


def deal(Batch batch not None, Py_ssize_t count, bint by_key) -> list:
    """The records of a batch by lane: `count` batches in the memory of this one, None for a lane that gets none.

    count: 1 to 256. Within a lane records keep their order; `place` of all of a lane's is the end of the whole batch.
    """
    cdef uint32_t i, lane
    cdef list lanes
    cdef bint unwrapped
    cdef int answer
    cdef Entries entries
    check_count(count)
    check_whole(batch)
    batch.open()
    unwrapped = batch.entries is not None
    lanes = [None] * count
    for i in range(batch.first, batch.last):
        lane = lane_of(batch, unwrapped, i, <uint32_t>count, by_key)
        if lanes[lane] is None:
            lanes[lane] = Entries.__new__(Entries)
        entries = <Entries>lanes[lane]
        if put(entries, batch, unwrapped, i) < 0:
            raise MemoryError
    return [None if found is None else chosen(batch, <Entries>found) for found in lanes]


def unfinished(Batch batch not None, list marks not None, bint by_key) -> Batch:
    """Without the records that lie below their lane's mark; the batch itself when there are none.

    marks: for each of 1 to 256 lanes a sequence: its records below that are finished.
    """
    cdef uint64_t at[LANES_MAX]
    cdef uint32_t i, lane, outer, count
    cdef bint unwrapped
    cdef Entries entries
    check_count(len(marks))
    check_whole(batch)
    batch.open()
    count = <uint32_t>len(marks)
    for i in range(count):
        at[i] = marks[i]
    unwrapped = batch.entries is not None
    entries = Entries.__new__(Entries)
    for i in range(batch.first, batch.last):
        lane = lane_of(batch, unwrapped, i, count, by_key)
        outer = batch.entries.at[i].outer if unwrapped else i
        if batch.header.base_sequence + outer >= at[lane] and put(entries, batch, unwrapped, i) < 0:
            raise MemoryError
    return batch if entries.count == batch.last - batch.first else chosen(batch, entries)
