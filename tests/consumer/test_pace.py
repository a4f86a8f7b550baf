"""Where a worker's time goes, as it tells the coordinator."""

from __future__ import annotations

from streamkit._core.batch import Batch, RecordContext, seal, stamped
from streamkit.consumer.pace import Pace


def batch(*keys: str) -> Batch:
    sealed = seal([(key.encode(), b"x", b"", None, None) for key in keys])
    return Batch(stamped(sealed, shard_uuid=b"\1" * 16), RecordContext("s", "shardId-000000000000"))


def test_shares_of_the_time_and_the_key_that_stands_out() -> None:
    pace = Pace(100.0)
    pace.begins(batch("a", "b", "b", "b"))
    pace.ran(4, 0.8)
    pace.waited(1.0)

    told = pace.report(b"s", 102.0, None, 3)

    assert (told.busy, told.waiting, told.record_ms) == (0.4, 0.5, 200.0)
    assert (told.top_key, told.top_key_share, told.throttled) == ("b", 0.75, 3)


def test_a_call_that_has_not_come_back_counts() -> None:
    pace = Pace(100.0)

    assert pace.report(b"s", 110.0, 102.0, 0).busy == 0.8
    assert pace.report(b"s", 115.0, 102.0, 0).busy == 0.9
    pace.ran(1, 14.0)
    assert 0.7 < pace.report(b"s", 117.0, None, 0).busy < 0.8


def test_what_was_long_ago_fades() -> None:
    pace = Pace(0.0)
    pace.begins(batch("old"))
    pace.ran(1, 10.0)
    shares = [pace.report(b"s", 10.0 * turn, None, 0).busy for turn in range(1, 8)]

    assert shares[0] == 1.0 and shares[-1] < 0.02 and shares == sorted(shares, reverse=True)
    assert pace.report(b"s", 100.0, None, 0).top_key == ""


def test_nothing_handled_tells_nothing() -> None:
    told = Pace(0.0).report(b"s", 0.0, None, 0)

    assert (told.busy, told.record_ms, told.top_key, told.top_key_share) == (0.0, 0.0, "", 0.0)
