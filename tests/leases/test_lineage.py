"""Parents before children: any history of splits, merges, deaths and checkpoints keeps that promise."""

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from streamkit.errors import LeaseLost
from streamkit.leases import events, facts
from streamkit.leases.applications import Applications
from streamkit.metadata import reshard
from tests.leases.test_applications import DRAIN_MS, MEMBERSHIP_MS, Item, image, replayed
from tests.metadata.test_reshard import carried_out, stream

ENDS = 10                                      # where carried_out closes a shard


def found(described, start=0):
    """What a coordinator tells of a stream. start: of every shard; None: as LATEST would have it."""
    uuids = {shard.ordinal: shard.uuid for shard in described.shards}
    ends = {shard.uuid: shard.end for shard in described.shards if shard.end is not None}
    return events.FoundStream(
        described.name,
        tuple((shard.uuid, shard.ordinal, ends.get(shard.uuid, 7) if start is None else start)
              for shard in described.shards),
        described.created_ms,
        tuple((shard.uuid, tuple(uuids.get(p, b"gone%012d" % p) for p in shard.parents))
              for shard in described.shards if shard.parents),
        tuple(ends.items()),
    )  # fmt: skip


def join(machine, described=None, *, worker="w0", start=0):
    return machine.step(join_event(described, worker=worker, start=start)).view


def join_event(described, *, worker="w0", start=0):
    return events.Join(
        application="app", worker=worker, streams=("orders",), found=(found(described, start),) if described else (),
        membership_ms=MEMBERSHIP_MS, leases_max=0, drain_ms=DRAIN_MS, connection=0, now_ms=0, wall_ms=0,
    )


def states(machine):
    application = machine.table.applications["app"]
    return {ordinal: application.leases.row(shard)[0] for shard, ordinal in application.streams["orders"].items()}


def seen(machine, described):
    return machine.step(events.StreamsSeen("app", (), (), 0, (found(described),)))


def finish(machine, view, described, ordinal, sequence=ENDS, number=1):
    shard = described.shards[ordinal].uuid
    lease_epoch = next(grant.lease_epoch for grant in view.granted if grant.shard == shard)
    return machine.step(events.Checkpoints("app", [Item(shard, lease_epoch, number, sequence)], 0))


@pytest.fixture
def machine():
    made = Applications()
    made.genesis()
    return made


def test_children_wait_until_their_parent_is_processed_to_its_end(machine):
    before = stream()
    view = join(machine, before)
    after = carried_out(before, reshard.split(before, 0))

    seen(machine, after)
    assert states(machine) == {0: "owned", 1: "waiting", 2: "waiting"}
    finish(machine, view, after, 0, ENDS - 1)
    assert states(machine) == {0: "owned", 1: "waiting", 2: "waiting"}
    finish(machine, view, after, 0, number=2)
    assert states(machine) == {0: "complete", 1: "owned", 2: "owned"}


def test_a_merged_child_waits_for_the_last_of_its_parents(machine):
    before = stream(2)
    view = join(machine, before)
    after = carried_out(before, reshard.merge(before, (0, 1)))
    seen(machine, after)

    finish(machine, view, after, 1)
    assert states(machine) == {0: "owned", 1: "complete", 2: "waiting"}
    finish(machine, view, after, 0)
    assert states(machine) == {0: "complete", 1: "complete", 2: "owned"}


def test_a_worker_that_reaches_the_end_before_the_map_is_seen_has_finished_the_shard(machine):
    before = stream()
    view = join(machine, before)
    finish(machine, view, before, 0)

    seen(machine, carried_out(before, reshard.split(before, 0)))

    assert states(machine) == {0: "complete", 1: "owned", 2: "owned"}


def test_an_application_that_starts_at_latest_has_nothing_to_do_with_closed_shards(machine):
    now = stream()
    for _ in range(3):
        now = carried_out(now, reshard.split(now, reshard.open_shards(now)[-1].ordinal))

    view = join(machine, now, start=None)

    open_now = {shard.uuid for shard in reshard.open_shards(now)}
    assert {grant.shard for grant in view.granted} == open_now
    assert set(states(machine).values()) == {"complete", "owned"}


