"""Receivers that speak the HTTP endpoint protocol of Amazon Data Firehose: vendors, collectors, one's own."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from weakref import WeakKeyDictionary

from streamkit.delivery.chunk import Chunk, chunk_id
from streamkit.delivery.sinks.http_client import Answer, HttpClient, check_header
from streamkit.delivery.sinks.sink import Refused
from streamkit.errors import InvalidUse, StreamkitError, Unavailable
from streamkit.runtime.real import RealClock, RealExecutor

_ANSWER_BYTES_MAX = 1 << 20
_RECORDS_MAX = 10_000                      # of one request, by the protocol
_REQUEST_BYTES_MAX = 64 << 20              # before compression, likewise
_ENVELOPE_BYTES = 128                      # of a request without its records, at most
_RECORD_BYTES = len(b'{"data":""},')
_KEY_BYTES_MAX = 4_096
_ATTRIBUTES_MAX, _NAME_MAX, _VALUE_MAX = 50, 256, 1_024
_ERROR_CHARACTERS_MAX = 8_192
_THREADS = 2

Span = tuple[int, int]                     # of records of a chunk, half-open


@dataclass(slots=True)
class _Work:
    """What is left of a chunk: spans, the next one last."""

    pending: list[Span]
    refused: list[Refused] = field(default_factory=list)


class HttpEndpointSink:
    """Each chunk as requests of at most request_bytes_max, before compression, and 10,000 records, one after the other.

    A request's id is the chunk's; where a chunk is more than one request, an id made of it and the records' places. It
    is the same for every attempt, after a restart, too: a receiver that remembers ids has everything once, one that
    does not has it at least once. X-Streamkit-Plan says, as JSON, which range of which shard a request is part of.

    access_key: sent as it is; common_attributes: for every request; source_arn: {delivery} stands for its name.
    A request that is too large for the receiver (413) is halved, down to one record, which is refused.
    allow_plain_http: to loopback and private networks. tls: an ssl.SSLContext, for a CA of one's own.
    Raises InvalidUse, MissingLibrary.
    """

    takes: Literal["data"] = "data"

    def __init__(
        self,
        url: str,
        *,
        access_key: str = "",
        common_attributes: Mapping[str, str] | None = None,
        compression: Literal["none", "gzip"] = "none",
        source_arn: str = "arn:aws:firehose:us-east-1:000000000000:deliverystream/{delivery}",
        request_bytes_max: int = _REQUEST_BYTES_MAX,
        timeout_seconds: float = 180,
        allow_plain_http: bool = False,
        tls: Any = True,
    ) -> None:
        if url.startswith("http:") and not allow_plain_http:
            raise InvalidUse(f"{url} is not encrypted", try_="https://…, or allow_plain_http=True", argument="url")
        if compression not in ("none", "gzip"):
            raise InvalidUse(f"compression {compression!r} is not of this protocol", try_='"gzip"',
                             argument="compression")
        if not _ENVELOPE_BYTES < request_bytes_max <= _REQUEST_BYTES_MAX:
            raise InvalidUse(f"request_bytes_max must be {_ENVELOPE_BYTES + 1}..{_REQUEST_BYTES_MAX}",
                             try_="request_bytes_max=4 << 20", argument="request_bytes_max")  # fmt: skip
        self._headers = _headers(access_key, common_attributes or {})
        check_header("source_arn", source_arn)
        self._source_arn = source_arn
        self._gzip = compression == "gzip"
        self._bytes_max = request_bytes_max
        self._client = HttpClient("http_endpoint", url, timeout_seconds=timeout_seconds, tls=tls,
                                  answer_bytes_max=_ANSWER_BYTES_MAX, private_only=True)  # fmt: skip
        self._works: WeakKeyDictionary[Chunk, _Work] = WeakKeyDictionary()
        self._clock = RealClock()
        self._executor: RealExecutor | None = None

    async def open(self) -> None:
        """Raises SinkMisused for plain http to a public address."""
        await self._client.open()
        self._executor = RealExecutor(_THREADS)

    async def write(self, chunk: Chunk) -> list[Refused]:
        """Goes on where it was when it raised: ConnectionFailed, TimedOut, Throttled, Unavailable, SinkMisused."""
        work = self._works.get(chunk)
        if work is None:
            work = self._works[chunk] = _Work(_spans(chunk.data, self._bytes_max)[::-1])
        while work.pending:
            start, end = work.pending[-1]
            identity = chunk.id if end - start == len(chunk.data) else chunk_id(chunk.id, f"{start}-{end}")
            answer = await self._sent(chunk, (start, end), identity)
            if answer.status == 413 and end - start > 1:
                middle = (start + end) // 2
                work.pending[-1:] = [(middle, end), (start, middle)]
                continue
            if answer.status == 413:
                work.refused.append(Refused(start, "413", _told(answer) or "the record is too large for the receiver"))
            elif error := self._wrong(answer, identity):
                raise error
            work.pending.pop()
        return work.refused

    async def close(self) -> None:
        """Its connections and threads end."""
        await self._client.close()
        if self._executor is not None:
            self._executor.close()
            self._executor = None

    async def _sent(self, chunk: Chunk, span: Span, identity: str) -> Answer:
        assert self._executor is not None, "it is open"
        body = await self._executor.run(_body, chunk.data, span, identity, self._clock.now_ms(), self._gzip)
        plan = {"plan": chunk.plan, "stream": chunk.stream, "shard": chunk.shard, "start": chunk.start,
                "end": chunk.end, "records": span}  # fmt: skip
        headers = self._headers | {
            "Content-Type": "application/json",
            "X-Amz-Firehose-Protocol-Version": "1.0",
            "X-Amz-Firehose-Request-Id": identity,
            "X-Amz-Firehose-Source-Arn": self._source_arn.replace("{delivery}", chunk.delivery),
            "X-Streamkit-Plan": json.dumps(plan, separators=(",", ":")),
        }
        if self._gzip:
            headers["Content-Encoding"] = "gzip"
        return await self._client.post("", body, headers)

    def _wrong(self, answer: Answer, identity: str) -> StreamkitError | None:
        """Why an answer is no success; None when it is one."""
        if answer.status != 200:
            return self._client.failure(answer, _told(answer))
        said, headers = answer.json(), answer.headers
        wrong = ""
        if headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
            wrong = "its type is not application/json"
        elif headers.get("Content-Encoding", "identity") != "identity" or "Content-Length" not in headers:
            wrong = "it is encoded, or of unknown length"
        elif not isinstance(said, dict) or said.get("requestId") != identity:
            wrong = "it does not repeat the request's id"
        elif isinstance(said.get("timestamp"), bool) or not isinstance(said.get("timestamp"), int | float):
            wrong = "it has no timestamp"
        if not wrong:
            return None
        return Unavailable(f"{self._client.address} answers 200, but {wrong}", status=200,
                           reason="invalid_response")  # fmt: skip


def _headers(access_key: str, attributes: Mapping[str, str]) -> dict[str, str]:
    """What every request says. Raises InvalidUse."""
    headers = {}
    if len(access_key) > _KEY_BYTES_MAX:
        raise InvalidUse(f"an access key has at most {_KEY_BYTES_MAX} bytes", try_="a shorter one",
                         argument="access_key")
    if access_key:
        check_header("access_key", access_key)
        headers["X-Amz-Firehose-Access-Key"] = access_key
    if len(attributes) > _ATTRIBUTES_MAX:
        raise InvalidUse(f"there are at most {_ATTRIBUTES_MAX} common attributes", try_="fewer of them",
                         argument="common_attributes")
    for name, value in attributes.items():
        if not 1 <= len(name) <= _NAME_MAX or len(value) > _VALUE_MAX:
            raise InvalidUse(f"the common attribute {name[:_NAME_MAX]!r} is too long, or has no name",
                             try_=f"names of 1 to {_NAME_MAX} characters, values of at most {_VALUE_MAX}",
                             argument="common_attributes")  # fmt: skip
    if attributes:
        headers["X-Amz-Firehose-Common-Attributes"] = json.dumps({"commonAttributes": dict(attributes)})
    return headers


def _spans(data: Sequence[bytes], bytes_max: int) -> list[Span]:
    """Of one request each; a record that is too large for any stands alone."""
    spans, start, size = [], 0, _ENVELOPE_BYTES
    for index, payload in enumerate(data):
        needed = (len(payload) + 2) // 3 * 4 + _RECORD_BYTES
        if index > start and (size + needed > bytes_max or index - start == _RECORDS_MAX):
            spans.append((start, index))
            start, size = index, _ENVELOPE_BYTES
        size += needed
    return [*spans, (start, len(data))]


def _body(data: Sequence[bytes], span: Span, identity: str, now_ms: int, compressed: bool) -> bytes:
    records = b'"},{"data":"'.join(map(base64.b64encode, data[span[0] : span[1]]))
    body = b'{"requestId":"%b","timestamp":%d,"records":[{"data":"%b"}]}' % (identity.encode(), now_ms, records)
    return gzip.compress(body, 1, mtime=0) if compressed else body


def _told(answer: Answer) -> str:
    """The receiver's own words."""
    said = answer.json()
    message = said.get("errorMessage") if isinstance(said, dict) else None
    return message[:_ERROR_CHARACTERS_MAX] if isinstance(message, str) else ""
