"""The listener on a real port, and its orderly end."""

import asyncio

import pytest

from streamkit.errors import ConnectionFailed
from streamkit.http.exchange import HttpConfig, Request, Response
from streamkit.http.listener import HttpListener
from streamkit.runtime.real import RealNetwork
from tests.http.worlds import Peer2, World, echo, request, statuses


@pytest.fixture
async def opened():
    listeners = []

    async def make(handler=echo, **config):
        listeners.append(await HttpListener.open(RealNetwork(), "127.0.0.1:0", handler, HttpConfig(**config)))
        return listeners[-1]

    yield make
    for listener in listeners:
        await listener.close()


async def talk(listener, data, *, half_close=False):
    reader, writer = await asyncio.open_connection(*listener.address.split(":"))
    writer.write(data)
    if half_close:
        writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer


async def test_a_real_port_answers(opened):
    assert (await talk(await opened(), request("/real", method="POST", body=b"abc", close=True))).endswith(b"/real abc")


async def test_an_address_that_is_taken_is_a_typed_error(opened):
    listener = await opened()

    with pytest.raises(ConnectionFailed):
        await HttpListener.open(RealNetwork(), listener.address, echo)


async def test_who_closes_its_half_is_answered_and_closed(opened):
    async def late(request):
        await asyncio.sleep(0)
        return Response(200, (), b"late")

    assert (await talk(await opened(late), request("/"), half_close=True)).endswith(b"late")


async def test_who_closes_its_half_without_a_request_is_closed(opened):
    listener = await opened()

    assert await talk(listener, b"", half_close=True) == b""
    assert await talk(listener, b"GET / HT", half_close=True) == b""


async def test_connections_are_bounded(opened):
    listener = await opened(connections_max=1)
    _, first = await asyncio.open_connection(*listener.address.split(":"))
    while not listener.connections:      # noqa: ASYNC110 - the other side of a real socket has no event
        await asyncio.sleep(0)

    assert statuses(await talk(listener, request("/"))) == [503]
    assert listener.rejected == 1
    first.close()


async def test_without_http2_its_preface_is_no_request(opened):
    assert statuses(await talk(await opened(http2=False), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")) in ([400], [505])


def test_draining_answers_what_is_under_way_and_closes_what_is_idle():
    async def slow(request):
        await asyncio.sleep(5)
        return Response(200, (), b"slow")

    async def test(world):
        idle, busy = await world.open(), await world.open()
        busy.send(request("/") + request("/"))
        await asyncio.sleep(1)
        began = world.loop.time()
        cut = await world.listener.drain(20)
        took = world.loop.time() - began
        return cut, round(took), await idle.ended(), statuses(await busy.ended()), busy.data.count(b"connection: close")

    assert World(slow).run(test) == (0, 9, b"", [200, 200], 1)


def test_draining_cuts_off_what_takes_too_long():
    async def forever(request):
        await asyncio.Event().wait()

    async def test(world):
        busy = await world.open()
        busy.send(request("/"))
        await asyncio.sleep(1)
        return await world.listener.drain(20), round(world.loop.time())

    assert World(forever).run(test) == (1, 21)


def test_a_connection_that_cannot_be_closed_is_cut_off():
    async def test(world):
        peer = await world.open()
        await asyncio.sleep(0.01)
        (connection,) = world.listener.connections
        connection.transport.close = lambda: None      # as a real one does while the peer takes nothing of the rest
        peer.send(request("/", close=True))
        await peer.ended()
        return round(world.loop.time())

    assert World().run(test) == 75


@pytest.mark.parametrize("name", ["connections_max", "head_seconds", "body_seconds", "streams_max"])
def test_a_bound_of_nothing_is_refused(name):
    with pytest.raises(ValueError, match=name):
        HttpConfig(**{name: 0})


def test_a_target_has_a_path_and_perhaps_a_query():
    asked = Request("GET", "/a/b?c=d?e", {})

    assert (asked.path, asked.query) == ("/a/b", "c=d?e")
    assert (Request("GET", "/a", {}).path, Request("GET", "/a", {}).query) == ("/a", "")


@pytest.mark.parametrize("http2", [False, True])
def test_answers_that_nobody_takes_keep_others_out_until_they_are_gone(http2):
    """A reader that stalls holds a whole answer in memory; many of them must not hold more than is allowed."""

    async def large(asked):
        return Response(200, (), bytes(200_000 if asked.path == "/large" else 1))

    async def test(world):
        stalled = await world.open(lambda: Peer2(window=0)) if http2 else await world.open()
        if http2:
            stalled.request("/large")
        else:
            stalled.transport.pause_reading()
            stalled.send(request("/large") * 2)            # the first one is in the network's hands
        await asyncio.sleep(1)
        other = await world.open()
        assert (await other.ask(request("/", close=True))).startswith(b"HTTP/1.1 503")
        stalled.transport.abort()
        await asyncio.sleep(1)
        another = await world.open()
        assert (await another.ask(request("/", close=True))).startswith(b"HTTP/1.1 200")
        assert world.listener.rejected == 1

    World(large, window_bytes=64 * 1024, answers_bytes_max=100_000).run(test)
