"""The batch from Python: sealing, checking, and reading it back as records, values or Arrow columns.

`batch.pxd` draws the bytes and holds the C functions that other kernels share. Reading is lazy: a Batch looks
at its header only; the first access to a record checks the CRC, decompresses once and checks the whole record
table, so that no later access needs a bound check of its own. A Record points into the batch and keeps it alive.
"""

import datetime
from types import GenericAlias, MappingProxyType

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.list cimport PyList_New, PyList_SET_ITEM
from cpython.ref cimport Py_INCREF
from cpython.unicode cimport PyUnicode_DecodeUTF8

import lz4.block
import msgspec

from streamkit._core.aggregation cimport NO_MEMORY, Entries, UserRecordEntry, entry_hash_key, looks_aggregated
from streamkit._core.buffers cimport is_utf8, u16_at, u32_at
from streamkit._core.debug cimport LIVE_BATCH, LIVE_RECORD, SK_COUNT, live_counts
from streamkit._core.hashing cimport md5

from streamkit.errors import CorruptBatch, DecodeFailed, InvalidUse, StreamkitError

MAGIC = b"SK"
CODECS = ("none", "lz4", "zstd")
CONTROL = FLAG_CONTROL
EPOCH_START = FLAG_EPOCH_START
RECORD_BYTES_OVERHEAD = RECORD_HEADER_BYTES + 4      # its header and its entry in the table
COMPRESS_BYTES_MIN = 512                             # smaller bodies are stored as they are
globals()["HEADER_BYTES"] = HEADER_BYTES             # the C name is an enum; this one is for Python

cdef object EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
cdef object NO_HEADERS = MappingProxyType({})
cdef object decode_headers = msgspec.msgpack.Decoder(dict[str, bytes]).decode
cdef object decode_json = msgspec.json.decode
cdef object zstandard = None

cdef dict FRAME_REASONS = {
    BATCH_SHORT: "cut short",
    BATCH_MAGIC: "no batch of a known version",
    BATCH_SIZE: "impossible size or record count",
    BATCH_HEADER_CRC: "header checksum differs",
    BATCH_BODY_CRC: "body checksum differs",
}


def corrupt(str reason, **facts) -> CorruptBatch:
    """The error for bytes that are no sound batch."""
    return CorruptBatch(f"not a sound batch: {reason}", reason=reason, **facts)


cdef object load_zstandard():
    global zstandard
    if zstandard is None:
        try:
            import zstandard as found
        except ImportError as cause:
            raise InvalidUse("zstd needs the zstandard package", try_="pip install 'streamkit[zstd]'") from cause
        zstandard = found
    return zstandard


def require_codec(int codec) -> None:
    """Raise InvalidUse when the package for a codec (0 none, 1 lz4, 2 zstd) is not installed."""
    if codec == CODEC_ZSTD:
        load_zstandard()


# ---- checking --------------------------------------------------------------------------------------------


cdef Py_ssize_t check_table(const uint8_t* body, size_t size, uint32_t count, uint16_t attributes) noexcept nogil:
    # -1 when the table and every record lie within the body and keys are UTF-8; -2 when the table itself does not
    # fit; otherwise the index of the first bad record.
    cdef const uint8_t* records = body + 4 * <size_t>count
    cdef size_t room, start = 0, end, inner
    cdef size_t fixed = RECORD_HEADER_BYTES + (HASH_BYTES if attributes & ATTRIBUTE_HASHES else 0)
    cdef uint32_t i
    if 4 * <size_t>count > size:
        return -2
    room = size - 4 * <size_t>count
    for i in range(count):
        end = u32_at(body + 4 * <size_t>i)
        if end > room or end < start + fixed:
            return i
        inner = fixed + u16_at(records + start) + u16_at(records + start + 2)
        if inner > end - start or not is_utf8(records + start + fixed, u16_at(records + start)):
            return i
        start = end
    return -1 if start == room else -2


cdef int check_frame(const uint8_t* at, size_t size, BatchHeader* header) noexcept nogil:
    cdef int answer = read_header(at, size, header)
    if answer != BATCH_OK:
        return answer
    if header.raw_bytes > BODY_BYTES_MAX or header.raw_bytes < header.record_count * <uint64_t>RECORD_BYTES_LEAST:
        return BATCH_SIZE
    if header.attributes & ATTRIBUTE_CODEC == CODEC_NONE and header.raw_bytes != header.batch_bytes - HEADER_BYTES:
        return BATCH_SIZE
    if header.attributes & ATTRIBUTE_CODEC == ATTRIBUTE_CODEC:
        return BATCH_MAGIC
    return BATCH_OK


cdef enum:
    RECORD_BYTES_LEAST = 12          # a table entry and a record header


