"""The load strategy: each rule of `leases.load`, that it ends, and the state machine's rounds in turned time."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit.leases import events
from streamkit.leases.applications import Applications
from streamkit.leases.assignment import Candidate
from streamkit.leases.load import BAND_START, BAND_STOP, BUSY_MIN, COOL_MS, ROUND_MS, LoadBook, Loaded, rebalance
from tests.leases.test_applications import join, stream


def members(*weights: float) -> list[Candidate]:
    return [Candidate(session, frozenset("s"), 0, weight) for session, weight in enumerate(weights, 1)]


def lease(number: int, owner: int, load: float, movable: bool = True) -> Loaded:
    return Loaded(number.to_bytes(16, "big"), "s", owner, load, movable)


def utilisations(leases: list[Loaded], candidates: list[Candidate]) -> list[float]:
    return sorted((
        sum(each.load for each in leases if each.owner == member.session) / member.weight for member in candidates
    ), reverse=True)


def moved(leases: list[Loaded], moves: list[tuple[bytes, int]]) -> list[Loaded]:
    to = dict(moves)
    return [Loaded(each.shard, each.stream, to.get(each.shard, each.owner), each.load, True) for each in leases]


loads = st.floats(0, 1).map(lambda load: round(load, 3))
fleets = st.integers(2, 5).flatmap(lambda count: st.tuples(
    st.lists(st.tuples(st.integers(1, count), st.one_of(st.just(0.0), loads), st.booleans()), max_size=45).map(
        lambda drawn: [lease(n, owner, load, movable) for n, (owner, load, movable) in enumerate(drawn)]),
    st.lists(st.sampled_from([0.5, 1.0, 1.0, 2.0]), min_size=count, max_size=count).map(lambda each: members(*each)),
))


@given(fleets, st.booleans())
def test_a_round_keeps_every_rule(fleet, acting):
    leases, candidates = fleet
    before = utilisations(leases, candidates)
    by_shard = {each.shard: each for each in leases}

    moves, goes_on = rebalance(leases, candidates, acting=acting)

    assert len(moves) <= max(1, len(leases) // 20)
    assert len({shard for shard, _ in moves}) == len(moves)
    assert all(by_shard[shard].movable and by_shard[shard].load > 0 for shard, _ in moves)
    assert all(by_shard[shard].owner != to for shard, to in moves)
    if moves:
        assert before[0] >= BUSY_MIN and before[0] - before[-1] >= (BAND_STOP if acting else BAND_START)
        assert utilisations(moved(leases, moves), candidates) < before, "highest first, they fall"
    if before[0] < BUSY_MIN or before[0] - before[-1] < BAND_STOP:
        assert not goes_on
    assert rebalance(leases, candidates, acting=acting) == (moves, goes_on), "the same question has the same answer"


@given(fleets)
def test_with_the_same_loads_it_ends_and_no_distribution_comes_twice(fleet):
    leases, candidates = fleet
    leases = moved(leases, [])
    seen = [utilisations(leases, candidates)]
    acting = False
    for _ in range(500):
        moves, acting = rebalance(leases, candidates, acting=acting)
        if not moves:
            break
        leases = moved(leases, moves)
        after = utilisations(leases, candidates)
        assert after < seen[-1]
        seen.append(after)

    assert rebalance(leases, candidates, acting=acting)[0] == [], "it has ended"


@given(st.lists(st.floats(0.005, 0.05), min_size=40, max_size=60), st.randoms())
def test_small_leases_end_close_together_and_a_little_noise_starts_nothing(drawn, random):
    candidates = members(1.0, 1.0, 1.0)
    leases = [lease(number, 1, load) for number, load in enumerate(drawn)]
    acting = False
    for _ in range(200):
        moves, acting = rebalance(leases, candidates, acting=acting)
        leases = moved(leases, moves)

    settled = utilisations(leases, candidates)
    assert settled[0] < BUSY_MIN or settled[0] - settled[-1] < BAND_START
    if settled[0] - settled[-1] < BAND_STOP:
        noisy = [Loaded(each.shard, "s", each.owner, each.load * random.uniform(0.93, 1.07), True) for each in leases]
        spread = utilisations(noisy, candidates)
        assert spread[0] - spread[-1] >= BAND_START or rebalance(noisy, candidates, acting=False) == ([], False)


@pytest.mark.parametrize(("leases", "why"), [
    ([lease(1, 1, 0.29), lease(2, 1, 0.005)], "nobody is 30 % busy"),
    ([lease(1, 1, 0.30), lease(2, 1, 0.20), lease(3, 2, 0.31)], "less than 20 points apart"),
    ([lease(1, 1, 0.9)], "moved as a whole it would be the same there"),
    ([lease(1, 1, 0.5, False), lease(2, 1, 0.4, False)], "what has moved lately stays"),
    ([lease(1, 1, 0.9), lease(2, 1, 0.0), lease(3, 2, 0.0)], "a lease without load is not moved for balance"),
])
def test_no_move(leases, why):
    assert rebalance(leases, members(1.0, 1.0), acting=False)[0] == [], why


def test_once_begun_it_goes_on_down_to_ten_points():
    leases = [lease(1, 1, 0.3), lease(2, 1, 0.06), lease(3, 2, 0.2)]

    assert rebalance(leases, members(1.0, 1.0), acting=False) == ([], False)
    assert rebalance(leases, members(1.0, 1.0), acting=True) == ([(leases[1].shard, 2)], True)


def test_a_worker_of_twice_the_weight_has_twice_the_time():
    leases = [lease(number, 1, 0.1) for number in range(12)]

    for _ in range(20):
        leases = moved(leases, rebalance(leases, members(1.0, 2.0), acting=True)[0])

    assert [sum(each.owner == session for each in leases) for session in (1, 2)] == [4, 8]


def test_a_member_that_cannot_be_helped_does_not_keep_the_next_from_it():
    leases = [lease(1, 1, 1.0), lease(2, 2, 0.4), lease(3, 2, 0.4), lease(4, 3, 0.1)]

    assert rebalance(leases, members(1.0, 1.0, 1.0), acting=False)[0] == [(leases[1].shard, 3)]


@pytest.mark.parametrize(("told", "kept"), [(0.5, 0.5), (float("nan"), 0.0), (-3.0, 0.0), (7.0, 1.0)])
def test_a_report_counts_once_half_a_minute_was_watched(told, kept):
    book = LoadBook.new(0)

    book.note(b"s", told, 29_999)
    assert book.loads == {}
    book.note(b"s", told, 30_000)
    assert book.loads == {b"s": kept}


# ---- the state machine -----------------------------------------------------------------------------------


class Fleet:
    """Workers that do at once what they are told; `loads`: of each shard, as its owner tells it."""

    def __init__(self, shards: int) -> None:
        self.machine = Applications()
        self.machine.genesis()
        self.found = [stream("s", shards)]
        self.shards = [shard for shard, _, _ in self.found[0].leases]
        self.loads = dict.fromkeys(self.shards, 0.0)
        self.sessions: list[int] = []
        self.now_ms = 0
        self.moves: list[tuple[int, bytes]] = []       # when, which

    def join(self, name: str, **more) -> int:
        view = join(self.machine, name, found=self.found, now_ms=self.now_ms, assignment="load", **more)
        self.sessions.append(view.session)
        self._obey()
        return view.session

    @property
    def leases(self):
        return self.machine.table.applications["app"].leases

    def of(self, session: int) -> list[bytes]:
        return sorted(shard for shard, owner, _ in self.leases.owners() if owner == session)

    def run(self, seconds: int, watched_ms: int = 60_000) -> None:
        for _ in range(seconds):
            self.now_ms += 1_000
            if self.now_ms % 3_000 == 0:
                for session in self.sessions:
                    told = [(shard, self.loads[shard], watched_ms) for shard in self.of(session)]
                    self.machine.step(events.Beat("app", session, (), 0, self.now_ms, told))
            self.machine.step(events.Tick(self.now_ms))
            self._obey()

    def _obey(self) -> None:
        for shard, _, state in self.leases.owners():
            if state == "draining":
                self.machine.step(events.Release("app", [(shard, self.leases.row(shard)[2])], self.now_ms))
                self.moves.append((self.now_ms, shard))


def test_workers_that_start_together_share_by_count_and_one_that_comes_later_waits_for_load():
    fleet = Fleet(12)
    first, second, third = (fleet.join(name) for name in ("a", "b", "c"))
    assert [len(fleet.of(session)) for session in (first, second, third)] == [4, 4, 4]
    fleet.run(400)
    began = len(fleet.moves)

    late = fleet.join("d")
    fleet.run(3_600)

    assert fleet.of(late) == [] and len(fleet.moves) == began, "without load nothing moves"


def test_a_hot_worker_gives_leases_away_slowly_and_then_all_is_quiet():
    fleet = Fleet(40)
    first, second = fleet.join("a"), fleet.join("b")
    for shard in fleet.of(first):
        fleet.loads[shard] = 0.08
    began = len(fleet.moves)

    fleet.run(COOL_MS // 1000 - 10)
    assert len(fleet.moves) == began, "whatever has a new owner rests for five minutes"
    fleet.run(3_600)
    moves = fleet.moves[began:]
    quiet = len(fleet.moves)
    fleet.run(3_600)

    sums = [sum(fleet.loads[shard] for shard in fleet.of(session)) for session in (first, second)]
    assert abs(sums[0] - sums[1]) < BAND_STOP + 0.16
    assert len({shard for _, shard in moves}) == len(moves) == quiet - began, "none moved twice"
    assert len(fleet.moves) == quiet
    rounds = sorted({now_ms for now_ms, _ in moves})
    assert all(later - earlier >= ROUND_MS for earlier, later in pairwise(rounds))
    assert all(sum(now_ms == each for now_ms, _ in moves) <= 2 for each in rounds), "a twentieth of forty"


def test_a_new_coordinator_moves_nothing_for_five_minutes():
    fleet = Fleet(8)
    first, _ = fleet.join("a"), fleet.join("b")
    fleet.run(400)
    for shard in fleet.of(first):
        fleet.loads[shard] = 0.25
    began = len(fleet.moves)

    restarted = Applications()
    restarted.table = fleet.machine.table
    fleet.machine = restarted
    restarted.step(events.Restarted(fleet.now_ms))
    fleet.run(COOL_MS // 1000 - 10)
    assert len(fleet.moves) == began
    fleet.run(120)
    assert len(fleet.moves) > began


def test_what_a_worker_that_goes_had_is_taken_by_whoever_has_time():
    fleet = Fleet(9)
    sessions = [fleet.join(name) for name in "abc"]
    for shard in fleet.of(sessions[0]):
        fleet.loads[shard] = 0.3
    fleet.run(60)

    fleet.sessions.remove(sessions[2])
    freed = fleet.of(sessions[2])
    fleet.machine.step(events.Leave("app", sessions[2], fleet.now_ms))

    assert set(freed) < set(fleet.of(sessions[1])), "the busy one gets none"


def test_one_worker_that_counts_makes_all_count():
    fleet = Fleet(8)
    fleet.join("a")
    fleet.run(60)
    view = join(fleet.machine, "b", now_ms=fleet.now_ms)
    fleet._obey()
    assert len(fleet.of(view.session)) == 4
    assert not fleet.machine.table.applications["app"].by_load

    fleet.machine.step(events.Leave("app", view.session, fleet.now_ms))
    assert fleet.machine.table.applications["app"].by_load
