"""The HTTP event collector against a double that was written from its description, over real sockets.

Acceptance test 10 of deliveries: an acknowledgement that is told once, lost polls, channels that are reset, bursts of
code 9, code 4: exactly the promised number of resends.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from streamkit.delivery import Refused, SplunkSink
from streamkit.errors import ConnectionFailed, InvalidUse, SinkMisused, TimedOut, Unavailable
from tests.delivery.http_server import CUT, Reply, Request, http_server
from tests.delivery.test_http_endpoint import chunk_of

TEXTS = {0: "Success", 4: "Invalid token", 6: "Invalid data format", 8: "Internal server error", 9: "Server is busy",
         11: "Data channel is invalid", 14: "ACK is disabled"}  # fmt: skip
STATUS = {0: 200, 4: 403, 8: 500, 9: 503}


def said(code: int) -> Reply:
    return Reply.of({"text": TEXTS[code], "code": code}, STATUS.get(code, 400))


@dataclass
class Collector:
    """Indexes at once, says so once. sends, polls: replies instead, for the next ones; a poll that is CUT is done, and
    its answer lost.
    """

    token: str = "Splunk t"
    acks: bool = True
    silent_polls: int = 0                  # this many say false, though it is indexed
    sends: list[Reply] = field(default_factory=list)
    polls: list[Reply] = field(default_factory=list)
    bytes_max: int = 1 << 30
    bodies: list[bytes] = field(default_factory=list)          # indexed
    requests: list[Request] = field(default_factory=list)      # sends of data, also those that failed
    asked: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    indexed: dict[tuple[str, int], bool] = field(default_factory=dict)

    def __call__(self, request: Request) -> Reply:
        channel = request.headers["x-splunk-request-channel"]
        assert request.query["channel"] == channel and len(channel) == 36
        if request.headers["authorization"] != self.token:
            return said(4)
        return self._poll(request, channel) if request.path.endswith("/ack") else self._send(request, channel)

    def restart(self) -> None:
        self.counts.clear()
        self.indexed.clear()

    def _send(self, request: Request, channel: str) -> Reply:
        self.requests.append(request)
        if len(request.body) > self.bytes_max:
            return Reply.of({}, 413)
        if self.sends and (reply := self.sends.pop(0)) is not OK:
            return reply
        if b"poison" in request.body:
            return said(6)
        self.bodies.append(request.body)
        if not self.acks:
            return said(0)
        number = self.counts.get(channel, 0)
        self.counts[channel] = number + 1
        self.indexed[channel, number] = True
        return Reply.of({"text": "Success", "code": 0, "ackId": number})

    def _poll(self, request: Request, channel: str) -> Reply:
        if not self.acks:
            return said(14)
        ids = request.json()["acks"]
        self.asked += channel in self.counts
        if channel in self.counts and self.silent_polls > 0:
            self.silent_polls -= 1
            return Reply.of({"acks": {str(each): False for each in ids}})
        known = {str(each): self.indexed.pop((channel, each), False) for each in ids}
        if channel in self.counts and self.polls:
            return self.polls.pop(0)
        return Reply.of({"acks": known})


OK = Reply()


def sink(url: str, token: str = "t", **options: Any) -> SplunkSink:
    settings = {"poll_seconds": 0.01, "timeout_seconds": 10, "ack_timeout_seconds": 20}
    return SplunkSink(url, token, **(settings | options))


def resends(collector: Collector, made: SplunkSink) -> tuple[int, int, int]:
    """How often data were sent; after a time-out of acknowledgements, after a reset."""
    return len(collector.requests), made.resent.after_ack_timeout, made.resent.after_channel_reset


async def test_what_is_acknowledged_once_is_remembered_and_sent_once():
    collector = Collector(silent_polls=3)
    async with http_server(collector) as url:
        made = sink(url)
        await made.open()
        chunk = chunk_of([{"event": "a"}, {"event": {"b": 1}, "fields": {"c": "d"}}])
        assert await made.write(chunk) == []
        assert resends(collector, made) == (1, 0, 0) and collector.asked == 4
        await made.close()

    events = [json.loads(line) for line in collector.bodies[0].replace(b"}{", b"}\n{").splitlines()]
    marks = [{"streamkit_plan": chunk.plan, "streamkit_record": index} for index in range(2)]
    assert events == [{"event": "a", "fields": marks[0]}, {"event": {"b": 1}, "fields": {"c": "d"} | marks[1]}]
    assert collector.requests[0].path == "/services/collector/event"


async def test_a_lost_poll_costs_one_resend_after_the_time_out():
    collector = Collector(polls=[CUT])
    async with http_server(collector) as url:
        made = sink(url, ack_timeout_seconds=0.3)
        await made.open()
        chunk = chunk_of([{"event": "a"}])
        with pytest.raises(TimedOut):
            await made.write(chunk)
        assert await made.write(chunk) == []
        assert resends(collector, made) == (2, 1, 0)
        await made.close()


async def test_a_channel_that_the_collector_does_not_know_any_more_costs_one_resend_at_once():
    collector = Collector(polls=[said(11)])
    async with http_server(collector) as url:
        made = sink(url)
        await made.open()
        chunk = chunk_of([{"event": "a"}])
        with pytest.raises(Unavailable, match="forgotten a channel"):
            await made.write(chunk)
        assert await made.write(chunk) == []
        assert resends(collector, made) == (2, 0, 1)
        assert len({request.query["channel"] for request in collector.requests}) == 2
        await made.close()


async def test_a_collector_that_counts_anew_has_forgotten_all_that_it_had_on_that_channel():
    collector = Collector(silent_polls=1 << 30)
    async with http_server(collector) as url:
        made = sink(url, channels=1, request_bytes_max=1)
        await made.open()
        chunk = chunk_of([{"event": number} for number in range(4)])
        answer, count = Collector._send, 0

        def restarting(self: Collector, request: Request, channel: str) -> Reply:
            nonlocal count
            count += 1
            if count == 4:                 # with three that wait
                self.restart()
                self.silent_polls = 0
            return answer(self, request, channel)

        collector._send = restarting.__get__(collector)  # type: ignore[method-assign]
        with pytest.raises(Unavailable, match="forgotten a channel"):
            await made.write(chunk)
        assert await made.write(chunk) == []
        assert resends(collector, made) == (7, 0, 3), "the fourth was sent once"
        await made.close()


async def test_a_sticky_cookie_that_is_lost_leads_elsewhere_and_one_that_changes_does_not():
    collector = Collector(silent_polls=1, polls=[
        Reply.of({"acks": {}}, Set_Cookie="AWSALB=2"),
        Reply.of({"acks": {}}, Set_Cookie="AWSALB=2; Max-Age=0"),
    ])  # fmt: skip
    collector.sends = [Reply.of({"text": "Success", "code": 0, "ackId": 0}, Set_Cookie="AWSALB=1")]
    async with http_server(collector) as url:
        made = sink(url, ack_timeout_seconds=20)
        await made.open()
        chunk = chunk_of([{"event": "a"}])
        collector.counts = _Everywhere()
        with pytest.raises(Unavailable, match="forgotten a channel"):
            await made.write(chunk)
        assert collector.polls == []
        assert await made.write(chunk) == []
        assert resends(collector, made) == (2, 0, 1)
        await made.close()


class _Everywhere(dict[str, int]):
    """Every channel is known."""

    def __contains__(self, key: object) -> bool:
        return True


async def test_a_burst_of_code_9_costs_its_length_and_indexes_once():
    collector = Collector(sends=[said(9), said(8), said(9), CUT])
    async with http_server(collector) as url:
        made = sink(url)
        await made.open()
        chunk = chunk_of([{"event": "a"}])
        for _ in range(3):
            with pytest.raises(Unavailable):
                await made.write(chunk)
        with pytest.raises(ConnectionFailed):
            await made.write(chunk)
        assert await made.write(chunk) == []
        assert resends(collector, made) == (5, 0, 0) and len(collector.bodies) == 1
        await made.close()


async def test_code_4_is_for_a_person_and_sends_nothing():
    collector = Collector()
    async with http_server(collector) as url:
        with pytest.raises(SinkMisused, match="refuses the token"):
            await sink(url, "another").open()
        made = sink(url)
        await made.open()
        collector.token = "Splunk changed"
        with pytest.raises(SinkMisused, match="refuses the token") as caught:
            await made.write(chunk_of([{"event": "a"}]))
        await made.close()
    assert collector.bodies == [] and caught.value.facts["hec_code"] == 4


async def test_a_token_without_acknowledgements_is_refused_unless_none_are_wanted():
    collector = Collector(acks=False)
    async with http_server(collector) as url:
        with pytest.raises(SinkMisused, match="does not acknowledge"):
            await sink(url).open()
        made = sink(url, acknowledge=False)
        await made.open()
        assert await made.write(chunk_of([{"event": "a"}])) == []
        await made.close()
    assert len(collector.bodies) == 1 and collector.asked == 0


async def test_records_that_are_no_events_and_those_that_the_collector_refuses_do_not_hold_the_others():
    values = [b'{"event":%d}' % number for number in range(10)]
    values[1:5] = [b"no", b'{"a":1}', b'{"event":""}', b'{"event":"poison"}']
    collector = Collector()
    async with http_server(collector) as url:
        made = sink(url, compression="gzip")
        await made.open()
        refused = await made.write(chunk_of(values))
        await made.close()
    assert [(each.index, each.code) for each in refused] == [(1, "6"), (2, "12"), (3, "13"), (4, "6")]
    bodies = b"".join(collector.bodies)
    assert [bodies.count(b'"event":%d,' % number) for number in (0, 5, 6, 7, 8, 9)] == [1] * 6


async def test_raw_bytes_are_joined_and_what_is_too_large_is_refused_alone():
    collector = Collector(bytes_max=20)
    async with http_server(collector) as url:
        made = sink(url, endpoint="raw", metadata={"index": "main", "source": "a b"})
        await made.open()
        assert await made.write(chunk_of([b"one", b"two"])) == []
        refused = await made.write(chunk_of([b"x" * 30, b"three"]))
        await made.close()
        plain = sink(url, endpoint="raw", delimiter=b"")
        await plain.open()
        await plain.write(chunk_of([b"one", b"two"]))
        await plain.close()
    assert collector.bodies == [b"one\ntwo\n", b"three\n", b"onetwo"]
    assert [(each.index, each.code) for each in refused] == [(0, "413")]
    assert collector.requests[0].query["source"] == "a b" and collector.requests[0].path.endswith("/raw")
    assert isinstance(refused[0], Refused)


async def test_a_channel_is_one_connection_and_there_are_no_more_than_asked_for():
    collector = Collector(silent_polls=2)
    async with http_server(collector) as url:
        made = sink(url, channels=2, unacknowledged_max=2, request_bytes_max=1)
        await made.open()
        assert await made.write(chunk_of([{"event": number} for number in range(20)])) == []
        await made.close()
    by_channel = {(request.query["channel"], request.connection) for request in collector.requests}
    assert len(by_channel) == 2 and len(collector.requests) == 20


@pytest.mark.parametrize("options", [
    {"endpoint": "cooked"}, {"compression": "zip"}, {"metadata": {"index": "a"}}, {"channels": 0}, {"token": "a\nb"},
])  # fmt: skip
def test_what_can_never_work_is_refused_at_once(options: dict[str, Any]):
    with pytest.raises(InvalidUse):
        SplunkSink("https://splunk.example:8088", **({"token": "t"} | options))
