"""HTTP/2 on the simulated network: streams and windows, time-outs and ends."""

import asyncio

import h2.events
import pytest
from h2.errors import ErrorCodes

from streamkit.http.exchange import Response
from tests.http.worlds import Peer2, World


def test_a_stream_is_sent_as_it_comes():
    async def give(sender):
        await sender.send(b"one")
        await asyncio.sleep(5)
        await sender.send(b"")
        await sender.send(memoryview(b"two"))

    async def handler(request):
        return Response(200, stream=give)

    async def test(world):
        peer = await world.open(Peer2)
        stream = peer.request()
        await peer.until(lambda: peer.body(stream) == b"one", seconds=1)
        return await peer.answer(stream)

    assert World(handler).run(test) == (200, b"onetwo")


def test_a_stream_that_fails_is_reset(caplog):
    async def give(sender):
        await sender.send(b"one")
        raise ValueError("no more")

    async def handler(request):
        return Response(200, stream=give)

    async def test(world):
        peer = await world.open(Peer2)
        stream = peer.request()
        await peer.until(lambda: peer.of(stream, h2.events.StreamReset))
        return peer.of(stream, h2.events.StreamReset)[0].error_code

    assert World(handler).run(test) == ErrorCodes.INTERNAL_ERROR
    assert "no more" in caplog.text


@pytest.mark.parametrize("way", ["reset", "abort"])
def test_handlers_and_streams_are_cancelled_when_the_peer_wants_no_more(way):
    ended = []

    async def forever(sender=None):
        try:
            await asyncio.sleep(1e6)
        except asyncio.CancelledError:
            ended.append(1)
            raise

    async def handler(request):
        return Response(200, stream=forever) if request.path == "/stream" else await forever()

    async def test(world):
        peer = await world.open(Peer2)
        streams = [peer.request("/"), peer.request("/stream"), peer.request("/", b"abc")]
        await asyncio.sleep(1)
        if way == "abort":
            peer.transport.abort()
        else:
            for stream in streams:
                peer.engine.reset_stream(stream, ErrorCodes.CANCEL)
            peer.flush()
        await asyncio.sleep(1)
        return len(ended)

    assert World(handler).run(test) == 3


def test_a_shut_window_stops_its_stream_and_no_other():
    sent = []

    async def flood(sender):
        while True:
            await sender.send(bytes(10_000))
            sent.append(1)

    async def handler(request):
        return Response(200, stream=flood) if request.path == "/flood" else Response(200, (), b"quick")

    async def test(world):
        peer = await world.open(lambda: Peer2(window=20_000, reads=False))
        stalled = peer.request("/flood")
        await asyncio.sleep(300)
        assert len(sent) == 2
        assert await peer.answer(peer.request("/")) == (200, b"quick")
        peer.engine.increment_flow_control_window(15_000, stalled)
        peer.flush()
        await asyncio.sleep(300)
        return len(sent), len(peer.body(stalled))

    assert World(handler).run(test) == (3, 35_000)


def test_a_window_of_nothing_takes_nothing():
    async def test(world):
        peer = await world.open(lambda: Peer2(window=0))
        stream = peer.request("/abc")
        await asyncio.sleep(10)
        assert peer.of(stream, h2.events.ResponseReceived)
        assert not peer.body(stream)
        peer.engine.update_settings({4: 1000})
        peer.flush()
        return await peer.answer(stream)

    assert World().run(test) == (200, b"/abc ")


def test_streams_share_a_connections_window_frame_by_frame():
    async def flood(sender):
        while True:
            await sender.send(bytes(16_384))

    async def handler(request):
        return Response(200, stream=flood)

    async def test(world):
        peer = await world.open(lambda: Peer2(window=1_000_000, reads=False))
        streams = [peer.request() for _ in range(4)]
        for _ in range(20):
            await asyncio.sleep(1)
            peer.engine.increment_flow_control_window(65_536)
            peer.flush()
        await asyncio.sleep(1)
        return [len(peer.body(stream)) for stream in streams]

    got = World(handler).run(test)

    assert sum(got) == 65_535 + 20 * 65_536
    assert max(got) - min(got) <= 2 * 65_536


def test_a_peer_that_reads_nothing_is_sent_no_more_than_the_buffer():
    sent = []

    async def flood(sender):
        while True:
            await sender.send(bytes(16_384))
            sent.append(1)

    async def handler(request):
        return Response(200, stream=flood)

    async def test(world):
        peer = await world.open(lambda: Peer2(window=2**31 - 1))
        peer.engine.increment_flow_control_window(2**30)
        peer.transport.pause_reading()
        for _ in range(10):
            peer.request()
        await asyncio.sleep(60)
        before = len(sent)
        (connection,) = world.listener.connections
        buffered = connection.transport.get_write_buffer_size()
        await asyncio.sleep(600)
        assert len(sent) == before
        return buffered

    assert World(handler).run(test) < 600_000


