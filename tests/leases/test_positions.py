"""Positions that somebody sets: fenced owners, ancestors first, and the way back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit.errors import Conflict, InvalidRequest
from streamkit.leases import events, facts
from streamkit.leases.applications import UNDO_MS, Applications
from streamkit.leases.promises import HashRange, problems
from streamkit.leases.table import Table
from streamkit.model.limits import HASH_KEYS
from tests.leases.test_applications import Item, image, join, owned, replayed, stream

NAMES = [b"shard-%010d" % n for n in range(7)]
#   0 ─┬─ 2 ─┐
#      └─ 3 ─┴─ 4        1 ─┬─ 5
#                           └─ 6
PARENTS = {2: (0,), 3: (0,), 4: (2, 3), 5: (1,), 6: (1,)}
ENDS = {0: 10, 1: 10, 2: 10, 3: 10}
QUARTER = HASH_KEYS // 4
MAP = [
    HashRange(NAMES[0], 0, 0, 2 * QUARTER, False), HashRange(NAMES[1], 1, 2 * QUARTER, HASH_KEYS, False),
    HashRange(NAMES[2], 2, 0, QUARTER, False), HashRange(NAMES[3], 3, QUARTER, 2 * QUARTER, False),
    HashRange(NAMES[4], 4, 0, 2 * QUARTER, True), HashRange(NAMES[5], 5, 2 * QUARTER, 3 * QUARTER, True),
    HashRange(NAMES[6], 6, 3 * QUARTER, HASH_KEYS, True),
]  # fmt: skip


def resharded() -> events.FoundStream:
    return events.FoundStream(
        "s", tuple((name, n, 0) for n, name in enumerate(NAMES)), 1,
        tuple((NAMES[n], tuple(NAMES[parent] for parent in parents)) for n, parents in PARENTS.items()),
        tuple((NAMES[n], end) for n, end in ENDS.items()),
    )


class Worker:
    """Works through whatever it is granted, as a worker does, and notes what it was granted."""

    def __init__(self, machine: Applications, log: list[bytes]) -> None:
        self.machine, self.log = machine, log
        self.order: list[int] = []
        self.session = 0

    def step(self, event):
        effects = self.machine.step(event)
        self.log += effects.write
        return effects

    def join(self):
        view = self.step(events.Join(
            application="app", worker="w1", streams=("s",), found=(resharded(),), membership_ms=10_000, leases_max=0,
            drain_ms=0, connection=0, now_ms=0, wall_ms=0,
        )).view
        self.session = view.session
        return view

    def work(self, to: int = 10) -> None:
        while view := self.step(events.Beat("app", self.session, (), 0, 0)).view:
            todo = [lease for lease in view.granted if lease.checkpoint < to]
            if not todo:
                return
            for lease in todo:
                self.order.append(NAMES.index(lease.shard))
                item = Item(lease.shard, lease.lease_epoch, to, to, app_state=b"state", ahead=b"marks")
                assert self.step(events.Checkpoints("app", [item], 0)).results == ("ok",)


@pytest.fixture
def worker():
    machine = Applications()
    made = Worker(machine, list(machine.genesis()))
    made.join()
    made.work()
    assert sorted(made.order) == list(range(7))
    made.order.clear()
    return made


def set_positions(worker, places, now_ms=0, wall_ms=0, undo=False):
    return worker.step(events.SetPositions(
        "app", tuple((NAMES[n], sequence, 0) for n, sequence in places.items()), now_ms, wall_ms, undo
    ))


def application(worker):
    return worker.machine.table.applications["app"]


def states(worker):
    return [application(worker).leases.row(name)[0] for name in NAMES]


def test_a_position_before_a_split_reads_the_ancestors_first(worker):
    """Acceptance: a reset to a time that lies before a split reactivates the right ancestors, in order."""
    effects = set_positions(worker, {0: 4, 1: 10, 2: 0, 3: 0, 4: 0, 5: 0, 6: 0})

    assert effects.wake == {("app", worker.session)}, "its owner learns at once"
    assert states(worker) == ["owned", "complete", "waiting", "waiting", "waiting", "owned", "owned"]
    worker.work()
    place = worker.order.index
    assert place(0) < min(place(2), place(3)) and place(4) > max(place(2), place(3)) and 1 not in worker.order
    assert problems(application(worker), {"s": MAP}) == []


def test_an_owner_from_before_is_fenced_and_its_state_put_aside(worker):
    old = {name: application(worker).leases.row(name)[2] for name in NAMES}
    set_positions(worker, {4: 3})
    result = worker.step(events.Checkpoints("app", [Item(NAMES[4], old[NAMES[4]], 2, 12)], 0)).results
    view = worker.step(events.Beat("app", worker.session, [(NAMES[4], old[NAMES[4]])], 0, 0)).view

    assert result == ("fenced",)
    assert view.lost == (NAMES[4],)
    granted = {lease.shard: lease for lease in view.granted}[NAMES[4]]
    assert (granted.checkpoint, granted.lease_epoch, granted.app_state) == (3, old[NAMES[4]] + 2, b"")


def test_a_reset_can_be_undone_with_what_was_kept_and_done_again(worker):
    before = image(worker.machine.table)
    set_positions(worker, dict.fromkeys(range(7), 0), wall_ms=1)
    assert states(worker)[:2] == ["owned", "owned"] and application(worker).ahead == {}
    set_positions(worker, {}, wall_ms=UNDO_MS, undo=True)

    assert states(worker) == ["complete"] * 4 + ["owned"] * 3
    assert application(worker).app_states == dict.fromkeys(NAMES, b"state")
    assert application(worker).ahead == dict.fromkeys(NAMES, b"marks"), "what lanes had finished is not handled again"
    assert [application(worker).leases.row(name)[3] for name in NAMES] == [10] * 7
    assert image(worker.machine.table) != before, "epochs have grown"
    set_positions(worker, {}, wall_ms=UNDO_MS, undo=True)
    assert application(worker).leases.row(NAMES[0])[3] == 0


def test_what_was_never_reset_or_long_ago_cannot_be_undone(worker):
    with pytest.raises(Conflict, match="nothing to undo"):
        set_positions(worker, {}, undo=True)
    set_positions(worker, {4: 0}, wall_ms=1)
    with pytest.raises(Conflict, match="nothing to undo"):
        set_positions(worker, {}, wall_ms=UNDO_MS + 2, undo=True)
    with pytest.raises(InvalidRequest, match="no shard"):
        worker.step(events.SetPositions("app", ((b"x" * 16, 0, 0),), 0, 0))


@given(st.lists(st.dictionaries(st.integers(0, 6), st.integers(0, 12), min_size=1), max_size=4), st.booleans())
def test_any_positions_are_read_parents_first_and_survive_a_replay(resets, undo):
    machine = Applications()
    worker = Worker(machine, list(machine.genesis()))
    worker.join()
    for places in resets:
        worker.work()
        set_positions(worker, places, wall_ms=5)
        assert problems(application(worker), {"s": MAP}) == []
        assert image(replayed(worker.log)) == image(machine.table)
    if resets and undo:
        set_positions(worker, {}, wall_ms=6, undo=True)
    compacted = Table()
    for fact in machine.table.snapshot():
        compacted.replay(facts.decode(facts.encode(fact)))
    assert image(compacted) == image(machine.table)
    worker.order.clear()
    worker.work(12)

    assert problems(application(worker), {"s": MAP}) == []
    assert states(worker) == ["complete"] * 4 + ["owned"] * 3, "nothing is stuck"


def test_a_paused_application_is_drained_and_handed_out_again_when_it_is_resumed():
    machine = Applications()
    machine.genesis()
    view = join(machine, "w1", found=[stream("s", 4)])
    effects = machine.step(events.Hold("app", "a deploy", 0))
    assert effects.wake == {("app", view.session)}
    drained = machine.step(events.Beat("app", view.session, owned(view), 0, 0)).view
    assert len(drained.draining) == 4
    machine.step(events.Release("app", owned(view), 0))

    second = join(machine, "w2")
    assert second.granted == (), "nobody gets one"
    machine.step(events.Tick(60_000))
    assert image(replayed([facts.encode(fact) for fact in machine.table.snapshot()])) == image(machine.table)
    third = join(machine, "w3", now_ms=60_000)
    machine.step(events.Resume("app", 60_000))

    assert len(machine.step(events.Beat("app", third.session, (), 0, 60_000)).view.granted) == 4


def test_what_does_not_hold_is_said(worker):
    table = application(worker)
    table.leases.remove([NAMES[5]])
    table.leases.place(NAMES[0], 3)
    del table.members[worker.session]

    found = problems(table, {"s": MAP})

    assert any("shardId-000000000005 of s is open and has no lease" in line for line in found)
    assert any("belong to no lease" in line for line in found)
    assert any("is no member" in line for line in found)
    table.leases.place(NAMES[2], 0)
    assert any("shardId-000000000004" in line and "before its parents" in line for line in problems(table, {"s": MAP}))
    doubled = [*MAP[4:], HashRange(NAMES[4], 4, 0, HASH_KEYS, True)]
    assert any("belong to two leases" in line for line in problems(table, {"s": doubled}))
