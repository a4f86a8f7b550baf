"""The KPL's aggregated records: one stored record that holds many user records, read and written.

The format is drawn in the `.pxd`. Reading makes one C entry a user record, which points into the bytes it was read
from; Python objects are made for what is looked at. Every read is bounded by the message's end. Serves `batch` (for
consumers) and producers. Read `Entries.append` first.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from streamkit._core.buffers cimport Reader, is_utf8, reader, take
from streamkit._core.hashing cimport md5

from streamkit.errors import InvalidUse

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #define SK_NO_INDEX 0xFFFFFFFFu
    /* Decimal digits to 16 big-endian bytes; -1 for anything but a number below 2**128. */
    static inline int sk_decimal(const uint8_t* at, size_t size, uint8_t* out) {
        unsigned __int128 value = 0, limit = (unsigned __int128)-1;
        uint64_t high, low;
        if (size == 0) return -1;
        for (size_t i = 0; i < size; i++) {
            unsigned digit = (unsigned)at[i] - '0';
            if (digit > 9 || value > (limit - digit) / 10) return -1;
            value = value * 10 + digit;
        }
        high = __builtin_bswap64((uint64_t)(value >> 64));
        low = __builtin_bswap64((uint64_t)value);
        memcpy(out, &high, 8);
        memcpy(out + 8, &low, 8);
        return 0;
    }
    """
    const uint32_t NO_INDEX "SK_NO_INDEX"
    int decimal "sk_decimal"(const uint8_t* at, size_t size, uint8_t* out) noexcept nogil

cdef enum:
    WIRE_VARINT = 0
    WIRE_FIXED64 = 1
    WIRE_SPAN = 2
    WIRE_FIXED32 = 5
    SIZE_MAX_BYTES = 0x7FFFFFFF          # of an aggregate; sizes within it then fit 32 bits
    AGGREGATE_BYTES = 51200              # the KPL's default

MAGIC = b"\xF3\x89\x9A\xC2"
OUTER_KEY = "a"
BYTES_MAX = AGGREGATE_BYTES


# ---- protobuf, as much as this needs: 0 when read, -1 when it is malformed ---------------------------------


cdef inline int read_varint(Reader* r, uint64_t* value) noexcept nogil:
    cdef uint64_t found = 0
    cdef int shift = 0
    cdef uint8_t byte
    while r.at < r.end:
        byte = r.at[0]
        r.at += 1
        if shift == 63 and byte > 1:
            return -1
        found |= <uint64_t>(byte & 0x7F) << shift
        if byte < 0x80:
            value[0] = found
            return 0
        shift += 7
    return -1


cdef inline int read_span(Reader* r, Span* span) noexcept nogil:
    cdef uint64_t size
    if read_varint(r, &size) or size > SIZE_MAX_BYTES:
        return -1
    span.at = take(r, size)
    span.size = <uint32_t>size
    return -1 if span.at == NULL else 0


cdef inline int read_tag(Reader* r, uint32_t* number, int* wire) noexcept nogil:
    cdef uint64_t tag
    if read_varint(r, &tag) or tag >> 32 or tag < 8:
        return -1
    number[0] = <uint32_t>(tag >> 3)
    wire[0] = tag & 7
    return 0


cdef int skip_value(Reader* r, int wire) noexcept nogil:
    cdef uint64_t ignored
    cdef Span span
    if wire == WIRE_VARINT:
        return read_varint(r, &ignored)
    if wire == WIRE_SPAN:
        return read_span(r, &span)
    if wire == WIRE_FIXED64:
        return 0 if take(r, 8) != NULL else -1
    if wire == WIRE_FIXED32:
        return 0 if take(r, 4) != NULL else -1
    return -1                            # groups, and what protobuf does not define


cdef int read_label(Span message, Span* name, Span* value) noexcept nogil:
    # A Tag message; value.at is NULL when it has none.
    cdef Reader r = reader(message.at, message.size)
    cdef uint32_t number
    cdef int wire
    name.at = value.at = NULL
    while r.at < r.end:
        if read_tag(&r, &number, &wire):
            return -1
        if number <= 2 and wire == WIRE_SPAN:
            if read_span(&r, name if number == 1 else value):
                return -1
        elif skip_value(&r, wire):
            return -1
    if name.at == NULL or not is_utf8(name.at, name.size):
        return -1
    return 0 if value.at == NULL or is_utf8(value.at, value.size) else -1


