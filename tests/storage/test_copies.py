"""What makes a log one of several copies: digests, repair from a peer, scrubbing, promises, certainty, who it is."""

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamkit.errors import CorruptFile, ShardClosed
from streamkit.runtime.real import real_runtime
from streamkit.storage import ClusterFacts, LogDirectory, NewShard, Scrubber
from tests.oracles_storage import (
    SHARDS,
    SMALL,
    Machine,
    SimulatedClock,
    base_of,
    records_of,
    seal,
    wait_for,
)
from tests.storage.test_follower import INCARNATION, Leaders, check, stamped
from tests.storage.test_log import REAL

SHARD = SHARDS[0]


async def opened(runtime, config=SMALL, **new):
    directory = await LogDirectory.open("data", runtime=runtime, config=config)
    await directory.create_shards({SHARD: NewShard(INCARNATION, **new)})
    return directory, directory.shards[SHARD]


def history(seed, count):
    leaders = Leaders(seed)
    for _ in range(count):
        leaders.put()
    return leaders


@given(seed=st.integers(0, 1000), low=st.floats(0, 1), high=st.floats(0, 1))
@settings(max_examples=30)
def test_copies_that_agree_have_one_digest_however_their_segments_are_cut(seed, low, high):
    leaders = history(seed, 40)
    start, end = int(low * leaders.end), int(high * leaders.end)
    answers = []

    async def main(runtime, segment_bytes):
        config = type(SMALL)(**{**{name: getattr(SMALL, name) for name in SMALL.__slots__},
                                "segment_bytes": segment_bytes})  # fmt: skip
        directory, log = await opened(runtime, config)
        for batch in leaders.batches:
            log.accept(batch, epoch=leaders.epoch, durability="fsync")
            await asyncio.sleep(0)
        answers.append(await log.digest(start, end))
        await directory.close()

    Machine(1).run(lambda runtime: main(runtime, 64 * 1024))
    Machine(2).run(lambda runtime: main(runtime, 1 << 20))

    whole = [b for b in leaders.batches if base_of(b) >= start and base_of(b) + records_of(b) <= end]
    assert answers[0] == answers[1]
    assert answers[0][1] == len(whole)
    if whole:
        assert answers[0][2] == base_of(whole[-1]) + records_of(whole[-1])


def test_a_digest_tells_other_bytes_apart():
    answers = []

    async def main(runtime, last):
        directory, log = await opened(runtime)
        for batch in (*leaders.batches, stamped(seal([last]), leaders.end, leaders.epoch, 9999)):
            log.accept(batch, epoch=leaders.epoch, durability="fsync")
        answers.append((await log.digest(0, leaders.end), await log.digest(0, log.log_end)))
        await directory.close()

    leaders = history(3, 10)
    Machine(1).run(lambda runtime: main(runtime, b"a"))
    Machine(2).run(lambda runtime: main(runtime, b"b"))

    assert answers[0][0] == answers[1][0]
    assert answers[0][1][0] != answers[1][1][0]


