"""The scanners behind entries.pyx: one pass over a JSON or CBOR body, bounded by its end and by a depth.

They note where each entry's Data, PartitionKey and ExplicitHashKey lie and where the other members do, and check
everything else that makes a body well formed: syntax, UTF-8, base64. Members come in any order, unknown ones are
skipped, null counts as absent, of duplicates the last one wins. Strings are copied only when they must be unescaped
or joined. An unpaired surrogate is refused: it is no text, and no two clients would hash it alike.
Source: docs of the Kinesis API, the body formats.
"""

from struct import unpack

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdlib cimport malloc
from libc.string cimport memcmp, memcpy, memset

from streamkit._core.buffers cimport is_utf8


cdef enum:
    DATA = 0
    KEY = 1
    HASH = 2
    RECORDS = 3
    OTHER = 4


cdef int fail(Body* body, const char* reason) noexcept nogil:
    body.reason = reason
    return -1


cdef inline int member_kind(const Text* name, bint entry, bint top) noexcept nogil:
    # entry: names of an entry have a meaning here; top: this is the outermost object.
    if entry:
        if name.size == 4 and memcmp(name.at, b"Data", 4) == 0:
            return DATA
        if name.size == 12 and memcmp(name.at, b"PartitionKey", 12) == 0:
            return KEY
        if name.size == 15 and memcmp(name.at, b"ExplicitHashKey", 15) == 0:
            return HASH
    elif top and name.size == 7 and memcmp(name.at, b"Records", 7) == 0:
        return RECORDS
    return OTHER


cdef inline Text* field(Entry* entry, int kind) noexcept nogil:
    return &entry.data if kind == DATA else &entry.key if kind == KEY else &entry.hash


cdef uint8_t* scratch(Body* body, size_t size) noexcept nogil:
    # Room for a string that is not longer than what it was made of, so that all of them fit.
    cdef uint8_t* taken
    if body.scratch == NULL:
        body.scratch = <uint8_t*>malloc(body.scratch_bytes + 1)
        if body.scratch == NULL:
            fail(body, b"out of memory")
            return NULL
    if size > body.scratch_bytes - body.scratch_used:
        fail(body, b"a string is longer than the body")
        return NULL
    taken = body.scratch + body.scratch_used
    body.scratch_used += size
    return taken


cdef Entry* next_entry(Body* body, Entry* spare) noexcept nogil:
    cdef Entry* entry = &body.entries[body.count] if body.count < ENTRIES_MAX else spare
    memset(entry, 0, sizeof(Entry))
    body.count += 1
    return entry


cdef int keep_member(Body* body, const Text* name, const uint8_t* start, const uint8_t* end) noexcept nogil:
    cdef Member* member
    if body.member_count == MEMBERS_MAX:
        return fail(body, b"too many members")
    member = &body.members[body.member_count]
    member.name = name[0]
    member.value.at = start
    member.value.size = <size_t>(end - start)
    body.member_count += 1
    return 0


# ---- JSON ------------------------------------------------------------------------------------------------


cdef inline int blanks(Body* body) noexcept nogil:
    # The next byte that is no blank, or -1 at the end.
    cdef const uint8_t* at = body.at
    while at < body.end and (at[0] == 0x20 or at[0] == 0x0A or at[0] == 0x0D or at[0] == 0x09):
        at += 1
    body.at = at
    return at[0] if at < body.end else -1


cdef inline int hex_digit(uint8_t c) noexcept nogil:
    if 0x30 <= c <= 0x39:
        return c - 0x30
    c |= 0x20
    return c - 0x61 + 10 if 0x61 <= c <= 0x66 else -1


cdef int hex_four(const uint8_t* at, const uint8_t* end) noexcept nogil:
    # The value of four hexadecimal digits, or -1.
    cdef int i, digit, value = 0
    if end - at < 4:
        return -1
    for i in range(4):
        digit = hex_digit(at[i])
        if digit < 0:
            return -1
        value = value << 4 | digit
    return value


cdef inline uint8_t escaped(uint8_t c) noexcept nogil:
    # What stands behind a backslash, except u; 0 when it is no escape.
    if c == 0x22 or c == 0x5C or c == 0x2F:
        return c
    if c == 0x6E:
        return 10
    if c == 0x74:
        return 9
    if c == 0x72:
        return 13
    if c == 0x62:
        return 8
    if c == 0x66:
        return 12
    return 0


