"""The state machine as a whole: any history of joins, deaths, checkpoints and releases keeps the promises."""

from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from streamkit.errors import ApplicationNotFound, InstanceTaken, LeaseLost
from streamkit.leases import events, facts
from streamkit.leases.applications import Applications
from streamkit.leases.table import Table
from tests import oracles_leases

MEMBERSHIP_MS = 10_000
DRAIN_MS = 30_000


@dataclass
class Item:
    shard: bytes
    lease_epoch: int
    number: int
    sequence: int
    attempts: dict[int, int] = field(default_factory=dict)
    sub_sequence: int = 0
    app_state: bytes | None = None
    prepared: tuple[int, int, bytes] | None = None
    ahead: bytes = b""


def stream(name: str, shards: int, start: int = 0) -> events.FoundStream:
    leases = ((name.encode().ljust(15, b"-") + bytes([n]), n, start) for n in range(shards))
    return events.FoundStream(name, tuple(leases))


def join(machine, worker, *, found=(), streams=("s",), now_ms=0, leases_max=0, connection=0, **more):
    return machine.step(events.Join(
        application="app", worker=worker, streams=tuple(streams), found=tuple(found), membership_ms=MEMBERSHIP_MS,
        leases_max=leases_max, drain_ms=DRAIN_MS, connection=connection, now_ms=now_ms, wall_ms=now_ms, **more,
    )).view


def owned(view):
    return [(lease.shard, lease.lease_epoch) for lease in view.granted]


def replayed(log: list[bytes]) -> Table:
    table = Table()
    for record in log:
        table.replay(facts.decode(record))
    return table


def image(table: Table) -> list[facts.Fact]:
    return list(table.snapshot())


@pytest.fixture
def machine():
    made = Applications()
    made.genesis()
    return made


