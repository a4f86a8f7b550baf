"""An operator at work on a running application: it is sent elsewhere, and paused, while its workers come and go."""

from __future__ import annotations

import asyncio
import random

from streamkit.errors import StreamkitError
from streamkit.protocol import messages as m
from streamkit.simulator.oracle import History, Reset
from streamkit.simulator.recording import APPLICATION, RecordingClient

_TRIES = 200
_PAUSE_SECONDS = (0.3, 1.0, 3.0)


class Operating:
    """One operator; `run` ends with the application going on, wherever it was sent."""

    def __init__(self, seed: int, history: History, busy_seconds: float) -> None:
        self._draw = random.Random(f"{seed} operator")
        self._history = history
        self._busy_seconds = busy_seconds

    async def run(self, client: RecordingClient) -> None:
        acts = self._draw.choice((1, 1, 2, 3))
        for _ in range(acts):
            await asyncio.sleep(self._draw.random() * 1.5 * self._busy_seconds / acts)
            if self._draw.random() < 0.6:
                await self._reset(client)
            else:
                await self._pause(client)

    async def _reset(self, client: RecordingClient) -> None:
        """To the beginning, to the end, or to wherever a plan for one of these was some time ago."""
        to = self._draw.choice(("trim_horizon", "trim_horizon", "latest"))
        for _ in range(_TRIES):
            try:
                plan = await client.reset_application(APPLICATION, to, dry_run=True)
                break
            except StreamkitError:
                await asyncio.sleep(0.1)
        else:
            return
        positions = plan.positions()
        if self._draw.random() < 0.4:              # somewhere in between
            share = self._draw.random()
            positions = tuple(
                (change.uuid, int(min(change.before, change.after) + share * abs(change.before - change.after)), 0)
                for change in plan.changes
            )
        reset = Reset(self._history.tick(), {shard: sequence for shard, sequence, _ in positions})
        self._history.resets.append(reset)
        if await self._asked(client, m.SetPositions(APPLICATION, positions)):
            reset.done = self._history.tick()

    async def _pause(self, client: RecordingClient) -> None:
        if not await self._asked(client, m.HoldApplication(APPLICATION, "so the operator said")):
            return
        seconds = self._draw.choice(_PAUSE_SECONDS)
        for _ in range(int(seconds / 0.1)):
            await asyncio.sleep(0.1)
            try:
                described = await client.describe_application(APPLICATION)
            except StreamkitError:
                continue
            if described.held and not any(lease.owner for lease in described.leases):
                self._history.held = True
        self._history.held = False
        while not await self._asked(client, m.ResumeLeases(APPLICATION)):
            pass                                   # or nothing would ever come to an end

    async def _asked(self, client: RecordingClient, message: m.Message) -> bool:
        """Whether it was answered; asked again until then, the same each time."""
        for _ in range(_TRIES):
            try:
                await client.call(message)
                return True
            except StreamkitError:
                await asyncio.sleep(0.1)
        return False
