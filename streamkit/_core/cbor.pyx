"""The CBOR scanner behind entries.pyx: what bodies.pyx does for JSON, for RFC 8949.

Definite and indefinite lengths, integers of any width, tags passed over (a time is an integer of milliseconds whatever
its tag says). Data is a byte string, the other fields of an entry are text or its UTF-8 bytes. `cbor_value` reads one
value of a scanned body as a Python object.
"""

from struct import unpack

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy, memset

from streamkit._core.bodies cimport (DATA, DEPTH_MAX, RECORDS, Body, Entry, Text, fail, field, keep_member, member_kind,
                                     next_entry, scratch)
from streamkit._core.buffers cimport is_utf8


cdef enum:
    UNSIGNED = 0
    NEGATIVE = 1
    BYTES = 2
    TEXT = 3
    LIST = 4
    MAP = 5
    TAG = 6
    SIMPLE = 7
    INDEFINITE = 31                  # of lengths; as a simple value it is the break
    BREAK = 0xFF
    NULL_VALUE = 22
    UNDEFINED = 23


cdef struct Head:
    int major
    int info                         # the low five bits
    uint64_t value


cdef int cbor_head(Body* body, Head* head) noexcept nogil:
    # The next item's head; a break is refused, because whoever expects one looks first.
    cdef int i, size
    if body.at == body.end:
        return fail(body, b"the body is cut short")
    head.major = body.at[0] >> 5
    head.info = body.at[0] & 31
    head.value = head.info
    body.at += 1
    if head.info < 24:
        return 0
    if head.info == INDEFINITE:
        if head.major < BYTES or head.major > MAP:
            return fail(body, b"no CBOR value")
        return 0
    if head.info > 27:
        return fail(body, b"no CBOR value")
    size = 1 << (head.info - 24)
    if body.end - body.at < size:
        return fail(body, b"the body is cut short")
    head.value = 0
    for i in range(size):
        head.value = head.value << 8 | body.at[i]
    body.at += size
    return 0


cdef int cbor_untagged(Body* body, Head* head) noexcept nogil:
    # The same behind any tags. A tag says how a value is meant; here the member says so.
    while True:
        if cbor_head(body, head):
            return -1
        if head.major != TAG:
            return 0


cdef inline int cbor_at_break(Body* body) noexcept nogil:
    # 1 and the break is consumed, 0 when something else comes, -1 at the end.
    if body.at == body.end:
        return fail(body, b"the body is cut short")
    if body.at[0] != BREAK:
        return 0
    body.at += 1
    return 1


cdef int cbor_chunk(Body* body, const Head* head, Text* text) noexcept nogil:
    if head.value > <uint64_t>(body.end - body.at):
        return fail(body, b"the body is cut short")
    text.at = body.at
    text.size = <size_t>head.value
    body.at += text.size
    if head.major == TEXT and not is_utf8(text.at, text.size):
        return fail(body, b"a string is not UTF-8")
    return 0


cdef int cbor_string(Body* body, const Head* head, Text* text) noexcept nogil:
    # head: of a byte or text string. text NULL: only checked.
    cdef Text chunk
    cdef Head next_head
    cdef uint8_t* out
    cdef int ends
    if text == NULL:
        text = &chunk
        out = NULL
    if head.info != INDEFINITE:
        return cbor_chunk(body, head, text)
    if text != &chunk:
        out = scratch(body, 0)
        if out == NULL:
            return -1
        text.at = out
        text.size = 0
    while True:
        ends = cbor_at_break(body)
        if ends:
            return 0 if ends == 1 else -1
        if cbor_head(body, &next_head):
            return -1
        if next_head.major != head.major or next_head.info == INDEFINITE:
            return fail(body, b"a string of wrong parts")
        if cbor_chunk(body, &next_head, &chunk):
            return -1
        if out != NULL and chunk.size:
            out = scratch(body, chunk.size)
            if out == NULL:
                return -1
            memcpy(out, chunk.at, chunk.size)
            text.size += chunk.size


cdef int cbor_skip(Body* body, int depth) noexcept nogil:
    cdef Head head
    cdef uint64_t left
    cdef int ends
    if cbor_untagged(body, &head):
        return -1
    if head.major == BYTES or head.major == TEXT:
        return cbor_string(body, &head, NULL)
    if head.major == SIMPLE:
        return fail(body, b"no CBOR value") if head.info == 24 and head.value < 32 else 0
    if head.major < BYTES:
        return 0
    if depth >= DEPTH_MAX:
        return fail(body, b"values lie too deep within each other")
    if head.info == INDEFINITE:
        while True:
            ends = cbor_at_break(body)
            if ends:
                return 0 if ends == 1 else -1
            if cbor_skip(body, depth + 1) or (head.major == MAP and cbor_skip(body, depth + 1)):
                return -1
    if head.value > <uint64_t>(body.end - body.at):
        return fail(body, b"the body is cut short")
    left = head.value * 2 if head.major == MAP else head.value
    while left:
        if cbor_skip(body, depth + 1):
            return -1
        left -= 1
    return 0


cdef inline bint is_null(const Head* head) noexcept nogil:
    return head.major == SIMPLE and (head.info == NULL_VALUE or head.info == UNDEFINED)


