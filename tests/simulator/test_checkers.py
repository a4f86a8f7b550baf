"""Each checker on a history made by hand: silent when the promise was kept, outspoken when it was not."""

import pytest

from streamkit._core.batch import seal, stamped
from streamkit.protocol import messages as m
from streamkit.simulator.checkers import judge
from streamkit.simulator.oracle import REFUSED, STORED, History

SHARD = b"s" * 16


def history(*values, stored=True):
    """Puts of one producer and key, stored at 0, 1, … and read back there."""
    made = History()
    for number, value in enumerate(values):
        put = made.putting(value, "p", "k", number)
        if stored:
            put.outcome, put.shard, put.sequence = STORED, SHARD, number
    made.final[SHARD] = dict(enumerate(values))
    return made


def batch(*values, base=0, time_ms=1):
    sealed = seal([(b"k", value, b"", None, None) for value in values])
    return stamped(sealed, base_sequence=base, epoch=1, append_time_ms=time_ms, shard_uuid=SHARD)


def grant(worker, epoch, checkpoint=0):
    shard = m.ShardInfo(0, SHARD, b"\0" * 17, b"\1" + b"\0" * 16, 0, None, (), (), 1, "", "")
    return worker, (m.LeaseGrant("orders", shard, epoch, checkpoint, 0, False),)


def checkpoint(made, worker, epoch, sequence, result="ok", asked=None):
    item = m.CheckpointItem(SHARD, epoch, 1, sequence)
    made.checkpointed(
        worker, made.tick() if asked is None else asked, m.Checkpoint("billing", worker, (item,)),
        m.Checkpointed((result,)),
    )  # fmt: skip


def test_a_history_without_fault_is_passed():
    made = history(b"a", b"b", b"c")
    made.fetched("reader", SHARD, 0, [batch(b"a", b"b"), batch(b"c", base=2)], 3)
    made.granted(*grant("ann", 1))
    checkpoint(made, "ann", 1, 2)
    made.granted(*grant("bob", 2, checkpoint=2))
    made.processed[SHARD] = {0, 1, 2}
    made.final_checkpoints[SHARD] = 3

    assert judge(made) == []


def lose(made):
    del made.final[SHARD][1]


def repeat(made):
    made.final[SHARD][7] = b"a"


def swap(made):
    made.puts[b"a"].number, made.puts[b"b"].number = 1, 0


def invent(made):
    made.fetched("reader", SHARD, 0, [batch(b"nobody put this")], 1)


def read_too_far(made):
    made.fetched("reader", SHARD, 0, [batch(b"a", b"b", b"c")], 2)


def leave_a_gap(made):
    made.fetched("reader", SHARD, 0, [batch(b"b", base=1)], 3)


def lose_what_was_read(made):
    made.puts[b"late"] = made.puts[b"a"]
    made.read[SHARD] = {9: b"late"}


def turn_back_time(made):
    made.fetched("reader", SHARD, 0, [batch(b"a", time_ms=5), batch(b"b", base=1, time_ms=4)], 3)


def take_back_the_high_watermark(made):
    made.told("reader", SHARD, 0, 3)
    made.told("reader", SHARD, 0, 2)


def move_back_the_log_start(made):
    made.told("reader", SHARD, 2, 3)
    made.told("reader", SHARD, 1, 3)


def checkpoint_what_nobody_saw(made):
    made.processed[SHARD] = {0, 2}
    made.final_checkpoints[SHARD] = 3


def grant_twice(made):
    made.granted(*grant("ann", 4))
    made.granted(*grant("bob", 4))


def let_another_checkpoint(made):
    made.granted(*grant("ann", 4))
    checkpoint(made, "bob", 4, 1)


def let_a_zombie_checkpoint(made):
    made.granted(*grant("ann", 4))
    made.granted(*grant("bob", 5))
    checkpoint(made, "ann", 4, 1)


def forget_a_checkpoint(made):
    made.granted(*grant("ann", 4))
    checkpoint(made, "ann", 4, 3)
    made.granted(*grant("bob", 5, checkpoint=1))


def hand_out_after_silence(made):
    made.answered("ann", 1.0)
    made.handed_out("ann", 2.5, 1.0)


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lose, "is not at"),
        (repeat, "and again at"),
        (swap, "lies after number"),
        (invent, "nobody put"),
        (read_too_far, "above 2"),
        (leave_a_gap, "asked"),
        (lose_what_was_read, "is there no more"),
        (turn_back_time, "append times"),
        (take_back_the_high_watermark, "high watermark"),
        (move_back_the_log_start, "log start"),
        (checkpoint_what_nobody_saw, "never processed"),
        (grant_twice, "ann and bob"),
        (let_another_checkpoint, "which is ann's"),
        (let_a_zombie_checkpoint, "had been granted 5"),
        (forget_a_checkpoint, "below the checkpoint 3"),
        (hand_out_after_silence, "hands out records"),
    ],
)
def test_a_broken_promise_is_noticed(break_it, says):
    made = history(b"a", b"b", b"c")

    break_it(made)

    assert any(says in violation for violation in judge(made))


def test_a_checkpoint_that_was_on_its_way_when_the_lease_moved_is_no_fault():
    made = history(b"a")
    made.granted(*grant("ann", 4))
    asked = made.tick()
    checkpoint(made, "ann", 4, 0, asked=asked)
    made.granted(*grant("bob", 5))

    assert judge(made) == []


def test_flipped_bits_excuse_missing_records_but_not_invented_ones():
    made = history(b"a", b"b")
    made.rot = True
    lose(made)

    assert judge(made, rot=True) == []

    invent(made)

    assert judge(made, rot=True) != []


def test_a_record_that_was_cancelled_may_be_nowhere():
    made = history(b"a 1", b"b 2")
    made.puts[b"b 2"].outcome = REFUSED

    assert judge(made) == [f"record b was said not to be stored, and is at {SHARD.hex()[:8]} 1"]

    del made.final[SHARD][1]
    assert judge(made) == []
    made.read[SHARD] = {1: b"b 2"}
    assert "said not to be stored" in judge(made)[0]
