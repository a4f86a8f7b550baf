import asyncio
import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit.errors import DataDirectoryLocked
from streamkit.runtime.interfaces import FlushWrite
from streamkit.simulator.disk import SECTOR_BYTES, DiskFaults, DiskOfProcess, SimulatedDisk
from streamkit.simulator.loop import Gone, Process, SimulatedLoop


def machine(seed=1, **faults):
    disk = SimulatedDisk(seed, DiskFaults(**faults))
    process = Process("node")
    disk.crash = process.kill
    return disk, process, DiskOfProcess(disk, process)


def after_power_loss(disk):
    disk.lose_power()
    return DiskOfProcess(disk, Process("again"))


def test_files_read_back_what_was_written():
    _, _, view = machine()
    view.make_directory("a/b")
    file = view.open("a/b/c", create=True)

    file.write([b"hello ", b"world"], 3)

    assert file.read(100, 0) == b"\0\0\0hello world"
    assert view.open("a/b/c").size() == 14
    assert view.list("a") == ["b"]
    assert view.list("a/b") == ["c"]


@pytest.mark.parametrize("seed", range(20))
def test_what_was_synced_survives_a_loss_of_power(seed):
    disk, _, view = machine(seed)
    view.make_directory("d")
    view.sync_directory("")
    file = view.open("d/f", create=True)
    view.sync_directory("d")
    file.write([b"x" * 2000], 0)
    file.sync()
    file.write([b"y" * 1000], 2000)

    found = after_power_loss(disk).open("d/f").read(9999, 0)

    assert found[:2000] == b"x" * 2000
    assert set(found[2000:]) <= {0, ord("y")}


@given(st.integers(0, 10_000), st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 1500)), max_size=6))
def test_every_sector_is_one_of_its_versions_after_a_loss_of_power(seed, writes):
    disk, _, view = machine(seed)
    file = view.open("f", create=True)
    file.write([bytes(4096)], 0)
    file.sync()
    view.sync_directory("")
    versions = [file.read(4608, 0).ljust(4608, b"\0")]
    for number, (position, size) in enumerate(writes):
        file.write([bytes([number + 1]) * size], position)
        versions.append(file.read(4608, 0).ljust(4608, b"\0"))

    found = after_power_loss(disk).open("f").read(9999, 0).ljust(4608, b"\0")

    for low in range(0, 4608, SECTOR_BYTES):
        sector = found[low : low + SECTOR_BYTES]
        assert any(sector == version[low : low + SECTOR_BYTES] for version in versions) or not sector.strip(b"\0")


def test_some_seed_tears_a_write_and_some_seed_loses_it_all():
    outcomes = set()
    for seed in range(60):
        disk, _, view = machine(seed)
        file = view.open("f", create=True)
        view.sync_directory("")
        file.write([b"x" * 4 * SECTOR_BYTES], 0)
        found = after_power_loss(disk).open("f").read(9999, 0)
        outcomes.add(tuple(found[low : low + 1] for low in range(0, 4 * SECTOR_BYTES, SECTOR_BYTES)))

    assert (b"x",) * 4 in outcomes
    assert any(b"" in outcome for outcome in outcomes)
    assert any(b"\0" in outcome and b"x" in outcome for outcome in outcomes)


def test_names_that_were_not_synced_may_be_lost_and_renames_are_whole():
    outcomes = set()
    for seed in range(40):
        disk, _, view = machine(seed)
        old = view.open("name", create=True)
        old.write([b"old"], 0)
        old.sync()
        view.sync_directory("")
        new = view.open("name.new", create=True)
        new.write([b"new"], 0)
        new.sync()
        view.rename("name.new", "name")
        again = after_power_loss(disk)
        outcomes.add((tuple(again.list("")), again.open("name").read(9, 0)))

    assert outcomes == {(("name",), b"old"), (("name", "name.new"), b"old"), (("name",), b"new")}


