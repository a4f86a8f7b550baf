"""Keys, modes, and the name space that a call acts in."""

from __future__ import annotations

import pytest

from streamkit.errors import InvalidConfig
from streamkit.security.credentials import PERMISSIONS, Authenticator, Key
from streamkit.security.sigv4 import Refused
from tests.security.signing import KEY, TEMPORARY, presigned, signed, signed_ms

PLAIN = Key(key_id="AKPLAIN", secret="s", permissions=frozenset({"read"}))
DIGITS = Key(key_id="111122223333", secret="s")


def identity(authenticator, request):
    found = authenticator.authenticate(request, "kinesis", signed_ms(request))
    return found.account, found.region, found.key_id


def refused(authenticator, request):
    with pytest.raises(Refused) as caught:
        authenticator.authenticate(request, "kinesis", signed_ms(request))
    return caught.value.name


def test_the_account_is_the_keys_else_the_key_id_else_the_default():
    table = Authenticator([KEY, PLAIN, DIGITS], account="999999999999")

    assert identity(table, signed()) == ("123456789012", "us-east-1", KEY.key_id)
    assert identity(table, signed(key=DIGITS)) == ("111122223333", "us-east-1", "111122223333")
    assert identity(table, signed(key=PLAIN)) == ("999999999999", "us-east-1", "AKPLAIN")


def test_the_region_is_the_one_it_is_signed_for():
    table = Authenticator([KEY], region="eu-north-1")

    assert identity(table, signed(region="ap-south-1"))[1] == "ap-south-1"
    assert identity(table, presigned(region="ap-south-1"))[1] == "ap-south-1"


def test_regions_can_be_limited():
    table = Authenticator([KEY], regions=["us-east-1"])

    assert identity(table, signed())[1] == "us-east-1"
    assert refused(table, signed(region="us-west-2")) == "InvalidSignatureException"


def test_unknown_keys_and_foreign_tokens_are_refused():
    table = Authenticator([KEY, TEMPORARY])

    assert refused(table, signed(key=PLAIN)) == "UnrecognizedClientException"
    assert refused(table, signed(token="not this one")) == "UnrecognizedClientException"
    assert refused(table, signed(key=TEMPORARY, token="not this one")) == "UnrecognizedClientException"
    assert identity(table, signed(key=TEMPORARY))[2] == TEMPORARY.key_id


def test_a_wrong_secret_is_refused():
    table = Authenticator([Key(key_id=KEY.key_id, secret="another")])

    assert refused(table, signed()) == "InvalidSignatureException"


def test_what_is_signed_for_another_service_is_refused():
    assert refused(Authenticator([KEY]), signed(service="s3")) == "InvalidSignatureException"


def test_when_it_is_off_any_key_passes_but_the_form_counts():
    off = Authenticator(account="999999999999", region="eu-north-1")

    assert off.mode == "off"
    assert identity(off, signed(key=PLAIN, region="sa-east-1")) == ("999999999999", "sa-east-1", "AKPLAIN")
    assert identity(off, signed(key=DIGITS, token="any"))[0] == "111122223333"
    assert off.authenticate(signed(), "kinesis", 0).permissions == set(PERMISSIONS)
    request = signed()
    del request.headers["authorization"]
    assert refused(off, request) == "MissingAuthenticationTokenException"
    request.headers["authorization"] = "AWS4-HMAC-SHA256 Credential=a/b/c/d/aws4_request"
    assert refused(off, request) == "IncompleteSignatureException"


def test_permissions_go_with_the_key():
    table = Authenticator([KEY, PLAIN])
    request = signed(key=PLAIN)

    assert table.mode == "keys"
    assert table.authenticate(request, "kinesis", signed_ms(request)).permissions == {"read"}


@pytest.mark.parametrize(
    "wrong",
    [{"secret": ""}, {"key_id": ""}, {"account": "12"}, {"account": "12345678901x"},
     {"permissions": frozenset({"all"})}],
)
def test_keys_that_make_no_sense_are_refused(wrong):
    with pytest.raises(InvalidConfig):
        Key(**{"key_id": "a", "secret": "b"} | wrong)
