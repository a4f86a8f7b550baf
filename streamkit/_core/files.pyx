"""Positioned file I/O for the real disk: reads into fresh bytes, vectored writes, checksums of small files.

Serves `runtime.real_disk` (Python) and the flusher thread of `journal` (C, without the GIL).
Read `write_vectors` first.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer, Py_buffer
from libc.errno cimport EAGAIN, EINTR, EIO, ENOSYS, EOPNOTSUPP, errno
from libc.stdlib cimport free, malloc

cdef extern from "<sys/types.h>" nogil:
    ctypedef long off_t

cdef extern from "<sys/uio.h>" nogil:
    ssize_t pwritev(int fd, const iovec* vectors, int count, off_t position)
    ssize_t preadv2(int fd, const iovec* vectors, int count, off_t position, int flags)
    int RWF_NOWAIT

cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void* at, size_t size, off_t position)
    ssize_t write(int fd, const void* at, size_t size)
    int fdatasync(int fd)

cdef extern from * nogil:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    """
    int sync_file_range(int fd, off_t position, off_t size, unsigned int flags)
    unsigned int SYNC_FILE_RANGE_WAIT_BEFORE
    unsigned int SYNC_FILE_RANGE_WRITE
    unsigned int SYNC_FILE_RANGE_WAIT_AFTER

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd(unsigned int value, int flags)
    int EFD_NONBLOCK
    int EFD_CLOEXEC

cdef extern from "crc32c.h" nogil:
    uint32_t sk_crc32c(uint32_t crc, const void* data, size_t size)

cdef enum:
    VECTORS_MAX = 1024             # IOV_MAX on Linux


cdef int write_vectors(int fd, iovec* vectors, Py_ssize_t count, int64_t position) noexcept nogil:
    cdef Py_ssize_t i = 0
    cdef size_t skipped = 0        # bytes of vectors[i] that are written already
    cdef ssize_t written
    cdef size_t left
    while i < count:
        if skipped == vectors[i].iov_len:
            i += 1
            skipped = 0
            continue
        vectors[i].iov_base = <uint8_t*>vectors[i].iov_base + skipped
        vectors[i].iov_len -= skipped
        written = pwritev(fd, vectors + i, <int>min(count - i, VECTORS_MAX), position)
        vectors[i].iov_base = <uint8_t*>vectors[i].iov_base - skipped
        vectors[i].iov_len += skipped
        if written < 0:
            if errno == EINTR:
                continue
            return errno
        if written == 0:
            return EIO
        position += written
        left = skipped + <size_t>written
        skipped = 0
        while i < count and left >= vectors[i].iov_len:
            left -= vectors[i].iov_len
            i += 1
        skipped = left
    return 0


cdef int sync_data(int fd) noexcept nogil:
    return errno if fdatasync(fd) != 0 else 0


cdef void begin_writeback(int fd, int64_t position, int64_t size) noexcept nogil:
    sync_file_range(fd, position, size, SYNC_FILE_RANGE_WRITE)


cdef void signal_event(int fd) noexcept nogil:
    cdef uint64_t one = 1
    write(fd, &one, 8)


cdef ssize_t read_whole(int fd, uint8_t* at, size_t size, int64_t position, bint nowait) noexcept nogil:
    # Bytes read (short only at the end of the file), or -errno; EAGAIN when it would wait for the disk.
    cdef size_t have = 0
    cdef ssize_t got
    cdef iovec vector
    while have < size:
        if nowait:
            vector.iov_base = at + have
            vector.iov_len = size - have
            got = preadv2(fd, &vector, 1, position + <int64_t>have, RWF_NOWAIT)
        else:
            got = pread(fd, at + have, size - have, position + <int64_t>have)
        if got < 0:
            if errno == EINTR:
                continue
            return -errno
        if got == 0:
            break
        have += <size_t>got
    return <ssize_t>have


def read_at(int fd, Py_ssize_t size, int64_t position, bint nowait=False):
    """Up to `size` bytes at `position`; short only at the end of the file.

    nowait: None instead of waiting for the disk. A file system that cannot say reads in the ordinary way.
    Raises OSError.
    """
    cdef uint8_t* at
    cdef ssize_t got
    if size < 0 or position < 0:
        raise ValueError("size and position must not be negative")
    data = PyBytes_FromStringAndSize(NULL, size)
    at = <uint8_t*>PyBytes_AS_STRING(data)
    with nogil:
        got = read_whole(fd, at, size, position, nowait)
        if nowait and (got == -EOPNOTSUPP or got == -ENOSYS):
            got = read_whole(fd, at, size, position, False)
    if got < 0:
        if nowait and got == -EAGAIN:
            return None
        raise OSError(-got, "read failed")
    return data if got == size else data[:got]


def write_at(int fd, buffers, int64_t position):
    """All bytes of `buffers` (a sequence of bytes-like objects) at `position`. Raises OSError."""
    cdef Py_ssize_t count = len(buffers)
    cdef Py_ssize_t held = 0
    cdef int error = 0
    cdef Py_buffer* views = <Py_buffer*>malloc(max(count, 1) * sizeof(Py_buffer))
    cdef iovec* vectors = <iovec*>malloc(max(count, 1) * sizeof(iovec))
    try:
        if views == NULL or vectors == NULL:
            raise MemoryError()
        for buffer in buffers:
            PyObject_GetBuffer(buffer, &views[held], PyBUF_SIMPLE)
            vectors[held].iov_base = views[held].buf
            vectors[held].iov_len = <size_t>views[held].len
            held += 1
        with nogil:
            error = write_vectors(fd, vectors, count, position)
    finally:
        for i in range(held):
            PyBuffer_Release(&views[i])
        free(views)
        free(vectors)
    if error:
        raise OSError(error, "write failed")


def sync(int fd):
    """fdatasync. Raises OSError, after which the file's content is not known."""
    cdef int error
    with nogil:
        error = sync_data(fd)
    if error:
        raise OSError(error, "sync failed")


def write_out(int fd, int64_t position, int64_t size):
    """Wait until the disk has taken a range that was written; a sync is still needed, and then has less to do.

    Errors are for that sync to report, so none is raised.
    """
    with nogil:
        sync_file_range(fd, position, size,
                        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER)


def new_event() -> int:
    """A non-blocking eventfd that the flusher thread signals; whoever asked closes it. Raises OSError."""
    cdef int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
    if fd < 0:
        raise OSError(errno, "no eventfd")
    return fd


def crc32c(const uint8_t[::1] data not None, uint32_t crc=0) -> int:
    """CRC-32C of `data`, continued from `crc`."""
    if data.shape[0] == 0:
        return crc
    return sk_crc32c(crc, &data[0], <size_t>data.shape[0])
