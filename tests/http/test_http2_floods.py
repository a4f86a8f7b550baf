"""What asks for work and brings none: the connection ends with GOAWAY, and says why."""

import asyncio

import h2.events
import pytest
from h2.errors import ErrorCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    ExtensionFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from streamkit.http.exchange import HttpConfig, Response
from streamkit.http.guard import FrameGuard
from tests.http.worlds import Peer2, World, spoken


def ending(send, handler=None, **config):
    """The code of the GOAWAY that `send(peer, stream)` provokes; stream: a request without its end."""
    async def test(world):
        peer = await world.open(Peer2)
        stream = peer.request("/", b"abc", end=False)
        await asyncio.sleep(0.01)
        send(peer, stream)
        await peer.until(peer.goaway)
        await peer.ended()
        assert world.listener.rejected == 1
        return peer.goaway().error_code

    return World(*([handler] if handler else []), **config).run(test)


@pytest.mark.parametrize("frame", [
    lambda stream: PingFrame(0, opaque_data=b"12345678"),
    lambda stream: SettingsFrame(0, settings={3: 100}),
    lambda stream: DataFrame(stream, b""),
    lambda stream: DataFrame(stream, b"", flags=["PADDED"], pad_length=20),
    lambda stream: DataFrame(stream, b"x"),
    lambda stream: PriorityFrame(stream, depends_on=0, stream_weight=1, exclusive=False),
    lambda stream: WindowUpdateFrame(0, window_increment=1),
    lambda stream: ExtensionFrame(0x42, 0, 0, b""),
], ids=["ping", "settings", "empty data", "padding", "tiny data", "priority", "window update", "unknown"])  # fmt: skip
def test_a_flood_of_control_frames_ends_the_connection(frame):
    def send(peer, stream):
        for _ in range(30):
            peer.send(frame(stream).serialize() * 50)

    assert ending(send) == ErrorCodes.ENHANCE_YOUR_CALM


def test_streams_that_are_opened_and_reset_end_the_connection():
    begun = 0

    async def count(request):
        nonlocal begun
        begun += 1
        await asyncio.sleep(1000)
        return Response(200)

    def send(peer, stream):
        for _ in range(2000):
            peer.engine.reset_stream(peer.request(), ErrorCodes.CANCEL)

    assert ending(send, count) == ErrorCodes.ENHANCE_YOUR_CALM
    assert begun <= 1000


@pytest.mark.parametrize("part", [b"", b"\x82", bytes(16_000)])
def test_a_flood_of_continuations_ends_the_connection(part):
    def send(peer, stream):
        peer.send(HeadersFrame(stream + 2, b"\x82").serialize())
        for _ in range(40):
            peer.send(ContinuationFrame(stream + 2, part).serialize())

    assert ending(send) == ErrorCodes.ENHANCE_YOUR_CALM


def test_headers_that_unpack_to_too_much_end_the_connection():
    def send(peer, stream):
        peer.request("/", headers=[("x-a", "y" * 4000), *[("x-a", "y" * 4000)] * 60])

    assert ending(send) == ErrorCodes.ENHANCE_YOUR_CALM


def test_more_streams_than_allowed_end_the_connection():
    async def forever(request):
        await asyncio.sleep(1e6)

    def send(peer, stream):
        peer.engine.remote_settings[3] = 1000
        peer.engine.remote_settings.acknowledge()
        for _ in range(12):
            peer.request()

    assert ending(send, forever, streams_max=10) == ErrorCodes.PROTOCOL_ERROR


def test_answers_to_pings_that_nobody_reads_end_the_connection():
    async def test(world):
        peer = await world.open(Peer2)
        await asyncio.sleep(1)
        peer.transport.pause_reading()
        for _ in range(2000):
            peer.send(PingFrame(0, opaque_data=b"12345678").serialize() * 100)
            await asyncio.sleep(0.5)
            if not world.listener.connections:
                return True
            (connection,) = world.listener.connections
            assert connection.transport.get_write_buffer_size() < 2_000_000
        return False

    assert World(control_frames_max=10_000_000).run(test)


def test_many_requests_at_once_let_others_have_their_turn():
    async def test(world):
        peer, other = await world.open(Peer2), await world.open(Peer2)
        peer.flush, flush = lambda: None, peer.flush
        streams = [peer.request(f"/{number}", b"abc") for number in range(900)]
        peer.flush = flush
        peer.flush()
        last = other.request()
        await other.answer(last)
        done = sum(bool(peer.of(stream, h2.events.StreamEnded)) for stream in streams)
        for number, stream in enumerate(streams):
            assert await peer.answer(stream) == (200, f"/{number} abc".encode())
        return done

    assert World().run(test) < 900


def test_a_busy_client_is_no_flood():
    """Far more requests, resets and pings than the bound, at a pace that clients have."""
    async def test(world):
        peer = await world.open(Peer2)
        for number in range(3000):
            if number % 30 == 0:
                peer.engine.reset_stream(peer.request("/", b"abc", end=False), ErrorCodes.CANCEL)
            if number % 10 == 0:
                peer.engine.ping(b"12345678")
            await peer.answer(peer.request("/", b"abc"))
            peer.events.clear()
        return peer.goaway()

    assert World().run(test) is None


def test_a_large_answer_in_small_windows_is_no_flood():
    async def large(request):
        return Response(200, (), bytes(40_000_000))

    async def test(world):
        peer = await world.open(lambda: Peer2(window=16_384))
        return len((await peer.answer(peer.request()))[1])

    assert World(large).run(test) == 40_000_000


def test_the_guard_sees_frames_however_they_are_cut():
    sent, _ = spoken(("/", b"abc"), ("/", bytes(5000)))
    sent += PingFrame(0, opaque_data=b"12345678").serialize() * 9
    for size in (1, 2, 3, 7, 8, 9, 10, 100, 10_000):
        guard = FrameGuard(HttpConfig(control_frames_max=11), 0.0)
        pieces = [sent[at : at + size] for at in range(0, len(sent), size)]

        assert [guard.look(piece, 0.0) for piece in pieces] == [("", len(piece)) for piece in pieces]
        assert guard.look(PingFrame(0, opaque_data=b"12345678").serialize() * 9, 0.0)[0] == "control frames"


def test_what_was_spent_comes_back_with_time_and_with_work():
    guard = FrameGuard(HttpConfig(control_frames_max=20), 0.0)
    guard.look(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 0.0)
    ping = PingFrame(0, opaque_data=b"12345678").serialize()

    assert guard.look(ping * 20, 0.0)[0] == ""
    assert guard.look(ping * 10, 10.0)[0] == ""
    guard.earn(5)
    assert guard.look(ping * 5, 10.0)[0] == ""
    assert guard.look(ping, 10.0)[0] == "control frames"


