"""Links between nodes in virtual time: silence, stops and kills, slow followers, windows, budgets."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest

from streamkit.broker.feed import State
from streamkit.broker.peer_feeds import FeedsConfig
from streamkit.errors import CorruptFile, LimitReached, TimedOut
from streamkit.protocol.peers import REFUSED, UNKNOWN, Hear, Identity, PeerConnection, PeerSide, PeerState
from tests.broker.peer_nodes import CLUSTER, Bottle, Held, Leader, until
from tests.oracles_storage import SHARDS, read_all, seal

SHARD = SHARDS[0]


async def linked(a, b):
    await until(lambda: a.peers.connected(b.name) and b.peers.connected(a.name), 60.0)


async def pair(bottle, **given):
    a, b = await bottle.node("a", **given), await bottle.node("b", **given)
    await linked(a, b)
    return a, b


async def leading(bottle, a, b, shards=(SHARD,), **config):
    """Leaders on node a of real logs, each with a feed to b, where a copy is held."""
    directory = await bottle.log("a", *shards, **config)
    leaders = [Leader(directory.shards[shard]) for shard in shards]
    for leader in leaders:
        b.held.setdefault(leader.uuid, Held())
        leader.feeds.append(a.peers.feed(leader, "b"))
    return directory, leaders


def run(test, seed=1, **network):
    bottle = Bottle(seed, **network)
    bottle.run(test(bottle))


# ---- time ------------------------------------------------------------------------------------------------


def test_an_idle_link_costs_a_few_callbacks_a_second_however_many_shards_it_serves():
    async def test(bottle):
        a, b = await pair(bottle)
        _, leaders = await leading(bottle, a, b, SHARDS)
        await until(lambda: all(leader.feeds[0].state is State.STREAMING for leader in leaders))
        await asyncio.sleep(2)
        before, beats = bottle.loop.callbacks, a.peers._peers["b"].link.wire.beats
        await asyncio.sleep(60)

        heard = a.peers._peers["b"].link.wire.beats - beats
        assert 115 <= heard <= 122, "two beats a second, each way"
        assert (bottle.loop.callbacks - before) / 60 < 30
        assert a.peers.heard_ms("b") <= 510

    run(test)


def test_a_stopped_node_is_cut_off_after_silence_and_found_again():
    async def test(bottle):
        a, b = await pair(bottle)
        bottle.world.stop(bottle.processes["b"])
        await until(lambda: not a.peers.connected("b"))
        assert 2_900 <= a.peers.heard_ms("b") <= 3_600
        assert not a.peers.refused("b"), "somebody listens there"
        assert isinstance(a.peers.failure("b"), TimedOut)
        bottle.world.resume(bottle.processes["b"])
        await linked(a, b)

        assert a.events == ["up b", "down b", "up b"]

    run(test)


def test_a_node_that_stood_still_itself_blames_nobody():
    async def test(bottle):
        a, b = await pair(bottle, silence_ms=10_000)
        bottle.world.stop(bottle.processes["a"])
        await asyncio.sleep(9)                     # b still waits for it
        bottle.world.resume(bottle.processes["a"])
        await asyncio.sleep(5)

        assert a.events == ["up b"] and b.events == ["up a"]

    run(test)


@pytest.mark.parametrize("killed, left", [("a", "b"), ("b", "a")])
def test_a_killed_node_is_known_as_gone_at_once_by_whoever_dialled(killed, left):
    async def test(bottle):
        await pair(bottle)
        peers = bottle.nodes[left].peers
        start = bottle.loop.time()
        bottle.world.kill(bottle.processes[killed])
        await until(lambda: peers.refused(killed))

        assert bottle.loop.time() - start < 0.05
        assert not peers.connected(killed)

    run(test)


def test_a_machine_without_power_is_not_taken_for_a_killed_process():
    async def test(bottle):
        a, _ = await pair(bottle)
        bottle.world.stop(bottle.processes["b"])
        await until(lambda: not a.peers.connected("b"))
        await asyncio.sleep(3)

        assert not a.peers.refused("b")

    run(test)


def test_a_one_way_cut_is_noticed_by_both_and_heals():
    async def test(bottle):
        a, b = await pair(bottle)
        bottle.world.network.stall("b", "a", True)
        await until(lambda: not a.peers.connected("b") and not b.peers.connected("a"), 30.0)
        bottle.world.network.stall("b", "a", False)
        await linked(a, b)

    run(test)


def test_tries_to_reach_a_node_wait_longer_up_to_a_second():
    async def test(bottle):
        a = await bottle.node("a")
        tries = []
        connect = bottle.runtimes["a"].network.connect

        async def counted(address, factory):
            tries.append(bottle.loop.time())
            return await connect(address, factory)

        bottle.runtimes["a"].network.connect = counted
        bottle.processes["a"].context.run(a.peers.set_nodes, {"b": "10.0.0.9:1"})
        await asyncio.sleep(30)

        gaps = [later - earlier for earlier, later in itertools.pairwise(tries)]
        assert 0.05 <= gaps[0] <= 0.11
        assert all(gap <= 1.01 for gap in gaps)
        assert 30 <= len(tries) <= 65

    run(test)


# ---- what a slow follower costs --------------------------------------------------------------------------

WINDOW = FeedsConfig(window_bytes=256 * 1024, feed_window_bytes=128 * 1024, frame_bytes=64 * 1024,
                     section_bytes=32 * 1024)  # fmt: skip


def test_a_follower_that_never_answers_costs_its_window_and_no_more():
    async def test(bottle):
        a, b = await pair(bottle, feeds=WINDOW)
        _, (leader, other, *_) = await leading(bottle, a, b, SHARDS)
        await until(lambda: leader.feeds[0].state is State.STREAMING)
        b.mute.add(SHARD)
        largest = 0
        for number in range(600):
            leader.append(seal([bytes([number % 251]) * 4_000]))
            await asyncio.sleep(0.001)
            largest = max(largest, leader.feeds[0].flight_bytes)
        end = other.append(seal([b"of another shard"]))
        await until(lambda: other.high_watermark == end)

        assert 100_000 < largest <= WINDOW.feed_window_bytes + WINDOW.section_bytes
        assert leader.high_watermark < 100
        assert leader.feeds[0].lag_bytes > 2_000_000
        assert len(leader.feeds[0]._flight) < 50
        b.mute.clear()
        bottle.world.network.break_connection(next(iter(bottle.world.network.ends)).out)
        await until(lambda: leader.high_watermark == leader.log.log_end)
        assert b.held[SHARD].bytes() == b"".join(map(bytes, await read_all(leader.log)))

    run(test)


def test_a_stopped_follower_fills_the_window_and_the_other_follower_notices_nothing():
    async def test(bottle):
        a, b = await pair(bottle, feeds=WINDOW)
        c = await bottle.node("c", feeds=WINDOW)
        await linked(a, c)
        _, (leader,) = await leading(bottle, a, b)
        c.held[SHARD] = Held()
        leader.feeds.append(a.peers.feed(leader, "c"))
        await until(lambda: c.held[SHARD].promised and b.held[SHARD].promised)
        bottle.world.stop(bottle.processes["b"])
        slowest = largest = 0.0
        link = a.peers._peers["b"].link
        for number in range(500):
            start = bottle.loop.time()
            end = leader.append(seal([bytes([number % 251]) * 4_000]))
            while leader.high_watermark < end:
                await leader.moved.wait()
            slowest = max(slowest, bottle.loop.time() - start)
            largest = max(largest, link._transport.get_write_buffer_size() + a.peers._peers["b"].lane.flight_bytes)
            await asyncio.sleep(0.001)

        assert slowest < 0.02
        assert largest <= 2 * (WINDOW.window_bytes + WINDOW.frame_bytes)
        bottle.world.resume(bottle.processes["b"])
        await until(lambda: b.held[SHARD].end == leader.log.log_end, 60.0)
        assert b.held[SHARD].bytes() == c.held[SHARD].bytes()

    run(test)


def test_a_node_that_is_gone_costs_nothing_while_others_are_fed():
    async def test(bottle):
        a, b = await pair(bottle, feeds=WINDOW)
        _, (leader,) = await leading(bottle, a, b)
        await until(lambda: leader.feeds[0].state is State.STREAMING)
        bottle.world.kill(bottle.processes["b"])
        await until(lambda: not a.peers.connected("b"))
        for number in range(300):
            leader.append(seal([bytes([number % 251]) * 4_000]))
        await asyncio.sleep(1)
        lane = a.peers._peers["b"].lane

        assert lane.flight_bytes == leader.feeds[0].flight_bytes == 0
        assert not lane._ready and not lane._behind and not lane._news and not lane._watched

    run(test)


class Talker(asyncio.Protocol):
    """Greets as node a, then takes nothing any more."""

    def connection_made(self, transport):
        self.transport = transport
        self.wire = PeerConnection(PeerSide.DIALLING, Identity(CLUSTER, "a", b""), expected="b")
        self.say()

    def data_received(self, data):
        self.wire.feed(data)
        if self.wire.state is PeerState.OPEN:
            self.transport.pause_reading()

    def say(self):
        self.transport.writelines(self.wire.take())


def test_who_talks_and_never_listens_costs_a_bounded_buffer_and_is_cut_off_when_it_asks():
    async def test(bottle):
        b = await bottle.node("b", write_bytes_max=64 * 1024, requests_max=8)
        process, runtime = bottle.world.new_process("a")
        talker = Talker()
        await bottle.world.start(process, runtime.network.connect(bottle.addresses["b"], lambda: talker))
        await until(lambda: b.peers.connected("a"))
        link = b.peers._peers["a"].link
        shards = [number.to_bytes(16, "little") for number in range(1000)]
        largest = 0
        for number in range(60):
            talker.wire.writer.begin_replicate()
            for shard in shards:
                talker.wire.writer.section(shard, 1, 0, number, 0, 0, 0, 0, 0, [])
            talker.wire.writer.end_replicate()
            talker.say()
            await until(lambda seen=1000 * (number + 1): len(b.sections_seen) >= seen)
            largest = max(largest, link._transport.get_write_buffer_size())

        assert link.writing_paused
        assert 64 * 1024 < largest <= 64 * 1024 + 57 * len(shards)
        assert len(link._acknowledgements) == len(shards), "of each shard the last one"
        for request_id in range(1, 20):
            talker.wire.send(Hear("a"), request_id)
        talker.say()
        await until(lambda: not b.peers.connected("a"))
        assert isinstance(b.peers.failure("a") or LimitReached(""), LimitReached)
        assert b.events == ["up a", "down a"]

    run(test)


# ---- catching up -----------------------------------------------------------------------------------------

BUDGET = 1024 * 1024
SLOWLY = FeedsConfig(catch_up_bytes_per_second=BUDGET)


def test_catching_up_from_disk_keeps_its_budget_and_live_shards_do_not_wait():
    async def test(bottle):
        a = await bottle.node("a", feeds=SLOWLY)
        directory = await bottle.log("a", *SHARDS[:2], tail_bytes=64 * 1024)
        old, live = (Leader(directory.shards[shard]) for shard in SHARDS[:2])
        for number in range(1000):
            old.append(seal([bytes([number % 251]) * 4_000]))
            await asyncio.sleep(0.0005)
        await until(lambda: old.log.segment_end == old.log.log_end, 60.0)
        assert old.log.tail_start > 900
        b = await bottle.node("b", feeds=SLOWLY)
        b.held[old.uuid], b.held[live.uuid] = Held(), Held()
        await linked(a, b)
        start = bottle.loop.time()
        for leader in (old, live):
            leader.feeds.append(bottle.processes["a"].context.run(a.peers.feed, leader, "b"))
        slowest = 0.0
        while old.high_watermark < old.log.log_end:
            asked = bottle.loop.time()
            end = live.append(seal([b"live"]))
            while live.high_watermark < end:
                await live.moved.wait()
            slowest = max(slowest, bottle.loop.time() - asked)
            await asyncio.sleep(0.05)
        seconds = bottle.loop.time() - start

        assert b.held[old.uuid].bytes() == b"".join(map(bytes, await read_all(old.log)))
        assert old.log.stored_bytes / BUDGET - 0.7 <= seconds <= old.log.stored_bytes / BUDGET + 1.5
        assert slowest < 0.05

    run(test)


def test_many_shards_that_are_behind_take_turns():
    async def test(bottle):
        a = await bottle.node("a", feeds=SLOWLY)
        directory = await bottle.log("a", *SHARDS, tail_bytes=16 * 1024)
        leaders = [Leader(directory.shards[shard]) for shard in SHARDS]
        for number in range(300):
            for leader in leaders:
                leader.append(seal([bytes([number % 251]) * 4_000]))
            await asyncio.sleep(0.002)
        await until(lambda: all(leader.log.segment_end == leader.log.log_end for leader in leaders), 60.0)
        b = await bottle.node("b", feeds=SLOWLY)
        for leader in leaders:
            b.held[leader.uuid] = Held()
            leader.feeds.append(bottle.processes["a"].context.run(a.peers.feed, leader, "b"))
        await until(lambda: min(leader.high_watermark for leader in leaders) > 0, 60.0)
        assert max(leader.high_watermark for leader in leaders) < 300, "nobody is finished before all have begun"
        await until(lambda: all(leader.high_watermark == leader.log.log_end for leader in leaders), 120.0)

        for leader in leaders:
            assert b.held[leader.uuid].bytes() == b"".join(map(bytes, await read_all(leader.log)))

    run(test)


def test_a_follower_behind_retention_begins_anew_where_the_leader_begins():
    async def test(bottle):
        a, b = await pair(bottle)
        _, (leader,) = await leading(bottle, a, b)
        end = leader.append(seal([b"first"]))
        await until(lambda: leader.high_watermark == end)
        bottle.world.stop(bottle.processes["b"])
        await until(lambda: not a.peers.connected("b"))
        for number in range(20):
            leader.append(seal([b"%d" % number]))
        leader.log.move_start(15)
        bottle.world.resume(bottle.processes["b"])
        await until(lambda: leader.high_watermark == leader.log.log_end)

        assert b.held[SHARD].log_start == 15
        assert b.held[SHARD].bytes() == b"".join(map(bytes, leader.log.read(15, 1 << 40, 1 << 20)))

    run(test)


def test_a_log_that_cannot_be_read_is_reported_and_tried_again():
    async def test(bottle):
        a, b = await pair(bottle)
        _, (leader,) = await leading(bottle, a, b)
        await until(lambda: leader.feeds[0].state is State.STREAMING)
        sound = leader.log

        class Damaged:
            def __getattr__(self, name):
                return getattr(sound, name)

            def read(self, start, limit, bytes_max):
                raise CorruptFile("bad", path="x", position=0, reason="test")

        leader.log = Damaged()
        end = leader.append(seal([b"unreadable"]))
        await until(lambda: leader.broken)
        assert leader.feeds[0].state is State.RESTING
        leader.log = sound
        await until(lambda: leader.high_watermark == end)

        assert set(leader.broken) == {"b"}
        assert len(leader.broken) <= 2

    run(test)


# ---- refusals and news -----------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", [UNKNOWN, REFUSED])
def test_a_follower_that_cannot_take_a_shard_is_asked_less_and_less_often(verdict):
    async def test(bottle):
        a, b = await pair(bottle)
        b.refuse = verdict
        _, (leader,) = await leading(bottle, a, b)
        end = leader.append(seal([b"wanted"]))
        await until(lambda: leader.answers)
        assert leader.answers[0][3] == verdict
        await asyncio.sleep(30)
        assert 6 <= len(b.sections_seen) <= 14
        b.refuse = None
        await until(lambda: leader.high_watermark == end)

    run(test)


def test_a_high_watermark_alone_follows_within_a_moment():
    async def test(bottle):
        a, b = await pair(bottle)
        _, (leader,) = await leading(bottle, a, b)
        end = leader.append(seal([b"one"]))
        await until(lambda: leader.high_watermark == end)
        moved = bottle.loop.time()
        frames = b.frames
        await until(lambda: b.held[SHARD].high_watermark == end)
        assert bottle.loop.time() - moved < 0.03
        await asyncio.sleep(1)

        assert b.frames == frames + 1, "said once"

    run(test)


def test_a_high_watermark_that_moved_while_the_feed_probed_is_told_all_the_same():
    async def test(bottle):
        a, b = await pair(bottle)
        _, (leader,) = await leading(bottle, a, b)
        (feed,) = leader.feeds
        end = leader.append(seal([b"one"]))
        await until(lambda: b.held[SHARD].high_watermark == end)
        leader.high_watermark = 0                  # as if this copy's answer had not been the one that mattered
        b.held[SHARD].high_watermark = 0
        feed.restart()
        while feed.asked_s is None:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
        leader.high_watermark = end
        feed.ready()
        await asyncio.sleep(1)

        assert b.held[SHARD].high_watermark == end

    run(test)


def test_a_high_watermark_rides_with_the_next_batches():
    async def test(bottle):
        a, b = await pair(bottle)
        _, (leader,) = await leading(bottle, a, b)
        for number in range(200):
            end = leader.append(seal([b"%d" % number]))
            while leader.high_watermark < end:
                await leader.moved.wait()
        sections = [size for *_, size, _ in b.sections_seen]
        del sections[:2]

        assert len(sections) <= 210
        assert len([size for size in sections if not size]) <= 8

    run(test)


def test_a_probe_that_gets_no_answer_is_sent_again():
    async def test(bottle):
        a, b = await pair(bottle)
        b.mute.add(SHARD)
        _, (leader,) = await leading(bottle, a, b)
        end = leader.append(seal([b"one"]))
        await asyncio.sleep(2)
        assert leader.high_watermark == 0
        b.mute.clear()
        await until(lambda: leader.high_watermark == end, 1.0)

    run(test)


def test_a_follower_that_contradicts_itself_does_not_make_a_busy_loop():
    async def test(bottle):
        a, b = await pair(bottle)

        def sections(node, found):
            for section in found:
                b.frames += 1
                b.peers.acknowledge(node, section.shard, bytes(16), section.epoch, 1, section.start)

        b.sections = sections
        _, (leader,) = await leading(bottle, a, b)
        leader.append(seal([b"one"]))
        await asyncio.sleep(10)

        assert b.frames < 100
        assert leader.high_watermark == 0

    run(test)


# ---- everything at once ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_whatever_breaks_the_follower_ends_with_the_leaders_bytes(seed):
    draw = random.Random(seed)

    async def test(bottle):
        config = FeedsConfig(window_bytes=64 * 1024, feed_window_bytes=32 * 1024, frame_bytes=16 * 1024,
                             section_bytes=8 * 1024, catch_up_bytes_per_second=4 << 20)  # fmt: skip
        a, b = await pair(bottle, feeds=config)
        directory, leaders = await leading(bottle, a, b, SHARDS[:3], tail_bytes=48 * 1024)
        for number in range(150):
            leader = draw.choice(leaders)
            for _ in range(draw.choice((1, 1, 5, 20))):
                leader.append(seal([bytes([number]) * draw.choice((10, 100, 3000, 9000))] * draw.randint(1, 3)))
            act = draw.random()
            held = b.held[leader.uuid]
            if act < 0.05:
                held.batches = held.batches[: draw.randint(0, len(held.batches))]      # not synced, and lost
            elif act < 0.08:
                b.refuse = draw.choice((None, None, REFUSED))
            elif act < 0.11:
                bottle.world.network.break_some(0.5)
            elif act < 0.13:
                name = draw.choice("ab")
                bottle.world.stop(bottle.processes[name])
                await asyncio.sleep(draw.choice((0.1, 4.0)))
                bottle.world.resume(bottle.processes[name])
            elif act < 0.15:
                leader.feeds[0].close()
                leader.feeds[0] = bottle.processes["a"].context.run(a.peers.feed, leader, "b")
            elif act < 0.16:
                (b.mute.symmetric_difference_update)({leader.uuid})
            await asyncio.sleep(draw.choice((0, 0.0005, 0.01)))
        b.refuse = None
        b.mute.clear()
        bottle.world.network.break_some(1.0)
        bottle.world.network.faults.broken = bottle.world.network.faults.refused = 0.0
        await until(lambda: all(b.held[leader.uuid].end == leader.log.log_end for leader in leaders), 300.0)

        for leader in leaders:
            assert b.held[leader.uuid].bytes() == b"".join(map(bytes, await read_all(leader.log)))
        await until(lambda: a.peers._peers["b"].lane.flight_bytes == 0, 10.0)
        assert (await a.peers.ask("b", Hear("a"), 1000)).age_ms >= 0
        await bottle.world.start(bottle.processes["a"], directory.close())

    run(test, seed, cut_up=draw.choice((0.0, 0.5)), slow=draw.choice((0.0, 0.05)),
        broken=draw.choice((0.0, 0.002)), refused=draw.choice((0.0, 0.2)))  # fmt: skip
