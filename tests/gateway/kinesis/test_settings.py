"""What can be set on a stream, a consumer and an account, and what is refused."""

import pytest

from tests.gateway.kinesis.desk import ACCOUNT, HASH_KEYS, desk_at, place
from tests.gateway.kinesis.test_streams import refused

ARN = place().arn


async def summary(desk):
    return (await desk("DescribeStreamSummary", StreamName="s"))["StreamDescriptionSummary"]


# -- retention -------------------------------------------------------------------------------------------------------


async def test_retention_goes_up_and_down_within_a_year(desk):
    await desk.make("s")

    up, down = "Increase", "Decrease"
    for operation, hours in ((up, 48), (up, 48), (up, 8_760), (down, 8_760), (down, 24)):
        await desk(f"{operation}StreamRetentionPeriod", StreamName="s", RetentionPeriodHours=hours)
        assert (await summary(desk))["RetentionPeriodHours"] == hours
        assert (await desk.client.describe_stream("s")).config.retention_hours == hours
    await desk("IncreaseStreamRetentionPeriod", StreamName="s", RetentionPeriodHours=48)
    for operation, hours in ((up, 47), (down, 49), (up, 8_761), (down, 23), (down, -1)):
        await refused(
            desk(f"{operation}StreamRetentionPeriod", StreamName="s", RetentionPeriodHours=hours),
            "InvalidArgumentException",
        )
    assert (await summary(desk))["RetentionPeriodHours"] == 48


# -- tags ------------------------------------------------------------------------------------------------------------


async def test_both_families_of_tag_calls_see_the_same_tags(desk):
    await desk.make("s", Tags={"a": "1"})

    await desk("AddTagsToStream", StreamName="s", Tags={"b": "2", "c": ""})
    await desk("TagResource", ResourceARN=ARN, Tags={"a": "9", "d é:/=+-@._": "4"})
    await desk("RemoveTagsFromStream", StreamName="s", TagKeys=["b", "unknown"])
    await desk("UntagResource", ResourceARN=ARN, TagKeys=["c"])

    left = [{"Key": "a", "Value": "9"}, {"Key": "d é:/=+-@._", "Value": "4"}]
    assert (await desk("ListTagsForStream", StreamName="s")) == {"Tags": left, "HasMoreTags": False}
    assert (await desk("ListTagsForResource", ResourceARN=ARN)) == {"Tags": left}


async def test_tags_are_listed_a_page_at_a_time(desk):
    await desk.make("s")
    await desk("AddTagsToStream", StreamName="s", Tags={f"k{i}": "v" for i in range(5)})

    page = await desk("ListTagsForStream", StreamName="s", Limit=2)
    assert ([each["Key"] for each in page["Tags"]], page["HasMoreTags"]) == (["k0", "k1"], True)
    page = await desk("ListTagsForStream", StreamName="s", ExclusiveStartTagKey="k1")
    assert ([each["Key"] for each in page["Tags"]], page["HasMoreTags"]) == (["k2", "k3", "k4"], False)


@pytest.mark.parametrize(("tags", "name"), [
    ({"aws:x": "1"}, "InvalidArgumentException"), ({"AWS:x": "1"}, "InvalidArgumentException"),
    ({"a%": "1"}, "InvalidArgumentException"), ({"a": "#"}, "InvalidArgumentException"),
    ({f"k{i}": "" for i in range(51)}, "InvalidArgumentException"), ({"k" * 129: ""}, "ValidationException"),
    ({"k": "v" * 257}, "ValidationException"), ({}, "ValidationException"),
])  # fmt: skip
async def test_tags_that_are_not_allowed(desk, tags, name):
    await desk.make("s")
    await desk("RegisterStreamConsumer", StreamARN=ARN, ConsumerName="c")
    consumer = (await desk("ListStreamConsumers", StreamARN=ARN))["Consumers"][0]["ConsumerARN"]

    await refused(desk("AddTagsToStream", StreamName="s", Tags=tags), name)
    for arn in (ARN, consumer):
        await refused(desk("TagResource", ResourceARN=arn, Tags=tags), name)
    if tags:
        await refused(desk("CreateStream", StreamName="t", Tags=tags), name)
        await refused(desk("RegisterStreamConsumer", StreamARN=ARN, ConsumerName="d", Tags=tags), name)


