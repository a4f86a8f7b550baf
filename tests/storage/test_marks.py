"""Marks: after the end of a process little is read again; after a loss of power they are not believed."""

from dataclasses import replace

import pytest

from streamkit.storage import LogDirectory
from streamkit.storage.marks import read_mark
from tests.oracles_storage import (
    SHARDS,
    SMALL,
    Machine,
    body_of,
    crc32c,
    is_control,
    read_all,
    seal,
    wait_for,
)
from tests.storage.test_crash import Workload, check
from tests.storage.test_damage import fill, reopened

SHARD = SHARDS[0]
PATH = f"data/shards/{SHARD.hex()}"
RARE = replace(SMALL, checkpoint_ms=3_600_000)     # so that marks alone can save the reading


async def bodies(log):
    return [body_of(batch) for batch in await read_all(log) if not is_control(batch)]


@pytest.mark.parametrize("durability", ["fsync", "os"])
def test_after_a_kill_only_what_follows_the_last_full_segment_is_walked(durability):
    machine = Machine(config=RARE)
    put = [body_of(batch) for batch in fill(machine, 120, close=False, durability=durability)]

    async def look(directory, log, runtime):
        assert len(log.segments) > 4
        assert [segment.measured for segment in log.segments[:-2]] == [False] * (len(log.segments) - 2)
        assert log.segments[-1].measured
        assert await bodies(log) == put
        assert log.damages == []
        assert log.sequence_at_time(0) == 0
        assert log.checkpoint_due

    reopened(machine, look)


def test_after_a_loss_of_power_no_mark_is_believed():
    machine = Machine(config=RARE)
    put = [body_of(batch) for batch in fill(machine, 120, close=False)]
    machine.lose_power()

    async def look(directory, log, runtime):
        assert all(segment.measured for segment in log.segments)
        assert await bodies(log) == put

    reopened(machine, look)


def test_a_mark_brings_producers_and_epochs_along():
    machine = Machine(config=RARE)
    batches = fill(machine, 120, close=False, epoch=3)

    async def look(directory, log, runtime):
        assert log.epochs == [(3, 0)]
        again = log.append(batches[-1], now_ms=0, epoch=3, durability="fsync")
        assert again.duplicate == 1
        next_batch = seal([b"next"], producer=(9, 3, 120))
        assert log.append(next_batch, now_ms=0, epoch=3, durability="fsync").duplicate == 0

    reopened(machine, look)


@pytest.mark.parametrize("number", [0, 1])
def test_a_mark_that_was_cut_short_gives_way_to_the_one_before_it(number):
    machine = Machine(config=RARE)
    put = [body_of(batch) for batch in fill(machine, 120, close=False)]

    async def cut(runtime):
        runtime.disk.open(f"{PATH}/mark.{number}").truncate(150)

    machine.run(cut)

    async def look(directory, log, runtime):
        assert not log.segments[0].measured
        assert await bodies(log) == put

    reopened(machine, look)


def test_a_mark_without_the_segments_it_speaks_of_is_not_used():
    machine = Machine(config=RARE)
    fill(machine, 120, close=False)
    found = {}

    async def remove(runtime):
        disk = runtime.disk
        names = [name for name in disk.list(PATH) if name.endswith(".log")]
        found["all"] = names
        file = disk.open(f"{PATH}/{names[-2]}")
        file.truncate(file.size() - 1)
        file = disk.open(f"{PATH}/{names[-3]}")
        file.truncate(file.size() - 1)
        incarnation = disk.open(f"{PATH}/super").read(16, 4096 + 20)
        found["mark"] = read_mark(disk, PATH, disk.boot_id(), crc32c(SHARD), incarnation, 4)

    machine.run(remove)

    assert len(found["all"]) > 4
    assert found["mark"] is None


def test_an_orderly_stop_leaves_marks_that_recovery_passes_over():
    machine = Machine(config=RARE)
    put = [body_of(batch) for batch in fill(machine, 60)]

    async def look(directory, log, runtime):
        assert not log.checkpoint_due
        assert await bodies(log) == put

    reopened(machine, look)


@pytest.mark.parametrize("power", [False, True], ids=["kill", "power"])
@pytest.mark.parametrize("seed", range(2))
def test_what_was_acknowledged_survives_a_crash_at_any_step_between_rare_checkpoints(seed, power):
    ended, crash_at = False, 1 + seed
    while not ended:
        machine, workload = Machine(seed, RARE), Workload(seed, batches=30)

        async def go(runtime, machine=machine, workload=workload):
            await workload.run(runtime, machine.config)

        async def verify(runtime, machine=machine, workload=workload):
            await check(workload, runtime, machine.config, power_lost=power)

        ended = machine.run(go, crash_at=crash_at)
        if power:
            machine.lose_power()
        machine.run(verify)
        crash_at += 3


def test_dropping_a_shard_while_its_mark_is_written_harms_nothing():
    machine = Machine(config=RARE)

    async def main(runtime):
        directory = await LogDirectory.open("data", runtime=runtime, config=machine.config)
        await directory.create_shards([SHARD])
        log = directory.shards[SHARD]
        for i in range(40):
            log.append(seal([bytes(5000)], producer=(9, 1, i)), now_ms=1, epoch=1, durability="os")
        await directory.drop_shards([SHARD])
        await wait_for(directory, lambda: directory._journal.idle)
        assert directory.failure is None
        await directory.close()

    machine.run(main)
