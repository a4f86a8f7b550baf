# Stored batches as the records of a GetRecords reply or of a SubscribeToShard event.

from libc.stdint cimport int64_t, uint64_t

cdef class EncodedRecords:
    cdef readonly bytes body
    cdef readonly Py_ssize_t count
    cdef readonly uint64_t payload_bytes
    cdef readonly int64_t next_sequence
    cdef readonly int64_t last_append_ms
    cdef readonly int64_t last_sequence
