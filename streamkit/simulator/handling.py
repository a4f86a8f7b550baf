"""Who handles: the workers of one application, in whatever orderings their names say, and their user code.

    where       they want some of the records only, and say so
    fan_out     most of them are pushed what there is
    state       they keep a state with their checkpoints, made by hand, see `summing.py`
    poison      some records fail however often they are tried, some kill the process; both go to a dead-letter stream
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any
from zlib import crc32

from streamkit._core.batch import Batch
from streamkit.consumer.checkpointer import Track
from streamkit.consumer.config import ConsumerConfig
from streamkit.consumer.failure import RetryPolicy
from streamkit.consumer.handler import Context, Driver, Outcome
from streamkit.consumer.member import Member
from streamkit.consumer.ordering import Ordering
from streamkit.consumer.stage import Stages
from streamkit.simulator.oracle import History
from streamkit.simulator.recording import APPLICATION, STREAM, RecordingClient
from streamkit.simulator.world import World

MEMBERSHIP_MS = 1_000
_ORDERINGS = (Ordering.SHARD, Ordering.SHARD, Ordering.by_key(3), Ordering.none(2))      # by the name of a worker


DEAD_LETTERS = "dead"
_FAILS, _KILLS = 40, 200                   # one record of so many


def draw_where(world: World) -> str | None:
    """The condition of all workers of the run; None: they want everything."""
    if "where" not in world.faults.features:
        return None
    draw = random.Random(f"{world.seed} where")
    keys = ", ".join(f"'k{number}'" for number in range(world.faults.keys) if draw.random() < 0.4) or "'k0'"
    return draw.choice((f"key IN ({keys})", f"NOT key IN ({keys})", "size > 200", f"size < 100 AND key IN ({keys})"))


def is_wanted(where: str, key: str, size: int) -> bool:
    """What `draw_where` may say, read in another way than the product does."""
    named = key in where.partition("(")[2].rstrip(")").replace("'", "").split(", ")
    if where.startswith("NOT"):
        return not named
    if where.startswith("size >"):
        return size > 200
    return named and (where.startswith("key") or size < 100)


def poison(value: bytes) -> str:
    """What becomes of whoever handles the record: "fails", "kills", or nothing."""
    drawn = crc32(value.partition(b" ")[0])
    return "kills" if drawn % _KILLS == 0 else "fails" if drawn % _FAILS == 1 else ""


MakeSumming = Callable[[History, random.Random, Track, ConsumerConfig, Context], Driver]


def member(
    client: RecordingClient, world: World, history: History, draw: random.Random, die: Callable[[], None],
    summing: MakeSumming,
) -> Member:
    """A worker that is called as its client is. draw: the workload's. die: ends its process, now.

    summing: user code for workers that keep a state.
    """
    worker, features = client.name, world.faults.features
    poisoned = "poison" in features
    drawn, by_hand = crc32(worker.encode()), "state" in features
    config = ConsumerConfig(
        streams=(STREAM,), application=APPLICATION, start="trim_horizon", worker=worker, codec="bytes",
        membership_ms=MEMBERSHIP_MS, checkpoint_interval_ms=200, batch_records_max=50, drain_seconds=1,
        retry=RetryPolicy(first_ms=10, last_ms=100, attempts_max=3 if poisoned else 10), stall_seconds=0,
        ordering=Ordering.SHARD if by_hand else _ORDERINGS[drawn % len(_ORDERINGS)],
        checkpoint="manual" if by_hand else "auto", where=history.where,
        fan_out="fan_out" in features and drawn >> 9 & 3 != 0, dead_letter=DEAD_LETTERS if poisoned else None,
    )  # fmt: skip
    handlers = asyncio.get_running_loop()
    return Member(
        client, config,
        lambda lease, context, _: summing(history, draw, lease, config, context) if by_hand else Processing(
            history, draw, lease, config, die if poisoned else None
        ),
        lambda: Stages(client.runtime.executor, handlers), None,
    )  # fmt: skip


class Processing:
    """User code of one lease: takes a while, now and then fails, and tells the oracle what it was given."""

    whole = True

    def __init__(
        self, history: History, draw: random.Random, lease: Track, config: ConsumerConfig,
        die: Callable[[], None] | None,
    ) -> None:
        """die: where records may be poisoned; nothing else fails there, but at the shard's end."""
        self._history = history
        self._lease = lease
        self._worker = config.worker
        self._ordered = config.ordering.within != "nothing"
        self._die = die
        self._draw = random.Random(draw.getrandbits(64))
        self._end_fails = lease.lease_epoch % 3 == 0

    async def initialize(self) -> None:
        await asyncio.sleep(self._draw.random() * 0.01)

    async def run(self, batch: Batch[Any]) -> Outcome:
        self._history.handed_out(self._worker, asyncio.get_running_loop().time(), MEMBERSHIP_MS / 1000)
        await asyncio.sleep(self._draw.random() * self._draw.choice((0.0, 0.001, 0.02)))
        if self._draw.random() < 0.02 and self._die is None:
            return Outcome(0, RuntimeError("the simulated handler fails"))
        shard, epoch = self._lease.shard.uuid, self._lease.lease_epoch
        for done, record in enumerate(batch):
            value = bytes(record.data)
            if self._die is not None and (harm := poison(value)):
                self._history.poisoned.add(value)
                if harm == "kills":
                    self._die()
                return Outcome(done, RuntimeError("the simulated handler fails on this record"), exact=True)
            self._history.processing(self._worker, shard, record.sequence, value)
            if self._ordered and record.key:
                self._history.in_order(self._worker, epoch, shard, record.key, record.sequence)
        return Outcome(len(batch))

    async def shard_ended(self) -> bool:
        if self._end_fails:
            self._end_fails = False
            raise RuntimeError("the simulated handler fails at the shard's end")
        return self._lease.lease_epoch % 2 == 0

    async def passed_over(self, batch: Batch[Any]) -> None:
        assert self._die is not None, "the simulated policy passes over nothing"

    async def shutdown_requested(self) -> None:
        await asyncio.sleep(self._draw.random() * 0.01)

    async def lease_lost(self) -> None:
        await asyncio.sleep(0)
