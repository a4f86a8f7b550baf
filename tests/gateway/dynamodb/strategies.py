"""Attribute values, items and expressions for property tests."""

import base64

from hypothesis import strategies as st

NUMBERS = st.one_of(
    st.integers(-(10**38) + 1, 10**38 - 1).map(str),
    st.decimals(-1000, 1000, places=3).map(lambda number: format(number, "f")),
    st.builds(lambda digits, power: f"{digits}E{power}", st.integers(-99_999, 99_999), st.integers(-125, 120)),
)
SCALARS = st.one_of(
    st.text(max_size=12).map(lambda text: {"S": text}),
    NUMBERS.map(lambda number: {"N": number}),
    st.binary(max_size=12).map(lambda data: {"B": base64.b64encode(data).decode()}),
    st.booleans().map(lambda flag: {"BOOL": flag}),
    st.just({"NULL": True}),
)
SETS = st.one_of(
    st.lists(st.text(max_size=5), min_size=1, max_size=4, unique=True).map(lambda members: {"SS": members}),
    st.lists(st.integers(-99, 99), min_size=1, max_size=4, unique=True).map(lambda found: {"NS": [*map(str, found)]}),
    st.lists(st.binary(max_size=4), min_size=1, max_size=4, unique=True).map(
        lambda members: {"BS": [base64.b64encode(member).decode() for member in members]}
    ),
)
NAMES = st.sampled_from(["a", "b", "c", "leaseKey", "leaseOwner"])
VALUES = st.recursive(
    SCALARS | SETS,
    lambda inner: st.lists(inner, max_size=3).map(lambda members: {"L": members})
    | st.dictionaries(NAMES, inner, max_size=3).map(lambda members: {"M": members}),
    max_leaves=6,
)
ITEMS = st.dictionaries(NAMES, VALUES, max_size=4)

_WORDS = st.sampled_from([
    "a", "b", "leaseKey", "#n", ":v", ":w", ":l", "[0]", "[1]", ".", ",", "(", ")", "=", "<>", "<", "<=", ">", ">=",
    "+", "-", "AND", "OR", "NOT", "BETWEEN", "IN", "SET", "REMOVE", "ADD", "DELETE", "size", "contains", "begins_with",
    "attribute_exists", "attribute_not_exists", "attribute_type", "if_not_exists", "list_append", "é", "'", '"', "0",
])  # fmt: skip
SOUP = st.lists(_WORDS, max_size=40).map(" ".join) | st.text(max_size=60)

_PATHS = st.sampled_from(["a", "b", "c.a", "a[0]", "#n", "a.b[1].c", "#n.a"])
_OPERANDS = st.sampled_from(["a", "b.c", "#n", ":v", ":w", ":l", "size(a)", "size(#n)"])
_SIMPLE = st.one_of(
    st.builds("{} {} {}".format, _OPERANDS, st.sampled_from(["=", "<>", "<", "<=", ">", ">="]), _OPERANDS),
    st.builds("{} BETWEEN {} AND {}".format, _OPERANDS, _OPERANDS, _OPERANDS),
    st.builds("{} IN ({}, {})".format, _OPERANDS, _OPERANDS, _OPERANDS),
    st.builds("attribute_exists({})".format, _PATHS),
    st.builds("attribute_not_exists({})".format, _PATHS),
    st.builds("contains({}, {})".format, _PATHS, _OPERANDS),
    st.builds("begins_with({}, {})".format, _PATHS, _OPERANDS),
)
CONDITIONS = st.recursive(
    _SIMPLE,
    lambda inner: st.builds("({}) AND {}".format, inner, inner) | st.builds("{} OR ({})".format, inner, inner)
    | inner.map("NOT ({})".format),
    max_leaves=6,
)  # fmt: skip
_SOURCES = st.one_of(
    _PATHS, st.sampled_from([":v", ":w", ":l"]), st.builds("{} + {}".format, _PATHS, st.sampled_from([":v", "b"])),
    st.builds("if_not_exists({}, {})".format, _PATHS, st.sampled_from([":v", "b"])),
    st.builds("list_append({}, {})".format, _PATHS, st.sampled_from([":l", "b"])),
)
UPDATES = st.one_of(
    st.builds("SET {} = {}".format, _PATHS, _SOURCES),
    st.builds("SET {} = {}, {} = {}".format, _PATHS, _SOURCES, _PATHS, _SOURCES),
    st.builds("REMOVE {}, {}".format, _PATHS, _PATHS),
    st.builds("ADD {} {}".format, _PATHS, st.sampled_from([":v", ":w"])),
    st.builds("DELETE {} {} SET {} = :v".format, _PATHS, st.sampled_from([":v", ":w"]), _PATHS),
)
