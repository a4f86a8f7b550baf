"""The coordinator behind the wire: leases fence fetches, and survive a restart of the node."""

import asyncio

import pytest

from streamkit.errors import LeaseLost
from streamkit.model.stream import StreamConfig
from streamkit.protocol import messages as m
from tests.broker.conftest import batch_of


async def join(client, worker="w1"):
    return await client.call(m.JoinApplication("billing", worker, ("orders",), "trim_horizon"))


async def grants(client, membership, worker="w1"):
    """Heartbeats until the worker owns something."""
    granted = list(membership.granted)
    while not granted:
        membership = await client.call(m.Heartbeat("billing", worker, membership.session, ()))
        granted += membership.granted
    return granted


@pytest.fixture
async def owned(client):
    """(client, membership, the grant of the one shard)."""
    await client.create_stream("orders", StreamConfig())
    membership = await join(client)
    (grant,) = await grants(client, membership)
    return client, membership, grant


async def test_a_worker_fetches_under_its_lease_and_nobody_else_does(owned):
    client, membership, grant = owned
    shard = (await client.describe_stream("orders")).shards[0]
    await client.put_batch(shard, batch_of(b"x"))

    def fetch(session, lease_epoch):
        return client.fetch(
            shard, 0, wait_ms=0, application="billing", session=session, lease_epoch=lease_epoch
        )

    assert (await fetch(membership.session, grant.lease_epoch)).batches
    others = ((membership.session, grant.lease_epoch + 1), (membership.session + 1, grant.lease_epoch))
    for session, lease_epoch in others:
        with pytest.raises(LeaseLost):
            await fetch(session, lease_epoch)


async def test_checkpoints_survive_a_restart_of_the_node(owned, node, start, connect):
    client, membership, grant = owned
    shard = (await client.describe_stream("orders")).shards[0]
    await client.put_batch(shard, batch_of(b"a", b"b"))
    item = m.CheckpointItem(grant.shard.uuid, grant.lease_epoch, 1, 2)
    assert (await client.call(m.Checkpoint("billing", "w1", (item,)))).results == ("ok",)
    stale = m.CheckpointItem(grant.shard.uuid, grant.lease_epoch + 9, 1, 3)
    assert (await client.call(m.Checkpoint("billing", "w1", (stale,)))).results == ("fenced",)
    await client.close()
    await node.stop(1)

    client = await connect(await start())
    described = await client.call(m.DescribeApplication("billing"))
    assert [(lease.checkpoint, lease.lag_records) for lease in described.leases] == [(2, 1)]
    assert membership.membership_ms > 0


async def test_the_clock_runs_only_while_there_are_applications(owned, node, start):
    client, _, _ = owned
    assert not node._ticking.done()

    idle = await start("idle")
    await client.describe_node()
    assert idle._ticking.done()


async def test_a_stop_does_not_wait_for_those_who_wait_for_news(owned, node):
    client, membership, grant = owned
    owns = ((grant.shard.uuid, grant.lease_epoch),)
    news = asyncio.ensure_future(client.call(m.Heartbeat("billing", "w1", membership.session, owns, wait_ms=60_000)))
    await client.describe_node()

    await asyncio.wait_for(node.stop(60), 10)

    assert (await asyncio.gather(news, return_exceptions=True))[0] is not None
