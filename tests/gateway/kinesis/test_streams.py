"""Streams made, described, listed and removed, and what each status allows."""

import asyncio

import pytest

from streamkit.gateway.kinesis.notes import Pending
from tests.gateway.kinesis.desk import ACCOUNT, HASH_KEYS, Refusal, desk_at, eventually, place


async def refused(work, name, message=None):
    with pytest.raises(Refusal) as caught:
        await work
    assert caught.value.name == name, caught.value
    if message is not None:
        assert caught.value.message == message
    return caught.value.message


async def test_a_new_stream_is_described_as_it_was_asked_for(desk):
    await desk.make("s", 3, Tags={"team": "blue"}, MaxRecordSizeInKiB=2048)

    told = (await desk("DescribeStream", StreamName="s"))["StreamDescription"]
    assert told | {"StreamCreationTimestamp": 0, "Shards": []} == {
        "StreamName": "s", "StreamARN": f"arn:aws:kinesis:us-east-1:{ACCOUNT}:stream/s", "StreamStatus": "ACTIVE",
        "StreamModeDetails": {"StreamMode": "PROVISIONED"}, "RetentionPeriodHours": 24, "StreamCreationTimestamp": 0,
        "EnhancedMonitoring": [{"ShardLevelMetrics": []}], "EncryptionType": "NONE", "Shards": [],
        "HasMoreShards": False,
    }  # fmt: skip
    assert abs(told["StreamCreationTimestamp"] - desk.clock.now_ms() / 1000) < 60
    width = HASH_KEYS // 3
    assert [each["HashKeyRange"] for each in told["Shards"]] == [
        {"StartingHashKey": "0", "EndingHashKey": str(width - 1)},
        {"StartingHashKey": str(width), "EndingHashKey": str(2 * width - 1)},
        {"StartingHashKey": str(2 * width), "EndingHashKey": str(HASH_KEYS - 1)},
    ]
    assert [each["ShardId"] for each in told["Shards"]] == [f"shardId-{i:012d}" for i in range(3)]
    assert all("EndingSequenceNumber" not in each["SequenceNumberRange"] for each in told["Shards"])
    assert all(len(each["SequenceNumberRange"]["StartingSequenceNumber"]) == 56 for each in told["Shards"])
    summary = (await desk("DescribeStreamSummary", StreamName="s"))["StreamDescriptionSummary"]
    assert summary["OpenShardCount"] == 3
    assert (summary["ConsumerCount"], summary["ChannelCount"], summary["QueueCount"]) == (0, 0, 0)
    assert summary["MaxRecordSizeInKiB"] == 2048
    assert "Shards" not in summary


async def test_shards_are_described_a_page_at_a_time(desk):
    await desk.make("s", 7)

    found, after = [], {}
    while True:
        page = (await desk("DescribeStream", StreamName="s", Limit=3, **after))["StreamDescription"]
        found.append([each["ShardId"] for each in page["Shards"]])
        if not page["HasMoreShards"]:
            break
        after = {"ExclusiveStartShardId": found[-1][-1]}

    assert [len(page) for page in found] == [3, 3, 1]
    loose = (await desk("DescribeStream", StreamName="s", ExclusiveStartShardId="shard-4"))["StreamDescription"]
    assert [each["ShardId"][-1] for each in loose["Shards"]] == ["5", "6"]


async def test_no_page_of_shards_has_more_than_a_hundred(desk):
    await desk.make("s", 101)

    page = (await desk("DescribeStream", StreamName="s", Limit=10_000))["StreamDescription"]

    assert (len(page["Shards"]), page["HasMoreShards"]) == (100, True)


