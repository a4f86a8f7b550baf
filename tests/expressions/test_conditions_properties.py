"""Conditions beside SQLite, where both mean the same: typed columns, no overflow, no division by zero."""

from __future__ import annotations

import sqlite3
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.expressions.records import holds

COLUMNS = ("i", "j", "s", "t")
_whole = st.integers(-50, 50)
_text = st.text(alphabet="ab%_'é", max_size=4)


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def numbers(depth: int) -> st.SearchStrategy[str]:
    leaf = st.one_of(st.sampled_from(["data.i", "data.j"]), _whole.map(lambda n: f"({n})"), st.just("NULL"))
    if not depth:
        return leaf
    inner = numbers(depth - 1)
    divisor = _whole.filter(bool).map(lambda n: f"({n})")
    return st.one_of(
        leaf,
        st.builds("({} {} {})".format, inner, st.sampled_from(["+", "-", "*"]), inner),
        st.builds("({} {} {})".format, inner, st.sampled_from(["/", "%"]), divisor),
        st.builds("(- {})".format, inner),
    )


texts = st.one_of(st.sampled_from(["data.s", "data.t"]), _text.map(quoted))
compared = st.sampled_from(["=", "<>", "!=", "<", "<=", ">", ">="])


def truths(depth: int) -> st.SearchStrategy[str]:
    number = numbers(2)
    leaf = st.one_of(
        st.builds("{} {} {}".format, number, compared, number),
        st.builds("{} {} {}".format, texts, compared, texts),
        st.builds("{} {}BETWEEN {} AND {}".format, number, st.sampled_from(["", "NOT "]), number, number),
        st.builds("{} {}IN ({}, {})".format, number, st.sampled_from(["", "NOT "]), number, number),
        st.builds("{} {}IN ({}, {})".format, texts, st.sampled_from(["", "NOT "]), texts, texts),
        st.builds("{} {}LIKE {}".format, texts, st.sampled_from(["", "NOT "]), _text.map(quoted)),
        st.builds("{} IS {}NULL".format, st.one_of(number, texts), st.sampled_from(["", "NOT "])),
    )
    if not depth:
        return leaf
    inner = truths(depth - 1)
    return st.one_of(
        leaf,
        st.builds("({}) {} ({})".format, inner, st.sampled_from(["AND", "OR"]), inner),
        st.builds("NOT ({})".format, inner),
        st.builds("{} {} {}".format, leaf, st.sampled_from(["AND", "OR"]), leaf),
    )


def in_sqlite(text: str, row: dict[str, Any]) -> bool | None:
    with sqlite3.connect(":memory:") as database:
        database.execute("PRAGMA case_sensitive_like = ON")
        columns = ", ".join(f"? AS {name}" for name in COLUMNS)
        plain = text.replace("data.", "")
        (answer,) = database.execute(
            f"SELECT ({plain}) FROM (SELECT {columns})", [row.get(name) for name in COLUMNS]
        ).fetchone()
    return None if answer is None else bool(answer)


rows = st.fixed_dictionaries({}, optional={
    "i": st.none() | _whole, "j": st.none() | _whole, "s": st.none() | _text, "t": st.none() | _text,
})


@given(text=truths(2), row=rows)
def test_a_condition_means_what_it_means_in_sqlite(text: str, row: dict[str, Any]) -> None:
    assert holds(text, row) is in_sqlite(text, row)


@given(text=_text, pattern=st.text(alphabet="ab%_", max_size=8))
def test_patterns_fit_as_in_sqlite(text: str, pattern: str) -> None:
    row = {"s": text}
    condition = f"data.s LIKE {quoted(pattern)}"

    assert holds(condition, row) is in_sqlite(condition, row)
