"""The coordinator's log, its snapshots and rows: hostile facts are refused typed, and bring no state that misleads."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamkit._core.lease_table import LeaseTable
from streamkit.broker.coordinator import Coordinator
from streamkit.errors import CorruptFile, StreamNotFound
from streamkit.leases import facts
from streamkit.model.stream import StreamDescription
from streamkit.protocol import messages as m

SHARDS = [bytes([n]) * 16 for n in range(1, 4)]
LEASES = tuple((shard, number, 5) for number, shard in enumerate(SHARDS))
MEMBER = facts.MemberJoined("billing", 1, "worker", ("orders",), 10_000, 1_000, 30_000)
STORY: tuple[facts.Fact, ...] = (
    facts.Genesis(1),
    facts.ApplicationCreated("billing", 1_700_000_000_000),
    facts.StreamAdded("billing", "orders", LEASES),
    MEMBER,
    facts.LeasesGranted("billing", tuple((shard, 1, 1) for shard in SHARDS)),
    facts.LeasesDraining("billing", (SHARDS[1],)),
    facts.LeasesFreed("billing", (SHARDS[1],), False),
    facts.LeasePaused("billing", SHARDS[2], "poison"),
    facts.LeasesResumed("billing", (SHARDS[2],)),
    facts.MemberGone("billing", 1, True),
)


def rows() -> bytes:
    table = LeaseTable()
    for shard, _, start in LEASES:
        table.add(shard, start)
        table.grant(shard, 1, 1)
    table.checkpoint([m.CheckpointItem(SHARDS[0], 1, 1, 9)], 5)
    return table.dump(0, 3)


SNAPSHOT: tuple[facts.Fact, ...] = (
    facts.SnapshotStart(1),
    facts.ApplicationCreated("billing", 1_700_000_000_000, 1),
    facts.StreamAdded("billing", "orders", LEASES),
    MEMBER,
    facts.LeaseRows("billing", rows(), {SHARDS[0]: {3: 1}}, {SHARDS[1]: "why"}),
    facts.SnapshotEnd(),
)


class KeptLog:
    """A command log in memory."""

    def __init__(self, records: list[bytes]) -> None:
        self.records = records

    async def append(self, records: list[bytes]) -> int:
        self.records += records
        return len(self.records) - len(records)

    async def replay(self) -> AsyncIterator[bytes]:
        for record in list(self.records):
            yield record

    async def trim(self, before: int) -> None:
        assert before >= 0


class NoStreams:
    """A catalogue without streams."""

    def stream(self, name: str) -> StreamDescription:
        raise StreamNotFound(f'stream "{name}" does not exist', stream=name)

    def high_watermark(self, uuid: bytes) -> int:
        return 0


class StillClock:
    def now_ms(self) -> int:
        return 1_700_000_000_000

    def monotonic_ms(self) -> int:
        return 1_000_000


async def opened(records: list[bytes]) -> list[bytes] | None:
    """The log after a coordinator opened it, looked at everything and closed; None when it was refused."""
    log = KeptLog(list(records))
    coordinator = Coordinator(log, NoStreams(), StillClock())  # type: ignore[arg-type]
    try:
        await coordinator.open()
    except CorruptFile as error:
        assert error.facts["position"] < len(records)
        return None
    table = coordinator.machine.table
    for application in table.applications.values():
        application.holdings()
        for shard in application.stream_of:
            application.leases.row(shard)
    again = [facts.decode(facts.encode(fact)) for fact in table.snapshot()]
    fresh = type(table)()
    for fact in again:
        fresh.replay(fact)
    assert list(fresh.snapshot()) == list(table.snapshot())
    await coordinator.close()
    return log.records


def run(records: list[bytes]) -> list[bytes] | None:
    return asyncio.run(opened(records))


NUMBERS = st.sampled_from((0, 1, -1, 2, 1 << 31, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)) | st.integers(-3, 30)
NAMES = st.sampled_from((*SHARDS, b"", b"short", "billing", "orders", "", None, True))
LEAVES = NUMBERS | NAMES | st.binary(max_size=130)
STORIES = st.sampled_from((STORY, SNAPSHOT))


def places(node: object) -> list[list[int]]:
    """The way to every value inside, as indexes; a key of a dictionary is passed over."""
    if not isinstance(node, list):
        return []
    return [[at, *rest] for at, inner in enumerate(node) for rest in [[], *places(inner)]]


@st.composite
def forged(draw: st.DrawFn) -> list[bytes]:
    """A sound log with some values exchanged, facts doubled, dropped or moved."""
    story = [msgspec.msgpack.decode(facts.encode(fact)) for fact in draw(STORIES)]
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(story) - 1))
        match draw(st.sampled_from(("leaf", "leaf", "leaf", "drop", "double", "move"))):
            case "leaf":
                *way, last = draw(st.sampled_from(places(story)))
                place = story
                for step in way:
                    place = place[step]
                place[last] = draw(LEAVES)
            case "drop" if len(story) > 1:
                del story[at]
            case "double":
                story.insert(at, msgspec.msgpack.decode(msgspec.msgpack.encode(story[at])))
            case _:
                story.append(story.pop(at))
    return [msgspec.msgpack.encode(fact) for fact in story]


@pytest.mark.fuzz
@given(records=forged())
def test_a_forged_command_log_is_refused_typed_or_makes_whole_state(records: list[bytes]) -> None:
    run(records)


@pytest.mark.fuzz
@given(
    story=STORIES, at=st.integers(0, 9), place=st.integers(0, 500), value=st.integers(0, 255),
    noise=st.binary(max_size=9),
)
def test_a_damaged_command_is_refused_typed_or_makes_whole_state(
    story: tuple[facts.Fact, ...], at: int, place: int, value: int, noise: bytes
) -> None:
    records = [facts.encode(fact) for fact in story]
    record = bytearray(records[at % len(records)])
    record[place % len(record)] = value
    records[at % len(records)] = bytes(record) + noise
    run(records)


@pytest.mark.fuzz
@given(edits=st.lists(st.tuples(st.integers(0, 191), st.integers(0, 255)), max_size=6), cut=st.integers(0, 200))
def test_forged_lease_rows_are_refused_or_answer_every_question(edits: list[tuple[int, int]], cut: int) -> None:
    image = bytearray(rows())
    for at, value in edits:
        image[at] = value
    table = LeaseTable()
    for shard, _, start in LEASES:
        table.add(shard, start)
    with contextlib.suppress(ValueError):
        table.restore(bytes(image[: len(image) - cut] if cut < 20 else image))
    for shard in SHARDS:
        state, session, lease_epoch, checkpoint, *_ = table.row(shard)
        assert state in ("ready", "owned", "draining", "paused")
        numbers = (0, 1, int.from_bytes(bytes(image[40:48]), "little"), (1 << 64) - 1)
        items = [m.CheckpointItem(shard, lease_epoch, number, checkpoint) for number in numbers]
        results, _ = table.checkpoint(items, 5)
        assert len(results) == 4 and set(results) <= {"ok", "fenced", "behind"}
        table.renew(session, [(shard, lease_epoch)])
    assert len(table.dump(0, 9)) == 3 * 64


@pytest.mark.parametrize("story", [STORY, SNAPSHOT])
def test_the_sound_logs_that_forgery_starts_from_open(story: tuple[facts.Fact, ...]) -> None:
    assert run([facts.encode(fact) for fact in story]) is not None


def test_a_fact_with_a_number_that_no_row_has_room_for_is_refused_typed() -> None:
    bad = facts.StreamAdded("billing", "orders", ((SHARDS[0], 0, -1),))
    assert run([facts.encode(fact) for fact in (*STORY[:2], bad)]) is None


def test_a_row_with_an_answer_that_does_not_exist_is_refused() -> None:
    image = bytearray(rows())
    image[61] = 3
    table = LeaseTable()
    for shard, _, start in LEASES:
        table.add(shard, start)
    with pytest.raises(ValueError):
        table.restore(bytes(image))
