"""Three real nodes under a recording load: whatever happens to one of them, what was acknowledged is there, once."""

import asyncio
import contextlib
import shutil
import time

import pytest

from streamkit.client.client import AsyncClient
from streamkit.errors import ConnectionFailed, NotLeader
from streamkit.protocol import messages as m
from tests.end_to_end import kill_nodes
from tests.end_to_end.kill_broker import STREAM
from tests.end_to_end.nodes import ClusterNode, nodes, sqlite_url
from tests.end_to_end.processes import child
from tests.end_to_end.recording import copies_agree, leaders, load, some_leader
from tests.end_to_end.worker_process import APPLICATION


@pytest.fixture
def cluster(tmp_path):
    with nodes(tmp_path, sqlite_url(tmp_path)) as made:
        yield made


async def stop_and_compare(cluster):
    # A leader that was stopped may hold what was never committed; it loses that within a moment of being told.
    await asyncio.sleep(3)
    for node in cluster:
        assert await asyncio.to_thread(node.terminate) == 0
    assert await copies_agree([node.data_dir for node in cluster]) == []


async def until(what, condition, seconds=30.0):
    began = time.monotonic()
    while not await condition():
        assert time.monotonic() - began < seconds, f"waited in vain: {what}"
        await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def etcd_cluster(tmp_path):
    with kill_nodes.store("etcd", tmp_path) as where, nodes(tmp_path, where.url) as made:
        yield made, where.etcd


async def test_any_node_is_killed_again_and_again(tmp_path):
    running, gaps, kills = await kill_nodes.run("sqlite", 4, tmp_path, producers=2, most_seconds=0.3)

    assert kills == 4 and len(gaps) == 4
    assert running.acknowledged == running.outcome.put > 200


async def test_any_node_is_killed_while_etcd_is_killed_and_stopped(tmp_path):
    running, _, kills = await kill_nodes.run("etcd", 3, tmp_path, producers=2, seed=3, most_seconds=0.3)

    assert kills == 3
    assert running.acknowledged == running.outcome.put > 200


async def test_a_leader_that_is_stopped_is_replaced_and_does_no_harm_when_it_wakes(cluster):
    async with load(cluster) as running:
        name = await some_leader(cluster)
        cluster[name].pause()
        waited = await running.goes_on()
        await until("others lead", lambda: others_lead(cluster, name))
        cluster[name].resume()
        await running.goes_on()
        await until("the one that was stopped follows again", lambda: nothing_lacks(cluster))
    await stop_and_compare(cluster)

    assert waited < 20


async def others_lead(cluster, name):
    return name not in set((await leaders(cluster, asked=other(cluster, name))).values())


def other(cluster, name):
    return next(node.url for node in cluster if node.name != name)


async def nothing_lacks(cluster):
    status = await asyncio.to_thread(cluster.run, "cluster", "status")
    return status[0]["healthy"] and not status[0]["troubles"]


async def test_puts_go_on_while_etcd_is_stopped_for_longer_than_registrations_last(tmp_path):
    async with etcd_cluster(tmp_path) as (made, etcd), load(made) as running:
        await asyncio.to_thread(etcd.stop_process)
        gap = await running.longest_gap(6.0)
        before = running.acknowledged
        await asyncio.to_thread(etcd.continue_process)
        await running.goes_on()

        assert gap < 3.0, "no put waits for etcd"
        assert before > 200


async def test_a_rolling_upgrade_of_the_protocol_is_not_noticed(tmp_path):
    with nodes(tmp_path, sqlite_url(tmp_path), cluster__protocol_max=1) as made:
        async with load(made) as running:
            for node in made:
                assert await asyncio.to_thread(node.terminate) == 0
                await running.goes_on()
                node.start(cluster__protocol_max=2)
                await asyncio.to_thread(node.wait_ready)
                await running.goes_on()
            versions = {line["protocol_max"] for line in made.run("cluster", "status") if "protocol_max" in line}
        assert running.outcome.failed == {}
        assert versions == {2}
        await stop_and_compare(made)


async def test_a_node_whose_disk_is_gone_is_filled_again_and_then_carries_the_data(cluster):
    async with load(cluster) as running:
        cluster["a"].kill()
        cluster["a"].wipe()
        await running.goes_on()
        cluster["a"].start()
        await asyncio.to_thread(cluster["a"].wait_ready)
        await until("a holds everything", lambda: nothing_lacks(cluster))
        cluster["b"].kill()
        await running.goes_on()
        cluster["b"].start()
        await asyncio.to_thread(cluster["b"].wait_ready)
    await stop_and_compare(cluster)


