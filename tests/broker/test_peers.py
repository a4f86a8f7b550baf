"""Links between nodes, on loopback: what one says the other hears, and who does not belong is turned away."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from streamkit.broker.feed import State
from streamkit.errors import ConnectionFailed, LimitReached, NotFound, ProtocolMismatch, TimedOut
from streamkit.protocol.peers import (
    ACCEPTED,
    MISMATCH,
    STALE,
    Hear,
    Heard,
    Identity,
    PeerConnection,
    PeerSide,
    PeerState,
    Seal,
)
from streamkit.runtime.real import real_runtime
from streamkit.storage import LogDirectory
from tests.broker.peer_nodes import CLUSTER, Held, Leader, Node, until, walk
from tests.oracles_storage import SHARDS, read_all, seal

SHARD = SHARDS[0]


@contextlib.asynccontextmanager
async def nodes(*names, told=True, each=None, **config):
    """Nodes on loopback, listening; `each`: name → settings of its own."""
    runtime = real_runtime()
    made = [Node(name, runtime, **{**config, **(each or {}).get(name, {})}) for name in names]
    addresses = {node.name: await node.peers.listen("127.0.0.1:0") for node in made}
    if told:
        for node in made:
            node.peers.set_nodes(addresses)
    try:
        yield made
    finally:
        for node in made:
            await node.peers.close()


@contextlib.asynccontextmanager
async def log_of(path, *shards):
    directory = await LogDirectory.open(str(path), runtime=real_runtime())
    await directory.create_shards(shards)
    try:
        yield directory
    finally:
        await directory.close()


async def linked(a, b):
    await until(lambda: a.peers.connected(b.name) and b.peers.connected(a.name))


# ---- feeds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability_level", ["leader", "os", "fsync"])
async def test_a_follower_gets_what_the_leader_appends(tmp_path, durability_level):
    async with log_of(tmp_path, SHARD) as directory, nodes("a", "b") as (a, b):
        leader = Leader(directory.shards[SHARD])
        held = b.held[SHARD] = Held()
        leader.feeds.append(a.peers.feed(leader, "b"))
        for number in range(1000):
            end = leader.append(seal([b"%d" % number] * 3))
        await until(lambda: leader.high_watermark == end and held.high_watermark == end)

        assert held.bytes() == b"".join(map(bytes, await read_all(leader.log)))
        assert leader.answers[-1] == ("b", held.incarnation, leader.epoch, ACCEPTED, end)
        assert leader.feeds[0].matched == end
        assert leader.feeds[0].lag_bytes == 0


async def test_both_nodes_lead_and_follow_over_one_connection(tmp_path):
    async with log_of(tmp_path, *SHARDS[:2]) as directory, nodes("a", "b") as (a, b):
        ours, theirs = Leader(directory.shards[SHARDS[0]]), Leader(directory.shards[SHARDS[1]])
        b.held[SHARDS[0]], a.held[SHARDS[1]] = Held(), Held()
        ours.feeds.append(a.peers.feed(ours, "b"))
        theirs.feeds.append(b.peers.feed(theirs, "a"))
        for number in range(200):
            end = ours.append(seal([b"ours %d" % number]))
            theirs.append(seal([b"theirs %d" % number]))
        await until(lambda: ours.high_watermark == theirs.high_watermark == end)

        assert b.held[SHARDS[0]].bytes() == b"".join(map(bytes, await read_all(ours.log)))
        assert a.held[SHARDS[1]].bytes() == b"".join(map(bytes, await read_all(theirs.log)))
        assert a.events == ["up b"] and b.events == ["up a"]


async def test_a_second_log_takes_the_batches_as_they_come(tmp_path):
    class Taking(Node):
        log = None

        def sections(self, node, sections):
            for section in sections:
                if section.start > self.log.log_end:
                    self.peers.acknowledge(node, section.shard, bytes(16), section.epoch, MISMATCH, self.log.log_end)
                    continue
                end = self.log.accept(section, epoch=section.epoch, durability="os")
                self.peers.acknowledge(node, section.shard, bytes(16), section.epoch, ACCEPTED, end)

    async with log_of(tmp_path / "a", SHARD) as first, log_of(tmp_path / "b", SHARD) as second:
        runtime = real_runtime()
        leads, follows = Node("a", runtime), Taking("b", runtime)
        follows.log = second.shards[SHARD]
        leader = Leader(first.shards[SHARD])
        addresses = {node.name: await node.peers.listen("127.0.0.1:0") for node in (leads, follows)}
        for number in range(50):
            leader.append(seal([bytes([number]) * 20_000] * (1 + number % 4)))
        leader.feeds.append(leads.peers.feed(leader, "b"))
        for node in (leads, follows):
            node.peers.set_nodes(addresses)
        for number in range(2000):
            end = leader.append(seal([b"%d" % number]))
            if number % 50 == 0:
                await asyncio.sleep(0)
        await until(lambda: leader.high_watermark == end)

        assert await read_all(follows.log) == await read_all(leader.log)
        assert follows.log.epochs == leader.log.epochs
        await leads.peers.close()
        await follows.peers.close()


async def test_shards_that_are_ready_in_one_turn_share_a_frame(tmp_path):
    async with log_of(tmp_path, *SHARDS) as directory, nodes("a", "b") as (a, b):
        await linked(a, b)
        leaders = [Leader(directory.shards[shard]) for shard in SHARDS]
        for leader in leaders:
            b.held[leader.uuid] = Held()
            leader.feeds.append(a.peers.feed(leader, "b"))
        await until(lambda: all(leader.feeds[0].state is State.STREAMING for leader in leaders))
        before = b.frames
        for leader in leaders:
            for number in range(20):
                end = leader.append(seal([b"%d" % number]))
        await until(lambda: all(leader.high_watermark == end for leader in leaders))

        assert b.frames - before == 1
        assert len({start for _, start, size, _ in b.sections_seen if size}) == 1


async def test_a_log_that_went_another_way_is_cut_back_to_where_they_part(tmp_path):
    async with log_of(tmp_path, SHARD) as directory, nodes("a", "b") as (a, b):
        log = directory.shards[SHARD]
        held = b.held[SHARD] = Held()
        for epoch in (1, 2):
            for number in range(5):
                log.append(seal([b"%d" % number] * 2), now_ms=1, epoch=epoch, durability="os")
        shared = walk(b"".join(map(bytes, await read_all(log))))
        held.batches = shared[:8]
        for number in range(5):                    # what a leader of epoch 3 left there and nowhere else
            held.batches.append((held.end, held.end + 2, 3, shared[number][3]))
        leader = Leader(log, epoch=4)
        leader.append(seal([b"of epoch 4"]))
        leader.feeds.append(a.peers.feed(leader, "b"))
        await until(lambda: leader.high_watermark == log.log_end)

        assert held.bytes() == b"".join(map(bytes, await read_all(log)))
        assert MISMATCH in {answer[3] for answer in leader.answers}


async def test_a_newer_epoch_is_reported_and_nothing_more_is_sent(tmp_path):
    async with log_of(tmp_path, SHARD) as directory, nodes("a", "b") as (a, b):
        leader = Leader(directory.shards[SHARD], epoch=4)
        b.held[SHARD] = Held()
        b.held[SHARD].promised = 9
        leader.feeds.append(a.peers.feed(leader, "b"))
        leader.append(seal([b"too late"]))
        await until(lambda: leader.answers)

        assert leader.answers == [("b", b.held[SHARD].incarnation, 9, STALE, 0)]
        assert leader.feeds[0].state is State.RESTING
        assert b.held[SHARD].batches == []


async def test_a_leader_that_stepped_down_is_silent_even_before_its_feed_is_closed(tmp_path):
    async with log_of(tmp_path, SHARD) as directory, nodes("a", "b") as (a, b):
        leader = Leader(directory.shards[SHARD], epoch=4)
        b.held[SHARD] = Held()
        leader.feeds.append(a.peers.feed(leader, "b"))
        leader.append(seal([b"of epoch 4"]))
        await until(lambda: leader.high_watermark == leader.log.log_end)
        seen = len(b.sections_seen)
        leader.epoch = 5
        leader.append(seal([b"of epoch 5"]))
        leader.high_watermark += 1
        leader.feeds[0].ready()
        await a.peers.ask("b", Hear("a"), 5_000)

        assert [place for place in b.sections_seen[seen:] if place[2]] == []


async def test_a_closed_feed_sends_and_reports_nothing(tmp_path):
    async with log_of(tmp_path, SHARD) as directory, nodes("a", "b") as (a, b):
        leader = Leader(directory.shards[SHARD])
        b.held[SHARD] = Held()
        feed = a.peers.feed(leader, "b")
        leader.feeds.append(feed)
        end = leader.append(seal([b"one"]))
        await until(lambda: leader.high_watermark == end)
        feed.close()
        feed.close()
        answers = len(leader.answers)
        leader.append(seal([b"two"]))
        await a.peers.ask("b", Hear("a"), 5_000)

        assert b.held[SHARD].end == end
        assert len(leader.answers) == answers


@pytest.mark.parametrize("leads, follows, spoken", [(1, 2, 1), (2, 1, 1), (2, 2, 2), (1, 1, 1)])
@pytest.mark.parametrize("dialling", ["leader", "follower"])
async def test_two_protocol_versions_on_one_wire(tmp_path, leads, follows, spoken, dialling):
    leading, following = ("a", "b") if dialling == "leader" else ("b", "a")
    each = {leading: {"version_max": leads}, following: {"version_max": follows}}
    async with log_of(tmp_path, SHARD) as directory, nodes(leading, following, each=each) as (one, other):
        leader = Leader(directory.shards[SHARD])
        held = other.held[SHARD] = Held()
        feed = one.peers.feed(leader, following)
        leader.feeds.append(feed)
        for number in range(20):
            end = leader.append(seal([b"%d" % number]))
        await until(lambda: leader.high_watermark == end)

        assert held.bytes() == b"".join(map(bytes, await read_all(leader.log)))
        assert one.peers.version(following) == other.peers.version(leading) == spoken
        assert feed.matched == end
        assert feed.written == (end if spoken == 2 else None)


# ---- requests --------------------------------------------------------------------------------------------


async def test_questions_are_answered_in_both_directions():
    async with nodes("a", "b") as (a, b):
        await linked(a, b)
        there, back = await asyncio.gather(a.peers.ask("b", Hear("a"), 5_000), b.peers.ask("a", Hear("b"), 5_000))

        assert isinstance(there, Heard) and isinstance(back, Heard)
        assert b.asked_of == [Hear("a")] and a.asked_of == [Hear("b")]


async def test_a_refusal_is_raised_as_what_it_was():
    async with nodes("a", "b") as (a, b):
        await linked(a, b)
        with pytest.raises(NotFound, match="Seal is nothing this node knows"):
            await a.peers.ask("b", Seal(()), 5_000)


async def test_who_is_not_there_cannot_be_asked():
    async with nodes("a", "b", told=False) as (a, _):
        for node in ("b", "nobody"):
            with pytest.raises(ConnectionFailed) as caught:
                await a.peers.ask(node, Hear("a"), 5_000)
            assert caught.value.facts["sent"] is False


async def test_an_answer_that_does_not_come_times_out_and_is_ignored_later():
    async with nodes("a", "b") as (a, b):
        await linked(a, b)
        b.block = asyncio.Event()
        with pytest.raises(TimedOut) as caught:
            await a.peers.ask("b", Hear("a"), 30)
        assert caught.value.facts["sent"] is True
        b.block.set()

        assert isinstance(await a.peers.ask("b", Hear("a"), 5_000), Heard)


async def test_a_link_that_breaks_fails_what_waits_for_it():
    async with nodes("a", "b") as (a, b):
        await linked(a, b)
        b.block = asyncio.Event()
        waiting = asyncio.ensure_future(a.peers.ask("b", Hear("a"), 20_000))
        await until(lambda: b.asked_of)
        await b.peers.close()
        with pytest.raises(ConnectionFailed) as caught:
            await waiting

        assert caught.value.facts["sent"] is True


async def test_requests_of_one_node_are_bounded():
    async with nodes("a", "b", requests_max=4) as (a, b):
        await linked(a, b)
        b.block = asyncio.Event()
        waiting = [asyncio.ensure_future(a.peers.ask("b", Hear("a"), 20_000)) for _ in range(4)]
        await until(lambda: len(b.asked_of) == 4)
        with pytest.raises(LimitReached):
            await a.peers.ask("b", Hear("a"), 5_000)
        b.block.set()

        assert all(isinstance(answer, Heard) for answer in await asyncio.gather(*waiting))


async def test_a_log_is_read_up_to_its_end_committed_or_not(tmp_path):
    async with log_of(tmp_path, SHARD) as directory, nodes("a", "b") as (a, b):
        await linked(a, b)
        log = b.readable = directory.shards[SHARD]
        for number in range(300):
            log.append(seal([bytes([number % 251]) * 1000]), now_ms=1, epoch=1, durability="os")
        found, start = [], 0
        while start < log.log_end:
            fetched = await a.peers.read_log("b", SHARD, start, 50_000, 5_000)
            assert fetched.log_end == log.log_end
            found += [bytes(batch) for batch in fetched.batches]
            start += len(fetched.batches)

        assert found == [bytes(batch) for batch in await read_all(log)]
        with pytest.raises(NotFound):
            await b.peers.read_log("a", SHARD, 0, 1000, 5_000)


# ---- who belongs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "others, reason",
    [({"cluster": "c2"}, "cluster"), ({"version_max": 1}, None)],
)
async def test_another_cluster_is_refused_on_both_ends_and_leaves_nothing(others, reason):
    async with nodes("a", "b", each={"b": others}) as (a, b):
        if reason is None:
            await linked(a, b)
            return
        await until(lambda: a.peers.failure("b") is not None)

        failure = a.peers.failure("b")
        assert isinstance(failure, ProtocolMismatch) and failure.facts["reason"] == reason
        assert f"belongs to cluster {CLUSTER}" in str(failure)
        assert not a.peers.connected("b") and not b.peers.connected("a")
        assert a.events == b.events == []
        assert not a.peers.refused("b")


async def test_a_node_registered_at_the_address_of_another_is_found_out():
    async with nodes("a", "b", told=False) as (a, b):
        address = await b.peers.listen("127.0.0.1:0")
        a.peers.set_nodes({"bb": address})
        await until(lambda: a.peers.failure("bb") is not None)

        assert str(a.peers.failure("bb")) == "node b answers where node bb is registered"
        assert a.events == []


async def test_a_second_node_of_a_name_is_refused_while_the_first_is_there():
    async with nodes("a", "b") as (a, b), nodes("a", told=False, disk=b"another disk----") as (second,):
        await linked(a, b)
        address = await b.peers.listen("127.0.0.1:0")
        second.peers.set_nodes({"b": address})
        await until(lambda: second.peers.failure("b") is not None)

        assert second.peers.failure("b").facts["reason"] == "duplicate"
        assert b.peers.connected("a") and a.peers.connected("b")
        assert b.events == ["up a"]


async def test_a_node_that_started_again_replaces_its_old_link():
    async with nodes("a", "b") as (a, b), nodes("a", told=False) as (again,):
        await linked(a, b)
        a.peers.set_nodes({})                      # it tries no more
        again.peers.set_nodes({"b": await b.peers.listen("127.0.0.1:0")})
        await until(lambda: again.peers.connected("b"))

        assert b.peers.connected("a")
        assert b.events in (["up a", "down a", "up a"], ["up a", "down a", "up a", "down a", "up a"])


async def test_a_link_to_a_node_that_left_is_closed_and_stays_closed():
    async with nodes("a", "b") as (a, b):
        await linked(a, b)
        a.peers.set_nodes({})
        b.peers.set_nodes({})
        await until(lambda: not b.peers.connected("a"))

        assert not a.peers.connected("b")
        assert a.events == ["up b", "down b"] and b.events == ["up a", "down a"]
        assert a.peers.heard_ms("b") is None


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\xff" * 100, bytes(100),
     b"\x10\0\0\0\x01\0\0\0\0\0\0\0\xc1\xc1\xc1\xc1\xc1\xc1\xc1\xc1"],
)  # fmt: skip
async def test_garbage_is_cut_off_and_others_go_on(garbage):
    async with nodes("a", "b") as (a, b):
        await linked(a, b)
        host, _, port = (await b.peers.listen("127.0.0.1:0")).rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(garbage)
        async with asyncio.timeout(10):
            said = await reader.read()
        writer.close()

        assert b"protocol_mismatch" in said
        assert isinstance(await a.peers.ask("b", Hear("a"), 5_000), Heard)


async def greeted_as(name, address, node):
    """A connection that greeted as node `name`, and then does as the test likes."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    wire = PeerConnection(PeerSide.DIALLING, Identity(CLUSTER, name, b""), expected=node)
    writer.writelines(wire.take())
    while wire.state is PeerState.GREETING:
        wire.feed(await reader.read(1000))
    return reader, writer, wire


