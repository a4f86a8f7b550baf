"""A listener and its clients on the simulated network: time is virtual, so that every time-out is waited for at once.

`Peer` sends and keeps bytes; `Peer2` speaks HTTP/2 with the client's side of `h2`.
"""

from __future__ import annotations

import asyncio
import re

import h2.config
import h2.connection
import h2.events
from h2.settings import SettingCodes, Settings

from streamkit.http.exchange import HttpConfig, Response
from streamkit.http.listener import HttpListener
from streamkit.simulator.loop import Process, SimulatedLoop
from streamkit.simulator.network import NetworkFaults, SimulatedNetwork


async def echo(request):
    """What arrived, as the body; also what a handler may do wrong."""
    if request.path == "/broken":
        raise ValueError("a handler's mistake")
    if request.path == "/split":
        return Response(200, (("x-a", "b\r\nx-c: d"),))
    return Response(200, (("x-method", request.method),), request.path.encode() + b" " + request.body)


class Clock:
    def now_ms(self):
        return 784_111_777_000             # Sun, 06 Nov 1994 08:49:37 GMT

    monotonic_ms = now_ms


class Peer(asyncio.Protocol):
    def __init__(self):
        self.data = bytearray()
        self.lost = False
        self.error = None
        self._news = None

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.data += data
        self._tell()

    def eof_received(self):
        self.lost = True
        self._tell()

    def connection_lost(self, error):
        self.lost, self.error = True, error
        self._tell()

    def _tell(self):
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def send(self, data):
        self.transport.write(data)

    async def until(self, true, seconds=600):
        """Waits until `true()`; fails when the connection ends before, or after so much (virtual) time."""
        async with asyncio.timeout(seconds):
            while not true():
                assert not self.lost, f"the connection ended: {bytes(self.data[-300:])}"
                self._news = asyncio.get_running_loop().create_future()
                await self._news

    async def ended(self, seconds=600):
        """Everything that came until the other end closed."""
        async with asyncio.timeout(seconds):
            while not self.lost:
                self._news = asyncio.get_running_loop().create_future()
                await self._news
        return bytes(self.data)

    async def ask(self, data):
        self.send(data)
        return await self.ended()


class Peer2(Peer):
    """events: all there were, oldest first. Flow control is acknowledged only when `reads`."""

    def __init__(self, *, window=None, reads=True):
        super().__init__()
        self.engine = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="latin-1"))
        if window is not None:
            self.engine.local_settings = Settings(
                client=True, initial_values={SettingCodes.INITIAL_WINDOW_SIZE: window, SettingCodes.ENABLE_PUSH: 0}
            )
        self.reads = reads
        self.events = []

    def connection_made(self, transport):
        super().connection_made(transport)
        self.engine.initiate_connection()
        self.flush()

    def data_received(self, data):
        for event in self.engine.receive_data(data):
            self.events.append(event)
            if isinstance(event, h2.events.DataReceived) and self.reads:
                self.engine.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        self.flush()
        super().data_received(data)

    def flush(self):
        if (data := self.engine.data_to_send()) and not self.lost:
            self.transport.write(data)

    def request(self, path="/", body=None, method=None, headers=(), end=True):
        stream = self.engine.get_next_available_stream_id()
        fields = [(":method", method or ("GET" if body is None else "POST")), (":path", path), (":scheme", "http"),
                  (":authority", "a"), *headers]
        self.engine.send_headers(stream, fields, end_stream=body is None and end)
        if body is not None:
            for at in range(0, len(body) or 1, 16_384):
                part = body[at : at + 16_384]
                self.engine.send_data(stream, part, end_stream=end and at + 16_384 >= len(body))
        self.flush()
        return stream

    def of(self, stream, kind):
        return [event for event in self.events if isinstance(event, kind) and event.stream_id == stream]

    def body(self, stream):
        return b"".join(event.data for event in self.of(stream, h2.events.DataReceived))

    def head(self, stream):
        return dict(self.of(stream, h2.events.ResponseReceived)[-1].headers)

    async def answer(self, stream):
        """Status and body, when the answer is whole."""
        await self.until(lambda: self.of(stream, (h2.events.StreamEnded, h2.events.StreamReset)))
        assert self.of(stream, h2.events.ResponseReceived), self.of(stream, h2.events.StreamReset)
        return int(self.head(stream)[":status"]), self.body(stream)

    def goaway(self):
        return next((event for event in self.events if isinstance(event, h2.events.ConnectionTerminated)), None)


class World:
    """`World(handler, limit=…).run(test)`, where test takes the world and awaits what it likes."""

    def __init__(self, handler=echo, *, window_bytes=256 * 1024, **config):
        self.loop = SimulatedLoop()
        self.network = SimulatedNetwork(self.loop, 1, NetworkFaults(window_bytes=window_bytes))
        self.here, self.there = Process("server"), Process("client")
        self.handler = handler
        self.config = HttpConfig(**config)
        self.listener = None

    async def open(self, factory=Peer):
        return await self.network.endpoint(self.there).connect(self.listener.address, factory)

    def run(self, test):
        async def all_of_it():
            self.listener = await HttpListener.open(
                self.network.endpoint(self.here), "server:0", self.handler, self.config, clock=Clock()
            )
            try:
                return await test(self)
            finally:
                await self.listener.close()
                await asyncio.sleep(1)
                assert self.listener.bodies.used == 0, "bytes of bodies are not given back"
                assert not self.listener.connections

        try:
            return self.loop.run_until_complete(all_of_it())
        finally:
            assert not self.loop.unhandled, self.loop.unhandled
            self.loop.close()


def request(path="/", *fields, method="GET", body=b"", close=False):
    lines = [f"{method} {path} HTTP/1.1", "Host: a", *fields]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    if close:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode() + body


def statuses(data):
    """The status of each answer in a byte stream of HTTP/1.1."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", data)]


def spoken(*requests):
    """All that a client sends for (path, body) each when it waits for nothing; and the client's engine."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="latin-1"))
    client.initiate_connection()
    for number, (path, body) in enumerate(requests):
        fields = [(":method", "POST"), (":path", path), (":scheme", "http"), (":authority", "a")]
        client.send_headers(2 * number + 1, fields)
        for at in range(0, len(body) or 1, 1000):
            client.send_data(2 * number + 1, body[at : at + 1000], end_stream=at + 1000 >= len(body))
    return client.data_to_send(), client


def answers(client, data):
    """The body of each stream that was answered whole."""
    bodies, whole = {}, set()
    for event in client.receive_data(bytes(data)):
        if isinstance(event, h2.events.DataReceived):
            bodies[event.stream_id] = bodies.get(event.stream_id, b"") + event.data
        elif isinstance(event, h2.events.StreamEnded):
            whole.add(event.stream_id)
    return {stream: bodies.get(stream, b"") for stream in whole}
