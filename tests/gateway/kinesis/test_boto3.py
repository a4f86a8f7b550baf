"""boto3 against a node in a process of its own, over HTTP."""

import base64
import http.client
import itertools
import time
from datetime import UTC, datetime

import cbor2
import pytest
from botocore.exceptions import ClientError

from streamkit.gateway.wire import decode_cbor
from tests.gateway.calling import CBOR, SIGNED
from tests.gateway.kinesis.conftest import wait_active

SHARD = "shardId-000000000000"
HASH_KEYS = 1 << 128


def error_of(work):
    with pytest.raises(ClientError) as caught:
        work()
    return caught.value.response["Error"]["Code"]


def read(kinesis, stream, shard=SHARD, **position):
    position = position or {"ShardIteratorType": "TRIM_HORIZON"}
    iterator = kinesis.get_shard_iterator(StreamName=stream, ShardId=shard, **position)["ShardIterator"]
    found = []
    while iterator:
        part = kinesis.get_records(ShardIterator=iterator)
        found += part["Records"]
        if not part["Records"] and not part["MillisBehindLatest"]:
            break
        iterator = part.get("NextShardIterator")
    return found


def test_the_life_of_a_stream_with_boto3s_own_waiters(kinesis, stream):
    kinesis.put_record(StreamName=stream, Data=b"\x00\xff", PartitionKey="é")
    told = kinesis.put_records(
        StreamName=stream, Records=[{"Data": b"%d" % i, "PartitionKey": str(i)} for i in range(100)]
    )
    assert (told["FailedRecordCount"], len(told["Records"])) == (0, 100)
    found = read(kinesis, stream)
    assert [each["Data"] for each in found] == [b"\x00\xff", *(b"%d" % i for i in range(100))]
    assert found[0]["PartitionKey"] == "é"
    assert abs(datetime.now(UTC) - found[0]["ApproximateArrivalTimestamp"]).total_seconds() < 120
    number = found[50]["SequenceNumber"]
    after = read(kinesis, stream, ShardIteratorType="AFTER_SEQUENCE_NUMBER", StartingSequenceNumber=number)
    assert [each["Data"] for each in after] == [each["Data"] for each in found[51:]]
    assert read(kinesis, stream, ShardIteratorType="AT_TIMESTAMP", Timestamp=datetime(2020, 1, 1)) == found
    kinesis.delete_stream(StreamName=stream)
    kinesis.get_waiter("stream_not_exists").wait(StreamName=stream, WaiterConfig={"Delay": 0.05, "MaxAttempts": 200})
    assert error_of(lambda: kinesis.describe_stream(StreamName=stream)) == "ResourceNotFoundException"


def test_pagers_find_every_page(kinesis, stream):
    for name in ("a", "b", "c"):
        kinesis.register_stream_consumer(StreamARN=arn_of(kinesis, stream), ConsumerName=name)
    pages = kinesis.get_paginator("list_stream_consumers").paginate(
        StreamARN=arn_of(kinesis, stream), PaginationConfig={"PageSize": 2}
    )
    assert [each["ConsumerName"] for page in pages for each in page["Consumers"]] == ["a", "b", "c"]
    pages = kinesis.get_paginator("list_streams").paginate(PaginationConfig={"PageSize": 1})
    names = [name for page in pages for name in page["StreamNames"]]
    assert stream in names and names == sorted(set(names))


def arn_of(kinesis, stream):
    return kinesis.describe_stream_summary(StreamName=stream)["StreamDescriptionSummary"]["StreamARN"]


def test_accounts_are_told_apart_by_the_key(served, stream):
    other = served.boto(key_id="111122223333")
    assert stream not in other.list_streams()["StreamNames"]
    other.create_stream(StreamName=stream, ShardCount=2)
    wait_active(other, stream)
    assert arn_of(other, stream).split(":")[4] == "111122223333"
    elsewhere = served.boto(region="eu-west-1")
    assert error_of(lambda: elsewhere.describe_stream(StreamName=stream)) == "ResourceNotFoundException"


def test_the_command_line_sees_what_boto3_made(served, stream):
    assert stream in served.run("stream", "list")


