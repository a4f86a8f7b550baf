"""Damage and what becomes of it: files that are gone, ranges that are put back, cut off or removed by retention."""

import asyncio

import pytest

from streamkit.errors import CorruptFile
from streamkit.storage import LogDirectory, NewShard
from tests.oracles_storage import Machine, read_all, seal, wait_for
from tests.storage.test_damage import PATH, SHARD, fill, reopened
from tests.storage.test_follower import INCARNATION, stamped
from tests.storage.test_marks import RARE


async def opened(runtime, config=None):
    directory = await LogDirectory.open("data", runtime=runtime, config=config or RARE)
    await directory.create_shards({SHARD: NewShard(INCARNATION)})
    return directory, directory.shards[SHARD]


def logs_of(machine):
    return sorted(path for path in machine.disk.files() if path.startswith(PATH) and path.endswith(".log"))


def forget(machine, path):
    machine.disk.names.pop(path)
    machine.disk.durable_names.pop(path)


@pytest.mark.parametrize("which", ["only", "last"])
def test_a_log_whose_last_file_is_gone_says_so_when_it_is_opened(which):
    machine = Machine()
    batches = fill(machine, 4 if which == "only" else 30)
    files = logs_of(machine)
    assert (len(files) > 1) == (which == "last")
    forget(machine, files[-1])
    base = int(files[-1].rpartition("/")[2][:-4])

    async def look(directory, log, runtime):
        assert log.log_end == len(batches) + 1
        assert not log.certain
        assert [(damage.sequence, damage.next_sequence) for damage in log.damages] == [(base, log.log_end)]
        log.append(seal([b"new"]), now_ms=runtime.clock.now_ms(), epoch=2, durability="fsync")

    async def again(directory, log, runtime):
        end = len(batches) + 1
        assert [(damage.sequence, damage.next_sequence) for damage in await log.verify()] == [(base, end)]
        run = [stamped(batch, at, 1, 1) for at, batch in enumerate(batches, 1) if at >= base]
        if which == "only":
            return
        assert await directory.repair(log, log.damages[0], run)
        assert await log.verify() == []
        assert len(await read_all(log)) == end + 2

    reopened(machine, look)
    reopened(machine, again)


def test_a_reader_that_finds_a_file_gone_makes_it_known():
    machine = Machine()
    fill(machine, 30)
    middle = logs_of(machine)[1]

    async def look(directory, log, runtime):
        forget(machine, middle)
        segment = next(segment for segment in log.segments if log.segment_path(segment) == middle)
        log.take_segments([known for known in log.segments if known is not segment])
        with pytest.raises(CorruptFile):
            await log.read_cold(segment.base + 1, log.log_end, 1000)
        assert [(damage.sequence, damage.next_sequence) for damage in log.damages] == [(segment.base, segment.end)]

    reopened(machine, look)


def test_a_medium_that_gives_nothing_is_damage_and_a_lack_of_memory_is_not(monkeypatch):
    machine = Machine()
    fill(machine, 4)
    number = [5]

    async def look(directory, log, runtime):
        def fails(*_):
            raise OSError(number[0], "no")

        monkeypatch.setattr("streamkit.storage.shard_log.scan_damage", fails)
        assert [damage.reason for damage in await log.verify()] == ["unreadable"]
        number[0] = 12
        with pytest.raises(OSError, match="no"):
            await log.verify()

    reopened(machine, look)


def test_retention_takes_damage_with_it_and_the_epochs_before_the_last_it_removed():
    machine = Machine()

    async def main(runtime):
        directory, log = await opened(runtime, machine.config)
        for epoch in range(1, 7):
            for number in range(8):
                batch = seal([bytes(9000)], producer=(9, epoch, number))
                log.append(batch, now_ms=runtime.clock.now_ms(), epoch=epoch, durability="fsync")
            await wait_for(directory, lambda: log.durable_end == log.log_end)
        first = log.segments[0]
        log.damaged(first, 0, first.base)
        assert log.damages
        before = list(log.epochs)
        removed = log.segments[-2].end
        await directory._checkpoint(everything=False)
        log.drop_before(removed)
        await wait_for(directory, lambda: log.log_start == removed)
        assert log.damages == []
        assert log.epochs == [pair for pair in before if pair[0] >= log.epochs[0][0]]
        assert [start < removed for _, start in log.epochs[:2]] == [True, False] or len(log.epochs) == 1
        assert log.epochs[0][1] < removed and log.epochs[0][0] > 1
        await directory.close()

    machine.run(main)


