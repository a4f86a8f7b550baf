"""Three simulated nodes; one is killed, or all lose power, at any moment of a resharding: one map, and nothing lost."""

import asyncio

import pytest

from streamkit._core.batch import Batch
from streamkit.client.client import AsyncClient
from streamkit.client.config import ClientConfig
from streamkit.client.routing import shard_for
from streamkit.errors import StreamkitError
from streamkit.metadata.reshard import open_shards
from streamkit.model.limits import HASH_KEYS
from streamkit.protocol import messages as m
from streamkit.simulator.cluster import Cluster
from streamkit.simulator.faults import Faults
from streamkit.simulator.oracle import History
from streamkit.simulator.world import World
from tests.broker.test_reshard import hash_key, one

KEYS = [b"key-%d" % n for n in range(8)]
_CLIENT = ClientConfig(connect_timeout_ms=500, request_timeout_ms=25_000, reconnect_first_ms=20, reconnect_most_ms=200)


class Bottle:
    """A simulated cluster of three, whose nodes are started again by hand."""

    def __init__(self, seed):
        faults = Faults.none()
        faults.nodes = 3
        faults.suspect_ms = 400
        self.world = World(seed, faults)
        self.world.loop.seconds_max = 600
        self.history = History()
        self.cluster = Cluster(self.world, self.history)
        self.acked = []

    async def ask(self, work, place=0):
        process, runtime = self.world.new_process("client")

        async def main():
            async with AsyncClient(self.cluster.places[place].address, runtime, config=_CLIENT) as client:
                return await work(client)

        try:
            return await self.world.start(process, main())
        finally:
            self.world.kill(process)

    async def keep_asking(self, work):
        """Of one node after the other, until one answers."""
        for number in range(200):
            try:
                return await self.ask(work, number % 3)
            except StreamkitError:
                await asyncio.sleep(0.1)
        raise AssertionError("nobody answers")

    async def put_all(self, client):
        for key in KEYS:
            value = b"%d" % len(self.acked)
            stream = await client.describe_stream("orders")
            await client.put_batch(shard_for(stream, hash_key(key)), one(key, value))
            self.acked.append((key, value))

    async def check(self, client):
        stream = await client.describe_stream("orders")
        now_open = open_shards(stream)
        assert (now_open[0].hash_start, now_open[-1].hash_end) == (0, HASH_KEYS)
        assert [s.hash_start for s in now_open[1:]] == [s.hash_end for s in now_open[:-1]]
        found = {key: [] for key in KEYS}
        for shard in stream.shards:
            at = 0
            while (fetched := await client.fetch(shard, at, wait_ms=0)).next_sequence > at:
                for stored in fetched.batches:
                    batch = Batch(stored, None, at)
                    for record in [] if batch.is_control else batch:
                        found[record.key.encode()].append(bytes(record.data))
                at = fetched.next_sequence
            assert shard.end is None or shard.end <= at
        for key in KEYS:
            wanted = [value for owner, value in self.acked if owner == key]
            assert [value for value in found[key] if value in wanted] == wanted
        return stream

    def run(self, main):
        try:
            return self.world.loop.run_until_complete(main)
        finally:
            assert self.world.loop.unhandled == []
            assert self.history.wrong == []
            self.cluster.forget()
            self.world.close()


async def life(bottle, act, after_seconds):
    bottle.cluster.start()
    await bottle.cluster.until_ready()
    await bottle.keep_asking(lambda client: client.create_stream("orders", shards=3))
    await bottle.keep_asking(bottle.put_all)
    began = bottle.world.loop.time()
    asked = asyncio.ensure_future(bottle.ask(lambda client: client.call(m.ScaleStream("orders", 4))))
    if act is None:
        await asked
        return bottle.world.loop.time() - began
    await asyncio.sleep(after_seconds)
    places = bottle.cluster.places
    hit = places if act == "power" else [places[act]]
    for place in hit:
        if act == "power":
            bottle.world.lose_power(place.name)
        else:
            bottle.world.kill(place.process)
    if act != "power":
        await asyncio.sleep(3.0)               # the others go on without it
        assert await bottle.cluster.store.list("reshards/") == []
    for place in hit:
        place.start()
    await bottle.cluster.until_ready()
    await asyncio.gather(asked, return_exceptions=True)
    for _ in range(200):
        if not await bottle.cluster.store.list("reshards/"):
            break
        await asyncio.sleep(0.1)
    await bottle.keep_asking(bottle.put_all)
    after = await bottle.keep_asking(bottle.check)
    assert len(open_shards(after)) in (3, 4)
    return len(open_shards(after)) == 4


@pytest.mark.parametrize("act", [0, 1, 2, "power"])
def test_a_crash_at_any_moment_leaves_it_done_or_undone(act):
    friendly = Bottle(11)
    whole_seconds = friendly.run(life(friendly, None, 0))
    points = 6
    outcomes = []
    for point in range(points):
        bottle = Bottle(11)
        outcomes.append(bottle.run(life(bottle, act, whole_seconds * point / (points - 1))))

    assert outcomes[-1]
    assert outcomes == sorted(outcomes)
