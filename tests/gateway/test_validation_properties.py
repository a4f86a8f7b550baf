"""Every operation of botocore's model: what it allows arrives as it was meant, all else is refused."""

from __future__ import annotations

import json
import re

import cbor2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.gateway.botocore_shapes import OPERATIONS, ORACLE, damages, valid, written
from tests.gateway.calling import CBOR, JSON, Recorder, answered, decoded, gateway, headers, kinesis, request

RECORDER = Recorder()
GATEWAY = gateway(kinesis(RECORDER))
VIOLATION = r"Value (null|'[^']*(?s:.*?)') at '[a-z](?s:.*?)' failed to satisfy constraint: Member must (?s:.+?)"
REFUSAL = re.compile(rf"(\d+) validation errors? detected: {VIOLATION}(; {VIOLATION})*")
WITH_INPUT = [name for name in OPERATIONS if ORACLE.operation_model(name).input_shape.members]
FEW = settings(max_examples=8, suppress_health_check=list(HealthCheck))


def body(operation, value, content_type):
    shape = ORACLE.operation_model(operation).input_shape
    sent = written(shape, value, cbor=content_type == CBOR)
    return cbor2.dumps(sent) if content_type == CBOR else json.dumps(sent, ensure_ascii=False).encode()


@pytest.mark.parametrize("operation", OPERATIONS)
@FEW
@given(data=st.data())
def test_what_the_model_allows_arrives_as_it_was_meant(operation, data):
    value = data.draw(valid(ORACLE.operation_model(operation).input_shape))
    for content_type in (JSON, CBOR):
        RECORDER.calls.clear()
        response = answered(GATEWAY, request(operation, body(operation, value, content_type), content_type))

        assert response.status == 200, response.body
        assert RECORDER.calls[0].params == value


@pytest.mark.parametrize("operation", WITH_INPUT)
@FEW
@given(data=st.data())
def test_what_the_model_does_not_allow_is_refused_in_words_that_clients_know(operation, data):
    shape = ORACLE.operation_model(operation).input_shape
    sent = written(shape, data.draw(valid(shape).filter(bool)), cbor=False)
    damage = data.draw(st.sampled_from([damage for damage in damages(shape, sent) if damage.path]))
    RECORDER.calls.clear()
    response = answered(GATEWAY, request(operation, json.dumps(damage.done_to(sent)).encode()))
    told = decoded(response)

    assert (response.status, told["__type"], RECORDER.calls) == (400, damage.name, [])
    assert headers(response)["x-amzn-errortype"] == damage.name
    if damage.name == "ValidationException":
        assert REFUSAL.fullmatch(told["message"]), told["message"]
        assert damage.told in told["message"]
        assert int(told["message"].split(" ", 1)[0]) == told["message"].count("failed to satisfy constraint: ") <= 10
    else:
        assert told["Message"]


@pytest.mark.parametrize("operation", ["CreateStream", "PutRecords", "CreateChannel", "ListShards", "SubscribeToShard"])
@settings(max_examples=2, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_each_single_thing_that_is_not_allowed_is_refused(operation, data):
    shape = ORACLE.operation_model(operation).input_shape
    sent = written(shape, data.draw(valid(shape)), cbor=False)
    for damage in damages(shape, sent):
        if damage.path:
            told = decoded(answered(GATEWAY, request(operation, json.dumps(damage.done_to(sent)).encode())))
            assert told["__type"] == damage.name, damage
