"""From a request to a response: the order of checks, the formats of errors, headers, and what a service may be."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import logging
import re
import uuid
import xml.etree.ElementTree as ElementTree

import cbor2
import pytest

from streamkit import errors as e
from streamkit.gateway.app import Gateway
from streamkit.gateway.calls import Reply, Service
from streamkit.gateway.errors import STREAMKIT_ERRORS, ApiError
from streamkit.gateway.kinesis.model import ACCESS, MODEL
from streamkit.gateway.shapes import Double, Model, String, Timestamp
from streamkit.http.exchange import Request, Response
from streamkit.security.credentials import Authenticator, Key
from tests.gateway.calling import (
    CBOR,
    JSON,
    NOW_MS,
    Recorder,
    SeededRandom,
    answered,
    decoded,
    gateway,
    headers,
    kinesis,
    request,
)
from tests.security.signing import KEY, signed, signed_ms

RECORDER = Recorder()
KINESIS = gateway(kinesis(RECORDER))
FORM = "application/x-www-form-urlencoded; charset=utf-8"


def ask(asked, answer=None, **other):
    recorder = Recorder(answer)
    response = answered(gateway(kinesis(recorder, **other)), asked)
    return response, recorder.calls


def error(response):
    """(status, name), the same in header and body."""
    name = headers(response)["x-amzn-errortype"]
    assert decoded(response)["__type"] == name
    return response.status, name


# -- success ---------------------------------------------------------------------------------------------------------


def test_a_call_arrives_typed_and_its_answer_goes_out_in_the_same_format():
    asked = {"StreamName": "orders", "StreamCreationTimestamp": 1548118964.5}
    response, calls = ask(request("ListShards", asked), {"Shards": [], "NextToken": "t"})

    assert (response.status, response.body) == (200, b'{"Shards":[],"NextToken":"t"}')
    assert headers(response)["content-type"] == JSON
    (call,) = calls
    assert call.params == {"StreamName": "orders", "StreamCreationTimestamp": 1548118964500}
    assert (call.operation, call.cbor, call.caller.account, call.caller.region, call.caller.key_id) == (
        "ListShards", False, "000000000000", "us-east-1", "AK",
    )  # fmt: skip
    assert call.request_id == headers(response)["x-amzn-requestid"]


def test_cbor_is_answered_in_cbor():
    asked = {"StreamName": "orders", "StreamCreationTimestamp": cbor2.CBORTag(1, 1548118964500)}
    response, calls = ask(request("ListShards", asked, CBOR), {"NextToken": "t"})

    assert decoded(response) == {"NextToken": "t"}
    assert headers(response)["content-type"] == CBOR
    assert calls[0].cbor and calls[0].params["StreamCreationTimestamp"] == 1548118964500


@pytest.mark.parametrize("content_type", [JSON, CBOR])
def test_no_output_is_an_empty_body(content_type):
    response, _ = ask(request("DeleteStream", {"StreamName": "a"}, content_type), None)

    assert (response.status, response.body) == (200, b"")


def test_every_answer_carries_ids():
    ids = set()
    for asked in (request("ListStreams"), request("ListStreams", b"{"), Request("GET", "/", {}, b"", False, False, "")):
        found = headers(answered(KINESIS, asked))
        ids |= {found["x-amzn-requestid"], found["x-amz-id-2"]}
        assert uuid.UUID(found["x-amzn-requestid"]).version == 4
        assert len(base64.b64decode(found["x-amz-id-2"], validate=True)) == 72

    assert len(ids) == 6


def test_names_of_headers_are_in_lower_case_as_http2_wants_them():
    for asked in (request("ListStreams"), request("Nothing"), request("ListStreams", origin="http://a")):
        assert all(name == name.lower() for name, _ in answered(KINESIS, asked).headers)


@pytest.mark.parametrize("content_type", [f"{JSON}; charset=utf-8", f" {JSON.upper()} ", f"{CBOR} ;x"])
def test_parameters_and_blanks_of_the_content_type_do_not_count(content_type):
    body = b"{}" if "json" in content_type.lower() else b"\xa0"
    response, calls = ask(request("ListStreams", body, content_type), {"StreamNames": [], "HasMoreStreams": False})

    assert response.status == 200 and len(calls) == 1


def test_a_raw_operation_gets_its_body_as_it_is():
    response, calls = ask(request("PutRecord", b"anything"), Reply(b"ready"), raw=frozenset({"PutRecord"}))

    assert (response.status, response.body) == (200, b"ready")
    assert (calls[0].body, calls[0].params) == (b"anything", {})


def test_an_operation_may_answer_with_a_response_of_its_own():
    async def stream(sender):
        await sender.send(b"x")

    own = Response(200, (("content-type", "application/vnd.amazon.eventstream"),), stream=stream)
    response, _ = ask(request("ListStreams"), own)

    assert response.stream is stream
    assert headers(response)["content-type"] == "application/vnd.amazon.eventstream"
    assert "x-amzn-requestid" in headers(response)


def test_a_dry_run_stops_before_the_deed():
    async def put(call):
        call.dry_run()
        return {"ShardId": "s", "SequenceNumber": "1"}

    served = gateway(kinesis({"PutRecord": put}))
    asked = {"Data": "", "PartitionKey": "k", "StreamName": "s"}

    assert answered(served, request("PutRecord", asked)).status == 200
    assert error(answered(served, request("PutRecord", asked | {"DryRun": True}))) == (400, "DryRunOperationException")


# -- the order of checks ---------------------------------------------------------------------------------------------


def test_a_preflight_allows_what_it_asks_for():
    asked = {"origin": "http://a"}
    asked |= {"access-control-request-headers": "X-Amz-Target", "access-control-request-method": "POST"}
    response = answered(KINESIS, Request("OPTIONS", "/", asked, b"", False, False, ""))
    found = headers(response)

    assert (response.status, response.body) == (200, b"")
    assert found.pop("x-amzn-requestid")
    assert found == {
        "access-control-allow-origin": "*", "access-control-allow-headers": "X-Amz-Target",
        "access-control-allow-methods": "POST", "access-control-max-age": "172800",
    }  # fmt: skip


def test_a_page_may_read_what_is_answered():
    found = headers(answered(KINESIS, request("ListStreams", b"{", origin="http://a")))

    assert found["access-control-allow-origin"] == "*"
    assert "x-amzn-RequestId" in found["access-control-expose-headers"].split(",")


@pytest.mark.parametrize("method", ["GET", "PUT", "OPTIONS", "DELETE", "HEAD"])
def test_another_method_is_denied_in_xml(method):
    response = answered(KINESIS, Request(method, "/", {}, b"", False, False, ""))

    assert response.status == 403 and "content-type" not in headers(response)
    assert re.fullmatch(
        rb"<AccessDeniedException>\n  <Message>[^<]+</Message>\n</AccessDeniedException>\n", bytes(response.body)
    )


@pytest.mark.parametrize(
    ("operation", "content_type", "name", "format"),
    [
        ("ListStreams", JSON, "SerializationException", JSON), ("Nothing", JSON, "UnknownOperationException", JSON),
        ("ListStreams", CBOR, "SerializationException", CBOR),
        ("ListStreams", "text/plain", "SerializationException", CBOR),
    ],
)  # fmt: skip
def test_an_empty_body_is_refused_before_its_type(operation, content_type, name, format):
    response = answered(KINESIS, request(operation, b"", content_type))

    assert error(response) == (400, name)
    assert headers(response)["content-type"] == format
    assert decoded(response) == {"__type": name}


def test_an_unknown_type_is_answered_in_xml():
    with_target = answered(KINESIS, request("ListStreams", b"{}", "text/plain"))
    asked = request("ListStreams", b"{}", "text/plain")
    del asked.headers["x-amz-target"]
    without = answered(KINESIS, asked)

    assert (with_target.status, with_target.body) == (404, b"<UnknownOperationException/>\n")
    assert without.status == 403 and b"AccessDenied" in without.body


def test_the_old_json_is_answered_in_its_envelope():
    response = answered(KINESIS, request("ListStreams", b"{}", "application/json"))
    assert response.status == 404
    assert decoded(response) == {
        "Output": {"__type": "com.amazon.coral.service#UnknownOperationException"}, "Version": "1.0"
    }

    response = answered(KINESIS, request("ListStreams", b"{", "application/json"))
    assert response.status == 400
    assert decoded(response)["Output"]["__type"].endswith("#SerializationException")


@pytest.mark.parametrize("body", [b"{", b"[]", b'"a"', b"null", b"1", b"\xff"])
@pytest.mark.parametrize("operation", ["ListStreams", "Nothing"])
def test_a_body_that_is_no_map_is_refused_without_a_message(body, operation):
    response = answered(KINESIS, request(operation, body))

    assert error(response) == (400, "SerializationException")
    assert decoded(response) == {"__type": "SerializationException"}


@pytest.mark.parametrize("target", ["Kinesis_20131202", "Kinesis_20131203", "Dynamo", "", "kinesis_20131202"])
def test_an_unknown_operation_is_told(target):
    operation = "Nothing" if target == "Kinesis_20131202" else "ListStreams"

    assert error(answered(KINESIS, request(operation, target=target))) == (400, "UnknownOperationException")


def test_an_operation_that_is_not_carried_out_is_unknown():
    served = gateway(kinesis({"ListStreams": RECORDER}))

    assert error(answered(served, request("CreateStream"))) == (400, "UnknownOperationException")


def test_the_signature_is_looked_at_after_the_body_and_before_its_members():
    unsigned = request("DescribeStream", b'{"StreamName":1}')
    del unsigned.headers["authorization"]
    assert error(answered(KINESIS, unsigned)) == (400, "MissingAuthenticationTokenException")

    assert error(answered(KINESIS, request("DescribeStream", b'{"StreamName":1}'))) == (400, "SerializationException")
    unsigned.body = b"{"
    assert error(answered(KINESIS, unsigned)) == (400, "SerializationException")


def test_a_large_body_that_nobody_has_signed_is_not_parsed():
    class Spy(Service):
        @property
        def body_bytes_max(self):
            raise AssertionError("the body was looked at")

        @body_bytes_max.setter
        def body_bytes_max(self, value):
            pass

    served = gateway(Spy("Kinesis_20131202", "kinesis", MODEL, {"ListStreams": RECORDER}))
    for asked in (
        request("ListStreams", b" " * (64 << 10) + b"{"),
        request("ListStreams", gzip.compress(b"{}"), content_encoding="gzip"),
    ):
        del asked.headers["authorization"]
        assert error(answered(served, asked)) == (400, "MissingAuthenticationTokenException")


def test_types_are_looked_at_before_constraints():
    asked = request("DescribeStream", {"StreamName": "", "Limit": "x"})
    assert error(answered(KINESIS, asked)) == (400, "SerializationException")

    response = answered(KINESIS, request("DescribeStream", {"StreamName": "", "Limit": 0}))
    assert error(response) == (400, "ValidationException")
    assert decoded(response)["message"].startswith("3 validation errors detected: Value '' at 'streamName' failed")


def test_a_body_beyond_the_bound_is_refused_without_being_parsed():
    response, calls = ask(request("ListStreams", b" " * 101 + b"{}"), {}, body_bytes_max=100)
    assert (response.status, response.body, calls) == (413, b"", [])

    response, _ = ask(request("PutRecord", b" " * 101), Reply(b""), body_bytes_max=100, raw=frozenset({"PutRecord"}))
    assert response.status == 200


# -- compressed requests ---------------------------------------------------------------------------------------------


def test_gzip_is_inflated():
    asked = request("DescribeStream", gzip.compress(b'{"StreamName":"a"}'), content_encoding="gzip")
    response, calls = ask(asked, {})

    assert response.status == 200
    assert (calls[0].params, calls[0].body) == ({"StreamName": "a"}, b'{"StreamName":"a"}')


@pytest.mark.parametrize(
    ("body", "coding"),
    [
        (b"{}", "gzip"), (gzip.compress(b"{}")[:-1], "gzip"), (gzip.compress(b"{}") + b"x", "gzip"), (b"{}", "br"),
        (gzip.compress(bytes(17 << 20)), "gzip"),
    ],
    ids=["plain", "cut", "more behind", "unknown", "bomb"],
)
def test_what_does_not_inflate_is_refused(body, coding):
    for operation in ("ListStreams", "PutRecord"):
        response, calls = ask(request(operation, body, content_encoding=coding), {}, raw=frozenset({"PutRecord"}))
        assert error(response) == (400, "SerializationException") and calls == []


# -- signatures and permissions --------------------------------------------------------------------------------------


class ClockOf:
    def __init__(self, asked):
        self._now_ms = signed_ms(asked)

    def now_ms(self):
        return self._now_ms

    def monotonic_ms(self):
        return 0


def sign_and_ask(
    key, *, table=(KEY,), body=b'{"StreamName":"orders"}', operation="DescribeStream", content_encoding=""
):  # fmt: skip
    asked = signed(body, key=key, headers={"X-Amz-Target": f"Kinesis_20131202.{operation}"}, region="eu-west-1")
    if content_encoding:
        asked.headers["content-encoding"] = content_encoding
    recorder = Recorder({})
    service = kinesis(recorder, raw=frozenset({"PutRecord"}))
    served = Gateway([service], Authenticator(table), ClockOf(asked), SeededRandom())
    return answered(served, asked), recorder.calls


def test_a_signed_call_acts_for_the_account_of_its_key():
    response, calls = sign_and_ask(KEY)

    assert response.status == 200
    assert (calls[0].caller.account, calls[0].caller.region) == ("123456789012", "eu-west-1")


def test_a_wrong_signature_is_refused_in_the_format_of_the_call():
    response, calls = sign_and_ask(Key(key_id=KEY.key_id, secret="wrong"))

    assert error(response) == (400, "InvalidSignatureException") and calls == []
    assert error(sign_and_ask(Key(key_id="other", secret="x"))[0]) == (400, "UnrecognizedClientException")


def test_the_signature_covers_the_body_as_it_was_sent():
    assert sign_and_ask(KEY, body=gzip.compress(b'{"StreamName":"a"}'), content_encoding="gzip")[0].status == 200


@pytest.mark.parametrize(
    ("permissions", "allowed"),
    [({"read"}, {"DescribeStream"}), ({"write"}, {"PutRecord"}), ({"admin"}, {"DeleteStream"}), (set(), set())],
)
def test_a_key_may_do_what_its_permissions_say(permissions, allowed):
    key = Key(key_id="AK", secret="s", permissions=frozenset(permissions))
    for operation in ("DescribeStream", "PutRecord", "DeleteStream"):
        response, calls = sign_and_ask(key, table=[key], operation=operation)
        if operation in allowed:
            assert response.status == 200
        else:
            assert error(response) == (400, "AccessDeniedException") and calls == []


def test_operations_have_a_class_by_their_name_unless_it_is_given():
    service = kinesis(RECORDER, access=ACCESS)
    classes = {name: service.access_of(name) for name in MODEL.operations}

    assert {name for name, access in classes.items() if access == "write"} == {"PutRecord", "PutRecords"}
    assert classes["SubscribeToShard"] == classes["GetRecords"] == classes["RegisterStreamConsumer"] == "read"
    assert classes["CreateStream"] == classes["MergeShards"] == "admin"


# -- errors of operations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content_type", [JSON, CBOR])
def test_an_api_error_is_answered_in_the_format_of_the_call(content_type):
    failure = ApiError("ResourceNotFoundException", "Stream ü not found.", 400, {"Extra": 1})
    response, _ = ask(request("ListStreams", {}, content_type), failure)

    assert error(response) == (400, "ResourceNotFoundException")
    assert headers(response)["content-type"] == content_type
    assert decoded(response) == {"__type": failure.name, "message": failure.message, "Extra": 1}


def test_errors_of_an_operation_may_be_json_in_any_format():
    failure = ApiError("ResourceNotFoundException", "no")
    asked = request("ListStreams", {}, CBOR)
    response, _ = ask(asked, failure, json_errors=frozenset({"ListStreams"}))

    assert headers(response)["content-type"] == JSON
    assert json.loads(response.body)["__type"] == failure.name


@pytest.mark.parametrize(
    "kind", [e.NotLeader, e.ConnectionFailed, e.NodeDraining, e.TimedOut, e.StoreUnavailable, e.DiskFull, e.Throttled]
)
def test_passing_trouble_is_answered_as_unavailable(kind):
    response, _ = ask(request("ListStreams"), kind("not now"))

    assert error(response) == (503, "ServiceUnavailable")


@pytest.mark.parametrize(
    "failure", [e.CorruptBatch("secret path"), ValueError("secret"), AssertionError(), e.StreamNotFound("x")]
)
def test_what_nobody_expected_is_logged_and_told_as_a_failure(failure, caplog):
    with caplog.at_level(logging.ERROR):
        response, _ = ask(request("ListStreams", {}, CBOR), failure)

    assert error(response) == (500, "InternalFailureException")
    assert "secret" not in decoded(response)["message"]
    assert headers(response)["x-amzn-requestid"] in caplog.text


def test_an_answer_that_is_not_what_the_model_says_is_a_failure(caplog):
    response, _ = ask(request("DescribeStreamSummary"), {"StreamDescriptionSummary": {"Unknown": 1}})

    assert response.status == 500


def test_every_streamkit_error_is_mapped_or_ours():
    for kind in e.BY_CODE.values():
        mapped = next((STREAMKIT_ERRORS[base] for base in kind.__mro__ if base in STREAMKIT_ERRORS), None)
        assert mapped is None or mapped[1] == 503
        assert mapped is not None or kind.__name__ not in ("NotLeader", "DiskFull", "TimedOut")


def test_a_cancelled_call_is_cancelled():
    async def run():
        started = asyncio.Event()

        async def wait(call):
            started.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(gateway(kinesis(wait)).handle(request("ListStreams")))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())


def test_an_observer_is_told_of_each_call():
    class Observer:
        def __init__(self):
            self.told = []

        def answered(self, operation, status, error, elapsed_ms):
            self.told.append((operation, status, error, elapsed_ms))

    observer = Observer()
    served = gateway(kinesis(Recorder({})), observer=observer)
    for asked in (request("DescribeLimits"), request("Nothing"), request("ListStreams", {"Limit": 0})):
        answered(served, asked)

    assert observer.told == [
        ("DescribeLimits", 200, "", 0), ("", 400, "UnknownOperationException", 0),
        ("ListStreams", 400, "ValidationException", 0),
    ]


# -- other services --------------------------------------------------------------------------------------------------

METRICS = Model(
    {"PutMetricData": ("Namespace! Data:[Datum]", ""), "Tell": ("", "Now Text")},
    {"Datum": "Name! Value At"},
    {name: String() for name in ("Namespace", "Name", "Text")}
    | {"Value": Double(), "At": Timestamp(), "Now": Timestamp()},
)


def metrics(answer=None, **other):
    recorder = Recorder(answer)
    service = Service(
        "Granite", "monitoring", METRICS, {"PutMetricData": recorder, "Tell": recorder}, json_version="1.0", **other
    )
    return gateway(kinesis(RECORDER), service), recorder.calls


DATUM = {"Namespace": "app", "Data": [{"Name": "lag", "Value": 1.5, "At": 1500}]}


def test_services_of_json_1_0_stand_beside_others():
    served, calls = metrics()
    asked = {"Namespace": "app", "Data": [{"Name": "lag", "Value": 1.5, "At": 1.5}]}
    response = answered(served, request("PutMetricData", asked, "application/x-amz-json-1.0", target="Granite"))

    assert response.status == 200 and headers(response)["content-type"] == "application/x-amz-json-1.0"
    assert calls[0].params == DATUM
    assert answered(served, request("ListStreams")).status == 200


def rpc(operation, body):
    asked = request(operation, body, "application/cbor", smithy_protocol="rpc-v2-cbor")
    del asked.headers["x-amz-target"]
    asked.target = f"/service/Granite/operation/{operation}"
    return asked


def test_rpc_v2_names_its_operation_in_the_path():
    served, calls = metrics(rpc=True)
    body = cbor2.dumps({"Namespace": "app", "Data": [{"Name": "lag", "Value": 1.5, "At": cbor2.CBORTag(1, 1.5)}]})
    response = answered(served, rpc("PutMetricData", body))

    assert (response.status, response.body) == (200, b"\xa0")
    assert headers(response)["smithy-protocol"] == "rpc-v2-cbor"
    assert headers(response)["content-type"] == "application/cbor"
    assert calls[0].params == DATUM
    response = answered(served, rpc("PutMetricData", cbor2.dumps({})))
    assert error(response) == (400, "ValidationException")
    assert headers(response)["smithy-protocol"] == "rpc-v2-cbor"
    assert answered(served, rpc("Nothing", cbor2.dumps({}))).status == 403
    assert answered(metrics()[0], rpc("PutMetricData", body)).status == 403


def form(text):
    asked = request("", text.encode(), FORM)
    del asked.headers["x-amz-target"]
    return asked


def test_a_form_names_its_operation_in_a_field():
    served, calls = metrics(query_namespace="http://metrics/")
    response = answered(served, form(
        "Action=PutMetricData&Version=2010-08-01&Namespace=app&Data.member.1.Name=lag&Data.member.1.Value=1.5"
        "&Data.member.1.At=1970-01-01T00%3A00%3A01.500Z"
    ))  # fmt: skip

    assert response.status == 200 and headers(response)["content-type"] == "text/xml"
    assert ElementTree.fromstring(bytes(response.body)).tag == "{http://metrics/}PutMetricDataResponse"
    assert calls[0].params == DATUM


def test_a_form_is_answered_in_xml():
    served, _ = metrics({"Now": 1_500_000_000_000, "Text": "<&>\x00\ud800é"}, query_namespace="http://metrics/")
    tree = ElementTree.fromstring(bytes(answered(served, form("Action=Tell")).body))

    assert tree.findtext(".//{*}TellResult/{*}Text") == "<&>\ufffd\ufffdé"
    assert tree.findtext(".//{*}Now") == "2017-07-14T02:40:00Z"


@pytest.mark.parametrize(
    ("text", "status", "name"),
    [
        ("Action=PutMetricData", 400, "ValidationException"),
        ("Action=PutMetricData&Namespace=a&Namespace=b", 400, "SerializationException"),
        ("Action=PutMetricData&Namespace.x=a", 400, "SerializationException"),
        ("Action=PutMetricData&Namespace=%FF", 400, "SerializationException"),
        ("Action=PutMetricData&Namespace=a&Data.member.x.Name=b", 400, "SerializationException"),
        ("Action=PutMetricData&Namespace=a&Data.member.1=b", 400, "SerializationException"),
        ("Action=PutMetricData&Namespace=a&Data.member.1.Name=a&Data.member.1.Value=b", 400, "SerializationException"),
        ("Action=PutMetricData&Namespace=a&Data.member.1.At=yesterday", 400, "SerializationException"),
        ("Action=PutMetricData&" + "a=&" * 30_000, 400, "SerializationException"),
        ("Action=PutMetricData&" + "a." * 1000 + "b=", 400, "ValidationException"),
    ],
)
def test_a_form_that_makes_no_sense_is_refused_in_xml(text, status, name):
    served, calls = metrics(query_namespace="http://metrics/")
    response = answered(served, form(text))
    tree = ElementTree.fromstring(bytes(response.body))

    assert (response.status, tree.findtext(".//{*}Code"), headers(response)["x-amzn-errortype"]) == (status, name, name)
    assert tree.findtext(".//{*}Type") == "Sender" and calls == []


def test_a_form_with_an_unknown_action_is_denied():
    assert answered(metrics(query_namespace="x")[0], form("Action=Nothing")).status == 403
    assert answered(metrics(query_namespace="x")[0], form("Version=1")).status == 403


def test_no_two_services_may_have_one_target():
    with pytest.raises(AssertionError):
        gateway(kinesis(RECORDER), kinesis(RECORDER))
    with pytest.raises(AssertionError):
        gateway(kinesis({"Nothing": RECORDER}))


def test_the_clock_that_counts_is_the_gateways():
    stale = signed()
    table = Authenticator([KEY])
    response = answered(gateway(kinesis(RECORDER), authenticator=table), stale)

    assert error(response) == (400, "InvalidSignatureException")
    assert ("not yet current" in decoded(response)["message"]) == (signed_ms(stale) > NOW_MS)
