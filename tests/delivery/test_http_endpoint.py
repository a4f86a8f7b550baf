"""The HTTP endpoint protocol against a double that was written from its description, over real sockets.

Acceptance test 11 of deliveries: wrong ids, 201, 204, redirects, 413, answers of 5 MB, a server that drips.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from streamkit.delivery import Buffer, Chunk, Delivery, HttpEndpointSink
from streamkit.delivery.compression import compression
from streamkit.delivery.formats.lines import Lines
from streamkit.delivery.pipeline import Pipeline, Transform
from streamkit.delivery.sinks.sink import Refused
from streamkit.errors import ConnectionFailed, InvalidUse, SinkMisused, Throttled, TimedOut, Unavailable
from streamkit.testing import Node
from tests.delivery.batches import ORIGIN, plan_of, range_of
from tests.delivery.http_server import CUT, Reply, Request, http_server
from tests.waiting import until


def chunk_of(values: list[Any], transform: Callable[[Any], Any] | None = None) -> Chunk:
    """Of a fresh process: its id comes from the range alone."""
    gathered = range_of(values)
    pipeline = Pipeline(form=Lines(), compression=compression("none"), template=None, takes="data",
                        transform=Transform.of(transform) if transform is not None else None)  # fmt: skip
    [chunk] = pipeline.stage(gathered, plan_of(gathered), ORIGIN).chunks
    return chunk


@dataclass
class Receiver:
    """answers: for the next requests, each a Reply, or what makes one of the proper one; then every one succeeds."""

    answers: list[Reply | Callable[[dict[str, Any]], Reply]] = field(default_factory=list)
    bytes_max: int = 1 << 30
    requests: list[Request] = field(default_factory=list)
    records: list[bytes] = field(default_factory=list)

    def __call__(self, request: Request) -> Reply:
        self.requests.append(request)
        said = request.json()
        proper = {"requestId": said["requestId"], "timestamp": 1_790_000_000_000}
        if len(request.body) > self.bytes_max:
            return Reply.of(proper | {"errorMessage": "too much for me"}, 413)
        if self.answers:
            answer = self.answers.pop(0)
            return answer if isinstance(answer, Reply) else answer(proper)
        self.records += [base64.b64decode(record["data"]) for record in said["records"]]
        return Reply.of(proper)

    @property
    def ids(self) -> list[str]:
        return [request.json()["requestId"] for request in self.requests]


def sink(url: str, **options: Any) -> HttpEndpointSink:
    return HttpEndpointSink(f"{url}/in", **({"allow_plain_http": True, "timeout_seconds": 10} | options))


async def test_a_request_is_what_the_protocol_says():
    receiver = Receiver()
    async with http_server(receiver) as url:
        made = sink(url, access_key="s3cret", common_attributes={"team": "ö"}, compression="gzip")
        await made.open()
        chunk = chunk_of([b"one", b"two\n", b""])

        assert await made.write(chunk) == []
        await made.close()

    [request] = receiver.requests
    assert (request.method, request.path) == ("POST", "/in")
    wanted = {
        "x-amz-firehose-protocol-version": "1.0", "x-amz-firehose-request-id": chunk.id,
        "x-amz-firehose-source-arn": "arn:aws:firehose:us-east-1:000000000000:deliverystream/lake",
        "x-amz-firehose-access-key": "s3cret", "content-type": "application/json", "content-encoding": "gzip",
    }  # fmt: skip
    assert {name: request.headers.get(name) for name in wanted} == wanted
    assert json.loads(request.headers["x-amz-firehose-common-attributes"]) == {"commonAttributes": {"team": "ö"}}
    assert json.loads(request.headers["x-streamkit-plan"]) == {
        "plan": chunk.plan, "stream": "orders", "shard": ORIGIN.shard, "start": [0, 0], "end": [3, 0],
        "records": [0, 3],
    }  # fmt: skip
    said = request.json()
    assert said["requestId"] == chunk.id and isinstance(said["timestamp"], int) and len(said) == 3
    assert receiver.records == [b"one", b"two\n", b""]


async def test_what_a_transformation_makes_is_what_is_sent():
    receiver = Receiver()
    async with http_server(receiver) as url:
        made = sink(url)
        await made.open()
        await made.write(chunk_of([1, 2, 3], lambda value: None if value == 2 else [{"n": value}, f"text {value}"]))
        await made.close()

    assert receiver.records == [b'{"n":1}', b"text 1", b'{"n":3}', b"text 3"]


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "another id": (lambda proper: Reply.of(proper | {"requestId": "no"}), Unavailable, "does not repeat"),
    "no timestamp": (lambda proper: Reply.of({"requestId": proper["requestId"]}), Unavailable, "no timestamp"),
    "201": (lambda proper: Reply.of(proper, 201), Unavailable, "answers 201"),
    "204": (Reply(204), Unavailable, "answers 204"),
    "302": (Reply(302, headers={"Location": "/in"}), SinkMisused, "answers 302"),
    "307": (Reply(307, headers={"Location": "/in"}), SinkMisused, "answers 307"),
    "403": (lambda proper: Reply.of(proper | {"errorMessage": "who?"}, 403), SinkMisused, "answers 403: who?"),
    "500": (lambda proper: Reply.of(proper | {"errorMessage": "sorry"}, 500), Unavailable, "answers 500: sorry"),
    "5 MB": (lambda proper: Reply.of(proper | {"more": "x" * 5_000_000}), Unavailable, "more than 1048576 bytes"),
    "text": (Reply(200, b"OK", {"Content-Type": "text/plain"}), Unavailable, "not application/json"),
    "no JSON": (Reply(200, b"OK", {"Content-Type": "application/json"}), Unavailable, "does not repeat"),
    "a list": (Reply.of([]), Unavailable, "does not repeat"),
    "encoded": (lambda proper: Reply.of(proper, Content_Encoding="gzip"), Unavailable, "it is encoded"),
    "of unknown length": (
        lambda proper: Reply(200, json.dumps(proper).encode(), {"Content-Type": "application/json"}, chunked=True),
        Unavailable, "unknown length",
    ),
    "cut": (CUT, ConnectionFailed, "broke"),
    "drips": (Reply(200, endless=True), TimedOut, "did not answer within 0.3 s"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(WRONG))
async def test_all_else_than_success_is_tried_again_with_the_same_id(case: str):
    answer, error, message = WRONG[case]
    receiver = Receiver([answer])
    async with http_server(receiver) as url:
        made = sink(url, timeout_seconds=0.3 if case == "drips" else 10)
        await made.open()
        chunk = chunk_of([b"a"])

        with pytest.raises(error, match=message):
            await made.write(chunk)
        assert await made.write(chunk) == []
        await made.close()

    assert receiver.ids == [chunk.id, chunk.id] and receiver.records == [b"a"]
    assert {request.path for request in receiver.requests} == {"/in"}


@pytest.mark.parametrize(("headers", "wanted_ms"), [
    ({"Retry_After": "7"}, 7_000),
    ({"Retry_After": "Tue, 24 Nov 2026 10:00:30 GMT", "Date": "Tue, 24 Nov 2026 10:00:00 GMT"}, 30_000),
    ({"Retry_After": "Tue, 24 Nov 2026 10:00:30 GMT"}, 0),
    ({"Retry_After": "soon"}, 0),
])  # fmt: skip
@pytest.mark.parametrize(("status", "error"), [(429, Throttled), (503, Unavailable)])
async def test_a_receiver_says_how_long_it_wants_to_be_left_alone(headers, wanted_ms, status, error):
    receiver = Receiver([Reply.of({}, status, **headers)])
    async with http_server(receiver) as url:
        made = sink(url)
        await made.open()
        with pytest.raises(error) as caught:
            await made.write(chunk_of([b"a"]))
        await made.close()

    assert caught.value.facts.get("retry_after_ms", 0) == wanted_ms


async def test_what_is_too_large_is_halved_down_to_the_record_that_is_refused():
    values = [b"%03d" % number for number in range(20)]
    values[13] = b"x" * 4_000
    receiver = Receiver(bytes_max=500)
    async with http_server(receiver) as url:
        made = sink(url)
        await made.open()
        first = await made.write(chunk_of(values))
        ids, receiver.requests = receiver.ids, []
        assert receiver.records == values[:13] + values[14:], "in order, each once"
        await made.close()
        again = sink(url)                  # another process: the same ids
        await again.open()
        await again.write(chunk_of(values))
        await again.close()

    assert first == [Refused(13, "413", "too much for me")]
    assert receiver.ids == ids and len(set(ids)) == len(ids)


async def test_requests_keep_to_their_bounds_and_go_on_where_one_failed():
    values = [b"%05d" % number for number in range(10_500)]
    receiver = Receiver()
    async with http_server(receiver) as url:
        made = sink(url)
        await made.open()
        chunk = chunk_of(values)
        receiver.answers = [lambda proper: Reply.of(proper) if receiver.records.extend(values[:10_000]) is None
                            else CUT, CUT]  # fmt: skip
        with pytest.raises(ConnectionFailed):
            await made.write(chunk)
        await made.write(chunk)
        assert [len(request.json()["records"]) for request in receiver.requests] == [10_000, 500, 500]
        assert receiver.ids[1] == receiver.ids[2] != receiver.ids[0] and receiver.records == values
        await made.close()

        receiver.requests.clear()
        small = sink(url, request_bytes_max=1_000)
        await small.open()
        await small.write(chunk_of(values[:200]))
        await small.close()
    sizes = [len(request.body) for request in receiver.requests]
    assert max(sizes) <= 1_000 and min(sizes[:-1]) > 850


async def test_plain_http_goes_to_private_networks_alone():
    with pytest.raises(InvalidUse, match="not encrypted"):
        HttpEndpointSink("http://127.0.0.1/in")
    public = HttpEndpointSink("http://8.8.8.8/in", allow_plain_http=True)
    with pytest.raises(SinkMisused, match="not in a private network"):
        await public.open()


@pytest.mark.parametrize(("options", "message"), [
    ({"access_key": "x" * 4_097}, "at most 4096 bytes"),
    ({"access_key": "a\r\nB: c"}, "what a header cannot"),
    ({"common_attributes": {str(n): "" for n in range(51)}}, "at most 50"),
    ({"common_attributes": {"": "a"}}, "has no name"),
    ({"common_attributes": {"a": "x" * 1_025}}, "too long"),
    ({"compression": "zip"}, "not of this protocol"),
    ({"request_bytes_max": 65 << 20}, "request_bytes_max must be"),
    ({"timeout_seconds": 0}, "timeout_seconds must be"),
])  # fmt: skip
def test_what_the_protocol_cannot_carry_is_refused_at_once(options: dict[str, Any], message: str):
    with pytest.raises(InvalidUse, match=message):
        HttpEndpointSink("https://in.example/", **options)


async def test_a_delivery_brings_a_stream_to_a_receiver_that_is_down_at_first():
    receiver = Receiver([CUT, Reply.of({}, 503), lambda proper: Reply.of(proper, 201)])
    values = [{"n": number} for number in range(50)]

    def play(url: str) -> None:
        with Node() as node:
            node.create_stream("orders")
            with node.producer("orders") as producer:
                for value in values:
                    producer.put(value)
            delivery = Delivery("out", source="orders", sink=sink(url), buffer=Buffer(bytes_max=200, seconds_max=0.2),
                                url=node.url)  # fmt: skip
            with delivery:
                until(lambda: delivery.progress.records == 50)

    async with http_server(receiver) as url:
        await asyncio.to_thread(play, url)

    assert [json.loads(record) for record in receiver.records] == values
    assert len(set(receiver.ids[:4])) == 1, "the first request, until it succeeded"
