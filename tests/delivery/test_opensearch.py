"""Bulk requests against a double of a search cluster, over real sockets.

Acceptance test 9 of deliveries: mixed 201, 409, 400 and 429 items, of which only the right ones are repeated; midnight
during a retry.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from streamkit.delivery import OpenSearchSink, Refused
from streamkit.delivery.sinks.index_names import IndexNames
from streamkit.errors import InvalidUse, SinkMisused, Throttled, Unavailable
from tests.delivery.http_server import CUT, Reply, Request, http_server
from tests.delivery.test_http_endpoint import chunk_of


def failed(status: int, kind: str = "some_exception", reason: str = "why") -> dict[str, Any]:
    return {"status": status, "error": {"type": kind, "reason": reason}}


@dataclass
class Cluster:
    """answer: for a document that is sent for the n-th time (from 1), or None: as the cluster would."""

    answer: Callable[[dict[str, Any], int], dict[str, Any] | None] = lambda document, attempt: None
    replies: list[Reply] = field(default_factory=list)                 # instead, for the next requests
    bytes_max: int = 1 << 30
    documents: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    sent: list[Any] = field(default_factory=list)                      # the member n of each document that came
    bodies: list[Request] = field(default_factory=list)

    def __call__(self, request: Request) -> Reply:
        if self.replies:
            return self.replies.pop(0)
        if len(request.body) > self.bytes_max:
            return Reply.of({"error": "too large"}, 413)
        self.bodies.append(request)
        assert (request.method, request.path) == ("POST", "/_bulk")
        lines = request.body.split(b"\n")
        assert lines.pop() == b"", "the last line ends, too"
        items = [self._item(json.loads(a), json.loads(d)) for a, d in zip(lines[::2], lines[1::2], strict=True)]
        return Reply.of({"errors": any(item["status"] >= 400 for item in items),
                         "items": [{"create": item} for item in items]})  # fmt: skip

    def _item(self, action: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
        assert list(action) == ["create"]
        self.sent.append(document.get("n"))
        where = (action["create"]["_index"], action["create"].get("_id") or f"made-{len(self.documents)}")
        if said := self.answer(document, self.sent.count(document.get("n"))):
            return said
        if where in self.documents:
            return failed(409, "version_conflict_engine_exception")
        self.documents[where] = document
        return {"status": 201}


def sink(url: str, **options: Any) -> OpenSearchSink:
    return OpenSearchSink(url, "logs", **({"timeout_seconds": 10} | options))


async def test_of_mixed_items_only_the_right_ones_are_repeated():
    def answer(document: dict[str, Any], attempt: int) -> dict[str, Any] | None:
        number = document["n"]
        if number == 2:
            return failed(400, "mapper_parsing_exception", "n is no date")
        busy = {3: 429, 4: 503, 5: 500}.get(number)
        return failed(busy) if busy and attempt <= 2 else None

    cluster = Cluster(answer)
    async with http_server(cluster) as url:
        made = sink(url)
        await made.open()
        chunk = chunk_of([{"n": number} for number in range(8)])
        cluster.documents["logs", f"{chunk.shard_uuid.hex()}-1-0"] = {"n": 1}      # by a former attempt

        for _ in range(2):
            with pytest.raises(Throttled):
                await made.write(chunk)
        refused = await made.write(chunk)
        await made.close()

    assert refused == [Refused(2, "mapper_parsing_exception", "n is no date")]
    assert cluster.sent == [0, 1, 2, 3, 4, 5, 6, 7, 3, 4, 5, 3, 4, 5]
    assert sorted(document["n"] for document in cluster.documents.values()) == [0, 1, 3, 4, 5, 6, 7]
    assert cluster.bodies[0].headers["content-encoding"] == "gzip"


async def test_a_retry_after_midnight_goes_into_the_index_of_the_arrival_and_another_process_finds_it_there():
    cluster = Cluster(lambda document, attempt: failed(429) if attempt == 1 else None)
    async with http_server(cluster) as url:
        for attempt in range(2):                                       # the second: a new process, all again
            made = sink(url, rotation="day")
            await made.open()
            chunk = chunk_of([{"n": 1}, {"n": 2}])
            if not attempt:
                with pytest.raises(Throttled):
                    await made.write(chunk)
            assert await made.write(chunk) == []
            await made.close()

    assert {index for index, _ in cluster.documents} == {"logs-2026-09-21"}, "when the records arrived"
    assert len(cluster.documents) == 2 and cluster.sent == [1, 2] * 3


async def test_without_ids_the_cluster_makes_them_and_a_repetition_is_a_duplicate():
    cluster = Cluster()
    async with http_server(cluster) as url:
        made = sink(url, document_ids="none", compression="none")
        await made.open()
        await made.write(chunk_of([{"n": 1}]))
        await made.write(chunk_of([{"n": 1}]))
        await made.close()
    assert len(cluster.documents) == 2 and "content-encoding" not in cluster.bodies[0].headers


async def test_several_documents_of_one_record_have_an_id_each():
    cluster = Cluster()
    async with http_server(cluster) as url:
        made = sink(url)
        await made.open()
        for _ in range(2):
            await made.write(chunk_of([1, 2], lambda value: [{"n": value}, {"n": -value}]))
        await made.close()
    assert sorted(document["n"] for document in cluster.documents.values()) == [-2, -1, 1, 2]


async def test_what_is_no_object_in_one_line_is_made_one_or_refused():
    payloads = [b'{"n":\n 1}\r\n', b"[1]", b"no", b'{"n":"\xff"}', b'{"n":2}', b'{"n":3}{"n":4}']
    cluster = Cluster()
    async with http_server(cluster) as url:
        made = sink(url)
        await made.open()
        refused = await made.write(chunk_of(payloads))
        await made.close()
    assert [each.index for each in refused] == [1, 2, 3, 5] and {each.code for each in refused} == {"not_json"}
    assert cluster.sent == [1, 2]


async def test_bodies_keep_to_their_bound_and_what_the_cluster_finds_too_large_is_halved():
    values = [{"n": number, "x": "x" * 50} for number in range(64)]
    values[20]["x"] = "x" * 3_000
    cluster = Cluster(bytes_max=1_500)
    async with http_server(cluster) as url:
        made = sink(url, body_bytes_max=4_000)
        await made.open()
        refused = await made.write(chunk_of(values))
        await made.close()
    assert [(each.index, each.code) for each in refused] == [(20, "413")]
    assert sorted(cluster.sent) == [n for n in range(64) if n != 20], "each once"
    assert len(cluster.bodies) > 4 and max(len(body.body) for body in cluster.bodies) <= 1_500


@pytest.mark.parametrize(("reply", "error"), [
    (Reply.of({}, 429, Retry_After="3"), Throttled),
    (Reply.of({}, 503), Unavailable),
    (Reply.of({}, 401), SinkMisused),
    (Reply.of({"items": []}), Unavailable),
    (Reply(200, b"hello"), Unavailable),
    (Reply.of({"items": [{"create": failed(403, "cluster_block_exception")}]}), SinkMisused),
    (Reply.of({"items": [{"create": failed(404, "index_not_found_exception")}]}), SinkMisused),
    (Reply.of({"items": ["what"]}), Unavailable),
])  # fmt: skip
async def test_what_is_not_a_documents_fault_holds_it(reply: Reply, error: type[Exception]):
    cluster = Cluster(replies=[reply])
    async with http_server(cluster) as url:
        made = sink(url)
        await made.open()
        chunk = chunk_of([{"n": 1}])
        with pytest.raises(error):
            await made.write(chunk)
        assert await made.write(chunk) == []
        await made.close()
    assert cluster.sent == [1]


async def test_of_several_bodies_those_that_are_done_are_not_sent_again():
    cluster = Cluster(replies=[CUT])
    async with http_server(cluster) as url:
        made = sink(url, body_bytes_max=1_000, in_flight_max=2)
        await made.open()
        chunk = chunk_of([{"n": number} for number in range(100)])
        with pytest.raises(Exception, match="broke"):
            await made.write(chunk)
        assert await made.write(chunk) == []
        await made.close()
    assert sorted(cluster.sent) == list(range(100))


@pytest.mark.parametrize(("rotation", "day", "suffix"), [
    ("none", "2026-11-24T05:06", ""),
    ("hour", "2026-11-24T05:06", "-2026-11-24-05"),
    ("day", "2026-11-24T05:06", "-2026-11-24"),
    ("month", "2026-11-24T05:06", "-2026-11"),
    ("week", "2026-01-01T00:00", "-2026-w01"),         # a Thursday: its week's Saturday is the year's first
    ("week", "2026-01-03T23:59", "-2026-w01"),         # that Saturday
    ("week", "2026-01-04T00:00", "-2026-w02"),         # Sunday
    ("week", "2025-12-28T00:00", "-2026-w01"),         # its week has a Saturday of 2026
    ("week", "2025-12-27T00:00", "-2025-w52"),
    ("week", "2022-12-31T12:00", "-2022-w53"),         # a Saturday
    ("iso_week", "2026-01-04T00:00", "-2026-w01"),     # Sunday still belongs to the week before
    ("iso_week", "2027-01-03T00:00", "-2026-w53"),
])  # fmt: skip
def test_an_index_is_named_after_the_arrival_in_utc(rotation: Any, day: str, suffix: str):
    assert IndexNames("logs", rotation).of(datetime.fromisoformat(day).replace(tzinfo=UTC)) == "logs" + suffix


@pytest.mark.parametrize("index", ["", "Logs", "_logs", "a b", "a*", "..", "x" * 250])
def test_names_that_no_index_can_have_are_refused(index: str):
    with pytest.raises(InvalidUse, match="no name of an index"):
        OpenSearchSink("http://127.0.0.1:9200", index)


async def test_user_and_password_are_sent_and_never_shown():
    cluster = Cluster(replies=[Reply.of({}, 403)])
    async with http_server(cluster) as url:
        made = sink(url, user="u", password="geheim")
        await made.open()
        chunk = chunk_of([{"n": 1}])
        with pytest.raises(SinkMisused) as caught:
            await made.write(chunk)
        await made.write(chunk)
        await made.close()
    assert cluster.bodies[0].headers["authorization"] == "Basic dTpnZWhlaW0="
    assert "geheim" not in str(caught.value) + str(msgspec.json.encode(caught.value.facts))
