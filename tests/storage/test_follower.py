"""A follower's log beside its twin, a list of batches: what a leader sends, what is cut, what a restart leaves."""

import asyncio
import random

import google_crc32c
from hypothesis import example, given
from hypothesis import strategies as st

from streamkit.errors import CorruptBatch
from streamkit.storage import LogDirectory, NewShard
from tests.oracles_storage import SHARDS, SMALL, Machine, base_of, crc32c, read_all, records_of, seal, wait_for

SHARD = SHARDS[0]
INCARNATION = bytes(range(16))


def stamped(batch, base, epoch, when, flags=0, uuid=SHARD):
    """As a leader stores it, field by field."""
    head = bytearray(batch)
    head[3] = flags
    head[8:16] = base.to_bytes(8, "little")
    head[16:20] = epoch.to_bytes(4, "little")
    head[24:32] = when.to_bytes(8, "little")
    head[20:24] = google_crc32c.extend(crc32c(uuid), bytes(head[:20] + head[24:36])).to_bytes(4, "little")
    return bytes(head)


def epoch_of(batch):
    return int.from_bytes(batch[16:20], "little")


class Leaders:
    """The log as leaders one after the other would write it; a cut is another history from some batch on."""

    def __init__(self, seed, start=0):
        self.draw = random.Random(seed)
        self.start = start
        self.epoch = 0
        self.batches = []
        self.producers = {}

    @property
    def end(self):
        return base_of(self.batches[-1]) + records_of(self.batches[-1]) if self.batches else self.start

    @property
    def epochs(self):
        found = []
        for batch in self.batches:
            if not found or found[-1][0] < epoch_of(batch):
                found.append((epoch_of(batch), base_of(batch)))
        return found

    def lead(self):
        self.epoch += self.draw.randint(1, 3)
        self._add(seal([b""]), 3)

    def put(self):
        if not self.epoch or not self.batches or epoch_of(self.batches[-1]) != self.epoch:
            self.lead()
        values = [self.draw.randbytes(self.draw.choice((5, 200, 9000)))] * self.draw.randint(1, 3)
        producer = self.draw.choice((0, 0, 7, 8))
        count = self.producers.get(producer, 0)
        self._add(seal(values, producer=(producer, 1, count) if producer else (0, 0, 0)), 0)
        self.producers[producer] = count + len(values)

    def _add(self, batch, flags):
        when = 1000 + len(self.batches)
        self.batches.append(stamped(batch, self.end, self.epoch, when, flags))

    def cut(self, count):
        """Another leader did not have the last `count` batches."""
        self.batches = self.batches[: max(0, len(self.batches) - count)]
        self.producers = {}
        for batch in self.batches:
            who = int.from_bytes(batch[40:48], "little")
            if who:
                self.producers[who] = int.from_bytes(batch[48:56], "little") + records_of(batch)
        return self.end


async def check(log, leaders):
    assert log.log_end == leaders.end
    assert [bytes(batch) for batch in await read_all(log)] == leaders.batches
    assert log.epochs == leaders.epochs
    assert log.epoch == (epoch_of(leaders.batches[-1]) if leaders.batches else 0)
    for batch in leaders.batches:
        assert log.epoch_at(base_of(batch)) == epoch_of(batch)
    assert log.epoch_at(leaders.end) == 0
    assert log.damages == []


@example(seed=0, steps=["p"] * 8)              # closing waited for ever for a sync that nobody had asked for
@given(seed=st.integers(0, 10_000), steps=st.lists(st.sampled_from("ppppppllsscrokt"), max_size=30))
def test_a_follower_holds_what_its_leaders_sent(seed, steps):
    machine = Machine(seed)
    leaders = Leaders(seed)
    draw = random.Random(seed)

    async def opened(runtime):
        directory = await LogDirectory.open("data", runtime=runtime, config=SMALL)
        await directory.create_shards({SHARD: NewShard(INCARNATION)})
        return directory, directory.shards[SHARD]

    def send(log):
        known = sum(base_of(batch) < log.log_end for batch in leaders.batches)
        at = max(0, known - draw.randint(0, 3))
        while at < len(leaders.batches):
            step = draw.randint(1, 4)
            run = b"".join(leaders.batches[at : at + step])
            log.accept(run, epoch=leaders.epoch, durability="fsync" if draw.random() < 0.8 else "os")
            at += step
        assert log.accept(b"", epoch=leaders.epoch, durability="fsync") == leaders.end

    async def main(runtime):
        directory, log = await opened(runtime)
        for step in steps:
            if step == "p":
                leaders.put()
            elif step == "l":
                leaders.lead()
            elif step == "s":
                send(log)
            elif step == "t":
                await asyncio.sleep(0.2)
            elif step == "c" and leaders.batches:
                send(log)
                await directory.truncate(log, leaders.cut(draw.randint(1, 6)))
                await check(log, leaders)
            elif step == "o":
                send(log)
                await directory.close()
                directory, log = await opened(runtime)
                await check(log, leaders)
            elif step == "k":
                send(log)
                await wait_for(directory, lambda log=log: log.segment_end == log.log_end)
        send(log)
        await check(log, leaders)
        assert await log.verify() == []
        await directory.close()
        directory, log = await opened(runtime)
        await check(log, leaders)
        await directory.close()

    machine.run(main)


def test_a_run_that_does_not_fit_is_refused_as_a_whole():
    leaders = Leaders(5)
    for _ in range(6):
        leaders.put()
    batches = leaders.batches

    def flipped(batch, place):
        return batch[:place] + bytes([batch[place] ^ 4]) + batch[place + 1 :]

    async def main(runtime):
        directory = await LogDirectory.open("data", runtime=runtime, config=SMALL)
        await directory.create_shards({SHARD: NewShard(INCARNATION)})
        log = directory.shards[SHARD]
        log.accept(batches[0] + batches[1], epoch=leaders.epoch, durability="fsync")
        end = log.log_end
        for run, epoch, reason in (
            (batches[3], 9, "gap"),
            (batches[2] + batches[4], 9, "gap"),
            (batches[2] + batches[3][:-1], 9, "cut short"),
            (batches[2] + flipped(batches[3], 130), 9, "checksum"),
            (batches[2] + flipped(batches[3], 9), 9, "checksum"),
            (batches[2] + stamped(batches[3], base_of(batches[3]), 0, 9999), 9, "epoch"),
            (batches[2], 0, "epoch"),
            (stamped(batches[2], end, leaders.epoch + 1, 9999), 9, "epoch"),
            (stamped(batches[2], end, leaders.epoch, 0), 9, "time"),
            (stamped(batches[1], base_of(batches[1]), leaders.epoch + 1, 9999, 3), 9, "conflict"),
            (stamped(seal([b"", b""]), end - 1, leaders.epoch, 9999), 9, "conflict"),
            (b"GET / HTTP/1.1\r\n" * 20, 9, "cut short"),
        ):
            try:
                log.accept(memoryview(run), epoch=epoch, durability="fsync")
            except CorruptBatch as refused:
                said = refused.facts["reason"]
            else:
                said = "accepted"
            assert said == reason
            assert log.log_end == end
        await directory.close()

    Machine().run(main)
