"""The count strategy alone."""

from hypothesis import example, given
from hypothesis import strategies as st

from streamkit.leases.assignment import Candidate, Holding, balance, place
from tests import oracles_leases


def candidates(count: int, leases_max: int = 0) -> list[Candidate]:
    return [Candidate(session, frozenset("s"), leases_max) for session in range(1, count + 1)]


def after(holdings: list[Holding], members: list[Candidate]) -> list[Holding]:
    """The plan carried out, drains included."""
    plan = balance(holdings, members)
    owners = dict(plan.grants)
    return [
        Holding(h.shard, h.stream, 0, "ready") if h.shard in plan.drains
        else Holding(h.shard, h.stream, owners[h.shard], "owned") if h.shard in owners else h
        for h in holdings
    ]


holding_lists = st.lists(st.integers(0, 6), max_size=40).map(
    lambda owners: [
        Holding(bytes([n]) * 16, "s", owner, "owned" if owner else "ready") for n, owner in enumerate(owners)
    ]
)


@given(holding_lists, st.integers(1, 6))
def test_two_rounds_give_fair_shares_and_a_third_moves_nothing(holdings, count):
    members = candidates(count)
    holdings = [h if h.owner <= count else Holding(h.shard, "s", 0, "ready") for h in holdings]

    settled = after(after(holdings, members), members)

    loads = [sum(h.owner == member.session for h in settled) for member in members]
    assert sum(loads) == len(settled) and oracles_leases.fair(loads)
    assert after(settled, members) == settled


@given(holding_lists, st.integers(1, 6))
@example([Holding(bytes([n]) * 16, "s", owner, "owned") for n, owner in enumerate([1, 1, 1, 1, 2, 2, 2, 2])], 3)
def test_no_more_leases_move_than_the_excess(holdings, count):
    members = candidates(count)
    holdings = [h for h in holdings if 0 < h.owner <= count]

    plan = balance(holdings, members)

    ceiling = -(-len(holdings) // count)
    loads = [sum(h.owner == member.session for h in holdings) for member in members]
    excess = sum(max(0, load - ceiling) for load in loads)
    shortage = sum(max(0, len(holdings) // count - load) for load in loads)
    assert len(plan.drains) == max(excess, shortage) and plan.grants == []


@given(holding_lists, st.integers(1, 6))
def test_a_look_in_the_middle_of_a_move_asks_for_nothing_more(holdings, count):
    members = candidates(count)
    holdings = [h for h in holdings if 0 < h.owner <= count]
    plan = balance(holdings, members)

    moving = [Holding(h.shard, "s", h.owner, "draining") if h.shard in plan.drains else h for h in holdings]

    assert balance(moving, members).drains == []


@given(st.integers(0, 30), st.integers(1, 4), st.integers(1, 5))
def test_leases_max_is_never_exceeded(shards, count, leases_max):
    members = candidates(count, leases_max)

    plan = balance([Holding(bytes([n]) * 16, "s", 0, "ready") for n in range(shards)], members)

    assert len(plan.grants) == min(shards, count * leases_max)
    assert all(sum(session == member.session for _, session in plan.grants) <= leases_max for member in members)


def test_a_worker_gets_only_leases_of_its_own_streams():
    members = [Candidate(1, frozenset("a"), 0), Candidate(2, frozenset("ab"), 0)]
    holdings = [Holding(bytes([n]) * 16, "ab"[n % 2], 0, "ready") for n in range(6)]

    plan = balance(holdings, members)

    assert all(session == 2 for shard, session in plan.grants if shard[0] % 2)
    assert len(plan.grants) == 6


def test_without_members_nothing_is_granted():
    assert balance([Holding(b"1" * 16, "s", 0, "ready")], []).grants == []


@given(holding_lists, st.integers(1, 6))
def test_what_was_just_freed_is_placed_as_a_whole_balance_would_place_it(holdings, count):
    members = candidates(count)
    holdings = [h if h.owner <= count else Holding(h.shard, "s", 0, "ready") for h in holdings]
    freed = [(h.shard, h.stream) for h in holdings if h.state == "ready"]
    held = {member.session: sum(h.owner == member.session for h in holdings) for member in members}

    assert place(freed, held, members) == balance(holdings, members).grants
