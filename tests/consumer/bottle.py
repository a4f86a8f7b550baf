"""A node and workers in the simulator's world without faults: real code, virtual time, processes that can be killed."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from streamkit._core.batch import seal
from streamkit._core.hashing import hash_key
from streamkit.client.client import AsyncClient
from streamkit.client.config import ClientConfig
from streamkit.client.routing import shard_for
from streamkit.consumer.consumer import Consumer
from streamkit.consumer.running import Running
from streamkit.consumer.worker import Worker
from streamkit.errors import ApplicationNotFound
from streamkit.model.codec import AUTO
from streamkit.protocol.messages import ApplicationDescribed, DescribeApplication
from streamkit.simulator.cluster import Cluster
from streamkit.simulator.faults import Faults
from streamkit.simulator.loop import Process
from streamkit.simulator.oracle import History
from streamkit.simulator.world import World

MEMBERSHIP_MS = 10_000
_DEFAULTS: dict[str, Any] = {"application": "app", "start": "trim_horizon", "membership_ms": MEMBERSHIP_MS}
_CLIENT = ClientConfig(connect_timeout_ms=1_000, request_timeout_ms=4_000, reconnect_first_ms=20, reconnect_most_ms=200)


@contextlib.contextmanager
def _quiet_collection() -> Iterator[None]:
    # Coroutines of killed processes are thrown away inside; what they would have said is not heard.
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        sys.unraisablehook = hook


class Bottle:
    """`Bottle.play(story)` runs `await story(bottle)` to its end; every wait takes no time."""

    def __init__(self, seed: int, nodes: int = 1) -> None:
        faults = Faults.none()
        faults.nodes = nodes
        faults.small_journal = False
        self.world = World(seed, faults)
        self.cluster = Cluster(self.world, History())
        self.client: AsyncClient
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.processes: dict[str, Process] = {}

    @classmethod
    def play(
        cls, story: Callable[[Bottle], Awaitable[None]], *, seed: int = 1, seconds_max: float = 2_000.0, nodes: int = 1
    ) -> None:
        with _quiet_collection():
            bottle = cls(seed, nodes)
            bottle.world.loop.seconds_max = seconds_max
            try:
                bottle.world.loop.run_until_complete(bottle._begin(story))
                assert bottle.world.loop.unhandled == []
            finally:
                bottle.world.close()
                del bottle
                gc.collect()

    async def _begin(self, story: Callable[[Bottle], Awaitable[None]]) -> None:
        self.cluster.start()
        await self.cluster.until_ready()
        _, runtime = self.world.new_process("operator")
        self.client = AsyncClient(self.address, runtime, config=_CLIENT)
        await story(self)

    @property
    def address(self) -> str:
        return ",".join(self.cluster.addresses)

    async def kill_coordinator(self) -> None:
        """Of a cluster; its node is there again when this returns, another may coordinate by then."""
        place = next(place for place in self.cluster.places
                     if place.node is not None and place.node._coordinating() is not None)
        self.world.kill(place.process)
        await asyncio.sleep(1)
        place.start()
        await place.ready.wait()

    async def restart_node(self) -> None:
        self.world.kill(self.cluster.process)
        await asyncio.sleep(0.1)
        self.cluster.start()
        await self.cluster.ready.wait()

    async def put(self, stream: str, values: list[Any], *, key: str | None = None) -> None:
        """Each value as a record of its own batch; keys k0, k1 … unless one is given."""
        description = await self.client.stream(stream)
        for number, value in enumerate(values):
            name = (key or f"k{number}").encode()
            shard = shard_for(description, int.from_bytes(hash_key(name), "big"))
            await self.client.put_batch(shard, seal([(name, AUTO.encode(value), b"", None, None)]))

    async def put_together(self, stream: str, values: list[Any]) -> None:
        """All values in one batch."""
        shard = (await self.client.stream(stream)).shards[0]
        await self.client.put_batch(shard, seal([(b"k", AUTO.encode(value), b"", None, None) for value in values]))

    def start(self, name: str, running: Running) -> asyncio.Task[None]:
        """A process of its own that runs this worker."""
        process, runtime = self.world.new_process(name)
        running.connect_to(self.address, runtime)

        async def main() -> None:
            client = AsyncClient(self.address, runtime, config=_CLIENT)
            member = running.member(client, asyncio.get_running_loop(), runtime.executor)
            running._member = member
            try:
                await member.run()
            finally:
                await client.close()

        self.processes[name] = process
        self.tasks[name] = self.world.start(process, main())
        return self.tasks[name]

    def kill(self, name: str) -> None:
        self.world.kill(self.processes[name])

    async def describe(self, application: str) -> ApplicationDescribed:
        answer = await self.client.call(DescribeApplication(application))
        assert isinstance(answer, ApplicationDescribed)
        return answer

    async def until(self, condition: Callable[[], bool], *, seconds: float = 300.0) -> float:
        """Virtual seconds until it holds."""
        began_s = asyncio.get_running_loop().time()
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - the condition is about what nobody announces
                await asyncio.sleep(0.005)
        return asyncio.get_running_loop().time() - began_s

    async def until_done(self, application: str, *, seconds: float = 300.0) -> None:
        """Until checkpoints reach the end of every shard."""
        async with asyncio.timeout(seconds):
            while not await self._is_done(application):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def _is_done(self, application: str) -> bool:
        try:
            return not any(lease.lag_records for lease in (await self.describe(application)).leases)
        except ApplicationNotFound:
            return False                   # nobody has joined yet


def consumer(name: str = "w1", **options: Any) -> Consumer:
    settings = _DEFAULTS | options
    return Consumer(settings.pop("stream", "s"), worker=name, **settings)


def worker(name: str, processor: Any, **options: Any) -> Worker:
    settings = _DEFAULTS | options
    return Worker(settings.pop("stream", "s"), worker=name, processor=processor, **settings)