cdef int cbor_field(Body* body, Entry* entry, int kind) noexcept nogil:
    cdef Head head
    cdef Text* text = field(entry, kind)
    text.at = NULL
    text.size = 0
    if cbor_untagged(body, &head):
        return -1
    if is_null(&head):
        return 0
    if head.major != BYTES and (head.major != TEXT or kind == DATA):
        return fail(body, b"Data is no byte string" if kind == DATA else b"a member of an entry is no string")
    if cbor_string(body, &head, text):
        return -1
    if kind == DATA:
        entry.data_bytes = text.size
    elif not is_utf8(text.at, text.size):      # a byte string, or one of several parts
        return fail(body, b"a string is not UTF-8")
    return 0


cdef int cbor_object(Body* body, const Head* head, Entry* entry, bint top) noexcept nogil:
    # head: of a map. As json_object.
    cdef Head name_head
    cdef Text name
    cdef const uint8_t* start
    cdef uint64_t left = head.value
    cdef int kind, ends
    while True:
        if head.info == INDEFINITE:
            ends = cbor_at_break(body)
            if ends:
                return 0 if ends == 1 else -1
        else:
            if left == 0:
                return 0
            left -= 1
        if cbor_untagged(body, &name_head):
            return -1
        if name_head.major != TEXT:
            return fail(body, b"a member has no name")
        if cbor_string(body, &name_head, &name):
            return -1
        kind = member_kind(&name, entry != NULL, top)
        if kind < RECORDS:
            if cbor_field(body, entry, kind):
                return -1
        elif kind == RECORDS:
            if cbor_records(body):
                return -1
        else:
            start = body.at
            if cbor_skip(body, 1 if top else 3):
                return -1
            if top and keep_member(body, &name, start, body.at):
                return -1


cdef int cbor_records(Body* body) noexcept nogil:
    cdef Entry spare
    cdef Entry* entry
    cdef Head head, entry_head
    cdef uint64_t left
    cdef int ends
    body.count = 0
    body.has_records = False
    if cbor_untagged(body, &head):
        return -1
    if is_null(&head):
        return 0
    if head.major != LIST:
        return fail(body, b"Records is no list")
    body.has_records = True
    left = head.value
    while True:
        if head.info == INDEFINITE:
            ends = cbor_at_break(body)
            if ends:
                return 0 if ends == 1 else -1
        else:
            if left == 0:
                return 0
            left -= 1
        entry = next_entry(body, &spare)
        if cbor_untagged(body, &entry_head):
            return -1
        if entry_head.major == MAP:
            if cbor_object(body, &entry_head, entry, False):
                return -1
        elif not is_null(&entry_head):
            return fail(body, b"an entry is no structure")


cdef int scan_cbor(Body* body) noexcept nogil:
    cdef Entry* entry = NULL
    cdef Head head
    if cbor_untagged(body, &head):
        return -1
    if head.major != MAP:
        return fail(body, b"the body is no structure")
    if body.single:
        entry = next_entry(body, NULL)
    if cbor_object(body, &head, entry, True):
        return -1
    if body.at != body.end:
        return fail(body, b"something follows the body")
    if body.single:
        body.has_records = entry.data.at != NULL
    return 0


cdef object cbor_value(const uint8_t* at, size_t size):
    # Raises ValueError only for what the scan did not see.
    cdef Body body
    memset(&body, 0, sizeof(Body))
    body.at = at
    body.end = at + size
    return read_value(&body, 0)


cdef object read_value(Body* body, int depth):
    cdef Head head
    cdef object left
    if depth > DEPTH_MAX or cbor_untagged(body, &head):
        raise ValueError("no CBOR value")
    if head.major == UNSIGNED:
        return head.value
    if head.major == NEGATIVE:
        return -1 - <object>head.value
    if head.major == BYTES or head.major == TEXT:
        return read_string(body, &head)
    if head.major == SIMPLE:
        return read_simple(&head)
    made = []
    left = -1 if head.info == INDEFINITE else head.value * (2 if head.major == MAP else 1)
    while left:
        if left < 0 and body.at < body.end and body.at[0] == BREAK:
            body.at += 1
            break
        made.append(read_value(body, depth + 1))
        left -= left > 0
    if head.major == LIST:
        return made
    # A name that is itself a list or a map can not be one in Python; no member of this API has any.
    return {name if isinstance(name, (str, int, bytes, float)) else repr(name): value
            for name, value in zip(made[::2], made[1::2])}


cdef object read_string(Body* body, const Head* head):
    cdef Text text
    cdef Head part
    if head.info != INDEFINITE:
        if cbor_chunk(body, head, &text):
            raise ValueError("no CBOR value")
        if head.major == TEXT:
            return PyUnicode_DecodeUTF8(<const char*>text.at, text.size, NULL)
        return PyBytes_FromStringAndSize(<const char*>text.at, text.size)
    parts = []
    while body.at < body.end and body.at[0] != BREAK:
        if cbor_head(body, &part) or part.info == INDEFINITE:
            raise ValueError("no CBOR value")
        parts.append(read_string(body, &part))
    body.at += 1
    return ("" if head.major == TEXT else b"").join(parts)


cdef object read_simple(const Head* head):
    if head.info == 20 or head.info == 21:
        return head.info == 21
    if 25 <= head.info <= 27:
        size = 1 << (head.info - 24)
        return unpack({2: ">e", 4: ">f", 8: ">d"}[size], (<object>head.value).to_bytes(size, "big"))[0]
    return None
