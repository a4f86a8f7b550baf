"""What workers and the coordinator promise as a whole: zombies, suspended machines, fail-overs and deploys."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import streamkit.session
from streamkit._core.batch import Record
from streamkit.consumer.consumer import Consumer
from streamkit.consumer.handler import Context
from streamkit.errors import LeaseLost
from streamkit.producer.producer import AsyncProducer
from streamkit.protocol.messages import Checkpoint, CheckpointItem
from streamkit.runtime.real import LoopThread, RealClock
from tests.consumer.bottle import MEMBERSHIP_MS, Bottle, consumer

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


class Store:
    """A store that takes a write only from the newest owner it has seen; `refused`: what it turned down."""

    def __init__(self) -> None:
        self.newest: dict[str, int] = {}
        self.records: list[tuple[str, int, int]] = []      # worker, fencing token, sequence
        self.refused: list[tuple[str, int, int]] = []

    def write(self, ctx: Context, record: Record[Any]) -> None:
        entry = (ctx.worker, ctx.fencing_token, record.sequence)
        if ctx.fencing_token < self.newest.get(ctx.shard, 0):
            self.refused.append(entry)
            return
        self.newest[ctx.shard] = ctx.fencing_token
        self.records.append(entry)

    def by(self, worker: str) -> int:
        return sum(entry[0] == worker for entry in self.records)

    def start(self, bottle: Bottle, name: str, seconds: float = 0.05) -> Consumer:
        made = consumer(name)

        @made.handler
        async def handle(record: Record[Any], ctx: Context) -> None:
            self.write(ctx, record)
            await asyncio.sleep(seconds)

        bottle.start(name, made)
        return made


async def _refused_everywhere(bottle: Bottle, session: int, lease_epoch: int) -> None:
    shard = (await bottle.client.stream("s")).shards[0]
    late = CheckpointItem(shard.uuid, lease_epoch, 1_000_000, 1)
    assert (await bottle.client.call(Checkpoint("app", "w1", (late,)))).results == ("fenced",)
    with pytest.raises(LeaseLost):
        await bottle.client.fetch(shard, 0, wait_ms=0, application="app", session=session, lease_epoch=lease_epoch)


async def _at_work(bottle: Bottle) -> tuple[Store, Consumer, list[str]]:
    """A store, a worker in the midst of a batch for it, and a list that tells of the loss of its lease."""
    await bottle.client.create_stream("s")
    await bottle.put_together("s", list(range(1_000)))
    store = Store()
    first = store.start(bottle, "w1")
    await bottle.until(lambda: store.by("w1") > 5)
    lost: list[str] = []

    async def lease_lost() -> None:
        lost.append("lost")

    next(iter(first._member._held.values())).consumer._driver.lease_lost = lease_lost
    return store, first, lost


def test_a_zombie_delivers_no_further_record_and_is_fenced_everywhere():
    """Acceptance: consumer 1: stopped for three time-outs, in the middle of a batch."""
    async def story(bottle: Bottle) -> None:
        store, first, lost = await _at_work(bottle)
        held = next(iter(first._member._held.values()))
        session, lease_epoch = first._member._keeper.session, held.lease.lease_epoch

        bottle.world.stop(bottle.processes["w1"])
        store.start(bottle, "w2")
        await asyncio.sleep(3 * MEMBERSHIP_MS / 1000)
        assert store.by("w2") > 100
        before = store.by("w1")
        bottle.world.resume(bottle.processes["w1"])
        await asyncio.sleep(2)

        assert store.by("w1") == before and store.refused == [], "not one record more, and no stale write"
        assert lost == ["lost"]
        await _refused_everywhere(bottle, session, lease_epoch)
        await bottle.until_done("app")

    Bottle.play(story)


def test_a_worker_whose_machine_slept_delivers_no_further_record_though_no_timer_fired():
    """Acceptance: consumer 2: the clock that counts time asleep jumps; everything else lived on."""
    async def story(bottle: Bottle) -> None:
        store, first, lost = await _at_work(bottle)
        held = next(iter(first._member._held.values()))
        session, lease_epoch = first._member._keeper.session, held.lease.lease_epoch

        for clock in bottle.world.clocks.values():
            clock.sleep(3 * MEMBERSHIP_MS)
        before, began_s = store.by("w1"), asyncio.get_running_loop().time()
        await bottle.until(lambda: held.lease.lost)
        assert asyncio.get_running_loop().time() - began_s < 0.1, "no timer told it, but a look between records"
        second = store.start(bottle, "w2")
        await bottle.until(lambda: second.shards != () or len(first.shards) == 1)
        await asyncio.sleep(2)

        stale = [entry for entry in store.records[before:] if entry[1] == lease_epoch]
        assert stale == [] and store.refused == [], "nothing more under the old lease"
        assert lost == ["lost"]
        await _refused_everywhere(bottle, session, lease_epoch)
        await bottle.until_done("app")
        assert {sequence for _, _, sequence in store.records} >= set(range(2, 1_000))

    Bottle.play(story)


def test_the_real_clock_of_deadlines_counts_time_asleep():
    """Acceptance: consumer 2: CLOCK_BOOTTIME, not the monotonic clock that stands still."""
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
    assert before <= RealClock().monotonic_ms() <= time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def test_a_lease_that_is_lost_ends_a_plain_function_after_the_record_in_hand(tmp_path: Path):
    """Acceptance: consumer 1, for handlers in threads, which nobody can cancel."""
    with streamkit.session.open(str(tmp_path / "data"), {"streams.auto_create": False}) as session:
        session.client.create_stream("s", durability="os")
        with session.producer("s") as producer:
            for number in range(200):
                producer.put(number, key="k")
        made = session.consumer("s", application="app", start="trim_horizon")
        begun, go_on = threading.Event(), threading.Event()
        seen: list[tuple[int, int]] = []

        @made.handler
        def handle(value: int, ctx: Context) -> None:
            seen.append((ctx.fencing_token, value))
            if len(seen) == 5:
                begun.set()
                assert go_on.wait(30)

        with made:
            assert begun.wait(30)
            member = made._member
            _on_the_loop_of(made, lambda: [member._on_lost(shard) for shard in list(member._held)]).wait(30)
            _on_the_loop_of(made, lambda: None).wait(30)   # a turn later the lost lease's task has seen it
            go_on.set()

        assert [value for token, value in seen if token == 1] == [0, 1, 2, 3, 4]


def _on_the_loop_of(made: Any, work: Any) -> threading.Event:
    done = threading.Event()

    def run() -> None:
        work()
        done.set()

    (made._loop_thread or LoopThread.shared()).loop.call_soon_threadsafe(run)
    return done


async def _leases(bottle: Bottle) -> dict[int, tuple[str, int]]:
    return {lease.ordinal: (lease.owner, lease.lease_epoch) for lease in (await bottle.describe("app")).leases}


def test_a_coordinator_that_dies_every_ten_seconds_moves_no_lease_and_loses_no_checkpoint():
    """Acceptance: consumer 7: thirty fail-overs among three nodes, in five minutes under load."""
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s", shards=4)
        store = Store()
        workers = [store.start(bottle, name, seconds=0.001) for name in ("w1", "w2")]
        await bottle.until(lambda: [len(each.shards) for each in workers] == [2, 2])
        before = await _leases(bottle)
        checkpoints: dict[int, int] = {}
        began_s, put = asyncio.get_running_loop().time(), 0
        producer = AsyncProducer("s", client=bottle.client)

        for number in range(30):
            for _ in range(40):
                await producer.put(put, key=f"k{put}")
                put += 1
            await asyncio.sleep(max(0.0, began_s + 10 * (number + 1) - 1 - asyncio.get_running_loop().time()))
            await bottle.kill_coordinator()
            for lease in (await bottle.describe("app")).leases:
                assert lease.checkpoint >= checkpoints.get(lease.ordinal, 0), "a stored checkpoint is there again"
                checkpoints[lease.ordinal] = lease.checkpoint

        assert asyncio.get_running_loop().time() - began_s > 290
        await producer.close()
        await bottle.until_done("app")
        assert await _leases(bottle) == before, "no lease moved"
        assert len(store.records) == put, "nothing lost, nothing twice: every checkpoint was stored"

    Bottle.play(story, nodes=3)


def test_a_rolling_deploy_of_ten_workers_repeats_nothing_and_each_shard_pauses_for_less_than_a_second():
    """Acceptance: consumer 8: ten workers, a hundred shards, each replaced while records come."""
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s", shards=100)
        store = Pauses()
        workers = [store.start(bottle, f"old-{number}") for number in range(10)]
        await bottle.until(lambda: [len(each.shards) for each in workers] == [10] * 10)
        feeding = asyncio.create_task(store.feed(bottle))
        await bottle.until(lambda: len(store.seen) > 300)

        for number, worker in enumerate(workers):
            worker._member.stop()
            await bottle.tasks[f"old-{number}"]
            made = store.start(bottle, f"new-{number}")
            await bottle.until(lambda made=made: len(made.shards) == 10)
        store.enough = True
        await feeding
        await bottle.until_done("app")

        assert sorted(store.seen) == list(range(store.put)), "nothing lost, nothing redelivered"
        pauses = sorted(store.pauses)
        assert len(pauses) > 100 and pauses[len(pauses) * 99 // 100] < 1.0

    Bottle.play(story)


class Pauses:
    """How long each record waited: as every shard gets some many times a second, that is how long a shard paused."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.pauses: list[float] = []
        self.put_s: dict[int, float] = {}
        self.put = 0
        self.enough = False

    async def feed(self, bottle: Bottle) -> None:
        async with AsyncProducer("s", client=bottle.client) as producer:
            while not self.enough:
                for _ in range(300):
                    self.put_s[self.put] = asyncio.get_running_loop().time()
                    await producer.put(self.put, key=f"k{self.put}")
                    self.put += 1
                await asyncio.sleep(0.2)

    def start(self, bottle: Bottle, name: str) -> Any:
        made = consumer(name)

        @made.handler
        async def handle(value: int) -> None:
            self.seen.append(value)
            self.pauses.append(asyncio.get_running_loop().time() - self.put_s[value])

        bottle.start(name, made)
        return made
