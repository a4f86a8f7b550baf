"""Kafka's two Python libraries: confluent-kafka (librdkafka in C) and aiokafka (asyncio)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import count, cycle
from typing import Any

from benchmarks.libraries.library import KEYS, Library, Take, decode_order

POLL_RECORDS = 1000


async def create_topic(facts: dict[str, Any], log: str) -> None:
    from confluent_kafka.admin import AdminClient, NewTopic

    admin = AdminClient({"bootstrap.servers": facts["servers"]})
    settings = {"flush.messages": "1"} if facts["sync"] else {}
    topic = NewTopic(log, num_partitions=1, replication_factor=facts["copies"], config=settings)
    await asyncio.to_thread(admin.create_topics([topic])[log].result, 30)
    while True:                        # until every broker knows who leads it
        found = admin.list_topics(log, timeout=10).topics[log].partitions
        if found and found[0].leader >= 0 and len(found[0].isrs) == facts["copies"]:
            return
        await asyncio.sleep(0.1)


class ConfluentLibrary(Library):
    """Idempotent, acks=all, `linger.ms=5`; a delivery report a record; offsets committed by itself every 5 s."""

    _groups = count()

    async def open(self) -> None:
        from confluent_kafka import Producer

        self._errors: list[str] = []
        self._producer: Any = Producer({
            "bootstrap.servers": self.facts["servers"], "enable.idempotence": True, "acks": "all", "linger.ms": 5,
            "batch.size": 1_000_000,
        })  # fmt: skip

    async def create(self, log: str) -> None:
        await create_topic(self.facts, log)

    async def put(self, log: str, values: Sequence[bytes]) -> None:
        await asyncio.to_thread(self._put, log, values)

    def _put(self, log: str, values: Sequence[bytes]) -> None:
        producer = self._producer
        for key, value in zip(cycle(KEYS), values):
            while True:
                try:
                    producer.produce(log, value, key, on_delivery=self._delivered)
                    break
                except BufferError:
                    producer.poll(0.01)
        producer.poll(0)

    def _delivered(self, error: Any, message: Any) -> None:
        if error is not None:
            self._errors.append(str(error))

    async def flush(self) -> None:
        left = await asyncio.to_thread(self._producer.flush, 60)
        if left or self._errors:
            raise RuntimeError(f"{left} records were not delivered; {self._errors[:1]}")

    async def handle(self, log: str, take: Take, *, batches: bool) -> None:
        from confluent_kafka import Consumer

        consumer = Consumer({
            "bootstrap.servers": self.facts["servers"], "group.id": f"bench-{next(self._groups)}",
            "auto.offset.reset": "earliest", "queued.min.messages": 1_000_000, "fetch.queue.backoff.ms": 10,
        })  # fmt: skip
        consumer.subscribe([log])
        try:
            while True:
                for message in await asyncio.to_thread(consumer.consume, POLL_RECORDS, 0.1):
                    take(decode_order(message.value()))
        finally:
            consumer.close()

    async def close(self) -> None:
        self._producer.flush(10)


class AiokafkaLibrary(Library):
    """Idempotent, acks=all, `linger_ms=5`; offsets committed by itself every 5 s."""

    _groups = count()

    async def open(self) -> None:
        from aiokafka import AIOKafkaProducer

        self._producer: Any = AIOKafkaProducer(
            bootstrap_servers=self.facts["servers"], enable_idempotence=True, acks="all", linger_ms=5,
            max_batch_size=1_000_000,
        )  # fmt: skip
        await self._producer.start()

    async def create(self, log: str) -> None:
        await create_topic(self.facts, log)

    async def put(self, log: str, values: Sequence[bytes]) -> None:
        send = self._producer.send
        for key, value in zip(cycle(KEYS), values):
            await send(log, value, key.encode())

    async def flush(self) -> None:
        await self._producer.flush()

    async def handle(self, log: str, take: Take, *, batches: bool) -> None:
        from aiokafka import AIOKafkaConsumer

        consumer = AIOKafkaConsumer(
            log, bootstrap_servers=self.facts["servers"], group_id=f"bench-{next(self._groups)}",
            auto_offset_reset="earliest", max_partition_fetch_bytes=4 << 20,
        )  # fmt: skip
        await consumer.start()
        try:
            while True:
                found = await consumer.getmany(timeout_ms=100, max_records=POLL_RECORDS)
                for messages in found.values():
                    for message in messages:
                        take(decode_order(message.value))
        finally:
            await consumer.stop()

    async def close(self) -> None:
        await self._producer.stop()
