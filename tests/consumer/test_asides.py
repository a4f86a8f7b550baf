"""Lanes in which a record fails: its key waits, the others go on, and a crash brings back neither more nor less."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest

from streamkit._core.batch import Batch, seal
from streamkit.consumer.ahead import ROWS_MAX
from streamkit.consumer.failure import RetryPolicy
from streamkit.consumer.handler import Context
from streamkit.consumer.ordering import Ordering
from streamkit.errors import BatchFailure
from streamkit.model.codec import AUTO
from tests.consumer.bottle import Bottle, consumer
from tests.consumer.test_failures import dead_letters
from tests.consumer.test_lanes import by_key, put_numbered

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
QUICK = RetryPolicy(attempts_max=3, first_ms=100, last_ms=1_000)


async def put_together(bottle: Bottle, count: int, keys: int) -> None:
    """count values from 0 on in one batch, value n with key n % keys."""
    shard = (await bottle.client.stream("s")).shards[0]
    records = [(f"key-{number % keys}".encode(), AUTO.encode(number), b"", None, None) for number in range(count)]
    await bottle.client.put_batch(shard, seal(records))


@pytest.mark.parametrize("together", [True, False], ids=["one batch", "many batches"])
@pytest.mark.parametrize("form", ["record", "batch"])
def test_only_the_key_of_a_failing_record_waits_though_all_are_in_one_lane(form, together):
    """In key-parallel mode only the failing key waits."""

    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await (put_together if together else put_numbered)(bottle, 40, 10)
        done: list[int] = []
        healed: list[bool] = []
        made = consumer("w1", ordering=Ordering.by_key(1), retry=QUICK)

        def one(value: int) -> None:
            if value == 13 and not healed:
                raise ValueError("not yet")
            done.append(value)

        if form == "batch":
            @made.handler
            async def handle_all(batch: Batch[int]) -> None:
                if any(record.value == 13 for record in batch) and not healed:
                    raise ValueError("not yet")
                for record in batch:
                    one(record.value)
        else:
            @made.handler
            async def handle(value: int) -> None:
                one(value)

        bottle.start("w1", made)
        await asyncio.sleep(60)
        waiting = {13, 23, 33}
        assert sorted(done) == sorted(set(range(40)) - waiting)
        lease = (await bottle.describe("app")).leases[0]
        assert lease.poisoned == 1 and lease.lag_records >= 27 and made.statistics.poisoned

        healed.append(True)
        await bottle.until_done("app")
        assert Counter(done) == Counter(range(40))
        assert all(values == sorted(values) for values in by_key(done, 10).values())
        assert not made.statistics.poisoned

    Bottle.play(story)


def test_a_key_that_waits_holds_up_the_window_and_no_more_is_handed_out():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await put_numbered(bottle, 80, 10)
        done: list[int] = []
        made = consumer("w1", ordering=Ordering.by_key(2), retry=QUICK)
        object.__setattr__(made.config, "window_records", 20)

        @made.handler
        async def handle(value: int) -> None:
            if value == 3:
                raise ValueError("never")
            done.append(value)

        bottle.start("w1", made)
        await asyncio.sleep(60)

        assert 20 <= max(done) <= 24 and 13 not in done
        assert len(done) == max(done) + 1 - sum(value % 10 == 3 for value in range(max(done) + 1))

    Bottle.play(story)


@pytest.mark.parametrize("after", ["SHARD", "fewer", "more", "none"])
def test_after_a_crash_what_the_other_keys_finished_does_not_come_again(after):
    """Acceptance: consumer 10, with a record that fails."""
    ordering = {"SHARD": Ordering.SHARD, "fewer": Ordering.by_key(1), "more": Ordering.by_key(9),
                "none": Ordering.none(3)}[after]

    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await put_numbered(bottle, 60, 10)
        first: list[int] = []
        second: list[int] = []

        def worker(name: str, done: list[int], ordering: Ordering) -> Any:
            made = consumer(name, ordering=ordering, retry=RetryPolicy(attempts_max=1_000, first_ms=100, last_ms=1_000))

            @made.handler
            async def handle(value: int) -> None:
                if done is first and value in (3, 24):
                    raise ValueError("not here")
                done.append(value)

            return made

        bottle.start("w1", worker("w1", first, Ordering.by_key(2)))
        await bottle.until(lambda: len(first) == 60 - 6 - 4)
        await asyncio.sleep(3)             # that is stored
        bottle.kill("w1")
        bottle.start("w2", worker("w2", second, ordering))
        await bottle.until_done("app")

        waiting = {3, 13, 23, 33, 43, 53, 24, 34, 44, 54}
        assert set(first) == set(range(60)) - waiting
        assert Counter(second) == Counter(waiting)
        if after != "none":
            assert all(values == sorted(values) for values in by_key(second, 10).values())

    Bottle.play(story)


def test_a_key_that_came_further_than_its_lane_is_not_handled_again_either():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await put_together(bottle, 40, 10)
        first: list[int] = []
        second: list[int] = []
        failed: list[int] = []
        stuck = asyncio.Event()

        def worker(name: str, done: list[int]) -> Any:
            made = consumer(name, ordering=Ordering.by_key(1), retry=RetryPolicy(first_ms=1, last_ms=1))

            @made.handler
            async def handle(value: int) -> None:
                if done is first and value == 2 and not failed:
                    failed.append(value)
                    raise ValueError("once")
                if done is first and value in (9, 10):
                    await asyncio.sleep(1)             # the key of 2 has its turns after these
                if done is first and value == 20:
                    stuck.set()
                    await asyncio.sleep(10_000)
                done.append(value)

            return made

        bottle.start("w1", worker("w1", first))
        await stuck.wait()
        await asyncio.sleep(3)
        assert {2, 12, 22, 32} <= set(first) and 21 not in first, "the key is over, its lane is not"
        bottle.kill("w1")
        bottle.start("w2", worker("w2", second))
        await bottle.until_done("app")

        assert Counter(first + second) == Counter(range(40))

    Bottle.play(story)


def test_a_failed_record_gets_its_turn_though_the_lane_has_a_long_batch_in_hand():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await put_together(bottle, 50, 10)
        order: list[int] = []
        failed: list[int] = []
        made = consumer("w1", ordering=Ordering.by_key(1), retry=QUICK)

        @made.handler
        async def handle(value: int) -> None:
            if value == 0 and not failed:
                failed.append(value)
                raise ValueError("once")
            await asyncio.sleep(1)
            order.append(value)

        bottle.start("w1", made)
        await bottle.until_done("app")

        assert sorted(order) == list(range(50))
        assert order.index(0) <= 3, "its wait was a tenth of a second"
        assert all(values == sorted(values) for values in by_key(order, 10).values())

    Bottle.play(story)


def test_more_keys_than_may_wait_hold_up_their_lanes_and_lose_nothing():
    count = ROWS_MAX + 40

    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.client.create_stream("dead")
        await put_together(bottle, 2 * count, count)
        done: list[int] = []
        made = consumer("w1", ordering=Ordering.by_key(3), retry=QUICK, dead_letter="dead")

        @made.handler
        async def handle(value: int) -> None:
            if value < count:
                raise ValueError("the first of each key")
            done.append(value)

        bottle.start("w1", made)
        await bottle.until_done("app", seconds=1_000)

        assert sorted(done) == list(range(count, 2 * count))
        dead = await dead_letters(bottle)
        assert sorted(record.value for record in dead) == list(range(count))
        assert all(record.headers["dead-letter-attempts"] == b"3" for record in dead)

    Bottle.play(story)


def test_two_records_of_a_key_that_a_handler_names_have_their_attempts_each():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.client.create_stream("dead")
        await put_together(bottle, 20, 5)
        done: list[int] = []
        made = consumer("w1", ordering=Ordering.by_key(1), retry=QUICK, dead_letter="dead")

        @made.handler
        async def handle(batch: Batch[int], ctx: Context) -> None:
            bad = [record for record in batch if record.value in (6, 11)]
            done.extend(record.value for record in batch if record.value not in (6, 11))
            if bad:
                raise BatchFailure("two of them", failed=bad)

        bottle.start("w1", made)
        await bottle.until_done("app")

        assert Counter(done) == Counter(set(range(20)) - {6, 11})
        dead = await dead_letters(bottle)
        assert [record.value for record in dead] == [6, 11]
        assert all(record.headers["dead-letter-attempts"] == b"3" for record in dead)

    Bottle.play(story)


@pytest.mark.parametrize("seed", range(12))
def test_failures_and_crashes_at_random_keep_each_keys_order_and_repeat_nothing_that_was_stored(seed):
    """Acceptance: consumer 10, redelivered is only what no checkpoint had told yet."""
    drawn = random.Random(seed)
    count, keys = 240, 24

    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await (put_together if seed % 2 else put_numbered)(bottle, count, keys)
        failures = {value: drawn.randrange(1, 4) for value in drawn.sample(range(count), 60)}
        done: list[tuple[float, str, int]] = []
        loop = asyncio.get_running_loop()

        def worker(name: str) -> Any:
            ordering = drawn.choice([Ordering.by_key(drawn.randrange(1, 9)), Ordering.by_key(1), Ordering.SHARD])
            made = consumer(name, ordering=ordering, checkpoint_interval_ms=100,
                            retry=RetryPolicy(attempts_max=100, first_ms=200, last_ms=2_000))

            @made.handler
            async def handle(value: int) -> None:
                await asyncio.sleep(drawn.random() * 0.1)
                if failures.get(value):
                    failures[value] -= 1
                    raise ValueError("not yet")
                done.append((loop.time(), name, value))

            return made

        kills: list[float] = []
        for number in range(4):
            bottle.start(f"w{number}", worker(f"w{number}"))
            before = len(done)
            await bottle.until(lambda before=before: len(done) > before or len({entry[2] for entry in done}) == count)
            await asyncio.sleep(drawn.random() * 4)
            bottle.kill(f"w{number}")
            kills.append(loop.time())
        bottle.start("last", worker("last"))
        await bottle.until_done("app", seconds=1_000)

        assert {value for _, _, value in done} == set(range(count))
        for name in {name for _, name, _ in done}:
            own = [value for _, who, value in done if who == name]
            assert len(own) == len(set(own))
            assert all(values == sorted(values) for values in by_key(own, keys).values()), "a key's order"
        times: dict[int, list[float]] = {}
        for at, _, value in done:
            times.setdefault(value, []).append(at)
        for first, again in ((found[0], found[-1]) for found in times.values() if len(found) > 1):
            assert any(first < kill < again and kill - first < 1.0 for kill in kills), "it had been stored"

    Bottle.play(story)
