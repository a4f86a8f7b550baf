"""HTTP/2 in virtual time: what is answered, what is refused, who waits how long, and who holds up whom."""

import asyncio

import h2.events
import pytest
from h2.errors import ErrorCodes

from streamkit.http.exchange import Response
from tests.http.worlds import Peer2, World, answers, echo, request, spoken, statuses


def ask(*args, handler=echo, config=(), **more):
    """One request's status and body."""
    async def test(world):
        peer = await world.open(Peer2)
        return await peer.answer(peer.request(*args, **more))

    return World(handler, **dict(config)).run(test)


def test_an_answer_has_length_and_date():
    async def test(world):
        peer = await world.open(Peer2)
        stream = peer.request("/one", b"abc")
        answer = await peer.answer(stream)
        return answer, peer.head(stream)

    answer, head = World().run(test)

    assert answer == (200, b"/one abc")
    assert head == {
        ":status": "200", "x-method": "POST", "content-length": "8", "date": "Sun, 06 Nov 1994 08:49:37 GMT",
    }


def test_the_authority_is_the_host_and_repeated_headers_are_joined():
    async def tell(request):
        return Response(200, (), f"{request.headers['host']} {request.headers['x-b']} {request.http2}".encode())

    assert ask(headers=[("x-b", "1"), ("x-b", "2")], handler=tell) == (200, b"a 1,2 True")


@pytest.mark.parametrize(("more", "status"), [
    ({"path": "/" + "x" * 9000}, 414),
    ({"headers": [(f"x-{number}", "y") for number in range(101)]}, 431),
    ({"headers": [("content-length", "16777217")], "body": b"abc", "end": False}, 413),
])  # fmt: skip
def test_a_bad_request_is_refused_and_the_connection_goes_on(more, status):
    async def test(world):
        peer = await world.open(Peer2)
        refused = await peer.answer(peer.request(**more))
        return refused, await peer.answer(peer.request("/next"))

    assert World().run(test) == ((status, b""), (200, b"/next "))


@pytest.mark.parametrize("headers", [
    [("content-length", "3"), ("content-length", "4")], [("content-length", "abc")], [("connection", "close")],
    [("transfer-encoding", "chunked")], [("te", "gzip")], [("Upper", "case")], [("x-a", "b\r\nx-c: d")],
    [(":late", "x")],
])  # fmt: skip
def test_a_malformed_request_ends_the_connection(headers):
    async def test(world):
        peer = await world.open(Peer2)
        peer.engine.config.validate_outbound_headers = peer.engine.config.normalize_outbound_headers = False
        peer.request("/", b"abc", headers=headers)
        await peer.until(peer.goaway)
        await peer.ended()
        return peer.goaway().error_code

    assert World().run(test) == ErrorCodes.PROTOCOL_ERROR


def test_a_body_of_another_length_than_it_says_ends_the_connection():
    async def test(world):
        peer = await world.open(Peer2)
        peer.request("/", b"abcdef", headers=[("content-length", "3")])
        await peer.until(peer.goaway)
        return peer.goaway().error_code

    assert World().run(test) == ErrorCodes.PROTOCOL_ERROR


def test_a_body_is_refused_when_it_grows_too_large():
    assert ask("/", bytes(20_000), config={"body_bytes_max": 16_384}) == (413, b"")
    assert ask("/", bytes(16_384), config={"body_bytes_max": 16_384})[0] == 200


@pytest.mark.parametrize("headers", [[("content-length", "99999999")], [("expect", "100-continue")], []])
def test_who_resets_what_is_being_refused_disturbs_nobody(headers):
    async def test(world):
        peer = await world.open(Peer2)
        await asyncio.sleep(1)
        peer.flush, flush = lambda: None, peer.flush
        for size in (0, 20_000):
            stream = peer.request("/", bytes(size), headers=headers, end=False)
            peer.engine.reset_stream(stream, ErrorCodes.CANCEL)
        peer.flush = flush
        return await peer.answer(peer.request())

    assert World(body_bytes_max=16_384).run(test) == (200, b"/ ")


def test_bodies_of_all_connections_share_one_bound():
    async def test(world):
        first, second = await world.open(Peer2), await world.open(Peer2)
        held = first.request("/", bytes(6000), end=False)
        await asyncio.sleep(0.1)
        refused = await second.answer(second.request("/", bytes(5000)))
        first.engine.send_data(held, bytes(1000), end_stream=True)
        first.flush()
        return refused[0], (await first.answer(held))[0]

    assert World(buffered_bytes_max=10_000).run(test) == (503, 200)


def test_a_large_body_finds_its_window_open():
    async def test(world):
        peer = await world.open(Peer2)
        stream = peer.request("/", b"", end=False, method="POST")
        body, at = bytes(range(256)) * 40_000, 0                     # 10 MB, ten windows of a stream
        while at < len(body):
            room = min(peer.engine.local_flow_control_window(stream), 65_536, len(body) - at)
            if room:
                for piece in range(at, at + room, 16_384):
                    peer.engine.send_data(stream, body[piece : min(piece + 16_384, at + room)])
                at += room
                peer.flush()
            else:
                seen = len(peer.events)
                await peer.until(lambda seen=seen: len(peer.events) > seen)
        peer.engine.end_stream(stream)
        peer.flush()
        return (await peer.answer(stream))[1] == b"/ " + body

    assert World().run(test)


