"""Cuts beside everything else that goes on: marks, readers, sums, shutdown, a disk without room."""

import asyncio
import gc
from dataclasses import replace

import pytest

from streamkit.errors import DiskFull
from streamkit.storage import LogDirectory, NewShard, Scrubber, ShardLog
from tests.oracles_storage import SHARDS, SMALL, Machine, SimulatedClock, read_all, seal, wait_for
from tests.storage.test_follower import INCARNATION

SHARD = SHARDS[0]
PATH = f"data/shards/{SHARD.hex()}"
RARE = replace(SMALL, checkpoint_ms=3_600_000)


async def opened(runtime, config=RARE):
    directory = await LogDirectory.open("data", runtime=runtime, config=config)
    await directory.create_shards({SHARD: NewShard(INCARNATION)})
    return directory, directory.shards[SHARD]


async def put(directory, log, count, *, epoch, producer=9, size=5000):
    """Batches that all have one size, so that another history rolls its segments at the same sequences."""
    for number in range(count):
        log.append(seal([bytes(size)], producer=(producer, epoch, number)), now_ms=number, epoch=epoch,
                   durability="fsync")  # fmt: skip
        await asyncio.sleep(0)
    await wait_for(directory, lambda: log.durable_end == log.log_end and log.segment_end == log.log_end)


def test_a_mark_from_before_a_cut_is_not_believed_after_it():
    machine = Machine(config=RARE)
    kept = {}

    async def before(runtime):
        directory, log = await opened(runtime)
        await put(directory, log, 30, epoch=1)
        await directory._marks.drained()
        first, third = log.segments[1].base, log.segments[2].base
        assert runtime.disk.exists(f"{PATH}/mark.0") and runtime.disk.exists(f"{PATH}/mark.1")
        await directory.truncate(log, first - 2)
        await put(directory, log, 1, epoch=2, producer=8, size=10_000)
        await put(directory, log, 15, epoch=2, producer=7)         # over the border where the old mark was taken
        assert log.segments[2].base == third and len(log.segments) == 3
        await directory._marks.drained()
        kept["epochs"], kept["producers"] = list(log.epochs), len(log.producers)
        kept["batches"] = [bytes(batch) for batch in await read_all(log)]

    async def after(runtime):
        directory, log = await opened(runtime)
        assert log.epochs == kept["epochs"]
        assert len(log.producers) == kept["producers"]
        assert [bytes(batch) for batch in await read_all(log)] == kept["batches"]
        assert log.damages == []
        await directory.close()

    machine.run(before)
    machine.run(after)


def test_a_mark_that_waited_for_the_cut_is_not_written_after_it(monkeypatch):
    machine = Machine(config=RARE)

    async def main(runtime):
        directory, log = await opened(runtime)
        await put(directory, log, 40, epoch=1)
        await directory._marks.drained()
        full = log.segments[0]
        written = []
        run = runtime.executor.run

        async def noted(work, *arguments):
            if work.__name__ == "begin_cut":
                directory._marks.rolled(log, full)                 # it waits until the log is not being decided on
                await asyncio.sleep(0)
            if work.__name__ == "write_mark":
                written.append(log.cuts)
            if work.__name__ == "_finish":
                for _ in range(50):
                    await asyncio.sleep(0.01)
            return await run(work, *arguments)

        monkeypatch.setattr(type(runtime.executor), "run", staticmethod(noted))
        await directory.truncate(log, 3)
        await directory._marks.drained()
        assert written == []
        assert not runtime.disk.exists(f"{PATH}/mark.0") and not runtime.disk.exists(f"{PATH}/mark.1")
        await put(directory, log, 3, epoch=2)
        await directory.close()

    machine.run(main)


