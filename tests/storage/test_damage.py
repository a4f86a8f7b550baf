"""Rot, full disks, failed syncs: what is kept visible, what is refused, and that nothing is guessed."""

import errno
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit.errors import Closed, CorruptFile, DiskFailed, DiskFull
from streamkit.storage import LogDirectory
from tests.oracles_storage import (
    SHARDS,
    SMALL,
    Machine,
    base_of,
    body_of,
    is_control,
    read_all,
    records_of,
    seal,
    wait_for,
)
from tests.storage.test_follower import stamped

SHARD = SHARDS[0]
PATH = f"data/shards/{SHARD.hex()}"


def fill(machine, count=30, *, close=True, size=3000, seed=1, durability="fsync", epoch=1):
    """Put `count` batches and wait until they are durable; returns the batches as sealed."""
    draw = random.Random(seed)
    batches = [seal([draw.randbytes(size)], producer=(9, epoch, i)) for i in range(count)]

    async def main(runtime):
        directory = await LogDirectory.open("data", runtime=runtime, config=machine.config)
        await directory.create_shards([SHARD])
        log = directory.shards[SHARD]
        for batch in batches:
            log.append(batch, now_ms=runtime.clock.now_ms(), epoch=epoch, durability=durability)
            await wait_for(directory, lambda: log.segment_end == log.log_end)
        if close:
            await directory.close()

    machine.run(main)
    return batches


def reopened(machine, look):
    async def main(runtime):
        directory = await LogDirectory.open("data", runtime=runtime, config=machine.config)
        await look(directory, directory.shards[SHARD], runtime)
        await directory.close()

    machine.run(main)


async def salvage(log):
    """Every batch that can be read, stepping over damage where the error says; and the ranges stepped over."""
    found, lost, at = {}, [], log.log_start
    while at < log.log_end:
        try:
            batches = await log.read_cold(at, log.log_end, 8192)
        except CorruptFile as error:
            assert error.facts["next_sequence"] > at
            lost.append((at, error.facts["next_sequence"]))
            at = error.facts["next_sequence"]
            continue
        for batch in batches:
            found[base_of(batch)] = body_of(batch)
            at = base_of(batch) + records_of(batch)
    return found, lost


@given(place=st.floats(0, 0.999), bits=st.integers(1, 255), unclean=st.booleans())
def test_a_flipped_bit_in_a_segment_loses_only_the_batch_it_is_in(place, bits, unclean):
    machine = Machine()
    batches = fill(machine, close=not unclean)
    files = machine.disk.files().items()
    sizes = {path: size for path, size in files if path.startswith(PATH) and path.endswith(".log")}
    path = sorted(sizes)[int(place * len(sizes))]
    machine.disk.rot(path, int(place * sizes[path]), bits)

    async def look(directory, log, runtime):
        found, lost = await salvage(log)
        assert log.log_end == len(batches) + 1
        assert sum(end - start for start, end in lost) <= 1
        for base, body in found.items():
            assert base == 0 or body == body_of(batches[base - 1])
        assert len(found) + len(lost) == len(batches) + 1

    reopened(machine, look)


@given(where=st.floats(0, 0.9999), bits=st.integers(1, 255))
def test_a_flipped_bit_in_the_journal_loses_nothing_that_reached_its_segment(where, bits):
    machine = Machine()
    batches = fill(machine, close=False)
    for path, size in machine.disk.files().items():
        if path.startswith("data/journal/"):
            machine.disk.rot(path, int(where * min(size, 200_000)), bits)

    async def look(directory, log, runtime):
        assert [body_of(b) for b in await read_all(log) if not is_control(b)] == [body_of(b) for b in batches]

    reopened(machine, look)


