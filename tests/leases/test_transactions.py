"""Positions and outputs that are decided together: one fact, one owner, nothing forgotten until it is carried out."""

import pytest

from streamkit.errors import InvalidRequest
from streamkit.leases import events, facts
from streamkit.leases.applications import WRITER_KNOWN_MS, Applications
from tests.leases.test_applications import Item, image, join, owned, replayed, stream


class Decider:
    """The machine with its log."""

    def __init__(self):
        self.machine = Applications()
        self.log = list(self.machine.genesis())

    def step(self, event):
        effects = self.machine.step(event)
        self.log += effects.write
        return effects

    def transact(self, shard, epoch, number, sequence, outputs=b"outputs", *, beyond=False):
        item = Item(shard, epoch, number, sequence)
        return self.step(events.Transact("app", item, outputs, 1_000, beyond, 0)).results[0]

    def commit(self, epoch, number, outputs=b"outputs", *, wall_ms=1_000):
        return self.step(events.CommitOutputs(b"w", epoch, number, outputs, wall_ms)).results[0]

    @property
    def left(self):
        return {key: left.outputs for key, left in self.machine.table.left.items()}

    def check_replay(self):
        table = replayed(self.log)
        assert image(table) == image(self.machine.table)
        again = replayed([facts.encode(fact) for fact in image(table)])
        assert (again.left, again.left_bytes, again.writers) == (table.left, table.left_bytes, table.writers)


@pytest.fixture
def decider():
    return Decider()


def joined(decider):
    effects = decider.machine.step(events.Join(
        application="app", worker="w1", streams=("s",), found=(stream("s", 1),), membership_ms=10_000, leases_max=0,
        drain_ms=0, connection=0, now_ms=0, wall_ms=0,
    ))
    decider.log += effects.write
    return owned(effects.view)[0]


def test_a_position_and_its_outputs_are_one_fact(decider):
    shard, epoch = joined(decider)
    before = len(decider.log)

    assert decider.transact(shard, epoch, 1, 10) == "ok"

    assert len(decider.log) == before + 1
    assert decider.left == {("app", shard): b"outputs"}
    assert decider.machine.application("app").leases.row(shard)[3] == 10
    decider.check_replay()


def test_a_repeat_decides_nothing_again(decider):
    shard, epoch = joined(decider)
    decider.transact(shard, epoch, 1, 10, b"first")
    before = len(decider.log)

    assert decider.transact(shard, epoch, 1, 10, b"other") == "ok"
    assert len(decider.log) == before and decider.left == {("app", shard): b"first"}

    decider.step(events.CarriedOut("app", ((shard, epoch, 1),)))
    assert decider.transact(shard, epoch, 1, 10, b"first") == "ok" and decider.left == {}
    decider.check_replay()


def test_the_next_transaction_of_an_owner_says_that_the_one_before_is_carried_out(decider):
    shard, epoch = joined(decider)
    decider.transact(shard, epoch, 1, 10, b"one")
    decider.transact(shard, epoch, 2, 20, b"two!")

    assert decider.left == {("app", shard): b"two!"} and decider.machine.table.left_bytes == 4
    decider.check_replay()


@pytest.mark.parametrize(("epoch_by", "beyond", "answer"), [(1, False, "fenced"), (-1, False, "fenced"),
                                                            (0, True, "beyond")])
def test_what_is_refused_is_refused_whole(decider, epoch_by, beyond, answer):
    shard, epoch = joined(decider)

    assert decider.transact(shard, epoch + epoch_by, 1, 10, beyond=beyond) == answer

    assert decider.left == {} and decider.machine.application("app").leases.row(shard)[3] == 0


def test_a_position_that_falls_takes_its_outputs_with_it(decider):
    shard, epoch = joined(decider)
    decider.transact(shard, epoch, 1, 10, b"one")
    decider.step(events.CarriedOut("app", ((shard, epoch, 1),)))

    assert decider.transact(shard, epoch, 2, 5, b"two") == "behind"
    assert decider.left == {}
    decider.check_replay()


def test_the_next_owner_is_granted_what_was_left_and_says_when_it_is_carried_out(decider):
    shard, epoch = joined(decider)
    decider.transact(shard, epoch, 1, 10)

    view = join(decider.machine, "w1")             # the same worker, begun anew
    grant = view.granted[0]
    assert (grant.left.epoch, grant.left.number, grant.left.outputs) == (epoch, 1, b"outputs")
    with pytest.raises(InvalidRequest):
        decider.machine.step(events.Transact("app", Item(shard, grant.lease_epoch, 1, 20), b"new", 0, False, 0))
    assert decider.machine.application("app").leases.row(shard)[3] == 10

    decider.machine.step(events.CarriedOut("app", ((shard, epoch, 1),)))
    decider.machine.step(events.Transact("app", Item(shard, grant.lease_epoch, 1, 20), b"new", 0, False, 0))
    assert decider.left == {("app", shard): b"new"}


def test_a_late_word_of_an_elder_owner_forgets_nothing_that_is_newer(decider):
    shard, epoch = joined(decider)
    decider.transact(shard, epoch, 1, 10, b"one")
    decider.transact(shard, epoch, 2, 20, b"two")

    decider.step(events.CarriedOut("app", ((shard, epoch, 1), (b"unknown", 1, 1))))

    assert decider.left == {("app", shard): b"two"}


def test_what_was_decided_outlives_the_application(decider):
    shard, epoch = joined(decider)
    decider.transact(shard, epoch, 1, 10)
    decider.step(events.Delete("app"))

    assert decider.left == {("app", shard): b"outputs"}
    decider.check_replay()


def test_without_a_position_the_epoch_of_the_writer_decides(decider):
    assert decider.commit(1, 0, b"") == "ok"
    assert decider.commit(1, 1, b"one") == "ok"
    assert decider.commit(2, 0, b"") == "ok"               # a newer instance takes the name
    assert decider.commit(1, 2, b"late") == "fenced"
    assert decider.left == {("", b"w"): b"one"}
    with pytest.raises(InvalidRequest):
        decider.commit(2, 1, b"two")                       # what the elder one left comes first
    decider.step(events.CarriedOut("", ((b"w", 1, 1),)))
    assert decider.commit(2, 1, b"two") == "ok"
    decider.check_replay()


def test_a_number_that_was_used_up_is_void_for_ever_and_one_that_was_decided_stays_so(decider):
    decider.commit(1, 0, b"")
    assert decider.commit(1, 1, b"") == "void"
    assert decider.commit(1, 1, b"late") == "void" and decider.left == {}

    assert decider.commit(1, 2, b"two") == "ok"
    decider.step(events.CarriedOut("", ((b"w", 1, 2),)))
    assert decider.commit(1, 2, b"two") == "ok" and decider.commit(1, 2, b"") == "ok"
    assert decider.left == {}
    decider.check_replay()


def test_a_writer_that_was_silent_for_a_week_is_forgotten_unless_something_is_left(decider):
    decider.commit(1, 1, b"one")
    decider.step(events.Tick(0, 1_000 + WRITER_KNOWN_MS + 1))
    assert b"w" in decider.machine.table.writers

    decider.step(events.CarriedOut("", ((b"w", 1, 1),)))
    decider.step(events.Tick(0, 1_000 + WRITER_KNOWN_MS))
    assert b"w" in decider.machine.table.writers
    decider.step(events.Tick(0, 1_000 + WRITER_KNOWN_MS + 1))
    assert decider.machine.table.writers == {}
    decider.check_replay()
