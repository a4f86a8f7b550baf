"""Whole nodes of one cluster: leaders come, go and move, copies are filled, and clients notice nothing but time."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streamkit._core.batch import seal
from streamkit.broker.elections import Elections
from streamkit.client.client import AsyncClient
from streamkit.consumer.reader import AsyncReader
from streamkit.errors import NotLeader, StoreUnavailable, StreamBusy, StreamExists
from streamkit.model.shard import Shard
from streamkit.model.stream import StreamConfig, StreamStatus
from streamkit.producer.producer import AsyncProducer
from streamkit.protocol.frames import Fetched
from streamkit.protocol.messages import DescribeNode
from streamkit.replication.follower import Follower
from streamkit.storage import Damage
from tests.broker.cluster_nodes import Nodes, cluster, eventually
from tests.broker.conftest import batch_of


async def put_numbers(client: AsyncClient, numbers: Sequence[int], stream: str = "orders") -> None:
    async with AsyncProducer(stream, client=client) as producer:
        for number in numbers:
            await producer.put(number, key="k")
        await producer.flush()


async def read_numbers(client: AsyncClient, count: int, stream: str = "orders") -> list[int]:
    reader = AsyncReader(stream, start="trim_horizon", limit=count, client=client)
    return [int(record.value) async for record in reader]


async def only_shard(client: AsyncClient) -> Shard:
    return (await client.create_stream("orders")).shards[0]


async def retarget(nodes: Nodes, uuid: bytes, *, leader: str = "", members: tuple[str, ...] = ()) -> None:
    sets = next(iter(nodes.nodes.values())).cluster.copies.replica_sets  # type: ignore[union-attr]
    entry = sets.entries[uuid]
    wanted = msgspec.structs.replace(entry, target_leader=leader, target_members=members)
    while await sets.swap(uuid, entry.revision, wanted) is None:
        entry = sets.entries[uuid]
        wanted = msgspec.structs.replace(entry, target_leader=leader, target_members=members)


async def test_what_is_put_lies_on_every_node_and_is_read_back(tmp_path: Path) -> None:
    async with cluster(tmp_path) as nodes, nodes.client() as client:
        shard = await only_shard(client)
        await put_numbers(client, range(500))
        assert await read_numbers(client, 500) == list(range(500))
        assert len(nodes.copies(shard.uuid)) == 3
        await nodes.alike(shard.uuid)


async def test_clients_and_nodes_go_where_a_node_says_it_is_reached(tmp_path: Path) -> None:
    async with cluster(tmp_path, advertised="localhost") as nodes, nodes.client() as client:
        shards = (await client.create_stream("orders", StreamConfig(shards=6))).shards
        await put_numbers(client, range(100))
        for shard in shards:
            leader = await nodes.led(shard.uuid)
            assert len(nodes.copies(shard.uuid)) == 3

        told = (await client.describe_stream("orders")).shards
        ports = {name: node.addresses.native.rpartition(":")[2] for name, node in nodes.nodes.items()}
        assert {shard.address for shard in told} == {f"localhost:{ports[shard.leader]}" for shard in told}
        assert nodes.nodes[leader].addresses.native.startswith("127.0.0.1:")


async def test_a_node_that_stops_hands_its_shards_over_first(tmp_path: Path) -> None:
    async with cluster(tmp_path) as nodes, nodes.client() as client:
        shard = await only_shard(client)
        first = await nodes.led(shard.uuid)
        await put_numbers(client, range(100))
        await nodes.stop(first)
        second = await nodes.led(shard.uuid)
        assert second != first
        await put_numbers(client, range(100, 200))
        await nodes.start(first)
        assert await read_numbers(client, 200) == list(range(200))
        await nodes.alike(shard.uuid)


async def test_the_leader_moves_where_it_is_wanted(tmp_path: Path) -> None:
    async with cluster(tmp_path) as nodes, nodes.client() as client:
        shard = await only_shard(client)
        first = await nodes.led(shard.uuid)
        other = next(name for name in nodes.nodes if name != first)
        await put_numbers(client, range(50))
        await retarget(nodes, shard.uuid, leader=other)
        await nodes.led(shard.uuid, by=other)
        await put_numbers(client, range(50, 100))
        assert await read_numbers(client, 100) == list(range(100))


async def test_a_member_is_replaced_by_a_node_that_had_no_copy(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a", "b", "c", "d") as nodes, nodes.client() as client:
        shard = await only_shard(client)
        await nodes.led(shard.uuid)
        await put_numbers(client, range(300))
        (outside,) = set(nodes.nodes) - set(nodes.copies(shard.uuid))
        gone, *kept = nodes.copies(shard.uuid)
        await retarget(nodes, shard.uuid, members=(outside, *kept))
        await eventually(lambda: set(nodes.copies(shard.uuid)) == {outside, *kept})
        await nodes.led(shard.uuid)
        await put_numbers(client, range(300, 400))
        assert await read_numbers(client, 400) == list(range(400))
        await nodes.alike(shard.uuid)
        directory = nodes.nodes[gone].cluster.copies.directory  # type: ignore[union-attr]
        await eventually(lambda: shard.uuid not in directory.shards)


async def test_a_node_whose_disk_was_wiped_is_filled_again(tmp_path: Path) -> None:
    async with cluster(tmp_path) as nodes, nodes.client() as client:
        shard = await only_shard(client)
        wiped = next(name for name in nodes.nodes if name != nodes.leader(shard.uuid))
        await put_numbers(client, range(300))
        await nodes.stop(wiped)
        shutil.rmtree(tmp_path / wiped)
        await put_numbers(client, range(300, 350))
        await nodes.start(wiped)
        await eventually(lambda: wiped in nodes.copies(shard.uuid))
        await nodes.alike(shard.uuid)
        copy = nodes.copies(shard.uuid)[wiped]
        await eventually(lambda: copy.is_member and copy.log.certain)


async def test_two_of_three_are_enough_and_one_is_not(tmp_path: Path) -> None:
    async with cluster(tmp_path) as nodes, nodes.client() as client:
        shard = await only_shard(client)
        await nodes.led(shard.uuid)
        names = list(nodes.nodes)
        await nodes.stop(names[0])
        await put_numbers(client, range(100))
        await nodes.stop(names[1])
        copy = nodes.copies(shard.uuid)[names[2]]
        known = copy.high_watermark
        await eventually(lambda: not copy.is_established or copy.high_watermark == known)
        await nodes.start(names[1])
        await nodes.led(shard.uuid)
        await put_numbers(client, range(100, 200))
        assert await read_numbers(client, 200) == list(range(200))


async def test_what_could_not_be_called_active_yet_is_not_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(tmp_path) as nodes, nodes.client("a") as client:
        streams = nodes.nodes["a"].cluster.streams

        async def unreachable(*_: Any) -> None:
            raise StoreUnavailable("the store does not answer", outcome="unknown")

        with monkeypatch.context() as patch:
            patch.setattr(streams.catalog, "set_status", unreachable)
            with pytest.raises(StoreUnavailable):
                await client.create_stream("orders")
        assert streams.catalog.streams["orders"].status is StreamStatus.CREATING

        with pytest.raises(StreamExists):
            await client.create_stream("orders")
        await put_numbers(client, range(10))
        assert await read_numbers(client, 10) == list(range(10))


async def test_nodes_that_make_the_same_stream_at_once_make_it_once(tmp_path: Path) -> None:
    async with cluster(tmp_path) as nodes, nodes.client("a") as a, nodes.client("b") as b, nodes.client("c") as c:
        for name in ("orders", "visits", "clicks"):
            made = await asyncio.gather(*(client.create_stream(name) for client in (a, b, c)), return_exceptions=True)
            [stream] = [each for each in made if not isinstance(each, BaseException)]
            assert all(isinstance(each, StreamExists | StreamBusy) for each in made if each is not stream)
            await put_numbers(b, range(10), name)
            assert (await c.describe_stream(name)).shards[0].uuid == stream.shards[0].uuid


async def test_a_repeated_put_is_answered_no_sooner_than_the_first(tmp_path: Path) -> None:
    async with cluster(tmp_path) as nodes, nodes.client() as client:
        shard = await only_shard(client)
        leader = await nodes.led(shard.uuid)
        followers = [name for name in nodes.nodes if name != leader]
        for name in followers:
            await nodes.stop(name)
        async with nodes.client(leader) as near:
            producer = await near.new_producer()
            batch = batch_of(b"once", producer_id=producer.producer_id)
            log = nodes.copies(shard.uuid)[leader].log
            end = log.log_end
            first = near.put_batch((await near.describe_stream("orders")).shards[0], batch)
            await eventually(lambda: log.log_end > end)
            again = near.put_batch(shard, batch)
            await near.call(DescribeNode())            # whoever put before has been heard
            assert not first.done() and not again.done()

            await nodes.start(*followers)
            receipts = await asyncio.gather(first, again)
            assert [(receipt.base_sequence, receipt.duplicate) for receipt in receipts] == [(end, 0), (end, 1)]


async def test_a_deleted_stream_leaves_nothing_on_any_node(tmp_path: Path) -> None:
    async with cluster(tmp_path) as nodes, nodes.client() as client:
        shard = await only_shard(client)
        await put_numbers(client, range(10))
        await client.delete_stream("orders")
        for node in nodes.nodes.values():
            directory = node.cluster.copies.directory  # type: ignore[union-attr]
            await eventually(lambda directory=directory: shard.uuid not in directory.shards)  # type: ignore[misc]


async def test_damage_on_one_node_is_mended_from_another(tmp_path: Path) -> None:
    async with cluster(tmp_path) as nodes, nodes.client() as client:
        shard = await only_shard(client)
        await put_numbers(client, range(2000))
        harmed = next(name for name in nodes.nodes if name != nodes.leader(shard.uuid))
        await nodes.alike(shard.uuid)
        await nodes.stop(harmed)
        (segment,) = (tmp_path / harmed / "shards" / shard.uuid.hex()).glob("*.log")
        data = bytearray(segment.read_bytes())
        data[200] ^= 0x40
        segment.write_bytes(data)
        await nodes.start(harmed)
        copy = nodes.copies(shard.uuid)[harmed]
        await copy.log.verify()
        await eventually(lambda: not copy.log.damages)
        await nodes.alike(shard.uuid)
        assert await copy.log.verify() == []


async def test_who_kept_hold_of_a_former_leader_cannot_write_into_its_log(tmp_path: Path) -> None:
    async with cluster(tmp_path) as nodes, nodes.client() as client:
        shard = await only_shard(client)
        first = await nodes.led(shard.uuid)
        copy = nodes.copies(shard.uuid)[first]
        server = copy.server
        assert server is not None
        await retarget(nodes, shard.uuid, leader=next(name for name in nodes.nodes if name != first))
        await eventually(lambda: copy.server is None)
        log_end = copy.log.log_end
        with pytest.raises(NotLeader):
            async with asyncio.timeout(10):
                await server.append(seal([(b"", b"too late", b"", None, None)]), 0)
        assert copy.log.log_end >= log_end and server.log.closing is None


async def test_a_learner_that_may_not_vote_is_no_member_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(tmp_path, "a", "b", replicas=1) as nodes, nodes.client() as client:
        shard = await only_shard(client)
        first = await nodes.led(shard.uuid)
        (other,) = set(nodes.nodes) - {first}
        await put_numbers(client, range(100))
        with monkeypatch.context() as patched:
            patched.setattr(Follower, "_may_vote", lambda *_: False)
            await retarget(nodes, shard.uuid, members=(other,))
            await eventually(lambda: other in nodes.copies(shard.uuid))
            copy, leader = nodes.copies(shard.uuid)[other], nodes.copies(shard.uuid)[first]
            await eventually(lambda: copy.log.log_end == leader.log.log_end)
            asked = 0
            ask = leader._copies.ask_seal

            async def counted(*arguments: Any) -> Any:
                nonlocal asked
                asked += 1
                return await ask(*arguments)

            patched.setattr(leader._copies, "ask_seal", counted)
            await eventually(lambda: asked > 2)
            assert nodes.leader(shard.uuid) == first and not copy.is_member
            await put_numbers(client, range(100, 200))
        await put_numbers(client, range(200, 300))
        await nodes.led(shard.uuid, by=other)
        await eventually(lambda: first not in nodes.copies(shard.uuid))
        assert await read_numbers(client, 300) == list(range(300))


async def test_what_fails_for_one_shard_ends_nothing_for_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    look, failed = Elections._look, [False]

    async def fails_once(elections: Elections) -> bool:
        if not failed[0]:
            failed[0] = True
            raise ZeroDivisionError
        return await look(elections)

    monkeypatch.setattr(Elections, "_look", fails_once)
    async with cluster(tmp_path) as nodes, nodes.client() as client:
        shard = await only_shard(client)
        await nodes.led(shard.uuid)
        assert "cluster.work_failed" in caplog.text


async def test_records_of_another_leader_that_were_never_committed_repair_nothing(tmp_path: Path) -> None:
    async with cluster(tmp_path) as nodes, nodes.client() as client:
        shard = await only_shard(client)
        await put_numbers(client, range(10))
        await nodes.alike(shard.uuid)
        names = list(nodes.nodes)
        copy = nodes.copies(shard.uuid)[names[0]]
        repair = nodes.nodes[names[0]].cluster.repair
        asked = copy, 1, copy.log.log_end, names[1]
        assert await repair._fetch(*asked)

        async def uncommitted(*arguments: Any) -> Fetched:
            batches = copy.log.read(1, copy.log.log_end, 1 << 20)
            assert batches
            foreign = [bytearray(batch) for batch in batches]
            for batch in foreign:
                batch[16] ^= 1
            return Fetched([memoryview(batch) for batch in foreign], known, 0, copy.log.log_end, copy.log.log_end)

        known = 0
        repair._copies.peers.read_log = uncommitted
        assert await repair._fetch(*asked) == []
        known = copy.log.log_end
        assert await repair._fetch(*asked)


async def test_a_node_that_reaches_nobody_ends_no_leader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(tmp_path) as nodes, nodes.client() as client:
        shard = await only_shard(client)
        leader = await nodes.led(shard.uuid)
        alone = nodes.nodes[next(name for name in nodes.nodes if name != leader)].cluster
        assert alone is not None
        entry = alone.copies.replica_sets.entries[shard.uuid]
        gone = 0

        async def is_gone(node: str) -> bool:
            nonlocal gone
            gone += 1
            alone.elections._gone[node] = 0.0
            return True

        monkeypatch.setattr(alone.peers, "connected", lambda _: False)
        monkeypatch.setattr(alone.peers, "refused", lambda _: True)
        monkeypatch.setattr(alone.elections, "_is_gone", is_gone)
        await eventually(lambda: gone > 10)
        assert alone.copies.replica_sets.entries[shard.uuid] == entry
        await put_numbers(client, range(10))


async def test_a_leader_that_cannot_read_what_nobody_else_has_lets_another_lead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(tmp_path) as nodes, nodes.client() as client:
        shard = await only_shard(client)
        leader = await nodes.led(shard.uuid)
        await put_numbers(client, range(10))
        await nodes.alike(shard.uuid)
        node = nodes.nodes[leader].cluster
        assert node is not None
        copy, end = nodes.copies(shard.uuid)[leader], nodes.copies(shard.uuid)[leader].log.log_end

        async def nobody_has_it(*_: Any) -> bool:
            return False

        monkeypatch.setattr(node.repair, "_mend_from", nobody_has_it)
        copy.log.note_damage(Damage("x", 0, end, end + 1, "made up"))
        await eventually(lambda: nodes.leader(shard.uuid) not in ("", leader))
        await put_numbers(client, range(10, 20))
        assert await read_numbers(client, 20) == list(range(20))


async def test_a_copy_promises_nothing_that_lies_behind_its_damage(tmp_path: Path) -> None:
    async with cluster(tmp_path) as nodes, nodes.client() as client:
        shard = await only_shard(client)
        leader = await nodes.led(shard.uuid)
        await put_numbers(client, range(10))
        await nodes.alike(shard.uuid)
        name = next(name for name in nodes.nodes if name != leader)
        node, copy = nodes.nodes[name].cluster, nodes.copies(shard.uuid)[name]
        assert node is not None
        end, known = copy.log.log_end, copy.follower.high_watermark
        assert end > 3
        copy.follower.high_watermark = 2
        copy.log.damages.append(Damage("x", 0, 1, 2, "committed, so others have it"))
        copy.log.damages.append(Damage("x", 0, 3, 4, "perhaps not"))
        said = await node.copies._sealed(shard.uuid, 0)
        assert (said.log_end, said.certain, said.epochs) == (3, False, ((1, 0),))
        copy.log.damages.clear()
        said = await node.copies._sealed(shard.uuid, 0)
        assert (said.log_end, said.epochs) == (end, ((1, 0),))
        copy.follower.high_watermark = known
