"""A follower that crashes at any step: cuts are as before or as after, promises stay, nothing sound counts as lost."""

import random

import pytest

from streamkit.storage import LogDirectory, NewShard
from tests.oracles_storage import SHARDS, SMALL, Machine, base_of, read_all, wait_for
from tests.storage.test_follower import INCARNATION, Leaders

SHARD, OTHER = SHARDS[:2]


class Twin:
    """What the follower was told, and what it answered."""

    def __init__(self, seed):
        self.draw = random.Random(seed)
        self.histories = [Leaders(seed)]           # the last one holds; the one before it until a cut is reported
        self.durable = 0
        self.written = 0
        self.promised = {SHARD: 0, OTHER: 0}
        self.asked = {SHARD: 0, OTHER: 0}
        self.certain = {True}
        self.incarnations = [INCARNATION]
        self.starts = [0]
        self.created = False

    def cut_begins(self, history):
        self.histories.append(history)

    def cut_ends(self, log):
        self.histories = self.histories[-1:]
        self.durable = self.written = log.log_end

    def note(self, directory):
        for log in directory.take_progressed():
            if log.uuid == SHARD:
                self.durable = max(self.durable, log.durable_end)
                self.written = max(self.written, log.written_end)


def copy_of(leaders, count, start=None):
    """The history as another leader has it: without the last `count` batches."""
    other = Leaders(leaders.draw.random(), leaders.start if start is None else start)
    other.epoch = leaders.epoch
    other.batches = list(leaders.batches) if start is None else []
    other.cut(count)
    return other


async def work(twin, runtime, level, changes):
    directory = await LogDirectory.open("data", runtime=runtime, config=SMALL)
    await directory.create_shards({SHARD: NewShard(INCARNATION), OTHER: NewShard(INCARNATION, promised_epoch=1)})
    twin.created = True
    if directory.shards[OTHER].incarnation == INCARNATION:
        twin.promised[OTHER] = max(1, twin.promised[OTHER])
    log = directory.shards[SHARD]
    directory.on_durable.append(lambda: twin.note(directory))
    draw = twin.draw
    for _ in range(changes):
        leaders = twin.histories[-1]
        for _ in range(draw.randint(0, 6)):
            leaders.put()
        fresh = [batch for batch in leaders.batches if base_of(batch) >= log.log_end]
        log.accept(b"".join(fresh), epoch=leaders.epoch, durability=level)
        if draw.random() < 0.5:
            await wait_for(directory, lambda: log.segment_end == log.log_end)
        change = draw.choice(("cut", "cut", "promise", "reset", "certain", "wait"))
        if change == "cut" and leaders.batches:
            other = copy_of(leaders, draw.randint(1, 7))
            twin.cut_begins(other)
            await directory.truncate(log, other.end)
            twin.cut_ends(log)
        elif change == "promise":
            epochs = {uuid: draw.randint(1, 50) for uuid in (SHARD, OTHER)}
            twin.asked = {uuid: max(twin.asked[uuid], epochs[uuid]) for uuid in epochs}
            await directory.promise(epochs)
            twin.promised = {uuid: max(twin.promised[uuid], epochs[uuid]) for uuid in epochs}
        elif change == "reset" and draw.random() < 0.5:
            other = copy_of(leaders, 0, start=draw.choice((0, 3, log.log_end, log.log_end + 50)))
            twin.incarnations.append(draw.randbytes(16))
            twin.starts.append(other.start)
            twin.cut_begins(other)
            twin.certain = {*twin.certain, False}
            await directory.reset(log, start=other.start, incarnation=twin.incarnations[-1])
            twin.cut_ends(log)
            twin.certain = {False}
            twin.incarnations, twin.starts = twin.incarnations[-1:], twin.starts[-1:]
        elif change == "certain":
            certain = draw.random() < 0.5
            end = 0 if log.certain else log.log_end
            twin.certain = {*twin.certain, certain}
            await directory.set_certain(log, certain)
            twin.certain = {certain}
            assert not certain or log.synced_end >= end
        elif change == "wait":
            await wait_for(directory, lambda: log.segment_end == log.log_end)
            twin.note(directory)


async def check(twin, runtime, *, power_lost, level):
    directory = await LogDirectory.open("data", runtime=runtime, config=SMALL)
    for uuid, promised in twin.promised.items():
        if uuid in directory.shards:
            assert promised <= directory.shards[uuid].promised_epoch <= max(promised, twin.asked[uuid], 1)
            twin.promised[uuid] = directory.shards[uuid].promised_epoch
        else:
            assert not twin.created
    log = directory.shards.get(SHARD)
    if log is not None:
        if not twin.created:                       # made in part: it comes back as somebody that nobody knows
            twin.incarnations, twin.certain = [log.incarnation], {log.certain}
        assert log.damages == []
        assert log.incarnation in twin.incarnations
        assert log.log_start in twin.starts
        stored = [bytes(batch) for batch in await read_all(log)]
        kept = [h for h in twin.histories if stored == h.batches[: len(stored)] and h.start == log.log_start]
        assert kept, "the log is neither as before the cut nor as after it"
        history = kept[-1]
        if len(twin.histories) > 1 and history is not twin.histories[-1] and not (power_lost and level == "os"):
            assert log.log_end >= min(twin.durable if power_lost else max(twin.durable, twin.written), history.end)
        elif len(twin.histories) == 1:
            promised = twin.durable if power_lost else max(twin.durable, twin.written)
            assert log.log_end >= promised
        assert log.epochs == [pair for pair in history.epochs if pair[1] < log.log_end]
        if not (power_lost and (level == "os" or directory.recovered.doubtful)):
            assert log.certain in twin.certain
        elif not log.certain:
            twin.certain = {False}
        if power_lost and level == "os" and log.log_end < twin.written and len(twin.histories) == 1:
            assert not log.certain, "what may have lost records must not vote"
        twin.histories = [history]
        history.cut(sum(base_of(batch) >= log.log_end for batch in history.batches))
        twin.certain = {log.certain}
        twin.incarnations, twin.starts = [log.incarnation], [log.log_start]
        twin.durable = twin.written = log.log_end
    await directory.close()


