"""Operations: what takes a while is followed, waited for, left and found again; on a whole node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from streamkit.client.client import AsyncClient
from streamkit.client.config import ClientConfig
from streamkit.client.sync import Client
from streamkit.errors import (
    Closed,
    DiskFull,
    InvalidRequest,
    InvalidUse,
    NotFound,
    ShardClosed,
    ShardNotFound,
    StreamBusy,
    StreamNotFound,
    TimedOut,
)
from streamkit.node import Node
from streamkit.protocol import messages as m
from tests.broker.cluster_nodes import eventually
from tests.client.test_against_a_node import a_node
from tests.waiting import until


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with a_node(tmp_path / "data") as node:
        yield node


@pytest.fixture
async def client(node: Node) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(node.addresses.native) as client:
        await client.create_stream("orders", shards=2)
        yield client


class Held:
    """Closings of parents wait until `go`; changes of streams are under way meanwhile."""

    def __init__(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = asyncio.Event()
        closed = node.reshards._closed

        async def waiting(served: object) -> int:
            await self.go.wait()
            return await closed(served)  # type: ignore[arg-type]  # handed through as it came

        monkeypatch.setattr(node.reshards, "_closed", waiting)


@pytest.fixture
def held(node: Node, monkeypatch: pytest.MonkeyPatch) -> Held:
    return Held(node, monkeypatch)


async def test_a_change_is_awaited_and_says_when_it_is_done(client: AsyncClient) -> None:
    operation = client.split_shard("orders", "shardId-000000000001")

    after = await operation

    assert [shard.ordinal for shard in after.shards if shard.closed_ms is None] == [0, 2, 3]
    assert (operation.status, operation.progress) == ("done", 1.0)
    assert after == await operation == await operation.wait(1)


async def test_it_is_under_way_until_it_is_done(client: AsyncClient, held: Held) -> None:
    operation = client.scale_stream("orders", 3)
    await operation.accepted()

    assert operation.status == "running" and operation.progress < 1.0 and operation.id.startswith("orders/")
    with pytest.raises(TimedOut, match="goes on by itself") as caught:
        await operation.wait(0.01)
    assert caught.value.facts["operation"] == operation.id
    held.go.set()
    assert len([s for s in (await operation).shards if s.closed_ms is None]) == 3


async def test_whoever_began_may_go_and_others_follow_it(node: Node, held: Held, tmp_path: Path) -> None:
    async with AsyncClient(node.addresses.native) as one:
        await one.create_stream("orders")
        operation = one.split_shard("orders", 0)
        await operation.accepted()
        waiting = asyncio.ensure_future(operation.wait())
        await asyncio.sleep(0)
    with pytest.raises(Closed, match="goes on"):
        await waiting
    async with AsyncClient(node.addresses.native) as other:
        followed = other.operation(operation.id)
        held.go.set()
        after = await followed

    assert len(after.shards) == 3 and followed.status == "done"


async def test_a_second_change_waits_for_the_first(node: Node, client: AsyncClient, held: Held) -> None:
    first = client.split_shard("orders", 0)
    await first.accepted()
    second = client.scale_stream("orders", 5)
    await eventually(lambda: node.counters.failures["ScaleStream", "stream_busy"] > 1)
    assert second.status == "running" and not second.id
    held.go.set()

    after = await second

    assert first.status == "done" and len([s for s in after.shards if s.closed_ms is None]) == 5


async def test_patience_with_another_change_ends(node: Node, client: AsyncClient, held: Held) -> None:
    await client.split_shard("orders", 0).accepted()
    hasty = ClientConfig(request_timeout_ms=60)
    async with AsyncClient(node.addresses.native, config=hasty) as other:
        with pytest.raises(StreamBusy):
            await other.merge_shards("orders", 0, 1)
    held.go.set()


async def test_what_is_refused_is_raised_where_it_is_waited_for(client: AsyncClient) -> None:
    with pytest.raises(ShardNotFound):
        await client.split_shard("orders", 9)
    with pytest.raises(StreamNotFound):
        await client.scale_stream("ordres", 3)
    with pytest.raises(InvalidRequest):
        await client.split_shard("orders", 0, at=2**128)
    with pytest.raises(InvalidUse, match="'trafic'"):
        await client.split_shard("orders", 0, at="trafic")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(InvalidUse, match="'one' is not a shard"):
        client.merge_shards("orders", "one", 1)
    await client.split_shard("orders", 0)
    refused = client.split_shard("orders", 0)
    with pytest.raises(ShardClosed):
        await refused
    assert refused.status == "failed"


async def test_a_change_that_fails_says_why_and_leaves_the_stream_as_it_was(
    node: Node, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(_: object) -> None:
        raise DiskFull("no space for the children", path="/x")

    before = await client.describe_stream("orders")
    monkeypatch.setattr(node._streams.directory, "create_shards", full)
    operation = client.split_shard("orders", 0)

    with pytest.raises(DiskFull, match="no space"):
        await operation

    monkeypatch.undo()
    assert operation.status == "failed"
    assert await client.describe_stream("orders") == before
    with pytest.raises(DiskFull):
        await client.operation(operation.id)           # remembered for whoever asks later
    assert len((await client.split_shard("orders", 0)).shards) == 4


async def test_nothing_to_do_is_done(client: AsyncClient) -> None:
    operation = client.scale_stream("orders", 2)

    assert len((await operation).shards) == 2
    assert (operation.id, operation.status, operation.progress) == ("", "done", 1.0)


@pytest.mark.parametrize(
    ("id", "kind"), [("orders/00ff", NotFound), ("nothing/00ff", StreamNotFound), ("00ff", InvalidRequest)]
)
async def test_an_unknown_operation_is_said_to_be(client: AsyncClient, id: str, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        await client.operation(id)


async def test_a_broker_of_before_answers_when_it_is_done(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = client.call

    async def before(message: m.Message, **options: object) -> m.Message:
        assert not isinstance(message, m.DescribeOperation), "that broker never named one"
        if isinstance(message, m.ScaleStream):
            message = m.ScaleStream(message.name, message.shards)      # it does not know `wait`
        return await call(message)

    monkeypatch.setattr(client, "call", before)
    operation = client.scale_stream("orders", 3)

    assert len([s for s in (await operation).shards if s.closed_ms is None]) == 3
    assert operation.id == "" and operation.status == "done"


async def test_a_connection_that_breaks_meanwhile_is_made_again(
    node: Node, client: AsyncClient, held: Held
) -> None:
    operation = client.split_shard("orders", 0)
    await operation.accepted()
    for link in list(node._server.links):
        link.abort()
    held.go.set()

    assert len((await operation).shards) == 4


async def test_threads_have_the_same(node: Node, held: Held) -> None:
    def work(seen: list[object]) -> None:
        with Client(node.addresses.native) as client:
            client.create_stream("orders", shards=2)
            with pytest.raises(ShardNotFound):
                client.split_shard("orders", 7)        # said at once
            operation = client.split_shard("orders", 0)
            seen += [operation.status, operation.id, operation.note]
            with pytest.raises(TimedOut):
                operation.wait(timeout_s=0.01)
            loop.call_soon_threadsafe(held.go.set)
            seen.append(len(operation.wait(timeout_s=30).shards))
            until(lambda: operation.status == "done")
            seen += [operation.progress, repr(operation)]
            assert client.operation(operation.id).wait() == client.stream("orders")
            assert client.merge_shards("orders", "shardId-000000000002", 3).wait().shards[-1].parents == (2, 3)

    loop = asyncio.get_running_loop()
    seen: list[object] = []
    await asyncio.to_thread(work, seen)
    status, id, *rest = seen
    assert status == "running" and str(id).startswith("orders/")
    assert rest == ["", 4, 1.0, "<the split of orders: done, 100%>"]
