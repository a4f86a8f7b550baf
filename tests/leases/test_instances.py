"""Workers with a name that outlives them, workers that stand by, and workers of different weight."""

import pytest

from streamkit.errors import InstanceTaken, LeaseLost
from streamkit.leases import events, facts
from streamkit.leases.applications import Applications
from tests.leases.test_applications import MEMBERSHIP_MS, image, join, owned, replayed, stream


@pytest.fixture
def machine():
    made = Applications()
    made.genesis()
    return made


def owners(machine) -> dict[bytes, int]:
    return {shard: session for shard, session, _ in machine.table.applications["app"].leases.owners()}


def hand_over(machine, now_ms=0) -> None:
    """Whoever is asked to drain does so."""
    leases = machine.table.applications["app"].leases
    for shard, session, state in leases.owners():
        if state == "draining":
            machine.step(events.Release("app", [(shard, leases.row(shard)[2])], now_ms))
            assert owners(machine)[shard] != session


# ---- instances -------------------------------------------------------------------------------------------


def test_an_instance_that_was_killed_and_starts_again_keeps_its_leases_and_none_moves(machine):
    found = [stream("s", 6)]
    join(machine, "w-1", found=found)
    elder = join(machine, "b-1", instance="b", incarnation=1, connection=7)
    hand_over(machine)
    before = owners(machine)
    others = {shard: session for shard, session in before.items() if session != elder.session}
    epochs = {shard: machine.table.applications["app"].leases.row(shard)[2] for shard in before}

    machine.step(events.ConnectionLost(7, 100))
    machine.step(events.Tick(MEMBERSHIP_MS - 1))
    assert owners(machine) == before, "a broken connection does not shorten its time"
    view = join(machine, "b-2", instance="b", incarnation=2, now_ms=MEMBERSHIP_MS - 1)

    after = owners(machine)
    assert {shard for shard, session in after.items() if session == view.session} == before.keys() - others.keys()
    assert {shard: after[shard] for shard in others} == others
    assert all(lease_epoch == epochs[shard] + 1 for shard, lease_epoch in owned(view)), "the killed one is fenced"
    assert all(grant.previous_owner_crashed for grant in view.granted)


def test_an_instance_that_stopped_in_order_is_waited_for_and_did_not_crash(machine):
    elder = join(machine, "b-1", found=[stream("s", 4)], instance="b", incarnation=1)
    other = join(machine, "w-1")
    hand_over(machine)
    before = owners(machine)

    machine.step(events.Leave("app", elder.session, 1_000, away=True))
    machine.step(events.Beat("app", other.session, [], 0, 9_000))
    machine.step(events.Tick(1_000 + MEMBERSHIP_MS - 1))
    assert owners(machine) == before
    view = join(machine, "b-2", instance="b", incarnation=2, now_ms=10_999)

    assert set(owners(machine).values()) == {other.session, view.session}
    assert [shard for shard, _ in owned(view)] == [s for s, session in before.items() if session == elder.session]
    assert not any(grant.previous_owner_crashed or grant.takeovers_without_progress for grant in view.granted)


def test_an_instance_that_does_not_come_back_is_replaced_at_its_time_out(machine):
    elder = join(machine, "b-1", found=[stream("s", 4)], instance="b", incarnation=1)
    other = join(machine, "w-1")
    hand_over(machine)
    machine.step(events.Leave("app", elder.session, 1_000, away=True))
    machine.step(events.Beat("app", other.session, [], 0, 9_000))

    machine.step(events.Tick(1_000 + MEMBERSHIP_MS))

    assert set(owners(machine).values()) == {other.session}
    assert not any(machine.table.applications["app"].leases.row(shard)[5] for shard in owners(machine)), "no crash"


def test_what_an_instance_was_to_hand_over_anyway_moves_when_it_stops(machine):
    elder = join(machine, "b-1", found=[stream("s", 4)], instance="b", incarnation=1)
    other = join(machine, "w-1")                            # two of the four drain

    machine.step(events.Leave("app", elder.session, 0, away=True))

    assert sorted(owners(machine).values()) == [elder.session] * 2 + [other.session] * 2


def test_of_two_that_live_under_one_instance_name_the_elder_is_shut_out_for_good(machine):
    elder = join(machine, "b-1", found=[stream("s", 2)], instance="b", incarnation=1)
    younger = join(machine, "b-2", instance="b", incarnation=2)

    with pytest.raises(LeaseLost):
        machine.step(events.Beat("app", elder.session, owned(elder), 0, 0))
    with pytest.raises(InstanceTaken, match='b-2 runs under the instance name "b" now') as error:
        join(machine, "b-1", instance="b", incarnation=1, before=elder.session)

    assert error.value.facts == {"application": "app", "instance": "b", "worker": "b-2"}
    assert set(owners(machine).values()) == {younger.session}