cdef int unescape(Body* body, const uint8_t* at, const uint8_t* end, Text* text) noexcept nogil:
    # at..end is the inside of a string whose escapes json_string has checked, except for surrogates.
    cdef uint8_t* out = scratch(body, <size_t>(end - at))
    cdef int code, second
    if out == NULL:
        return -1
    text.at = out
    while at < end:
        if at[0] != 0x5C:
            out[0] = at[0]
            out += 1
            at += 1
            continue
        if at[1] != 0x75:
            out[0] = escaped(at[1])
            out += 1
            at += 2
            continue
        code = hex_four(at + 2, end)
        at += 6
        if 0xD800 <= code <= 0xDFFF:
            second = hex_four(at + 2, end) if end - at >= 6 and at[0] == 0x5C and at[1] == 0x75 else -1
            if code >= 0xDC00 or not 0xDC00 <= second <= 0xDFFF:
                return fail(body, b"an unpaired surrogate")
            at += 6
            code = 0x10000 + ((code - 0xD800) << 10) + (second - 0xDC00)
            out[0] = 0xF0 | code >> 18
            out[1] = 0x80 | (code >> 12 & 0x3F)
            out[2] = 0x80 | (code >> 6 & 0x3F)
            out[3] = 0x80 | (code & 0x3F)
            out += 4
        elif code >= 0x800:
            out[0] = 0xE0 | code >> 12
            out[1] = 0x80 | (code >> 6 & 0x3F)
            out[2] = 0x80 | (code & 0x3F)
            out += 3
        elif code >= 0x80:
            out[0] = 0xC0 | code >> 6
            out[1] = 0x80 | (code & 0x3F)
            out += 2
        else:
            out[0] = <uint8_t>code
            out += 1
    text.size = <size_t>(out - text.at)
    body.scratch_used = <size_t>(out - body.scratch)
    return 0


cdef int json_string(Body* body, Text* text) noexcept nogil:
    # At a quotation mark. text NULL: only checked.
    cdef const uint8_t* start = body.at + 1
    cdef const uint8_t* at = start
    cdef const uint8_t* end = body.end
    cdef bint escapes = False, high = False
    cdef Text unused
    while True:
        at = sk_plain_end(at, end)
        if at == end:
            return fail(body, b"a string does not end")
        if at[0] == 0x22:
            break
        if at[0] >= 0x80:
            high = True
            at += 1
        elif at[0] == 0x5C:
            escapes = True
            if end - at < 2:
                return fail(body, b"a string does not end")
            if at[1] == 0x75:
                if hex_four(at + 2, end) < 0:
                    return fail(body, b"an escape is wrong")
                at += 6
            elif escaped(at[1]):
                at += 2
            else:
                return fail(body, b"an escape is wrong")
        else:
            return fail(body, b"a control character in a string")
    if high and not is_utf8(start, <size_t>(at - start)):
        return fail(body, b"a string is not UTF-8")
    body.at = at + 1
    if escapes:
        return unescape(body, start, at, &unused if text == NULL else text)
    if text != NULL:
        text.at = start
        text.size = <size_t>(at - start)
    return 0


cdef int json_word(Body* body, const char* word, size_t size) noexcept nogil:
    if <size_t>(body.end - body.at) < size or memcmp(body.at, word, size):
        return fail(body, b"no value")
    body.at += size
    return 0


cdef const uint8_t* digits(const uint8_t* at, const uint8_t* end) noexcept nogil:
    while at < end and 0x30 <= at[0] <= 0x39:
        at += 1
    return at


cdef int json_number(Body* body) noexcept nogil:
    cdef const uint8_t* at = body.at
    cdef const uint8_t* end = body.end
    cdef const uint8_t* stop
    if at[0] == 0x2D:
        at += 1
    stop = digits(at, end)
    if stop == at or (at[0] == 0x30 and stop - at > 1):
        return fail(body, b"no number")
    at = stop
    if at < end and at[0] == 0x2E:
        stop = digits(at + 1, end)
        if stop == at + 1:
            return fail(body, b"no number")
        at = stop
    if at < end and at[0] | 0x20 == 0x65:
        at += 1
        if at < end and (at[0] == 0x2B or at[0] == 0x2D):
            at += 1
        stop = digits(at, end)
        if stop == at:
            return fail(body, b"no number")
        at = stop
    body.at = at
    return 0


