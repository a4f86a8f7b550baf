"""Types and constraints of requests, and the words in which they are refused."""

from __future__ import annotations

import cbor2
import pytest

from streamkit.gateway.errors import ApiError
from streamkit.gateway.kinesis.model import MODEL as KINESIS
from streamkit.gateway.shapes import Blob, Boolean, Double, Integer, Model, Timestamp, choice, long, text
from streamkit.gateway.validation import NESTED_MAX, SHOWN_MAX, checked
from streamkit.gateway.wire import CBOR, JSON, RPC_CBOR

MODEL = Model(
    {"Do": ("Name! Count Size Share On Data At Kind Names:[Name]1..2 Named:{Name:Word}1..2 Inner Again", "")},
    {"Inner": "Name! Deep:Inner", "Again": "Again"},
    {
        "Name": text(2, 5, "[a-z]+"), "Word": text(0, 3), "Count": Integer(1, 10), "Size": long(0), "Share": Double(),
        "On": Boolean(), "Data": Blob(0, 4), "At": Timestamp(), "Kind": choice("UP DOWN"),
    },
)  # fmt: skip
SHAPE = MODEL.input("Do")
LONG, SHORT = "Member must have length less than or equal to", "Member must have length greater than or equal to"
HIGH, LOW = "Member must have value less than or equal to", "Member must have value greater than or equal to"


def read(format=JSON, **members):
    return checked(SHAPE, {"Name": "abc"} | members, format)


def refused(value, format=JSON, shape=SHAPE):
    with pytest.raises(ApiError) as caught:
        checked(shape, value, format)
    assert caught.value.status == 400
    return caught.value.name, caught.value.message


def constraint(**members):
    name, message = refused({"Name": "abc"} | members)
    assert name == "ValidationException"
    return message


# -- types -----------------------------------------------------------------------------------------------------------


def test_values_come_out_typed():
    assert read(Count=3, Size=1 << 40, Share=2, On=True, Data="AAEC", At=1.5, Kind="UP", Names=["ab"]) == {
        "Name": "abc", "Count": 3, "Size": 1 << 40, "Share": 2.0, "On": True, "Data": b"\x00\x01\x02", "At": 1500,
        "Kind": "UP", "Names": ["ab"],
    }  # fmt: skip


def test_null_and_unknown_members_are_left_out():
    found = read(Count=None, Unknown=[{}], Inner={"Name": "ab", "Deep": None})

    assert found == {"Name": "abc", "Inner": {"Name": "ab"}}
    assert read(CBOR, Count=cbor2.undefined) == {"Name": "abc"}


@pytest.mark.parametrize(
    ("sent", "ms"),
    [(1548118964.772, 1548118964772), (1.548118964772e9, 1548118964772), (0, 0), (1548118964, 1548118964000),
     (0.0004, 0), (-1.5, -1500), (1e300, (1 << 63) - 1), (float("-inf"), -(1 << 63)), (10**30, (1 << 63) - 1)],
)  # fmt: skip
def test_json_times_are_seconds(sent, ms):
    assert read(At=sent)["At"] == ms
    assert read(RPC_CBOR, At=sent)["At"] == ms


@pytest.mark.parametrize(("sent", "ms"), [(1548118964772, 1548118964772), (1548118964772.0, 1548118964772), (-1, -1)])
def test_cbor_times_are_milliseconds(sent, ms):
    assert read(CBOR, At=sent)["At"] == ms


@pytest.mark.parametrize(
    ("sent", "count"),
    [(3.9, 3), (1e300, "2147483647"), (1 << 70, "2147483647"), (-(1 << 70), "-2147483648"), (-0.5, "0")],
)
def test_fractions_are_cut_and_what_is_beyond_the_type_is_pinned(sent, count):
    if isinstance(count, int):
        assert read(Count=sent)["Count"] == count
    else:
        assert constraint(Count=sent).startswith(f"1 validation error detected: Value '{count}' at 'count' failed")
    assert read(Size=1 << 70)["Size"] == (1 << 63) - 1


@pytest.mark.parametrize(
    "members",
    [
        {"Name": 1}, {"Name": True}, {"Name": ["a"]}, {"Name": {}}, {"Count": "1"}, {"Count": True}, {"Count": {}},
        {"Count": float("nan")}, {"Share": "1"}, {"Share": False}, {"On": 1}, {"On": "true"}, {"On": 0},
        {"At": "2020-01-01"}, {"At": False}, {"At": float("nan")}, {"Names": "ab"}, {"Names": {"0": "ab"}},
        {"Names": [1]}, {"Named": []}, {"Named": {"ab": 1}}, {"Inner": []}, {"Inner": "x"}, {"Inner": {"Name": 1}},
        {"Data": 1}, {"Data": []}, {"Kind": 1},
    ],
)  # fmt: skip
def test_another_type_is_no_constraint_but_refused_at_once(members):
    name, message = refused({"Name": "abc"} | members)

    assert name == "SerializationException"
    assert message.startswith("Expected ")


@pytest.mark.parametrize("data", ["AAE", "AAEC=", "A A=", "AA==AA==", "AAé=", "====", "AA=A", "AAEC\n", "_-8="])
def test_blobs_that_are_no_base64_are_refused(data):
    assert refused({"Name": "abc", "Data": data})[0] == "SerializationException"


