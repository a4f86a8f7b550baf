"""A histogram of whole numbers (microseconds, bytes, records) with a relative error of at most 1/32.

Buckets are exact below 64; above, each power of two is cut in 32. Counting costs an increment, 15 KiB hold
every number up to 2^63. Used by metrics and benchmarks; read `bucket_of` first.
"""

from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

from streamkit.errors import InvalidUse

cdef enum:
    EXACT = 64                       # numbers below have a bucket of their own
    STEPS = 32                       # buckets in each power of two above
    BUCKETS = 64 + 57 * 32

cdef extern from * nogil:
    int leading_zeros "__builtin_clzll"(unsigned long long value) noexcept nogil


cdef inline int bucket_of(uint64_t value) noexcept nogil:
    cdef int shift
    if value < EXACT:
        return <int>value
    shift = 63 - leading_zeros(value) - 5            # leaves the top six bits: 32..63
    return EXACT + (shift - 1) * STEPS + <int>(value >> shift) - STEPS


cdef inline uint64_t bucket_end(int bucket) noexcept nogil:
    # One past the largest number that falls into it.
    cdef int shift
    if bucket < EXACT:
        return bucket + 1
    shift = (bucket - EXACT) // STEPS + 1
    return <uint64_t>(((bucket - EXACT) % STEPS) + STEPS + 1) << shift


cdef class Histogram:
    """Counts of numbers 0 … 2^63 - 1; larger and negative ones raise InvalidUse. Not locked: one thread records."""

    cdef uint64_t counts[BUCKETS]
    cdef readonly uint64_t count, total, min, max

    def __cinit__(self):
        memset(self.counts, 0, sizeof(self.counts))

    cpdef record(self, int64_t value, uint64_t times=1):
        """Count `value` `times` times."""
        if value < 0:
            raise InvalidUse(f"a histogram counts numbers from 0, got {value}", try_="clamp the number")
        if times == 0:
            return
        self.counts[bucket_of(value)] += times
        self.min = value if self.count == 0 or <uint64_t>value < self.min else self.min
        self.max = value if <uint64_t>value > self.max else self.max
        self.count += times
        self.total += <uint64_t>value * times

    def percentile(self, double percent) -> int:
        """The smallest number that at least `percent` of 100 do not exceed, within 1/32; 0 when empty."""
        cdef uint64_t seen = 0, rank
        cdef int i
        if not 0 <= percent <= 100:
            raise InvalidUse(f"a percentile is 0..100, got {percent}", try_="pass 99.9, not 0.999")
        if self.count == 0:
            return 0
        rank = <uint64_t>(self.count * percent / 100 + 0.999999)
        rank = rank if rank else 1
        for i in range(BUCKETS):
            seen += self.counts[i]
            if seen >= rank:
                return min(max(bucket_end(i) - 1, self.min), self.max)
        return self.max

    def count_below(self, uint64_t bound) -> int:
        """How many were below `bound`, counting only buckets that lie below it whole."""
        cdef uint64_t seen = 0
        cdef int i
        for i in range(BUCKETS):
            if bucket_end(i) > bound:
                break
            seen += self.counts[i]
        return seen

    def buckets(self) -> list:
        """(end, count) of each bucket that is not empty, ends exclusive and rising."""
        return [(bucket_end(i), self.counts[i]) for i in range(BUCKETS) if self.counts[i]]

    def merge(self, Histogram other not None):
        """Add everything `other` counted."""
        cdef int i
        if other.count == 0:
            return
        for i in range(BUCKETS):
            self.counts[i] += other.counts[i]
        self.min = other.min if self.count == 0 or other.min < self.min else self.min
        self.max = max(self.max, other.max)
        self.count += other.count
        self.total += other.total

    def clear(self):
        """Forget everything."""
        memset(self.counts, 0, sizeof(self.counts))
        self.count = self.total = self.min = self.max = 0
