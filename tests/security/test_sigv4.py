"""Signatures: what botocore signs passes, what was changed on the way does not, and each refusal has its name."""

from __future__ import annotations

import calendar
import hashlib
import time
from dataclasses import replace
from email.utils import formatdate
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit.http.exchange import Request
from streamkit.security.sigv4 import CACHED_MAX, Refused, Verifier, canonical_path, canonical_query, parse
from tests.security.signing import BODY, KEY, TEMPORARY, presigned, signed, signed_ms

PATHS = ["/", "", "/a/b", "//a//b/", "/a/../b", "/./a/.", "/a%20b", "/a b~c", "/%2F%25", "/../..", "/%C3%BC",
         "/a/b/..", "/x;y=1"]
QUERIES = ["a=b", "b=2&a=1", "a=2&a=1", "x", "x=&y", "a%20b=c%2Bd", "k=%C3%BC", "A=1&a=2", "a=1&a-b=2", "a-b=~"]


def verify(request: Request, *, secret: str = KEY.secret, service: str = "kinesis", now_ms: int | None = None) -> None:
    now_ms = signed_ms(request) if now_ms is None else now_ms
    Verifier().verify(request, parse(request), secret, service, now_ms)


def refused(request: Request, **other: object) -> Refused:
    with pytest.raises(Refused) as caught:
        verify(request, **other)
    return caught.value


@pytest.mark.parametrize("path", PATHS)
def test_any_path_that_botocore_signs_passes(path: str) -> None:
    verify(signed(url=f"http://localhost:4567{path}"))


@pytest.mark.parametrize("query", QUERIES)
def test_any_query_that_botocore_signs_passes(query: str) -> None:
    verify(signed(url=f"http://localhost:4567/x?{query}"))
    if query.partition("=")[0] not in ("x", "A") and query != "a=2&a=1":      # what parse_qs takes apart differently
        verify(presigned(url=f"http://localhost:4567/x?{query}"))


@pytest.mark.parametrize(
    "value", ["plain", "two  blanks   here", "  around  ", "tab\there", "käse à la carte", "a,b", "a, b", ""],
)
def test_any_header_that_botocore_signs_passes(value: str) -> None:
    verify(signed(headers={"X-Custom": value}))


def test_the_authority_of_http2_is_signed_in_the_place_of_the_host() -> None:
    # As the SDK for JavaScript sent it, with the key "a" and the secret "b".
    names = (
        ":authority;amz-sdk-invocation-id;amz-sdk-request;content-length;content-type;x-amz-content-sha256;x-amz-date;"
        "x-amz-target;x-amz-user-agent"
    )
    signature = "8873d979639ac6cd399e6614928dc8c6e48fe118e63723e33922adcc0314f03b"
    request = Request(
        "POST", "/",
        {
            "host": "127.0.0.1:17999",
            "content-type": "application/x-amz-json-1.1",
            "x-amz-target": "Kinesis_20131202.ListStreams",
            "content-length": "2",
            "x-amz-user-agent": "aws-sdk-js/3.1142.0",
            "amz-sdk-invocation-id": "6972b98a-06cb-47da-a561-11827734b7af",
            "amz-sdk-request": "attempt=1; max=1",
            "x-amz-date": "20261123T171305Z",
            "x-amz-content-sha256": hashlib.sha256(b"{}").hexdigest(),
            "authorization": f"AWS4-HMAC-SHA256 Credential=a/20261123/us-east-1/kinesis/aws4_request, "
                             f"SignedHeaders={names}, Signature={signature}",
        },
        b"{}", True, False, "127.0.0.1:1",
    )  # fmt: skip
    now_ms = calendar.timegm((2026, 11, 23, 17, 13, 5)) * 1_000

    verify(request, secret="b", now_ms=now_ms)
    elsewhere = replace(request, headers=request.headers | {"host": "127.0.0.1:18000"})
    assert refused(elsewhere, secret="b", now_ms=now_ms).name == "InvalidSignatureException"


def test_repeated_headers_are_joined_by_a_comma() -> None:
    request = signed(headers={"X-Twice": "one,two"})

    assert "x-twice" in request.headers["authorization"]
    verify(request)


@given(
    body=st.binary(max_size=200), path=st.text(max_size=20),
    region=st.from_regex(r"[a-z]{2}-[a-z]{4}-[0-9]", fullmatch=True),
    value=st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_characters="\x7f\xa0\x85"), max_size=30),
)  # fmt: skip
def test_what_botocore_signs_passes_until_it_is_changed(body: bytes, path: str, region: str, value: str) -> None:
    request = signed(body, url=f"https://host/{quote(path)}", region=region, headers={"X-Value": value})

    verify(request)
    assert refused(replace(request, body=body + b" ")).name == "InvalidSignatureException"
    assert refused(replace(request, method="PUT")).name == "InvalidSignatureException"
    assert refused(replace(request, target=request.target + "x")).name == "InvalidSignatureException"
    assert refused(request, secret=KEY.secret + "x").name == "InvalidSignatureException"


