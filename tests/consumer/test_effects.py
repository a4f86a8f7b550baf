"""Effects elsewhere: announced before they are asked for, and asked for with the same token until they are done."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from streamkit._core.batch import Batch
from streamkit.consumer.failure import RetryPolicy
from streamkit.consumer.ordering import Ordering
from streamkit.consumer.positions.sqlite import SQLitePosition
from streamkit.errors import InvalidUse
from tests.consumer.bottle import Bottle, consumer
from tests.consumer.test_failures import dead_letters

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
QUICK = RetryPolicy(attempts_max=3, first_ms=100, last_ms=1_000)


class Elsewhere:
    """Where effects happen: what came with each token, in order. It outlives workers."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[int]]] = []
        self.done: dict[str, list[int]] = {}
        self.asked: list[str] = []

    async def take(self, token: str, values: list[int]) -> None:
        self.calls.append((token, values))
        assert self.done.setdefault(token, values) == values, "a token stands for the same records"

    async def finished(self, token: str) -> bool:
        self.asked.append(token)
        return token in self.done

    def values(self) -> list[int]:
        return sorted(value for values in self.done.values() for value in values)


@pytest.mark.parametrize("one", [False, True], ids=["batches", "records"])
def test_each_record_is_in_one_effect_and_what_was_announced_is_over_in_the_end(one):
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.put_together("s", list(range(20)))
        elsewhere = Elsewhere()
        made = consumer("w1", batch_records_max=7)
        if one:
            @made.effect
            async def add_one(value: int, token: str) -> None:
                await elsewhere.take(token, [value])
        else:
            @made.effect
            async def add(batch: Batch[int], token: str) -> None:
                await elsewhere.take(token, [record.value for record in batch])

        bottle.start("w1", made)
        await bottle.until_done("app")

        assert elsewhere.values() == list(range(20))
        assert [len(values) for _, values in elsewhere.calls] == ([1] * 20 if one else [7, 7, 6])
        lease = (await bottle.describe("app")).leases[0]
        assert lease.lag_records == 0

    Bottle.play(story)


@pytest.mark.parametrize("asks", [True, False], ids=["finished", "no finished"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_the_next_owner_finishes_what_was_announced_with_the_same_token(when, asks):
    """Acceptance: consumer 12, pattern 2: a worker dies on either side of its effect."""

    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.put_together("s", list(range(10)))
        elsewhere = Elsewhere()
        stuck = asyncio.Event()

        def worker(name: str, records_max: int) -> Any:
            made = consumer(name, batch_records_max=records_max)

            @made.effect(finished=elsewhere.finished if asks else None)
            async def add(batch: Batch[int], token: str) -> None:
                values = [record.value for record in batch]
                if name == "w1" and values[0] == 4:
                    if when == "after":
                        await elsewhere.take(token, values)
                    elsewhere.asked.append("announced " + token)
                    stuck.set()
                    await asyncio.sleep(10_000)
                await elsewhere.take(token, values)

            return made

        bottle.start("w1", worker("w1", 4))
        await stuck.wait()
        bottle.kill("w1")
        bottle.start("w2", worker("w2", 3))            # would cut them otherwise
        await bottle.until_done("app")

        announced = elsewhere.asked[0].removeprefix("announced ")
        assert elsewhere.done[announced] == [4, 5, 6, 7]
        assert elsewhere.values() == list(range(10))
        calls = [token for token, _ in elsewhere.calls].count(announced)
        assert calls == (2 if when == "after" and not asks else 1)
        assert elsewhere.asked[1:] == ([announced] if asks else [])

    Bottle.play(story)


def test_an_effect_that_raises_is_asked_for_again_with_its_token_and_its_records_end_together():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.client.create_stream("dead")
        await bottle.put_together("s", list(range(12)))
        elsewhere = Elsewhere()
        failed: list[tuple[str, list[int]]] = []
        made = consumer("w1", batch_records_max=4, retry=QUICK, dead_letter="dead")

        @made.effect
        async def add(batch: Batch[int], token: str) -> None:
            values = [record.value for record in batch]
            if 5 in values:
                failed.append((token, values))
                raise ConnectionError("no answer")
            await elsewhere.take(token, values)

        bottle.start("w1", made)
        await bottle.until_done("app")

        assert len(failed) == 3 and failed[0] == failed[1] == failed[2] and failed[0][1] == [4, 5, 6, 7]
        assert elsewhere.values() == [0, 1, 2, 3, 8, 9, 10, 11]
        assert [record.value for record in await dead_letters(bottle)] == [4, 5, 6, 7]
        assert made.statistics.dead_lettered == 4

    Bottle.play(story)


def test_a_worker_that_is_killed_by_its_effect_again_and_again_keeps_the_range_together():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.client.create_stream("dead")
        await bottle.put_together("s", list(range(12)))
        elsewhere = Elsewhere()
        tokens: list[str] = []

        def worker(name: str) -> Any:
            made = consumer(name, batch_records_max=4, retry=RetryPolicy(attempts_max=2), dead_letter="dead")

            @made.effect
            async def add(batch: Batch[int], token: str) -> None:
                values = [record.value for record in batch]
                if 5 in values:
                    assert values == [4, 5, 6, 7]
                    tokens.append(token)
                    bottle.kill(name)
                    await asyncio.sleep(10_000)
                await elsewhere.take(token, values)

            return made

        for number in range(9):
            before = len(tokens)
            bottle.start(f"w{number}", worker(f"w{number}"))
            await bottle.until(lambda before=before: len(tokens) > before or len(elsewhere.values()) == 8)
            await asyncio.sleep(15)
        await bottle.until_done("app")

        assert len(tokens) >= 4 and len(set(tokens)) == 1
        assert elsewhere.values() == [0, 1, 2, 3, 8, 9, 10, 11]
        assert [record.value for record in await dead_letters(bottle)] == [4, 5, 6, 7]

    Bottle.play(story)


def test_a_reset_makes_new_tokens_since_a_replay_is_to_be_done_again():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.put_together("s", [1, 2, 3])
        elsewhere = Elsewhere()
        made = consumer("w1")

        @made.effect
        async def add(batch: Batch[int], token: str) -> None:
            await elsewhere.take(token, [record.value for record in batch])

        bottle.start("w1", made)
        await bottle.until_done("app")
        await bottle.client.reset_application("app", "trim_horizon")
        await bottle.until(lambda: len(elsewhere.calls) == 2)

        assert len(elsewhere.done) == 2

    Bottle.play(story)


def test_what_can_never_work_is_refused_at_once(tmp_path):
    def effect(batch: Batch[int], token: str) -> None:
        raise AssertionError("never called")

    for wrong in ({"sink": SQLitePosition(str(tmp_path / "x"))}, {"ordering": Ordering.by_key(2)},
                  {"checkpoint": "manual"}, {"transactional": True}):
        with pytest.raises(InvalidUse):
            consumer("w1", **wrong).effect(effect)
    made = consumer("w1")
    with pytest.raises(InvalidUse, match="token"):
        made.effect(lambda records: None)
    made.effect(effect)
    with pytest.raises(InvalidUse):
        made.effect(effect)
    with pytest.raises(InvalidUse):
        made.handler(effect)


def test_feed_asks_for_effects_without_announcing_them():
    seen: list[int] = []
    made = consumer("w1")

    @made.effect
    def add(batch: Batch[int], token: str) -> None:
        seen.extend(record.value for record in batch)

    assert made.feed([1, 2, 3]).handled == 3
    assert seen == [1, 2, 3]
