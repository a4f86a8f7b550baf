"""Workers with a name that outlives their process, and workers that stand by: real code in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from streamkit.errors import InstanceTaken
from tests.consumer.bottle import MEMBERSHIP_MS, Bottle
from tests.consumer.test_members import Seen, started

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


async def _owners(bottle: Bottle) -> dict[int, tuple[str, int]]:
    return {lease.ordinal: (lease.owner, lease.lease_epoch) for lease in (await bottle.describe("app")).leases}


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_worker_that_restarts_under_its_instance_name_keeps_its_leases_and_no_other_moves(how):
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s", shards=4)
        seen = Seen()
        first = started(bottle, seen, "b-1", instance="b", seconds=0.005)
        second = started(bottle, seen, "w")
        await bottle.until(lambda: (len(first.shards), len(second.shards)) == (2, 2))
        before = await _owners(bottle)
        await bottle.put("s", list(range(200)))
        await bottle.until(lambda: len(seen.by("b-1")) > 10)

        if how == "killed":
            bottle.kill("b-1")
        else:
            first._member.stop()
            await bottle.tasks["b-1"]
        await asyncio.sleep(MEMBERSHIP_MS / 1000 - 1)
        again = started(bottle, seen, "b-2", instance="b")
        await bottle.until(lambda: len(again.shards) == 2)
        await bottle.until_done("app")

        after = await _owners(bottle)
        assert {n: ("b-2", epoch + 1) if owner == "b-1" else (owner, epoch) for n, (owner, epoch) in before.items()} \
            == after
        assert set(seen.values) == set(range(200))
        assert how == "killed" or len(seen.values) == 200, "an orderly stop repeats nothing"

    Bottle.play(story)


def test_an_instance_that_stays_away_is_replaced_after_its_time_out():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s", shards=2)
        seen = Seen()
        first = started(bottle, seen, "b-1", instance="b")
        second = started(bottle, seen, "w")
        await bottle.until(lambda: len(first.shards) == len(second.shards) == 1)

        first._member.stop()
        await bottle.tasks["b-1"]

        assert MEMBERSHIP_MS / 1000 - 1 < await bottle.until(lambda: len(second.shards) == 2) < MEMBERSHIP_MS / 1000 + 1

    Bottle.play(story)


def test_the_elder_of_two_workers_with_one_instance_name_ends_with_an_error_and_the_younger_works_on():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s", shards=2)
        seen = Seen()
        first = started(bottle, seen, "b-1", instance="b")
        await bottle.until(lambda: len(first.shards) == 2)
        second = started(bottle, seen, "b-2", instance="b")

        with pytest.raises(InstanceTaken, match="b-2"):
            await asyncio.wait_for(bottle.tasks["b-1"], 2)
        await bottle.put("s", list(range(20)))
        await bottle.until_done("app")

        assert len(second.shards) == 2 and sorted(seen.by("b-2")) == list(range(20))

    Bottle.play(story)


def test_an_instance_survives_a_restart_of_the_node_that_is_longer_than_a_heartbeat():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s", shards=2)
        seen = Seen()
        made = started(bottle, seen, "b-1", instance="b")
        await bottle.until(lambda: len(made.shards) == 2)
        before = await _owners(bottle)

        bottle.world.kill(bottle.cluster.process)
        await asyncio.sleep(MEMBERSHIP_MS * 0.4 / 1000)
        bottle.cluster.start()
        await bottle.cluster.ready.wait()
        await bottle.put("s", list(range(20)))
        await bottle.until_done("app")

        assert await _owners(bottle) == before

    Bottle.play(story)


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_standby_worker_takes_over_at_once_when_one_goes(how):
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s", shards=6)
        seen = Seen()
        first, second = started(bottle, seen, "w1"), started(bottle, seen, "w2")
        await bottle.until(lambda: (len(first.shards), len(second.shards)) == (3, 3))
        spare = started(bottle, seen, "spare", standby=True)
        await asyncio.sleep(60)
        assert spare.shards == () and spare._member._keeper.session != 0
        mine = second.shards

        if how == "killed":
            bottle.kill("w2")
        else:
            second._member.stop()
        seconds = await bottle.until(lambda: spare.shards == mine)

        assert seconds < (MEMBERSHIP_MS * 0.3 / 1000 + 0.6 if how == "killed" else 1.0)
        assert len(first.shards) == 3, "nobody else is disturbed"

    Bottle.play(story)
