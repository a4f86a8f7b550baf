"""Any text is a condition or an InvalidQuery; any condition on any payload is decided, or counted as undecided."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit.errors import InvalidQuery
from streamkit.expressions.condition import Condition
from tests.expressions.records import batch_of

WORDS = [
    "data", ".", "a", "[", "]", "0", "key", "headers", "time", "arrived", "size", "(", ")", "AND", "OR", "NOT", "=",
    "<>", "<", ">=", "+", "-", "*", "/", "%", "LIKE", "IN", "BETWEEN", "IS", "NULL", "TRUE", "'x'", "'2026-01-01'",
    "'%a_'", ",", "1", "2.5", "1e400", "SELECT", "FROM", "CASE", "CAST", "AS", "INTERVAL", "::", "||", "?", "--", "/*",
    "\"q\"", "`", ";", "ESCAPE", "TIMESTAMP", "@", "{", "}", "x'00'", "\n",
]
payloads = st.one_of(
    st.binary(max_size=30),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
        max_leaves=6,
    ),
)  # fmt: skip


def one_input(text: str, payload: object) -> None:
    try:
        condition = Condition(text)
    except InvalidQuery as error:
        assert error.facts["line"] >= 1 and error.facts["column"] >= 1
        return
    batch = batch_of(payload)
    assert len(condition.matching(batch)) + condition.undecided <= 1


@pytest.mark.fuzz
@given(text=st.text(max_size=40), payload=payloads)
def test_any_text_is_a_condition_or_refused(text: str, payload: object) -> None:
    one_input(text, payload)


@pytest.mark.fuzz
@given(words=st.lists(st.sampled_from(WORDS), max_size=12), payload=payloads)
def test_any_words_are_a_condition_or_refused(words: list[str], payload: object) -> None:
    one_input(" ".join(words), payload)
