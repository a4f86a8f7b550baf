"""A batch as Arrow columns: two passes over its record table, sizes first, no Python object a record.

Serves `batch`; the batch was opened, so that its table and records were checked.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memcpy

from streamkit._core.batch cimport DELTA_NONE, Batch, Fields, locate_entry, locate_stored

from streamkit.errors import InvalidUse


cdef struct Columns:                 # where arrow_fill writes; sized by arrow_columns from the same table
    int64_t* sequence
    int64_t* arrived
    int64_t* time
    int32_t* key_ends
    uint8_t* keys
    int32_t* data_ends
    uint8_t* data


cdef inline void locate(Batch batch, uint32_t index, bint unwrapped, Fields* into) noexcept nogil:
    if unwrapped:
        locate_entry(batch, index, into)
    else:
        locate_stored(batch, index, into)


cdef void arrow_sizes(Batch batch, bint unwrapped, size_t* key_bytes, size_t* data_bytes) noexcept nogil:
    cdef Fields fields
    cdef uint32_t i
    key_bytes[0] = data_bytes[0] = 0
    for i in range(batch.first, batch.last):
        locate(batch, i, unwrapped, &fields)
        key_bytes[0] += fields.key_bytes
        data_bytes[0] += fields.value_bytes


cdef void arrow_fill(Batch batch, bint unwrapped, Columns* into) noexcept nogil:
    cdef Fields fields
    cdef size_t keys = 0, data = 0
    cdef uint32_t row
    cdef int32_t delta
    into.key_ends[0] = into.data_ends[0] = 0
    for row in range(batch.last - batch.first):
        locate(batch, batch.first + row, unwrapped, &fields)
        memcpy(&delta, fields.stored + 4, 4)
        into.sequence[row] = <int64_t>(batch.header.base_sequence + fields.index)
        into.arrived[row] = <int64_t>batch.header.append_time_ms
        into.time[row] = into.arrived[row] if delta == DELTA_NONE else batch.header.event_time_ms + delta
        memcpy(into.keys + keys, fields.key, fields.key_bytes)
        keys += fields.key_bytes
        into.key_ends[row + 1] = <int32_t>keys
        memcpy(into.data + data, fields.value, fields.value_bytes)
        data += fields.value_bytes
        into.data_ends[row + 1] = <int32_t>data


def arrow_columns(Batch batch not None):
    """A pyarrow.RecordBatch of an opened batch; see Batch.to_arrow. Raises InvalidUse when pyarrow is missing."""
    cdef Columns into
    cdef size_t key_bytes, data_bytes, count = batch.last - batch.first
    try:
        import pyarrow
    except ImportError as cause:
        raise InvalidUse("to_arrow needs the pyarrow package", try_="pip install 'streamkit[arrow]'") from cause
    arrow_sizes(batch, batch.entries is not None, &key_bytes, &data_bytes)
    if key_bytes > 0x7FFFFFFF or data_bytes > 0x7FFFFFFF:      # many user records may share one long key
        raise InvalidUse("the batch is too large for one Arrow batch", try_="take parts of it: batch.part(start, end)")
    parts = [PyBytes_FromStringAndSize(NULL, size) for size in
             (8 * count, 8 * count, 8 * count, 4 * count + 4, key_bytes, 4 * count + 4, data_bytes)]
    into.sequence = <int64_t*>PyBytes_AS_STRING(parts[0])
    into.arrived = <int64_t*>PyBytes_AS_STRING(parts[1])
    into.time = <int64_t*>PyBytes_AS_STRING(parts[2])
    into.key_ends = <int32_t*>PyBytes_AS_STRING(parts[3])
    into.keys = <uint8_t*>PyBytes_AS_STRING(parts[4])
    into.data_ends = <int32_t*>PyBytes_AS_STRING(parts[5])
    into.data = <uint8_t*>PyBytes_AS_STRING(parts[6])
    cdef bint unwrapped = batch.entries is not None
    with nogil:
        arrow_fill(batch, unwrapped, &into)
    buffers = [pyarrow.py_buffer(part) for part in parts]
    moment = pyarrow.timestamp("ms", tz="UTC")
    array = pyarrow.Array.from_buffers
    return pyarrow.RecordBatch.from_arrays(
        [array(pyarrow.int64(), count, [None, buffers[0]]), array(moment, count, [None, buffers[1]]),
         array(moment, count, [None, buffers[2]]), array(pyarrow.string(), count, [None, buffers[3], buffers[4]]),
         array(pyarrow.binary(), count, [None, buffers[5], buffers[6]])],
        names=["sequence", "arrived", "time", "key", "data"])
