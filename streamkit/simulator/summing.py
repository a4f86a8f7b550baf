"""User code that keeps a state with its checkpoints: a sum of all that it was given of a shard."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from streamkit._core.batch import Batch
from streamkit.consumer.checkpointer import Track
from streamkit.consumer.config import ConsumerConfig
from streamkit.consumer.handler import Context, Outcome
from streamkit.errors import LeaseLost
from streamkit.simulator.handling import Processing
from streamkit.simulator.oracle import History, StateSeen, folded

_ANNOUNCES = 0.2                           # of the checkpoints


class Summing(Processing):
    """Checkpoints by hand, after each batch."""

    def __init__(
        self, history: History, draw: random.Random, lease: Track, config: ConsumerConfig, context: Context
    ) -> None:
        super().__init__(history, draw, lease, config, None)
        context.takes_batches()
        self._context = context
        self._sum = lease.grant.app_state

    async def initialize(self) -> None:
        await super().initialize()
        grant = self._lease.grant
        self._history.states.append(StateSeen(
            self._worker, self._lease.shard.uuid, grant.checkpoint, grant.app_state, grant.prepared
        ))  # fmt: skip

    async def run(self, batch: Batch[Any]) -> Outcome:
        outcome = await super().run(batch)
        if outcome.error is not None:
            return outcome
        for record in batch:
            self._sum = folded(self._sum, bytes(record.data))
        checkpointer = self._context.checkpointer
        assert checkpointer is not None, "a context has a checkpointer before its handler runs"
        self._context.begin_batch(batch)
        try:
            if self._draw.random() < _ANNOUNCES:
                checkpointer.prepare(state=self._sum)
                await asyncio.sleep(self._draw.random() * 0.3)
            checkpointer.checkpoint(state=self._sum)
        except LeaseLost:
            await asyncio.sleep(0)         # the next owner has what was stored
        finally:
            self._context.batch = None
        return outcome
