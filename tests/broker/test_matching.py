"""Fetches with a condition, on a real node: what does not match does not travel, and reading goes on past it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from streamkit._core.aggregation import Aggregator
from streamkit._core.batch import Batch
from streamkit.broker.matching import PART_RECORDS, Matcher
from streamkit.client.client import AsyncClient
from streamkit.consumer.consumer import Consumer
from streamkit.consumer.reader import AsyncReader
from streamkit.errors import InvalidQuery, InvalidUse, StreamkitError
from streamkit.expressions.condition import Condition
from streamkit.model.shard import Shard
from streamkit.protocol import connection
from streamkit.protocol.messages import Welcome, decode, encode
from tests.broker.conftest import batch_of


def of(*numbers: int) -> bytes:
    return batch_of(*(b'{"n": %d}' % number for number in numbers))


async def filled(client: AsyncClient, *batches: bytes) -> Shard:
    await client.create_stream("s", shards=1)
    shard = (await client.stream("s")).shards[0]
    for batch in batches:
        await client.put_batch(shard, batch)
    return shard


def numbers(batches: list[Any]) -> list[Any]:
    return [[msgspec.json.decode(value) for value in batch.values()] for batch in map(Batch, batches)
            if not batch.is_control]  # fmt: skip


async def test_batches_without_a_match_stay_where_they_are_and_the_others_come_as_they_are_stored(node, client):
    shard = await filled(client, of(1, 2), of(3, 4), of(5, 6), of(3, 7), of(9))
    whole = await client.fetch(shard, 0)
    some = await client.fetch(shard, 0, where="data.n = 3")

    assert numbers(some.batches) == [[{"n": 3}, {"n": 4}], [{"n": 3}, {"n": 7}]]
    assert {bytes(batch) for batch in some.batches} < {bytes(batch) for batch in whole.batches}
    assert Batch(some.batches[0]).is_control           # what a log writes for itself is always told
    assert (some.next_sequence, some.high_watermark) == (whole.next_sequence, whole.high_watermark)


async def test_an_answer_without_a_batch_moves_on(node, client):
    shard = await filled(client, of(1), of(2))
    after = 1                              # past the batch that began the epoch
    empty = await client.fetch(shard, after, where="data.n > 100")
    waited = await client.fetch(shard, empty.next_sequence, where="data.n > 100", wait_ms=20)

    assert (empty.batches, empty.next_sequence) == ([], 3)
    assert (waited.batches, waited.next_sequence) == ([], 3)


async def test_a_fetch_that_waits_is_answered_when_something_comes(node, client):
    shard = await filled(client, of(1))
    waiting = asyncio.ensure_future(client.fetch(shard, 2, where="data.n = 5", wait_ms=5_000))
    await asyncio.sleep(0.05)
    await client.put_batch(shard, of(5))
    fetched = await waiting

    assert numbers(fetched.batches) == [[{"n": 5}]]


async def test_what_cannot_be_judged_is_sent_to_whoever_counts_it(node, client):
    aggregate = Aggregator()
    assert aggregate.add("k", b'{"n": 3}')
    shard = await filled(client, of(1), batch_of(b"{no json"), batch_of(aggregate.bytes()), of(2))
    fetched = await client.fetch(shard, 1, where="data.n = 3")

    assert [Batch(batch).base_sequence for batch in fetched.batches] == [2, 3]
    assert fetched.next_sequence == 5


@pytest.mark.parametrize(("where", "codec", "error"), [
    ("totl > 3", "auto", InvalidQuery),
    ("data.n = 1", "avro", InvalidUse),
])
async def test_what_is_no_condition_is_refused(
    node, client, where: str, codec: str, error: type[StreamkitError]
) -> None:
    shard = await filled(client, of(1))

    with pytest.raises(error):
        await client.fetch(shard, 0, where=where, codec=codec)
    assert (await client.fetch(shard, 0, where="data.n = 1")).next_sequence == 2


async def read(client: AsyncClient, where: str) -> list[int]:
    reader = AsyncReader("s", start="trim_horizon", until="latest", where=where, client=client)
    return [record.value["n"] async for record in reader]


async def test_readers_get_the_same_from_a_broker_that_does_not_know_conditions(start, connect, monkeypatch):
    """Acceptance: two versions on one wire; without the broker's help the client filters by itself."""
    node = await start()
    client = await connect(node)
    await filled(client, *(of(*range(n, n + 10)) for n in range(0, 500, 10)))
    helped = await read(client, "data.n % 97 = 5")
    monkeypatch.setattr(connection, "FEATURES", ())
    older = await connect(node)
    alone = await read(older, "data.n % 97 = 5")

    assert helped == alone == [5, 102, 199, 296, 393, 490]


def test_a_welcome_of_another_version_is_read():
    class Older(msgspec.Struct, array_like=True, tag=2):
        version: int
        node: str
        frame_bytes_max: int
        addresses: tuple[str, ...] = ()

    new = Welcome(1, "n", 5, ("a",), ("where",))

    assert decode(msgspec.msgpack.encode(Older(1, "n", 5))) == Welcome(1, "n", 5)
    assert msgspec.msgpack.decode(encode(new), type=Older) == Older(1, "n", 5, ("a",))


async def test_a_consumers_checkpoint_moves_past_what_never_travelled(node, client):
    """Acceptance: a filter at the broker; every match is handled once, everything else is counted and passed over."""
    await filled(client, *(of(*range(n, n + 20)) for n in range(0, 2_000, 20)))
    consumer = Consumer(
        "s", application="app", start="trim_horizon", where="data.n % 500 = 7", checkpoint_interval_ms=20,
        url=node.addresses.native,
    )
    got: list[int] = []

    @consumer.handler
    def handle(value: dict) -> None:
        got.append(value["n"])

    consumer.start()
    try:
        async with asyncio.timeout(20):
            while True:
                await asyncio.sleep(0.02)
                if consumer.statistics.filtered < 1_996:
                    continue
                lag = await asyncio.to_thread(consumer.lag)
                if lag.records == 0:
                    break
        statistics = consumer.statistics
    finally:
        await asyncio.to_thread(consumer.stop)

    assert got == [7, 507, 1_007, 1_507]
    assert (statistics.records, statistics.filtered) == (4, 1_996)


class Direct:
    """An executor that is no other thread; counts."""

    def __init__(self) -> None:
        self.runs = 0

    async def run(self, work: Any, *args: Any) -> Any:
        self.runs += 1
        return work(*args)


async def test_judging_gives_the_event_loop_its_turn_and_a_condition_is_parsed_once():
    executor = Direct()
    matcher = Matcher(executor)            # type: ignore[arg-type]
    condition = await matcher.condition("data.n < 0", "auto")
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.ensure_future(other())
    assert await matcher.matching([of(*range(20 * PART_RECORDS))], condition) == []
    beside.cancel()

    assert turns >= 20
    assert await matcher.condition("data.n < 0", "auto") is condition
    assert executor.runs == 1
    for number in range(300):
        await matcher.condition(f"size > {number}", "auto")
    assert await matcher.condition("data.n < 0", "auto") is not condition      # what is kept is bounded


async def test_the_first_match_of_a_batch_is_enough():
    matcher = Matcher(Direct())            # type: ignore[arg-type]
    batch = of(*range(10))

    assert await matcher.matching([batch], Condition("data.n = 0")) == [batch]
