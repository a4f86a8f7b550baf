"""The notes of a named producer, with a client that keeps them in memory."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from streamkit.errors import ProducerFenced
from streamkit.model.note import Note
from streamkit.producer import resumption
from streamkit.producer.progress import Numbered
from streamkit.producer.resumption import Resumption
from streamkit.protocol.messages import ProducerGiven
from tests.producer.fake_broker import FakeBroker


class Notes:
    """As much of a client as is asked. `held`: writes wait for it."""

    def __init__(self) -> None:
        self.notes: dict[str, tuple[int, bytes]] = {}
        self.end = 0
        self.held: asyncio.Event | None = None

    async def resolve_position(self, shard: Any, position: Any) -> Any:
        return SimpleNamespace(high_watermark=self.end)

    async def fetch(self, shard: Any, start: int, *, wait_ms: int = 500) -> Any:
        return SimpleNamespace(high_watermark=self.end, batches=(), next_sequence=self.end)

    async def list_notes(self, prefix: str, *, after: str = "", count_max: int = 1000) -> list[Note]:
        return [
            Note(key, value, revision) for key, (revision, value) in self.notes.items() if key.startswith(prefix)
        ]

    async def swap_notes(self, swaps: list[tuple[str, int, bytes | None]]) -> int | None:
        if self.held is not None:
            await self.held.wait()
        ((key, expected, value),) = swaps
        revision = self.notes.get(key, (0, b""))[0]
        if revision != expected:
            return None
        assert value is not None
        self.notes[key] = (revision + 1, value)
        return revision + 1


async def begun(notes: Notes, epoch: int) -> Resumption:
    sender = SimpleNamespace(stream=FakeBroker(1).description, identity=ProducerGiven(1, epoch), ends=dict)
    made = Resumption(notes, sender, "importer")  # type: ignore[arg-type]
    await made.begin()
    return made


def stored(made: Resumption, channel: str, number: int) -> None:
    with Numbered(made.progress, channel, number) as numbered:
        numbered.handle = SimpleNamespace(outcome="stored")  # type: ignore[assignment]


async def test_an_elder_that_writes_late_takes_no_number_back() -> None:
    """Its first write of a note is refused, and what it reads then must not let it write over the others."""
    notes = Notes()
    elder = await begun(notes, 1)
    for name in ("a", "b"):
        stored(elder, name, 1)
    newer = await begun(notes, 2)
    for name in ("a", "b"):
        stored(newer, name, 9)
    await newer.write()
    where = notes.notes[newer._prefix][1]
    notes.end = 100                        # the newer one goes on
    await elder._look_and_write()
    assert notes.notes[elder._prefix][1] == where
    with pytest.raises(ProducerFenced):
        await elder._write()
    assert notes.notes[elder._prefix][1] == where
    progress = (await begun(notes, 3)).progress
    assert [progress.settled(name) for name in ("a", "b")] == [9, 9]


async def test_notes_that_cannot_be_written_for_long_are_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumption, "_WRITE_S", 0)
    notes = Notes()
    made = await begun(notes, 1)
    notes.held = asyncio.Event()
    for number in range(20):
        stored(made, "a", number)
        made.progress.changed = True
        made.soon()
        await turns()
    assert len(made._tasks) == 1
    notes.held.set()
    await turns()
    assert made._written == {"a": 19}      # what was settled meanwhile is written next
    await made.close()


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)
