"""ListShards with every filter and page, splits, merges and new counts."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamkit.broker.retention import retain_once
from tests.gateway.kinesis.desk import ACCOUNT, HASH_KEYS, desk_at, node_in, place
from tests.gateway.kinesis.test_streams import refused


def shard_id(ordinal):
    return f"shardId-{ordinal:012d}"


def ordinals(shards):
    return [int(each["ShardId"][-12:]) for each in shards]


def covered(shards):
    """Whether their ranges tile the key space."""
    ranges = sorted((int(each["HashKeyRange"]["StartingHashKey"]), int(each["HashKeyRange"]["EndingHashKey"]))
                    for each in shards)  # fmt: skip
    ends = [-1, *(end for _, end in ranges)]
    return [start for start, _ in ranges] + [HASH_KEYS] == [end + 1 for end in ends]


async def halve(desk, shard, at=HASH_KEYS // 2):
    await desk.reshard("SplitShard", ShardToSplit=shard_id(shard), NewStartingHashKey=str(at))


# -- listing ---------------------------------------------------------------------------------------------------------


async def test_shards_are_listed_a_page_at_a_time(desk):
    await desk.make("s", 7)

    pages, page = [], await desk("ListShards", StreamName="s", MaxResults=3)
    while True:
        pages.append(ordinals(page["Shards"]))
        if "NextToken" not in page:
            break
        assert len(page["NextToken"]) < 1024
        page = await desk("ListShards", NextToken=page["NextToken"], MaxResults=3)

    assert pages == [[0, 1, 2], [3, 4, 5], [6]]
    after = await desk("ListShards", StreamName="s", ExclusiveStartShardId=shard_id(4))
    assert ordinals(after["Shards"]) == [5, 6]
    loose = await desk("ListShards", StreamName="s", ExclusiveStartShardId="4")
    assert ordinals(loose["Shards"]) == [5, 6]
    assert ordinals(await desk.shards(ExclusiveStartShardId=shard_id(99))) == []


async def test_a_page_has_a_thousand_shards_at_most(desk):
    await desk.make("s", 1_001)
    page = await desk("ListShards", StreamName="s", MaxResults=10_000)
    assert len(page["Shards"]) == 1_000
    rest = await desk("ListShards", NextToken=page["NextToken"])
    assert ordinals(rest["Shards"]) == [1_000]


async def test_a_token_keeps_its_filter_and_takes_nothing_beside_it(desk):
    await desk.make("s", 4)
    await halve(desk, 0, HASH_KEYS // 8)
    page = await desk("ListShards", StreamName="s", MaxResults=2, ShardFilter={"Type": "AT_LATEST"})
    token = page["NextToken"]

    assert ordinals(page["Shards"]) + ordinals((await desk("ListShards", NextToken=token))["Shards"]) == [1, 2, 3, 4, 5]
    for name, value in {
        "StreamName": "s", "StreamARN": place().arn, "ExclusiveStartShardId": shard_id(1),
        "StreamCreationTimestamp": 5, "ShardFilter": {"Type": "AT_LATEST"},
    }.items():
        await refused(desk("ListShards", NextToken=token, **{name: value}), "InvalidArgumentException",
                      f"NextToken and {name} cannot be provided together.")  # fmt: skip
    await refused(desk.as_caller("111122223333")("ListShards", NextToken=token), "InvalidArgumentException")
    desk.clock.ahead_ms = 301_000
    await refused(desk("ListShards", NextToken=token), "ExpiredNextTokenException")


async def test_a_listing_may_name_the_time_of_creation(desk):
    await desk.make("s")
    created = (await desk("DescribeStream", StreamName="s"))["StreamDescription"]["StreamCreationTimestamp"]

    assert ordinals(await desk.shards(StreamCreationTimestamp=created)) == [0]
    assert ordinals(await desk.shards(StreamCreationTimestamp=int(created))) == [0]
    await refused(desk.shards(StreamCreationTimestamp=created - 5), "ResourceNotFoundException")


async def test_each_filter_chooses_by_what_was_open_when(desk):
    await desk.make("s", 2)
    await halve(desk, 0, HASH_KEYS // 4)                   # 2, 3
    native = await desk.client.describe_stream("s")
    split_ms = native.shards[0].closed_ms
    await desk.reshard("MergeShards", ShardToMerge=shard_id(3), AdjacentShardToMerge=shard_id(1))     # 4
    native = await desk.client.describe_stream("s")
    merged_ms = native.shards[1].closed_ms
    cbor = desk.as_caller(cbor=True)

    async def chosen(kind, **more):
        found = await cbor.shards(ShardFilter={"Type": kind, **more})
        assert not kind.startswith("AT_") or covered(found)
        return ordinals(found)

    assert ordinals(await desk.shards()) == [0, 1, 2, 3, 4]
    assert await chosen("FROM_TRIM_HORIZON") == [0, 1, 2, 3, 4]
    assert await chosen("AT_LATEST") == [2, 4]
    assert await chosen("AT_TRIM_HORIZON") == [0, 1]
    assert await chosen("AT_TIMESTAMP", Timestamp=split_ms - 1) == [0, 1]
    assert await chosen("AT_TIMESTAMP", Timestamp=1) == [0, 1]
    if split_ms < merged_ms:
        assert await chosen("AT_TIMESTAMP", Timestamp=split_ms) == [1, 2, 3]
    assert await chosen("AT_TIMESTAMP", Timestamp=merged_ms) == [2, 4]
    assert await chosen("AT_TIMESTAMP", Timestamp=merged_ms + 10**9) == [2, 4]
    assert await chosen("FROM_TIMESTAMP", Timestamp=1) == [0, 1, 2, 3, 4]
    assert await chosen("FROM_TIMESTAMP", Timestamp=merged_ms + 1) == [2, 4]
    assert await chosen("AFTER_SHARD_ID", ShardId=shard_id(2)) == [3, 4]
    assert await chosen("AFTER_SHARD_ID", ShardId="2") == [3, 4]
    assert await chosen("AFTER_SHARD_ID", ShardId=shard_id(99)) == []
    assert await chosen("AFTER_SHARD_ID", ShardId="shardId-99999999999999") == []
    for kind in ("AT_TIMESTAMP", "FROM_TIMESTAMP", "AFTER_SHARD_ID"):
        await refused(desk.shards(ShardFilter={"Type": kind}), "InvalidArgumentException")
    await refused(desk.shards(ShardFilter={"Type": "SOME"}), "ValidationException")


async def test_lineage_is_told_and_a_closed_shard_has_an_end(desk):
    await desk.make("s", 2)
    await desk.reshard("MergeShards", ShardToMerge=shard_id(0), AdjacentShardToMerge=shard_id(1))
    await halve(desk, 2)
    shards = await desk.shards()

    parents = [(each.get("ParentShardId"), each.get("AdjacentParentShardId")) for each in shards]
    assert parents == [
        (None, None), (None, None), (shard_id(0), shard_id(1)), (shard_id(2), None), (shard_id(2), None)
    ]  # fmt: skip
    closed = ["EndingSequenceNumber" in each["SequenceNumberRange"] for each in shards]
    assert closed == [True, True, True, False, False]
    described = (await desk("DescribeStream", StreamName="s"))["StreamDescription"]["Shards"]
    assert described == shards


async def test_a_shard_that_has_expired_is_gone_and_its_children_still_name_it(desk, node):
    await desk.make("s")
    await desk.put(b"x")
    iterator = await desk.iterator()
    await halve(desk, 0)
    native = await desk.client.describe_stream("s")
    later_ms = native.shards[0].closed_ms + 25 * 3_600_000
    await retain_once(node._streams, later_ms)
    await node.reshards.forget_expired(later_ms)

    shards = await desk.shards()
    assert ordinals(shards) == [1, 2]
    assert [each["ParentShardId"] for each in shards] == [shard_id(0)] * 2
    assert covered(await desk.shards(ShardFilter={"Type": "AT_TRIM_HORIZON"}))
    await refused(desk.iterator(), "ResourceNotFoundException")
    await refused(desk.get(iterator), "ResourceNotFoundException")
    await desk.put(b"y", hash_key=0)
    assert await desk.values(shard=1) == [b"y"]


# -- changing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 1, HASH_KEYS - 1, HASH_KEYS, 10**39 - 1])
async def test_a_shard_is_not_split_at_its_edges(desk, at):
    await desk.make("s")
    await refused(
        desk("SplitShard", StreamName="s", ShardToSplit=shard_id(0), NewStartingHashKey=str(at)),
        "InvalidArgumentException",
    )
    assert len(await desk.shards()) == 1


@pytest.mark.parametrize("at", [2, HASH_KEYS - 2])
async def test_a_shard_is_split_anywhere_else(desk, at):
    await desk.make("s")
    await halve(desk, 0, at)
    ranges = [each["HashKeyRange"] for each in (await desk.shards())[1:]]
    assert ranges == [
        {"StartingHashKey": "0", "EndingHashKey": str(at - 1)},
        {"StartingHashKey": str(at), "EndingHashKey": str(HASH_KEYS - 1)},
    ]


async def test_only_neighbours_in_their_order_are_merged(desk):
    await desk.make("s", 3)

    for low, high in ((1, 0), (0, 2), (0, 0)):
        await refused(
            desk("MergeShards", StreamName="s", ShardToMerge=shard_id(low), AdjacentShardToMerge=shard_id(high)),
            "InvalidArgumentException",
        )
    await refused(
        desk("MergeShards", StreamName="s", ShardToMerge=shard_id(0), AdjacentShardToMerge=shard_id(7)),
        "ResourceNotFoundException", f"Could not find shard {shard_id(7)} in stream s under account {ACCOUNT}.",
    )  # fmt: skip
    await desk.reshard("MergeShards", ShardToMerge=shard_id(1), AdjacentShardToMerge=shard_id(2))
    told = await refused(
        desk("MergeShards", StreamName="s", ShardToMerge=shard_id(0), AdjacentShardToMerge=shard_id(1)),
        "InvalidArgumentException",
    )
    assert "has already been merged or split" in told


@pytest.mark.parametrize(("count", "target"), [(1, 2), (2, 1), (4, 5), (2, 4), (4, 2), (5, 3), (7, 5), (6, 3), (3, 3)])
async def test_a_new_count_of_nearly_equal_shards(desk, count, target):
    await desk.make("s", count)
    await desk.put(*[b"x"] * 50)

    told = await desk("UpdateShardCount", StreamName="s", TargetShardCount=target, ScalingType="UNIFORM_SCALING")
    assert told == {
        "StreamName": "s", "StreamARN": place().arn, "CurrentShardCount": count, "TargetShardCount": target
    }  # fmt: skip
    await desk.until_active()

    opened = await desk.shards(ShardFilter={"Type": "AT_LATEST"})
    assert len(opened) == target and covered(opened)
    ranges = [each["HashKeyRange"] for each in opened]
    widths = [int(each["EndingHashKey"]) - int(each["StartingHashKey"]) for each in ranges]
    assert max(widths) - min(widths) < HASH_KEYS // 1000
    assert all(len(shard.parents) <= 2 for shard in (await desk.client.describe_stream("s")).shards)
    lineage = {each["ShardId"] for each in await desk.shards()}
    for each in await desk.shards():
        assert {each[name] for name in ("ParentShardId", "AdjacentParentShardId") if name in each} <= lineage
    summary = (await desk("DescribeStreamSummary", StreamName="s"))["StreamDescriptionSummary"]
    assert summary["OpenShardCount"] == target == (await desk("DescribeLimits"))["OpenShardCount"]


@pytest.mark.parametrize(("target", "names"), [
    (9, {"InvalidArgumentException"}), (1, {"InvalidArgumentException"}), (0, {"ValidationException"}),
    (10_001, {"InvalidArgumentException", "LimitExceededException"}),
])  # fmt: skip
async def test_a_count_that_goes_too_far_is_refused(desk, target, names):
    await desk.make("s", 4)
    for name in names:
        try:
            await refused(
                desk("UpdateShardCount", StreamName="s", TargetShardCount=target, ScalingType="UNIFORM_SCALING"), name
            )
            break
        except AssertionError:
            if len(names) == 1:
                raise
    assert len(await desk.shards()) == 4


async def test_more_shards_than_a_node_takes_are_refused(tmp_path):
    async with node_in(tmp_path / "data", streams__shards_max=5) as node, desk_at(node) as desk:
        await desk.make("s", 2)
        told = await refused(desk("CreateStream", StreamName="t", ShardCount=9), "LimitExceededException")
        assert ACCOUNT in told
        await refused(desk("DescribeStream", StreamName="t"), "ResourceNotFoundException")
        await desk.until_active("s")


# -- consistency -----------------------------------------------------------------------------------------------------


STEPS = st.lists(
    st.tuples(st.sampled_from(["split", "merge", "scale", "native"]), st.integers(0, 7), st.integers(1, 99)),
    min_size=1, max_size=6,
)  # fmt: skip


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(count=st.integers(1, 4), steps=STEPS)
async def test_whatever_is_resharded_the_listings_are_consistent(tmp_path_factory, count, steps):
    async with node_in(tmp_path_factory.mktemp("node") / "data") as node, desk_at(node) as desk:
        await desk.make("s", count)
        moments = [desk.clock.now_ms()]
        for kind, which, share in steps:
            opened = sorted(await desk.shards(ShardFilter={"Type": "AT_LATEST"}),
                            key=lambda each: int(each["HashKeyRange"]["StartingHashKey"]))  # fmt: skip
            chosen = opened[which % len(opened)]
            low, high = (int(chosen["HashKeyRange"][name]) for name in ("StartingHashKey", "EndingHashKey"))
            if kind == "split":
                at = low + (high - low) * share // 100
                await desk.reshard("SplitShard", ShardToSplit=chosen["ShardId"], NewStartingHashKey=str(at))
            elif kind == "merge" and len(opened) > 1:
                first, second = (each["ShardId"] for each in opened[which % (len(opened) - 1):][:2])
                await desk.reshard("MergeShards", ShardToMerge=first, AdjacentShardToMerge=second)
            elif kind == "scale":
                target = max((len(opened) + 1) // 2, min(2 * len(opened), 1 + which))
                await desk.reshard("UpdateShardCount", TargetShardCount=target, ScalingType="UNIFORM_SCALING")
            elif kind == "native" and len(opened) > 2:
                await desk.client.merge_shards("s", *(int(each["ShardId"][-12:]) for each in opened[:3]))
            moments.append(desk.clock.now_ms())
        native = (await desk.client.describe_stream("s")).shards
        moments += [time for shard in native for time in (shard.created_ms, shard.closed_ms or 0)]

        listed = await desk.shards()
        ids = {each["ShardId"] for each in listed}
        for kind in ("AT_LATEST", "AT_TRIM_HORIZON"):
            assert covered(await desk.shards(ShardFilter={"Type": kind}))
        for moment in moments:
            for time_ms in (moment - 1, moment, moment + 1):
                assert covered(await desk.shards(ShardFilter={"Type": "AT_TIMESTAMP", "Timestamp": time_ms / 1000}))
        for each in listed:
            assert {each[name] for name in ("ParentShardId", "AdjacentParentShardId") if name in each} <= ids
            if "EndingSequenceNumber" in each["SequenceNumberRange"]:
                part = await desk.get(await desk.iterator("LATEST", int(each["ShardId"][-12:])))
                assert {child["ShardId"] for child in part["ChildShards"]} <= ids
                assert all(each["ShardId"] in child["ParentShards"] for child in part["ChildShards"])
