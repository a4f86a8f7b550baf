"""What operators ask of the coordinator: lists and descriptions, pauses, other positions, and whether all is well.

Every decision is the state machine's; here messages become events, and rows become answers.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from streamkit.broker.application_lag import LagWatch
from streamkit.errors import Conflict, InvalidPosition, StreamkitError
from streamkit.leases import events
from streamkit.leases.applications import UNDO_MS, Applications
from streamkit.leases.promises import HashRange, problems
from streamkit.leases.table import Application
from streamkit.model.stream import StreamDescription
from streamkit.protocol import messages
from streamkit.runtime.interfaces import Clock

log = logging.getLogger("streamkit.broker")


class Streams(Protocol):
    """As the coordinator has them."""

    def stream(self, name: str) -> StreamDescription: ...
    def high_watermark(self, shard: bytes) -> int: ...
    def leads(self, shard: bytes) -> bool: ...


class Administration:
    """step, settled: the coordinator's, which decide and make durable."""

    def __init__(
        self, machine: Applications, streams: Streams, lag: LagWatch, clock: Clock,
        step: Callable[[events.Event], events.Effects], settled: Callable[[], Awaitable[None]],
        reports: Callable[[Application], tuple[messages.WorkerReport, ...]],
    ) -> None:
        self._machine = machine
        self._streams = streams
        self._lag = lag
        self._clock = clock
        self._step = step
        self._settled = settled
        self._reports = reports
        self.handlers: Mapping[type, Callable[[Any, int], Awaitable[messages.Message]]] = {
            messages.ListApplications: self._list,
            messages.DescribeApplication: self._describe,
            messages.DeleteApplication: self._delete,
            messages.HoldApplication: self._hold,
            messages.SetPositions: self._set_positions,
            messages.CheckApplication: self._check,
        }

    async def _hold(self, message: messages.HoldApplication, connection_id: int) -> messages.Message:
        self._step(events.Hold(message.application, message.reason, self._clock.monotonic_ms()))
        await self._settled()
        log.warning("application.held application=%s reason=%s", message.application, message.reason[:200])
        return messages.Done()

    async def _set_positions(self, message: messages.SetPositions, connection_id: int) -> messages.Message:
        for shard, sequence, _ in message.positions:
            self._check_position(shard, sequence)
        self._step(events.SetPositions(
            message.application, message.positions, self._clock.monotonic_ms(), self._clock.now_ms(), message.undo
        ))
        await self._settled()
        log.warning("application.positions_set application=%s shards=%d undo=%s",
                    message.application, len(message.positions), message.undo)
        return messages.Done()

    def _check_position(self, shard: bytes, sequence: int) -> None:
        # A position that does not exist yet would pass over whatever comes to stand there.
        if self._streams.leads(shard) and sequence > (high_watermark := self._streams.high_watermark(shard)):
            raise InvalidPosition(
                f"sequence {sequence} does not exist yet: the shard ends at {high_watermark}",
                try_="choose a position within the shard", position=str(sequence), shard=shard.hex(),
            )

    async def _check(self, message: messages.CheckApplication, connection_id: int) -> messages.Message:
        return messages.ApplicationChecked(tuple(self._problems(self._machine.application(message.application))))

    def warn_of_problems(self) -> None:
        """Say which promises do not hold. On the start of a coordinator."""
        for application in self._machine.table.applications.values():
            for problem in self._problems(application):
                log.error("application.problem application=%s problem=%s", application.name, problem)

    def _problems(self, application: Application) -> list[str]:
        maps: dict[str, list[HashRange]] = {}
        for name in application.streams:
            try:
                shards = self._streams.stream(name).shards
            except StreamkitError:
                continue                   # deleted a moment ago
            maps[name] = [HashRange(s.uuid, s.ordinal, s.hash_start, s.hash_end, s.end is None) for s in shards]
        return problems(application, maps)

    async def _list(self, message: messages.ListApplications, connection_id: int) -> messages.Message:
        return messages.ApplicationsListed(tuple(sorted(self._machine.table.applications)))

    async def _delete(self, message: messages.DeleteApplication, connection_id: int) -> messages.Message:
        application = self._machine.application(message.application)
        if application.members:
            raise Conflict(
                f'application "{message.application}" has {len(application.members)} running workers',
                try_="stop them first", application=message.application, workers=len(application.members),
            )
        self._step(events.Delete(message.application))
        await self._settled()
        return messages.Done()

    async def _describe(self, message: messages.DescribeApplication, connection_id: int) -> messages.Message:
        application = self._machine.application(message.application)
        now_ms = self._clock.now_ms()
        return messages.ApplicationDescribed(
            application.name,
            tuple(sorted(member.worker for member in application.members.values())),
            tuple(self._lag.states(application)),
            self._lag.trends(application.name),
            self._reports(application),
            application.held,
            application.before_ms if application.before and now_ms - application.before_ms <= UNDO_MS else 0,
        )
