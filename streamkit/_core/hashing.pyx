"""Partition key → MD5 → 128-bit hash key → shard, without a Python call a record.

Hash keys are 16 bytes, big-endian; ranges are half-open pairs of Python ints, as in `model.Shard`.
The producer routes with ShardTable, the broker's hash-range check uses the same bytes. See md5.h.
"""

from libc.stdlib cimport free, malloc

from streamkit.errors import InvalidUse



def hash_key(key not None) -> bytes:
    """The 16-byte hash key of a partition key (text as UTF-8)."""
    cdef const uint8_t[::1] view
    cdef uint8_t digest[16]
    data = key.encode() if isinstance(key, str) else key
    view = data
    md5(&view[0] if view.shape[0] else NULL, view.shape[0], digest)
    return digest[:16]


cdef class ShardTable:
    """Finds the shard that owns a hash key. Made anew for each shard map; never changes.

    ranges: (hash_start, hash_end) half-open, one a shard, in the caller's order; None for a shard that takes
    no records. They need not cover the whole space; overlaps raise InvalidUse.
    """

    def __cinit__(self, ranges):
        found = sorted((low, high - 1, index) for index, (low, high) in
                       ((i, pair) for i, pair in enumerate(ranges) if pair is not None))
        self.count = len(found)
        self.ranges = <HashRange*>malloc((self.count or 1) * sizeof(HashRange))
        if self.ranges == NULL:
            raise MemoryError
        below = -1
        for i, (low, high, index) in enumerate(found):
            if low <= below or high < low or high >> 128:
                raise InvalidUse(f"hash range {low}..{high + 1} overlaps, is empty or leaves the space",
                                 try_="give disjoint half-open ranges within 0..2**128", low=low, high=high + 1)
            self.ranges[i].low_high = low >> 64
            self.ranges[i].low_low = low & 0xFFFFFFFFFFFFFFFF
            self.ranges[i].high_high = high >> 64
            self.ranges[i].high_low = high & 0xFFFFFFFFFFFFFFFF
            self.ranges[i].index = index
            below = high

    def __dealloc__(self):
        free(self.ranges)

    def __len__(self) -> int:
        return self.count

    def find(self, const uint8_t[::1] hash_key not None) -> int:
        """The caller's index of the range that holds the 16-byte key; -1 when none does."""
        if hash_key.shape[0] != 16:
            raise InvalidUse(f"a hash key has 16 bytes, got {hash_key.shape[0]}", try_="pass hash_key(key)")
        return find_shard(self.ranges, self.count, &hash_key[0])

    def find_key(self, key not None) -> int:
        """The same for a partition key."""
        return self.find(hash_key(key))
