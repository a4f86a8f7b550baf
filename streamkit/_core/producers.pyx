"""Idempotence of one shard: which batch of a producer is new, repeated, early or wrong.

b, n: the batch's first producer sequence and its records; next: what the producer's state expects.

    same epoch, b = next                        append
    same epoch, (b, n) among the kept 8         duplicate, with its place; cancelled, when a cancel took its numbers
    same epoch, (b, n) inside a cancelled one   cancelled
    same epoch, b + n <= next, not kept         duplicate, place no longer known
    same epoch, b > next                        gap
    same epoch, otherwise                       corrupt: overlaps in part
    lower epoch                                 fenced
    higher epoch, b = 0                         append, state starts anew; b > 0: unknown
    no state, b = 0                             append; b > 0: unknown, never accepted silently

The state is derived from batch headers in the log; snapshots only save reading them again. A batch that cancels is
noted like the one whose numbers it takes, so that every copy knows it after a change of leaders and after a restart.
Serves `log`. Read `judge` first.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t
from libc.string cimport memcpy, memmove

from streamkit._core.batch cimport FLAG_CANCEL, sk_crc32c
from streamkit._core.buffers cimport u32_at

cdef enum:
    SNAPSHOT_HEADER_BYTES = 32     # "SKP1", crc of 8.., position u64, sequence u64, producers u32, zero u32
    SNAPSHOT_PRODUCER_BYTES = 32   # id u64, next u64, seen_ms u64, epoch u32, kept u32; then its kept batches


cdef uint64_t CANCELLED = <uint64_t>1 << 63      # in append_time_ms: a bit that no time has; snapshots keep it


cdef class Producer:
    pass


cdef class ProducerTable:
    """Producers of one shard by id, at most producers_max of them."""

    def __init__(self, Py_ssize_t producers_max):
        self.producers = {}
        self.producers_max = producers_max

    def __len__(self):
        return len(self.producers)

    cdef Verdict judge(self, BatchHeader* header, KeptBatch* kept, uint64_t* expected):
        cdef Producer producer = <Producer>self.producers.get(header.producer_id)
        cdef uint64_t end = header.producer_sequence + header.record_count
        cdef Py_ssize_t i
        if producer is None:
            expected[0] = 0
            return VERDICT_UNKNOWN if header.producer_sequence else VERDICT_APPEND
        expected[0] = producer.next
        if header.producer_epoch != producer.epoch:
            if header.producer_epoch < producer.epoch:
                expected[0] = producer.epoch
                return VERDICT_FENCED
            return VERDICT_UNKNOWN if header.producer_sequence else VERDICT_APPEND
        if header.producer_sequence == producer.next:
            return VERDICT_APPEND
        if header.producer_sequence > producer.next:
            return VERDICT_GAP
        for i in range(producer.count):
            if producer.kept[i].first == header.producer_sequence and producer.kept[i].end == end:
                return take_kept(&producer.kept[i], kept)
            if producer.kept[i].append_time_ms & CANCELLED and (
                    producer.kept[i].first <= header.producer_sequence and end <= producer.kept[i].end):
                return take_kept(&producer.kept[i], kept)
        if end <= producer.next:
            for i in range(producer.count):
                if header.producer_sequence < producer.kept[i].end and producer.kept[i].first < end:
                    return VERDICT_CORRUPT
            take_kept(&producer.kept[0], kept)
            return VERDICT_DUPLICATE_OLD
        return VERDICT_CORRUPT

    cdef int note(self, BatchHeader* header, uint64_t base_sequence, uint64_t append_time_ms) except -1:
        # The batch was appended; also used while the log is read again.
        cdef Producer producer = <Producer>self.producers.get(header.producer_id)
        if producer is None:
            producer = Producer.__new__(Producer)
            producer.epoch = header.producer_epoch
            self.producers[header.producer_id] = producer
        if producer.epoch != header.producer_epoch:
            producer.epoch = header.producer_epoch
            producer.count = 0
        if producer.count == PRODUCER_WINDOW:
            memmove(&producer.kept[0], &producer.kept[1], (PRODUCER_WINDOW - 1) * sizeof(KeptBatch))
            producer.count -= 1
        producer.next = header.producer_sequence + header.record_count
        producer.seen_ms = append_time_ms
        producer.kept[producer.count] = KeptBatch(
            header.producer_sequence, producer.next, base_sequence,
            append_time_ms | CANCELLED if header.flags & FLAG_CANCEL else append_time_ms)
        producer.count += 1
        return 0

    def note_late(self, uint64_t producer_id, uint32_t producer_epoch, uint64_t producer_sequence, uint32_t records,
                  uint64_t base_sequence, uint64_t append_time_ms, int flags=0) -> None:
        """A batch that was repaired: later ones of the same producer may have been noted already."""
        cdef Producer producer = <Producer>self.producers.get(producer_id)
        cdef KeptBatch late = KeptBatch(producer_sequence, producer_sequence + records, base_sequence,
                                        append_time_ms | CANCELLED if flags & FLAG_CANCEL else append_time_ms)
        cdef Py_ssize_t i
        if producer is None or producer.epoch < producer_epoch or (
                producer.epoch == producer_epoch and producer_sequence >= producer.next):
            self.replay(producer_id, producer_epoch, producer_sequence, records, base_sequence, append_time_ms, flags)
            return
        if producer.epoch != producer_epoch:
            return
        i = producer.count
        while i and producer.kept[i - 1].first > late.first:
            i -= 1
        if i and producer.kept[i - 1].first == late.first:
            return
        if producer.count == PRODUCER_WINDOW:
            if i == 0:
                return                 # older than what is remembered
            memmove(&producer.kept[0], &producer.kept[1], (i - 1) * sizeof(KeptBatch))
            producer.kept[i - 1] = late
            return
        memmove(&producer.kept[i + 1], &producer.kept[i], (producer.count - i) * sizeof(KeptBatch))
        producer.kept[i] = late
        producer.count += 1

    cdef bint find(self, uint64_t producer_id, uint32_t* epoch, uint64_t* expected):
        # Whether the producer is known: its newest epoch, and the number that comes next under it.
        cdef Producer producer = <Producer>self.producers.get(producer_id)
        if producer is None:
            return False
        epoch[0], expected[0] = producer.epoch, producer.next
        return True

    cdef bint has_room(self, uint64_t producer_id, uint64_t now_ms):
        # Whether a batch of this producer may be noted; forgets the longest silent ones when the table is full.
        cdef Producer producer
        cdef list silent
        if len(self.producers) < self.producers_max or producer_id in self.producers:
            return True
        silent = []
        for known, state in self.producers.items():
            producer = <Producer>state
            if producer.seen_ms + ACTIVE_MS < now_ms:
                silent.append((producer.seen_ms, known))
        silent.sort()
        for _, known in silent[: self.producers_max // 4 + 1]:
            del self.producers[known]
        return len(self.producers) < self.producers_max

    def replay(self, uint64_t producer_id, uint32_t producer_epoch, uint64_t producer_sequence, uint32_t records,
               uint64_t base_sequence, uint64_t append_time_ms, int flags=0) -> None:
        """A batch found in the log while it is read again, in order; flags: its header's."""
        cdef BatchHeader header
        header.producer_id = producer_id
        header.producer_epoch = <uint16_t>producer_epoch
        header.producer_sequence = producer_sequence
        header.record_count = records
        header.flags = <uint8_t>flags
        self.note(&header, base_sequence, append_time_ms)

    def to_bytes(self, uint64_t position, uint64_t sequence) -> bytes:
        """A snapshot that holds for the segment up to `position`, where `sequence` comes next."""
        cdef uint64_t[3] numbers
        cdef uint32_t[2] small
        cdef Producer producer
        cdef list parts = []
        cdef uint32_t crc
        for known, state in self.producers.items():
            producer = <Producer>state
            numbers[0], numbers[1], numbers[2] = known, producer.next, producer.seen_ms
            small[0], small[1] = producer.epoch, producer.count
            parts.append(PyBytes_FromStringAndSize(<char*>numbers, 24) + PyBytes_FromStringAndSize(<char*>small, 8))
            parts.append(PyBytes_FromStringAndSize(<char*>producer.kept, producer.count * sizeof(KeptBatch)))
        numbers[0], numbers[1] = position, sequence
        small[0], small[1] = <uint32_t>len(self.producers), 0
        body = b"".join([PyBytes_FromStringAndSize(<char*>numbers, 16), PyBytes_FromStringAndSize(<char*>small, 8), *parts])
        crc = sk_crc32c(0, <const char*>body, <size_t>len(body))
        return b"SKP1" + PyBytes_FromStringAndSize(<char*>&crc, 4) + body

    @staticmethod
    def from_bytes(const uint8_t[::1] data not None, Py_ssize_t producers_max):
        """(table, position, sequence) of a snapshot, or None when `data` is not a sound one."""
        cdef size_t size = <size_t>data.shape[0]
        cdef ProducerTable table
        cdef Producer producer
        cdef uint64_t[3] numbers
        cdef uint32_t[2] small
        cdef uint32_t count, i
        cdef size_t at = SNAPSHOT_HEADER_BYTES
        cdef uint64_t position, sequence
        if size < SNAPSHOT_HEADER_BYTES or bytes(data[:4]) != b"SKP1":
            return None
        if sk_crc32c(0, &data[8], size - 8) != u32_at(&data[4]):
            return None
        memcpy(numbers, &data[8], 16)
        position, sequence = numbers[0], numbers[1]
        memcpy(&count, &data[24], 4)
        table = ProducerTable(producers_max)
        for i in range(count):
            if size - at < SNAPSHOT_PRODUCER_BYTES:
                return None
            memcpy(numbers, &data[at], 24)
            memcpy(small, &data[at + 24], 8)
            at += SNAPSHOT_PRODUCER_BYTES
            if small[1] > PRODUCER_WINDOW or size - at < small[1] * sizeof(KeptBatch):
                return None
            producer = Producer.__new__(Producer)
            producer.next, producer.seen_ms = numbers[1], numbers[2]
            producer.epoch, producer.count = small[0], small[1]
            if small[1]:
                memcpy(producer.kept, &data[at], small[1] * sizeof(KeptBatch))
            at += small[1] * sizeof(KeptBatch)
            table.producers[numbers[0]] = producer
        return table, position, sequence


cdef Verdict take_kept(KeptBatch* found, KeptBatch* kept) noexcept:
    # A copy without the mark, and what the mark says.
    kept[0] = found[0]
    kept.append_time_ms &= ~CANCELLED
    return VERDICT_CANCELLED if found.append_time_ms & CANCELLED else VERDICT_DUPLICATE
