"""What became of records that were put: handles that cost nothing until somebody waits.

A Delivery holds the outcome of one batch; the PutHandle of a record is a reference to it and an index. Of a batch that
was taken apart, because its shard was closed, each record has its outcome when the batch that took it over is settled;
the Delivery itself, which handles still point to, is settled when all of those are. Latches and futures are made only
when somebody waits, and one call to each event loop wakes all who wait there. A ColumnsHandle holds three plain arrays
for all rows of a bulk call.
"""

import asyncio
import logging
from types import GenericAlias

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.string cimport memset

from streamkit._core.debug cimport LIVE_HANDLE, SK_COUNT, live_counts

from streamkit.errors import Cancelled, Closed, ForkedHandle, PutFailed, StreamkitError, TimedOut, InvalidUse

cdef object log = logging.getLogger("streamkit.producer")
cdef object new_latch = None
cdef int generation = 0
cdef object running_loop = asyncio._get_running_loop

globals()["PENDING"] = PENDING
globals()["STORED"] = STORED
globals()["FAILED"] = FAILED


def set_latch(factory) -> None:
    """What a blocking wait waits on: () → object with set() and wait(timeout_s) → bool. Set by the producer room."""
    global new_latch
    new_latch = factory


def forked() -> None:
    """Called in a child process: everything still pending belongs to the parent."""
    global generation
    generation += 1


def resolve(futures) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


cdef object again(object error):
    # A fresh copy for each raise: one exception object raised in many places would mix up their tracebacks.
    if not isinstance(error, StreamkitError):
        return error
    copied = type(error)(str(error), try_=error.try_, **error.facts)
    copied.__cause__ = error.__cause__
    return copied


cdef object for_record(object error, uint32_t place):
    # The batch's error as that of one record: a token that is asked with says which.
    if not isinstance(error, StreamkitError) or not error.facts.get("token"):
        return error
    copied = again(error)
    copied.facts["token"] = f"{error.facts['token']}.{place}"
    return copied


cdef object call_each(list callbacks):
    for callback in callbacks:
        try:
            callback()
        except Exception:                    # the caller's code; it must not stop the sender
            log.exception("put.callback_failed")


cdef bint taken_apart(Outcome outcome):
    return isinstance(outcome, Delivery) and (<Delivery>outcome).parts is not None


cdef class Outcome:
    """Something that will be settled once, by the event loop `home`; anybody may wait for it."""

    def __cinit__(self):
        self.generation = generation
        SK_COUNT(live_counts[LIVE_HANDLE], 1)

    def __dealloc__(self):
        SK_COUNT(live_counts[LIVE_HANDLE], -1)

    cdef int check_process(self) except -1:
        if self.state == PENDING and self.generation != generation:
            raise ForkedHandle("this record was put before a fork and belongs to the parent process",
                               try_="make the producer in the process that uses it")
        if self.state == PENDING and self.home is not None and self.home.is_closed():
            self.orphaned()
        return 0

    cdef object orphaned(self):
        # Nobody is left who could settle it: the loop ended before the producer was closed.
        return None

    cdef object settle(self, int state):
        # On `home`, once. Callbacks run there too; what they raise is logged.
        assert self.state == PENDING, "an outcome is settled once"
        self.state = state
        callbacks, self.callbacks = self.callbacks, None
        if self.generation != generation:
            return                           # a child's copy: whoever waits does so in the parent
        self.wake()
        if callbacks is not None:
            call_each(callbacks)

    cdef object wake(self):
        futures, self.futures = self.futures, None
        latches, self.latches = self.latches, None
        if futures is not None:
            current = running_loop()
            for loop, waiting in futures.items():
                if loop is current:
                    resolve(waiting)
                elif not loop.is_closed():
                    loop.call_soon_threadsafe(resolve, waiting)
        for latch in latches or ():
            latch.set()

    cdef object nudge(self):
        # Records lie elsewhere now, or have their outcome before the others: whoever waits looks again.
        if self.state == PENDING and self.generation == generation:
            self.wake()

    def done(self) -> bool:
        self.check_process()
        return self.state != PENDING

    def when_done(self, callback not None) -> None:
        """Call `callback()` when settled; at once when it is."""
        self.check_process()
        if self.state == PENDING:
            if self.callbacks is None:
                self.callbacks = []
            self.callbacks.append(callback)
        else:
            callback()

    def wait(self, timeout_s=None) -> bool:
        """Block until settled, or taken apart; False when `timeout_s` passed first."""
        self.check_process()
        if self.state != PENDING:
            return True
        if self.home is not None and running_loop() is self.home:
            raise InvalidUse("waiting here would stop the event loop that settles it", try_="await it instead")
        latch = new_latch()
        if self.latches is None:
            self.latches = []
        self.latches.append(latch)
        # It may have been settled or taken apart before the latch was there.
        return self.state != PENDING or taken_apart(self) or latch.wait(timeout_s)

    def wait_async(self):
        """A future on the running loop that completes when settled, or taken apart."""
        self.check_process()
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        if self.state != PENDING or taken_apart(self):
            future.set_result(None)
            return future
        if self.futures is None:
            self.futures = {}
        self.futures.setdefault(loop, []).append(future)
        return future


