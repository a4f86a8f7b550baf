"""Real nodes on free ports, and clients for them."""

import contextlib

import pytest

from streamkit._core.batch import seal
from streamkit.client.client import AsyncClient
from streamkit.config import compose
from streamkit.node import Node, NodeOptions
from streamkit.runtime.real import real_runtime
from streamkit.storage import StorageConfig

MIB = 1024 * 1024
SMALL = StorageConfig(
    segment_bytes=MIB, journal_bytes=4 * MIB, journal_step_bytes=MIB, group_bytes_max=2 * MIB, reserve_bytes=MIB,
    free_bytes_min=0,
)


def config(**flags):
    return compose(flags={
        "listen.native.port": 0, "listen.health.port": 0, "listen.health.enabled": False, "listen.http.enabled": False,
        **{name.replace("__", "."): value for name, value in flags.items()},
    }).config


@pytest.fixture
async def start(tmp_path):
    """await start(flags…) → a started node on tmp_path/data; stopped at the end."""
    async with contextlib.AsyncExitStack() as stack:
        async def make(directory="data", storage=SMALL, **flags):
            options = NodeOptions(storage=storage)
            node = Node(config(**flags), real_runtime(), data_dir=str(tmp_path / directory), options=options)
            await node.start()
            stack.push_async_callback(node.stop, 1)
            return node

        yield make


@pytest.fixture
async def connect():
    """await connect(node) → a client; closed at the end."""
    async with contextlib.AsyncExitStack() as stack:
        async def make(node):
            return await stack.enter_async_context(AsyncClient(node.addresses.native))

        yield make


@pytest.fixture
async def node(start):
    return await start()


@pytest.fixture
async def client(node, connect):
    return await connect(node)


def batch_of(*values, key=b"k", **options):
    """One sealed batch of these values."""
    return seal([(key, value, b"", None, None) for value in values], **options)