async def test_a_copied_or_restored_directory_is_refused(cluster, tmp_path):
    assert await asyncio.to_thread(cluster["c"].terminate) == 0
    backup, clone = tmp_path / "backup", tmp_path / "clone"
    shutil.copytree(cluster["c"].data_dir, backup)
    shutil.copytree(cluster["c"].data_dir, clone)

    as_another = ClusterNode("d", clone, cluster["a"].store_url)
    as_another.start()
    said = await asyncio.to_thread(as_another.refused)
    assert "the data directory belongs to node c, not to d" in said

    cluster["c"].start()
    await asyncio.to_thread(cluster["c"].wait_ready)
    twin = ClusterNode("c", clone, cluster["a"].store_url)
    twin.start()
    assert "c" in await asyncio.to_thread(twin.refused)

    assert await asyncio.to_thread(cluster["c"].terminate) == 0
    shutil.rmtree(cluster["c"].data_dir)
    backup.rename(cluster["c"].data_dir)
    cluster["c"].start()
    said = await asyncio.to_thread(cluster["c"].refused)
    assert "it is a copy or was restored from a backup" in said


async def test_a_node_of_another_cluster_is_refused(cluster, tmp_path):
    assert await asyncio.to_thread(cluster["c"].terminate) == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with nodes(elsewhere, sqlite_url(elsewhere), "a"):
        stray = ClusterNode("c", cluster["c"].data_dir, sqlite_url(elsewhere))
        stray.start()

        assert "the data directory belongs to cluster" in await asyncio.to_thread(stray.refused)


async def test_workers_go_on_when_the_coordinators_node_is_killed(cluster, tmp_path):
    notes = tmp_path / "notes"

    def processed(worker=None):
        lines = notes.read_text().splitlines() if notes.exists() else []
        return sum(line.split()[2].isdigit() and worker in (None, line.split()[0]) for line in lines)

    async def at_work():
        return all(processed(name) for name in ("ann", "bob"))

    async with contextlib.AsyncExitStack() as stack:
        running = await stack.enter_async_context(load(cluster))
        for name in ("ann", "bob"):
            stack.enter_context(child(
                "tests.end_to_end.worker_process", cluster.url, name, str(notes), STREAM, log=tmp_path / f"{name}.log",
            ))  # fmt: skip
        await until("both work", at_work)
        name = await coordinator_of(cluster)
        cluster[name].kill()
        await running.goes_on()
        assert await coordinator_of(cluster) != name
        before = await checkpoints(cluster)

        async def further():
            return all(now > before[shard] for shard, now in (await checkpoints(cluster)).items())

        await until("every shard is checkpointed at the new coordinator", further)
        cluster[name].start()
        await asyncio.to_thread(cluster[name].wait_ready)


async def checkpoints(cluster):
    """Of every shard. A node that has not heard yet who coordinates now names one that is gone: it is asked again."""
    found = {}

    async def told():
        with contextlib.suppress(ConnectionFailed, NotLeader):
            async with AsyncClient(cluster.url) as client:
                answer = await client.call(m.DescribeApplication(APPLICATION))
            found.update({lease.ordinal: lease.checkpoint for lease in answer.leases})
        return bool(found)

    await until("the coordinator tells the checkpoints", told)
    return found


async def coordinator_of(cluster):
    """The node that leads the applications' log, as it says itself. Waits for the next one while nobody does."""
    found = []

    async def somebody_leads():
        found[:] = [await find_coordinator(cluster)]
        return bool(found[0])

    await until("somebody leads the applications' log", somebody_leads)
    return found[0]


async def find_coordinator(cluster):
    for node in cluster:
        if node.process is None:
            continue
        async with AsyncClient(node.url) as client:
            told = await client.call(m.DescribeCopies())
            uuids = {
                shard.uuid for stream in (await client.list_streams())
                for shard in (await client.describe_stream(stream.name)).shards
            }  # fmt: skip
            if any(copy.role == "leader" and copy.shard not in uuids for copy in told.copies):
                return node.name
    return ""


async def test_operators_move_shards_without_an_error_to_producers(tmp_path):
    with nodes(tmp_path, sqlite_url(tmp_path), "abcd") as made:
        async with load(made, shards=3) as running:
            leader = await some_leader(made)
            await asyncio.to_thread(made.run, "cluster", "drain", leader)
            await until(f"{leader} leads nothing", lambda: leads_nothing(made, leader))
            await asyncio.to_thread(made.run, "cluster", "drain", leader, "--undo")
            await running.goes_on()
            await moves_to_another_member(made)
            await running.goes_on()
            await asyncio.to_thread(made.run, "cluster", "add", "d")
        assert running.outcome.failed == {}


async def moves_to_another_member(cluster):
    """Whoever holds a copy; a node without one is refused."""
    before = (await leaders(cluster))["shardId-000000000000"]
    for name in cluster.by_name:
        with contextlib.suppress(AssertionError):
            if name != before:
                await asyncio.to_thread(cluster.run, "cluster", "move", f"{STREAM}/0", "--to", name)
                assert (await leaders(cluster))["shardId-000000000000"] == name
                return
    raise AssertionError("nobody else could lead the shard")


async def leads_nothing(cluster, name):
    return name not in (await leaders(cluster)).values()


def test_the_banner_of_a_node_names_its_cluster(cluster):
    facts = cluster["a"].ready

    assert facts["node"] == "a" and facts["cluster"].startswith("sqlite:///") and facts["peer"]