@cython.final
cdef class Delivery(Outcome):
    """The outcome of one batch."""

    cdef object scatter(self, list parts, list children):
        # On `home`. Each record's outcome is that of a record of one of the children now; who waits for it waits there.
        cdef Delivery found
        self.parts = parts
        self.parts_left = len(children)
        for child in children:
            (<Delivery>child).whole = self
        callbacks, self.callbacks = self.callbacks, None
        due = []
        for callback in callbacks or ():
            found = holder((<Told>callback).handle) if isinstance(callback, Told) else self
            if found.state == PENDING:
                found.when_done(callback)
            else:
                due.append(callback)
        for child in children:
            (<Delivery>child).when_done(self.part_settled)
        self.nudge()
        call_each(due)

    def part_settled(self) -> None:
        """One of the batches that took records over has its outcome."""
        self.parts_left -= 1
        if self.parts_left == 0:
            for part in self.parts:
                if part is not None:
                    (<Delivery>part[0]).whole = None       # no circle is left behind
            failed = any((<Delivery>part[0]).state == FAILED for part in self.parts if part is not None)
            self.settle(FAILED if failed else STORED)

    cdef object settle(self, int state):
        self.withdraw = None
        if self.state == PENDING:            # else its loop had ended, and somebody asked
            Outcome.settle(self, state)

    cdef object orphaned(self):
        self.error = Closed("the event loop of the producer was closed before the record was acknowledged",
                            try_="close the producer before its loop ends; the record may be stored", what="producer",
                            sent=True, token="")
        self.settle(FAILED)

    cdef uint32_t unheld(self):
        # Of a batch taken apart it is not known whose handles went: only when all of them did.
        cdef Delivery whole = self.whole
        if whole is None:
            return self.dropped
        return self.count if whole.unheld() == whole.count else 0

    def unseen(self) -> int:
        """Failed records whose handle nobody has looked at."""
        return self.count - self.seen if self.state == FAILED else 0

    def look(self) -> None:
        """Count every failure of the batch as seen."""
        self.seen = self.count


cdef Delivery failed_with(object error, uint32_t count):
    # The outcome of `count` records that ended by the wish of whoever put them: flush does not raise it.
    cdef Delivery delivery = Delivery.__new__(Delivery)
    delivery.error = error
    delivery.count = delivery.seen = count
    delivery.settle(FAILED)
    return delivery


def refused(error not None) -> PutHandle:
    """The handle of a record that was not taken, by the wish of whoever made the producer: flush does not raise it."""
    cdef PutHandle handle = PutHandle.__new__(PutHandle)
    handle.delivery = failed_with(error, 1)
    handle.seen = True
    return handle


def refused_entry(error not None) -> tuple:
    """(handle, outcome) of a record that was refused among others: flush raises the outcome if nobody looks before."""
    cdef PutHandle handle = refused(error)
    handle.seen = False
    handle.delivery.seen = 0
    return handle, handle.delivery


def known(result) -> PutHandle:
    """The handle of a record that is stored already, with its PutResult."""
    cdef PutHandle handle = PutHandle.__new__(PutHandle)
    cdef Delivery delivery = Delivery.__new__(Delivery)
    delivery.origin = lambda receipt, index: result
    delivery.count = 1
    delivery.settle(STORED)
    handle.delivery = delivery
    return handle


cdef Delivery holder(PutHandle handle):
    # The batch that holds the record now.
    cdef uint32_t index
    return handle.locate(&index)


