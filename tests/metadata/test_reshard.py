"""Plans: whatever is split, merged and scaled, the open shards tile the key space and lineage leads forward."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamkit.errors import InvalidRequest, ShardClosed, ShardNotFound
from streamkit.metadata import reshard
from streamkit.metadata.catalog import from_entry, to_entry
from streamkit.model.limits import HASH_KEYS
from streamkit.model.sequence import sequence_number
from streamkit.model.shard import Shard, even_ranges
from streamkit.model.stream import StreamConfig, StreamDescription, StreamStatus

NOW_MS = 1_700_000_000_000


def stream(shards: int = 1) -> StreamDescription:
    return StreamDescription(
        name="orders", status=StreamStatus.ACTIVE, config=StreamConfig(shards=shards), created_ms=NOW_MS,
        map_version=1, shards=tuple(
            Shard(ordinal=n, uuid=n.to_bytes(16, "big"), hash_start=low, hash_end=high, created_ms=NOW_MS, epoch=1)
            for n, (low, high) in enumerate(even_ranges(shards))
        ),
    )


def carried_out(before: StreamDescription, plan: reshard.Plan, now_ms: int = NOW_MS) -> StreamDescription:
    following = len(before.shards)
    uuids = [bytes(16), *((following + n).to_bytes(16, "big") for n in range(len(plan.children)))]
    entry = reshard.new_entry(before, plan, uuids, now_ms)
    return reshard.resharded(before, reshard.with_ends(entry, dict.fromkeys(plan.parents, 10)), now_ms)


def ordinals(shards) -> list[int]:
    return [shard.ordinal for shard in shards]


@given(data=st.data(), shards=st.integers(1, 5), steps=st.integers(1, 12))
@settings(max_examples=150)
def test_any_sequence_of_plans_tiles_the_key_space_and_leads_forward(data, shards, steps):
    now = stream(shards)
    for step in range(steps):
        before = reshard.open_shards(now)
        match data.draw(st.sampled_from(["split", "merge", "scale"])):
            case "split":
                shard = data.draw(st.sampled_from([s for s in before if s.hash_end - s.hash_start > 1]))
                at = data.draw(st.none() | st.integers(shard.hash_start + 1, shard.hash_end - 1))
                plan = reshard.split(now, shard.ordinal, at)
            case "merge" if len(before) > 1:
                first = data.draw(st.integers(0, len(before) - 2))
                last = data.draw(st.integers(first + 2, len(before)))
                plan = reshard.merge(now, data.draw(st.permutations(ordinals(before[first:last]))))
            case _:
                plan = reshard.scale(now, data.draw(st.integers(1, 9)))
        if plan is None:
            continue
        now = carried_out(now, plan, NOW_MS + step)
        check_map(now, before)


def check_map(now: StreamDescription, before: list[Shard]) -> None:
    still_open = reshard.open_shards(now)
    assert still_open[0].hash_start == 0
    assert still_open[-1].hash_end == HASH_KEYS
    assert [s.hash_start for s in still_open[1:]] == [s.hash_end for s in still_open[:-1]]
    assert all(shard.hash_start < shard.hash_end for shard in still_open)
    assert now.config.shards == len(still_open)
    assert ordinals(now.shards) == list(range(len(now.shards)))
    by_ordinal = {shard.ordinal: shard for shard in now.shards}
    for shard in now.shards:
        assert all(parent < shard.ordinal and shard.ordinal in by_ordinal[parent].children for parent in shard.parents)
        assert all(shard.ordinal in by_ordinal[child].parents for child in shard.children)
        assert bool(shard.children) == (shard.closed_ms is not None) == (shard.end is not None)
        for parent in map(by_ordinal.__getitem__, shard.parents):
            assert parent.hash_start < shard.hash_end
            assert shard.hash_start < parent.hash_end
            assert shard.created_ms >= parent.closed_ms + 1_000
            assert parent.closed_ms >= parent.created_ms
    for child in (shard for shard in still_open if shard not in before):
        # Every shard that had one of the child's keys is a parent: who waits for the parents has seen each key's past.
        had = [s.ordinal for s in before if s.hash_start < child.hash_end and child.hash_start < s.hash_end]
        assert list(child.parents) == had


@given(shards=st.integers(1, 40), count=st.integers(1, 40))
def test_scaling_ends_with_nearly_equal_ranges_and_leaves_alone_what_fits(shards, count):
    before = stream(shards)
    plan = reshard.scale(before, count)
    after = carried_out(before, plan) if plan else before

    assert [(s.hash_start, s.hash_end) for s in reshard.open_shards(after)] == even_ranges(count)
    assert reshard.scale(after, count) is None
    kept = set(even_ranges(count)) & set(even_ranges(shards))
    assert len(plan.parents if plan else ()) == shards - len(kept)


def test_a_childs_numbers_exceed_all_of_its_parents_even_when_the_clock_stands_still():
    parent = stream()
    now = parent
    for _ in range(5):
        now = carried_out(now, reshard.split(now, reshard.open_shards(now)[0].ordinal))

    def number(shard, sequence, arrived_ms):
        return int(sequence_number(sequence, ordinal=shard.ordinal, created_ms=shard.created_ms, arrived_ms=arrived_ms))

    for shard in now.shards:
        for above in (now.shards[p] for p in shard.parents):
            assert number(above, 2**62, NOW_MS + 10**9) < number(shard, -1, shard.created_ms)


def test_a_map_with_lineage_survives_the_store():
    now = carried_out(stream(3), reshard.merge(stream(3), (1, 2)))

    assert from_entry(to_entry(now)) == now


def test_a_map_may_hold_more_closed_shards_than_a_stream_may_have_open():
    now = stream(10_000)
    now = carried_out(now, reshard.scale(now, 7))

    assert len(from_entry(to_entry(now)).shards) == 10_007
    assert now.config.shards == 7


@pytest.mark.parametrize(("plan", "error"), [
    (lambda s: reshard.split(s, 9), ShardNotFound),
    (lambda s: reshard.split(s, 2**63), ShardNotFound),
    (lambda s: reshard.split(s, 0), ShardClosed),
    (lambda s: reshard.split(s, 2, s.shards[2].hash_start), InvalidRequest),
    (lambda s: reshard.split(s, 2, s.shards[2].hash_end), InvalidRequest),
    (lambda s: reshard.split(s, 2, -1), InvalidRequest),
    (lambda s: reshard.split(s, 2, HASH_KEYS * 2), InvalidRequest),
    (lambda s: reshard.merge(s, (2, 1)), InvalidRequest),
    (lambda s: reshard.merge(s, (2, 2)), InvalidRequest),
    (lambda s: reshard.merge(s, (2,)), InvalidRequest),
    (lambda s: reshard.merge(s, ()), InvalidRequest),
    (lambda s: reshard.merge(s, (0, 1)), ShardClosed),
    (lambda s: reshard.merge(s, (1, 7)), ShardNotFound),
    (lambda s: reshard.scale(s, 0), InvalidRequest),
    (lambda s: reshard.scale(s, -3), InvalidRequest),
    (lambda s: reshard.scale(s, 10_001), InvalidRequest),
])  # fmt: skip
def test_what_makes_no_sense_is_refused_with_a_line_that_says_what_to_do(plan, error):
    now = carried_out(stream(2), reshard.split(stream(2), 0))      # 0 closed; open in key order: 2, 3, 1

    with pytest.raises(error) as caught:
        plan(now)
    assert caught.value.try_


def test_a_shard_of_one_key_cannot_be_split():
    now = carried_out(stream(), reshard.split(stream(), 0, 1))

    with pytest.raises(InvalidRequest):
        reshard.split(now, 1)


def test_closed_shards_leave_when_all_of_their_records_are_too_old():
    now = carried_out(stream(2), reshard.split(stream(2), 0))
    closed_ms = now.shards[0].closed_ms

    assert reshard.expired(now, closed_ms + 1_000, 1_000) == ()
    assert ordinals(reshard.expired(now, closed_ms + 1_001, 1_000)) == [0]
