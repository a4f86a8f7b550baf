# The journal of a node: one file is written at a time, groups follow each other on 4-KiB boundaries. Little-endian.
#
#   file header (4 KiB):  0 "SKJ1" | 4 crc u32 of 8..48 | 8 file number u64 | 16 node id 16 B | 32 file bytes u64 | 40 zero u64
#
#   off size group header
#     0   4  magic "SKG1"
#     4   4  crc               CRC-32C of bytes 8 .. header_bytes
#     8   8  group number      one more than the group before, over all files
#    16   8  file number       of the file it was written to; an older one is a leftover of the file's last use
#    24   4  previous crc      of the group before; 0 when a node's first
#    28   4  header_bytes      this header and both tables
#    32   8  data_bytes        of the batches that follow the tables
#    40   4  entry count
#    44   4  durable count
#    48  16  zero
#    64      durable count × { shard uuid 16, durable end u64 }: what the group before made durable
#     ..     entry count × { shard uuid 16, segment base u64, position u64, base sequence u64, end sequence u64,
#                            bytes u32, kind u8 (1 batch, 2 reference), zero 11 }
#     ..     the batches of the entries of kind 1, in order; zeros up to the next 4-KiB boundary
#
# A reference says that the range lies synced in the segment file; its batch is not in the journal.
#
# A group's life, on the thread that flushes:
#
#     IDLE ─select→ SELECTED ─form→ DURABLE ─finish→ SEGMENTS ─finish→ IDLE
#                   (no room: waits for a prepared file)    (nothing left to write: straight to IDLE)
#     DURABLE or SEGMENTS ─no space→ the same, stalled, until resume()      ─any other error→ FAILED, for good

from cpython.ref cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from streamkit._core.files cimport iovec

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    ctypedef struct pthread_t:
        pass

cdef enum:
    JOURNAL_ALIGNMENT = 4096
    GROUP_HEADER_BYTES = 64
    GROUP_DURABLE_BYTES = 24
    GROUP_ENTRY_BYTES = 64
    GROUP_ENTRIES_MAX = 4096
    SPARES_MAX = 4

cdef enum Level:                   # what the batch's stream asks for
    LEVEL_FSYNC = 0                # the journal, or the segment, is synced
    LEVEL_OS = 1                   # the segment is written; nothing is synced

cdef enum Phase:
    PHASE_IDLE = 0
    PHASE_SELECTED = 1
    PHASE_DURABLE = 2
    PHASE_SEGMENTS = 3
    PHASE_FAILED = 4

cdef struct Slot:                  # an open segment file as the flusher sees it; owned by its Segment
    int fd
    bint named                     # its name in the directory is on disk, so it may be synced instead of the journal
    PyObject* file                 # borrowed; the Segment keeps it open while entries are in flight
    int32_t first                  # chain of entries in the present group; -1: none. The rest is the flusher's scratch
    int32_t last
    uint64_t bytes
    bint fsync
    bint direct
    bint held

cdef struct Entry:
    Slot* slot
    PyObject* segment              # owned reference, as is batch: given back by collect() on the loop
    PyObject* batch
    const uint8_t* at              # into batch
    uint64_t base
    uint64_t end
    uint64_t segment_base
    uint64_t position
    uint32_t size
    int32_t next
    uint8_t level
    bint held                      # something before it is not synced, so it is not durable when it is synced
    uint8_t uuid[16]

cdef struct Write:                 # one write of a job
    int fd
    PyObject* file
    int64_t position
    Py_ssize_t vector_first
    Py_ssize_t vector_count        # 0: only sync
    bint soon                      # a sync of its own follows: let the disk begin already
    bint sync

cdef struct Done:                  # news for the loop
    PyObject* segment              # borrowed from an entry that has not been given back
    uint64_t end
    bint durable
    bint written

cdef struct Durable:
    uint8_t uuid[16]
    uint64_t end

cdef struct JournalFile:
    int fd
    PyObject* file                 # owned
    uint64_t number
    uint64_t size                  # zeroed and synced to its end before it comes here

cdef struct Entries:
    Entry* at
    Py_ssize_t count
    Py_ssize_t room

cdef struct State:
    # Under the lock, since the loop and the flusher both use them:
    pthread_mutex_t lock
    pthread_cond_t wakes
    Entries pending
    Entries released               # written entries whose references the loop gives back
    Done* done
    Py_ssize_t done_count
    Py_ssize_t done_room
    JournalFile current
    JournalFile[SPARES_MAX] spares
    int spare_count
    JournalFile* retired           # full files, oldest first, until the loop collects them
    Py_ssize_t retired_count
    Py_ssize_t retired_room
    Phase phase
    bint stalled
    bint starved                   # a group waits for a prepared file
    bint stopping
    bint sleeping
    int error                      # errno of the stall or failure
    PyObject* error_file           # borrowed
    uint64_t pending_bytes         # of entries whose batches are not yet in their segment
    uint64_t groups
    uint64_t syncs
    uint64_t journal_bytes
    # The flusher's own:
    Entries group
    Slot** slots
    Py_ssize_t slot_count
    Py_ssize_t slot_room
    Write* writes
    Py_ssize_t write_count
    Py_ssize_t write_room
    iovec* vectors
    Py_ssize_t vector_count
    Py_ssize_t vector_room
    uint8_t* header
    Py_ssize_t header_room
    Durable* durable               # of the last group in the journal
    Py_ssize_t durable_count
    Py_ssize_t durable_room
    uint64_t group_number
    uint32_t previous_crc
    uint64_t position              # in the current file
    bint unsynced                  # the current file ends with a group that was not synced
    # Fixed:
    uint64_t bypass_bytes
    uint64_t group_bytes_max
    int event
    pthread_t thread
    bint thread_runs

cdef struct News:                  # what collect() in log.pyx works through
    Done* done
    Py_ssize_t done_count
    Entries released

cdef class Journal:
    cdef State* state
    cdef list lent                 # segments and files of the job that take() handed out
    cdef int push(self, Entry* entry) except -1
    cdef void drain(self, News* news) noexcept
    cdef int free_news(self, News* news) except -1