class LeaseHistory(RuleBasedStateMachine):
    """Workers with names w0..w3 over two streams; the model remembers only what was promised to whom."""

    def __init__(self):
        super().__init__()
        self.machine = Applications()
        self.log = list(self.machine.genesis())
        self.now_ms = 0
        self.sessions: dict[int, list[tuple[bytes, int]]] = {}     # what each session believes it owns
        self.owners: dict[tuple[bytes, int], int] = {}             # (shard, lease epoch) → session, for ever
        self.checkpoints: dict[bytes, int] = {}
        self.numbers: dict[tuple[bytes, int], int] = {}

    def step(self, event):
        effects = self.machine.step(event)
        self.log += effects.write
        return effects

    def learn(self, view):
        mine = [lease for lease in self.sessions.get(view.session, []) if lease[0] not in view.lost]
        for lease in view.granted:
            assert self.owners.setdefault((lease.shard, lease.lease_epoch), view.session) == view.session, \
                "one owner a lease epoch"
            assert lease.checkpoint == self.checkpoints.get(lease.shard, 0)
            mine.append((lease.shard, lease.lease_epoch))
        self.sessions[view.session] = mine

    @rule(n=st.integers(0, 3), both=st.booleans(), leases_max=st.sampled_from([0, 0, 0, 2]),
          instance=st.sampled_from(["", "", "i0", "i1"]), standby=st.sampled_from([False, False, True]),
          weight=st.sampled_from([1.0, 1.0, 0.5, 3.0]), before=st.integers(0, 9),
          assignment=st.sampled_from(["count", "load"]))
    def worker_joins(self, n, both, leases_max, instance, standby, weight, before, assignment):
        names = ("a", "b") if both else ("a",)
        event = events.Join(
            application="app", worker=f"w{n}", streams=names,
            found=tuple(stream(name, {"a": 5, "b": 2}[name]) for name in names),
            membership_ms=MEMBERSHIP_MS, leases_max=leases_max, drain_ms=DRAIN_MS, connection=n + 1,
            now_ms=self.now_ms, wall_ms=self.now_ms, instance=instance, incarnation=n, before=before, standby=standby,
            weight=weight, assignment=assignment,
        )
        app = self.machine.table.applications.get("app")
        younger = [m for m in app.members.values() if m.instance == instance != "" and m.incarnation != n
                   and m.session > before > 0] if app else []
        try:
            view = self.step(event).view
        except InstanceTaken:
            assert younger
            return
        assert not younger
        self.learn(view)

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def worker_beats(self, data):
        session = data.draw(st.sampled_from(sorted(self.sessions)))
        try:
            told = [(shard, data.draw(st.sampled_from([0.0, 0.2, 0.9])), 30_000) for shard, _ in self.sessions[session]]
            view = self.step(events.Beat("app", session, self.sessions[session], 0, self.now_ms, told)).view
        except LeaseLost:
            assert session not in self.machine.table.applications["app"].members
            return
        self.learn(view)

    @precondition(lambda self: any(self.sessions.values()))
    @rule(data=st.data(), advance=st.integers(-2, 5), repeat=st.booleans())
    def worker_checkpoints(self, data, advance, repeat):
        session = data.draw(st.sampled_from(sorted(s for s, mine in self.sessions.items() if mine)))
        shard, lease_epoch = data.draw(st.sampled_from(self.sessions[session]))
        number = self.numbers.get((shard, lease_epoch), 0) + (0 if repeat else 1)
        before = self.checkpoints.get(shard, 0)
        sequence = max(0, before + advance)
        held = self.machine.table.applications["app"].leases.holds(shard, session, lease_epoch)

        result = self.step(events.Checkpoints("app", [Item(shard, lease_epoch, number, sequence)], self.now_ms)).results

        assert (result[0] == "fenced") == (not held), "only the owner of the present epoch is heard"
        if result[0] == "ok" and number > self.numbers.get((shard, lease_epoch), 0):
            assert sequence >= before
            self.checkpoints[shard] = sequence
        if held:
            self.numbers[shard, lease_epoch] = number

    @precondition(lambda self: any(self.sessions.values()))
    @rule(data=st.data(), leaving=st.booleans())
    def worker_releases(self, data, leaving):
        session = data.draw(st.sampled_from(sorted(s for s, mine in self.sessions.items() if mine)))
        lease = data.draw(st.sampled_from(self.sessions[session]))
        self.sessions[session].remove(lease)
        leases = self.machine.table.applications["app"].leases
        foreign = lease[0] in leases and not leases.holds(lease[0], session, lease[1])
        others = leases.row(lease[0])[:3] if foreign else None
        self.step(events.Release("app", [lease], self.now_ms, session if leaving else 0))
        assert others is None or others[:1] == ("ready",) or leases.row(lease[0])[1:3] == others[1:], \
            "nobody gives up what another owns"

    @precondition(lambda self: any(self.sessions.values()))
    @rule(data=st.data())
    def worker_pauses(self, data):
        session = data.draw(st.sampled_from(sorted(s for s, mine in self.sessions.items() if mine)))
        shard, lease_epoch = data.draw(st.sampled_from(self.sessions[session]))
        try:
            self.step(events.Pause("app", shard, lease_epoch, "because"))
        except LeaseLost:
            assert not self.machine.table.applications["app"].leases.holds(shard, session, lease_epoch)

    @precondition(lambda self: self.sessions)
    @rule()
    def operator_resumes(self):
        self.step(events.Resume("app", self.now_ms))

    @precondition(lambda self: self.sessions)
    @rule(data=st.data(), away=st.booleans())
    def worker_leaves(self, data, away):
        session = data.draw(st.sampled_from(sorted(self.sessions)))
        self.step(events.Leave("app", session, self.now_ms, away))

    @rule(connection=st.integers(1, 4))
    def connection_breaks(self, connection):
        self.step(events.ConnectionLost(connection, self.now_ms))

    @rule(ms=st.sampled_from([100, 3_000, 9_999, 30_000, 400_000]))
    def time_passes(self, ms):
        self.now_ms += ms
        self.step(events.Tick(self.now_ms))

    @precondition(lambda self: self.sessions)
    @rule(name=st.sampled_from(["a", "b"]))
    def stream_is_deleted_and_made_again(self, name):
        self.step(events.StreamsSeen("app", (), (name,), self.now_ms))
        for shard in [shard for shard in self.checkpoints if shard.startswith(name.encode())]:
            del self.checkpoints[shard]
        for lease in [lease for lease in self.owners if lease[0].startswith(name.encode())]:
            del self.owners[lease]
            self.numbers.pop(lease, None)
        for mine in self.sessions.values():
            mine[:] = [lease for lease in mine if not lease[0].startswith(name.encode())]
        self.step(events.StreamsSeen("app", (stream(name, 3),), (), self.now_ms))

    @rule()
    def coordinator_restarts(self):
        self.machine = Applications()
        for record in self.log:
            self.machine.table.replay(facts.decode(record))
        self.step(events.Restarted(self.now_ms))

    @rule()
    def log_is_compacted(self):
        self.log = [facts.encode(fact) for fact in self.machine.table.snapshot()]

    @invariant()
    def replay_equals_live(self):
        assert image(replayed(self.log)) == image(self.machine.table)

    @invariant()
    def no_lease_waits_while_a_member_may_take_it(self):
        for application in self.machine.table.applications.values():
            loads = {member.session: 0 for member in application.members.values()}
            for _, session, _ in application.leases.owners():
                if session:
                    loads[session] += 1
            for shard, session, state in application.leases.owners():
                takers = [member for member in application.members.values()
                          if not member.away and application.stream_of[shard] in member.streams
                          and ("app", member.session) not in self.machine.membership.leaving
                          and (not member.leases_max or loads[member.session] < member.leases_max)]
                assert state != "ready" or not takers
                assert (session == 0) == (state == "ready") or state == "paused"
                assert session == 0 or session in application.members

    @invariant()
    def once_drained_the_shares_are_fair(self):
        for application in self.machine.table.applications.values():
            members = [member for member in application.members.values() if member.has_place and not member.away
                       and ("app", member.session) not in self.machine.membership.leaving]
            states = {state for _, _, state in application.leases.owners()}
            alike = len({(member.streams, member.leases_max, member.weight) for member in members}) == 1
            alike = alike and not application.by_load
            at_rest = states <= {"owned"} and len(members) == len(application.members)
            if alike and at_rest and not members[0].leases_max and {*application.streams} <= {*members[0].streams}:
                assert oracles_leases.fair([application.leases.count_of(member.session) for member in members])


