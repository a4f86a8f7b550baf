"""OpenSearch and Elasticsearch, by their bulk interface: a document for each record, made once."""

from __future__ import annotations

import asyncio
import base64
import gzip
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from weakref import WeakKeyDictionary

import msgspec

from streamkit.delivery.chunk import Chunk
from streamkit.delivery.sinks.http_client import Answer, HttpClient
from streamkit.delivery.sinks.index_names import IndexNames, Rotation
from streamkit.delivery.sinks.sink import Refused
from streamkit.errors import InvalidUse, SinkMisused, StreamkitError, Throttled, Unavailable
from streamkit.runtime.real import RealExecutor

_ANSWER_BYTES_MAX = 64 << 20
_BODY_BYTES_MAX = 10 << 20
_PATH = "/_bulk?filter_path=errors,items.*.status,items.*.error.type,items.*.error.reason"
_THREADS = 2
_REASON_CHARACTERS_MAX = 1_000
_DONE = (200, 201, 409)                    # 409: it is there already, by a former attempt
# The index's state, not the document's fault: every other document would meet it, too.
_OF_THE_INDEX = {"cluster_block_exception", "index_not_found_exception", "index_closed_exception",
                 "security_exception"}  # fmt: skip
_encode = msgspec.json.Encoder().encode
_decode_document = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


@dataclass(slots=True)
class _Work:
    """What is left of a chunk: lines: of a record's action and document; pending: places of those that are not made."""

    lines: list[bytes]
    pending: list[int]
    refused: list[Refused] = field(default_factory=list)


