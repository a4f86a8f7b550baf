"""Signatures of requests (SigV4), in the header and in the query: parsed, then verified. No clock, no I/O.

    Authorization: AWS4-HMAC-SHA256 Credential=KEY/20260101/us-east-1/kinesis/aws4_request,
                   SignedHeaders=host;x-amz-date, Signature=64 hexadecimal digits

`parse` checks the form alone; `Verifier.verify` recomputes the signature with the caller's secret. What is refused has
the name that clients know it by.
"""

from __future__ import annotations

import hmac
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from hashlib import sha256
from typing import Protocol
from urllib.parse import quote, unquote_to_bytes

ALGORITHM = "AWS4-HMAC-SHA256"
TERMINATOR = "aws4_request"
SKEW_SECONDS = 300
EXPIRES_SECONDS_MAX = 604_800
HEADER_TEXT_MAX = 8 * 1024         # of the Authorization header; a credential, forty header names and a signature
QUERY_TEXT_MAX = 16 * 1024
SIGNED_HEADERS_MAX = 100
SHOWN_MAX = 512
CACHED_MAX = 1024
TIME = re.compile(r"\d{8}T\d{6}Z", re.ASCII)
HEXADECIMAL = re.compile(r"[0-9a-f]{64}")
REGION = re.compile(r"[A-Za-z0-9_-]{0,64}", re.ASCII)
# As every SDK writes it; whatever else is written is looked at part by part.
PLAIN = re.compile(
    rf"{ALGORITHM} Credential=([^,\s]+), SignedHeaders=([^,\s]+), Signature=([0-9a-f]{{64}})", re.ASCII
)
PARTS = re.compile(r"[,\s]+", re.ASCII)


