"""A shard's log, hot part: one pass takes a batch in; reads come from the tail in memory or from a segment.

Serves `storage.shard_log`, whose ShardLog adds what opens files and waits. All of it runs on the event loop; the
flusher thread only sees entries and slots of `journal`. Read `ShardCore.append` first, then `read`.
"""

from collections import deque

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport int64_t, uint16_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from streamkit._core.batch cimport (ATTRIBUTE_HASHES, BATCH_MAGIC, BATCH_OK, BATCH_RECORDS_MAX, BATCH_SHORT,
                                    CODEC_LZ4, FLAG_CANCEL, FLAG_CLOSE, FLAG_CONTROL, FLAG_EPOCH_START, HASH_BYTES,
                                    HEADER_BYTES, RECORD_HEADER_BYTES, body_crc, read_header, sk_crc32c, stamp)
from streamkit._core.buffers cimport u16_at
from streamkit._core.debug cimport LIVE_SEGMENT, LIVE_SHARD, SK_COUNT, live_counts
from streamkit._core.journal cimport LEVEL_FSYNC, LEVEL_OS, Entry, News
from streamkit._core.producers cimport (ACTIVE_MS, VERDICT_APPEND, VERDICT_CANCELLED, VERDICT_CORRUPT,
                                        VERDICT_DUPLICATE, VERDICT_DUPLICATE_OLD, VERDICT_FENCED, VERDICT_GAP,
                                        VERDICT_UNKNOWN, KeptBatch, Verdict)
from streamkit._core.segment cimport (RUN_BYTES, RUN_EPOCH, RUN_GAP, RUN_OVERLAP, RUN_SOUND, RUN_SUM, RUN_TIME, STOP_BAD,
                                      STOP_END, STOP_SHORT, Run, Stop, check_run, look)

from streamkit._core.batch import seal
from streamkit.errors import (Cancelled, CorruptBatch, CorruptFile, InvalidRequest, InvalidUse, LimitReached,
                              NotLeader, ProducerFenced, SequenceCorrupt, SequenceGap, SequenceTrimmed, ShardClosed,
                              UnknownProducer, WrongShard)

cdef enum:
    CONTROL_BYTES = HEADER_BYTES + 4 + 8      # one record without key, headers or value
    STALE_TAILS = 256              # entries of tails that were given up; with fewer it is not worth looking
    CLOCKS_APART_MS = 300_000      # granted to the clocks of leaders, where the age of a batch is compared with times
    READ_AHEAD_BYTES = 65536       # read beyond the index step, so that one read finds the batch
    RELEASE_GIL_BYTES = 65536      # below it, giving the GIL away costs more than the sum


cdef class Appended:
    """Where a batch lies. duplicate: 0 new; 1 repeated; 2 repeated, its place no longer known (base_sequence is 0).

    end_sequence: once the high watermark reaches it, the answer may be given; for 2 it is where the oldest
    remembered batch of the producer begins.
    """

    cdef readonly uint64_t base_sequence
    cdef readonly uint64_t end_sequence
    cdef readonly uint64_t append_time_ms
    cdef readonly int duplicate

    def __repr__(self):
        return (f"Appended(base_sequence={self.base_sequence}, end_sequence={self.end_sequence}, "
                f"append_time_ms={self.append_time_ms}, duplicate={self.duplicate})")


cdef Appended make_appended(uint64_t base, uint64_t end, uint64_t append_time_ms, int duplicate):
    cdef Appended answer = Appended.__new__(Appended)
    answer.base_sequence = base
    answer.end_sequence = end
    answer.append_time_ms = append_time_ms
    answer.duplicate = duplicate
    return answer


cdef class Segment:
    """One segment of a shard. Whoever opens its file calls use_file()."""

    def __cinit__(self, ShardCore shard, uint64_t base):
        self.slot = <Slot*>calloc(1, sizeof(Slot))
        if self.slot == NULL:
            raise MemoryError()
        SK_COUNT(live_counts[LIVE_SEGMENT], 1)
        self.slot.first = -1
        self.slot.fd = -1
        self.shard = shard
        self.base = base
        self.end = base
        self.index = SparseIndex()
        self.memo_sequence = base

    def __dealloc__(self):
        if self.slot != NULL:
            SK_COUNT(live_counts[LIVE_SEGMENT], -1)
        free(self.slot)

    def use_file(self, file) -> None:
        """`file` is open from now on; it is kept until close_file()."""
        assert self.file is None, "a segment has one file open"
        self.file = file
        self.slot.file = <PyObject*>file
        self.slot.fd = file.fileno()
        self.node_files()[self] = None
        self.shard.node.tick += 1
        self.used = self.shard.node.tick

    def forget_places(self) -> None:
        """What is known of places in the file may not be so any more; it is found again when it is asked for."""
        self.memo_sequence, self.memo_position = self.base, 0
        if self.sealed:
            self.index = SparseIndex()
            self.index_whole = self.written_position == 0

    cdef dict node_files(self):
        return self.shard.node.open_segments

    def close_file(self) -> None:
        """Close the file. Only when nothing is in flight."""
        assert self.in_flight == 0, "the flusher may be writing to it"
        file = self.file
        if file is None:
            return
        self.file = None
        self.slot.file = NULL
        self.slot.fd = -1
        self.node_files().pop(self, None)
        file.close()

    @property
    def named(self):
        """The file's name is on disk, so syncing the file makes its content durable."""
        return bool(self.slot.named)

    @named.setter
    def named(self, bint value):
        self.slot.named = value