cdef int read_index(Reader* r, uint32_t* index) noexcept nogil:
    cdef uint64_t value
    if read_varint(r, &value) or value >= NO_INDEX:        # no table can be that long
        return -1
    index[0] = <uint32_t>value
    return 0


cdef int read_record(Span message, UserRecordEntry* into) noexcept nogil:
    # The indexes are left in key_bytes and hash_bytes until the tables are complete.
    cdef Reader r = reader(message.at, message.size)
    cdef Span span, name, value
    cdef uint32_t number
    cdef int wire
    into.key_bytes = into.hash_bytes = NO_INDEX
    while r.at < r.end:
        if read_tag(&r, &number, &wire):
            return -1
        if number == 1 and wire == WIRE_VARINT:
            if read_index(&r, &into.key_bytes):
                return -1
        elif number == 2 and wire == WIRE_VARINT:
            if read_index(&r, &into.hash_bytes):
                return -1
        elif number == 3 and wire == WIRE_SPAN:
            if read_span(&r, &span):
                return -1
            into.data = span.at
            into.data_bytes = span.size
        elif number == 4 and wire == WIRE_SPAN:
            if read_span(&r, &span) or read_label(span, &name, &value):
                return -1
            into.message = message.at
            into.message_bytes = message.size
        elif skip_value(&r, wire):
            return -1
    return 0 if into.key_bytes != NO_INDEX and into.data != NULL else -1


cdef int remember(Spans* spans, Span span) noexcept nogil:
    cdef size_t capacity
    cdef void* moved
    if spans.count == spans.capacity:
        capacity = 2 * spans.capacity or 16
        moved = realloc(spans.at, capacity * sizeof(Span))
        if moved == NULL:
            return -1
        spans.at = <Span*>moved
        spans.capacity = capacity
    spans.at[spans.count] = span
    spans.count += 1
    return 0


# ---- reading -----------------------------------------------------------------------------------------------


@cython.final
cdef class Entries:
    """User records of aggregates, in order; a C array for `batch` and `UserRecords`."""

    def __dealloc__(self):
        free(self.at)
        free(self.keys.at)
        free(self.hashes.at)

    cdef UserRecordEntry* grown(self) noexcept nogil:
        cdef size_t capacity
        cdef void* moved
        if self.count == self.capacity:
            capacity = 2 * self.capacity or 64
            moved = realloc(self.at, capacity * sizeof(UserRecordEntry))
            if moved == NULL:
                return NULL
            self.at = <UserRecordEntry*>moved
            self.capacity = capacity
        memset(&self.at[self.count], 0, sizeof(UserRecordEntry))
        self.count += 1
        return &self.at[self.count - 1]

    cdef Py_ssize_t append(self, const uint8_t* at, size_t size, uint32_t outer) noexcept nogil:
        # How many user records the aggregate holds; NOT_AN_AGGREGATE or NO_MEMORY, and then nothing was appended.
        cdef uint8_t digest[16]
        cdef size_t before = self.count
        cdef Py_ssize_t answer
        if not looks_aggregated(at, size) or size > SIZE_MAX_BYTES:
            return NOT_AN_AGGREGATE
        md5(at + MAGIC_BYTES, size - ENVELOPE_BYTES, digest)
        if memcmp(digest, at + size - DIGEST_BYTES, DIGEST_BYTES):
            return NOT_AN_AGGREGATE
        answer = read_message(self, at + MAGIC_BYTES, size - ENVELOPE_BYTES)
        if answer == 0:
            answer = resolve(self, before, outer)
        if answer < 0:
            self.count = before
            return answer
        return <Py_ssize_t>(self.count - before)