async def test_fifty_tags_are_the_most_in_all(desk):
    await desk.make("s", Tags={f"k{i}": "" for i in range(49)})
    await desk("AddTagsToStream", StreamName="s", Tags={"x": "1"})
    await refused(desk("AddTagsToStream", StreamName="s", Tags={"y": "1"}), "InvalidArgumentException")
    await desk("AddTagsToStream", StreamName="s", Tags={"x": "2"})


# -- the rest of a stream --------------------------------------------------------------------------------------------


async def test_encryption_is_told(desk):
    await desk.make("s")
    await desk("StartStreamEncryption", StreamName="s", EncryptionType="KMS", KeyId="alias/aws/kinesis")
    told = await summary(desk)
    assert (told["EncryptionType"], told["KeyId"]) == ("KMS", "alias/aws/kinesis")
    await desk("StopStreamEncryption", StreamName="s", EncryptionType="KMS", KeyId="alias/aws/kinesis")
    told = await summary(desk)
    assert told["EncryptionType"] == "NONE" and "KeyId" not in told


async def test_monitoring_tells_before_and_after(desk):
    await desk.make("s")

    told = await desk("EnableEnhancedMonitoring", StreamName="s", ShardLevelMetrics=["IncomingBytes"])
    assert told == {
        "StreamName": "s", "StreamARN": ARN, "CurrentShardLevelMetrics": [],
        "DesiredShardLevelMetrics": ["IncomingBytes"],
    }  # fmt: skip
    told = await desk("EnableEnhancedMonitoring", StreamName="s", ShardLevelMetrics=["ALL"])
    assert (told["CurrentShardLevelMetrics"], len(told["DesiredShardLevelMetrics"])) == (["IncomingBytes"], 7)
    told = await desk("DisableEnhancedMonitoring", StreamName="s", ShardLevelMetrics=["OutgoingBytes"])
    assert len(told["DesiredShardLevelMetrics"]) == 6
    assert len((await summary(desk))["EnhancedMonitoring"][0]["ShardLevelMetrics"]) == 6
    await desk("DisableEnhancedMonitoring", StreamName="s", ShardLevelMetrics=["ALL"])
    assert (await summary(desk))["EnhancedMonitoring"] == [{"ShardLevelMetrics": []}]