LeaseHistory.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_any_history_keeps_the_promises = LeaseHistory.TestCase


def test_the_first_worker_gets_everything_and_the_second_half_of_it_after_the_drain(machine):
    first = join(machine, "w1", found=[stream("s", 4)])
    second = join(machine, "w2")
    view = machine.step(events.Beat("app", first.session, owned(first), 0, 1)).view

    assert len(first.granted) == 4 and second.granted == () and len(view.draining) == 2

    given_up = [lease for lease in owned(first) if lease[0] in view.draining]
    effects = machine.step(events.Release("app", given_up, 2))
    view = machine.step(events.Beat("app", second.session, (), 0, 3)).view

    assert effects.wake == {("app", second.session)}
    assert owned(view) == [(shard, epoch + 1) for shard, epoch in given_up]
    assert not any(lease.previous_owner_crashed for lease in view.granted)


def test_a_silent_worker_loses_its_leases_at_its_time_out_and_not_before(machine):
    first = join(machine, "w1", found=[stream("s", 1)])
    second = join(machine, "w2", now_ms=5_000)

    assert machine.step(events.Tick(MEMBERSHIP_MS - 1)) == events.NOTHING
    machine.step(events.Tick(MEMBERSHIP_MS))
    view = machine.step(events.Beat("app", second.session, (), 0, MEMBERSHIP_MS)).view

    assert owned(view) == [(owned(first)[0][0], 2)] and view.granted[0].previous_owner_crashed
    with pytest.raises(LeaseLost, match="silent for too long"):
        machine.step(events.Beat("app", first.session, owned(first), 0, MEMBERSHIP_MS))


def test_a_closed_connection_leaves_one_heartbeat_to_come_back(machine):
    join(machine, "w1", found=[stream("s", 1)], connection=5)
    stays = join(machine, "w2", connection=6)
    machine.step(events.ConnectionLost(5, 1_000))
    machine.step(events.ConnectionLost(6, 1_000))

    machine.step(events.Beat("app", stays.session, (), 7, 3_999))
    assert machine.step(events.Tick(3_999)).write == ()
    machine.step(events.Tick(4_000))

    assert [member.worker for member in machine.table.applications["app"].members.values()] == ["w2"]


