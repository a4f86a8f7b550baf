"""PutRecord and PutRecords: results, refusals, throttles, and a reshard in the middle of it."""

import asyncio
import base64
import hashlib

import pytest

from streamkit.errors import StoreUnavailable
from streamkit.gateway.kinesis.config import LIMITS_TAG
from streamkit.model.sequence import parse_sequence_number, sequence_number
from tests.gateway.kinesis.desk import ACCOUNT, HASH_KEYS, Refusal, desk_at, node_in, place
from tests.gateway.kinesis.test_streams import refused

MIB = 1 << 20


def entry(data=b"x", key="k", hash_key=None):
    told = {"Data": data, "PartitionKey": key}
    return told if hash_key is None else told | {"ExplicitHashKey": str(hash_key)}


@pytest.fixture
def cbor(desk):
    return desk.as_caller(cbor=True)


def holder(shards, hash_key):
    """The id of the open shard that holds a hash key."""
    found = [
        each["ShardId"] for each in shards
        if int(each["HashKeyRange"]["StartingHashKey"]) <= hash_key <= int(each["HashKeyRange"]["EndingHashKey"])
    ]
    assert len(found) == 1
    return found[0]


async def test_results_are_as_many_as_entries_and_in_their_order(desk, cbor):
    await desk.make("s", 5)
    shards = await desk.shards()
    keys = [f"key-{i}é" for i in range(300)]

    told = await cbor("PutRecords", StreamName="s", Records=[entry(key.encode(), key) for key in keys])

    assert told["FailedRecordCount"] == 0
    by_number = {}
    for key, result in zip(keys, told["Records"], strict=True):
        assert result["ShardId"] == holder(shards, int.from_bytes(hashlib.md5(key.encode()).digest()))
        by_number[result["SequenceNumber"]] = key.encode()
    assert len(by_number) == 300
    for shard in range(5):
        for record in (await cbor.get(await desk.iterator(shard=shard)))["Records"]:
            assert by_number.pop(record["SequenceNumber"]) == record["Data"] == record["PartitionKey"].encode()
    assert not by_number


