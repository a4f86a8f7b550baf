"""Batches that are cancelled by their numbers: the answers, and that every copy and every restart gives them again."""

import pytest

from streamkit._core.producers import ProducerTable
from streamkit.errors import Cancelled, InvalidRequest, ProducerFenced, SequenceCorrupt, SequenceGap, ShardClosed
from streamkit.storage import LogDirectory
from tests.oracles_storage import SHARDS, Machine, is_control, seal

SHARD = SHARDS[0]
HOUR_MS = 3600 * 1000


def put(log, sequence, count=1, *, producer=7, epoch=1, now_ms=10):
    batch = seal([b"v"] * count, producer=(producer, epoch, sequence))
    return log.append(batch, now_ms=now_ms, epoch=1, durability="fsync")


def cancel(log, sequence, count=1, *, producer=7, epoch=1, age_ms=0, now_ms=10):
    found = log.cancel(
        producer_id=producer, producer_epoch=epoch, producer_sequence=sequence, records=count, age_ms=age_ms,
        now_ms=now_ms, epoch=1, durability="fsync",
    )  # fmt: skip
    return found.duplicate, found.base_sequence


CANCELLED, STORED, FORGOTTEN, CANCELLED_BEFORE = range(4)


def with_log(*mains):
    """Run each `main(log)` on the same shard, with a restart in between."""
    machine = Machine()
    for index, main in enumerate(mains):

        async def run(runtime, index=index, main=main):
            directory = await LogDirectory.open("data", runtime=runtime, config=machine.config)
            if not index:
                await directory.create_shards([SHARD])
            main(directory.shards[SHARD])
            await directory.close()

        machine.run(run)


def test_a_cancelled_batch_is_refused_and_the_next_number_goes_on():
    def main(log):
        assert put(log, 0, 3).base_sequence == 1
        assert cancel(log, 3, 4) == (CANCELLED, 0)
        assert log.log_end == 8                        # the numbers are used up in the log, too
        with pytest.raises(Cancelled) as refused:
            put(log, 3, 4)
        assert refused.value.facts["end"] == 8         # the refusal counts once the cancelling batch is safe
        assert put(log, 7).base_sequence == 8
        assert is_control(log.read(4, 8, 1)[0])

    with_log(main)


def test_cancelling_again_and_cancelling_what_is_stored_changes_nothing():
    def main(log):
        put(log, 0, 3)
        assert cancel(log, 0, 3) == (STORED, 1)
        assert cancel(log, 3, 2)[0] == CANCELLED
        end = log.log_end
        assert cancel(log, 3, 2)[0] == CANCELLED_BEFORE
        assert cancel(log, 4, 1)[0] == CANCELLED_BEFORE        # a part of it
        assert log.log_end == end

    with_log(main)


def test_a_cancel_obeys_the_order_of_numbers():
    def main(log):
        put(log, 0, 3)
        with pytest.raises(SequenceGap) as gap:
            cancel(log, 5)
        assert gap.value.facts["expected"] == 3
        with pytest.raises(SequenceCorrupt):
            cancel(log, 1, 4)
        put(log, 0, epoch=2)
        with pytest.raises(ProducerFenced):
            cancel(log, 3)
        for wrong in ({"producer": 0}, {"epoch": 1 << 20}, {"count": 0}, {"count": 1 << 17}):
            with pytest.raises(InvalidRequest):
                cancel(log, 0, **wrong)

    with_log(main)


def test_a_first_batch_that_never_came_is_cancelled():
    def main(log):
        assert cancel(log, 0, 5)[0] == CANCELLED
        with pytest.raises(Cancelled):
            put(log, 0, 5)
        assert put(log, 5).duplicate == 0

    with_log(main)


def test_a_producer_that_may_have_been_forgotten_is_never_said_to_be_new():
    """Acceptance: producer 5. Producer state that expired gives "unknown", never a silent duplicate."""

    def main(log):
        assert cancel(log, 3, 2)[0] == FORGOTTEN                       # later numbers of somebody unknown
        assert cancel(log, 0, 2, age_ms=2 * HOUR_MS)[0] == FORGOTTEN   # its table entry may be gone by now
        put(log, 0, 2, now_ms=HOUR_MS)
        for other in range(20, 24):                    # the table holds four; all of them later than an hour
            put(log, 0, producer=other, now_ms=3 * HOUR_MS)
        assert cancel(log, 0, 2, age_ms=2 * HOUR_MS, now_ms=3 * HOUR_MS)[0] == FORGOTTEN
        for number in range(10):
            put(log, 1 + number, producer=23, now_ms=3 * HOUR_MS)
        assert cancel(log, 0, 1, producer=23, now_ms=3 * HOUR_MS)[0] == FORGOTTEN     # stored or cancelled, long ago

    with_log(main)


def test_behind_what_retention_removed_only_young_batches_are_new():
    def main(log):
        put(log, 0, now_ms=HOUR_MS)
        log.move_start(log.log_end)
        assert cancel(log, 0, producer=8, age_ms=10, now_ms=HOUR_MS + 1000)[0] == FORGOTTEN
        assert cancel(log, 0, producer=8, age_ms=10, now_ms=2 * HOUR_MS)[0] == CANCELLED

    with_log(main)


def test_a_closed_shard_says_what_it_has_and_writes_nothing():
    def main(log):
        put(log, 0, 3)
        log.append_control("close", b"{}", now_ms=10, epoch=1, durability="fsync")
        end = log.log_end
        assert cancel(log, 0, 3) == (STORED, 1)
        assert cancel(log, 3, 2)[0] == CANCELLED_BEFORE
        assert cancel(log, 9, 2)[0] == CANCELLED_BEFORE        # a hole before it changes nothing here
        assert cancel(log, 0, producer=8)[0] == CANCELLED_BEFORE
        assert log.log_end == end
        with pytest.raises(ShardClosed):
            put(log, 3, 2)

    with_log(main)


def test_a_restart_remembers_what_was_cancelled():
    def before(log):
        put(log, 0, 3)
        cancel(log, 3, 2)

    def after(log):
        assert cancel(log, 0, 3) == (STORED, 1)
        with pytest.raises(Cancelled):
            put(log, 3, 2)
        assert cancel(log, 3, 2)[0] == CANCELLED_BEFORE
        assert put(log, 5).duplicate == 0

    with_log(before, after, lambda log: put(log, 6))


def test_a_follower_and_one_who_reads_the_log_again_know_what_was_cancelled():
    def main(log):
        put(log, 0, 3)
        cancel(log, 3, 2)
        main.run = b"".join(bytes(batch) for batch in log.read(0, log.log_end, 1 << 20))

    def follow(log):
        log.accept(main.run, epoch=1, durability="fsync")
        assert cancel(log, 3, 2)[0] == CANCELLED_BEFORE
        with pytest.raises(Cancelled):
            put(log, 3, 2)

    with_log(main)
    with_log(follow)


def test_snapshots_and_repairs_keep_the_mark():
    table = ProducerTable(10)
    table.replay(7, 1, 0, 3, 1, 1000)
    table.note_late(7, 1, 3, 2, 4, 1000, 1 | 8)
    table.replay(7, 1, 5, 1, 6, 1000)
    kept, _, _ = ProducerTable.from_bytes(table.to_bytes(0, 0), 10)

    assert kept.to_bytes(0, 0) == table.to_bytes(0, 0)
    assert (1000 | 1 << 63).to_bytes(8, "little") in kept.to_bytes(0, 0)
