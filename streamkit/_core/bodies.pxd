# The body of a PutRecord or PutRecords call taken apart where it lies: what entries.pyx works on, and what the two
# scanners, bodies.pyx and cbor.pyx, share.

from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport malloc
from libc.string cimport memcmp, memset

cdef extern from "text.h" nogil:
    const uint8_t* sk_plain_end(const uint8_t* at, const uint8_t* end)
    size_t sk_escaped_size(const uint8_t* at, size_t size)
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

cdef enum:
    DATA = 0
    KEY = 1
    HASH = 2
    RECORDS = 3
    OTHER = 4

cdef inline int fail(Body* body, const char* reason) noexcept nogil:
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

cdef inline uint8_t* scratch(Body* body, size_t size) noexcept nogil:
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

cdef inline Entry* next_entry(Body* body, Entry* spare) noexcept nogil:
    cdef Entry* entry = &body.entries[body.count] if body.count < ENTRIES_MAX else spare
    memset(entry, 0, sizeof(Entry))
    body.count += 1
    return entry

cdef inline int keep_member(Body* body, const Text* name, const uint8_t* start, const uint8_t* end) noexcept nogil:
    cdef Member* member
    if body.member_count == MEMBERS_MAX:
        return fail(body, b"too many members")
    member = &body.members[body.member_count]
    member.name = name[0]
    member.value.at = start
    member.value.size = <size_t>(end - start)
    body.member_count += 1
    return 0
