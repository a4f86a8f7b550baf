"""When a copy votes: what damage, cuts and a full disk do to it, and how it gets its vote back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from streamkit.broker.copy import Copy
from streamkit.errors import CorruptFile, DiskFull
from streamkit.metadata.replica_sets import ReplicaSetEntry
from streamkit.replication.effects import Effects
from streamkit.replication.events import SealAsked
from streamkit.storage import ShardLog
from streamkit.storage.super_slots import ShardFacts, read_slots, write_slot
from tests.broker.cluster_nodes import cluster, eventually
from tests.broker.test_cluster import only_shard, put_numbers
from tests.broker.test_copy import INCARNATIONS, Copies, Log, Section, turns

FULL = DiskFull("full", try_="free space", free_bytes=0, floor_bytes=0, path="data")
DAMAGED = CorruptFile(
    "damaged", try_="repair", path="data", position=0, reason="", shard="", sequence=0, next_sequence=1
)


class Node(Copies):
    """fails: what the next tries to become certain come to. damages: a cut goes through damage."""

    def __init__(self, log: Log) -> None:
        super().__init__(log)
        self.fails: list[Exception] = []
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.damages = False
        self.cut.set()

    async def set_certain(self, log: Log, certain: bool) -> None:
        await self.goes_on.wait()
        if certain and self.fails:
            raise self.fails.pop(0)
        log.certain = certain

    async def truncate(self, log: Log, sequence: int) -> None:
        await super().truncate(log, sequence)
        log.certain = log.certain and not self.damages

    def acknowledge(self, *answer: Any) -> None:
        super().acknowledge(*answer)


def make(certain: bool = True, damaged: bool = False) -> tuple[Copy, Node]:
    log = Log(3, 3, 4, 4)
    log.certain, log.facts = certain, SimpleNamespace(damaged=damaged)
    node = Node(log)
    entry = ReplicaSetEntry("orders", 6, "b", tuple((name, INCARNATIONS[name].hex()) for name in "abc"))
    return Copy(node, log, entry), node


def caught_up() -> Any:
    """The leader of epoch 6 holds what this copy holds, and all of it is committed."""
    section = Section(6, 4, 4)
    section.epoch_start, section.leader_end, section.high_watermark = 3, 4, 4
    return section


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamkit.broker.copy._ASK_AGAIN_SECONDS", 0.0)


async def votes(copy: Copy) -> bool:
    return (await copy.seal(0)).certain


async def test_a_copy_that_has_caught_up_does_not_vote_before_its_disk_says_so() -> None:
    copy, node = make(certain=False)
    node.goes_on.clear()
    copy.offered("b", caught_up())
    await turns()
    assert copy.follower.certain and not await votes(copy)

    node.goes_on.set()
    await turns()
    assert await votes(copy)


async def test_a_full_disk_delays_a_vote_and_does_not_take_it_away_for_good() -> None:
    copy, node = make(certain=False)
    node.fails = [FULL, FULL]
    copy.offered("b", caught_up())
    await turns()

    assert node.fails == [] and await votes(copy)


async def test_damage_that_is_found_on_the_way_to_a_vote_takes_it_back() -> None:
    copy, node = make(certain=False)
    node.fails = [DAMAGED]
    copy.offered("b", caught_up())
    await turns()

    assert not copy.follower.certain and not copy.follower.whole and not await votes(copy)

    copy.mended()
    copy.offered("b", caught_up())
    await turns()
    assert await votes(copy)


async def test_a_cut_through_damage_takes_the_vote_until_the_copy_has_caught_up_again() -> None:
    copy, node = make()
    node.damages = True
    await copy._cut(Effects(truncate=3))
    assert not copy.follower.certain and not await votes(copy)

    node.log.held.append(4)
    copy.offered("b", caught_up())
    await turns()
    assert await votes(copy)


async def test_damage_and_mending_while_the_disk_is_asked_leave_a_vote_that_comes_back() -> None:
    copy, node = make(certain=False)
    node.goes_on.clear()
    copy.offered("b", caught_up())
    await turns()
    copy.damaged()
    copy.mended()
    copy.offered("b", caught_up())
    node.goes_on.set()
    await turns()
    copy.confirm()
    await turns()

    assert await votes(copy)


async def test_what_was_damaged_before_a_restart_does_not_vote_before_it_was_read() -> None:
    copy, _ = make(damaged=True)
    assert not await votes(copy)

    copy.mended()
    assert await votes(copy)


async def test_a_leader_mended_before_its_epoch_began_votes_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    copy, _ = make(certain=False)
    copy.follower.whole = False
    monkeypatch.setattr(Copy, "is_established", False)
    copy.server = SimpleNamespace(high_watermark=4)
    copy.mended()
    assert not await votes(copy)

    monkeypatch.setattr(Copy, "is_established", True)
    copy.confirm()
    await turns()
    assert await votes(copy)


async def test_a_seal_of_a_newer_epoch_says_no_more_than_one_that_only_asks() -> None:
    copy, node = make(certain=False)
    node.goes_on.clear()
    copy.offered("b", caught_up())
    sealed = await copy.seal(9)

    assert (sealed.epoch, sealed.certain) == (9, False)
    assert copy.follower.step(SealAsked(8)).seal
    node.goes_on.set()
    await turns()


async def test_a_copy_whose_promises_are_lost_keeps_its_records_and_takes_nothing_from_older_leaders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(tmp_path) as nodes, nodes.client() as client:
        shard = await only_shard(client)
        leader = await nodes.led(shard.uuid)
        await put_numbers(client, range(50))
        await nodes.alike(shard.uuid)
        follower = next(name for name in nodes.nodes if name != leader)
        await nodes.stop(follower)
        (tmp_path / follower / "pledges").unlink()
        for path in (tmp_path / follower / "shards").glob("*/super"):       # as if no checkpoint had told of the epoch
            _forget_promise(path)
        taken_up: list[tuple[int, int, bool, int]] = []
        begin = Copy.__init__

        def noted(self: Copy, copies: Any, log: ShardLog, entry: ReplicaSetEntry) -> None:
            if log.uuid == shard.uuid:
                taken_up.append((log.promised_epoch, entry.epoch, log.certain, log.log_end))
            begin(self, copies, log, entry)

        monkeypatch.setattr(Copy, "__init__", noted)
        await nodes.start(follower)
        (promised, epoch, certain, log_end), = taken_up
        assert promised >= epoch > 0
        assert not certain and log_end >= 50
        await nodes.alike(shard.uuid)
        await eventually(lambda: nodes.copies(shard.uuid)[follower].log.certain)


def _forget_promise(path: Path) -> None:
    data = path.read_bytes()
    found = read_slots(data)
    assert found is not None
    facts = ShardFacts.from_bytes(found[1])
    assert facts is not None
    with path.open("r+b") as file:
        write_slot(_Written(file), found[0] + 1, replace(facts, promised_epoch=0).to_bytes())


class _Written:
    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, parts: list[bytes], position: int) -> None:
        self._file.seek(position)
        self._file.write(b"".join(parts))
