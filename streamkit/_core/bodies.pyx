"""The JSON scanner behind entries.pyx: one pass over a body, bounded by its end and by a depth.

It notes where each entry's Data, PartitionKey and ExplicitHashKey lie and where the other members do, and checks
everything else that makes a body well formed: syntax, UTF-8, base64. Members come in any order, unknown ones are
skipped, null counts as absent, of duplicates the last one wins. Strings are copied only when they must be unescaped
or joined. An unpaired surrogate is refused: it is no text, and no two clients would hash it alike.
Its twin for CBOR is cbor.pyx. Source: RFC 8259.
"""

from libc.string cimport memcmp

from streamkit._core.buffers cimport is_utf8


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
