"""Deliveries in the simulated world: everything once, and caught when a rule of theirs is left out."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from streamkit.consumer.checkpointer import Checkpointer
from streamkit.delivery import shard_delivery
from streamkit.delivery.shard_delivery import ShardDelivery
from streamkit.simulator.faults import Faults
from streamkit.simulator.run import run

KILLS = {"kill_worker": 3.0, "kill_node": 1.0, "break_connections": 1.0}
SEEDS_MAX = 120


def violations(seed: int, **faults: Any) -> list[str]:
    settings = {"acts": KILLS, "act_count": 8, "busy_seconds": 2.0, "records": 120, "delivering": True} | faults
    return run(seed, copy.deepcopy(Faults(**settings))).violations


def caught(promise: str) -> str:
    for seed in range(SEEDS_MAX):
        for violation in violations(seed):
            if promise in violation:
                return violation
    raise AssertionError(f"{SEEDS_MAX} seeds, and nobody noticed")


@pytest.mark.parametrize("seed", range(20))
def test_everything_is_delivered_once(seed: int) -> None:
    assert violations(seed) == []


def test_forgetting_what_was_planned_is_caught(monkeypatch):
    monkeypatch.setattr(shard_delivery, "_found", lambda ctx: None)

    assert "delivered 0 times" not in caught("was delivered")


def test_writing_before_the_plan_is_told_is_caught(monkeypatch):
    async def at_once():
        """As if it were told."""

    monkeypatch.setattr(Checkpointer, "announce", lambda self, place, state: at_once())

    assert "delivered 0 times" not in caught("was delivered")


def test_a_checkpoint_before_the_write_is_caught(monkeypatch):
    deliver = ShardDelivery._deliver

    async def early(self, gathered, plan):
        assert self._checkpointer is not None
        await self._checkpointer.checkpoint_prepared(gathered.end)
        await deliver(self, gathered, plan)

    monkeypatch.setattr(ShardDelivery, "_deliver", early)

    assert "delivered 0 times" in caught("was delivered")
