"""The expression language, sentence by sentence."""

import pytest

from streamkit.gateway.dynamodb import updates
from streamkit.gateway.dynamodb.conditions import holds
from streamkit.gateway.dynamodb.errors import DynamoError
from streamkit.gateway.dynamodb.expressions import Substitutions, parse_condition, parse_projection, parse_update
from streamkit.gateway.dynamodb.paths import project
from streamkit.gateway.dynamodb.values import parse_item, parse_value

ITEM = parse_item({
    "leaseKey": {"S": "shardId-1"}, "n": {"N": "10"}, "b": {"B": "YWJj"}, "set": {"SS": ["x", "y"]},
    "numbers": {"NS": ["1", "2.50"]}, "list": {"L": [{"S": "one"}, {"N": "2"}, {"M": {"deep": {"S": "yes"}}}]},
    "map": {"M": {"a": {"N": "1"}, "a.b": {"S": "dotted"}}}, "yes": {"BOOL": True}, "nothing": {"NULL": True},
    "size": {"N": "7"},
}, "Item")  # fmt: skip
VALUES = {
    ":ten": {"N": "1E1"}, ":nine": {"N": "9"}, ":s": {"S": "shardId"}, ":x": {"S": "x"}, ":b": {"B": "YWI="},
    ":two": {"N": "2"}, ":half": {"N": "2.5"}, ":yes": {"BOOL": True}, ":S": {"S": "S"}, ":null": {"NULL": True},
    ":list": {"L": [{"S": "new"}]}, ":xs": {"SS": ["x"]}, ":one": {"S": "one"},
}  # fmt: skip
NAMES = {"#dot": "a.b", "#n": "n", "#size": "size"}


def given():
    return Substitutions.parse(NAMES, VALUES)


@pytest.mark.parametrize(("text", "expected"), [
    ("n = :ten", True), ("n <> :ten", False), ("n > :nine", True), ("n<:nine", False), ("#n >= :ten", True),
    ("missing = :ten", False), ("missing <> :ten", True), ("missing < :ten", False), ("n < :s", False),
    ("n = :s", False), ("n <> :s", True), (":nine < n", True), ("yes = :yes", True), ("nothing = :null", True),
    ("n BETWEEN :nine AND :ten", True), ("missing BETWEEN :nine AND :ten", False), ("leaseKey IN (:x, :s)", False),
    ("n IN (:x, :nine, :ten)", True), ("begins_with(leaseKey, :s)", True), ("begins_with(b, :b)", True),
    ("begins_with(n, :s)", False), ("contains(leaseKey, :s)", True), ("contains(set, :x)", True),
    ("contains(set, :s)", False), ("contains(numbers, :half)", True), ("contains(list, :one)", True),
    ("contains(b, :b)", True), ("contains(n, :ten)", False), ("contains(missing, :x)", False),
    ("attribute_type(leaseKey, :S)", True), ("attribute_type(n, :S)", False), ("attribute_type(missing, :S)", False),
    ("attribute_exists(map.a)", True), ("attribute_exists(map.b)", False), ("attribute_exists(map.#dot)", True),
    ("attribute_exists(list[2].deep)", True), ("attribute_not_exists(list[3])", True),
    ("attribute_exists(n.a)", False), ("size(leaseKey) = :nine", True), ("size(set) = :two", True),
    ("size(list) > :two", True), ("size(n) = :two", False), ("size(missing) <> :two", True), ("#size < :nine", True),
    ("size < :nine", True), ("NOT n = :ten", False), ("n = :ten AND yes = :yes OR missing = :x", True),
    ("n = :ten AND (yes = :yes AND missing = :x)", False), ("not (n = :nine or yes <> :yes)", True),
    ("missing = :x OR missing = :x AND n = :ten", False), ("n = size", False), ("((n = :ten))", True),
])  # fmt: skip
def test_conditions(text, expected):
    assert holds(parse_condition(text, given()), ITEM) is expected


