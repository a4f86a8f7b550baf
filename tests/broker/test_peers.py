"""Links between nodes, on loopback: what one says the other hears, and both know when the other is gone."""

from __future__ import annotations

import contextlib

from streamkit.runtime.real import real_runtime
from streamkit.storage import LogDirectory
from tests.broker.peer_nodes import Held, Leader, Node, until
from tests.oracles_storage import SHARDS, read_all, seal

SHARD = SHARDS[0]


@contextlib.asynccontextmanager
async def nodes(*names, **config):
    runtime = real_runtime()
    made = [Node(name, runtime, **config) for name in names]
    addresses = {node.name: await node.peers.listen("127.0.0.1:0") for node in made}
    for node in made:
        node.peers.set_nodes(addresses)
    try:
        yield made
    finally:
        for node in made:
            await node.peers.close()


@contextlib.asynccontextmanager
async def leading(tmp_path, **config):
    directory = await LogDirectory.open(str(tmp_path / "leader"), runtime=real_runtime())
    await directory.create_shards([SHARD])
    try:
        yield Leader(directory.shards[SHARD], **config)
    finally:
        await directory.close()


async def test_a_follower_gets_what_the_leader_appends(tmp_path):
    async with leading(tmp_path) as leader, nodes("a", "b") as (a, b):
        held = b.held[SHARD] = Held()
        leader.feeds.append(a.peers.feed(leader, "b"))
        for number in range(1000):
            end = leader.append(seal([b"%d" % number] * 3))
        await until(lambda: leader.high_watermark == end and held.high_watermark == end)

        assert held.bytes() == b"".join(map(bytes, await read_all(leader.log)))
        assert leader.answers[-1] == ("b", held.incarnation, leader.epoch, 0, end)
