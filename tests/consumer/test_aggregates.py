"""Streams whose records are aggregates: user records one by one, in order, and none twice but as documented."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import streamkit
from streamkit._core.aggregation import Aggregator
from streamkit._core.batch import Batch, Record, RecordContext, seal, stamped
from streamkit._core.hashing import hash_key
from streamkit.consumer.aggregates import attempts_from_wire, attempts_to_wire, unwrapped
from streamkit.consumer.consumer import Consumer, Context
from streamkit.consumer.failure import RetryPolicy
from streamkit.consumer.processor import RecordProcessor
from streamkit.consumer.reader import AsyncReader
from streamkit.errors import BatchFailure, InvalidUse
from streamkit.model.limits import HASH_KEYS
from streamkit.model.shard import Shard
from tests.consumer.bottle import Bottle, consumer, worker

HALF = HASH_KEYS // 2


def aggregate(*values: int | bytes) -> bytes:
    made = Aggregator()
    for value in values:
        assert made.add(f"k{value!r}", value if isinstance(value, bytes) else b"%d" % value)
    return made.bytes()


def sealed(*payloads: bytes, codec: int = 0) -> bytes:
    return seal([(b"outer", payload, b"", 5, None) for payload in payloads], codec=codec)


def batch_of(*payloads: bytes, base: int = 100, codec: int = 0) -> Batch[Any]:
    whole = stamped(sealed(*payloads, codec=codec), base_sequence=base, append_time_ms=7_000, shard_uuid=bytes(16))
    return Batch(whole, RecordContext("s", "shard", uuid=bytes(16)))


async def put(bottle: Bottle, *payloads: bytes, stream: str = "s") -> None:
    """All payloads in one batch."""
    shard = (await bottle.client.stream(stream)).shards[0]
    await bottle.client.put_batch(shard, sealed(*payloads))


# ---- a batch, unwrapped ------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [0, 1])
def test_an_unwrapped_batch_has_the_user_records_between_the_others(codec: int) -> None:
    batch = batch_of(b"first", aggregate(1, 2, 3), b"between", aggregate(4, 5), codec=codec)

    made = batch.unwrap()

    assert made.values() == [b"first", b"1", b"2", b"3", b"between", b"4", b"5"]
    assert made.keys() == ["outer", "k1", "k2", "k3", "outer", "k4", "k5"]
    assert [record.sequence for record in made] == [100, 101, 101, 101, 102, 103, 103]
    assert [record.sub_sequence for record in made] == [None, 0, 1, 2, None, 0, 1]
    assert [record.end_place for record in made] == [
        (101, 0), (101, 1), (101, 2), (102, 0), (103, 0), (103, 1), (104, 0)
    ]
    assert [record.data for record in made] == [bytes(record.view()) for record in made] == made.values()
    assert [record.hash_key for record in made] == [hash_key(record.key) for record in made]
    assert {record.time.timestamp() for record in made} == {0.005}
    assert made[1].sequence_number == made[3].sequence_number == batch[1].sequence_number
    assert (made.first_sequence, made.end_sequence, len(made)) == (100, 104, 7)
    assert "sub_sequence=2" in repr(made[3]) and made.unwrap() is made


def test_a_part_that_ends_inside_an_aggregate_ends_at_its_sequence() -> None:
    made = batch_of(b"first", aggregate(1, 2, 3), b"last").unwrap()

    inner = made.part(2, 3)

    assert inner.values() == [b"2"] and (inner.first_sequence, inner.end_sequence) == (101, 101)
    assert inner.part(0, 1)[0].sub_sequence == 1
    assert [made.place(done) for done in range(6)] == [(100, 0), (101, 0), (101, 1), (101, 2), (102, 0), (103, 0)]
    assert made.part(3, 4).end_sequence == 102
    assert [made.index_of(record) for record in made] == [0, 1, 2, 3, 4]
    assert [inner.index_of(record) for record in made] == [-1, -1, 0, -1, -1]
    assert batch_of(b"x").index_of(made[0]) == 0 and batch_of(b"x").index_of(made[1]) == -1
    with pytest.raises(IndexError):
        made.place(6)


def test_a_batch_without_aggregates_is_left_alone() -> None:
    plain = batch_of(b"first", b"second")
    lookalike = batch_of(aggregate(1, 2)[:-1], b"\xf3\x89\x9a\xc2" + bytes(40))

    assert plain.unwrap() is plain
    assert lookalike.unwrap() is lookalike
    assert [record.end_place for record in plain] == [(101, 0), (102, 0)]
    assert plain.place(2) == (102, 0)


def test_an_aggregate_among_records_left_out_before_it_keeps_its_sequence() -> None:
    whole = batch_of(b"first", aggregate(1, 2), b"last")

    later = Batch(whole.raw, whole.context, 101).unwrap()

    assert [(record.sequence, record.data) for record in later] == [(101, b"1"), (101, b"2"), (102, b"last")]
    assert whole.part(1, 2).unwrap().end_sequence == 102


def test_arrow_columns_of_an_unwrapped_batch() -> None:
    pytest.importorskip("pyarrow")

    table = batch_of(b"first", aggregate(1, 2)).unwrap().to_arrow()

    assert table.column("sequence").to_pylist() == [100, 101, 101]
    assert table.column("key").to_pylist() == ["outer", "k1", "k2"]
    assert table.column("data").to_pylist() == [b"first", b"1", b"2"]


def test_an_aggregate_of_nothing_leaves_nothing_and_is_passed() -> None:
    from tests.oracles_aggregation import sign

    made = batch_of(sign(b"\x0a\x01k")).unwrap()

    assert len(made) == 0 and made.values() == [] and made.keys() == []
    assert made.place(0) == (101, 0) and made.end_sequence == 101


def test_owned_leaves_out_what_belongs_to_another_shard_and_keeps_the_sub_sequences() -> None:
    made = Aggregator()
    for i, hashed in enumerate((1, HALF, HALF - 1, HASH_KEYS - 1, 0)):
        assert made.add("k", b"%d" % i, hashed)
    batch = batch_of(b"plain", made.bytes(), aggregate(*range(20)))
    lower = Shard(ordinal=1, uuid=bytes(16), hash_start=0, hash_end=HALF, created_ms=0)
    upper = Shard(ordinal=2, uuid=bytes(16), hash_start=HALF, hash_end=HASH_KEYS, created_ms=0)

    low, high = (unwrapped(batch, shard, "owned") for shard in (lower, upper))

    assert [(r.data, r.sub_sequence) for r in low if r.sequence == 101] == [(b"0", 0), (b"2", 2), (b"4", 4)]
    assert [(r.data, r.sub_sequence) for r in high if r.sequence == 101] == [(b"1", 1), (b"3", 3)]
    assert low.values()[0] == high.values()[0] == b"plain"
    assert len(low) + len(high) == 1 + 1 + 5 + 20
    assert all(int.from_bytes(r.hash_key, "big") < HALF for r in low if r.sub_sequence is not None)
    assert low.end_sequence == high.end_sequence == 103
    assert len(unwrapped(batch, lower, True)) == 26 and unwrapped(batch, lower, False) is batch


def test_attempts_go_over_the_wire_and_back() -> None:
    attempts = {(0, 0): 1, (5, 3): 2, ((1 << 42) - 1, (1 << 21) - 1): 3, (1 << 50, 0): 4}

    told = attempts_to_wire(attempts)

    assert attempts_from_wire(told) == attempts
    assert all(-(1 << 63) <= key < 1 << 63 for key in told)
    assert attempts_to_wire({(1 << 50, 2): 7}) == {1 << 50: 7}


# ---- consumers ---------------------------------------------------------------------------------------------


def test_each_user_record_is_handled_once_and_in_order() -> None:
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        seen: list[tuple[int, int | None, int]] = []
        made = consumer()

        @made.handler
        async def handle(record: Record[int]) -> None:
            seen.append((record.sequence, record.sub_sequence, record.value))

        bottle.start("w1", made)
        await put(bottle, b"0", aggregate(1, 2, 3), b"4")
        await put(bottle, aggregate(*range(5, 25)))
        await bottle.until_done("app")

        first = seen[0][0]
        assert [(sequence - first, sub_sequence, value) for sequence, sub_sequence, value in seen[:5]] == [
            (0, None, 0), (1, 0, 1), (1, 1, 2), (1, 2, 3), (2, None, 4)
        ]
        assert len({sequence for sequence, _, _ in seen[5:]}) == 1 and seen[5][0] >= first + 3
        assert [(sub_sequence, value) for _, sub_sequence, value in seen[5:]] == [(i, 5 + i) for i in range(20)]
        assert made.statistics.records == 25

    Bottle.play(story)


def test_batches_hold_user_records_and_stay_within_their_bound() -> None:
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        sizes: list[int] = []
        seen: list[bytes] = []
        made = consumer(batch_records_max=7)

        @made.handler
        async def handle(batch: Batch[Any]) -> None:
            sizes.append(len(batch))
            seen.extend(batch.values())

        bottle.start("w1", made)
        await put(bottle, aggregate(*range(20)), b"20")
        await bottle.until_done("app")

        assert sizes == [7, 7, 7]
        assert seen == [b"%d" % value for value in range(21)]

    Bottle.play(story)


def test_aggregates_are_handed_out_whole_when_asked_for() -> None:
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        seen: list[bytes] = []
        made = consumer(deaggregate=False)

        @made.handler
        async def handle(data: bytes) -> None:
            seen.append(data)

        bottle.start("w1", made)
        await put(bottle, aggregate(1, 2), b"3")
        await bottle.until_done("app")

        assert seen == [aggregate(1, 2), b"3"]

    Bottle.play(story)


def test_a_restart_inside_an_aggregate_goes_on_after_its_checkpoint() -> None:
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        seen: dict[str, list[int]] = {"w1": [], "w2": []}
        stuck = asyncio.Event()

        def start(name: str) -> None:
            made = consumer(name, checkpoint_interval_ms=100)

            @made.handler
            async def handle(value: int) -> None:
                if name == "w1" and value == 12:
                    await stuck.wait()     # for ever: it is killed here
                seen[name].append(value)

            bottle.start(name, made)

        await put(bottle, aggregate(*range(10)), aggregate(*range(10, 20)), b"20")
        start("w1")
        await bottle.until(lambda: len(seen["w1"]) == 12)
        await asyncio.sleep(1.0)
        bottle.kill("w1")
        start("w2")
        await bottle.until_done("app")

        assert seen["w1"] == list(range(12))
        assert seen["w2"] == list(range(12, 21)), "a checkpoint lies inside the second aggregate"

    Bottle.play(story)


def test_a_worker_that_is_stopped_inside_an_aggregate_repeats_nothing() -> None:
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        seen: list[int] = []
        first = consumer("w1")

        @first.handler
        async def handle(value: int, ctx: Context) -> None:
            seen.append(value)
            if value == 5:
                assert first._member is not None
                first._member.stop()
                await asyncio.sleep(0.1)

        await put(bottle, b"0", aggregate(1, 2, 3), aggregate(4, 5, 6), b"7")
        await bottle.start("w1", first)
        second = consumer("w2")

        @second.handler
        async def again(value: int) -> None:
            seen.append(value)

        bottle.start("w2", second)
        await bottle.until_done("app")

        assert seen == list(range(8))

    Bottle.play(story)


def test_a_lease_that_stopped_inside_an_aggregate_can_go_on_without_taking_it_apart() -> None:
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await put(bottle, aggregate(1, 2, 3), b"4")
        first = consumer("w1")

        @first.handler
        async def handle(value: int) -> None:
            assert first._member is not None
            first._member.stop()
            await asyncio.sleep(0.1)

        await bottle.start("w1", first)
        seen: list[bytes] = []
        second = consumer("w2", deaggregate=False)

        @second.handler
        async def again(data: bytes) -> None:
            seen.append(data)

        bottle.start("w2", second)
        await bottle.until_done("app")

        assert seen == [aggregate(1, 2, 3), b"4"], "what is not finished wholly is not passed over"

    Bottle.play(story)


def test_manual_checkpoints_inside_an_aggregate() -> None:
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        positions: list[int] = []

        class Careful(RecordProcessor):
            async def process(self, batch: Batch[Any], checkpointer: Any) -> None:
                for record in batch:
                    await checkpointer.checkpoint(record)
                    positions.append(checkpointer.position)
                with pytest.raises(InvalidUse):
                    checkpointer.checkpoint(batch.end_sequence)

        await put(bottle, b"0", aggregate(1, 2, 3), aggregate(4, 5), b"6")
        careful = worker("w1", Careful)
        ended = bottle.start("w1", careful)
        await bottle.until_done("app")
        assert careful._member is not None
        careful._member.stop()
        await ended

        assert [position - positions[0] for position in positions] == [0, 0, 0, 1, 1, 2, 3]

    Bottle.play(story)


def test_manual_checkpoints_hold_across_a_kill() -> None:
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        seen: dict[str, list[int]] = {"w1": [], "w2": []}
        stuck = asyncio.Event()

        def start(name: str) -> None:
            made = consumer(name, checkpoint="manual")

            @made.handler
            async def handle(value: int, ctx: Context) -> None:
                seen[name].append(value)
                if name == "w1" and value == 4:
                    await ctx.checkpoint(ctx.batch[2] if ctx.batch is not None else None)
                if name == "w1" and value == 7:
                    await stuck.wait()     # for ever: it is killed here
                if name == "w2":
                    ctx.checkpoint()

            bottle.start(name, made)

        await put(bottle, b"0", aggregate(*range(1, 10)), b"10")
        start("w1")
        await bottle.until(lambda: seen["w1"][-1:] == [7])
        await asyncio.sleep(2.0)
        bottle.kill("w1")
        start("w2")
        await bottle.until_done("app")

        assert seen["w2"] == list(range(3, 11)), "the record after the one that was checkpointed comes first"

    Bottle.play(story)


def test_a_user_record_that_fails_is_retried_alone_and_ends_as_a_dead_letter() -> None:
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.client.create_stream("dead")
        handled: list[int] = []
        attempts: list[tuple[int, int]] = []
        made = consumer(retry=RetryPolicy(attempts_max=3, first_ms=10, last_ms=20), dead_letter="dead")

        @made.handler
        async def handle(value: int, ctx: Context) -> None:
            if value in (2, 3):
                attempts.append((value, ctx.attempt))
                raise ValueError("no")
            handled.append(value)

        bottle.start("w1", made)
        await put(bottle, aggregate(1, 2, 3, 4), b"5")
        await bottle.until_done("app")

        assert handled == [1, 4, 5]
        assert attempts == [(2, 1), (2, 2), (2, 3), (3, 1), (3, 2), (3, 3)]
        dead = [record async for record in AsyncReader("dead", start="trim_horizon", until="latest",
                                                       client=bottle.client)]
        assert [(record.data, record.key) for record in dead] == [(b"2", "k2"), (b"3", "k3")]
        assert [record.headers["dead-letter-sub-sequence"] for record in dead] == [b"1", b"2"]

    Bottle.play(story)


def test_a_batch_failure_names_user_records() -> None:
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        calls: list[list[int]] = []
        made = consumer(retry=RetryPolicy(attempts_max=2, first_ms=10, last_ms=20), on_exhausted="skip")

        @made.handler
        async def handle(batch: Batch[int]) -> None:
            calls.append([record.value for record in batch])
            if failed := [record for record in batch if record.value in (2, 3)]:
                raise BatchFailure(failed=failed)

        bottle.start("w1", made)
        await put(bottle, b"0", aggregate(1, 2, 3, 4), b"5")
        await bottle.until_done("app")

        assert calls == [[0, 1, 2, 3, 4, 5], [2], [3]]
        assert made.statistics.skipped == 2

    Bottle.play(story)


def test_a_user_record_that_kills_its_process_is_found_among_its_neighbours() -> None:
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.client.create_stream("dead")
        await put(bottle, aggregate(*range(15)), b"15")
        handled: list[int] = []
        deaths: list[str] = []

        def start(name: str) -> None:
            made = consumer(name, retry=RetryPolicy(attempts_max=3, first_ms=10, last_ms=20), dead_letter="dead")

            @made.handler
            async def handle(value: int) -> None:
                if value == 12:
                    deaths.append(name)
                    bottle.kill(name)
                    await asyncio.sleep(1)
                    raise AssertionError("nothing runs in a killed process")
                handled.append(value)

            bottle.start(name, made)

        start("w0")
        for number in range(1, 7):
            await bottle.until(lambda number=number: len(deaths) == number)
            start(f"w{number}")
        await bottle.until_done("app")

        dead = [record async for record in AsyncReader("dead", start="trim_horizon", until="latest",
                                                       client=bottle.client)]
        assert [record.data for record in dead] == [b"12"]
        assert dead[0].headers["dead-letter-attempts"] == b"3"
        assert dead[0].headers["dead-letter-error"] == b"ProcessDied"
        assert set(handled) == set(range(16)) - {12} and handled[-3:] == [13, 14, 15]

    Bottle.play(story)


@pytest.mark.parametrize("deaggregate", [True, "owned"])
def test_an_aggregate_that_landed_in_a_child_is_handed_out_wholly_unless_owned_is_chosen(deaggregate: Any) -> None:
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s", shards=2)
        lower, upper = sorted((await bottle.client.stream("s")).shards, key=lambda shard: shard.hash_start)
        mixed = Aggregator()               # made before the split, put by the hash key of its first record
        for value, hashed in enumerate((1, upper.hash_start, 2, upper.hash_end - 1)):
            assert mixed.add("k", b"%d" % value, hashed)
        seen: list[tuple[str, int]] = []
        made = consumer(deaggregate=deaggregate)

        @made.handler
        async def handle(record: Record[int]) -> None:
            seen.append((record.shard, record.value))

        outer = (b"a", mixed.bytes(), b"", None, mixed.explicit_hash_key.to_bytes(16, "big"))
        await bottle.client.put_batch(lower, seal([outer]))
        again = (b"a", aggregate(1, 3), b"", None, upper.hash_start.to_bytes(16, "big"))
        await bottle.client.put_batch(upper, seal([again]))
        bottle.start("w1", made)
        await bottle.until_done("app")

        there = [value for shard, value in seen if shard == lower.id]
        assert there == ([0, 1, 2, 3] if deaggregate is True else [0, 2])

    Bottle.play(story)


# ---- readers and feed --------------------------------------------------------------------------------------


def test_readers_hand_out_user_records_and_count_them() -> None:
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await put(bottle, b"0", aggregate(1, 2, 3))
        await put(bottle, aggregate(4, 5))

        async def read(**options: Any) -> list[bytes]:
            reader = AsyncReader("s", start="trim_horizon", until="latest", client=bottle.client, **options)
            return [record.data async for record in reader]

        assert await read() == [b"%d" % value for value in range(6)]
        assert await read(limit=3) == [b"0", b"1", b"2"]
        assert await read(deaggregate=False) == [b"0", aggregate(1, 2, 3), aggregate(4, 5)]

    Bottle.play(story)


def test_feed_takes_aggregates_apart_and_names_the_record_that_blocks() -> None:
    made = Consumer("s", application="a", start="latest", retry=RetryPolicy(attempts_max=2))
    seen = []

    @made.handler
    def handle(value: int) -> None:
        if value == 3:
            raise ValueError("three")
        seen.append(value)

    report = made.feed([0, aggregate(1, 2, 3, 4), 5])

    assert seen == [0, 1, 2] and report.checkpoint == 1
    assert report.blocked is not None
    assert (report.blocked.record.data, report.blocked.record.sub_sequence, report.blocked.attempts) == (b"3", 2, 2)


@pytest.mark.parametrize("wrong", ["auto", 1, None, "OWNED"])
def test_a_wrong_choice_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidUse, match="deaggregate"):
        Consumer("s", application="a", start="latest", deaggregate=wrong)
    with pytest.raises(InvalidUse, match="deaggregate"):
        AsyncReader("s", start="latest", deaggregate=wrong)


def test_what_the_aggregator_makes_can_be_put_and_read_back(tmp_path: Path) -> None:
    with streamkit.open(str(tmp_path / "data"), {"streams.auto_create": False}) as node:
        node.client.create_stream("s", shards=4, durability="os")
        with node.producer("s") as producer:
            whole = Aggregator()
            for value in range(30):
                assert whole.add("same key", b"%d" % value)
            producer.put_and_wait(whole.bytes(), key=whole.partition_key, explicit_hash_key=whole.explicit_hash_key)
            producer.put_and_wait(b"30", key="same key")

        found = list(node.reader("s", start="trim_horizon", until="latest"))

    assert [record.value for record in found] == list(range(31))
    assert {(record.key, record.shard) for record in found} == {("same key", found[0].shard)}
    assert [record.sub_sequence for record in found] == [*range(30), None]
