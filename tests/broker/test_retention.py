"""What is too old or too much goes in whole segments; what is kept stays readable."""

import asyncio

import pytest

from streamkit.broker.retention import PassedTime, retain_once
from streamkit.errors import SequenceTrimmed
from streamkit.model.stream import StreamConfig
from tests.broker.conftest import batch_of

HOUR_MS = 3_600_000


async def fill(client, **options):
    shard = (await client.create_stream("orders", StreamConfig(retention_hours=24, **options))).shards[0]
    await asyncio.gather(*(client.put_batch(shard, batch_of(b"r" * 100_000, codec=0)) for _ in range(45)))
    return shard


async def trimmed(node, shard, now_ms):
    log = node._streams.shards[shard.uuid].log
    while log.synced_end < log.log_end:      # only what a checkpoint has synced may go
        await node._directory._checkpoint(everything=False)
        await asyncio.sleep(0.005)
    count = await retain_once(node._streams, now_ms)
    while log.log_start < log.trim_to:       # noqa: ASYNC110 - storage trims when it has written down where
        await asyncio.sleep(0.005)
    return count


async def test_old_segments_go_and_the_newest_stays(node, client):
    shard = await fill(client)
    now_ms = node.runtime.clock.now_ms()
    assert await trimmed(node, shard, now_ms) == 0
    assert await trimmed(node, shard, now_ms + 25 * HOUR_MS) == 1

    (state,) = await client.describe_shards("orders")
    assert 0 < state.log_start < state.log_end
    with pytest.raises(SequenceTrimmed):
        await client.fetch(shard, 0)
    assert (await client.resolve_position(shard, "trim_horizon")).sequence == state.log_start
    assert (await client.fetch(shard, state.log_start)).batches


async def test_more_bytes_than_wanted_go(node, client):
    shard = await fill(client, retention_bytes=2_000_000)
    assert await trimmed(node, shard, node.runtime.clock.now_ms()) == 1

    (state,) = await client.describe_shards("orders")
    assert 2_000_000 <= state.stored_bytes < 4_000_000


async def test_a_restart_does_not_make_segments_look_old(start, connect):
    node = await start()
    client = await connect(node)
    shard = await fill(client)
    assert await trimmed(node, shard, node.runtime.clock.now_ms()) == 0
    await client.close()
    await node.stop()

    node = await start()
    now_ms = node.runtime.clock.now_ms()
    assert len(node._streams.shards[shard.uuid].log.segments) > 2
    assert await trimmed(node, shard, now_ms) == 0
    assert await trimmed(node, shard, now_ms + 25 * HOUR_MS) == 1


class TurnedClock:
    def __init__(self):
        self.wall_ms, self.monotonic = 1_000 * HOUR_MS, 77

    def pass_by(self, milliseconds, leap_ms=0):
        self.wall_ms += milliseconds + leap_ms
        self.monotonic += milliseconds

    def now_ms(self):
        return self.wall_ms

    def monotonic_ms(self):
        return self.monotonic


def test_a_clock_that_leaps_forward_makes_nothing_older():
    clock = TurnedClock()
    began, passed = clock.wall_ms, PassedTime(clock)

    clock.pass_by(30_000)
    assert passed.now_ms() == began + 30_000
    clock.pass_by(30_000, leap_ms=HOUR_MS)
    assert passed.now_ms() == began + 60_000
    clock.pass_by(30_000)
    assert passed.now_ms() == began + 90_000, "nor at the next look"
    clock.pass_by(30_000, leap_ms=-HOUR_MS)
    assert passed.now_ms() == began + 120_000 == clock.wall_ms


def test_a_clock_that_goes_back_and_is_put_right_or_is_slewed_is_followed():
    clock = TurnedClock()
    began, passed = clock.wall_ms, PassedTime(clock)

    clock.pass_by(30_000, leap_ms=-HOUR_MS)
    assert passed.now_ms() == began + 30_000 - HOUR_MS
    clock.pass_by(30_000, leap_ms=HOUR_MS)
    assert passed.now_ms() == began + 60_000
    for _ in range(100):
        clock.pass_by(30_000, leap_ms=15)
        assert passed.now_ms() == clock.wall_ms
