"""The language of shapes, and the Kinesis model in it against botocore's."""

from __future__ import annotations

import itertools
import re
import time
from typing import Any

import botocore.session
import pytest

from streamkit.gateway.kinesis.model import MODEL, SCALARS
from streamkit.gateway.shapes import (
    INTEGER_MAX,
    LONG_MAX,
    Blob,
    Integer,
    List,
    Map,
    Model,
    Shape,
    String,
    Structure,
    choice,
    compiled,
    long,
    text,
)

ORACLE = botocore.session.get_session().get_service_model("kinesis")


# -- the language ----------------------------------------------------------------------------------------------------


def test_members_are_read_from_a_line():
    model = Model({"Do": ("Name! Tags:{Key:Value}1..5 Items!:[Item]2..", "")}, {"Item": "Name"},
                  {"Name": text(1, 8), "Key": String(), "Value": String()})  # fmt: skip
    shape = model.input("Do")

    assert list(shape.members) == ["Name", "Tags", "Items"]
    assert shape.required == ["Name", "Items"]
    assert shape.members["Tags"].shape == Map(String(), String(), 1, 5)
    items = shape.members["Items"].shape
    assert isinstance(items, List) and (items.low, items.high, items.element) == (2, None, model.shape("Item"))
    assert shape.members["Name"].label == "name"
    assert model.output("Do").members == {}


def test_structures_may_contain_themselves():
    model = Model({"Do": ("Value", "")}, {"Value": "S:Text L:[Value] M:{Text:Value}"}, {"Text": String()})
    value = model.structure("Value")

    inner = value.members["L"].shape
    assert isinstance(inner, List) and inner.element is value


def test_nothing_is_built_before_it_is_asked_for():
    model = Model({"Do": ("Missing", ""), "Else": ("", "")}, {}, {})

    assert model.input("Else").members == {}
    with pytest.raises(KeyError):
        model.input("Do")
    with pytest.raises(KeyError):
        model.input("Unknown")


@pytest.mark.parametrize("wrong", ["Name?", "Name:", "Name:[Text", "Name:{Text}", "-"])
def test_a_line_that_is_none_is_our_mistake(wrong):
    with pytest.raises((AssertionError, KeyError)):
        Model({"Do": (wrong, "")}, {}, {"Text": String(), "Name": String()}).input("Do")


def test_scalars_are_written_shortly():
    assert choice("A B") == String(enum=("A", "B"))
    assert long(0) == Integer(0, None, LONG_MAX)
    assert text(1, 2, "x") == String(1, 2, "x")


# -- patterns --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "value", "matches"),
    [
        ("[a-z]+", "abc", True), ("[a-z]+", "abc\n", False), ("[a-z]+", "1abc", False),
        (r"^(0|([1-9]\d{0,38}))$", "0\n", False),
        (r"\d{12}", "١" * 12, False), (r"^[a-z0-9]+$", "a1", True),
    ],
)  # fmt: skip
def test_patterns_match_whole_values_in_ascii(pattern, value, matches):
    assert String(pattern=pattern).matches(value) is matches


ARN_PARTS = ["arn:aws", ":kinesis:", ":123456789012:", "stream/a", "/consumer/b:1", "-cn", "x", "\n", " ", "queue/q",
             ":"]


TEXTS = {name: shape for name, shape in SCALARS.items() if isinstance(shape, String)}


@pytest.mark.parametrize("name", [name for name, shape in TEXTS.items() if ".*:" in shape.pattern])
def test_a_pattern_that_is_sped_up_matches_what_it_did(name):
    pattern = SCALARS[name].pattern
    plain, fast = re.compile(pattern, re.ASCII), compiled(pattern)

    assert fast.pattern != plain.pattern
    found = 0
    for parts in itertools.product(ARN_PARTS, repeat=4):
        for value in ("arn:aws" + "".join(parts), "arn:aws:kinesis:" + "".join(parts)):
            assert bool(fast.fullmatch(value)) == bool(plain.fullmatch(value)), value
            found += bool(fast.fullmatch(value))
    assert found > 0 or name == "ChannelARN"


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_no_value_keeps_a_pattern_busy(name):
    shape = TEXTS[name]
    began = time.perf_counter()
    parts = (":kinesis:", ":123456789012:", ":kinesis::123456789012:stream/a", "stream/a/consumer/a:", "stream", "1")
    for part in parts:
        shape.matches(("arn:aws:kinesis:x:123456789012:" + part * 2048)[: shape.high or 100_000] + "\n")

    assert time.perf_counter() - began < 0.5


# -- the Kinesis model -----------------------------------------------------------------------------------------------


def differences(path: str, ours: Shape, theirs: Any, inside: frozenset[str] = frozenset()) -> list[str]:
    """Where a shape of ours is not what botocore's says, each as one line."""
    facts, kind = theirs.metadata, theirs.type_name
    bounds = (facts.get("min", 0), facts.get("max"))
    if kind == "structure":
        if not isinstance(ours, Structure):
            return [f"{path}: no structure"]
        if ours.name in inside:
            return []
        found = []
        if list(ours.members) != list(theirs.members):
            found.append(f"{path}: members {list(ours.members)} {list(theirs.members)}")
        if sorted(ours.required) != sorted(theirs.required_members):
            found.append(f"{path}: required {ours.required} {theirs.required_members}")
        for name in ours.members.keys() & theirs.members.keys():
            found += differences(f"{path}.{name}", ours.members[name].shape, theirs.members[name], inside | {ours.name})
        return found
    if kind == "list":
        assert isinstance(ours, List)
        found = [] if (ours.low, ours.high) == bounds else [f"{path}: {ours} {bounds}"]
        return found + differences(f"{path}[]", ours.element, theirs.member, inside)
    if kind == "map":
        assert isinstance(ours, Map)
        found = [] if (ours.low, ours.high) == bounds else [f"{path}: {ours} {bounds}"]
        found += differences(f"{path}.key", ours.key, theirs.key, inside)
        return found + differences(f"{path}.value", ours.value, theirs.value, inside)
    if kind == "string":
        expected: Shape = String(*bounds, facts.get("pattern", ""), tuple(facts.get("enum", ())))
    elif kind in ("integer", "long"):
        expected = Integer(facts.get("min"), facts.get("max"), LONG_MAX if kind == "long" else INTEGER_MAX)
    elif kind == "blob":
        expected = Blob(*bounds)
    else:
        return [] if type(ours).__name__.lower() == kind else [f"{path}: {ours} {kind}"]
    return [] if ours == expected else [f"{path}: {ours} {expected}"]


def test_the_model_has_all_operations():
    assert sorted(MODEL.operations) == sorted(ORACLE.operation_names)


@pytest.mark.parametrize("operation", sorted(ORACLE.operation_names))
def test_the_model_says_what_botocores_says(operation):
    theirs = ORACLE.operation_model(operation)
    found = []
    for ours, shape in ((MODEL.input(operation), theirs.input_shape), (MODEL.output(operation), theirs.output_shape)):
        found += differences(operation, ours, shape) if shape is not None else list(ours.members)

    assert found == []