async def test_an_explicit_hash_key_goes_before_the_key(desk, cbor):
    await desk.make("s", 3)
    shards = await desk.shards()
    edges = [0, HASH_KEYS // 3 - 1, HASH_KEYS // 3, 2 * (HASH_KEYS // 3), HASH_KEYS - 1]

    told = await cbor("PutRecords", StreamName="s", Records=[entry(hash_key=each) for each in edges])

    assert [each["ShardId"][-1] for each in told["Records"]] == ["0", "0", "1", "2", "2"]
    one = await cbor("PutRecord", StreamName="s", **entry(hash_key=HASH_KEYS - 1))
    assert one["ShardId"] == holder(shards, HASH_KEYS - 1)
    put = {"StreamName": "s", "Data": "eA==", "PartitionKey": "k"}
    told = await refused(desk("PutRecord", **put, ExplicitHashKey=str(HASH_KEYS)), "InvalidArgumentException")
    assert str(HASH_KEYS) in told
    await refused(desk("PutRecord", **put, ExplicitHashKey="-1"), "ValidationException")
    await refused(cbor("PutRecords", StreamName="s", Records=[entry(), entry(hash_key=HASH_KEYS)]),
                  "InvalidArgumentException")  # fmt: skip


async def test_numbers_grow_and_tell_the_shard(desk):
    await desk.make("s", 2)
    start = (await desk.shards())[1]["SequenceNumberRange"]["StartingSequenceNumber"]

    numbers = [start]
    for count in (20, 1):
        numbers += await desk.put(*[b"x"] * count, hash_key=HASH_KEYS - 1)

    assert all(len(each) == 56 for each in numbers)
    assert numbers == sorted(set(numbers))
    assert {parse_sequence_number(each).ordinal for each in numbers} == {1}


async def test_numbers_go_on_after_a_restart(tmp_path):
    numbers = []
    for _ in range(3):
        async with node_in(tmp_path / "data", lasting=True) as node, desk_at(node) as desk:
            if not numbers:
                await desk.make("s")
            numbers += await desk.put(b"a", b"b")
    assert numbers == sorted(set(numbers), key=int)
    async with node_in(tmp_path / "data", lasting=True) as node, desk_at(node) as desk:
        assert await desk.values() == [b"a", b"b"] * 3
        assert await desk.values("AFTER_SEQUENCE_NUMBER", StartingSequenceNumber=numbers[3]) == [b"a", b"b"]


async def test_json_and_cbor_say_the_same(desk, cbor):
    await desk.make("s")
    data = bytes(range(256))

    await desk("PutRecord", StreamName="s", Data=base64.b64encode(data).decode(), PartitionKey="j")
    await cbor("PutRecord", StreamName="s", **entry(data, "c"))

    text = (await desk("GetRecords", ShardIterator=await desk.iterator()))["Records"]
    plain = (await cbor("GetRecords", ShardIterator=await cbor.iterator()))["Records"]
    assert [each["PartitionKey"] for each in text] == ["j", "c"]
    for told, binary in zip(text, plain, strict=True):
        assert base64.b64decode(told["Data"]) == binary["Data"] == data
        assert round(told["ApproximateArrivalTimestamp"] * 1000) == binary["ApproximateArrivalTimestamp"]
        assert isinstance(binary["ApproximateArrivalTimestamp"], int)
        assert abs(binary["ApproximateArrivalTimestamp"] - desk.clock.now_ms()) < 60_000


# -- what is refused as a whole --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("entries", "name"), [
    ([], "ValidationException"),
    ([entry()] * 501, "ValidationException"),
    ([entry(), entry(key="")], "ValidationException"),
    ([entry(), entry(key="k" * 257)], "ValidationException"),
    ([entry(), {"Data": b"x"}], "ValidationException"),
    ([entry(), {"PartitionKey": "k"}], "ValidationException"),
    ([entry(), entry(hash_key="01")], "ValidationException"),
    ([entry(), entry(b"x" * (MIB + 1))], "ValidationException"),
    ([entry(), entry(b"x" * MIB)], "ValidationException"),
    ([entry(b"x" * 10 * MIB + b"x")], "ValidationException"),
    ([entry(b"x" * (MIB - 1))] * 11, "InvalidArgumentException"),
    ([entry(), entry(1)], "SerializationException"),
    ([entry(), entry(key=1)], "SerializationException"),
    ([entry(), 1], "SerializationException"),
    ("x", "SerializationException"),
])  # fmt: skip
async def test_one_wrong_entry_refuses_them_all(desk, cbor, entries, name):
    await desk.make("s")

    await refused(cbor("PutRecords", StreamName="s", Records=entries), name)

    assert await desk.values() == []


async def test_violations_are_told_with_their_path(desk):
    await desk.make("s")

    told = await refused(
        desk("PutRecords", StreamName="s", Records=[{"Data": "eA==", "PartitionKey": "k"}, {"Data": "eA=="}]),
        "ValidationException",
    )
    assert told == (
        "1 validation error detected: Value null at 'records.2.member.partitionKey' failed to satisfy constraint: "
        "Member must not be null"
    )


@pytest.mark.parametrize("size", [MIB - 1, 1])
async def test_a_record_of_the_largest_size_passes(desk, cbor, size):
    await desk.make("s")
    key = "k" * min(256, MIB - size)

    await cbor("PutRecord", StreamName="s", Data=b"x" * (MIB - len(key)), PartitionKey=key)
    told = await refused(
        cbor("PutRecord", StreamName="s", Data=b"x" * (MIB - len(key) + 1), PartitionKey=key), "ValidationException"
    )
    assert f"stream s under account {ACCOUNT}" in told


async def test_a_stream_takes_larger_records_once_it_is_told_to(desk, cbor):
    await desk.make("s")
    large = b"x" * (10 * MIB - 1)
    await refused(cbor("PutRecord", StreamName="s", Data=large, PartitionKey="k"), "ValidationException")

    await desk("UpdateMaxRecordSize", StreamARN=place().arn, MaxRecordSizeInKiB=10240)
    await cbor("PutRecord", StreamName="s", Data=large, PartitionKey="k")

    assert await desk.values() == [large]