def test_an_application_that_starts_at_the_beginning_reads_generation_after_generation(machine):
    first = stream(2)
    second = carried_out(first, reshard.merge(first, (0, 1)))
    third = carried_out(second, reshard.split(second, 2))

    view = join(machine, third)

    assert states(machine) == {0: "owned", 1: "owned", 2: "waiting", 3: "waiting", 4: "waiting"}
    finish(machine, view, third, 0)
    finish(machine, view, third, 1)
    assert states(machine)[2] == "owned"
    assert states(machine)[3] == "waiting"


def test_when_retention_removes_a_parent_its_children_wait_no_more(machine):
    before = stream()
    join(machine, before)
    after = carried_out(before, reshard.split(before, 0))
    seen(machine, after)

    effects = seen(machine, reshard.with_shards(after, after.shards[1:]))

    assert states(machine) == {1: "owned", 2: "owned"}
    assert effects.wake


def test_a_finished_lease_stays_with_its_owner_until_released_and_is_never_granted_again(machine):
    before = stream()
    view = join(machine, before)
    after = carried_out(before, reshard.split(before, 0))
    seen(machine, after)
    finish(machine, view, after, 0)

    owned = [(grant.shard, grant.lease_epoch) for grant in view.granted]
    assert machine.step(events.Beat("app", view.session, owned, 0, 0)).view.lost == ()
    machine.step(events.Release("app", owned, 0))
    told = machine.step(events.Beat("app", view.session, (), 0, 0)).view
    assert {grant.shard for grant in told.granted} == {shard.uuid for shard in after.shards[1:]}
    join(machine, worker="w1")
    assert states(machine)[0] == "complete"


def test_a_finished_lease_counts_for_nobody(machine):
    before = stream()
    view = join(machine, before)
    after = carried_out(before, reshard.split(before, 0))
    seen(machine, after)
    finish(machine, view, after, 0)

    other = join(machine, worker="w1")     # w0 holds the finished lease and two others; each is to get one
    machine.step(events.Release("app", [
        (shard, 1) for shard, _, state in machine.table.applications["app"].leases.owners() if state == "draining"
    ], 0))

    assert len(machine.step(events.Look("app", other.session, ())).view.granted) == 1


def test_pausing_a_finished_lease_changes_nothing(machine):
    before = stream()
    view = join(machine, before)
    after = carried_out(before, reshard.split(before, 0))
    seen(machine, after)
    finish(machine, view, after, 0)

    machine.step(events.Pause("app", before.shards[0].uuid, 1, "why"))

    assert states(machine)[0] == "complete"


def test_a_log_that_ends_between_a_checkpoint_and_what_follows_is_finished_by_the_restart():
    before = stream()
    machine = Applications()
    log = list(machine.genesis())

    def step(event):
        effects = machine.step(event)
        log.extend(effects.write)
        return effects

    view = step(join_event(before)).view
    after = carried_out(before, reshard.split(before, 0))
    step(events.StreamsSeen("app", (), (), 0, (found(after),)))
    lease_epoch = view.granted[0].lease_epoch
    effects = step(events.Checkpoints("app", [Item(before.shards[0].uuid, lease_epoch, 1, ENDS)], 0))
    assert len(effects.write) > 1

    for cut in range(1, len(effects.write)):
        again = Applications()
        again.table = replayed(log[: len(log) - cut])
        again.step(events.Restarted(0))
        assert states(again) == {0: "complete", 1: "owned", 2: "owned"}