cdef Py_ssize_t read_message(Entries entries, const uint8_t* at, size_t size) noexcept nogil:
    cdef Reader r = reader(at, size)
    cdef UserRecordEntry* entry
    cdef uint8_t number_bytes[16]
    cdef Span span
    cdef uint32_t number
    cdef int wire
    entries.keys.count = entries.hashes.count = 0
    while r.at < r.end:
        if read_tag(&r, &number, &wire):
            return NOT_AN_AGGREGATE
        if number > 3 or wire != WIRE_SPAN:
            if skip_value(&r, wire):
                return NOT_AN_AGGREGATE
            continue
        if read_span(&r, &span):
            return NOT_AN_AGGREGATE
        if number == 3:
            entry = entries.grown()
            if entry == NULL:
                return NO_MEMORY
            if read_record(span, entry):
                return NOT_AN_AGGREGATE
        elif number == 2:
            if decimal(span.at, span.size, number_bytes):
                return NOT_AN_AGGREGATE
            if remember(&entries.hashes, span):
                return NO_MEMORY
        else:
            if not is_utf8(span.at, span.size):
                return NOT_AN_AGGREGATE
            if remember(&entries.keys, span):
                return NO_MEMORY
    return 0


cdef Py_ssize_t resolve(Entries entries, size_t before, uint32_t outer) noexcept nogil:
    # Indexes become pointers, now that both tables are whole.
    cdef UserRecordEntry* entry
    cdef Span* span
    cdef size_t i
    for i in range(before, entries.count):
        entry = &entries.at[i]
        if entry.key_bytes >= entries.keys.count:
            return NOT_AN_AGGREGATE
        span = &entries.keys.at[entry.key_bytes]
        entry.key = span.at
        entry.key_bytes = span.size
        if entry.hash_bytes == NO_INDEX:
            entry.hash_bytes = 0
        else:
            if entry.hash_bytes >= entries.hashes.count:
                return NOT_AN_AGGREGATE
            span = &entries.hashes.at[entry.hash_bytes]
            entry.hash_text = span.at
            entry.hash_bytes = span.size
        entry.outer = outer
        entry.sub_sequence = <uint32_t>(i - before)
    return 0


cdef void entry_hash_key(const UserRecordEntry* entry, uint8_t* out) noexcept nogil:
    if entry.hash_text != NULL:
        decimal(entry.hash_text, entry.hash_bytes, out)
    else:
        md5(entry.key, entry.key_bytes, out)


def is_aggregate(data not None) -> bool:
    """Whether these bytes are a whole aggregate: magic, digest, and a message that can be read to its end."""
    return split(data) is not None


def split(data not None):
    """The user records inside an aggregate, in order, as UserRecords; None when the bytes are not an aggregate.

    data: a record's whole payload; anything but bytes is copied once. An aggregate of nothing gives an empty sequence.
    """
    cdef bytes owner
    cdef const uint8_t[::1] view
    cdef Entries entries
    cdef Py_ssize_t answer
    cdef const uint8_t* at
    if not isinstance(data, bytes):
        view = data
        if not looks_aggregated(&view[0] if view.shape[0] else NULL, view.shape[0]):
            return None
    owner = bytes(data)
    at = <const uint8_t*>PyBytes_AS_STRING(owner)
    if not looks_aggregated(at, len(owner)):
        return None
    entries = Entries.__new__(Entries)
    cdef size_t size = len(owner)
    with nogil:
        answer = entries.append(at, size, 0)
    if answer == NO_MEMORY:
        raise MemoryError
    if answer == NOT_AN_AGGREGATE:
        return None
    cdef UserRecords made = UserRecords.__new__(UserRecords)
    made.owner = owner
    made.entries = entries
    return made


@cython.final
cdef class UserRecords:
    """The user records of one aggregate: a sequence that makes its items when they are asked for."""

    cdef bytes owner
    cdef Entries entries

    def __len__(self) -> int:
        return <Py_ssize_t>self.entries.count

    def __getitem__(self, Py_ssize_t index):
        cdef Py_ssize_t count = <Py_ssize_t>self.entries.count
        cdef UserRecord made
        if index < 0:
            index += count
        if not 0 <= index < count:
            raise IndexError(f"user record {index} of {count}")
        made = UserRecord.__new__(UserRecord)
        made.of = self
        made.entry = &self.entries.at[index]
        return made

    def keys(self) -> list:
        """Partition keys, as text."""
        cdef size_t i
        return [text(self.entries.at[i].key, self.entries.at[i].key_bytes) for i in range(self.entries.count)]

    def values(self) -> list:
        """Payloads, without record objects."""
        cdef size_t i
        return [
            PyBytes_FromStringAndSize(<char*>self.entries.at[i].data, self.entries.at[i].data_bytes)
            for i in range(self.entries.count)
        ]


