"""What the store says of a shard's copies, through changes of leader and members."""

from hypothesis import given
from hypothesis import strategies as st

from streamkit.replication.replica_set import Member, ReplicaSet

A, B, C, D = (Member(node, node.encode() * 16) for node in "abcd")
THREE = ReplicaSet(7, "a", (A, B, C), learners=(D,))


def test_every_change_of_leader_or_members_is_a_new_epoch():
    """Members that change within an epoch would be counted by a leader who does not know of it."""
    changed = THREE.changed_to((A, B, D))

    assert (THREE.led_by("b").epoch, THREE.led_by("b").leader) == (8, "b")
    assert (changed.epoch, changed.leader) == (8, "a")
    assert (changed.members, changed.previous, changed.learners) == ((A, B, D), (A, B, C), ())
    assert changed.settled() == ReplicaSet(8, "a", (A, B, D))


@given(st.sets(st.sampled_from((A, B, C, D))))
def test_a_change_that_is_under_way_is_sealed_by_a_majority_of_the_old_and_of_the_new(sealed):
    changed = THREE.changed_to((A, B, D))

    assert THREE.is_sealed_by(sealed) == (len(sealed & {A, B, C}) >= 2)
    assert changed.is_sealed_by(sealed) == (len(sealed & {A, B, C}) >= 2 and len(sealed & {A, B, D}) >= 2)
    assert changed.settled().is_sealed_by(sealed) == (len(sealed & {A, B, D}) >= 2)


def test_whose_log_may_be_adopted_is_everyone_who_holds_it_and_each_once():
    changed = THREE.changed_to((A, D))

    assert changed.voters == (A, D, B, C)
    assert THREE.copies == (A, B, C, D) and THREE.named("d") == D and THREE.named("e") is None
