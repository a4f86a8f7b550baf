"""One copy between two leaders: what an election that is given up leaves behind."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from streamkit.broker.copy import Copy
from streamkit.metadata.replica_sets import ReplicaSetEntry
from streamkit.protocol.frames import Fetched
from streamkit.protocol.peers import SealedShard
from streamkit.replication.effects import Verdict
from tests.oracles_storage import seal
from tests.storage.test_follower import stamped

SHARD = bytes(range(16))
INCARNATIONS = {node: node.encode() * 16 for node in "abc"}


class Log:
    """As much of a ShardLog as a follower needs, in memory."""

    def __init__(self, *epochs: int) -> None:
        self.uuid, self.incarnation = SHARD, INCARNATIONS["a"]
        self.log_start, self.promised_epoch, self.certain, self.doubtful = 0, 6, True, False
        self.damages: list[object] = []
        self.facts = SimpleNamespace(damaged=False)
        self.held = list(epochs)

    @property
    def log_end(self) -> int:
        return len(self.held)

    durable_end = written_end = log_end

    @property
    def epochs(self) -> list[tuple[int, int]]:
        return [(epoch, at) for at, epoch in enumerate(self.held) if at == 0 or self.held[at - 1] != epoch]

    def accept(self, run: Any, *, epoch: int, durability: object) -> int:
        self.held.append(int.from_bytes(bytes(run)[16:20], "little"))
        return self.log_end


class Copies:
    """The node around the copy. cut: truncations wait for it. epochs: of the batches that b's copy gives out."""

    def __init__(self, log: Log) -> None:
        self.node, self.log, self.directory, self.peers = "a", log, self, self
        self.cut, self.cutting = asyncio.Event(), asyncio.Event()
        self.answers: list[tuple[int, int, int]] = []
        self.gives: list[int] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.promises: list[tuple[Copy, int]] = []

    def run(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        return task

    def promise_soon(self, copy: Copy, epoch: int) -> None:
        asyncio.get_running_loop().call_soon(copy.promised, epoch)

    async def ask_seal(self, node: str, uuid: bytes, epoch: int) -> SealedShard:
        return SealedShard(uuid, True, epoch, INCARNATIONS[node], True, 0, 8, 0, ((3, 0), (5, 2)))

    async def truncate(self, log: Log, sequence: int) -> None:
        self.cutting.set()
        await self.cut.wait()
        del log.held[sequence:]

    def durability(self, copy: Copy) -> str:
        return "fsync"

    async def read_log(self, node: str, uuid: bytes, start: int, bytes_max: int, timeout_ms: int) -> Fetched:
        batches = [stamped(seal([b"x"]), at, epoch, 10) for at, epoch in enumerate(self.gives) if at >= start]
        return Fetched([memoryview(batch) for batch in batches], 0, 0, len(self.gives), len(self.gives))

    def acknowledge(
        self, node: str, uuid: bytes, incarnation: bytes, epoch: int, verdict: int, end: int, written: int
    ) -> None:
        self.answers.append((epoch, verdict, end))


class Section:
    """A probe from the leader of an epoch."""

    def __init__(self, epoch: int, start: int, previous_epoch: int) -> None:
        self.epoch, self.start, self.previous_epoch, self.level = epoch, start, previous_epoch, 0
        self.high_watermark = self.log_start = 0
        self.leader_end = self.epoch_start = start

    def __len__(self) -> int:
        return 0


@pytest.fixture
async def standing() -> Any:
    """(copy, copies) of a node that stands in epoch 7 and holds what the best log does not."""
    log = Log(3, 3, 4, 4)
    copies = Copies(log)
    entry = ReplicaSetEntry("orders", 7, "a", tuple((node, INCARNATIONS[node].hex()) for node in "abc"))
    copy = Copy(copies, log, entry)
    campaign = asyncio.ensure_future(copy.campaign(entry))
    await copies.cutting.wait()
    yield copy, copies, campaign
    copies.cut.set()
    await asyncio.wait([campaign])
    await asyncio.gather(*copies.tasks, return_exceptions=True)


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_newer_leader_is_answered_when_the_cut_of_an_election_given_up_is_done(standing: Any) -> None:
    copy, copies, campaign = standing
    copy.offered("b", Section(8, 4, 4))
    await turns()
    assert campaign.done() and not copies.answers

    copy.offered("b", Section(8, 4, 4))
    assert not copies.answers                              # it would vouch for what is about to go
    copies.cut.set()
    await turns()
    assert copies.answers == [(8, Verdict.MISMATCH, 2)]
    assert copies.log.held == [3, 3]


async def test_what_a_newer_leader_has_put_into_the_best_log_meanwhile_is_not_adopted(standing: Any) -> None:
    copy, copies, campaign = standing
    copies.gives = [3, 3, 5, 5, 6, 6, 6, 6]
    copies.cut.set()
    await asyncio.wait([campaign])
    assert copies.log.held == [3, 3, 5, 5] and copy.server is None
