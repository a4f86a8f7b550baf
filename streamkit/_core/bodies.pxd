# The body of a PutRecord or PutRecords call taken apart where it lies: what entries.pyx works on.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "text.h" nogil:
    const uint8_t* sk_plain_end(const uint8_t* at, const uint8_t* end)
    size_t sk_escaped_bound(const uint8_t* at, size_t size)
    uint8_t* sk_escape(uint8_t* out, const uint8_t* at, size_t size)
    Py_ssize_t sk_base64_check(const uint8_t* at, size_t size)
    void sk_base64_decode(uint8_t* out, const uint8_t* at, size_t size)
    uint8_t* sk_base64_encode(uint8_t* out, const uint8_t* at, size_t size)
    ctypedef struct sk_number:
        uint8_t text[56]
    enum: SK_NUMBER_DIGITS
    void sk_number_of(sk_number* number, uint64_t index, uint64_t ordinal, uint64_t created_s, uint64_t arrived_s)
    void sk_number_next(sk_number* number)
    int sk_hash_number(const uint8_t* at, size_t size, uint8_t* out)

cdef enum:
    ENTRIES_MAX = 500                # entries that are kept; more are checked and counted
    MEMBERS_MAX = 256                # other members of the body that are kept; with more it is malformed
    DEPTH_MAX = 64                   # of values within values

cdef struct Text:
    const uint8_t* at                # in the body or in the scratch space; NULL when absent or null
    size_t size

cdef struct Entry:
    Text data                        # JSON: base64, already checked; CBOR: the bytes
    Text key                         # UTF-8, unescaped
    Text hash                        # the same
    size_t data_bytes                # decoded

cdef struct Member:
    Text name                        # UTF-8, unescaped
    Text value                       # as it lies in the body; its encoding was checked

cdef struct Body:
    const uint8_t* at                # next unread byte; whoever scans keeps the body alive
    const uint8_t* end
    Entry* entries                   # [ENTRIES_MAX], or [1] for a single record; the caller's
    Member* members                  # [MEMBERS_MAX]; the caller's
    size_t count                     # entries seen, which may be more than are kept
    size_t member_count
    bint single                      # the body itself is the one entry
    bint has_records
    uint8_t* scratch                 # unescaped or joined strings: never longer than the body; owned by the caller
    size_t scratch_used
    size_t scratch_bytes             # of the body: what is allocated when the first such string comes
    const char* reason               # what is wrong, after a scan that answered -1

cdef int scan_json(Body* body) noexcept nogil        # 0, or -1 and a reason
cdef int scan_cbor(Body* body) noexcept nogil
cdef object cbor_value(const uint8_t* at, size_t size)      # of a value that scan_cbor has passed
