"""A log beside its model, a list: appends, reads, restarts, retention, producers, and real files."""

import asyncio
import multiprocessing
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit.errors import (
    CorruptBatch,
    DataDirectoryLocked,
    InvalidConfig,
    LimitReached,
    NotLeader,
    ProducerFenced,
    SequenceCorrupt,
    SequenceGap,
    SequenceTrimmed,
    UnknownProducer,
    WrongShard,
)
from streamkit.runtime.real import real_runtime
from streamkit.storage import LogDirectory, StorageConfig
from streamkit.storage.retention import SegmentAge, drop_point
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

SHARD = SHARDS[0]


def with_log(main, machine=None):
    """Run `main(directory, log)` on a fresh shard of a simulated machine."""
    machine = machine or Machine()

    async def run(runtime):
        directory = await LogDirectory.open("data", runtime=runtime, config=machine.config)
        await directory.create_shards([SHARD])
        await main(directory, directory.shards[SHARD])
        await directory.close()

    machine.run(run)
    return machine


@given(
    sizes=st.lists(st.tuples(st.integers(0, 9000), st.integers(1, 4), st.integers(-5, 20), st.booleans()), max_size=40),
    restarts=st.integers(0, 3),
    reads=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.integers(1, 40_000)), max_size=10),
    seed=st.integers(0, 1000),
)
def test_a_log_reads_like_a_list(sizes, restarts, reads, seed):
    machine = Machine(seed)
    model = []                                     # (base, end, body, append time)

    async def turn(directory, log, part, epoch):
        now = 1000 * epoch
        for size, records, passed, synced in part:
            now += passed
            batch = seal([bytes([size % 251]) * (size // records)] * records)
            answer = log.append(batch, now_ms=now, epoch=epoch, durability="fsync" if synced else "os")
            assert answer.end_sequence - answer.base_sequence == records
            assert answer.append_time_ms >= now
            model.append((answer.base_sequence, answer.end_sequence, body_of(batch), answer.append_time_ms))
            if size % 3 == 0:
                await asyncio.sleep(0.002)
        for low, high, bytes_max in reads:
            start, limit = int(low * log.log_end), int(high * log.log_end) + 1
            batches = await log.read_cold(start, limit, bytes_max)
            whole = [entry for entry in model if entry[1] > start and entry[1] <= limit]
            got = [(base_of(b), base_of(b) + records_of(b), body_of(b)) for b in batches if not is_control(b)]
            assert got == [entry[:3] for entry in whole][: len(got)]
            assert sum(len(batch) for batch in batches[:-1]) <= bytes_max or len(batches) == 1
        for _, _, _, at in model:
            await log.warm_time(at)
            sequence = log.sequence_at_time(at)
            assert all(entry[3] < at for entry in model if entry[0] < sequence)
            assert any(entry[0] <= sequence < entry[1] for entry in model) or is_epoch_start(log, sequence)

    step = len(sizes) // (restarts + 1) + 1
    for number in range(restarts + 1):
        part = sizes[number * step : (number + 1) * step]
        with_log(lambda directory, log, part=part, number=number: turn(directory, log, part, number + 1), machine)

    async def all_there(directory, log):
        stored = [(base_of(b), body_of(b)) for b in await read_all(log) if not is_control(b)]
        assert stored == [(entry[0], entry[2]) for entry in model]
        assert await log.verify() == []

    with_log(all_there, machine)


def is_epoch_start(log, sequence):
    batches = log.read(sequence, log.log_end, 1) or log.read_segments(sequence, log.log_end, 1, False)
    return is_control(batches[0])


def test_idempotence_answers_as_the_table_says():
    async def main(directory, log):
        def put(epoch, sequence, count=1, producer=7):
            batch = seal([b"v"] * count, producer=(producer, epoch, sequence))
            return log.append(batch, now_ms=10, epoch=1, durability="fsync")

        with pytest.raises(UnknownProducer):
            put(1, 5)
        assert put(1, 0, 3).base_sequence == 1
        assert put(1, 3).base_sequence == 4
        again = put(1, 0, 3)
        assert (again.duplicate, again.base_sequence, again.end_sequence) == (1, 1, 4)
        with pytest.raises(SequenceGap) as gap:
            put(1, 9)
        assert gap.value.facts["expected"] == 4
        for first, count in ((0, 2), (1, 3), (2, 2), (3, 2)):
            with pytest.raises(SequenceCorrupt):
                put(1, first, count)
        for i in range(4, 14):
            put(1, i)
        assert put(1, 0, 3).duplicate == 2
        assert put(2, 0).duplicate == 0
        with pytest.raises(ProducerFenced):
            put(1, 14)
        with pytest.raises(UnknownProducer):
            put(3, 1)
        for producer in range(100, 103):
            put(1, 0, producer=producer)
        with pytest.raises(LimitReached):
            put(1, 0, producer=200)

    with_log(main)


def test_batches_that_do_not_belong_are_refused_and_leave_nothing_behind():
    async def main(directory, log):
        log.set_range(100, 200)
        good = seal([b"v"], hashes=(100, 200))
        for batch, error in (
            (seal([b"v"], hashes=(99, 150)), WrongShard),
            (seal([b"v"], hashes=(150, 201)), WrongShard),
            (good[:-1], CorruptBatch),
            (good + b"x", CorruptBatch),
            (good[:-1] + bytes([good[-1] ^ 1]), CorruptBatch),
            (b"", CorruptBatch),
            (b"GET / HTTP/1.1\r\n" * 20, CorruptBatch),
            (good[:3] + b"\x01" + good[4:], CorruptBatch),
        ):
            with pytest.raises(error):
                log.append(memoryview(batch), now_ms=1, epoch=1, durability="fsync")
        assert log.log_end == 0
        log.append(memoryview(bytearray(good)), now_ms=1, epoch=3, durability="fsync")
        with pytest.raises(NotLeader):
            log.append(good, now_ms=1, epoch=2, durability="fsync")
        assert log.log_end == 2

    with_log(main)


def test_an_epoch_starts_with_a_control_batch_in_front_of_its_first_batch():
    async def main(directory, log):
        for epoch in (1, 1, 4):
            log.append(seal([b"v"]), now_ms=1, epoch=epoch, durability="fsync")

        assert [is_control(batch) for batch in log.read(0, 99, 9999)] == [True, False, False, True, False]
        assert log.epochs == [(1, 0), (4, 3)]

    machine = with_log(main)
    with_log(lambda directory, log: same(log.epochs, [(1, 0), (4, 3)]), machine)


async def same(left, right):
    assert left == right


def test_append_times_never_fall_when_the_clock_does():
    async def main(directory, log):
        times = [log.append(seal([b"v"]), now_ms=now, epoch=1, durability="os").append_time_ms for now in (50, 10, 60)]

        assert times == [50, 50, 60]

    with_log(main)


def test_retention_drops_whole_segments_and_refuses_reads_before_them():
    async def main(directory, log):
        for i in range(60):
            log.append(seal([bytes(9000)]), now_ms=i * 1000, epoch=1, durability="fsync")
            await wait_for(directory, lambda: log.segment_end == log.log_end)
        await asyncio.sleep(1)
        assert len(log.segments) > 5
        before = log.stored_bytes
        log.retain(now_ms=59_000, retention_ms=30_000, retention_bytes=None)
        await wait_for(directory, lambda: log.log_start > 0)

        assert log.stored_bytes < before
        assert log.segments[0].base == log.log_start <= 30
        with pytest.raises(SequenceTrimmed):
            log.read(log.log_start - 1, 99, 10)
        assert log.first_append_ms() <= 30_000
        assert base_of((await log.read_cold(log.log_start, 99, 10))[0]) == log.log_start
        log.retain(now_ms=0, retention_ms=1 << 50, retention_bytes=70_000)
        await wait_for(directory, lambda: log.log_start > 40)
        kept.append((log.log_start, log.log_end))

    kept = []
    machine = with_log(main)
    assert not [path for path in machine.disk.files() if path.endswith(f"{0:020d}.log")]
    with_log(lambda directory, log: same((log.log_start, log.log_end), kept[0]), machine)


@given(
    st.lists(st.tuples(st.integers(1, 100), st.integers(0, 100)), max_size=6), st.integers(0, 150), st.integers(0, 100),
    st.none() | st.integers(0, 500), st.integers(0, 50),
)  # fmt: skip
def test_the_drop_point_keeps_what_is_young_and_enough(facts, now, keep, bytes_kept, active):
    ages, end, when = [], 0, 0
    for size, passed in facts:
        end, when = end + 1, when + passed
        ages.append(SegmentAge(end=end, size_bytes=size, last_append_ms=when))
    stored = sum(age.size_bytes for age in ages) + active

    point = drop_point(ages, stored_bytes=stored, now_ms=now, retention_ms=keep, retention_bytes=bytes_kept)

    for age in ages:
        left = stored - sum(other.size_bytes for other in ages if other.end <= age.end)
        may_go = age.last_append_ms + keep <= now or (bytes_kept is not None and left >= bytes_kept)
        assert (age.end <= point) <= may_go
    rest = [age for age in ages if age.end > point]
    assert not rest or rest[0].last_append_ms + keep > now


def test_dropped_shards_are_gone_and_others_stay():
    machine = Machine()

    async def main(runtime):
        directory = await LogDirectory.open("data", runtime=runtime, config=SMALL)
        await directory.create_shards(SHARDS)
        for log in directory.shards.values():
            log.append(seal([b"v"]), now_ms=1, epoch=1, durability="fsync")
        await directory.drop_shards(SHARDS[:2])
        assert list(directory.shards) == SHARDS[2:]
        await directory.close()
        directory = await LogDirectory.open("data", runtime=runtime, config=SMALL)
        assert sorted(directory.shards) == SHARDS[2:]
        assert [log.log_end for log in directory.shards.values()] == [2, 2]
        await directory.close()

    machine.run(main)


def test_open_files_stay_within_their_bound():
    machine = Machine()
    uuids = [bytes([i]) * 16 for i in range(1, 41)]

    async def main(runtime):
        directory = await LogDirectory.open("data", runtime=runtime, config=SMALL)
        await directory.create_shards(uuids)
        for _ in range(3):
            for uuid in uuids:
                directory.shards[uuid].append(seal([b"v"]), now_ms=1, epoch=1, durability="fsync")
                await wait_for(directory, lambda: directory._journal.idle)
                assert len(directory._node.open_segments) <= SMALL.files_open_max
        await directory.close()

    machine.run(main)


@pytest.mark.parametrize(
    "setting", [{"segment_bytes": 1}, {"journal_bytes": (64 << 20) + 1}, {"bypass_bytes": 1 << 40}]
)
def test_impossible_settings_are_refused_by_name(setting):
    with pytest.raises(InvalidConfig, match=next(iter(setting))):
        StorageConfig(**setting)


# ---- real files -----------------------------------------------------------------------------------------------

REAL = StorageConfig(
    free_bytes_min=0, reserve_bytes=0, journal_bytes=1 << 20, journal_step_bytes=1 << 18, group_bytes_max=1 << 19,
    bypass_bytes=1 << 16, segment_bytes=1 << 20, tail_bytes=1 << 18, checkpoint_ms=20,
)  # fmt: skip


@pytest.mark.parametrize("durability", ["fsync", "os"])
async def test_real_files_keep_what_was_put(tmp_path, durability):
    path = str(tmp_path / "data")
    directory = await LogDirectory.open(path, runtime=real_runtime(), config=REAL)
    await directory.create_shards(SHARDS)
    moved = asyncio.Event()
    directory.on_durable.append(moved.set)
    put = {uuid: [] for uuid in SHARDS}
    for i in range(400):
        uuid = SHARDS[i * i % 4]
        batch = seal([os.urandom(7 * i)] * 3)
        put[uuid].append(body_of(batch))
        directory.shards[uuid].append(batch, now_ms=i, epoch=1, durability=durability)
        if i % 50 == 0:
            await asyncio.sleep(0)
    logs = directory.shards.values()
    while any((log.durable_end if durability == "fsync" else log.written_end) < log.log_end for log in logs):
        moved.clear()
        await asyncio.wait_for(moved.wait(), 10)

    with pytest.raises(DataDirectoryLocked) as held:
        await LogDirectory.open(path, runtime=real_runtime(), config=REAL)
    assert held.value.facts["pid"] == os.getpid()
    await directory.close()
    directory = await LogDirectory.open(path, runtime=real_runtime(), config=REAL)
    for uuid, log in directory.shards.items():
        assert [body_of(batch) for batch in await read_all(log) if not is_control(batch)] == put[uuid]
    await directory.close()
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "data").rglob("*") if file.is_file()} == {0o600}


def put_and_die(path):
    async def main():
        directory = await LogDirectory.open(path, runtime=real_runtime(), config=REAL)
        await directory.create_shards([SHARD])
        log = directory.shards[SHARD]
        for i in range(200):
            log.append(seal([bytes([i]) * 5000]), now_ms=i, epoch=1, durability="fsync")
            while log.durable_end < log.log_end and i % 20 == 19:      # noqa: ASYNC110 - ends by os._exit
                await asyncio.sleep(0)
        os._exit(9)

    asyncio.run(main())


def test_a_killed_process_leaves_what_was_acknowledged(tmp_path):
    child = multiprocessing.get_context("spawn").Process(target=put_and_die, args=(str(tmp_path / "data"),))
    child.start()
    child.join(30)
    assert child.exitcode == 9

    async def look():
        directory = await LogDirectory.open(str(tmp_path / "data"), runtime=real_runtime(), config=REAL)
        log = directory.shards[SHARD]
        stored = [body_of(batch) for batch in await read_all(log) if not is_control(batch)]
        assert stored == [body_of(seal([bytes([i]) * 5000])) for i in range(200)]
        assert not directory.was_clean
        await directory.close()

    asyncio.run(look())


def test_inspection_tells_what_lies_in_the_files_without_a_node():
    from streamkit.storage.inspect import inspect_file

    async def main(directory, log):
        for i in range(30):
            log.append(seal([bytes(4000)] * 2, producer=(5, 1, 2 * i)), now_ms=i, epoch=1, durability="fsync")
            await wait_for(directory, lambda: log.segment_end == log.log_end)
        disk = directory._disk
        journals = [path for path in machine.disk.files() if path.endswith(".jrn")]
        entries = [fact for path in journals for fact in inspect_file(disk, path) if fact["kind"] == "entry"]
        assert [entry["base"] for entry in entries][-3:] == [55, 57, 59]
        await asyncio.sleep(1)
        facts = list(inspect_file(disk, f"{log.path}/{0:020d}.log"))
        assert [fact["kind"] for fact in facts] == ["segment"] + ["batch"] * 9 + ["trailer"]
        assert facts[-1]["end"] == log.segments[0].end
        machine.disk.rot(f"{log.path}/{0:020d}.log", 200, 1)
        facts = list(inspect_file(disk, f"{log.path}/{0:020d}.log"))
        assert [(fact["sequence"], fact["next_sequence"]) for fact in facts if fact["kind"] == "damage"] == [(1, 3)]

    machine = Machine()
    with_log(main, machine)


def test_a_segment_that_got_its_last_batch_before_a_restart_is_no_older_for_it():
    """The batch that comes after the restart does not fit into it: it is sealed as it was found."""
    machine, known = Machine(3), {}

    async def fill(runtime):
        directory = await LogDirectory.open("data", runtime=runtime, config=SMALL)
        await directory.create_shards([SHARD])
        log = directory.shards[SHARD]
        while log.segment_end < SMALL.segment_bytes // 3000 - 1:
            log.append(seal([bytes(2900)]), now_ms=1_000_000 + log.log_end, epoch=1, durability="fsync")
            await wait_for(directory, lambda: log.segment_end == log.log_end)
        known["newest_ms"] = log.last_append_ms
        await directory.close()

    async def go_on(runtime):
        directory = await LogDirectory.open("data", runtime=runtime, config=SMALL)
        log = directory.shards[SHARD]
        assert len(log.segments) == 1
        log.append(seal([bytes(20_000)]), now_ms=2_000_000, epoch=1, durability="fsync")
        await wait_for(directory, lambda: log.segment_end == log.log_end)
        assert len(log.segments) == 2
        await directory.close()

    async def retain(runtime):
        directory = await LogDirectory.open("data", runtime=runtime, config=SMALL)
        log = directory.shards[SHARD]
        assert [age.last_append_ms for age in log.segment_ages()] == [known["newest_ms"]]
        log.retain(now_ms=2_000_000, retention_ms=1_000_000, retention_bytes=None)
        assert log.trim_to == 0
        await directory.close()

    for life in (fill, go_on, retain):
        machine.run(life)