@pytest.mark.parametrize("crash", [False, True])
def test_a_log_that_is_cut_where_it_begins_knows_the_epoch_of_its_last_record(crash):
    machine = Machine()
    kept = {}

    async def main(runtime):
        directory, log = await opened(runtime, machine.config)
        for number in range(10):
            batch = seal([bytes(9000)], producer=(9, 3, number))
            log.append(batch, now_ms=runtime.clock.now_ms(), epoch=3, durability="fsync")
        await wait_for(directory, lambda: log.durable_end == log.log_end)
        border = log.segments[-1].base
        await directory._checkpoint(everything=False)
        log.drop_before(border)
        await wait_for(directory, lambda: log.log_start == border)
        await directory.truncate(log, border)
        assert (log.log_start, log.log_end, log.epochs, log.epoch) == (border, border, [(3, 0)], 3)
        kept["border"] = border
        if not crash:
            await directory.close()

    async def again(runtime):
        directory, log = await opened(runtime, machine.config)
        border = kept["border"]
        assert (log.log_start, log.log_end, log.epochs, log.epoch) == (border, border, [(3, 0)], 3)
        await directory.reset(log, start=50, incarnation=INCARNATION)
        assert (log.log_start, log.log_end, log.epochs) == (50, 50, [])
        await directory.close()

    machine.run(main)
    machine.run(again)


@pytest.mark.parametrize("closes", [False, True])
def test_a_cut_that_was_decided_waits_for_space(monkeypatch, closes):
    machine = Machine(config=RARE)

    async def main(runtime):
        directory, log = await opened(runtime)
        for number in range(6):
            log.append(seal([b"x" * 100], producer=(9, 1, number)), now_ms=1, epoch=1, durability="fsync")
        run, full = runtime.executor.run, [True]

        async def refused(work, *arguments):
            if work.__name__ == "_finish" and full[0]:
                raise OSError(28, "no space left on device")
            return await run(work, *arguments)

        monkeypatch.setattr(type(runtime.executor), "run", staticmethod(refused))
        cutting = asyncio.ensure_future(directory.truncate(log, 3))
        await asyncio.sleep(1)
        assert not cutting.done() and directory.failure is None
        if not closes:
            full[0] = False
            await cutting
            assert log.log_end == 3 and log.certain
        await directory.close()
        await asyncio.gather(cutting, return_exceptions=True)

    async def again(runtime):
        directory, log = await opened(runtime)
        assert log.log_end == 3
        await directory.close()

    machine.run(main)
    monkeypatch.undo()
    machine.run(again)


def test_what_the_journal_says_of_a_range_that_was_put_back_counts_no_more():
    """The journal holds batches that were never committed; others were, and were put in their place."""
    machine = Machine(config=RARE)
    other = [stamped(seal([b"y" * 3000], producer=(7, 1, number)), 1 + number, 2, 5) for number in range(4)]

    async def main(runtime):
        directory, log = await opened(runtime)
        for number in range(4):
            log.append(seal([b"x" * 3000], producer=(9, 1, number)), now_ms=1, epoch=1, durability="fsync")
        await wait_for(directory, lambda: log.durable_end == log.log_end and log.segment_end == log.log_end)
        file = runtime.disk.open(f"{PATH}/{0:020d}.log")
        file.write([bytes(file.size() - 124)], 124)
        file.close()
        await log.verify()
        assert [(damage.sequence, damage.next_sequence) for damage in log.damages] == [(1, 5)]
        assert await directory.repair(log, log.damages[0], other)

    async def again(runtime):
        directory, log = await opened(runtime)
        assert [bytes(batch) for batch in await read_all(log)][1:] == other
        await directory.close()

    machine.run(main)
    machine.run(again)


def test_a_log_that_is_certain_but_was_once_damaged_is_read_before_it_is_so_again():
    machine = Machine()
    fill(machine, 4)

    async def suspected(directory, log, runtime):
        log.damaged(log.segments[0], 124, 1)
        log.damages.clear()
        log.facts = type(log.facts)(**{**{name: getattr(log.facts, name) for name in log.facts.__slots__},
                                       "damaged": True})  # fmt: skip

    async def look(directory, log, runtime):
        assert log.certain and log.facts.damaged
        await directory.set_certain(log, True)
        assert log.certain and not log.facts.damaged

    reopened(machine, suspected)
    reopened(machine, look)