@cython.final
@cython.freelist(1024)
cdef class UserRecord:
    """One user record; it keeps its whole aggregate in memory."""

    cdef UserRecords of                  # keeps `entry` and what it points to alive
    cdef const UserRecordEntry* entry

    @property
    def partition_key(self) -> str:
        return text(self.entry.key, self.entry.key_bytes)

    @property
    def explicit_hash_key(self):
        """0 … 2**128 - 1; None when the writer gave none."""
        cdef uint8_t number[16]
        if self.entry.hash_text == NULL:
            return None
        entry_hash_key(self.entry, number)
        return int.from_bytes(number[:16], "big")

    @property
    def hash_key(self) -> bytes:
        """16 bytes: the explicit one, or MD5 of the partition key."""
        cdef uint8_t number[16]
        entry_hash_key(self.entry, number)
        return number[:16]

    @property
    def data(self) -> bytes:
        return PyBytes_FromStringAndSize(<char*>self.entry.data, self.entry.data_bytes)

    @property
    def sub_sequence(self) -> int:
        """Place within the aggregate, from 0."""
        return self.entry.sub_sequence

    @property
    def tags(self) -> tuple:
        """(key, value or None) pairs; known writers write none."""
        if self.entry.message == NULL:
            return ()
        return tuple(read_labels(self.entry))

    def __repr__(self) -> str:
        return f"UserRecord(partition_key={self.partition_key!r}, sub_sequence={self.sub_sequence})"


cdef str text(const uint8_t* at, uint32_t size):
    return PyUnicode_DecodeUTF8(<char*>at, size, NULL)


cdef list read_labels(const UserRecordEntry* entry):
    # The message was checked when the aggregate was read: nothing here fails.
    cdef Reader r = reader(entry.message, entry.message_bytes)
    cdef Span span, name, value
    cdef uint32_t number
    cdef int wire
    cdef list found = []
    while r.at < r.end and read_tag(&r, &number, &wire) == 0:
        if number != 4 or wire != WIRE_SPAN:
            skip_value(&r, wire)
            continue
        if read_span(&r, &span) or read_label(span, &name, &value):
            break
        found.append((text(name.at, name.size), text(value.at, value.size) if value.at != NULL else None))
    return found


# ---- writing -----------------------------------------------------------------------------------------------


cdef struct Growing:
    uint8_t* at
    size_t size
    size_t capacity


cdef uint8_t* room_for(Growing* buffer, size_t more) except NULL:
    # `more` unwritten bytes behind what was written; they count as written.
    cdef size_t capacity = buffer.capacity or 256
    cdef void* moved
    while capacity < buffer.size + more:
        capacity *= 2
    if capacity != buffer.capacity:
        moved = realloc(buffer.at, capacity)
        if moved == NULL:
            raise MemoryError
        buffer.at = <uint8_t*>moved
        buffer.capacity = capacity
    buffer.size += more
    return buffer.at + buffer.size - more


cdef inline size_t varint_bytes(uint64_t value) noexcept nogil:
    cdef size_t count = 1
    while value >= 0x80:
        value >>= 7
        count += 1
    return count


cdef inline uint8_t* write_varint(uint8_t* at, uint64_t value) noexcept nogil:
    while value >= 0x80:
        at[0] = <uint8_t>(value & 0x7F | 0x80)
        at += 1
        value >>= 7
    at[0] = <uint8_t>value
    return at + 1


cdef inline size_t span_bytes(size_t size) noexcept nogil:
    return 1 + varint_bytes(size) + size


cdef inline uint8_t* write_span(uint8_t* at, uint8_t number, const char* bytes_, size_t size) noexcept nogil:
    at[0] = number << 3 | WIRE_SPAN
    at = write_varint(at + 1, size)
    if size:
        memcpy(at, bytes_, size)
    return at + size


