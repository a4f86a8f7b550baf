"""Accepts records and seals them into batches, one open batch a shard, within a byte budget.

put() and put_columns() may be called from any thread; put_columns works without the GIL. Everything else belongs to
the sender, on one event loop: it is woken, asks which shards were touched, takes sealed batches and settles them.
When the stream's shards change, it replaces the map; `apart` takes apart what a closed shard refused.
It knows neither clocks nor connections. The layout of a slab is drawn in accumulator.pxd; read `add` first.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memmove, memset

from streamkit._core.batch cimport (
    ATTRIBUTE_CODEC, ATTRIBUTE_HASHES, ATTRIBUTE_HEADERS, ATTRIBUTE_KEYLESS, BATCH_RECORDS_MAX, BODY_BYTES_MAX, DELTA_NONE, HASH_BYTES,
    HEADER_BYTES, RECORD_HEADER_BYTES, Batch, compress_body, join_batch, record_bytes, seal_header, widen_hashes,
    write_record)
from streamkit._core.buffers cimport is_utf8
from streamkit._core.columns cimport Column, row_at
from streamkit._core.debug cimport LIVE_ACCUMULATOR, LIVE_SEALED, LIVE_SLAB, SK_COUNT, live_counts
from streamkit._core.hashing cimport find_shard, md5
from streamkit._core.keys cimport sk_draw, sk_hash_within, text_of
from streamkit._core.outcome cimport ColumnsHandle, FAILED, PENDING, PutHandle, STORED

from streamkit._core.refusals import closed, no_shard, not_text, refused
from streamkit.errors import InvalidRequest, InvalidUse

cdef enum:
    KEY_BYTES_MAX = 1024
    COMPRESS_MIN = 512               # smaller bodies are sent as they are, and say nothing about the shard
    HEADERS_BYTES_MAX = 65535
    FIRST_SLAB_BYTES = 24576
    POOL_BYTES_MAX = 16777216
    BULK_ROWS = 4096                 # put without letting go of the mutex
    POOR_SAMPLES = 16                # after so many batches that compression did not help …
    SKIPPED_BATCHES = 256            # … so many are sent as they are

cdef int64_t NO_TIME = <int64_t>(<uint64_t>1 << 63)


@cython.final
cdef class Budget:
    """Bytes that may be held at once: open, sealed and in flight."""

    def __cinit__(self, int64_t limit):
        self.limit = limit

    @property
    def used(self) -> int:
        return sk_load(&self.taken)


@cython.final
@cython.no_gc_clear                  # __dealloc__ needs its budget; the cycle through `wake` is broken elsewhere
cdef class Accumulator:
    """Open and sealed batches of one stream.

    ranges: half-open hash range of each shard, or None where it takes no records; origins: for each shard the
    function that makes a PutResult; wake: called, from any thread, when there is something to take; home: the event
    loop that settles; withdraw: called with a PutHandle whose owner wants it cancelled. codec: 0 none, 1 lz4, 2 zstd. share_bytes: of the budget, the most that one shard may hold while
    there are others; a record alone in its shard always passes. seed: of the draws for records without a key.
    """

    def __cinit__(self, ranges, *, Budget budget not None, list origins not None, wake not None, home=None, withdraw=None,
                  size_t batch_bytes_max=524288, uint32_t batch_records_max=10000,
                  size_t record_bytes_max=1048576, int codec=1, uint32_t map_version=0, share_bytes=None,
                  uint64_t seed=0):
        ranges = list(ranges)
        SK_COUNT(live_counts[LIVE_ACCUMULATOR], 1)
        pthread_mutex_init(&self.mutex, NULL)
        self.table = ShardTable(ranges)
        self.shards = len(ranges)
        self.budget = budget
        self.origins = origins
        self.wake = wake
        self.home = home
        self.withdraw = withdraw
        self.batch_bytes_max = min(batch_bytes_max, <size_t>BODY_BYTES_MAX)
        self.records_max = min(batch_records_max, <uint32_t>BATCH_RECORDS_MAX)
        self.record_bytes_max = record_bytes_max
        self.codec = codec
        self.map_version = map_version
        self.share_bytes = budget.limit if share_bytes is None else share_bytes
        self.random = seed
        self.sticky = -1
        self.lanes = <Lane*>calloc(self.shards or 1, sizeof(Lane))
        self.touched = <uint32_t*>malloc((self.shards or 1) * sizeof(uint32_t))
        if self.lanes == NULL or self.touched == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef Py_ssize_t i
        cdef Slab* slab
        if self.lanes != NULL:
            for i in range(self.shards):
                while self.lanes[i].first_closed != NULL:
                    slab = self.lanes[i].first_closed
                    self.lanes[i].first_closed = slab.next
                    drop_slab(self, slab)
                if self.lanes[i].open != NULL:
                    drop_slab(self, self.lanes[i].open)
        while self.pool != NULL:
            slab = self.pool
            self.pool = slab.next
            free(slab.memory)
            free(slab)
        free(self.lanes)
        free(self.touched)
        pthread_mutex_destroy(&self.mutex)
        SK_COUNT(live_counts[LIVE_ACCUMULATOR], -1)

    # ---- accepting ---------------------------------------------------------------------------------------

    cdef void lock(self) noexcept:
        # With the GIL held; given up while waiting, because a bulk put may hold the mutex for a millisecond.
        if pthread_mutex_trylock(&self.mutex):
            with nogil:
                pthread_mutex_lock(&self.mutex)

    cdef int lock_with_spare(self) except -1:
        # Another thread may use the spare while this one waits for the mutex.
        while True:
            if self.spare is None:
                self.spare = Delivery.__new__(Delivery)
            self.lock()
            if self.spare is not None:
                return 0
            pthread_mutex_unlock(&self.mutex)

    cdef int add(self, Lane* lane, const uint8_t* key, size_t key_bytes, const uint8_t* headers, size_t headers_bytes,
                 const uint8_t* value, size_t value_bytes, int64_t time_ms, const uint8_t* digest,
                 bint explicit_hash) noexcept nogil:
        # One record into its shard's open batch; the mutex is held and the budget charged. ADDED or NO_MEMORY.
        cdef Slab* slab = lane.open
        cdef bint hashes = slab != NULL and slab.header.attributes & ATTRIBUTE_HASHES
        cdef size_t size = record_bytes(key_bytes, headers_bytes, value_bytes, hashes or explicit_hash)
        cdef int64_t delta = DELTA_NONE
        cdef uint8_t* at
        cdef uint32_t end
        if self.closed:
            return CLOSED
        if slab != NULL:
            if time_ms != NO_TIME and slab.header.event_time_delta_max != DELTA_NONE:
                delta = time_ms - slab.header.event_time_ms
            if (slab.header.record_count == self.records_max or explicit_hash and not hashes
                    or slab.used + TABLE_ENTRY_BYTES * <size_t>(slab.header.record_count + 1) + size > self.batch_bytes_max
                    or delta != DELTA_NONE and not -0x7FFFFFFF <= delta <= 0x7FFFFFFF):
                self.close_slab(lane)
                slab = NULL
        if slab == NULL:
            size = record_bytes(key_bytes, headers_bytes, value_bytes, explicit_hash)
            slab = self.new_slab(size, explicit_hash)
            if slab == NULL:
                return NO_MEMORY
            hashes = explicit_hash
            lane.open = slab
            self.touch(lane)
        if grow_slab(self, slab, size):
            return NO_MEMORY
        if time_ms != NO_TIME:
            if slab.header.event_time_delta_max == DELTA_NONE:
                slab.header.event_time_ms = time_ms
                slab.header.event_time_delta_max = 0
            delta = time_ms - slab.header.event_time_ms
            if delta > slab.header.event_time_delta_max:
                slab.header.event_time_delta_max = <int32_t>delta
        else:
            delta = DELTA_NONE
        at = records_of(self, slab) + slab.used
        write_record(at, key, key_bytes, headers, headers_bytes, value, value_bytes, <int32_t>delta,
                     digest if hashes else NULL)
        widen_hashes(&slab.header, digest)
        if headers_bytes:
            slab.header.attributes |= ATTRIBUTE_HEADERS
        if not key_bytes:
            slab.header.attributes |= ATTRIBUTE_KEYLESS
        slab.used += size
        end = <uint32_t>slab.used
        memcpy(slab.memory + HEADER_BYTES + TABLE_ENTRY_BYTES * <size_t>slab.header.record_count, &end, 4)
        slab.header.record_count += 1
        self.records += 1
        self.payload_bytes += key_bytes + headers_bytes + value_bytes
        if slab.header.record_count == self.records_max or slab.used >= self.batch_bytes_max:
            self.close_slab(lane)
        return ADDED

    cdef bint has_share(self, Lane* lane, int64_t charge) noexcept nogil:
        cdef int64_t held = sk_load(&lane.charged)
        return held == 0 or held + charge <= self.share_bytes or self.table.count < 2

    cdef int32_t place_keyless(self, int64_t charge, uint8_t* digest) noexcept nogil:
        # The shard of a record without a key, or -1; the mutex is held. One shard is kept for the length of a batch,
        # so that batches fill; then one is drawn, and the more it holds already the less likely it is. The records of
        # one stay have one hash key, which compresses well and is drawn anew each time.
        cdef HashRange* found
        cdef Py_ssize_t i
        cdef bint any_shard = False
        cdef double total = 0, drawn
        if self.sticky >= 0:
            if self.sticky_left < charge or not self.wanted(self.sticky, charge):
                self.sticky = -1
        if self.sticky < 0:
            if self.table.count == 0:
                return -1
            for i in range(self.table.count):
                if self.wanted(i, charge):
                    total += self.weight(i)
            any_shard = total == 0       # all are slow or have their share: as if none were
            for i in range(self.table.count if any_shard else 0):
                total += self.weight(i)
            drawn = total * (<double>(sk_draw(&self.random) >> 11) / 9007199254740992.0)
            for i in range(self.table.count):
                if any_shard or self.wanted(i, charge):
                    self.sticky = i      # the last one also when rounding leaves a rest
                    drawn -= self.weight(i)
                    if drawn < 0:
                        break
            self.sticky_left = <int64_t>self.batch_bytes_max
            found = &self.table.ranges[self.sticky]
            sk_hash_within(found.low_high, found.low_low, found.high_high, found.high_low, &self.random,
                           self.sticky_hash)
        self.sticky_left -= charge
        memcpy(digest, self.sticky_hash, HASH_BYTES)
        return self.table.ranges[self.sticky].index

    cdef bint wanted(self, Py_ssize_t place, int64_t charge) noexcept nogil:
        cdef Lane* lane = &self.lanes[self.table.ranges[place].index]
        return not lane.slow and self.has_share(lane, charge)

    cdef double weight(self, Py_ssize_t place) noexcept nogil:
        cdef int64_t held = sk_load(&self.lanes[self.table.ranges[place].index].charged)
        return 1.0 / (<double>held + <double>self.batch_bytes_max)

    cdef Slab* new_slab(self, size_t first_record, bint hashes) noexcept nogil:
        cdef Slab* slab = self.pool
        cdef size_t capacity
        if slab != NULL:
            self.pool = slab.next
            self.pool_bytes -= slab.capacity
        else:
            slab = <Slab*>calloc(1, sizeof(Slab))
            if slab == NULL:
                return NULL
            capacity = HEADER_BYTES + TABLE_ENTRY_BYTES * <size_t>self.records_max
            capacity += first_record if first_record > FIRST_SLAB_BYTES else <size_t>FIRST_SLAB_BYTES
            slab.memory = <uint8_t*>malloc(capacity)
            if slab.memory == NULL:
                free(slab)
                return NULL
            slab.capacity = capacity
        SK_COUNT(live_counts[LIVE_SLAB], 1)
        slab.next = NULL
        slab.used = slab.charged = 0
        memset(&slab.header, 0, HEADER_BYTES)
        memset(slab.header.hash_low, 0xFF, HASH_BYTES)
        slab.header.event_time_delta_max = DELTA_NONE
        slab.header.attributes = ATTRIBUTE_HASHES if hashes else 0
        return slab

    cdef void close_slab(self, Lane* lane) noexcept nogil:
        lane.open.next = NULL
        if lane.first_closed == NULL:
            lane.first_closed = lane.open
        else:
            lane.last_closed.next = lane.open
        lane.last_closed = lane.open
        lane.open = NULL
        self.touch(lane)

    cdef void touch(self, Lane* lane) noexcept nogil:
        if not lane.touched:
            lane.touched = True
            self.touched[self.touched_count] = <uint32_t>(lane - self.lanes)
            self.touched_count += 1

    def put(self, key, bytes value not None, bytes headers=b"", time_ms=None, bytes hash_key=None):
        """One record: its PutHandle, or None when the budget has no room, or the shard had its share of it.

        key: str, bytes in UTF-8, or None: any shard, see place_keyless. headers: b"" or a msgpack map. hash_key: 16 bytes that take the place of the key's own.
        Raises RecordTooLarge, InvalidRequest (key or hash key), WrongShard (no shard takes it).
        """
        cdef Py_ssize_t key_bytes
        cdef const char* key_at = text_of(key, &key_bytes)
        cdef bint keyless = key is None and hash_key is None
        cdef uint8_t digest[16]
        cdef int32_t shard
        cdef size_t size, charge
        cdef int64_t time = NO_TIME if time_ms is None else time_ms
        cdef int answer
        cdef Lane* lane
        cdef Slab* slab
        cdef PutHandle handle
        size = key_bytes + PyBytes_GET_SIZE(headers) + PyBytes_GET_SIZE(value)
        if (not (0 < key_bytes <= KEY_BYTES_MAX or key is None) or size > self.record_bytes_max
                or len(headers) > HEADERS_BYTES_MAX):
            raise refused(key_bytes, len(headers), size, self.record_bytes_max, key is None)
        if keyless:
            pass                         # drawn when the mutex is held
        elif hash_key is None:
            md5(<const uint8_t*>key_at, key_bytes, digest)
        elif len(hash_key) != HASH_BYTES:
            raise InvalidRequest("an explicit hash key has 16 bytes", try_="use 0 <= explicit_hash_key < 2**128")
        else:
            memcpy(digest, <const uint8_t*>PyBytes_AS_STRING(hash_key), HASH_BYTES)
        charge = size + TABLE_ENTRY_BYTES + record_bytes(0, 0, 0, True)
        if not take_budget(self.budget, charge):
            return None
        handle = PutHandle.__new__(PutHandle)
        self.lock_with_spare()
        if keyless:                      # not before: waiting let the map change
            shard = self.place_keyless(charge, digest)
        else:
            shard = find_shard(self.table.ranges, self.table.count, digest)
        answer = NO_SHARD
        lane = &self.lanes[shard]
        if shard >= 0 and not self.has_share(lane, charge):
            answer = NO_ROOM
        elif shard >= 0:
            answer = self.add(lane, <const uint8_t*>key_at, key_bytes, <const uint8_t*>PyBytes_AS_STRING(headers),
                              PyBytes_GET_SIZE(headers), <const uint8_t*>PyBytes_AS_STRING(value),
                              PyBytes_GET_SIZE(value), time, digest, keyless or hash_key is not None)
        if answer == ADDED:
            slab = lane.open if lane.open != NULL else lane.last_closed
            slab.charged += charge
            sk_add(&lane.charged, charge)
            self.keyless += keyless
            if slab.delivery == NULL:
                self.spare.home, self.spare.withdraw = self.home, self.withdraw
                self.spare.origin = self.origins[shard]
                slab.delivery = <PyObject*>self.spare
                Py_INCREF(self.spare)
                self.spare = None
            handle.delivery = <Delivery>slab.delivery
            handle.index = slab.header.record_count - 1
            handle.delivery.count += 1
        pthread_mutex_unlock(&self.mutex)
        if answer != ADDED:
            sk_add(&self.budget.taken, -<int64_t>charge)
            if answer == NO_ROOM:
                return None
            raise refusal(answer)
        if self.touched_count and not self.wake_asked:
            self.wake_asked = True
            self.wake()
        return handle

    def put_columns(self, Column keys, Column values not None, ColumnsHandle handle not None) -> bool:
        """Rows from handle.taken on, as far as the budget goes; True when all are taken. keys: None for no keys at all.

        Works without the GIL. A row that can never be taken raises as put() does: it is handle.taken then, and the
        rows before it are accepted.
        """
        cdef Py_ssize_t row = handle.taken, last
        cdef int answer = ADDED
        cdef size_t key_bytes = 1, value_bytes
        if keys is not None and keys.count != values.count or handle.count != values.count:
            raise InvalidUse(f"{handle.count} keys for {values.count} values", try_="give one key a value")
        handle.keep()
        while row < values.count and answer == ADDED:
            last = min(row + BULK_ROWS, values.count)
            with nogil:
                pthread_mutex_lock(&self.mutex)
                answer = add_rows(self, keys, values, handle, &row, last)
                pthread_mutex_unlock(&self.mutex)
            handle.taken = row
            if self.touched_count and not self.wake_asked:
                self.wake_asked = True
                self.wake()
        if answer == ADDED or answer == NO_ROOM:
            return answer == ADDED
        if answer != TOO_LARGE and answer != BAD_KEY:
            raise refusal(answer)
        row_at(values, row, &value_bytes)
        if keys is None:
            raise refused(0, 0, value_bytes, self.record_bytes_max, True)
        row_at(keys, row, &key_bytes)
        raise refused(key_bytes, 0, key_bytes + value_bytes, self.record_bytes_max)

    # ---- sending -----------------------------------------------------------------------------------------

    def close(self) -> None:
        """Accept nothing any more; what was accepted can still be taken."""
        self.lock()
        self.closed = True
        pthread_mutex_unlock(&self.mutex)

    def take_touched(self) -> list:
        """Indexes of the shards where a batch was opened or filled since the last call; allows the next wake."""
        cdef Py_ssize_t i
        cdef uint32_t shard
        made = []
        self.wake_asked = False
        self.lock()
        cdef Py_ssize_t count = self.touched_count
        for i in range(count):
            self.lanes[self.touched[i]].touched = False
        cdef uint32_t* copied = <uint32_t*>malloc((count or 1) * sizeof(uint32_t))
        if copied != NULL:
            memcpy(copied, self.touched, count * sizeof(uint32_t))
        self.touched_count = 0
        pthread_mutex_unlock(&self.mutex)
        if copied == NULL:
            raise MemoryError
        for i in range(count):
            made.append(copied[i])
        free(copied)
        return made

    def held(self, Py_ssize_t shard) -> int:
        """Bytes of the budget that the shard holds: open, sealed and in flight."""
        return sk_load(&lane_of(self, shard).charged)

    def avoid(self, Py_ssize_t shard, bint slow) -> None:
        """Whether records without a key go elsewhere while they can."""
        lane_of(self, shard).slow = slow

    def waiting(self, Py_ssize_t shard) -> int:
        """0: nothing; 1: an open batch; 2: at least one full batch."""
        cdef Lane* lane = lane_of(self, shard)
        if lane.first_closed != NULL:
            return 2
        return 1 if lane.open != NULL else 0

    def take(self, Py_ssize_t shard, *, bint close_open, producer_id=0, producer_epoch=0, sequence=0,
             bint compress=True):
        """The shard's oldest waiting batch, sealed; an open one only when `close_open`. None when there is none.

        The batch is numbered with the given identity; its bytes stay the same until renumber(). compress: False for
        one that is to be taken apart.
        """
        cdef Lane* lane = lane_of(self, shard)
        cdef Slab* slab
        cdef SealedBatch made = SealedBatch.__new__(SealedBatch)
        self.lock()
        if lane.first_closed == NULL and lane.open != NULL and close_open:
            self.close_slab(lane)
        slab = lane.first_closed
        if slab != NULL:
            lane.first_closed = slab.next
            slab.next = NULL
        pthread_mutex_unlock(&self.mutex)
        if slab == NULL:
            return None
        made.accumulator = self
        made.slab = slab
        made.shard = shard
        made.count = slab.header.record_count
        made.charged = slab.charged
        made.at = records_of(self, slab) - TABLE_ENTRY_BYTES * <size_t>made.count - HEADER_BYTES
        memmove(made.at + HEADER_BYTES, slab.memory + HEADER_BYTES, TABLE_ENTRY_BYTES * <size_t>made.count)
        made.size = <Py_ssize_t>(HEADER_BYTES + TABLE_ENTRY_BYTES * <size_t>made.count + slab.used)
        slab.header.raw_bytes = <uint32_t>(made.size - HEADER_BYTES)
        slab.header.map_version = self.map_version
        if compress:
            made.compress(lane)
        made.renumber(producer_id, producer_epoch, sequence)
        return made

    # ---- when the shards change --------------------------------------------------------------------------

    def replace_map(self, ranges, *, list origins not None, uint32_t map_version) -> None:
        """Other ranges from the next put on; shards keep their index, new ones are added behind.

        What waits for a shard that takes no records any more stays there: take it, and take it apart.
        """
        cdef ShardTable table = ShardTable(ranges), before
        cdef Py_ssize_t count = len(origins)
        cdef Lane* lanes = <Lane*>calloc(count, sizeof(Lane))
        cdef uint32_t* touched = <uint32_t*>malloc(count * sizeof(uint32_t))
        assert count >= self.shards, "no shard loses its index"
        if lanes == NULL or touched == NULL:
            free(lanes)
            free(touched)
            raise MemoryError
        before, origins_before = self.table, self.origins          # let go of after the mutex
        self.lock()
        memcpy(lanes, self.lanes, self.shards * sizeof(Lane))
        memcpy(touched, self.touched, self.touched_count * sizeof(uint32_t))
        lanes, self.lanes = self.lanes, lanes
        touched, self.touched = self.touched, touched
        self.shards = count
        self.table = table
        self.sticky = -1
        self.origins = origins
        self.map_version = map_version
        pthread_mutex_unlock(&self.mutex)
        free(lanes)
        free(touched)

    # ---- memory ------------------------------------------------------------------------------------------

    cdef void free_slab(self, Slab* slab) noexcept nogil:
        # Back to the pool, or to the system; its references are gone already. Never waits for the mutex: the caller
        # may hold the GIL, or be a collection in the very thread that holds the mutex around a fork.
        SK_COUNT(live_counts[LIVE_SLAB], -1)
        free(slab.rows)
        slab.rows = NULL
        free(slab.spans)
        slab.spans = NULL
        slab.span_count = slab.span_capacity = 0
        if slab.memory != NULL and pthread_mutex_trylock(&self.mutex) == 0:
            if self.pool_bytes + slab.capacity <= POOL_BYTES_MAX and slab.capacity <= 4 * self.batch_bytes_max + 65536:
                self.pool_bytes += slab.capacity
                slab.next = self.pool
                self.pool = slab
                slab = NULL
            pthread_mutex_unlock(&self.mutex)
        if slab != NULL:
            free(slab.memory)
            free(slab)

    cdef void give_memory(self, Slab* slab) noexcept nogil:
        # The records live on in a compressed copy; what else the slab holds stays until the batch is settled.
        cdef Slab* empty = <Slab*>calloc(1, sizeof(Slab))
        if empty == NULL:
            return
        empty.memory = slab.memory
        empty.capacity = slab.capacity
        slab.memory = NULL
        slab.capacity = 0
        SK_COUNT(live_counts[LIVE_SLAB], 1)
        self.free_slab(empty)

    def before_fork(self) -> None:
        """Hold the mutex, so that a child never inherits it half-way."""
        self.lock()

    def after_fork(self) -> None:
        """Let it go again, in parent and child."""
        pthread_mutex_unlock(&self.mutex)


cdef object refusal(int answer):
    # The error for what `add` answered.
    if answer == CLOSED:
        return closed()
    if answer == NO_SHARD:
        return no_shard()
    return not_text() if answer == BAD_TEXT else MemoryError()


cdef inline uint8_t* records_of(Accumulator accumulator, Slab* slab) noexcept nogil:
    return slab.memory + HEADER_BYTES + TABLE_ENTRY_BYTES * <size_t>accumulator.records_max


cdef Lane* lane_of(Accumulator accumulator, Py_ssize_t shard) except NULL:
    if not 0 <= shard < accumulator.shards:
        raise IndexError(f"shard {shard} of {accumulator.shards}")
    return &accumulator.lanes[shard]


cdef int grow_slab(Accumulator accumulator, Slab* slab, size_t more) noexcept nogil:
    cdef size_t needed = HEADER_BYTES + TABLE_ENTRY_BYTES * <size_t>accumulator.records_max + slab.used + more
    cdef size_t capacity
    cdef uint8_t* memory
    if needed <= slab.capacity:
        return 0
    capacity = slab.capacity * 2 if slab.capacity * 2 > needed else needed
    memory = <uint8_t*>realloc(slab.memory, capacity)
    if memory == NULL:
        return -1
    slab.memory = memory
    slab.capacity = capacity
    return 0


cdef int add_rows(Accumulator accumulator, Column keys, Column values, ColumnsHandle handle, Py_ssize_t* row,
                  Py_ssize_t last) noexcept nogil:
    # The mutex is held. `row` ends at the first row not added; the answer says why when that is before `last`.
    cdef size_t key_bytes = 0, value_bytes, charge
    cdef const uint8_t* key = NULL
    cdef const uint8_t* value
    cdef uint8_t digest[16]
    cdef int32_t shard
    cdef Lane* lane
    cdef bint keyless = keys is None
    cdef int answer
    while row[0] < last:
        value = row_at(values, row[0], &value_bytes)
        if not keyless:
            key = row_at(keys, row[0], &key_bytes)
            if not 0 < key_bytes <= KEY_BYTES_MAX:
                return BAD_KEY
            if not is_utf8(key, key_bytes):
                return BAD_TEXT
        if key_bytes + value_bytes > accumulator.record_bytes_max:
            return TOO_LARGE
        charge = key_bytes + value_bytes + TABLE_ENTRY_BYTES + record_bytes(0, 0, 0, True)
        if keyless:
            shard = accumulator.place_keyless(charge, digest)
        else:
            md5(key, key_bytes, digest)
            shard = find_shard(accumulator.table.ranges, accumulator.table.count, digest)
        if shard < 0:
            return NO_SHARD
        lane = &accumulator.lanes[shard]
        if not accumulator.has_share(lane, charge) or not take_budget(accumulator.budget, charge):
            return NO_ROOM
        answer = accumulator.add(lane, key, key_bytes, NULL, 0, value, value_bytes, NO_TIME, digest, keyless)
        if answer == ADDED:
            accumulator.keyless += keyless
            answer = note_row(accumulator, lane, <PyObject*>handle, <uint32_t>row[0], charge)
        if answer != ADDED:
            sk_add(&accumulator.budget.taken, -<int64_t>charge)
            return answer
        handle.shard_at[row[0]] = <uint32_t>shard
        row[0] += 1
    return ADDED


cdef int note_row(Accumulator accumulator, Lane* lane, PyObject* handle, uint32_t row, size_t charge) noexcept nogil:
    cdef Slab* slab = lane.open if lane.open != NULL else lane.last_closed
    cdef uint32_t index = slab.header.record_count - 1
    cdef Span* span
    cdef uint32_t capacity
    slab.charged += charge
    sk_add(&lane.charged, charge)
    if slab.rows == NULL:
        slab.rows = <uint32_t*>malloc(accumulator.records_max * sizeof(uint32_t))
        if slab.rows == NULL:
            return NO_MEMORY
    slab.rows[index] = row
    if slab.span_count:
        span = &slab.spans[slab.span_count - 1]
        if span.handle == handle and span.first + span.count == index:
            span.count += 1
            return ADDED
    if slab.span_count == slab.span_capacity:
        capacity = slab.span_capacity * 2 + 4
        span = <Span*>realloc(slab.spans, capacity * sizeof(Span))
        if span == NULL:
            return NO_MEMORY
        slab.spans = span
        slab.span_capacity = capacity
    span = &slab.spans[slab.span_count]
    span.handle = handle
    span.first = index
    span.count = 1
    slab.span_count += 1
    return ADDED


cdef int drop_slab(Accumulator accumulator, Slab* slab) except -1:
    # A slab that nobody will send: its accumulator is collected, was inherited by a child process, or could not
    # seal it. Whoever waits for it is told.
    cdef uint32_t i
    for i in range(slab.span_count):
        (<ColumnsHandle>slab.spans[i].handle).rows_settled(
            slab.rows + slab.spans[i].first, slab.spans[i].count, 0, closed())
    slab.span_count = 0
    if slab.delivery != NULL:
        delivery = <Delivery>slab.delivery
        slab.delivery = NULL
        Py_XDECREF(<PyObject*>delivery)
        (<Delivery>delivery).error = closed()
        (<Delivery>delivery).settle(FAILED)
    sk_add(&accumulator.budget.taken, -<int64_t>slab.charged)
    accumulator.free_slab(slab)
    return 0


@cython.final
@cython.no_gc_clear                  # __dealloc__ gives the slab back to its accumulator
cdef class SealedBatch:
    """One sealed batch on its way. Its payload does not change, except by renumber() when nothing is in flight."""

    def __cinit__(self):
        SK_COUNT(live_counts[LIVE_SEALED], 1)

    def __dealloc__(self):
        if self.slab != NULL:
            sk_add(&self.accumulator.lanes[self.shard].charged, -<int64_t>self.slab.charged)
            drop_slab(self.accumulator, self.slab)
        SK_COUNT(live_counts[LIVE_SEALED], -1)

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        if self.at == NULL:
            raise BufferError("the batch is settled")
        PyBuffer_FillInfo(buffer, self, self.at, self.size, 1, flags)
        self.exported += 1

    def __releasebuffer__(self, Py_buffer* buffer):
        self.exported -= 1

    def __len__(self) -> int:
        """Bytes to send."""
        return len(self.packed) if self.packed is not None else self.size

    @property
    def raw_bytes(self) -> int:
        """Bytes without compression."""
        assert self.slab != NULL, "a settled batch has no size"
        return HEADER_BYTES + self.slab.header.raw_bytes

    @property
    def payload(self):
        """The batch to send: bytes, or a view of the slab."""
        return self.packed if self.packed is not None else memoryview(self)

    cdef int compress(self, Lane* lane) except -1:
        # Skipped for a shard whose last batches gained nothing; a new sample is taken every SKIPPED_BATCHES.
        cdef Accumulator accumulator = self.accumulator
        if accumulator.codec == 0 or self.size - HEADER_BYTES < COMPRESS_MIN:
            return 0
        if lane.skip:
            lane.skip -= 1
            return 0
        body = compress_body(accumulator.codec, memoryview(self)[HEADER_BYTES:])
        if body is None:
            lane.poor_samples += 1
            if lane.poor_samples >= POOR_SAMPLES:
                lane.skip = SKIPPED_BATCHES
            return 0
        lane.poor_samples = 0
        self.slab.header.attributes |= <uint16_t>accumulator.codec
        self.packed = join_batch(&self.slab.header, body)
        self.at = NULL
        accumulator.give_memory(self.slab)
        return 0

    def renumber(self, uint64_t producer_id, uint16_t producer_epoch, uint64_t sequence) -> None:
        """Give the batch another identity and sequence. Only while its former number can not be stored any more."""
        cdef BatchHeader* header
        assert not self.settled, "a settled batch keeps its number"
        header = &self.slab.header
        header.producer_id = producer_id
        header.producer_epoch = producer_epoch
        header.producer_sequence = self.sequence = sequence
        if self.packed is not None:
            self.packed = join_batch(header, self.packed[HEADER_BYTES:])
        elif self.exported:              # a connection that is gone may still hold the old bytes
            self.packed = join_batch(header, bytes(memoryview(self)[HEADER_BYTES:]))
        else:
            seal_header(self.at, header, self.size)

    def stored(self, receipt not None, tuple attempts=()) -> None:
        """The broker has it, says a PutReceipt: every handle completes. attempts: for PutHandle.attempts."""
        if self.slab.delivery != NULL:
            (<Delivery>self.slab.delivery).receipt = receipt
            (<Delivery>self.slab.delivery).attempts = attempts
        self.settle(None, receipt.base_sequence)

    def unheld(self) -> int:
        """Records whose handle nobody holds."""
        cdef Py_ssize_t count = 0
        cdef uint32_t i
        if self.slab.delivery != NULL:
            count += (<Delivery>self.slab.delivery).unheld()
        for i in range(self.slab.span_count):
            if self.slab.spans[i].handle.ob_refcnt == 1:           # its own reference to itself
                count += self.slab.spans[i].count
        return count

    def failed(self, error not None, tuple attempts=(), bint told=False) -> list:
        """It will not be stored, or nobody knows: every handle fails with `error`. Who may not have looked yet.

        told: somebody hears of the records whose handle nobody holds, so these count as looked at.
        """
        cdef uint32_t i
        cdef Delivery delivery
        outcomes = []
        if self.slab.delivery != NULL:
            delivery = <Delivery>self.slab.delivery
            delivery.error = error
            delivery.attempts = attempts
            delivery.seen += delivery.unheld() if told else 0
            outcomes.append(delivery)
        for i in range(self.slab.span_count):
            if told and self.slab.spans[i].handle.ob_refcnt == 1:
                (<ColumnsHandle>self.slab.spans[i].handle).seen = True
            if not outcomes or outcomes[len(outcomes) - 1] is not <object>self.slab.spans[i].handle:
                outcomes.append(<object>self.slab.spans[i].handle)
        self.settle(error, 0)
        return outcomes

    cdef int settle(self, object error, uint64_t base_sequence) except -1:
        cdef Slab* slab = self.slab
        cdef uint32_t i
        assert not self.settled, "a batch is settled once"
        self.settled = True
        sk_add(&self.accumulator.budget.taken, -<int64_t>self.charged)
        sk_add(&self.accumulator.lanes[self.shard].charged, -<int64_t>self.charged)
        slab.charged = 0
        for i in range(slab.span_count):
            (<ColumnsHandle>slab.spans[i].handle).rows_settled(
                slab.rows + slab.spans[i].first, slab.spans[i].count, base_sequence + slab.spans[i].first, error)
        slab.span_count = 0
        if slab.delivery != NULL:
            delivery = <Delivery>slab.delivery
            slab.delivery = NULL
            (<Delivery>delivery).settle(STORED if error is None else FAILED)
            Py_XDECREF(<PyObject*>delivery)
        self.let_go()
        return 0

    cdef void let_go(self) noexcept:
        cdef Slab* slab = self.slab
        if self.exported == 0:           # else the slab goes with the last view of it
            self.at = NULL
            self.slab = NULL
            self.accumulator.free_slab(slab)
