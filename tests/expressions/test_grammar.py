"""What may be said, and how everything else is refused: with the line, the column and a hint."""

from __future__ import annotations

import pytest

from streamkit.errors import InvalidQuery
from streamkit.expressions.grammar import TEXT_CHARACTERS_MAX, parse


def refusal(text: str) -> InvalidQuery:
    with pytest.raises(InvalidQuery) as caught:
        parse(text)
    return caught.value


def test_a_refusal_shows_the_place_and_the_nearest_name() -> None:
    error = refusal("size > 3\n  AND kee = 'x'")

    assert str(error) == (
        'unknown name "kee" (line 2, column 7)\n'
        "      AND kee = 'x'\n"
        "          ^^^ did you mean key?"
    )
    assert error.try_ == "did you mean key?"
    assert (error.facts["line"], error.facts["column"]) == (2, 7)


@pytest.mark.parametrize(("text", "what", "column", "hint"), [
    ("totl > 3", 'unknown name "totl"', 1, "data.totl"),
    ("Key = 'a'", 'unknown name "Key"', 1, "key"),
    ("heders.x = 'a'", 'unknown name "heders"', 1, "headers"),
    ("orders.total > 3", 'unknown name "orders"', 1, "data.orders"),
    ('key = "a"', 'unknown name "a"', 7, "'a'"),
    ("key.x = 'a'", '"key" has nothing inside', 1, "data.key"),
    ("key = 3", "a text and a number cannot be compared", 7, ""),
    ("size = 'big'", "a number and a text cannot be compared", 8, ""),
    ("time > 5", "a time and a number cannot be compared", 8, ""),
    ("time > 'yesterday'", "'yesterday' is not a time", 8, "2026"),
    ("key IN ('a', 1)", "a text and a number cannot be compared", 14, ""),
    ("size BETWEEN 1 AND 'x'", "a number and a text cannot be compared", 20, ""),
    ("key + 1 = 2", "a text is no number", 1, ""),
    ("headers.content-type = 'x'", "a text is no number", 1, "headers['content-type']"),
    ("NOT key", "a text is neither true nor false", 5, "compare"),
    ("size", "a number is neither true nor false", 1, "compare"),
    ("key AND size > 1", "a text is neither true nor false", 1, "compare"),
    ("LOWER(key) = 'a'", "there are no functions", 1, ""),
    ("COUNT(*) > 1", "there are no functions", 1, ""),
    ("data.f(1) = 1", "there are no functions", 6, ""),
    ("CASE WHEN TRUE THEN 1 END = 1", "there are no functions", 21, ""),
    ("data.x::int = 3", "this is not part of the language", 1, "no casts"),
    ("CAST(key AS INT) = 3", "this is not part of the language", 6, "no casts"),
    ("key ILIKE 'a'", "this is not part of the language", 1, "upper case"),
    ("key NOT ILIKE 'a'", "this is not part of the language", 1, "upper case"),
    ("key RLIKE 'a+'", "there are no functions", 1, ""),
    ("key LIKE data.x", "a pattern is written out", 10, "customer-%"),
    ("size LIKE '1%'", "LIKE is for texts", 1, ""),
    ("key LIKE 'a!' ESCAPE '!'", "the pattern ends with its escape character", 10, ""),
    ("key LIKE 'a' ESCAPE '!!'", "ESCAPE takes one character", 21, ""),
    ("data.a || 'x' = 'b'", "this is not part of the language", 1, "joined"),
    ("data.a IS TRUE", "IS goes with NULL only", 1, "= TRUE"),
    ("data.a IS DISTINCT FROM 1", "this is not part of the language", 1, ""),
    ("key IN (SELECT 1)", "there are no queries inside", 1, "list"),
    ("key IN ()", "IN needs values", 1, "list"),
    ("EXISTS(SELECT 1)", "there are no functions", 15, ""),
    ("data.* = 1", "this is not part of the language", 6, ""),
    ("data.a[-1] = 1", "an element is a whole number from 0", 9, "data.items[0]"),
    ("data.a[key] = 1", "an element is a whole number from 0", 8, "data.items[0]"),
    ("headers.a.b = 'x'", "a header has one name", 1, "headers.tenant"),
    ("headers IS NULL", "a header has one name", 1, "headers.tenant"),
    ("size > 9223372036854775808", "the number needs more than 64 bits", 8, ""),
    ("key = ?", "this is not part of the language", 1, ""),
    ("key = :name", "this is not part of the language", 1, ""),
    ("key = 'a' LIMIT 3", '"LIMIT" is not expected here', 11, ""),
    ("key = 'a'; DROP TABLE x", '"DROP" is not expected here', 12, ""),
    ("SELECT 1", '"SELECT" is not expected here', 1, ""),
    ("key = 'a' AND", 'something is missing at "AND"', 11, ""),
    ("(((", 'something is missing at "("', 3, ""),
    ("'abc", "it cannot be read", 1, ""),
    ("", "a condition is needed", 1, ""),
    ("key = '\0'", "a condition holds no zero bytes", 8, ""),
])
def test_what_is_no_condition_is_refused_with_its_place(text: str, what: str, column: int, hint: str) -> None:
    error = refusal(text)

    assert str(error).startswith(what)
    assert error.facts["column"] == column
    assert hint in f"{error} {error.try_}"


@pytest.mark.parametrize("text", [
    "(" * 40 + "1 = 1" + ")" * 40,
    "NOT " * 400 + "TRUE",
    "-" + " -" * 500 + "1 = 1",
    "1" + " + 1" * 900 + " > 0",
    "data" + "[0]" * 900 + " = 1",
    "data" + ".a" * 1800 + " = 1",
    "key IN (" + ", ".join(["'a'"] * 700) + ")",
    "key = '" + "a" * TEXT_CHARACTERS_MAX + "'",
])
def test_what_is_too_large_or_too_deep_is_refused(text: str) -> None:
    error = refusal(text)

    assert any(words in str(error) for words in ("nests too deeply", "more than", "at most", "too long"))


def test_long_chains_are_not_deep() -> None:
    assert parse(" AND ".join(f"size <> {n}" for n in range(120)))
    assert parse("key IN (" + ", ".join(f"'{n}'" for n in range(400)) + ")")


def test_whether_the_payload_is_needed_is_known() -> None:
    assert parse("data.a = 1 OR key = 'a'").needs_data
    assert not parse("key = 'a' AND headers.x = 'data' AND size > 3").needs_data
