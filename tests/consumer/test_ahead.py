"""What lanes finished ahead, packed beside a checkpoint."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from streamkit.consumer.ahead import Marks, pack, unpack

MARKS = st.builds(Marks, st.booleans(), st.lists(st.integers(0, 1 << 50), min_size=1, max_size=256).map(tuple))


@given(st.lists(MARKS, max_size=5), st.integers(0, 1 << 50))
def test_marks_come_back_as_far_as_they_are_ahead_and_never_say_more(owners, position):
    packed = pack(owners, position)

    found = unpack(packed, position)

    assert len(packed) <= 4096
    ahead = [marks for marks in owners[:3] if max(marks.sequences) > position]
    assert found == [
        Marks(marks.by_key, tuple(max(position, sequence) for sequence in marks.sequences)) for marks in ahead
    ][: len(found)]
    assert bool(found) == bool(ahead)


def test_what_a_newer_worker_packed_otherwise_is_no_mark():
    assert unpack(b"", 5) == []
    assert unpack(b"\xc1", 5) == []
    assert unpack(msgspec.msgpack.encode([("key", 3)]), 5) == []
    assert unpack(msgspec.msgpack.encode([(True, [])]), 5) == []
