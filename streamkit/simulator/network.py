"""The network of the bottle: byte connections in memory that delay, cut up, stall and break.

A connection is two pipes, one a direction; bytes of one pipe never overtake each other, those of different pipes do.
Each end is an asyncio transport on the loop. What a `Process` held breaks when it is killed: its peers hear of it a
moment later, or, when its machine lost power, only when they have waited long.

    write ─▶ [transport buffer] ─window─▶ [wire: chunks with arrival times] ─▶ data_received / buffer_updated
"""

from __future__ import annotations

import asyncio
import errno
import math
import random
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import Context
from dataclasses import dataclass
from typing import Any

from streamkit.errors import ConnectionFailed
from streamkit.runtime.interfaces import Buffer, Listener, ProtocolFactory, TlsContext
from streamkit.simulator.loop import Process, SimulatedLoop

_HIGH_BYTES = 64 * 1024
_CONNECT_SECONDS_MAX = 10.0            # how long a connect into silence hangs before the system gives up


@dataclass(slots=True, kw_only=True)
class NetworkFaults:
    """Chances are for each delivery or connect; seconds are virtual.

    window_bytes: what fits into the system's socket buffers of one direction.
    silence_seconds: how long the end of a machine that lost power goes unnoticed at most.
    """

    delay_seconds: float = 0.0002
    slow: float = 0.0
    slow_seconds: float = 0.05
    cut_up: float = 0.0
    broken: float = 0.0
    refused: float = 0.0
    window_bytes: int = 256 * 1024
    silence_seconds: float = 3.0


class _Pipe:
    """One direction, with chances of its own. `stalled` is set by the network while the link lets nothing through."""

    __slots__ = (
        "arrives", "broken", "buffered", "closing", "from_end", "in_flight", "network", "stalled", "timer", "to_end",
        "uniform", "unread", "waiting",
    )

    def __init__(self, network: SimulatedNetwork, from_end: SimulatedTransport, to_end: SimulatedTransport) -> None:
        self.network = network
        self.uniform = random.Random(network.draw.getrandbits(64)).random
        self.from_end = from_end
        self.to_end = to_end
        self.waiting: deque[bytes] = deque()      # in the sender's transport buffer
        self.buffered = 0
        self.in_flight: deque[tuple[float, bytes]] = deque()
        self.unread = 0                           # bytes in flight or not taken by the receiver
        self.arrives = 0.0
        self.closing = False                      # an end of stream follows the last byte
        self.stalled = False
        self.broken = False                       # nothing passes any more; the ends will hear of it
        self.timer = False

    def push(self, data: bytes) -> None:
        if self.broken:
            return
        if not self.waiting and self.unread < self.network.faults.window_bytes:
            self._send(data)
        else:
            self.waiting.append(data)
            self.buffered += len(data)

    def _send(self, data: bytes) -> None:
        faults = self.network.faults
        seconds = -math.log(1.0 - self.uniform()) * faults.delay_seconds
        if faults.slow and self.uniform() < faults.slow:
            seconds += self.uniform() * faults.slow_seconds
        arrives = self.network.now() + seconds
        if arrives > self.arrives:
            self.arrives = arrives
        self.unread += len(data)
        if faults.cut_up and len(data) > 1 and self.uniform() < faults.cut_up:
            cut = 1 + int(self.uniform() * (len(data) - 1))
            self.in_flight.append((self.arrives, data[:cut]))
            self.arrives += faults.delay_seconds * self.uniform()
            data = data[cut:]
        self.in_flight.append((self.arrives, data))
        if not self.timer:
            self.schedule()

    def end(self) -> None:
        """After what was written: an end of stream."""
        self.closing = True
        self.schedule()

    def schedule(self) -> None:
        if self.timer or self.stalled or self.broken or self.to_end.reading_paused or self.to_end.dead:
            return
        if self.in_flight:
            self.timer = True
            self.network.at(self.in_flight[0][0], self._deliver)
        elif self.closing and not self.waiting:
            self.timer = True
            self.network.at(self.network.loop.time() + self.network.faults.delay_seconds, self._deliver)

    def _deliver(self) -> None:
        self.timer = False
        end = self.to_end
        if self.stalled or self.broken or end.reading_paused or end.dead or not end.accepted:
            return
        if end.process is not None and end.process.stopped:
            self.timer = True
            self.network.soon(end, self._go_on)
            return
        if self.network.faults.broken and self.uniform() < self.network.faults.broken:
            self.network.break_connection(self)
            return
        now, in_flight = self.network.now(), self.in_flight
        if in_flight and in_flight[0][0] <= now:
            data = in_flight.popleft()[1]
            if in_flight and in_flight[0][0] <= now:
                chunks = [data]
                while in_flight and in_flight[0][0] <= now:
                    chunks.append(in_flight.popleft()[1])
                data = b"".join(chunks)
            self.unread -= len(data)
            self._refill()
            end.hand_over(data)
        elif self.closing and not in_flight and not self.waiting:
            end.hand_over(b"")
            return
        self.schedule()

    def _go_on(self) -> None:
        self.timer = False
        self.schedule()

    def _refill(self) -> None:
        while self.waiting and self.unread < self.network.faults.window_bytes:
            data = self.waiting.popleft()
            self.buffered -= len(data)
            self._send(data)
        if self.from_end.writing_paused:
            self.from_end.buffer_drained()

    def drop(self) -> None:
        self.waiting.clear()
        self.in_flight.clear()
        self.buffered = self.unread = 0