def test_the_end_of_a_process_loses_nothing_but_its_locks():
    disk, process, view = machine()
    view.lock("lock")
    file = view.open("f", create=True)
    file.write([b"unsynced"], 0)
    boot = view.boot_id()
    other = DiskOfProcess(disk, Process("other"))
    with pytest.raises(DataDirectoryLocked):
        other.lock("lock")

    process.kill()

    other.lock("lock")
    assert other.open("f").read(99, 0) == b"unsynced"
    assert other.boot_id() == boot
    file.write([b"from beyond"], 0)
    assert other.open("f").read(99, 0) == b"unsynced"
    disk.lose_power()
    assert other.boot_id() != boot


@pytest.mark.parametrize("step", range(1, 7))
def test_a_crash_can_be_had_at_every_step(step):
    disk, process, view = machine()
    disk.crash_at = step

    with pytest.raises(Gone):
        for number in range(3):
            file = view.open(f"f{number}", create=True)
            file.write([b"some bytes"], 0)

    assert process.gone
    assert disk.steps == step


def test_a_full_disk_takes_what_fits_and_says_so():
    _, _, view = machine(capacity_bytes=100)
    file = view.open("f", create=True)
    file.write([bytes(90)], 0)

    with pytest.raises(OSError) as caught:
        file.write([bytes(20)], 90)

    assert caught.value.errno == errno.ENOSPC
    assert file.size() == 100
    assert view.free_bytes("") == 0
    view.remove("f")
    assert view.free_bytes("") == 100


def test_after_a_failed_sync_the_bytes_may_never_reach_the_disk():
    outcomes = set()
    for seed in range(40):
        disk, _, view = machine(seed, sync_fails=1.0)
        file = view.open("f", create=True)
        view.sync_directory("")
        file.write([b"x"], 0)
        with pytest.raises(OSError):
            file.sync()
        disk.faults.sync_fails = 0.0
        file.sync()
        assert file.read(9, 0) == b"x"
        outcomes.add(after_power_loss(disk).open("f").read(9, 0))

    assert b"x" in outcomes
    assert b"" in outcomes


def test_rot_flips_bits_at_rest():
    disk, _, view = machine()
    file = view.open("f", create=True)
    file.write([b"abc"], 0)
    file.sync()

    disk.rot("f", 1, 0x01)

    assert file.read(9, 0) == b"acc"


class Jobs:
    def __init__(self, jobs):
        self.jobs = list(jobs)
        self.finished = []

    def take(self):
        return self.jobs.pop(0) if self.jobs else None

    def finish(self, error):
        self.finished.append(error)


def test_the_flusher_carries_out_jobs_in_order_and_reports_each():
    loop = SimulatedLoop()
    _, process, view = machine()
    progress = []

    async def main():
        file = view.open("f", create=True)
        jobs = Jobs([[FlushWrite(file, 0, [b"a"], False), FlushWrite(file, 1, [b"b"], True)]])
        flusher = view.start_flusher(jobs, lambda: progress.append(len(jobs.finished)))
        flusher.wake()
        await asyncio.sleep(1)
        jobs.jobs.append([FlushWrite(file, 2, [b"c"], True)])
        await flusher.stop()
        assert jobs.finished == [None, None]
        assert file.read(9, 0) == b"abc"

    loop.run_until_complete(loop.spawn(process, main()))
    assert progress == [1, 2]
    loop.close()


def test_a_crash_between_two_writes_of_a_job_leaves_the_job_unreported():
    loop = SimulatedLoop()
    disk, process, view = machine()

    async def node(jobs, file):
        view.start_flusher(jobs, lambda: None).wake()
        await asyncio.sleep(10)

    async def main():
        file = view.open("f", create=True)
        jobs = Jobs([[FlushWrite(file, 0, [b"a"], False), FlushWrite(file, 1, [b"b"], True)]])
        disk.crash_at = disk.steps + 2
        loop.spawn(process, node(jobs, file))
        await asyncio.sleep(1)
        assert process.gone
        assert jobs.finished == []
        assert file._inode.content[:1] == b"a"

    loop.run_until_complete(main())
    loop.close()
