"""Splunk's HTTP event collector: events or raw lines, acknowledged once they are indexed."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlencode
from weakref import WeakKeyDictionary

import msgspec

from streamkit.delivery.chunk import Chunk
from streamkit.delivery.sinks.http_client import Answer, HttpClient
from streamkit.delivery.sinks.sink import Refused
from streamkit.delivery.sinks.splunk_channels import Channel, Channels, code_of
from streamkit.errors import InvalidUse, SinkMisused, TimedOut, Unavailable
from streamkit.runtime.real import RealExecutor

_ANSWER_BYTES_MAX = 1 << 20
_BAD_DATA = {5: "no data", 6: "invalid format", 7: "incorrect index", 12: "event missing", 13: "event blank"}
_TOKEN = (1, 2, 3, 4)
_ACKS_DISABLED = 14
_THREADS = 2
_encode = msgspec.json.Encoder().encode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

Span = tuple[int, int]                     # of lines, half-open


@dataclass(slots=True)
class _Work:
    """What is left of a chunk: lines: the index of each in it, and what is sent; pending: spans of them."""

    lines: list[tuple[int, bytes]]
    pending: list[Span]
    refused: list[Refused]


@dataclass(slots=True)
class Resent:
    """How often requests were sent again that may have been indexed; each is a possible duplicate."""

    after_ack_timeout: int = 0
    after_channel_reset: int = 0


class SplunkSink:
    """Records into the collector at `url`, https://host:8088, at least once: it knows no repetition.

    endpoint: "event" takes records that are event documents; with `marked` each gets the indexed fields streamkit_plan
    and streamkit_record, by which searches leave duplicates out. "raw" takes bytes as they are, each followed by
    `delimiter`; metadata: index, source, sourcetype, host of raw data.

    With `acknowledge` a chunk is done when the collector says it is indexed, and is sent again after
    ack_timeout_seconds, or when the collector has forgotten its channel; `resent` counts both. Requests have at most
    request_bytes_max before compression. channels: connections; unacknowledged_max: requests of each that wait.
    Data that the collector refuses is divided until the bad record is alone. tls: an ssl.SSLContext, for a CA of one's
    own. Raises InvalidUse, MissingLibrary.
    """

    takes: Literal["data"] = "data"

    def __init__(
        self,
        url: str,
        token: str,
        *,
        endpoint: Literal["event", "raw"] = "event",
        acknowledge: bool = True,
        ack_timeout_seconds: float = 300,
        poll_seconds: float = 1,
        marked: bool = True,
        delimiter: bytes = b"\n",
        metadata: Mapping[str, str] | None = None,
        compression: Literal["none", "gzip"] = "none",
        request_bytes_max: int = 5 << 20,
        channels: int = 8,
        unacknowledged_max: int = 16,
        timeout_seconds: float = 60,
        tls: Any = True,
    ) -> None:
        if endpoint not in ("event", "raw") or compression not in ("none", "gzip"):
            raise InvalidUse(f"endpoint {endpoint!r} or compression {compression!r} is unknown",
                             try_='endpoint="event", compression="none"', argument="endpoint")  # fmt: skip
        if metadata and endpoint == "event":
            raise InvalidUse("events say themselves where they belong", try_='endpoint="raw"', argument="metadata")
        if min(ack_timeout_seconds, poll_seconds, request_bytes_max, channels, unacknowledged_max) <= 0:
            raise InvalidUse("times, sizes and numbers must be above 0", try_="ack_timeout_seconds=300",
                             argument="ack_timeout_seconds")
        self.resent = Resent()
        self._options: dict[str, Any] = {
            "timeout_seconds": timeout_seconds, "answer_bytes_max": _ANSWER_BYTES_MAX, "tls": tls, "connections": 1,
            "headers": {"Authorization": f"Splunk {token}"},
        }  # fmt: skip
        self._url = url.rstrip("/")
        self._address = HttpClient("splunk", self._url, **self._options)       # what is wrong is told at once
        self._path = f"/services/collector/{endpoint}" + (f"?{urlencode(metadata)}" if metadata else "")
        self._is_raw = endpoint == "raw"
        self._delimiter = delimiter
        self._marked = marked
        self._acknowledge = acknowledge
        self._ack_seconds = ack_timeout_seconds
        self._poll_seconds = poll_seconds
        self._gzip = compression == "gzip"
        self._bytes_max = request_bytes_max
        self._most = (channels, unacknowledged_max)
        self._channels: Channels | None = None
        self._works: WeakKeyDictionary[Chunk, _Work] = WeakKeyDictionary()
        self._executor: RealExecutor | None = None

    async def open(self) -> None:
        """Asks for an acknowledgement. Raises SinkMisused when the token is refused, or has none."""
        channels = Channels(self._channel, *self._most)
        if self._acknowledge:
            try:
                answer = await (await channels.first()).ask([0])
                self._check_token(answer)
                if answer.status >= 500:
                    raise self._address.failure(answer)
            except BaseException:
                await channels.close()
                raise
        self._channels = channels
        self._executor = RealExecutor(_THREADS)

    async def write(self, chunk: Chunk) -> list[Refused]:
        """Sends what is not known to be indexed; raises TimedOut, Unavailable, SinkMisused … while something is not."""
        assert self._executor is not None, "it is open"
        work = self._works.get(chunk)
        if work is None:
            work = self._works[chunk] = await self._executor.run(self._work, chunk)
        said = await asyncio.gather(*(self._deliver(work, span) for span in list(work.pending)), return_exceptions=True)
        for error in said:
            if isinstance(error, BaseException):
                raise error
        assert not work.pending, "what is left says why"
        return sorted(work.refused, key=lambda each: each.index)

    async def close(self) -> None:
        """Its channels and threads end."""
        channels, self._channels = self._channels, None
        if channels is not None:
            await channels.close()
        if self._executor is not None:
            self._executor.close()
            self._executor = None

    def _channel(self) -> Channel:
        return Channel(HttpClient("splunk", self._url, **self._options), self._poll_seconds)

    def _work(self, chunk: Chunk) -> _Work:
        """In a thread: every record is looked at."""
        work = _Work([], [], [])
        for index, payload in enumerate(chunk.data):
            if self._is_raw:
                work.lines.append((index, payload + self._delimiter))
                continue
            made = _event(payload, {"streamkit_plan": chunk.plan, "streamkit_record": index} if self._marked else {})
            if isinstance(made, int):
                work.refused.append(Refused(index, str(made), _BAD_DATA[made]))
            else:
                work.lines.append((index, made))
        start, size = 0, 0
        for at, (_, line) in enumerate(work.lines):
            if at > start and size + len(line) > self._bytes_max:
                work.pending.append((start, at))
                start, size = at, 0
            size += len(line)
        if work.lines:
            work.pending.append((start, len(work.lines)))
        return work

    async def _deliver(self, work: _Work, span: Span) -> None:
        """One request until it is indexed, refused, or divided and those are. Raises what is to be waited for."""
        assert self._executor is not None and self._channels is not None, "it is open"
        body = await self._executor.run(_joined, work.lines, span, self._gzip)
        headers = {"Content-Type": "text/plain" if self._is_raw else "application/json"}
        if self._gzip:
            headers["Content-Encoding"] = "gzip"
        async with self._channels.place() as channel:
            answer, ticket = await channel.send(self._path, body, headers)
            code = code_of(answer)
            is_bad = answer.status == 413 or (answer.status == 400 and code in _BAD_DATA)
            if not is_bad:
                self._check(answer, code)
                if ticket is not None and self._acknowledge:
                    await self._indexed(channel, ticket)
                elif self._acknowledge:
                    raise self._no_acks(answer)
        work.pending.remove(span)
        start, end = span
        if is_bad and end - start == 1:
            text = answer.text if code is None else _BAD_DATA.get(code, answer.text)
            work.refused.append(Refused(work.lines[start][0], str(answer.status if code is None else code), text))
        elif is_bad:
            middle = (start + end) // 2
            work.pending += [(start, middle), (middle, end)]
            await self._deliver(work, (start, middle))
            await self._deliver(work, (middle, end))

    async def _indexed(self, channel: Channel, ticket: asyncio.Future[bool]) -> None:
        try:
            if await channel.indexed(ticket, self._ack_seconds):
                return
        except TimeoutError as cause:
            self.resent.after_ack_timeout += 1
            raise TimedOut(f"{self._address.address} did not say within {self._ack_seconds:g} s that it is indexed",
                           sent=True, timeout_ms=round(self._ack_seconds * 1000)) from cause  # fmt: skip
        self.resent.after_channel_reset += 1
        raise Unavailable(f"{self._address.address} has forgotten a channel: what it held is sent again")

    def _check(self, answer: Answer, code: int | None) -> None:
        """Raises what is no success."""
        self._check_token(answer)
        if answer.status != 200 or code != 0:
            if answer.status == 200 or code in (8, 9, 10, 11, 18, 19, 20):
                raise Unavailable(f"{self._address.address} answers {answer.status}: {answer.text}", hec_code=code)
            raise self._address.failure(answer, hec_code=code)

    def _check_token(self, answer: Answer) -> None:
        """Raises SinkMisused."""
        code = code_of(answer)
        if code == _ACKS_DISABLED and self._acknowledge:
            raise self._no_acks(answer)
        if code in _TOKEN or answer.status in (401, 403):
            raise SinkMisused(f"{self._address.address} refuses the token: {answer.text}",
                              try_="look at the token in the collector's settings", sink="splunk", hec_code=code,
                              told=answer.text)  # fmt: skip

    def _no_acks(self, answer: Answer) -> SinkMisused:
        return SinkMisused(f"{self._address.address} does not acknowledge with this token",
                           try_="switch indexer acknowledgement on for the token, or SplunkSink(acknowledge=False)",
                           sink="splunk", hec_code=_ACKS_DISABLED, told=answer.text)  # fmt: skip


def _event(payload: bytes, marks: dict[str, Any]) -> bytes | int:
    """An event document with further indexed fields, or the collector's code for what is wrong with it."""
    try:
        payload.decode()
        document = _decode_object(payload)
        fields = _decode_object(document["fields"]) if "fields" in document else {}
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return 6
    if "event" not in document:
        return 12
    if bytes(document["event"]) in (b'""', b"null"):
        return 13
    return _encode({**document, "fields": {**fields, **marks}}) if marks else payload + b"\n"


def _joined(lines: list[tuple[int, bytes]], span: Span, compressed: bool) -> bytes:
    body = b"".join([line for _, line in lines[span[0] : span[1]]])
    return gzip.compress(body, 1, mtime=0) if compressed else body