class OpenSearchSink:
    """A document for each record below `url`, in the index of its arrival: `index`, and a suffix as `rotation` says.

    rotation: "none", "hour", "day", "month", "week" (from Sunday, as Data Firehose counts) or "iso_week". document_ids:
    "record" makes an id of the record's place in its shard, so that a repetition finds the document there; "none"
    leaves it to the cluster, which is faster, and makes duplicates when a request is repeated.

    Documents are JSON objects. What the cluster refuses for good is refused; what it has no time for now is sent
    again, alone. Bodies have at most body_bytes_max before compression; at most in_flight_max are on their way, fewer
    while the cluster is busy. user, password, or headers such as {"Authorization": "ApiKey …"}. tls: an
    ssl.SSLContext, for a CA of one's own. Raises InvalidUse, MissingLibrary.
    """

    takes: Literal["data"] = "data"

    def __init__(
        self,
        url: str,
        index: str,
        *,
        rotation: Rotation = "none",
        document_ids: Literal["record", "none"] = "record",
        user: str = "",
        password: str = "",
        headers: Mapping[str, str] | None = None,
        compression: Literal["none", "gzip"] = "gzip",
        body_bytes_max: int = _BODY_BYTES_MAX,
        in_flight_max: int = 4,
        timeout_seconds: float = 60,
        tls: Any = True,
    ) -> None:
        if document_ids not in ("record", "none") or compression not in ("none", "gzip"):
            raise InvalidUse(f"document_ids {document_ids!r} or compression {compression!r} is unknown",
                             try_='document_ids="record", compression="gzip"', argument="document_ids")  # fmt: skip
        if not 1 <= body_bytes_max <= _BODY_BYTES_MAX or in_flight_max < 1:
            raise InvalidUse(f"body_bytes_max must be 1..{_BODY_BYTES_MAX}, in_flight_max at least 1",
                             try_="body_bytes_max=5 << 20", argument="body_bytes_max")  # fmt: skip
        said = dict(headers or {})
        if user:
            said["Authorization"] = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        self._client = HttpClient("opensearch", url.rstrip("/"), timeout_seconds=timeout_seconds, tls=tls,
                                  answer_bytes_max=_ANSWER_BYTES_MAX, headers=said)  # fmt: skip
        self._names = IndexNames(index, rotation)
        self._with_ids = document_ids == "record"
        self._gzip = compression == "gzip"
        self._bytes_max = body_bytes_max
        self._in_flight_max = in_flight_max
        self._flight = _Flight(in_flight_max)
        self._works: WeakKeyDictionary[Chunk, _Work] = WeakKeyDictionary()
        self._executor: RealExecutor | None = None

    async def open(self) -> None:
        """Connections are made as they are needed."""
        await self._client.open()
        self._flight = _Flight(self._in_flight_max)    # another run may have another loop
        self._executor = RealExecutor(_THREADS)

    async def write(self, chunk: Chunk) -> list[Refused]:
        """Sends what is not made yet; raises Throttled, Unavailable, SinkMisused … while something is left."""
        assert self._executor is not None, "it is open"
        work = self._works.get(chunk)
        if work is None:
            work = self._works[chunk] = await self._executor.run(self._work, chunk)
        bodies = _cut(work.lines, work.pending, self._bytes_max)
        said = await asyncio.gather(*(self._send(work, body) for body in bodies), return_exceptions=True)
        for error in said:
            if isinstance(error, BaseException):
                raise error
        assert not work.pending, "what is left says why"
        return sorted(work.refused, key=lambda each: each.index)

    async def close(self) -> None:
        """Its connections and threads end."""
        await self._client.close()
        if self._executor is not None:
            self._executor.close()
            self._executor = None

    def _work(self, chunk: Chunk) -> _Work:
        """In a thread: every record is looked at."""
        work = _Work([], [])
        before, number = (-1, -1), 0
        shard = chunk.shard_uuid.hex()
        for index, (payload, record) in enumerate(zip(chunk.data, chunk.records, strict=True)):
            place = (record.sequence, record.sub_sequence or 0)
            number = number + 1 if place == before else 0          # several documents of one record
            before = place
            line = _one_line(payload)
            if line is None:
                work.refused.append(Refused(index, "not_json", "the payload is no JSON object in UTF-8"))
                work.lines.append(b"")
                continue
            action = {"_index": self._names.of(record.arrived)}
            if self._with_ids:
                action["_id"] = f"{shard}-{place[0]}-{place[1]}" + (f"-{number}" if number else "")
            work.lines.append(b'{"create":%b}\n%b\n' % (_encode(action), line))
            work.pending.append(index)
        return work

    async def _send(self, work: _Work, body: list[int]) -> None:
        """Places of one body. Raises what is to be waited for."""
        assert self._executor is not None, "it is open"
        text = await self._executor.run(_joined, work.lines, body, self._gzip)
        headers = {"Content-Type": "application/x-ndjson"} | ({"Content-Encoding": "gzip"} if self._gzip else {})
        async with self._flight.place():
            answer = await self._client.post(_PATH, text, headers)
            error = None if answer.status == 413 else self._taken(work, body, answer)
            self._flight.seen(busy=isinstance(error, Throttled))
        if error is not None:
            raise error
        if answer.status == 413 and len(body) == 1:
            work.refused.append(Refused(body[0], "413", "the document is too large for the cluster"))
            work.pending.remove(body[0])
        elif answer.status == 413:
            # Remembered, or every further body would be refused first.
            self._bytes_max = min(self._bytes_max, max(1, sum(len(work.lines[index]) for index in body) // 2))
            middle = len(body) // 2
            await self._send(work, body[:middle])
            await self._send(work, body[middle:])

    def _taken(self, work: _Work, body: list[int], answer: Answer) -> StreamkitError | None:
        """Notes what became of each document; what to raise when some are left."""
        if answer.status != 200:
            return self._client.failure(answer)
        said = answer.json()
        items = said.get("items") if isinstance(said, dict) else None
        if not isinstance(items, list) or len(items) != len(body):
            return Unavailable(f"{self._client.address} answers 200, but not for each document", status=200)
        over: set[int] = set()
        left: StreamkitError | None = None
        for index, item in zip(body, items, strict=True):
            status, kind, reason = _outcome(item)
            told = f"{kind}: {reason}"
            if kind in _OF_THE_INDEX:
                left = SinkMisused(f"{self._client.address} does not take documents: {told}",
                                   try_="look at the index, its template and the rights of this user",
                                   sink="opensearch", told=told)  # fmt: skip
            elif status in _DONE:
                over.add(index)
            elif status == 429 or not 400 <= status < 500:
                left = left or (Throttled if status == 429 else Unavailable)(
                    f"{self._client.address} has no time for some documents: {status} {told}", scope="opensearch"
                )
            else:
                work.refused.append(Refused(index, kind or str(status), reason))
                over.add(index)
        work.pending = [index for index in work.pending if index not in over]
        return left


class _Flight:
    """How many bodies may be on their way: half as many when the cluster is busy, one more when it was not."""

    def __init__(self, most: int) -> None:
        self._most = self.bound = most
        self._now = 0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: self._now < self.bound)
            self._now += 1
        try:
            yield
        finally:
            self._now -= 1
            async with self._changed:
                self._changed.notify_all()

    def seen(self, *, busy: bool) -> None:
        """How a request ended."""
        self.bound = max(1, self.bound // 2) if busy else min(self._most, self.bound + 1)


def _cut(lines: Sequence[bytes], pending: Sequence[int], bytes_max: int) -> list[list[int]]:
    """Places by body; a document that is too large for any stands alone."""
    bodies: list[list[int]] = []
    size = bytes_max
    for index in pending:
        if size + len(lines[index]) > bytes_max:
            bodies.append([])
            size = 0
        bodies[-1].append(index)
        size += len(lines[index])
    return bodies


def _joined(lines: Sequence[bytes], body: Sequence[int], compressed: bool) -> bytes:
    text = b"".join([lines[index] for index in body])
    return gzip.compress(text, 1, mtime=0) if compressed else text


def _one_line(payload: bytes) -> bytes | None:
    """A JSON object without line breaks; None when it is none."""
    try:
        _decode_document(payload)
        payload.decode()
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return msgspec.json.format(payload, indent=-1) if b"\n" in payload or b"\r" in payload else payload


def _outcome(item: Any) -> tuple[int, str, str]:
    """Status, the error's type and its reason; 500 for what makes no sense."""
    said = next(iter(item.values()), None) if isinstance(item, dict) else None
    if not isinstance(said, dict) or not isinstance(said.get("status"), int):
        return 500, "", "the answer makes no sense"
    error = said.get("error")
    if not isinstance(error, dict):
        return said["status"], "", str(error or "")[:_REASON_CHARACTERS_MAX]
    return said["status"], str(error.get("type", "")), str(error.get("reason", ""))[:_REASON_CHARACTERS_MAX]
