"""The dead-letter stream: one record a batch, idempotent, acknowledged before its origin is passed over."""

from __future__ import annotations

import asyncio
import logging

from streamkit._core.batch import seal
from streamkit._core.hashing import hash_key
from streamkit.client.client import AsyncClient
from streamkit.client.routing import shard_for
from streamkit.consumer.failure import DeadRecord
from streamkit.errors import (
    Closed,
    ProducerError,
    ShardNotFound,
    StreamkitError,
    TimedOut,
    Unavailable,
    WrongShard,
)
from streamkit.runtime.backoff import Backoff

log = logging.getLogger("streamkit.consumer")


class DeadLetters:
    """Writes to one stream. A batch is repeated byte for byte until it is answered, so it is stored once."""

    def __init__(self, client: AsyncClient, stream: str) -> None:
        self.stream = stream
        self.count = 0
        self._client = client
        self._producer: tuple[int, int] | None = None
        self._sequences: dict[bytes, int] = {}
        self._putting = asyncio.Lock()

    async def put(self, dead: DeadRecord) -> None:
        """Returns when it is stored. Raises what no repeat can cure: StreamNotFound, RecordTooLarge …"""
        record = dead.record
        key = record.key.encode()
        event_time_ms = int(record.time.timestamp() * 1000)
        entry = (key, record.data, dead.headers(), event_time_ms, record.hash_key)
        async with self._putting:
            backoff = Backoff(self._client.runtime.random, 100, 5_000)
            while True:
                try:
                    await self._put(entry)
                except asyncio.CancelledError:
                    self._producer = None  # it may be stored: its number must not become another record's
                    raise
                except Closed:
                    raise
                except (ProducerError, ShardNotFound) as error:
                    # Nothing was stored under this identity; a new one starts at sequence 0.
                    log.info("dead_letter.identity_renewed stream=%s error=%s", self.stream, error)
                    if not isinstance(error, WrongShard | ShardNotFound):
                        self._producer = None
                    if backoff.tries > 10:
                        raise
                    await asyncio.sleep(backoff.next_ms() / 1000)
                else:
                    self.count += 1
                    return

    async def _put(self, entry: tuple[bytes, bytes, bytes, int | None, bytes | None]) -> None:
        if self._producer is None:
            given = await self._patiently_new_producer()
            self._producer = given
            self._sequences.clear()
        hashed = entry[4] or hash_key(entry[0])
        shard = shard_for(await self._client.stream(self.stream), int.from_bytes(hashed, "big"))
        sequence = self._sequences.get(shard.uuid, 0)
        batch = seal([entry], producer_id=self._producer[0], producer_epoch=self._producer[1],
                     producer_sequence=sequence)
        backoff = Backoff(self._client.runtime.random, 100, 5_000)
        while True:
            try:
                await self._client.put_batch(shard, batch)
            except (Unavailable, TimedOut) as error:
                log.warning("dead_letter.retrying stream=%s error=%s", self.stream, error)
                await asyncio.sleep(backoff.next_ms() / 1000)
            else:
                self._sequences[shard.uuid] = sequence + 1
                return

    async def _patiently_new_producer(self) -> tuple[int, int]:
        backoff = Backoff(self._client.runtime.random, 100, 5_000)
        while True:
            try:
                given = await self._client.new_producer()
            except (Unavailable, TimedOut) as error:
                log.warning("dead_letter.retrying stream=%s error=%s", self.stream, error)
                await asyncio.sleep(backoff.next_ms() / 1000)
            else:
                return given.producer_id, given.producer_epoch


class NoDeadLetters:
    """No dead-letter stream was named, and the policy does not need one."""

    count = 0

    async def put(self, dead: DeadRecord) -> None:
        raise StreamkitError("no dead-letter stream is named", try_='pass dead_letter="…" to the consumer')
