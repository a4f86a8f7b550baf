"""HTTP/1.1 in virtual time: what is answered, what is refused, and who waits how long."""

import asyncio
import logging

import pytest

from streamkit.http.exchange import Response
from tests.http.worlds import Peer, World, request, statuses


def talk(data, handler=None, **config):
    async def test(world):
        return await (await world.open()).ask(data)

    return World(*([handler] if handler else []), **config).run(test)


def test_an_answer_has_length_and_date_and_keeps_the_connection():
    async def test(world):
        peer = await world.open()
        peer.send(request("/one", method="POST", body=b"abc"))
        await peer.until(lambda: peer.data.endswith(b"/one abc"))
        return bytes(peer.data)

    assert World().run(test) == (
        b"HTTP/1.1 200 OK\r\nx-method: POST\r\ncontent-length: 8\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n/one abc"
    )


def test_pipelined_requests_are_answered_in_order():
    async def slow_first(request):
        await asyncio.sleep(1 if request.path == "/one" else 0)
        return Response(200, (), request.path.encode())

    answer = talk(request("/one") + request("/two") + request("/three", close=True), slow_first)

    assert [part.partition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 200 OK\r\n")[1:]] == [
        b"/one", b"/two", b"/three",
    ]


def test_who_pipelines_more_than_the_cap_waits_and_loses_nothing():
    most = 0

    async def count(request):
        nonlocal most
        await asyncio.sleep(0)
        most = max(most, *(len(connection._speaker._reader.complete) for connection in world.listener.connections))
        return Response(200)

    many = b"".join(request(f"/{number}") for number in range(20_000)) + request("/last", close=True)
    world = World(count, pipelined_max=4)

    assert statuses(world.run(lambda world: open_and_ask(world, many))) == [200] * 20_001
    assert most < 16 * 1024 // 25 + 4              # one look takes 16 KiB at most


async def open_and_ask(world, data):
    return await (await world.open()).ask(data)