async def test_a_stream_of_the_library_keeps_its_smaller_bound(desk, cbor):
    await desk.client.create_stream("s", record_bytes_max=4096)

    await cbor("PutRecord", StreamName="s", Data=b"x" * 4095, PartitionKey="k")
    await refused(cbor("PutRecord", StreamName="s", Data=b"x" * 4096, PartitionKey="k"), "ValidationException")


async def test_an_empty_record_is_one(desk, cbor):
    await desk.make("s")
    await cbor("PutRecord", StreamName="s", Data=b"", PartitionKey="k")
    assert await desk.values() == [b""]


async def test_an_order_that_cannot_be_kept_is_refused(desk):
    await desk.make("s")
    (number,) = await desk.put(b"x")
    put = {"StreamName": "s", "Data": "eA==", "PartitionKey": "k"}

    told = await desk("PutRecord", **put, SequenceNumberForOrdering=number)
    assert int(told["SequenceNumber"]) > int(number)
    other = sequence_number(7, ordinal=3, created_ms=0, arrived_ms=desk.clock.now_ms())
    await desk("PutRecord", **put, SequenceNumberForOrdering=other)
    await refused(desk("PutRecord", **put, SequenceNumberForOrdering="12"), "InvalidArgumentException")
    ahead = sequence_number(7, ordinal=0, created_ms=0, arrived_ms=desk.clock.now_ms() + 60_000)
    await refused(desk("PutRecord", **put, SequenceNumberForOrdering=ahead), "InvalidArgumentException")
    await refused(desk("PutRecord", **put, SequenceNumberForOrdering="x"), "ValidationException")


async def test_a_dry_run_checks_and_does_nothing(desk):
    await desk.make("s")
    put = {"StreamName": "s", "DryRun": True}
    record = {"Data": "eA==", "PartitionKey": "k"}

    await refused(desk("PutRecord", **put, **record), "DryRunOperationException")
    await refused(desk("PutRecords", **put, Records=[record]), "DryRunOperationException")
    await refused(desk("PutRecords", **put, Records=[]), "ValidationException")
    await refused(desk("PutRecord", StreamName="x", DryRun=True, **record), "ResourceNotFoundException")
    iterator = await desk.iterator()
    await refused(desk("GetRecords", ShardIterator=iterator, DryRun=True), "DryRunOperationException")
    assert await desk.values() == []


# -- throttles -------------------------------------------------------------------------------------------------------


async def test_a_tag_switches_the_limits_on_for_one_stream(desk, cbor):
    await desk.make("s", 2, Tags={LIMITS_TAG: "aws"})
    for _ in range(2):
        await desk.put(*[b"x"] * 500, hash_key=0)

    both = [entry(b"%d" % i, hash_key=0 if i % 2 else HASH_KEYS - 1) for i in range(400)]
    told = await cbor("PutRecords", StreamName="s", Records=both)

    assert told["FailedRecordCount"] == 200
    for number, result in enumerate(told["Records"]):
        if number % 2:
            assert result == {
                "ErrorCode": "ProvisionedThroughputExceededException",
                "ErrorMessage": f"Rate exceeded for shard shardId-000000000000 in stream s under account {ACCOUNT}.",
            }
        else:
            assert result.keys() == {"SequenceNumber", "ShardId"}
    assert len(await desk.values(shard=1)) == 200
    for _ in range(5):
        await desk.put(b"x", hash_key=HASH_KEYS - 1)
    desk.clock.ahead_ms += 1_000
    await desk.put(b"x", hash_key=0)