def test_session_tokens_are_signed() -> None:
    request = signed(key=TEMPORARY)

    verify(request, secret=TEMPORARY.secret)
    assert parse(request).token == TEMPORARY.token
    request.headers["x-amz-security-token"] += "x"
    assert refused(request, secret=TEMPORARY.secret).name == "InvalidSignatureException"


def test_a_date_header_stands_in_for_the_stamp() -> None:
    request = signed(headers={"Date": formatdate()})

    assert "x-amz-date" not in request.headers
    stamp = parse(request).stamp
    assert stamp.startswith("20") and stamp.endswith("Z")
    verify(request, now_ms=calendar.timegm(time.strptime(stamp, "%Y%m%dT%H%M%SZ")) * 1000)


def test_a_signed_hash_of_the_body_must_be_the_bodys() -> None:
    right = signed(headers={"X-Amz-Content-SHA256": hashlib.sha256(BODY).hexdigest()})
    verify(right)

    for wrong in ("UNSIGNED-PAYLOAD", hashlib.sha256(b"").hexdigest()):
        assert "SHA-256" in refused(signed(headers={"X-Amz-Content-SHA256": wrong})).message


@pytest.mark.parametrize("off_s", [-300, -299, 0, 299, 300])
def test_a_clock_may_be_five_minutes_off(off_s: int) -> None:
    request = signed()

    verify(request, now_ms=signed_ms(request) + off_s * 1000)


@pytest.mark.parametrize(("off_s", "told"), [(301, "Signature expired: "), (-301, "Signature not yet current: ")])
def test_a_clock_that_is_further_off_is_told_so(off_s: int, told: str) -> None:
    request = signed()
    error = refused(request, now_ms=signed_ms(request) + off_s * 1000)

    assert (error.name, error.message[: len(told)]) == ("InvalidSignatureException", told)
    assert "5 min." in error.message


# -- the query form --------------------------------------------------------------------------------------------------


def test_a_presigned_request_lives_as_long_as_it_says() -> None:
    request = presigned(expires=3600)
    verify(request)
    verify(request, now_ms=signed_ms(request) + 3_600_000)

    assert "Signature expired" in refused(request, now_ms=signed_ms(request) + 3_601_000).message
    assert "not yet current" in refused(request, now_ms=signed_ms(request) - 301_000).message
    verify(presigned(key=TEMPORARY), secret=TEMPORARY.secret)


def test_a_presigned_request_expires_in_a_week_at_most() -> None:
    assert refused(presigned(expires=604_801)).name == "IncompleteSignatureException"
    verify(presigned(expires=604_800))


def test_a_presigned_request_that_was_changed_is_refused() -> None:
    request = presigned(url="http://localhost/?a=1")

    assert refused(replace(request, target=request.target.replace("a=1", "a=2"))).name == "InvalidSignatureException"
    assert refused(replace(request, body=b"{}")).name == "InvalidSignatureException"
    assert refused(replace(request, target=request.target.replace("3600", "3601"))).name == "InvalidSignatureException"


@pytest.mark.parametrize("name", ["Algorithm", "Credential", "Date", "SignedHeaders", "Signature"])
def test_each_missing_parameter_is_named(name: str) -> None:
    request = presigned()
    kept = [part for part in request.query.split("&") if not part.startswith(f"X-Amz-{name}=")]
    error = refused(replace(request, target="/?" + "&".join(kept)), now_ms=0)

    assert error.name == "IncompleteSignatureException"
    assert f"'X-Amz-{name}'" in error.message


# -- the form of the header ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "value"), [("Credential", ""), ("SignedHeaders", ""), ("Signature", "")])
def test_each_missing_part_is_named_and_the_header_repeated(name: str, value: str) -> None:
    request = signed()
    header = request.headers["authorization"]
    start = header.index(f"{name}=")
    end = header.find(",", start) if "," in header[start:] else len(header)
    request.headers["authorization"] = header[:start] + header[end:].lstrip(", ")
    error = refused(request)

    assert error.name == "IncompleteSignatureException"
    assert f"'{name}'" in error.message
    assert error.message.endswith(f"Authorization={request.headers['authorization']}")


