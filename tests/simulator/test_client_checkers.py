"""What only a history made by hand shows: the product has no way to break it."""

import pytest

from streamkit._core.batch import seal, stamped
from streamkit.errors import OutcomeUnknown
from streamkit.model.sequence import sequence_number
from streamkit.simulator.checkers import judge
from streamkit.simulator.oracle import UNKNOWN, History

SHARD = b"s" * 16


def test_a_record_beyond_its_shards_range_is_noticed():
    made = History()
    made.putting(b"a", "p", "", 0)
    made.ranges[SHARD] = 0, 1 << 100
    sealed = seal([(b"", b"a", b"", None, b"\x7f" + bytes(15))])
    batch = stamped(sealed, base_sequence=0, epoch=1, append_time_ms=1, shard_uuid=SHARD)

    made.fetched("final", SHARD, 0, [batch], 1)

    assert judge(made) == [f"record 0 of shard {SHARD.hex()[:8]} has a hash key beyond the shard's"]


@pytest.mark.parametrize(
    ("first", "second", "agree"),
    [("stored", "stored", True), ("stored", "forgotten", True), ("stored", "not_stored", False),
     ("not_stored", "stored", False), ("not_stored", "not_stored", True)],
)  # fmt: skip
def test_a_token_is_resolved_once_and_for_all(first, second, agree):
    made = History()
    put = made.putting(b"a", "p", "k", 0)
    put.outcome = UNKNOWN
    number = sequence_number(2, ordinal=0, created_ms=1, arrived_ms=2)
    for outcome in (first, second):
        made.resolved(put, "token", outcome, number if outcome == "stored" else "")

    assert (made.wrong == []) is agree


class Doubtful:
    """The handle of a record of which nobody knows whether it is stored."""

    def __init__(self, token):
        self._error = OutcomeUnknown("nobody knows", sent=True, token=token)

    def exception(self):
        return self._error


@pytest.mark.parametrize(("second", "agree"), [("batch.1", True), ("batch.0", False)])
def test_a_token_is_of_one_record(second, agree):
    made = History()
    made.settled(made.putting(b"a", "p", "k", 0), Doubtful("batch.0"))
    made.settled(made.putting(b"b", "p", "k", 1), Doubtful(second))

    assert (made.wrong == []) is agree


def test_a_record_that_is_put_again_may_be_told_of_its_token_again():
    made = History()
    put = made.putting(b"a", "p", "k", 0)
    for _ in range(2):
        made.settled(put, Doubtful("batch.0"))

    assert made.wrong == []
