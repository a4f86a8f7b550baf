"""Stored batches into an array of records, JSON or CBOR, and event-stream messages around it.

`encode_records` looks at each batch once to see how many of its records fit and how long they get, takes the memory
for all of them and then writes it with the GIL released: base64 and the 56-digit numbers straight from the batch.
Keys are UTF-8 in every sound batch (batch.pyx checks them). Serves the gateway's Kinesis face.
"""

import struct
from zlib import crc32

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from streamkit._core.batch cimport ATTRIBUTE_HASHES, FLAG_CONTROL, HASH_BYTES, RECORD_HEADER_BYTES, Batch
from streamkit._core.bodies cimport (SK_NUMBER_DIGITS, sk_base64_encode, sk_escape, sk_escaped_size, sk_number,
                                     sk_number_next, sk_number_of)
from streamkit._core.buffers cimport u16_at, u32_at

from streamkit.errors import InvalidUse

@cython.final
cdef class EncodedRecords:
    """What encode_records made. body: the array alone; count: its records; payload_bytes: their data and keys.

    next_sequence: one past the last record looked at, control batches included; the start when there was none.
    last_append_ms, last_sequence: of the last record in it; 0 and -1 when there is none.
    """

    def __init__(self):
        raise TypeError("encode_records makes them")

    def __repr__(self) -> str:
        return (f"EncodedRecords({self.count} records, {len(self.body)} bytes, next_sequence={self.next_sequence}, "
                f"last_sequence={self.last_sequence})")