cdef int json_skip(Body* body, int depth) noexcept nogil:
    # One value of any kind, with blanks before it.
    cdef int c = blanks(body), close
    if c == 0x22:
        return json_string(body, NULL)
    if c == 0x7B or c == 0x5B:
        if depth >= DEPTH_MAX:
            return fail(body, b"values lie too deep within each other")
        close = c + 2
        body.at += 1
        if blanks(body) == close:
            body.at += 1
            return 0
        while True:
            if c == 0x7B and json_name(body, NULL):
                return -1
            if json_skip(body, depth + 1):
                return -1
            if blanks(body) == close:
                body.at += 1
                return 0
            if json_comma(body):
                return -1
    if c == 0x6E:
        return json_word(body, b"null", 4)
    if c == 0x74:
        return json_word(body, b"true", 4)
    if c == 0x66:
        return json_word(body, b"false", 5)
    if c == 0x2D or 0x30 <= c <= 0x39:
        return json_number(body)
    return fail(body, b"no value")


cdef inline int json_comma(Body* body) noexcept nogil:
    if blanks(body) != 0x2C:
        return fail(body, b"a comma is missing")
    body.at += 1
    return 0


cdef int json_name(Body* body, Text* name) noexcept nogil:
    # A member's name and the colon behind it.
    if blanks(body) != 0x22:
        return fail(body, b"a member has no name")
    if json_string(body, name):
        return -1
    if blanks(body) != 0x3A:
        return fail(body, b"a colon is missing")
    body.at += 1
    return 0


cdef int json_field(Body* body, Entry* entry, int kind) noexcept nogil:
    cdef int c = blanks(body)
    cdef Text* text = field(entry, kind)
    cdef Py_ssize_t size
    text.at = NULL
    text.size = 0
    if c == 0x6E:
        return json_word(body, b"null", 4)
    if c != 0x22:
        return fail(body, b"a member of an entry is no string")
    if json_string(body, text):
        return -1
    if kind == DATA:
        size = sk_base64_check(text.at, text.size)
        if size < 0:
            return fail(body, b"Data is not base64")
        entry.data_bytes = <size_t>size
    return 0


cdef int json_object(Body* body, Entry* entry, bint top) noexcept nogil:
    # At a brace. entry: where its fields go, or NULL; top: other members are kept, Records is read.
    cdef Text name
    cdef const uint8_t* start
    cdef int kind
    body.at += 1
    if blanks(body) == 0x7D:
        body.at += 1
        return 0
    while True:
        if json_name(body, &name):
            return -1
        kind = member_kind(&name, entry != NULL, top)
        if kind < RECORDS:
            if json_field(body, entry, kind):
                return -1
        elif kind == RECORDS:
            if json_records(body):
                return -1
        else:
            blanks(body)
            start = body.at
            if json_skip(body, 1 if top else 3):
                return -1
            if top and keep_member(body, &name, start, body.at):
                return -1
        if blanks(body) == 0x7D:
            body.at += 1
            return 0
        if json_comma(body):
            return -1


cdef int json_records(Body* body) noexcept nogil:
    cdef Entry spare
    cdef Entry* entry
    cdef int c = blanks(body)
    body.count = 0
    body.has_records = False
    if c == 0x6E:
        return json_word(body, b"null", 4)
    if c != 0x5B:
        return fail(body, b"Records is no list")
    body.has_records = True
    body.at += 1
    if blanks(body) == 0x5D:
        body.at += 1
        return 0
    while True:
        entry = next_entry(body, &spare)
        c = blanks(body)
        if c == 0x7B:
            if json_object(body, entry, False):
                return -1
        elif c == 0x6E:
            if json_word(body, b"null", 4):
                return -1
        else:
            return fail(body, b"an entry is no structure")
        if blanks(body) == 0x5D:
            body.at += 1
            return 0
        if json_comma(body):
            return -1


cdef int scan_json(Body* body) noexcept nogil:
    cdef Entry* entry = NULL
    if blanks(body) != 0x7B:
        return fail(body, b"the body is no structure")
    if body.single:
        entry = next_entry(body, NULL)
    if json_object(body, entry, True):
        return -1
    if blanks(body) != -1:
        return fail(body, b"something follows the body")
    if body.single:
        body.has_records = entry.data.at != NULL
    return 0


# ---- CBOR (RFC 8949) -------------------------------------------------------------------------------------


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
