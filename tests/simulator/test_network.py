import asyncio

import pytest

from streamkit.errors import ConnectionFailed
from streamkit.simulator.loop import Process, SimulatedLoop
from streamkit.simulator.network import NetworkFaults, SimulatedNetwork


class Recorder(asyncio.Protocol):
    def __init__(self):
        self.data = bytearray()
        self.chunks = 0
        self.lost = False
        self.paused = False

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.data += data
        self.chunks += 1

    def pause_writing(self):
        self.paused = True

    def resume_writing(self):
        self.paused = False

    def connection_lost(self, error):
        self.lost = True


class BufferedRecorder(asyncio.BufferedProtocol):
    def __init__(self):
        self.data = bytearray()
        self.room = bytearray(7)

    def connection_made(self, transport):
        self.transport = transport

    def get_buffer(self, size_hint):
        return self.room

    def buffer_updated(self, count):
        self.data += self.room[:count]


class Bench:
    """A server process and a client process with one connection."""

    def __init__(self, *, seed=1, server_protocol=Recorder, **faults):
        self.loop = SimulatedLoop()
        self.network = SimulatedNetwork(self.loop, seed, NetworkFaults(**faults))
        self.server_process, self.client_process = Process("server"), Process("client")
        self.ends = []
        self._server_protocol = server_protocol

    def _accept(self):
        self.ends.append(self._server_protocol())
        return self.ends[-1]

    async def connect(self):
        await self.network.endpoint(self.server_process).listen("node:1", self._accept)
        client = await self.network.endpoint(self.client_process).connect("node:1", Recorder)
        await asyncio.sleep(0.01)
        return client, self.ends[0]

    def run(self, main):
        self.loop.run_until_complete(main)
        assert not self.loop.unhandled
        self.loop.close()


@pytest.mark.parametrize("protocol", [Recorder, BufferedRecorder])
@pytest.mark.parametrize("seed", range(5))
def test_bytes_arrive_whole_and_in_order_however_they_are_cut(protocol, seed):
    bench = Bench(seed=seed, server_protocol=protocol, cut_up=0.5, slow=0.1)
    sent = b"".join(bytes([i % 251]) * (i % 97) for i in range(400))

    async def main():
        client, server = await bench.connect()
        at = 0
        while at < len(sent):
            size = 1 + (at * 7919) % 500
            client.transport.write(sent[at : at + size])
            at += size
            await asyncio.sleep(0.0001)
        await asyncio.sleep(1)
        assert bytes(server.data) == sent

    bench.run(main())


def test_a_reader_that_pauses_makes_the_writer_pause():
    bench = Bench(window_bytes=1000)

    async def main():
        client, server = await bench.connect()
        server.transport.pause_reading()
        for _ in range(100):
            client.transport.write(bytes(1000))
        await asyncio.sleep(1)
        assert client.paused
        assert not server.data
        assert client.transport.get_write_buffer_size() > 64 * 1024
        server.transport.resume_reading()
        await asyncio.sleep(1)
        assert not client.paused
        assert len(server.data) == 100_000

    bench.run(main())


def test_close_delivers_what_was_written_then_ends():
    bench = Bench()

    async def main():
        client, server = await bench.connect()
        client.transport.write(b"last words")
        client.transport.close()
        await asyncio.sleep(1)
        assert bytes(server.data) == b"last words"
        assert server.lost
        assert client.lost

    bench.run(main())


def test_a_broken_connection_tells_both_ends():
    bench = Bench()

    async def main():
        client, server = await bench.connect()
        bench.network.break_some(1.0)
        await asyncio.sleep(1)
        assert client.lost
        assert server.lost
        assert client.transport.is_closing()

    bench.run(main())


def test_a_stalled_link_holds_bytes_in_one_direction_only():
    bench = Bench()

    async def main():
        client, server = await bench.connect()
        bench.network.stall("client", "server", True)
        client.transport.write(b"up")
        server.transport.write(b"down")
        await asyncio.sleep(5)
        assert (bytes(server.data), bytes(client.data)) == (b"", b"down")
        bench.network.stall("client", "server", False)
        await asyncio.sleep(1)
        assert bytes(server.data) == b"up"

    bench.run(main())


@pytest.mark.parametrize("silent", [False, True])
def test_peers_of_a_killed_process_hear_of_it_and_its_address_is_free(silent):
    bench = Bench()

    async def main():
        client, _ = await bench.connect()
        bench.server_process.kill()
        bench.network.process_gone(bench.server_process, silent=silent)
        client.transport.write(b"into the void")
        await asyncio.sleep(5)
        assert client.lost
        with pytest.raises(ConnectionFailed):
            await bench.network.endpoint(bench.client_process).connect("node:1", Recorder)

    bench.run(main())


def test_bytes_for_a_stopped_process_wait_for_it():
    bench = Bench()

    async def main():
        client, server = await bench.connect()
        bench.server_process.stopped = True
        client.transport.write(b"one")
        await asyncio.sleep(1)
        client.transport.write(b"two")
        await asyncio.sleep(1)
        assert not server.data
        bench.loop.resume(bench.server_process)
        await asyncio.sleep(1)
        assert bytes(server.data) == b"onetwo"

    bench.run(main())


def test_what_comes_before_anybody_accepted_waits_for_it():
    bench = Bench()
    accepting = []

    async def main():
        soon = bench.network.soon
        bench.network.soon = lambda end, callback, *args: (
            accepting.append((callback, args)) if callback.__name__ == "begin" else soon(end, callback, *args)
        )
        await bench.network.endpoint(bench.server_process).listen("node:1", bench._accept)
        client = await bench.network.endpoint(bench.client_process).connect("node:1", Recorder)
        client.transport.write(b"hello")
        client.transport.close()
        await asyncio.sleep(1)
        [(begin, args)] = accepting
        begin(*args)
        await asyncio.sleep(1)
        assert bytes(bench.ends[0].data) == b"hello" and bench.ends[0].lost

    bench.run(main())
