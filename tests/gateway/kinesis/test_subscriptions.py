"""SubscribeToShard: what a registered consumer is pushed, how a subscription ends, and how the next one goes on."""

import asyncio
import base64
import json

import cbor2
import pytest
from botocore.eventstream import EventStreamBuffer

from streamkit.errors import ConnectionFailed
from tests.gateway.calling import CBOR, headers
from tests.gateway.kinesis.desk import HASH_KEYS, Refusal, desk_at, eventually, place
from tests.gateway.kinesis.test_streams import gone, refused

SHARD = "shardId-000000000000"
QUICK = {"subscription_idle_seconds": 0.05, "take_over_seconds": 0.0}


class Reader:
    """The far end of a stream: it takes each chunk, unless it is stalled or gone."""

    def __init__(self, response):
        assert response.status == 200
        told = headers(response)
        assert told["content-type"] == "application/vnd.amazon.eventstream"
        assert told["x-amzn-requestid"]
        self.events = asyncio.Queue()
        self.stalled = asyncio.Event()
        self.stalled.set()
        self.gone = False
        self.chunks = 0
        self._buffer = EventStreamBuffer()
        self.task = asyncio.get_running_loop().create_task(response.stream(self))

    async def send(self, chunk):
        if self.gone:
            raise ConnectionFailed("the reader is gone", address="", sent=False)
        self.chunks += 1
        self._buffer.add_data(bytes(chunk))
        messages = list(self._buffer)
        assert len(messages) == 1, "a chunk is one whole event"
        self.events.put_nowait((messages[0].headers, messages[0].payload))
        await self.stalled.wait()

    async def message(self):
        async with asyncio.timeout(10):
            return await self.events.get()

    async def event(self):
        told, payload = await self.message()
        assert told == {
            ":message-type": "event", ":event-type": "SubscribeToShardEvent",
            ":content-type": "application/x-amz-json-1.1",
        }  # fmt: skip
        found = json.loads(payload)
        assert isinstance(found["MillisBehindLatest"], int) and isinstance(found["Records"], list)
        assert ("ContinuationSequenceNumber" in found) != ("ChildShards" in found)
        return found

    async def error(self):
        while True:
            told, payload = await self.message()
            if told[":message-type"] == "exception":
                return told[":exception-type"], json.loads(payload)["message"]

    async def values(self, count):
        """So many records, and the last event."""
        found, event = [], {}
        while len(found) < count:
            event = await self.event()
            found += [base64.b64decode(each["Data"]) for each in event["Records"]]
        return found, event

    async def ended(self):
        await asyncio.wait_for(asyncio.shield(self.task), 10)


async def subscribe(desk, kind="TRIM_HORIZON", *, shard=SHARD, consumer="c", begun=True, **more):
    arn = (await desk("DescribeStreamConsumer", StreamARN=place().arn, ConsumerName=consumer))["ConsumerDescription"]
    response = await desk.send("SubscribeToShard", {
        "ConsumerARN": arn["ConsumerARN"], "ShardId": shard, "StartingPosition": {"Type": kind, **more}
    })  # fmt: skip
    if response.status != 200:
        desk.read(response)
    reader = Reader(response)
    if begun:
        told, payload = await reader.message()
        assert (told[":event-type"], payload) == ("initial-response", b"{}")
    return reader


async def registered(desk, shards=1):
    await desk.make("s", shards)
    await desk("RegisterStreamConsumer", StreamARN=place().arn, ConsumerName="c")


@pytest.fixture
async def quick(node):
    async with desk_at(node, **QUICK) as desk:
        await registered(desk)
        yield desk


async def test_records_are_pushed_as_they_come(quick):
    await quick.put(b"a", b"b")
    reader = await subscribe(quick)
    found, event = await reader.values(2)
    assert found == [b"a", b"b"]
    assert set(event["Records"][0]) == {"SequenceNumber", "ApproximateArrivalTimestamp", "Data", "PartitionKey"}
    assert event["ContinuationSequenceNumber"] == event["Records"][-1]["SequenceNumber"]

    await quick.put(b"c")
    assert (await reader.values(1))[0] == [b"c"]


async def test_an_idle_shard_has_events_with_a_number_to_go_on_from(quick):
    start = (await quick.shards())[0]["SequenceNumberRange"]["StartingSequenceNumber"]
    reader = await subscribe(quick, "LATEST")

    for _ in range(3):
        event = await reader.event()
        assert (event["Records"], event["MillisBehindLatest"]) == ([], 0)
        assert event["ContinuationSequenceNumber"] == start
    await quick.put(b"a")
    for kind in ("AT_SEQUENCE_NUMBER", "AFTER_SEQUENCE_NUMBER"):
        again = await subscribe(quick, kind, SequenceNumber=start)
        assert (await again.values(1))[0] == [b"a"]