def test_who_expects_100_is_told_at_once():
    async def test(world):
        peer = await world.open(Peer2)
        stream = peer.request("/", headers=[("expect", "100-continue")], method="POST", end=False)
        await peer.until(lambda: peer.of(stream, h2.events.InformationalResponseReceived), seconds=0.1)
        peer.engine.send_data(stream, b"abc", end_stream=True)
        peer.flush()
        return await peer.answer(stream)

    assert World().run(test) == (200, b"/ abc")


def test_trailers_are_read_and_forgotten():
    async def test(world):
        peer = await world.open(Peer2)
        stream = peer.request("/", b"abc", end=False)
        peer.engine.send_headers(stream, [("x-trailer", "yes")], end_stream=True)
        peer.flush()
        return await peer.answer(stream)

    assert World().run(test) == (200, b"/ abc")


def test_a_ping_is_answered():
    async def test(world):
        peer = await world.open(Peer2)
        peer.engine.ping(b"12345678")
        peer.flush()
        await peer.until(lambda: any(isinstance(event, h2.events.PingAckReceived) for event in peer.events))

    World().run(test)


def test_head_has_the_length_and_no_body():
    async def test(world):
        peer = await world.open(Peer2)
        stream = peer.request("/abc", method="HEAD")
        return await peer.answer(stream), peer.head(stream)["content-length"]

    assert World().run(test) == ((200, b""), "5")


def test_a_handler_that_fails_answers_500(caplog):
    assert ask("/broken") == (500, b"")
    assert ask("/split") == (500, b"")
    assert "a handler's mistake" in caplog.text


@pytest.mark.parametrize("streams", [False, True])
def test_a_handler_that_waits_for_what_is_cancelled_has_failed(streams, caplog):
    async def cancelled(sender=None):
        await asyncio.sleep(1)
        waiting = asyncio.get_running_loop().create_future()
        waiting.cancel()
        await waiting

    async def handler(request):
        return Response(200, stream=cancelled) if streams else await cancelled()

    async def test(world):
        first, second = await world.open(), await world.open(Peer2)
        first.send(request(close=True))
        stream = second.request()
        await second.until(lambda: second.of(stream, (h2.events.StreamEnded, h2.events.StreamReset)))
        return statuses(await first.ended()), [event.error_code for event in second.of(stream, h2.events.StreamReset)]

    assert World(handler).run(test) == (([200], [ErrorCodes.INTERNAL_ERROR]) if streams else ([500], []))
    assert "was cancelled" in caplog.text


def test_one_byte_at_a_time_is_one_request():
    sent, client = spoken(("/slow", b"abc"))

    async def test(world):
        peer = await world.open()
        for byte in sent:
            peer.send(bytes([byte]))
            await asyncio.sleep(0.001)
        await peer.until(lambda: b"/slow abc" in peer.data)
        return answers(client, peer.data)

    assert World().run(test) == {1: b"/slow abc"}


def test_http1_and_http2_share_the_port():
    async def test(world):
        second, first = await world.open(Peer2), await world.open()
        return await second.answer(second.request("/two")), statuses(await first.ask(request("/one", close=True)))

    assert World().run(test) == ((200, b"/two "), [200])


def test_a_preface_that_is_none_is_answered_as_http1():
    async def test(world):
        peer = await world.open()
        return statuses(await peer.ask(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"))

    assert World().run(test) in ([400], [505])


def test_a_thousand_streams_are_under_way_at_once_and_thousands_over_time():
    reached = asyncio.Event()
    count = 0

    async def wait(sender):
        nonlocal count
        count += 1
        if count == 1000:
            reached.set()
        await reached.wait()

    async def handler(request):
        return Response(200, stream=wait) if request.path == "/wait" else Response(200, (), b"quick")

    async def test(world):
        peer = await world.open(Peer2)
        await peer.until(lambda: peer.engine.remote_settings.max_concurrent_streams == 1000)
        streams = [peer.request("/wait") for _ in range(1000)]
        for stream in streams:
            await peer.answer(stream)
        peer.events.clear()
        for _ in range(50):
            for stream in [peer.request("/quick") for _ in range(100)]:
                assert await peer.answer(stream) == (200, b"quick")
            peer.events.clear()
        (connection,) = world.listener.connections
        return len(connection._speaker._streams), len(connection._speaker._engine.streams)

    assert World(handler).run(test) == (0, 0)


def test_not_more_handlers_run_than_allowed_and_streams_do_not_count():
    running, most = 0, 0

    async def forever(sender):
        await asyncio.sleep(1000)

    async def handler(request):
        nonlocal running, most
        if request.path == "/stream":
            return Response(200, stream=forever)
        running += 1
        most = max(most, running)
        await asyncio.sleep(1)
        running -= 1
        return Response(200)

    async def test(world):
        peer = await world.open(Peer2)
        for _ in range(20):
            peer.request("/stream")
        for stream in [peer.request("/") for _ in range(20)]:
            await peer.answer(stream)
        return most

    assert World(handler, handlers_max=4).run(test) == 4


# -- streams and windows ---------------------------------------------------------------------------------------


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
