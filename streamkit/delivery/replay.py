"""A range of the stream once more, under another name, beside whatever else goes on.

No lease is held and no position moves. Ranges end by bytes alone, so the same replay writes the same chunks however
often it is begun: one that was broken off is simply called again.
"""

from __future__ import annotations

from functools import partial

from streamkit._core.batch import Batch
from streamkit.client.client import AsyncClient
from streamkit.consumer.reader import AsyncReader
from streamkit.delivery.buffer import Gathering
from streamkit.delivery.chunk import Plan, plan_id
from streamkit.delivery.patience import Home, Patience, written
from streamkit.delivery.pipeline import Origin


class Replay:
    """home: the delivery whose sink, format and transformation are used; name: of this replay, in names and ids."""

    def __init__(self, home: Home, name: str, client: AsyncClient, source: str) -> None:
        self._home = home
        self._name = name
        self._client = client
        self._source = source
        self._uuids: dict[str, bytes] = {}
        self._open: dict[str, Gathering] = {}
        self.records = 0

    async def run(self, reader: AsyncReader) -> int:
        """Records written. Raises StreamNotFound, SequenceTrimmed …"""
        stream = await self._client.stream(self._source)
        self._uuids = {shard.id: shard.uuid for shard in stream.shards}
        async for batch in reader.batches():
            await self._take(batch)
        for shard, gathering in self._open.items():
            if gathering:
                await self._write(shard, gathering)
        return self.records

    async def _take(self, batch: Batch[object]) -> None:
        done = 0
        while done < len(batch):
            gathering = self._open.get(batch.shard)
            if gathering is None:
                gathering = self._open[batch.shard] = Gathering(self._home.buffer, batch.place(done))
            done += gathering.add(batch.part(done, len(batch)))
            if gathering.is_full:
                await self._write(batch.shard, gathering)

    async def _write(self, shard: str, gathering: Gathering) -> None:
        gathered = gathering.take()
        home, uuid = self._home, self._uuids.get(shard, b"")
        plan = Plan(plan_id(self._name, uuid, gathered.start, gathered.end), gathered.start, gathered.end,
                    gathered.oldest_ms)  # fmt: skip
        patience = Patience(home, shard)
        staged = await patience.until_done(
            partial(home.staged, gathered, plan, Origin(self._name, self._source, shard, uuid))
        )
        failures = list(staged.failures)
        for chunk in staged.chunks:
            failures += await patience.until_done(partial(written, home.sink, chunk))
        if failures:
            await patience.until_done(partial(home.give_up, failures))
        self.records += gathered.count
