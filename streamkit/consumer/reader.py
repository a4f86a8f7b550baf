"""Reading without an application: no lease, no checkpoint, every shard, from a position to a position.

Records of one shard come in order; shards take turns as their batches arrive. A shard that was split or merged is read
to its end before its children are begun, so that a key's records come in order, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from streamkit._core.batch import Batch, Record
from streamkit.client.client import AsyncClient
from streamkit.client.pool import Connector
from streamkit.consumer.aggregates import Deaggregate, check_deaggregate, unwrapped
from streamkit.consumer.config import Start
from streamkit.consumer.fetcher import Budget, Fetcher
from streamkit.consumer.lineage import Lineage, children_of, patiently
from streamkit.errors import InvalidPosition, InvalidUse
from streamkit.expressions.condition import Condition
from streamkit.model.codec import Codec, Decoding
from streamkit.model.position import AtSequence, Position, parse_position
from streamkit.model.sequence import parse_sequence_number
from streamkit.model.shard import Shard
from streamkit.runtime.interfaces import Runtime
from streamkit.runtime.real import LoopThread

_PREFETCH_BYTES = 64 * 1024 * 1024
_QUEUE_BATCHES = 64


class AsyncReader:
    """`async for record in AsyncReader("orders", start="trim_horizon", until="latest")`.

    start: as for a consumer, or a mapping from shard to sequence number (then only those shards and those that follow
    them are read). until: None to go on for ever, also where shards are split or merged meanwhile; "latest" for what
    is there now; an aware datetime for what arrived before. limit: records.
    annotation: what `record.value` is checked against. deaggregate: as for Consumer; an aggregate's user records count
    one by one towards the limit. where: a condition, as "data.total > 100"; only records that match are given out, and
    count; `undecided` says how many could not be judged, as their payload cannot be decoded.
    """

    def __init__(
        self,
        stream: str,
        *,
        start: Start,
        until: str | datetime | None = None,
        limit: int | None = None,
        codec: Codec | str = "auto",
        annotation: Any = None,
        prefetch_bytes_max: int = _PREFETCH_BYTES,
        deaggregate: Deaggregate = True,
        where: str | None = None,
        url: str | Connector | None = None,
        runtime: Runtime | None = None,
        client: AsyncClient | None = None,
    ) -> None:
        if not isinstance(start, Mapping):
            parse_position(start)
        if until is not None and until != "latest" and not isinstance(until, datetime):
            raise InvalidPosition(
                f"{until!r} is not an end", try_='use None, "latest" or an aware datetime', position=str(until)
            )
        if limit is not None and limit < 0:
            raise InvalidUse(f"limit must be 0 or more, got {limit}", try_="pass limit=None for no limit", limit=limit)
        check_deaggregate(deaggregate)
        self.stream = stream
        self._deaggregate = deaggregate
        self._where = None if where is None else Condition(where, codec)
        self._start = start
        self._until = until
        self._limit = limit
        self._decoding = Decoding(codec, annotation)
        self._budget = Budget(prefetch_bytes_max)
        self._url = url
        self._runtime = runtime
        self._client = client

    @property
    def undecided(self) -> int:
        """Records so far for which `where` could not be decided; they were left out."""
        return 0 if self._where is None else self._where.undecided

    def __aiter__(self) -> AsyncIterator[Record[Any]]:
        return self._records()

    async def _records(self) -> AsyncIterator[Record[Any]]:
        async for batch in self.batches():
            for record in batch:
                yield record

    async def batches(self) -> AsyncIterator[Batch[Any]]:
        """Whole batches, cut only at `until` and `limit`. Raises StreamNotFound, SequenceTrimmed …"""
        async for run in self.runs():
            for batch in run:
                yield batch

    async def runs(self) -> AsyncIterator[list[Batch[Any]]]:
        """The same batches, as many at a time as had arrived; never an empty list."""
        client = self._client or AsyncClient(self._url, self._runtime)
        try:
            left = self._limit
            async for run in self._read(client):
                if left is None:
                    yield run
                    continue
                for i, batch in enumerate(run):
                    if left <= len(batch):
                        if last := [*run[:i], *([batch.part(0, left)] if left else [])]:
                            yield last
                        return
                    left -= len(batch)
                yield run
        finally:
            if client is not self._client:
                await client.close()

    async def to_arrow(self, limit: int | None = None) -> Any:
        """A pyarrow.Table: sequence, arrived, time, key, data. Raises InvalidUse when it would never end."""
        import pyarrow  # type: ignore[import-untyped]

        if self._until is None and limit is None and self._limit is None:
            raise InvalidUse("a table needs an end", try_='pass until="latest", or limit=…')
        parts = []
        rows = 0
        async for batch in self.batches():
            if limit is not None and rows + len(batch) >= limit:
                parts.append(batch.part(0, limit - rows).to_arrow())
                break
            rows += len(batch)
            parts.append(batch.to_arrow())
        return pyarrow.Table.from_batches(parts) if parts else _empty_table(pyarrow)

    async def _read(self, client: AsyncClient) -> AsyncIterator[list[Batch[Any]]]:
        stream = await client.stream(self.stream)
        arrived: asyncio.Queue[Batch[Any] | BaseException | _Ended] = asyncio.Queue(_QUEUE_BATCHES)
        loop = asyncio.get_running_loop()
        shards = [shard for shard in stream.shards if not isinstance(self._start, Mapping) or shard.id in self._start]
        # All at once: what "latest" means must not depend on how long a parent takes.
        spans = dict(zip(
            [shard.uuid for shard in shards],
            await asyncio.gather(*(self._span(client, shard) for shard in shards)), strict=True,
        ))  # fmt: skip
        lineage = Lineage(shards)
        pumps: set[asyncio.Task[None]] = set()

        def begin() -> None:
            for shard in lineage.ready():
                start, end = spans.get(shard.uuid, (0, None))
                pump = loop.create_task(self._pump(client, shard, start, end, arrived))
                pumps.add(pump)
                pump.add_done_callback(pumps.discard)

        try:
            begin()
            while not lineage.is_over:
                items = [await arrived.get()]
                while not arrived.empty():
                    items.append(arrived.get_nowait())
                if run := [item for item in items if isinstance(item, Batch)]:
                    yield run
                for item in items:
                    if isinstance(item, BaseException):
                        raise item
                    if isinstance(item, _Ended):
                        lineage.add(item.children)
                        lineage.ended(item.shard)
                begin()
        finally:
            left = list(pumps)
            for pump in left:
                pump.cancel()
            if left:
                await asyncio.wait(left)

    async def _span(self, client: AsyncClient, shard: Shard) -> tuple[int, int | None]:
        """First sequence and one past the last; None: no end."""
        until = self._until

        async def resolve(position: Position) -> int:
            return (await patiently(client, shard, lambda: client.resolve_position(shard, position))).sequence

        return await resolve(self._position(shard)), None if until is None else await resolve(parse_position(until))

    async def _pump(
        self, client: AsyncClient, shard: Shard, start: int, end: int | None, arrived: asyncio.Queue[Any]
    ) -> None:
        # One shard's batches into the common queue, then _Ended; or the error that ended it.
        context = self._decoding.context(self.stream, shard)
        try:
            if not (start >= end if end is not None else shard.end is not None and start >= shard.end):
                fetcher = Fetcher(client, shard, context, start, self._budget, records_lost_ok=False, where=self._where)
                fetching = asyncio.get_running_loop().create_task(fetcher.run())
                try:
                    await self._copy(fetcher, shard, end, arrived)
                finally:
                    fetching.cancel()
                    await asyncio.wait([fetching])
                    fetcher.close()
            children = [] if end is not None else await children_of(client, self.stream, shard)
        except Exception as error:
            await arrived.put(error)
        else:
            await arrived.put(_Ended(shard, children))

    async def _copy(self, fetcher: Fetcher, shard: Shard, end: int | None, arrived: asyncio.Queue[Any]) -> None:
        while True:
            batch = fetcher.next_nowait() or await fetcher.next()
            wanted = batch
            if end is not None and batch.end_sequence > end:
                wanted = batch.part(0, max(0, end - batch.first_sequence))
            if not batch.is_control and len(wanted):
                given = unwrapped(wanted, shard, self._deaggregate)
                if len(given := given if self._where is None else self._where.matching(given)):
                    await arrived.put(given)
            fetcher.finished(batch)
            if batch.is_closing or (end is not None and batch.end_sequence >= end):
                return

    def _position(self, shard: Shard) -> Position:
        if not isinstance(self._start, Mapping):
            return parse_position(self._start)
        text = self._start[shard.id]
        if text in ("trim_horizon", "latest"):
            return parse_position(text)
        return AtSequence(parse_sequence_number(text).sequence)


@dataclass(frozen=True, slots=True)
class _Ended:
    """A shard was read to its end, or as far as it was wanted; children: who goes on there."""

    shard: Shard
    children: list[Shard]


def _empty_table(pyarrow: Any) -> Any:
    moment = pyarrow.timestamp("ms", tz="UTC")
    columns = {"sequence": pyarrow.int64(), "arrived": moment, "time": moment, "key": pyarrow.string(),
               "data": pyarrow.binary()}
    return pyarrow.schema(list(columns.items())).empty_table()


class Reader:
    """AsyncReader for callers that are not coroutines; `for record in Reader(…)` starts anew each time."""

    def __init__(
        self,
        stream: str,
        *,
        start: Start,
        until: str | datetime | None = None,
        limit: int | None = None,
        codec: Codec | str = "auto",
        annotation: Any = None,
        prefetch_bytes_max: int = _PREFETCH_BYTES,
        deaggregate: Deaggregate = True,
        where: str | None = None,
        url: str | Connector | None = None,
        runtime: Runtime | None = None,
        loop_thread: LoopThread | None = None,
    ) -> None:
        self._reader = AsyncReader(
            stream, start=start, until=until, limit=limit, codec=codec, annotation=annotation,
            prefetch_bytes_max=prefetch_bytes_max, deaggregate=deaggregate, where=where, url=url, runtime=runtime,
        )
        self._thread = loop_thread

    @property
    def undecided(self) -> int:
        """As AsyncReader's."""
        return self._reader.undecided

    def __iter__(self) -> Iterator[Record[Any]]:
        for batch in self.batches():
            yield from batch

    def batches(self) -> Iterator[Batch[Any]]:
        """Whole batches, cut only at `until` and `limit`."""
        # One change of threads costs about as much as copying a batch: all that has arrived comes over at once.
        thread = self._thread or LoopThread.shared()
        source = self._reader.runs()
        try:
            while run := thread.run(_next(source)):
                yield from run
        finally:
            if thread.alive:
                thread.run(_close(source))

    def to_arrow(self, limit: int | None = None) -> Any:
        """A pyarrow.Table: sequence, arrived, time, key, data."""
        return (self._thread or LoopThread.shared()).run(self._reader.to_arrow(limit))


async def _next(source: AsyncIterator[list[Batch[Any]]]) -> list[Batch[Any]] | None:
    return await anext(source, None)


async def _close(source: Any) -> None:
    await source.aclose()
