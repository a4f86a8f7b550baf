"""Crashes at every step of the disk: what was acknowledged is there afterwards, in order, once."""

import random

import pytest

from streamkit.storage import LogDirectory
from tests.oracles_storage import (
    SHARDS,
    Machine,
    ModelLog,
    base_of,
    body_of,
    is_control,
    read_all,
    records_of,
    seal,
    wait_for,
)


class Workload:
    """Puts to three shards (two synced, one at level os), with idempotent producers; remembers what was promised."""

    def __init__(self, seed, batches=40):
        self.draw = random.Random(seed)
        self.batches = batches
        self.models = {uuid: ModelLog() for uuid in SHARDS[:3]}
        self.levels = dict(zip(SHARDS[:3], ("fsync", "fsync", "os"), strict=True))
        self.next = dict.fromkeys(SHARDS, 0)
        self.epoch = 0
        self.created = False
        self.last = {}

    async def open(self, runtime, config):
        self.epoch += 1
        directory = await LogDirectory.open("data", runtime=runtime, config=config)
        await directory.create_shards(SHARDS[:3])
        self.created = True
        return directory

    def note(self, directory):
        for log in directory.take_progressed():
            model = self.models[log.uuid]
            model.durable = max(model.durable, log.durable_end)
            model.written = max(model.written, log.written_end)

    def put(self, directory, runtime, uuid=None):
        uuid = uuid or self.draw.choice(SHARDS[:3])
        size = self.draw.choice((10, 100, 3000, 20_000))
        values = [self.draw.randbytes(size // 2)] * self.draw.randint(1, 3)
        batch = seal(values, producer=(7, self.epoch, self.next[uuid]))
        answer = directory.shards[uuid].append(
            batch, now_ms=runtime.clock.now_ms(), epoch=self.epoch, durability=self.levels[uuid]
        )
        assert answer.duplicate == 0
        self.next[uuid] += len(values)
        self.models[uuid].add(answer.base_sequence, answer.end_sequence, batch)
        self.last[uuid] = (batch, answer)

    async def run(self, runtime, config, *, close=True):
        self.next = dict.fromkeys(SHARDS, 0)
        directory = await self.open(runtime, config)
        directory.on_durable.append(lambda: self.note(directory))
        for _ in range(self.batches):
            self.put(directory, runtime)
            if self.draw.random() < 0.4:
                await wait_for(directory, lambda: directory._journal.idle)
        if close:
            await wait_for(directory, lambda: directory._journal.idle)
            self.note(directory)
            await directory.close()


async def check(workload, runtime, config, *, power_lost):
    """Everything promised is there as it was put; what follows it is a prefix of what was put."""
    workload.epoch += 1
    directory = await LogDirectory.open("data", runtime=runtime, config=config)
    for uuid, model in workload.models.items():
        log = directory.shards.get(uuid)
        if log is None:
            assert not workload.created, "a shard whose creation was reported is there"
            model.bodies = []
            continue
        promised = model.durable if power_lost else max(model.durable, model.written)
        assert log.log_end >= promised, (uuid.hex(), log.log_end, promised)
        assert log.damages == []
        stored = {base_of(batch): body_of(batch) for batch in await read_all(log) if not is_control(batch)}
        put = {base: body for base, end, body in model.bodies if end <= log.log_end}
        assert {base: body for base, body in stored.items() if base in put} == put
        assert stored.keys() == put.keys()
        model.bodies = [entry for entry in model.bodies if entry[1] <= log.log_end]
        model.durable = model.written = log.log_end
        if uuid in workload.last:
            batch, answer = workload.last[uuid]
            if answer.end_sequence <= log.log_end:
                again = log.append(batch, now_ms=0, epoch=workload.epoch, durability="fsync")
                assert (again.duplicate, again.base_sequence) == (1, answer.base_sequence)
    await directory.close()


def crash_and_check(seed, crash_at, *, power, rounds=1):
    machine = Machine(seed)
    workload = Workload(seed)
    ended = False
    for turn in range(rounds):
        ended = machine.run(lambda runtime: workload.run(runtime, machine.config), crash_at=crash_at + turn)
        if power:
            machine.lose_power()
        workload.last = {} if not workload.last else workload.last
        machine.run(lambda runtime: check(workload, runtime, machine.config, power_lost=power))
    return ended


@pytest.mark.parametrize("power", [False, True], ids=["kill", "power"])
@pytest.mark.parametrize("seed", range(3))
def test_what_was_acknowledged_survives_a_crash_at_any_step(seed, power):
    ended = False
    crash_at = 1 + seed
    while not ended:
        ended = crash_and_check(seed, crash_at, power=power)
        crash_at += 3


@pytest.mark.parametrize("seed", range(100, 115))
def test_what_was_acknowledged_survives_crash_after_crash(seed):
    draw = random.Random(seed)

    crash_and_check(seed, draw.randint(20, 120), power=True, rounds=4)


@pytest.mark.parametrize("seed", range(200, 210))
def test_recovery_may_itself_crash_at_any_step(seed):
    machine = Machine(seed)
    workload = Workload(seed)
    machine.run(lambda runtime: workload.run(runtime, machine.config), crash_at=60 + seed % 7 * 9)
    machine.lose_power()

    async def reopen(runtime):
        directory = await LogDirectory.open("data", runtime=runtime, config=machine.config)
        await directory.close()

    crash_at = 1
    while not machine.run(reopen, crash_at=crash_at):
        if seed % 2:
            machine.lose_power()
        crash_at += 1

    machine.run(lambda runtime: check(workload, runtime, machine.config, power_lost=True))


def test_records_of_a_batch_count_as_the_model_says():
    batch = seal([b"a", b"b"], producer=(1, 2, 3))

    assert records_of(batch) == 2
