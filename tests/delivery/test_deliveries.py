"""Deliveries in the simulator's world: real code, virtual time, workers that die where it hurts."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from typing import Any, Literal

import pytest

from streamkit.delivery.buffer import Buffer
from streamkit.delivery.chunk import Chunk
from streamkit.delivery.delivery import Delivery
from streamkit.delivery.names import Template
from streamkit.delivery.sinks.sink import Refused
from streamkit.errors import InvalidUse, Throttled
from tests.consumer.bottle import Bottle
from tests.consumer.test_failures import dead_letters

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


class Store:
    """A store that knows chunks again. It outlives workers."""

    def __init__(self) -> None:
        self.chunks: dict[str, list[Any]] = {}
        self.ranges: dict[str, tuple[str, Any, Any]] = {}
        self.writes = 0
        self.is_down = False
        self.refused: Callable[[Any], bool] = lambda value: False
        self.before: Callable[[int], None] = lambda number: None      # called with the number of the write
        self.after: Callable[[int], None] = lambda number: None
        self.opened = 0

    def values(self) -> list[Any]:
        return [value for values in self.chunks.values() for value in values]

    def sink(self) -> StoreSink:
        return StoreSink(self)


class StoreSink:
    takes: Literal["values"] = "values"

    def __init__(self, store: Store) -> None:
        self.store = store

    async def open(self) -> None:
        self.store.opened += 1

    async def write(self, chunk: Chunk) -> Iterable[Refused]:
        store = self.store
        store.writes += 1
        number = store.writes
        await asyncio.sleep(0.01)
        if store.is_down:
            raise ConnectionError("nobody answers")
        store.before(number)
        await asyncio.sleep(0.001)         # whoever was killed ends here
        refused = [Refused(i, "no", f"{value} is refused") for i, value in enumerate(chunk.values)
                   if store.refused(value)]  # fmt: skip
        kept = [value for value in chunk.values if not store.refused(value)]
        assert store.chunks.setdefault(chunk.id, kept) == kept, "an id stands for the same records"
        store.ranges[chunk.id] = (chunk.shard, chunk.start, chunk.end)
        store.after(number)
        await asyncio.sleep(0.001)
        return refused

    async def close(self) -> None:
        self.store.opened -= 1


class ObjectStore(Store):
    """The same, with names."""

    def __init__(self) -> None:
        super().__init__()
        self.objects: dict[str, bytes] = {}

    def named(self, template: str) -> NamedSink:
        return NamedSink(self, template)


class NamedSink:
    takes: Literal["body"] = "body"

    def __init__(self, store: ObjectStore, template: str) -> None:
        self.store = store
        self.template = Template(template)

    async def open(self) -> None:
        """Nothing."""

    async def write(self, chunk: Chunk) -> None:
        self.store.writes += 1
        number = self.store.writes
        self.store.before(number)
        await asyncio.sleep(0.001)
        self.store.objects.setdefault(chunk.name, chunk.body)
        self.store.after(number)
        await asyncio.sleep(0.001)

    async def delete(self, name: str) -> None:
        self.store.objects.pop(name, None)

    async def close(self) -> None:
        """Nothing."""


def delivery(sink: Any, name: str = "w1", **options: Any) -> Delivery:
    settings: dict[str, Any] = {"buffer": Buffer(bytes_max=40, seconds_max=1), "worker": name, "drain_seconds": 5}
    return Delivery("app", source="s", sink=sink, **(settings | options))


def test_every_record_is_delivered_once_in_ranges_that_follow_each_other():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s", shards=2)
        store = Store()
        made = delivery(store.sink())
        bottle.start("w1", made)
        await bottle.put("s", list(range(100)))
        await bottle.until_done("app")

        assert sorted(store.values()) == list(range(100))
        for shard in {shard for shard, _, _ in store.ranges.values()}:
            ranges = sorted((start, end) for each, start, end in store.ranges.values() if each == shard)
            assert [start for start, _ in ranges] == [(0, 0), *(end for _, end in ranges[:-1])]
        assert made.progress.records == 100 and made.progress.oldest_ms == {} and made.progress.trouble == {}
        assert store.opened == 1 and made._member is not None
        made._member.stop()
        await bottle.until(lambda: store.opened == 0)

    Bottle.play(story)


def test_a_quiet_range_is_written_when_its_time_is_over():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        store = Store()
        bottle.start("w1", delivery(store.sink(), buffer=Buffer(seconds_max=30)))
        await bottle.put("s", [1])
        waited = await bottle.until(lambda: store.values() == [1])
        assert 29 < waited < 33
        await bottle.put("s", [2, 3])
        await bottle.until_done("app")
        assert list(store.chunks.values()) == [[1], [2, 3]]

    Bottle.play(story)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_worker_that_dies_around_a_write_leaves_nothing_undone_and_nothing_twice(moment, number):
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        store = Store()
        bottle.start("w1", delivery(store.sink()))
        setattr(store, moment, lambda at: bottle.kill("w1") if at == number else None)
        await bottle.put("s", list(range(60)))
        await asyncio.sleep(20)
        # Another buffer would end ranges elsewhere; what was planned is finished as it was planned.
        second = delivery(store.sink(), "w2", buffer=Buffer(bytes_max=25, seconds_max=2))
        bottle.start("w2", second)
        await bottle.until_done("app")

        assert sorted(store.values()) == list(range(60))
        assert second.progress.repeated == 1

    Bottle.play(story)


def test_a_store_that_is_down_for_36_hours_costs_nothing_but_time_and_the_lag_is_seen_all_the_while():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        store = Store()
        store.is_down = True
        made = delivery(store.sink())
        bottle.start("w1", made)
        seen = []
        for hour in range(36):
            await bottle.put("s", [hour])
            await asyncio.sleep(3600)
            seen.append(made.progress.freshness_seconds(made.clock.now_ms()))
            assert made.progress.trouble["shardId-000000000000"].message == "nobody answers"
        assert seen == sorted(seen) and 35 * 3600 < seen[-1] < 37 * 3600
        store.is_down = False
        await bottle.until_done("app")
        assert sorted(store.values()) == list(range(36))
        assert made.progress.trouble == {} and made.progress.oldest_ms == {}

    Bottle.play(story, seconds_max=40 * 3600)


@pytest.mark.parametrize(("asked_ms", "seconds"), [(600_000, 600), (10**12, 7_200)])
def test_a_store_that_asks_to_be_left_alone_is_but_not_for_years(asked_ms, seconds):
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        store = Store()

        def busy(number: int) -> None:
            if number == 1:
                raise Throttled("later", retry_after_ms=asked_ms, scope="store")

        store.before = busy
        made = delivery(store.sink())
        bottle.start("w1", made)
        await bottle.put("s", [1])
        await bottle.until(lambda: bool(made.progress.trouble))
        waited = await bottle.until(lambda: store.values() == [1], seconds=seconds + 60)
        assert seconds - 1 < waited < seconds + 5 and store.writes == 2

    Bottle.play(story, seconds_max=10_000)


def test_records_are_changed_left_out_made_several_and_given_up():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.client.create_stream("dead")
        store = Store()
        store.refused = lambda value: value == 70
        made = delivery(store.sink(), dead_letter="dead")

        @made.transform
        def change(value: int) -> Any:
            if value == 3:
                raise ValueError("three")
            return None if value == 4 else [value, -value] if value == 5 else value * 10

        bottle.start("w1", made)
        await bottle.put("s", list(range(8)))
        await bottle.put("s", ["no number"])
        await bottle.until_done("app")

        assert sorted(store.values()) == sorted([0, 10, 20, 5, -5, 60])
        dead = await dead_letters(bottle, "dead")
        assert sorted(record.data for record in dead) == [b'"no number"', b"3", b"7"]
        reasons = {record.data: record.headers["dead-letter-reason"].decode() for record in dead}
        assert "ValueError: three" in reasons[b"3"] and "70 is refused" in reasons[b"7"]
        assert made.progress.dropped == 1
        assert made.progress.failed == {"decode_failed": 1, "transform.failed": 1, "no": 1}

    Bottle.play(story)


def test_without_a_dead_letter_stream_what_cannot_be_delivered_holds_the_shard_and_says_so():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        store = Store()
        store.refused = lambda value: value == 1
        made = delivery(store.sink())
        bottle.start("w1", made)
        await bottle.put("s", [0, 1])
        await bottle.until(lambda: bool(made.progress.trouble))
        await asyncio.sleep(5)
        await bottle.put("s", [2])
        await asyncio.sleep(60)

        [trouble] = made.progress.trouble.values()
        assert trouble.code == "undeliverable" and "1 records cannot be delivered" in trouble.message
        assert 2 not in store.values()

    Bottle.play(story)


def test_a_worker_that_is_told_to_stop_finishes_what_it_writes_and_leaves_the_rest():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        store = Store()
        made = delivery(store.sink(), buffer=Buffer(bytes_max=20, seconds_max=3600))
        task = bottle.start("w1", made)
        await bottle.put("s", list(range(47)))
        await bottle.until(lambda: len(store.chunks) == 2)
        assert made._member is not None
        made._member.stop()
        await task
        held = len(store.values())
        assert 0 < held < 47
        bottle.start("w2", delivery(store.sink(), "w2"))
        await bottle.until_done("app")
        assert sorted(store.values()) == list(range(47))

    Bottle.play(story)


def test_a_split_shard_is_delivered_to_its_end_before_its_children():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        store = Store()
        bottle.start("w1", delivery(store.sink(), buffer=Buffer(seconds_max=3600)))
        await bottle.put("s", list(range(10)))
        await bottle.client.split_shard("s", 0)
        await bottle.put("s", list(range(10, 20)))
        await bottle.until(lambda: len(store.values()) >= 10)
        assert sorted(store.values()) == list(range(10)), "the end of a shard ends its last range"
        assert {shard for shard, _, _ in store.ranges.values()} == {"shardId-000000000000"}

    Bottle.play(story)


def test_objects_that_a_former_function_planned_and_the_present_one_does_not_write_are_taken_away():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        store = ObjectStore()
        first = delivery(store.named("{data.to}/"))

        @first.transform
        def by_one(value: int) -> dict[str, Any]:
            return {"to": "old" if value % 2 else "both", "value": value}

        store.after = lambda number: bottle.kill("w1") if number == 2 else None
        bottle.start("w1", first)
        await bottle.put("s", list(range(4)))
        await asyncio.sleep(20)
        assert {name.split("/")[0] for name in store.objects} == {"old", "both"}
        second = delivery(store.named("{data.to}/"), "w2")

        @second.transform
        def by_another(value: int) -> dict[str, Any]:
            return {"to": "new" if value % 2 else "both", "value": value}

        bottle.start("w2", second)
        await bottle.until_done("app")
        assert {name.split("/")[0] for name in store.objects} == {"new", "both"}

    Bottle.play(story)


def test_a_delivery_refuses_what_can_never_work():
    made = delivery(Store().sink())
    made.transform(lambda value: value)
    with pytest.raises(InvalidUse, match="one transformation"):
        made.transform(lambda value: value)
    with pytest.raises(InvalidUse, match="memory_bytes_max"):
        delivery(Store().sink(), memory_bytes_max=0)
    with pytest.raises(InvalidUse, match="no plain function"):
        delivery(Store().sink()).transform(lambda one, two: one)


async def _objects_after(bottle: Bottle, draw: random.Random, kills: int) -> dict[str, bytes]:
    """What a store holds of 84 records, in ranges of seven, after so many deaths at any moment."""
    await bottle.client.create_stream("s", shards=1)
    store = ObjectStore()

    def start(life: int) -> None:
        bottle.start(f"w{life}", delivery(
            store.named("{data.part}/"), "w", buffer=Buffer(records_max=7, seconds_max=1e6), membership_ms=2_000,
        ))  # fmt: skip

    start(0)
    await bottle.put("s", [{"number": number, "part": number % 3} for number in range(84)])
    for life in range(kills):
        await asyncio.sleep(draw.choice([draw.uniform(0, 0.05), draw.uniform(0, 3)]))
        bottle.kill(f"w{life}")
        start(life + 1)
    await bottle.until_done("app")
    # Arrival is of the world's own clock: the same records have the same names in every run.
    return store.objects


def test_objects_are_those_of_an_undisturbed_run_however_often_workers_die():
    """Delivery F1 of the specification: any moment, 100 runs of up to six deaths each."""
    found: list[dict[str, bytes]] = []

    async def story(bottle: Bottle) -> None:
        found.append(await _objects_after(bottle, random.Random(len(found)), 0 if not found else len(found) % 6 + 1))

    for _ in range(101):
        Bottle.play(story)
    assert len(found[0]) == 36
    assert all(objects == found[0] for objects in found)


def test_shards_share_one_bound_of_memory_and_the_fullest_gives_way():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s", shards=4)
        store = Store()
        made = delivery(store.sink(), buffer=Buffer(bytes_max=10_000, seconds_max=3600), memory_bytes_max=200)
        most = 0

        def look(number: int) -> None:
            nonlocal most
            most = max(most, made.memory.held)

        store.before = look
        bottle.start("w1", made)
        await bottle.put("s", [f"{number:020d}" for number in range(200)])
        await bottle.until(lambda: len(store.values()) > 170)
        assert 200 <= most < 300, "a batch more than the bound"
        assert made.memory.held < 300
        made.memory.bytes_max = 1          # the rest is written as well
        await bottle.put("s", [f"{number:020d}" for number in range(200, 220)])
        await bottle.until(lambda: len(store.values()) > 210)

    Bottle.play(story)


def test_a_store_that_cannot_be_opened_is_waited_for_and_one_that_is_down_keeps_nobody_from_stopping():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        store = Store()
        store.is_down = True

        class Closed(StoreSink):
            async def open(self) -> None:
                if store.is_down:
                    raise ConnectionError("nobody is at home")
                await super().open()

        made = delivery(Closed(store))
        task = bottle.start("w1", made)
        await bottle.put("s", list(range(40)))
        await bottle.until(lambda: bool(made.progress.trouble))
        assert next(iter(made.progress.trouble.values())).message == "nobody is at home"
        await asyncio.sleep(3600)
        assert [lease.lease_epoch for lease in (await bottle.describe("app")).leases] == [1], "it stays where it is"
        began_s = asyncio.get_running_loop().time()
        assert made._member is not None
        made._member.stop()
        await task
        assert asyncio.get_running_loop().time() - began_s < 12
        store.is_down = False
        bottle.start("w2", delivery(store.sink(), "w2"))
        await bottle.until_done("app")
        assert sorted(store.values()) == list(range(40))

    Bottle.play(story, seconds_max=6_000)


async def test_a_sink_that_is_closed_while_somebody_comes_is_open_for_them():
    """Leases move: one shard is the last to leave, another the first to come."""
    store = Store()

    class Slow(StoreSink):
        async def close(self) -> None:
            await asyncio.sleep(0.01)
            await super().close()

    made = delivery(Slow(store))
    await made.sink_opened()
    leaving = asyncio.ensure_future(made.sink_released())
    await asyncio.sleep(0.001)             # it is closing by now
    coming = asyncio.ensure_future(made.sink_opened())
    await asyncio.gather(leaving, coming)
    assert store.opened == 1
    await made.sink_released()
    assert store.opened == 0


async def test_who_comes_before_the_last_one_has_closed_finds_the_sink_as_it_is():
    store = Store()
    made = delivery(store.sink())
    await made.sink_opened()
    coming, leaving = asyncio.ensure_future(made.sink_opened()), asyncio.ensure_future(made.sink_released())
    await asyncio.gather(coming, leaving)
    assert store.opened == 1
    await made.sink_released()
    assert store.opened == 0
