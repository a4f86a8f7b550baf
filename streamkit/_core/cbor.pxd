# Bodies in CBOR; see bodies.pxd for what a scan leaves behind.

from libc.stdint cimport uint8_t

from streamkit._core.bodies cimport Body

cdef int scan_cbor(Body* body) noexcept nogil                  # 0, or -1 and a reason
cdef object cbor_value(const uint8_t* at, size_t size)         # of a value that scan_cbor has passed
