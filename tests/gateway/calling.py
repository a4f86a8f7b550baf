"""A gateway on a clock that stands, and calls of it without a socket."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping
from typing import Any

import cbor2

from streamkit.gateway.app import Gateway
from streamkit.gateway.calls import Answer, Call, Operation, Service
from streamkit.gateway.kinesis.model import MODEL
from streamkit.http.exchange import Request, Response
from streamkit.security.credentials import Authenticator

NOW_MS = 1_700_000_000_000
JSON = "application/x-amz-json-1.1"
CBOR = "application/x-amz-cbor-1.1"
SIGNED = {
    "host": "localhost", "x-amz-date": "20231114T221320Z",
    "authorization": "AWS4-HMAC-SHA256 Credential=AK/20231114/us-east-1/kinesis/aws4_request, "
                     f"SignedHeaders=host;x-amz-date, Signature={'0' * 64}",
}  # fmt: skip


class StandingClock:
    def now_ms(self) -> int:
        return NOW_MS

    def monotonic_ms(self) -> int:
        return 5


class SeededRandom:
    def __init__(self) -> None:
        self._random = random.Random(7)

    def uniform(self) -> float:
        return self._random.random()

    def bits(self, count: int) -> int:
        return self._random.getrandbits(count)

    def uuid(self) -> bytes:
        return self._random.randbytes(16)


class Recorder:
    """Every operation of the Kinesis model, answering what it is told to and keeping the calls."""

    def __init__(self, answer: Answer | Exception = None) -> None:
        self.answer = answer
        self.calls: list[Call] = []

    async def __call__(self, call: Call) -> Answer:
        self.calls.append(call)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def kinesis(operations: Operation | Mapping[str, Operation], **other: Any) -> Service:
    if callable(operations):
        operations = dict.fromkeys(MODEL.operations, operations)
    return Service("Kinesis_20131202", "kinesis", MODEL, operations, **other)


def gateway(*services: Service, authenticator: Authenticator | None = None, observer: Any = None) -> Gateway:
    return Gateway(services, authenticator or Authenticator(), StandingClock(), SeededRandom(), observer)


def request(
    operation: str, body: bytes | dict[str, Any] = b"{}", content_type: str = JSON, *, target: str = "Kinesis_20131202",
    **headers: str,
) -> Request:  # fmt: skip
    """A dict becomes JSON or CBOR. Header names with _ for -."""
    if isinstance(body, dict):
        body = cbor2.dumps(body) if content_type == CBOR else json.dumps(body).encode()
    given = SIGNED | {"content-type": content_type, "x-amz-target": f"{target}.{operation}"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    return Request("POST", "/", given, body, False, False, "127.0.0.1:1")


def answered(served: Gateway, asked: Request) -> Response:
    return asyncio.run(served.handle(asked))


def headers(response: Response) -> dict[str, str]:
    assert len({name for name, _ in response.headers}) == len(response.headers)
    return dict(response.headers)


def decoded(response: Response) -> Any:
    body = bytes(response.body)
    return cbor2.loads(body) if "cbor" in headers(response).get("content-type", "") else json.loads(body)
