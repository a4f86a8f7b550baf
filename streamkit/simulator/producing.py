"""Who puts: one process with one producer after the other, in a manner that is drawn for it.

    plain       an identity of its own, everything goes on whatever failed
    named       the run's producers share a name, so each that opens it shuts the one before out; who was shut out may
                open it again
    halting     what comes behind a failure fails, too, until it is resumed
    keyless     half of the records have no key
    resolve     it asks what became of a record in doubt while others are still on their way

Every outcome goes to the oracle as the producer learns it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from streamkit.errors import KeyHalted, ProducerFenced, PutFailed, StreamkitError, TimedOut, Unavailable
from streamkit.producer.producer import AsyncProducer
from streamkit.simulator.oracle import REFUSED, History, Instance, Put
from streamkit.simulator.recording import STREAM, RecordingClient, find_stream
from streamkit.simulator.world import World

DELIVERY_MS = 40_000
SHORT_DELIVERY_MS = 700                    # so that batches end in doubt, and are cancelled, while others go on
NAME = "clerk"
OnFailure = Literal["continue", "halt_key", "halt"]
_OPENINGS_MAX = 3                          # of the name, by one process


@dataclass(frozen=True, slots=True)
class Manner:
    """How one process puts. waits_seconds: before it begins, so that several of one name meet at any time.

    request_ms: a batch in doubt is given up when nobody could be asked for so long.
    """

    delivery_ms: int
    name: str | None = None
    waits_seconds: float = 0.0
    on_failure: OnFailure = "continue"
    keyless: float = 0.0
    resolves: bool = False
    request_ms: int = 10_000


def draw_manner(world: World, process: str) -> Manner:
    """Of a process of that name."""
    delivery_ms = random.Random(f"{world.seed} {process}").choice((DELIVERY_MS, SHORT_DELIVERY_MS))
    features = world.faults.features
    if not features:
        return Manner(delivery_ms)
    draw = random.Random(f"{world.seed} {process} manner")
    is_named = "named" in features and draw.random() < 0.8
    waits_seconds = draw.random() * world.faults.busy_seconds if is_named and draw.random() < 0.6 else 0.0
    halting = "halt" in features and draw.random() < 0.8
    on_failure: OnFailure = draw.choice(("halt_key", "halt_key", "halt")) if halting else "continue"
    resolves = "resolve" in features
    return Manner(
        SHORT_DELIVERY_MS if halting or resolves else delivery_ms, NAME if is_named else None, waits_seconds,
        on_failure, 0.5 if "keyless" in features else 0.0, resolves, 500 if resolves else 10_000,
    )  # fmt: skip


class Producing:
    """draw: the workload's, for what the records look like."""

    def __init__(
        self, world: World, history: History, draw: random.Random, client: RecordingClient, records: int
    ) -> None:
        self.name = client.name
        self._history = history
        self._client = client
        self._values = draw
        self._draw = random.Random(draw.getrandbits(64))
        self._keys = world.faults.keys
        self._records = records
        self._pause_seconds = world.faults.busy_seconds / max(1, records)
        self._manner = draw_manner(world, client.name)
        self._lively = random.Random(f"{world.seed} {client.name} lively")       # for what plain producers do not do
        self._instance: Instance | None = None
        self._halted: set[str] = set()
        self._asking: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        await find_stream(self._client)
        if self._manner.waits_seconds:
            await asyncio.sleep(self._manner.waits_seconds)
        settings: dict[str, Any] = {
            "linger_ms": self._draw.choice((0, 5, 20)), "batch_bytes_max": self._draw.choice((1_000, 20_000))
        }  # fmt: skip
        if self._manner.on_failure != "continue":
            self._history.halting[self.name] = self._manner.on_failure
        number = 0
        for _ in range(_OPENINGS_MAX):
            producer = AsyncProducer(
                STREAM, client=self._client, codec="bytes", delivery_timeout_ms=self._manner.delivery_ms,
                request_timeout_ms=self._manner.request_ms, name=self._manner.name, on_failure=self._manner.on_failure,
                **settings,
            )  # fmt: skip
            if self._manner.name is not None:
                self._instance = self._history.opening(self.name)
            number = await self._put_from(number, producer)
            with contextlib.suppress(PutFailed):   # each of them is known to the oracle
                await producer.close(2 * DELIVERY_MS / 1000)
            if number >= self._records or self._lively.random() < 0.5:
                break
            await asyncio.sleep(self._lively.random())
        if self._asking:
            await asyncio.wait(self._asking)

    async def _put_from(self, first: int, producer: AsyncProducer) -> int:
        """Puts until there is nothing left or a newer holder of the name is there; the number to go on with."""
        draw = self._draw
        for number in range(first, self._records):
            key = f"k{draw.randrange(self._keys)}"
            if self._manner.keyless and self._lively.random() < self._manner.keyless:
                key = ""
            put = await self._put(producer, key, number)
            if put.outcome == REFUSED and self._instance is not None and self._instance.fenced:
                return number + 1
            if draw.random() < 0.3:
                await asyncio.sleep(draw.random() * 6 * self._pause_seconds)
            if self._halted and self._lively.random() < 0.2:
                await self._resume(producer)
        return self._records

    async def _put(self, producer: AsyncProducer, key: str, number: int) -> Put:
        value = f"{self.name}/{key}/{number} ".encode() + self._values.randbytes(
            self._values.choice((0, 30, 300, 3000))
        )
        put = self._history.putting(value, self.name, key, number)
        instance = put.instance = self._instance
        while True:
            try:
                handle = await producer.put(value, key=key or None)
                break
            except ProducerFenced:
                put.outcome = REFUSED
                if instance is not None:
                    instance.fenced = True
                return put
            except (Unavailable, TimedOut):
                await asyncio.sleep(0.05)
        if instance is not None and not instance.opened:
            instance.rank, instance.opened = self._history.given[self.name], self._history.tick()
        handle.add_done_callback(partial(self._settled, put))
        return put

    async def _resolve(self, put: Put, token: str) -> None:
        """Asks at once what others ask once all is quiet, while the producer goes on."""
        await asyncio.sleep(self._lively.choice((0.0, 0.3, 1.5)) * self._lively.random())
        for _ in range(20):
            try:
                fate = await self._client.resolve(token)
            except StreamkitError:
                await asyncio.sleep(0.1)
                continue
            self._history.resolved(put, token, fate.outcome, fate.sequence_number)
            return

    async def _resume(self, producer: AsyncProducer) -> None:
        key = self._lively.choice((None, *sorted(self._halted))) if self._manner.on_failure == "halt_key" else None
        self._halted -= self._halted if key is None else {key}
        began = self._history.tick()
        await producer.resume_key(key)             # which ends what is left of the halt
        await asyncio.sleep(0)                     # and that is told in the next turn
        self._history.resumed.setdefault(self.name, []).append((key, began, self._history.tick()))

    def _settled(self, put: Put, handle: Any) -> None:
        self._history.settled(put, handle)
        error = handle.exception()
        if put.token and self._manner.resolves and self._lively.random() < 0.7:
            self._asking.append(asyncio.get_running_loop().create_task(self._resolve(put, put.token)))
        if isinstance(error, ProducerFenced) and put.instance is not None:
            put.instance.fenced = True
        if self._manner.on_failure != "continue" and isinstance(error, KeyHalted):
            self._halted.add(put.key)
