"""The client against a broker of a few lines on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from streamkit.client.client import AsyncClient
from streamkit.client.config import ClientConfig
from streamkit.client.routing import shard_for
from streamkit.errors import (
    BufferFull,
    Closed,
    ConnectionFailed,
    InternalError,
    InvalidRequest,
    NotLeader,
    ProtocolMismatch,
    ShardNotFound,
    StreamkitError,
    StreamNotFound,
    TimedOut,
)
from streamkit.model.limits import HASH_KEYS
from streamkit.model.position import AtSequence
from streamkit.model.shard import Shard
from streamkit.protocol import messages as m
from streamkit.protocol.frames import PutReceipt
from streamkit.runtime.interfaces import ProtocolFactory, Runtime
from streamkit.runtime.real import RealClock, RealExecutor, RealNetwork, RealRandom, socket_pair
from tests.client.stand_in import StandIn, batch_of

CONFIG = ClientConfig(connect_timeout_ms=500, request_timeout_ms=5_000, reconnect_first_ms=1, reconnect_most_ms=2)


def runtime() -> Runtime:
    return Runtime(
        clock=RealClock(), random=RealRandom(), network=RealNetwork(), disk=None, executor=RealExecutor()  # type: ignore
    )


@pytest.fixture
async def broker() -> AsyncIterator[StandIn]:
    broker = await StandIn().listen(RealNetwork())
    yield broker
    await broker.close()


async def until(holds: Callable[[], bool]) -> None:
    while not holds():                     # noqa: ASYNC110  what is awaited happens on this very loop
        await asyncio.sleep(0)


def address_of(server: asyncio.Server) -> str:
    return f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


@contextlib.asynccontextmanager
async def client_of(broker: StandIn, config: ClientConfig = CONFIG) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(broker.address, runtime(), config=config) as client:
        yield client


async def test_streams_are_created_described_listed_and_deleted(broker: StandIn) -> None:
    async with client_of(broker) as client:
        for name in ("c", "a", "b", "e", "d"):
            made = await client.create_stream(name, shards=3, retention_hours=48)
            assert made.config.shards == len(made.shards) == 3
            assert made.config.retention_hours == 48
        assert await client.describe_stream("a") == broker.streams["a"]
        assert [s.name for s in await client.list_streams()] == ["a", "b", "c", "d", "e"]
        await client.delete_stream("a")
        with pytest.raises(StreamNotFound) as caught:
            await client.describe_stream("a")
        assert caught.value.facts["stream"] == "a"
        assert caught.value.try_ == "streamkit stream list"


async def test_puts_of_one_turn_arrive_in_order_and_each_gets_its_receipt(broker: StandIn) -> None:
    async with client_of(broker) as client:
        shard = (await client.create_stream("s")).shards[0]
        batches = [batch_of(b"%d" % i * (i * 40)) for i in range(200)]       # some beside their header, some not
        receipts = await asyncio.gather(*(client.put_batch(shard, batch) for batch in batches))
        assert [r.base_sequence for r in receipts] == list(range(200))
        assert broker.stored[shard.uuid] == batches


async def test_a_callback_takes_the_place_of_the_future(broker: StandIn) -> None:
    async with client_of(broker) as client:
        shard = (await client.create_stream("s")).shards[0]
        done: asyncio.Future[PutReceipt] = asyncio.get_running_loop().create_future()
        assert client.put_batch(shard, batch_of(b"x"), done.set_result) is None
        assert (await done).base_sequence == 0


async def test_a_broken_callback_costs_nobody_else_the_answer(broker: StandIn) -> None:
    async with client_of(broker) as client:
        shard = (await client.create_stream("s")).shards[0]
        reported: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
        client.put_batch(shard, batch_of(b"x"), lambda answer: 1 // 0)  # type: ignore[func-returns-value]
        assert (await client.put_batch(shard, batch_of(b"y"))).base_sequence == 1
        assert isinstance(reported[0]["exception"], ZeroDivisionError)


async def test_what_was_put_is_fetched_as_the_same_bytes(broker: StandIn) -> None:
    async with client_of(broker) as client:
        shard = (await client.create_stream("s")).shards[0]
        batches = [batch_of(bytes([i]) * 3_000) for i in range(50)]
        await asyncio.gather(*(client.put_batch(shard, batch) for batch in batches))
        fetched = await client.fetch(shard, 10)
        assert [bytes(batch) for batch in fetched.batches] == batches[10:]
        assert fetched.high_watermark == fetched.next_sequence == 50
        again = await client.fetch(shard, 0)
        assert [bytes(batch) for batch in fetched.batches] == batches[10:], "an answer outlives the next one"
        assert len(again.batches) == 50


async def test_positions_and_producers(broker: StandIn) -> None:
    async with client_of(broker) as client:
        shard = (await client.create_stream("s")).shards[0]
        assert (await client.resolve_position(shard, AtSequence(5))).sequence == 5
        assert (await client.new_producer("p")).producer_id == 7


async def test_nothing_answers() -> None:
    client = AsyncClient("127.0.0.1:1", runtime(), config=CONFIG)
    with pytest.raises(ConnectionFailed) as caught:
        await client.connect()
    assert str(caught.value) == "nothing answers at 127.0.0.1:1: connection refused"
    assert caught.value.try_ == "streamkit serve --dev"
    assert caught.value.facts["sent"] is False
    await client.close()


async def test_while_nothing_answers_calls_fail_at_once_and_puts_too() -> None:
    config = replace(CONFIG, reconnect_first_ms=60_000, reconnect_most_ms=60_000)
    client = AsyncClient("127.0.0.1:1", runtime(), config=config)
    shard = Shard(ordinal=0, uuid=bytes(16), hash_start=0, hash_end=1, created_ms=0)
    tries: list[str] = []
    connect = client.runtime.network.connect
    client.runtime.network.connect = lambda *args: tries.append("x") or connect(*args)  # type: ignore
    for _ in range(3):
        with pytest.raises(ConnectionFailed):
            await client.put_batch(shard, batch_of(b"x"))
        with pytest.raises(ConnectionFailed):
            await client.call(m.DescribeNode())
    assert len(tries) == 1
    await client.close()


async def test_a_broken_connection_fails_what_is_under_way_and_is_made_again(broker: StandIn) -> None:
    async with client_of(broker) as client:
        shard = (await client.create_stream("s")).shards[0]
        broker.silent = True
        under_way = [client.put_batch(shard, batch_of(b"x")) for _ in range(3)]
        fetch = asyncio.ensure_future(client.fetch(shard, 0))
        await until(lambda: client._pool.first.connection.pending == 4)
        broker.ends[0].transport.abort()
        outcomes = await asyncio.gather(*under_way, fetch, return_exceptions=True)
        assert all(isinstance(e, ConnectionFailed) and e.facts["sent"] for e in outcomes)
        assert len({id(e) for e in outcomes}) == 4
        broker.silent = False
        assert (await client.put_batch(shard, batch_of(b"y"))).base_sequence == 0
        assert len(broker.ends) == 2


async def test_asking_is_repeated_once_over_a_broken_connection_but_changing_is_not(broker: StandIn) -> None:
    async with client_of(broker) as client:
        await client.create_stream("s")
        for message, repeated in ((m.DescribeStream("s"), True), (m.NewProducer(), False)):
            broker.silent = True
            call = asyncio.ensure_future(client.call(message))
            await until(lambda: bool(client._pool.first.connection.pending))
            broker.silent = False
            broker.ends[-1].transport.abort()
            if repeated:
                assert isinstance(await call, m.StreamDescribed)
            else:
                with pytest.raises(ConnectionFailed):
                    await call


async def test_puts_made_while_connecting_leave_in_order(broker: StandIn) -> None:
    async with client_of(broker) as client:
        shard = (await client.create_stream("s")).shards[0]
    client = AsyncClient(broker.address, runtime(), config=CONFIG)
    early = [client.put_batch(shard, batch_of(b"%d" % i)) for i in range(5)]
    assert [r.base_sequence for r in await asyncio.gather(*early)] == [0, 1, 2, 3, 4]
    await client.close()


async def test_an_answer_that_does_not_come_is_a_time_out_and_a_silent_broker_is_left(broker: StandIn) -> None:
    async with client_of(broker, replace(CONFIG, request_timeout_ms=1)) as client:
        broker.silent = True
        with pytest.raises(TimedOut) as caught:
            await client.call(m.NewProducer())
        assert caught.value.facts["sent"] is True
        connection = client._pool.first.connection
        assert connection is not None and not connection.usable
        broker.silent = False
        assert (await client.call(m.NewProducer(), timeout_ms=5_000)) == m.ProducerGiven(7, 1)


async def test_a_late_answer_is_dropped(broker: StandIn) -> None:
    async with client_of(broker) as client:
        broker.silent = True
        with pytest.raises(TimedOut):
            await client.call(m.NewProducer(), timeout_ms=1)
        broker.silent = False
        broker.ends[0].wire.send(m.ProducerGiven(1, 1), 1)
        broker.ends[0].flush()
        assert (await client.call(m.NewProducer())) == m.ProducerGiven(7, 1)
        assert len(broker.ends) == 1


async def test_a_defect_of_the_broker_is_an_internal_error_without_its_text(broker: StandIn) -> None:
    async with client_of(broker) as client:
        with pytest.raises(InternalError) as caught:
            await client.call(m.DescribeNode())
        assert "stand-in" not in str(caught.value)


async def test_a_refused_put_makes_the_next_look_up_ask_again(broker: StandIn) -> None:
    async with client_of(broker) as client:
        shard = (await client.create_stream("s")).shards[0]
        await client.stream("s")
        assert "DescribeStream" not in broker.requests
        broker.refuse = NotLeader("led elsewhere", shard="x", epoch=2, leader=None)
        with pytest.raises(NotLeader):
            await client.put_batch(shard, batch_of(b"x"))
        await asyncio.gather(*(client.stream("s") for _ in range(5)))
        assert broker.requests.count("DescribeStream") == 1


async def test_close_fails_what_is_under_way_and_what_comes_later(broker: StandIn) -> None:
    async with client_of(broker) as client:
        shard = (await client.create_stream("s")).shards[0]
        broker.silent = True
        under_way = client.put_batch(shard, batch_of(b"x"))
        await asyncio.sleep(0)
        await client.close()
        for future in (under_way, client.put_batch(shard, batch_of(b"x"))):
            with pytest.raises(Closed):
                await future
        with pytest.raises(Closed):
            await client.connect()


async def test_a_goodbye_of_the_broker_moves_new_requests_to_a_new_connection(broker: StandIn) -> None:
    async with client_of(broker) as client:
        shard = (await client.create_stream("s")).shards[0]
        broker.ends[0].wire.say_goodbye("stopping")
        broker.ends[0].flush()
        await until(lambda: not client._pool.first.connection.usable)
        assert (await client.put_batch(shard, batch_of(b"x"))).base_sequence == 0
        assert len(broker.ends) == 2


async def test_a_goodbye_that_comes_with_the_greeting_is_one_more_node_that_cannot_be_reached(broker: StandIn) -> None:
    broker.leaving = True
    client = AsyncClient(broker.address, runtime(), config=CONFIG)
    with pytest.raises(ConnectionFailed, match="about to end") as caught:
        await client.connect()
    assert caught.value.facts["sent"] is False
    await client.close()


async def test_a_queue_that_the_socket_does_not_take_is_bounded(broker: StandIn) -> None:
    async with client_of(broker, replace(CONFIG, queue_bytes_max=1024 * 1024)) as client:
        shard = (await client.create_stream("s")).shards[0]
        broker.ends[0].transport.pause_reading()
        done: list[object] = []
        batch = batch_of(bytes(100_000))
        for _ in range(2_000):
            client.put_batch(shard, batch, done.append)
            await asyncio.sleep(0)
            if done:
                break
        assert isinstance(done[0], BufferFull)
        assert client._pool.first.connection._writer.queued_bytes <= 1024 * 1024 + 2 * len(batch)
        waiting = asyncio.ensure_future(client.wait_writable(shard))
        await asyncio.sleep(0)
        assert not waiting.done()
        broker.ends[0].transport.resume_reading()
        await waiting
        await client.put_batch(shard, batch)


@pytest.mark.parametrize(
    "first, text",
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "speaks HTTP, not the native protocol"),
        (b"\xff" * 64, "a frame claims 4294967295 bytes"),
        (b"", "closed the connection before it greeted"),
    ],
)
async def test_whatever_else_listens_there_is_named(first: bytes, text: str) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        client = AsyncClient(address_of(server), runtime(), config=CONFIG)
        with pytest.raises(StreamkitError, match=text) as caught:
            await client.connect()
        assert caught.value.code in ("protocol_mismatch", "connection_failed")
        await client.close()


async def test_a_port_that_takes_connections_and_says_nothing_is_given_up(broker: StandIn) -> None:
    async with await asyncio.start_server(lambda r, w: asyncio.sleep(3600), "127.0.0.1", 0) as server:
        client = AsyncClient(address_of(server), runtime(), config=replace(CONFIG, connect_timeout_ms=20))
        with pytest.raises(ConnectionFailed, match="did not answer within 20 ms"):
            await client.connect()
        await client.close()


async def test_a_network_with_a_defect_fails_who_waits_and_the_next_try_may_do_better(broker: StandIn) -> None:
    class Failing(RealNetwork):
        failing = True

        async def connect(self, address: str, factory: ProtocolFactory) -> asyncio.BaseProtocol:
            if self.failing:
                raise OSError(9, "Bad file descriptor")
            return await super().connect(address, factory)

    network = Failing()
    client = AsyncClient(broker.address, replace(runtime(), network=network), config=CONFIG)
    with pytest.raises(ConnectionFailed, match="Bad file descriptor"):
        await client.connect()
    network.failing = False
    await asyncio.sleep(CONFIG.reconnect_most_ms / 1000)
    await client.connect()
    await client.close()


async def test_answers_that_nobody_asked_for_end_the_connection(broker: StandIn) -> None:
    async with client_of(broker) as client:
        shard = (await client.create_stream("s")).shards[0]
        broker.silent = True
        future = client.put_batch(shard, batch_of(b"x"))
        await asyncio.sleep(0)
        broker.ends[0].wire.writer.put_ok(999, 1, 1, 1)
        broker.ends[0].flush()
        with pytest.raises(ProtocolMismatch, match="answers request 999"):
            await future


async def test_an_answer_of_the_wrong_kind_ends_the_connection(broker: StandIn) -> None:
    async with client_of(broker) as client:
        shard = (await client.create_stream("s")).shards[0]
        broker.silent = True
        future = client.put_batch(shard, batch_of(b"x"))
        await asyncio.sleep(0)
        broker.ends[0].wire.send(m.Done(), 2)
        broker.ends[0].flush()
        with pytest.raises(ProtocolMismatch, match="answers a request with Done"):
            await future


async def test_a_socket_pair_stands_in_for_the_network() -> None:
    broker, network = StandIn(), RealNetwork()

    async def connector(factory):  # type: ignore
        ours, theirs = socket_pair()
        await network.connect_socket(theirs, broker.factory)
        return await network.connect_socket(ours, factory)

    async with AsyncClient(connector, runtime(), config=CONFIG) as client:
        shard = (await client.create_stream("s", shards=2)).shards[1]
        assert (await client.put_batch(shard, batch_of(b"x"))).base_sequence == 0
        assert len(broker.ends) == 1


async def test_settings_out_of_range_are_refused_here(broker: StandIn) -> None:
    async with client_of(broker) as client:
        with pytest.raises(InvalidRequest):
            await client.create_stream("s", shards=0)
        with pytest.raises(InvalidRequest, match="durability"):
            await client.create_stream("s", durability="maybe")
        with pytest.raises(InvalidRequest):
            await client.create_stream("no spaces")
        assert broker.requests == []


async def test_every_hash_key_has_its_shard(broker: StandIn) -> None:
    async with client_of(broker) as client:
        stream = await client.create_stream("s", shards=7)
        for shard in stream.shards:
            assert shard_for(stream, shard.hash_start) == shard_for(stream, shard.hash_end - 1) == shard
        with pytest.raises(ShardNotFound):
            shard_for(stream, HASH_KEYS)
