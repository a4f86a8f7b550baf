"""Connections that delay, cut, swallow answers, and bring what they carried a second time, later, to the same node."""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass, field, replace
from typing import Any

from streamkit.runtime.interfaces import Runtime
from streamkit.runtime.real import real_runtime

_CUT = 0.02                                # of the chunks that come from the node
_REPEAT = 0.5                              # of the connections that were cut


@dataclass
class BadWires:
    """A network whose connections lead through a proxy each. `calm`: nothing bad happens to them any more."""

    draw: random.Random
    runtime: Runtime = field(default_factory=real_runtime)
    calm: bool = False
    cuts: int = 0
    repeats: int = 0
    _ports: dict[str, int] = field(default_factory=dict)
    _servers: list[asyncio.Server] = field(default_factory=list)
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def wired(self) -> Runtime:
        """For a client."""
        return replace(self.runtime, network=self)  # type: ignore[arg-type]  # as much of a network as clients use

    async def connect(self, address: str, factory: Any) -> asyncio.BaseProtocol:
        if address not in self._ports:
            server = await asyncio.start_server(lambda r, w: self._carry(address, r, w), "127.0.0.1", 0)
            self._servers.append(server)
            self._ports[address] = server.sockets[0].getsockname()[1]
        return await self.runtime.network.connect(f"127.0.0.1:{self._ports[address]}", factory)

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _carry(self, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        host, _, port = address.rpartition(":")
        carried = bytearray()
        with contextlib.suppress(OSError):
            there, back = await asyncio.open_connection(host, int(port))
            up = asyncio.ensure_future(self._up(reader, back, carried))
            with contextlib.suppress(OSError):
                await self._down(there, writer)
            up.cancel()
            await asyncio.gather(up, return_exceptions=True)
            back.close()
            if not self.calm and self.draw.random() < _REPEAT:
                await self._again(host, int(port), bytes(carried))
        writer.close()

    async def _up(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter, carried: bytearray) -> None:
        while chunk := await reader.read(65_536):
            carried += chunk
            if not self.calm and self.draw.random() < _CUT / 4:      # in the middle of a request
                to.write(chunk[: len(chunk) // 2])
                break
            to.write(chunk)
            await to.drain()
        to.close()

    async def _down(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await there.read(65_536):
            if not self.calm:
                if self.draw.random() < 0.1:
                    await asyncio.sleep(self.draw.random() * 0.03)
                if self.draw.random() < _CUT:        # the answer is lost
                    self.cuts += 1
                    return
            writer.write(chunk)
            await writer.drain()

    async def _again(self, host: str, port: int, carried: bytes) -> None:
        # Everything that the connection ever carried, from its first byte on, a little later.
        await asyncio.sleep(self.draw.random() * 0.05)
        there, back = await asyncio.open_connection(host, port)
        back.write(carried)
        back.write_eof()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                while await there.read(65_536):
                    self.repeats += 1
        back.close()
