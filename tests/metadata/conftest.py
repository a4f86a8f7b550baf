"""A clock that tests turn, and every store behind one name."""

import asyncio
import itertools

import pytest

from streamkit.metadata.etcd_store import EtcdStore
from streamkit.metadata.memory_store import MemoryStore
from streamkit.metadata.sqlite_store import SqliteStore
from streamkit.runtime.interfaces import Runtime
from streamkit.runtime.real_disk import RealDisk
from tests.etcd import Etcd

PREFIXES = itertools.count()           # one etcd serves many tests, each under a prefix of its own


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


@pytest.fixture(scope="session")
def etcd(tmp_path_factory):
    """One etcd for all tests that leave it running."""
    with Etcd(tmp_path_factory.mktemp("etcd")) as server:
        yield server


async def open_etcd(server, runtime, **options):
    return await EtcdStore.open(server.endpoints, runtime, prefix=f"test/{next(PREFIXES)}", **options)


@pytest.fixture(params=["memory", "sqlite", "handle", "etcd"])
async def store(request, runtime, tmp_path):
    match request.param:
        case "memory":
            opened = MemoryStore(runtime.clock)
        case "handle":
            opened = MemoryStore(runtime.clock).handle("a", runtime.random)
        case "sqlite":
            opened = await SqliteStore.open(str(tmp_path / "metadata.sqlite"), runtime)
        case "etcd":
            opened = await open_etcd(request.getfixturevalue("etcd"), runtime)
    yield opened
    await opened.close()


async def expire(store, registration, runtime):
    """As if the registration had not been renewed for long."""
    if isinstance(store, EtcdStore):
        await store.revoke(registration.lease)
    else:
        runtime.clock.ms += 3_600_000


async def settle(turns=40):
    """Until watches of a memory store have brought what was written."""
    for _ in range(turns):
        await asyncio.sleep(0)