@cython.final
cdef class Header:
    """A batch's header, read; field names as drawn in batch.pxd."""

    cdef readonly int version, flags
    cdef readonly uint32_t batch_bytes, epoch, header_crc, body_crc, record_count, raw_bytes, map_version
    cdef readonly uint64_t base_sequence, append_time_ms, producer_id, producer_sequence
    cdef readonly int attributes, producer_epoch
    cdef readonly int64_t event_time_ms
    cdef readonly int32_t event_time_delta_max
    cdef readonly bytes hash_low, hash_high

    @property
    def codec(self) -> str:
        """"none", "lz4" or "zstd"."""
        return CODECS[self.attributes & ATTRIBUTE_CODEC]

    @property
    def is_control(self) -> bool:
        return bool(self.flags & FLAG_CONTROL)

    @property
    def is_epoch_start(self) -> bool:
        return bool(self.flags & FLAG_EPOCH_START)

    @property
    def end_sequence(self) -> int:
        """One past the last record."""
        return self.base_sequence + self.record_count

    def __repr__(self) -> str:
        return (f"Header(base_sequence={self.base_sequence}, record_count={self.record_count}, epoch={self.epoch}, "
                f"batch_bytes={self.batch_bytes}, producer_id={self.producer_id}, "
                f"producer_sequence={self.producer_sequence})")


cdef Header make_header(const BatchHeader* source):
    cdef Header made = Header.__new__(Header)
    made.version = source.version
    made.flags = source.flags
    made.batch_bytes = source.batch_bytes
    made.base_sequence = source.base_sequence
    made.epoch = source.epoch
    made.header_crc = source.header_crc
    made.append_time_ms = source.append_time_ms
    made.body_crc = source.body_crc
    made.attributes = source.attributes
    made.producer_epoch = source.producer_epoch
    made.producer_id = source.producer_id
    made.producer_sequence = source.producer_sequence
    made.record_count = source.record_count
    made.raw_bytes = source.raw_bytes
    made.event_time_ms = source.event_time_ms
    made.event_time_delta_max = source.event_time_delta_max
    made.map_version = source.map_version
    made.hash_low = source.hash_low[:16]
    made.hash_high = source.hash_high[:16]
    return made


def _read_header(const uint8_t[::1] buffer not None) -> Header:
    """The header of the batch at the start of `buffer`; no checksum is looked at.

    Raises CorruptBatch: cut short, not a batch, impossible sizes.
    """
    cdef BatchHeader header
    cdef int answer = check_frame(&buffer[0] if buffer.shape[0] else NULL, buffer.shape[0], &header)
    if answer != BATCH_OK:
        raise corrupt(FRAME_REASONS[answer])
    return make_header(&header)


globals()["read_header"] = _read_header              # the C function of that name is in batch.pxd


def check_batch(const uint8_t[::1] buffer not None, const uint8_t[::1] shard_uuid=None) -> Header:
    """The header of one whole batch after every checksum agreed.

    shard_uuid: 16 bytes; None leaves out the leader's checksum, for a batch that no leader has stamped.
    Records are not looked at: the checksum says that they are what the producer sealed. Raises CorruptBatch.
    """
    cdef BatchHeader header
    cdef const uint8_t* at = &buffer[0] if buffer.shape[0] else NULL
    cdef uint32_t seed = sk_crc32c(0, &shard_uuid[0], shard_uuid.shape[0]) if shard_uuid is not None else 0
    cdef bint stamped = shard_uuid is not None
    cdef int answer
    with nogil:
        answer = check_frame(at, buffer.shape[0], &header)
        if answer == BATCH_OK and stamped and header_crc(at, seed) != header.header_crc:
            answer = BATCH_HEADER_CRC
        if answer == BATCH_OK and body_crc(at, header.batch_bytes) != header.body_crc:
            answer = BATCH_BODY_CRC
    if answer != BATCH_OK:
        raise corrupt(FRAME_REASONS[answer])
    return make_header(&header)


def shard_seed(const uint8_t[::1] uuid not None) -> int:
    """What a shard's header checksums start from: the CRC-32C of its uuid."""
    return sk_crc32c(0, &uuid[0] if uuid.shape[0] else NULL, uuid.shape[0])


def crc32c(const uint8_t[::1] data not None, uint32_t crc=0) -> int:
    """CRC-32C, continued from `crc`."""
    cdef uint32_t answer
    cdef const uint8_t* at = &data[0] if data.shape[0] else NULL
    with nogil:
        answer = sk_crc32c(crc, at, data.shape[0])
    return answer


# ---- sealing ---------------------------------------------------------------------------------------------


cdef bytes compress_body(int codec, object body):
    cdef bytes packed
    if codec == CODEC_NONE or len(body) < COMPRESS_BYTES_MIN:
        return None
    if codec == CODEC_LZ4:
        packed = lz4.block.compress(body, store_size=False)
    else:
        packed = load_zstandard().ZstdCompressor(level=1).compress(body)
    return packed if len(packed) * 10 <= len(body) * 9 else None


cdef bytes join_batch(BatchHeader* header, bytes body):
    cdef size_t size = HEADER_BYTES + <size_t>len(body)
    cdef bytes whole = PyBytes_FromStringAndSize(NULL, size)
    cdef uint8_t* at = <uint8_t*>PyBytes_AS_STRING(whole)
    memcpy(at + HEADER_BYTES, <const uint8_t*>PyBytes_AS_STRING(body), len(body))
    seal_header(at, header, size)
    return whole


