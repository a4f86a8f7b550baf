"""Rules of the libraries left out one by one: the checker of each promise must notice."""

import copy

from streamkit.metadata.catalog import Catalog
from streamkit.producer.halting import HaltedKeys
from streamkit.producer.naming import Naming
from streamkit.producer.sender import Sender
from streamkit.protocol.messages import ProducerOpened
from streamkit.simulator.faults import Faults
from streamkit.simulator.run import run

SEEDS_MAX = 40
DOUBT = {"acts": {"stop_node": 2.0, "stall_link": 1.0, "disk_full": 1.0}, "act_count": 8, "busy_seconds": 6.0}


def caught(promise, **faults):
    """The first violation that speaks of `promise`; fails when no seed shows one."""
    for seed in range(SEEDS_MAX):
        report = run(seed, copy.deepcopy(Faults(**{"busy_seconds": 2.0, "records": 160, **faults})))
        for violation in report.violations:
            if promise in violation:
                return violation
    raise AssertionError(f"{SEEDS_MAX} seeds, and nobody noticed")


def test_a_name_that_leaves_no_mark_in_the_shards_is_caught(monkeypatch):
    async def unmarked(self, lane, identity):
        return ProducerOpened(0)

    monkeypatch.setattr(Naming, "_open", unmarked)

    assert caught("a younger", features=("named",), producers=3)


def test_shutting_out_whoever_renews_its_name_is_caught(monkeypatch):
    async def suspicious(self, name, instance):
        return False

    monkeypatch.setattr(Catalog, "holds_name", suspicious)

    assert caught("nobody younger is there", features=("named",), producers=1)


def test_forgetting_which_keys_failed_is_caught(monkeypatch):
    monkeypatch.setattr(HaltedKeys, "why_not", lambda self, batch: None)

    assert caught("behind one of its key that failed", features=("halt",), **DOUBT)


def test_going_on_where_all_was_to_halt_is_caught(monkeypatch):
    monkeypatch.setattr(Sender, "halt", lambda self, error: None)

    assert caught("while all was halted", features=("halt",), **DOUBT)
