"""The coordinator's log: an internal shard that takes commands and gives them back."""

from __future__ import annotations

from collections.abc import AsyncIterator

from streamkit._core.batch import Batch, seal
from streamkit.broker.shard_server import ShardServer
from streamkit.model.limits import BATCH_RECORDS_MAX
from streamkit.runtime.interfaces import Clock

_BATCH_BYTES = 512 * 1024
_READ_BYTES = 4 * 1024 * 1024


class ShardCommandLog:
    """Commands are records with an empty key; a batch never holds half a command."""

    def __init__(self, shard: ShardServer, clock: Clock) -> None:
        self._shard = shard
        self._clock = clock

    async def append(self, records: list[bytes]) -> int:
        """The sequence of the first; returns when all are durable, in order. Raises what the log raises."""
        assert records, "there is something to append"
        waiting = [
            self._shard.append(seal([(b"", record, b"", None, None) for record in part]), self._clock.now_ms())
            for part in _parts(records)
        ]
        first = [await appended for appended in waiting]
        return first[0]

    async def replay(self) -> AsyncIterator[bytes]:
        """Every command from the oldest kept on."""
        at, end = self._shard.log.log_start, self._shard.high_watermark
        while at < end:
            batches = self._shard.log.read(at, end, _READ_BYTES)
            if batches is None:
                batches = await self._shard.log.read_cold(at, end, _READ_BYTES)
            assert batches, "what lies below the high watermark can be read"
            for stored in batches:
                batch = Batch(stored, None, at)
                if not batch.is_control:
                    for record in batch:
                        yield bytes(record.data)
                at = batch.end_sequence

    async def trim(self, before: int) -> None:
        """Commands below that sequence may go; whole segments do."""
        self._shard.log.drop_before(before)


def _parts(records: list[bytes]) -> list[list[bytes]]:
    parts: list[list[bytes]] = [[]]
    size = 0
    for record in records:
        if parts[-1] and (size + len(record) > _BATCH_BYTES or len(parts[-1]) == BATCH_RECORDS_MAX):
            parts.append([])
            size = 0
        parts[-1].append(record)
        size += len(record)
    return parts