def seal(records, *, producer_id=0, producer_epoch=0, producer_sequence=0, codec=1, map_version=0) -> bytes:
    """One batch of `records`, sealed as the accumulator seals: (key, value, headers, event_time_ms, hash_key).

    key, value, headers: bytes; headers is b"" or a msgpack map of text to bytes. event_time_ms: None when not given.
    hash_key: 16 bytes, or None for the key's own. codec: 0 none, 1 lz4, 2 zstd; left out where it saves nothing.
    """
    cdef BatchHeader header
    cdef uint8_t digest[16]
    cdef bytes key, value, headers, body, packed
    cdef uint8_t* at
    cdef const uint8_t* first_record
    cdef size_t size = 0
    cdef uint32_t end
    cdef Py_ssize_t i
    records = list(records)
    if not 0 < len(records) <= BATCH_RECORDS_MAX:
        raise InvalidUse(f"a batch has 1..{BATCH_RECORDS_MAX} records, got {len(records)}", try_="split the list")
    hashes = any(record[4] is not None for record in records)
    times = [record[3] for record in records if record[3] is not None]
    for key, value, headers, _, _ in records:
        if len(key) > 65535 or len(headers) > 65535:
            raise InvalidUse("a key or its headers exceed 65535 bytes", try_="shorten them")
        size += 4 + record_bytes(len(key), len(headers), len(value), hashes)
    if size > BODY_BYTES_MAX:
        raise InvalidUse(f"{size} bytes exceed a batch's {BODY_BYTES_MAX}", try_="split the list")
    memset(&header, 0, HEADER_BYTES)
    memset(header.hash_low, 0xFF, HASH_BYTES)
    header.event_time_ms = min(times, default=0)
    header.event_time_delta_max = max(times) - header.event_time_ms if times else DELTA_NONE
    body = PyBytes_FromStringAndSize(NULL, size)
    first_record = <const uint8_t*>PyBytes_AS_STRING(body) + 4 * <size_t>len(records)
    at = <uint8_t*>first_record
    for i, (key, value, headers, time_ms, given) in enumerate(records):
        if given is None:
            md5(<const uint8_t*>PyBytes_AS_STRING(key), len(key), digest)
        else:
            memcpy(digest, <const uint8_t*>PyBytes_AS_STRING(given), HASH_BYTES)
        widen_hashes(&header, digest)
        at = write_record(at, <const uint8_t*>PyBytes_AS_STRING(key), len(key),
                          <const uint8_t*>PyBytes_AS_STRING(headers), len(headers),
                          <const uint8_t*>PyBytes_AS_STRING(value), len(value),
                          DELTA_NONE if time_ms is None else time_ms - header.event_time_ms,
                          digest if hashes else NULL)
        end = <uint32_t>(at - first_record)
        memcpy(PyBytes_AS_STRING(body) + 4 * i, &end, 4)
    header.attributes = (ATTRIBUTE_HASHES if hashes else 0) | (ATTRIBUTE_HEADERS if any(r[2] for r in records) else 0)
    header.producer_id = producer_id
    header.producer_epoch = producer_epoch
    header.producer_sequence = producer_sequence
    header.record_count = len(records)
    header.raw_bytes = <uint32_t>size
    header.map_version = map_version
    packed = compress_body(codec, body)
    if packed is not None:
        header.attributes |= <int>codec
    return join_batch(&header, body if packed is None else packed)


def control_batch(kind not None, bytes details=b"") -> bytes:
    """A batch that a log writes for itself, with its flags set; readers never see its one record.

    kind: "epoch_start"; it is the record's key, `details` the value.
    """
    if kind != "epoch_start":
        raise InvalidUse(f"{kind!r} is not a kind of control batch", try_='use "epoch_start"')
    cdef bytearray made = bytearray(seal([(kind.encode(), details, b"", None, None)], codec=CODEC_NONE))
    made[3] = FLAG_CONTROL | FLAG_EPOCH_START
    return bytes(made)


def stamped(const uint8_t[::1] batch not None, *, flags=0, base_sequence=0, epoch=0, append_time_ms=0,
            const uint8_t[::1] shard_uuid not None) -> bytes:
    """A copy of a sealed batch with the leader's zone filled in, as `stamp` does in place."""
    cdef bytes copied = bytes(batch)
    if len(copied) < HEADER_BYTES:
        raise corrupt(FRAME_REASONS[BATCH_SHORT])
    stamp(<uint8_t*>PyBytes_AS_STRING(copied), flags, base_sequence, epoch, append_time_ms, shard_seed(shard_uuid))
    return copied


# ---- reading ---------------------------------------------------------------------------------------------