async def test_an_on_demand_stream_has_four_shards_that_nobody_counts(desk):
    await desk("CreateStream", StreamName="s", StreamModeDetails={"StreamMode": "ON_DEMAND"}, ShardCount=9)
    await desk.until_active()
    assert len(await desk.shards()) == 4
    half = str(HASH_KEYS // 8)
    for operation, more in (
        ("SplitShard", {"ShardToSplit": "shardId-000000000000", "NewStartingHashKey": half}),
        ("MergeShards", {"ShardToMerge": "shardId-000000000000", "AdjacentShardToMerge": "shardId-000000000001"}),
        ("UpdateShardCount", {"TargetShardCount": 2, "ScalingType": "UNIFORM_SCALING"}),
    ):
        await refused(desk(operation, StreamName="s", **more), "ValidationException")
    assert (await desk("DescribeLimits"))["OnDemandStreamCount"] == 1
    await desk("UpdateStreamMode", StreamARN=ARN, StreamModeDetails={"StreamMode": "PROVISIONED"})
    assert (await summary(desk))["StreamModeDetails"] == {"StreamMode": "PROVISIONED"}
    assert len(await desk.shards()) == 4
    await desk.reshard("UpdateShardCount", TargetShardCount=2, ScalingType="UNIFORM_SCALING")


async def test_what_is_for_on_demand_streams_alone(desk):
    await desk.make("s")
    for operation, more in (
        ("UpdateStreamWarmThroughput", {"WarmThroughputMiBps": 5}),
        ("UpdateStreamRecordDistributionStrategy", {"RecordDistributionStrategy": "AUTO"}),
    ):
        await refused(desk(operation, StreamARN=ARN, **more), "ValidationException")
    for more in ({"WarmThroughputMiBps": 5}, {"RecordDistributionStrategy": "AUTO"}):
        await refused(desk("CreateStream", StreamName="t", ShardCount=1, **more), "ValidationException")
    await desk("UpdateStreamMode", StreamARN=ARN, StreamModeDetails={"StreamMode": "ON_DEMAND"}, WarmThroughputMiBps=7)
    assert (await summary(desk))["WarmThroughput"] == {"TargetMiBps": 7, "CurrentMiBps": 7}
    told = await desk("UpdateStreamWarmThroughput", StreamName="s", WarmThroughputMiBps=5)
    assert told == {"StreamARN": ARN, "StreamName": "s", "WarmThroughput": {"TargetMiBps": 5, "CurrentMiBps": 5}}
    await desk("UpdateStreamRecordDistributionStrategy", StreamARN=ARN, RecordDistributionStrategy="AUTO")
    assert (await summary(desk))["RecordDistributionStrategy"] == "AUTO"


async def test_the_largest_record_is_told(desk):
    await desk.make("s")
    await desk("UpdateMaxRecordSize", StreamARN=ARN, MaxRecordSizeInKiB=4096)
    assert (await summary(desk))["MaxRecordSizeInKiB"] == 4096
    for kib in (1023, 10241):
        await refused(desk("UpdateMaxRecordSize", StreamARN=ARN, MaxRecordSizeInKiB=kib), "ValidationException")


async def test_policies_are_kept_for_streams_and_consumers(desk):
    await desk.make("s")
    await desk("RegisterStreamConsumer", StreamARN=ARN, ConsumerName="c")
    consumer = (await desk("ListStreamConsumers", StreamARN=ARN))["Consumers"][0]["ConsumerARN"]
    policy = '{"Version": "2012-10-17", "Statement": []}'

    for arn in (ARN, consumer):
        await refused(desk("GetResourcePolicy", ResourceARN=arn), "ResourceNotFoundException")
        await desk("PutResourcePolicy", ResourceARN=arn, Policy=policy)
        assert (await desk("GetResourcePolicy", ResourceARN=arn))["Policy"] == policy
        await desk("DeleteResourcePolicy", ResourceARN=arn)
        await refused(desk("GetResourcePolicy", ResourceARN=arn), "ResourceNotFoundException")
        await refused(desk("DeleteResourcePolicy", ResourceARN=arn), "ResourceNotFoundException")
        await refused(desk("PutResourcePolicy", ResourceARN=arn, Policy="no"), "InvalidArgumentException")
    await refused(desk("PutResourcePolicy", ResourceARN=place("x").arn, Policy=policy), "ResourceNotFoundException")
    queue = ARN.replace("stream/s", "queue/q")
    await refused(desk("GetResourcePolicy", ResourceARN=queue), "ResourceNotFoundException")


async def test_limits_and_the_account(desk):
    await desk.make("s", 3)
    told = await desk("DescribeLimits")
    assert (told["OpenShardCount"], told["ShardLimit"], told["OnDemandStreamCount"]) == (3, 1_000_000, 0)
    assert told["OnDemandStreamCountLimit"] == 1_000_000

    told = await desk("DescribeAccountSettings")
    assert told == {"MinimumThroughputBillingCommitment": {"Status": "DISABLED"}}
    for _ in range(2):
        told = await desk("UpdateAccountSettings", MinimumThroughputBillingCommitment={"Status": "ENABLED"})
        assert told["MinimumThroughputBillingCommitment"]["Status"] == "ENABLED"
    other = desk.as_caller("111122223333")
    assert (await other("DescribeAccountSettings"))["MinimumThroughputBillingCommitment"]["Status"] == "DISABLED"


# -- consumers -------------------------------------------------------------------------------------------------------


async def test_a_consumer_is_registered_described_and_removed(desk):
    await desk.make("s")
    made = (await desk("RegisterStreamConsumer", StreamARN=ARN, ConsumerName="c", Tags={"a": "b"}))["Consumer"]
    assert made["ConsumerStatus"] == "CREATING"
    assert made["ConsumerARN"] == f"{ARN}/consumer/c:{int(made['ConsumerCreationTimestamp'])}"

    for names in ({"ConsumerARN": made["ConsumerARN"]}, {"StreamARN": ARN, "ConsumerName": "c"},
                  {"ConsumerARN": made["ConsumerARN"], "StreamARN": ARN, "ConsumerName": "c"}):  # fmt: skip
        told = (await desk("DescribeStreamConsumer", **names))["ConsumerDescription"]
        assert told == made | {"ConsumerStatus": "ACTIVE", "StreamARN": ARN}
    assert (await summary(desk))["ConsumerCount"] == 1
    assert (await desk("ListTagsForResource", ResourceARN=made["ConsumerARN"]))["Tags"] == [{"Key": "a", "Value": "b"}]
    await refused(desk("RegisterStreamConsumer", StreamARN=ARN, ConsumerName="c"), "ResourceInUseException")
    for names in ({"ConsumerName": "c"}, {"StreamARN": ARN},
                  {"ConsumerARN": made["ConsumerARN"], "ConsumerName": "d"},
                  {"ConsumerARN": made["ConsumerARN"], "StreamARN": ARN + "2"}):  # fmt: skip
        await refused(desk("DescribeStreamConsumer", **names), "InvalidArgumentException")
    await refused(desk("DescribeStreamConsumer", ConsumerARN=f"{ARN}/consumer/c:1"), "ResourceNotFoundException")
    await desk("DeregisterStreamConsumer", ConsumerARN=made["ConsumerARN"])
    for operation in ("DescribeStreamConsumer", "DeregisterStreamConsumer"):
        await refused(desk(operation, ConsumerARN=made["ConsumerARN"]), "ResourceNotFoundException")


async def test_consumers_are_listed_a_page_at_a_time(desk):
    await desk.make("s")
    await desk.make("t")
    for name in "edcba":
        await desk("RegisterStreamConsumer", StreamARN=ARN, ConsumerName=name)

    first = await desk("ListStreamConsumers", StreamARN=ARN, MaxResults=3)
    second = await desk("ListStreamConsumers", StreamARN=ARN, NextToken=first["NextToken"])
    assert [[each["ConsumerName"] for each in page["Consumers"]] for page in (first, second)] == [[*"abc"], [*"de"]]
    assert "NextToken" not in second
    await refused(desk("ListStreamConsumers", StreamARN=place("t").arn, NextToken=first["NextToken"]),
                  "InvalidArgumentException")  # fmt: skip
    await refused(desk("ListStreamConsumers", NextToken=first["NextToken"]), "ValidationException")


async def test_consumers_of_the_librarys_streams_go_with_them(desk):
    await desk.client.create_stream("s")
    await desk("RegisterStreamConsumer", StreamARN=ARN, ConsumerName="c")
    await desk.client.delete_stream("s")
    await refused(desk("ListStreamConsumers", StreamARN=ARN), "ResourceNotFoundException")
    await desk.client.create_stream("s")
    assert (await desk("ListStreamConsumers", StreamARN=ARN))["Consumers"] == []


async def test_a_stream_has_so_many_consumers_and_no_more(node):
    async with desk_at(node, consumers_max=2) as desk:
        await desk.make("s")
        for name in "ab":
            await desk("RegisterStreamConsumer", StreamARN=ARN, ConsumerName=name)
        told = await refused(desk("RegisterStreamConsumer", StreamARN=ARN, ConsumerName="c"), "LimitExceededException")
        assert ACCOUNT in told
