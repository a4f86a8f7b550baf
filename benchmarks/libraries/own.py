"""streamkit's Producer and Consumer."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from itertools import count, cycle
from pathlib import Path

from benchmarks.libraries.library import KEYS, Library, Order, Take


class StreamkitLibrary(Library):
    """`Producer.put` on a thread, `@consumer.handler` with an annotation; checkpoints once a second."""

    python = Path(sys.executable)
    batches = True
    _applications = count()

    async def open(self) -> None:
        from streamkit import AsyncClient, Producer

        self._client: AsyncClient = AsyncClient(self.facts["url"])
        self._producer: Producer = Producer(url=self.facts["url"], compression="none")

    async def create(self, log: str) -> None:
        await self._client.create_stream(log, shards=1)

    async def put(self, log: str, values: Sequence[bytes]) -> None:
        await asyncio.to_thread(self._put, log, values)

    def _put(self, log: str, values: Sequence[bytes]) -> None:
        put = self._producer.put
        for key, value in zip(cycle(KEYS), values):
            put(value, key=key, stream=log)

    async def flush(self) -> None:
        await asyncio.to_thread(self._producer.flush)

    async def handle(self, log: str, take: Take, *, batches: bool) -> None:
        from streamkit import Batch, Consumer

        application = f"bench-{next(self._applications)}"
        consumer = Consumer(log, application=application, start="trim_horizon", url=self.facts["url"])
        if batches:
            def take_all(batch: Batch[Order]) -> None:
                for record in batch:
                    take(record.value)

            consumer.handler(take_all)
        else:
            def take_one(order: Order) -> None:
                take(order)

            consumer.handler(take_one)
        consumer.start()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.to_thread(consumer.stop)

    async def close(self) -> None:
        await asyncio.to_thread(self._producer.close)
        await self._client.close()
