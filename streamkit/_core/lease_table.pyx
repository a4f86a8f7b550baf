"""Leases of one application in one block of memory: renew and checkpoint without a Python object a lease.

Everything here is rules over rows; who may join, what is written to the log and who is told is the business
of the `leases` room. A checkpoint is accepted from the present lease epoch alone, grows within it, and is
answered from the row when its number repeats. Read `settle` first; the row is drawn in the `.pxd`.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

STATE_NAMES = {READY: "ready", OWNED: "owned", DRAINING: "draining", PAUSED: "paused", WAITING: "waiting",
               COMPLETE: "complete"}
cdef tuple RESULTS = ("ok", "fenced", "behind")


cdef inline int settle(Row* row, const Item* item, int64_t now_ms) noexcept nogil:
    # One checkpoint against its row (NULL: no such lease); the row changes unless the answer is fenced or repeated.
    if row == NULL or row.lease_epoch != item.lease_epoch or row.session == 0:
        return RESULT_FENCED
    if item.number == 0:
        return RESULT_BEHIND               # numbers start at 1; 0 would look like a repeat of nothing
    if item.number == row.number:
        return row.result
    if item.number < row.number:
        return RESULT_BEHIND               # a late copy of an older one: nothing changes
    row.number = item.number
    if item.sequence < row.checkpoint:
        row.result = RESULT_BEHIND
        return RESULT_BEHIND
    if item.sequence > row.checkpoint:
        row.checkpoint = item.sequence
        row.progressed = 1
        row.takeovers = 0
    row.result = RESULT_OK
    row.checkpointed_ms = now_ms
    return RESULT_OK


cdef class LeaseTable:
    """The rows of one application. Shards are 16-byte uuids; an unknown one raises KeyError where not said otherwise."""

    def __cinit__(self):
        self.rows = NULL
        self.buckets = NULL
        self.count = 0
        self.capacity = 0
        self.bucket_mask = 0
        self.reserve(16)

    def __dealloc__(self):
        free(self.rows)
        free(self.buckets)

    def __len__(self):
        return self.count

    def __contains__(self, bytes shard not None):
        return PyBytes_GET_SIZE(shard) == 16 and self.find(<const uint8_t*>PyBytes_AS_STRING(shard)) != NULL

    cdef Row* find(self, const uint8_t* shard) noexcept nogil:
        cdef uint64_t hashed
        cdef uint64_t bucket
        memcpy(&hashed, shard, 8)
        bucket = (hashed * 0x9E3779B97F4A7C15ULL) >> 20 & self.bucket_mask
        while self.buckets[bucket] >= 0:
            if memcmp(self.rows[self.buckets[bucket]].shard, shard, 16) == 0:
                return &self.rows[self.buckets[bucket]]
            bucket = (bucket + 1) & self.bucket_mask
        return NULL

    cdef Row* at(self, bytes shard) except NULL:
        cdef Row* row = NULL
        if shard is not None and PyBytes_GET_SIZE(shard) == 16:
            row = self.find(<const uint8_t*>PyBytes_AS_STRING(shard))
        if row == NULL:
            raise KeyError(shard)
        return row

    cdef int index(self) except -1:
        # Fills the buckets from the rows; at most half of the buckets are used, so every search ends.
        cdef Py_ssize_t i
        cdef uint64_t hashed
        cdef uint64_t bucket
        memset(self.buckets, 0xFF, (self.bucket_mask + 1) * sizeof(int32_t))
        for i in range(self.count):
            memcpy(&hashed, self.rows[i].shard, 8)
            bucket = (hashed * 0x9E3779B97F4A7C15ULL) >> 20 & self.bucket_mask
            while self.buckets[bucket] >= 0:
                bucket = (bucket + 1) & self.bucket_mask
            self.buckets[bucket] = <int32_t>i
        return 0

    cdef int reserve(self, Py_ssize_t count) except -1:
        cdef Py_ssize_t capacity = self.capacity or 16
        cdef void* moved
        if count <= self.capacity:
            return 0
        while capacity < count:
            capacity *= 2
        moved = realloc(self.rows, capacity * sizeof(Row))
        if moved == NULL:
            raise MemoryError
        self.rows = <Row*>moved
        moved = malloc(2 * capacity * sizeof(int32_t))
        if moved == NULL:
            raise MemoryError
        free(self.buckets)
        self.buckets = <int32_t*>moved
        self.capacity = capacity
        self.bucket_mask = <uint64_t>(2 * capacity - 1)
        self.index()
        return 0

    def add(self, bytes shard not None, uint64_t checkpoint, bint waiting=False):
        """A new lease that nobody owns, at lease epoch 0. waiting: nobody may own it before its parents are done."""
        assert PyBytes_GET_SIZE(shard) == 16, "a shard's identity is 16 bytes"
        assert shard not in self, "a lease is added once"
        cdef Row* row
        cdef uint64_t hashed
        cdef uint64_t bucket
        self.reserve(self.count + 1)
        row = &self.rows[self.count]
        memset(row, 0, sizeof(Row))
        memcpy(row.shard, PyBytes_AS_STRING(shard), 16)
        row.checkpoint = checkpoint
        row.state = WAITING if waiting else READY
        memcpy(&hashed, row.shard, 8)
        bucket = (hashed * 0x9E3779B97F4A7C15ULL) >> 20 & self.bucket_mask
        while self.buckets[bucket] >= 0:
            bucket = (bucket + 1) & self.bucket_mask
        self.buckets[bucket] = <int32_t>self.count
        self.count += 1

    def remove(self, shards):
        """These leases are gone; unknown ones are passed over."""
        cdef set doomed = set(shards)
        cdef Py_ssize_t kept = 0
        cdef Py_ssize_t i
        for i in range(self.count):
            if PyBytes_FromStringAndSize(<char*>self.rows[i].shard, 16) in doomed:
                continue
            if kept != i:
                self.rows[kept] = self.rows[i]
            kept += 1
        self.count = kept
        self.index()

    def row(self, bytes shard not None):
        """(state name, session, lease_epoch, checkpoint, takeovers, crashed, checkpointed_ms)."""
        cdef Row* row = self.at(shard)
        return (STATE_NAMES[row.state], row.session, row.lease_epoch, row.checkpoint, row.takeovers,
                row.crashed != 0, row.checkpointed_ms)

    def owners(self):
        """[(shard, session, state name)] of every lease, in the order they were added."""
        cdef Py_ssize_t i
        return [
            (PyBytes_FromStringAndSize(<char*>self.rows[i].shard, 16), self.rows[i].session,
             STATE_NAMES[self.rows[i].state])
            for i in range(self.count)
        ]

    def owned_by(self, uint64_t session):
        """Shards whose lease the session holds, in any state."""
        cdef Py_ssize_t i
        return [
            PyBytes_FromStringAndSize(<char*>self.rows[i].shard, 16)
            for i in range(self.count) if self.rows[i].session == session
        ]

    def count_of(self, uint64_t session):
        """How many leases the session holds."""
        cdef Py_ssize_t i
        cdef Py_ssize_t held = 0
        for i in range(self.count):
            held += self.rows[i].session == session
        return held

    def loads(self):
        """({session: leases it holds and has work with}, leases that are draining)."""
        cdef Py_ssize_t i
        cdef Py_ssize_t draining = 0
        cdef dict loads = {}
        for i in range(self.count):
            if self.rows[i].state == DRAINING:
                draining += 1
            elif self.rows[i].session != 0 and self.rows[i].state != COMPLETE:
                loads[self.rows[i].session] = loads.get(self.rows[i].session, 0) + 1
        return loads, draining

    def grant(self, bytes shard not None, uint64_t session, uint64_t lease_epoch):
        """READY → OWNED with the next lease epoch."""
        cdef Row* row = self.at(shard)
        assert row.state == READY and row.session == 0, "only a lease without an owner is granted"
        assert lease_epoch == row.lease_epoch + 1, "the lease epoch grows by one at every change of owner"
        assert session != 0, "session 0 is nobody"
        row.state = OWNED
        row.session = session
        row.lease_epoch = lease_epoch
        row.number = 0
        row.result = RESULT_OK
        row.progressed = 0

    def drain(self, bytes shard not None):
        """OWNED → DRAINING: the owner keeps its rights until it releases."""
        cdef Row* row = self.at(shard)
        assert row.state == OWNED, "only an owned lease is drained"
        row.state = DRAINING

    def pause(self, bytes shard not None):
        """OWNED or DRAINING → PAUSED, still with its owner."""
        cdef Row* row = self.at(shard)
        assert row.state == OWNED or row.state == DRAINING, "only an owned lease is paused"
        row.state = PAUSED

    def free(self, bytes shard not None, bint crashed):
        """The owner is gone. A paused lease stays paused, a complete one complete; any other becomes READY."""
        cdef Row* row = self.at(shard)
        assert row.session != 0, "only an owned lease is freed"
        row.session = 0
        row.crashed = crashed
        if crashed and not row.progressed and row.takeovers < 0xFFFFFFFF:
            row.takeovers += 1
        if row.state != PAUSED and row.state != COMPLETE:
            row.state = READY

    def open(self, bytes shard not None):
        """WAITING → READY: its parents are done, or gone."""
        cdef Row* row = self.at(shard)
        assert row.state == WAITING, "only a lease that waits is opened"
        row.state = READY

    def complete(self, bytes shard not None):
        """→ COMPLETE, for ever: the shard is processed to its end. An owner keeps it until it lets go."""
        cdef Row* row = self.at(shard)
        row.state = COMPLETE

    def resume(self, bytes shard not None):
        """PAUSED → READY without an owner; an owner it still had must ask for it anew."""
        cdef Row* row = self.at(shard)
        assert row.state == PAUSED, "only a paused lease is resumed"
        row.state = READY
        row.session = 0

    def place(self, bytes shard not None, uint64_t checkpoint):
        """→ READY at that checkpoint, whatever it was; the lease epoch grows, so that an owner is fenced."""
        cdef Row* row = self.at(shard)
        row.checkpoint = checkpoint
        row.state = READY
        row.session = 0
        row.lease_epoch += 1
        row.number = 0
        row.result = RESULT_OK
        row.progressed = 0
        row.crashed = 0
        row.takeovers = 0

    def wait(self, bytes shard not None):
        """READY → WAITING: its parents are to be processed first."""
        cdef Row* row = self.at(shard)
        assert row.state == READY, "only a lease that nobody owns is made to wait"
        row.state = WAITING

    def holds(self, bytes shard not None, uint64_t session, uint64_t lease_epoch):
        """Whether the session owns the shard in that lease epoch; False for an unknown shard."""
        cdef Row* row = NULL
        if PyBytes_GET_SIZE(shard) == 16:
            row = self.find(<const uint8_t*>PyBytes_AS_STRING(shard))
        return row != NULL and session != 0 and row.session == session and row.lease_epoch == lease_epoch

    def renew(self, uint64_t session, owned):
        """What a worker believes it owns, against the rows.

        owned: (shard, lease epoch) pairs. Returns (lost, draining, held): those it does not own in that epoch,
        those it is to finish, and how many it does own.
        """
        cdef list lost = []
        cdef list draining = []
        cdef Py_ssize_t held = 0
        cdef Row* row
        cdef uint64_t lease_epoch
        cdef bytes shard
        for pair in owned:
            shard = pair[0]
            lease_epoch = pair[1]
            row = NULL
            if shard is not None and PyBytes_GET_SIZE(shard) == 16:
                row = self.find(<const uint8_t*>PyBytes_AS_STRING(shard))
            if row == NULL or row.session != session or row.lease_epoch != lease_epoch:
                lost.append(shard)
                continue
            held += 1
            if row.state == DRAINING:
                draining.append(shard)
        return lost, draining, held

    def checkpoint(self, items, int64_t now_ms):
        """Settle checkpoints in order.

        items: objects with `shard`, `lease_epoch`, `number`, `sequence`. Returns (results, changes): one of "ok",
        "fenced", "behind" for each, and the packed items that `replay` needs to come to the same rows.
        """
        cdef Py_ssize_t size = len(items)
        cdef Item* packed = <Item*>malloc(max(size, 1) * sizeof(Item))
        cdef Item* item
        cdef Row* row
        cdef Py_ssize_t changed = 0
        cdef uint64_t number
        cdef int result
        cdef bytes shard
        cdef list results = []
        if packed == NULL:
            raise MemoryError
        try:
            for source in items:
                if changed == size:
                    break                       # the sequence grew under our hands; nothing is written past `packed`
                shard = source.shard
                item = &packed[changed]
                item.lease_epoch = source.lease_epoch
                item.number = source.number
                item.sequence = source.sequence
                row = NULL
                if shard is not None and PyBytes_GET_SIZE(shard) == 16:
                    memcpy(item.shard, PyBytes_AS_STRING(shard), 16)
                    row = self.find(item.shard)
                number = row.number if row != NULL else 0
                result = settle(row, item, now_ms)
                if row != NULL and row.number != number:
                    changed += 1
                results.append(RESULTS[result])
            return tuple(results), PyBytes_FromStringAndSize(<char*>packed, changed * sizeof(Item))
        finally:
            free(packed)

    def replay(self, bytes changes not None, int64_t now_ms):
        """Settle what `checkpoint` packed. Raises ValueError for bytes that it cannot have written."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(changes)
        cdef Item item
        cdef Py_ssize_t i
        if size % ITEM_BYTES:
            raise ValueError(f"{size} bytes are not whole checkpoint items of {ITEM_BYTES}")
        for i in range(size // ITEM_BYTES):
            memcpy(&item, PyBytes_AS_STRING(changes) + i * ITEM_BYTES, ITEM_BYTES)
            if settle(self.find(item.shard), &item, now_ms) == RESULT_FENCED:
                raise ValueError("a checkpoint in the log was accepted from nobody's lease")

    def dump(self, Py_ssize_t start, Py_ssize_t end):
        """Rows start … end as bytes (64 a row), in the order they were added."""
        start = min(max(start, 0), self.count)
        end = min(max(end, start), self.count)
        return PyBytes_FromStringAndSize(<char*>&self.rows[start], (end - start) * sizeof(Row))

    def restore(self, bytes rows not None):
        """Overwrite rows of known shards with dumped ones. Raises ValueError for anything else."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(rows)
        cdef Py_ssize_t i
        cdef Row row
        cdef Row* place
        if size % ROW_BYTES:
            raise ValueError(f"{size} bytes are not whole lease rows of {ROW_BYTES}")
        for i in range(size // ROW_BYTES):
            memcpy(&row, PyBytes_AS_STRING(rows) + i * ROW_BYTES, ROW_BYTES)
            place = self.find(row.shard)
            if place == NULL or not READY <= row.state <= COMPLETE or row.result > RESULT_BEHIND:
                raise ValueError("a lease row of a shard that the application does not have, or in no known state")
            place[0] = row
