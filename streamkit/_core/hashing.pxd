# Partition key -> MD5 -> 128-bit hash key -> shard. Hash keys are 16 bytes, big-endian, as MD5 prints them.

from libc.stdint cimport int32_t, uint8_t, uint64_t
from libc.string cimport memcpy

cdef extern from "md5.h" nogil:
    void md5 "sk_md5"(const uint8_t* at, size_t size, uint8_t* out) noexcept nogil

cdef extern from * nogil:
    uint64_t big_endian "__builtin_bswap64"(uint64_t value) noexcept nogil

cdef struct HashRange:               # both ends inclusive, so that 2**128 - 1 fits
    uint64_t low_high                # most significant half of the lowest key
    uint64_t low_low
    uint64_t high_high
    uint64_t high_low
    int32_t index                    # the caller's number for it

cdef inline void split_hash(const uint8_t* hash_key, uint64_t* high, uint64_t* low) noexcept nogil:
    memcpy(high, hash_key, 8)
    memcpy(low, hash_key + 8, 8)
    high[0] = big_endian(high[0])
    low[0] = big_endian(low[0])

cdef inline int32_t find_shard(const HashRange* ranges, Py_ssize_t count, const uint8_t* hash_key) noexcept nogil:
    # `ranges` sorted and disjoint. The index of the range that holds the key, or -1.
    cdef uint64_t high, low
    cdef Py_ssize_t first = 0, last = count, middle
    split_hash(hash_key, &high, &low)
    while first < last:              # the last range that starts at or below the key
        middle = (first + last) >> 1
        if ranges[middle].low_high < high or (ranges[middle].low_high == high and ranges[middle].low_low <= low):
            first = middle + 1
        else:
            last = middle
    if first == 0:
        return -1
    first -= 1
    if ranges[first].high_high > high or (ranges[first].high_high == high and ranges[first].high_low >= low):
        return ranges[first].index
    return -1

cdef class ShardTable:
    cdef HashRange* ranges           # ours; freed with the table; never changes after __init__
    cdef readonly Py_ssize_t count