@pytest.mark.parametrize("damage", ["cut short", "half a frame", "byte flipped"])
async def test_a_link_that_breaks_the_protocol_is_cut_off_with_a_reason(damage):
    async with nodes("b", told=False, frame_ms=100, beat_ms=20) as (b,):
        reader, writer, wire = await greeted_as("a", await b.peers.listen("127.0.0.1:0"), "b")
        wire.writer.begin_replicate()
        wire.writer.section(SHARD, 1, 0, 0, 0, 0, 0, 0, 0, [bytes(200)])
        wire.writer.end_replicate()
        frame = bytearray(b"".join(wire.take()))
        if damage == "cut short":
            frame[:4] = (len(frame) - 14).to_bytes(4, "little")
            del frame[-10:]
        elif damage == "half a frame":
            del frame[100:]
        else:
            frame[40] ^= 0xFF                      # the section's level
        writer.write(frame)
        async with asyncio.timeout(10):
            while wire.state is PeerState.OPEN:
                wire.feed(await reader.read(10_000))
        writer.close()

        reason = {"cut short": "sections", "half a frame": "slow", "byte flipped": "sections"}[damage]
        assert wire.failure.facts["reason"] == reason
        await until(lambda: b.events == ["up a", "down a"])
        assert b.sections_seen == []