@pytest.mark.parametrize(("data", "status"), [
    (b"\x16\x03\x01 what is this\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    (request("/", "Transfer-Encoding: chunked", "Content-Length: 3", method="POST"), 400),
    (request("/", "Content-Length: 3", "Transfer-Encoding: chunked", method="POST"), 400),
    (request("/", "Content-Length: 3", "Content-Length: 3", method="POST"), 400),
    (request("/", "Content-Length: 3", "Content-Length: 4", method="POST"), 400),
    (request("/", "Content-Length: 3, 3", method="POST"), 400),
    (request("/", "Content-Length: -3", method="POST"), 400),
    (request("/", "Content-Length: +3", method="POST"), 400),
    (request("/", "Content-Length: 0x3", method="POST"), 400),
    (request("/", "Content-Length: 99999999999999999999999", method="POST"), 400),
    (request("/", "Transfer-Encoding: gzip, chunked", method="POST"), 400),
    (b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    (request("/", "Transfer-Encoding: chunked", method="POST") + b"zz\r\n", 400),
    (request("/", "Expect: a miracle", method="POST", body=b"abc"), 417),
    (request("/" + "x" * 9000), 414),
    (request("/", "X: " + "y" * 70_000), 431),
    (request("/", *(f"X-{number}: y" for number in range(101))), 431),
    (request("/", "Content-Length: 16777217", method="POST"), 413),
    (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
])  # fmt: skip
def test_a_bad_request_is_refused_and_the_connection_ends(data, status):
    answer = talk(data)

    assert statuses(answer) == [status]
    assert answer.endswith(b"\r\nconnection: close\r\n\r\n")
    assert b"content-length: 0\r\n" in answer


def test_a_head_without_end_is_refused_as_it_arrives():
    async def test(world):
        peer = await world.open()
        peer.send(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")
        for _ in range(100):
            peer.send(b"y" * 1000)
            await asyncio.sleep(0)
        return await peer.ended()

    assert statuses(World().run(test)) == [431]


def test_a_body_in_chunks_is_refused_when_it_grows_too_large():
    chunks = b"400\r\n" + b"x" * 1024 + b"\r\n"
    sent = request("/", "Transfer-Encoding: chunked", method="POST") + chunks * 9

    assert statuses(talk(sent, body_bytes_max=8192)) == [413]


def test_a_body_of_the_largest_size_is_taken():
    body = bytes(64 * 1024)

    assert talk(request("/", method="POST", body=body, close=True), body_bytes_max=len(body)).endswith(b"/ " + body)


def test_a_refused_client_that_goes_on_sending_still_gets_its_answer():
    async def test(world):
        peer = await world.open()
        peer.send(request("/", "Content-Length: 99999999", method="POST"))
        for _ in range(50):
            peer.send(bytes(10_000))
            await asyncio.sleep(0.001)
        return await peer.ended()

    assert statuses(World().run(test)) == [413]


def test_bodies_of_all_connections_share_one_bound():
    async def test(world):
        first, second = await world.open(), await world.open()
        first.send(request("/", "Content-Length: 7000", method="POST") + bytes(6000))
        await asyncio.sleep(0.1)
        refused = statuses(await second.ask(request("/", method="POST", body=bytes(5000))))
        first.send(bytes(1000))
        await first.until(lambda: first.data)
        return refused + statuses(first.data)

    assert World(buffered_bytes_max=10_000).run(test) == [503, 200]


def test_who_expects_100_is_told_at_once():
    async def test(world):
        peer = await world.open()
        peer.send(request("/", "Expect: 100-continue", "Content-Length: 3", method="POST"))
        await peer.until(lambda: peer.data == b"HTTP/1.1 100 Continue\r\n\r\n", seconds=0.1)
        peer.send(b"abc")
        await peer.until(lambda: peer.data.endswith(b"/ abc"))
        return statuses(peer.data)

    assert World().run(test) == [100, 200]


def test_nobody_is_told_to_continue_with_a_body_that_is_too_large():
    assert statuses(talk(request("/", "Expect: 100-continue", "Content-Length: 99999999", method="POST"))) == [413]


def test_an_upgrade_to_h2c_is_not_heard():
    upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
    posted = request("/b", *upgrade, method="POST", body=b"xyz")
    answer = talk(request("/a", *upgrade) + posted + request("/c", close=True))

    assert statuses(answer) == [200, 200, 200]
    assert b"/b xyz" in answer


def test_trailers_are_read_and_forgotten():
    body = b"3\r\nabc\r\n0\r\nX-Trailer: yes\r\n\r\n"
    answer = talk(request("/", "Transfer-Encoding: chunked", method="POST") + body + request("/next", close=True))

    assert statuses(answer) == [200, 200]


def test_http_1_0_is_answered_and_closed():
    assert talk(b"GET /old HTTP/1.0\r\n\r\n").endswith(b"connection: close\r\n\r\n/old ")


def test_head_has_the_length_and_no_body():
    answer = talk(request("/abc", method="HEAD", close=True))

    assert b"content-length: 5\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


def test_a_handler_that_fails_answers_500_and_is_logged(caplog):
    with caplog.at_level(logging.ERROR):
        answer = talk(request("/broken") + request("/split") + request("/fine", close=True))

    assert statuses(answer) == [500, 500, 200]
    assert "a handler's mistake" in caplog.text
    assert b"x-c" not in answer


def test_one_byte_at_a_time_is_one_request():
    async def test(world):
        peer = await world.open()
        for byte in request("/slow", method="POST", body=b"abc", close=True):
            peer.send(bytes([byte]))
            await asyncio.sleep(0.001)
        return await peer.ended()

    assert World().run(test).endswith(b"/slow abc")


def test_who_closes_its_half_is_still_answered():
    class Half(Peer):
        """Its end of input reaches the server as it does over TCP; the simulated network knows only whole ends."""

    async def late(request):
        await asyncio.sleep(1)
        return Response(200, (), b"late")

    async def test(world):
        peer = await world.open(Half)
        peer.send(request("/"))
        await asyncio.sleep(0.1)
        (connection,) = world.listener.connections
        assert connection.eof_received()
        return await peer.ended()

    assert World(late).run(test).endswith(b"late")


# -- streams ---------------------------------------------------------------------------------------------------


def streaming(*chunks, seconds=0.0, then=None):
    async def give(sender):
        for chunk in chunks:
            await sender.send(chunk)
            await asyncio.sleep(seconds)
        if then is not None:
            raise then

    async def handler(request):
        return Response(200, (("content-type", "text/plain"),), stream=give)

    return handler


def test_a_stream_is_sent_in_chunks_and_the_connection_lives_on():
    answer = talk(request("/") + request("/", close=True), streaming(b"one", b"", b"three"))

    assert answer.count(b"3\r\none\r\n5\r\nthree\r\n0\r\n\r\n") == 2
    assert b"content-length" not in answer


def test_a_stream_to_an_old_client_ends_with_the_connection():
    assert talk(b"GET / HTTP/1.0\r\n\r\n", streaming(b"one", b"two")).endswith(b"\r\n\r\nonetwo")


def test_a_stream_that_fails_ends_without_its_last_chunk(caplog):
    answer = talk(request("/"), streaming(b"one", seconds=1, then=ValueError("no more")))

    assert b"one" in answer
    assert not answer.endswith(b"0\r\n\r\n")
    assert "no more" in caplog.text


def test_a_handler_and_a_stream_are_cancelled_when_the_peer_goes():
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
        for path in ("/", "/stream"):
            peer = await world.open()
            peer.send(request(path))
            await asyncio.sleep(1)
            peer.transport.abort()
        await asyncio.sleep(1)
        return len(ended)

    assert World(handler).run(test) == 2


def test_a_stalled_reader_stops_its_stream_and_nobody_else():
    sent = []

    async def flood(sender):
        while True:
            await sender.send(bytes(100_000))
            sent.append(1)

    async def handler(request):
        return Response(200, stream=flood) if request.path == "/flood" else Response(200, (), b"quick")

    async def test(world):
        stalled = await world.open()
        stalled.transport.pause_reading()
        stalled.send(request("/flood"))
        await asyncio.sleep(60)
        before = len(sent)
        buffered = max(connection.transport.get_write_buffer_size() for connection in world.listener.connections)
        await asyncio.sleep(600)
        assert (await (await world.open()).ask(request("/", close=True))).endswith(b"quick")
        return before, len(sent) - before, buffered

    before, later, buffered = World(handler, idle_seconds=10_000).run(test)

    assert before < 20
    assert later == 0
    assert buffered < 1_000_000


# -- time-outs -------------------------------------------------------------------------------------------------


def seconds_until_end(*parts, handler=None, reading=True, **config):
    """A part a second: how long the connection lasted, and the statuses that were answered."""
    async def feed(peer):
        for part in parts:
            peer.send(part)
            await asyncio.sleep(1)

    async def test(world):
        peer = await world.open()
        if not reading:
            peer.transport.pause_reading()
        await asyncio.sleep(0.01)
        began, feeding = world.loop.time(), asyncio.ensure_future(feed(peer))
        while world.listener.connections:          # noqa: ASYNC110 - the clock is virtual
            await asyncio.sleep(0.1)
        feeding.cancel()
        return round(world.loop.time() - began), statuses(peer.data)

    return World(*([handler] if handler else []), **config).run(test)


def test_a_silent_connection_is_closed():
    assert seconds_until_end() == (10, [])


def test_an_idle_connection_is_closed_after_a_while():
    assert seconds_until_end(request("/")) == (90, [200])


def test_a_head_that_trickles_is_cut_off():
    assert seconds_until_end(*[bytes([byte]) for byte in request("/" + "x" * 100)]) == (11, [408])


def test_a_body_that_trickles_is_cut_off():
    head = request("/", "Content-Length: 1000", method="POST")

    assert seconds_until_end(head, *[b"x"] * 100) == (21, [408])


def test_a_slow_body_that_makes_progress_is_not_cut_off():
    head = request("/", "Content-Length: 500000", method="POST", close=True)

    assert seconds_until_end(head, *[bytes(5000)] * 100)[1] == [200]


def test_a_handler_may_take_its_time():
    async def slow(request):
        await asyncio.sleep(3600)
        return Response(200)

    assert seconds_until_end(request("/", close=True), handler=slow)[1] == [200]


def test_an_answer_of_which_nothing_is_taken_ends_the_connection():
    async def large(request):
        return Response(200, (), bytes(4_000_000))

    # The first answer is what lies in the sockets' buffers.
    assert 74 <= seconds_until_end(request("/") * 2, handler=large, reading=False)[0] <= 77
