"""A clock that tests turn, and both stores behind one name."""

import asyncio

import pytest

from streamkit.metadata.memory_store import MemoryStore
from streamkit.metadata.sqlite_store import SqliteStore
from streamkit.runtime.interfaces import Runtime
from streamkit.runtime.real_disk import RealDisk


class TurnedClock:
    def __init__(self) -> None:
        self.ms = 1_700_000_000_000

    def now_ms(self):
        return self.ms

    def monotonic_ms(self):
        return self.ms


class CountingRandom:
    def __init__(self) -> None:
        self.count = 0

    def uuid(self):
        self.count += 1
        return self.count.to_bytes(16, "big")

    def uniform(self):
        return 0.5

    def bits(self, count):
        return 0


class HereExecutor:
    """Work runs at once, on this thread, after one turn of the loop."""

    async def run(self, work, *args):
        await asyncio.sleep(0)
        return work(*args)


def turned_runtime() -> Runtime:
    return Runtime(clock=TurnedClock(), random=CountingRandom(), network=None, disk=RealDisk(), executor=HereExecutor())


@pytest.fixture
def runtime():
    return turned_runtime()


@pytest.fixture(params=["memory", "sqlite"])
async def store(request, runtime, tmp_path):
    if request.param == "memory":
        opened = MemoryStore(runtime.clock)
    else:
        opened = await SqliteStore.open(str(tmp_path / "metadata.sqlite"), runtime)
    yield opened
    await opened.close()


async def settle(turns=40):
    """Until watches have brought what was written."""
    for _ in range(turns):
        await asyncio.sleep(0)