def test_a_restarted_coordinator_moves_no_lease_and_gives_a_full_time_out(machine):
    first = join(machine, "w1", found=[stream("s", 3)])
    restarted = Applications()
    for fact in machine.table.snapshot():
        restarted.table.replay(fact)

    assert restarted.step(events.Restarted(1_000_000)).write == ()
    assert restarted.step(events.Tick(1_000_000 + MEMBERSHIP_MS - 1)).write == ()
    view = restarted.step(events.Beat("app", first.session, owned(first), 0, 1_009_999)).view

    assert view.empty
    assert restarted.step(events.Tick(1_010_000)).write == ()


def test_a_zombie_is_fenced_in_fetch_checkpoint_and_pause(machine):
    first = join(machine, "w1", found=[stream("s", 1)])
    join(machine, "w2")
    shard, lease_epoch = owned(first)[0]
    machine.step(events.Leave("app", first.session, 1))

    with pytest.raises(LeaseLost, match=r"shardId-000000000000 of s moved to worker w2; this worker must stop") as lost:
        machine.check_fetch("app", first.session, shard, lease_epoch)
    assert lost.value.facts["owner"] == "w2" and lost.value.try_
    with pytest.raises(LeaseLost):
        machine.step(events.Pause("app", shard, lease_epoch, ""))
    assert machine.step(events.Checkpoints("app", [Item(shard, lease_epoch, 1, 9)], 0)).results == ("fenced",)


def test_a_worker_that_is_leaving_gets_nothing_new(machine):
    first = join(machine, "w1", found=[stream("s", 2)])
    leases = owned(first)
    machine.step(events.Release("app", leases[:1], 1, first.session))

    assert machine.table.applications["app"].leases.row(leases[0][0])[0] == "ready"
    assert owned(join(machine, "w2")) == [(leases[0][0], 2)]
    machine.step(events.Leave("app", first.session, 2))
    assert machine.table.applications["app"].leases.row(leases[1][0])[0] == "owned"


def test_a_drain_ends_at_its_deadline_and_the_slow_owner_is_told(machine):
    first = join(machine, "w1", found=[stream("s", 2)])
    second = join(machine, "w2", now_ms=0)
    for now_ms in range(0, DRAIN_MS, 5_000):
        machine.step(events.Beat("app", first.session, owned(first), 0, now_ms))
        machine.step(events.Beat("app", second.session, (), 0, now_ms))

    effects = machine.step(events.Tick(DRAIN_MS))
    view = machine.step(events.Beat("app", first.session, owned(first), 0, DRAIN_MS)).view

    assert effects.wake == {("app", first.session), ("app", second.session)}
    assert len(view.lost) == 1 and len(view.draining) == 0


def test_a_worker_that_comes_back_under_its_name_fences_its_elder(machine):
    first = join(machine, "w1", found=[stream("s", 2)])
    again = join(machine, "w1")

    assert [lease.lease_epoch for lease in again.granted] == [2, 2]
    with pytest.raises(LeaseLost):
        machine.step(events.Beat("app", first.session, owned(first), 0, 1))


def test_leases_max_leaves_the_rest_without_an_owner(machine):
    view = join(machine, "w1", found=[stream("s", 5)], leases_max=2)

    assert len(view.granted) == 2
    assert len(join(machine, "w2").granted) == 3


def test_a_second_start_for_the_same_stream_is_dropped(machine):
    join(machine, "w1", found=[stream("s", 1, start=10)])
    join(machine, "w2", found=[stream("s", 1, start=99)])

    assert machine.table.applications["app"].leases.row(stream("s", 1).leases[0][0])[3] == 10


def test_attempts_travel_with_the_lease_and_end_when_the_record_is_finished(machine):
    first = join(machine, "w1", found=[stream("s", 1)])
    shard, lease_epoch = owned(first)[0]
    machine.step(events.Checkpoints("app", [Item(shard, lease_epoch, 1, 5, {5: 3})], 0))
    machine.step(events.Leave("app", first.session, 0))
    second = join(machine, "w2")

    assert second.granted[0].attempts == {5: 3} and second.granted[0].checkpoint == 5
    machine.step(events.Checkpoints("app", [Item(shard, lease_epoch + 1, 1, 6)], 0))
    assert machine.table.applications["app"].attempts == {}


