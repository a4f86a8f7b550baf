"""Writing to what may not answer: again and again, ever more seldom, and whoever looks sees why."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from streamkit.delivery.buffer import Buffer, Range
from streamkit.delivery.chunk import Chunk, Failure, Plan
from streamkit.delivery.memory import Memory
from streamkit.delivery.pipeline import Origin, Staged
from streamkit.delivery.progress import Progress, Trouble
from streamkit.delivery.sinks.sink import Sink
from streamkit.errors import LeaseLost, SinkMisused, StreamkitError
from streamkit.runtime.backoff import Backoff
from streamkit.runtime.interfaces import Clock, Random

log = logging.getLogger("streamkit.delivery")

_AGAIN_FIRST_MS, _AGAIN_MOST_MS = 100, 30_000
_ASKED_MOST_MS = 7_200_000                 # that a store may ask for; a mistaken one would hold a shard for years


class Home(Protocol):
    """What a shard needs of its delivery."""

    name: str
    buffer: Buffer
    sink: Sink
    progress: Progress
    memory: Memory

    @property
    def clock(self) -> Clock: ...
    @property
    def random(self) -> Random: ...
    async def sink_opened(self) -> None: ...
    async def sink_released(self) -> None: ...
    async def staged(self, gathered: Range, plan: Plan, origin: Origin) -> Staged: ...
    async def give_up(self, failures: list[Failure]) -> None: ...


class Patience:
    """home: whose trouble it is; shard: where."""

    def __init__(self, home: Home, shard: str) -> None:
        self._home = home
        self._shard = shard

    async def until_done(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """What `work` returns in the end: what a stream keeps can wait. Raises LeaseLost alone."""
        backoff = Backoff(self._home.random, _AGAIN_FIRST_MS, _AGAIN_MOST_MS)
        troubles = self._home.progress.trouble
        while True:
            try:
                done = await work()
            except LeaseLost:
                raise
            except Exception as error:     # of a store, of its library, or of the user's own sink
                self._note(error)
                await asyncio.sleep(max(backoff.next_ms(), _asked_ms(error)) / 1000)
            else:
                troubles.pop(self._shard, None)
                return done

    def _note(self, error: Exception) -> None:
        troubles = self._home.progress.trouble
        before = troubles.get(self._shard)
        code = error.code if isinstance(error, StreamkitError) else type(error).__name__
        since_ms = before.since_ms if before is not None else self._home.clock.now_ms()
        attempts = before.attempts + 1 if before is not None else 1
        troubles[self._shard] = Trouble(code, str(error)[:1_000], since_ms, attempts)
        grave = logging.ERROR if isinstance(error, SinkMisused) else logging.WARNING
        log.log(grave if attempts == 1 else logging.DEBUG, "delivery.retrying delivery=%s shard=%s code=%s error=%s",
                self._home.name, self._shard, code, error)


async def written(sink: Sink, chunk: Chunk) -> list[Failure]:
    """Write once; what the store refuses for good."""
    refused = await sink.write(chunk)
    return [Failure(chunk.records[each.index], "write", each.code, each.message) for each in refused or ()]


def _asked_ms(error: Exception) -> float:
    """How long a store wants to be left alone."""
    asked_ms = error.facts.get("retry_after_ms", 0) if isinstance(error, StreamkitError) else 0
    return min(asked_ms, _ASKED_MOST_MS)
