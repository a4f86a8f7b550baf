"""Several lanes a shard: order of each key, nothing lost, and what was finished ahead is not handled again."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections import defaultdict
from typing import Any

import pytest

import streamkit
from streamkit._core.batch import Batch, Record
from streamkit.consumer.failure import RetryPolicy
from streamkit.consumer.handler import Context
from streamkit.consumer.ordering import Ordering
from streamkit.errors import InvalidUse
from tests.consumer.bottle import Bottle, consumer

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
LANES = Ordering.by_key(4)
QUICK = RetryPolicy(attempts_max=3, first_ms=100, last_ms=1_000)


async def put_numbered(bottle: Bottle, count: int, keys: int) -> None:
    """count values from 0 on, value n with key n % keys, each in a batch of its own."""
    for number in range(count):
        await bottle.put("s", [number], key=f"key-{number % keys}")


def by_key(values: list[int], keys: int) -> dict[int, list[int]]:
    found = defaultdict(list)
    for value in values:
        found[value % keys].append(value)
    return found


def test_records_of_a_key_keep_their_order_while_others_overtake_a_slow_one():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await put_numbered(bottle, 60, 12)
        done: list[int] = []
        made = consumer("w1", ordering=LANES)

        @made.handler
        async def handle(value: int) -> None:
            if value == 0:
                await asyncio.sleep(5)
            done.append(value)

        bottle.start("w1", made)
        await bottle.until_done("app")

        assert sorted(done) == list(range(60))
        assert all(values == sorted(values) for values in by_key(done, 12).values())
        assert done.index(0) > 30, "most of the others did not wait"

    Bottle.play(story)


@pytest.mark.parametrize("after", ["SHARD", "fewer", "more", "none"])
def test_after_a_crash_nothing_that_was_finished_and_stored_comes_again(after):
    """Acceptance: consumer 10, redelivered <= window - finished ahead; nothing finished is repeated."""
    next_ordering = {"SHARD": Ordering.SHARD, "fewer": Ordering.by_key(2), "more": Ordering.by_key(9),
                     "none": Ordering.none(3)}[after]

    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await put_numbered(bottle, 40, 10)
        first: list[int] = []
        second: list[int] = []
        stuck = asyncio.Event()

        def worker(name: str, done: list[int], ordering: Ordering) -> Any:
            made = consumer(name, ordering=ordering)

            @made.handler
            async def handle(value: int) -> None:
                if value == 3 and done is first:
                    stuck.set()
                    await asyncio.sleep(10_000)
                done.append(value)

            return made

        bottle.start("w1", worker("w1", first, LANES))
        await stuck.wait()
        await asyncio.sleep(5)             # the others are finished, and that is stored
        bottle.kill("w1")
        stored = set(first)
        assert 20 <= len(stored) < 40 and 3 not in stored
        bottle.start("w2", worker("w2", second, next_ordering))
        await bottle.until_done("app")

        assert set(second) == set(range(40)) - stored
        assert len(second) == len(set(second))
        assert (await bottle.describe("app")).leases[0].lag_records == 0

    Bottle.play(story)


def test_marks_of_two_owners_before_both_hold():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await put_numbered(bottle, 40, 10)
        done: list[int] = []
        stuck: set[str] = set()

        def worker(name: str, ordering: Ordering, holds_up: int) -> Any:
            made = consumer(name, ordering=ordering)

            @made.handler
            async def handle(value: int) -> None:
                if value == holds_up:
                    stuck.add(name)
                    await asyncio.sleep(10_000)
                done.append(value)

            return made

        for name, ordering, holds_up in (("w1", Ordering.by_key(4), 3), ("w2", Ordering.by_key(7), 3)):
            bottle.start(name, worker(name, ordering, holds_up))
            await bottle.until(lambda name=name: name in stuck)
            await asyncio.sleep(5)
            bottle.kill(name)
        bottle.start("w3", worker("w3", Ordering.SHARD, -1))
        await bottle.until_done("app")

        assert sorted(done) == list(range(40))

    Bottle.play(story)


def test_a_record_that_fails_holds_up_its_key_alone_and_ends_in_the_dead_letter_stream():
    """Acceptance: consumer 3, in lanes: the right number of attempts; neighbours are handled in order."""

    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.client.create_stream("dead")
        await put_numbered(bottle, 40, 10)
        done: list[int] = []
        attempts: list[int] = []
        made = consumer("w1", ordering=LANES, retry=QUICK, dead_letter="dead")

        @made.handler
        async def handle(value: int, ctx: Context) -> None:
            if value == 7:
                attempts.append(ctx.attempt)
                raise ValueError("seven")
            done.append(value)

        bottle.start("w1", made)
        await bottle.until_done("app")

        assert attempts == [1, 2, 3]
        assert sorted(done) == [value for value in range(40) if value != 7]
        assert all(values == sorted(values) for values in by_key(done, 10).values())
        assert made.statistics.dead_lettered == 1
        assert (await bottle.describe("app")).leases[0].poisoned == 0

    Bottle.play(story)


def test_pausing_in_one_lane_pauses_the_shard():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await put_numbered(bottle, 20, 10)
        made = consumer("w1", ordering=LANES)

        @made.handler
        async def handle(value: int, ctx: Context) -> None:
            await asyncio.sleep(0.1)
            if value == 4:
                ctx.pause("look at four")

        bottle.start("w1", made)
        await asyncio.sleep(10)

        lease = (await bottle.describe("app")).leases[0]
        assert (lease.state, lease.reason) == ("paused", "look at four")
        assert made.statistics.records < 20

    Bottle.play(story)


def test_the_oldest_record_holds_up_the_window_and_it_is_told_for_how_long():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await put_numbered(bottle, 60, 12)
        done: list[int] = []
        made = consumer("w1", ordering=LANES)
        made.config = dataclasses.replace(made.config, window_records=20)

        @made.handler
        async def handle(value: int) -> None:
            if value == 0:
                await asyncio.sleep(20)
                assert max(done) < 25
            done.append(value)

        bottle.start("w1", made)
        await bottle.until_done("app")

        assert sorted(done) == list(range(60))
        assert 15 < made.statistics.window_blocked_seconds < 25

    Bottle.play(story)


def test_children_of_a_shard_begin_when_all_its_lanes_are_finished():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await put_numbered(bottle, 30, 10)
        done: list[tuple[str, int]] = []
        made = consumer("w1", ordering=LANES)

        @made.handler
        async def handle(record: Record[int]) -> None:
            if record.value == 2:
                await asyncio.sleep(10)
            done.append((record.shard, record.value))

        bottle.start("w1", made)
        await bottle.until(lambda: len(done) > 20)
        await bottle.client.split_shard("s", 0)
        for number in range(30, 60):
            await bottle.put("s", [number], key=f"key-{number % 10}")
        await bottle.until(lambda: len(done) == 60)

        parents = [at for at, (shard, _) in enumerate(done) if shard == "shardId-000000000000"]
        assert parents == list(range(30))
        assert all(values == sorted(values) for values in by_key([value for _, value in done], 10).values())

    Bottle.play(story)


def test_batch_handlers_get_a_batch_a_lane():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.put_together("s", list(range(50)))
        made = consumer("w1", ordering=Ordering.none(4))
        sizes: list[int] = []
        done: list[int] = []

        @made.handler
        async def handle(batch: Batch[int]) -> None:
            sizes.append(len(batch))
            done.extend(record.value for record in batch)

        bottle.start("w1", made)
        await bottle.until_done("app")

        assert sorted(done) == list(range(50))
        assert sorted(sizes) == [12, 12, 13, 13]

    Bottle.play(story)


def test_plain_functions_of_several_lanes_run_at_one_time(tmp_path):
    """On a real node: eight lanes in threads of their own, of which four must meet."""
    together = threading.Barrier(4)
    done: list[int] = []
    enough = threading.Event()
    with streamkit.open(str(tmp_path)) as session:
        session.client.create_stream("s")
        with session.producer("s") as producer:
            for number in range(4):
                producer.put(number, key=f"key-{number}")
        made = session.consumer("s", application="app", start="trim_horizon", ordering=Ordering.none(8))

        @made.handler
        def handle(value: int) -> None:
            together.wait(30)
            done.append(value)
            if len(done) == 4:
                enough.set()

        made.start()
        assert enough.wait(60)
        made.stop()
    assert sorted(done) == [0, 1, 2, 3]


def test_what_makes_no_sense_with_lanes_is_refused():
    with pytest.raises(InvalidUse, match="no position of their own"):
        consumer("w1", ordering=LANES, checkpoint="manual")
    with pytest.raises(InvalidUse, match="one after the other"):
        next(consumer("w1", ordering=LANES).batches())
    with pytest.raises(InvalidUse, match="one position a shard"):
        consumer("w1", ordering=LANES, sink=streamkit.SQLitePosition(":memory:"))
    with pytest.raises(InvalidUse, match="1 to 256"):
        Ordering.by_key(0)
    with pytest.raises(InvalidUse, match="ordering"):
        consumer("w1", ordering="by_key")

    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.put("s", [1])
        refused: list[str] = []
        made = consumer("w1", ordering=LANES)

        @made.handler
        async def handle(value: int, ctx: Context) -> None:
            try:
                ctx.checkpoint()
            except InvalidUse as error:
                refused.append(str(error))

        bottle.start("w1", made)
        await bottle.until_done("app")
        assert refused and "by itself" in refused[0]

    Bottle.play(story)


def test_feed_goes_through_the_lanes_too():
    made = consumer("w1", ordering=LANES, dead_letter="dead", retry=RetryPolicy(attempts_max=2))
    done: list[int] = []

    @made.handler
    def handle(value: int) -> None:
        if value == 5:
            raise ValueError("five")
        done.append(value)

    report = made.feed(range(10))

    assert (report.handled, sorted(done)) == (9, [0, 1, 2, 3, 4, 6, 7, 8, 9])
    assert [dead.reason for dead in report.dead_letter] == ["ValueError: five"]
    assert report.checkpoint == 10
