"""What a copy says to a leader unasked."""

from types import SimpleNamespace

from streamkit.replication.events import Flushed, Offered, Promised
from streamkit.replication.follower import Follower


def test_a_copy_vouches_for_nothing_before_an_offer_of_the_epoch_joined_on():
    log = SimpleNamespace(log_start=0, log_end=48, epochs=[(2, 0)])
    follower = Follower(log, promised=2, certain=True)
    follower.step(Offered(3, 48, 48, 2, 48, 0, 49, 48))
    follower.step(Promised(3))

    assert follower.step(Flushed(48)).answer is None
