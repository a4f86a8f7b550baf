"""Hostile requests through the whole gateway: an answer in shape, never a defect of ours."""

from __future__ import annotations

import asyncio
import zlib

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit.gateway.calls import Reply, Service
from streamkit.gateway.kinesis.model import MODEL
from streamkit.gateway.shapes import Double, Model, String, Timestamp
from streamkit.http.exchange import Request
from streamkit.security.credentials import Authenticator
from streamkit.security.sigv4 import Refused, Verifier, parse
from tests.gateway.calling import CBOR, JSON, SIGNED, Recorder, gateway, kinesis
from tests.security.signing import KEY, presigned, signed, signed_ms

LATIN = st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=40)
METRICS = Model({"Put": ("Name! Data:[Datum]1..2 Named:{Name:Value}", "")}, {"Datum": "Name Value At"},
                {"Name": String(1, 5), "Value": Double(), "At": Timestamp()})  # fmt: skip
GATEWAYS = [
    gateway(
        kinesis(Recorder(), raw=frozenset({"PutRecord"})),
        Service("Granite", "monitoring", METRICS, {"Put": Recorder(Reply(b""))}, rpc=True, query_namespace="x"),
        authenticator=authenticator,
    )
    for authenticator in (Authenticator(), Authenticator([KEY]))
]
TYPES = st.sampled_from([
    JSON, CBOR, "application/json", "application/x-www-form-urlencoded", "application/cbor",
    "application/x-amz-json-1.0", "",
]) | LATIN  # fmt: skip
TARGETS = st.sampled_from([f"Kinesis_20131202.{name}" for name in MODEL.operations] + ["Granite.Put"]) | LATIN
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.binary(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4), max_leaves=12,
)  # fmt: skip
MEMBERS = st.sampled_from(sorted({name for operation in MODEL.operations for name in MODEL.input(operation).members}))
FORMS = st.lists(st.sampled_from([
    "Action=Put", "Name=a", "Name=", "Data.member.1.Name=b", "Data.member.1.Value=x", "Data.member.1.Value=1e999",
    "Data.member.1.At=2020-01-01T00:00:00Z", "Data.member.1.At=9999-12-31T23:59:59+00:00",
    "Data.member.1.At=0001-01-01", "Data=",
    "Data.member.0.Name=c", "Data.member.99999.Name=", "Data.1.Name=q", "Named.entry.1.key=k", "Named.entry.1.value=1",
    "%", "=", ".=.", "Data.member.1.Value=nan", "%FF=%FF", "a.b.c=d",
]), max_size=8).map(lambda fields: "&".join(fields).encode())  # fmt: skip
BODIES = (
    st.binary(max_size=100) | FORMS | st.dictionaries(MEMBERS, VALUES, max_size=5).map(cbor2.dumps)
    | st.dictionaries(MEMBERS, VALUES, max_size=5).map(repr).map(str.encode) | VALUES.map(cbor2.dumps)
)  # fmt: skip


def ask(number, asked):
    response = asyncio.run(GATEWAYS[number].handle(asked))
    assert response.status in (200, 400, 403, 404, 413), (asked, response)
    assert all(name == name.lower() and "\n" not in value for name, value in response.headers)


@pytest.mark.fuzz
@given(
    number=st.integers(0, 1), body=BODIES, content_type=TYPES, target=st.none() | TARGETS,
    path=st.sampled_from(["/", "/service/Granite/operation/Put"]), packed=st.booleans(), more=st.dictionaries(
        st.sampled_from(["origin", "content-encoding", "authorization", "x-amz-date", "host", "smithy-protocol"]),
        LATIN | st.sampled_from(["gzip", "rpc-v2-cbor", "AWS4-HMAC-SHA256 Credential=/"]), max_size=2,
    ),
)  # fmt: skip
def test_any_request_is_answered(number, body, content_type, target, path, packed, more):
    headers = SIGNED | {"content-type": content_type} | more
    if target is not None:
        headers["x-amz-target"] = target
    if packed:
        squeeze = zlib.compressobj(wbits=31)
        body = squeeze.compress(body) + squeeze.flush()
        headers["content-encoding"] = "gzip"
    if path != "/":
        headers["smithy-protocol"] = "rpc-v2-cbor"
    ask(number, Request("POST", path, headers, body, False, False, ""))


PARTS = st.sampled_from([
    "AWS4-HMAC-SHA256", "Credential=", "SignedHeaders=", "Signature=", "AK/20231114/us-east-1/kinesis/aws4_request",
    "host", ";", "=", "/", ",", " ", "\t", "\xa0", "a" * 64, "A" * 64, "é", "x-amz-date", "aws4_request", "/" * 9,
]) | LATIN  # fmt: skip


@pytest.mark.fuzz
@given(header=st.lists(PARTS, max_size=14).map("".join), stamp=LATIN | st.just("20231114T221320Z"))
def test_any_authorization_header_is_read_or_refused(header, stamp):
    request = Request("POST", "/", {"host": "h", "authorization": header, "x-amz-date": stamp}, b"{}", False, False, "")
    with_verdict(request)


@pytest.mark.fuzz
@given(query=st.lists(st.sampled_from([
    "X-Amz-Algorithm=AWS4-HMAC-SHA256", "X-Amz-Credential=AK%2F20231114%2Fus-east-1%2Fkinesis%2Faws4_request",
    "X-Amz-Date=20231114T221320Z", "X-Amz-Expires=60", "X-Amz-Expires=-1", "X-Amz-Expires=9e9", "X-Amz-Expires=٣",
    "X-Amz-SignedHeaders=host", "X-Amz-SignedHeaders=", f"X-Amz-Signature={'0' * 64}", "X-Amz-Date=99999999T999999Z",
    "X-Amz-Credential=%FF%2F", "%", "&", "=",
]).map(lambda text: text.encode().decode("latin-1")) | LATIN, max_size=12).map("&".join))  # fmt: skip
def test_any_query_is_read_or_refused(query):
    with_verdict(Request("POST", f"/?{query}", {"host": "h"}, b"{}", False, False, ""))


@pytest.mark.fuzz
@given(
    form=st.sampled_from([signed, presigned]), which=st.integers(0, 20), at=st.integers(0, 9999),
    new=st.sampled_from("0aZ/%"),
)  # fmt: skip
def test_a_signed_request_with_one_character_changed_never_passes(form, which, at, new):
    request = form(headers={"X-Note": "text"})
    now_ms = signed_ms(request)
    names = ["target", "authorization", *parse(request).signed_headers.split(";")]
    name = names[which % len(names)]
    if name == "authorization" and form is presigned:
        return
    text = request.target if name == "target" else request.headers[name]
    at %= len(text)
    changed = text[:at] + (new if text[at] != new else "b") + text[at + 1 :]
    if name == "target":
        request.target = changed
    else:
        request.headers[name] = changed

    with pytest.raises(Refused):
        Authenticator([KEY]).authenticate(request, "kinesis", now_ms)


def with_verdict(request):
    """Passes or is refused by a name that clients know."""
    try:
        presented = parse(request)
        Verifier().verify(request, presented, KEY.secret, "kinesis", 1_700_000_000_000)
    except Refused as refused:
        assert refused.name in {
            "MissingAuthenticationTokenException", "IncompleteSignatureException", "InvalidSignatureException",
        }  # fmt: skip
    else:
        raise AssertionError("a signature out of thin air has passed")
