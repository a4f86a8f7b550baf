"""The checker is checked: whoever tampers with what was put is found out."""

import time

import pytest

from tests.end_to_end.history import STALE_SECONDS_MAX, History, Stored

COUNT = 200


def put(history, count=COUNT):
    """Puts by two producers, all acknowledged; returns what shard 0 holds, with a note of its own in front."""
    held = [Stored(0, None, 5)]
    for index in range(count):
        name = f"p{index % 2}"
        number, _, value = history.begin_put(name)
        held.append(Stored(len(held), value, 10 + index // 4))
        history.note_stored(name, number, 0, held[-1].sequence)
    return held


def renumbered(records):
    return [Stored(sequence, record.value, record.append_time_ms) for sequence, record in enumerate(records)]


def checked(history, held):
    history.check(0, held)
    history.finish()
    return dict(history.wrong)


def test_what_is_as_it_was_told_is_right():
    history = History(1)
    held = put(history)
    history.note_read(0, time.monotonic(), len(held), held)

    assert checked(history, held) == {} and history.acknowledged == COUNT


@pytest.mark.parametrize("gone", [1, 77, COUNT])
def test_a_lost_record_is_noticed(gone):
    history = History(1)
    held = put(history)

    assert checked(history, renumbered(held[:gone] + held[gone + 1 :]))["lost"] >= 1


def test_a_lost_end_is_noticed_even_when_nothing_but_its_sequence_was_known():
    history = History(1)
    held = put(history)

    wrong = checked(history, held[:-10])

    assert wrong == {"lost": 11}           # ten records, and the end


def test_a_record_that_is_there_twice_is_noticed():
    history = History(1)
    held = put(history)

    assert "duplicated" in checked(history, [*held, Stored(len(held), held[50].value, 10_000)])


def test_two_records_that_changed_places_are_noticed():
    history = History(1)
    held = put(history)
    held[20], held[60] = held[60], held[20]

    assert checked(history, renumbered(held))["reordered"] >= 2


def test_order_within_a_key_is_looked_at_where_no_sequence_was_told():
    history = History(1)
    values = []
    for _ in range(COUNT):
        number, _, value = history.begin_put("p0")
        history.note_stored("p0", number, 0, None)
        values.append(value)

    assert checked(history, renumbered([Stored(0, value, 1) for value in reversed(values)]))["reordered"] > COUNT // 2


def test_an_append_time_that_goes_back_is_noticed():
    history = History(1)
    held = put(history)
    held[100] = Stored(100, held[100].value, 1)

    assert checked(history, held) == {"reordered": 1}


def test_a_record_that_nobody_put_is_noticed():
    history = History(1)
    held = put(history)

    for value in (b"p0 k1 999999", b"p7 k1 3", b"\xff", b"p0 other 4"):
        held.append(Stored(len(held), value, 10_000))
    assert checked(history, held) == {"phantom": 4}


def test_a_record_that_a_reader_saw_and_that_is_another_one_later_is_noticed():
    history = History(1)
    held = put(history)
    number, _, value = history.begin_put("p0")
    history.note_read(0, time.monotonic(), len(held) + 1, [Stored(len(held), value, 10_000)])
    history.note_failed("p0", number, "unknown")

    assert checked(history, held) == {"lost": 1}                   # a reader was told of it
    history.check(0, [*held, Stored(len(held), None, 10_000)])
    assert history.wrong["phantom"] == 1


def test_a_read_that_lacks_what_was_acknowledged_long_before_it_began_is_stale():
    history = History(1)
    held = put(history)
    long_after = time.monotonic() + STALE_SECONDS_MAX + 1

    history.note_read(0, time.monotonic() - 1, len(held) - 1, [])   # it began before the acknowledgement
    assert history.stale_reads == 0
    history.note_read(0, time.monotonic(), len(held) - 1, [])       # a leader that was just replaced
    assert history.stale_reads == 1 and not history.wrong
    history.note_read(0, long_after, 0, [])
    assert history.wrong == {"stale": 1}


def test_a_put_that_failed_may_be_there_or_not_and_one_without_an_answer_is_noticed():
    for there in (True, False):
        history = History(1)
        held = put(history)
        number, _, value = history.begin_put("p0")
        history.note_failed("p0", number, "unknown")
        assert checked(history, held + [Stored(len(held), value, 10_000)] * there) == {}
    history.begin_put("p1")
    history.finish()
    assert history.wrong == {"unanswered": 1}
