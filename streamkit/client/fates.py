"""resolve(token): what became of a record whose put ended without an answer.

The shard is asked to cancel the batch. So "not stored" holds for good: should the batch still be on its way, the shard
refuses it. Batches of the same producer before it that are missing were given up, too; they are cancelled first.
"""

from __future__ import annotations

from typing import Protocol

from streamkit.errors import ProducerError, SequenceGap, ShardClosed, StreamNotFound
from streamkit.model.fate import BatchName, Fate, PutToken
from streamkit.model.limits import BATCH_RECORDS_MAX
from streamkit.model.sequence import sequence_number
from streamkit.model.shard import Shard
from streamkit.model.stream import StreamDescription
from streamkit.protocol.messages import BatchSettled
from streamkit.runtime.interfaces import Runtime

FORGOTTEN = Fate("forgotten")


class Asking(Protocol):
    """What `find_fate` needs of an AsyncClient."""

    runtime: Runtime

    async def stream(self, name: str, refresh: bool = False) -> StreamDescription: ...
    async def cancel_batch(
        self, shard: Shard, batch: BatchName, *, age_ms: int = 0, timeout_ms: int | None = None
    ) -> BatchSettled: ...


async def find_fate(client: Asking, token: PutToken) -> Fate:
    """Raises what asking raises: ConnectionFailed, TimedOut, NotLeader while a leader is sought."""
    shard = None
    for refresh in (False, True):
        try:
            stream = await client.stream(token.stream, refresh=refresh)
        except StreamNotFound:
            return FORGOTTEN
        shard = next((shard for shard in stream.shards if shard.uuid == token.shard), None)
        if shard is not None:
            break
    if shard is None:
        return FORGOTTEN
    age_ms = max(0, client.runtime.clock.now_ms() - token.sent_ms)
    batch = token.batch
    while True:
        try:
            settled = await client.cancel_batch(shard, batch, age_ms=age_ms)
        except SequenceGap as gap:
            missing = int(gap.facts.get("expected", 0))
            if not missing < batch.producer_sequence:
                return FORGOTTEN
            count = min(batch.producer_sequence - missing, BATCH_RECORDS_MAX)
            batch = batch._replace(producer_sequence=missing, records=count)
            continue
        except ShardClosed:
            raise
        except ProducerError:
            return FORGOTTEN
        if batch == token.batch or settled.fate == "forgotten":
            break
        batch = token.batch
    if settled.fate != "stored":
        return FORGOTTEN if settled.fate == "forgotten" else Fate("not_stored", shard.id)
    return Fate("stored", shard.id, sequence_number(
        settled.base_sequence + token.place, ordinal=shard.ordinal, created_ms=shard.created_ms,
        arrived_ms=settled.append_time_ms,
    ))  # fmt: skip