@cython.final
cdef class Told:
    # A callback of a record: it goes where the record goes.
    cdef PutHandle handle
    cdef object callback

    def __cinit__(self, PutHandle handle, callback):
        self.handle = handle
        self.callback = callback

    def __call__(self):
        self.callback(self.handle)


@cython.final
@cython.freelist(1024)
cdef class PutHandle:
    """The fate of one record. Dropping it is fine: a failure nobody looked at is raised by flush and close."""

    __class_getitem__ = classmethod(GenericAlias)

    def __dealloc__(self):
        if self.delivery is not None:
            self.delivery.dropped += 1

    @property
    def attempts(self) -> tuple:
        """What each try to store the record came to, oldest first; () until it has its outcome."""
        if holder(self).state == PENDING:
            return ()
        self.follow()
        return self.delivery.attempts or ()

    def done(self) -> bool:
        return holder(self).done()

    @property
    def outcome(self) -> str:
        """"pending", "stored", "failed" or "cancelled". A failure that was seen here only is still raised by flush."""
        if not self.done():
            return "pending"
        self.follow()
        if self.delivery.state == STORED:
            return "stored"
        return "cancelled" if isinstance(self.delivery.error, Cancelled) else "failed"

    def result(self, timeout_s=None):
        """The PutResult. Waits `timeout_s` (None: until delivery_timeout_ms settles it), anew when the record goes to
        another shard after a split or merge. Raises what failed the record.

        Raises TimedOut (sent=True) when the record is still under way then, ForkedHandle in a child process.
        """
        cdef Delivery delivery
        self.wait(timeout_s, "result")
        delivery = self.delivery
        if delivery.state == FAILED:
            self.look()
            raise again(for_record(delivery.error, self.index))
        return delivery.origin(delivery.receipt, self.index)

    def exception(self, timeout_s=None):
        """The error that failed the record, or None. Waits like result()."""
        cdef Delivery delivery
        self.wait(timeout_s, "exception")
        delivery = self.delivery
        if delivery.state != FAILED:
            return None
        self.look()
        return for_record(delivery.error, self.index)

    def add_done_callback(self, callback not None) -> None:
        """Call `callback(handle)` when settled, on the producer's event loop; at once when it is settled already."""
        holder(self).when_done(Told(self, callback))

    cdef int wait(self, object timeout_s, str again) except -1:
        cdef Delivery delivery
        while not (delivery := holder(self)).done():     # taken apart: it waits so long again, where the record is now
            if not delivery.wait(timeout_s):
                raise TimedOut(f"not acknowledged within {timeout_s} s; the producer goes on trying",
                               try_=f"call {again}() again", sent=True, timeout_ms=int((timeout_s or 0) * 1000))
        self.follow()
        return 0

    def __await__(self):
        while not self.done():
            yield from holder(self).wait_async()
        return self.result()

    def cancel(self) -> bool:
        """Ask that the record not be stored; False when it has its outcome already. From any thread; does not wait.

        What came of it is the handle's outcome, as ever: a record that is not under way yet fails with Cancelled, and
        is not stored, for certain. One that was sent is stored or not with its whole batch: it is cancelled when all
        records of the batch are to be, and the shard says that it has none of them; else the handle has a result.
        """
        cdef Delivery delivery = holder(self)
        delivery.check_process()
        if delivery.state != PENDING or delivery.withdraw is None:
            return False
        delivery.withdraw(self)
        return True

    cdef Delivery locate(self, uint32_t* index):
        # The batch that holds the record now, pending or not, and its place there.
        cdef Delivery delivery = self.delivery
        index[0] = self.index
        while delivery.parts is not None:
            found, place = delivery.parts[index[0]]
            delivery, index[0] = found, place
        return delivery

    cdef object settle_alone(self, Delivery outcome):
        # Before the rest of its batch; called where `outcome` counts this handle as one whose failure was seen.
        self.delivery.dropped += 1
        self.delivery = outcome
        self.index = 0
        self.seen = True

    cdef int follow(self) except -1:
        # To the batch that holds the record at last, which is settled.
        cdef Delivery left
        while self.delivery.parts is not None:
            left = self.delivery             # collected after both fields are set
            delivery, index = left.parts[self.index]
            self.index = index
            self.delivery = delivery
            left.dropped += 1
        self.delivery.check_process()
        return 0

    cdef int look(self):
        if not self.seen:
            self.seen = True
            self.delivery.seen += 1
        return 0

    def __repr__(self) -> str:
        if holder(self).state != PENDING:
            self.follow()
        return f"PutHandle({('pending', 'stored', 'failed')[self.delivery.state]})"