def test_whole_answers_that_are_not_taken_hold_up_further_requests():
    begun = []

    async def large(request):
        begun.append(1)
        await asyncio.sleep(0.1)
        return Response(200, (), bytes(1_000_000))

    async def test(world):
        peer = await world.open(lambda: Peer2(window=0))
        for _ in range(50):
            peer.request()
        await asyncio.sleep(10)
        before = len(begun)
        peer.engine.update_settings({4: 2_000_000})
        peer.flush()
        await peer.until(lambda: sum(isinstance(event, h2.events.StreamEnded) for event in peer.events) == 50)
        return before

    assert World(large, handlers_max=4, unsent_bytes_max=8_000_000).run(test) <= 12


# -- time-outs and ends ----------------------------------------------------------------------------------------


async def until_end(world):
    began = world.loop.time()
    while world.listener.connections:                # noqa: ASYNC110 - the clock is virtual
        await asyncio.sleep(0.1)
    return round(world.loop.time() - began)


def test_an_idle_connection_is_closed_and_pings_keep_it():
    async def test(world):
        peer = await world.open(Peer2)
        await peer.answer(peer.request())
        for _ in range(5):
            await asyncio.sleep(60)
            peer.engine.ping(b"12345678")
            peer.flush()
        return await until_end(world), peer.goaway().error_code

    assert World().run(test) == (90, ErrorCodes.NO_ERROR)


def test_half_a_preface_is_not_waited_for_long():
    async def test(world):
        peer = await world.open()
        peer.send(b"PRI * HTTP/2")
        await asyncio.sleep(0.01)
        return await until_end(world)

    assert World().run(test) == 10


def test_a_header_block_that_trickles_ends_the_connection():
    async def test(world):
        peer = await world.open(Peer2)
        await peer.answer(peer.request())
        peer.send(b"\0\0\1\1\0\0\0\0\3\x82")           # HEADERS without END_HEADERS
        for _ in range(9):
            await asyncio.sleep(1)
            peer.send(b"\0\0\1\x09\0\0\0\0\3\x84")     # CONTINUATION
        return await until_end(world)

    assert World().run(test) <= 2


def test_a_body_that_trickles_is_refused_and_the_connection_goes_on():
    async def test(world):
        peer = await world.open(Peer2)
        stream = peer.request("/", b"x", end=False)
        for _ in range(25):
            await asyncio.sleep(1)
            if not peer.of(stream, h2.events.StreamEnded):
                peer.engine.send_data(stream, b"x")
                peer.flush()
        return (await peer.answer(stream))[0], (await peer.answer(peer.request()))[0]

    assert World().run(test) == (408, 200)


def test_an_answer_of_which_nothing_is_taken_is_given_up_and_a_stream_is_not():
    async def give(sender):
        await sender.send(bytes(1000))

    async def handler(request):
        return Response(200, stream=give) if request.path == "/stream" else Response(200, (), bytes(1000))

    async def test(world):
        peer = await world.open(lambda: Peer2(window=10, reads=False))
        stream, whole = peer.request("/stream"), peer.request("/")
        await peer.until(lambda: peer.of(whole, h2.events.StreamReset))
        took = world.loop.time()
        await asyncio.sleep(300)
        return round(took), peer.of(stream, h2.events.StreamReset)

    assert World(handler).run(test) == (75, [])


def test_draining_answers_what_is_under_way_and_refuses_the_rest():
    async def slow(request):
        await asyncio.sleep(5)
        return Response(200, (), b"slow")

    async def test(world):
        idle, busy = await world.open(Peer2), await world.open(Peer2)
        stream = busy.request()
        await asyncio.sleep(1)
        draining = asyncio.ensure_future(world.listener.drain(20))
        await busy.until(busy.goaway)
        busy.engine.state_machine.state = h2.connection.ConnectionState.CLIENT_OPEN
        late = busy.request()
        answer = await busy.answer(stream)
        await idle.ended()
        return (
            await draining, answer, busy.goaway().last_stream_id == stream, idle.goaway().error_code,
            busy.of(late, h2.events.StreamReset)[0].error_code,
        )

    assert World(slow).run(test) == (0, (200, b"slow"), True, ErrorCodes.NO_ERROR, ErrorCodes.REFUSED_STREAM)


def test_who_says_goaway_still_gets_its_answers():
    async def slow(request):
        await asyncio.sleep(5)
        return Response(200, (), bytes(200_000))

    async def test(world):
        peer = await world.open(Peer2)
        stream = peer.request()
        peer.send(b"\0\0\x08\7\0\0\0\0\0" + bytes(8) + b"\0\0\x08\6\0\0\0\0\0" + bytes(8))      # and a PING
        answer = await peer.answer(stream)
        await peer.ended()
        return answer

    assert World(slow).run(test) == (200, bytes(200_000))


def test_who_closes_its_half_is_still_answered():
    async def late(request):
        await asyncio.sleep(1)
        return Response(200, (), b"late")

    async def test(world):
        peer = await world.open(Peer2)
        stream = peer.request()
        peer.request("/", b"half", end=False)
        await asyncio.sleep(0.1)
        (connection,) = world.listener.connections
        assert connection.eof_received()
        answer = await peer.answer(stream)
        await peer.ended()
        return answer

    assert World(late).run(test) == (200, b"late")