cdef class NodeLog:
    """What all shard logs of a node share: the journal, the budget for tails, the bound on open files."""

    def __init__(self, Journal journal, *, uint64_t tail_bytes_max, uint64_t segment_bytes, uint64_t bypass_bytes,
                 uint64_t batch_bytes_max, uint64_t unnamed_bytes_max, Py_ssize_t files_open_max):
        self.journal = journal
        self.tail_bytes_max = tail_bytes_max
        self.segment_bytes = segment_bytes
        self.bypass_bytes = bypass_bytes
        self.batch_bytes_max = batch_bytes_max
        self.unnamed_bytes_max = unnamed_bytes_max
        self.files_open_max = files_open_max
        self.tail_order = deque()
        self.progressed = []
        self.unmarked = []
        self.open_segments = {}

    def collect(self) -> bool:
        """Take over what the flusher finished; shards that moved are in `progressed`. True when there was anything."""
        cdef News news
        cdef Py_ssize_t i
        cdef Segment segment
        cdef ShardCore shard
        cdef uint64_t end
        self.journal.drain(&news)
        for i in range(news.done_count):
            segment = <Segment>news.done[i].segment
            shard = segment.shard
            end = news.done[i].end
            if news.done[i].durable and end > shard.journal_end:
                shard.journal_end = end
            if not shard.has_news:
                shard.has_news = True
                self.progressed.append(shard)
        for i in range(news.released.count):
            segment = <Segment>news.released.at[i].segment
            segment.in_flight -= 1
            segment.written_position = news.released.at[i].position + news.released.at[i].size
            segment.dirty = True
            # Only here, not with the news that a group is durable: readers of the file stop at written_position.
            shard = segment.shard
            if news.released.at[i].end > shard.segment_end:
                shard.segment_end = news.released.at[i].end
                self.note_progress(shard)
        self.journal.free_news(&news)
        if news.done_count or news.released.count:
            self.trim_tails()
        return news.done_count != 0 or news.released.count != 0

    def take_progressed(self) -> list:
        """Shards whose durable_end or written_end moved since the last call, each once."""
        cdef list moved = self.progressed
        self.progressed = []
        for shard in moved:
            (<ShardCore>shard).has_news = False
        return moved

    def take_unmarked(self) -> list:
        """Shards that got their first batch at a weaker level than fsync, each once; see `memory_marked`."""
        cdef list waiting = self.unmarked
        self.unmarked = []
        return waiting

    def note_progress(self, ShardCore shard) -> None:
        """A shard moved without the flusher: a checkpoint synced it."""
        if not shard.has_news:
            shard.has_news = True
            self.progressed.append(shard)

    cdef int trim_tails(self) except -1:
        # Forget the oldest batches over all shards until the budget holds; stops at one not yet in its segment.
        cdef ShardCore shard
        while self.tail_bytes > self.tail_bytes_max and self.tail_order:
            shard = <ShardCore>self.tail_order[0]
            if shard.tail_count and shard.tail[shard.tail_first].end > shard.segment_end:
                return 0
            self.tail_order.popleft()
            if shard.tail_count:
                self.tail_bytes -= shard.forget_oldest()
        return 0

    cdef int sweep_tails(self) except -1:
        # Entries of tails that were given up go: they would keep shards that were dropped, and are as many as cuts.
        cdef ShardCore shard
        cdef dict kept = {}
        order = deque()
        for shard in reversed(self.tail_order):
            count = kept.get(shard, 0)
            if count < shard.tail_count:
                kept[shard] = count + 1
                order.appendleft(shard)
        self.tail_order = order
        self.tails_stale = 0
        return 0

    def close_surplus_files(self, keep: Segment) -> None:
        """Close the files used longest ago until the bound holds, except those being written to, and `keep`."""
        cdef Segment segment
        surplus = len(self.open_segments) - self.files_open_max
        if surplus <= 0:
            return
        idle = sorted((<Segment>segment for segment in self.open_segments if (<Segment>segment).in_flight == 0 and segment is not keep),
                      key=lambda segment: segment.used)
        for segment in idle[: surplus + self.files_open_max // 8]:
            segment.close_file()


cdef class ShardCore:
    """The part of a shard's log that runs for every batch; storage.ShardLog completes it.

    uuid: 16 bytes. Ends are exclusive; see durable_end and written_end for what an acknowledgement waits for.
    """

    def __init__(self, NodeLog node, bytes uuid, *, uint64_t log_start, uint64_t log_end, uint32_t epoch,
                 uint64_t last_append_ms, ProducerTable producers, list epochs):
        assert len(uuid) == 16, "a shard's uuid has 16 bytes"
        self.node = node
        self.uuid = uuid
        self.seed = sk_crc32c(0, <const char*>uuid, 16)
        self.log_start = log_start
        self.log_end = self.journal_end = self.synced_end = self.segment_end = log_end
        self.epoch = epoch
        self.last_append_ms = last_append_ms
        self.producers = producers
        self.epochs = epochs
        self.segments = []
        self.certain = True
        memset(self.hash_high, 0xFF, 16)

    def __cinit__(self):
        SK_COUNT(live_counts[LIVE_SHARD], 1)

    def __dealloc__(self):
        SK_COUNT(live_counts[LIVE_SHARD], -1)
        while self.tail_count:
            self.forget_oldest()
        free(self.tail)

    # ------------------------------------------------------------------------------------------ positions

    @property
    def durable_end(self):
        """One past the last record that is on disk here: in the journal or in a synced segment."""
        if self.os_end > self.synced_end:
            return self.synced_end
        return self.journal_end if self.journal_end > self.synced_end else self.synced_end

    @property
    def written_end(self):
        """One past the last record that the kernel has: it survives the end of this process.

        The first batch that did not ask for a sync counts only when the disk says that there are such batches:
        otherwise nobody would know, after a loss of power, that they may be missing.
        """
        written = max(self.segment_end, self.durable_end)
        return min(written, self.memory_base) if self.memory_marking and not self.memory_marked else written

    def epoch_at(self, uint64_t sequence) -> int:
        """The epoch of the record at `sequence`; 0 when the log does not hold it, or does not know."""
        cdef Py_ssize_t i = len(self.epochs)
        if not self.log_start <= sequence < self.log_end:
            return 0
        while i:
            i -= 1
            epoch, start = self.epochs[i]
            if start <= sequence:
                return epoch
        return 0

    def set_range(self, low, high) -> None:
        """Hash keys of the shard, both inclusive: 16 bytes big-endian, or numbers."""
        first = low if isinstance(low, bytes) else int(low).to_bytes(16, "big")
        last = high if isinstance(high, bytes) else int(high).to_bytes(16, "big")
        assert len(first) == 16 and len(last) == 16, "a hash key has 16 bytes"
        memcpy(self.hash_low, <const char*>first, 16)
        memcpy(self.hash_high, <const char*>last, 16)

    # ------------------------------------------------------------------------------------------ append

    def append(self, batch, *, uint64_t now_ms, uint32_t epoch, durability) -> Appended:
        """Take in one sealed batch, given as bytes or a memoryview; it is copied once, checked and stamped.

        The answer may be given when the high watermark passes end_sequence. now_ms: wall clock; the batch gets
        it, or the last batch's time when that is later. epoch: of the leadership; the first batch of a new one is
        preceded by an epoch-start batch.
        Raises CorruptBatch, WrongShard, ProducerFenced, SequenceGap, UnknownProducer, SequenceCorrupt,
        LimitReached, NotLeader, DiskFull, DiskFailed. When it raises, nothing was appended.
        """
        cdef Py_buffer view
        cdef BatchHeader header
        cdef const uint8_t* at
        cdef int bad
        cdef bytes stored
        cdef Segment segment
        cdef uint64_t base
        cdef bint synced = durability == "fsync"
        PyObject_GetBuffer(batch, &view, PyBUF_SIMPLE)
        try:
            at = <const uint8_t*>view.buf
            bad = read_header(at, <size_t>view.len, &header)
            if bad != BATCH_OK or header.batch_bytes != <uint64_t>view.len or <uint64_t>view.len > self.node.batch_bytes_max:
                raise refused_batch(bad, view.len, self.node.batch_bytes_max)
            if view.len >= RELEASE_GIL_BYTES:
                with nogil:
                    bad = body_crc(at, header.batch_bytes) != header.body_crc
            else:
                bad = body_crc(at, header.batch_bytes) != header.body_crc
            if bad:
                raise CorruptBatch("the batch's checksum does not fit its body", try_="send it again", reason="body crc")
            if header.flags & (FLAG_CONTROL | FLAG_EPOCH_START):
                raise CorruptBatch("a producer cannot send a control batch", try_="seal it without flags", reason="flags")
            if memcmp(header.hash_low, self.hash_low, 16) < 0 or memcmp(header.hash_high, self.hash_high, 16) > 0:
                raise WrongShard("the batch holds keys of another shard", try_="refresh the shard map and route it again",
                                 shard=self.uuid.hex(), map_version=header.map_version)
            if header.producer_id:
                repeated = self.appended_before(&header, now_ms)
                if repeated is not None:
                    return <Appended>repeated
            if self.closing is not None:
                raise ShardClosed("the shard was closed; its children take its keys",
                                  try_="refresh the shard map and route the batch again", shard=self.uuid.hex(),
                                  map_version=header.map_version, end=self.closing_end)
            if self.node.refusal is not None:
                raise self.node.refusal()
            assert not self.changing, "nothing is appended while the log is being cut"
            if epoch != self.epoch:
                self.start_epoch(epoch, now_ms, synced)
            if now_ms < self.last_append_ms:
                now_ms = self.last_append_ms
            segment = self.place(header.batch_bytes, now_ms)
            stored = PyBytes_FromStringAndSize(<const char*>at, view.len)
        finally:
            PyBuffer_Release(&view)
        base = self.log_end
        stamp(<uint8_t*>PyBytes_AS_STRING(stored), 0, base, epoch, now_ms, self.seed)
        self.closing = None
        self.store(segment, stored, header.record_count, now_ms, synced)
        if header.producer_id:
            self.producers.note(&header, base, now_ms)
        return make_appended(base, self.log_end, now_ms, 0)

    def accept(self, run, *, uint32_t epoch, durability) -> int:
        """A follower's append: `run` is batches as the leader stored them, one after the other; returns log_end.

        Batches that the log holds already are passed over; the first other one begins at log_end. epoch: of the
        leader that sends; what it sends may be older. All of the run is checked before any of it is appended.
        Raises CorruptBatch (facts: reason, sequence; reason "conflict": the log holds something else there, cut it
        first), DiskFull, DiskFailed; after the last two log_end says how much of a run that needed a new segment
        was appended.
        """
        cdef Py_buffer view
        cdef Run found
        cdef BatchHeader header
        cdef const uint8_t* at
        cdef const uint8_t* end
        cdef Segment segment
        cdef bint synced = durability == "fsync"
        found.seed, found.log_end, found.epoch, found.epoch_max = self.seed, self.log_end, self.epoch, epoch
        found.append_time_ms, found.batch_bytes_max = self.last_append_ms, self.node.batch_bytes_max
        found.empty = self.log_end == self.log_start
        PyObject_GetBuffer(run, &view, PyBUF_SIMPLE)
        try:
            at = <const uint8_t*>view.buf
            if view.len >= RELEASE_GIL_BYTES:
                with nogil:
                    check_run(at, <size_t>view.len, &found)
            else:
                check_run(at, <size_t>view.len, &found)
            if found.fault != RUN_SOUND:
                raise self.refused_run(&found)
            if found.fresh and found.held_sequence >= self.log_start and (
                    self.epoch_at(found.held_sequence) not in (0, found.held_epoch)):
                found.fault, found.sequence = RUN_OVERLAP, found.held_sequence
                raise self.refused_run(&found)
            if found.fresh < <size_t>view.len and self.node.refusal is not None:
                raise self.node.refusal()
            assert not self.changing, "nothing is appended while the log is being cut"
            end = at + view.len
            at += found.fresh
            while at < end:
                memcpy(&header, at, HEADER_BYTES)
                segment = self.segment_for(header.batch_bytes, header.append_time_ms)
                self.note_batch(&header, at)
                self.store(segment, PyBytes_FromStringAndSize(<const char*>at, header.batch_bytes),
                           header.record_count, header.append_time_ms, synced)
                at += header.batch_bytes
        finally:
            PyBuffer_Release(&view)
        return self.log_end

    cdef int note_batch(self, BatchHeader* header, const uint8_t* at) except -1:
        # What a batch that is about to be stored, as its leader stamped it, says beside its records.
        if header.epoch > self.epoch or not self.epochs:
            self.epochs.append((header.epoch, header.base_sequence))
            self.epoch = header.epoch
        if header.producer_id:
            self.producers.has_room(header.producer_id, header.append_time_ms)     # or forgets; noted all the same
            self.producers.note(header, header.base_sequence, header.append_time_ms)
        if not header.flags & FLAG_EPOCH_START:
            self.closing = None
            if header.flags & FLAG_CLOSE:
                self.closing = control_details(header, at)
                self.closing_end = header.base_sequence + header.record_count
        return 0

    cdef Segment segment_for(self, uint64_t size, uint64_t append_time_ms):
        # place(), without a call in the ordinary case.
        cdef Segment segment
        if self.segments:
            segment = <Segment>self.segments[len(self.segments) - 1]
            if (segment.file is not None and not segment.sealed and segment.position + size <= self.node.segment_bytes
                    and (segment.slot.named or size <= self.node.unnamed_bytes_max)):
                return segment
        return self.place(size, append_time_ms)

    cdef object refused_run(self, Run* run):
        reason = {RUN_BYTES: "cut short", RUN_SUM: "checksum", RUN_GAP: "gap", RUN_EPOCH: "epoch", RUN_TIME: "time",
                  RUN_OVERLAP: "conflict"}[run.fault]
        return CorruptBatch(f"the batch at {run.sequence} does not continue the shard's log, which ends at {self.log_end}: "
                            f"{reason}", try_="send again from the log's end", reason=reason, sequence=run.sequence,
                            shard=self.uuid.hex(), log_end=self.log_end)

    cdef object appended_before(self, BatchHeader* header, uint64_t now_ms):
        # The answer for a repeated batch, None for a new one; raises what the table in producers.pyx says.
        cdef KeptBatch kept
        cdef uint64_t expected
        cdef Verdict verdict = self.producers.judge(header, &kept, &expected)
        if self.closing is not None and (verdict == VERDICT_APPEND or verdict == VERDICT_GAP):
            return None                # not stored, and never will be here
        if verdict == VERDICT_APPEND:
            if not self.producers.has_room(header.producer_id, now_ms):
                raise LimitReached("the shard follows as many producers as it may", try_="close producers that are done",
                                   limit=self.producers.producers_max, scope="producers of a shard")
            return None
        if verdict == VERDICT_DUPLICATE:
            return make_appended(kept.base_sequence, kept.base_sequence + header.record_count, kept.append_time_ms, 1)
        if verdict == VERDICT_DUPLICATE_OLD:
            return make_appended(0, kept.base_sequence, kept.append_time_ms, 2)
        raise self.out_of_order(header, verdict, &kept, expected)

    cdef object out_of_order(self, BatchHeader* header, Verdict verdict, KeptBatch* kept, uint64_t expected):
        # Why numbers of a producer cannot be taken, as an error.
        facts = {"producer_id": header.producer_id, "shard": self.uuid.hex()}
        if verdict == VERDICT_CANCELLED:
            return Cancelled("the batch was cancelled", try_="put the records again, if they are still wanted",
                             got=header.producer_sequence, end=kept.base_sequence + kept.end - kept.first, **facts)
        if verdict == VERDICT_FENCED:
            return ProducerFenced("a newer instance of this producer exists", try_="stop this one", newest=expected,
                                 epoch=header.producer_epoch, **facts)
        if verdict == VERDICT_GAP:
            return SequenceGap("an earlier batch of this producer is missing", try_="send again from the expected batch",
                              expected=expected, got=header.producer_sequence, **facts)
        if verdict == VERDICT_CORRUPT:
            return SequenceCorrupt("the batch overlaps stored ones in part", try_="report this defect of the producer",
                                  expected=expected, got=header.producer_sequence, **facts)
        return UnknownProducer("the shard does not know this producer", try_="take a new producer epoch and start at 0",
                              got=header.producer_sequence, **facts)

    def place(self, size: int, now_ms: int) -> Segment:
        """The segment that takes `size` more bytes, its file open; rolls when the present one is full."""
        cdef Segment segment = <Segment>self.segments[len(self.segments) - 1] if self.segments else None
        if segment is None or segment.sealed or (
                segment.position and segment.position + <uint64_t>size > self.node.segment_bytes):
            segment = self.roll(now_ms)
        if segment.file is None:
            self.open_segment(segment)
        if not segment.slot.named and <uint64_t>size > self.node.unnamed_bytes_max:
            self.settle_name(segment)
        return segment

    cdef int store(self, Segment segment, bytes batch, uint32_t records, uint64_t append_time_ms, bint synced) except -1:
        # The one place where a log grows. `batch` is stamped and nobody else's.
        cdef Entry entry
        cdef NodeLog node = self.node
        cdef Py_ssize_t size = len(batch)
        cdef uint64_t base = self.log_end
        entry.slot = segment.slot
        entry.segment = <PyObject*>segment
        entry.batch = <PyObject*>batch
        entry.at = <const uint8_t*>PyBytes_AS_STRING(batch)
        entry.base = base
        entry.end = base + records
        entry.segment_base = segment.base
        entry.position = segment.position
        entry.size = <uint32_t>size
        entry.next = -1
        entry.level = LEVEL_FSYNC if synced else LEVEL_OS
        entry.held = self.os_end > self.synced_end
        memcpy(entry.uuid, <const char*>self.uuid, 16)
        self.keep(entry.end, append_time_ms, batch)
        node.journal.push(&entry)
        segment.in_flight += 1
        segment.index.add(base - segment.base, segment.position, append_time_ms)
        if segment.batches == 0:
            segment.first_append_ms = append_time_ms
        segment.last_append_ms = append_time_ms
        segment.batches += 1
        segment.headers_crc = sk_crc32c(segment.headers_crc, entry.at, HEADER_BYTES)
        segment.position += size
        segment.end = entry.end
        node.tick += 1
        segment.used = node.tick
        self.log_end = entry.end
        self.last_append_ms = append_time_ms
        self.checkpoint_due = True
        if not synced:
            self.os_end = entry.end
            if not self.memory_marked and not self.memory_marking:
                self.memory_marking = True
                self.memory_base = base
                node.unmarked.append(self)
        elif not segment.slot.named and not segment.naming and (
                segment.position >= node.bypass_bytes or len(self.segments) > 1):
            # At once, and not behind a checkpoint: until then the journal takes all of a busy shard's bytes.
            segment.naming = True
            self.want_name(segment)
        node.batches_appended += 1
        node.bytes_appended += size
        if not node.pushed:
            node.pushed = True
            node.on_push()
        if node.tail_bytes > node.tail_bytes_max:
            node.trim_tails()
        return 0

    def start_epoch(self, epoch: int, now_ms: int, synced: bool) -> None:
        """Append the epoch-start batch of a new leadership: one control record, so one sequence."""
        cdef uint8_t[CONTROL_BYTES] raw
        cdef BatchHeader* header = <BatchHeader*>raw
        cdef uint32_t table = 8
        cdef bytes batch
        cdef Segment segment
        cdef uint64_t when = max(now_ms, self.last_append_ms)
        if epoch < self.epoch:
            raise NotLeader("the shard has a newer leader", try_="refresh the shard map", shard=self.uuid.hex(),
                            epoch=self.epoch, leader=None)
        segment = self.place(CONTROL_BYTES, when)
        memset(raw, 0, CONTROL_BYTES)
        header.magic[0], header.magic[1], header.version = 0x53, 0x4B, 1
        header.batch_bytes = CONTROL_BYTES
        header.record_count = 1
        header.raw_bytes = CONTROL_BYTES - HEADER_BYTES
        header.event_time_ms = <int64_t>when
        memcpy(&raw[HEADER_BYTES], &table, 4)
        header.body_crc = body_crc(raw, CONTROL_BYTES)
        stamp(raw, FLAG_CONTROL | FLAG_EPOCH_START, self.log_end, <uint32_t>epoch, when, self.seed)
        batch = PyBytes_FromStringAndSize(<char*>raw, CONTROL_BYTES)
        if epoch > self.epoch or not self.epochs:
            self.epochs.append((epoch, self.log_end))
            self.epoch = <uint32_t>epoch
        self.store(segment, batch, 1, when, synced)

    cdef int make_room(self, uint64_t producer_id, uint64_t now_ms) except -1:
        if not self.producers.has_room(producer_id, now_ms):
            raise LimitReached("the shard follows as many producers as it may", try_="close producers that are done",
                               limit=self.producers.producers_max, scope="producers of a shard")
        return 0

    cdef uint64_t begin_control(self, uint32_t epoch, uint64_t now_ms, bint synced) except? 0:
        # A control batch may be appended now, in that epoch; its time.
        if self.node.refusal is not None:
            raise self.node.refusal()
        assert not self.changing, "nothing is appended while the log is being cut"
        if epoch != self.epoch:
            self.start_epoch(epoch, now_ms, synced)
        return max(now_ms, self.last_append_ms)

    def append_control(self, kind: str, bytes payload not None, *, uint64_t now_ms, uint32_t epoch, durability) -> Appended:
        """Append a control batch whose one record holds `payload`; kind: "close", after which `closing` is payload.

        Raises NotLeader, DiskFull, DiskFailed.
        """
        cdef bint synced = durability == "fsync"
        cdef bytes batch
        cdef uint64_t base
        if kind != "close":
            raise InvalidUse(f"{kind!r} is not a kind of control batch", try_='use "close"')
        now_ms = self.begin_control(epoch, now_ms, synced)
        batch = bytes(bytearray(seal([(kind.encode(), payload, b"", None, None)], codec=0)))     # nobody else's
        segment = self.place(len(batch), now_ms)
        base = self.log_end
        stamp(<uint8_t*>PyBytes_AS_STRING(batch), FLAG_CONTROL | FLAG_CLOSE, base, epoch, now_ms, self.seed)
        self.store(segment, batch, 1, now_ms, synced)
        self.closing, self.closing_end = payload, self.log_end
        return make_appended(base, self.log_end, now_ms, 0)

    def open_producer(self, uint64_t producer_id, uint32_t producer_epoch, *, uint64_t now_ms, uint32_t epoch,
                      durability) -> int:
        """Let in the instance of a named producer that has this epoch, and nothing of its elders from now on.

        A control batch takes the epoch's number 0, so that copies and restarts know of it as they know of any batch.
        The number that comes next; it holds once the high watermark passes the log's end. A shard that is closed takes
        nothing of anybody, and answers 0. Raises ProducerFenced, LimitReached, NotLeader, DiskFull, DiskFailed.
        """
        cdef BatchHeader header
        cdef uint32_t known = 0
        cdef uint32_t table = RECORD_HEADER_BYTES
        cdef uint64_t expected = 0
        cdef uint8_t[CONTROL_BYTES] raw
        cdef bytes batch
        cdef Segment segment
        cdef uint64_t base
        cdef bint synced = durability == "fsync"
        if not producer_id or producer_epoch > 65535:
            raise InvalidRequest("such an identity was never given to a producer", try_="ask for one by name",
                                 field="producer_epoch")
        if self.producers.find(producer_id, &known, &expected):
            if known > producer_epoch:
                raise ProducerFenced("a newer instance of this producer exists", try_="stop this one", newest=known,
                                     epoch=producer_epoch, producer_id=producer_id, shard=self.uuid.hex())
            if known == producer_epoch:
                return expected
        if self.closing is not None:
            return 0
        self.make_room(producer_id, now_ms)
        now_ms = self.begin_control(epoch, now_ms, synced)
        segment = self.place(CONTROL_BYTES, now_ms)
        memset(&header, 0, HEADER_BYTES)
        header.magic[0], header.magic[1], header.version = 0x53, 0x4B, 1
        header.batch_bytes = CONTROL_BYTES
        header.producer_id, header.producer_epoch = producer_id, <uint16_t>producer_epoch
        header.record_count = 1
        header.raw_bytes = CONTROL_BYTES - HEADER_BYTES
        header.event_time_ms = <int64_t>now_ms
        memset(raw, 0, CONTROL_BYTES)
        memcpy(raw, &header, HEADER_BYTES)
        memcpy(&raw[HEADER_BYTES], &table, 4)
        (<BatchHeader*>raw).body_crc = body_crc(raw, CONTROL_BYTES)
        base = self.log_end
        stamp(raw, FLAG_CONTROL, base, epoch, now_ms, self.seed)
        batch = PyBytes_FromStringAndSize(<char*>raw, CONTROL_BYTES)
        self.store(segment, batch, 1, now_ms, synced)
        self.producers.note(&header, base, now_ms)
        return 1

    def cancel(self, *, uint64_t producer_id, uint64_t producer_epoch, uint64_t producer_sequence, uint64_t records,
               uint64_t age_ms, uint64_t now_ms, uint32_t epoch, durability) -> Appended:
        """Use up numbers of a producer, so that the batch that had them is never stored; or say that it is stored.

        age_ms: how long ago that batch was sent first. duplicate in the answer: 0 cancelled now; 1 stored, at
        base_sequence; 2 nobody knows any more; 3 cancelled before, or refused for good because the shard is closed.
        The answer counts once the high watermark passes end_sequence.
        Raises ProducerFenced, SequenceGap, SequenceCorrupt, LimitReached, NotLeader, DiskFull, DiskFailed.
        """
        cdef BatchHeader header
        cdef KeptBatch kept
        cdef uint64_t expected
        cdef Verdict verdict
        cdef bytes batch
        cdef Segment segment
        cdef uint64_t base
        cdef bint synced = durability == "fsync"
        if not producer_id or producer_epoch > 65535 or not 0 < records <= BATCH_RECORDS_MAX or (
                producer_sequence > <uint64_t>1 << 62 or age_ms > <uint64_t>1 << 62):
            raise InvalidRequest("such numbers were never given to a batch", try_="see the token", field="records")
        memset(&header, 0, HEADER_BYTES)
        header.producer_id, header.producer_epoch = producer_id, <uint16_t>producer_epoch
        header.producer_sequence, header.record_count = producer_sequence, <uint32_t>records
        verdict = self.producers.judge(&header, &kept, &expected)
        if verdict == VERDICT_DUPLICATE:
            return make_appended(kept.base_sequence, kept.base_sequence + records, kept.append_time_ms, 1)
        if verdict == VERDICT_CANCELLED:
            return make_appended(0, kept.base_sequence + kept.end - kept.first, kept.append_time_ms, 3)
        if verdict in (VERDICT_DUPLICATE_OLD, VERDICT_UNKNOWN) or (
                verdict == VERDICT_APPEND and not producer_sequence and self.may_have_forgotten(age_ms, now_ms)):
            return make_appended(0, 0, 0, 2)
        if self.closing is not None and verdict in (VERDICT_APPEND, VERDICT_GAP):
            return make_appended(0, self.closing_end, self.last_append_ms, 3)
        if verdict != VERDICT_APPEND:
            raise self.out_of_order(&header, verdict, &kept, expected)
        self.make_room(producer_id, now_ms)
        now_ms = self.begin_control(epoch, now_ms, synced)
        segment = self.place(HEADER_BYTES, now_ms)
        header.magic[0], header.magic[1], header.version = 0x53, 0x4B, 1
        header.batch_bytes = HEADER_BYTES
        header.flags = FLAG_CONTROL | FLAG_CANCEL
        header.attributes = CODEC_LZ4                      # with a codec, a header may promise more than is there
        header.raw_bytes = (4 + RECORD_HEADER_BYTES) * header.record_count
        header.event_time_ms = <int64_t>now_ms
        header.body_crc = body_crc(<const uint8_t*>&header, HEADER_BYTES)
        batch = PyBytes_FromStringAndSize(<char*>&header, HEADER_BYTES)
        base = self.log_end
        stamp(<uint8_t*>PyBytes_AS_STRING(batch), header.flags, base, epoch, now_ms, self.seed)
        self.store(segment, batch, <uint32_t>records, now_ms, synced)
        self.producers.note(&header, base, now_ms)
        return make_appended(0, self.log_end, now_ms, 0)

    cdef bint may_have_forgotten(self, uint64_t age_ms, uint64_t now_ms):
        # Whether a producer of whom nothing is known may have been known so long ago: the table lets silent ones go
        # when it is full, and what retention removed is not read again by whoever begins a copy.
        cdef uint64_t oldest
        if age_ms + CLOCKS_APART_MS > ACTIVE_MS:
            return True
        if self.log_start == 0:
            return False
        oldest = (<Segment>self.segments[0]).first_append_ms if self.segments else 0
        return oldest == 0 or oldest + age_ms + CLOCKS_APART_MS > now_ms

    # ------------------------------------------------------------------------------------------ tail

    cdef int keep(self, uint64_t end, uint64_t append_time_ms, bytes batch) except -1:
        cdef Py_ssize_t room
        cdef Py_ssize_t i
        cdef TailBatch* grown
        cdef TailBatch* slot
        if self.tail_count == self.tail_room:
            room = self.tail_room * 2 if self.tail_room else 4
            grown = <TailBatch*>malloc(<size_t>room * sizeof(TailBatch))
            if grown == NULL:
                raise MemoryError()
            for i in range(self.tail_count):
                grown[i] = self.tail[(self.tail_first + i) & (self.tail_room - 1)]
            free(self.tail)
            self.tail = grown
            self.tail_first = 0
            self.tail_room = room
        slot = &self.tail[(self.tail_first + self.tail_count) & (self.tail_room - 1)]
        slot.base = self.log_end
        slot.end = end
        slot.append_time_ms = append_time_ms
        slot.batch = <PyObject*>batch
        Py_INCREF(batch)
        self.tail_count += 1
        self.node.tail_order.append(self)
        self.node.tail_bytes += len(batch)
        return 0

    cdef uint64_t forget_oldest(self) except? 0:
        # Bytes given back. The ring shrinks to nothing with its last batch, so an idle shard holds none.
        cdef TailBatch* slot = &self.tail[self.tail_first]
        cdef uint64_t size = len(<bytes>slot.batch)
        Py_DECREF(<object>slot.batch)
        self.tail_first = (self.tail_first + 1) & (self.tail_room - 1)
        self.tail_count -= 1
        if self.tail_count == 0:
            free(self.tail)
            self.tail = NULL
            self.tail_first = self.tail_room = 0
        return size

    @property
    def tail_start(self):
        """The first sequence held in memory; log_end when nothing is."""
        return self.tail[self.tail_first].base if self.tail_count else self.log_end

    # ------------------------------------------------------------------------------------------ read

    def read(self, start: int, limit: int, bytes_max: int):
        """Whole batches holding `start` and after, each ending at or before `limit`, as stored, oldest first.

        start may fall inside the first batch; bytes_max is a soft bound: one batch comes even when larger. Control
        batches are included. Empty when start >= limit or log_end. None: it would wait for the disk; use read_cold.
        Raises SequenceTrimmed, CorruptFile (facts tell where reading can go on).
        """
        cdef uint64_t first = start
        cdef uint64_t end = min(limit, self.log_end)
        if first < self.log_start:
            raise SequenceTrimmed(f"sequence {start} was removed by retention", try_="read from the trim horizon",
                                  shard=self.uuid.hex(), sequence=start, log_start=self.log_start)
        if first >= end:
            return []
        if self.tail_count and first >= self.tail[self.tail_first].base:
            return self.read_tail(first, end, bytes_max)
        return self.read_segments(first, end, bytes_max, True)

    cdef list read_tail(self, uint64_t start, uint64_t limit, uint64_t bytes_max):
        cdef Py_ssize_t low = 0
        cdef Py_ssize_t high = self.tail_count
        cdef Py_ssize_t middle
        cdef Py_ssize_t mask = self.tail_room - 1
        cdef TailBatch* slot
        cdef list found = []
        cdef uint64_t size = 0
        while low < high:
            middle = (low + high) >> 1
            if self.tail[(self.tail_first + middle) & mask].end <= start:
                low = middle + 1
            else:
                high = middle
        while low < self.tail_count:
            slot = &self.tail[(self.tail_first + low) & mask]
            size += len(<bytes>slot.batch)
            if slot.end > limit or (found and size > bytes_max):
                break
            found.append(<object>slot.batch)
            low += 1
        return found

    cdef Segment segment_of(self, uint64_t sequence):
        # The segment whose range `sequence` falls into; there is always one, log_start is the first one's at least.
        cdef Py_ssize_t low = 0
        cdef Py_ssize_t high = len(self.segments)
        cdef Py_ssize_t middle
        while low < high:
            middle = (low + high) >> 1
            if (<Segment>self.segments[middle]).base <= sequence:
                low = middle + 1
            else:
                high = middle
        return <Segment>self.segments[low - 1] if low else None

    def read_segments(self, start: int, limit: int, bytes_max: int, nowait: bool):
        """read() from the file; None when nowait and it would wait."""
        cdef Segment segment = self.segment_of(start)
        cdef uint64_t sequence = start
        cdef uint64_t from_sequence
        cdef uint64_t from_position
        if segment is None or sequence >= segment.end:
            raise self.missing(segment, sequence)
        if segment.file is None:
            self.open_segment(segment)
        self.node.tick += 1
        segment.used = self.node.tick
        if segment.memo_sequence == sequence:
            from_sequence, from_position = sequence, segment.memo_position
        else:
            if not segment.index_whole and not self.load_index(segment, nowait):
                return None
            relative, from_position = segment.index.find(sequence - segment.base)
            from_sequence = segment.base + <uint64_t>relative
        return self.read_from(segment, from_sequence, from_position, sequence, min(<uint64_t>limit, segment.end),
                              bytes_max, nowait)

    cdef object read_from(self, Segment segment, uint64_t sequence, uint64_t position, uint64_t start, uint64_t limit,
                          uint64_t bytes_max, bint nowait):
        # Walk from a known batch border to `start`, then collect. A window of the file is one bytes object; what is
        # given out are views of it.
        cdef BatchHeader header
        cdef const uint8_t* at
        cdef Py_ssize_t size
        cdef Py_ssize_t offset
        cdef uint64_t window = bytes_max + READ_AHEAD_BYTES
        cdef uint64_t wanted
        cdef uint64_t taken = 0
        cdef list found = []
        cdef Stop stop
        while position < segment.written_position:
            wanted = min(window, segment.written_position - position)
            data = segment.file.read_nowait(wanted, position) if nowait else segment.file.read(wanted, position)
            if data is None:
                return None
            at = <const uint8_t*>PyBytes_AS_STRING(<bytes>data)
            size = len(<bytes>data)
            view = memoryview(data)
            offset = 0
            while True:
                stop = look(at + offset, <size_t>(size - offset), self.seed, sequence, 0, True, &header)
                if stop != STOP_END:
                    break
                if sequence + header.record_count > limit:
                    if found or sequence + header.record_count <= segment.end:
                        return found                        # may be empty: the limit falls inside a batch
                    stop = STOP_BAD                         # it claims what others hold
                    break
                if sequence + header.record_count > start:
                    if found and taken + header.batch_bytes > bytes_max:
                        break
                    found.append(view[offset : offset + header.batch_bytes])
                    taken += header.batch_bytes
                sequence += header.record_count
                offset += header.batch_bytes
            position += offset
            if found:
                segment.memo_sequence, segment.memo_position = sequence, position
                return found
            wanted = header.batch_bytes if size - offset >= HEADER_BYTES else HEADER_BYTES
            if stop == STOP_SHORT and position + wanted <= segment.written_position and offset + <uint64_t>wanted > <uint64_t>size:
                window = max(window, wanted)
                continue
            if sequence >= start:
                break
            after, behind = self.resume_after(segment, position, sequence)
            if behind > start:
                break
            position, sequence = after, behind      # the damage lies before what is asked for
        raise self.damaged(segment, position, sequence)

    def missing(self, segment, sequence: int):
        """The error for a sequence that no segment holds."""
        after = min((known.base for known in self.segments if known.base > sequence), default=self.log_end)
        return CorruptFile(f"records {sequence} to {after} of the shard are lost to damage",
                           try_="restore the file from a copy, or read on from next_sequence", path="", position=0,
                           reason="missing", shard=self.uuid.hex(), sequence=sequence, next_sequence=after)

    # ------------------------------------------------------------------------------------------ for recovery, retention

    def take_segments(self, segments: list) -> None:
        """The segments found at start, oldest first."""
        self.segments[:] = segments

    def restore_ends(self, synced_end: int, unsynced: bool) -> None:
        """After recovery. unsynced: the log ends with batches that neither a journal nor a checkpoint vouches for."""
        self.synced_end = synced_end
        self.os_end = self.log_end if unsynced else 0

    def reload(self, *, uint64_t log_start, uint64_t log_end, uint32_t epoch, uint64_t last_append_ms,
               ProducerTable producers, list epochs, list segments) -> None:
        """After the log was cut or emptied on disk, all of what is left synced; nothing may be in flight."""
        assert self.segment_end == self.log_end, "the flusher is done with the shard"
        self.forget_tail()
        self.log_start = log_start
        self.log_end = self.journal_end = self.synced_end = self.segment_end = log_end
        self.os_end = 0
        self.epoch, self.last_append_ms, self.producers = epoch, last_append_ms, producers
        self.epochs[:] = epochs
        self.segments[:] = segments
        if self.closing_end > log_end:
            self.closing = None
        self.cuts += 1

    def find_closing(self, batch, uint64_t end) -> None:
        """After recovery: `batch` ends at `end` and, but for epoch-start batches, is the log's last."""
        cdef BatchHeader header
        cdef const uint8_t[::1] view = batch
        if view.shape[0] >= HEADER_BYTES:
            memcpy(&header, &view[0], HEADER_BYTES)
            if header.flags & FLAG_CLOSE and header.batch_bytes == <uint64_t>view.shape[0]:
                self.closing, self.closing_end = control_details(&header, &view[0]), end

    def move_start(self, log_start: int) -> None:
        """Retention dropped everything before log_start."""
        assert self.log_start <= log_start <= self.log_end, "log_start never falls and stays in the log"
        self.log_start = log_start

    def forget_tail(self) -> None:
        """Give the tail's memory back: the shard is going, or was cut."""
        self.node.tails_stale += self.tail_count
        while self.tail_count:
            self.node.tail_bytes -= self.forget_oldest()
        if self.node.tails_stale > STALE_TAILS and self.node.tails_stale > len(self.node.tail_order) // 2:
            self.node.sweep_tails()


cdef bytes control_details(BatchHeader* header, const uint8_t* at):
    # The value of a control batch's one record, whose checksums agreed; empty when it is not laid out as one.
    cdef uint64_t value = HEADER_BYTES + 4
    if header.batch_bytes < value + RECORD_HEADER_BYTES:
        return b""
    value += (RECORD_HEADER_BYTES + (HASH_BYTES if header.attributes & ATTRIBUTE_HASHES else 0)
              + <uint64_t>u16_at(at + value) + <uint64_t>u16_at(at + value + 2))
    if value > header.batch_bytes:
        return b""
    return PyBytes_FromStringAndSize(<const char*>at + value, <Py_ssize_t>(header.batch_bytes - value))


cdef object refused_batch(int bad, Py_ssize_t size, uint64_t size_max):
    if size > <Py_ssize_t>size_max:
        return CorruptBatch(f"the batch has {size} bytes, at most {size_max} are taken", try_="send smaller batches",
                            reason="size")
    reason = "magic" if bad == BATCH_MAGIC else "cut short" if bad == BATCH_SHORT else "size"
    return CorruptBatch(f"{size} bytes are not one whole batch: {reason}", try_="send whole batches", reason=reason)