def encode_records(batches not None, uint64_t first_sequence, *, Py_ssize_t count_max, size_t bytes_max,
                   int64_t ordinal, int64_t created_ms, bint cbor, bint kms) -> EncodedRecords:
    """Records from `first_sequence` on as one JSON or CBOR array.

    batches: each a buffer with one stored batch, oldest first; control batches and earlier records are left out.
    bytes_max: of data and keys; one record is encoded even when it alone is larger. ordinal, created_ms: the shard's.
    Raises CorruptBatch; then nothing is encoded.
    """
    cdef EncodedRecords made = EncodedRecords.__new__(EncodedRecords)
    cdef Batch batch
    cdef uint32_t last
    cdef size_t each, size = 0
    if count_max < 1:
        raise InvalidUse(f"count_max must be 1 or more, got {count_max}", try_="ask for at least one record")
    made.next_sequence = first_sequence
    made.last_sequence = -1
    portions = []
    for buffer in batches:
        batch = Batch(buffer, None, first_sequence)
        if batch.header.base_sequence + batch.header.record_count <= first_sequence:
            continue
        if not batch.header.flags & FLAG_CONTROL:
            if made.count == count_max:
                break
            batch.open()
            each = record_bytes(batch.header.append_time_ms, cbor, kms)
            last = choose(batch, made, count_max, bytes_max, each, cbor, &size)
            if last > batch.first:
                portions.append((batch, last))
                made.last_append_ms = batch.header.append_time_ms
                made.last_sequence = batch.header.base_sequence + last - 1
                made.next_sequence = made.last_sequence + 1
            if last < batch.header.record_count:
                break
        made.next_sequence = batch.header.base_sequence + batch.header.record_count
    made.body = write_array(portions, made.count, size, ordinal, created_ms // 1000, cbor, kms)
    return made


cdef uint32_t choose(Batch batch, EncodedRecords made, Py_ssize_t count_max, size_t bytes_max, size_t each, bint cbor,
                     size_t* size) except? 0:
    # One past the last record of an open batch that fits. Adds up how many there are and the bytes they will take.
    cdef uint32_t i, last = batch.header.record_count
    cdef size_t start, end, key_bytes, data_bytes, fixed
    cdef uint64_t payload = made.payload_bytes
    cdef Py_ssize_t count = made.count
    cdef size_t total = size[0]
    cdef const uint8_t* at
    fixed = RECORD_HEADER_BYTES + (HASH_BYTES if batch.header.attributes & ATTRIBUTE_HASHES else 0)
    with nogil:
        start = u32_at(batch.body + 4 * <size_t>batch.first - 4) if batch.first else 0
        for i in range(batch.first, batch.header.record_count):
            end = u32_at(batch.body + 4 * <size_t>i)
            at = batch.records + start
            key_bytes = u16_at(at)
            data_bytes = end - start - fixed - key_bytes - u16_at(at + 2)
            if count == count_max or (count and payload + key_bytes + data_bytes > bytes_max):
                last = i
                break
            count += 1
            payload += key_bytes + data_bytes
            total += each + data_size(data_bytes, cbor) + key_size(at + fixed, key_bytes, cbor)
            start = end
    made.count = count
    made.payload_bytes = payload
    size[0] = total
    return last


cdef bytes write_array(list portions, Py_ssize_t count, size_t size, uint64_t ordinal, uint64_t created_s, bint cbor,
                       bint kms):
    # size: of the records. The memory is exact: cutting it afterwards costs a copy, or fresh pages at every call.
    cdef size_t whole = size + (head_size(count) if cbor else 1 + (count == 0))
    cdef bytes made = PyBytes_FromStringAndSize(NULL, whole)
    cdef uint8_t* start = <uint8_t*>PyBytes_AS_STRING(made)
    cdef uint8_t* out = start
    cdef Batch batch
    cdef uint32_t last
    if cbor:
        out = cbor_head(out, 4, count)
    else:
        out[0] = 0x5B
        out += 1
    for batch, last in portions:
        with nogil:
            if cbor:
                out = write_cbor(out, batch, last, ordinal, created_s, kms)
            else:
                out = write_json(out, batch, last, ordinal, created_s, kms)
    if not cbor:
        out -= count != 0            # the last comma
        out[0] = 0x5D
        out += 1
    assert <size_t>(out - start) == whole, "records fill the memory counted for them"
    return made


# ---- sizes -----------------------------------------------------------------------------------------------


cdef inline size_t head_size(uint64_t value) noexcept nogil:
    # Of a CBOR head.
    return 1 if value < 24 else 2 if value < 256 else 3 if value < 65536 else 5 if value >> 32 == 0 else 9


cdef size_t record_bytes(uint64_t append_time_ms, bint cbor, bint kms) noexcept nogil:
    # What write_json and write_cbor repeat in every record of a batch.
    cdef uint8_t seconds[20]
    if cbor:
        return 1 + 17 + SK_NUMBER_DIGITS + 30 + head_size(append_time_ms) + 5 + (19 if kms else 0)
    return <size_t>(19 + SK_NUMBER_DIGITS + 32 + (decimal(seconds, append_time_ms // 1000, 1) - seconds) + 4 + 9
                    + (26 if kms else 3))


cdef inline size_t data_size(size_t size, bint cbor) noexcept nogil:
    return head_size(size) + size if cbor else (size + 2) // 3 * 4


cdef inline size_t key_size(const uint8_t* key, size_t size, bint cbor) noexcept nogil:
    if size == 0:
        return 0
    return 13 + head_size(size) + size if cbor else 18 + sk_escaped_size(key, size)


# ---- records ---------------------------------------------------------------------------------------------


cdef inline uint8_t* put(uint8_t* out, const char* text, size_t size) noexcept nogil:
    memcpy(out, text, size)
    return out + size


cdef uint8_t* decimal(uint8_t* out, uint64_t value, int digits) noexcept nogil:
    # At least `digits` of them, with zeros in front.
    cdef uint8_t reversed_digits[20]
    cdef int i = 0
    while value or i < digits:
        reversed_digits[i] = <uint8_t>(0x30 + value % 10)
        value //= 10
        i += 1
    while i:
        i -= 1
        out[0] = reversed_digits[i]
        out += 1
    return out


cdef uint8_t* write_json(uint8_t* out, Batch batch, uint32_t last, uint64_t ordinal, uint64_t created_s,
                         bint kms) noexcept nogil:
    cdef uint8_t middle[80]              # from the number to the data: the same for the whole batch
    cdef uint8_t* stop
    cdef sk_number number
    cdef uint64_t ms = batch.header.append_time_ms
    cdef size_t middle_size, start, end, key_bytes, inner, fixed
    cdef const uint8_t* at
    cdef uint32_t i
    stop = put(middle, b'","ApproximateArrivalTimestamp":', 32)
    stop = decimal(stop, ms // 1000, 1)
    stop[0] = 0x2E
    stop = decimal(stop + 1, ms % 1000, 3)
    middle_size = <size_t>(put(stop, b',"Data":"', 9) - middle)
    fixed = RECORD_HEADER_BYTES + (HASH_BYTES if batch.header.attributes & ATTRIBUTE_HASHES else 0)
    sk_number_of(&number, batch.header.base_sequence + batch.first + 1, ordinal, created_s, ms // 1000)
    start = u32_at(batch.body + 4 * <size_t>batch.first - 4) if batch.first else 0
    for i in range(batch.first, last):
        end = u32_at(batch.body + 4 * <size_t>i)
        at = batch.records + start
        key_bytes = u16_at(at)
        inner = fixed + key_bytes + u16_at(at + 2)
        out = put(out, b'{"SequenceNumber":"', 19)
        memcpy(out, number.text, SK_NUMBER_DIGITS)
        sk_number_next(&number)
        out = put(out + SK_NUMBER_DIGITS, <const char*>middle, middle_size)
        out = sk_base64_encode(out, at + inner, end - start - inner)
        if key_bytes:
            out = put(out, b'","PartitionKey":"', 18)
            out = sk_escape(out, at + fixed, key_bytes)
        out = put(out, b'","EncryptionType":"KMS"},', 26) if kms else put(out, b'"},', 3)
        start = end
    return out


cdef uint8_t* cbor_head(uint8_t* out, int major, uint64_t value) noexcept nogil:
    cdef int info, size
    if value < 24:
        out[0] = <uint8_t>(major << 5 | value)
        return out + 1
    info = 24 if value < 256 else 25 if value < 65536 else 26 if value >> 32 == 0 else 27
    out[0] = <uint8_t>(major << 5 | info)
    out += 1
    size = 1 << (info - 24)
    while size:
        size -= 1
        out[0] = <uint8_t>(value >> (8 * size))
        out += 1
    return out


cdef uint8_t* write_cbor(uint8_t* out, Batch batch, uint32_t last, uint64_t ordinal, uint64_t created_s,
                         bint kms) noexcept nogil:
    cdef uint8_t middle[80]
    cdef uint8_t* stop
    cdef sk_number number
    cdef uint64_t ms = batch.header.append_time_ms
    cdef size_t middle_size, start, end, key_bytes, inner, fixed
    cdef const uint8_t* at
    cdef uint32_t i
    stop = put(middle, b"\x78\x1bApproximateArrivalTimestamp\xc1", 30)
    stop = cbor_head(stop, 0, ms)
    middle_size = <size_t>(put(stop, b"\x64Data", 5) - middle)
    fixed = RECORD_HEADER_BYTES + (HASH_BYTES if batch.header.attributes & ATTRIBUTE_HASHES else 0)
    sk_number_of(&number, batch.header.base_sequence + batch.first + 1, ordinal, created_s, ms // 1000)
    start = u32_at(batch.body + 4 * <size_t>batch.first - 4) if batch.first else 0
    for i in range(batch.first, last):
        end = u32_at(batch.body + 4 * <size_t>i)
        at = batch.records + start
        key_bytes = u16_at(at)
        inner = fixed + key_bytes + u16_at(at + 2)
        out = cbor_head(out, 5, 3 + (key_bytes != 0) + kms)
        out = put(out, b"\x6eSequenceNumber\x78\x38", 17)
        memcpy(out, number.text, SK_NUMBER_DIGITS)
        sk_number_next(&number)
        out = put(out + SK_NUMBER_DIGITS, <const char*>middle, middle_size)
        out = cbor_head(out, 2, end - start - inner)
        out = put(out, <const char*>at + inner, end - start - inner)
        if key_bytes:
            out = put(out, b"\x6cPartitionKey", 13)
            out = cbor_head(out, 3, key_bytes)
            out = put(out, <const char*>at + fixed, key_bytes)
        if kms:
            out = put(out, b"\x6eEncryptionType\x63KMS", 19)
        start = end
    return out


# ---- event streams ---------------------------------------------------------------------------------------


def frame_event(headers not None, payload not None) -> bytes:
    """One event-stream message. headers: (name, value) texts, names of at most 255 bytes, values of at most 65535.

    total u32 · headers u32 · CRC-32 of both · headers · payload · CRC-32 of everything before; big-endian.
    A header: name length u8, name, type u8 = 7 (text), value length u16, value. The CRC is zlib's.
    """
    cdef Py_buffer source
    cdef bytes made, head
    cdef uint8_t* at
    cdef Py_ssize_t size
    packed = bytearray()
    for name, value in headers:
        name_bytes = name.encode()
        value_bytes = value.encode()
        if not 0 < len(name_bytes) < 256 or len(value_bytes) > 65535:
            raise InvalidUse("the header of an event is too long or has no name", try_="shorten it")
        packed += struct.pack(">B%dsBH" % len(name_bytes), len(name_bytes), name_bytes, 7, len(value_bytes))
        packed += value_bytes
    PyObject_GetBuffer(payload, &source, PyBUF_SIMPLE)
    try:
        size = 16 + len(packed) + source.len
        if size >> 32:
            raise InvalidUse("an event is at most 4 GiB long", try_="send it in parts")
        head = struct.pack(">II", size, len(packed))
        head = head + struct.pack(">I", crc32(head)) + packed
        made = PyBytes_FromStringAndSize(NULL, size)
        at = <uint8_t*>PyBytes_AS_STRING(made)
        memcpy(at, PyBytes_AS_STRING(head), PyBytes_GET_SIZE(head))
        memcpy(at + PyBytes_GET_SIZE(head), source.buf, source.len)
        head = struct.pack(">I", crc32(memoryview(made)[:size - 4]))
        memcpy(at + size - 4, PyBytes_AS_STRING(head), 4)
        return made
    finally:
        PyBuffer_Release(&source)
