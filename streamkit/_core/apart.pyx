"""Sealed batches taken apart: their records go in front of what waits for their shards, or are left out.

Two things do this, both on the sender's loop: a shard that was closed, whose records go to its children, and a record
that is cancelled before its batch was sent. Whoever waits for the batch waits for its records then. Serves the producer,
beside `accumulator`, whose slabs it fills. Read `take_apart` first.
"""

from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from streamkit._core.accumulator cimport (
    ADDED, NO_SHARD, TABLE_ENTRY_BYTES, Accumulator, Lane, PyObject, SealedBatch, Slab, note_row, pthread_mutex_lock,
    pthread_mutex_unlock, refusal, sk_add)
from streamkit._core.batch cimport ATTRIBUTE_HASHES, DELTA_NONE, HASH_BYTES, RECORD_HEADER_BYTES, Batch, record_bytes
from streamkit._core.hashing cimport ShardTable, find_shard, md5
from streamkit._core.outcome cimport ColumnsHandle, Delivery, PutHandle, failed_with

cdef int64_t NO_TIME = <int64_t>(<uint64_t>1 << 63)      # as in accumulator.pyx

cdef struct Place:                   # where a record lies now
    uint32_t shard
    uint32_t index
    Slab* slab                       # NULL: it was left out


def waits_for(Accumulator accumulator not None, PutHandle handle not None) -> int:
    """The index of the shard whose unsealed batches hold the record, or -1."""
    cdef uint32_t index
    cdef Delivery delivery = handle.locate(&index)
    cdef PyObject* wanted = <PyObject*>delivery
    cdef Py_ssize_t i, found = -1
    cdef Slab* slab
    accumulator.lock()
    for i in range(accumulator.shards):
        slab = accumulator.lanes[i].first_closed
        while slab != NULL and found < 0:
            if slab.delivery == wanted:
                found = i
            slab = slab.next if slab != accumulator.lanes[i].last_closed else NULL
        if accumulator.lanes[i].open != NULL and accumulator.lanes[i].open.delivery == wanted:
            found = i
    pthread_mutex_unlock(&accumulator.mutex)
    return found


def index_in(SealedBatch sealed not None, PutHandle handle not None) -> int:
    """The record's index in the batch, or -1."""
    cdef uint32_t index
    cdef Delivery delivery = handle.locate(&index)
    return index if sealed.slab != NULL and sealed.slab.delivery == <PyObject*>delivery else -1


def take_apart(Accumulator accumulator not None, SealedBatch sealed not None, ShardTable targets not None,
               list leave=None, error=None) -> list:
    """Put the records of a batch that will never be stored in front of all that waits for `targets`.

    So the batches of a shard are taken apart newest first. Whoever waits for the batch waits for its records now.
    leave: PutHandles of records of the batch that fail with `error` instead. Returns the index of a shard for each batch
    that was put in front of it. Raises WrongShard when a record has no target; then nothing has changed.
    """
    cdef Batch batch = Batch(sealed.payload)
    cdef uint64_t records, payload_bytes
    cdef Lane* kept
    cdef Place* places
    cdef uint8_t* left
    cdef Slab* slab
    cdef Py_ssize_t i
    cdef int64_t freed = 0
    cdef int answer
    assert not sealed.settled, "a settled batch stays as it is"
    batch.open()
    kept = <Lane*>calloc(accumulator.shards, sizeof(Lane))
    places = <Place*>calloc(sealed.count, sizeof(Place))
    left = <uint8_t*>calloc(sealed.count, 1)
    if kept == NULL or places == NULL or left == NULL:
        free(kept)
        free(places)
        free(left)
        raise MemoryError
    made = []
    try:
        for handle in leave or ():
            i = index_in(sealed, handle)
            assert i >= 0, "only records of the batch are left out"
            left[i] = 1
        with nogil:
            pthread_mutex_lock(&accumulator.mutex)
            records, payload_bytes = accumulator.records, accumulator.payload_bytes
            answer = move_records(accumulator, batch, sealed.slab, targets, kept, places, left, &freed)
            accumulator.records, accumulator.payload_bytes = records, payload_bytes      # counted when they came
            for i in range(accumulator.shards):
                if kept[i].touched and answer == ADDED:
                    join_front(accumulator, &accumulator.lanes[i], &kept[i])
                elif kept[i].touched:
                    swap_slabs(&accumulator.lanes[i], &kept[i])
            pthread_mutex_unlock(&accumulator.mutex)
        if answer != ADDED:
            for i in range(accumulator.shards):
                forget_slabs(accumulator, &kept[i], &accumulator.lanes[i])
            raise refusal(answer)
        sk_add(&accumulator.budget.taken, -freed)
        # The slabs in front are full, so that only the sender's loop, which is here, looks at them.
        for i in range(accumulator.shards):
            if kept[i].touched:
                slab = accumulator.lanes[i].first_closed
                while slab != kept[i].first_closed:
                    made.append(i)
                    slab = slab.next
        hand_over(accumulator, sealed, places, leave, error)
    finally:
        free(kept)
        free(places)
        free(left)
    return made