def test_what_lanes_finished_ahead_travels_with_the_lease_and_through_a_snapshot(machine):
    first = join(machine, "w1", found=[stream("s", 1)])
    shard, lease_epoch = owned(first)[0]
    machine.step(events.Checkpoints("app", [Item(shard, lease_epoch, 1, 5, ahead=b"far")], 0))
    machine.step(events.Checkpoints("app", [Item(shard, lease_epoch, 2, 5, ahead=b"farther")], 0))
    machine.step(events.Leave("app", first.session, 0))
    second = join(machine, "w2")

    assert (second.granted[0].checkpoint, second.granted[0].ahead) == (5, b"farther")
    rebuilt = Table()
    for fact in machine.table.snapshot():
        rebuilt.replay(facts.decode(facts.encode(fact)))
    assert rebuilt.applications["app"].ahead == {shard: b"farther"}
    machine.step(events.Checkpoints("app", [Item(shard, lease_epoch + 1, 1, 9)], 0))
    assert machine.table.applications["app"].ahead == {}


def test_a_checkpoint_inside_an_aggregate_travels_with_the_lease_and_through_a_snapshot(machine):
    first = join(machine, "w1", found=[stream("s", 1)])
    shard, lease_epoch = owned(first)[0]
    machine.step(events.Checkpoints("app", [Item(shard, lease_epoch, 1, 5, {}, 7)], 0))
    machine.step(events.Checkpoints("app", [Item(shard, lease_epoch, 1, 5, {}, 7)], 0))
    machine.step(events.Leave("app", first.session, 0))
    second = join(machine, "w2")

    assert (second.granted[0].checkpoint, second.granted[0].sub_sequence) == (5, 7)
    rebuilt = Table()
    for fact in machine.table.snapshot():
        rebuilt.replay(facts.decode(facts.encode(fact)))
    assert rebuilt.applications["app"].sub_sequences == {shard: 7}
    machine.step(events.Checkpoints("app", [Item(shard, lease_epoch + 1, 1, 6)], 0))
    assert machine.table.applications["app"].sub_sequences == {}


def test_state_is_stored_with_its_position_and_a_prepared_checkpoint_waits_for_its_own(machine):
    join(machine, "w1", found=[stream("s", 1)])
    shard = stream("s", 1).leases[0][0]

    def checkpoint(number, sequence, **more):
        machine.step(events.Checkpoints("app", [Item(shard, 1, number, sequence, **more)], 0))

    checkpoint(1, 5, app_state=b"sum=5")
    checkpoint(2, 5, prepared=(9, 2, b"file-9"))
    checkpoint(3, 9)
    second = join(machine, "w1").granted[0]
    assert (second.checkpoint, second.app_state, second.prepared) == (9, b"sum=5", (9, 2, b"file-9"))
    assert image(replayed([facts.encode(fact) for fact in machine.table.snapshot()])) == image(machine.table)

    def again(number, sequence, **more):
        machine.step(events.Checkpoints("app", [Item(shard, 2, number, sequence, **more)], 0))

    machine.step(events.Checkpoints("app", [Item(shard, 1, 4, 20, app_state=b"zombie")], 0))
    again(1, 9, sub_sequence=2, app_state=b"")
    third = join(machine, "w1").granted[0]
    assert (third.checkpoint, third.app_state, third.prepared) == (9, b"", None)


def test_a_log_from_before_states_is_read():
    table = Table()
    machine = Applications()
    log = [*machine.genesis(), *machine.step(events.Join(
        application="app", worker="w1", streams=("s",), found=(stream("s", 1),), membership_ms=MEMBERSHIP_MS,
        leases_max=0, drain_ms=DRAIN_MS, connection=0, now_ms=0, wall_ms=0,
    )).write]
    shard = stream("s", 1).leases[0][0]
    _, changes = machine.table.applications["app"].leases.checkpoint([Item(shard, 1, 1, 3)], 0)
    log.append(msgspec.msgpack.encode([12, "app", changes, 0, {shard: {4: 1}}]))

    for record in log:
        table.replay(facts.decode(record))

    application = table.applications["app"]
    assert application.leases.row(shard)[3] == 3
    assert application.attempts == {shard: {4: 1}} and application.app_states == {} == application.prepared