def test_a_cut_whose_caller_is_cancelled_is_finished_all_the_same(monkeypatch):
    machine = Machine(config=RARE)

    async def main(runtime):
        directory, log = await opened(runtime)
        await put(directory, log, 20, epoch=1)
        run, started, order = runtime.executor.run, asyncio.Event(), []

        async def in_a_thread(work, *arguments):
            """As real threads do it: the work goes on when nobody waits for it any more."""

            async def thread():
                if work.__name__ in ("_finish", "write_checkpoint"):
                    order.append(work.__name__)
                    started.set()
                    await asyncio.sleep(0.5)
                    order.append("done")
                return await run(work, *arguments)

            return await asyncio.shield(asyncio.get_running_loop().create_task(thread()))

        monkeypatch.setattr(type(runtime.executor), "run", staticmethod(in_a_thread))
        cut = asyncio.get_running_loop().create_task(directory.truncate(log, 5))
        await started.wait()
        cut.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cut
        await directory.close()
        assert order == ["_finish", "done", "write_checkpoint", "done"]

    async def after(runtime):
        directory, log = await opened(runtime)
        assert (log.log_end, log.damages) == (5, [])
        await directory.close()

    machine.run(main)
    monkeypatch.undo()
    machine.run(after)


def test_promises_whose_caller_is_cancelled_are_not_written_twice_at_once(monkeypatch):
    machine = Machine(config=RARE)

    async def main(runtime):
        directory, log = await opened(runtime)
        run, writing, most = runtime.executor.run, [], [0]

        async def in_a_thread(work, *arguments):
            async def thread():
                if work.__name__ == "_put":
                    writing.append(1)
                    most[0] = max(most[0], len(writing))
                    await asyncio.sleep(0.1)
                    writing.pop()
                return await run(work, *arguments)

            return await asyncio.shield(asyncio.get_running_loop().create_task(thread()))

        monkeypatch.setattr(type(runtime.executor), "run", staticmethod(in_a_thread))
        loop = asyncio.get_running_loop()
        first = loop.create_task(directory.promise({SHARD: 3}))
        second = loop.create_task(directory.promise({SHARD: 4}))
        await asyncio.sleep(0.01)
        first.cancel()
        await second
        assert log.promised_epoch == 4
        assert most == [1]
        await directory.close()

    machine.run(main)


def test_becoming_certain_on_a_full_disk_is_refused_and_can_be_done_later(monkeypatch):
    machine = Machine(config=RARE)

    async def main(runtime):
        directory, log = await opened(runtime)
        await put(directory, log, 20, epoch=1)
        await directory._marks.drained()
        await directory.set_certain(log, False)
        run, full = runtime.executor.run, [True]

        async def refused(work, *arguments):
            if work.__name__ == "write_checkpoint" and full[0]:
                raise OSError(28, "no space left on device")
            return await run(work, *arguments)

        monkeypatch.setattr(type(runtime.executor), "run", staticmethod(refused))
        with pytest.raises(DiskFull):
            await directory.set_certain(log, True)
        assert directory.failure is None
        assert not log.certain and log.checkpoint_due
        full[0] = False
        await directory.set_certain(log, True)
        assert log.certain and log.synced_end == log.log_end
        assert log.sealed_new == []
        await directory.close()

    machine.run(main)


def test_a_reader_that_waited_for_the_disk_while_the_log_was_cut_gets_nothing_and_no_damage(monkeypatch):
    machine = Machine(config=RARE)
    machine.disk.faults = replace(machine.disk.faults, cold=1.0)

    async def main(runtime):
        directory, log = await opened(runtime)
        await put(directory, log, 40, epoch=1)
        run = runtime.executor.run

        async def cut_first(work, *arguments):
            if work.__name__ == "_warm" and log.cuts == 0:
                await directory.truncate(log, 6)
            return await run(work, *arguments)

        monkeypatch.setattr(type(runtime.executor), "run", staticmethod(cut_first))
        log.forget_tail()
        assert await log.read_cold(9, 12, 100_000) == []
        assert log.damages == []
        await directory.close()

    machine.run(main)