def test_a_join_whose_answer_was_lost_is_no_second_worker(machine):
    first = join(machine, "b-1", found=[stream("s", 2)], instance="b", incarnation=1)
    machine.step(events.Tick(MEMBERSHIP_MS))               # expelled
    join(machine, "b-1", instance="b", incarnation=1, before=first.session)

    again = join(machine, "b-1", instance="b", incarnation=1, before=first.session)

    assert len(again.granted) == 2


def test_an_instance_that_reads_other_streams_now_keeps_only_what_it_may_have(machine):
    join(machine, "b-1", found=[stream("s", 3), stream("t", 3)], streams=("s", "t"), instance="b", incarnation=1)

    view = join(machine, "b-2", streams=("t",), instance="b", incarnation=2, leases_max=2)

    assert {grant.stream for grant in view.granted} == {"t"} and len(view.granted) == 2
    assert sorted(owners(machine).values()) == [0] * 4 + [view.session] * 2


def test_a_restarted_coordinator_waits_for_whoever_is_away(machine):
    elder = join(machine, "b-1", found=[stream("s", 2)], instance="b", incarnation=1)
    machine.step(events.Leave("app", elder.session, 0, away=True))
    restarted = Applications()
    restarted.table = replayed(_log(machine))
    restarted.step(events.Restarted(0))

    view = join(restarted, "b-2", instance="b", incarnation=2, now_ms=MEMBERSHIP_MS - 1)

    assert len(view.granted) == 2 and not any(grant.previous_owner_crashed for grant in view.granted)


def _log(machine) -> list[bytes]:
    return [facts.encode(fact) for fact in image(machine.table)]


# ---- standby ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["dies", "leaves", "is leaving"])
def test_a_standby_worker_holds_nothing_until_one_goes_and_then_takes_its_leases_alone(machine, how):
    first = join(machine, "w-1", found=[stream("s", 6)])
    second = join(machine, "w-2")
    hand_over(machine)
    spare = join(machine, "spare", standby=True)
    assert spare.granted == () and spare.session not in owners(machine).values()
    before = owners(machine)
    mine = [shard for shard, session in before.items() if session == second.session]

    if how == "dies":
        for session in (first.session, spare.session):
            machine.step(events.Beat("app", session, [], 0, MEMBERSHIP_MS - 1))
        machine.step(events.Tick(MEMBERSHIP_MS))
    elif how == "leaves":
        machine.step(events.Leave("app", second.session, 0))
    else:
        leases = machine.table.applications["app"].leases
        for shard in mine:
            machine.step(events.Release("app", [(shard, leases.row(shard)[2])], 0, second.session))
        machine.step(events.Leave("app", second.session, 0))

    after = owners(machine)
    assert all(after[shard] == (spare.session if shard in mine else session) for shard, session in before.items())


def test_a_standby_worker_stands_by_again_when_somebody_comes_for_the_place(machine):
    first = join(machine, "w-1", found=[stream("s", 6)])
    second = join(machine, "w-2")
    hand_over(machine)
    spare = join(machine, "spare", standby=True)
    machine.step(events.Leave("app", second.session, 0))
    before = owners(machine)

    third = join(machine, "w-3")
    hand_over(machine)

    assert {shard: third.session if session == spare.session else session for shard, session in before.items()} \
        == owners(machine)
    assert list(before.values()).count(first.session) == 3


def test_a_standby_worker_alone_works(machine):
    spare = join(machine, "spare", found=[stream("s", 4)], standby=True)
    assert len(spare.granted) == 4

    active = join(machine, "w-1")
    hand_over(machine)

    assert set(owners(machine).values()) == {active.session}


def test_one_standby_worker_takes_one_place(machine):
    sessions = [join(machine, f"w-{n}", found=[stream("s", 9)]).session for n in range(3)]
    hand_over(machine)
    spares = [join(machine, f"spare-{n}", standby=True).session for n in range(2)]

    machine.step(events.Leave("app", sessions[0], 0))
    assert set(owners(machine).values()) == {*sessions[1:], spares[0]}
    machine.step(events.Leave("app", spares[0], 0))
    assert set(owners(machine).values()) == {*sessions[1:], spares[1]}
    machine.step(events.Leave("app", sessions[1], 0))
    assert set(owners(machine).values()) == {sessions[2], spares[1]}


def test_a_standby_worker_takes_what_the_others_may_not(machine):
    join(machine, "w-1", found=[stream("s", 5)], leases_max=3)

    spare = join(machine, "spare", standby=True)

    assert len(spare.granted) == 2


# ---- weights ---------------------------------------------------------------------------------------------


def test_shares_go_by_weight_and_nothing_moves_once_they_do(machine):
    small = join(machine, "w-1", found=[stream("s", 90)])
    large = join(machine, "w-2", weight=2.0)
    hand_over(machine)

    counts = list(owners(machine).values())
    assert (counts.count(small.session), counts.count(large.session)) == (30, 60)
    machine.step(events.StreamsSeen("app", (), (), 0))
    assert not any(state == "draining" for _, _, state in machine.table.applications["app"].leases.owners())