@cython.final
cdef class RecordContext:
    """What records share that is not in their batch: where they come from and how values are decoded.

    decode: bytes → value; None gives the bytes. decode_for: content type → such a function, asked for records that
    carry a `content-type` header. explain: text for what they raise, when str() will not do. uuid: when given, the
    leader's checksum is looked at as well.
    """

    def __init__(self, str stream not None, str shard not None, int ordinal=0, created_ms=0, decode=None, *,
                 decode_for=None, explain=None, str codec="", bytes uuid=b""):
        self.stream = stream
        self.shard = shard
        self.ordinal = ordinal
        self.created_ms = created_ms
        self.decode = decode
        self.decode_for = decode_for
        self.explain = explain
        self.codec = codec
        self.uuid = uuid
        self.seed = sk_crc32c(0, <const uint8_t*>PyBytes_AS_STRING(uuid), len(uuid))
        # The layout is drawn in model/sequence.py; the index and the arrival are added for each record.
        self.number_base = ((2 << 184) | (created_ms // 1000 & 0xFFFFFFFFF) << 148 | (<object>ordinal & 0xF) << 144
                            | (<object>ordinal & 0x7FFFFFFF) << 4 | 2)


cdef RecordContext NOWHERE = RecordContext("", "")


cdef int hold(object buffer, Py_buffer* source) except -1:
    # The bytes of `buffer`, exported by whoever owns them. Not by a memoryview: the garbage collector may clear one
    # that still has exports, and releasing our export would then crash (seen with CPython 3.11.7).
    cdef Py_buffer seen
    cdef Py_ssize_t skipped
    PyObject_GetBuffer(buffer, source, PyBUF_SIMPLE)
    if not isinstance(buffer, memoryview) or buffer.obj is None:
        return 0
    seen = source[0]
    PyObject_GetBuffer(buffer.obj, source, PyBUF_SIMPLE)
    skipped = <const uint8_t*>seen.buf - <const uint8_t*>source.buf
    if skipped < 0 or skipped + seen.len > source.len:
        PyBuffer_Release(source)
        source[0] = seen
        return 0
    source.buf = seen.buf
    source.len = seen.len
    PyBuffer_Release(&seen)
    return 0


@cython.no_gc_clear                      # a cleared Py_buffer would not be released to its exporter
@cython.final
cdef class Batch:
    """Records of one sealed batch, decoded when looked at.

    buffer: one whole batch (bytes behind it are ignored), kept and not copied; one that is writable is copied when
    its records lie in it uncompressed. first_sequence: earlier records of the batch are left out.
    Raises CorruptBatch here for a bad header, at the first record for a bad body.
    """

    def __cinit__(self, buffer not None, RecordContext context=None, first_sequence=0):
        cdef int answer
        SK_COUNT(live_counts[LIVE_BATCH], 1)
        hold(buffer, &self.source)
        self.raw = buffer
        self.context = NOWHERE if context is None else context
        answer = check_frame(<const uint8_t*>self.source.buf, self.source.len, &self.header)
        if (answer == BATCH_OK and self.context.uuid
                and header_crc(<const uint8_t*>self.source.buf, self.context.seed) != self.header.header_crc):
            answer = BATCH_HEADER_CRC
        if answer != BATCH_OK:
            raise corrupt(FRAME_REASONS[answer])
        self.last = self.header.record_count
        if first_sequence > self.header.base_sequence:
            self.first = min(first_sequence - self.header.base_sequence, self.header.record_count)

    def __dealloc__(self):
        PyBuffer_Release(&self.source)
        SK_COUNT(live_counts[LIVE_BATCH], -1)

    cdef int open(self) except -1:
        # Afterwards every record of the table lies within the body. Two threads may do the work twice; the first
        # to finish wins, because records already given out point into its body.
        cdef Py_buffer* source = &self.source
        cdef size_t size = self.header.batch_bytes
        cdef int codec = self.header.attributes & ATTRIBUTE_CODEC
        cdef const uint8_t* at = <const uint8_t*>source.buf
        cdef uint32_t crc
        cdef Py_ssize_t bad
        if self.body != NULL:
            return 0
        owner = self.raw
        if codec == CODEC_NONE and not source.readonly:
            owner = PyBytes_FromStringAndSize(<char*>source.buf, size)
            at = <const uint8_t*>PyBytes_AS_STRING(owner)
        with nogil:
            crc = body_crc(at, size)
        if crc != self.header.body_crc:
            raise corrupt(FRAME_REASONS[BATCH_BODY_CRC], base_sequence=self.header.base_sequence)
        at += HEADER_BYTES
        if codec != CODEC_NONE:
            owner = decompress(codec, memoryview(self.raw).cast("B")[HEADER_BYTES:size], self.header.raw_bytes)
            at = <const uint8_t*>PyBytes_AS_STRING(owner)
        with nogil:
            bad = check_table(at, self.header.raw_bytes, self.header.record_count, self.header.attributes)
        if bad != -1:
            raise corrupt("its record table is wrong" if bad < 0 else f"record {bad} does not fit",
                          base_sequence=self.header.base_sequence, record=bad)
        if self.body == NULL:
            self.body_owner = owner
            self.records = at + 4 * <size_t>self.header.record_count
            self.body = at
        return 0

    __class_getitem__ = classmethod(GenericAlias)

    cdef Record record_at(self, uint32_t index):
        # The batch is open and `index` below record_count, or below the number of entries once it is unwrapped.
        cdef Record made = Record.__new__(Record)
        cdef uint32_t start
        made.batch = self
        made.place = index
        if self.entries is not None:
            if self.entries.at[index].sub_sequence != STORED:
                made.entry = &self.entries.at[index]
            index = self.entries.at[index].outer
        start = u32_at(self.body + 4 * <size_t>index - 4) if index else 0
        made.index = index
        made.at = self.records + start
        made.size = u32_at(self.body + 4 * <size_t>index) - start
        return made

    def part(self, Py_ssize_t start, Py_ssize_t end) -> Batch:
        """Records start … end of those given out, as a batch that shares this one's memory."""
        cdef Py_ssize_t count = self.last - self.first
        cdef Batch made
        if not 0 <= start <= end <= count:
            raise IndexError(f"records {start} … {end} of {count}")
        made = self.sibling()
        made.entries = self.entries
        made.stored_last = self.stored_last
        made.first = <uint32_t>(self.first + start)
        made.last = <uint32_t>(self.first + end)
        return made

    cdef Batch sibling(self):
        # Another batch over the same memory.
        cdef Batch made
        self.open()
        made = Batch(self.raw, self.context)
        made.body_owner = self.body_owner
        made.records = self.records
        made.body = self.body
        return made

    def unwrap(self, hash_range=None) -> Batch:
        """The same records, with the user records inside aggregates (the KPL's, see aggregation.pxd) in their place.

        This batch itself when it holds no aggregate. User records share their aggregate's sequence, and have a
        `sub_sequence`; what only looks like an aggregate stays as it is. hash_range: half-open; user records whose
        hash key lies outside are left out; None keeps all.
        """
        cdef bytes low, high
        if hash_range is None:
            return self.unwrapped(NULL, NULL)
        low = hash_range[0].to_bytes(16, "big")
        high = (hash_range[1] - 1).to_bytes(16, "big")
        return self.unwrapped(<const uint8_t*>PyBytes_AS_STRING(low), <const uint8_t*>PyBytes_AS_STRING(high))

    cdef Batch unwrapped(self, const uint8_t* low, const uint8_t* high):
        cdef Batch made
        cdef Entries entries
        cdef Fields fields
        cdef uint32_t i
        cdef int answer = 0
        if self.entries is not None:
            return self
        self.open()
        with nogil:
            for i in range(self.first, self.last):
                locate_stored(self, i, &fields)
                if looks_aggregated(fields.value, fields.value_bytes):
                    answer = 1
                    break
        if answer == 0:
            return self
        entries = Entries.__new__(Entries)
        with nogil:
            answer = unwrap_into(entries, self, low, high)
        if answer < 0:
            raise MemoryError
        if answer == 0:
            return self
        made = self.sibling()
        made.entries = entries
        made.stored_last = self.last
        made.first = 0
        made.last = <uint32_t>entries.count
        return made

    def chosen(self, bytes routes not None, RecordContext context=None, int route=0) -> Batch:
        """Those records whose byte in `routes` (uint8[len(self)]) is `route`, in their order, over the same memory.

        A batch's place after its last chosen record is the end of this one, so that what was left out is passed over.
        context: how their values are decoded, when other than here. This batch itself when nothing would change.
        """
        cdef size_t i, count = self.last - self.first
        cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(routes)
        cdef UserRecordEntry* entry
        cdef Entries entries
        cdef Batch made
        cdef size_t wanted = 0
        if <size_t>len(routes) != count:
            raise ValueError(f"{len(routes)} bytes for {count} records")
        for i in range(count):
            wanted += at[i] == route
        if wanted == count and context is None:
            return self
        made = self.sibling()
        if context is not None:
            made.context = context
        if wanted == count:
            made.entries = self.entries
            made.stored_last = self.stored_last
            made.first = self.first
            made.last = self.last
            return made
        entries = Entries.__new__(Entries)
        for i in range(count):
            if at[i] != route:
                continue
            entry = entries.grown()
            if entry == NULL:
                raise MemoryError
            if self.entries is not None:
                entry[0] = self.entries.at[self.first + i]
            else:
                entry.outer = <uint32_t>(self.first + i)
                entry.sub_sequence = STORED
        made.entries = entries
        made.stored_last = <uint32_t>(self.position(self.last) - self.header.base_sequence)
        made.first = 0
        made.last = <uint32_t>entries.count
        return made

    cdef uint64_t position(self, size_t index) noexcept:
        # Sequence of the first record that is not finished when those before place `index` are.
        if self.entries is None:
            return self.header.base_sequence + index
        if index < self.entries.count:
            return self.header.base_sequence + self.entries.at[index].outer
        return self.header.base_sequence + self.stored_last

    def place(self, Py_ssize_t done) -> tuple:
        """(sequence, sub-sequence) of the first record that is not finished when `done` leading ones are.

        The sub-sequence is 0 for a record that is not in an aggregate. One past the last sequence when all are done.
        """
        if not 0 <= done <= <Py_ssize_t>(self.last - self.first):
            raise IndexError(f"{done} of {self.last - self.first} records")
        return self.place_at(self.first + done)

    cdef tuple place_at(self, size_t index):
        cdef uint32_t sub_sequence = 0
        if self.entries is not None and index < self.entries.count:
            sub_sequence = self.entries.at[index].sub_sequence
        return self.position(index), 0 if sub_sequence == STORED else sub_sequence

    def index_of(self, Record record not None) -> int:
        """Where a record of this batch stands in it; -1 for any other record."""
        cdef size_t i
        if self.entries is None:
            i = record.batch.header.base_sequence + record.index - self.header.base_sequence
            return <Py_ssize_t>(i - self.first) if record.entry == NULL and self.first <= i < self.last else -1
        i = record.place
        return <Py_ssize_t>(i - self.first) if record.batch.entries is self.entries and self.first <= i < self.last else -1

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self):
        cdef BatchIterator made = BatchIterator.__new__(BatchIterator)
        self.open()
        made.batch = self
        made.next_index = self.first
        return made

    def decoded(self):
        """Iterates over what `value` of each record is, without making more of the records. Raises DecodeFailed."""
        cdef BatchIterator made = self.__iter__()
        made.decoded = True
        return made

    def __getitem__(self, Py_ssize_t index):
        cdef Py_ssize_t count = self.last - self.first
        if index < 0:
            index += count
        if not 0 <= index < count:
            raise IndexError(f"record {index} of {count}")
        self.open()
        return self.record_at(<uint32_t>(self.first + index))

    def keys(self) -> list:
        """Partition keys, as text."""
        cdef Py_ssize_t i, count = self.last - self.first
        cdef Fields fields
        cdef const uint8_t* at
        cdef size_t skip = RECORD_HEADER_BYTES + (HASH_BYTES if self.header.attributes & ATTRIBUTE_HASHES else 0)
        cdef uint32_t start
        self.open()
        cdef list made = PyList_New(count)
        if self.entries is not None:
            for i in range(count):
                locate_entry(self, <uint32_t>(self.first + i), &fields)
                key = PyUnicode_DecodeUTF8(<char*>fields.key, fields.key_bytes, NULL)
                Py_INCREF(key)
                PyList_SET_ITEM(made, i, key)
            return made
        for i in range(count):
            start = u32_at(self.body + 4 * <size_t>(self.first + i) - 4) if self.first + i else 0
            at = self.records + start
            key = PyUnicode_DecodeUTF8(<char*>at + skip, u16_at(at), NULL)
            Py_INCREF(key)
            PyList_SET_ITEM(made, i, key)
        return made

    def values(self) -> list:
        """Payloads as bytes, without record objects."""
        cdef Py_ssize_t i, count = self.last - self.first
        cdef const uint8_t* at
        cdef size_t inner, fixed = RECORD_HEADER_BYTES + (HASH_BYTES if self.header.attributes & ATTRIBUTE_HASHES else 0)
        cdef uint32_t start, end
        cdef Fields fields
        self.open()
        cdef list made = PyList_New(count)
        if self.entries is not None:
            for i in range(count):
                locate_entry(self, <uint32_t>(self.first + i), &fields)
                value = PyBytes_FromStringAndSize(<char*>fields.value, fields.value_bytes)
                Py_INCREF(value)
                PyList_SET_ITEM(made, i, value)
            return made
        start = u32_at(self.body + 4 * <size_t>self.first - 4) if self.first else 0
        for i in range(count):
            end = u32_at(self.body + 4 * <size_t>(self.first + i))
            at = self.records + start
            inner = fixed + u16_at(at) + u16_at(at + 2)
            value = PyBytes_FromStringAndSize(<char*>at + inner, end - start - inner)
            Py_INCREF(value)
            PyList_SET_ITEM(made, i, value)
            start = end
        return made

    def to_arrow(self):
        """A pyarrow.RecordBatch: sequence int64, arrived and time timestamp[ms, UTC], key string, data binary.

        Copied out of the batch, so that it outlives it. Raises InvalidUse when pyarrow is missing.
        """
        from streamkit._core.arrow import arrow_columns      # needed by few, and it needs this module

        self.open()
        return arrow_columns(self)

    @property
    def base_sequence(self) -> int:
        """Sequence of the batch's first record, also when that one is left out."""
        return self.header.base_sequence

    @property
    def first_sequence(self) -> int:
        """Sequence of the first record given out."""
        return self.position(self.first)

    @property
    def end_sequence(self) -> int:
        """One past the last record given out; the aggregate's own sequence when the batch ends inside one."""
        return self.position(self.last)

    @property
    def append_time_ms(self) -> int:
        return self.header.append_time_ms

    @property
    def epoch(self) -> int:
        return self.header.epoch

    @property
    def stream(self) -> str:
        return self.context.stream

    @property
    def shard(self) -> str:
        return self.context.shard

    @property
    def is_control(self) -> bool:
        return bool(self.header.flags & FLAG_CONTROL)

    @property
    def is_closing(self) -> bool:
        """The last batch of a shard that was split or merged; what may follow it are marks of later leaders."""
        return bool(self.header.flags & FLAG_CLOSE)

    @property
    def batch_bytes(self) -> int:
        """Stored size, header included."""
        return self.header.batch_bytes

    @property
    def raw_bytes(self) -> int:
        """Size of the records before compression."""
        return self.header.raw_bytes

    def read_header(self) -> Header:
        return make_header(&self.header)