def test_blobs_are_text_in_json_and_bytes_in_cbor():
    assert read(CBOR, Data=b"\xff")["Data"] == b"\xff"
    assert refused({"Name": "abc", "Data": "AAEC"}, CBOR)[0] == "SerializationException"
    assert refused({"Name": "abc", "Data": b"AAEC"}, JSON)[0] == "SerializationException"
    assert refused({"Name": "abc", "Named": {b"ab": "x"}}, CBOR)[0] == "SerializationException"
    assert read(Data="")["Data"] == b""


@pytest.mark.parametrize("value", [None, [], "x", 1])
def test_a_request_is_a_structure(value):
    assert refused(value)[0] == "SerializationException"


def test_a_structure_in_itself_has_an_end():
    value: dict = {}
    for _ in range(NESTED_MAX + 5):
        value = {"Again": value}

    assert refused({"Name": "abc", "Again": value})[0] == "SerializationException"


# -- constraints -----------------------------------------------------------------------------------------------------


def test_a_missing_member_is_told():
    assert refused({}) == (
        "ValidationException",
        "1 validation error detected: Value null at 'name' failed to satisfy constraint: Member must not be null",
    )


@pytest.mark.parametrize(
    ("members", "value", "path", "told"),
    [
        ({"Name": "abcdef"}, "'abcdef'", "name", f"{LONG} 5"),
        ({"Name": "a"}, "'a'", "name", f"{SHORT} 2"),
        ({"Name": "AB"}, "'AB'", "name", "Member must satisfy regular expression pattern: [a-z]+"),
        ({"Count": 0}, "'0'", "count", f"{LOW} 1"),
        ({"Count": 11}, "'11'", "count", f"{HIGH} 10"),
        ({"Kind": "ASIDE"}, "'ASIDE'", "kind", "Member must satisfy enum value set: [UP, DOWN]"),
        ({"Data": "AAECAwQF"}, "'6 bytes'", "data", f"{LONG} 4"),
        ({"Names": []}, "'[]'", "names", f"{SHORT} 1"),
        ({"Names": ["ab", "cd", "ef"]}, "'[ab, cd, ef]'", "names", f"{LONG} 2"),
        ({"Names": ["ab", "x"]}, "'x'", "names.2.member", f"{SHORT} 2"),
        ({"Names": ["ab", None]}, "null", "names.2.member", "Member must not be null"),
        ({"Named": {"ab": "long"}}, "'long'", "named.ab.member", f"{LONG} 3"),
        ({"Named": {"ab": None}}, "null", "named.ab.member", "Member must not be null"),
        ({"Named": {"a": "x"}}, "'a'", "named.a.key", f"{SHORT} 2"),
        ({"Inner": {"Deep": {"Name": "ab"}, "Name": "ab"}, "Named": {}}, "'{}'", "named", f"{SHORT} 1"),
        ({"Inner": {"Name": "ab", "Deep": {}}}, "null", "inner.deep.name", "Member must not be null"),
    ],
)
def test_each_constraint_has_its_words(members, value, path, told):
    assert constraint(**members) == (
        f"1 validation error detected: Value {value} at '{path}' failed to satisfy constraint: {told}"
    )


def test_several_are_told_together():
    message = constraint(Name="A", Count=0)

    assert message == (
        "3 validation errors detected: "
        "Value 'A' at 'name' failed to satisfy constraint: Member must satisfy regular expression pattern: [a-z]+; "
        "Value 'A' at 'name' failed to satisfy constraint: Member must have length greater than or equal to 2; "
        "Value '0' at 'count' failed to satisfy constraint: Member must have value greater than or equal to 1"
    )


def test_ten_at_most():
    _, message = refused({"Records": [{}] * 500}, shape=KINESIS.input("PutRecords"))

    assert message.startswith("10 validation errors detected: Value null at 'records.1.member.data' failed")
    assert message.count("failed to satisfy constraint") == 10


def test_paths_of_lists_count_from_one():
    entries = [{"Data": "", "PartitionKey": "a"}, {"Data": "", "PartitionKey": ""}]
    _, message = refused({"Records": entries}, shape=KINESIS.input("PutRecords"))

    assert "at 'records.2.member.partitionKey'" in message


def test_null_where_a_structure_belongs_in_a_list_is_told():
    name, message = refused({"Records": [None], "StreamName": "a"}, shape=KINESIS.input("PutRecords"))

    assert name == "ValidationException"
    assert message.endswith("Value null at 'records.1.member' failed to satisfy constraint: Member must not be null")


def test_a_long_value_is_cut_in_the_message():
    message = constraint(Name="é" * 100_000)

    assert len(message) < SHOWN_MAX + 200
    assert len(constraint(Names=["abcde"] * 50_000)) < 10 * SHOWN_MAX


def test_names_in_upper_case_begin_in_lower_case():
    _, message = refused({"StreamARN": "x"}, shape=KINESIS.input("DescribeStream"))

    assert "Value 'x' at 'streamARN' failed to satisfy constraint: Member must satisfy regular expression" in message
