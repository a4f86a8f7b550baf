"""Transactions in the simulated world: kept as they are, and caught when one of their rules is broken."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from streamkit._core.batch import read_header
from streamkit.broker.decisions import Decisions
from streamkit.consumer.transactional import LeaseTransactions
from streamkit.leases.applications import Applications
from streamkit.simulator.faults import Faults
from streamkit.simulator.run import run
from streamkit.transactions import carrying, lineage
from streamkit.transactions.sealing import batches_of

KILLS = {"kill_worker": 3.0, "kill_node": 1.0, "break_connections": 1.0}
SEEDS_MAX = 120


def violations(seed: int, **faults: Any) -> list[str]:
    settings = {"acts": KILLS, "act_count": 8, "busy_seconds": 2.0, "records": 120, "relaying": True} | faults
    return run(seed, copy.deepcopy(Faults(**settings))).violations


def caught(promise: str, **faults: Any) -> str:
    for seed in range(SEEDS_MAX):
        for violation in violations(seed, **faults):
            if promise in violation:
                return violation
    raise AssertionError(f"{SEEDS_MAX} seeds, and nobody noticed")


@pytest.mark.parametrize("seed", range(4))
def test_every_record_is_copied_once_and_in_order(seed: int) -> None:
    assert violations(seed) == []


def test_nobody_carrying_out_what_was_left_is_caught(monkeypatch):
    async def nothing(self):
        self._carried = True

    monkeypatch.setattr(LeaseTransactions, "take_over", nothing)
    monkeypatch.setattr(Decisions, "look", lambda self: None)
    monkeypatch.setattr(Applications, "_check_left", lambda *_: None)

    assert caught("is there 0 times")


def test_carrying_out_without_the_numbers_is_caught(monkeypatch):
    def unnumbered(records, identity, sequence, map_version):
        return batches_of(records, (0, 0), 0, map_version)

    monkeypatch.setattr(lineage, "batches_of", unnumbered)
    monkeypatch.setattr(carrying, "batches_of", unnumbered)

    assert caught("is there 2 times")


def test_sending_before_it_is_decided_is_caught(monkeypatch):
    async def hasty(self, gathered, place):
        await self.settle()
        outputs = await self._lineage.seal(gathered)
        await self._lineage.carry_out(outputs)
        await self._writer.transact(self.lease, place, lineage.packed(outputs))
        self._lineage.decided(outputs)

    monkeypatch.setattr(LeaseTransactions, "commit", hasty)

    assert caught("is there 2 times")


def test_moving_what_a_closed_shard_has_already_is_caught(monkeypatch):
    put_all = carrying._Stream._put_all

    async def forgetful(self, uuid, batches):
        return batches if await put_all(self, uuid, batches) else ()

    monkeypatch.setattr(carrying, "_AT_ONCE", 1)
    monkeypatch.setattr(lineage, "batches_of", _small)
    monkeypatch.setattr(carrying._Stream, "_put_all", forgetful)

    assert caught("is there 2 times", acts={"stall_link": 1.0}, records=300)


def _small(records, identity, sequence, map_version):
    for record in records:
        batch, = batches_of([record], identity, sequence, map_version)
        sequence += read_header(batch).record_count
        yield batch