cdef int unwrap_into(Entries entries, Batch batch, const uint8_t* low, const uint8_t* high) noexcept nogil:
    # An entry for each record, and for each user record of an aggregate between low and high (inclusive; NULL: of any).
    # 1 when there was an aggregate, 0 when there was none, -1 when memory runs out.
    cdef Fields fields
    cdef UserRecordEntry* entry
    cdef Py_ssize_t answer
    cdef size_t before
    cdef uint32_t i
    cdef int found = 0
    for i in range(batch.first, batch.last):
        locate_stored(batch, i, &fields)
        before = entries.count
        answer = entries.append(fields.value, fields.value_bytes, i)
        if answer >= 0:
            found = 1
            if low != NULL:
                keep_between(entries, before, low, high)
            continue
        entry = entries.grown() if answer != NO_MEMORY else NULL
        if entry == NULL:
            return -1
        entry.outer = i
        entry.sub_sequence = STORED
    return found


cdef void keep_between(Entries entries, size_t before, const uint8_t* low, const uint8_t* high) noexcept nogil:
    # Entries from `before` on whose hash key lies outside go; the others keep their sub-sequence.
    cdef uint8_t hash_key[16]
    cdef size_t i, kept = before
    for i in range(before, entries.count):
        entry_hash_key(&entries.at[i], hash_key)
        if memcmp(hash_key, low, HASH_BYTES) >= 0 and memcmp(hash_key, high, HASH_BYTES) <= 0:
            if kept != i:
                entries.at[kept] = entries.at[i]
            kept += 1
    entries.count = kept


