# A column of byte strings that somebody else owns: Arrow's layout, offsets and bytes.

from cpython.buffer cimport Py_buffer
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

cdef class Column:
    cdef readonly Py_ssize_t count
    cdef object owner                # keeps everything below alive
    cdef const uint8_t* data
    cdef size_t data_bytes
    cdef const void* offsets         # count + 1 of them, 4 or 8 bytes each
    cdef int offset_bytes
    cdef Py_buffer offsets_buffer
    cdef Py_buffer data_buffer
    cdef int check(self) noexcept nogil

cdef inline const uint8_t* row_at(Column column, Py_ssize_t row, size_t* size) noexcept nogil:
    # The column was checked: every row lies within its data.
    cdef int64_t start, end
    if column.offset_bytes == 4:
        start = (<const int32_t*>column.offsets)[row]
        end = (<const int32_t*>column.offsets)[row + 1]
    else:
        start = (<const int64_t*>column.offsets)[row]
        end = (<const int64_t*>column.offsets)[row + 1]
    size[0] = <size_t>(end - start)
    return column.data + start