@pytest.mark.parametrize("seed", range(60))
def test_damage_in_any_segment_is_repaired_from_a_peers_batches(seed):
    machine, draw = Machine(seed), random.Random(seed)
    leaders = history(seed, 60)

    async def write(runtime):
        directory, log = await opened(runtime)
        for batch in leaders.batches:
            log.accept(batch, epoch=leaders.epoch, durability="fsync")
            await wait_for(directory, lambda: log.segment_end == log.log_end)
        await directory.close()

    machine.run(write)
    logs = {path: size for path, size in machine.disk.files().items() if path.endswith(".log")}
    assert len(logs) > 1
    for _ in range(draw.randint(1, 3)):
        path = draw.choice(list(logs))
        if draw.random() < 0.2 and path in machine.disk.names:
            machine.disk.names.pop(path)
            machine.disk.durable_names.pop(path)
        elif path in machine.disk.names:
            for _ in range(draw.choice((1, 1, 40))):
                machine.disk.rot(path, draw.randrange(logs[path]), 1 << draw.randrange(8))

    async def repair(runtime):
        directory, log = await opened(runtime)
        assert log.log_end == leaders.end
        await log.verify()
        if log.damages:
            await directory.set_certain(log, False)
            with pytest.raises(CorruptFile):
                await directory.set_certain(log, True)
        for damage in list(log.damages):
            run = [b for b in leaders.batches if base_of(b) + records_of(b) > damage.sequence]
            some = [b for b in run if base_of(b) < damage.next_sequence]
            wrong = [b[:-1] + bytes([b[-1] ^ 1]) for b in some]
            assert not await directory.repair(log, damage, b"".join(wrong))
            assert not await directory.repair(log, damage, b"".join(some[1:]))
            assert await directory.repair(log, damage, run if draw.random() < 0.5 else b"".join(some))
        assert await log.verify() == []
        await directory.set_certain(log, True)
        await check(log, leaders)
        more = stamped(seal([b"x"]), leaders.end, leaders.epoch, 99_999)
        log.accept(more, epoch=leaders.epoch, durability="fsync")
        leaders.batches.append(more)
        await directory.close()
        directory, log = await opened(runtime)
        assert log.certain
        await check(log, leaders)
        assert await log.verify() == []
        await directory.close()

    machine.run(repair)


def test_the_scrubber_finds_damage_within_its_budget_and_tells():
    leaders = history(7, 80)

    async def main(runtime):
        directory, log = await opened(runtime)
        for batch in leaders.batches:
            log.accept(batch, epoch=leaders.epoch, durability="fsync")
        await wait_for(directory, lambda: log.segment_end == log.log_end)
        machine.disk.rot(f"{log.path}/{0:020d}.log", 300, 4)
        found = []
        clock = SimulatedClock(asyncio.get_running_loop())
        scrubber = Scrubber(directory, clock, 100_000, lambda log, damage: found.append(damage))
        began = clock.monotonic_ms()
        scrubber.start()
        await wait_for(directory, lambda: scrubber.passes == 1)
        took = clock.monotonic_ms() - began
        await scrubber.stop()
        sealed = sum(segment.position for segment in log.segments if segment.sealed)
        assert len(found) == 1
        assert found == log.damages
        assert scrubber.bytes_read >= sealed
        assert took >= (sealed - 300_000) * 1000 // 100_000
        assert await directory.repair(log, found[0], leaders.batches)
        assert log.damages == []
        await directory.close()

    machine = Machine(7)
    machine.run(main)


def test_a_closed_shard_stays_closed_over_restarts_and_is_open_again_once_that_was_cut():
    machine = Machine(3)

    async def close(runtime):
        directory, log = await opened(runtime)
        log.append(seal([b"v"]), now_ms=1, epoch=1, durability="fsync")
        assert log.closing is None
        closed = log.append_control("close", b"children", now_ms=2, epoch=1, durability="fsync")
        assert (closed.base_sequence, closed.end_sequence, log.closing) == (2, 3, b"children")
        batches.extend(bytes(batch) for batch in log.read(0, 9, 99_999))
        log.start_epoch(4, 5, True)
        assert log.closing == b"children"
        await asyncio.sleep(0.3)                   # a checkpoint
        await directory.close()

    async def see(runtime):
        directory, log = await opened(runtime)
        assert log.closing == b"children"
        await directory.truncate(log, 3)
        assert log.closing == b"children"
        await directory.truncate(log, 2)
        assert log.closing is None
        log.accept(batches[2], epoch=1, durability="fsync")
        assert log.closing == b"children"
        await wait_for(directory, lambda: log.durable_end == 3)

    batches = []
    machine.run(close)
    machine.run(see)
    machine.lose_power()

    async def again(runtime):
        directory, log = await opened(runtime)
        assert (log.log_end, log.closing) == (3, b"children")
        with pytest.raises(ShardClosed):
            log.append(seal([b"late"]), now_ms=9, epoch=1, durability="fsync")
        await directory.close()

    machine.run(again)