@pytest.mark.parametrize(("text", "words"), [
    ("", "The expression can not be empty"),
    ("   ", "The expression can not be empty"),
    ("a = ", 'Syntax error; token: "<EOF>"'),
    ("a == :ten", 'Syntax error; token: "="'),
    ("a = 5", 'Syntax error; token: "5"'),
    ("a ! :ten", 'Syntax error; token: "!"'),
    ("a = :ten b", 'Syntax error; token: "b"'),
    ("a = :gone", "attribute value used in expression is not defined; attribute value: :gone"),
    ("#gone = :ten", "attribute name used in the document path is not defined; attribute name: #gone"),
    ("size(a)", "Syntax error"),
    ("exists(a)", "Invalid function name; function: exists"),
    ("attribute_exists(a, b)", "Incorrect number of operands for operator or function"),
    ("attribute_exists(:x)", "Operator or function requires a document path"),
    ("begins_with(a, :ten)", "Incorrect operand type for operator or function; operator or function: begins_with"),
    ("attribute_type(a, :x)", "Invalid attribute type name found; type: x"),
    ("a < :yes", "Incorrect operand type for operator or function; operator or function: <, operand type: BOOL"),
    ("a BETWEEN :ten AND :nine", "requires upper bound to be greater than or equal to lower bound"),
    ("a BETWEEN :ten AND :x", "requires same data type for lower and upper bounds"),
    ("a = a", "The first operand must be distinct"),
    ("a[-1] = :ten", "Syntax error"),
    ("a[:ten] = :ten", "Syntax error"),
])  # fmt: skip
def test_a_wrong_condition_is_refused_in_words_that_help(text, words):
    with pytest.raises(DynamoError) as raised:
        parse_condition(text, given())
    assert str(raised.value).startswith("Invalid ConditionExpression: ") and words in str(raised.value)


@pytest.mark.parametrize(("text", "name", "expected"), [
    ("SET fresh = :x", "fresh", {"S": "x"}),
    ("SET n = n + :nine", "n", {"N": "19"}),
    ("SET n = :half - n", "n", {"N": "-7.5"}),
    ("SET n = if_not_exists(n, :nine) + :two", "n", {"N": "12"}),
    ("SET m = if_not_exists(m, :nine)", "m", {"N": "9"}),
    ("SET m = n", "m", {"N": "10"}),
    ("SET map.c = :x", "map", {"M": {"a": {"N": "1"}, "a.b": {"S": "dotted"}, "c": {"S": "x"}}}),
    ("SET list[0] = :x, list[9] = :two", "list", {
        "L": [{"S": "x"}, {"N": "2"}, {"M": {"deep": {"S": "yes"}}}, {"N": "2"}]
    }),
    ("set l = list_append(:list, :list)", "l", {"L": [{"S": "new"}, {"S": "new"}]}),
    ("REMOVE list[0], list[1]", "list", {"L": [{"M": {"deep": {"S": "yes"}}}]}),
    ("REMOVE list[2].deep", "list", {"L": [{"S": "one"}, {"N": "2"}, {"M": {}}]}),
    ("REMOVE n", "n", None),
    ("REMOVE missing", "missing", None),
    ("ADD n :half", "n", {"N": "12.5"}),
    ("ADD m :half", "m", {"N": "2.5"}),
    ("ADD set :xs", "set", {"SS": ["x", "y"]}),
    ("ADD fresh :xs", "fresh", {"SS": ["x"]}),
    ("DELETE set :xs", "set", {"SS": ["y"]}),
    ("DELETE missing :xs", "missing", None),
    ("SET a1 = n, n = :two", "a1", {"N": "10"}),
])  # fmt: skip
def test_updates(text, name, expected):
    assert updates.apply(parse_update(text, given()), ITEM).get(name) == expected


def test_the_last_member_of_a_set_takes_the_attribute_with_it():
    item = {"set": {"SS": ["x"]}}
    assert updates.apply(parse_update("DELETE #s :xs", Substitutions.parse({"#s": "set"}, VALUES)), item) == {}


