"""Who handles: the workers of one application, in whatever orderings their names say, and their user code."""

from __future__ import annotations

import asyncio
import random
from typing import Any
from zlib import crc32

from streamkit._core.batch import Batch
from streamkit.consumer.checkpointer import Track
from streamkit.consumer.config import ConsumerConfig
from streamkit.consumer.failure import RetryPolicy
from streamkit.consumer.handler import Outcome
from streamkit.consumer.member import Member
from streamkit.consumer.ordering import Ordering
from streamkit.consumer.stage import Stages
from streamkit.simulator.oracle import History
from streamkit.simulator.recording import STREAM, RecordingClient

APPLICATION = "billing"
MEMBERSHIP_MS = 1_000
_ORDERINGS = (Ordering.SHARD, Ordering.SHARD, Ordering.by_key(3), Ordering.none(2))      # by the name of a worker


def member(client: RecordingClient, history: History, draw: random.Random) -> Member:
    """A worker that is called as its client is. draw: the workload's."""
    worker = client.name
    config = ConsumerConfig(
        streams=(STREAM,), application=APPLICATION, start="trim_horizon", worker=worker, codec="bytes",
        membership_ms=MEMBERSHIP_MS, checkpoint_interval_ms=200, batch_records_max=50, drain_seconds=1,
        retry=RetryPolicy(first_ms=10, last_ms=100), stall_seconds=0,
        ordering=_ORDERINGS[crc32(worker.encode()) % len(_ORDERINGS)],
    )  # fmt: skip
    handlers = asyncio.get_running_loop()
    return Member(
        client, config, lambda lease, *_: Processing(history, draw, lease, worker),
        lambda: Stages(client.runtime.executor, handlers), None,
    )  # fmt: skip


class Processing:
    """User code of one lease: takes a while, now and then fails, and tells the oracle what it was given."""

    whole = True

    def __init__(self, history: History, draw: random.Random, lease: Track, worker: str) -> None:
        self._history = history
        self._lease = lease
        self._worker = worker
        self._draw = random.Random(draw.getrandbits(64))
        self._end_fails = lease.lease_epoch % 3 == 0

    async def initialize(self) -> None:
        await asyncio.sleep(self._draw.random() * 0.01)

    async def run(self, batch: Batch[Any]) -> Outcome:
        self._history.handed_out(self._worker, asyncio.get_running_loop().time(), MEMBERSHIP_MS / 1000)
        await asyncio.sleep(self._draw.random() * self._draw.choice((0.0, 0.001, 0.02)))
        if self._draw.random() < 0.02:
            return Outcome(0, RuntimeError("the simulated handler fails"))
        for record in batch:
            self._history.processing(
                self._worker, self._lease.shard.uuid, record.sequence, bytes(record.data)
            )
        return Outcome(len(batch))

    async def shard_ended(self) -> bool:
        if self._end_fails:
            self._end_fails = False
            raise RuntimeError("the simulated handler fails at the shard's end")
        return self._lease.lease_epoch % 2 == 0

    async def passed_over(self, batch: Batch[Any]) -> None:
        raise AssertionError("the simulated policy passes over nothing")

    async def shutdown_requested(self) -> None:
        await asyncio.sleep(self._draw.random() * 0.01)

    async def lease_lost(self) -> None:
        await asyncio.sleep(0)
