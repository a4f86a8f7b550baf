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