def test_a_log_begins_where_it_is_told_and_promises_what_it_is_told():
    machine = Machine()

    async def main(runtime):
        directory, log = await opened(runtime, start=700, promised_epoch=9, certain=False)
        assert (log.log_start, log.log_end, log.promised_epoch, log.certain) == (700, 700, 9, False)
        leaders = Leaders(4, start=700)
        leaders.epoch = 9
        for _ in range(9):
            leaders.put()
        midway = leaders.batches[1:]               # from the midst of an epoch
        directory2 = await directory.reset(log, start=base_of(midway[0]), incarnation=INCARNATION)
        assert directory2 is None
        for batch in midway:
            log.accept(batch, epoch=leaders.epoch, durability="fsync")
        assert log.epoch_at(base_of(midway[0])) == leaders.epoch
        await directory.promise({SHARD: 5, SHARDS[3]: 99})
        assert log.promised_epoch == 9
        await directory.close()
        directory, log = await opened(runtime)
        assert (log.log_start, log.log_end, log.promised_epoch) == (base_of(midway[0]), leaders.end, 9)
        assert log.incarnation == INCARNATION
        await directory.close()

    machine.run(main)


@pytest.mark.parametrize("seed", range(40))
def test_no_flipped_bit_breaks_a_promise(seed):
    machine, draw = Machine(seed), random.Random(seed)

    async def main(runtime):
        directory, _ = await opened(runtime)
        await directory.write_cluster(ClusterFacts(cluster="c", node="n"))
        for epoch in range(1, 12):
            await directory.promise({SHARD: epoch})

    machine.run(main)
    if seed % 4 == 3:
        machine.disk.names.pop("data/pledges")
        machine.disk.durable_names.pop("data/pledges")
    elif seed % 4 == 2:                            # both places of one frame
        frame = draw.randrange(11)
        machine.disk.rot("data/pledges", frame * 1024 + draw.randrange(44), 2)
        machine.disk.rot("data/pledges", frame * 1024 + 512 + draw.randrange(44), 2)
    else:
        machine.disk.rot("data/pledges", draw.randrange(12 * 1024), 1 << draw.randrange(8))

    async def look(runtime):
        directory, log = await opened(runtime)
        assert log.incarnation == INCARNATION      # what it holds is sound: whoever has only this copy needs it
        assert log.promised_epoch == 11 or not log.certain or seed % 4 == 2
        await directory.promise({SHARD: 12})
        await directory.close()
        directory, again = await opened(runtime)
        assert (again.promised_epoch, again.incarnation) == (12, log.incarnation)
        await directory.close()

    machine.run(look)


def test_facts_of_the_cluster_are_kept_and_refused_when_unreadable():
    machine = Machine()
    facts = ClusterFacts(cluster="ab" * 16, node="n1", starts=3, next_starts=4)

    async def main(runtime):
        directory, _ = await opened(runtime)
        assert directory.cluster is None
        disks.append(directory.disk_id)
        await directory.write_cluster(ClusterFacts(cluster="ab" * 16, node="n1"))
        await directory.write_cluster(facts)
        await directory.close()
        directory, _ = await opened(runtime)
        assert (directory.cluster, directory.disk_id) == (facts, disks[0])
        assert len(disks[0]) == 16 != directory.node_id
        await directory.close()

    disks = []
    machine.run(main)
    machine.disk.rot("data/cluster", 30, 1)
    machine.disk.rot("data/cluster", 4096 + 30, 1)

    async def refused(runtime):
        with pytest.raises(CorruptFile):
            await opened(runtime)

    machine.run(refused)


