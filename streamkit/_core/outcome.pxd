# What became of records that were put. One Delivery a batch, one PutHandle a record, one ColumnsHandle a bulk call.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef enum:
    PENDING = 0
    STORED = 1
    FAILED = 2

cdef class Outcome:
    cdef readonly int state          # PENDING until the whole is settled
    cdef int generation              # of the process that made it; see forked()
    cdef object home                 # the event loop that settles it; blocking there would wait for itself
    cdef list callbacks              # called once, when settled; None: nobody waits
    cdef dict futures                # event loop -> futures of whoever awaits; None: nobody does
    cdef list latches                # of threads that wait; None: none does
    cdef object settle(self, int state)
    cdef object wake(self)
    cdef object nudge(self)
    cdef object orphaned(self)
    cdef int check_process(self) except -1

cdef class Delivery(Outcome):
    cdef object withdraw             # called with a PutHandle that is to be cancelled; None: nobody can
    cdef object origin               # (receipt, index of the record in the batch) -> PutResult
    cdef object receipt              # the PutReceipt of the batch, once it is stored
    cdef readonly object error
    cdef uint32_t count              # handles given out
    cdef uint32_t seen               # of these, whose failure somebody looked at
    cdef uint32_t dropped            # of these, which nobody holds any more
    cdef object attempts             # () or what each try came to, oldest first; set when it is settled
    cdef Delivery whole              # the batch whose records these were, while their handles still point there
    cdef list parts                  # None, or for each record (Delivery, index) of the batch that took it over
    cdef Py_ssize_t parts_left       # of those batches, how many are not settled
    cdef object scatter(self, list parts, list children)
    cdef uint32_t unheld(self)

cdef class PutHandle:
    cdef Delivery delivery
    cdef uint32_t index              # of its record in the batch
    cdef bint seen
    cdef int look(self)
    cdef int follow(self) except -1
    cdef int wait(self, object timeout_s, str again) except -1
    cdef Delivery locate(self, uint32_t* index)
    cdef object settle_alone(self, Delivery outcome)

cdef class ColumnsHandle(Outcome):
    cdef readonly Py_ssize_t count   # rows
    cdef readonly Py_ssize_t taken   # rows before it were taken in or refused; the next one to put
    cdef readonly Py_ssize_t settled # rows with an outcome
    cdef readonly Py_ssize_t failed
    cdef readonly list failures      # (error, rows it failed), one for each batch that failed
    cdef bint seen
    cdef bint kept                   # it owns a reference to itself, because C structs point to it
    cdef bytes state_bytes             # uint8[count], written in place until settled
    cdef bytes sequence_bytes        # uint64[count]
    cdef bytes shard_bytes           # uint32[count]
    cdef uint8_t* state_at
    cdef uint64_t* sequence_at
    cdef uint32_t* shard_at
    cdef object rows_settled(self, const uint32_t* rows, Py_ssize_t count, uint64_t first_sequence, object error)
    cdef int keep(self) except -1
    cdef object count_settled(self, Py_ssize_t rows, object error)

cdef Delivery failed_with(object error, uint32_t count)
