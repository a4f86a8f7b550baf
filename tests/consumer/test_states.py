"""State beside a checkpoint, and checkpoints in two phases: what the next owner finds after a crash at any point."""

import asyncio
from typing import Any

import pytest

from streamkit import Batch, Checkpointer, RecordProcessor, ShardContext
from streamkit.errors import InvalidUse, LeaseLost
from tests.consumer.bottle import Bottle, consumer, worker


def test_a_sum_that_is_kept_with_its_position_is_exact_though_workers_are_killed():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        values = list(range(1, 61))
        await bottle.put("s", values)
        found: list[tuple[int, int]] = []
        handled = 0
        first = 1                          # sequence 0 is the mark of the shard's first leader

        class Sum(RecordProcessor):
            async def initialize(self, ctx: ShardContext) -> None:
                self.total = int(ctx.app_state or b"0")
                found.append((ctx.position, self.total))

            async def process(self, batch: Batch[Any], checkpointer: Checkpointer) -> None:
                nonlocal handled
                for record in batch:
                    self.total += record.value
                    handled += 1
                    if record.value % 7 == 0:
                        await checkpointer.checkpoint(record, state=str(self.total).encode())
                    if record.value % 10 == 0 and handled < 100:
                        await asyncio.sleep(0.3)       # time to be killed in, between two checkpoints
                await checkpointer.checkpoint(state=str(self.total).encode())

        for life in range(4):
            bottle.start(f"w{life}", worker(f"w{life}", Sum))
            await bottle.until(lambda life=life: len(found) > life)
            await asyncio.sleep(0.5)
            bottle.kill(f"w{life}")
        bottle.start("last", worker("last", Sum))
        await bottle.until_done("app")
        bottle.kill("last")
        bottle.start("reader", worker("reader", Sum))
        await bottle.until(lambda: found[-1][0] > 60)

        assert handled > 60, "some records came twice"
        assert all(total == sum(values[: max(0, position - first)]) for position, total in found)

    Bottle.play(story)


@pytest.mark.parametrize("dies", ["before the work", "after the work"])
def test_an_announced_checkpoint_tells_the_next_owner_where_to_look(dies):
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.put("s", list(range(5)))
        done: list[str] = []                           # the work: files that were written, by name
        contexts: list[ShardContext] = []
        stuck = asyncio.Event()

        class Files(RecordProcessor):
            def initialize(self, ctx: ShardContext) -> None:
                contexts.append(ctx)
                self.prepared = ctx.prepared

            async def process(self, batch: Batch[Any], checkpointer: Checkpointer) -> None:
                records = list(batch)
                if self.prepared is not None and self.prepared.state.decode() in done:
                    records = [record for record in records if not self.prepared.covers(record)]
                for record in records:
                    name = f"file-{record.value}"
                    prepared = checkpointer.prepare(record, state=name.encode())
                    await prepared
                    if record.value == 3 and len(contexts) == 1 and dies == "before the work":
                        stuck.set()
                        await asyncio.Event().wait()
                    done.append(name)
                    if record.value == 3 and len(contexts) == 1:
                        stuck.set()
                        await asyncio.Event().wait()
                    await prepared.checkpoint()
                await checkpointer.checkpoint()

        bottle.start("w1", worker("w1", Files))
        await stuck.wait()
        bottle.kill("w1")
        bottle.start("w2", worker("w2", Files))
        await bottle.until_done("app")

        assert done == [f"file-{n}" for n in range(5)]
        assert contexts[0].prepared is None and not contexts[0].previous_owner_crashed
        assert contexts[1].previous_owner_crashed and contexts[1].position == 4
        assert contexts[1].prepared is not None
        assert (contexts[1].prepared.position, contexts[1].prepared.state) == (5, b"file-3")
        bottle.kill("w2")
        bottle.start("w3", worker("w3", Files))
        await bottle.until(lambda: len(contexts) == 3)
        assert contexts[2].prepared is None, "a checkpoint at it or beyond ended it"

    Bottle.play(story)