def test_a_segment_that_lost_synced_bytes_is_damaged_and_its_sequences_are_not_used_again():
    machine = Machine()
    fill(machine, 5)
    path = f"{PATH}/{0:020d}.log"
    inode = machine.disk.names[path]
    del inode.content[4000:]
    del inode.durable[4000:]

    async def look(directory, log, runtime):
        assert log.log_end == 6
        assert not log.certain
        assert [(damage.sequence, damage.next_sequence) for damage in log.damages] == [(2, 6)]
        found, lost = await salvage(log)
        assert (sorted(found), lost) == ([0, 1], [(2, 6)])
        answer = log.append(seal([b"new"]), now_ms=0, epoch=2, durability="fsync")
        assert answer.base_sequence == 7

    reopened(machine, look)
    reopened(machine, lambda directory, log, runtime: expect_ends(log, 8))


async def expect_ends(log, end):
    assert log.log_end == end
    assert sorted((await salvage(log))[0]) == [0, 1, 6, 7]


@pytest.mark.parametrize("restarts", [0, 1, 2, 3])
@pytest.mark.parametrize("rest", ["lost", "zeros"])
@pytest.mark.parametrize("roll", [False, True])
def test_records_lost_at_the_end_of_a_log_are_repaired_after_restarts_and_more_appends(restarts, rest, roll):
    """What comes after the damage goes to another segment: in the same one it takes the place of what is missing."""
    machine = Machine()
    batches = fill(machine, 8, size=9000 if roll else 3000)
    last = sorted(path for path in machine.disk.files() if path.startswith(PATH) and path.endswith(".log"))[-1]
    inode = machine.disk.names[last]
    kept = len(inode.content) - 4000
    for content in (inode.content, inode.durable):
        content[kept:] = b"" if rest == "lost" else bytes(300)
    good = []

    async def restart(directory, log, runtime):
        assert log.log_end == 9
        assert not log.certain
        assert len(log.damages) <= 1

    async def go_on(directory, log, runtime):
        for number in range(3):
            good.append(seal([b"new %d" % number], producer=(9, 2, number)))
            log.append(good[-1], now_ms=runtime.clock.now_ms(), epoch=2, durability="fsync")
        await wait_for(directory, lambda: log.durable_end == log.log_end)

    async def repair(directory, log, runtime):
        assert log.log_end == 13
        await log.verify()
        assert [damage.next_sequence for damage in log.damages] == [9]
        found, lost = await salvage(log)
        assert lost == [(damage.sequence, damage.next_sequence) for damage in log.damages]
        assert {at for at in found if at >= 9} == {9, 10, 11, 12}
        for damage in list(log.damages):
            run = [
                stamped(batch, base, 1, log.last_append_ms - 1) for base, batch in enumerate(batches, 1)
                if damage.sequence <= base < damage.next_sequence
            ]
            assert await directory.repair(log, damage, run)
        assert await log.verify() == []
        await directory.set_certain(log, True)

    async def whole(directory, log, runtime):
        assert log.certain
        assert await log.verify() == []
        assert [body_of(b) for b in await read_all(log) if not is_control(b)] == [body_of(b) for b in batches + good]

    for _ in range(restarts):
        reopened(machine, restart)
    reopened(machine, go_on)
    reopened(machine, repair)
    reopened(machine, whole)


@pytest.mark.parametrize("rot", ["remove", "garbage", "empty"])
def test_an_index_that_is_missing_or_wrong_is_rebuilt(rot):
    machine = Machine()
    batches = fill(machine, 30, size=9000)
    for path in [path for path in machine.disk.files() if path.endswith(".idx")]:
        if rot == "remove":
            del machine.disk.names[path], machine.disk.durable_names[path]
        else:
            inode = machine.disk.names[path]
            junk = b"" if rot == "empty" else random.Random(1).randbytes(len(inode.content))
            inode.content[:] = inode.durable[:] = junk

    async def look(directory, log, runtime):
        for start in (29, 17, 3, 30):
            batch = (await log.read_cold(start, log.log_end, 1))[0]
            assert body_of(batch) == body_of(batches[start - 1])

    reopened(machine, look)


@pytest.mark.parametrize("slots", [(0,), (1,), (0, 1)])
def test_super_slots_may_rot(slots):
    machine = Machine()
    batches = fill(machine, 40)
    for slot in slots:
        machine.disk.rot(f"{PATH}/super", slot * 4096 + 30, 4)

    async def look(directory, log, runtime):
        assert [body_of(b) for b in await read_all(log) if not is_control(b)] == [body_of(b) for b in batches]
        if slots == (0, 1):
            assert not log.certain
        again = log.append(batches[-1], now_ms=0, epoch=2, durability="fsync")
        assert (again.duplicate, again.base_sequence) == (1, 40)

    reopened(machine, look)