cdef bytes decompress(int codec, object packed, uint32_t raw_bytes):
    # raw_bytes is at most BODY_BYTES_MAX by now; what it claims is also held against what the bytes can hold.
    cdef bytes body
    try:
        if codec == CODEC_LZ4:
            if raw_bytes > 255 * <uint64_t>len(packed) + 64:
                raise corrupt("raw_bytes exceeds what lz4 can pack")
            body = lz4.block.decompress(packed, uncompressed_size=raw_bytes)
        else:
            module = load_zstandard()
            if module.frame_content_size(packed) not in (raw_bytes, -1):
                raise corrupt("raw_bytes differs from the zstd frame")
            body = module.ZstdDecompressor().decompress(packed, max_output_size=raw_bytes)
    except StreamkitError:
        raise
    except Exception as cause:                       # each codec has an error class of its own
        raise corrupt(f"{CODECS[codec]} cannot read its body") from cause
    if len(body) != raw_bytes:
        raise corrupt("raw_bytes differs from the body")
    return body


@cython.final
cdef class BatchIterator:
    def __iter__(self):
        return self

    def __next__(self):
        cdef uint32_t index = self.next_index
        if index >= self.batch.last:
            raise StopIteration
        self.next_index = index + 1
        record = self.batch.record_at(index)
        return decode_value(record) if self.decoded else record


