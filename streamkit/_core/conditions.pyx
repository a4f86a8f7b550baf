"""Conditions on records, evaluated: SQL's three-valued logic over a closed set of nodes.

    Constant  Field  Header  Path                     where values come from
    Compare  Between  Among  Like  IsNull             tests: True, False, or None for "unknown"
    All  Any  Not                                     three-valued logic, left to right, no more than is needed
    Arithmetic  Negative                              numbers

A record costs at most STEPS_MAX steps: one a node, and some for every character that LIKE looks at. What cannot be
decided (a payload that cannot be decoded, a division by zero, a whole number beyond 64 bits, too many steps) does not
match, and is counted. Which values can be compared: docs/expressions.md. Trees are built by `expressions.grammar`.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.datetime cimport import_datetime, PyDateTime_Check
from libc.math cimport fmod
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memset

from streamkit._core.batch cimport Batch, Record

import datetime

import_datetime()

STEPS_MAX = 1_000_000
NO_ROUTE = 255
ROUTES_MAX = 255

cdef object UTC = datetime.UTC
cdef object read_time = datetime.datetime.fromisoformat
cdef Py_ssize_t FEW_STEPS = STEPS_MAX
cdef Py_ssize_t CHARACTERS_A_STEP = 64
cdef Py_ssize_t WILD_A_STEP = 8


class Undecided(Exception):
    """Whether the record matches cannot be said."""


cdef object moment(object value):
    # A time as an aware datetime; None when it is none.
    if type(value) is str:
        try:
            value = read_time(value)
        except ValueError:
            return None
    elif not PyDateTime_Check(value):
        return None
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value


cdef int compared(object left, object right) except -2:
    # -1, 0 or 1; NOT_COMPARABLE when one is NULL, or when they are of two kinds.
    cdef object left_type = type(left), right_type = type(right)
    if left is None or right is None:
        return NOT_COMPARABLE
    if left_type is right_type and (left_type is str or left_type is int or left_type is bool):
        pass
    elif (left_type is int or left_type is float) and (right_type is int or right_type is float):
        if left != left or right != right:
            return NOT_COMPARABLE
    elif PyDateTime_Check(left) or PyDateTime_Check(right):
        left, right = moment(left), moment(right)
        if left is None or right is None:
            return NOT_COMPARABLE
    else:
        return NOT_COMPARABLE
    if left == right:
        return 0
    return -1 if left < right else 1


cdef object number(object value):
    # The number, or None.
    return value if type(value) is int or type(value) is float else None


cdef object whole(object value):
    if not -(1 << 63) <= value < 1 << 63:
        raise Undecided("a whole number beyond 64 bits")
    return value


cdef class Scope:
    pass


cdef class Node:
    """Base of the closed set; `value` is None for NULL."""

    cdef object value(self, Scope scope):
        return None


cdef class Constant(Node):
    cdef readonly object constant

    def __init__(self, constant):
        self.constant = constant

    cdef object value(self, Scope scope):
        return self.constant


cdef class Field(Node):
    """name: "key", "time", "arrived", "size" or "data"."""
    cdef readonly str name
    cdef int number

    def __init__(self, str name not None):
        self.name = name
        self.number = ("key", "time", "arrived", "size", "data").index(name)

    cdef object value(self, Scope scope):
        if self.number == 0:
            return scope.record.key
        if self.number == 1:
            return scope.record.time
        if self.number == 2:
            return scope.record.arrived
        if self.number == 3:
            return scope.record.view().nbytes
        return scope.data


cdef class Header(Node):
    """Text; NULL when there is none of that name, or when it is no UTF-8."""
    cdef readonly str name

    def __init__(self, str name not None):
        self.name = name

    cdef object value(self, Scope scope):
        found = scope.record.headers.get(self.name)
        if found is None:
            return None
        try:
            return str(found, "utf-8")
        except UnicodeDecodeError:
            return None


cdef class Path(Node):
    """steps: names of members and numbers of elements, from the payload inwards; NULL where there is nothing."""
    cdef readonly tuple steps

    def __init__(self, tuple steps not None):
        self.steps = steps

    cdef object value(self, Scope scope):
        cdef object at = scope.data
        for step in self.steps:
            if type(step) is str:
                if type(at) is not dict:
                    return None
                at = (<dict>at).get(step)
            else:
                if type(at) is not list or step >= len(<list>at):
                    return None
                at = (<list>at)[step]
            scope.steps -= 1
        return at


cdef class Compare(Node):
    """sign: one of "=", "<>", "<", "<=", ">", ">="."""
    cdef readonly str sign
    cdef Node left, right
    cdef int number

    def __init__(self, str sign not None, Node left not None, Node right not None):
        self.sign = sign
        self.number = ("=", "<>", "<", "<=", ">", ">=").index(sign)
        self.left = left
        self.right = right

    cdef object value(self, Scope scope):
        cdef int order
        scope.steps -= 1
        order = compared(self.left.value(scope), self.right.value(scope))
        if order == NOT_COMPARABLE:
            return None
        if self.number == 0:
            return order == 0
        if self.number == 1:
            return order != 0
        if self.number == 2:
            return order < 0
        if self.number == 3:
            return order <= 0
        if self.number == 4:
            return order > 0
        return order >= 0


cdef class Between(Node):
    """Both bounds belong to it."""
    cdef Node inner, low, high

    def __init__(self, Node inner not None, Node low not None, Node high not None):
        self.inner, self.low, self.high = inner, low, high

    cdef object value(self, Scope scope):
        cdef object inner
        cdef int above, below
        scope.steps -= 1
        inner = self.inner.value(scope)
        above = compared(inner, self.low.value(scope))
        below = compared(inner, self.high.value(scope))
        if above == -1 or below == 1:
            return False
        return None if above == NOT_COMPARABLE or below == NOT_COMPARABLE else True


cdef class Among(Node):
    """IN, over nodes; NULL when nothing is equal but something could not be compared."""
    cdef Node inner
    cdef tuple items

    def __init__(self, Node inner not None, tuple items not None):
        self.inner = inner
        self.items = items

    cdef object value(self, Scope scope):
        cdef object inner
        cdef int order
        cdef bint unknown = False
        scope.steps -= 1
        inner = self.inner.value(scope)
        for item in self.items:
            scope.steps -= 1
            order = compared(inner, (<Node>item).value(scope))
            if order == 0:
                return True
            if order == NOT_COMPARABLE:
                unknown = True
        return None if unknown else False


cdef class Like(Node):
    """parts: what stands between the pattern's "%", as (text, which characters stand for any, or None)."""
    cdef Node inner
    cdef tuple parts

    def __init__(self, Node inner not None, tuple parts not None):
        self.inner = inner
        self.parts = parts

    cdef object value(self, Scope scope):
        cdef object inner
        scope.steps -= 1
        inner = self.inner.value(scope)
        if type(inner) is not str:
            return None
        scope.steps -= len(<str>inner) // CHARACTERS_A_STEP
        return self.fits(<str>inner, scope)

    cdef bint fits(self, str text, Scope scope) except -1:
        # Parts have a fixed length, so the leftmost place of each is the best one: no backtracking.
        cdef Py_ssize_t at, end, i, size
        cdef tuple first = self.parts[0], last = self.parts[len(self.parts) - 1]
        if len(self.parts) == 1:
            return len(text) == len(<str>first[0]) and stands_at(text, first, 0)
        at = len(<str>first[0])
        end = len(text) - len(<str>last[0])
        if end < at or not stands_at(text, first, 0) or not stands_at(text, last, end):
            return False
        for i in range(1, len(self.parts) - 1):
            size = len(<str>self.parts[i][0])
            at = place_of(text, self.parts[i], at, end, scope)
            if at < 0:
                return False
            at += size
        return True


