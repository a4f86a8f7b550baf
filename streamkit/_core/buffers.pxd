# Bounded reads over borrowed bytes. Nothing here allocates or raises; every read is bounded by `end`, never by
# what a length field claims.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef struct Reader:
    const uint8_t* at          # next unread byte; whoever made the Reader keeps its owner alive
    const uint8_t* end         # one past the last readable byte

cdef inline Reader reader(const uint8_t* at, size_t size) noexcept nogil:
    cdef Reader made
    made.at = at
    made.end = at + size
    return made

cdef inline size_t unread(const Reader* r) noexcept nogil:
    return <size_t>(r.end - r.at)

cdef inline const uint8_t* take(Reader* r, size_t size) noexcept nogil:
    # The next `size` bytes, or NULL (and nothing is consumed) when there are fewer.
    cdef const uint8_t* taken = r.at
    if size > unread(r):
        return NULL
    r.at += size
    return taken

cdef inline int read_bytes(Reader* r, void* into, size_t size) noexcept nogil:
    # 0 when read, -1 when the bytes run out. Little-endian machines only, like the formats themselves.
    if size > unread(r):
        return -1
    memcpy(into, r.at, size)
    r.at += size
    return 0

cdef inline int read_u8(Reader* r, uint8_t* value) noexcept nogil:
    return read_bytes(r, value, 1)

cdef inline int read_u16(Reader* r, uint16_t* value) noexcept nogil:
    return read_bytes(r, value, 2)

cdef inline int read_u32(Reader* r, uint32_t* value) noexcept nogil:
    return read_bytes(r, value, 4)

cdef inline int read_u64(Reader* r, uint64_t* value) noexcept nogil:
    return read_bytes(r, value, 8)

cdef inline uint32_t u32_at(const uint8_t* at) noexcept nogil:
    # Unaligned; the caller has checked the bound.
    cdef uint32_t value
    memcpy(&value, at, 4)
    return value

cdef inline uint16_t u16_at(const uint8_t* at) noexcept nogil:
    cdef uint16_t value
    memcpy(&value, at, 2)
    return value

cdef inline bint is_utf8(const uint8_t* at, size_t size) noexcept nogil:
    # Well-formed UTF-8 as Python decodes it: no overlong forms, no surrogates, nothing above U+10FFFF.
    cdef const uint8_t* end = at + size
    cdef uint64_t word
    cdef uint8_t lead, low, high
    cdef int more
    while at < end:
        while end - at >= 8:
            memcpy(&word, at, 8)
            if word & <uint64_t>0x8080808080808080:
                break
            at += 8
        if at == end:
            break
        lead = at[0]
        at += 1
        if lead < 0x80:
            continue
        low = 0x80
        high = 0xBF
        if 0xC2 <= lead <= 0xDF:
            more = 1
        elif 0xE0 <= lead <= 0xEF:
            more = 2
            if lead == 0xE0:
                low = 0xA0
            elif lead == 0xED:
                high = 0x9F
        elif 0xF0 <= lead <= 0xF4:
            more = 3
            if lead == 0xF0:
                low = 0x90
            elif lead == 0xF4:
                high = 0x8F
        else:
            return False
        if end - at < more or not low <= at[0] <= high:
            return False
        at += 1
        while more > 1:
            if not 0x80 <= at[0] <= 0xBF:
                return False
            at += 1
            more -= 1
    return True