async def test_large_records_use_up_the_burst(desk, cbor):
    await desk.make("s", 1, Tags={LIMITS_TAG: "aws"}, MaxRecordSizeInKiB=10240)
    await cbor("PutRecord", StreamName="s", **entry(b"x" * (10 * MIB - 1)))

    told = await refused(cbor("PutRecord", StreamName="s", **entry(b"x" * MIB * 2)),
                         "ProvisionedThroughputExceededException")  # fmt: skip
    assert told == f"Rate exceeded for shard shardId-000000000000 in stream s under account {ACCOUNT}."


async def test_a_share_of_puts_can_be_made_to_fail(node):
    async with desk_at(node, put_throttle=1.0) as desk:
        await desk.make("s")
        await refused(
            desk("PutRecord", StreamName="s", Data="eA==", PartitionKey="k"), "ProvisionedThroughputExceededException"
        )
        told = await desk("PutRecords", StreamName="s", Records=[{"Data": "eA==", "PartitionKey": "k"}] * 3)
        assert told["FailedRecordCount"] == 3
        assert {each["ErrorCode"] for each in told["Records"]} == {"ProvisionedThroughputExceededException"}
        assert await desk.values() == []


# -- a map that changes ----------------------------------------------------------------------------------------------


async def everything(desk):
    """Every record of the stream by shard, parents before children."""
    return {
        each["ShardId"]: (await read_all(desk, int(each["ShardId"][-12:]))) for each in await desk.shards()
    }


async def read_all(desk, shard):
    found, iterator = [], await desk.iterator(shard=shard)
    while iterator:
        part = await desk.get(iterator)
        found += [(each["PartitionKey"], int(each["Data"]), int(each["SequenceNumber"])) for each in part["Records"]]
        if not part["Records"] and not part["MillisBehindLatest"] and "NextShardIterator" in part:
            break
        iterator = part.get("NextShardIterator")
    return found