cdef bint stands_at(str text, tuple part, Py_ssize_t at) except -1:
    cdef str wanted = part[0]
    cdef bytes wild = part[1]
    cdef Py_ssize_t i
    if wild is None:
        return text.startswith(wanted, at)
    for i in range(len(wanted)):
        if not wild[i] and text[at + i] != wanted[i]:
            return False
    return True


cdef Py_ssize_t place_of(str text, tuple part, Py_ssize_t start, Py_ssize_t end, Scope scope) except -2:
    # The first place from `start` on where the part stands and ends at `end` at the latest; -1: nowhere.
    cdef Py_ssize_t at, size = len(<str>part[0])
    if part[1] is None:
        return text.find(part[0], start, end)
    for at in range(start, end - size + 1):
        scope.steps -= 1 + size // WILD_A_STEP
        if scope.steps < 0:
            raise Undecided("too many steps")
        if stands_at(text, part, at):
            return at
    return -1


cdef class IsNull(Node):
    cdef Node inner

    def __init__(self, Node inner not None):
        self.inner = inner

    cdef object value(self, Scope scope):
        scope.steps -= 1
        return self.inner.value(scope) is None


cdef class Not(Node):
    cdef Node inner

    def __init__(self, Node inner not None):
        self.inner = inner

    cdef object value(self, Scope scope):
        scope.steps -= 1
        inner = self.inner.value(scope)
        if inner is True:
            return False
        return True if inner is False else None


cdef class All(Node):
    """AND."""
    cdef tuple inner

    def __init__(self, tuple inner not None):
        self.inner = inner

    cdef object value(self, Scope scope):
        cdef bint unknown = False
        for node in self.inner:
            scope.steps -= 1
            value = (<Node>node).value(scope)
            if value is False:
                return False
            if value is not True:
                unknown = True
        return None if unknown else True


