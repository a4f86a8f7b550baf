"""What lanes finished ahead, packed beside a checkpoint."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from streamkit.consumer.ahead import ROWS_MAX, Marks, pack, unpack

SEQUENCES = st.integers(0, 1 << 50)
MARKS = st.builds(
    Marks, st.booleans(), st.lists(SEQUENCES, min_size=1, max_size=256).map(tuple),
    st.dictionaries(st.integers(0, (1 << 64) - 1), SEQUENCES, max_size=ROWS_MAX).map(lambda rows: tuple(rows.items())),
)


@given(st.lists(MARKS, max_size=5), st.integers(0, 1 << 50))
def test_marks_come_back_as_far_as_they_are_ahead_and_never_say_more(owners, position):
    packed = pack(owners, position)

    found = unpack(packed, position)

    assert len(packed) <= 4096
    ahead = [marks for marks in owners[:3] if marks.reach > position]
    assert found == [
        Marks(marks.by_key, tuple(max(position, sequence) for sequence in marks.sequences),
              tuple((row, max(position, sequence)) for row, sequence in marks.rows)) for marks in ahead
    ][: len(found)]
    assert bool(found) == bool(ahead)


def test_marks_of_lanes_alone_are_written_as_they_always_were():
    assert msgspec.msgpack.decode(pack([Marks(True, (7, 9))], 5)) == [[True, [2, 4]]]
    assert unpack(msgspec.msgpack.encode([(True, [2, 4])]), 5) == [Marks(True, (7, 9))]


def test_a_full_worker_and_256_lanes_fit_within_the_bytes_of_a_checkpoint():
    """Within the first 2^24 sequences beyond the position; of those further away the older owners go first."""
    position = 1 << 40
    marks = Marks(True, (position + (1 << 24),) * 256, tuple((2**32 - 1 - n, position + 1000) for n in range(ROWS_MAX)))

    assert unpack(pack([marks], position), position) == [marks]


def test_what_a_newer_worker_packed_otherwise_is_no_mark():
    assert unpack(b"", 5) == []
    assert unpack(b"\xc1", 5) == []
    assert unpack(msgspec.msgpack.encode([("key", 3)]), 5) == []
    assert unpack(msgspec.msgpack.encode([(True, [])]), 5) == []