def test_what_leases_keep_comes_in_answers_of_a_mebibyte(machine):
    view = join(machine, "w1", found=[stream("s", 40)])
    machine.step(events.Checkpoints(
        "app", [Item(shard, epoch, 1, 0, app_state=b"x" * 65_536) for shard, epoch in owned(view)], 0
    ))
    machine.step(events.Leave("app", view.session, 0))

    view = join(machine, "w2")
    held, answers = owned(view), 1
    while len(held) < 40:
        view = machine.step(events.Beat("app", view.session, held, 0, 0)).view
        assert view.granted, "the others follow"
        assert sum(len(lease.app_state) for lease in view.granted) <= 1 << 20
        held += owned(view)
        answers += 1

    assert answers == 3


def test_a_paused_lease_stays_with_its_owner_until_resumed(machine):
    first = join(machine, "w1", found=[stream("s", 1)])
    shard, lease_epoch = owned(first)[0]
    machine.step(events.Pause("app", shard, lease_epoch, "poison"))
    assert machine.step(events.Beat("app", first.session, owned(first), 0, 1)).view.empty

    machine.step(events.Resume("app", 2))
    view = machine.step(events.Beat("app", first.session, owned(first), 0, 3)).view

    assert view.lost == (shard,) and owned(view) == [(shard, 2)]


def test_a_deleted_stream_takes_its_leases_along_and_is_named_as_missing(machine):
    first = join(machine, "w1", streams=("s", "t"), found=[stream("s", 1), stream("t", 1)])
    effects = machine.step(events.StreamsSeen("app", (), ("t",), 1))
    view = machine.step(events.Beat("app", first.session, owned(first), 0, 1)).view

    assert effects.wake == {("app", first.session)}
    assert view.missing == ("t",) and view.lost == (stream("t", 1).leases[0][0],)


def test_a_log_without_its_beginning_counts_from_its_first_whole_snapshot(machine):
    join(machine, "w1", found=[stream("s", 3)])
    snapshot = [facts.encode(fact) for fact in machine.table.snapshot()]
    stale = facts.encode(facts.LeasesDraining("other", (b"z" * 16,)))

    assert image(replayed([stale, *snapshot])) == image(machine.table)
    assert replayed([stale, *snapshot[:-1]]).empty


def test_an_unknown_application_is_said_so(machine):
    with pytest.raises(ApplicationNotFound, match='application "nobody" does not exist'):
        machine.step(events.Beat("nobody", 1, (), 0, 0))


@pytest.mark.parametrize("at_once", [1, 7, 100])
def test_many_hand_overs_one_by_one_end_in_fair_shares(machine, at_once):
    first = join(machine, "w1", found=[stream("s", 100)])
    views = [first, join(machine, "w2"), join(machine, "w3")]
    leases = machine.table.applications["app"].leases
    draining = [(shard, lease_epoch) for shard, lease_epoch in owned(first) if leases.row(shard)[0] == "draining"]

    for start in range(0, len(draining), at_once):
        machine.step(events.Release("app", draining[start : start + at_once], 1))

    assert sorted(leases.count_of(view.session) for view in views) == [33, 33, 34]
    assert {state for _, _, state in leases.owners()} == {"owned"}


def test_the_leases_of_a_worker_that_leaves_are_shared_out_as_each_is_released(machine):
    views = [join(machine, "w1", found=[stream("s", 30)]), join(machine, "w2"), join(machine, "w3")]
    leases = machine.table.applications["app"].leases
    for shard, lease_epoch in owned(views[0]):
        if leases.row(shard)[0] == "draining":
            machine.step(events.Release("app", [(shard, lease_epoch)], 1))
    leaving = views[0].session

    for shard in leases.owned_by(leaving):
        machine.step(events.Release("app", [(shard, leases.row(shard)[2])], 2, leaving))

    assert [leases.count_of(view.session) for view in views] == [0, 15, 15]
