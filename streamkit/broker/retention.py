"""What is too old, or too much, goes: whole sealed segments, looked for every so often, a few shards a loop turn."""

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


async def retain(streams: Streams, reshards: Reshards, clock: Clock, seconds: float) -> None:
    """For ever: apply each stream's retention every `seconds`. The coordinator trims its own log."""
    while True:
        await asyncio.sleep(seconds)
        await retain_once(streams, clock.now_ms())
        try:
            await reshards.forget_expired(clock.now_ms())
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
