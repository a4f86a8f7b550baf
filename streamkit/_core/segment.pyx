"""Walks over the bytes of a segment: which batches are sound, where they stop and why.

Serves recovery, reading, scrubbing and `storage.inspect`. It decides nothing: whether a stop is a torn tail or
damage is for `storage.recovery`, which knows what had been synced. Read `look` first.
"""

from libc.string cimport memcmp, memcpy

from streamkit._core.batch cimport (BATCH_OK, BATCH_SHORT, FLAG_EPOCH_START, HEADER_BYTES, body_crc, header_crc,
                                    read_header, sk_crc32c)
from streamkit._core.buffers cimport u32_at


cdef Stop look(const uint8_t* at, size_t size, uint32_t seed, uint64_t sequence, uint32_t epoch_min,
               bint with_body, BatchHeader* header) noexcept nogil:
    cdef int answer
    if size == 0:
        return STOP_SHORT
    if size >= 8 and is_zero(at, size if size < HEADER_BYTES else HEADER_BYTES):
        return STOP_ZERO
    if size >= 4 and memcmp(at, b"SKT1", 4) == 0:
        if size < TRAILER_BYTES:
            return STOP_SHORT
        return STOP_TRAILER if trailer_crc(at, seed) == u32_at(at + 4) else STOP_BAD
    answer = read_header(at, size, header)
    if answer == BATCH_SHORT:
        if size >= HEADER_BYTES and header_crc(at, seed) != header.header_crc:
            return STOP_BAD
        return STOP_SHORT
    if answer != BATCH_OK:
        return STOP_BAD
    if header_crc(at, seed) != header.header_crc or header.base_sequence != sequence or header.epoch < epoch_min:
        return STOP_BAD
    if with_body and body_crc(at, header.batch_bytes) != header.body_crc:
        return STOP_BAD
    return STOP_END


cdef void check_run(const uint8_t* at, size_t size, Run* run) noexcept nogil:
    cdef BatchHeader header
    cdef size_t done = 0
    cdef uint64_t expected = 0
    cdef uint32_t epoch = run.epoch
    cdef uint64_t append_time_ms = run.append_time_ms
    cdef bint first = run.empty
    run.fault = RUN_SOUND
    run.fresh = size
    while done < size:
        run.fault = RUN_BYTES
        run.sequence = expected
        if read_header(at + done, size - done, &header) != BATCH_OK or header.batch_bytes > run.batch_bytes_max:
            return
        run.sequence = header.base_sequence
        run.fault = RUN_SUM
        if header_crc(at + done, run.seed) != header.header_crc:
            return
        run.fault = RUN_GAP
        if done and header.base_sequence != expected:
            return
        expected = header.base_sequence + header.record_count
        if expected <= run.log_end:
            run.held_sequence = header.base_sequence
            run.held_epoch = header.epoch
            done += header.batch_bytes
            run.fault = RUN_SOUND
            continue
        if run.fresh == size:
            if header.base_sequence != run.log_end:
                if header.base_sequence < run.log_end:
                    run.fault = RUN_OVERLAP
                return
            run.fresh = done
        run.fault = RUN_EPOCH
        if header.epoch > run.epoch_max or header.epoch < epoch:
            return
        if header.epoch > epoch and not header.flags & FLAG_EPOCH_START and not first:
            return
        run.fault = RUN_TIME
        if header.append_time_ms < append_time_ms:
            return
        run.fault = RUN_SUM
        if body_crc(at + done, header.batch_bytes) != header.body_crc:
            return
        epoch = header.epoch
        append_time_ms = header.append_time_ms
        first = False
        done += header.batch_bytes
        run.fault = RUN_SOUND


cdef inline bint is_zero(const uint8_t* at, size_t size) noexcept nogil:
    cdef size_t i
    for i in range(size):
        if at[i]:
            return False
    return True


cdef inline uint32_t trailer_crc(const uint8_t* at, uint32_t seed) noexcept nogil:
    return sk_crc32c(seed, at + 8, TRAILER_BYTES - 8)


cdef class Walk:
    """What a walk found; see walk()."""

    cdef readonly list batches         # (position, base_sequence, records, bytes, append_time_ms, epoch, flags,
                                       #  producer_id, producer_epoch, producer_sequence) of each sound batch
    cdef readonly uint64_t position    # in the file: one past the last sound batch
    cdef readonly uint64_t sequence    # one past the last record of it
    cdef readonly uint32_t epoch       # of the last sound batch, or what was given
    cdef readonly uint32_t headers_crc # continued over the headers of the sound batches
    cdef readonly int stop             # a STOP number
    cdef readonly uint64_t needed      # STOP_SHORT: bytes that the next batch needs, as far as its header tells