@pytest.mark.parametrize("place", [3, 9, 20])
def test_sums_made_while_the_log_is_cut_find_no_damage(monkeypatch, place):
    machine = Machine(config=RARE)

    async def main(runtime):
        directory, log = await opened(runtime)
        await put(directory, log, 40, epoch=1)
        await directory._marks.drained()
        run = runtime.executor.run
        works = {"_digest", "_verify"}

        async def cut_first(work, *arguments):
            if work.__name__ in works:
                works.discard(work.__name__)
                await directory.truncate(log, place)
                await put(directory, log, 12, epoch=log.epoch + 1)
            return await run(work, *arguments)

        monkeypatch.setattr(type(runtime.executor), "run", staticmethod(cut_first))
        again = await log.digest(0, 30)
        assert log.damages == []
        assert again == await log.digest(0, 30)
        assert await log.verify() == []
        assert log.damages == []
        await directory.close()

    machine.run(main)


@pytest.mark.parametrize(("errno", "damaged"), [(5, True), (24, False), (12, False)], ids=["EIO", "EMFILE", "ENOMEM"])
def test_the_scrubber_takes_only_what_the_medium_says_for_damage(monkeypatch, errno, damaged):
    machine = Machine(config=RARE)

    async def main(runtime):
        directory, log = await opened(runtime)
        await put(directory, log, 20, epoch=1)
        run = runtime.executor.run

        async def refused(work, *arguments):
            if work.__name__ == "_step":
                raise OSError(errno, "said the system")
            return await run(work, *arguments)

        monkeypatch.setattr(type(runtime.executor), "run", staticmethod(refused))
        scrubber = Scrubber(directory, SimulatedClock(asyncio.get_running_loop()), 1 << 30, lambda log, damage: None)
        scrubber.start()
        await wait_for(directory, lambda: scrubber.passes == 1)
        await scrubber.stop()
        assert bool(log.damages) == damaged
        await directory.close()

    machine.run(main)


def test_shards_that_were_dropped_are_not_kept_by_what_orders_the_tails():
    machine = Machine(config=SMALL)

    async def main(runtime):
        directory, _ = await opened(runtime, replace(SMALL, tail_bytes=1 << 30))
        for number in range(100):
            uuid = bytes([9, number]) * 8
            await directory.create_shards([uuid])
            log = directory.shards[uuid]
            for i in range(10):
                log.append(seal([b"x"]), now_ms=i, epoch=1, durability="os")
            await wait_for(directory, lambda log=log: log.segment_end == log.log_end)
            await directory.drop_shards([uuid])
            del log
        await asyncio.sleep(3)
        directory.take_progressed()
        gc.collect()
        assert sum(isinstance(each, ShardLog) and each.dropped for each in gc.get_objects()) < 60
        assert directory.tail_bytes == 0
        await directory.close()

    machine.run(main)


def test_a_cut_into_damage_leaves_nothing_of_what_was_cut_and_a_copy_that_does_not_vote():
    machine = Machine(config=RARE)
    kept = {}

    async def main(runtime):
        directory, log = await opened(runtime)
        await put(directory, log, 11, epoch=1)                     # 0: the epoch's start; 1 .. 12: one batch each
        batches = [bytes(batch) for batch in await read_all(log)]
        file = runtime.disk.open(f"{PATH}/{0:020d}.log")
        position = sum(len(batch) for batch in batches[:5])
        for batch in batches[5:8]:                                 # headers of 5, 6 and 7
            file.write([b"\xff" * 40], position)
            position += len(batch)
        file.close()
        await directory.truncate(log, 7)
        assert log.log_end == 5 and not log.certain and log.damages == []
        await put(directory, log, 6, epoch=2, producer=8)
        kept["batches"] = [bytes(batch) for batch in await read_all(log)]
        assert kept["batches"][:5] == batches[:5] and len(kept["batches"]) == 12
        log.forget_tail()
        assert [bytes(batch) for batch in await read_all(log)] == kept["batches"]

    async def after(runtime):
        directory, log = await opened(runtime)
        assert [bytes(batch) for batch in await read_all(log)] == kept["batches"]
        assert log.damages == [] and not log.certain
        await directory.close()

    machine.run(main)
    machine.run(after)
