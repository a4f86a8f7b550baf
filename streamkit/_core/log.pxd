# A shard's log in memory: its segments, its tail, and the one pass that takes a batch in.

from cpython.ref cimport PyObject
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from streamkit._core.batch cimport BatchHeader
from streamkit._core.index cimport SparseIndex
from streamkit._core.journal cimport Journal, Slot
from streamkit._core.producers cimport KeptBatch, ProducerTable, Verdict
from streamkit._core.segment cimport Run

cdef struct TailBatch:
    uint64_t base
    uint64_t end
    uint64_t append_time_ms
    PyObject* batch                # owned reference

cdef class Segment:
    cdef Slot* slot                # owned; what the flusher sees of it
    cdef readonly ShardCore shard
    cdef readonly uint64_t base
    cdef public uint64_t end       # one past the last record appended
    cdef public uint64_t position  # bytes appended
    cdef public uint64_t written_position      # bytes in the file as far as the loop knows
    cdef public uint64_t first_append_ms
    cdef public uint64_t last_append_ms
    cdef public uint64_t batches
    cdef public uint32_t headers_crc
    cdef public bint sealed        # nothing is appended any more
    cdef public bint dirty         # written since it was last synced
    cdef public bint measured      # times and counts above are known
    cdef public bint naming        # want_name() was called
    cdef readonly Py_ssize_t in_flight         # entries that the journal holds; the file stays open meanwhile
    cdef readonly object file      # an open File, or None
    cdef public uint64_t used      # tick of the last use, for closing what was not used for longest
    cdef public SparseIndex index
    cdef public bint index_whole   # the index reaches back to the segment's beginning
    cdef uint64_t memo_sequence    # where the last read ended, so that the next finds its place at once
    cdef uint64_t memo_position
    cdef dict node_files(self)

cdef class NodeLog:
    cdef readonly Journal journal
    cdef public object refusal     # None, or a function that returns the error every append gets
    cdef public object on_push     # called once when something waits to be flushed, until pushed is cleared
    cdef public bint pushed
    cdef readonly uint64_t tail_bytes
    cdef public uint64_t tail_bytes_max
    cdef public uint64_t segment_bytes
    cdef public uint64_t bypass_bytes
    cdef public uint64_t batch_bytes_max
    cdef public uint64_t unnamed_bytes_max     # a larger batch fits no journal file: its segment's name must settle first
    cdef readonly uint64_t tick
    cdef object tail_order         # deque: one entry a batch in any tail, oldest first: its shard
    cdef readonly Py_ssize_t tails_stale       # at most so many entries there are of tails that were given up
    cdef readonly list progressed  # shards with news, each once
    cdef readonly list unmarked    # shards whose first batch at a weaker level waits for `memory_marked`
    cdef readonly dict open_segments           # segments with an open file
    cdef public Py_ssize_t files_open_max
    cdef readonly uint64_t batches_appended
    cdef readonly uint64_t bytes_appended
    cdef int trim_tails(self) except -1
    cdef int sweep_tails(self) except -1

cdef class ShardCore:
    cdef readonly NodeLog node
    cdef readonly bytes uuid
    cdef readonly uint32_t seed    # CRC-32C of the uuid
    cdef readonly uint64_t log_start
    cdef readonly uint64_t log_end
    cdef readonly uint64_t journal_end         # synced in the journal or its segment
    cdef public uint64_t synced_end            # synced in segments by a checkpoint
    cdef readonly uint64_t segment_end         # in the segment file: the tail before it may go
    cdef readonly uint64_t os_end  # end of the last batch that did not ask for a sync
    cdef public uint32_t epoch     # of the last batch; raised by a repair that knows better
    cdef readonly uint64_t last_append_ms
    cdef readonly list segments    # oldest first; the last one is appended to
    cdef readonly list epochs      # (epoch, start sequence), oldest first
    cdef public ProducerTable producers
    cdef public bint certain
    cdef public bint checkpoint_due            # something changed since the last checkpoint
    cdef public bint memory_marked             # it is on disk that the log may hold batches that are not
    cdef bint memory_marking                   # it is asked for; from memory_base on nothing counts as written
    cdef uint64_t memory_base
    cdef public bint changing                  # it is being cut or emptied: nothing may be appended
    cdef readonly uint32_t cuts                # how often that happened; what was read before may be gone
    cdef readonly bytes closing                # what the closing batch says; None while the shard is open
    cdef readonly uint64_t closing_end         # one past that batch
    cdef bint has_news
    cdef uint8_t[16] hash_low
    cdef uint8_t[16] hash_high
    cdef TailBatch* tail           # ring of tail_room (a power of two) from tail_first
    cdef Py_ssize_t tail_first
    cdef Py_ssize_t tail_count
    cdef Py_ssize_t tail_room
    cdef int keep(self, uint64_t end, uint64_t append_time_ms, bytes batch) except -1
    cdef uint64_t forget_oldest(self) except? 0
    cdef int store(self, Segment segment, bytes batch, uint32_t records, uint64_t append_time_ms, bint synced) except -1
    cdef int note_batch(self, BatchHeader* header, const uint8_t* at) except -1
    cdef Segment segment_for(self, uint64_t size, uint64_t append_time_ms)
    cdef object refused_run(self, Run* run)
    cdef object appended_before(self, BatchHeader* header, uint64_t now_ms)
    cdef object out_of_order(self, BatchHeader* header, Verdict verdict, KeptBatch* kept, uint64_t expected)
    cdef bint may_have_forgotten(self, uint64_t age_ms, uint64_t now_ms)
    cdef int make_room(self, uint64_t producer_id, uint64_t now_ms) except -1
    cdef uint64_t begin_control(self, uint32_t epoch, uint64_t now_ms, bint synced) except? 0
    cdef list read_tail(self, uint64_t start, uint64_t limit, uint64_t bytes_max)
    cdef Segment segment_of(self, uint64_t sequence)
    cdef object read_from(self, Segment segment, uint64_t sequence, uint64_t position, uint64_t start, uint64_t limit,
                          uint64_t bytes_max, bint nowait)
