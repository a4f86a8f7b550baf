"""Columns of byte strings taken as they lie in memory, for bulk puts: Arrow arrays, or pairs (offsets, bytes).

Arrow arrives through its C data interface (`__arrow_c_array__`), so that pyarrow is not needed here. A pair holds
count + 1 offsets of 32 or 64 bits (buffer protocol) and the bytes they point into. Nothing is copied; offsets are
checked once, so that a row can be read without a check of its own; the caller leaves them alone during the call.
"""

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.pycapsule cimport PyCapsule_GetPointer

from streamkit.errors import InvalidUse

cdef extern from *:
    """
    #include <stdint.h>
    struct ArrowSchema { const char* format; const char* name; const char* metadata; int64_t flags;
        int64_t n_children; struct ArrowSchema** children; struct ArrowSchema* dictionary;
        void (*release)(struct ArrowSchema*); void* private_data; };
    struct ArrowArray { int64_t length; int64_t null_count; int64_t offset; int64_t n_buffers; int64_t n_children;
        const void** buffers; struct ArrowArray** children; struct ArrowArray* dictionary;
        void (*release)(struct ArrowArray*); void* private_data; };
    """
    struct ArrowSchema:
        const char* format
    struct ArrowArray:
        int64_t length, null_count, offset, n_buffers
        const void** buffers

cdef int64_t[1] NO_OFFSETS = [0]


cdef class Column:
    """One column. Raises InvalidUse for other types, for nulls and for offsets that leave the data."""

    def __cinit__(self, source not None, str name="column"):
        if hasattr(source, "__arrow_c_array__"):
            self.owner = take_arrow(self, source, name)
        elif isinstance(source, tuple) and len(source) == 2:
            self.owner = source
            take_pair(self, source[0], source[1], name)
        else:
            raise InvalidUse(f"{name} must be an Arrow binary or string array or a pair (offsets, bytes), "
                             f"got {type(source).__name__}",
                             try_="combine chunks first, or use put_many for Python objects", argument=name)
        if self.check():
            raise InvalidUse(f"the offsets of {name} fall, or leave its data", try_="check the offsets", argument=name)

    def __dealloc__(self):
        PyBuffer_Release(&self.offsets_buffer)       # nothing happens where no buffer was taken
        PyBuffer_Release(&self.data_buffer)

    cdef int check(self) noexcept nogil:
        cdef int64_t before, end
        cdef Py_ssize_t i
        before = (<const int32_t*>self.offsets)[0] if self.offset_bytes == 4 else (<const int64_t*>self.offsets)[0]
        if before < 0:
            return -1
        for i in range(1, self.count + 1):
            end = (<const int32_t*>self.offsets)[i] if self.offset_bytes == 4 else (<const int64_t*>self.offsets)[i]
            if end < before:
                return -1
            before = end
        return 0 if <size_t>before <= self.data_bytes else -1

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, Py_ssize_t row) -> bytes:
        cdef size_t size
        if not 0 <= row < self.count:
            raise IndexError(f"row {row} of {self.count}")
        cdef const uint8_t* at = row_at(self, row, &size)
        return at[:size]


cdef object take_arrow(Column column, object source, str name):
    # The capsules own the array and release it when they go. Arrow's own promise bounds the data: its length is
    # not in the interface, so the last offset is taken as the bound.
    capsules = source.__arrow_c_array__()
    cdef ArrowSchema* schema = <ArrowSchema*>PyCapsule_GetPointer(capsules[0], "arrow_schema")
    cdef ArrowArray* array = <ArrowArray*>PyCapsule_GetPointer(capsules[1], "arrow_array")
    cdef bytes kind = schema.format
    if kind not in (b"z", b"u", b"Z", b"U"):
        raise InvalidUse(f"{name} must hold binary or string values, got Arrow format {kind.decode('utf-8', 'replace')!r}",
                         try_="cast the column to binary or string", argument=name)
    if array.null_count > 0 or (array.null_count < 0 and array.buffers[0] != NULL and source.null_count):
        raise InvalidUse(f"{name} holds nulls", try_="fill or drop them first", argument=name)
    column.count = array.length
    column.offset_bytes = 4 if kind in (b"z", b"u") else 8
    if array.buffers[1] == NULL or array.length == 0:
        column.count = 0
        column.offset_bytes = 8
        column.offsets = NO_OFFSETS
        return capsules
    column.offsets = <const uint8_t*>array.buffers[1] + array.offset * column.offset_bytes
    column.data = <const uint8_t*>array.buffers[2]
    column.data_bytes = <size_t>((<const int32_t*>column.offsets)[column.count] if column.offset_bytes == 4
                                 else (<const int64_t*>column.offsets)[column.count])
    return capsules


cdef int take_pair(Column column, object offsets, object data, str name) except -1:
    PyObject_GetBuffer(offsets, &column.offsets_buffer, PyBUF_ND | PyBUF_FORMAT)
    PyObject_GetBuffer(data, &column.data_buffer, PyBUF_SIMPLE)
    cdef bytes kind = column.offsets_buffer.format if column.offsets_buffer.format != NULL else b"B"
    if (column.offsets_buffer.ndim != 1 or column.offsets_buffer.itemsize not in (4, 8)
            or not kind.endswith((b"i", b"I", b"l", b"L", b"q", b"Q")) or kind.startswith((b">", b"!"))):
        raise InvalidUse(f"the offsets of {name} must be 32-bit or 64-bit whole numbers",
                         try_='use array("q", …) or a NumPy int64 array', argument=name)
    column.count = column.offsets_buffer.len // column.offsets_buffer.itemsize - 1
    if column.count < 0:
        raise InvalidUse(f"the offsets of {name} are empty; there is one more than rows", try_="start with 0",
                         argument=name)
    column.offset_bytes = <int>column.offsets_buffer.itemsize
    column.offsets = column.offsets_buffer.buf
    column.data = <const uint8_t*>column.data_buffer.buf
    column.data_bytes = column.data_buffer.len
    return 0