def test_all_that_is_missing_is_told_at_once() -> None:
    request = signed()
    request.headers["authorization"] = "AWS4-HMAC-SHA256 nothing"
    del request.headers["x-amz-date"]
    error = refused(request, now_ms=0)

    assert all(name in error.message for name in ("Credential", "Signature", "SignedHeaders", "X-Amz-Date"))


@pytest.mark.parametrize("between", [",", " ", ", ", " , ", ",\t"])
def test_parts_are_separated_by_commas_or_blanks(between: str) -> None:
    request = signed()
    request.headers["authorization"] = request.headers["authorization"].replace(", ", between)

    verify(request)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"authorization": None}, "MissingAuthenticationTokenException"),
        ({"authorization": ""}, "MissingAuthenticationTokenException"),
        ({"authorization": "Basic dXNlcjpwYXNz"}, "IncompleteSignatureException"),
        ({"authorization": "AWS4-ECDSA-P256-SHA256 Credential=a"}, "IncompleteSignatureException"),
        ({"x-amz-date": None}, "IncompleteSignatureException"),
        ({"x-amz-date": "yesterday"}, "IncompleteSignatureException"),
        ({"x-amz-date": "20269999T000000Z"}, "InvalidSignatureException"),
        ({"host": None}, "InvalidSignatureException"),
        ({"host": "elsewhere"}, "InvalidSignatureException"),
    ],
)
def test_each_refusal_has_its_name(change: dict[str, str | None], name: str) -> None:
    request = signed()
    now_ms = signed_ms(request)
    for header, value in change.items():
        if value is None:
            del request.headers[header]
        else:
            request.headers[header] = value

    assert refused(request, now_ms=now_ms).name == name


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("/kinesis/", "/dynamodb/", "InvalidSignatureException"),
        ("/aws4_request", "/aws5_request", "InvalidSignatureException"),
        ("/us-east-1/", "/eu-west-1/", "InvalidSignatureException"),
        ("/us-east-1/", "/", "IncompleteSignatureException"),
        ("/us-east-1/", "/ü/", "InvalidSignatureException"),
        ("AKIDEXAMPLE/", "/", "IncompleteSignatureException"),
        ("AKIDEXAMPLE/20", "AKIDEXAMPLE/19", "InvalidSignatureException"),
        ("host;", "", "InvalidSignatureException"),
        ("SignedHeaders=", "SignedHeaders=absent;", "InvalidSignatureException"),
        ("Signature=", "Signature=x", "IncompleteSignatureException"),
        ("SignedHeaders=", "SignedHeaders=" + "host;" * 200, "InvalidSignatureException"),
        ("AKIDEXAMPLE", "A" * 9000, "IncompleteSignatureException"),
    ],
)
def test_each_wrong_part_is_refused_by_name(old: str, new: str, name: str) -> None:
    request = signed()
    assert old in request.headers["authorization"]
    request.headers["authorization"] = request.headers["authorization"].replace(old, new, 1)

    assert refused(request).name == name


def test_both_forms_at_once_are_refused() -> None:
    request = signed()
    request.target = presigned().target

    assert refused(request).name == "InvalidSignatureException"


def test_a_key_id_may_hold_slashes() -> None:
    key = replace(KEY, key_id="team/alice")
    request = signed(key=key)

    assert parse(request).key_id == "team/alice"
    verify(request)


# -- the rest --------------------------------------------------------------------------------------------------------


def test_derived_keys_are_kept_and_bounded() -> None:
    verifier, presented = Verifier(), parse(signed())
    first = verifier.derived(presented, "secret")

    assert verifier.derived(presented, "secret") is first
    assert verifier.derived(presented, "another secret") != first
    for number in range(CACHED_MAX + 10):
        verifier.derived(replace(presented, region=f"r{number}"), "secret")
    assert len(verifier._derived) == CACHED_MAX


def test_an_error_repeats_no_secret() -> None:
    error = refused(signed(), secret="another")

    assert KEY.secret not in error.message and "another" not in error.message
    assert KEY.secret not in repr(KEY)


@pytest.mark.parametrize(
    ("path", "canonical"),
    [("", "/"), ("/", "/"), ("/a%2Fb", "/a%252Fb"), ("/a/./b/../c/", "/a/c/"), ("//", "/"), ("/../", "/"),
     ("/~", "/~")],
)
def test_paths_are_encoded_once_more_and_tidied(path: str, canonical: str) -> None:
    assert canonical_path(path) == canonical


def test_queries_are_encoded_in_one_way_and_sorted() -> None:
    assert canonical_query("b&a=%7e&a=!&&X-Amz-Signature=1", without_signature=True) == "a=%21&a=~&b="
