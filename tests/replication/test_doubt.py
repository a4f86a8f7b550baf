"""When copies that doubt themselves may make a leader."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streamkit.replication.candidate import Candidate
from streamkit.replication.events import Sealed
from streamkit.replication.replica_set import Member, ReplicaSet

MEMBERS = tuple(Member(name, name.encode() * 16) for name in "abc")


def sealed(member: Member, *, certain: bool, doubtful: bool, log_end: int = 10) -> Sealed:
    return Sealed(member, 2, certain, 0, log_end, 0, ((1, 0),), doubtful)


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=3, max_size=3),
    st.permutations(range(3)), st.integers(1, 3),
)
def test_doubtful_copies_count_only_when_every_voter_has_answered(flags, order, count):
    candidate = Candidate(ReplicaSet(2, "a", MEMBERS))
    effects = None
    for place in order[:count]:
        certain, doubtful = flags[place]
        effects = candidate.step(sealed(MEMBERS[place], certain=certain, doubtful=doubtful))
        if effects.lead is not None or effects.adopt is not None:
            break
    answered = order[:count]
    surely = sum(flags[place][0] for place in answered)
    perhaps = sum(flags[place][0] or flags[place][1] for place in answered)
    assert effects is not None
    if effects.lead is not None:
        assert 0 in answered
        assert surely >= 2 or (count == 3 and perhaps >= 2)
    elif 0 in answered:
        assert surely < 2 and not (count == 3 and perhaps >= 2)


def test_the_best_log_is_adopted_though_its_copy_doubts_itself():
    candidate = Candidate(ReplicaSet(2, "a", MEMBERS))
    candidate.step(sealed(MEMBERS[0], certain=False, doubtful=True, log_end=8))
    candidate.step(sealed(MEMBERS[1], certain=False, doubtful=True, log_end=12))
    effects = candidate.step(sealed(MEMBERS[2], certain=False, doubtful=True, log_end=8))
    assert effects.adopt is not None and (effects.adopt.node, effects.adopt.start, effects.adopt.end) == ("b", 8, 12)


def test_an_operator_may_accept_a_loss():
    candidate = Candidate(ReplicaSet(2, "a", MEMBERS), accept_loss=True)
    candidate.step(sealed(MEMBERS[0], certain=False, doubtful=False))
    assert candidate.step(sealed(MEMBERS[1], certain=False, doubtful=False)).lead is not None

@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=3, max_size=3), st.integers(1, 3))
def test_what_lies_behind_the_longest_of_a_majority_that_may_vote_was_never_acknowledged(copies, count):
    candidate = Candidate(ReplicaSet(2, "a", MEMBERS))
    for member, (certain, log_end) in zip(MEMBERS[:count], copies, strict=False):
        candidate._answers[member] = sealed(member, certain=certain, doubtful=False, log_end=log_end)
    ends = [log_end for certain, log_end in copies[:count] if certain]

    assert candidate.certain_end == (max(ends) if len(ends) >= 2 else None)
    assert candidate.is_complete == (count == 3)
