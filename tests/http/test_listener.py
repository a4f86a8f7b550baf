"""The listener on a real port: answers in order, and keeps nobody waiting for a slow or greedy client."""

import asyncio

import pytest

from streamkit.http.http1 import Answer
from streamkit.http.listener import HttpConfig, HttpListener
from streamkit.runtime.real import RealNetwork


async def echo(request):
    if request.path == "/broken":
        raise ValueError("a handler's mistake")
    return Answer(200, request.path.encode())


@pytest.fixture
async def opened():
    listeners = []

    async def make(**config):
        listeners.append(await HttpListener.open(RealNetwork(), "127.0.0.1:0", echo, HttpConfig(**config)))
        return listeners[-1]

    yield make
    for listener in listeners:
        await listener.close()


async def talk(listener, data):
    reader, writer = await asyncio.open_connection(*listener.address.split(":"))
    writer.write(data)
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    return answer


def get(path, connection="keep-alive"):
    return f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: {connection}\r\n\r\n".encode()


async def test_pipelined_requests_are_answered_in_order(opened):
    answer = await talk(await opened(), get("/one") + get("/two") + get("/three", "close"))

    assert [part.rpartition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 200 OK\r\n")[1:]] == [
        b"/one", b"/two", b"/three",
    ]


async def test_a_handler_that_fails_answers_500(opened, caplog):
    assert b" 500 " in await talk(await opened(), get("/broken", "close"))


async def test_other_methods_are_refused(opened):
    answer = await talk(await opened(), b"DELETE / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert b" 405 " in answer


async def test_garbage_is_answered_and_the_connection_ends(opened):
    assert b" 400 " in await talk(await opened(), b"\x16\x03\x01 what is this\r\n\r\n")


async def test_a_request_that_trickles_is_cut_off(opened):
    assert b" 408 " in await talk(await opened(request_seconds=0.05), b"GET / HT")


async def test_a_silent_connection_is_closed(opened):
    assert await talk(await opened(request_seconds=0.05), b"") == b""


async def test_connections_are_bounded(opened):
    listener = await opened(connections_max=1)
    _, first = await asyncio.open_connection(*listener.address.split(":"))
    while not listener.connections:      # noqa: ASYNC110 - the other side of a real socket has no event
        await asyncio.sleep(0)

    assert b" 503 " in await talk(listener, get("/"))
    first.close()
