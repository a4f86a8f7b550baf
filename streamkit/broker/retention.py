"""What is too old, or too much, goes: whole sealed segments, looked for every so often, a few shards a loop turn."""

from __future__ import annotations

import asyncio
import logging

from streamkit.broker.streams import Streams
from streamkit.errors import StreamkitError
from streamkit.runtime.interfaces import Clock
from streamkit.storage import ShardLog

logger = logging.getLogger("streamkit.broker")

_SHARDS_A_TURN = 64


async def retain(streams: Streams, clock: Clock, seconds: float) -> None:
    """For ever: apply each stream's retention every `seconds`. The coordinator trims its own log."""
    while True:
        await asyncio.sleep(seconds)
        await retain_once(streams, clock.now_ms())


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
        try:
            before = min(
                expired_before(
                    log, now_ms=now_ms, retention_ms=config.retention_hours * 3_600_000,
                    retention_bytes=config.retention_bytes,
                ),
                shard.high_watermark,
            )
            if before > log.log_start:
                kept_from = log.log_start
                log.drop_before(before)
                shard.trimmed_records += log.trim_to - kept_from
                trimmed += 1
        except (StreamkitError, OSError) as error:
            logger.error("retention.failed", extra={"facts": {"shard": shard.shard.id, "error": str(error)}})
    return trimmed


def expired_before(log: ShardLog, *, now_ms: int, retention_ms: int, retention_bytes: int | None) -> int:
    """Everything before this sequence may go: whole segments too old, or beyond the bytes to keep."""
    before, kept_bytes = log.log_start, log.stored_bytes
    for segment in log.segments[:-1]:
        old = segment.last_append_ms < now_ms - retention_ms
        surplus = retention_bytes is not None and kept_bytes - segment.position >= retention_bytes
        if not old and not surplus:
            break
        kept_bytes -= segment.position
        before = segment.end
    return before
