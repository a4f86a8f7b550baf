"""Who copies: a producer with a name of its own and numbers of its own, which goes on where it was after every kill."""

from __future__ import annotations

import asyncio
import contextlib
import random
from functools import partial
from typing import Any

from streamkit.client.client import AsyncClient
from streamkit.errors import CorruptFile, ProducerError, PutFailed, StreamkitError, TimedOut, Unavailable
from streamkit.producer.producer import AsyncProducer
from streamkit.simulator.oracle import PENDING, UNKNOWN, History, Put
from streamkit.simulator.producing import DELIVERY_MS, SHORT_DELIVERY_MS
from streamkit.simulator.recording import STREAM, find_stream
from streamkit.simulator.world import World


class Copying:
    """A list of records that a named producer puts by number: each is stored once, whatever happens meanwhile."""

    def __init__(self, world: World, history: History, name: str, records: int) -> None:
        self._history = history
        self._name = name
        self._draw = random.Random(f"{world.seed} {name}")
        self._pause_seconds = world.faults.busy_seconds / max(1, records)
        keys = [f"k{self._draw.randrange(world.faults.keys)}" for _ in range(records)]
        self._records = [
            (f"{name}/{key}/{number} ".encode() + self._draw.randbytes(self._draw.choice((0, 30, 300))), key)
            for number, key in enumerate(keys)
        ]
        self._puts: dict[int, Put] = {}

    def killed(self) -> None:
        for put in self._puts.values():
            if put.outcome == PENDING:
                put.outcome = UNKNOWN

    async def run(self, client: AsyncClient) -> None:
        """As one instance of the name; returns when all are stored."""
        await find_stream(client)
        while True:
            producer = AsyncProducer(
                STREAM, client=client, name=self._name, codec="bytes", linger_ms=self._draw.choice((0, 5)),
                batch_bytes_max=self._draw.choice((1_000, 20_000)), on_failure="halt",
                delivery_timeout_ms=self._draw.choice((DELIVERY_MS, SHORT_DELIVERY_MS)),
            )  # fmt: skip
            try:
                await self._copy(producer)
                done = await producer.last_app_seq() == len(self._records) - 1
            except (Unavailable, TimedOut, ProducerError, CorruptFile):    # the last until another copy mended it
                done = False
            with contextlib.suppress(PutFailed):
                await producer.close(DELIVERY_MS / 1000)
            if done:
                self._history.copied += [value for value, _ in self._records]
                return
            await asyncio.sleep(0.05)

    async def _copy(self, producer: AsyncProducer) -> None:
        last = await producer.last_app_seq()
        handles = []
        for number in range(0 if last is None else last + 1, len(self._records)):
            value, key = self._records[number]
            if number not in self._puts:
                self._puts[number] = self._history.putting(value, self._name, key, number)
            put = self._puts[number]
            put.outcome, put.token = PENDING, ""
            try:
                handle = await producer.put(value, key=key, app_seq=number)
            except StreamkitError:
                put.outcome = UNKNOWN      # an elder instance may have stored it
                raise
            handle.add_done_callback(partial(self._history.settled, put))
            handles.append(handle)
            if self._draw.random() < 0.3:
                await asyncio.sleep(self._draw.random() * 6 * self._pause_seconds)
        await asyncio.gather(*[_ended(handle) for handle in handles])


async def _ended(handle: Any) -> None:
    with contextlib.suppress(StreamkitError):
        await handle