class Refused(Exception):
    """name: what the API calls it. A message that never says more than the caller sent."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name
        self.message = message


def incomplete(message: str) -> Refused:
    return Refused("IncompleteSignatureException", message)


def invalid(message: str) -> Refused:
    return Refused("InvalidSignatureException", message)


class SignedRequest(Protocol):
    """headers: names in lower case, repeated ones joined by ",". body: as received, before inflating."""

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def query(self) -> str: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def body(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Presented:
    """A signature as it came. stamp: yyyymmddThhmmssZ. expires_seconds: of the query form; None when not given.

    in_query: it came there, and the canonical query leaves it out.
    """

    key_id: str
    date: str
    region: str
    service: str
    signed_headers: str
    signature: str
    stamp: str
    token: str = ""
    expires_seconds: int | None = None
    in_query: bool = False

    @property
    def scope(self) -> str:
        return f"{self.date}/{self.region}/{self.service}/{TERMINATOR}"


# -- form ------------------------------------------------------------------------------------------------------------


def parse(request: SignedRequest) -> Presented:
    """Raises Refused (MissingAuthenticationToken, IncompleteSignature, InvalidSignature)."""
    header = request.headers.get("authorization")
    in_query = "X-Amz-" in request.query and any(
        name in request.query for name in ("X-Amz-Algorithm=", "X-Amz-Credential=", "X-Amz-Signature=")
    )
    if header is None:
        if not in_query:
            raise Refused("MissingAuthenticationTokenException", "The request carries no authentication token.")
        return _from_query(request)
    if in_query:
        raise invalid("The request is signed both in the Authorization header and in the query; one of them is enough.")
    return _from_header(header, request.headers)


def _from_header(header: str, headers: Mapping[str, str]) -> Presented:
    if not header.strip():
        raise Refused("MissingAuthenticationTokenException", "The request carries no authentication token.")
    if len(header) > HEADER_TEXT_MAX:
        raise incomplete(f"The Authorization header is longer than {HEADER_TEXT_MAX} characters.")
    if (plain := PLAIN.fullmatch(header)) is not None and (stamp := _stamp(headers)):
        credential, signed, signature = plain.groups()
        return Presented(*_scope(credential), signed, signature, stamp, headers.get("x-amz-security-token", ""))
    algorithm, _, rest = header.strip().partition(" ")
    if algorithm != ALGORITHM:
        raise incomplete(f"Unsupported algorithm '{algorithm[:SHOWN_MAX]}': only {ALGORITHM} is known here.")
    parts = dict(part.partition("=")[::2] for part in PARTS.split(rest) if part)
    stamp = _stamp(headers)
    missing = [
        f"The Authorization header needs the parameter '{name}'."
        for name in ("Credential", "Signature", "SignedHeaders") if not parts.get(name)
    ]  # fmt: skip
    if not stamp:
        missing.append("The Authorization header needs a header 'X-Amz-Date' or 'Date' beside it.")
    if missing:
        raise incomplete(f"{' '.join(missing)} Authorization={header[:SHOWN_MAX]}")
    key_id, date, region, service = _scope(parts["Credential"])
    return Presented(
        key_id, date, region, service, parts["SignedHeaders"], _signature(parts["Signature"]), stamp,
        headers.get("x-amz-security-token", ""),
    )  # fmt: skip


def _from_query(request: SignedRequest) -> Presented:
    if len(request.query) > QUERY_TEXT_MAX:
        raise incomplete(f"The query is longer than {QUERY_TEXT_MAX} characters.")
    given = {
        name: _unquote(value)
        for name, _, value in (part.partition("=") for part in request.query.split("&"))
        if name.startswith("X-Amz-")
    }
    missing = [
        f"The query needs the parameter '{name}'."
        for name in (
            "X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Signature", "X-Amz-SignedHeaders", "X-Amz-Date"
        ) if not given.get(name)
    ]  # fmt: skip
    if missing:
        raise incomplete(f"{' '.join(missing)} Look at the query parameters again.")
    if given["X-Amz-Algorithm"] != ALGORITHM:
        raise incomplete(f"Unsupported algorithm '{given['X-Amz-Algorithm'][:SHOWN_MAX]}': only {ALGORITHM} is known.")
    expires = given.get("X-Amz-Expires")
    if expires is not None and not (
        expires.isascii() and expires.isdigit() and len(expires) < 9 and int(expires) <= EXPIRES_SECONDS_MAX
    ):
        raise incomplete(f"X-Amz-Expires must be a number of seconds from 0 to {EXPIRES_SECONDS_MAX}.")
    key_id, date, region, service = _scope(given["X-Amz-Credential"])
    if not TIME.fullmatch(given["X-Amz-Date"]):
        raise incomplete("X-Amz-Date must be of the form yyyymmddThhmmssZ.")
    return Presented(
        key_id, date, region, service, given["X-Amz-SignedHeaders"], _signature(given["X-Amz-Signature"]),
        given["X-Amz-Date"], given.get("X-Amz-Security-Token", ""), None if expires is None else int(expires), True,
    )  # fmt: skip


@lru_cache(CACHED_MAX)
def _scope(credential: str) -> tuple[str, str, str, str]:
    # From the right: a key id may hold slashes, the scope may not.
    parts = credential.rsplit("/", 4)
    if len(parts) != 5 or not all(parts[:2]):
        raise incomplete(
            f"A credential has five parts, <key>/<date>/<region>/<service>/{TERMINATOR}, "
            f"and this has {len(parts)}: '{credential[:SHOWN_MAX]}'."
        )
    if parts[4] != TERMINATOR:
        raise invalid(f"Credential should end in '{TERMINATOR}', not in '{parts[4][:SHOWN_MAX]}'.")
    if not REGION.fullmatch(parts[2]):
        raise invalid(f"Credential should be scoped to a valid region, not '{parts[2][:SHOWN_MAX]}'.")
    return parts[0], parts[1], parts[2], parts[3]


def _signature(text: str) -> str:
    if not HEXADECIMAL.fullmatch(text):
        raise incomplete("A signature has 64 hexadecimal digits in lower case.")
    return text


def _stamp(headers: Mapping[str, str]) -> str:
    """Of X-Amz-Date, else of Date in either form; "" when there is neither or none that can be read."""
    given = headers.get("x-amz-date")
    if given is not None:
        return given if TIME.fullmatch(given) else ""
    given = headers.get("date", "")
    if TIME.fullmatch(given):
        return given
    try:
        moment = parsedate_to_datetime(given)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        return ""
    return f"{moment:%Y%m%dT%H%M%SZ}" if moment.year >= 1000 else ""


# -- signature -------------------------------------------------------------------------------------------------------


class Verifier:
    """Remembers the keys it has derived: one changes once a day, and deriving it is most of the work."""

    def __init__(self) -> None:
        self._derived: OrderedDict[tuple[str, str, str, str], tuple[str, bytes]] = OrderedDict()

    def verify(self, request: SignedRequest, presented: Presented, secret: str, service: str, now_ms: int) -> None:
        """service: the one that the request is for. now_ms: Unix milliseconds. Raises Refused."""
        if presented.service != service:
            raise invalid(f"Credential should be scoped to correct service: '{service}'.")
        if presented.date != presented.stamp[:8]:
            raise invalid(
                f"Date in Credential scope does not match the request's: '{presented.date[:SHOWN_MAX]}' is not the day "
                f"of '{presented.stamp}'."
            )
        _check_clock(presented, now_ms)
        try:
            canonical = canonical_request(request, presented, presented.signed_headers.split(";")).encode("latin-1")
            to_sign = "\n".join((ALGORITHM, presented.stamp, presented.scope, sha256(canonical).hexdigest()))
            expected = hmac.digest(self.derived(presented, secret), to_sign.encode("latin-1"), "sha256").hex()
        except UnicodeEncodeError:
            raise invalid("The request holds characters that no request has on the wire.") from None
        if not hmac.compare_digest(expected, presented.signature):
            raise invalid(
                "The signature of the request is not the one that was computed here. Look at the secret key and at how "
                "the request is signed."
            )

    def derived(self, presented: Presented, secret: str) -> bytes:
        """The signing key of the day, region and service."""
        name = (presented.key_id, presented.date, presented.region, presented.service)
        found = self._derived.get(name)
        if found is not None and found[0] == secret:
            return found[1]
        key = derive(secret, presented.date, presented.region, presented.service)
        self._derived[name] = (secret, key)
        while len(self._derived) > CACHED_MAX:
            self._derived.popitem(last=False)
        return key


def derive(secret: str, date: str, region: str, service: str) -> bytes:
    key = b"AWS4" + secret.encode("utf-8")
    for part in (date, region, service, TERMINATOR):
        key = hmac.digest(key, part.encode("latin-1"), "sha256")
    return key


def _check_clock(presented: Presented, now_ms: int) -> None:
    at = _seconds(presented.stamp)
    if at is None:
        raise incomplete(f"'{presented.stamp}' is no time of the form yyyymmddThhmmssZ.")
    now = now_ms // 1000
    if at > now + SKEW_SECONDS:
        raise invalid(
            f"Signature not yet current: {presented.stamp} is still later than {_text(now + SKEW_SECONDS)} "
            f"({_text(now)} + 5 min.)"
        )
    # A signature in the query lives as long as it says.
    if presented.expires_seconds is not None:
        if now > at + presented.expires_seconds:
            raise invalid(
                f"Signature expired: {_text(now)} is later than {presented.stamp} + {presented.expires_seconds} seconds"
            )
    elif at < now - SKEW_SECONDS:
        raise invalid(
            f"Signature expired: {presented.stamp} is now earlier than {_text(now - SKEW_SECONDS)} "
            f"({_text(now)} - 5 min.)"
        )


@lru_cache(64)
def _seconds(stamp: str) -> int | None:
    try:
        return int(datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp())
    except ValueError:
        return None


def _text(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y%m%dT%H%M%SZ}"


# -- canonical request -----------------------------------------------------------------------------------------------

_AUTHORITY = ":authority"          # JavaScript signs this in the place of host where it speaks HTTP/2


def canonical_request(request: SignedRequest, presented: Presented, names: list[str]) -> str:
    """Latin-1 text: each character is a byte as it came. Raises Refused."""
    headers = request.headers
    if "host" not in names and _AUTHORITY not in names:
        raise invalid("The header 'host' must be among the signed ones.")
    if len(names) > SIGNED_HEADERS_MAX:
        raise invalid(f"More than {SIGNED_HEADERS_MAX} headers are signed.")
    lines = []
    for name in names:
        value = headers.get("host" if name == _AUTHORITY else name)
        if value is None:
            raise invalid(f"The signed header '{name[:SHOWN_MAX]}' is not in the request.")
        lines.append(f"{name}:{_one_blank(value)}\n")
    digest = sha256(request.body).hexdigest()
    if "x-amz-content-sha256" in names and headers["x-amz-content-sha256"].strip() != digest:
        raise invalid("The body's SHA-256 is not the one in 'x-amz-content-sha256'.")
    query = canonical_query(request.query, without_signature=presented.in_query) if request.query else ""
    return "\n".join(
        (request.method, canonical_path(request.path), query, "".join(lines), presented.signed_headers, digest)
    )


def _one_blank(value: str) -> str:
    # As bytes: some characters above ASCII count as blanks in text.
    if " " not in value and "\t" not in value:
        return value
    return b" ".join(value.encode("latin-1").split()).decode("latin-1")


@lru_cache(256)
def canonical_path(path: str) -> str:
    """path: as sent; it is encoded once more. Empty and dot segments go."""
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            if kept:
                kept.pop()
        elif segment not in ("", "."):
            kept.append(segment)
    tail = "/" if path.endswith("/") and kept else ""
    return "/" + quote("/".join(kept).encode("latin-1"), safe="/~") + tail


def canonical_query(query: str, *, without_signature: bool = False) -> str:
    """Names and values encoded in one way, sorted by name, then value."""
    pairs = []
    for part in query.split("&"):
        if part:
            name, _, value = part.partition("=")
            pairs.append((_encoded(name), _encoded(value)))
    return "&".join(
        f"{name}={value}" for name, value in sorted(pairs) if not (without_signature and name == "X-Amz-Signature")
    )


def _encoded(text: str) -> str:
    return quote(unquote_to_bytes(text.encode("latin-1")), safe="-_.~")


def _unquote(text: str) -> str:
    return unquote_to_bytes(text.encode("latin-1")).decode("latin-1")
