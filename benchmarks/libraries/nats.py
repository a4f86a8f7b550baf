"""nats-py on JetStream, as its documentation has it: `publish_async`, a pull consumer, an acknowledgement a message."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import count
from typing import Any

from benchmarks.libraries.library import Library, Take, decode_order

FETCH_RECORDS = 1000
UNDER_WAY = 4000                       # the library's default


class NatsLibrary(Library):
    _consumers = count()

    async def open(self) -> None:
        import nats

        self._connection: Any = await nats.connect(self.facts["urls"], pending_size=16 << 20)
        self._stream: Any = self._connection.jetstream(timeout=30, publish_async_max_pending=UNDER_WAY)
        self._failures: list[BaseException] = []

    async def create(self, log: str) -> None:
        from nats.js.api import StorageType, StreamConfig

        await self._stream.add_stream(
            StreamConfig(name=log, subjects=[log], storage=StorageType.FILE, num_replicas=self.facts["copies"])
        )

    async def put(self, log: str, values: Sequence[bytes]) -> None:
        publish = self._stream.publish_async
        for value in values:
            (await publish(log, value, wait_stall=30)).add_done_callback(self._answered)

    def _answered(self, future: asyncio.Future[Any]) -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            self._failures.append(error)

    async def flush(self) -> None:
        await asyncio.wait_for(self._stream.publish_async_completed(), 60)
        if self._failures:
            raise self._failures[0]

    async def handle(self, log: str, take: Take, *, batches: bool) -> None:
        from nats.errors import TimeoutError as NothingCame

        consumer = await self._stream.pull_subscribe(log, durable=f"bench-{next(self._consumers)}")
        while True:
            try:
                messages = await consumer.fetch(FETCH_RECORDS, timeout=0.2)
            except NothingCame:
                continue
            for message in messages:
                take(decode_order(message.data))
                await message.ack()

    async def close(self) -> None:
        await self._connection.close()