@pytest.mark.parametrize("kind", [
    "LATEST", "TRIM_HORIZON", "AT_SEQUENCE_NUMBER", "AFTER_SEQUENCE_NUMBER", "AT_TIMESTAMP"
])  # fmt: skip
async def test_every_position_and_resumption_loses_and_repeats_nothing(quick, kind):
    numbers = await quick.put(b"0", b"1")
    more = {"SequenceNumber": numbers[1]} if "SEQUENCE" in kind else {}
    more |= {"Timestamp": 1} if kind == "AT_TIMESTAMP" else {}
    first = {"LATEST": 2, "AFTER_SEQUENCE_NUMBER": 2, "AT_SEQUENCE_NUMBER": 1}.get(kind, 0)
    reader = await subscribe(quick, kind, **more)
    event = await reader.event()

    found = [base64.b64decode(each["Data"]) for each in event["Records"]]
    for round in range(4):
        await quick.put(b"%d" % (2 + round))
        reader = await subscribe(quick, "AFTER_SEQUENCE_NUMBER", SequenceNumber=event["ContinuationSequenceNumber"])
        values, event = await reader.values(1)
        found += values
        while len(found) < 3 + round - first:
            values, event = await reader.values(1)
            found += values
    assert found == [b"%d" % i for i in range(first, 6)]


async def test_the_request_may_be_cbor_and_the_events_are_json(quick):
    await quick.put(b"a")
    cbor = quick.as_caller(cbor=True)
    told = await cbor("DescribeStreamConsumer", StreamARN=place().arn, ConsumerName="c")
    body = {"ConsumerARN": told["ConsumerDescription"]["ConsumerARN"], "ShardId": SHARD,
            "StartingPosition": {"Type": "AT_TIMESTAMP", "Timestamp": cbor2.CBORTag(1, 1000)}}  # fmt: skip
    reader = Reader(await cbor.send("SubscribeToShard", cbor2.dumps(body), CBOR))
    await reader.message()
    assert (await reader.values(1))[0] == [b"a"]
    refusal = await cbor.send("SubscribeToShard", cbor2.dumps(body | {"ShardId": "shardId-9"}), CBOR)
    assert (refusal.status, headers(refusal)["content-type"]) == (400, "application/x-amz-json-1.1")
    assert json.loads(bytes(refusal.body))["__type"] == "ResourceNotFoundException"


async def test_a_large_backlog_comes_in_events_of_a_quarter_of_a_mebibyte(quick):
    for _ in range(5):
        await quick.put(*[b"x" * 100_000] * 10)
    reader = await subscribe(quick)
    found = 0
    while found < 50:
        event = await reader.event()
        assert sum(len(each["Data"]) for each in event["Records"]) < 500_000
        found += len(event["Records"])