async def test_a_log_on_a_real_disk_is_cut_and_grows_again(tmp_path):
    path, leaders = str(tmp_path / "data"), history(11, 300)
    directory = await LogDirectory.open(path, runtime=real_runtime(), config=REAL)
    await directory.create_shards({SHARD: NewShard(INCARNATION)})
    log = directory.shards[SHARD]
    draw = random.Random(11)
    for _ in range(12):
        for _ in range(draw.randint(1, 60)):
            leaders.put()
        fresh = [batch for batch in leaders.batches if base_of(batch) >= log.log_end]
        for batch in fresh:
            log.accept(batch, epoch=leaders.epoch, durability="fsync")
        await directory.truncate(log, leaders.cut(draw.randint(1, 150)))
        await check(log, leaders)
        await directory.promise({SHARD: leaders.epoch})
        if draw.random() < 0.4:
            await directory.close()
            directory = await LogDirectory.open(path, runtime=real_runtime(), config=REAL)
            log = directory.shards[SHARD]
            await check(log, leaders)
            assert log.promised_epoch == leaders.epoch
    assert await log.verify() == []
    await directory.reset(log, start=5, incarnation=bytes(16))
    assert (log.log_start, log.log_end, log.certain, log.incarnation) == (5, 5, False, bytes(16))
    await directory.close()


@pytest.mark.parametrize(("change", "after"), [
    ("truncate", "remove_marks"), ("truncate", "begin_cut"), ("truncate", "_finish"), ("reset", "begin_cut"),
    ("reset", "_finish"), ("set_certain", "write_checkpoint"),
])  # fmt: skip
def test_a_change_that_nobody_waits_for_any_more_is_whole(change, after):
    """An election is given up, a node stops: what was done on the disk is told to memory all the same."""
    machine = Machine(1)
    held = []

    async def give_up(runtime):
        directory, log = await opened(runtime, certain=change != "set_certain")
        batches = [stamped(seal([b"x%d" % at]), at, 1, 10) for at in range(20)]
        for batch in batches:
            log.accept(batch, epoch=1, durability="fsync")
        await wait_for(directory, lambda: log.segment_end == log.log_end)
        run, done = runtime.executor.run, asyncio.Event()

        async def told_late(work, *arguments):
            result = await run(work, *arguments)
            if getattr(work, "__name__", "") == after and not done.is_set():
                done.set()
                await asyncio.sleep(0.01)
            return result

        runtime.executor.run = told_late
        work = {
            "truncate": lambda: directory.truncate(log, 8),
            "reset": lambda: directory.reset(log, start=8, incarnation=INCARNATION),
            "set_certain": lambda: directory.set_certain(log, True),
        }[change]()
        task = asyncio.get_running_loop().create_task(work)
        await done.wait()
        task.cancel()
        await asyncio.wait([task])
        await directory.truncate(log, 10_000)              # takes its turn behind what is under way
        if log.log_end == 8:
            for batch in batches[8:12]:
                log.accept(batch, epoch=1, durability="fsync")
        await wait_for(directory, lambda: log.segment_end == log.log_end)
        held.append((log.log_start, log.log_end, log.certain))
        held.append([bytes(batch) for batch in await log.read_cold(log.log_start, log.log_end, 99_999)])
        await directory.close()

    async def look(runtime):
        directory, log = await opened(runtime)
        held.append((log.log_start, log.log_end, log.certain))
        held.append([bytes(batch) for batch in await log.read_cold(log.log_start, log.log_end, 99_999)])
        await directory.close()

    machine.run(give_up)
    machine.run(look)
    assert held[2:] == held[:2]
    assert held[0] == {"truncate": (0, 12, True), "reset": (8, 12, False), "set_certain": (0, 20, True)}[change]