def crash_and_check(seed, crash_at, *, power, level="fsync", rounds=1, changes=6):
    machine, twin = Machine(seed), Twin(seed)
    ended = False
    for turn in range(rounds):
        ended = machine.run(lambda runtime: work(twin, runtime, level, changes), crash_at=crash_at + turn * 7)
        if power:
            machine.lose_power()
        machine.run(lambda runtime: check(twin, runtime, power_lost=power, level=level))
    return ended


@pytest.mark.parametrize("power", [False, True], ids=["kill", "power"])
@pytest.mark.parametrize("seed", range(8))
def test_a_follower_survives_a_crash_at_any_step(seed, power):
    crash_at = 1 + seed % 3
    while not crash_and_check(seed, crash_at, power=power, level="os" if seed % 4 == 3 else "fsync"):
        crash_at += 3


@pytest.mark.parametrize("seed", range(300, 330))
def test_a_follower_survives_crash_after_crash(seed):
    draw = random.Random(seed)

    level = "os" if seed % 5 == 0 else "fsync"
    crash_and_check(seed, draw.randint(30, 150), power=seed % 3 != 0, rounds=5, level=level)


def killed_in_memory_mode(seed):
    """A machine whose process ended without a word after twenty batches that did not ask for a sync."""
    machine, leaders = Machine(seed), Leaders(seed)

    async def write(runtime):
        directory = await LogDirectory.open("data", runtime=runtime, config=SMALL)
        await directory.create_shards({SHARD: NewShard(INCARNATION)})
        log = directory.shards[SHARD]
        for _ in range(20):
            leaders.put()
        log.accept(b"".join(leaders.batches), epoch=leaders.epoch, durability="os")
        assert log.written_end == 0, "not before the disk says that such batches are there"
        await wait_for(directory, lambda: log.written_end == leaders.end)

    machine.run(write)
    return machine, leaders


@pytest.mark.parametrize("seed", range(6))
def test_a_copy_that_lost_records_stays_uncertain_however_often_its_restart_is_killed(seed):
    def lost():
        machine, leaders = killed_in_memory_mode(seed)
        machine.lose_power()
        return machine, leaders

    async def reopen(runtime):
        directory = await LogDirectory.open("data", runtime=runtime, config=SMALL)
        log = directory.shards[SHARD]
        seen.append((log.log_end, log.certain))
        await directory.close()

    crash_at, ended = 1, False
    while not ended:
        machine, leaders = lost()
        seen = []
        ended = machine.run(reopen, crash_at=crash_at)
        machine.run(reopen)
        assert seen[-1][0] == leaders.end or not seen[-1][1]
        assert not seen[-1][1]
        crash_at += 2


def test_a_killed_process_in_memory_mode_leaves_a_certain_copy():
    machine, leaders = killed_in_memory_mode(4)

    async def look(runtime):
        directory = await LogDirectory.open("data", runtime=runtime, config=SMALL)
        assert (directory.shards[SHARD].log_end, directory.shards[SHARD].certain) == (leaders.end, True)
        await directory.close()

    machine.run(look)
    machine.lose_power()                           # after a clean end nothing is missing
    machine.run(look)


@pytest.mark.parametrize("seed", range(4))
def test_a_tail_that_no_kill_could_have_torn_makes_a_copy_in_memory_mode_uncertain_for_good(seed):
    def rotten():
        machine, leaders = killed_in_memory_mode(seed)
        path, size = sorted((p, s) for p, s in machine.disk.files().items() if p.endswith(".log") and s)[-1]
        machine.disk.rot(path, size // 2, 1)
        return machine, leaders

    async def reopen(runtime):
        directory = await LogDirectory.open("data", runtime=runtime, config=SMALL)
        log = directory.shards[SHARD]
        seen.append((log.log_end, log.certain, log.doubtful))
        await directory.close()

    crash_at, ended = 1, False
    while not ended:
        machine, leaders = rotten()
        seen = []
        ended = machine.run(reopen, crash_at=crash_at)
        machine.run(reopen)
        assert seen[-1][0] < leaders.end
        assert not seen[-1][1] and not seen[-1][2]
        crash_at += 2