async def test_a_shard_that_ends_tells_its_children_and_the_stream_is_over(quick):
    await quick.put(b"a")
    reader = await subscribe(quick)
    await reader.values(1)
    await quick.reshard("SplitShard", ShardToSplit=SHARD, NewStartingHashKey=str(HASH_KEYS // 2))

    event = await reader.event()
    while "ChildShards" not in event:
        event = await reader.event()
    assert [each["ShardId"][-1] for each in event["ChildShards"]] == ["1", "2"]
    assert [each["ParentShards"] for each in event["ChildShards"]] == [[SHARD], [SHARD]]
    await reader.ended()
    late = await subscribe(quick, "LATEST")
    assert len((await late.event())["ChildShards"]) == 2
    await late.ended()
    assert quick.kinesis.subscriptions.count == 0


async def test_a_subscription_ends_after_its_time(node):
    async with desk_at(node, subscription_seconds=0.2, subscription_idle_seconds=0.05) as desk:
        await registered(desk)
        reader = await subscribe(desk)
        await reader.ended()
        assert reader.chunks >= 3
        assert desk.kinesis.subscriptions.count == 0
        await (await subscribe(desk)).ended()


async def test_a_second_subscription_is_refused_for_five_seconds_and_takes_over_then(node):
    async with desk_at(node, subscription_idle_seconds=0.05) as desk:
        await registered(desk, 2)
        first = await subscribe(desk)
        await desk("RegisterStreamConsumer", StreamARN=place().arn, ConsumerName="d")

        await refused(subscribe(desk), "ResourceInUseException")
        other = await subscribe(desk, shard="shardId-000000000001")
        others = await subscribe(desk, consumer="d")
        desk.clock.ahead_ms += 4_900
        await refused(subscribe(desk), "ResourceInUseException")
        desk.clock.ahead_ms += 100
        second = await subscribe(desk)
        assert (await first.error())[0] == "ResourceInUseException"
        await first.ended()
        await second.event()
        await refused(subscribe(desk), "ResourceInUseException")
        assert not other.task.done() and not others.task.done()
        assert desk.kinesis.subscriptions.count == 3


async def test_a_node_pushes_to_so_many_at_once(node):
    async with desk_at(node, subscription_idle_seconds=0.05, take_over_seconds=0.0, subscriptions_max=2) as desk:
        await registered(desk, 3)
        first = await subscribe(desk)
        await subscribe(desk, shard="shardId-000000000001")
        await refused(subscribe(desk, shard="shardId-000000000002"), "LimitExceededException")
        await subscribe(desk)                              # in the place of the first
        await first.ended()
        assert desk.kinesis.subscriptions.count == 2


async def test_an_answer_that_is_never_sent_takes_no_place(node, monkeypatch):
    monkeypatch.setattr("streamkit.gateway.kinesis.subscriptions._BEGIN_SECONDS", 0.05)
    async with desk_at(node) as desk:
        await registered(desk)
        arn = (await desk("ListStreamConsumers", StreamARN=place().arn))["Consumers"][0]["ConsumerARN"]
        response = await desk.send(
            "SubscribeToShard", {"ConsumerARN": arn, "ShardId": SHARD, "StartingPosition": {"Type": "LATEST"}}
        )
        assert response.status == 200 and desk.kinesis.subscriptions.count == 1

        async def gone():
            return desk.kinesis.subscriptions.count == 0

        await eventually(gone)


async def test_of_two_subscriptions_at_once_one_is_refused(node):
    async with desk_at(node, subscription_idle_seconds=0.05) as desk:
        await registered(desk)
        outcomes = await asyncio.gather(subscribe(desk), subscribe(desk), return_exceptions=True)
        assert [each.name for each in outcomes if isinstance(each, Refusal)] == ["ResourceInUseException"]


@pytest.mark.parametrize("change", [
    {"ShardId": "shardId-000000000009"}, {"ConsumerARN": f"{place().arn}/consumer/none:1"},
    {"ConsumerARN": f"{place('x').arn}/consumer/c:1"}, {"StartingPosition": {"Type": "AT_SEQUENCE_NUMBER"}},
])  # fmt: skip
async def test_what_cannot_begin_is_refused_over_http(quick, change):
    arn = (await quick("ListStreamConsumers", StreamARN=place().arn))["Consumers"][0]["ConsumerARN"]
    body = {"ConsumerARN": arn, "ShardId": SHARD, "StartingPosition": {"Type": "LATEST"}} | change
    name = "InvalidArgumentException" if "StartingPosition" in change else "ResourceNotFoundException"
    await refused(quick("SubscribeToShard", **body), name)
    assert quick.kinesis.subscriptions.count == 0


async def test_a_reader_that_stalls_is_left_with_one_event(quick):
    reader = await subscribe(quick)
    await reader.event()
    reader.stalled.clear()
    await quick.put(b"a")
    await reader.values(1)
    chunks = reader.chunks
    for _ in range(5):
        await quick.put(b"b")
    assert reader.chunks == chunks
    reader.stalled.set()
    assert (await reader.values(5))[0] == [b"b"] * 5


async def test_a_take_over_does_not_write_into_an_event_that_is_stuck(quick):
    reader = await subscribe(quick)
    reader.stalled.clear()
    await reader.event()
    chunks = reader.chunks
    second = await subscribe(quick)
    await reader.ended()
    assert reader.chunks == chunks
    await second.event()


async def test_a_reader_that_goes_away_is_forgotten(quick):
    reader = await subscribe(quick)
    reader.gone = True
    with pytest.raises(ConnectionFailed):
        await reader.ended()
    assert quick.kinesis.subscriptions.count == 0
    cancelled = await subscribe(quick)
    cancelled.task.cancel()
    await asyncio.wait({cancelled.task})
    assert quick.kinesis.subscriptions.count == 0


async def test_a_consumer_that_is_deregistered_is_served_no_more(quick):
    reader = await subscribe(quick)
    await quick("DeregisterStreamConsumer", StreamARN=place().arn, ConsumerName="c")
    await reader.ended()


async def test_a_stream_that_is_deleted_is_told_to_be_gone(quick):
    reader = await subscribe(quick)
    await quick("DeleteStream", StreamName="s", EnforceConsumerDeletion=True)
    name, message = await reader.error()
    assert name == "ResourceNotFoundException" and message.startswith("Stream s under account")
    await reader.ended()
    await eventually(lambda: gone(quick))


async def test_a_dry_run_subscribes_to_nothing(quick):
    arn = (await quick("ListStreamConsumers", StreamARN=place().arn))["Consumers"][0]["ConsumerARN"]
    await refused(
        quick("SubscribeToShard", ConsumerARN=arn, ShardId=SHARD, StartingPosition={"Type": "LATEST"}, DryRun=True),
        "DryRunOperationException",
    )
    assert quick.kinesis.subscriptions.count == 0


async def test_a_rate_of_subscriptions_may_be_switched_on(node):
    async with desk_at(node, **QUICK) as desk:
        await desk.make("s", Tags={"streamkit:limits": "aws"})
        await desk("RegisterStreamConsumer", StreamARN=place().arn, ConsumerName="c")
        await subscribe(desk)
        await refused(subscribe(desk), "LimitExceededException")
