"""Requests signed by botocore, as a listener would hand them on."""

from __future__ import annotations

import calendar
import hashlib
import time
from typing import Any
from urllib.parse import urlsplit

from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from streamkit.http.exchange import Request
from streamkit.security.credentials import Key

KEY = Key(key_id="AKIDEXAMPLE", secret="wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", account="123456789012")
TEMPORARY = Key(key_id="ASIATEMPORARY", secret="temporary secret", token="IQoJb3JpZ2luX2VjE/+==")
BODY = b'{"StreamName":"orders"}'


def signed(
    body: bytes = BODY, *, url: str = "http://localhost:4567/", headers: dict[str, str] | None = None, key: Key = KEY,
    region: str = "us-east-1", service: str = "kinesis", token: str | None = None,
) -> Request:  # fmt: skip
    """The header form."""
    made = _unsigned(body, url, headers)
    SigV4Auth(_credentials(key, token), service, region).add_auth(made)
    return _received(made, body)


def presigned(
    body: bytes = BODY, *, url: str = "http://localhost:4567/", headers: dict[str, str] | None = None, key: Key = KEY,
    region: str = "us-east-1", service: str = "kinesis", expires: int = 3600,
) -> Request:  # fmt: skip
    """The query form. botocore would move the body into the query; here it is signed where it is."""

    class BodyStays(SigV4QueryAuth):
        def payload(self, request: Any) -> str:
            return hashlib.sha256(body).hexdigest()

    made = _unsigned(b"", url, headers)
    BodyStays(_credentials(key, None), service, region, expires).add_auth(made)
    return _received(made, body)


def signed_ms(request: Request) -> int:
    """When, in Unix milliseconds."""
    stamp = request.headers.get("x-amz-date") or request.query.partition("X-Amz-Date=")[2][:16]
    return calendar.timegm(time.strptime(stamp, "%Y%m%dT%H%M%SZ")) * 1000


def _credentials(key: Key, token: str | None) -> Credentials:
    return Credentials(key.key_id, key.secret, token or key.token or None)


def _unsigned(body: bytes, url: str, headers: dict[str, str] | None) -> AWSRequest:
    given = {"X-Amz-Target": "Kinesis_20131202.DescribeStream", "Content-Type": "application/x-amz-json-1.1"}
    return AWSRequest("POST", url, headers=given | (headers or {}), data=body)


def _received(made: AWSRequest, body: bytes) -> Request:
    parts = urlsplit(made.url)
    headers = {"host": parts.netloc}
    for name, value in made.headers.items():
        raw = value.encode("utf-8") if isinstance(value, str) else value
        text = raw.decode("latin-1").strip(" \t")
        name = name.lower()
        headers[name] = f"{headers[name]},{text}" if name in headers and name != "host" else text
    target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    return Request("POST", target, headers, body, False, False, "127.0.0.1:1")
