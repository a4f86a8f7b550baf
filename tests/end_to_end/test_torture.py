"""Failing disks and clocks that jump, first the shim that brings them, then nodes under it, then everything mixed."""

import asyncio
import errno
import os
import subprocess
import sys
import time

import pytest

from streamkit._core.batch import Batch
from streamkit.client.client import AsyncClient
from streamkit.errors import DiskFull, TimedOut
from streamkit.producer.producer import AsyncProducer
from tests.end_to_end import torture
from tests.end_to_end.faults import CLOCK_MS, FAULTS
from tests.end_to_end.nodes import nodes, sqlite_url
from tests.end_to_end.shim import Steering

PATIENCE_SECONDS = 30.0
STREAM = "harmed"


# ---- the shim ---------------------------------------------------------------------------------------------------


@pytest.fixture
def shim(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "boot_id").write_text("another boot")
    return Steering(tmp_path / "control", tmp_path / "data", boot_id=tmp_path / "boot_id")


def under(shim, folder, program):
    """What the program prints; its working directory is `folder`."""
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **shim.environment}, cwd=folder, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


WRITES = """
import os, socket
def tried(act, *arguments):
    try: print(act(*arguments))
    except OSError as error: print(error.errno)
fd = os.open("{path}", os.O_RDWR | os.O_CREAT)
tried(os.pwrite, fd, b"abcdefgh", 0); tried(os.pwritev, fd, [b"abcd", b"efgh"], 0); tried(os.write, fd, b"abcd")
tried(os.writev, fd, [b"ab", b"cd"]); tried(os.posix_fallocate, fd, 0, 100)
tried(os.fsync, fd); tried(os.fdatasync, fd)
one, other = socket.socketpair()
tried(os.write, one.fileno(), b"abcd")
"""


def test_only_files_below_the_directory_fail(shim, tmp_path):
    shim.fail_writes(left=-1)
    shim.fail_syncs(errno.EDQUOT, left=-1)

    eio, quota = str(errno.EIO), str(errno.EDQUOT)
    assert under(shim, tmp_path, WRITES.format(path="data/file")) == [eio] * 5 + [quota] * 2 + ["4"]
    assert under(shim, tmp_path, WRITES.format(path="file")) == ["8", "8", "4", "4", "None", "None", "None", "4"]
    assert (shim["writes_failed"], shim["syncs_failed"]) == (5, 2)
    assert (tmp_path / "data" / "file").read_bytes() == b"abcd", "half of what failed with EIO is there"


def test_a_fault_comes_as_often_as_was_said_and_then_all_is_well(shim, tmp_path):
    shim.fail_writes(left=2)
    shim.fail_syncs(left=1)

    eio = str(errno.EIO)
    said = under(shim, tmp_path, WRITES.format(path="data/file"))
    assert said == [eio, eio, "4", "4", "None", eio, "None", "4"]


def test_a_full_disk_takes_what_lies_inside_a_file(shim, tmp_path):
    (tmp_path / "data" / "file").write_bytes(bytes(8))
    shim.fill()

    full = str(errno.ENOSPC)
    assert under(shim, tmp_path, WRITES.format(path="data/file"))[:4] == ["8", "8", full, full]
    space = f"import os\nprint(os.statvfs('{tmp_path}/data').f_bavail, os.statvfs('{tmp_path}').f_bavail > 0)"
    assert under(shim, tmp_path, space) == ["0 True"]


def test_syncs_lie_clocks_jump_and_the_boot_is_another_one(shim, tmp_path):
    program = """
import datetime, os, time
os.fsync(os.open("data", os.O_RDONLY))
print(time.time_ns() // 10**9, int(time.time()), int(datetime.datetime.now().timestamp()), time.monotonic_ns())
print(open("/proc/sys/kernel/random/boot_id").read())
"""
    shim.lie()
    shim.turn_clock(-CLOCK_MS)
    now, monotonic = time.time(), time.monotonic_ns()
    clocks, boot_id = under(shim, tmp_path, program)

    *walls, later = map(int, clocks.split())
    assert shim["syncs_lied"] == 1
    assert all(now - 3600 - 2 < wall < now - 3000 for wall in walls)
    assert monotonic < later < monotonic + 3_000 * 10**9
    assert boot_id == "another boot"


# ---- one node ---------------------------------------------------------------------------------------------------


@pytest.fixture
def harmed(tmp_path):
    """A node that runs under the shim, and its steering."""
    steering = Steering(tmp_path / "control", tmp_path / "a")
    with nodes(
        tmp_path, sqlite_url(tmp_path), "a", environment=steering.environment, cluster__accept_fewer=True,
        storage__retention_check_seconds=1, storage__segment_bytes=1 << 20,
    ) as made:  # fmt: skip
        yield made["a"], steering


