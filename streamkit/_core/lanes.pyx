"""A batch dealt out to lanes, and without the records that a lane had finished before.

Records that keep their order among each other have one row: crc32c(partition key), or, where no order is asked for,
sequence + sub-sequence. Its lane is mixed(row) % count, or row % count. Saved checkpoints rest on all of that: none may
ever change. Serves the consumer's `lanes`; no Python object a record.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from streamkit._core.aggregation cimport Entries, UserRecordEntry
from streamkit._core.batch cimport STORED, Batch, Fields, locate_entry, locate_stored

cdef extern from "crc32c.h" nogil:
    uint32_t sk_crc32c(uint32_t crc, const void* data, size_t size)

cdef enum:
    LANES_MAX = 256
    ROWS_MAX = 256


cdef inline uint64_t row_of(Batch batch, bint unwrapped, uint32_t index, bint by_key) noexcept nogil:
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
        return sk_crc32c(0, fields.key, fields.key_bytes)
    return batch.header.base_sequence + fields.index + inner


cdef inline uint32_t lane_of(uint64_t row, uint32_t count, bint by_key) noexcept nogil:
    if by_key:
        # A checksum's low bits alone are much alike for keys that are: the product's upper half is not.
        return <uint32_t>(row * <uint64_t>0x9E3779B97F4A7C15 >> 32) % count
    return <uint32_t>(row % count)


cdef inline Py_ssize_t found(const uint64_t* rows, Py_ssize_t count, uint64_t row) noexcept nogil:
    # Where it stands among a few; -1: nowhere.
    cdef Py_ssize_t i
    for i in range(count):
        if rows[i] == row:
            return i
    return -1


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


cdef int check_rows(Py_ssize_t count) except -1:
    if count > ROWS_MAX:
        raise ValueError(f"at most {ROWS_MAX} rows, not {count}")
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
        lane = lane_of(row_of(batch, unwrapped, i, by_key), <uint32_t>count, by_key)
        if lanes[lane] is None:
            lanes[lane] = Entries.__new__(Entries)
        entries = <Entries>lanes[lane]
        if put(entries, batch, unwrapped, i) < 0:
            raise MemoryError
    return [None if taken is None else chosen(batch, <Entries>taken) for taken in lanes]


def row_at(Batch batch not None, Py_ssize_t index, bint by_key) -> int:
    """The row of a record: it keeps its order among those of the same row alone."""
    if not 0 <= index < <Py_ssize_t>(batch.last - batch.first):
        raise IndexError(f"{index} of {batch.last - batch.first} records")
    batch.open()
    return row_of(batch, batch.entries is not None, batch.first + <uint32_t>index, by_key)


def parted(Batch batch not None, list rows not None, bint by_key) -> tuple:
    """(records of other rows, records of these): each in order and ending where the batch does, None when it is empty.

    rows: at most 256.
    """
    cdef uint64_t those[ROWS_MAX]
    cdef Py_ssize_t count = len(rows)
    cdef uint32_t i
    cdef bint unwrapped
    cdef Entries others, held, into
    check_rows(count)
    check_whole(batch)
    batch.open()
    for i in range(<uint32_t>count):
        those[i] = rows[i]
    unwrapped = batch.entries is not None
    others, held = Entries.__new__(Entries), Entries.__new__(Entries)
    for i in range(batch.first, batch.last):
        into = others if found(those, count, row_of(batch, unwrapped, i, by_key)) < 0 else held
        if put(into, batch, unwrapped, i) < 0:
            raise MemoryError
    return (
        chosen(batch, others) if others.count else None,
        chosen(batch, held) if held.count else None,
    )


def unfinished(Batch batch not None, list marks not None, bint by_key, dict rows not None = {}) -> Batch:
    """Without the records that lie below their lane's mark; the batch itself when there are none.

    marks: for each of 1 to 256 lanes a sequence: its records below that are finished. rows: of at most 256 rows that
    fell behind their lane or got ahead of it, the sequence that stands in the place of its mark.
    """
    cdef uint64_t at[LANES_MAX]
    cdef uint64_t those[ROWS_MAX]
    cdef uint64_t row_marks[ROWS_MAX]
    cdef uint64_t row, mark
    cdef Py_ssize_t place, rows_count = len(rows)
    cdef uint32_t i, outer, count
    cdef bint unwrapped
    cdef Entries entries
    check_count(len(marks))
    check_rows(rows_count)
    check_whole(batch)
    batch.open()
    count = <uint32_t>len(marks)
    for i in range(count):
        at[i] = marks[i]
    for place, (key, sequence) in enumerate(rows.items()):
        those[place] = key
        row_marks[place] = sequence
    unwrapped = batch.entries is not None
    entries = Entries.__new__(Entries)
    for i in range(batch.first, batch.last):
        row = row_of(batch, unwrapped, i, by_key)
        place = found(those, rows_count, row) if rows_count else -1
        mark = at[lane_of(row, count, by_key)] if place < 0 else row_marks[place]
        outer = batch.entries.at[i].outer if unwrapped else i
        if batch.header.base_sequence + outer >= mark and put(entries, batch, unwrapped, i) < 0:
            raise MemoryError
    return batch if entries.count == batch.last - batch.first else chosen(batch, entries)
