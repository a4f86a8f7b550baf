# Positioned file I/O without the GIL. Nothing here allocates or raises; an answer is 0 or an errno.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void* iov_base
        size_t iov_len

cdef int write_vectors(int fd, iovec* vectors, Py_ssize_t count, int64_t position) noexcept nogil
    # All bytes of `count` vectors at `position`, whatever the kernel's limit on one call; the vectors are left as they were.

cdef int sync_data(int fd) noexcept nogil
    # fdatasync. Not repeated after an error, also not after EINTR: the pages may be marked clean already.

cdef void begin_writeback(int fd, int64_t position, int64_t size) noexcept nogil
    # A hint: the disk may start on these bytes now. Promises nothing, so it reports nothing.

cdef void signal_event(int fd) noexcept nogil
    # One more on an eventfd; cannot block, since nobody leaves 2**64 of them uncollected.
