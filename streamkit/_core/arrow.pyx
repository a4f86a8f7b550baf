"""A batch as Arrow columns: two passes over its record table, sizes first, no Python object a record.

Serves `batch`; the batch was opened, so that its table and records were checked.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memcpy

from streamkit._core.batch cimport ATTRIBUTE_HASHES, DELTA_NONE, HASH_BYTES, RECORD_HEADER_BYTES, Batch
from streamkit._core.buffers cimport u16_at, u32_at

from streamkit.errors import InvalidUse


cdef struct Columns:                 # where arrow_fill writes; sized by arrow_columns from the same table
    int64_t* sequence
    int64_t* arrived
    int64_t* time
    int32_t* key_ends
    uint8_t* keys
    int32_t* data_ends
    uint8_t* data


cdef void arrow_sizes(Batch batch, size_t* key_bytes, size_t* data_bytes) noexcept nogil:
    cdef uint32_t i, start = u32_at(batch.body + 4 * <size_t>batch.first - 4) if batch.first else 0
    cdef size_t fixed = RECORD_HEADER_BYTES + (HASH_BYTES if batch.header.attributes & ATTRIBUTE_HASHES else 0)
    cdef const uint8_t* at
    key_bytes[0] = data_bytes[0] = 0
    for i in range(batch.first, batch.last):
        at = batch.records + start
        key_bytes[0] += u16_at(at)
        data_bytes[0] += u32_at(batch.body + 4 * <size_t>i) - start - fixed - u16_at(at) - u16_at(at + 2)
        start = u32_at(batch.body + 4 * <size_t>i)


cdef void arrow_fill(Batch batch, Columns* into) noexcept nogil:
    cdef uint32_t i, row, start = u32_at(batch.body + 4 * <size_t>batch.first - 4) if batch.first else 0
    cdef size_t fixed = RECORD_HEADER_BYTES + (HASH_BYTES if batch.header.attributes & ATTRIBUTE_HASHES else 0)
    cdef size_t inner, size, keys = 0, data = 0
    cdef int32_t delta
    cdef const uint8_t* at
    into.key_ends[0] = into.data_ends[0] = 0
    for row in range(batch.last - batch.first):
        i = batch.first + row
        at = batch.records + start
        memcpy(&delta, at + 4, 4)
        into.sequence[row] = <int64_t>(batch.header.base_sequence + i)
        into.arrived[row] = <int64_t>batch.header.append_time_ms
        into.time[row] = into.arrived[row] if delta == DELTA_NONE else batch.header.event_time_ms + delta
        memcpy(into.keys + keys, at + fixed, u16_at(at))
        keys += u16_at(at)
        into.key_ends[row + 1] = <int32_t>keys
        inner = fixed + u16_at(at) + u16_at(at + 2)
        size = u32_at(batch.body + 4 * <size_t>i) - start - inner
        memcpy(into.data + data, at + inner, size)
        data += size
        into.data_ends[row + 1] = <int32_t>data
        start = u32_at(batch.body + 4 * <size_t>i)


def arrow_columns(Batch batch not None):
    """A pyarrow.RecordBatch of an opened batch; see Batch.to_arrow. Raises InvalidUse when pyarrow is missing."""
    cdef Columns into
    cdef size_t key_bytes, data_bytes, count = batch.last - batch.first
    try:
        import pyarrow
    except ImportError as cause:
        raise InvalidUse("to_arrow needs the pyarrow package", try_="pip install 'streamkit[arrow]'") from cause
    arrow_sizes(batch, &key_bytes, &data_bytes)
    parts = [PyBytes_FromStringAndSize(NULL, size) for size in
             (8 * count, 8 * count, 8 * count, 4 * count + 4, key_bytes, 4 * count + 4, data_bytes)]
    into.sequence = <int64_t*>PyBytes_AS_STRING(parts[0])
    into.arrived = <int64_t*>PyBytes_AS_STRING(parts[1])
    into.time = <int64_t*>PyBytes_AS_STRING(parts[2])
    into.key_ends = <int32_t*>PyBytes_AS_STRING(parts[3])
    into.keys = <uint8_t*>PyBytes_AS_STRING(parts[4])
    into.data_ends = <int32_t*>PyBytes_AS_STRING(parts[5])
    into.data = <uint8_t*>PyBytes_AS_STRING(parts[6])
    with nogil:
        arrow_fill(batch, &into)
    buffers = [pyarrow.py_buffer(part) for part in parts]
    moment = pyarrow.timestamp("ms", tz="UTC")
    array = pyarrow.Array.from_buffers
    return pyarrow.RecordBatch.from_arrays(
        [array(pyarrow.int64(), count, [None, buffers[0]]), array(moment, count, [None, buffers[1]]),
         array(moment, count, [None, buffers[2]]), array(pyarrow.string(), count, [None, buffers[3], buffers[4]]),
         array(pyarrow.binary(), count, [None, buffers[5], buffers[6]])],
        names=["sequence", "arrived", "time", "key", "data"])
