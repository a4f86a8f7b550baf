"""Who stands, and when it had better wait."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from streamkit.broker import copies, elections
from streamkit.broker.elections import Elections
from streamkit.errors import TimedOut
from streamkit.metadata.replica_sets import ReplicaSetEntry
from streamkit.protocol.peers import SealedShard
from streamkit.replication.replica_set import Member

SHARD = bytes(range(16))
INCARNATIONS = {node: node.encode() * 16 for node in "abc"}


class Copy:
    """The copy on node a. stood: each time that it tried to lead, the nodes whose copies are still to be made."""

    def __init__(self) -> None:
        self.uuid = SHARD
        self.entry = ReplicaSetEntry("orders", 0, "", tuple((node, INCARNATIONS[node].hex()) for node in "abc"))
        self.server, self.closed, self.stood = None, False, list[tuple[str, ...]]()

    @property
    def replica_set(self) -> Any:
        return self.entry.replica_set

    async def stand(self, unmade: Sequence[Member]) -> bool:
        self.stood.append(tuple(member.node for member in unmade))
        return True


class Copies:
    """The node a. made: what the others say of their copies."""

    voter = copies.Copies.voter

    def __init__(self) -> None:
        self.node, self.random = "a", SimpleNamespace(uniform=lambda: 0.5)
        self.made: dict[str, tuple[bytes, bool]] = {}

    async def ask_seal(self, node: str, uuid: bytes, epoch: int) -> SealedShard:
        if node not in self.made:
            raise TimedOut("no answer", try_="later", timeout_ms=1)
        incarnation, certain = self.made[node]
        return SealedShard(uuid, True, 0, incarnation, certain, 0, 0, 0, (), False)


@pytest.mark.parametrize(
    ("made", "stands"),
    [
        ({}, []),
        ({"b": (INCARNATIONS["b"], True)}, [("c",)]),
        ({"b": (INCARNATIONS["b"], True), "c": (INCARNATIONS["c"], True)}, [()]),
        ({"b": (INCARNATIONS["b"], False), "c": (INCARNATIONS["a"], True)}, []),
    ],
)
async def test_nobody_leads_first_before_a_majority_is_made_and_who_is_late_is_named(
    made: dict[str, tuple[bytes, bool]], stands: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elections, "_MAKING_SECONDS", 0.05)
    copy, node = Copy(), Copies()
    node.made = made
    watcher = Elections(node)
    await asyncio.wait_for(watcher._run_election(copy), 5)
    assert copy.stood == stands
