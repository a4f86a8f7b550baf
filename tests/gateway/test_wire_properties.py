"""Every reply of the model, written here and read by botocore's own parsers."""

from __future__ import annotations

import datetime

import cbor2
import pytest
from botocore.parsers import JSONParser
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamkit.gateway import wire
from streamkit.gateway.errors import ApiError, validation
from streamkit.gateway.kinesis.model import MODEL
from streamkit.gateway.validation import checked
from tests.gateway.botocore_shapes import OPERATIONS, ORACLE, valid

FEW = settings(max_examples=8, suppress_health_check=list(HealthCheck))
EVENT = ORACLE.shape_for("SubscribeToShardEvent")
OUTPUTS = {
    name: (MODEL.output(name), ORACLE.operation_model(name).output_shape) for name in OPERATIONS
    if ORACLE.operation_model(name).output_shape is not None and name != "SubscribeToShard"
} | {"an event of SubscribeToShard": (MODEL.structure("SubscribeToShardEvent"), EVENT)}  # fmt: skip


def parsed(body, shape, status=200):
    return JSONParser().parse({"status_code": status, "headers": {}, "body": body}, shape)


def as_botocore(shape, value):
    """A typed value as botocore hands it to its users."""
    kind = shape.type_name
    if kind == "structure":
        return {name: as_botocore(shape.members[name], item) for name, item in value.items()}
    if kind == "list":
        return [as_botocore(shape.member, item) for item in value]
    if kind == "map":
        return {key: as_botocore(shape.value, item) for key, item in value.items()}
    if kind == "timestamp":
        return datetime.datetime.fromtimestamp(0, datetime.UTC) + datetime.timedelta(milliseconds=value)
    return value


@pytest.mark.parametrize("name", OUTPUTS)
@FEW
@given(data=st.data())
def test_botocore_reads_every_reply(name, data):
    ours, theirs = OUTPUTS[name]
    value = data.draw(valid(theirs))
    found = parsed(wire.JSON.encode(name, ours, value, ""), theirs)
    del found["ResponseMetadata"]

    assert utc(found) == as_botocore(theirs, value)


def utc(value):
    """botocore reads times in the zone of the machine."""
    if isinstance(value, dict):
        return {key: utc(item) for key, item in value.items()}
    if isinstance(value, list):
        return [utc(item) for item in value]
    return value.astimezone(datetime.UTC) if isinstance(value, datetime.datetime) else value


@pytest.mark.parametrize("name", OUTPUTS)
@FEW
@given(data=st.data())
def test_every_reply_in_cbor_is_what_went_in(name, data):
    ours, theirs = OUTPUTS[name]
    value = data.draw(valid(theirs))
    body = wire.CBOR.encode(name, ours, value, "")

    assert wire.decode_cbor(body) == value
    assert checked(ours, wire.decode_cbor(body), wire.CBOR) == value
    # Whoever does not look at the shape finds times under tag 1, as integers.
    times = []
    cbor2.loads(body, semantic_decoders={1: lambda ms, _: times.append(ms)})
    assert all(type(ms) is int for ms in times)


@given(message=st.text())
def test_botocore_reads_errors(message):
    error = parsed(wire.JSON.encode_error(ApiError("ResourceInUseException", message), ""), None, 400)["Error"]

    assert (error["Code"], error["Message"]) == ("ResourceInUseException", message)


def test_botocore_reads_refusals_of_either_spelling():
    assert parsed(wire.JSON.encode_error(validation("no"), ""), None, 400)["Error"]["Message"] == "no"
    refused = ApiError("SerializationException", "no")
    assert parsed(wire.JSON.encode_error(refused, ""), None, 400)["Error"]["Message"] == "no"