cdef int move_records(Accumulator accumulator, Batch batch, Slab* source, ShardTable targets, Lane* kept, Place* places,
                      const uint8_t* left, int64_t* freed) noexcept nogil:
    # The mutex is held. What the lanes held before is left in `kept`, where `touched` says that it is.
    cdef const uint8_t* at = batch.records
    cdef const uint8_t* next
    cdef const uint8_t* key
    cdef bint hashes = batch.header.attributes & ATTRIBUTE_HASHES
    cdef uint8_t digest[16]
    cdef uint16_t key_bytes, headers_bytes
    cdef int32_t delta, shard
    cdef int64_t time
    cdef size_t value_bytes, charge
    cdef uint32_t i, end, span = 0
    cdef Lane* lane
    cdef Slab* slab
    cdef int answer
    for i in range(batch.header.record_count):
        memcpy(&end, batch.body + TABLE_ENTRY_BYTES * <size_t>i, 4)
        next = batch.records + end
        memcpy(&key_bytes, at, 2)
        memcpy(&headers_bytes, at + 2, 2)
        memcpy(&delta, at + 4, 4)
        key = at + RECORD_HEADER_BYTES + (HASH_BYTES if hashes else 0)
        value_bytes = next - key - key_bytes - headers_bytes
        charge = key_bytes + headers_bytes + value_bytes + TABLE_ENTRY_BYTES + record_bytes(0, 0, 0, True)
        if left[i]:
            freed[0] += <int64_t>charge
            at = next
            continue
        if hashes:
            memcpy(digest, at + RECORD_HEADER_BYTES, HASH_BYTES)
        else:
            md5(key, key_bytes, digest)
        shard = find_shard(targets.ranges, targets.count, digest)
        if not 0 <= shard < accumulator.shards:
            return NO_SHARD
        lane = &accumulator.lanes[shard]
        if not kept[shard].touched:
            kept[shard] = lane[0]
            kept[shard].touched = True
            lane.open = lane.first_closed = lane.last_closed = NULL
        time = NO_TIME if delta == DELTA_NONE else batch.header.event_time_ms + delta
        answer = accumulator.add(lane, key, key_bytes, key + key_bytes, headers_bytes, key + key_bytes + headers_bytes,
                                 value_bytes, time, digest, hashes)
        if answer != ADDED:
            return answer
        slab = lane.open if lane.open != NULL else lane.last_closed
        places[i].shard = <uint32_t>shard
        places[i].slab = slab
        places[i].index = slab.header.record_count - 1
        while span < source.span_count and i >= source.spans[span].first + source.spans[span].count:
            span += 1
        if span < source.span_count and i >= source.spans[span].first:
            answer = note_row(accumulator, lane, source.spans[span].handle, source.rows[i], charge)
            if answer != ADDED:
                return answer
        else:
            slab.charged += charge
            sk_add(&lane.charged, charge)
        at = next
    return ADDED


cdef void join_front(Accumulator accumulator, Lane* lane, Lane* behind) noexcept nogil:
    # What was just added, then what was there before.
    if lane.open != NULL:
        accumulator.close_slab(lane)
    lane.last_closed.next = behind.first_closed
    if behind.last_closed != NULL and behind.first_closed != NULL:
        lane.last_closed = behind.last_closed
    lane.open = behind.open


cdef void swap_slabs(Lane* lane, Lane* other) noexcept nogil:
    cdef Lane before = lane[0]
    lane.open, lane.first_closed, lane.last_closed = other.open, other.first_closed, other.last_closed
    other.open, other.first_closed, other.last_closed = before.open, before.first_closed, before.last_closed


cdef void forget_slabs(Accumulator accumulator, Lane* lane, Lane* charged) noexcept:
    # Half a batch was taken apart: its copies go without a word, for the batch itself is still whole.
    cdef Slab* slab
    while lane.first_closed != NULL or lane.open != NULL:
        slab = lane.first_closed
        if slab != NULL:
            lane.first_closed = slab.next
        else:
            slab, lane.open = lane.open, NULL
        sk_add(&charged.charged, -<int64_t>slab.charged)
        accumulator.free_slab(slab)


cdef int hand_over(Accumulator accumulator, SealedBatch sealed, Place* places, list leave, object error) except -1:
    # Outcomes of the records of `sealed`, from its slab to those where the records lie now.
    cdef Slab* source = sealed.slab
    cdef Slab* slab
    cdef Delivery child, whole = None, without = None
    cdef uint32_t i, at, span = 0
    for span in range(source.span_count):
        handle = <ColumnsHandle>source.spans[span].handle
        for i in range(source.spans[span].count):
            at = source.spans[span].first + i
            (<ColumnsHandle>handle).shard_at[source.rows[at]] = places[at].shard
    if source.delivery != NULL:
        parts = [None] * sealed.count
        children = []
        if leave:
            without = failed_with(error, len(leave))
            children.append(without)
        span = 0
        for i in range(sealed.count):
            while span < source.span_count and i >= source.spans[span].first + source.spans[span].count:
                span += 1
            if span < source.span_count and i >= source.spans[span].first:
                continue                 # a row of a bulk call, which has no PutHandle
            slab = places[i].slab
            if slab == NULL:
                parts[i] = (without, i)
                continue
            if slab.delivery == NULL:
                child = Delivery.__new__(Delivery)
                child.home = accumulator.home
                child.withdraw = accumulator.withdraw
                child.origin = accumulator.origins[places[i].shard]
                slab.delivery = <PyObject*>child
                Py_INCREF(child)
                children.append(child)
            else:
                child = <Delivery>slab.delivery
            child.count += 1
            parts[i] = (child, places[i].index)
        whole = <Delivery>source.delivery
        source.delivery = NULL
        for each in leave or ():
            (<PutHandle>each).settle_alone(without)
        Py_XDECREF(<PyObject*>whole)
    source.span_count = 0
    sk_add(&accumulator.lanes[sealed.shard].charged, -<int64_t>source.charged)
    source.charged = 0
    sealed.settled = True
    sealed.let_go()
    if whole is not None:
        whole.scatter(parts, children)       # last: callbacks of records that were left out are called
    return 0
