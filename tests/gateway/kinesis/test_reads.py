"""Iterators and GetRecords: where reading starts, how much comes, and how a shard ends."""

import asyncio
import random

import pytest

from tests.broker.test_retention import trimmed
from tests.gateway.kinesis.desk import ACCOUNT, HASH_KEYS, desk_at, place
from tests.gateway.kinesis.test_streams import refused

MIB = 1 << 20


async def test_each_kind_of_iterator_starts_where_it_says(desk):
    await desk.make("s")
    numbers = await desk.put(b"a", b"b", b"c")

    assert await desk.values("TRIM_HORIZON") == [b"a", b"b", b"c"]
    assert await desk.values("AT_SEQUENCE_NUMBER", StartingSequenceNumber=numbers[1]) == [b"b", b"c"]
    assert await desk.values("AFTER_SEQUENCE_NUMBER", StartingSequenceNumber=numbers[1]) == [b"c"]
    assert await desk.values("AFTER_SEQUENCE_NUMBER", StartingSequenceNumber=numbers[2]) == []
    assert await desk.values("LATEST") == []


async def test_latest_is_where_the_shard_ended_when_it_was_asked_for(desk):
    await desk.make("s")
    await desk.put(b"before")
    iterator = await desk.iterator("LATEST")
    await desk.put(b"after")

    for _ in range(2):                                     # any number of times
        assert [each["Data"] for each in (await desk.get(iterator))["Records"]] == [b"after"]


async def test_the_numbers_of_a_shard_itself_are_positions(desk):
    await desk.make("s")
    await desk.put(b"a", b"b")
    start = (await desk.shards())[0]["SequenceNumberRange"]["StartingSequenceNumber"]

    for kind in ("AT_SEQUENCE_NUMBER", "AFTER_SEQUENCE_NUMBER"):
        assert await desk.values(kind, StartingSequenceNumber=start) == [b"a", b"b"]
    await halve(desk)
    end = (await desk.shards())[0]["SequenceNumberRange"]["EndingSequenceNumber"]
    for kind in ("AT_SEQUENCE_NUMBER", "AFTER_SEQUENCE_NUMBER"):
        assert await desk.values(kind, StartingSequenceNumber=end) == []