@pytest.mark.parametrize(("text", "words"), [
    ("SET a = :x SET b = :x", 'The "SET" section can only be used once'),
    ("SET a = :x, a = :two", "Two document paths overlap with each other"),
    ("SET a = :x REMOVE a.b", "Two document paths overlap with each other"),
    ("SET a.b = :x REMOVE a[1]", "Two document paths conflict with each other"),
    ("SET a = begins_with(a, :x)", "The function is not allowed in an update expression; function: begins_with"),
    ("SET a = double(a)", "The function does not exist; function: double"),
    ("SET a = if_not_exists(:x, :x)", "requires a document path"),
    ("SET a = b + :x", "operand type: S"),
    ("ADD a :x", "operator: ADD, operand type: STRING"),
    ("DELETE a :two", "operator: DELETE, operand type: NUMBER"),
    ("ADD a b", "Syntax error"),
    ("SET a", "Syntax error"),
    ("CHANGE a = :x", 'Syntax error; token: "CHANGE"'),
    ("SET a = b + :two + :two", "Syntax error"),
])  # fmt: skip
def test_a_wrong_update_is_refused_in_words_that_help(text, words):
    with pytest.raises(DynamoError) as raised:
        parse_update(text, given())
    assert str(raised.value).startswith("Invalid UpdateExpression: ") and words in str(raised.value)


@pytest.mark.parametrize(("text", "words"), [
    ("SET a = missing", "refers to an attribute that does not exist in the item"),
    ("SET n = leaseKey + :two", "incorrect data type"),
    ("SET a = list_append(n, :list)", "incorrect data type"),
    ("ADD leaseKey :two", "incorrect data type"),
    ("DELETE numbers :xs", "incorrect data type"),
    ("SET missing.a = :x", "document path provided in the update expression is invalid"),
    ("SET n[0] = :x", "document path provided in the update expression is invalid"),
    ("REMOVE missing.a", "document path provided in the update expression is invalid"),
])  # fmt: skip
def test_an_update_that_does_not_fit_the_item_is_refused(text, words):
    with pytest.raises(DynamoError, match=words):
        updates.apply(parse_update(text, given()), ITEM)


def test_projections():
    found = project(parse_projection("n, list[1], list[2].deep, map.#dot, missing", given()), ITEM)

    assert found == {
        "n": {"N": "10"}, "list": {"L": [{"N": "2"}, {"M": {"deep": {"S": "yes"}}}]},
        "map": {"M": {"a.b": {"S": "dotted"}}},
    }  # fmt: skip
    with pytest.raises(DynamoError, match="Two document paths overlap"):
        parse_projection("n, map, map.a", given())


def test_what_is_given_must_be_used_and_well_named():
    substitutions = Substitutions.parse({"#n": "n", "#idle": "i"}, {":v": {"N": "1"}})
    parse_condition("#n = :v", substitutions)
    with pytest.raises(DynamoError, match=r"ExpressionAttributeNames unused in expressions: keys: \{#idle\}"):
        substitutions.check_all_used()
    for names, values in (({"n": "n"}, None), (None, {"v": {"N": "1"}}), ({}, None), (None, {}), ({"#n": ""}, None)):
        with pytest.raises(DynamoError, match="ExpressionAttribute"):
            Substitutions.parse(names, values)


@pytest.mark.parametrize(("wire", "expected"), [
    ("0", "0"), ("-0", "0"), ("1.50", "1.5"), ("+007", "7"), (".5", "0.5"), ("5.", "5"), ("1e3", "1000"),
    ("1E-3", "0.001"), ("-12.30e1", "-123"), ("1" * 38, "1" * 38), ("1" + "0" * 125, "1" + "0" * 125),
])  # fmt: skip
def test_numbers_have_one_form(wire, expected):
    assert parse_value({"N": wire}) == {"N": expected}


@pytest.mark.parametrize("wire", [
    {"N": ""}, {"N": "abc"}, {"N": "1_0"}, {"N": "٣"}, {"N": "NaN"}, {"N": "Infinity"}, {"N": "1" * 39}, {"N": "1e126"},
    {"N": "1e-131"}, {"N": "1e999999999"}, {"N": "1" * 5_000}, {"N": 5}, {"S": 5}, {"B": "a"}, {"B": "é==="},
    {"SS": []}, {"SS": ["a", "a"]}, {"NS": ["1", "1.0"]}, {"BOOL": "true"}, {"NULL": False}, {}, {"S": "a", "N": "1"},
    {"X": "a"}, {"L": {}}, {"M": []}, "a", None, {"S": None}, {"S": "\ud800"}, {"M": {"a": {"L": [{"N": "x"}]}}},
])  # fmt: skip
def test_a_wrong_value_is_refused(wire):
    with pytest.raises(DynamoError) as raised:
        parse_value(wire)
    assert raised.value.name in ("ValidationException", "SerializationException")
