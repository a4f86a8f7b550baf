"""The coordinator alone: durable before answered, restarts, compaction, waiting heartbeats, bad requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import msgspec
import pytest

from streamkit.broker.coordinator import Coordinator, CoordinatorConfig
from streamkit.errors import (
    ApplicationNotFound,
    Conflict,
    CorruptFile,
    DiskFailed,
    InvalidPosition,
    InvalidRequest,
    LeaseLost,
    LimitReached,
    ShardNotFound,
    StreamNotFound,
)
from streamkit.leases import facts
from streamkit.model.sequence import sequence_number
from streamkit.model.shard import Shard, even_ranges
from streamkit.model.stream import StreamConfig, StreamDescription, StreamStatus
from streamkit.protocol import messages as m


class Journal:
    """A command log in memory. held: appends wait until it is set; failing: they raise."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.first = 0
        self.appends = 0
        self.held: asyncio.Event | None = None
        self.failing: Exception | None = None

    async def append(self, records: list[bytes]) -> int:
        await asyncio.sleep(0)
        if self.held is not None:
            await self.held.wait()
        if self.failing is not None:
            raise self.failing
        self.appends += 1
        self.records += records
        return self.first + len(self.records) - len(records)

    async def replay(self) -> AsyncIterator[bytes]:
        for record in list(self.records):
            yield record

    async def trim(self, before: int) -> None:
        del self.records[: before - self.first]
        self.first = before


