"""Positions that an operator sets while workers run: across splits, into the future, and back again."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from streamkit.consumer.ordering import Ordering
from streamkit.errors import Conflict, InvalidPosition, InvalidRequest
from streamkit.model.position import AtSequence
from tests.consumer.bottle import Bottle, consumer


class Seen:
    """What a worker's handler was given, since `forget`."""

    def __init__(self) -> None:
        self.values: list[Any] = []

    def start(self, bottle: Bottle, name: str) -> Any:
        made = consumer(name)

        @made.handler
        async def handle(value: Any) -> None:
            self.values.append(value)

        bottle.start(name, made)
        return made


def test_a_reset_to_a_time_before_a_split_replays_in_order_while_workers_run():
    """Acceptance: consumer 15: reset live, to a time across a split; fenced members rejoin."""
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.put("s", list(range(10)), key="one")
        await asyncio.sleep(5)
        at = datetime.fromtimestamp(bottle.client.runtime.clock.now_ms() / 1000, UTC)
        await asyncio.sleep(5)
        await bottle.put("s", list(range(10, 20)), key="one")
        await bottle.client.split_shard("s", 0)
        await bottle.put("s", list(range(20, 30)), key="one")
        seen = Seen()
        first, second = seen.start(bottle, "w1"), seen.start(bottle, "w2")
        await bottle.until_done("app")
        assert seen.values == list(range(30))
        seen.values.clear()

        plan = await bottle.client.reset_application("app", at, dry_run=True)
        assert seen.values == [] and plan.changes[0].shard == "shardId-000000000000"
        assert 20 <= plan.again <= 26 and plan.skipped == 0, "twenty records, and marks"
        assert 0 < plan.seconds(bottle.client.runtime.clock.now_ms()) < 60
        done = await bottle.client.reset_application("app", at)
        await bottle.until(lambda: len(seen.values) == 20)

        assert done.again == plan.again
        assert seen.values == list(range(10, 30)), "the parent first, then its children"
        await bottle.until_done("app")
        assert await bottle.client.check_application("app") == ()
        await bottle.until(lambda: len(first.shards) == len(second.shards) == 1)       # both go on as members

        await bottle.client.undo_reset("app")
        await asyncio.sleep(5)
        assert seen.values == list(range(10, 30)), "nothing comes again"
        await bottle.client.reset_application("app", "latest")
        await bottle.put("s", [30], key="one")
        await bottle.until(lambda: len(seen.values) == 21)

    Bottle.play(story)


def test_a_closed_shard_alone_brings_its_children_along():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s", shards=2)
        await bottle.put("s", list(range(20)))
        await bottle.client.split_shard("s", 0)
        await bottle.put("s", list(range(20, 40)))
        seen = Seen()
        seen.start(bottle, "w1")
        await bottle.until_done("app")
        assert sorted(seen.values) == list(range(40))
        seen.values.clear()
        plan = await bottle.client.reset_application("app", "trim_horizon", shards=["shardId-000000000000"])
        await bottle.until_done("app")

        assert [change.shard[-1] for change in plan.changes] == ["0", "2", "3"]
        assert 0 < len(seen.values) < 40
        with pytest.raises(InvalidRequest, match="shardId-9"):
            await bottle.client.reset_application("app", "latest", shards=["shardId-9"])
        with pytest.raises(InvalidPosition):
            await bottle.client.reset_application("app", AtSequence(10_000), shards=["shardId-000000000001"])

    Bottle.play(story)


def test_positions_are_exported_and_imported_and_the_last_change_is_undone():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s", shards=2)
        await bottle.put("s", list(range(10)))
        seen = Seen()
        made = seen.start(bottle, "w1")
        await bottle.until_done("app")
        with pytest.raises(Conflict):
            await bottle.client.undo_reset("app")
        document = await bottle.client.export_positions("app")
        await bottle.put("s", list(range(10, 20)))
        await bottle.until_done("app")
        made._member.stop()
        await bottle.tasks["w1"]
        seen.values.clear()

        plan = await bottle.client.import_positions("app", document)
        assert plan.again == 10
        assert sum(lease.lag_records for lease in (await bottle.describe("app")).leases) == 10
        await bottle.restart_node()
        await bottle.client.undo_reset("app")
        assert sum(lease.lag_records for lease in (await bottle.describe("app")).leases) == 0
        await bottle.client.undo_reset("app")
        seen.start(bottle, "w2")
        await bottle.until_done("app")
        assert sorted(seen.values) == list(range(10, 20))

        for bad in ({}, {**document, "positions": [{"stream": "s"}]},
                    {**document, "positions": [{**document["positions"][0], "uuid": "00" * 16}]}):
            with pytest.raises(InvalidRequest):
                await bottle.client.import_positions("app", bad)
        with pytest.raises(InvalidPosition):
            await bottle.client.import_positions(
                "app", {**document, "positions": [{**document["positions"][0], "sequence": 999}]}
            )

    Bottle.play(story)


def test_an_undone_reset_brings_back_what_lanes_had_finished_ahead_of_the_position():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        for number in range(30):
            await bottle.put("s", [number], key=f"key-{number % 10}")
        first: list[int] = []
        made = consumer("w1", ordering=Ordering.by_key(4))
        stuck = asyncio.Event()

        @made.handler
        async def handle(value: int) -> None:
            if value == 3:
                stuck.set()
                await asyncio.sleep(10_000)
            first.append(value)

        bottle.start("w1", made)
        await stuck.wait()
        await asyncio.sleep(5)             # the others are finished, and that is stored
        bottle.kill("w1")
        assert len(first) >= 15

        await bottle.client.reset_application("app", "trim_horizon")
        await bottle.restart_node()        # what was put aside is in the log, or in a snapshot
        await bottle.client.undo_reset("app")
        seen = Seen()
        seen.start(bottle, "w2")
        await bottle.until_done("app")

        assert sorted(seen.values) == sorted(set(range(30)) - set(first))

    Bottle.play(story)


def test_a_paused_application_handles_nothing_until_it_is_resumed():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s", shards=2)
        await bottle.put("s", list(range(10)))
        seen = Seen()
        made = seen.start(bottle, "w1")
        await bottle.until_done("app")
        await bottle.client.pause_application("app", "a deploy of the database")
        await bottle.until(lambda: not made.shards)
        await bottle.put("s", list(range(10, 20)))
        await asyncio.sleep(30)
        described = await bottle.describe("app")
        assert len(seen.values) == 10 and described.held == "a deploy of the database"
        assert {(lease.state, lease.reason) for lease in described.leases} == {("paused", "a deploy of the database")}
        await bottle.restart_node()
        await asyncio.sleep(5)
        assert len(seen.values) == 10, "a coordinator that comes anew knows"
        await bottle.client.resume_application("app")
        await bottle.until_done("app")

        assert sorted(seen.values) == list(range(20)), "and no record twice"

    Bottle.play(story)
