"""All copies of a node: what fails for one of them ends nothing for the others."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streamkit.broker import elections
from streamkit.broker.copies import Copies
from streamkit.metadata.replica_sets import ReplicaSetEntry
from streamkit.replication.effects import Verdict
from streamkit.replication.replica_set import Member
from tests.broker.cluster_nodes import Nodes, cluster, eventually
from tests.broker.test_cluster import only_shard, put_numbers


def copies_of(nodes: Nodes, name: str) -> Copies:
    node = nodes.nodes[name].cluster
    assert node is not None
    return node.copies


async def test_whoever_asked_for_a_swap_goes_on_when_it_fails_in_a_way_nobody_foresaw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(tmp_path, "a", replicas=1) as nodes, nodes.client() as client:
        shard = await only_shard(client)
        await nodes.led(shard.uuid)
        copies = copies_of(nodes, "a")
        copy = copies.copies[shard.uuid]
        began, goes_on = asyncio.Event(), asyncio.Event()

        async def fails(_: Any) -> Any:
            began.set()
            await goes_on.wait()
            raise ZeroDivisionError

        with monkeypatch.context() as patched:
            patched.setattr(copies.replica_sets, "swap_many", fails)
            first = asyncio.ensure_future(copies.swap(copy.uuid, copy.entry))
            await began.wait()
            second = asyncio.ensure_future(copies.swap(copy.uuid, copy.entry))
            await asyncio.sleep(0)
            goes_on.set()
            assert await asyncio.wait_for(asyncio.gather(first, second), 5) == [None, None]
        won = await asyncio.wait_for(copies.swap(copy.uuid, copy.entry), 5)
        assert won is not None and won.revision > copy.entry.revision - 1


async def test_a_section_that_cannot_be_dealt_with_is_refused_and_the_link_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(tmp_path) as nodes, nodes.client() as client:
        shard = await only_shard(client)
        leader = await nodes.led(shard.uuid)
        follower = next(name for name in nodes.nodes if name != leader)
        copies = copies_of(nodes, follower)
        refused: list[int] = []
        acknowledge = copies.peers.acknowledge

        def noted(node: str, uuid: bytes, incarnation: bytes, epoch: int, verdict: int, *ends: int) -> None:
            refused.append(verdict)
            acknowledge(node, uuid, incarnation, epoch, verdict, *ends)

        def fails(*_: Any) -> None:
            raise ZeroDivisionError

        with monkeypatch.context() as patched:
            patched.setattr(copies.peers, "acknowledge", noted)
            patched.setattr("streamkit.broker.copy.Copy.offered", fails)
            feed = nodes.copies(shard.uuid)[leader].feed(follower)
            assert feed is not None
            feed.restart()
            await eventually(lambda: Verdict.REFUSED in refused)
            assert copies.peers.connected(leader)
        await put_numbers(client, range(100))
        await nodes.alike(shard.uuid)


async def test_a_copy_that_is_taken_off_the_list_and_listed_anew_in_one_moment_is_made(tmp_path: Path) -> None:
    async with cluster(tmp_path) as nodes, nodes.client() as client:
        shard = await only_shard(client)
        leader = await nodes.led(shard.uuid)
        await put_numbers(client, range(100))
        await nodes.alike(shard.uuid)
        name = next(name for name in nodes.nodes if name != leader)
        copies = copies_of(nodes, name)
        entry = copies.replica_sets.entries[shard.uuid]
        incarnation = copies.copies[shard.uuid].log.incarnation
        new = incarnation[:-1] + bytes([incarnation[-1] ^ 1])
        without = msgspec.structs.replace(entry, members=tuple(pair for pair in entry.members if pair[0] != name))
        again = without.with_set(without.replica_set.__class__(
            entry.epoch, entry.leader, without.replica_set.members, (), (Member(name, new),)
        ))  # fmt: skip
        for held_up in (False, True):
            if held_up:
                # The maker is at work on something else, and comes to this one before what was there is dropped.
                copies._making[shard.uuid] = again
                copies._maker = copies.run(copies._make())
            copies.replica_sets.entries[shard.uuid] = without
            copies._changed(shard.uuid, without)
            copies.replica_sets.entries[shard.uuid] = again
            copies._changed(shard.uuid, again)
            await eventually(lambda: shard.uuid in copies.copies and copies._maker is None)
            assert copies.copies[shard.uuid].log.incarnation == new
            assert not copies.copies[shard.uuid].log.dropped
            assert copies.directory.shards[shard.uuid] is copies.copies[shard.uuid].log
            await nodes.alike(shard.uuid)              # nothing is put, and the leader has heard nothing new


async def test_a_copy_that_is_made_late_votes_once_it_has_said_so_and_is_fed_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elections, "_MAKING_SECONDS", 0.1)
    async with cluster(tmp_path) as nodes, nodes.client() as client:
        late = copies_of(nodes, "c")
        told = asyncio.Event()
        swap = late.swap

        async def waits(uuid: bytes, entry: ReplicaSetEntry) -> ReplicaSetEntry | None:
            await told.wait()
            return await swap(uuid, entry)

        monkeypatch.setattr(late, "swap", waits)
        with monkeypatch.context() as held_up:
            held_up.setattr(late, "_make", lambda: asyncio.sleep(0))
            shard = await only_shard(client)
            leader = await nodes.led(shard.uuid)
            await put_numbers(client, range(10))
        late._maker = None
        entry = late.replica_sets.entries[shard.uuid]
        assert [node for node, _ in entry.unmade] == ["c"]
        late._changed(shard.uuid, entry)

        await eventually(lambda: shard.uuid in late.copies)
        await put_numbers(client, range(10))
        assert (late.copies[shard.uuid].log.certain, late.copies[shard.uuid].log.log_end) == (True, 0)
        assert "c" not in nodes.copies(shard.uuid)[leader].feeds()
        told.set()
        await nodes.alike(shard.uuid)
        assert late.replica_sets.entries[shard.uuid].unmade == ()