class LineageHistory(RuleBasedStateMachine):
    """Workers over one stream that is resharded under them; the coordinator looks at the map when it likes."""

    def __init__(self):
        super().__init__()
        self.machine = Applications()
        self.log = list(self.machine.genesis())
        self.now_ms = 0
        self.map = stream(2)
        self.seen = self.map
        self.number = 0
        self.sessions: dict[int, set] = {}
        self.finished: set[bytes] = set()                  # processed to the end by somebody who owned it then
        self.learn(self.step(join_event(self.map)).view)

    def step(self, event):
        effects = self.machine.step(event)
        self.log += effects.write
        return effects

    def learn(self, view):
        mine = {lease for lease in self.sessions.get(view.session, set()) if lease[0] not in view.lost}
        for grant in view.granted:
            uuids = {shard.ordinal: shard.uuid for shard in self.seen.shards}
            shard = next(shard for shard in self.seen.shards if shard.uuid == grant.shard)
            kept = {uuids[parent] for parent in shard.parents if parent in uuids}
            assert kept <= self.finished, "a child is handed out when its parents are processed, or gone"
            mine.add((grant.shard, grant.lease_epoch))
        self.sessions[view.session] = mine

    @rule(n=st.integers(0, 2))
    def worker_joins(self, n):
        self.learn(self.step(replace(join_event(self.map), worker=f"w{n}", found=(), now_ms=self.now_ms)).view)

    @rule(data=st.data())
    def worker_beats(self, data):
        session = data.draw(st.sampled_from(sorted(self.sessions)))
        try:
            self.learn(self.step(events.Beat("app", session, sorted(self.sessions[session]), 0, self.now_ms)).view)
        except LeaseLost:
            del self.sessions[session]
            if not self.sessions:
                self.worker_joins(0)

    @precondition(lambda self: any(self.sessions.values()))
    @rule(data=st.data(), to_end=st.booleans())
    def worker_checkpoints(self, data, to_end):
        session = data.draw(st.sampled_from(sorted(s for s, mine in self.sessions.items() if mine)))
        shard, lease_epoch = data.draw(st.sampled_from(sorted(self.sessions[session])))
        closed = any(each.uuid == shard and each.closed_ms is not None for each in self.map.shards)
        self.number += 1
        sequence = ENDS if to_end and closed else ENDS - 1
        item = Item(shard, lease_epoch, self.number, sequence)
        results = self.step(events.Checkpoints("app", [item], 0, now_ms=self.now_ms)).results
        if results == ("ok",) and sequence == ENDS:
            self.finished.add(shard)

    @precondition(lambda self: any(self.sessions.values()))
    @rule(data=st.data())
    def worker_releases(self, data):
        session = data.draw(st.sampled_from(sorted(s for s, mine in self.sessions.items() if mine)))
        lease = data.draw(st.sampled_from(sorted(self.sessions[session])))
        self.sessions[session].discard(lease)
        self.step(events.Release("app", [lease], self.now_ms))

    @rule(count=st.integers(1, 5))
    def stream_is_scaled(self, count):
        if (plan := reshard.scale(self.map, count)) is not None:
            at = max(shard.ordinal for shard in self.map.shards) + 1
            uuids = [bytes(16), *((at + n).to_bytes(16, "big") for n in range(len(plan.children)))]
            entry = reshard.with_ends(reshard.new_entry(self.map, plan, uuids, 0), dict.fromkeys(plan.parents, ENDS))
            self.map = reshard.resharded(self.map, entry, 0)

    @rule()
    def retention_removes_the_oldest(self):
        closed = [shard for shard in self.map.shards if shard.closed_ms is not None]
        if closed:
            left = tuple(shard for shard in self.map.shards if shard is not closed[0])
            self.map = reshard.with_shards(self.map, left)

    @rule()
    def coordinator_looks(self):
        self.seen = self.map
        self.step(events.StreamsSeen("app", (), (), self.now_ms, (found(self.map),)))

    @rule(ms=st.sampled_from([1_000, 12_000, 40_000]))
    def time_passes(self, ms):
        self.now_ms += ms
        self.step(events.Tick(self.now_ms))

    @rule(compacted=st.booleans())
    def coordinator_restarts(self, compacted):
        log = self.log
        if compacted:
            log = [facts.encode(fact) for fact in self.machine.table.snapshot()]
        self.log = list(log)
        again = Applications()
        again.table = replayed(self.log)
        assert image(again.table) == image(self.machine.table)
        self.machine = again
        self.step(events.Restarted(self.now_ms))

    @invariant()
    def every_shard_has_one_lease_and_none_waits_for_nothing(self):
        application = self.machine.table.applications["app"]
        uuids = {shard.ordinal: shard.uuid for shard in self.seen.shards}
        assert set(application.streams["orders"]) == set(uuids.values())
        for shard in self.seen.shards:
            state, session, *_ = application.leases.row(shard.uuid)
            if shard.end is not None and shard.uuid in self.finished:
                assert state == "complete"
            parents = [uuids[parent] for parent in shard.parents if parent in uuids]
            unfinished = any(application.leases.row(parent)[0] != "complete" for parent in parents)
            assert (state == "waiting") == unfinished
            assert not (state == "waiting" and session)


TestLineageHistory = LineageHistory.TestCase
TestLineageHistory.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
