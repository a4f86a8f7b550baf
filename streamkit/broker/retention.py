"""What is too old, or too much, goes: whole sealed segments, looked for every so often, a few shards a loop turn.

What is removed is gone, so a wall clock that leaps forward is not believed: time has passed when it has passed on the
monotonic clock, too. A clock that was behind when the node started and is put right later makes records stay longer
by as much, until the node is restarted.
"""

from __future__ import annotations

import asyncio
import logging

from streamkit.broker.reshard import Reshards
from streamkit.broker.streams import Streams
from streamkit.errors import StreamkitError
from streamkit.runtime.interfaces import Clock

logger = logging.getLogger("streamkit.broker")

_SHARDS_A_TURN = 64
_HOUR_MS = 3_600_000
_LEAP_MS_MAX = 60_000                                  # between two looks; a clock that is slewed stays far below


class PassedTime:
    """The wall clock without its leaps forward; one that goes back, and is put right again, is followed both times."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._latest_ms, self._monotonic_ms = clock.now_ms(), clock.monotonic_ms()

    def now_ms(self) -> int:
        wall_ms, monotonic_ms = self._clock.now_ms(), self._clock.monotonic_ms()
        latest_ms = self._latest_ms + monotonic_ms - self._monotonic_ms
        if latest_ms < wall_ms <= latest_ms + _LEAP_MS_MAX:
            latest_ms = wall_ms
        self._latest_ms, self._monotonic_ms = latest_ms, monotonic_ms
        return min(wall_ms, latest_ms)


async def retain(streams: Streams, reshards: Reshards, clock: Clock, seconds: float) -> None:
    """For ever: apply each stream's retention every `seconds`. The coordinator trims its own log."""
    passed = PassedTime(clock)
    while True:
        await asyncio.sleep(seconds)
        now_ms = passed.now_ms()
        await retain_once(streams, now_ms)
        try:
            await reshards.forget_expired(now_ms)
        except StreamkitError as error:
            logger.warning("retention.waits", extra={"facts": {"error": str(error)}})


async def retain_once(streams: Streams, now_ms: int) -> int:
    """Returns how many shards gave something up."""
    trimmed = 0
    for number, uuid in enumerate(list(streams.public)):
        if number % _SHARDS_A_TURN == _SHARDS_A_TURN - 1:
            await asyncio.sleep(0)
        shard = streams.public.get(uuid)
        if shard is None:
            continue                                   # deleted meanwhile
        config = streams.catalog.streams[shard.stream_name].config
        log = shard.log
        trimmed_to = log.trim_to
        try:
            log.retain(
                now_ms=now_ms, retention_ms=config.retention_hours * _HOUR_MS,
                retention_bytes=config.retention_bytes, end=shard.high_watermark,
            )
            if log.trim_to > trimmed_to:
                shard.trimmed_records += log.trim_to - trimmed_to
                trimmed += 1
        except (StreamkitError, OSError) as error:
            logger.error("retention.failed", extra={"facts": {"shard": shard.shard.id, "error": str(error)}})
    return trimmed
