"""The leader's rules: what a majority holds, of this epoch, is readable; nothing else is."""

from hypothesis import given
from hypothesis import strategies as st

from streamkit.model.stream import Durability
from streamkit.replication.effects import NOTHING
from streamkit.replication.events import EpochStarted, Progressed
from streamkit.replication.leader import Leader
from streamkit.replication.replica import Ends


def on_disk(end):
    return Ends(end, end, end)


def progressed(replica, end, epoch=7):
    return Progressed(replica, epoch, on_disk(end))


def three(ends=(10, 10, 10), start=10):
    leader = Leader(epoch=7, replica=b"a", replicas=dict(zip((b"a", b"b", b"c"), map(on_disk, ends), strict=True)))
    leader.step(EpochStarted(7, start))
    return leader


def test_a_single_copy_serves_its_recovered_log_at_once():
    assert Leader(epoch=2, replica=b"a", replicas={b"a": on_disk(100)}).high_watermark == 100


def test_a_single_copy_advances_with_its_disk():
    leader = Leader(epoch=2, replica=b"a", replicas={b"a": on_disk(0)})
    leader.step(EpochStarted(2, 0))

    assert leader.step(Progressed(b"a", 2, Ends(5, 5, 0))) is NOTHING
    assert leader.step(Progressed(b"a", 2, Ends(5, 5, 5))).high_watermark == 5


def test_the_chosen_durability_says_which_end_counts():
    ends = Ends(appended=30, written=20, durable=10)
    reached = {
        level: Leader(epoch=1, replica=b"a", replicas={b"a": ends}, durability=level).high_watermark
        for level in Durability
    }

    assert reached == {Durability.FSYNC: 10, Durability.OS: 20, Durability.LEADER: 30}


def test_the_high_watermark_is_what_a_majority_holds():
    leader = three()

    assert leader.step(progressed(b"a", 15)) is NOTHING
    assert leader.step(progressed(b"c", 12)).high_watermark == 12
    assert leader.step(progressed(b"b", 20)).high_watermark == 15


def test_a_majority_does_not_commit_batches_of_an_older_epoch():
    leader = three(ends=(18, 10, 10), start=18)

    assert leader.step(progressed(b"b", 18)) is NOTHING
    assert leader.step(progressed(b"a", 19)) is NOTHING
    assert leader.step(progressed(b"b", 19)).high_watermark == 19


def test_what_every_copy_holds_is_committed_in_any_epoch():
    leader = three(ends=(18, 10, 10), start=18)
    leader.step(progressed(b"b", 18))

    assert leader.step(progressed(b"c", 18)).high_watermark == 18


def test_late_repeated_and_foreign_news_change_nothing():
    leader = three()
    leader.step(progressed(b"a", 15))
    leader.step(progressed(b"b", 15))

    assert leader.step(progressed(b"b", 15)) is NOTHING
    assert leader.step(progressed(b"b", 11)) is NOTHING
    assert leader.step(progressed(b"b", 50, epoch=6)) is NOTHING
    assert leader.step(progressed(b"z", 50)) is NOTHING


def slow_high_watermark(ends, start, recovered):
    """By definition: the largest end that enough copies hold."""
    everywhere = max(n for n in range(max(ends) + 1) if all(end >= n for end in ends))
    majority = max(n for n in range(max(ends) + 1) if sum(end >= n for end in ends) > len(ends) / 2)
    return max(recovered, everywhere, majority if majority > start else 0)


@given(
    count=st.integers(1, 5),
    start=st.integers(0, 10),
    news=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 40)), max_size=60),
)
def test_it_agrees_with_the_definition_and_never_falls(count, start, news):
    names = [bytes([i]) for i in range(count)]
    leader = Leader(epoch=7, replica=names[0], replicas={name: on_disk(0) for name in names})
    leader.step(EpochStarted(7, start))
    ends = dict.fromkeys(names, 0)
    before = 0
    for index, end in news:
        name = names[index % count]
        ends[name] = max(ends[name], end)
        effects = leader.step(progressed(name, end))

        expected = slow_high_watermark(list(ends.values()), start, before)
        assert leader.high_watermark == expected >= before
        assert effects.high_watermark == (expected if expected > before else None)
        before = expected


def test_what_all_members_hold_of_an_older_epoch_waits_for_copies_that_could_still_be_adopted():
    members = dict.fromkeys((b"a", b"b", b"c"), on_disk(0))
    leader = Leader(epoch=7, replica=b"a", replicas=members, others=[b"previous"])
    leader.step(EpochStarted(7, 10))
    for name in members:
        assert leader.step(progressed(name, 10)) is NOTHING

    assert leader.step(progressed(b"stranger", 11)) is NOTHING
    assert leader.step(progressed(b"previous", 9)).high_watermark == 9
    leader.step(progressed(b"a", 11))
    assert leader.step(progressed(b"b", 11)).high_watermark == 11