def test_cbor_over_a_socket(served, kinesis, stream):
    connection = http.client.HTTPConnection(served.http.removeprefix("http://"), timeout=20)

    def post(operation, members):
        now = datetime.now(UTC)
        signed = SIGNED | {"x-amz-date": now.strftime("%Y%m%dT%H%M%SZ")}
        signed["authorization"] = signed["authorization"].replace("20231114", now.strftime("%Y%m%d"))
        connection.request("POST", "/", cbor2.dumps(members), signed | {
            "content-type": CBOR, "x-amz-target": f"Kinesis_20131202.{operation}"
        })  # fmt: skip
        response = connection.getresponse()
        assert response.headers["content-type"] == CBOR
        return response, decode_cbor(response.read())

    _, told = post("PutRecords", {"StreamName": stream, "Records": [{"Data": b"\xff\x00", "PartitionKey": "k"}]})
    assert told["Records"][0]["ShardId"] == SHARD
    _, told = post("GetShardIterator", {
        "StreamName": stream, "ShardId": SHARD, "ShardIteratorType": "AT_TIMESTAMP",
        "Timestamp": cbor2.CBORTag(1, 1_500_000_000_000),
    })  # fmt: skip
    _, told = post("GetRecords", {"ShardIterator": told["ShardIterator"]})
    assert told["Records"][0]["Data"] == b"\xff\x00"
    assert abs(told["Records"][0]["ApproximateArrivalTimestamp"] - time.time() * 1000) < 120_000
    response, told = post("DescribeStream", {"StreamName": "none"})
    assert (response.status, response.headers["x-amzn-ErrorType"]) == (400, "ResourceNotFoundException")
    missing = "Stream none under account 000000000000 not found."
    assert told == {"__type": "ResourceNotFoundException", "message": missing}
    connection.close()


def test_a_subscription_is_read_to_the_shards_end(kinesis, stream):
    arn = arn_of(kinesis, stream)
    consumer = kinesis.register_stream_consumer(StreamARN=arn, ConsumerName="c")["Consumer"]["ConsumerARN"]
    kinesis.put_record(StreamName=stream, Data=b"before", PartitionKey="k")
    events = kinesis.subscribe_to_shard(
        ConsumerARN=consumer, ShardId=SHARD, StartingPosition={"Type": "TRIM_HORIZON"}
    )["EventStream"]

    found, children = [], []
    for event in events:
        told = event["SubscribeToShardEvent"]
        found += [each["Data"] for each in told["Records"]]
        if found == [b"before"] and not children and told["Records"]:
            kinesis.put_record(StreamName=stream, Data=b"after", PartitionKey="k")
            kinesis.split_shard(StreamName=stream, ShardToSplit=SHARD, NewStartingHashKey=str(HASH_KEYS // 2))
        children = told.get("ChildShards", [])
        if not children:
            assert told["ContinuationSequenceNumber"]
    assert (found, len(children)) == ([b"before", b"after"], 2)


def test_an_idle_subscription_is_heard_of_within_five_seconds(kinesis, stream):
    arn = arn_of(kinesis, stream)
    consumer = kinesis.register_stream_consumer(StreamARN=arn, ConsumerName="c")["Consumer"]["ConsumerARN"]
    ask = {"ConsumerARN": consumer, "ShardId": SHARD, "StartingPosition": {"Type": "LATEST"}}
    began = time.monotonic()
    events = kinesis.subscribe_to_shard(**ask)["EventStream"]

    assert error_of(lambda: kinesis.subscribe_to_shard(**ask)) == "ResourceInUseException"
    for event in itertools.islice(events, 1):
        assert event["SubscribeToShardEvent"]["Records"] == []
        assert time.monotonic() - began < 5
    events.close()


def test_records_come_back_after_a_reshard_with_every_client_call(kinesis, stream):
    kinesis.put_records(StreamName=stream, Records=[{"Data": b"%d" % i, "PartitionKey": str(i)} for i in range(50)])
    kinesis.update_shard_count(StreamName=stream, TargetShardCount=2, ScalingType="UNIFORM_SCALING")
    wait_active(kinesis, stream)
    kinesis.put_records(StreamName=stream, Records=[{"Data": b"%d" % i, "PartitionKey": str(i)} for i in range(50, 99)])

    shards = kinesis.list_shards(StreamName=stream)["Shards"]
    found = [each["Data"] for shard in shards for each in read(kinesis, stream, shard["ShardId"])]
    assert sorted(map(int, found)) == [*range(99)]


def test_base64_of_something_else_is_no_iterator(kinesis, stream):
    assert error_of(lambda: kinesis.get_records(ShardIterator=base64.b64encode(b"x" * 60).decode())) == (
        "InvalidArgumentException"
    )
