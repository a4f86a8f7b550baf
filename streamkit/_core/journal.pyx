"""Group commit: many appends, one fdatasync, over all shards of a node.

Appends arrive with push(); whoever flushes takes everything that waits as one job, carries it out and reports.
The real flusher is the thread below, which never takes the GIL; the simulator drives the same states through
take() and finish(). No timer: the next group forms while a sync runs.
Serves `log` and `storage.flusher`. Read the drawing in the .pxd, then `next_job`, then `form`.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.errno cimport EDQUOT, ENOMEM, ENOSPC
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memmove, memset

from streamkit._core.batch cimport sk_crc32c
from streamkit._core.debug cimport LIVE_JOURNAL, SK_COUNT, live_counts
from streamkit._core.files cimport begin_writeback, signal_event, sync_data, write_vectors

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t*, void*)
    int pthread_mutex_destroy(pthread_mutex_t*)
    int pthread_mutex_lock(pthread_mutex_t*)
    int pthread_mutex_unlock(pthread_mutex_t*)
    int pthread_cond_init(pthread_cond_t*, void*)
    int pthread_cond_destroy(pthread_cond_t*)
    int pthread_cond_signal(pthread_cond_t*)
    int pthread_cond_wait(pthread_cond_t*, pthread_mutex_t*)
    int pthread_create(pthread_t*, void*, void* (*)(void*) noexcept nogil, void*)
    int pthread_join(pthread_t, void**)

cdef enum:
    DIRECT_SLOTS_MAX = 4           # segments synced instead of journalled in one group; each costs a sync


# ---------------------------------------------------------------------------------------------- growing arrays

cdef bint grow(void** at, Py_ssize_t* room, Py_ssize_t count, size_t size) noexcept nogil:
    # Room for `count` elements of `size` bytes; False when there is no memory.
    cdef Py_ssize_t wanted = room[0] if room[0] else 16
    cdef void* grown
    if count <= room[0]:
        return True
    while wanted < count:
        wanted *= 2
    grown = realloc(at[0], <size_t>wanted * size)
    if grown == NULL:
        return False
    at[0] = grown
    room[0] = wanted
    return True


cdef bint grow_entries(Entries* entries, Py_ssize_t count) noexcept nogil:
    return grow(<void**>&entries.at, &entries.room, count, sizeof(Entry))


# ---------------------------------------------------------------------------------------------- forming a group

cdef bint select(State* state) noexcept nogil:
    # Under the lock: move what waits into the group, up to its bounds. False when there is no memory.
    cdef Py_ssize_t count = 0
    cdef uint64_t size = 0
    cdef Entries swapped
    while count < state.pending.count and count < GROUP_ENTRIES_MAX:
        size += state.pending.at[count].size
        if count and size > state.group_bytes_max:
            break
        count += 1
    if count == state.pending.count:
        swapped = state.group
        state.group = state.pending
        state.pending = swapped
        state.pending.count = 0
    else:
        if not grow_entries(&state.group, count):
            return False
        memcpy(state.group.at, state.pending.at, <size_t>count * sizeof(Entry))
        state.group.count = count
        state.pending.count -= count
        memmove(state.pending.at, state.pending.at + count, <size_t>state.pending.count * sizeof(Entry))
    state.phase = PHASE_SELECTED
    return True


cdef bint chain(State* state) noexcept nogil:
    # Link the group's entries by segment file and decide which files are written, and synced, directly.
    cdef Py_ssize_t i
    cdef Entry* entry
    cdef Slot* slot
    cdef int direct = 0
    state.slot_count = 0
    if not grow(<void**>&state.slots, &state.slot_room, state.group.count, sizeof(Slot*)):
        return False
    for i in range(state.group.count):
        entry = &state.group.at[i]
        entry.next = -1
        slot = entry.slot
        if slot.first < 0:
            slot.first = <int32_t>i
            slot.bytes = 0
            slot.fsync = False
            slot.held = False
            slot.direct = False
            state.slots[state.slot_count] = slot
            state.slot_count += 1
        else:
            state.group.at[slot.last].next = <int32_t>i
        slot.last = <int32_t>i
        slot.bytes += entry.size
        slot.fsync = slot.fsync or entry.level == LEVEL_FSYNC
        slot.held = slot.held or entry.held
    for i in range(state.slot_count):
        slot = state.slots[i]
        if not slot.fsync:
            slot.direct = True
        elif slot.named and slot.bytes >= state.bypass_bytes and (
                direct < DIRECT_SLOTS_MAX or slot.bytes > state.group_bytes_max):
            slot.direct = True
            direct += 1
    return True


cdef bint add_write(State* state, int fd, PyObject* file, uint64_t position, Py_ssize_t first, bint sync) noexcept nogil:
    # The vectors from `first` on, at `position` of a file.
    cdef Write* write
    if not grow(<void**>&state.writes, &state.write_room, state.write_count + 1, sizeof(Write)):
        return False
    write = &state.writes[state.write_count]
    write.fd = fd
    write.file = file
    write.position = <int64_t>position
    write.vector_first = first
    write.vector_count = state.vector_count - first
    write.soon = False
    write.sync = sync
    state.write_count += 1
    return True


cdef bint add_vector(State* state, const void* at, size_t size) noexcept nogil:
    if not grow(<void**>&state.vectors, &state.vector_room, state.vector_count + 1, sizeof(iovec)):
        return False
    state.vectors[state.vector_count].iov_base = <void*>at
    state.vectors[state.vector_count].iov_len = size
    state.vector_count += 1
    return True


cdef bint add_segment(State* state, Slot* slot, bint sync) noexcept nogil:
    # One write for the slot's chain: its batches lie one after the other in the file.
    cdef Py_ssize_t first = state.vector_count
    cdef int32_t i = slot.first
    while i >= 0:
        if not add_vector(state, state.group.at[i].at, state.group.at[i].size):
            return False
        i = state.group.at[i].next
    return add_write(state, slot.fd, slot.file, state.group.at[slot.first].position, first, sync)


cdef int form(State* state) noexcept nogil:
    # The writes that make the group durable: segments, their syncs, the journal. 0, ENOMEM, or -1: the journal has no room prepared for it.
    cdef Py_ssize_t i
    cdef Slot* slot
    cdef Entry* entry
    cdef uint64_t data = 0
    cdef Py_ssize_t listed = 0
    cdef bint journalled = False
    cdef int answer
    state.write_count = 0
    state.vector_count = 0
    if state.slot_count == 0 and not chain(state):
        return ENOMEM
    for i in range(state.group.count):
        entry = &state.group.at[i]
        if entry.level == LEVEL_FSYNC:
            listed += 1
            if not entry.slot.direct:
                data += entry.size
                journalled = True
    if listed:
        answer = make_room(state, listed, data)
        if answer:
            return answer
    for i in range(state.slot_count):
        slot = state.slots[i]
        if slot.direct:
            if not add_segment(state, slot, False):
                return ENOMEM
            state.writes[state.write_count - 1].soon = slot.fsync
    for i in range(state.slot_count):          # all writes before the first sync: the disk works on them together
        slot = state.slots[i]
        if slot.direct and slot.fsync and not add_write(state, slot.fd, slot.file, 0, state.vector_count, True):
            return ENOMEM
    if listed and not form_journal(state, listed, data, journalled):
        return ENOMEM
    return 0


cdef uint64_t header_size(State* state, Py_ssize_t listed) noexcept nogil:
    return (GROUP_HEADER_BYTES + GROUP_DURABLE_BYTES * <uint64_t>state.durable_count
            + GROUP_ENTRY_BYTES * <uint64_t>listed)


cdef int make_room(State* state, Py_ssize_t listed, uint64_t data) noexcept nogil:
    # The current file has room for the group afterwards. 0, ENOMEM, or -1 when another file must be waited for.
    cdef uint64_t size = header_size(state, listed) + data
    cdef int answer = 0
    size = (size + JOURNAL_ALIGNMENT - 1) & ~<uint64_t>(JOURNAL_ALIGNMENT - 1)
    pthread_mutex_lock(&state.lock)
    if state.position + size > state.current.size:
        if state.spare_count == 0:
            state.starved = True
            answer = -1
        elif not grow(<void**>&state.retired, &state.retired_room, state.retired_count + 1, sizeof(JournalFile)):
            answer = ENOMEM
        else:
            if state.unsynced and not add_write(state, state.current.fd, state.current.file, 0, state.vector_count, True):
                answer = ENOMEM
            state.retired[state.retired_count] = state.current
            state.retired_count += 1
            state.current = state.spares[0]
            state.spare_count -= 1
            memmove(&state.spares[0], &state.spares[1], <size_t>state.spare_count * sizeof(JournalFile))
            state.position = JOURNAL_ALIGNMENT
            state.unsynced = False
    pthread_mutex_unlock(&state.lock)
    return answer


cdef bint form_journal(State* state, Py_ssize_t listed, uint64_t data, bint journalled) noexcept nogil:
    # The group's header, tables and batches as one write to the journal.
    cdef uint64_t header_bytes = header_size(state, listed)
    cdef uint64_t size = (header_bytes + data + JOURNAL_ALIGNMENT - 1) & ~<uint64_t>(JOURNAL_ALIGNMENT - 1)
    cdef uint64_t padding = size - header_bytes - data
    cdef Py_ssize_t first = state.vector_count
    cdef uint8_t* at
    cdef Py_ssize_t i
    cdef Entry* entry
    cdef uint32_t number
    if not grow(<void**>&state.header, &state.header_room, <Py_ssize_t>(header_bytes + padding), 1):
        return False
    memset(state.header, 0, header_bytes + padding)
    if not add_vector(state, state.header, header_bytes):
        return False
    at = state.header + GROUP_HEADER_BYTES
    for i in range(state.durable_count):
        memcpy(at, state.durable[i].uuid, 16)
        memcpy(at + 16, &state.durable[i].end, 8)
        at += GROUP_DURABLE_BYTES
    for i in range(state.group.count):
        entry = &state.group.at[i]
        if entry.level != LEVEL_FSYNC:
            continue
        memcpy(at, entry.uuid, 16)
        memcpy(at + 16, &entry.segment_base, 8)
        memcpy(at + 24, &entry.position, 8)
        memcpy(at + 32, &entry.base, 8)
        memcpy(at + 40, &entry.end, 8)
        memcpy(at + 48, &entry.size, 4)
        at[52] = 2 if entry.slot.direct else 1
        at += GROUP_ENTRY_BYTES
        if not entry.slot.direct and not add_vector(state, entry.at, entry.size):
            return False
    if padding and not add_vector(state, state.header + header_bytes, padding):
        return False
    at = state.header
    memcpy(at, b"SKG1", 4)
    memcpy(at + 8, &state.group_number, 8)
    memcpy(at + 16, &state.current.number, 8)
    memcpy(at + 24, &state.previous_crc, 4)
    number = <uint32_t>header_bytes
    memcpy(at + 28, &number, 4)
    memcpy(at + 32, &data, 8)
    number = <uint32_t>listed
    memcpy(at + 40, &number, 4)
    number = <uint32_t>state.durable_count
    memcpy(at + 44, &number, 4)
    state.previous_crc = sk_crc32c(0, at + 8, header_bytes - 8)
    memcpy(at + 4, &state.previous_crc, 4)
    # References alone only tell recovery what their segment's sync already made durable: no second sync for them.
    if not add_write(state, state.current.fd, state.current.file, state.position, first, journalled):
        return False
    state.unsynced = not journalled
    state.group_number += 1
    state.position += size
    return True


cdef bint form_segments(State* state) noexcept nogil:
    # The writes that bring journalled batches into their segments.
    cdef Py_ssize_t i
    state.write_count = 0
    state.vector_count = 0
    for i in range(state.slot_count):
        if not state.slots[i].direct and not add_segment(state, state.slots[i], False):
            return False
    return True


# ---------------------------------------------------------------------------------------------- the states

cdef int next_job(State* state) noexcept nogil:
    # 1: state.writes is a job to carry out; 0: nothing to do now; ENOMEM (failed).
    cdef int answer
    if state.phase == PHASE_FAILED or state.stalled:
        return 0
    if state.phase == PHASE_DURABLE or state.phase == PHASE_SEGMENTS:
        return 1                   # a job that was interrupted by a full disk: the same writes once more
    if state.phase == PHASE_IDLE:
        pthread_mutex_lock(&state.lock)
        answer = state.pending.count != 0
        if answer and not select(state):
            answer = ENOMEM
        pthread_mutex_unlock(&state.lock)
        if answer != 1:
            return answer
    answer = form(state)
    if answer < 0:
        return 0
    if answer:
        return answer
    state.phase = PHASE_DURABLE
    return 1


cdef bint add_done(State* state, PyObject* segment, uint64_t end, bint durable, bint written) noexcept nogil:
    if not grow(<void**>&state.done, &state.done_room, state.done_count + 1, sizeof(Done)):
        return False
    state.done[state.done_count].segment = segment
    state.done[state.done_count].end = end
    state.done[state.done_count].durable = durable
    state.done[state.done_count].written = written
    state.done_count += 1
    return True


cdef bint publish_durable(State* state, bint* more) noexcept nogil:
    # Under the lock, when the group's first job is done. more: batches must still be brought into their segments.
    cdef Py_ssize_t i
    cdef Slot* slot
    cdef Entry* last
    cdef bint listed = False
    more[0] = False
    for i in range(state.slot_count):
        listed = listed or state.slots[i].fsync
    if listed:
        state.durable_count = 0
        if not grow(<void**>&state.durable, &state.durable_room, state.slot_count, sizeof(Durable)):
            return False
    for i in range(state.slot_count):
        slot = state.slots[i]
        last = &state.group.at[slot.last]
        if slot.fsync and not slot.held:
            memcpy(state.durable[state.durable_count].uuid, last.uuid, 16)
            state.durable[state.durable_count].end = last.end
            state.durable_count += 1
        if not slot.direct:
            more[0] = True
        if not add_done(state, last.segment, last.end, slot.fsync, slot.direct):
            return False
    state.groups += 1
    return True


cdef bint release(State* state) noexcept nogil:
    # Under the lock: the group is in its segments; the loop gives the references back.
    cdef Py_ssize_t i
    if not grow_entries(&state.released, state.released.count + state.group.count):
        return False
    memcpy(state.released.at + state.released.count, state.group.at, <size_t>state.group.count * sizeof(Entry))
    state.released.count += state.group.count
    for i in range(state.group.count):
        state.pending_bytes -= state.group.at[i].size
    for i in range(state.slot_count):
        state.slots[i].first = -1
    state.group.count = 0
    state.slot_count = 0
    state.phase = PHASE_IDLE
    return True


cdef void finish_job(State* state, int error, PyObject* file) noexcept nogil:
    cdef bint more = False
    cdef bint sound = True
    cdef Py_ssize_t i
    pthread_mutex_lock(&state.lock)
    if error == ENOSPC or error == EDQUOT:
        state.stalled = True
        state.error = error
        state.error_file = file
    elif error:
        state.phase = PHASE_FAILED
        state.error = error
        state.error_file = file
    else:
        for i in range(state.write_count):
            state.syncs += state.writes[i].sync
        if state.phase == PHASE_DURABLE:
            sound = publish_durable(state, &more)
            if sound and more:
                sound = form_segments(state)
                state.phase = PHASE_SEGMENTS
            elif sound:
                sound = release(state)
        else:
            for i in range(state.slot_count):
                if not state.slots[i].direct:
                    sound = sound and add_done(state, state.group.at[state.slots[i].last].segment,
                                               state.group.at[state.slots[i].last].end, False, True)
            sound = sound and release(state)
        if not sound:
            state.phase = PHASE_FAILED
            state.error = ENOMEM
    pthread_mutex_unlock(&state.lock)


cdef int carry_out(State* state, PyObject** file) noexcept nogil:
    # 0, or the errno of the first write that failed, with its file.
    cdef Py_ssize_t i
    cdef Write* write
    cdef int error = 0
    cdef Py_ssize_t k
    cdef int64_t size
    for i in range(state.write_count):
        write = &state.writes[i]
        file[0] = write.file
        if write.vector_count:
            error = write_vectors(write.fd, state.vectors + write.vector_first, write.vector_count, write.position)
        if not error and write.soon:
            size = 0
            for k in range(write.vector_first, write.vector_first + write.vector_count):
                size += <int64_t>state.vectors[k].iov_len
            begin_writeback(write.fd, write.position, size)
        if not error and write.sync:
            error = sync_data(write.fd)
            if error == ENOSPC or error == EDQUOT:
                error = 5          # EIO: what a failed sync left behind is not known, so it is not done again
        if error:
            return error
    return 0


cdef inline bint nothing_to_do(State* state) noexcept nogil:
    # Under the lock.
    return (state.stalled or state.starved or state.phase == PHASE_FAILED
            or (state.phase == PHASE_IDLE and state.pending.count == 0))


cdef void* flush_forever(void* argument) noexcept nogil:
    cdef State* state = <State*>argument
    cdef int answer
    cdef PyObject* file = NULL
    cdef bint idle
    cdef bint news
    while True:
        answer = next_job(state)
        news = state.phase == PHASE_DURABLE
        if answer == 1:
            answer = carry_out(state, &file)
            finish_job(state, answer, file)
        elif answer:
            finish_job(state, answer, NULL)
        pthread_mutex_lock(&state.lock)
        idle = nothing_to_do(state)
        pthread_mutex_unlock(&state.lock)
        if idle or news:
            signal_event(state.event)          # after what acknowledgements wait for, and before sleeping
        if not idle:
            continue
        pthread_mutex_lock(&state.lock)
        while not state.stopping and nothing_to_do(state):
            state.sleeping = True
            pthread_cond_wait(&state.wakes, &state.lock)
        state.sleeping = False
        idle = nothing_to_do(state)
        if state.stopping and idle:
            pthread_mutex_unlock(&state.lock)
            return NULL
        pthread_mutex_unlock(&state.lock)


# ---------------------------------------------------------------------------------------------- Python's side

cdef class Journal:
    """The groups of a node, waiting, under way and done.

    bypass_bytes: a segment that gets at least so much in one group is written and synced itself; the journal
    gets references. group_bytes_max: bound of one group (a larger single batch goes alone).
    """

    def __cinit__(self, *, uint64_t bypass_bytes, uint64_t group_bytes_max, uint64_t group_number, uint32_t previous_crc):
        self.state = <State*>calloc(1, sizeof(State))
        if self.state == NULL:
            raise MemoryError()
        SK_COUNT(live_counts[LIVE_JOURNAL], 1)
        pthread_mutex_init(&self.state.lock, NULL)
        pthread_cond_init(&self.state.wakes, NULL)
        self.state.bypass_bytes = bypass_bytes
        self.state.group_bytes_max = group_bytes_max
        self.state.group_number = group_number
        self.state.previous_crc = previous_crc
        self.state.event = -1
        self.lent = []

    def __dealloc__(self):
        cdef State* state = self.state
        cdef Py_ssize_t i
        if state == NULL:
            return
        SK_COUNT(live_counts[LIVE_JOURNAL], -1)
        assert not state.thread_runs, "the flusher is stopped before its journal goes"
        for entries in range(3):
            give_back(&state.pending if entries == 0 else &state.group if entries == 1 else &state.released)
        for i in range(state.spare_count):
            Py_DECREF(<object>state.spares[i].file)
        for i in range(state.retired_count):
            Py_DECREF(<object>state.retired[i].file)
        if state.current.file != NULL:
            Py_DECREF(<object>state.current.file)
        pthread_mutex_destroy(&state.lock)
        pthread_cond_destroy(&state.wakes)
        free(state.pending.at)
        free(state.group.at)
        free(state.released.at)
        free(state.done)
        free(state.retired)
        free(state.slots)
        free(state.writes)
        free(state.vectors)
        free(state.header)
        free(state.durable)
        free(state)

    def abandon(self) -> None:
        """Give back what was pushed and will never be flushed; for an owner that ends. No thread may run.

        The collector does not see the journal's references, so that segments left here would keep their shard, the
        shard its node, and the node this journal.
        """
        assert not self.state.thread_runs, "the flusher is stopped before its journal is abandoned"
        give_back(&self.state.pending)
        give_back(&self.state.group)
        give_back(&self.state.released)

    cdef int push(self, Entry* entry) except -1:
        # Takes over nothing before it succeeds; then the entry's references are the journal's until collect().
        cdef State* state = self.state
        cdef bint room
        pthread_mutex_lock(&state.lock)
        room = grow_entries(&state.pending, state.pending.count + 1)
        if room:
            state.pending.at[state.pending.count] = entry[0]
            state.pending.count += 1
            state.pending_bytes += entry.size
        pthread_mutex_unlock(&state.lock)
        if not room:
            raise MemoryError()
        Py_INCREF(<object>entry.segment)
        Py_INCREF(<object>entry.batch)
        return 0

    def collect_retired(self) -> list:
        """(file, number) of the journal files that became full since the last call, oldest first."""
        cdef State* state = self.state
        cdef list retired = []
        cdef Py_ssize_t i
        pthread_mutex_lock(&state.lock)
        for i in range(state.retired_count):
            retired.append((<object>state.retired[i].file, state.retired[i].number))
            Py_DECREF(<object>state.retired[i].file)
        state.retired_count = 0
        pthread_mutex_unlock(&state.lock)
        return retired

    cdef void drain(self, News* news) noexcept:
        # Moves what is done out of the shared state; free_news() gives it back.
        cdef State* state = self.state
        memset(news, 0, sizeof(News))
        pthread_mutex_lock(&state.lock)
        news.done = state.done
        news.done_count = state.done_count
        news.released = state.released
        state.done = NULL
        state.done_count = 0
        state.done_room = 0
        memset(&state.released, 0, sizeof(Entries))
        pthread_mutex_unlock(&state.lock)

    cdef int free_news(self, News* news) except -1:
        free(news.done)
        give_back(&news.released)
        free(news.released.at)
        return 0

    def start_file(self, file, uint64_t number, uint64_t size):
        """The first file to write to: zeroed and synced, as is every file that comes here, for its whole size."""
        assert self.state.current.file == NULL, "the journal has its first file once"
        Py_INCREF(file)
        self.state.current = JournalFile(file.fileno(), <PyObject*>file, number, size)
        self.state.position = JOURNAL_ALIGNMENT

    def add_spare(self, file, uint64_t number, uint64_t size) -> None:
        """A wholly prepared file, to be used after the present one."""
        cdef State* state = self.state
        assert state.spare_count < SPARES_MAX, "at most four spare files"
        Py_INCREF(file)
        pthread_mutex_lock(&state.lock)
        state.spares[state.spare_count] = JournalFile(file.fileno(), <PyObject*>file, number, size)
        state.spare_count += 1
        state.starved = False
        wake_flusher(state)
        pthread_mutex_unlock(&state.lock)

    def take_writes(self):
        """The next job as a list of (file, position, buffers, sync), or None. For whoever flushes in Python."""
        cdef State* state = self.state
        cdef int answer = next_job(state)
        cdef Py_ssize_t i, k
        cdef list job = []
        cdef list buffers
        if answer == 0:
            return None
        if answer != 1:
            finish_job(state, answer, NULL)
            return None
        for i in range(state.write_count):
            buffers = []
            for k in range(state.writes[i].vector_first, state.writes[i].vector_first + state.writes[i].vector_count):
                buffers.append(PyBytes_FromStringAndSize(<char*>state.vectors[k].iov_base,
                                                         <Py_ssize_t>state.vectors[k].iov_len))
            job.append((<object>state.writes[i].file, state.writes[i].position, buffers, bool(state.writes[i].sync)))
        self.lent = job
        return job

    def finish(self, int error, bint syncing=False) -> None:
        """The job that take_writes() gave is carried out: 0, or the errno of the first write that failed.

        syncing: it was a sync that failed, which is final whatever its number.
        """
        if syncing and (error == ENOSPC or error == EDQUOT):
            error = 5
        finish_job(self.state, error, self.state.writes[0].file if self.state.write_count else NULL)
        self.lent = []

    def resume(self) -> None:
        """There is space again: carry out the job that failed for want of it once more."""
        cdef State* state = self.state
        pthread_mutex_lock(&state.lock)
        state.stalled = False
        wake_flusher(state)
        pthread_mutex_unlock(&state.lock)

    def wake(self) -> None:
        """There is something to flush."""
        pthread_mutex_lock(&self.state.lock)
        wake_flusher(self.state)
        pthread_mutex_unlock(&self.state.lock)

    def start_thread(self, int event) -> None:
        """Flush on a thread of its own from now on; it signals `event` (an eventfd) when there is news."""
        cdef State* state = self.state
        assert not state.thread_runs, "one flusher a journal"
        state.event = event
        state.stopping = False
        if pthread_create(&state.thread, NULL, flush_forever, state) != 0:
            raise RuntimeError("cannot start the flusher thread")
        state.thread_runs = True

    def stop_thread(self) -> None:
        """Flush what can be flushed, then end the thread. Waits for it without the GIL; no error when none runs."""
        cdef State* state = self.state
        if not state.thread_runs:
            return
        pthread_mutex_lock(&state.lock)
        state.stopping = True
        pthread_cond_signal(&state.wakes)
        pthread_mutex_unlock(&state.lock)
        with nogil:
            pthread_join(state.thread, NULL)
        state.thread_runs = False

    @property
    def failed(self):
        """(errno, path) once a write or sync failed for good; None before."""
        cdef State* state = self.state
        if state.phase != PHASE_FAILED:
            return None
        return state.error, (<object>state.error_file).path if state.error_file != NULL else ""

    @property
    def stalled(self):
        """True while a job waits for space on the disk."""
        return bool(self.state.stalled)

    @property
    def starved(self):
        """True while a group waits for a prepared journal file."""
        return bool(self.state.starved)

    @property
    def idle(self):
        """True when nothing waits and nothing is under way."""
        return self.state.phase == PHASE_IDLE and self.state.pending.count == 0

    @property
    def pending_bytes(self):
        """Bytes of batches that are not yet in their segment files; they are held in memory."""
        return self.state.pending_bytes

    @property
    def place(self):
        """(number, position, size, spares) of the file being written; number 0 before start_file()."""
        cdef State* state = self.state
        return (state.current.number, state.position, state.current.size, state.spare_count)

    @property
    def horizon(self):
        """(file number, group number): every group that is done, and no later one, is in that file or an earlier
        one and has at most that number."""
        # Under the lock: the flusher, which goes on meanwhile, must not begin another file between the two.
        cdef State* state = self.state
        cdef uint64_t group
        cdef uint64_t file
        pthread_mutex_lock(&state.lock)
        group, file = state.group_number - 1, state.current.number
        pthread_mutex_unlock(&state.lock)
        return file, group

    @property
    def counts(self):
        """(groups, syncs) since the start."""
        return self.state.groups, self.state.syncs


cdef void wake_flusher(State* state) noexcept nogil:
    if state.sleeping:
        state.sleeping = False
        pthread_cond_signal(&state.wakes)


cdef int give_back(Entries* entries) except -1:
    cdef Py_ssize_t i
    for i in range(entries.count):
        Py_DECREF(<object>entries.at[i].segment)
        Py_DECREF(<object>entries.at[i].batch)
    entries.count = 0
    return 0