@cython.final
cdef class Aggregator:
    """Gathers user records into one aggregate, as the KPL does. One thread at a time.

    bytes_max: the aggregate's size; a record that would pass it is refused. hash_range: half-open pair of the shard
    that all records must belong to, by the writer's shard map; None leaves that to the caller. Whoever writes puts
    `bytes()` with `partition_key` and `explicit_hash_key` of this object, so that it lands where its first record
    belongs, and watches where it landed: after a split, records of another shard are to be sent again.

        aggregate = Aggregator()
        for key, data in records:
            if not aggregate.add(key, data):
                send(aggregate.partition_key, aggregate.bytes(), aggregate.explicit_hash_key)
                aggregate.clear()
                aggregate.add(key, data)

    A single record is not wrapped: `bytes()` is its data and `partition_key` its own key. The first record is
    therefore taken at any size.
    """

    cdef readonly Py_ssize_t bytes_max
    cdef readonly Py_ssize_t count       # user records
    cdef object range_start              # None: every hash key belongs here
    cdef object range_end
    cdef dict key_index                  # UTF-8 → place in the table
    cdef dict hash_index                 # decimal digits → place in the table
    cdef Growing keys                    # the tables' fields and the records', written as they come
    cdef Growing hashes
    cdef Growing records
    cdef bytes first_key                 # UTF-8
    cdef bytes first_data
    cdef object first_hash               # explicit hash key or None

    def __cinit__(self, Py_ssize_t bytes_max=BYTES_MAX, hash_range=None):
        if not ENVELOPE_BYTES < bytes_max <= SIZE_MAX_BYTES:
            raise InvalidUse(f"bytes_max must be 21 … {SIZE_MAX_BYTES}, got {bytes_max}",
                             try_=f"pass {BYTES_MAX}", argument="bytes_max")
        self.bytes_max = bytes_max
        self.range_start, self.range_end = hash_range if hash_range is not None else (None, None)
        self.clear()

    def __dealloc__(self):
        free(self.keys.at)
        free(self.hashes.at)
        free(self.records.at)

    def clear(self):
        """Begin the next aggregate."""
        self.count = 0
        self.keys.size = self.hashes.size = self.records.size = 0
        self.key_index = {}
        self.hash_index = {}
        self.first_key = self.first_data = b""
        self.first_hash = None

    def __len__(self) -> int:
        return self.count

    def add(self, str key not None, data not None, explicit_hash_key=None) -> bool:
        """True when the record was taken; False, and nothing changed, when the aggregate has no room for it.

        data: bytes-like, copied. explicit_hash_key: 0 … 2**128 - 1. Raises InvalidUse for a hash key that is none or
        lies outside hash_range, and for a key that is not text.
        """
        cdef const uint8_t[::1] view = data
        cdef const char* payload = <const char*>&view[0] if view.shape[0] else NULL
        cdef size_t payload_bytes = view.shape[0]
        cdef bytes name = utf8(key)
        cdef bytes digits = None
        cdef size_t record_bytes, more, place, hash_place = 0
        cdef uint8_t* at
        if explicit_hash_key is not None:
            if not isinstance(explicit_hash_key, int) or not 0 <= explicit_hash_key < 1 << 128:
                raise InvalidUse(f"an explicit hash key is a number, 0 … 2**128 - 1; got {explicit_hash_key!r}",
                                 try_="pass None to hash the partition key", argument="explicit_hash_key")
            digits = str(explicit_hash_key).encode()
        if self.range_start is not None:
            self.check_range(name, explicit_hash_key)
        if payload_bytes > SIZE_MAX_BYTES or len(name) > SIZE_MAX_BYTES:
            raise InvalidUse("a user record has at most 2 GiB", try_="split it", argument="data")
        place = self.key_index.get(name, self.count_of(self.key_index))
        record_bytes = 1 + varint_bytes(place) + span_bytes(payload_bytes)
        more = 0 if name in self.key_index else span_bytes(len(name))
        if digits is not None:
            hash_place = self.hash_index.get(digits, self.count_of(self.hash_index))
            record_bytes += 1 + varint_bytes(hash_place)
            more += 0 if digits in self.hash_index else span_bytes(len(digits))
        more += span_bytes(record_bytes)
        if self.count and self.wrapped_bytes() + more > <size_t>self.bytes_max:
            return False
        if name not in self.key_index:
            write_span(room_for(&self.keys, span_bytes(len(name))), 1, PyBytes_AS_STRING(name), len(name))
            self.key_index[name] = place
        if digits is not None and digits not in self.hash_index:
            write_span(room_for(&self.hashes, span_bytes(len(digits))), 2, PyBytes_AS_STRING(digits), len(digits))
            self.hash_index[digits] = hash_place
        at = room_for(&self.records, span_bytes(record_bytes))
        at[0] = 3 << 3 | WIRE_SPAN
        at = write_varint(at + 1, record_bytes)
        at[0] = 1 << 3
        at = write_varint(at + 1, place)
        if digits is not None:
            at[0] = 2 << 3
            at = write_varint(at + 1, hash_place)
        write_span(at, 3, payload, payload_bytes)
        if self.count == 0:
            self.first_key = name
            self.first_data = bytes(data)
            self.first_hash = explicit_hash_key
        self.count += 1
        return True

    cdef Py_ssize_t count_of(self, dict table) except -1:
        return len(table)

    cdef size_t wrapped_bytes(self) noexcept:
        return ENVELOPE_BYTES + self.keys.size + self.hashes.size + self.records.size

    cdef int check_range(self, bytes name, object explicit_hash_key) except -1:
        number = explicit_hash_key if explicit_hash_key is not None else hashed(name)
        if not self.range_start <= number < self.range_end:
            raise InvalidUse(
                f"hash key {number} is outside {self.range_start} … {self.range_end}: all records of one aggregate belong "
                f"to one shard", try_="keep an Aggregator for each shard", argument="explicit_hash_key")
        return 0

    @property
    def wraps(self) -> bool:
        """False for a single record, which is put as it is; unless its data would be taken for an aggregate."""
        return self.count > 1 or (self.count == 1 and is_aggregate(self.first_data))

    @property
    def size(self) -> int:
        """How long `bytes()` is; 0 when there is no record."""
        if self.count == 0:
            return 0
        return self.wrapped_bytes() if self.wraps else len(self.first_data)

    @property
    def partition_key(self) -> str:
        """Of the outer record. Raises InvalidUse when there is no record."""
        self.check_some()
        return OUTER_KEY if self.wraps else self.first_key.decode()

    @property
    def explicit_hash_key(self):
        """Of the outer record: the first record's hash key; None when a single record has none of its own."""
        self.check_some()
        if self.first_hash is not None or not self.wraps:
            return self.first_hash
        return hashed(self.first_key)

    def bytes(self) -> bytes:
        """What is to be put. The records stay until `clear`. Raises InvalidUse when there is none."""
        self.check_some()
        if not self.wraps:
            return self.first_data
        cdef size_t size = self.wrapped_bytes()
        cdef object made = PyBytes_FromStringAndSize(NULL, size)
        cdef uint8_t* start = <uint8_t*>PyBytes_AS_STRING(made)
        cdef uint8_t* at = start
        memcpy(at, AGGREGATE_MAGIC, MAGIC_BYTES)
        at += MAGIC_BYTES
        memcpy(at, self.keys.at, self.keys.size)
        at += self.keys.size
        if self.hashes.size:
            memcpy(at, self.hashes.at, self.hashes.size)
            at += self.hashes.size
        memcpy(at, self.records.at, self.records.size)
        at += self.records.size
        with nogil:
            md5(start + MAGIC_BYTES, size - ENVELOPE_BYTES, at)
        return made

    cdef int check_some(self) except -1:
        if self.count == 0:
            raise InvalidUse("the aggregate holds no record", try_="add one first")
        return 0


cdef bytes utf8(str key):
    try:
        return key.encode()
    except UnicodeEncodeError as cause:
        raise InvalidUse("a partition key is text that UTF-8 can hold", try_="leave lone surrogates out",
                         argument="key") from cause


cdef object hashed(bytes key):
    cdef uint8_t digest[16]
    md5(<const uint8_t*>PyBytes_AS_STRING(key), len(key), digest)
    return int.from_bytes(digest[:16], "big")
