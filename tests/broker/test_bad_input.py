"""Whatever comes in, the broker answers with a reason and stays up for everyone else."""

import asyncio
import struct

import pytest

from streamkit.errors import LimitReached, ProtocolMismatch, StreamkitError
from streamkit.protocol import messages as m
from streamkit.protocol.connection import Connection, Side, State
from tests.broker.conftest import batch_of


async def talk(node, data, *, wait=True):
    """Send bytes, return all that is answered until the broker closes."""
    reader, writer = await asyncio.open_connection(*node.addresses.native.split(":"))
    writer.write(data)
    answer = await asyncio.wait_for(reader.read(), 10) if wait else b""
    writer.close()
    return answer


def read_failure(answer):
    """What the broker's last words were, as a client reads them."""
    client = Connection(Side.CLIENT, "test")
    client.feed(answer)
    assert client.state is State.CLOSED
    return client.failure


def hello(low=1, high=1):
    client = Connection(Side.CLIENT, "test")
    client.take()
    client.writer.message(0, m.encode(m.Hello(low, high, "test")))
    return b"".join(map(bytes, client.take()))


GARBAGE = {
    "random bytes": b"\xde\xad\xbe\xef" * 40,
    "a 1 GiB length": struct.pack("<IBBHI", 1 << 30, 1, 0, 0, 0),
    "the largest length": b"\xff" * 12,
    "an unknown kind": struct.pack("<IBBHI", 8, 77, 0, 0, 0),
    "a header beyond the frame": struct.pack("<IBBHI", 8, 2, 0, 999, 1),
    "tls": bytes.fromhex("1603010200010001fc0303") + bytes(60),
    "a put before hello": struct.pack("<IBBHI", 8 + 24, 2, 0, 24, 1) + bytes(24),
    "a message that is not msgpack": struct.pack("<IBBHI", 8 + 3, 1, 0, 0, 0) + b"\xc1\xc1\xc1",
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=list(GARBAGE))
async def test_garbage_is_answered_with_a_reason_and_the_end(node, client, data):
    answer = await talk(node, data)

    assert isinstance(read_failure(answer), ProtocolMismatch)
    assert (await client.describe_node()).ready


@pytest.mark.parametrize("data", GARBAGE.values(), ids=list(GARBAGE))
async def test_garbage_after_the_greeting_ends_only_that_connection(node, client, data):
    if data[4:5] == b"\x02" and len(data) == 36:
        pytest.skip("a put is no garbage after the greeting")
    answer = await talk(node, hello() + data)

    assert isinstance(read_failure(answer), ProtocolMismatch)
    assert (await client.describe_node()).ready


@pytest.mark.parametrize("verb", ["GET / HTTP/1.1\r\n\r\n", "POST /x HTTP/1.1\r\nHost: a\r\n\r\n"])
async def test_http_on_the_native_port_is_told_so(node, verb):
    assert (await talk(node, verb.encode())).startswith(b"HTTP/1.1 400 ")


async def test_a_version_too_far_apart_is_refused_with_both_versions(node):
    failure = read_failure(await talk(node, hello(90, 99)))

    assert isinstance(failure, ProtocolMismatch)
    assert "90" in str(failure)


async def test_a_connection_that_does_not_greet_is_closed(start):
    node = await start(listen__native__greeting_seconds=0.05)

    assert await talk(node, b"") is not None
    assert await talk(node, hello()[:5]) is not None


async def test_half_a_frame_and_a_hang_up_leave_nothing_behind(node, client):
    for cut in range(1, len(hello()), 7):
        await talk(node, hello()[:cut], wait=False)
    await client.describe_node()
    while len(node._server.links) > 1:       # noqa: ASYNC110 - the kernel tells of hang-ups when it likes
        await asyncio.sleep(0.005)


async def test_a_frame_that_trickles_is_cut_off(start):
    node = await start(listen__native__frame_seconds=0.01)
    reader, writer = await asyncio.open_connection(*node.addresses.native.split(":"))
    writer.write(hello() + b"\x40")
    await reader.read(20)
    (link,) = node._server.links
    link.sweep(node._server.loop.time())
    link.sweep(node._server.loop.time() + 1)
    link.sweep(node._server.loop.time() + 2)

    assert b"took too long" in await asyncio.wait_for(reader.read(), 5)
    writer.close()


async def test_an_idle_connection_is_told_goodbye(start):
    node = await start(listen__native__idle_seconds=1)
    reader, writer = await asyncio.open_connection(*node.addresses.native.split(":"))
    writer.write(hello())
    await reader.read(20)
    (link,) = node._server.links
    link.sweep(node._server.loop.time())
    link.sweep(node._server.loop.time() + 2)

    assert b"idle" in await asyncio.wait_for(reader.read(), 5)
    writer.close()


async def test_connections_beyond_the_limit_are_told_so(start, connect):
    node = await start(listen__native__connections_max=1)
    await connect(node)
    with pytest.raises((LimitReached, StreamkitError), match="connections"):
        await connect(node)


@pytest.mark.parametrize(
    "message",
    [
        m.CreateStream("a/b", 1, 168, None, "fsync", 100, "auto"),
        m.CreateStream("__x", 1, 168, None, "fsync", 100, "auto"),
        m.CreateStream("orders", 0, 168, None, "fsync", 100, "auto"),
        m.CreateStream("orders", 1 << 40, 168, None, "fsync", 100, "auto"),
        m.CreateStream("orders", 1, 1, None, "fsync", 100, "auto"),
        m.CreateStream("orders", 1, 168, -5, "fsync", 100, "auto"),
        m.CreateStream("orders", 1, 168, None, "maybe", 100, "auto"),
        m.DeleteStream("__applications"),
        m.ResolvePosition(b"short", "latest", 0),
        m.NewProducer("x" * 1000),
    ],
    ids=repr,
)
async def test_impossible_requests_get_typed_errors(client, message):
    with pytest.raises(StreamkitError) as caught:
        await client.call(message)
    assert caught.value.code not in ("internal", "connection_failed")
    assert (await client.describe_node()).ready


async def test_the_command_log_takes_no_puts_from_outside(node, client):
    shard = node._catalog.stream("__applications").shards[0]
    with pytest.raises(StreamkitError) as caught:
        await client.put_batch(shard, batch_of(b"forged"))
    assert caught.value.code == "shard_not_found"