async def test_messages_about_streams_are_in_the_known_form(desk):
    await desk.make("s")

    await refused(desk("DescribeStream", StreamName="x"), "ResourceNotFoundException",
                  f"Stream x under account {ACCOUNT} not found.")  # fmt: skip
    await refused(desk("CreateStream", StreamName="s", ShardCount=1), "ResourceInUseException",
                  f"Stream s under account {ACCOUNT} already exists.")  # fmt: skip
    await refused(desk.iterator(shard=9), "ResourceNotFoundException",
                  f"Shard shardId-000000000009 in stream s under account {ACCOUNT} does not exist")  # fmt: skip
    await refused(
        desk("SplitShard", StreamName="s", ShardToSplit="shardId-000000000009", NewStartingHashKey="5"),
        "ResourceNotFoundException",
        f"Could not find shard shardId-000000000009 in stream s under account {ACCOUNT}.",
    )
    await desk.reshard("SplitShard", ShardToSplit="shardId-000000000000", NewStartingHashKey=str(HASH_KEYS // 2))
    await refused(
        desk("SplitShard", StreamName="s", ShardToSplit="shardId-000000000000", NewStartingHashKey="5"),
        "InvalidArgumentException",
        f"Shard shardId-000000000000 in stream s under account {ACCOUNT} has already been merged or split, and thus is "
        "not eligible for merging or splitting.",
    )


async def test_constraints_are_told_together(desk):
    told = await refused(desk("CreateStream", StreamName="a b", ShardCount=0), "ValidationException")

    assert told.startswith("2 validation errors detected: Value 'a b' at 'streamName' failed to satisfy constraint: ")
    assert "Value '0' at 'shardCount' failed to satisfy constraint: Member must have value greater" in told
    told = await refused(desk("DescribeStreamConsumer"), "InvalidArgumentException")
    told = await refused(desk("CreateStream"), "ValidationException")
    assert told == (
        "1 validation error detected: Value null at 'streamName' failed to satisfy constraint: Member must not be null"
    )


async def test_a_stream_is_named_by_name_or_arn_or_both_that_agree(desk):
    await desk.make("s")
    arn = f"arn:aws:kinesis:us-east-1:{ACCOUNT}:stream/s"

    for names in ({"StreamName": "s"}, {"StreamARN": arn}, {"StreamName": "s", "StreamARN": arn},
                  {"StreamARN": arn.replace("aws", "aws-cn")}):  # fmt: skip
        told = (await desk("DescribeStreamSummary", **names, StreamId="abcdefghij0123456789-abc"))
        assert told["StreamDescriptionSummary"]["StreamName"] == "s"
    await refused(desk("DescribeStreamSummary", StreamName="t", StreamARN=arn), "InvalidArgumentException")
    await refused(desk("DescribeStreamSummary"), "InvalidArgumentException")
    for elsewhere in (arn.replace("us-east-1", "eu-west-1"), arn.replace(ACCOUNT, "111122223333")):
        told = await refused(desk("DescribeStreamSummary", StreamARN=elsewhere), "ResourceNotFoundException")
        assert told.startswith(f"Stream s under account {elsewhere.split(':')[4]} not found")


async def test_accounts_and_regions_have_streams_of_their_own(desk):
    others = [desk.as_caller(account, region) for account, region in (
        ("111122223333", "us-east-1"), ("", "eu-west-1"), ("111122223333", "eu-west-1")
    )]  # fmt: skip
    everyone = [desk, *others]

    for number, each in enumerate(everyone):
        await each.make("same", number + 1)
        await each.put(b"%d" % number, name="same")

    for number, each in enumerate(everyone):
        assert (await each("ListStreams"))["StreamNames"] == ["same"]
        assert len(await each.shards("same")) == number + 1
    assert [stream.name for stream in await desk.client.list_streams()].count("same") == 1
    await others[0]("DeleteStream", StreamName="same")
    await eventually(lambda: gone(others[0], "same"))
    assert (await desk("ListStreams"))["StreamNames"] == ["same"]


async def gone(desk, name="s"):
    try:
        await desk("DescribeStream", StreamName=name)
    except Refusal as refusal:
        assert refusal.name == "ResourceNotFoundException"
        return True
    return False


async def test_an_iterator_of_another_account_is_of_no_use(desk):
    other = desk.as_caller("111122223333")
    await other.make("s")
    await desk.make("s")

    await refused(desk.get(await other.iterator()), "ResourceNotFoundException")


async def test_streams_are_listed_by_name_with_both_ways_on(desk):
    names = [f"s{i}" for i in range(5)]
    for name in reversed(names):
        await desk.make(name)

    first = await desk("ListStreams", Limit=2)
    assert (first["StreamNames"], first["HasMoreStreams"]) == (names[:2], True)
    assert [each["StreamName"] for each in first["StreamSummaries"]] == names[:2]
    assert first["StreamSummaries"][0].keys() == {
        "StreamName", "StreamARN", "StreamStatus", "StreamModeDetails", "StreamCreationTimestamp"
    }  # fmt: skip
    second = await desk("ListStreams", Limit=2, NextToken=first["NextToken"])
    assert second["StreamNames"] == names[2:4]
    third = await desk("ListStreams", ExclusiveStartStreamName=second["StreamNames"][-1])
    assert (third["StreamNames"], third["HasMoreStreams"]) == (names[4:], False)
    assert "NextToken" not in third


async def test_a_page_token_of_another_listing_or_too_old_is_refused(desk):
    for name in ("a", "b"):
        await desk.make(name, 2)
    token = (await desk("ListStreams", Limit=1))["NextToken"]

    await refused(desk("ListShards", NextToken=token), "InvalidArgumentException")
    await refused(desk("ListStreams", NextToken="AAAA"), "InvalidArgumentException")
    desk.clock.ahead_ms = 301_000
    await refused(desk("ListStreams", NextToken=token), "ExpiredNextTokenException")


# -- life ------------------------------------------------------------------------------------------------------------


async def test_a_stream_that_is_gone_takes_everything_with_it(desk):
    await desk.make("s", Tags={"a": "b"})
    arn = (await desk("DescribeStreamSummary", StreamName="s"))["StreamDescriptionSummary"]["StreamARN"]
    await desk("RegisterStreamConsumer", StreamARN=arn, ConsumerName="c")
    iterator = await desk.iterator()

    await refused(desk("DeleteStream", StreamName="s"), "ResourceInUseException")
    await desk("DeleteStream", StreamName="s", EnforceConsumerDeletion=True)
    await eventually(lambda: gone(desk))
    await desk.make("s")

    assert (await desk("ListStreamConsumers", StreamARN=arn))["Consumers"] == []
    assert (await desk("ListTagsForStream", StreamName="s"))["Tags"] == []
    await refused(desk.get(iterator), "ResourceNotFoundException")


async def test_a_stream_that_is_being_made_is_there_for_descriptions_alone(desk):
    await desk.leave_pending(place(), Pending("create", desk.clock.now_ms()), created_ms=desk.clock.now_ms())
    arn = place().arn

    told = (await desk("DescribeStream", StreamName="s"))["StreamDescription"]
    assert (told["StreamStatus"], told["Shards"]) == ("CREATING", [])
    assert (await desk("ListStreams"))["StreamSummaries"][0]["StreamStatus"] == "CREATING"
    for work in (desk.put(b"x"), desk.iterator()):
        await refused(work, "ResourceNotFoundException", f"Stream s under account {ACCOUNT} not found.")
    for operation, more in CHANGES.items():
        names = {"StreamARN": arn} if operation in BY_ARN else {"StreamName": "s"}
        told = await refused(desk(operation, **names, **more), "ResourceInUseException")
        assert told == f"Stream s under account {ACCOUNT} not ACTIVE, instead in state CREATING", operation
    await refused(desk("ListShards", StreamName="s"), "ResourceInUseException")
    await refused(desk("CreateStream", StreamName="s", ShardCount=1), "ResourceInUseException")


BY_ARN = {"UpdateStreamMode", "UpdateMaxRecordSize", "UpdateStreamRecordDistributionStrategy"}
CHANGES = {
    "SplitShard": {"ShardToSplit": "shardId-000000000000", "NewStartingHashKey": "99"},
    "MergeShards": {"ShardToMerge": "shardId-000000000000", "AdjacentShardToMerge": "shardId-000000000001"},
    "UpdateShardCount": {"TargetShardCount": 2, "ScalingType": "UNIFORM_SCALING"},
    "StartStreamEncryption": {"EncryptionType": "KMS", "KeyId": "alias/aws/kinesis"},
    "StopStreamEncryption": {"EncryptionType": "KMS", "KeyId": "alias/aws/kinesis"},
    "UpdateStreamMode": {"StreamModeDetails": {"StreamMode": "ON_DEMAND"}},
    "IncreaseStreamRetentionPeriod": {"RetentionPeriodHours": 48},
    "DecreaseStreamRetentionPeriod": {"RetentionPeriodHours": 24},
    "EnableEnhancedMonitoring": {"ShardLevelMetrics": ["ALL"]},
    "UpdateMaxRecordSize": {"MaxRecordSizeInKiB": 2048},
}


@pytest.mark.parametrize("kind", ["split", "delete"])
async def test_a_stream_that_changes_takes_puts_and_reads_and_no_other_change(desk, kind):
    await desk.make("s", 2)
    pending = Pending(kind, desk.clock.now_ms(), (0,), "99")
    await desk.leave_pending(place(), pending)
    status = {"split": "UPDATING", "delete": "DELETING"}[kind]

    assert (await desk("DescribeStream", StreamName="s"))["StreamDescription"]["StreamStatus"] == status
    await desk.put(b"x", hash_key=0)
    assert await desk.values() == [b"x"]
    for operation, more in CHANGES.items():
        names = {"StreamARN": place().arn} if operation in BY_ARN else {"StreamName": "s"}
        told = await refused(desk(operation, **names, **more), "ResourceInUseException")
        assert told == f"Stream s under account {ACCOUNT} not ACTIVE, instead in state {status}", operation
    if kind == "delete":
        await refused(desk("ListShards", StreamName="s"), "ResourceInUseException")
        await refused(desk("DeleteStream", StreamName="s"), "ResourceInUseException")
    else:
        assert len(await desk.shards()) == 2
        await desk("DeleteStream", StreamName="s")
        await eventually(lambda: gone(desk))


async def test_streams_of_the_library_are_seen_and_the_other_way_round(desk):
    await desk.client.create_stream("theirs", shards=2)
    await desk.make("ours", 3)

    assert (await desk("ListStreams"))["StreamNames"] == ["ours", "theirs"]
    assert len(await desk.shards("theirs")) == 2
    assert len((await desk.client.describe_stream("ours")).shards) == 3
    await refused(desk("CreateStream", StreamName="theirs", ShardCount=1), "ResourceInUseException",
                  f"Stream theirs under account {ACCOUNT} already exists.")  # fmt: skip
    await desk.put(b"x", name="theirs", hash_key=0)
    assert await desk.values(name="theirs") == [b"x"]


async def test_what_the_library_deletes_is_gone_with_its_tags_and_consumers(desk):
    await desk.make("s", Tags={"a": "b"})
    await desk("RegisterStreamConsumer", StreamARN=place().arn, ConsumerName="c")
    iterator = await desk.iterator()

    await desk.client.delete_stream("s")

    await refused(desk.get(iterator), "ResourceNotFoundException")
    await refused(desk.iterator(), "ResourceNotFoundException")
    await refused(desk.put(b"x"), "ResourceNotFoundException")
    await refused(desk("DescribeStream", StreamName="s"), "ResourceNotFoundException")
    assert (await desk("ListStreams"))["StreamNames"] == []
    await desk.make("s")
    assert (await desk("ListTagsForStream", StreamName="s"))["Tags"] == []
    assert (await desk("ListStreamConsumers", StreamARN=place().arn))["Consumers"] == []


async def test_names_that_the_library_keeps_to_itself_can_be_used(desk):
    for name in ("__x", "kinesis.a", "a" * 128, "kinesis.us-east-1.111122223333.b"):
        await desk.make(name)
        await desk.put(name.encode(), name=name)
        assert await desk.values(name=name) == [name.encode()]
    other = desk.as_caller("111122223333")
    await other.make("b")
    assert await other.values(name="b") == []
    assert (await other("ListStreams"))["StreamNames"] == ["b"]
    assert len((await desk("ListStreams"))["StreamNames"]) == 4


async def test_a_region_may_be_empty_or_any_text(desk):
    for region in ("", "x" * 64, "a_B-9"):
        other = desk.as_caller("111122223333", region)
        await other.make("n" * 128)
        assert len(await other.iterator(name="n" * 128)) <= 512


# -- work that was left ----------------------------------------------------------------------------------------------


async def test_a_stream_that_a_dead_gateway_began_is_made_by_the_next(desk):
    now_ms = desk.clock.now_ms()
    await desk.leave_pending(place(), Pending("create", now_ms - 16_000), shards=3, created_ms=now_ms)

    told = await desk.until_active()

    assert len(told["Shards"]) == 3
    assert await settled(desk)


async def settled(desk):
    async def look():
        value, _ = await desk.client.read_note(place().key)
        return value is None or b"pending" not in value

    return await eventually(look)


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize(("kind", "shards", "at", "left"), [
    ("split", (0,), str(HASH_KEYS // 4), 3), ("merge", (0, 1), "", 1), ("scale", (4,), "", 4), ("delete", (), "", 0),
    ("settle", (), "", 2),
])  # fmt: skip
async def test_a_change_that_a_dead_gateway_left_is_finished(desk, kind, shards, at, left, done):
    await desk.make("s", 2)
    if done:                                               # it died after the deed
        work = {"split": lambda: desk.client.split_shard("s", 0, int(at)),
                "merge": lambda: desk.client.merge_shards("s", 0, 1), "scale": lambda: desk.client.scale_stream("s", 4),
                "delete": lambda: desk.client.delete_stream("s"), "settle": lambda: asyncio.sleep(0)}[kind]
        await work()
    await desk.leave_pending(place(), Pending(kind, desk.clock.now_ms() - 16_000, shards, at))

    if kind == "delete":
        await eventually(lambda: gone(desk))
    else:
        await desk.until_active()
        assert len(await desk.shards(ShardFilter={"Type": "AT_LATEST"})) == left
    assert await settled(desk)


async def test_of_two_gateways_one_makes_the_stream(node):
    async with desk_at(node) as one, desk_at(node) as two:
        for number in range(10):
            name = f"s{number}"
            outcomes = await asyncio.gather(
                one("CreateStream", StreamName=name, ShardCount=1), two("CreateStream", StreamName=name, ShardCount=2),
                return_exceptions=True,
            )
            assert sorted(isinstance(each, Refusal) for each in outcomes) == [False, True]
            assert {each.name for each in outcomes if each} == {"ResourceInUseException"}
            await one.until_active(name)
            assert len(await two.shards(name)) == (2 if outcomes[0] else 1)


async def test_what_one_gateway_has_just_made_the_other_serves_at_once(node):
    # A reader takes a shard that is not found for one that is finished, so no gateway may be behind.
    async with desk_at(node) as one, desk_at(node) as two:
        await one.make("s")
        assert await two.values() == []
        iterator = await two.iterator("LATEST")
        await one.reshard("SplitShard", ShardToSplit="shardId-000000000000", NewStartingHashKey=str(HASH_KEYS // 2))

        assert await two.values(shard=1) == []
        await one.put(b"x", hash_key=0)
        assert await two.values(shard=1) == [b"x"]
        child = await one.iterator(shard=2)
        assert (await two.get(child))["Records"] == []
        assert "ChildShards" in await two.get(iterator) or "ChildShards" in await two.get(iterator)
        await one("DeleteStream", StreamName="s")
        await eventually(lambda: gone(one))
        await one.make("s", 3)
        assert await two.values(shard=2) == []
        assert (await two.get(await one.iterator(shard=1)))["Records"] == []
        await two.put(b"y", hash_key=HASH_KEYS - 1)


async def test_a_job_that_waited_does_nothing_once_another_has_finished_it(node, monkeypatch):
    from streamkit.errors import StreamBusy

    async with desk_at(node) as slow, desk_at(node) as quick:
        await quick.make("s")
        calls = []

        async def delete_stream(name):
            calls.append(name)
            if len(calls) == 1:
                # Meanwhile another gateway takes the job over, and somebody makes the stream again.
                await quick.client.delete_stream(name)
                await quick.client.swap_notes([(place().key, (await quick.client.read_note(place().key))[1], None)])
                await quick.make("s", 4)
                raise StreamBusy("busy", stream=name, status="busy")

        monkeypatch.setattr(slow.client, "delete_stream", delete_stream)
        await slow("DeleteStream", StreamName="s")
        await eventually(lambda: idle(slow))
        assert len(calls) == 1
        assert len(await quick.shards()) == 4


async def idle(desk):
    return not desk.kinesis._directory._jobs
