"""Which numbers of a channel are settled, and from where the rest must be looked for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from streamkit.errors import InvalidRequest, StreamkitError, TimedOut
from streamkit.producer.entry import PutResult
from streamkit.producer.progress import SNAPSHOTS_MAX, Entry, Mark, Numbered, Progress, read_mark

SHARD = b"s" * 16
OLD = PutResult("orders", "", "", datetime.fromtimestamp(0, UTC), True)


@dataclass
class Handle:
    """As much of a PutHandle as is looked at."""

    outcome: str = "pending"
    error: StreamkitError | None = None

    def exception(self) -> StreamkitError | None:
        return self.error


def progress(settled: dict[str, int] | None = None, stored: tuple[Any, ...] = (), end: int = 0) -> Progress:
    return Progress(settled or {}, stored, {SHARD: end}, OLD)


def put(made: Progress, number: int, handle: Handle | None = None) -> Handle:
    handle = handle or Handle()
    with Numbered(made, "c", number) as numbered:
        assert numbered.handle is None
        numbered.handle = handle  # type: ignore[assignment]
    return handle


def found(number: int, settled: int = -1) -> tuple[Mark, PutResult]:
    return Mark("c", number, settled + 1), OLD._replace(sequence_number=f"at {number}")


def test_settled_is_the_last_number_before_the_first_that_is_not_stored() -> None:
    made = progress()
    first, second, third = (put(made, number) for number in (3, 8, 9))
    assert made.settled("c") is None
    second.outcome = "stored"
    assert made.settled("c") is None
    first.outcome = "stored"
    assert made.settled("c") == 8
    third.outcome = "cancelled"            # nobody wants it any more
    assert made.settled("c") == 9
    assert made.settled("d") is None


def test_the_place_to_look_from_stays_before_what_is_not_settled() -> None:
    made = progress(end=5)
    early = put(made, 1)
    assert made.snapshot({SHARD: 100}) == ({}, {SHARD: 5})
    late = put(made, 2)
    late.outcome = "stored"
    assert made.snapshot({SHARD: 200}) == ({}, {SHARD: 5})
    early.outcome = "stored"
    assert made.snapshot({SHARD: 300}) == ({"c": 2}, {SHARD: 300})
    assert not made.changed


def test_a_put_lies_behind_the_snapshot_before_it() -> None:
    made = progress(end=5)
    made.snapshot({SHARD: 100})
    put(made, 1)
    made.snapshot({SHARD: 200})
    assert made.snapshot({SHARD: 300})[1] == {SHARD: 100}


def test_something_stuck_does_not_collect_snapshots_for_ever() -> None:
    made = progress()
    put(made, 1)
    for end in range(3 * SNAPSHOTS_MAX):
        assert made.snapshot({SHARD: end})[1] == {SHARD: 0}
    assert len(made._snapshots) <= SNAPSHOTS_MAX


def test_what_was_found_in_the_log_is_not_put_again() -> None:
    made = progress({"c": 3}, (found(2), found(5, settled=4), found(7)), end=40)
    assert made.settled("c") == 4          # the record said more than the note
    for number, place in ((1, ""), (4, ""), (5, "at 5"), (7, "at 7")):
        with Numbered(made, "c", number) as numbered:
            assert numbered.handle is not None
            assert numbered.handle.result().sequence_number == place
            assert numbered.handle.result().duplicate
        if number == 5:
            assert made.snapshot({SHARD: 100})[1] == {SHARD: 40}
            put(made, 6).outcome = "stored"
    assert made.snapshot({SHARD: 200}) == ({"c": 7}, {SHARD: 200})


def test_numbers_left_out_by_whoever_resumes_are_let_go_of() -> None:
    made = progress({}, (found(5), found(7)), end=40)
    put(made, 8).outcome = "stored"
    assert made.snapshot({SHARD: 100}) == ({"c": 8}, {SHARD: 100})


def test_a_number_that_failed_may_be_put_again_and_one_in_doubt_not() -> None:
    made = progress()
    failed = put(made, 1)
    in_doubt = put(made, 2)
    with pytest.raises(InvalidRequest):
        made.begin("c", 1)
    failed.outcome, failed.error = "failed", TimedOut("late", sent=False)
    in_doubt.outcome, in_doubt.error = "failed", TimedOut("late", sent=True)
    assert made.begin("c", 2) is in_doubt
    again = made.begin("c", 1)
    assert isinstance(again, Entry)
    made.withdrawn("c", again)             # no room: as if nobody had tried
    put(made, 1).outcome = "stored"
    assert made.settled("c") == 1
    put(made, 1 << 63)
    with pytest.raises(InvalidRequest):
        made.begin("c", 5)


def test_a_put_that_was_not_taken_leaves_nothing() -> None:
    made = progress()
    put(made, 1).outcome = "stored"
    with pytest.raises(RuntimeError), Numbered(made, "c", 9):
        raise RuntimeError("no room")
    put(made, 2).outcome = "stored"
    assert made.settled("c") == 2


def test_a_put_that_was_not_taken_leaves_what_was_found_behind_it() -> None:
    made = progress({}, (found(5), found(7)), end=40)
    with pytest.raises(RuntimeError), Numbered(made, "c", 8):
        raise RuntimeError("no room")
    with Numbered(made, "c", 5) as numbered:
        assert numbered.handle is not None and numbered.handle.result().duplicate


def test_two_puts_that_were_not_taken_in_turn_leave_nothing() -> None:
    made = progress({"c": 4})
    numbered = [Numbered(made, "c", number) for number in (5, 6)]      # both wait for room
    for each in numbered:
        each.__exit__()
    put(made, 5).outcome = "stored"
    assert made.settled("c") == 5


def test_a_header_of_somebody_elses_is_no_mark() -> None:
    made = progress({"c": 3})
    assert read_mark(made.header("c", 9)) == Mark("c", 9, 4)
    for other in (None, b"", b"text", b"\x93\x01\x02\x03", b"\x93\xa1c\xff\x00"):
        assert read_mark(other) is None
