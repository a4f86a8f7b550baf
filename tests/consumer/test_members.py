"""Workers share shards, take over, and are fenced: whole nodes and workers in virtual time."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from streamkit._core.batch import Batch, Record
from streamkit.consumer.checkpointer import Checkpointer
from streamkit.consumer.handler import Context
from streamkit.consumer.processor import RecordProcessor, ShardContext
from streamkit.errors import LeaseLost, NodeDraining, StreamNotFound
from streamkit.protocol.messages import ResumeLeases
from tests.consumer.bottle import MEMBERSHIP_MS, Bottle, consumer, worker

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


class Seen:
    """What handlers were given, by worker."""

    def __init__(self) -> None:
        self.records: list[tuple[str, str, int, Any]] = []     # worker, shard, sequence, value

    def by(self, name: str) -> list[Any]:
        return [value for worker, _, _, value in self.records if worker == name]

    @property
    def values(self) -> list[Any]:
        return [value for _, _, _, value in self.records]

    def handler(self, name: str, seconds: float = 0.0):
        async def handle(record: Record, ctx: Context) -> None:
            self.records.append((name, record.shard, record.sequence, record.value))
            if seconds:
                await asyncio.sleep(seconds)

        return handle


def started(bottle: Bottle, seen: Seen, name: str, *, seconds: float = 0.0, **options: Any):
    made = consumer(name, **options)
    made.handler(seen.handler(name, seconds))
    bottle.start(name, made)
    return made


def test_every_record_is_handled_once_and_in_order():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s", shards=3)
        await bottle.put("s", list(range(200)))
        seen = Seen()
        started(bottle, seen, "w1")

        await bottle.until_done("app")

        assert sorted(seen.values) == list(range(200))
        for shard in {shard for _, shard, _, _ in seen.records}:
            sequences = [sequence for _, where, sequence, _ in seen.records if where == shard]
            assert sequences == sorted(sequences)

    Bottle.play(story)


def test_two_workers_share_and_a_leaving_one_hands_over_at_once():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s", shards=4)
        seen = Seen()
        first = started(bottle, seen, "w1")
        await bottle.until(lambda: len(first.shards) == 4)
        second = started(bottle, seen, "w2")

        assert await bottle.until(lambda: (len(first.shards), len(second.shards)) == (2, 2)) < 1.0

        first._member.stop()
        assert await bottle.until(lambda: len(second.shards) == 4) < 1.0
        await bottle.tasks["w1"]
        await bottle.put("s", list(range(40)))
        await bottle.until_done("app")
        assert sorted(seen.by("w2")) == list(range(40))

    Bottle.play(story)


def test_a_killed_worker_is_replaced_within_a_heartbeat_and_nothing_is_lost():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s", shards=2)
        seen = Seen()
        first = started(bottle, seen, "w1", seconds=0.01)
        second = started(bottle, seen, "w2", seconds=0.01)
        await bottle.until(lambda: len(first.shards) == len(second.shards) == 1)
        await bottle.put("s", list(range(300)))
        await bottle.until(lambda: len(seen.by("w1")) > 20)

        bottle.kill("w1")
        seconds = await bottle.until(lambda: len(second.shards) == 2)
        await bottle.until_done("app")

        assert seconds < MEMBERSHIP_MS * 0.3 / 1000 + 0.6
        assert set(seen.values) == set(range(300))
        again = len(seen.values) - 300
        assert again < 120, "only what came after the last checkpoint comes again"

    Bottle.play(story)


def test_a_stopped_worker_wakes_as_a_zombie_and_is_refused_everywhere():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s", shards=1)
        lost: list[str] = []
        refused: list[BaseException] = []
        seen: list[tuple[str, int]] = []

        class Slow(RecordProcessor):
            def __init__(self, name: str) -> None:
                self.name = name

            async def process(self, batch: Batch, checkpointer: Checkpointer) -> None:
                for record in batch:
                    seen.append((self.name, record.sequence))
                await asyncio.sleep(0.05)
                try:
                    await checkpointer.checkpoint()
                except LeaseLost as error:
                    refused.append(error)
                    raise

            async def lease_lost(self) -> None:
                lost.append(self.name)

        bottle.start("w1", worker("w1", lambda: Slow("w1")))
        await bottle.put("s", list(range(50)))
        await bottle.until(lambda: len(seen) > 5)
        bottle.world.stop(bottle.processes["w1"])
        bottle.start("w2", worker("w2", lambda: Slow("w2")))
        await asyncio.sleep(3 * MEMBERSHIP_MS / 1000)
        await bottle.until(lambda: ("w2", 50) in seen or seen[-1][0] == "w2")
        by_zombie = sum(name == "w1" for name, _ in seen)
        moved = (await bottle.describe("app")).leases[0]

        bottle.world.resume(bottle.processes["w1"])
        await asyncio.sleep(1)

        assert sum(name == "w1" for name, _ in seen) == by_zombie, "a zombie is given no further record"
        assert lost.count("w1") == 1
        after = (await bottle.describe("app")).leases[0]
        assert after.checkpoint >= moved.checkpoint and after.owner in ("w2", "w1") and after.lease_epoch >= 2

    Bottle.play(story)


def test_a_record_put_after_the_application_was_made_survives_a_crash_before_the_first_checkpoint():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.put("s", ["before"])
        seen = Seen()
        made = started(bottle, seen, "w1", start="latest")
        await bottle.until(lambda: made.shards != ())
        bottle.kill("w1")
        await bottle.put("s", ["after"])

        started(bottle, seen, "w2", start="latest")
        await bottle.until_done("app")

        assert seen.values == ["after"]

    Bottle.play(story)


def test_a_restarted_node_moves_no_lease_and_loses_no_checkpoint():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s", shards=2)
        seen = Seen()
        started(bottle, seen, "w1", seconds=0.002)
        started(bottle, seen, "w2", seconds=0.002)
        await bottle.put("s", list(range(100)))
        await bottle.until(lambda: len(seen.records) > 30)
        before = {lease.ordinal: (lease.owner, lease.lease_epoch) for lease in (await bottle.describe("app")).leases}

        await bottle.restart_node()
        await bottle.put("s", list(range(100, 200)))
        await bottle.until_done("app")

        after = {lease.ordinal: (lease.owner, lease.lease_epoch) for lease in (await bottle.describe("app")).leases}
        assert after == before
        assert sorted(seen.values) == list(range(200)), "nothing lost, nothing twice"

    Bottle.play(story)


def test_an_orderly_stop_checkpoints_everything_that_was_handled():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.put("s", list(range(100)))
        seen = Seen()
        made = started(bottle, seen, "w1", seconds=0.01)
        await bottle.until(lambda: len(seen.records) == 40)
        made._member.stop()
        await bottle.tasks["w1"]
        started(bottle, seen, "w2")
        await bottle.until_done("app")

        assert seen.values == list(range(100))

    Bottle.play(story)


def test_lag_is_known_with_no_worker():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        seen = Seen()
        made = started(bottle, seen, "w1")
        await bottle.until(lambda: made.shards != ())
        made._member.stop()
        await bottle.tasks["w1"]
        await bottle.put("s", list(range(7)))
        await asyncio.sleep(2)

        lease = (await bottle.describe("app")).leases[0]

        assert lease.owner == "" and lease.state == "ready" and lease.lag_records >= 7
        assert 1_500 <= lease.lag_ms <= 3_000

    Bottle.play(story)


def test_a_stream_that_is_deleted_under_its_consumer_ends_it():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        seen = Seen()
        made = started(bottle, seen, "w1")
        await bottle.until(lambda: made.shards != ())
        await bottle.client.delete_stream("s")

        with pytest.raises(StreamNotFound, match='"s" does not exist any more'):
            await bottle.tasks["w1"]
        assert (await bottle.describe("app")).leases == ()

    Bottle.play(story)


def test_a_stream_that_comes_later_is_read_from_its_beginning():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        seen = Seen()
        made = started(bottle, seen, "w1", stream=["s", "t"], start="latest")
        await bottle.until(lambda: made.shards != ())
        await bottle.client.create_stream("t")
        await bottle.put("t", ["first of t"])
        await bottle.until(lambda: seen.values == ["first of t"])

        assert len(made.shards) == 2

    Bottle.play(story)


def test_joining_a_stream_that_does_not_exist_is_refused():
    async def story(bottle: Bottle) -> None:
        started(bottle, Seen(), "w1", stream="nowhere")
        with pytest.raises(StreamNotFound, match="nowhere"):
            await bottle.tasks["w1"]

    Bottle.play(story)


def test_a_processor_lives_from_initialize_to_lease_lost():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.put("s", list(range(5)))
        calls: list[Any] = []

        class Totals(RecordProcessor):
            def initialize(self, ctx: ShardContext) -> None:
                calls.append(("initialize", ctx.position, ctx.fencing_token, ctx.previous_owner_crashed))
                if len(calls) == 1:
                    raise OSError("not yet")

            async def process(self, batch: Batch, checkpointer: Checkpointer) -> None:
                calls.append(("process", len(batch)))
                await checkpointer.checkpoint()

            def shutdown_requested(self, checkpointer: Checkpointer) -> None:
                calls.append(("shutdown", checkpointer.deadline is not None, checkpointer.fencing_token))

            def lease_lost(self) -> None:
                calls.append("lost")

        made = worker("w1", Totals)
        bottle.start("w1", made)
        await bottle.until_done("app")
        made._member.stop()
        await bottle.tasks["w1"]

        assert calls[0] == calls[1] == ("initialize", 0, 1, False)
        assert sum(call[1] for call in calls if call[0] == "process") == 5
        assert calls[-2:] == [("shutdown", True, 1), "lost"]

    Bottle.play(story)


def test_a_paused_lease_waits_for_an_operator_and_goes_on_where_it_stopped():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.put("s", list(range(10)))
        seen: list[int] = []
        paused: list[int] = []
        made = consumer("w1")

        @made.handler
        async def handle(value: int, ctx: Context) -> None:
            if value == 4 and not paused:
                paused.append(value)
                ctx.pause("look at this")
            seen.append(value)

        bottle.start("w1", made)
        await bottle.until(lambda: paused != [])
        await asyncio.sleep(30)
        lease = (await bottle.describe("app")).leases[0]
        assert (lease.state, lease.reason, lease.owner) == ("paused", "look at this", "w1")
        assert seen == [0, 1, 2, 3]

        await bottle.client.call(ResumeLeases("app"))
        await bottle.until_done("app")
        assert seen == list(range(10))

    Bottle.play(story)


def test_prefetched_bytes_stay_within_the_budget_while_handlers_are_slow():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s", shards=8)
        draw = random.Random(5)
        for part in range(8):
            await bottle.put("s", [draw.randbytes(20_000) for _ in range(40)], key=f"key{part}")
        seen = Seen()
        made = started(bottle, seen, "w1", seconds=0.01, prefetch_bytes_max=1_000_000)
        highest = 0
        while len(seen.records) < 320:
            await asyncio.sleep(0.01)
            highest = max(highest, made._member.budget.used_bytes if made._member else 0)

        assert 200_000 < highest <= 1_000_000 + 8 * (64 * 1024 + 20_000)
        await bottle.until_done("app")
        made._member.stop()
        await bottle.tasks["w1"]
        assert made._member.budget.used_bytes == 0

    Bottle.play(story)


def test_a_processor_that_was_never_begun_is_not_told_to_end():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        calls: list[str] = []

        class Noting(RecordProcessor):
            def __init__(self) -> None:
                if not calls:              # made with the lease, before the lease's task has its first turn
                    asyncio.get_running_loop().call_soon(drain)

            def initialize(self, ctx: ShardContext) -> None:
                calls.append("initialize")

            def shutdown_requested(self, checkpointer: Checkpointer) -> None:
                calls.append("shutdown_requested")

            def lease_lost(self) -> None:
                calls.append("lease_lost")

        def drain() -> None:
            calls.append("drained")
            for held in made._member._held.values():
                held.consumer.drain(10.0)

        made = worker("w1", Noting)
        bottle.start("w1", made)
        await bottle.until(lambda: "initialize" in calls)
        await asyncio.sleep(1)
        assert calls == ["drained", "initialize"], "the second is of the lease that came next"

    Bottle.play(story)


def test_a_lease_that_only_the_worker_believes_lost_comes_back_with_the_next_epoch():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.put("s", list(range(10)))
        seen = Seen()
        made = started(bottle, seen, "w1")
        await bottle.until_done("app")
        lease = next(iter(made._member._held.values())).lease

        made._member._writer._lose(lease)
        await bottle.put("s", list(range(10, 20)))
        await bottle.until_done("app")

        after = (await bottle.describe("app")).leases[0]
        assert (after.owner, after.lease_epoch) == ("w1", lease.lease_epoch + 1)
        assert sorted(seen.values) == list(range(20)), "nothing lost, nothing twice"

    Bottle.play(story)


def test_handling_goes_on_without_checkpoints_up_to_a_window_and_then_waits_until_one_is_stored():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        seen = Seen()
        made = consumer("w1", checkpoint_interval_ms=200)
        object.__setattr__(made.config, "window_records", 100)
        made.handler(seen.handler("w1", 0.05))
        bottle.start("w1", made)
        await bottle.put("s", list(range(400)))
        await bottle.until(lambda: len(seen.records) > 10)
        call = made._member._writer._call
        broken = ["the log takes nothing"]

        async def refusing(message: Any) -> Any:
            if broken:
                raise NodeDraining(broken[0])
            return await call(message)

        made._member._writer._call = refusing
        stored = (await bottle.describe("app")).leases[0].checkpoint
        await asyncio.sleep(60)
        held_up = len(seen.records)
        assert (await bottle.describe("app")).leases[0].checkpoint - stored <= 20
        assert 100 <= held_up <= 150, "it went on up to the window, and no further"

        broken.clear()
        await bottle.until_done("app")
        assert seen.values == list(range(400)), "nothing twice"

    Bottle.play(story)


def test_a_handler_that_hangs_keeps_its_lease_and_its_stack_is_logged(caplog):
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.put("s", ["hangs", "next"])
        seen: list[str] = []
        made = consumer("w1", stall_seconds=300)

        async def wait_for_a_lock_that_nobody_lets_go() -> None:
            await asyncio.sleep(1_000)

        @made.handler
        async def handle(value: str) -> None:
            if value == "hangs":
                await wait_for_a_lock_that_nobody_lets_go()
            seen.append(value)

        bottle.start("w1", made)
        await asyncio.sleep(299)
        assert "handler.stalled" not in caplog.text
        await asyncio.sleep(30)
        told = [record.getMessage() for record in caplog.records if "handler.stalled" in record.getMessage()]
        assert len(told) == 1 and "wait_for_a_lock_that_nobody_lets_go" in told[0] and "stream=s" in told[0]
        assert made.shards != () and seen == []
        await bottle.until_done("app", seconds=1_000)
        assert seen == ["hangs", "next"]

    Bottle.play(story)


def test_a_lease_that_is_lost_and_lost_again_ends_once_its_handler_has_and_gives_back_what_it_took():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.put("s", list(range(5)))
        begun, put_away = asyncio.Event(), asyncio.Event()
        made = consumer("w1")

        @made.handler
        async def handle(value: int) -> None:
            begun.set()
            try:
                await asyncio.sleep(1_000)
            finally:
                await asyncio.sleep(1)
                put_away.set()

        bottle.start("w1", made)
        await begun.wait()
        member = made._member
        held = next(iter(member._held.values()))
        for _ in range(3):
            held.running.cancel()
            await asyncio.sleep(0.1)
        assert not held.running.done()
        await asyncio.wait([held.running])

        assert put_away.is_set()
        assert member.budget.used_bytes == 0

    Bottle.play(story)
