"""A stream into a store: what a user says of it, and how it is run.

    orders = Delivery("orders-to-lake", source="orders", sink=ObjectSink("s3://lake/orders/{arrived:%Y/%m/%d}/"),
                      format=Parquet(Order), buffer=Buffer(bytes_max=128 << 20, seconds_max=60))
    orders.run()

A delivery is an application on its stream: workers share the shards out, and `streamkit app` shows its lag.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any, Literal, TypeVar

from streamkit.client.client import AsyncClient
from streamkit.client.pool import Connector
from streamkit.client.sync import Client
from streamkit.consumer.aggregates import Deaggregate
from streamkit.consumer.config import Start
from streamkit.consumer.dead_letters import DeadLetters
from streamkit.consumer.failure import DeadRecord
from streamkit.consumer.reader import AsyncReader, Reader
from streamkit.consumer.worker import Worker
from streamkit.delivery.buffer import Buffer, Gathering, Range
from streamkit.delivery.chunk import Failure, Plan, plan_id
from streamkit.delivery.compression import compression as compression_named
from streamkit.delivery.formats.format import Format
from streamkit.delivery.formats.lines import Lines
from streamkit.delivery.memory import Memory
from streamkit.delivery.pipeline import Origin, Pipeline, Staged, Transform
from streamkit.delivery.progress import Progress
from streamkit.delivery.replay import Replay
from streamkit.delivery.shard_delivery import ShardDelivery
from streamkit.delivery.sinks.sink import Sink
from streamkit.errors import InvalidUse, Undeliverable
from streamkit.model.codec import Codec, Decoding
from streamkit.observability.delivery_numbers import DeliveryNumbers
from streamkit.observability.producer_numbers import Distribution
from streamkit.runtime.interfaces import Clock, Executor, Random, Runtime
from streamkit.runtime.real import LoopThread, RealClock, RealExecutor, RealRandom

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R")

_CLOCK, _RANDOM = RealClock(), RealRandom()
_WRITE_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
_THREADS = 4                               # that format and compress at a time


class Delivery(Worker):
    """Delivers `source` into `sink`. name: of the application, and in names of objects.

    start: where shards begin that the delivery has no position of. format, compression: of bodies; a sink that takes
    values needs neither. where: only records for which the condition holds. dead_letter: a stream for records that
    cannot be delivered, with the reason in their headers; None: they are held, and nothing behind them is delivered.
    memory_bytes_max: of payload that all shards of this process hold; when it is used up, ranges are written early.
    codec: as a Consumer's. Further arguments are a Worker's. Raises InvalidUse, MissingLibrary.
    """

    def __init__(
        self,
        name: str,
        *,
        source: str,
        sink: Sink,
        start: Start = "trim_horizon",
        format: Format | None = None,
        compression: str = "none",
        compression_level: int | None = None,
        buffer: Buffer | None = None,
        memory_bytes_max: int = 256 * 1024 * 1024,
        where: str | None = None,
        dead_letter: str | None = None,
        codec: Codec | str = "auto",
        deaggregate: Deaggregate = True,
        prefetch_bytes_max: int = 64 * 1024 * 1024,
        leases_max: int | None = None,
        weight: float = 1.0,
        worker: str | None = None,
        instance: str | None = None,
        standby: bool = False,
        membership_ms: int = 10_000,
        drain_seconds: int = 30,
        url: str | Connector | None = None,
        runtime: Runtime | None = None,
        loop_thread: LoopThread | None = None,
    ) -> None:
        super().__init__(
            source, application=name, start=start, processor=self._of_shard, codec=codec, where=where,
            deaggregate=deaggregate, prefetch_bytes_max=prefetch_bytes_max, leases_max=leases_max, weight=weight,
            worker=worker, instance=instance, standby=standby, membership_ms=membership_ms, stall_seconds=0,
            drain_seconds=drain_seconds, url=url, runtime=runtime, loop_thread=loop_thread,
        )
        self.config = replace(self.config, probes=False)
        self.name = name
        self.source = source
        self.sink = sink
        self.buffer = buffer or Buffer()
        self.dead_letter = dead_letter
        self.progress = Progress()
        self.memory = Memory(memory_bytes_max)
        self._format = format or Lines()
        self._compression = compression_named(compression, compression_level)
        self._transform: Transform | None = None
        self._codec = codec
        self._users = 0                    # shards that have the sink, or wait for it
        self._opening: asyncio.Lock | None = None
        self._executor: Executor | None = None
        self._client: AsyncClient | None = None        # for dead letters
        self._letters: DeadLetters | None = None
        self.pipeline = self._made()

    def transform(self, function: F) -> F:
        """A decorator for a function of a record's value: it returns another value, several in a list, or None.

        None leaves the record out, and is counted. Bytes and text are written as they are, all else as JSON. It should
        say the same of the same value whenever it is asked. Raises InvalidUse for a second one, and once it runs.
        """
        if self._transform is not None or self.running:
            raise InvalidUse("a delivery has one transformation, given before it runs", try_="call one from the other",
                             argument="transform")
        self._transform = Transform.of(function)
        self.pipeline = self._made()
        return function

    def decoding(self) -> Decoding:
        return Decoding(self._codec, self._transform.annotation if self._transform is not None else None)

    def preview(self, records: int = 5) -> Staged:
        """What the first records of the stream would be written as: names, bodies or values, and who would fail.

        Nothing is written, and no position moves. Raises StreamNotFound, ConnectionFailed.
        """
        with Client(self.url) as client:
            uuids = {shard.id: shard.uuid for shard in client.describe_stream(self.source).shards}
        found = Staged()
        for batch in self._reader(Reader, "trim_horizon", "latest", limit=records).batches():
            gathering = Gathering(Buffer(bytes_max=1 << 40), batch.place(0))
            gathering.add(batch)
            gathered = gathering.take()
            origin = Origin(self.name, self.source, batch.shard, uuids.get(batch.shard, b""))
            plan = Plan(plan_id(self.name, origin.shard_uuid, gathered.start, gathered.end), gathered.start,
                        gathered.end, gathered.oldest_ms)  # fmt: skip
            staged = self.pipeline.stage(gathered, plan, origin)
            found.chunks += staged.chunks
            found.failures += staged.failures
            found.dropped += staged.dropped
        return found

    def replay(self, start: Start, until: datetime | Literal["latest"] = "latest", *, name: str | None = None) -> int:
        """Write a range once more under another name, beside what goes on; how many records. Blocks.

        start, until: as a Reader's. name: "orders-to-lake-replay", say; the default has the start in it. The same call
        writes the same chunks, so one that was broken off can be repeated. Raises InvalidUse while this very object
        runs: its sink belongs to another event loop then.
        """
        if self.running:
            raise InvalidUse("this delivery runs, with the sink that the replay would use",
                             try_="make another Delivery of that name, or replay in another process", argument="replay")
        shown = start if isinstance(start, str) else start.isoformat() if isinstance(start, datetime) else "positions"
        return asyncio.run(self._replay(start, until, name or f"{self.name}-replay-{shown}".replace(":", "")))

    async def _replay(self, start: Start, until: datetime | Literal["latest"], name: str) -> int:
        client = AsyncClient(self.url, self._runtime)
        await self.sink_opened()
        try:
            reader = self._reader(AsyncReader, start, until, client=client)
            return await Replay(self, name, client, self.source).run(reader)
        finally:
            await self.sink_released()
            await client.close()

    def _reader(self, kind: Callable[..., R], start: Start, until: datetime | Literal["latest"], **options: Any) -> R:
        annotation = self._transform.annotation if self._transform is not None else None
        if "client" not in options:
            options["url"] = self.url
        return kind(self.source, start=start, until=until, codec=self._codec, annotation=annotation,
                    where=self.config.where, deaggregate=self.config.deaggregate, **options)  # fmt: skip

    def numbers(self) -> DeliveryNumbers:
        """What `progress` counts, for observability.delivery_metrics.DeliveryCollector."""
        progress, histogram = self.progress, self.progress.write_us
        below = [histogram.count_below(int(bound * 1e6) + 1) for bound in _WRITE_SECONDS]
        return DeliveryNumbers(
            delivery=self.name, records=progress.records, payload_bytes=progress.payload_bytes,
            written_bytes=progress.written_bytes, chunks=progress.chunks, repeated=progress.repeated,
            dropped=progress.dropped, failed=dict(progress.failed),
            trouble=Counter(trouble.code for trouble in progress.trouble.values()),
            lag_seconds=progress.freshness_seconds(self.clock.now_ms()), buffer_bytes=self.memory.held,
            write=Distribution(_WRITE_SECONDS, below, histogram.count, histogram.total / 1e6),
        )  # fmt: skip

    def prometheus(self) -> bytes:
        """The same as Prometheus text, for whatever serves /metrics in this process."""
        from streamkit.observability.delivery_metrics import exposition  # its package takes 30 ms to load

        return exposition(self.numbers)

    @property
    def clock(self) -> Clock:
        """The runtime's."""
        return self._runtime.clock if self._runtime is not None else _CLOCK

    @property
    def random(self) -> Random:
        """The runtime's."""
        return self._runtime.random if self._runtime is not None else _RANDOM

    # ---- for shards ------------------------------------------------------------------------------------------

    async def sink_opened(self) -> None:
        """The first shard opens the sink, on the loop that uses it. Raises what `open` raises."""
        self._users += 1                   # before the wait: who closes meanwhile sees that somebody comes
        try:
            if self._opening is None:
                self._opening = asyncio.Lock()
            async with self._opening:
                if self._executor is None:
                    await self.sink.open()
                    self._executor = self._runtime.executor if self._runtime is not None else RealExecutor(_THREADS)
        except BaseException:
            self._users -= 1
            if not self._users:
                self._opening = None       # another run may have another loop
            raise

    async def staged(self, gathered: Range, plan: Plan, origin: Origin) -> Staged:
        """As Pipeline.stage, in a thread: what formats and compresses would stall the event loop."""
        assert self._executor is not None, "a shard opens before it writes"
        return await self._executor.run(self.pipeline.stage, gathered, plan, origin)

    async def sink_released(self) -> None:
        """The last one closes it."""
        self._users -= 1
        opening = self._opening
        assert opening is not None, "who releases has opened"
        async with opening:
            if self._users or self._executor is None:
                return
            client, self._client, self._letters = self._client, None, None
            if client is not None:
                await client.close()
            executor, self._executor = self._executor, None
            if self._runtime is None and isinstance(executor, RealExecutor):
                executor.close()
            await self.sink.close()
        if not self._users:
            self._opening = None

    async def give_up(self, failures: list[Failure]) -> None:
        """Into the dead-letter stream, acknowledged. Raises Undeliverable when there is none."""
        if self.dead_letter is None:
            first = failures[0]
            raise Undeliverable(
                f"{len(failures)} records cannot be delivered; the first, {first.record.sequence_number} of "
                f"{first.record.shard}: {first.message}", try_='Delivery(…, dead_letter="orders-undelivered")',
                stage=first.stage, reason=first.code,
            )  # fmt: skip
        if self._letters is None:
            self._client = AsyncClient(self.url, self._runtime)
            self._letters = DeadLetters(self._client, self.dead_letter)
        for failure in failures:
            error = Undeliverable(failure.message, stage=failure.stage, reason=failure.code)
            now_ms = self.clock.now_ms()
            await self._letters.put(DeadRecord(
                record=failure.record, error=error, attempts=failure.attempts, application=self.name,
                worker=self.config.worker, failed_first_ms=now_ms, failed_last_ms=now_ms,
            ))  # fmt: skip

    # ---- inside ----------------------------------------------------------------------------------------------

    def _of_shard(self) -> ShardDelivery:
        return ShardDelivery(self)

    def _made(self) -> Pipeline:
        return Pipeline(
            form=self._format, compression=self._compression, template=getattr(self.sink, "template", None),
            transform=self._transform, takes=getattr(self.sink, "takes", "values"),
        )
