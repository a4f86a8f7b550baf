"""Fetches that carry a condition: stored batches in which no record matches do not travel.

What does match travels as it is stored, whole and sealed; the client leaves out the rest of it. A batch is also sent
when it cannot be judged, so that clients count what could not be decided, and so is every batch that a log wrote for
itself. The answer says where to go on, past what was left out. Judging is bounded: PART_RECORDS at a time with a turn
of the event loop in between, one part of the node at a time, SCAN_BYTES an answer. See docs/decisions/0086.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from streamkit._core.batch import Batch
from streamkit._core.conditions import NO_ROUTE
from streamkit.broker.pushing import PushedFetch
from streamkit.errors import CorruptBatch, InvalidUse
from streamkit.expressions.condition import Condition
from streamkit.protocol.frames import FetchFrame
from streamkit.protocol.messages import FetchMatching
from streamkit.runtime.interfaces import Buffer, Executor

SCAN_BYTES = 1024 * 1024                   # of stored batches that one answer may go through, or one batch
PART_RECORDS = 256                         # judged without a turn of the event loop: well below a millisecond
_CONDITIONS_MAX = 256                      # kept parsed
_CODECS = ("auto", "json", "msgpack", "text", "bytes")


@dataclass(frozen=True, slots=True)
class MatchingFetch:
    """A fetch with its condition, parsed."""

    request_id: int
    shard: bytes
    start: int
    bytes_max: int
    wait_ms: int
    lease_epoch: int
    session: int
    application: str
    condition: Condition

    @classmethod
    def of(cls, request_id: int, message: FetchMatching, condition: Condition) -> MatchingFetch:
        return cls(
            request_id, message.shard, message.start, min(message.bytes_max, SCAN_BYTES), message.wait_ms,
            message.lease_epoch, message.session, message.application, condition,
        )


Fetch = FetchFrame | MatchingFetch | PushedFetch


class Matcher:
    """One of a node."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._conditions: dict[tuple[str, str], Condition] = {}
        self._turn = asyncio.Lock()

    async def condition(self, text: str, codec: str) -> Condition:
        """Parsed on a thread, and kept. Raises InvalidQuery, InvalidUse."""
        if codec not in _CODECS:
            raise InvalidUse(f'"{codec}" is no codec that a broker reads', try_="filter at the client", codec=codec)
        found = self._conditions.pop((text, codec), None)
        if found is None:
            found = await self._executor.run(Condition, text, codec)
        self._conditions[text, codec] = found              # the last one used is the last one to go
        while len(self._conditions) > _CONDITIONS_MAX:
            del self._conditions[next(iter(self._conditions))]
        return found

    async def matching(self, batches: Sequence[Buffer], condition: Condition) -> list[Buffer]:
        """Those batches of which a client must see something, as they are stored."""
        return [buffer for buffer in batches if await self._is_wanted(buffer, condition)]

    async def _is_wanted(self, buffer: Buffer, condition: Condition) -> bool:
        batch: Batch[object] = Batch(buffer)
        if batch.is_control:
            return True
        at, count = 0, len(batch)
        while at < count:
            async with self._turn:
                stop = min(at + PART_RECORDS, count)
                try:
                    if not at and batch.unwrap() is not batch:
                        return True                        # user records inside aggregates: the client's to take apart
                    routes, undecided = condition.judged(batch.part(at, stop))
                except CorruptBatch:
                    return True                            # whoever reads it says so
                if undecided or routes.count(NO_ROUTE) < stop - at:
                    return True
                await asyncio.sleep(0)
            at = stop
        return False