@cython.final
@cython.freelist(1024)
cdef class Record:
    """One record as a reader sees it. Made by Batch; cheap to keep, but it keeps its whole batch in memory."""

    def __cinit__(self):
        SK_COUNT(live_counts[LIVE_RECORD], 1)

    def __dealloc__(self):
        SK_COUNT(live_counts[LIVE_RECORD], -1)

    __class_getitem__ = classmethod(GenericAlias)

    cdef size_t key_start(self) noexcept:
        return RECORD_HEADER_BYTES + (HASH_BYTES if self.batch.header.attributes & ATTRIBUTE_HASHES else 0)

    cdef size_t value_start(self) noexcept:
        return self.key_start() + u16_at(self.at) + u16_at(self.at + 2)

    @property
    def stream(self) -> str:
        return self.batch.context.stream

    @property
    def shard(self) -> str:
        return self.batch.context.shard

    @property
    def sequence(self) -> int:
        """Dense position in the shard."""
        return self.batch.header.base_sequence + self.index

    @property
    def sub_sequence(self):
        """Place within its aggregate, from 0; None for a record that is stored by itself."""
        return self.entry.sub_sequence if self.entry != NULL else None

    @property
    def end_place(self) -> tuple:
        """(sequence, sub-sequence) of the first record not finished once this one is, as Batch.place has it."""
        return self.batch.place_at(<size_t>self.place + 1)

    @property
    def sequence_number(self) -> str:
        """The 56-digit form, as in model/sequence.py."""
        cdef object index = self.batch.header.base_sequence + self.index + 1
        cdef object arrived_s = self.batch.header.append_time_ms // 1000 & 0xFFFFFFFFF
        return str(self.batch.context.number_base | index << 80 | arrived_s << 36)

    @property
    def key(self) -> str:
        if self.entry != NULL:
            return PyUnicode_DecodeUTF8(<char*>self.entry.key, self.entry.key_bytes, NULL)
        return PyUnicode_DecodeUTF8(<char*>self.at + self.key_start(), u16_at(self.at), NULL)

    @property
    def hash_key(self) -> bytes:
        """16 bytes: the explicit one, or MD5 of the key."""
        cdef uint8_t digest[16]
        if self.entry != NULL:
            entry_hash_key(self.entry, digest)
            return digest[:16]
        if self.batch.header.attributes & ATTRIBUTE_HASHES:
            return self.at[RECORD_HEADER_BYTES:RECORD_HEADER_BYTES + HASH_BYTES]
        md5(self.at + self.key_start(), u16_at(self.at), digest)
        return digest[:16]

    @property
    def headers(self):
        """Text to bytes; not to be changed."""
        cdef size_t size = u16_at(self.at + 2)
        cdef size_t start
        if size == 0:
            return NO_HEADERS
        start = self.key_start() + u16_at(self.at)
        try:
            return decode_headers(PyBytes_FromStringAndSize(<char*>self.at + start, size))
        except (msgspec.DecodeError, UnicodeDecodeError) as cause:
            raise self.decode_failed("headers", cause) from cause

    @property
    def arrived(self):
        """When the broker appended it: aware, UTC."""
        if self.batch.arrived is None:
            self.batch.arrived = utc(self.batch.header.append_time_ms, self)
        return self.batch.arrived

    @property
    def time(self):
        """Event time: the producer's, else `arrived`; aware, UTC."""
        cdef int32_t delta
        memcpy(&delta, self.at + 4, 4)
        return self.arrived if delta == DELTA_NONE else utc(self.batch.header.event_time_ms + <object>delta, self)

    @property
    def data(self) -> bytes:
        """The payload as it was put; a copy at each access."""
        cdef size_t start
        if self.entry != NULL:
            return PyBytes_FromStringAndSize(<char*>self.entry.data, self.entry.data_bytes)
        start = self.value_start()
        return PyBytes_FromStringAndSize(<char*>self.at + start, self.size - start)

    @property
    def value(self):
        """The payload decoded, at the first access. Raises DecodeFailed."""
        if not self.decoded:
            self.cached = decode_value(self)
            self.decoded = True
        return self.cached

    def json(self):
        """The payload read as JSON, whatever the codec. Raises DecodeFailed."""
        try:
            return decode_json(self.view())
        except (msgspec.DecodeError, UnicodeDecodeError) as cause:
            raise self.decode_failed("json", cause) from cause

    def view(self) -> memoryview:
        """The payload without a copy."""
        cdef const uint8_t* start = self.at + self.value_start() if self.entry == NULL else self.entry.data
        cdef Py_ssize_t size = self.at + self.size - start if self.entry == NULL else self.entry.data_bytes
        cdef Py_ssize_t position = start - self.batch.body
        if (self.batch.header.attributes & ATTRIBUTE_CODEC) == CODEC_NONE:
            position += HEADER_BYTES
        return memoryview(self.batch.body_owner).cast("B")[position:position + size]

    cdef object decode_failed(self, str codec, object cause):
        return DecodeFailed(
            f"record {self.sequence_number} of {self.stream or 'no stream'} {self.shard} cannot be decoded "
            f"as {codec}: {cause}",
            try_="look at record.data, or name another codec", codec=codec, stream=self.stream, shard=self.shard,
            sequence_number=self.sequence_number)

    def __repr__(self) -> str:
        sub_sequence = f", sub_sequence={self.sub_sequence}" if self.entry != NULL else ""
        return (f"Record(stream={self.stream!r}, shard={self.shard!r}, sequence={self.sequence}{sub_sequence}, "
                f"key={self.key!r})")


cdef object decode_value(Record record):
    cdef RecordContext context = record.batch.context
    decode = context.decode
    codec = context.codec or "its codec"
    if context.decode_for is not None and u16_at(record.at + 2):
        content_type = record.headers.get("content-type")
        if content_type is not None:
            codec = content_type.decode("utf-8", "replace")
            decode = context.decode_for(codec)
    if decode is None:
        return record.data
    try:
        return decode(record.data)
    except StreamkitError:
        raise
    except Exception as cause:                       # a codec is the user's code: whatever it raises is a failure to decode
        why = cause if context.explain is None else context.explain(cause)
        raise record.decode_failed(codec, why) from cause


cdef object utc(object ms, Record record):
    try:
        return EPOCH + datetime.timedelta(milliseconds=ms)
    except OverflowError as cause:
        raise record.decode_failed("time", cause) from cause
