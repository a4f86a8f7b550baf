"""Handlers that put into other streams in one transaction with the position: once, whatever fails."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

import streamkit
from streamkit._core.batch import Batch
from streamkit.broker.decisions import Decisions
from streamkit.client.client import AsyncClient
from streamkit.consumer.checkpointer import Checkpointer
from streamkit.consumer.failure import RetryPolicy
from streamkit.consumer.handler import Context
from streamkit.consumer.lease_keeper import LeaseKeeper
from streamkit.consumer.member import Member
from streamkit.consumer.ordering import Ordering
from streamkit.consumer.positions.sqlite import SQLitePosition
from streamkit.consumer.processor import RecordProcessor
from streamkit.errors import ApplicationNotFound, InvalidUse
from streamkit.leases.events import Effects
from streamkit.leases.facts import Left
from streamkit.leases.table import Table
from streamkit.protocol.messages import CommitTransaction
from streamkit.runtime.real import RealClock
from tests.consumer.bottle import Bottle, consumer, worker
from tests.waiting import until

QUICK = RetryPolicy(attempts_max=3, first_ms=10, last_ms=50)


async def values(bottle: Bottle, stream: str = "out") -> list[bytes]:
    found: list[bytes] = []
    for shard in (await bottle.client.stream(stream, refresh=True)).shards:
        at = 0
        while True:
            fetched = await bottle.client.fetch(shard, at, wait_ms=0)
            for raw in fetched.batches:
                batch = Batch(raw, None, at)
                if not batch.is_control:
                    found += [bytes(record.data) for record in batch]
            at = fetched.next_sequence
            if at >= fetched.high_watermark:
                break
    return found


def copier(name: str = "w1", **options: Any) -> Any:
    running = consumer(name, transactional=True, retry=QUICK, codec="json", **options)

    @running.handler
    async def copy(value: int, ctx: Context) -> None:
        ctx.put("out", value, key=f"k{value}")

    return running


def test_outputs_are_stored_once_and_the_position_with_them() -> None:
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.client.create_stream("out", shards=3)
        await bottle.put("s", list(range(40)))
        bottle.start("w1", copier())
        await bottle.until_done("app")
        await asyncio.sleep(3)

        assert sorted(map(int, await values(bottle))) == list(range(40))

    Bottle.play(story)


@pytest.mark.parametrize("seed", range(6))
def test_a_worker_killed_at_any_moment_leaves_each_output_once(seed: int) -> None:
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s", shards=2)
        await bottle.client.create_stream("out", shards=3)
        await bottle.put("s", list(range(60)))
        for number in range(8):
            bottle.start(f"w{number}", copier(f"w{number}", membership_ms=1_000))
            await asyncio.sleep(0.01 + 0.003 * number + 0.001 * seed)
            bottle.kill(f"w{number}")
        bottle.start("last", copier("last"))
        await bottle.until_done("app")
        bottle.kill("last")
        await asyncio.sleep(12)            # what the last one left is carried out by the node

        assert sorted(map(int, await values(bottle))) == list(range(60))

    Bottle.play(story, seed=seed)


def test_a_worker_that_does_not_know_of_its_loss_is_refused_by_its_lease_epoch(monkeypatch: Any) -> None:
    monkeypatch.setattr(Member, "_on_lost", lambda self, shard: None)
    monkeypatch.setattr(LeaseKeeper, "check_deadline", lambda self: True)

    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.client.create_stream("out")
        await bottle.put("s", list(range(20)))
        begun = asyncio.Event()
        stale = consumer("stale", transactional=True, retry=QUICK, membership_ms=1_000)

        @stale.handler
        async def slow(value: int, ctx: Context) -> None:
            ctx.put("out", value, key="k")
            begun.set()
            await asyncio.sleep(0.01)

        bottle.start("stale", stale)
        await begun.wait()
        bottle.world.stop(bottle.processes["stale"])
        await asyncio.sleep(3)
        bottle.start("next", copier("next"))
        await bottle.until_done("app")
        node = bottle.cluster.places[0].node
        assert node is not None and node._coordinator.checkpoints["fenced"] == 0
        bottle.world.resume(bottle.processes["stale"])
        await bottle.until(lambda: node._coordinator.checkpoints["fenced"] > 0)
        await asyncio.sleep(5)

        assert sorted(map(int, await values(bottle))) == list(range(20))

    Bottle.play(story)


def test_a_dead_letter_is_decided_with_the_position_past_its_record() -> None:
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.client.create_stream("out", shards=2)
        await bottle.client.create_stream("dead")
        await bottle.put("s", list(range(12)))
        running = consumer("w1", transactional=True, retry=QUICK, dead_letter="dead", membership_ms=1_000)

        @running.handler
        async def handle(value: int, ctx: Context) -> None:
            ctx.put("out", value, key=f"k{value}")
            if value in (3, 7):
                raise ValueError("odd")

        for number in range(5):
            bottle.start(f"w{number}", running)
            await asyncio.sleep(0.05 + 0.02 * number)
            bottle.kill(f"w{number}")
        bottle.start("last", running)
        await bottle.until_done("app")
        await asyncio.sleep(3)

        assert sorted(map(int, await values(bottle))) == [value for value in range(12) if value not in (3, 7)]
        assert sorted(map(int, await values(bottle, "dead"))) == [3, 7]

    Bottle.play(story)


@pytest.mark.parametrize("whole", [True, False])
def test_what_is_too_much_for_one_transaction_is_halved(whole: bool) -> None:
    draw = random.Random(1)

    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.client.create_stream("out")
        await bottle.put_together("s", list(range(16)))
        running = consumer("w1", transactional=True, retry=QUICK)
        padding = draw.randbytes(150_000)

        async def one(value: int, ctx: Context) -> None:
            ctx.put("out", str(value).encode().ljust(10) + padding, key="k")

        async def batch(batch: Batch[int], ctx: Context) -> None:
            for record in batch:
                await one(record.value, ctx)

        running.handler(batch if whole else one)
        bottle.start("w1", running)
        await bottle.until_done("app")
        await asyncio.sleep(3)

        assert [int(value[:10]) for value in await values(bottle)] == list(range(16))

    Bottle.play(story)


def test_outputs_whose_shard_is_split_under_way_reach_its_children_once_and_in_order() -> None:
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.client.create_stream("out")
        await bottle.put("s", list(range(60)))
        bottle.start("w1", copier("w1", membership_ms=1_000))
        for split in range(3):
            await asyncio.sleep(0.02)
            bottle.kill(f"w{split + 1}")
            stream = await bottle.client.describe_stream("out")
            await bottle.client.split_shard("out", stream.shards[-1].ordinal)
            bottle.start(f"w{split + 2}", copier(f"w{split + 2}", membership_ms=1_000))
        stream = await bottle.client.describe_stream("out")
        ordinals = [s.ordinal for s in sorted(stream.shards, key=lambda s: s.hash_start) if s.closed_ms is None]
        await bottle.client.merge_shards("out", *ordinals[:2])
        await bottle.until_done("app")
        await asyncio.sleep(12)

        assert sorted(map(int, await values(bottle))) == list(range(60))

    Bottle.play(story)


def test_a_processor_puts_with_its_checkpointer() -> None:
    class Copying(RecordProcessor):
        async def process(self, batch: Batch[Any], checkpointer: Checkpointer) -> None:
            for record in batch:
                checkpointer.put("out", record.data, key=record.key)
            with pytest.raises(InvalidUse):
                checkpointer.checkpoint()

    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.client.create_stream("out")
        await bottle.put("s", list(range(20)))
        bottle.start("w1", worker("w1", Copying, transactional=True))
        await bottle.until_done("app")
        await asyncio.sleep(3)

        assert sorted(map(int, await values(bottle))) == list(range(20))

    Bottle.play(story)


def test_an_output_stream_that_is_missing_is_waited_for() -> None:
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.put("s", list(range(5)))
        bottle.start("w1", copier(on_exhausted="skip"))
        await asyncio.sleep(20)
        await bottle.client.create_stream("out")
        await bottle.until_done("app")
        await asyncio.sleep(3)

        assert sorted(map(int, await values(bottle))) == list(range(5))

    Bottle.play(story)


@pytest.mark.parametrize("wrong", [
    {"checkpoint": "manual"}, {"ordering": Ordering.by_key(2)}, {"sink": SQLitePosition("x")},
])  # fmt: skip
def test_what_cannot_be_one_transaction_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidUse):
        consumer("w", transactional=True, **wrong)


def test_a_put_without_transactions_is_told() -> None:
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.put("s", [1])
        running = consumer("w1")
        told: list[str] = []

        @running.handler
        async def handle(value: int, ctx: Context) -> None:
            with pytest.raises(InvalidUse) as refused:
                ctx.put("out", value)
            told.append(refused.value.try_)

        bottle.start("w1", running)
        await bottle.until_done("app")
        assert told == ["Consumer(…, transactional=True)"]

    Bottle.play(story)


def test_feed_shows_what_would_have_been_put_once() -> None:
    running = consumer("w1", transactional=True, retry=QUICK, on_exhausted="skip")
    tried: list[int] = []

    @running.handler
    def handle(value: int, ctx: Context) -> None:
        ctx.put("out", {"n": value}, key=f"k{value}")
        tried.append(value)
        if value == 2:
            raise ValueError("odd")

    report = running.feed(list(range(5)))

    assert [(out.stream, out.key, out.data) for out in report.outputs] == [
        ("out", f"k{value}", b'{"n":%d}' % value) for value in (0, 1, 3, 4)
    ]
    assert tried.count(2) == 3 and report.skipped == 1


def test_plain_functions_put_and_commit_positions_in_threads(tmp_path: Path) -> None:
    with streamkit.open(str(tmp_path / "data"), {"streams.auto_create": False}) as session:
        for name in ("s", "out", "by-hand"):
            session.client.create_stream(name, shards=2)
        with session.producer("s") as producer:
            producer.put_many([streamkit.PutEntry(number, key=f"k{number % 7}") for number in range(300)])
        copying = session.consumer("s", application="copying", start="trim_horizon", transactional=True)

        @copying.handler
        def copy(value: int, ctx: Context) -> None:
            ctx.put("out", value, key=f"k{value}")

        by_hand = session.consumer("s", application="by-hand", start="trim_horizon", checkpoint="manual")
        writing = session.producer("by-hand")

        @by_hand.handler
        def write(batch: Batch[int], ctx: Context) -> None:
            with writing.transaction() as tx:
                for value in batch.values():
                    tx.put(value)
                tx.commit_positions(ctx)

        with copying, by_hand, writing:
            for running, name in ((copying, "out"), (by_hand, "by-hand")):
                until(lambda running=running: _is_done(running))
                until(lambda name=name: len(_numbers(session, name)) >= 300)
                assert sorted(_numbers(session, name)) == list(range(300))


def _is_done(running: Any) -> bool:
    try:
        return bool(running.lag().records == 0)
    except ApplicationNotFound:
        return False


def _numbers(session: Any, stream: str) -> list[int]:
    return [record.value for record in session.reader(stream, start="trim_horizon", until="latest")]


def test_a_decision_that_is_cut_off_gives_the_lease_up(monkeypatch: Any) -> None:
    call = AsyncClient.call
    lost: list[int] = []

    async def lossy(self: AsyncClient, message: Any, **options: Any) -> Any:
        answer = await call(self, message, **options)
        if isinstance(message, CommitTransaction) and len(lost) < 2:
            lost.append(message.item.sequence)
            raise asyncio.CancelledError
        return answer

    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.client.create_stream("out")
        await bottle.put("s", list(range(10)))
        monkeypatch.setattr(AsyncClient, "call", lossy)
        bottle.start("w1", copier("w1"))
        await bottle.until_done("app")
        await asyncio.sleep(8)

        assert sorted(map(int, await values(bottle))) == list(range(10)) and len(lost) == 2

    Bottle.play(story)


def test_the_node_carries_out_nothing_that_is_not_durable() -> None:
    async def story() -> None:
        settled = asyncio.Event()
        told = asyncio.Event()
        carried: list[bytes] = []
        table = Table()
        clock = RealClock()

        async def until_settled() -> None:
            await settled.wait()

        async def carry(outputs: bytes) -> None:
            carried.append(outputs)

        def step(event: Any) -> Effects:
            table.keep("", b"w", Left(0, 0, b"", 0))
            told.set()
            return Effects()

        decisions = Decisions(table, clock, step, until_settled, {}, lambda *_: ())
        decisions.carry_out = carry
        decisions.carry_after_ms = 0
        table.keep("", b"w", Left(1, 1, b"outputs", 0))
        decisions.look()
        for _ in range(5):
            await asyncio.sleep(0)
        assert carried == []
        settled.set()
        await told.wait()
        assert carried == [b"outputs"]
        await decisions.close()

    asyncio.run(story())
