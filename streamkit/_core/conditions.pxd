# Conditions on records: a closed set of nodes, and one walk over a batch. Nothing here can call, import, loop or assign.

from streamkit._core.batch cimport Record

cdef enum:
    NOT_COMPARABLE = 2

cdef class Scope:                        # one record under evaluation
    cdef Record record
    cdef object data                     # its decoded payload
    cdef Py_ssize_t steps                # what evaluation may still cost

cdef class Node:
    cdef object value(self, Scope scope) # None is NULL

cdef int compared(object left, object right) except -2