async def test_puts_go_on_through_splits_and_merges(node):
    async with desk_at(node) as desk, desk_at(node) as other:
        await desk.make("s", 2)
        keys, sent, over = [f"key-{i}" for i in range(20)], {}, False

        async def put(through, mine):
            number = 0
            while not over or number < 5:
                records = [entry(b"%d" % (number * 3 + i), key) for i in range(3) for key in mine]
                told = await through.as_caller(cbor=True)("PutRecords", StreamName="s", Records=records)
                assert told["FailedRecordCount"] == 0, told
                for record, result in zip(records, told["Records"], strict=True):
                    sent.setdefault(record["PartitionKey"], []).append((int(record["Data"]), result))
                number += 1
                await asyncio.sleep(0)

        async def reshard():
            nonlocal over
            try:
                quarter = str(HASH_KEYS // 4)
                await desk.reshard("SplitShard", ShardToSplit="shardId-000000000000", NewStartingHashKey=quarter)
                await desk.reshard("UpdateShardCount", TargetShardCount=5, ScalingType="UNIFORM_SCALING")
                ordered = sorted(
                    await desk.shards(ShardFilter={"Type": "AT_LATEST"}),
                    key=lambda each: int(each["HashKeyRange"]["StartingHashKey"]),
                )
                low, high = (each["ShardId"] for each in ordered[1:3])
                await other.reshard("MergeShards", ShardToMerge=low, AdjacentShardToMerge=high)
            finally:
                over = True

        await asyncio.gather(put(desk, keys[:10]), put(other, keys[10:]), reshard())

        stored = await everything(desk)
        where = {number: shard for shard, records in stored.items() for _, _, number in records}
        by_number = sorted((number, key, value) for records in stored.values() for key, value, number in records)
        for key in keys:
            assert [value for _, k, value in by_number if k == key] == [value for value, _ in sent[key]]
            for _, result in sent[key]:
                assert where[int(result["SequenceNumber"])] == result["ShardId"]
        await check_lineage(desk, stored)


async def check_lineage(desk, stored):
    """A parent's numbers end before its end number, and that is before every number of its children."""
    shards = {each["ShardId"]: each for each in await desk.shards()}
    for each in shards.values():
        numbers = each["SequenceNumberRange"]
        mine = [number for _, _, number in stored[each["ShardId"]]]
        assert mine == sorted(mine)
        assert all(number > int(numbers["StartingSequenceNumber"]) for number in mine)
        for name in ("ParentShardId", "AdjacentParentShardId"):
            if name in each:
                end = int(shards[each[name]]["SequenceNumberRange"]["EndingSequenceNumber"])
                assert end < int(numbers["StartingSequenceNumber"])
                assert all(number < end for _, _, number in stored[each[name]])


# -- settings that puts see ------------------------------------------------------------------------------------------


async def test_an_encrypted_stream_says_so_with_each_record(desk, cbor):
    await desk.make("s")
    await desk("StartStreamEncryption", StreamName="s", EncryptionType="KMS", KeyId="alias/aws/kinesis")

    assert (await desk("PutRecord", StreamName="s", Data="eA==", PartitionKey="k"))["EncryptionType"] == "KMS"
    told = await cbor("PutRecords", StreamName="s", Records=[entry()])
    assert told["EncryptionType"] == "KMS"
    got = await cbor.get(await desk.iterator())
    assert {each["EncryptionType"] for each in got["Records"]} == {"KMS"}


async def test_a_stream_may_spread_its_records_by_itself(desk, cbor):
    await desk("CreateStream", StreamName="s", StreamModeDetails={"StreamMode": "ON_DEMAND"},
               RecordDistributionStrategy="AUTO")  # fmt: skip
    await desk.until_active()

    told = await cbor("PutRecords", StreamName="s", Records=[{"Data": b"%d" % i} for i in range(200)])
    assert told["FailedRecordCount"] == 0
    assert len({each["ShardId"] for each in told["Records"]}) == 4
    await cbor("PutRecord", StreamName="s", Data=b"one")
    with_key = await cbor("PutRecords", StreamName="s", Records=[entry(key="same") for _ in range(200)])
    assert len({each["ShardId"] for each in with_key["Records"]}) == 4
    got = [each for shard in range(4) for each in (await cbor.get(await desk.iterator(shard=shard)))["Records"]]
    assert len(got) == 401
    assert sorted({each.get("PartitionKey", "none") for each in got}) == ["none", "same"]
    await desk("UpdateStreamRecordDistributionStrategy", StreamARN=place().arn,
               RecordDistributionStrategy="USER_PARTITION_KEY")  # fmt: skip
    await refused(cbor("PutRecord", StreamName="s", Data=b"one"), "ValidationException")


async def test_a_put_to_a_stream_that_was_made_anew_goes_to_the_new_one(node):
    async with desk_at(node) as one, desk_at(node) as two:
        await one.make("s", 3)
        await two.put(b"old", hash_key=HASH_KEYS - 1)
        await one.client.delete_stream("s")
        with pytest.raises(Refusal) as caught:
            await two.put(b"lost", hash_key=HASH_KEYS - 1)
        assert caught.value.name == "ResourceNotFoundException"
        await one.client.create_stream("s", shards=2)
        await two.put(b"new", hash_key=HASH_KEYS - 1)
        assert await one.values(shard=1) == [b"new"]


async def test_what_was_stored_is_told_though_the_rest_cannot_be_routed(node, monkeypatch):
    """A shard closes, and before its entries can be routed again the metadata store is away."""
    async with desk_at(node, request_ms=300) as desk:
        await desk.make("s", 2)
        await desk.put(b"known")                           # the map is remembered from here on
        await desk.client.split_shard("s", 0)

        async def away(key):
            raise StoreUnavailable("the store is away", store="", outcome="not_done")

        monkeypatch.setattr(desk.client, "read_note", away)
        halves = [entry(b"low", hash_key=0), entry(b"high", hash_key=HASH_KEYS - 1)]
        told = await desk.as_caller(cbor=True)("PutRecords", StreamName="s", Records=halves)

        assert told["FailedRecordCount"] == 1
        assert told["Records"][0]["ErrorCode"] == "InternalFailure" and "SequenceNumber" in told["Records"][1]
        await refused(desk.as_caller(cbor=True)("PutRecord", StreamName="s", **halves[0]), "ServiceUnavailable")