def walk(const uint8_t[::1] data not None, uint64_t position, uint64_t sequence, uint32_t seed, *,
         uint32_t epoch_min=0, uint64_t sequence_max=0xFFFFFFFFFFFFFFFF, uint32_t headers_crc=0, bint with_body=True):
    """Follow the batches in `data`, which lie at `position` of a segment file and start at `sequence`.

    Stops before a batch that ends after sequence_max. Returns a Walk; never raises on content.
    """
    cdef Walk found = Walk.__new__(Walk)
    cdef BatchHeader header
    cdef const uint8_t* at = &data[0] if data.shape[0] else NULL
    cdef size_t size = <size_t>data.shape[0]
    cdef size_t done = 0
    cdef Stop stop = STOP_END
    found.batches = []
    while done < size:
        if size - done >= 65536:
            with nogil:
                stop = look(at + done, size - done, seed, sequence, epoch_min, with_body, &header)
        else:
            stop = look(at + done, size - done, seed, sequence, epoch_min, with_body, &header)
        if stop != STOP_END or sequence + header.record_count > sequence_max:
            break
        found.batches.append((position + done, sequence, header.record_count, header.batch_bytes,
                              header.append_time_ms, header.epoch, header.flags,
                              header.producer_id, header.producer_epoch, header.producer_sequence))
        headers_crc = sk_crc32c(headers_crc, at + done, HEADER_BYTES)
        done += header.batch_bytes
        sequence += header.record_count
        epoch_min = header.epoch
    found.position = position + done
    found.sequence = sequence
    found.epoch = epoch_min
    found.headers_crc = headers_crc
    found.stop = stop
    found.needed = 0
    if stop == STOP_SHORT:
        found.needed = HEADER_BYTES
        if size - done >= HEADER_BYTES:
            found.needed = header.batch_bytes
    return found


def find_batch(const uint8_t[::1] data not None, uint32_t seed, uint64_t sequence_min, uint64_t sequence_max):
    """The first place in `data` where the header of a batch of this shard begins, past damage.

    Returns (offset in data, base_sequence), sequence_min <= base_sequence < sequence_max, or None.
    """
    cdef size_t size = <size_t>data.shape[0]
    cdef size_t at = 0
    cdef const uint8_t* start = &data[0] if size else NULL
    cdef BatchHeader header
    cdef bint found = False
    with nogil:
        while at + HEADER_BYTES <= size:
            if start[at] == 0x53 and start[at + 1] == 0x4B and start[at + 2] == 1:
                memcpy(&header, start + at, HEADER_BYTES)
                if (header_crc(start + at, seed) == header.header_crc and header.batch_bytes >= HEADER_BYTES
                        and sequence_min <= header.base_sequence < sequence_max):
                    found = True
                    break
            at += 1
    return (at, header.base_sequence) if found else None


def make_trailer(uint32_t seed, *, uint64_t base, uint64_t end, uint64_t bytes, uint64_t batches,
                 uint64_t first_append_ms, uint64_t last_append_ms, uint32_t headers_crc):
    """The trailer of a sealed segment."""
    cdef uint8_t[TRAILER_BYTES] raw
    cdef uint64_t[6] fields
    cdef uint32_t crc
    for i in range(TRAILER_BYTES):
        raw[i] = 0
    fields[0], fields[1], fields[2], fields[3], fields[4], fields[5] = (
        base, end, bytes, batches, first_append_ms, last_append_ms)
    memcpy(raw, b"SKT1", 4)
    memcpy(&raw[8], fields, 48)
    memcpy(&raw[56], &headers_crc, 4)
    crc = trailer_crc(raw, seed)
    memcpy(&raw[4], &crc, 4)
    return (<char*>raw)[:TRAILER_BYTES]


def read_trailer(const uint8_t[::1] data not None, uint32_t seed):
    """The fields of make_trailer as a dict, or None when the first 96 bytes are not a sound trailer of this shard."""
    cdef uint64_t[6] fields
    cdef uint32_t headers_crc
    if data.shape[0] < TRAILER_BYTES or memcmp(&data[0], b"SKT1", 4) != 0:
        return None
    if trailer_crc(&data[0], seed) != u32_at(&data[4]):
        return None
    memcpy(fields, &data[8], 48)
    memcpy(&headers_crc, &data[56], 4)
    return {"base": fields[0], "end": fields[1], "bytes": fields[2], "batches": fields[3],
            "first_append_ms": fields[4], "last_append_ms": fields[5], "headers_crc": headers_crc}


END = STOP_END
SHORT = STOP_SHORT
TRAILER = STOP_TRAILER
ZERO = STOP_ZERO
BAD = STOP_BAD
TRAILER_SIZE = TRAILER_BYTES