def test_duplicates_are_known_across_clean_and_unclean_restarts():
    for close in (True, False):
        machine = Machine()
        batches = fill(machine, 30, close=close)

        async def look(directory, log, runtime, batches=batches):
            answers = [log.append(batch, now_ms=0, epoch=2, durability="fsync") for batch in batches]
            assert [answer.duplicate for answer in answers] == [2] * 22 + [1] * 8
            assert [answer.base_sequence for answer in answers[22:]] == list(range(23, 31))
            assert log.log_end == 31

        reopened(machine, look)


@pytest.mark.parametrize("fail_at", range(1, 40, 3))
def test_a_failed_sync_is_final_and_what_was_acknowledged_is_there_after_a_restart(fail_at):
    machine = Machine(fail_at)
    fill(machine, 3)
    acknowledged = {}

    async def main(runtime):
        directory = await LogDirectory.open("data", runtime=runtime, config=machine.config)
        log = directory.shards[SHARD]
        failures = []
        directory.on_failed.append(failures.append)
        syncs, sync = [0], machine.disk.sync

        def failing(process, inode):
            syncs[0] += 1
            if syncs[0] == fail_at:
                inode.forget_changes(machine.disk.draw)
                raise OSError(errno.EIO, "input/output error")
            sync(process, inode)

        machine.disk.sync = failing
        for i in range(60):
            batch = seal([bytes([i]) * 2000])
            try:
                answer = log.append(batch, now_ms=0, epoch=2, durability="fsync")
            except DiskFailed:
                break
            for _ in range(5):
                await wait_for(directory, lambda: directory._journal.idle or directory.failure is not None)
            if log.durable_end >= answer.end_sequence:
                acknowledged[answer.base_sequence] = body_of(batch)
        machine.disk.sync = sync
        if directory.failure is not None:
            with pytest.raises(DiskFailed):
                log.append(seal([b"x"]), now_ms=0, epoch=2, durability="fsync")
            assert [type(error) for error in failures] == [DiskFailed]
            assert directory.read_only
        await directory.close()

    machine.run(main)
    machine.lose_power()

    async def look(directory, log, runtime):
        found, lost = await salvage(log)
        assert lost == []
        assert {base: found.get(base) for base in acknowledged} == acknowledged

    reopened(machine, look)


@pytest.mark.parametrize("room", range(0, 400_000, 23_000))
def test_a_full_disk_refuses_puts_serves_reads_and_recovers_when_freed(room):
    machine = Machine()
    fill(machine, 3)
    stored = {}

    async def main(runtime):
        directory = await LogDirectory.open("data", runtime=runtime, config=machine.config)
        log = directory.shards[SHARD]
        machine.disk.faults.capacity_bytes = machine.disk.used_bytes + room
        refused = 0
        for i in range(300):
            try:
                batch = seal([bytes([i % 251]) * 5000])
                answer = log.append(batch, now_ms=0, epoch=2, durability=("fsync", "os")[i % 2])
                stored[answer.base_sequence] = body_of(batch)
                await wait_for(directory, lambda: directory._journal.idle or directory._journal.stalled
                               or directory._journal.starved)  # fmt: skip
            except DiskFull:
                refused += 1
                break
        assert refused == 1
        assert directory.read_only
        assert len(await log.read_cold(1, 2, 100)) == 1
        machine.disk.faults.capacity_bytes = 1 << 40
        await wait_for(directory, lambda: directory.read_only is None and directory._journal.idle)
        answer = log.append(seal([b"again"]), now_ms=0, epoch=2, durability="fsync")
        await wait_for(directory, lambda: log.durable_end >= answer.end_sequence)
        await directory.close()

    machine.run(main)
    machine.lose_power()

    async def look(directory, log, runtime):
        found = {base_of(batch): body_of(batch) for batch in await read_all(log)}
        assert {base: found.get(base) for base in stored} == stored

    reopened(machine, look)


