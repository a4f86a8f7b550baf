"""async-kinesis on streamkit's Kinesis face, with its own limits (AWS's, of each shard) lifted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import cycle
from typing import Any

from benchmarks.libraries.library import KEYS, Library, Take, decode_order
from benchmarks.peers.system import PEERS

NO_LIMIT = 1_000_000_000


class AsyncKinesisLibrary(Library):
    # It needs an older botocore than boto3's newest.
    python = PEERS / "async-kinesis" / "bin" / "python"

    async def open(self) -> None:
        self._producers: dict[str, Any] = {}
        # An open listener takes any key; the client takes none for an answer.
        os.environ.update(AWS_ACCESS_KEY_ID="bench", AWS_SECRET_ACCESS_KEY="bench")

    def _settings(self) -> dict[str, Any]:
        return {"endpoint_url": self.facts["http"], "region_name": "local"}

    async def create(self, log: str) -> None:
        from kinesis import Producer, StringProcessor

        producer = Producer(
            log, **self._settings(), processor=StringProcessor(), create_stream=True, create_stream_shards=1,
            put_rate_limit_per_shard=NO_LIMIT, put_bandwidth_limit_per_shard=NO_LIMIT,
        )
        self._producers[log] = await producer.__aenter__()

    async def put(self, log: str, values: Sequence[bytes]) -> None:
        put = self._producers[log].put
        for key, value in zip(cycle(KEYS), values):
            await put(value.decode("latin-1"), partition_key=key)

    async def flush(self) -> None:
        for producer in self._producers.values():
            await producer.flush()

    async def handle(self, log: str, take: Take, *, batches: bool) -> None:
        from kinesis import Consumer, StringProcessor

        async with Consumer(
            log, **self._settings(), processor=StringProcessor(), shard_fetch_rate=1000, sleep_time_no_records=0.1
        ) as consumer:
            while True:
                async for text in consumer:
                    take(decode_order(text))

    async def close(self) -> None:
        for producer in self._producers.values():
            await producer.__aexit__(None, None, None)
