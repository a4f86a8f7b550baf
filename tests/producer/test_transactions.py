"""producer.transaction(): all of a block's records or none, one writer of a name, and nothing in doubt for long."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

import streamkit
from streamkit import errors
from streamkit.consumer.handler import Context
from streamkit.producer.producer import AsyncProducer
from streamkit.producer.transaction import Writer
from streamkit.protocol.messages import CommitOutputs
from streamkit.transactions.lineage import Gathered, packed
from tests.consumer.bottle import Bottle, consumer
from tests.consumer.test_transactions import QUICK, values


def numbers(found: list[bytes]) -> list[int]:
    return sorted(map(int, found))


def test_a_block_is_stored_whole_in_several_streams(tmp_path: Path) -> None:
    draw = random.Random(1)
    with streamkit.open(str(tmp_path / "data"), {"streams.auto_create": False}) as session:
        session.client.create_stream("a", shards=3)
        session.client.create_stream("b")
        with session.producer("a") as producer:
            with producer.transaction() as tx:
                for number in range(100):
                    tx.put(number, key=f"k{number}", headers={"n": str(number)})
                tx.put(b"raw", stream="b")
            with pytest.raises(ZeroDivisionError), producer.transaction() as tx:
                tx.put(1_000, key="k")
                raise ZeroDivisionError
            with producer.transaction() as tx:
                pass
            with pytest.raises(errors.InvalidUse):
                tx.put(1, key="k")
            with pytest.raises(errors.TransactionAborted), producer.transaction(timeout_s=0) as tx:
                tx.put(1_000, key="k")
            with pytest.raises(errors.TransactionTooLarge), producer.transaction() as tx:
                for _ in range(1_100):
                    tx.put(draw.randbytes(1_000), key="x", stream="b")

        found = list(session.reader("a", start="trim_horizon", until="latest"))
        assert sorted(record.value for record in found) == list(range(100))
        assert {record.headers["n"] for record in found} == {str(number).encode() for number in range(100)}
        assert [record.data for record in session.reader("b", start="trim_horizon", until="latest")] == [b"raw"]


def test_a_newer_producer_of_the_name_carries_out_what_was_decided_and_shuts_the_elder_out() -> None:
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("out", shards=2)
        elder = AsyncProducer("out", client=bottle.client, name="importer")
        async with elder.transaction() as tx:
            tx.put(1, key="a")
        writer = elder._outbox.writer()
        writer._lineage.carry_out = _never                 # it is decided, and then its process is gone
        waiting = asyncio.create_task(_put(elder, 2))
        await asyncio.sleep(0.5)
        assert numbers(await values(bottle)) == [1]

        newer = AsyncProducer("out", client=bottle.client, name="importer")
        async with newer.transaction() as tx:
            tx.put(3, key="a")
        assert numbers(await values(bottle)) == [1, 2, 3]
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        writer._carrying = None
        with pytest.raises(errors.ProducerFenced):
            await _put(elder, 4)
        with pytest.raises(errors.ProducerFenced):
            await _put(elder, 5)
        assert numbers(await values(bottle)) == [1, 2, 3]

    Bottle.play(story)


def gathered(value: int) -> Gathered:
    made = Gathered()
    made.put("out", value, "a")
    return made


async def _never(outputs: Any) -> None:
    await asyncio.Event().wait()


async def _put(producer: AsyncProducer, value: int) -> None:
    async with producer.transaction() as tx:
        tx.put(value, key="a")


def test_what_a_dead_producer_decided_is_carried_out_by_the_node() -> None:
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("out", shards=2)
        producer = AsyncProducer("out", client=bottle.client)
        producer._outbox.writer()._lineage.carry_out = _never
        dead = asyncio.create_task(_put(producer, 7))
        await asyncio.sleep(1)
        assert await values(bottle) == []
        await bottle.restart_node()
        await asyncio.sleep(8)
        assert numbers(await values(bottle)) == [7]
        await asyncio.sleep(8)
        assert numbers(await values(bottle)) == [7]
        dead.cancel()
        await asyncio.gather(dead, return_exceptions=True)

    Bottle.play(story)


@pytest.mark.parametrize("decided", [True, False])
def test_a_commit_without_an_answer_is_settled_as_decided_or_void(decided: bool) -> None:
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("out")
        producer = AsyncProducer("out", client=bottle.client)
        ask = Writer._ask

        async def lossy(self: Writer, number: int, outputs: bytes) -> Any:
            if outputs:
                if decided:
                    await ask(self, number, outputs)
                await asyncio.sleep(0.2)
                raise errors.TimedOut("no answer", sent=True)
            return await ask(self, number, outputs)

        writer = producer._outbox.writer()
        writer._ask = lossy.__get__(writer)
        begun = producer.transaction(timeout_s=1)
        if decided:
            async with begun as tx:
                tx.put(1, key="a")
        else:
            with pytest.raises(errors.TransactionAborted):
                async with begun as tx:
                    tx.put(1, key="a")
            late = await ask(writer, writer._number, packed(await writer._lineage.seal(gathered(3))))
            assert late.result == "void"
        assert numbers(await values(bottle)) == ([1] if decided else [])
        writer._ask = ask.__get__(writer)
        await _put(producer, 2)
        assert numbers(await values(bottle)) == ([1, 2] if decided else [2])
        await producer.close()

    Bottle.play(story)


def test_positions_are_committed_by_hand_with_a_block() -> None:
    async def story(bottle: Bottle) -> None:
        await bottle.client.create_stream("s")
        await bottle.client.create_stream("out")
        await bottle.put("s", list(range(20)))
        producer = AsyncProducer("out", client=bottle.client)
        running = consumer("w1", checkpoint="manual", retry=QUICK)
        seen: list[int] = []

        @running.handler
        async def handle(value: int, ctx: Context) -> None:
            seen.append(value)
            async with producer.transaction() as tx:
                tx.put(10 * value, key="a")
                tx.commit_positions(ctx)
                if value == 7 and seen.count(7) == 1:
                    raise ValueError("once")

        bottle.start("w1", running)
        await bottle.until_done("app")
        assert seen.count(7) == 2
        await asyncio.sleep(2)
        assert numbers(await values(bottle)) == [10 * value for value in range(20)]

    Bottle.play(story)


def test_what_makes_no_sense_is_refused_by_the_coordinator() -> None:
    async def story(bottle: Bottle) -> None:
        with pytest.raises(errors.InvalidRequest):
            await bottle.client.call(CommitOutputs(b"w", 1, 1, b"nonsense"))

    Bottle.play(story)
