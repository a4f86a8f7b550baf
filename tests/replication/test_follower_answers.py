"""What a copy says to a leader unasked."""

from types import SimpleNamespace

from streamkit.replication.effects import Answer, Verdict
from streamkit.replication.events import Appended, Flushed, Offered, Promised, Truncated
from streamkit.replication.follower import Follower


def test_a_copy_vouches_for_nothing_before_an_offer_of_the_epoch_joined_on():
    log = SimpleNamespace(log_start=0, log_end=48, epochs=[(2, 0)])
    follower = Follower(log, promised=2, certain=True)
    follower.step(Offered(3, 48, 48, 2, 48, 0, 49, 48))
    follower.step(Promised(3))

    assert follower.step(Flushed(48)).answer is None


def test_a_copy_that_begins_anew_where_the_leader_keeps_something_takes_what_comes_there():
    log = SimpleNamespace(log_start=0, log_end=0, epochs=[])
    follower = Follower(log, promised=3, certain=False)
    offer = Offered(3, 2000, 2000, 0, 2600, 2000, 2600, 2500)
    assert follower.step(offer).reset == 2000
    log.log_start = log.log_end = 2000
    assert follower.step(Truncated()).answer == Answer(Verdict.MISMATCH, 3, 2000)

    assert follower.step(offer).hear
    assert follower.heard(offer, 2000).answer == Answer(Verdict.ACCEPTED, 3, 2000)


def test_batches_that_come_once_more_are_vouched_for_once_more():
    """The leader may have had no use for the first answer: it was probing lower when it came."""
    log = SimpleNamespace(log_start=0, log_end=22, epochs=[(2, 0), (3, 27)])
    follower = Follower(log, promised=3, certain=True)
    offer = Offered(3, 22, 28, 2, 22, 0, 28, 27)
    assert follower.step(offer).hear
    log.log_end = 28
    follower.step(Appended(28))
    assert follower.heard(offer, 22).answer == Answer(Verdict.ACCEPTED, 3, 22)
    assert follower.step(Flushed(28)).answer == Answer(Verdict.ACCEPTED, 3, 28)

    assert follower.step(offer).hear
    assert follower.heard(offer, 28).answer == Answer(Verdict.ACCEPTED, 3, 28)
    assert follower.step(Flushed(28)).answer is None