def test_state_survives_the_coordinator_and_its_compacted_log():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s", shards=3)
        seen: dict[str, bytes] = {}

        class Keeps(RecordProcessor):
            def initialize(self, ctx: ShardContext) -> None:
                seen[ctx.shard] = ctx.app_state

            async def process(self, batch: Batch[Any], checkpointer: Checkpointer) -> None:
                await checkpointer.checkpoint(state=batch[0].shard.encode() + b"." * 65_000)

        made = worker("w1", Keeps)
        bottle.start("w1", made)
        await bottle.put("s", list(range(30)))
        await bottle.until_done("app")
        made._member.stop()
        await bottle.tasks["w1"]
        await bottle.restart_node()
        seen.clear()
        bottle.start("w2", worker("w2", Keeps))
        await bottle.until(lambda: len(seen) == 3)

        assert all(state[:20] == shard.encode() and len(state) == 65_020 for shard, state in seen.items())

    Bottle.play(story)


def test_state_that_could_not_be_kept_is_refused_where_it_is_given():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.put("s", [1])
        refusals: list[str] = []
        checkpointers: list[Checkpointer] = []

        class Large(RecordProcessor):
            async def process(self, batch: Batch[Any], checkpointer: Checkpointer) -> None:
                checkpointers.append(checkpointer)
                for bad in (b"x" * 65_537, "text"):
                    with pytest.raises(InvalidUse, match="state must be bytes") as caught:
                        checkpointer.checkpoint(state=bad)
                    refusals.append(str(caught.value))
                with pytest.raises(InvalidUse, match="not delivered"):
                    checkpointer.prepare(batch[len(batch) - 1].sequence + 1)
                prepared = checkpointer.prepare(state=b"one")
                await checkpointer.prepare(state=b"two")
                await prepared                         # another took its place: nothing waits for ever
                await checkpointer.checkpoint(state=b"x" * 65_536)

        bottle.start("w1", worker("w1", Large))
        await bottle.until_done("app")
        assert len(refusals) == 2
        bottle.kill("w1")
        refused = asyncio.Event()

        automatic = consumer("w2", application="auto")

        @automatic.handler
        async def handle(value, ctx) -> None:
            with pytest.raises(InvalidUse, match="auto"):
                ctx.checkpointer.checkpoint(state=b"")
            refused.set()

        bottle.start("w2", automatic)
        await refused.wait()

    Bottle.play(story)


def test_a_lease_that_is_lost_takes_nothing_more():
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.put("s", [1])
        outcomes: list[type] = []

        class Late(RecordProcessor):
            async def process(self, batch: Batch[Any], checkpointer: Checkpointer) -> None:
                self.checkpointer = checkpointer
                await checkpointer.checkpoint(state=b"mine")

            def lease_lost(self) -> None:
                for late in (lambda: self.checkpointer.prepare(), lambda: self.checkpointer.checkpoint(state=b"late")):
                    with pytest.raises(LeaseLost):
                        late()
                    outcomes.append(LeaseLost)

        made = worker("w1", Late)
        bottle.start("w1", made)
        await bottle.until_done("app")
        made._member._on_lost((await bottle.client.stream("s")).shards[0].uuid)
        await bottle.until(lambda: len(outcomes) == 2)

    Bottle.play(story)


@pytest.mark.parametrize("late", [False, True], ids=["before what follows", "after what follows"])
def test_a_checkpoint_by_hand_of_the_last_record_covers_what_follows_and_holds_none_for_it(late):
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        let = asyncio.Event()
        begun: list[asyncio.Task[None]] = []

        class Late(RecordProcessor):
            async def process(self, batch: Batch[Any], checkpointer: Checkpointer) -> None:
                async def later() -> None:
                    await let.wait()
                    await checkpointer.checkpoint(batch[len(batch) - 1])

                begun.append(asyncio.ensure_future(later()))

        bottle.start("w1", worker("w1", Late, where="data > 10"))
        await bottle.put("s", [11, 12])
        await bottle.until(lambda: len(begun) == 2)
        if not late:
            let.set()
            await bottle.until_done("app")
        await bottle.put("s", [1, 2])
        await asyncio.sleep(5)
        if late:
            assert sum(lease.lag_records for lease in (await bottle.describe("app")).leases) >= 4
            let.set()
        await bottle.until_done("app")

    Bottle.play(story)
