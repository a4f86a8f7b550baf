"""The turns of an event loop whose time is virtual: callbacks that are ready, timers, and who may run.

A turn runs what was ready when it began, in the order it was asked for; each callback costs one virtual microsecond.
When nothing is ready the clock jumps to the next timer. Timers are a binary heap over (seconds, order of asking), a
plain list of handles, so that the collector sees what they hold. Used by the simulator's loop, where most of the time
of a run went before this was compiled; see simulator/loop.py for processes and their end. Read `Turns.run_turns` first.
"""

from asyncio import Future

from cpython.contextvars cimport PyContext_CopyCurrent, PyContext_Enter, PyContext_Exit, get_value
from libc.stdint cimport int64_t
cimport cython

cdef double CALLBACK_SECONDS = 1e-6
cdef Py_ssize_t CANCELLED_MAX = 256            # cancelled timers kept in the heap before it is swept


cdef class Owner:
    """Whom callbacks belong to. Those of one that is gone are dropped; those of a stopped one gather in `backlog`."""

    cdef public bint gone
    cdef public bint stopped
    cdef public list backlog

    def __cinit__(self, *_, **__):
        self.backlog = []


@cython.final
@cython.freelist(1024)
cdef class Handle:
    """A callback that waits for its turn; for a timer also when."""

    cdef object callback
    cdef tuple args
    cdef object context
    cdef bint done
    cdef double seconds
    cdef int64_t order
    cdef Turns turns                           # of a timer that still waits, else None

    def cancel(self):
        if not self.done:
            self.done = True
            self.args = ()
            self.callback = None
            if self.turns is not None:
                self.turns.timer_cancelled()

    def cancelled(self):
        return self.done

    def when(self):
        return self.seconds


cdef inline bint is_before(Handle one, Handle other):
    return one.seconds < other.seconds or (one.seconds == other.seconds and one.order < other.order)


cdef int sift_down(list heap, Py_ssize_t at) except -1:
    cdef Py_ssize_t child, count = len(heap)
    cdef Handle moved = <Handle>heap[at]
    while True:
        child = 2 * at + 1
        if child >= count:
            break
        if child + 1 < count and is_before(<Handle>heap[child + 1], <Handle>heap[child]):
            child += 1
        if is_before(moved, <Handle>heap[child]):
            break
        heap[at] = heap[child]
        at = child
    heap[at] = moved
    return 0


cdef int push(list heap, Handle handle) except -1:
    cdef Py_ssize_t above, at = len(heap)
    heap.append(handle)
    while at > 0:
        above = (at - 1) // 2
        if is_before(<Handle>heap[above], handle):
            break
        heap[at] = heap[above]
        at = above
    heap[at] = handle
    return 0


cdef Handle pop(list heap):
    cdef Handle first = <Handle>heap[0]
    cdef Handle last = <Handle>heap.pop()
    if len(heap):
        heap[0] = last
        sift_down(heap, 0)
    return first


cdef class Turns:
    """The inner half of a loop; the outer one adds what asyncio wants besides, and these three, called from here:

    `call_exception_handler`, `out_of_time` (the next timer is after `seconds_max`) and `stuck` (nothing is left to do).
    """

    cdef double now
    cdef object owner_of                       # ContextVar: whose a callback is, inherited by what it asks for
    cdef list ready
    cdef list spare                            # what `ready` becomes while a turn runs the other
    cdef readonly list timers
    cdef int64_t timer_count
    cdef Py_ssize_t cancelled
    cdef public double seconds_max
    cdef readonly int64_t callbacks
    cdef bint stopping

    def __init__(self, owner_of):
        self.now = 0.0
        self.owner_of = owner_of
        self.ready = []
        self.spare = []
        self.timers = []
        self.seconds_max = float("inf")

    def time(self):
        return self.now

    def get_debug(self):
        return False

    def create_future(self):
        return Future(loop=self)

    def call_soon(self, callback, *args, context=None):
        cdef Handle handle = Handle.__new__(Handle)
        handle.callback = callback
        handle.args = args
        handle.context = PyContext_CopyCurrent() if context is None else context
        self.ready.append(handle)
        return handle

    def call_later(self, double delay, callback, *args, context=None):
        return self.add_timer(self.now + delay, callback, args, context)

    def call_at(self, double when, callback, *args, context=None):
        return self.add_timer(when, callback, args, context)

    cdef Handle add_timer(self, double when, object callback, tuple args, object context):
        cdef Handle handle = Handle.__new__(Handle)
        handle.callback = callback
        handle.args = args
        handle.context = PyContext_CopyCurrent() if context is None else context
        handle.seconds = when
        self.timer_count += 1
        handle.order = self.timer_count
        handle.turns = self
        push(self.timers, handle)
        return handle

    cdef int timer_cancelled(self) except -1:
        cdef Handle handle
        cdef Py_ssize_t at
        self.cancelled += 1
        if self.cancelled > CANCELLED_MAX and self.cancelled * 2 > len(self.timers):
            self.timers = [handle for handle in self.timers if not handle.done]
            for at in range(len(self.timers) // 2 - 1, -1, -1):
                sift_down(self.timers, at)
            self.cancelled = 0
        return 0

    def stop(self):
        """`run_turns` returns when the present turn is over."""
        self.stopping = True

    def resume(self, Owner owner not None):
        """What came while the owner was stopped happens now, in order."""
        owner.stopped = False
        self.ready.extend(owner.backlog)
        owner.backlog = []

    def drop_all(self):
        """Forget what waits."""
        self.ready.clear()
        self.timers.clear()

    def run_turns(self):
        """Until `stop`."""
        try:
            while not self.stopping:
                if not self.ready:
                    self.turn_clock()
                self.run_turn()
                while self.timers and (<Handle>self.timers[0]).seconds <= self.now:
                    self.take_timer()
        finally:
            self.stopping = False

    cdef int run_turn(self) except -1:
        cdef list turn = self.ready
        cdef Handle handle
        cdef Py_ssize_t at
        self.ready, self.spare = self.spare, turn
        for at in range(len(turn)):
            handle = <Handle>turn[at]
            turn[at] = None                    # what a callback holds ends with it, not with the turn
            if handle.done:
                continue
            try:
                self.run_one(handle)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                self.call_exception_handler({"message": f"in {handle.callback!r}", "exception": error})
        turn.clear()
        return 0

    cdef int run_one(self, Handle handle) except -1:
        cdef object owner
        PyContext_Enter(handle.context)
        try:
            owner = get_value(self.owner_of)
            if owner is not None:
                if (<Owner?>owner).gone:
                    return 0
                if (<Owner>owner).stopped:
                    (<Owner>owner).backlog.append(handle)
                    return 0
            self.now += CALLBACK_SECONDS
            self.callbacks += 1
            handle.done = True
            handle.callback(*handle.args)
        finally:
            PyContext_Exit(handle.context)
        return 0

    cdef int take_timer(self) except -1:
        cdef Handle handle = pop(self.timers)
        if handle.done:
            self.cancelled -= 1
        else:
            handle.turns = None
            self.ready.append(handle)
        return 0

    cdef int turn_clock(self) except -1:
        cdef Handle first
        while self.timers and not self.ready:
            first = <Handle>self.timers[0]
            if not first.done:
                if first.seconds > self.seconds_max:
                    self.out_of_time()
                if first.seconds > self.now:
                    self.now = first.seconds
            self.take_timer()
        if not self.ready:
            self.stuck()
        return 0
