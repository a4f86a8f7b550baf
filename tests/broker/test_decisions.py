"""What was decided and nobody carried out: the coordinator's node does, whatever else cannot be carried out."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from streamkit.broker import decisions
from streamkit.broker.decisions import Decisions
from streamkit.leases.facts import Left


class Clock:
    """A wall clock of its own mind."""

    def __init__(self) -> None:
        self.wall_ms, self.ms = 1_000_000, 0

    def now_ms(self) -> int:
        return self.wall_ms

    def monotonic_ms(self) -> int:
        return self.ms


def decided(clock: Clock, left: dict[tuple[str, bytes], Left], carry_out: Any) -> tuple[Decisions, list[bytes]]:
    """Decisions over what is left, and the names of what was reported as carried out."""
    told: list[bytes] = []

    def step(event: Any) -> Any:
        for name, _, _ in event.items:
            told.append(name)
            del left[event.application, name]

    made = Decisions(
        SimpleNamespace(left=left, left_bytes=0), clock, step, lambda: asyncio.sleep(0), {}, lambda *_: ()  # type: ignore[arg-type]
    )
    made.carry_out = carry_out
    return made, told


def outputs(count: int) -> dict[tuple[str, bytes], Left]:
    return {("", b"%03d" % number): Left(1, 1, b"%03d" % number, 999_000_000) for number in range(count)}


async def test_streams_that_cannot_be_written_do_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "_CARRY_S", 0.01)
    clock = Clock()

    async def carry_out(data: bytes) -> None:
        if data < b"020":
            await asyncio.Event().wait()

    made, told = decided(clock, outputs(30), carry_out)
    async with asyncio.timeout(10):
        while len(told) < 10:
            made.look()
            clock.ms += 1_000
            await asyncio.sleep(0.002)
    assert told == [b"%03d" % number for number in range(20, 30)]
    await made.close()


async def test_the_age_of_what_is_left_is_counted_here_whatever_clocks_say() -> None:
    clock = Clock()
    carried: list[bytes] = []

    async def carry_out(data: bytes) -> None:
        carried.append(data)

    made, told = decided(clock, outputs(1), carry_out)
    for _ in range(6):
        made.look()
        await asyncio.sleep(0)
        assert carried == []
        clock.ms += 1_000
        clock.wall_ms -= 5_000
        if clock.ms == decisions.CARRY_AFTER_MS:
            break
    made.look()
    async with asyncio.timeout(5):
        while not told:  # noqa: ASYNC110 (tasks of its own)
            await asyncio.sleep(0)
    assert carried == [b"000"]
    await made.close()