class Streams:
    """Streams with a fixed log of `end` records in each shard, one a second from second 1,000 on."""

    def __init__(self) -> None:
        self.known: dict[str, StreamDescription] = {}
        self.ends: dict[bytes, int] = {}
        self._made = 0

    def create(self, name: str, shards: int = 1, end: int = 100) -> None:
        self._made += 1
        made = tuple(
            Shard(ordinal=n, uuid=bytes([self._made, n]) * 8, hash_start=low, hash_end=high, created_ms=5)
            for n, (low, high) in enumerate(even_ranges(shards))
        )
        self.known[name] = StreamDescription(
            name=name, status=StreamStatus.ACTIVE, config=StreamConfig(shards=shards), created_ms=5, map_version=1,
            shards=made,
        )
        self.ends.update((shard.uuid, end) for shard in made)

    def stream(self, name: str) -> StreamDescription:
        if name not in self.known:
            raise StreamNotFound(f'stream "{name}" does not exist', try_="streamkit stream list", stream=name)
        return self.known[name]

    def high_watermark(self, shard: bytes) -> int:
        if shard not in self.ends:
            raise ShardNotFound("no such shard")
        return self.ends[shard]

    def resolve(self, shard: bytes, kind: str, value: int) -> int:
        end = self.ends[shard]
        return {"trim_horizon": 0, "latest": end, "at_sequence": value, "at_time": min(end, value // 1000)}[kind]

    def leads(self, shard: bytes) -> bool:
        return True

    def retention_hours(self, name: str) -> int:
        return self.known[name].config.retention_hours

    def backlog(self, shard: bytes, sequence: int) -> tuple[int, int]:
        return 0, 100 * (self.ends[shard] - sequence)

    def append_time_of(self, shard: bytes, sequence: int) -> int | None:
        return 1_000_000 + sequence * 1_000 if sequence < self.ends[shard] else None


class Clock:
    def __init__(self) -> None:
        self.ms = 2_000_000

    def now_ms(self) -> int:
        return self.ms

    def monotonic_ms(self) -> int:
        return self.ms


class Bench:
    """A coordinator with everything around it."""

    def __init__(self, **config: int) -> None:
        self.journal = Journal()
        self.streams = Streams()
        self.clock = Clock()
        self.config = CoordinatorConfig(**config)
        self.coordinator = Coordinator(self.journal, self.streams, self.clock, self.config)

    async def restart(self) -> None:
        self.coordinator = Coordinator(self.journal, self.streams, self.clock, self.config)
        await self.coordinator.open()

    async def join(self, worker: str = "w1", *, streams: tuple[str, ...] = ("s",), start: str = "trim_horizon",
                   connection: int = 1, **more: object) -> m.Membership:
        message = m.JoinApplication("app", worker, streams, start, **more)
        return await self.coordinator.handle(message, connection)

    async def beat(self, view: m.Membership, *, wait_ms: int = 0, connection: int = 1) -> m.Membership:
        return await self.coordinator.handle(m.Heartbeat("app", "w1", view.session, owned(view), wait_ms), connection)

    async def checkpoint(self, view: m.Membership, sequence: int, number: int = 1) -> str:
        grant = view.granted[0]
        item = m.CheckpointItem(grant.shard.uuid, grant.lease_epoch, number, sequence)
        return (await self.coordinator.handle(m.Checkpoint("app", "w1", (item,)), 1)).results[0]

    async def describe(self) -> m.ApplicationDescribed:
        return await self.coordinator.handle(m.DescribeApplication("app"), 1)


def owned(view: m.Membership) -> tuple[tuple[bytes, int], ...]:
    return tuple((grant.shard.uuid, grant.lease_epoch) for grant in view.granted)


@pytest.fixture
async def bench() -> Bench:
    made = Bench()
    made.streams.create("s", shards=2)
    await made.coordinator.open()
    return made


async def test_nothing_is_answered_before_it_is_durable(bench):
    view = await bench.join()
    bench.journal.held = asyncio.Event()
    checkpoint = asyncio.create_task(bench.checkpoint(view, 10))
    heartbeat = asyncio.create_task(bench.beat(view))
    await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)
    assert not checkpoint.done() and not heartbeat.done()

    bench.journal.held.set()

    assert await checkpoint == "ok"
    assert (await heartbeat).lost == ()


async def test_requests_that_wait_together_share_an_append(bench):
    view = await bench.join()
    before = bench.journal.appends
    grants = view.granted
    items = [m.CheckpointItem(grants[n % 2].shard.uuid, 1, n // 2 + 1, n) for n in range(100)]

    await asyncio.gather(*(bench.coordinator.handle(m.Checkpoint("app", "w1", (item,)), 1) for item in items))

    assert bench.journal.appends - before <= 3


async def test_a_log_that_fails_ends_all_answers(bench):
    view = await bench.join()
    bench.journal.failing = DiskFailed("the journal cannot be written", path="x")

    for call in (bench.checkpoint(view, 5), bench.beat(view), bench.join("w2"), bench.describe()):
        with pytest.raises(DiskFailed):
            await call
    await bench.coordinator.tick()


async def test_what_comes_while_the_log_fails_is_answered_too_and_the_end_does_not_wait_for_it(bench):
    view = await bench.join()
    bench.journal.held = asyncio.Event()
    first = asyncio.create_task(bench.checkpoint(view, 5))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    second = asyncio.create_task(bench.join("w2"))
    await asyncio.sleep(0)
    bench.journal.failing = DiskFailed("the journal cannot be written", path="x")
    bench.journal.held.set()

    async with asyncio.timeout(5):
        outcomes = await asyncio.gather(first, second, return_exceptions=True)
        await bench.coordinator.close()

    assert [type(outcome) for outcome in outcomes] == [DiskFailed, DiskFailed]


async def test_a_restart_keeps_checkpoints_and_owners_and_gives_a_full_time_out(bench):
    view = await bench.join()
    await bench.checkpoint(view, 42)
    bench.clock.ms += 9_000

    await bench.restart()
    bench.clock.ms += 9_999
    await bench.coordinator.tick()
    again = await bench.beat(view)

    assert (again.granted, again.lost) == ((), ())
    assert [(lease.owner, lease.checkpoint) for lease in (await bench.describe()).leases] == [("w1", 42), ("w1", 0)]
    assert await bench.checkpoint(view, 7, number=1) == "ok", "a repeat gets the answer that was stored"


async def test_a_checkpoint_above_what_the_shard_holds_is_refused_and_changes_nothing(bench):
    view = await bench.join()
    shards = [(grant.shard.uuid, grant.lease_epoch) for grant in view.granted]
    items = [m.CheckpointItem(*shards[0], 1, 101, {100: 2}), m.CheckpointItem(*shards[1], 1, 100)]

    answer = await bench.coordinator.handle(m.Checkpoint("app", "w1", tuple(items)), 1)

    assert answer.results == ("beyond", "ok") and bench.coordinator.checkpoints["beyond"] == 1
    assert [(lease.checkpoint, lease.poisoned) for lease in (await bench.describe()).leases] == [(0, 0), (100, 0)]
    assert await bench.checkpoint(view, 100) == "ok", "its number was not used up"


async def test_a_checkpoint_above_what_the_shard_holds_by_a_zombie_is_fenced(bench):
    view = await bench.join()
    await bench.coordinator.handle(m.LeaveApplication("app", "w1", view.session), 1)

    assert await bench.checkpoint(view, 101) == "fenced"


async def test_nothing_is_kept_of_workers_that_went_silent(bench):
    for number in range(20):
        await bench.join(f"w{number}")
        bench.clock.ms += 11_000
        await bench.coordinator.tick()

    assert bench.coordinator._told == {} and (await bench.describe()).workers == ()


async def test_the_start_is_resolved_once(bench):
    await bench.join(start="latest")
    for shard in bench.streams.ends:
        bench.streams.ends[shard] = 500
    await bench.join("w2", start="latest")
    await bench.restart()

    assert [lease.checkpoint for lease in (await bench.describe()).leases] == [100, 100]


@pytest.mark.parametrize(
    ("kind", "value", "expected"), [("trim_horizon", 0, 0), ("latest", 0, 100), ("at_time", 7_000, 7)]
)
async def test_every_kind_of_start(bench, kind, value, expected):
    view = await bench.join(start=kind, start_value=value)

    assert [grant.checkpoint for grant in view.granted] == [expected, expected]


async def test_a_start_for_each_shard(bench):
    number = sequence_number(33, ordinal=1, created_ms=5, arrived_ms=5)
    by_shard = {"shardId-000000000000": "latest", "shardId-000000000001": number}

    view = await bench.join(start="per_shard", start_by_shard=by_shard)

    assert {grant.shard.ordinal: grant.checkpoint for grant in view.granted} == {0: 100, 1: 33}


async def test_a_start_that_leaves_a_shard_out_is_refused(bench):
    with pytest.raises(InvalidPosition, match="says nothing about shardId-000000000001"):
        await bench.join(start="per_shard", start_by_shard={"shardId-000000000000": "latest"})
    assert (await bench.coordinator.handle(m.ListApplications(), 1)).names == ()


async def test_lag_is_told_in_records_and_in_time(bench):
    view = await bench.join()
    await bench.checkpoint(view, 90)
    bench.clock.ms = 1_000_000 + 95_000

    first, second = (await bench.describe()).leases

    assert (first.lag_records, first.lag_ms) == (10, 5_000)
    assert (second.lag_records, second.lag_ms) == (100, 95_000)


async def test_a_waiting_heartbeat_is_answered_when_there_is_news(bench):
    first = await bench.join("w1", connection=1)
    waiting = asyncio.create_task(bench.beat(first, wait_ms=3_000))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not waiting.done()

    second = await bench.join("w2", connection=2)
    draining = (await waiting).draining
    assert len(draining) == 1 and second.granted == ()

    told = asyncio.create_task(bench.beat(first, wait_ms=3_000))
    also = asyncio.create_task(
        bench.coordinator.handle(m.Heartbeat("app", "w2", second.session, (), 3_000), 2)
    )
    for _ in range(10):
        await asyncio.sleep(0)
    assert not told.done(), "what was told once is no news"
    lease = next(lease for lease in owned(first) if lease[0] in draining)
    await bench.coordinator.handle(m.ReleaseLeases("app", "w1", (lease,)), 1)

    assert [grant.shard.uuid for grant in (await also).granted] == [lease[0]]
    told.cancel()


async def test_a_heartbeat_after_a_drain_waits_for_news(bench):
    first = await bench.join()
    await bench.join("w2")
    drained = await bench.beat(first)
    (shard,) = drained.draining
    (kept,) = [(uuid, lease_epoch) for uuid, lease_epoch in owned(first) if uuid != shard]
    (given,) = [(uuid, lease_epoch) for uuid, lease_epoch in owned(first) if uuid == shard]
    await bench.coordinator.handle(m.ReleaseLeases("app", "w1", (given,)), 1)

    beat = m.Heartbeat("app", "w1", first.session, (kept,), 3_000)
    waiting = asyncio.ensure_future(bench.coordinator.handle(beat, 1))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done(), "that the drain is over is no news"
    await bench.coordinator.handle(m.LeaveApplication("app", "w2", first.session + 1), 1)
    answer = await waiting

    assert [grant.shard.uuid for grant in answer.granted] == [shard]


async def test_a_waiting_heartbeat_learns_that_its_application_is_gone(bench):
    view = await bench.join()
    waiting = asyncio.create_task(bench.beat(view, wait_ms=3_000))
    for _ in range(10):
        await asyncio.sleep(0)

    await bench.coordinator.handle(m.LeaveApplication("app", "w1", view.session), 1)

    with pytest.raises(LeaseLost):
        await waiting


async def test_close_answers_waiting_heartbeats(bench):
    view = await bench.join()
    waiting = asyncio.create_task(bench.beat(view, wait_ms=3_000))
    for _ in range(10):
        await asyncio.sleep(0)

    await bench.coordinator.close()

    assert (await waiting).granted == ()


async def test_a_lost_connection_costs_one_heartbeats_time(bench):
    await bench.join("w1", connection=1)
    second = await bench.join("w2", connection=2)
    bench.coordinator.connection_lost(1)
    bench.clock.ms += 3_000
    await bench.coordinator.tick()
    view = await bench.coordinator.handle(m.Heartbeat("app", "w2", second.session, ()), 2)

    assert len(view.granted) == 2 and all(grant.previous_owner_crashed for grant in view.granted)


async def test_fetches_are_checked_against_session_and_lease_epoch(bench):
    view = await bench.join()
    shard, epoch = owned(view)[0]

    bench.coordinator.check_fetch("app", view.session, shard, epoch)
    for session, number in ((view.session, epoch + 1), (view.session + 1, epoch), (0, 0)):
        with pytest.raises(LeaseLost, match="this worker must stop"):
            bench.coordinator.check_fetch("app", session, shard, number)
    with pytest.raises(ApplicationNotFound, match='"other" does not exist'):
        bench.coordinator.check_fetch("other", view.session, shard, epoch)


async def test_a_long_log_is_rewritten_and_still_gives_the_same_state():
    bench = Bench(snapshot_bytes_min=2_000)
    bench.streams.create("s", shards=2, end=1_000)
    await bench.coordinator.open()
    view = await bench.join()
    for number in range(1, 200):
        assert await bench.checkpoint(view, number, number) == "ok"
        await bench.coordinator.tick()
    before = await bench.describe()

    assert len(bench.journal.records) < 60
    await bench.restart()
    assert msgspec.structs.replace(await bench.describe(), trends=before.trends) == before
    assert await bench.checkpoint(view, 200, 200) == "ok"


@pytest.mark.parametrize("kept", range(1, 6))
async def test_a_snapshot_that_was_cut_off_does_not_count(kept):
    bench = Bench()
    bench.streams.create("s", shards=2)
    await bench.coordinator.open()
    view = await bench.join()
    await bench.checkpoint(view, 42)
    image = [facts.encode(fact) for fact in bench.coordinator.machine.table.snapshot()]
    bench.journal.records += image[: min(kept, len(image) - 1)]

    await bench.restart()

    assert (await bench.describe()).leases[0].checkpoint == 42


@pytest.mark.parametrize("garbage", [b"", b"\xff" * 20, facts.encode(facts.LeasesDraining("nobody", (b"x" * 16,)))])
async def test_a_log_that_makes_no_sense_is_refused(bench, garbage):
    await bench.join()
    bench.journal.records.append(garbage)

    with pytest.raises(CorruptFile, match="coordinator's log"):
        await bench.restart()


async def test_streams_that_go_and_come_again(bench):
    view = await bench.join(streams=("s", "t"))
    assert view.missing == ("t",) and len(view.granted) == 2
    bench.streams.create("t", end=30)
    del bench.streams.known["s"]
    bench.clock.ms += 1_000
    await bench.coordinator.tick()

    seen = await bench.beat(view)
    assert (len(seen.lost), [grant.stream for grant in seen.granted], seen.missing) == (2, ["t"], ("s",))
    assert seen.granted[0].checkpoint == 0, "a stream that comes later is read from its beginning"

    bench.streams.create("s", shards=1)
    bench.clock.ms += 1_000
    await bench.coordinator.tick()
    assert {lease.stream for lease in (await bench.describe()).leases} == {"s", "t"}


async def test_a_coordinator_that_has_not_heard_of_a_resharding_forgets_no_lease(bench):
    view = await bench.join()
    older = bench.streams.known["s"]
    newest = replace(older.shards[1], ordinal=2, uuid=b"newest shard    ", parents=(1,))
    bench.streams.known["s"] = replace(older, map_version=2, shards=(*older.shards, newest))
    bench.streams.ends[newest.uuid] = 50
    bench.clock.ms += 1_000
    await bench.coordinator.tick()
    leases = (await bench.describe()).leases
    assert len(leases) == 3

    bench.streams.known["s"] = older
    await bench.restart()
    for _ in range(3):
        bench.clock.ms += 1_000
        await bench.coordinator.tick()
        await bench.beat(view)
    assert [lease.ordinal for lease in (await bench.describe()).leases] == [0, 1, 2]


async def test_an_application_is_deleted_only_when_nobody_works(bench):
    view = await bench.join()
    with pytest.raises(Conflict, match="1 running workers"):
        await bench.coordinator.handle(m.DeleteApplication("app"), 1)

    await bench.coordinator.handle(m.LeaveApplication("app", "w1", view.session), 1)
    await bench.coordinator.handle(m.DeleteApplication("app"), 1)

    with pytest.raises(ApplicationNotFound):
        await bench.describe()
    await bench.restart()
    assert (await bench.coordinator.handle(m.ListApplications(), 1)).names == ()


@pytest.mark.parametrize("bad", [
    m.JoinApplication("", "w", ("s",), "latest"),
    m.JoinApplication("a" * 200, "w", ("s",), "latest"),
    m.JoinApplication("app", "w\n", ("s",), "latest"),
    m.JoinApplication("app", "w", (), "latest"),
    m.JoinApplication("app", "w", ("s",), "latest", membership_ms=10),
    m.JoinApplication("app", "w", ("s",), "latest", leases_max=-1),
    m.JoinApplication("app", "w", ("s",), "latest", drain_ms=-1),
])
async def test_an_impossible_join_is_refused(bench, bad):
    with pytest.raises(InvalidRequest) as refused:
        await bench.coordinator.handle(bad, 1)
    assert refused.value.try_


async def test_an_application_has_a_bounded_number_of_workers():
    bench = Bench(members_max=2)
    bench.streams.create("s")
    await bench.coordinator.open()
    await bench.join("w1")
    await bench.join("w2")

    with pytest.raises(LimitReached, match="2 workers"):
        await bench.join("w3")