cdef class Any(Node):
    """OR."""
    cdef tuple inner

    def __init__(self, tuple inner not None):
        self.inner = inner

    cdef object value(self, Scope scope):
        cdef bint unknown = False
        for node in self.inner:
            scope.steps -= 1
            value = (<Node>node).value(scope)
            if value is True:
                return True
            if value is not False:
                unknown = True
        return None if unknown else False


cdef class Negative(Node):
    cdef Node inner

    def __init__(self, Node inner not None):
        self.inner = inner

    cdef object value(self, Scope scope):
        scope.steps -= 1
        inner = number(self.inner.value(scope))
        if inner is None:
            return None
        return whole(-inner) if type(inner) is int else -inner


cdef class Arithmetic(Node):
    """sign: one of "+", "-", "*", "/", "%"; whole numbers stay whole, and are divided toward zero."""
    cdef readonly str sign
    cdef Node left, right

    def __init__(self, str sign not None, Node left not None, Node right not None):
        if sign not in ("+", "-", "*", "/", "%"):
            raise ValueError(sign)
        self.sign = sign
        self.left, self.right = left, right

    cdef object value(self, Scope scope):
        cdef object left, right, quotient
        cdef str sign = self.sign
        scope.steps -= 1
        left, right = number(self.left.value(scope)), number(self.right.value(scope))
        if left is None or right is None:
            return None
        if sign in ("/", "%") and right == 0:
            raise Undecided("division by zero")
        if type(left) is int and type(right) is int:
            whole(left)
            whole(right)
            if sign == "+":
                return whole(left + right)
            if sign == "-":
                return whole(left - right)
            if sign == "*":
                return whole(left * right)
            quotient = abs(left) // abs(right)
            if (left < 0) != (right < 0):
                quotient = -quotient
            return whole(quotient) if sign == "/" else left - quotient * right
        try:
            left, right = float(left), float(right)
        except OverflowError as cause:
            raise Undecided("a whole number beyond 64 bits") from cause
        if sign == "+":
            return left + right
        if sign == "-":
            return left - right
        if sign == "*":
            return left * right
        return left / right if sign == "/" else fmod(left, right)


cdef object payload(Record record, object decode, object decode_for):
    # The decoded payload; bytes only as the text they are. Raises Undecided.
    try:
        content_type = record.headers.get("content-type") if decode_for is not None else None
        if content_type is not None:
            decode = decode_for(content_type.decode("latin-1"))
        data = record.data if decode is None else decode(record.data)
        return str(data, "utf-8") if type(data) is bytes else data
    except Exception as cause:             # a codec is the user's code: whatever it raises is a failure to decode
        raise Undecided("the payload cannot be decoded") from cause


cdef class Condition:
    """A tree; needs_data: it looks at the payload, so that a record whose payload cannot be decoded never matches."""
    cdef readonly Node node
    cdef readonly bint needs_data

    def __init__(self, Node node not None, bint needs_data):
        self.node = node
        self.needs_data = needs_data


def route(Batch batch not None, tuple conditions not None, decode=None, decode_for=None):
    """Which condition each record meets first: (uint8[n], how many records had a condition that cannot be decided).

    conditions: at most ROUTES_MAX; NO_ROUTE for a record that meets none. decode: bytes to a value, None: the bytes;
    decode_for: a content type to such a function, None: headers do not count. Raises CorruptBatch.
    """
    cdef Py_ssize_t i, j, count = len(batch), ways = len(conditions), undecided = 0
    cdef Scope scope = Scope.__new__(Scope)
    cdef Condition condition
    cdef int readable                      # -1: not tried yet
    cdef bint doubt
    if ways > ROUTES_MAX:
        raise ValueError("too many conditions")
    cdef bytes routes = PyBytes_FromStringAndSize(NULL, count)
    cdef uint8_t* into = <uint8_t*>PyBytes_AS_STRING(routes)
    memset(into, NO_ROUTE, count)
    batch.open()
    for i in range(count):
        scope.record = batch.record_at(<uint32_t>(batch.first + i))
        scope.data = None
        readable = -1
        doubt = False
        for j in range(ways):
            condition = <Condition?>conditions[j]
            scope.steps = FEW_STEPS
            try:
                if condition.needs_data and readable != 1:
                    if readable == 0:
                        continue
                    readable = 0
                    scope.data = payload(scope.record, decode, decode_for)
                    readable = 1
                if condition.node.value(scope) is True:
                    if scope.steps < 0:
                        raise Undecided("too many steps")
                    into[i] = <uint8_t>j
                    break
                if scope.steps < 0:
                    raise Undecided("too many steps")
            except Undecided:
                doubt = True
            except Exception:              # headers or a time that cannot be read; a comparison that a codec's type broke
                doubt = True
        undecided += doubt
    return routes, undecided