async def stored(url):
    """(value, append time) of every record, in order."""
    found, position = [], 0
    async with AsyncClient(url) as client:
        (shard,) = (await client.describe_stream(STREAM)).shards
        while True:
            fetched = await client.fetch(shard, position, wait_ms=0)
            for raw in fetched.batches:
                batch = Batch(raw, None, 0)
                found += [(value, batch.append_time_ms) for value in ([] if batch.is_control else batch.values())]
            position = fetched.next_sequence
            if position >= fetched.high_watermark:
                return found


async def make_stream(url):
    async with AsyncClient(url) as client:
        await client.create_stream(STREAM, shards=1)


async def test_a_node_whose_disk_fails_a_sync_ends_and_says_why_and_comes_back_with_everything(harmed):
    node, steering = harmed
    await make_stream(node.url)
    async with AsyncProducer(STREAM, url=node.url, linger_ms=1) as producer:
        await (await producer.put(b"before", key="k"))
        steering.fail_syncs()
        waiting = await producer.put(b"meanwhile", key="k")
        said = await asyncio.to_thread(node.refused)
        node.start(cluster__accept_fewer=True)
        await asyncio.to_thread(node.wait_ready)
        await asyncio.wait_for(waiting, PATIENCE_SECONDS)

    assert steering["syncs_failed"] == 1
    assert "disk.failed" in said and "nothing more is acknowledged" in said and "errno=5" in said
    assert [value for value, _ in await stored(node.url)] == [b"before", b"meanwhile"]


async def test_puts_are_refused_while_a_disk_is_full_and_go_on_when_there_is_room(harmed):
    node, steering = harmed
    await make_stream(node.url)
    async with (
        AsyncProducer(STREAM, url=node.url, linger_ms=1, delivery_timeout_ms=1_000) as hasty,
        AsyncProducer(STREAM, url=node.url, linger_ms=1) as patient,
    ):
        await (await patient.put(b"before", key="k"))
        steering.fill(extends=False)
        waiting = await patient.put(b"patient", key="k")
        with pytest.raises((DiskFull, TimedOut), match="puts are refused"):
            while True:                    # what was taken in before the disk was known to be full may still land
                await asyncio.wait_for(await hasty.put(b"hasty", key="k"), PATIENCE_SECONDS)
        assert not waiting.done()
        assert [value for value, _ in await stored(node.url)] == [b"before"], "reads go on"
        steering.heal_disk()
        await asyncio.wait_for(waiting, PATIENCE_SECONDS)

    assert node.process.poll() is None and steering["writes_failed"] > 0
    assert b"patient" in [value for value, _ in await stored(node.url)]


async def test_a_clock_that_jumps_hours_expires_nothing_and_append_times_never_go_back(harmed):
    node, steering = harmed
    async with AsyncClient(node.url) as client:
        await client.create_stream(STREAM, shards=1, retention_hours=24)
    began_ms = time.time_ns() // 1_000_000
    values = [b"%d" % number + os.urandom(400_000) for number in range(12)]     # several segments
    async with AsyncProducer(STREAM, url=node.url, linger_ms=1) as producer:
        for number, value in enumerate(values):
            steering.turn_clock([0, CLOCK_MS, -CLOCK_MS, CLOCK_MS, 0][number % 5])
            await asyncio.wait_for(await producer.put(value, key="k"), PATIENCE_SECONDS)
        steering.turn_clock(30 * CLOCK_MS)
        turned, count = steering["clocks_turned"], 0
        while steering["clocks_turned"] < turned + 200:        # retention has looked at the clock meanwhile
            await asyncio.wait_for(await producer.put(b"after", key="k"), PATIENCE_SECONDS)
            await asyncio.sleep(0.01)
            count += 1
    found = await stored(node.url)
    times = [at for _, at in found]

    assert [value for value, _ in found] == values + [b"after"] * count
    assert times == sorted(times)
    assert times[0] < began_ms + CLOCK_MS // 2 < times[1] == times[2], "a clock that went back does not move time"


# ---- everything -------------------------------------------------------------------------------------------------


async def test_nothing_is_lost_whatever_befalls_three_nodes(tmp_path):
    # Lost disks, and workers that die, have slow tests of their own: test_cluster, test_kill_worker.
    kinds = {name for name, kind in FAULTS.items() if not kind.needs} - {"lose_disk"}
    outcome = await torture.run(tmp_path, 0, 20261123, only=kinds, each_once=True, rate=100, pace=0.1)

    assert outcome.violations == []
    assert {kind for kind, _ in outcome.faults} == kinds
    assert outcome.history.acknowledged + outcome.history.failed == outcome.history.put > 500
    assert all(outcome.counted.values()), "every fault of the shim came"
