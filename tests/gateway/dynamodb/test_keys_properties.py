"""Encoded keys are in the order of the keys, tell them apart, and are text that a note's name can be."""

import base64
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit.gateway.dynamodb.errors import DynamoError
from streamkit.gateway.dynamodb.keys import Attribute, KeySchema, encode_value
from streamkit.gateway.dynamodb.values import parse_value
from streamkit.model.note import check_note_key
from tests.gateway.dynamodb.strategies import NUMBERS


def order(one, other):
    return (one > other) - (one < other)


@given(st.text(max_size=20), st.text(max_size=20))
def test_strings_keep_their_order(one, other):
    assert order(encode_value({"S": one}), encode_value({"S": other})) == order(one.encode(), other.encode())


@given(st.binary(max_size=20), st.binary(max_size=20))
def test_binaries_keep_their_order(one, other):
    texts = [encode_value({"B": base64.b64encode(data).decode()}) for data in (one, other)]
    assert order(*texts) == order(one, other)


@given(NUMBERS, NUMBERS)
def test_numbers_keep_their_order(one, other):
    texts = [encode_value(parse_value({"N": number})) for number in (one, other)]
    assert order(*texts) == order(Decimal(one), Decimal(other))


@given(st.text(min_size=1, max_size=40), st.binary(min_size=1, max_size=40))
def test_a_key_is_the_name_of_a_note_and_starts_with_its_hash(text, data):
    schema = KeySchema(Attribute("h", "S"), Attribute("r", "B"))
    key = {"h": {"S": text}, "r": {"B": base64.b64encode(data).decode()}}

    encoded = schema.encode(key)
    assert check_note_key(encoded) == encoded and encoded.isascii()
    assert encoded.startswith(encode_value(key["h"]) + "/") and encoded.count("/") == 1


def test_a_lease_can_be_found_by_eye():
    for key in ("shardId-000000000001", "123456789012:orders:1763912345:shardId-000000000001"):
        assert encode_value({"S": key}) == key


def test_a_key_that_no_note_can_have_is_refused():
    schema = KeySchema(Attribute("h", "S"))
    with pytest.raises(DynamoError, match="not supported"):
        schema.encode({"h": {"S": "é" * 200}})