class SimulatedTransport(asyncio.Transport):
    """One end of a connection. `dead`: connection_lost was or will be called, or its process is gone."""

    def __init__(self, network: SimulatedNetwork, process: Process | None, names: tuple[str, str]) -> None:
        super().__init__()
        self.network = network
        self.process = process
        self.names = names
        self.out: _Pipe
        self.into: _Pipe
        self.dead = False
        self.reading_paused = False
        self._closing = False
        self._protocol: Any = None
        self._buffered = False
        self._high, self._low = _HIGH_BYTES, _HIGH_BYTES // 4
        self.writing_paused = False

    def start(self, factory: ProtocolFactory) -> asyncio.BaseProtocol:
        self._protocol = factory()
        self._buffered = isinstance(self._protocol, asyncio.BufferedProtocol)
        self._protocol.connection_made(self)
        return self._protocol  # type: ignore[no-any-return]

    @property
    def accepted(self) -> bool:
        """Somebody is there to be told what arrives."""
        return self._protocol is not None

    def begin(self, factory: ProtocolFactory) -> None:
        """`start` on the listening side, unless the connection broke before anybody looked."""
        if not self.dead:
            self.start(factory)
            self.into.schedule()           # what came before, while the process stood still

    # ---- for the owner -----------------------------------------------------------------------------------------

    def write(self, data: Buffer) -> None:
        if self.dead or self._closing or not data or self._process_gone():
            return
        out = self.out
        out.push(bytes(data))
        if out.buffered > self._high:
            self._check_high()

    def writelines(self, list_of_data: Iterable[Buffer]) -> None:
        self.write(b"".join(list_of_data))

    def _check_high(self) -> None:
        if self.out.buffered > self._high and not self.writing_paused:
            self.writing_paused = True
            self._protocol.pause_writing()

    def buffer_drained(self) -> None:
        if self.writing_paused and self.out.buffered <= self._low and not self.dead:
            self.writing_paused = False
            self.network.soon(self, self._protocol.resume_writing)

    def get_write_buffer_size(self) -> int:
        return self.out.buffered

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = _HIGH_BYTES if high is None else high
        self._low = self._high // 4 if low is None else low
        self._check_high()

    def pause_reading(self) -> None:
        self.reading_paused = True

    def resume_reading(self) -> None:
        self.reading_paused = False
        self.into.schedule()

    def is_reading(self) -> bool:
        return not self.reading_paused

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol
        self._buffered = isinstance(protocol, asyncio.BufferedProtocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol  # type: ignore[no-any-return]

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "sockname":
            return _pair(self.names[0])
        return _pair(self.names[1]) if name == "peername" else default

    def is_closing(self) -> bool:
        return self._closing or self.dead

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        """What is written still leaves; reading ends now."""
        if self._closing or self.dead or self._process_gone():
            return
        self._closing = True
        self.reading_paused = True
        self.out.end()
        self.lose(None)

    def abort(self) -> None:
        if not self.dead and not self._process_gone():
            self._closing = True
            self.out.drop()
            self.out.end()
            self.lose(None)

    # ---- for the network ---------------------------------------------------------------------------------------

    def _process_gone(self) -> bool:
        return self.process is not None and self.process.gone

    def hand_over(self, data: bytes) -> None:
        """`data` has arrived; empty: the other end has closed."""
        if not data:
            self.network.within(self, self._protocol.eof_received)
            self.close()
        elif self._buffered:
            self.network.within(self, self._fill, data)
        else:
            self.network.within(self, self._protocol.data_received, data)

    def _fill(self, data: bytes) -> None:
        at = 0
        while at < len(data) and not self.dead:
            room = memoryview(self._protocol.get_buffer(len(data) - at)).cast("B")
            count = min(len(room), len(data) - at)
            assert count, "get_buffer returned no room"
            room[:count] = data[at : at + count] if at or count < len(data) else data
            self._protocol.buffer_updated(count)
            at += count

    def lose(self, error: Exception | None) -> None:
        """connection_lost, on the next turn; nothing arrives here any more."""
        if not self.dead:
            self.dead = True
            self.into.drop()
            self.network.forget(self)
            if self._protocol is not None and not self._process_gone():
                self.network.soon(self, self._protocol.connection_lost, error)


def _pair(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port) if port.isdigit() else 0


class _Listener:
    def __init__(
        self, network: SimulatedNetwork, address: str, factory: ProtocolFactory, process: Process | None
    ) -> None:
        self.network = network
        self.address = address
        self.factory = factory
        self.process = process

    async def close(self) -> None:
        self.drop()

    def drop(self) -> None:
        if self.network.listeners.get(self.address) is self:
            del self.network.listeners[self.address]


class SimulatedNetwork:
    """Everybody's network. `ends` are the living ends of connections, oldest first."""

    def __init__(self, loop: SimulatedLoop, seed: int, faults: NetworkFaults) -> None:
        self.loop = loop
        self.now = loop.time
        self.faults = faults
        self.draw = random.Random(seed)
        self.uniform = self.draw.random
        self.listeners: dict[str, _Listener] = {}
        self.ends: dict[SimulatedTransport, None] = {}
        self._stalled: set[tuple[str, str]] = set()
        self._ports = 40_000
        self._nobody = Context()

    # ---- the world's clock and processes -----------------------------------------------------------------------

    def at(self, when: float, callback: Callable[[], None]) -> None:
        self.loop.call_at(when, callback, context=self._nobody)

    def soon(self, end: SimulatedTransport, callback: Callable[..., Any], *args: Any) -> None:
        self.loop.call_soon(callback, *args, context=self._nobody if end.process is None else end.process.context)

    def within(self, end: SimulatedTransport, callback: Callable[..., Any], *args: Any) -> Any:
        return callback(*args) if end.process is None else end.process.context.run(callback, *args)

    def forget(self, end: SimulatedTransport) -> None:
        self.ends.pop(end, None)

    # ---- faults --------------------------------------------------------------------------------------------------

    def stall(self, from_machine: str, to_machine: str, stalled: bool) -> None:
        """Nothing passes in this direction until it is lifted; what was sent meanwhile arrives then."""
        link = (from_machine, to_machine)
        (self._stalled.add if stalled else self._stalled.discard)(link)
        for end in list(self.ends):
            pipe = end.out
            if (_machine(pipe.from_end), _machine(pipe.to_end)) == link:
                pipe.stalled = stalled
                if not stalled:
                    pipe.schedule()

    def break_connection(self, pipe: _Pipe) -> None:
        """Both ends learn of it, each in its own time; what was under way is lost."""
        error = ConnectionResetError("connection reset")
        for end in (pipe.from_end, pipe.to_end):
            end.out.drop()
            end.out.broken = True
            self.at(self.loop.time() + self.uniform() * self.faults.slow_seconds, _Loss(end, error))

    def break_some(self, chance: float) -> None:
        for end in list(self.ends):
            if self.uniform() < chance:
                self.break_connection(end.out)

    def process_gone(self, process: Process, *, silent: bool) -> None:
        """Its listeners vanish; its peers hear of it soon, or late when `silent`."""
        for listener in [listener for listener in self.listeners.values() if listener.process is process]:
            listener.drop()
        for end in [end for end in self.ends if end.process is process]:
            end.dead = True
            self.forget(end)
            peer = end.out.to_end
            seconds = self.uniform() * (self.faults.silence_seconds if silent else self.faults.delay_seconds * 4)
            if silent:
                end.out.drop()
                end.out.broken = True
            self.at(self.loop.time() + seconds, _Loss(peer, ConnectionResetError("connection reset by peer")))

    # ---- the interface, for one process -----------------------------------------------------------------------------

    def endpoint(self, process: Process) -> Endpoint:
        return Endpoint(self, process)

    async def connect(self, process: Process, address: str, factory: ProtocolFactory) -> asyncio.BaseProtocol:
        waited = 0.0
        while True:
            await asyncio.sleep(self.faults.delay_seconds * (1 + self.uniform()))
            listener = self.listeners.get(address)
            if listener is None or (self.faults.refused and self.uniform() < self.faults.refused):
                raise ConnectionFailed(
                    f"nothing answers at {address}: connection refused", address=address, sent=False,
                    errno=errno.ECONNREFUSED,
                )  # fmt: skip
            far = listener.process
            there = "" if far is None else far.machine
            if not self._stalled.intersection(((process.machine, there), (there, process.machine))):
                break
            if waited >= _CONNECT_SECONDS_MAX:
                raise ConnectionFailed(f"{address} does not answer", address=address, sent=False)
            waited += 0.25
            await asyncio.sleep(0.25)
        self._ports += 1
        ours = f"10.0.0.1:{self._ports}"
        near_end = SimulatedTransport(self, process, (ours, address))
        far_end = SimulatedTransport(self, far, (address, ours))
        near_end.out = far_end.into = _Pipe(self, near_end, far_end)
        far_end.out = near_end.into = _Pipe(self, far_end, near_end)
        self.ends[near_end] = self.ends[far_end] = None
        self.soon(far_end, far_end.begin, listener.factory)
        return near_end.start(factory)

    async def listen(self, process: Process, address: str, factory: ProtocolFactory) -> Listener:
        if address.endswith(":0"):
            self._ports += 1
            address = f"{address[:-2]}:{self._ports}"
        if address in self.listeners:
            raise ConnectionFailed(f"{address} is taken", try_="choose another port", address=address, sent=False)
        self.listeners[address] = listener = _Listener(self, address, factory, process)
        return listener


class _Loss:
    """Calls `lose` on an end when its time has come; a stopped process learns of it when it goes on."""

    __slots__ = ("end", "error")

    def __init__(self, end: SimulatedTransport, error: Exception) -> None:
        self.end, self.error = end, error

    def __call__(self) -> None:
        self.end.lose(self.error)


def _machine(end: SimulatedTransport) -> str:
    return "" if end.process is None else end.process.machine


class Endpoint:
    """`runtime.Network` as one process sees it."""

    def __init__(self, network: SimulatedNetwork, process: Process) -> None:
        self._network = network
        self._process = process

    async def connect(self, address: str, factory: ProtocolFactory) -> asyncio.BaseProtocol:
        return await self._network.connect(self._process, address, factory)

    async def listen(self, address: str, factory: ProtocolFactory, tls: TlsContext | None = None) -> Listener:
        assert tls is None, "what travels here is not encrypted"
        return await self._network.listen(self._process, address, factory)
