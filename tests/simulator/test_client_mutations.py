"""Rules of the libraries left out one by one: the checker of each promise must notice."""

import copy

import msgspec

from streamkit._core.batch import Batch
from streamkit.broker.matching import Matcher
from streamkit.broker.pushing import PushedFetch
from streamkit.client import client
from streamkit.consumer.checkpointer import HeldLease
from streamkit.consumer.dead_letters import DeadLetters
from streamkit.consumer.lane import Lane
from streamkit.consumer.shard_consumer import ShardConsumer
from streamkit.leases import applications, events
from streamkit.leases.applications import Applications
from streamkit.metadata.catalog import Catalog
from streamkit.model.fate import Fate
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


def test_leaving_batches_out_unread_is_caught(monkeypatch):
    async def hasty(self, buffer, condition):
        return len(condition.matching(Batch(buffer).part(0, 1))) > 0

    monkeypatch.setattr(Matcher, "_is_wanted", hasty)

    assert caught("never processed", features=("where",))


def test_handing_out_what_does_not_match_is_caught(monkeypatch):
    monkeypatch.setattr(ShardConsumer, "_given", lambda self, batch: batch)

    assert caught("does not hold for", features=("where",))


def test_pushing_on_from_the_wrong_place_is_caught(monkeypatch):
    def skipping(cls, request_id, message):
        return of(request_id, msgspec.structs.replace(message, start=message.start + 1))

    of = PushedFetch.of
    monkeypatch.setattr(PushedFetch, "of", classmethod(skipping))

    assert caught("leaves no record out", features=("fan_out",))


def test_a_dead_letter_that_is_never_put_is_caught(monkeypatch):
    async def forgetful(self, dead):
        return

    monkeypatch.setattr(DeadLetters, "put", forgetful)

    assert caught("is no dead letter", features=("poison",))


def test_passing_over_whoever_stands_beside_a_failure_is_caught(monkeypatch):
    async def careless(self, part, outcome, *, bisect):
        done = await settle(self, part, outcome, bisect=bisect)
        return min(done + 1, len(part)) if outcome.exact else done

    settle = Lane._settle
    monkeypatch.setattr(Lane, "_settle", careless)

    assert caught("never processed", features=("poison",), records=400)


def test_handing_out_a_record_again_is_caught(monkeypatch):
    run_once = Lane._run

    async def twice(self, part):
        await run_once(self, part)
        return await run_once(self, part)

    monkeypatch.setattr(Lane, "_run", twice)

    assert caught("of its key")


def test_saying_not_stored_of_what_may_be_is_caught(monkeypatch):
    async def guess(client, token):
        return Fate("not_stored")

    monkeypatch.setattr(client, "find_fate", guess)

    assert caught("said not to be stored", features=("resolve",), **DOUBT)


def test_a_reset_that_changes_nothing_is_caught(monkeypatch):
    monkeypatch.setitem(applications._STEPS, events.SetPositions, lambda self, event: None)

    assert caught("was not handled again after a reset", features=("operate",))


def test_giving_leases_to_whoever_joins_a_paused_application_is_caught(monkeypatch):
    balance = Applications._balance
    looks = {}                             # at a paused application that no lease of is owned

    def forgetful(self, application, now_ms):
        held, idle = application.held, not any(session for _, session, _ in application.leases.owners())
        looks[application.name] = looks.get(application.name, 0) + 1 if held and idle else 0
        if looks[application.name] > 1:
            application.held = ""
        balance(self, application, now_ms)
        application.held = application.held or held

    monkeypatch.setattr(Applications, "_balance", forgetful)

    assert caught("and the application is paused", features=("operate",), acts={"kill_worker": 1.0}, act_count=12)


def test_a_state_that_lags_behind_its_checkpoint_is_caught(monkeypatch):
    ask = HeldLease.ask_with_state
    before = {}

    def lagging(self, place, state, waiter):
        ask(self, place, before.get(self, b""), waiter)
        before[self] = state

    monkeypatch.setattr(HeldLease, "ask_with_state", lagging)

    assert caught("found another state", features=("state",), acts={"kill_worker": 1.0}, act_count=4)


def test_a_state_that_is_announced_for_another_place_is_caught(monkeypatch):
    prepare = HeldLease.prepare
    monkeypatch.setattr(
        HeldLease, "prepare",
        lambda self, place, state, waiter: prepare(self, (place[0] + 5, place[1]), state, waiter),
    )  # fmt: skip

    assert caught("found another announced state", features=("state",), acts={"kill_worker": 1.0}, act_count=8)
