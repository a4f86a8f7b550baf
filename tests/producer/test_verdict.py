"""What a refused batch means: retried, renamed or ended, and whether its fate is known."""

from __future__ import annotations

import pytest

from streamkit import errors as e
from streamkit.producer.verdict import Verdict, is_in_doubt, judge


@pytest.mark.parametrize(
    ("error", "verdict", "in_doubt"),
    [
        (e.ConnectionFailed("x", sent=True), Verdict.REFRESH, True),
        (e.ConnectionFailed("x", sent=False), Verdict.REFRESH, False),
        (e.TimedOut("x", sent=True), Verdict.REFRESH, True),
        (e.Throttled("x"), Verdict.RETRY, False),
        (e.DiskFull("x"), Verdict.RETRY, False),
        (e.DiskFailed("x"), Verdict.FAIL, True),
        (e.NodeDraining("x"), Verdict.REFRESH, True),
        (e.SequenceGap("x", expected=3), Verdict.RETRY, False),
        (e.NotLeader("x"), Verdict.REFRESH, True),
        (e.WrongShard("x"), Verdict.REFRESH, False),
        (e.ShardClosed("x"), Verdict.REFRESH, False),
        (e.StreamNotFound("x"), Verdict.REFRESH, False),
        (e.UnknownProducer("x"), Verdict.RENAME, False),
        (e.ProducerFenced("x"), Verdict.FAIL, False),
        (e.RecordTooLarge("x"), Verdict.FAIL, False),
        (e.CorruptBatch("x"), Verdict.FAIL, True),
        (e.InternalError("x"), Verdict.FAIL, True),
        (e.Closed("x", what="connection"), Verdict.RETRY, True),
        (e.Closed("x", what="client"), Verdict.FAIL, True),
    ],
)
def test_each_refusal_has_its_verdict(error: e.StreamkitError, verdict: Verdict, in_doubt: bool) -> None:
    assert judge(error) is verdict
    assert is_in_doubt(error) is in_doubt
