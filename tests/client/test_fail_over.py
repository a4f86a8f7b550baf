"""A client and several nodes: which it asks, whom it follows, and what it does when one is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit._core.batch import Batch, seal
from streamkit.client import url
from streamkit.client.client import AsyncClient
from streamkit.client.config import ClientConfig
from streamkit.client.routing import Routes
from streamkit.errors import ConnectionFailed, InvalidConfig, NotLeader
from streamkit.model.position import AtSequence
from streamkit.model.stream import StreamDescription
from streamkit.producer.producer import AsyncProducer
from streamkit.protocol import messages as m
from tests.client.cluster import Cluster
from tests.client.test_client import until

QUICK = ClientConfig(connect_stagger_ms=20, reconnect_first_ms=1, reconnect_most_ms=5)
CHECKPOINT = m.Checkpoint("billing", "w", ())


def one_record(value: bytes) -> bytes:
    return seal([(b"k", value, b"", None, None)])


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with Cluster() as cluster:
        yield cluster


# ---- addresses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("streamkit://h1:7440,h2:7441", ("h1:7440", "h2:7441")),
        ("h1, h2:1 ,h1", ("h1:7440", "h2:1")),
        ("streamkit://[::1]:5,h", ("[::1]:5", "h:7440")),
        ("unix:/tmp/a,b", ("unix:/tmp/a,b",)),
    ],
)
def test_a_url_may_name_several_nodes(text: str, addresses: tuple[str, ...]) -> None:
    assert url.parse_urls(text) == addresses


@pytest.mark.parametrize("text", ["streamkit://h1,,h2", "streamkit://", "h1,http://h2", "h1,me@h2", "h1,h2:0"])
def test_each_address_of_a_url_is_checked(text: str) -> None:
    with pytest.raises(InvalidConfig):
        url.parse_urls(text)


async def test_connecting_tries_every_node_before_it_fails(cluster: Cluster) -> None:
    await cluster.nodes["a"].kill()
    async with AsyncClient(cluster.url("a", "b"), config=QUICK) as client:
        assert await client.connect() == "b"
    await cluster.nodes["b"].kill()
    with pytest.raises(ConnectionFailed, match="none of 2 nodes"):
        await AsyncClient(cluster.url("a", "b"), config=QUICK).connect()


async def test_a_node_that_takes_connections_but_says_nothing_does_not_hold_up_the_others(cluster: Cluster) -> None:
    cluster.nodes["a"].frozen = True
    async with AsyncClient(cluster.url("a", "b"), config=QUICK) as client:
        assert await client.connect() == "b"


async def test_a_client_that_knew_one_node_knows_all(cluster: Cluster) -> None:
    async with AsyncClient(cluster.url("a"), config=QUICK) as client:
        await client.describe_stream("orders")
        await cluster.nodes["a"].kill()
        assert (await client.describe_stream("orders")).name == "orders"
        first = await client.connect()
        await cluster.nodes[first].kill()
        assert (await client.describe_stream("orders")).name == "orders"


async def test_a_node_that_comes_back_is_used_again(cluster: Cluster) -> None:
    async with AsyncClient(cluster.url("a"), config=QUICK) as client:
        await client.connect()
        for node in cluster.nodes.values():
            await node.kill()
        with pytest.raises(ConnectionFailed):
            await client.describe_stream("orders")
        await cluster.nodes["a"].start()
        while True:
            try:
                await client.describe_stream("orders")
                break
            except ConnectionFailed:
                await asyncio.sleep(0.001)


async def test_a_silent_node_is_taken_for_dead_and_its_requests_fail(cluster: Cluster) -> None:
    config = ClientConfig(silence_ms=250, connect_stagger_ms=20)
    async with AsyncClient(cluster.url("a"), config=config) as client:
        stream = await client.describe_stream("orders")
        cluster.nodes["a"].frozen = True
        with pytest.raises(ConnectionFailed) as caught:
            await client.put_batch(stream.shards[0], one_record(b"x"))
        assert caught.value.facts["sent"] is True
        assert await client.connect() != "a"


async def test_a_node_that_answers_slowly_is_not_taken_for_dead(cluster: Cluster) -> None:
    config = ClientConfig(silence_ms=250)
    async with AsyncClient(cluster.url("a"), config=config) as client:
        await client.connect()
        connection = client._pool.first.connection
        assert connection is not None
        slow = asyncio.get_running_loop().create_future()
        connection._register(60_000, None, lambda answer: slow.set_result(answer), b"")
        for _ in range(12):
            connection._sweep_late()       # as if three seconds had passed, with a word now and then
            await asyncio.sleep(0.002)
        assert connection.usable
        assert ("a", "DescribeNode") in cluster.requests
        assert not slow.done()


# ---- leaders -------------------------------------------------------------------------------------------------


async def test_a_named_leader_is_followed_at_once(cluster: Cluster) -> None:
    async with AsyncClient(cluster.url("a"), config=QUICK) as client:
        stream = await client.describe_stream("orders")
        shard = stream.shards[0]
        await client.put_batch(shard, one_record(b"x"))
        cluster.move(shard, "b")
        asked = len(cluster.requests)

        assert (await client.fetch(shard, 0)).high_watermark == 1
        assert (await client.resolve_position(shard, AtSequence(0))).high_watermark == 1
        await client.put_batch(shard, one_record(b"y"))
        assert all(message != "DescribeStream" for _, message in cluster.requests[asked:])


async def test_nodes_that_name_each_other_are_not_asked_for_ever(cluster: Cluster) -> None:
    async with AsyncClient(cluster.url("a"), config=QUICK) as client:
        shard = (await client.describe_stream("orders")).shards[0]
        names = iter("bcbcbcbc")

        def confused(node: str, uuid: bytes) -> list[bytes]:
            raise cluster.not_leader(next(names), "s", 9)

        cluster.served = confused  # type: ignore[method-assign]
        with pytest.raises(NotLeader):
            await client.fetch(shard, 0)
        assert next(names) in "bc", "the names are not used up"


async def test_an_unnamed_leader_is_found_in_the_next_description(cluster: Cluster) -> None:
    cluster.names_leaders = False
    async with AsyncClient(cluster.url("a"), config=QUICK) as client:
        shard = (await client.describe_stream("orders")).shards[0]
        cluster.move(shard, "b")
        with pytest.raises(NotLeader):
            await client.put_batch(shard, one_record(b"x"))
        await client.find_leader(shard)
        await client.put_batch(shard, one_record(b"x"))


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["described", "named", "lost"])), max_size=12))
def test_an_older_description_never_replaces_a_newer_leader(news: list[tuple[int, str]]) -> None:
    cluster = Cluster(nodes=1, shards=1)
    (shard,) = cluster.stream.shards

    async def run() -> None:
        routes = Routes(lambda name: None)  # type: ignore[arg-type,return-value]
        newest = -1
        for epoch, kind in news:
            address = f"h{epoch}:1"
            if kind == "described":
                described = _at(cluster, epoch, address)
                routes.remember(described)
            elif kind == "named":
                routes.note(shard.uuid, NotLeader("x", shard="", epoch=epoch, leader="n", address=address))
            else:
                routes.doubt(shard.uuid)
            if kind == "lost" or (kind == "named" and epoch < newest):
                newest = min(newest, 0)    # whoever is asked next is believed
            elif kind == "described" or newest >= 0:
                newest = max(newest, epoch)
            if newest > 0:
                assert routes.shard(shard).epoch == newest

    asyncio.run(run())


def _at(cluster: Cluster, epoch: int, address: str) -> StreamDescription:
    shard = replace(cluster.stream.shards[0], epoch=epoch, address=address)
    return replace(cluster.stream, shards=(shard,))


# ---- the coordinator -----------------------------------------------------------------------------------------


async def test_what_concerns_applications_goes_to_their_coordinator_wherever_it_is(cluster: Cluster) -> None:
    cluster.coordinator = "b"
    async with AsyncClient(cluster.url("a"), config=QUICK) as client:
        await client.call(CHECKPOINT)
        await client.call(CHECKPOINT)
        assert [node for node, message in cluster.requests if message == "Checkpoint"] == ["a", "b", "b"]

        await cluster.nodes["b"].kill()
        cluster.coordinator = "c"
        with pytest.raises(ConnectionFailed):
            await client.call(CHECKPOINT)          # in doubt: it is the caller who repeats it
        await client.call(CHECKPOINT)
        assert cluster.requests[-1] == ("c", "Checkpoint")


# ---- producers -----------------------------------------------------------------------------------------------


def values(cluster: Cluster) -> list[bytes]:
    return [value for log in cluster.logs.values() for raw in log for value in Batch(raw).values()]


@pytest.mark.parametrize("names_leaders", [True, False])
async def test_a_producer_notices_nothing_but_latency_when_its_leaders_die(
    cluster: Cluster, names_leaders: bool
) -> None:
    cluster.names_leaders = names_leaders
    client = AsyncClient(cluster.url(), config=QUICK)
    async with AsyncProducer("orders", client=client, batch_bytes_max=200) as producer:
        for round_, name in enumerate("abc"):
            for shard in cluster.stream.shards:
                cluster.move(shard, name)
            before = "abc"[round_ - 1]
            if round_ and cluster.nodes[before].alive:
                await cluster.nodes[before].kill()
            handles = [await producer.put(b"%d" % (100 * round_ + i), key=f"k{i % 7}") for i in range(100)]
            await producer.flush()
            assert all(handle.done() for handle in handles)
            if round_:
                await cluster.nodes[before].start()
    await client.close()
    assert sorted(map(int, values(cluster))) == list(range(300)), "each once"


async def test_a_producer_without_a_leader_looks_for_it_and_sends_nothing(cluster: Cluster) -> None:
    client = AsyncClient(cluster.url(), config=QUICK)
    async with AsyncProducer("orders", client=client) as producer:
        await producer.put_and_wait(b"0", key="k")
        await cluster.nodes["a"].kill()
        handle = await producer.put(b"1", key="k")
        asked = len(cluster.requests)
        await until(lambda: len(cluster.requests) - asked >= 5)
        assert not handle.done()
        assert {message for _, message in cluster.requests[asked:]} == {"DescribeStream"}, "one look for all shards"
        for shard in cluster.stream.shards:
            cluster.move(shard, "c")
        await handle
    await client.close()


async def test_batches_that_wait_for_a_frozen_node_go_to_the_new_leader(cluster: Cluster) -> None:
    config = ClientConfig(silence_ms=250, connect_stagger_ms=20, connect_timeout_ms=60_000)
    client = AsyncClient(cluster.url("b", "a"), config=config)
    async with AsyncProducer("orders", client=client) as producer:
        await producer.put_and_wait(b"0", key="k")
        cluster.nodes["a"].frozen = True
        handle = await producer.put(b"1", key="k")
        await until(lambda: len(cluster.nodes["a"].ends) > 1)      # given up, and being made anew
        for shard in cluster.stream.shards:
            cluster.move(shard, "c")
        assert not (await handle).duplicate
    await client.close()