def test_a_closed_directory_refuses_puts():
    machine = Machine()

    async def main(runtime):
        directory = await LogDirectory.open("data", runtime=runtime, config=SMALL)
        await directory.create_shards([SHARD])
        log = directory.shards[SHARD]
        await directory.close()
        await directory.close()
        with pytest.raises(Closed):
            log.append(seal([b"x"]), now_ms=0, epoch=1, durability="fsync")

    machine.run(main)


def test_a_foreign_identity_is_refused_by_name():
    machine = Machine()
    fill(machine, 1)
    machine.disk.rot("data/node.id", 20, 1)

    with pytest.raises(CorruptFile, match=r"node\.id"):
        machine.run(lambda runtime: LogDirectory.open("data", runtime=runtime, config=SMALL))


@pytest.mark.parametrize("behind", [0, 1, 2])          # so many groups were written after it
@pytest.mark.parametrize("size", [300, 3000])          # larger ones skip the journal: docs/decisions/0010
def test_a_journal_write_that_landed_a_sector_too_far_is_found_after_a_power_loss(size, behind):
    machine = Machine(7)
    batches = [seal([bytes([i]) * size], producer=(9, 1, i)) for i in range(6)]

    async def write(runtime):
        directory = await LogDirectory.open("data", runtime=runtime, config=machine.config)
        await directory.create_shards([SHARD])
        log = directory.shards[SHARD]
        for batch in batches:
            machine.disk.misdirected = int(batch is batches[-1 - behind])
            log.append(batch, now_ms=1, epoch=1, durability="fsync")
            await wait_for(directory, lambda: log.durable_end == log.log_end)
        assert machine.disk.damaged

    machine.run(write)
    machine.lose_power()

    async def look(directory, log, runtime):
        if log.certain:
            found = [body_of(batch) for batch in await read_all(log) if not is_control(batch)]
            assert found == list(map(body_of, batches))

    reopened(machine, look)


async def put_in_epochs(runtime, machine, known):
    directory = await LogDirectory.open("data", runtime=runtime, config=machine.config)
    await directory.create_shards([SHARD])
    log = directory.shards[SHARD]
    for epoch in (1, 3, 4, 9):
        log.start_epoch(epoch, 1, True)
        for i in range(9):
            log.append(seal([bytes(3000)], producer=(9, epoch, i)), now_ms=1, epoch=epoch, durability="fsync")
            await wait_for(directory, lambda: log.segment_end == log.log_end)
    known.update(epochs=list(log.epochs), end=log.log_end, segments=[segment.base for segment in log.segments])
    await directory.close()


@pytest.mark.parametrize("position", [0, 3, 5, 9, 30, None])
def test_epochs_whose_file_is_unsound_are_read_from_the_batches(position):
    machine, known = Machine(), {}
    machine.run(lambda runtime: put_in_epochs(runtime, machine, known))
    if position is None:
        machine.disk.names.pop(f"{PATH}/epochs")
        machine.disk.durable_names.pop(f"{PATH}/epochs")
    else:
        machine.disk.rot(f"{PATH}/epochs", position, 4)

    async def look(directory, log, runtime):
        assert (log.epochs, log.epoch, log.log_end, log.certain) == (known["epochs"], 9, known["end"], True)

    reopened(machine, look)
    machine.lose_power()
    reopened(machine, look)


def test_epochs_that_cannot_be_read_anywhere_count_as_the_last_and_the_copy_does_not_vote():
    machine, known = Machine(), {}
    machine.run(lambda runtime: put_in_epochs(runtime, machine, known))
    machine.disk.rot(f"{PATH}/epochs", 9, 4)
    broken = known["segments"][1]
    machine.disk.rot(f"{PATH}/{broken:020d}.log", 20, 1)

    async def look(directory, log, runtime):
        assert not log.certain and log.facts.damaged
        true = [epoch for epoch, start in known["epochs"] if start < broken]
        assert log.epochs == [*known["epochs"][: len(true)], (9, broken)]

    reopened(machine, look)
