"""Whatever the text: a tree or a ValidationException. Whatever the tree and the item: an answer."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit.gateway.dynamodb import updates
from streamkit.gateway.dynamodb.conditions import holds
from streamkit.gateway.dynamodb.errors import DynamoError
from streamkit.gateway.dynamodb.expressions import (
    LENGTH_MAX,
    Substitutions,
    parse_condition,
    parse_projection,
    parse_update,
)
from streamkit.gateway.dynamodb.paths import project
from streamkit.gateway.dynamodb.values import check_item_size, parse_item, parse_value
from tests.gateway.dynamodb import strategies as those


def substitutions(*values):
    given = dict(zip((":v", ":w", ":l"), values, strict=True))
    return Substitutions.parse({"#n": "leaseOwner"}, given)


@given(text=those.SOUP, values=st.tuples(*[those.VALUES] * 3))
def test_any_text_is_a_tree_or_refused(text, values):
    for parse in (parse_condition, parse_update, parse_projection):
        try:
            parse(text, substitutions(*values))
        except DynamoError as error:
            assert error.name == "ValidationException" and str(error).startswith("Invalid ")


@given(text=those.CONDITIONS, values=st.tuples(*[those.VALUES] * 3), wire=those.ITEMS)
def test_a_condition_holds_or_not_and_its_negation_the_other_way(text, values, wire):
    item = parse_item(wire, "Item")
    try:
        condition = parse_condition(text, substitutions(*values))
    except DynamoError:
        return
    before = copy.deepcopy(item)

    found = holds(condition, item)
    assert holds(parse_condition(f"NOT ({text})", substitutions(*values)), item) is not found
    assert item == before


@given(text=those.UPDATES, values=st.tuples(*[those.VALUES] * 3), wire=those.ITEMS)
def test_an_update_makes_a_sound_item_or_is_refused_and_leaves_the_old_one(text, values, wire):
    item = parse_item(wire, "Item")
    before = copy.deepcopy(item)
    try:
        changes = parse_update(text, substitutions(*values))
        changed = updates.apply(changes, item)
        check_item_size(changed)
    except DynamoError as error:
        assert error.name == "ValidationException"
        changed = before
    assert item == before
    assert parse_item(changed, "Item") == changed             # still in the one form, sets and numbers included


@given(wire=those.ITEMS, paths=st.lists(st.sampled_from(["a", "b.a", "b.c", "c[0]", "c[2].a", "#n"]), min_size=1))
def test_a_projection_holds_nothing_that_the_item_does_not(wire, paths):
    item = parse_item(wire, "Item")
    try:
        parsed = parse_projection(", ".join(paths), Substitutions.parse({"#n": "leaseOwner"}, None))
    except DynamoError as error:
        assert "path" in str(error)
        return

    found = project(parsed, item)
    assert set(found) <= set(item)
    assert all(found[path.name] == item[path.name] for path in parsed if len(path.parts) == 1 and path.name in item)


@given(those.VALUES)
def test_a_value_keeps_its_one_form(wire):
    value = parse_value(wire)
    assert parse_value(value) == value


@pytest.mark.parametrize("deep", [
    "(" * 5_000, "NOT " * 2_000 + "a = :v", "(" * 60 + "a = :v" + ")" * 60, "a." * 3_000 + "a = :v", "a" * 5_000,
    " AND ".join(["a = :v"] * 400), "attribute_exists(" * 400, "a IN (" + ", ".join([":v"] * 101) + ")",
])  # fmt: skip
def test_texts_are_bounded_in_length_depth_and_operators(deep):
    with pytest.raises(DynamoError, match="Invalid ConditionExpression"):
        parse_condition(deep, substitutions({"N": "1"}, {"N": "1"}, {"N": "1"}))


def test_a_long_text_within_the_bounds_is_read():
    text = " OR ".join(["a = :v"] * 150)
    assert len(text) < LENGTH_MAX
    assert holds(parse_condition(text, substitutions({"N": "1"}, {"N": "1"}, {"N": "1"})), {"a": {"N": "1"}})