@pytest.mark.parametrize("seed", range(40))
def test_a_segment_that_a_stray_write_has_shifted_is_written_anew_from_a_peers_batches(seed):
    machine, draw = Machine(seed), random.Random(seed)
    leaders = history(seed, 60)
    stray = set(draw.sample(range(2, 58), draw.randint(1, 3)))

    async def put(directory, log, places):
        for place in places:
            machine.disk.misdirected += place in stray
            log.accept(leaders.batches[place], epoch=leaders.epoch, durability="fsync")
            await wait_for(directory, lambda: log.segment_end == log.log_end)

    async def write(runtime):
        directory, log = await opened(runtime)
        await put(directory, log, range(30))
        machine.disk.misdirected = 0
        await directory.close()

    async def mend(runtime):
        directory, log = await opened(runtime)
        await put(directory, log, range(30, len(leaders.batches)))
        machine.disk.misdirected = 0
        await log.verify()
        for _ in range(20):
            for damage in log.damages[:1]:
                base, end = await directory.close_segment(log, damage.sequence)
                whole = [b for b in leaders.batches if base_of(b) + records_of(b) > base and base_of(b) < end]
                assert not await directory.rewrite(log, base, whole[1:])
                assert not await directory.rewrite(log, base, whole[:-1])
                assert await directory.rewrite(log, base, whole)
        assert await log.verify() == []
        await check(log, leaders)
        more = stamped(seal([b"x"]), leaders.end, leaders.epoch, 99_999)
        log.accept(more, epoch=leaders.epoch, durability="fsync")
        leaders.batches.append(more)
        await directory.close()
        directory, log = await opened(runtime)
        await check(log, leaders)
        assert await log.verify() == []
        await directory.set_certain(log, True)
        await directory.close()

    machine.run(write)
    machine.run(mend)


@pytest.mark.parametrize("stray", [True, False])
def test_a_hole_where_a_write_went_astray_costs_a_copy_in_a_memory_mode_its_vote(stray):
    machine, leaders = Machine(3), history(3, 20)
    certain = []

    async def write(runtime):
        directory, log = await opened(runtime)
        for place, batch in enumerate(leaders.batches):
            machine.disk.misdirected += stray and place == len(leaders.batches) - 1
            log.accept(batch, epoch=leaders.epoch, durability="os")
            await wait_for(directory, lambda: log.written_end == log.log_end)
        machine.disk.die()                                     # the process is killed, the system goes on

    async def look(runtime):
        directory, log = await opened(runtime)
        certain.append((log.certain, log.log_end == leaders.end))
        await directory.close()

    assert not machine.run(write)
    machine.run(look)

    assert certain == [(not stray, not stray)]


def test_a_log_whose_end_is_repaired_with_records_of_a_later_epoch_goes_on_in_it():
    machine = Machine(5)
    common = [stamped(seal([b""]), 0, 1, 1000, 3), stamped(seal([b"a"]), 1, 1, 1001)]
    ours = [*common, stamped(seal([b"b"]), 2, 1, 1002), stamped(seal([b"c"]), 3, 1, 1003)]
    theirs = [*common, stamped(seal([b""]), 2, 2, 1002, 3), stamped(seal([b"d"]), 3, 2, 1003)]

    async def write(runtime):
        directory, log = await opened(runtime)
        log.accept(b"".join(ours), epoch=1, durability="fsync")
        await wait_for(directory, lambda: log.segment_end == log.log_end)
        await directory.close()

    machine.run(write)
    for path in [path for path in machine.disk.files() if path.endswith(".log")]:
        machine.disk.names.pop(path)
        machine.disk.durable_names.pop(path)

    async def repair(runtime):
        directory, log = await opened(runtime)
        [damage] = log.damages
        assert (damage.sequence, damage.next_sequence, log.log_end) == (0, 4, 4)
        assert await directory.repair(log, damage, b"".join(theirs))
        assert (log.epoch, log.epochs) == (2, [(1, 0), (2, 2)])
        log.accept(stamped(seal([b"e"]), 4, 2, 1004), epoch=2, durability="fsync")
        assert log.log_end == 5
        await directory.close()

    machine.run(repair)
