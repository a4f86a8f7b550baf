# Keys of records: their bytes where they have one, and a hash key that is drawn where they have none.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport uint8_t, uint64_t

from streamkit._core.buffers cimport is_utf8

cdef extern from *:
    """
    static inline uint64_t sk_draw(uint64_t* state) {              /* splitmix64 */
        uint64_t z = (*state += 0x9E3779B97F4A7C15ull);
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
        return z ^ (z >> 31);
    }

    static inline void sk_hash_within(uint64_t low_high, uint64_t low_low, uint64_t high_high, uint64_t high_low,
                                      uint64_t* state, uint8_t* out) {
        typedef unsigned __int128 wide;
        wide low = (wide)low_high << 64 | low_low, span = ((wide)high_high << 64 | high_low) - low + 1;
        wide drawn = (wide)sk_draw(state) << 64;
        int i;
        drawn |= sk_draw(state);
        drawn = low + (span ? drawn % span : drawn);
        for (i = 15; i >= 0; i--, drawn >>= 8)
            out[i] = (uint8_t)drawn;
    }
    """
    uint64_t sk_draw(uint64_t* state) noexcept nogil
    # A hash key within a range, both ends inclusive; 16 bytes, big-endian.
    void sk_hash_within(uint64_t low_high, uint64_t low_low, uint64_t high_high, uint64_t high_low, uint64_t* state,
                        uint8_t* out) noexcept nogil


cdef inline const char* text_of(object key, Py_ssize_t* size) except NULL:
    # The key's UTF-8, which lives as long as the key; nothing for None.
    if isinstance(key, str):
        try:
            return PyUnicode_AsUTF8AndSize(key, size)
        except UnicodeEncodeError as cause:              # half a surrogate pair
            from streamkit._core.refusals import not_text
            raise not_text() from cause
    if key is None:
        size[0] = 0
        return b""
    if not isinstance(key, bytes):
        from streamkit._core.refusals import no_text
        raise no_text(key)
    size[0] = PyBytes_GET_SIZE(key)
    if not is_utf8(<const uint8_t*>PyBytes_AS_STRING(key), size[0]):
        from streamkit._core.refusals import not_text
        raise not_text()
    return PyBytes_AS_STRING(key)