async def halve(desk, shard=0, at=HASH_KEYS // 2):
    await desk.reshard("SplitShard", ShardToSplit=f"shardId-{shard:012d}", NewStartingHashKey=str(at))


async def test_a_time_is_found_to_the_millisecond(desk):
    await desk.make("s")
    for value in (b"a", b"b", b"c"):
        await desk.put(value)
        await asyncio.sleep(0.003)                         # so that no two records arrive in one millisecond
    cbor = desk.as_caller(cbor=True)
    times = [each["ApproximateArrivalTimestamp"] for each in (await cbor.get(await cbor.iterator()))["Records"]]
    assert len(set(times)) == 3

    assert await desk.values("AT_TIMESTAMP", Timestamp=times[1] / 1000) == [b"b", b"c"]
    assert await cbor.values("AT_TIMESTAMP", Timestamp=times[1]) == [b"b", b"c"]
    assert await cbor.values("AT_TIMESTAMP", Timestamp=times[1] + 1) == [b"c"]
    assert await cbor.values("AT_TIMESTAMP", Timestamp=0) == [b"a", b"b", b"c"]
    assert await desk.values("AT_TIMESTAMP", Timestamp=1.5e9) == [b"a", b"b", b"c"]
    assert await cbor.values("AT_TIMESTAMP", Timestamp=desk.clock.now_ms()) == []
    await refused(cbor.iterator("AT_TIMESTAMP", Timestamp=desk.clock.now_ms() + 60_000), "InvalidArgumentException")


@pytest.mark.parametrize(("kind", "more", "name"), [
    ("AT_SEQUENCE_NUMBER", {}, "InvalidArgumentException"),
    ("AFTER_SEQUENCE_NUMBER", {}, "InvalidArgumentException"),
    ("TRIM_HORIZON", {"StartingSequenceNumber": "5"}, "InvalidArgumentException"),
    ("LATEST", {"StartingSequenceNumber": "5"}, "InvalidArgumentException"),
    ("AT_TIMESTAMP", {}, "InvalidArgumentException"),
    ("AT_SEQUENCE_NUMBER", {"StartingSequenceNumber": "5"}, "InvalidArgumentException"),
    ("AT_SEQUENCE_NUMBER", {"StartingSequenceNumber": "x"}, "ValidationException"),
    ("SOMEWHERE", {}, "ValidationException"),
])  # fmt: skip
async def test_a_position_that_makes_no_sense_is_refused(desk, kind, more, name):
    await desk.make("s")
    await refused(desk.iterator(kind, **more), name)


async def test_a_number_of_another_shard_or_an_earlier_stream_is_refused(desk):
    said = "Invalid StartingSequenceNumber. It encodes shardId-000000000001, while it was used in a call to a shard"
    await desk.make("s", 2)
    (number,) = await desk.put(b"x", hash_key=HASH_KEYS - 1)

    told = await refused(desk.iterator("AT_SEQUENCE_NUMBER", StartingSequenceNumber=number), "InvalidArgumentException")
    assert said in told
    other = number[:10] + ("1" if number[10] != "1" else "2") + number[11:]
    work = desk.iterator("AT_SEQUENCE_NUMBER", shard=1, StartingSequenceNumber=other)
    await refused(work, "InvalidArgumentException")


async def test_what_retention_has_taken_starts_at_what_is_left(desk, node):
    await desk.client.create_stream("s", retention_bytes=MIB)
    numbers, values = [], [random.Random(i).randbytes(MIB // 2) for i in range(12)]
    for value in values:
        numbers += await desk.put(value)
    iterator = await desk.iterator()
    first = (await desk.shards())[0]["SequenceNumberRange"]["StartingSequenceNumber"]
    (shard,) = (await desk.client.describe_stream("s")).shards
    await trimmed(node, shard, desk.clock.now_ms())        # segments are of a MiB here

    left = await desk.values()
    assert 0 < len(left) < 12 and left == values[-len(left):]
    for kind, more in (
        ("AT_SEQUENCE_NUMBER", {"StartingSequenceNumber": numbers[0]}), ("AT_TIMESTAMP", {"Timestamp": 1}),
        ("AFTER_SEQUENCE_NUMBER", {"StartingSequenceNumber": numbers[1]}),
        ("AT_SEQUENCE_NUMBER", {"StartingSequenceNumber": first}),
    ):
        assert await desk.values(kind, **more) == left
    assert (await desk.get(iterator))["Records"][0]["Data"] == left[0]
    assert await desk.values("AT_SEQUENCE_NUMBER", StartingSequenceNumber=numbers[-1]) == left[-1:]


# -- iterators -------------------------------------------------------------------------------------------------------


async def test_garbage_is_no_iterator(desk):
    await desk.make("s")
    iterator = await desk.iterator()
    assert len(iterator) <= 512

    for text in ("x", "AAAA", iterator[:-4], iterator[4:], iterator.swapcase(), "é"):
        told = await refused(desk("GetRecords", ShardIterator=text), "InvalidArgumentException")
        assert told == "Invalid ShardIterator."
    await refused(desk("GetRecords", ShardIterator="x" * 513), "ValidationException")
    await refused(desk("GetRecords", ShardIterator=""), "ValidationException")


async def test_an_iterator_is_good_for_five_minutes_at_any_node(node):
    async with desk_at(node) as one, desk_at(node) as two:
        await one.make("s")
        await one.put(b"x")
        iterator = await one.iterator()

        two.clock.ahead_ms = 299_000
        part = await two.get(iterator)
        assert len(part["Records"]) == 1
        two.clock.ahead_ms = 301_000
        told = await refused(two.get(iterator), "ExpiredIteratorException")
        assert told.startswith("Iterator expired. ")
        assert (await two.get(part["NextShardIterator"]))["Records"] == []


async def test_an_iterator_does_not_outlive_its_stream(desk):
    await desk.make("s")
    iterator = await desk.iterator()
    await desk.client.delete_stream("s")
    await desk.client.create_stream("s")

    await refused(desk.get(iterator), "ResourceNotFoundException", f"Stream s under account {ACCOUNT} not found.")


async def test_a_stream_may_be_named_beside_the_iterator(desk):
    await desk.make("s")
    iterator, arn = await desk.iterator(), place().arn

    for same in (arn, arn.replace("aws:", "aws-cn:")):
        assert (await desk.get(iterator, StreamARN=same))["Records"] == []
    await refused(desk.get(iterator, StreamARN=arn + "2"), "InvalidArgumentException")


# -- how much --------------------------------------------------------------------------------------------------------


async def test_no_record_is_skipped_by_a_limit(desk):
    await desk.make("s")
    for start in range(0, 1000, 250):
        await desk.put(*[b"%d" % i for i in range(start, start + 250)])

    found, iterator = [], await desk.iterator()
    while len(found) < 1000:
        part = await desk.get(iterator, Limit=7)
        assert 0 < len(part["Records"]) <= 7
        found += [int(each["Data"]) for each in part["Records"]]
        if len(found) == 1000:
            assert part["MillisBehindLatest"] == 0
        iterator = part["NextShardIterator"]
    assert found == [*range(1000)]
    for limit in (0, 10_001):
        await refused(desk.get(iterator, Limit=limit), "ValidationException")


async def test_a_reply_has_ten_thousand_records_at_most(desk):
    await desk.make("s")
    for _ in range(21):
        await desk.put(*[b""] * 500)

    part = await desk.get(await desk.iterator())

    assert len(part["Records"]) == 10_000
    assert len((await desk.get(part["NextShardIterator"]))["Records"]) == 500


async def test_a_reply_has_ten_mebibytes_at_most_and_one_record_at_least(desk):
    await desk.make("s", MaxRecordSizeInKiB=10240)
    sizes = [MIB - 1] * 11 + [10 * MIB - 1, 3]
    for size in sizes:
        await desk.put(b"x" * size)

    found, iterator = [], await desk.iterator()
    while len(found) < len(sizes):
        part = await desk.get(iterator)
        got = [len(each["Data"]) for each in part["Records"]]
        assert got and sum(got) + len(got) <= 10 * MIB
        found += got
        iterator = part["NextShardIterator"]
    assert found == sizes


async def test_how_far_behind_is_told(desk):
    await desk.make("s")
    assert (await desk.get(await desk.iterator()))["MillisBehindLatest"] == 0
    await desk.put(b"a")
    await desk.put(b"b")
    desk.clock.ahead_ms = 5_000

    first = await desk.get(await desk.iterator(), Limit=1)
    assert 5_000 <= first["MillisBehindLatest"] < 60_000
    second = await desk.get(first["NextShardIterator"], Limit=1)
    assert second["MillisBehindLatest"] == 0
    assert (await desk.get(second["NextShardIterator"]))["MillisBehindLatest"] == 0


# -- the end of a shard ----------------------------------------------------------------------------------------------


async def to_the_end(desk, iterator, **more):
    """All records, and the reply that names the children."""
    found = []
    for _ in range(100):
        part = await desk.get(iterator, **more)
        assert ("ChildShards" in part) != ("NextShardIterator" in part)
        assert isinstance(part["MillisBehindLatest"], int)
        found += [each["Data"] for each in part["Records"]]
        if "ChildShards" in part:
            return found, part["ChildShards"]
        iterator = part["NextShardIterator"]
    raise AssertionError("the shard does not end")


@pytest.mark.parametrize("limit", [1, 2, 10_000])
async def test_a_shard_that_was_split_ends_with_its_children_and_not_before(desk, limit):
    await desk.make("s")
    await desk.put(b"a", b"b", b"c")
    await halve(desk)
    await desk.put(b"d", hash_key=0)

    found, children = await to_the_end(desk, await desk.iterator(), Limit=limit)

    assert found == [b"a", b"b", b"c"]
    half = HASH_KEYS // 2
    assert children == [
        {"ShardId": "shardId-000000000001", "ParentShards": ["shardId-000000000000"],
         "HashKeyRange": {"StartingHashKey": "0", "EndingHashKey": str(half - 1)}},
        {"ShardId": "shardId-000000000002", "ParentShards": ["shardId-000000000000"],
         "HashKeyRange": {"StartingHashKey": str(half), "EndingHashKey": str(HASH_KEYS - 1)}},
    ]  # fmt: skip
    listed = {each["ShardId"] for each in await desk.shards()}
    assert {each["ShardId"] for each in children} <= listed
    assert await desk.values("TRIM_HORIZON", shard=1) == [b"d"]


async def test_shards_that_were_merged_both_name_the_child(desk):
    await desk.make("s", 2)
    await desk.reshard("MergeShards", ShardToMerge="shardId-000000000000", AdjacentShardToMerge="shardId-000000000001")

    for shard in range(2):
        _, children = await to_the_end(desk, await desk.iterator(shard=shard))
        assert [(each["ShardId"], each["ParentShards"]) for each in children] == [
            ("shardId-000000000002", ["shardId-000000000000", "shardId-000000000001"])
        ]


async def test_a_closed_shard_is_read_like_an_open_one(desk):
    await desk.make("s")
    numbers = await desk.put(b"a", b"b")
    cbor = desk.as_caller(cbor=True)
    times = [each["ApproximateArrivalTimestamp"] for each in (await cbor.get(await cbor.iterator()))["Records"]]
    await halve(desk)

    for kind, more, values in (
        ("LATEST", {}, []), ("TRIM_HORIZON", {}, [b"a", b"b"]),
        ("AT_SEQUENCE_NUMBER", {"StartingSequenceNumber": numbers[1]}, [b"b"]),
        ("AFTER_SEQUENCE_NUMBER", {"StartingSequenceNumber": numbers[1]}, []),
        ("AT_TIMESTAMP", {"Timestamp": times[0] / 1000}, [b"a", b"b"]),
        ("AT_TIMESTAMP", {"Timestamp": desk.clock.now_ms() / 1000}, []),
    ):
        found, children = await to_the_end(desk, await desk.iterator(kind, **more))
        assert (found, len(children)) == (values, 2)


async def test_a_reader_at_the_tip_learns_of_a_split(desk):
    await desk.make("s")
    iterator = await desk.iterator("LATEST")
    part = await desk.get(iterator)
    await desk.client.split_shard("s", 0)                  # by the library, out of this gateway's sight

    found, children = await to_the_end(desk, part["NextShardIterator"])

    assert (found, len(children)) == ([], 2)
    for child in children:
        await desk.get(await desk.iterator(shard=int(child["ShardId"][-12:])))


# -- limits ----------------------------------------------------------------------------------------------------------


async def test_reads_are_throttled_where_that_is_switched_on(desk):
    await desk.make("s", Tags={"streamkit:limits": "aws"}, MaxRecordSizeInKiB=10240)
    iterator = await desk.iterator()
    told = f"Rate exceeded for shard shardId-000000000000 in stream s under account {ACCOUNT}."
    desk.clock.real = Standing(desk.clock.now_ms())

    for _ in range(5):
        await desk.get(iterator)
    await refused(desk.get(iterator), "ProvisionedThroughputExceededException", told)
    for _ in range(4):
        await desk.iterator()
    desk.clock.ahead_ms += 1_000
    for _ in range(5):
        await desk.iterator()
    await refused(desk.iterator(), "ProvisionedThroughputExceededException", told)
    await desk.put(b"x" * 10 * (MIB - 1))
    await desk.get(iterator)
    desk.clock.ahead_ms += 3_000
    await refused(desk.get(iterator), "ProvisionedThroughputExceededException", told)
    desk.clock.ahead_ms += 2_000
    await desk.get(iterator)


class Standing:
    def __init__(self, now_ms):
        self._now_ms = now_ms

    def now_ms(self):
        return self._now_ms

    def monotonic_ms(self):
        return self._now_ms