@cython.final
cdef class ColumnsHandle(Outcome):
    """The fate of every row of a bulk call, as arrays in row order.

    states: uint8, 0 pending, 1 stored, 2 failed. sequences: uint64, meaningful where stored. shards: uint32, index
    of the shard in the stream's description. The arrays are filled while batches are acknowledged.
    """

    def __cinit__(self, Py_ssize_t count, home=None):
        self.count = count
        self.home = home
        self.failures = []
        self.state_bytes = PyBytes_FromStringAndSize(NULL, count + 1)      # never the shared empty object: it is written to
        self.sequence_bytes = PyBytes_FromStringAndSize(NULL, 8 * count + 8)
        self.shard_bytes = PyBytes_FromStringAndSize(NULL, 4 * count + 4)
        self.state_at = <uint8_t*>PyBytes_AS_STRING(self.state_bytes)
        self.sequence_at = <uint64_t*>PyBytes_AS_STRING(self.sequence_bytes)
        self.shard_at = <uint32_t*>PyBytes_AS_STRING(self.shard_bytes)
        memset(self.state_at, 0, count)
        memset(self.sequence_at, 0, 8 * count)
        memset(self.shard_at, 0, 4 * count)
        if count == 0:
            self.state = STORED

    cdef object rows_settled(self, const uint32_t* rows, Py_ssize_t count, uint64_t first_sequence, object error):
        cdef Py_ssize_t i
        cdef uint8_t state = STORED if error is None else FAILED
        with nogil:
            for i in range(count):
                self.state_at[rows[i]] = state
                self.sequence_at[rows[i]] = first_sequence + i
        self.count_settled(count, error)

    cdef int keep(self) except -1:
        # Rows in slabs point here without counting; the reference goes when the last row is settled.
        if not self.kept and self.state == PENDING:
            self.kept = True
            Py_INCREF(self)
        return 0

    cdef object count_settled(self, Py_ssize_t rows, object error):
        if error is not None:
            self.failed += rows
            self.failures.append((error, rows))
        self.settled += rows
        if self.settled == self.count:
            self.settle(FAILED if self.failed else STORED)
            if self.kept:
                self.kept = False
                Py_DECREF(self)

    def abandon(self, error not None) -> None:
        """Rows that were not taken will not be: they fail with `error`."""
        cdef Py_ssize_t row = self.taken
        if row < self.count:
            self.taken = self.count
            memset(self.state_at + row, FAILED, self.count - row)
            self.count_settled(self.count - row, error)

    def refuse_row(self, error not None) -> None:
        """The next row can never be stored; those behind it go on. Its number is noted in the error."""
        if self.taken < self.count:
            error.facts["row"] = self.taken
            self.state_at[self.taken] = FAILED
            self.taken += 1
            self.count_settled(1, error)

    @property
    def states(self):
        return memoryview(self.state_bytes)[:self.count]

    @property
    def sequences(self):
        return memoryview(self.sequence_bytes)[:8 * self.count].cast("Q")

    @property
    def shards(self):
        return memoryview(self.shard_bytes)[:4 * self.count].cast("I")

    def unseen(self) -> int:
        return 0 if self.seen else self.failed

    def look(self) -> None:
        self.seen = True

    def result(self, timeout_s=None):
        """The handle itself once every row is stored. Raises PutFailed when some failed, TimedOut as PutHandle does."""
        if not self.wait(timeout_s):
            raise TimedOut(f"{self.count - self.settled} of {self.count} rows not acknowledged within {timeout_s} s",
                           try_="call result() again", sent=True, timeout_ms=int((timeout_s or 0) * 1000))
        self.seen = True
        if self.failed:
            raise PutFailed(f"{self.failed} of {self.count} rows were not stored: {self.failures[0][0]}",
                            try_="see error.failures; states says which rows",
                            count=self.failed, failures=[error for error, _ in self.failures])
        return self

    def __await__(self):
        if self.state == PENDING:
            yield from self.wait_async()
        return self.result()

    def __repr__(self) -> str:
        return f"ColumnsHandle({self.settled} of {self.count} settled, {self.failed} failed)"