async def test_silence_where_a_greeting_belongs_is_cut_off():
    async with nodes("a", "b", greeting_ms=50) as (a, b):
        await linked(a, b)
        host, _, port = (await b.peers.listen("127.0.0.1:0")).rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"\x10\0\0\0\x01\0")
        async with asyncio.timeout(10):
            said = await reader.read()
        writer.close()

        assert b"timed_out" in said
        assert a.peers.connected("b")


async def test_an_address_where_nobody_listens_is_known_as_refused():
    async with nodes("a", "b", told=False) as (a, b):
        address = await b.peers.listen("127.0.0.1:0")
        await b.peers.close()
        a.peers.set_nodes({"b": address, "0": address})        # the one is dialled, the other would dial us
        await until(lambda: a.peers.refused("b") and a.peers.refused("0"))

        assert a.peers.failure("b").code == "connection_failed"


async def test_everything_ends_with_close(tmp_path):
    async with log_of(tmp_path, SHARD) as directory, nodes("a", "b") as (a, b):
        leader = Leader(directory.shards[SHARD])
        leader.feeds.append(a.peers.feed(leader, "b"))
        await linked(a, b)
        await a.peers.close()
        await b.peers.close()

        assert len(a.peers.tasks) == len(b.peers.tasks) == 0
        assert leader.feeds[0].closed
